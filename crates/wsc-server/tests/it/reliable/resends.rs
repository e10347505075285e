//! What happens while nobody acknowledges.

use std::time::{Duration, Instant};

use serde_json::json;
use wsc_testkit::{Client, eventually};

use super::{QUICK, connect, expect_outcome, expect_quiet_for, fate, tell_with_outcome, text};
use crate::support::{assert_fields, hub};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_sent_again_with_the_same_id_and_then_rests() {
    let server = hub(QUICK).await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    let before = Instant::now();
    let id = tell_with_outcome(&mut alice, "bob", json!({"n": 1}), "pending").await;
    let first = bob.expect_reliable("direct_message").await;
    assert_eq!(first.get("attempt"), None, "{first}");
    for attempt in 2..=3_u32 {
        let again = bob.expect_reliable("direct_message").await;
        assert_fields(&again, &["id", "message_type", "data", "timestamp", "require_ack", "attempt"]);
        assert_eq!(again["attempt"], attempt, "{again}");
        for field in ["id", "data", "timestamp"] {
            assert_eq!(again[field], first[field], "{field}");
        }
        // The time for an ACK and the time until the next attempt.
        let least = Duration::from_millis(300) * (attempt - 1);
        assert!(before.elapsed() >= least, "attempt {attempt} after {:?}", before.elapsed());
    }
    let fate = expect_outcome(&server, &id, "bob", "stored").await;
    assert_eq!(fate["attempts"], 3, "{fate}");
    assert!(before.elapsed() >= Duration::from_millis(800), "{:?}", before.elapsed());
    // No more than that in this stay on line.
    expect_quiet_for(&mut bob, Duration::from_millis(500)).await;
    let metrics = server.metrics().await;
    metrics.ledger().check();
    assert_eq!((metrics.ledger().stored, metrics.ledger().in_flight), (1.0, 0.0));
    // A new stay, and it counts from one again.
    let mut back = connect(&server, "bob").await;
    let replay = back.expect_reliable("direct_message").await;
    assert_eq!(replay["id"], id.as_str());
    assert_eq!(replay["source"], "offline");
    assert_eq!(replay.get("attempt"), None, "{replay}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_inbox_for_unacknowledged_messages_it_fails() {
    let server = hub(&format!("{QUICK}, enable_offline_ack: false")).await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    let id = tell_with_outcome(&mut alice, "bob", json!(1), "pending").await;
    for _ in 0..3 {
        assert_eq!(bob.expect_reliable("direct_message").await["id"], id.as_str());
    }
    let fate = expect_outcome(&server, &id, "bob", "failed").await;
    assert_eq!((&fate["reason"], &fate["attempts"]), (&json!("ack_timeout"), &json!(3)), "{fate}");
    // Failed is final.
    bob.ack(&[&id]).await;
    bob.expect_quiet().await;
    assert_eq!(super::fate(&server, &id, "bob").await["outcome"], "failed");
    connect(&server, "bob").await.expect_quiet().await;
    let metrics = server.metrics().await;
    metrics.ledger().check();
    assert_eq!(metrics.ledger().failed, 1.0);
    assert_eq!(metrics.sum("wsc_failures_by_reason_total", &[("reason", "ack_timeout")]), 1.0);
    assert_eq!(metrics.sum("wsc_acks_ignored_total", &[]), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_not_sent_again() {
    let server = hub("ack_timeout: 1s, ack_retry_interval: 100ms").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    let first = tell_with_outcome(&mut alice, "bob", json!(1), "pending").await;
    bob.expect_reliable("direct_message").await;
    bob.ack(&[&first]).await;
    expect_outcome(&server, &first, "bob", "acked").await;
    // The second attempt of a later message comes behind the time at which
    // the first would have been sent again.
    let second = tell_with_outcome(&mut alice, "bob", json!(2), "pending").await;
    for attempt in [json!(null), json!(2)] {
        let delivery = bob.expect_reliable("direct_message").await;
        assert_eq!(delivery["id"], second.as_str());
        assert_eq!(delivery.get("attempt").cloned().unwrap_or_default(), attempt);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ack_of_a_later_attempt_counts_as_any_other() {
    let server = hub("ack_timeout: 300ms, ack_retry_interval: 100ms").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    let id = tell_with_outcome(&mut alice, "bob", json!(1), "pending").await;
    bob.expect_reliable("direct_message").await;
    let again = bob.expect_reliable("direct_message").await;
    bob.ack(&[&text(&again["id"])]).await;
    let fate = expect_outcome(&server, &id, "bob", "acked").await;
    assert!(fate["attempts"].as_u64().is_some_and(|n| n >= 2), "{fate}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resend_goes_to_all_devices_of_that_moment() {
    let server = hub("ack_timeout: 1s, ack_retry_interval: 100ms, ack_max_retries: 1").await;
    let mut alice = connect(&server, "alice").await;
    let mut phone = Client::connect(&server.ws_url_for("bob", "phone")).await;
    let id = tell_with_outcome(&mut alice, "bob", json!(1), "pending").await;
    phone.expect_reliable("direct_message").await;
    // What is in flight is shown to a new device at once, as a replay.
    let mut laptop = Client::connect(&server.ws_url_for("bob", "laptop")).await;
    let replay = laptop.expect_reliable("direct_message").await;
    assert_eq!((&replay["id"], &replay["source"]), (&json!(id), &json!("offline")));
    for device in [&mut phone, &mut laptop] {
        let again = device.expect_reliable("direct_message").await;
        assert_eq!((&again["id"], &again["attempt"]), (&json!(id), &json!(2)), "{again}");
    }
    let fate = expect_outcome(&server, &id, "bob", "stored").await;
    assert_eq!(fate["attempts"], 2, "{fate}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_rests_is_tried_again_while_its_user_is_connected() {
    let keys = "ack_timeout: 100ms, ack_retry_interval: 100ms, ack_max_retries: 0, inbox: {retry_interval: 500ms}";
    let server = hub(keys).await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    let before = Instant::now();
    let id = tell_with_outcome(&mut alice, "bob", json!(1), "pending").await;
    bob.expect_reliable("direct_message").await;
    expect_outcome(&server, &id, "bob", "stored").await;
    let again = bob.expect_reliable("direct_message").await;
    assert_eq!((&again["id"], &again["source"]), (&json!(id), &json!("offline")), "{again}");
    assert!(before.elapsed() >= Duration::from_millis(600), "{:?}", before.elapsed());
    bob.ack(&[&id]).await;
    expect_outcome(&server, &id, "bob", "acked").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ack_in_time_counts_though_the_time_to_live_is_over() {
    let server = hub("ack_timeout: 10s").await;
    let mut bob = connect(&server, "bob").await;
    let body = json!({"content": 1, "require_ack": true, "ttl_ms": 200});
    let answer = server.post("/api/users/bob/messages", &body).await.json();
    let id = text(&answer["id"]);
    bob.expect_reliable("user_message").await;
    expect_quiet_for(&mut bob, Duration::from_millis(400)).await;
    assert_eq!(fate(&server, &id, "bob").await["outcome"], "pending");
    bob.ack(&[&id]).await;
    expect_outcome(&server, &id, "bob", "acked").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_expires_when_an_attempt_ends_after_its_time() {
    let server = hub("ack_timeout: 400ms, ack_retry_interval: 100ms, ack_max_retries: 5").await;
    let mut bob = connect(&server, "bob").await;
    let body = json!({"content": 1, "require_ack": true, "ttl_ms": 300});
    let answer = server.post("/api/users/bob/messages", &body).await.json();
    let id = text(&answer["id"]);
    bob.expect_reliable("user_message").await;
    let fate = expect_outcome(&server, &id, "bob", "expired").await;
    assert_eq!(fate["attempts"], 1, "{fate}");
    bob.ack(&[&id]).await;
    bob.expect_quiet().await;
    let ledger = server.metrics().await.ledger();
    ledger.check();
    assert_eq!((ledger.expired, ledger.acked, ledger.here()), (1.0, 0.0, 0.0), "{ledger:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_acknowledges_still_gets_what_is_new() {
    let server = hub(&format!("{QUICK}, inbox: {{window_messages: 2}}")).await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    for client in [&mut alice, &mut bob] {
        client.join("r1").await;
    }
    for n in 0..10 {
        alice.request_ok(super::reliable("bob", &json!(n)), "accepted").await;
    }
    alice.tell("bob", json!("live")).await;
    alice.say("r1", json!("room")).await;
    let (mut live, mut room) = (false, false);
    while !(live && room) {
        let text = bob.expect_text("the live messages").await;
        let message: serde_json::Value = serde_json::from_str(&text).unwrap();
        live |= message["data"]["content"] == "live";
        room |= message["data"]["content"] == "room";
    }
    // And nothing of what it did not acknowledge is lost.
    eventually("all ten rest", async || {
        let ledger = server.metrics().await.ledger();
        ledger.check();
        (ledger.stored == 10.0).then_some(())
    })
    .await;
    let mut back = connect(&server, "bob").await;
    for n in 0..10 {
        assert_eq!(super::take(&mut back).await, n);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_without_resends_give_one_attempt() {
    let server = hub("ack_timeout: 100ms, ack_retry_interval: 1ms, ack_max_retries: 0").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    let id = tell_with_outcome(&mut alice, "bob", json!(1), "pending").await;
    bob.expect_reliable("direct_message").await;
    let fate = expect_outcome(&server, &id, "bob", "stored").await;
    assert_eq!(fate["attempts"], 1, "{fate}");
    expect_quiet_for(&mut bob, Duration::from_millis(300)).await;
}
