//! A queue that is full now may have room in a moment.

use std::collections::BTreeSet;

use serde_json::json;
use wsc_node::SendReceipt;
use wsc_protocol::Outcome;
use wsc_testkit::{RawClient, RawOptions, eventually};

use crate::support::{TestHub, hub};

/// Pushes to a user who does not read until three messages in a row found no way to the kernel: one waits, two did
/// not fit. Gives how many were pushed.
async fn fill(hub: &TestHub) -> (RawClient, u64) {
    let options = RawOptions { recv_buffer: Some(4096), ..RawOptions::default() };
    let mut slow = RawClient::connect_with(hub.addr, "/ws?user_id=slow", options).await;
    slow.expect("connected").await;
    let mut waiting = 0;
    for n in 0..2_000 {
        let content = json!({"n": n, "filler": "x".repeat(32 * 1024)});
        let SendReceipt { fate, .. } = hub.hub.send_to_user("slow", content).await.unwrap();
        waiting += u64::from(fate.outcome != Outcome::Sent);
        if waiting == 3 {
            return (slow, n + 1);
        }
    }
    panic!("the kernel took everything");
}

async fn metric(hub: &TestHub, name: &str) -> f64 {
    let text = String::from_utf8(hub.get("/metrics").await.body).unwrap();
    wsc_testkit::Metrics::parse(&text).sum(name, &[])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_drop_newest_a_message_is_tried_again_until_there_is_room() {
    let hub =
        hub("queue: {max_bytes: 16KiB, policy: drop_newest}, base_delay: 10ms, max_delay: 50ms, max_retries: 100")
            .await;
    let (mut slow, pushed) = fill(&hub).await;
    let mut seen = BTreeSet::new();
    while (seen.len() as u64) < pushed {
        let message = slow.read_json().await;
        assert_eq!(message["message_type"], "user_message", "nothing was given up");
        assert!(seen.insert(message["data"]["content"]["n"].as_u64().unwrap()), "twice: {message}");
    }
    assert!(metric(&hub, "wsc_retry_success_total").await >= 1.0);
    assert_eq!(metric(&hub, "wsc_messages_in_flight").await, 0.0);
    hub.hub.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_last_try_it_has_failed_and_the_receiver_is_told() {
    let hub = hub("queue: {max_bytes: 16KiB, policy: drop_newest}, base_delay: 1ms, max_retries: 2").await;
    let (mut slow, pushed) = fill(&hub).await;
    eventually("the retries are used up", async || {
        (metric(&hub, "wsc_failures_by_reason_total").await == 2.0).then_some(())
    })
    .await;
    let mut got = 0;
    let mut dropped = 0;
    while got + dropped < pushed {
        let message = slow.read_json().await;
        if message["message_type"] == "gap" {
            dropped += message["data"]["dropped"].as_u64().unwrap();
        } else {
            got += 1;
        }
    }
    assert_eq!(dropped, 2);
    hub.hub.shutdown().await;
}
