//! What becomes of messages and events when a hub is told to end.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use wsc_testkit::{Client, Inbound, Post, RawClient, RawOptions, WebhookReceiver, eventually};

use super::{connect, hub_with_webhooks, push};
use crate::support::hub;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_queued_goes_out_before_the_close() {
    let mut server = hub("queue: {max_bytes: 1GiB}, write_timeout: 1m, drain: {deadline: 1m}").await;
    let options = RawOptions { recv_buffer: Some(4096), ..RawOptions::default() };
    let mut slow = RawClient::connect_with(server.addr(), "/ws?user_id=slow", options).await;
    slow.expect("connected").await;
    let filler = "x".repeat(60_000);
    let mut pending = 0;
    let mut sent = 0_u64;
    // Until many wait in the hub, not only in the kernel.
    while pending < 40 {
        let answer = push(&server, "slow", json!({"n": sent, "filler": filler})).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        pending += u64::from(answer.json()["outcome"] == "pending");
        sent += 1;
        assert!(sent < 2000, "it takes everything");
    }
    server.signal_terminate();
    eventually("the drain has begun", async || (server.get("/health/ready").await.status == 503).then_some(())).await;
    for n in 0..sent {
        let message = slow.expect("user_message").await;
        assert_eq!(message["data"]["content"]["n"], n);
    }
    assert_eq!(slow.expect_close().await, 3001);
    assert_eq!(server.wait().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_acknowledged_comes_again_after_the_restart() {
    let mut server = hub("ack_timeout: 1h").await;
    let mut bob = connect(&server, "bob").await;
    let mut ids = Vec::new();
    for n in 0..20 {
        let body = json!({"content": n, "require_ack": true});
        let answer = server.post("/api/users/bob/messages", &body).await.json();
        let delivery = bob.expect_reliable("user_message").await;
        assert_eq!(delivery["id"], answer["id"]);
        ids.push(answer["id"].as_str().unwrap().to_owned());
    }
    // Some of them are settled, which counts as well.
    let (done, open) = ids.split_at(7);
    bob.ack(&done.iter().map(String::as_str).collect::<Vec<_>>()).await;
    bob.expect_quiet().await;
    server.signal_terminate();
    assert_eq!(bob.expect_close().await.0, 3001);
    assert_eq!(server.wait().await, 0);
    server.restart().await;
    let ledger = server.metrics().await.ledger();
    ledger.check();
    assert_eq!(ledger.recovered, 13.0);
    let mut bob = connect(&server, "bob").await;
    for (n, id) in (7..).zip(open) {
        let delivery = bob.expect_reliable("user_message").await;
        assert_eq!((&delivery["id"], &delivery["source"]), (&json!(id), &json!("offline")), "{delivery}");
        assert_eq!(delivery["data"]["content"], n);
    }
    bob.expect_quiet().await;
}

/// Sends reliable messages as fast as they are accepted until the hub closes; gives the ids of what was accepted.
async fn talk(mut client: Client, to: String) -> Vec<String> {
    let mut accepted = Vec::new();
    let mut open = 0;
    for n in 1_u64.. {
        let message = json!({
            "message_type": "direct_message", "message_id": n, "require_ack": true,
            "data": {"target_id": to, "content": n},
        });
        open += u32::from(client.try_send(&message).await);
        loop {
            let inbound = if open >= 8 { client.recv("an answer").await } else { break };
            match inbound {
                Inbound::Text(text) => {
                    let answer: Value = serde_json::from_str(&text).unwrap();
                    if answer["message_type"] == "accepted" {
                        accepted.push(answer["data"]["id"].as_str().unwrap().to_owned());
                    } else {
                        assert_eq!(answer["data"]["temporary"], true, "{answer}");
                    }
                    open -= 1;
                }
                Inbound::Closed(code, _) => {
                    assert!(matches!(code, 3001 | 1006), "{code}");
                    return accepted;
                }
                _ => {}
            }
        }
    }
    accepted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_was_accepted_during_the_drain_is_lost() {
    let limits = "storage: {inbox_max_messages: 1000000, inbox_max_bytes: 1GiB}, limits: {stored_per_sender: 1000000}";
    let mut server = hub(&format!("{limits}, ack_timeout: 1h, inbox: {{window_messages: 100000, window_bytes: 1GiB}}, drain: {{rate: 10, delay: 200ms}}")).await;
    let mut talkers = tokio::task::JoinSet::new();
    let mut receivers = Vec::new();
    for n in 0..4 {
        // Two are there, two are away.
        let to = format!("receiver-{n}");
        if n < 2 {
            receivers.push(connect(&server, &to).await);
        }
        let talker = connect(&server, &format!("talker-{n}")).await;
        talkers.spawn(async move { (to.clone(), talk(talker, to).await) });
    }
    eventually("they talk", async || (server.metrics().await.ledger().accepted >= 200.0).then_some(())).await;
    server.signal_terminate();
    let mut accepted = Vec::new();
    while let Some(ended) = talkers.join_next().await {
        accepted.push(ended.unwrap());
    }
    assert_eq!(server.wait().await, 0);
    drop(receivers);
    server.restart().await;
    let mut all = 0;
    for (to, ids) in accepted {
        let mut missing: BTreeSet<String> = ids.into_iter().collect();
        all += missing.len();
        let mut client = connect(&server, &to).await;
        while !missing.is_empty() {
            let delivery = client.expect_reliable("direct_message").await;
            let id = delivery["id"].as_str().unwrap().to_owned();
            client.ack(&[&id]).await;
            missing.remove(&id);
        }
    }
    assert!(all >= 200, "{all}");
    server.metrics().await.ledger().check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_each_connection_is_told_once() {
    let receiver = WebhookReceiver::start().await;
    let mut server = hub_with_webhooks(&receiver, "", "").await;
    let mut clients = Vec::new();
    let mut sessions = BTreeSet::new();
    for n in 0..50 {
        let client = connect(&server, &format!("user-{n}")).await;
        sessions.insert(client.session().to_owned());
        clients.push(client);
    }
    let left = clients.pop().unwrap();
    let left_session = left.session().to_owned();
    left.close().await;
    receiver
        .event("the one who left", |event| {
            event["data"]["session"] == left_session.as_str() && event["type"] == "client.disconnected"
        })
        .await;
    server.signal_terminate();
    for client in &mut clients {
        assert_eq!(client.expect_close().await.0, 3001);
    }
    assert_eq!(server.wait().await, 0);
    // What was not posted before the end is posted after the next start.
    server.restart().await;
    let ends = |posts: &[Post]| -> Vec<Value> {
        let events = posts.iter().filter(|post| post.is_taken()).flat_map(Post::events);
        let mut ids = BTreeSet::new();
        events
            .filter(|event| ids.insert(event["id"].as_str().unwrap().to_owned()))
            .filter(|event| event["type"] == "client.disconnected")
            .collect()
    };
    let told = receiver
        .wait("all ends", |posts| {
            let ends = ends(posts);
            (ends.len() >= 50).then_some(ends)
        })
        .await;
    // Nothing comes after the hub's own new beginning.
    let count =
        |posts: &[Post]| posts.iter().flat_map(Post::events).filter(|event| event["type"] == "hub.started").count();
    receiver.wait("the new hub", |posts| (count(posts) == 2).then_some(())).await;
    assert_eq!(ends(&receiver.posts()).len(), 50, "{receiver}");
    for event in &told {
        let want = if event["data"]["session"] == left_session.as_str() { "client_request" } else { "server_shutdown" };
        assert_eq!(event["data"]["reason"], want, "{event}");
        assert!(sessions.remove(event["data"]["session"].as_str().unwrap()), "{event}");
    }
    assert!(sessions.is_empty(), "{sessions:?}");
    assert!(receiver.events().iter().any(|event| event["type"] == "hub.stopped"), "{receiver}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_those_whom_the_deadline_cut_off_is_told_as_well() {
    let receiver = WebhookReceiver::start().await;
    let mut server =
        hub_with_webhooks(&receiver, "event_filters: [client.disconnected]", "drain: {rate: 1, deadline: 1s}").await;
    let mut clients = Vec::new();
    for n in 0..30 {
        clients.push(connect(&server, &format!("user-{n}")).await);
    }
    server.signal_terminate();
    assert_eq!(server.wait().await, 0);
    server.restart().await;
    let told = receiver
        .wait("all ends", |posts| {
            let taken = posts.iter().filter(|post| post.is_taken());
            let events: Vec<Value> = taken.flat_map(Post::events).collect();
            let sessions: BTreeSet<String> = events.iter().map(|event| event["data"]["session"].to_string()).collect();
            (sessions.len() >= 30).then_some(events)
        })
        .await;
    assert!(told.iter().all(|event| event["data"]["reason"] == "server_shutdown"), "{told:?}");
    // However it came, no client was left without word of it.
    for client in &mut clients {
        let (_, code) = client.read_to_end().await;
        assert!(matches!(code, 3001 | 1006), "{code}");
    }
}
