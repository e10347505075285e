//! The inbox and receivers that read too slowly.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use wsc_testkit::{Client, Frame, RawClient, RawOptions, ServerProcess, eventually};

use super::{connect, expect_away, expect_ledger, text};
use crate::support::hub;

/// Bob with a tiny receive buffer, a member of room `r1`, who does not read for now.
async fn stalled(server: &ServerProcess) -> RawClient {
    let options = RawOptions { recv_buffer: Some(4096), ..RawOptions::default() };
    let mut bob = RawClient::connect_with(server.addr(), "/ws?user_id=bob", options).await;
    bob.expect("connected").await;
    bob.send(&Frame::text(r#"{"message_type":"join_room","data":{"room_id":"r1"}}"#)).await;
    bob.expect("room_joined").await;
    bob
}

/// More messages of 32 KiB than the socket's buffers take (10 MiB).
const FLOOD: u64 = 300;

/// Bob neither reads nor answers pings for a while, and nobody should mind.
const PATIENT: &str = "write_timeout: 5m, ping_interval: 10m, storage: {inbox_max_messages: 100000, \
    inbox_max_bytes: 1GiB}, limits: {stored_per_sender: 100000}";

fn content(n: u64) -> Value {
    json!({"n": n, "filler": "x".repeat(32 * 1024)})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_spill_messages_to_a_user_go_to_the_inbox_and_none_is_lost() {
    let keys = format!("queue: {{max_bytes: 256KiB, policy: spill}}, {PATIENT}, inbox: {{retry_interval: 300ms}}");
    let server = hub(&keys).await;
    let mut bob = stalled(&server).await;
    let mut alice = connect(&server, "alice").await;
    let mut stored = 0;
    for n in 0..FLOOD {
        let accepted = alice.tell("bob", content(n)).await;
        match accepted["data"]["outcome"].as_str() {
            Some("stored") => stored += 1,
            Some("sent" | "pending") => {}
            _ => panic!("{accepted}"),
        }
    }
    let metrics = server.metrics().await;
    let ledger = metrics.ledger();
    ledger.check();
    assert!(metrics.sum("wsc_slow_consumers_total", &[("policy", "spill")]) >= 1.0);
    assert!(stored > 0 || ledger.stored > 0.0, "{ledger:?}");
    let failures = server.get("/debug/failures?limit=1").await;
    assert_eq!(ledger.failed, 0.0, "{ledger:?}; {}", failures.text());

    // He reads at last, and gets everything: what was stored comes later, as a replay.
    let mut got = BTreeSet::new();
    let mut gaps = Vec::new();
    while got.len() < usize::try_from(FLOOD).unwrap() {
        let message = bob.read_json().await;
        match message["data"]["content"]["n"].as_u64() {
            Some(n) => assert!(got.insert(n), "{n} came twice"),
            None => gaps.push(message),
        }
    }
    let ledger = expect_ledger(&server, "all are sent", |ledger| ledger.here() == 0.0).await;
    assert_eq!((ledger.sent, ledger.failed), (300.0, 0.0), "{ledger:?}");
    assert!(gaps.is_empty(), "nothing is missing, and he was told so: {gaps:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_spill_room_messages_are_dropped_with_a_gap() {
    let server = hub(&format!("queue: {{max_bytes: 256KiB, policy: spill}}, {PATIENT}")).await;
    let mut bob = stalled(&server).await;
    let mut alice = connect(&server, "alice").await;
    let mut listener = connect(&server, "listener").await;
    for client in [&mut alice, &mut listener] {
        client.join("r1").await;
    }
    for n in 0..FLOOD {
        alice.say("r1", content(n)).await;
        listener.expect("room_message").await;
    }
    let (mut got, mut dropped, mut last) = (0, 0, None);
    while last != Some(FLOOD - 1) {
        let message = bob.read_json().await;
        if message["message_type"] == "gap" {
            dropped += message["data"]["dropped"].as_u64().unwrap();
            continue;
        }
        let n = message["data"]["content"]["n"].as_u64();
        assert!(n > last, "{n:?} after {last:?}");
        last = n;
        got += 1;
    }
    assert!(dropped > 0 && got + dropped == FLOOD, "{got} came, {dropped} were dropped");
    let ledger = server.metrics().await.ledger();
    ledger.check();
    assert_eq!(ledger.stored, 0.0, "{ledger:?}");
    assert_eq!(ledger.failed, f64::from(u32::try_from(dropped).unwrap()), "{ledger:?}");
}

/// Floods Bob, who does not read, with reliable messages under this policy,
/// then lets him come back and fetch them; each must come, oldest first.
async fn reliable_flood(policy: &str) {
    // A window that is larger than the queue: it is the queue that is full, and what did not fit is tried again.
    let keys = format!(
        "queue: {{max_bytes: 256KiB, policy: {policy}}}, max_retries: 0, {PATIENT}, \
         inbox: {{window_messages: 100000, window_bytes: 1GiB, retry_interval: 300ms}}, ack_timeout: 5m"
    );
    let server = hub(&keys).await;
    let bob = stalled(&server).await;
    let mut alice = connect(&server, "alice").await;
    let mut ids = Vec::new();
    for n in 0..FLOOD {
        let message = super::reliable("bob", &content(n));
        let accepted = alice.request_ok(message, "accepted").await;
        let outcome = &accepted["data"]["outcome"];
        assert!(outcome == "pending" || outcome == "stored", "{policy}: {accepted}");
        ids.push(text(&accepted["data"]["id"]));
    }
    let ledger = server.metrics().await.ledger();
    ledger.check();
    assert_eq!((ledger.failed, ledger.here()), (0.0, 300.0), "{policy}: {ledger:?}");
    drop(bob);
    expect_away(&server, "bob").await;
    let mut bob = connect(&server, "bob").await;
    for id in &ids {
        let delivery = bob.expect_reliable("direct_message").await;
        assert_eq!(delivery["id"], id.as_str(), "{policy}");
        bob.ack(&[id]).await;
    }
    let ledger = expect_ledger(&server, "all are acknowledged", |ledger| ledger.here() == 0.0).await;
    assert_eq!(ledger.acked, 300.0, "{policy}: {ledger:?}");
    bob.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reliable_messages_survive_disconnect() {
    reliable_flood("disconnect").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reliable_messages_survive_drop_newest() {
    reliable_flood("drop_newest").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reliable_messages_survive_drop_oldest() {
    reliable_flood("drop_oldest").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reliable_messages_survive_spill() {
    reliable_flood("spill").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_usual_window_reliable_messages_do_not_fill_the_queue() {
    let server = hub(&format!("{PATIENT}, ack_timeout: 5m")).await;
    let bob = stalled(&server).await;
    let mut alice = connect(&server, "alice").await;
    for n in 0..FLOOD {
        alice.request_ok(super::reliable("bob", &content(n)), "accepted").await;
    }
    // He is slow, but nobody has to throw him out: his share is the window.
    let metrics = server.metrics().await;
    metrics.ledger().check();
    assert_eq!(metrics.sum("wsc_slow_consumers_total", &[]), 0.0);
    assert!(metrics.sum("wsc_queue_bytes", &[]) <= 300.0 * 1024.0, "{}", metrics.sum("wsc_queue_bytes", &[]));
    assert_eq!(metrics.ledger().here(), 300.0);
    drop(bob);
    let _ = Client::connect(&server.ws_url_as("bob")).await.expect_reliable("direct_message").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drop_newest_tries_again_before_it_fails() {
    let keys =
        format!("queue: {{max_bytes: 256KiB, policy: drop_newest}}, max_retries: 2, base_delay: 10ms, {PATIENT}");
    let server = hub(&keys).await;
    let mut bob = stalled(&server).await;
    let mut alice = connect(&server, "alice").await;
    for n in 0..FLOOD {
        let data = json!({"target_id": "bob", "content": content(n)});
        alice.request(json!({"message_type": "direct_message", "data": data})).await;
    }
    let metrics = eventually("what does not fit has failed", async || {
        let metrics = server.metrics().await;
        metrics.ledger().check();
        (metrics.ledger().failed > 0.0).then_some(metrics)
    })
    .await;
    assert!(metrics.sum("wsc_retry_attempts_total", &[]) >= 1.0);
    assert!(metrics.sum("wsc_failures_by_reason_total", &[("reason", "queue_full")]) >= 1.0);
    // He is told of what he did not get.
    loop {
        let message = bob.read_json().await;
        if message["message_type"] == "gap" {
            assert!(message["data"]["dropped"].as_u64().is_some_and(|n| n > 0), "{message}");
            break;
        }
        if message["data"]["content"]["n"] == FLOOD - 1 {
            panic!("the newest of all came, and no gap");
        }
        // The marker comes before the next delivery.
        alice.request(json!({"message_type": "direct_message", "data": {"target_id": "bob", "content": {}}})).await;
    }
}
