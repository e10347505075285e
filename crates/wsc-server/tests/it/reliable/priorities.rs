//! High, normal and low: who goes first where something waits.

use serde_json::{Value, json};
use wsc_testkit::{Client, Frame, RawClient, RawOptions, ServerProcess};

use super::connect;
use crate::support::{assert_refused, hub};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_may_lower_and_not_raise() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    let message = |priority: &str| json!({"message_type": "direct_message", "priority": priority, "data": {"target_id": "bob", "content": priority}});
    alice.request_ok(message("low"), "accepted").await;
    assert_eq!(bob.expect("direct_message").await["priority"], "low");
    alice.request_ok(message("normal"), "accepted").await;
    assert_eq!(bob.expect("direct_message").await.get("priority"), None);
    for priority in ["high", "urgent"] {
        let reply = alice.request(message(priority)).await;
        assert_eq!(reply["message_type"], "error", "{priority}: {reply}");
    }
    bob.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_may_raise() {
    let server = hub("").await;
    let mut bob = connect(&server, "bob").await;
    for priority in ["high", "low", "normal"] {
        let answer = server.post("/api/users/bob/messages", &json!({"content": 1, "priority": priority})).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        let shown = bob.expect("user_message").await.get("priority").cloned();
        assert_eq!(shown, (priority != "normal").then(|| json!(priority)));
    }
    bob.join("r1").await;
    // Messages to rooms are always normal.
    let answer = server.post("/api/rooms/r1/messages", &json!({"content": 1, "priority": "high"})).await;
    assert_refused(&answer, 400, 1001);
    bob.expect_quiet().await;
}

/// Bob with a tiny receive buffer, who does not read for now.
async fn stalled(server: &ServerProcess) -> RawClient {
    let options = RawOptions { recv_buffer: Some(4096), ..RawOptions::default() };
    let mut bob = RawClient::connect_with(server.addr(), "/ws?user_id=bob", options).await;
    bob.expect("connected").await;
    bob
}

/// Pushes so many to Bob in one batch: the n-th has this priority, and `[priority, n]` at its head.
async fn push(server: &ServerProcess, count: usize, priority: impl Fn(usize) -> &'static str) {
    for chunk in 0..count.div_ceil(25) {
        let message = |n: usize| json!({"user_id": "bob", "priority": priority(n), "content": [priority(n), n, "x".repeat(32 * 1024)]});
        let messages: Vec<Value> = (chunk * 25..count.min(chunk * 25 + 25)).map(message).collect();
        let answer = server.post("/api/messages/batch", &json!({"messages": messages})).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let answer = answer.json();
        let results = answer["results"].as_array().unwrap();
        assert!(results.iter().all(|result| result["error"].is_null() && result["outcome"] != "failed"), "{answer}");
    }
}

/// More than any socket buffer of the machine takes, in messages of 32 KiB.
const KERNEL: usize = 512;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_something_waits_the_urgent_goes_first_and_the_low_is_not_starved() {
    let server =
        hub("queue: {max_bytes: 64MiB}, http: {max_body_size: 8MiB}, write_timeout: 5m, ping_interval: 10m").await;
    let mut bob = stalled(&server).await;
    // The first ones fill the kernel; behind them all three kinds wait.
    push(&server, KERNEL, |_| "normal").await;
    let kinds = ["low", "normal", "high"];
    push(&server, 600, |n| kinds[n % 3]).await;

    let mut order: Vec<(String, u64)> = Vec::new();
    while order.len() < KERNEL + 600 {
        let message = bob.expect("user_message").await;
        let content = &message["data"]["content"];
        order.push((content[0].as_str().unwrap().to_owned(), content[1].as_u64().unwrap()));
    }
    // Each kind in its own order.
    for kind in kinds {
        let numbers = order.iter().filter(|(have, _)| have == kind).map(|(_, n)| *n);
        let numbers: Vec<u64> = numbers.skip(if kind == "normal" { KERNEL } else { 0 }).collect();
        assert_eq!(numbers.len(), 200, "{kind}");
        assert!(numbers.is_sorted(), "{kind}: {numbers:?}");
    }
    // From the first high one to the last all three waited: 8 : 4 : 1.
    let first = order.iter().position(|(kind, _)| kind == "high").unwrap();
    let last = order.iter().rposition(|(kind, _)| kind == "high").unwrap();
    let share = |kind: &str| order[first..=last].iter().filter(|(have, _)| have == kind).count();
    let (high, normal, low) = (share("high"), share("normal"), share("low"));
    println!("while high ones waited: {high} high, {normal} normal, {low} low");
    assert_eq!(high, 200);
    assert!((80..=120).contains(&normal), "{normal} normal ones beside 200 high ones");
    assert!((15..=40).contains(&low), "{low} low ones beside 200 high ones");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ping_is_answered_while_low_messages_wait() {
    let server =
        hub("queue: {max_bytes: 64MiB}, http: {max_body_size: 8MiB}, write_timeout: 5m, ping_interval: 10m").await;
    let mut bob = stalled(&server).await;
    push(&server, KERNEL, |_| "normal").await;
    push(&server, 200, |_| "low").await;
    bob.send(&Frame::text(r#"{"message_type":"ping","message_id":1}"#)).await;
    // Sent behind everything else, it overtakes most of what is low.
    let mut lows_before = 0;
    loop {
        let frame = bob.read_json().await;
        if frame["message_type"] == "pong" {
            break;
        }
        lows_before += usize::from(frame["priority"] == "low");
    }
    assert!(lows_before < 150, "{lows_before} low messages before the reply");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reliable_messages_have_priorities_too() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = Client::connect(&server.ws_url_as("bob")).await;
    let mut message = super::reliable("bob", &json!(1));
    message["priority"] = json!("low");
    alice.request_ok(message, "accepted").await;
    let delivery = bob.expect_reliable("direct_message").await;
    assert_eq!(delivery["priority"], "low");
    super::leave(&server, bob).await;
    let mut bob = connect(&server, "bob").await;
    let replay = bob.expect_reliable("direct_message").await;
    assert_eq!((&replay["priority"], &replay["source"]), (&json!("low"), &json!("offline")), "{replay}");
}
