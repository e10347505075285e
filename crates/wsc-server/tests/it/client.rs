//! The hub's own Rust client against the hub: what its users see when things go well, and when they do not.

use std::time::Duration;

use serde_json::{Value, json};
use wsc_client::{
    Backoff, Builder, Cause, Client, CloseCode, ConnectError, Connected, Delivery, DeliveryKind, ErrorCode, Event,
    Events, Outcome, RequestError, RoomNotice, RoomOptions,
};
use wsc_testkit::{ServerProcess, TlsIdentity, within};

use crate::{
    support::{BIN, expect_clients, hub},
    tls::hub_with_tls,
};

/// A client that comes back quickly.
fn client(server: &ServerProcess, user_id: &str) -> Builder {
    let backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(200));
    Client::builder(server.ws_url()).user_id(user_id).backoff(backoff)
}

async fn connect(builder: Builder) -> (Client, Events) {
    let (client, mut events) = within("the connection", builder.connect()).await.unwrap();
    let connected = next_connected(&mut events).await;
    assert!(!connected.reconnected);
    (client, events)
}

/// The next event.
async fn next(events: &mut Events) -> Event {
    within("an event", events.next()).await.unwrap()
}

/// The next event of this kind; those before it are passed over.
async fn find<T>(events: &mut Events, mut kind: impl FnMut(Event) -> Option<T>) -> T {
    loop {
        if let Some(found) = kind(next(events).await) {
            return found;
        }
    }
}

async fn next_connected(events: &mut Events) -> Connected {
    find(events, |event| match event {
        Event::Connected(connected) => Some(connected),
        _ => None,
    })
    .await
}

async fn next_delivery(events: &mut Events) -> Delivery {
    find(events, |event| match event {
        Event::Delivery(delivery) => Some(delivery),
        _ => None,
    })
    .await
}

/// Why the next connection is lost.
async fn next_loss(events: &mut Events) -> Cause {
    find(events, |event| match event {
        Event::Disconnected { cause, .. } => Some(cause),
        _ => None,
    })
    .await
}

/// Why the client is closed for good; nothing follows.
async fn the_end(events: &mut Events) -> Cause {
    let cause = find(events, |event| match event {
        Event::Closed { cause } => Some(cause),
        _ => None,
    })
    .await;
    assert!(events.next().await.is_none());
    cause
}

#[track_caller]
fn closed_with(cause: &Cause) -> CloseCode {
    match cause {
        Cause::Closed(closing) => closing.code,
        other => panic!("{other}"),
    }
}

