//! Who is here: one transition for a user, however many devices come and go.

use std::sync::Arc;

use tokio::sync::mpsc;
use wsc_protocol::{DisconnectReason, Event};
use wsc_testkit::{Client, eventually, within};

use crate::support::{TestHub, hub};

/// What happened to whom, in the order of publication.
fn watch(hub: &TestHub, pattern: &str) -> mpsc::UnboundedReceiver<Event> {
    let (sender, events) = mpsc::unbounded_channel();
    let watcher = move |event: &Event| {
        let _ = sender.send(event.clone());
    };
    hub.hub.callbacks().register_callback(pattern, watcher).unwrap();
    events
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_devices_are_one_user() {
    let hub = hub("presence_debounce: 0s").await;
    let mut events = watch(&hub, "user.*");
    let first = hub.connect("alice").await;
    let second = hub.connect("alice").await;
    first.close().await;
    eventually("one is left", async || (hub.hub.connections() == 1).then_some(())).await;
    second.close().await;
    let mut seen = Vec::new();
    for _ in 0..2 {
        seen.push(within("a transition", events.recv()).await.unwrap().event_type().as_str());
    }
    assert_eq!(seen, ["user.online", "user.offline"]);
    hub.hub.shutdown().await;
    assert!(events.recv().await.is_none());
}

/// Several devices of a few users come and go at the same instant, for a while.
async fn churn(debounce: &str) -> (TestHub, mpsc::UnboundedReceiver<Event>) {
    let hub = Arc::new(hub(&format!("presence_debounce: {debounce}")).await);
    let events = watch(&hub, "user.*");
    let mut tasks = tokio::task::JoinSet::new();
    for device in 0..9 {
        let hub = Arc::clone(&hub);
        tasks.spawn(async move {
            for round in 0..30 {
                let client = hub.connect(&format!("u{}", device % 3)).await;
                match round % 3 {
                    0 => client.cut(),
                    1 => client.close().await,
                    _ => drop(client),
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let hub = Arc::into_inner(hub).unwrap();
    (hub, events)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn transitions_come_in_turns_and_the_last_is_true() {
    for debounce in ["0s", "1ms", "20ms"] {
        let (hub, mut events) = churn(debounce).await;
        let stays = hub.connect("u0").await;
        eventually("the others are gone", async || (hub.hub.connections() == 1).then_some(())).await;
        let gone = eventually("they are known to be gone", async || {
            let page = hub.get("/debug/callbacks").await.json();
            (page["callbacks"][0]["queued"] == 0).then_some(page)
        })
        .await;
        assert_eq!(gone["callbacks"][0]["drops"], 0, "{gone}");
        hub.hub.shutdown().await;
        drop(stays);
        let mut is_online = [false; 3];
        let mut turns = 0;
        while let Some(event) = events.recv().await {
            let (user_id, comes) = match &event {
                Event::UserOnline { user_id } => (user_id, true),
                Event::UserOffline { user_id } => (user_id, false),
                other => panic!("{other:?}"),
            };
            let user: usize = user_id.as_str()[1..].parse().unwrap();
            assert_ne!(is_online[user], comes, "twice in a row: {event:?} after {turns} with {debounce}");
            is_online[user] = comes;
            turns += 1;
        }
        // The shutdown sent everybody away.
        assert_eq!((is_online, turns % 2), ([false; 3], 0), "{debounce}");
        assert!(turns >= 6, "{turns}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_connection_ends_once_with_the_true_reason() {
    let hub = hub("limits: {user_connections: 2}").await;
    let mut events = watch(&hub, "client.disconnected");
    let url = |user: &str, client: &str| format!("ws://{}/ws?user_id={user}&client_id={client}", hub.addr);
    let mut expected = Vec::new();
    let old = Client::connect(&url("alice", "phone")).await;
    expected.push((old.session().to_owned(), DisconnectReason::Replaced));
    let phone = Client::connect(&url("alice", "phone")).await;
    let kicked = Client::connect(&url("bob", "b")).await;
    expected.push((kicked.session().to_owned(), DisconnectReason::KickOut));
    hub.hub.disconnect_user("bob", "bye", true);
    let closes = Client::connect(&url("carol", "c")).await;
    expected.push((closes.session().to_owned(), DisconnectReason::ClientRequest));
    closes.close().await;
    let cut = Client::connect(&url("dave", "d")).await;
    expected.push((cut.session().to_owned(), DisconnectReason::ReadError));
    cut.cut();
    // The oldest goes when there are too many.
    expected.push((phone.session().to_owned(), DisconnectReason::ForceOffline));
    let tablet = Client::connect(&url("alice", "tablet")).await;
    let laptop = Client::connect(&url("alice", "laptop")).await;
    drop((old, kicked, phone));
    eventually("two are left", async || (hub.hub.connections() == 2).then_some(())).await;
    expected.push((tablet.session().to_owned(), DisconnectReason::ServerShutdown));
    expected.push((laptop.session().to_owned(), DisconnectReason::ServerShutdown));
    let leaving = hub.hub.clone();
    let shutdown = tokio::spawn(async move { leaving.shutdown().await });
    for mut client in [tablet, laptop] {
        assert_eq!(client.expect_close().await.0, 3001);
    }
    within("the shutdown", shutdown).await.unwrap();
    let mut seen = Vec::new();
    while let Some(event) = events.recv().await {
        let Event::ClientDisconnected { client, reason, .. } = event else { panic!("{event:?}") };
        seen.push((client.session.to_string(), reason));
    }
    seen.sort_by(|a, b| a.0.cmp(&b.0));
    expected.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(seen, expected);
}