/// A hub with these settings at the address of one that is gone.
async fn hub_again(gone: &ServerProcess) -> ServerProcess {
    let listen = format!("wsc: {{listen: \"{}\"}}\n", gone.addr());
    ServerProcess::start(BIN, &listen).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_has_its_reply() {
    let server = hub("").await;
    let (alice, mut alice_events) = connect(client(&server, "alice")).await;
    let (bob, mut bob_events) = connect(client(&server, "bob").client_id("phone")).await;
    assert_eq!(alice.session().unwrap().user_id, "alice");
    assert_eq!(bob.session().unwrap().client_id, "phone");

    alice.create_room("garden", RoomOptions::default().name("Garden").max_clients(2)).await.unwrap();
    alice.join_room("garden").await.unwrap();
    bob.join_room("garden").await.unwrap();
    let again = bob.join_room("garden").await.unwrap_err();
    assert!(again.hub_error().unwrap().is(ErrorCode::AlreadyInRoom), "{again}");
    let members = alice.room_members("garden", Some(1), None).await.unwrap();
    assert_eq!((members.total, members.members.len()), (2, 1));
    let rest = alice.room_members("garden", None, members.next_cursor.as_deref()).await.unwrap();
    assert_eq!(rest.members.len(), 1);

    let accepted = alice.room_message("garden", &json!({"text": "hello"})).await.unwrap();
    assert_eq!(accepted.recipients, 1);
    let delivery = next_delivery(&mut bob_events).await;
    assert_eq!((delivery.room_id(), delivery.sender_id.as_str()), (Some("garden"), "alice"));
    assert_eq!(delivery.id, accepted.id);
    assert_eq!(delivery.content::<Value>().unwrap()["text"], "hello");

    let accepted = bob.direct_message("alice", "and to you").await.unwrap();
    assert!(matches!(accepted.outcome, Outcome::Sent | Outcome::Pending), "{accepted:?}");
    let delivery = next_delivery(&mut alice_events).await;
    assert_eq!((delivery.kind.clone(), delivery.content.get()), (DeliveryKind::Direct, r#""and to you""#));
    alice.direct_message_to("bob", "phone", &1).await.unwrap();
    let nowhere = alice.direct_message_to("bob", "laptop", &1).await.unwrap_err();
    assert!(nowhere.hub_error().unwrap().is(ErrorCode::ClientNotFound), "{nowhere}");
    let stored = alice.direct_message("carol", &1).await.unwrap();
    assert_eq!(stored.outcome, Outcome::Stored);

    bob.leave_room("garden").await.unwrap();
    alice.delete_room("garden").await.unwrap();
    let gone = alice.room_message("garden", &1).await.unwrap_err();
    assert!(gone.hub_error().unwrap().is(ErrorCode::RoomNotFound), "{gone}");

    assert!(alice.ping().await.unwrap().server_ts > 0);
    let unknown = alice.request("no.such.type", &json!({})).await.unwrap_err();
    assert!(unknown.hub_error().unwrap().is(ErrorCode::InvalidFormat), "{unknown}");
    alice.notify("no.such.type", &json!({})).await.unwrap();
    find(&mut alice_events, |event| match event {
        Event::Error(error) => error.is(ErrorCode::InvalidFormat).then_some(()),
        _ => None,
    })
    .await;
    let accepted = alice.direct_message("bob", &2).require_ack().await.unwrap();
    let delivery = find(&mut bob_events, |event| match event {
        Event::Delivery(delivery) if delivery.require_ack => Some(delivery),
        _ => None,
    })
    .await;
    assert_eq!((&delivery.id, accepted.outcome), (&accepted.id, Outcome::Pending));
    bob.ack([delivery.id.as_str()]).unwrap();
    alice.ack(["unknown"]).unwrap();
    alice.ping().await.unwrap();

    within("goodbye", alice.close()).await;
    assert!(matches!(the_end(&mut alice_events).await, Cause::Requested));
    drop((bob, bob_events));
    expect_clients(&server, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_without_a_store_says_what_it_cannot_do() {
    let server = hub("storage: {kind: none}").await;
    let (alice, _alice_events) = connect(client(&server, "alice")).await;
    let (_bob, _bob_events) = connect(client(&server, "bob")).await;
    let away = alice.direct_message("carol", &1).await.unwrap_err();
    assert!(away.hub_error().unwrap().is(ErrorCode::UserOffline), "{away}");
    let refused = alice.direct_message("bob", &1).require_ack().await.unwrap_err();
    assert!(refused.hub_error().unwrap().is(ErrorCode::InvalidFormat), "{refused}");
    // The connection stays.
    alice.direct_message("bob", &1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pushes_are_events() {
    let server = hub("").await;
    let (_alice, mut events) = connect(client(&server, "alice")).await;
    server.post("/api/users/alice/messages", &json!({"content": {"order": 7}})).await;
    let delivery = next_delivery(&mut events).await;
    assert_eq!((delivery.kind.clone(), delivery.sender_id.as_str()), (DeliveryKind::User, "system"));
    server.post("/api/rooms", &json!({"id": "orders"})).await;
    server.post("/api/rooms/orders/members/alice", &json!({})).await;
    assert!(matches!(next(&mut events).await, Event::Room(RoomNotice::Added { room_id }) if room_id == "orders"));
    server.post("/api/rooms/orders/messages", &json!({"content": 1})).await;
    assert_eq!(next_delivery(&mut events).await.room_id(), Some("orders"));
    server.delete("/api/rooms/orders/members/alice").await;
    assert!(matches!(next(&mut events).await, Event::Room(RoomNotice::Removed { room_id, .. }) if room_id == "orders"));
    server.post("/api/broadcast", &json!({"content": "noon"})).await;
    assert_eq!(next_delivery(&mut events).await.kind, DeliveryKind::Broadcast);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_hub_is_found_again_with_all_rooms() {
    let mut server = hub("").await;
    let (alice, mut alice_events) = connect(client(&server, "alice")).await;
    let (bob, mut bob_events) = connect(client(&server, "bob")).await;
    for room in ["r1", "r2", "r3"] {
        alice.join_room(room).await.unwrap();
        bob.join_room(room).await.unwrap();
    }
    bob.leave_room("r2").await.unwrap();

    server.kill().await;
    let lost = next_loss(&mut alice_events).await;
    assert!(matches!(lost, Cause::Lost(_)), "{lost}");
    assert!(
        !within("the refusal", alice.room_message("r1", &0).timeout(Duration::ZERO).into_future())
            .await
            .unwrap_err()
            .may_have_been_processed()
    );
    let server = hub_again(&server).await;
    for events in [&mut alice_events, &mut bob_events] {
        assert!(next_connected(events).await.reconnected);
    }
    for _ in 0..2 {
        assert!(matches!(next(&mut bob_events).await, Event::Room(RoomNotice::Rejoined { .. })));
    }
    // The rooms of a client stand before what its application asks for next.
    assert_eq!(alice.room_message("r1", &1).await.unwrap().recipients, 1);
    assert_eq!(alice.room_message("r2", &2).await.unwrap().recipients, 0);
    assert_eq!(alice.room_message("r3", &3).await.unwrap().recipients, 1);
    assert_eq!(next_delivery(&mut bob_events).await.content.get(), "1");
    assert_eq!(next_delivery(&mut bob_events).await.content.get(), "3");
    expect_clients(&server, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_with_a_rate_limit_gets_all_its_rooms_back() {
    const ROOMS: usize = 50;
    let mut server = hub("").await;
    let (alice, mut events) = connect(client(&server, "alice")).await;
    for n in 0..ROOMS {
        alice.join_room(&format!("r{n}")).await.unwrap();
    }
    server.kill().await;
    let limited = format!("wsc: {{listen: \"{}\", limits: {{messages_per_second: 20, burst: 5}}}}\n", server.addr());
    let _server = ServerProcess::start(BIN, &limited).await;
    assert!(next_connected(&mut events).await.reconnected);
    let mut rejoined = 0;
    while rejoined < ROOMS {
        match next(&mut events).await {
            Event::Room(RoomNotice::Rejoined { .. }) => rejoined += 1,
            Event::Error(error) => assert!(error.is(ErrorCode::RateLimited), "{error}"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_rooms_are_no_reason_to_be_closed_for_the_rate() {
    const ROOMS: usize = 99;
    let mut server = hub("").await;
    let (alice, mut events) = connect(client(&server, "alice")).await;
    for n in 0..ROOMS {
        alice.join_room(&format!("r{n}")).await.unwrap();
    }
    server.kill().await;
    // All at once would be more than it refuses before it closes with 3013.
    let limited = format!("wsc: {{listen: \"{}\", limits: {{messages_per_second: 4}}}}\n", server.addr());
    let _server = ServerProcess::start(BIN, &limited).await;
    next_connected(&mut events).await;
    for _ in 0..20 {
        find(&mut events, |event| match event {
            Event::Room(RoomNotice::Rejoined { .. }) => Some(()),
            Event::Disconnected { cause, .. } => panic!("{cause}"),
            _ => None,
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_hub_is_left_and_its_successor_found() {
    let mut server = hub("").await;
    let (alice, mut events) = connect(client(&server, "alice")).await;
    alice.join_room("r1").await.unwrap();
    assert_eq!(server.terminate().await, 0);
    let (code, asked, retry_in) = find(&mut events, |event| match event {
        Event::Disconnected { cause: Cause::Closed(closing), retry_in, .. } => {
            Some((closing.code, closing.retry_after, retry_in))
        }
        _ => None,
    })
    .await;
    assert_eq!(code, CloseCode::SHUTTING_DOWN);
    assert!(retry_in >= asked.unwrap_or_default(), "{retry_in:?}, asked for {asked:?}");
    let _server = hub_again(&server).await;
    assert!(next_connected(&mut events).await.reconnected);
    assert!(matches!(next(&mut events).await, Event::Room(RoomNotice::Rejoined { room_id }) if room_id == "r1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_hub_is_noticed_by_its_silence() {
    let server = hub("ping_interval: 200ms").await;
    let builder = client(&server, "alice")
        .silence(Duration::from_millis(200), Duration::from_millis(300))
        .connect_timeout(Duration::from_millis(500));
    let (alice, mut events) = connect(builder).await;
    // As long as it lives, its pings are signs of life.
    alice.ping().await.unwrap();
    server.freeze();
    let lost = next_loss(&mut events).await;
    assert!(matches!(lost, Cause::Silent), "{lost}");
    // The kernel still takes connections for it, and nobody answers.
    let lost = next_loss(&mut events).await;
    assert!(matches!(lost, Cause::Timeout), "{lost}");
    let asked = alice.ping();
    server.thaw();
    next_connected(&mut events).await;
    asked.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_client_does_not_come_back() {
    let server = hub("").await;
    let (old, mut old_events) = connect(client(&server, "alice").client_id("phone")).await;
    let (new, mut new_events) = connect(client(&server, "alice").client_id("phone")).await;
    assert_eq!(closed_with(&the_end(&mut old_events).await), CloseCode::REPLACED);
    assert!(matches!(old.ping().await, Err(RequestError::Closed { sent: false })));
    // The other one is not thrown out in turn.
    new.ping().await.unwrap();
    new.direct_message("alice", &1).await.unwrap();
    next_delivery(&mut new_events).await;
    expect_clients(&server, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kicked_client_hears_why_and_stays_away() {
    let server = hub("").await;
    let (_alice, mut events) = connect(client(&server, "alice")).await;
    server.post("/api/users/alice/disconnect", &json!({"reason": "spam"})).await;
    assert!(matches!(next(&mut events).await, Event::KickOut { reason } if reason == "spam"));
    assert_eq!(closed_with(&the_end(&mut events).await), CloseCode::KICKED);
    expect_clients(&server, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_one_too_many_hears_it() {
    let server = hub("limits: {user_connections: 1}").await;
    let (_first, mut events) = connect(client(&server, "alice")).await;
    let (_second, _events) = connect(client(&server, "alice")).await;
    assert!(matches!(next(&mut events).await, Event::ForceOffline { .. }));
    assert_eq!(closed_with(&the_end(&mut events).await), CloseCode::TOO_MANY_CONNECTIONS_OF_USER);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_not_tried_again() {
    let server = hub("").await;
    let refused = within("the refusal", client(&server, "__root").connect()).await.unwrap_err();
    let ConnectError::Failed(Cause::Refused { status: 400, error, .. }) = &refused else {
        panic!("{refused:?}");
    };
    // The body may come a moment after the head, and is not waited for.
    assert!(error.as_ref().is_none_or(|error| error.is(ErrorCode::InvalidFormat)), "{error:?}");
    let (_client, mut events) = client(&server, "__root").start().unwrap();
    assert!(matches!(the_end(&mut events).await, Cause::Refused { status: 400, .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_that_does_not_listen_gets_a_gap_and_everything_behind_it() {
    let server = hub("queue: {max_bytes: 256KiB, policy: drop_oldest}, max_retries: 0").await;
    let (slow, mut events) = connect(client(&server, "slow").event_buffer(64 * 1024)).await;
    slow.join_room("r1").await.unwrap();
    let (talker, _) = connect(client(&server, "talker")).await;
    talker.join_room("r1").await.unwrap();
    let filler = "x".repeat(32 * 1024);
    // More than the buffers of both kernels take, by far.
    let total = 768;
    for n in 0..total {
        talker.room_message("r1", &json!([n, filler])).await.unwrap();
    }
    let (mut last, mut read, mut dropped) = (None, 0, 0);
    while last != Some(total - 1) {
        match next(&mut events).await {
            Event::Delivery(delivery) => {
                let (n, _): (u64, String) = delivery.content().unwrap();
                assert!(last < Some(n), "{n} after {last:?}");
                last = Some(n);
                read += 1;
            }
            Event::Gap(gap) => dropped += gap.dropped,
            other => panic!("{other:?}"),
        }
    }
    assert!(dropped > 0);
    assert_eq!(read + dropped, total);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_speaks_tls() {
    let identity = TlsIdentity::new();
    let server = hub_with_tls(&identity).await;
    let url = format!("wss://localhost:{}/ws", server.addr().port());

    let trusting = Client::builder(&url).user_id("alice").root_certificates(identity.cert_pem().as_bytes());
    let (alice, mut events) = connect(trusting).await;
    let large = "x".repeat(60_000);
    alice.direct_message("alice", &large).await.unwrap();
    assert_eq!(next_delivery(&mut events).await.content::<String>().unwrap(), large);
    alice.close().await;

    let other = TlsIdentity::new();
    let distrusting = Client::builder(&url).root_certificates(other.cert_pem().as_bytes());
    let refused = within("the refusal", distrusting.connect()).await;
    assert!(matches!(refused, Err(ConnectError::Failed(Cause::Connect(_)))), "{refused:?}");
}
