//! New settings about the way of a message do what they say, to connections that are open.

use std::time::Instant;

use serde_json::{Value, json};
use wsc_testkit::{Client, Frame, Ledger, RawClient, RawOptions, ServerProcess, WAIT, eventually};

use super::{connect, push, reconfigure};
use crate::support::{assert_refused, hub};

pub(super) async fn push_reliably(server: &ServerProcess, user: &str, content: Value) -> Value {
    let body = json!({"content": content, "require_ack": true});
    let answer = server.post(&format!("/api/users/{user}/messages"), &body).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    answer.json()
}

pub(super) fn id(answer: &Value) -> String {
    answer["id"].as_str().unwrap_or_else(|| panic!("no id in {answer}")).to_owned()
}

/// Waits until the message has this outcome for its only recipient; gives the fate.
pub(super) async fn expect_outcome(server: &ServerProcess, id: &str, outcome: &str) -> Value {
    let start = Instant::now();
    loop {
        let answer = server.get(&format!("/api/messages/{id}")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let fate = answer.json()["recipients"][0].clone();
        if fate["outcome"] == outcome {
            return fate;
        }
        assert!(start.elapsed() < WAIT, "{id} is not {outcome} but {fate}");
    }
}

async fn ledger(server: &ServerProcess) -> Ledger {
    let ledger = server.metrics().await.ledger();
    ledger.check();
    ledger
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_of_what_is_not_acknowledged() {
    let server = hub("ack_timeout: 1h").await;
    let mut bob = connect(&server, "bob").await;
    let keys = "ack_timeout: 100ms, ack_retry_interval: 50ms, ack_max_retries: 1";
    reconfigure(&server, keys).await;
    let sent = id(&push_reliably(&server, "bob", json!(1)).await);
    assert_eq!(bob.expect_reliable("user_message").await["id"], sent.as_str());
    let again = bob.expect_reliable("user_message").await;
    assert_eq!((&again["id"], &again["attempt"]), (&json!(sent), &json!(2)), "{again}");
    let fate = expect_outcome(&server, &sent, "stored").await;
    assert_eq!(fate["attempts"], 2, "{fate}");

    reconfigure(&server, &format!("{keys}, enable_offline_ack: false")).await;
    let sent = id(&push_reliably(&server, "bob", json!(2)).await);
    let fate = expect_outcome(&server, &sent, "failed").await;
    assert_eq!(fate["reason"], "ack_timeout", "{fate}");
    ledger(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_window_of_a_replay() {
    let server = hub("").await;
    for n in 0..10 {
        push_reliably(&server, "bob", json!(n)).await;
    }
    reconfigure(&server, "inbox: {window_messages: 3}").await;
    let mut bob = connect(&server, "bob").await;
    let mut last = Value::Null;
    for n in 0..3 {
        let delivery = bob.expect_reliable("user_message").await;
        assert_eq!(delivery["data"]["content"], n);
        last = delivery["id"].clone();
    }
    bob.expect_quiet().await;
    bob.ack(&[last.as_str().unwrap()]).await;
    assert_eq!(bob.expect_reliable("user_message").await["data"]["content"], 3);
    bob.expect_quiet().await;
    // A wider one opens for a connection that is there, with its next acknowledgement at latest.
    let said = reconfigure(&server, "inbox: {window_messages: 5}").await;
    assert_eq!(said["applied"], json!(["inbox.window_messages"]), "{said}");
    let first = push(&server, "carol", json!(0)).await;
    assert_eq!(first.status, 202);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_much_an_inbox_holds() {
    let server = hub("").await;
    assert_eq!(push_reliably(&server, "bob", json!(1)).await["outcome"], "stored");
    reconfigure(&server, "storage: {inbox_max_messages: 1}").await;
    let body = json!({"content": 2, "require_ack": true});
    assert_refused(&server.post("/api/users/bob/messages", &body).await, 503, 4003);
    // Nothing that was accepted is lost to a lower limit.
    let mut bob = connect(&server, "bob").await;
    assert_eq!(bob.expect_reliable("user_message").await["data"]["content"], 1);
    reconfigure(&server, "storage: {inbox_max_bytes: 1KiB}").await;
    let body = json!({"content": "x".repeat(2000), "require_ack": true});
    assert_refused(&server.post("/api/users/carol/messages", &body).await, 503, 4003);
    reconfigure(&server, "").await;
    assert_eq!(server.post("/api/users/carol/messages", &body).await.status, 202);
    ledger(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_long_a_message_waits_and_its_fate_is_known() {
    let server = hub("").await;
    reconfigure(&server, "storage: {message_ttl: 1s}").await;
    let sent = id(&push_reliably(&server, "bob", json!(1)).await);
    expect_outcome(&server, &sent, "expired").await;
    reconfigure(&server, "outcomes: {retention: 1s}").await;
    eventually("the fate is forgotten", async || {
        (server.get(&format!("/api/messages/{sent}")).await.status == 404).then_some(())
    })
    .await;
    let kept = id(&push_reliably(&server, "bob", json!(2)).await);
    assert_eq!(server.get(&format!("/api/messages/{kept}")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_long_an_idempotency_key_is_remembered() {
    let server = hub("idempotency: {window: 7d}").await;
    let body = json!({"content": 1, "idempotency_key": "k1"});
    let send = async || server.post("/api/users/bob/messages", &body).await.json();
    let first = send().await;
    assert_eq!(send().await["id"], first["id"]);
    reconfigure(&server, "idempotency: {window: 1s}").await;
    let again = eventually("the key is new again", async || {
        let answer = send().await;
        (answer["id"] != first["id"]).then_some(answer)
    })
    .await;
    assert_eq!(again.get("duplicate"), None, "{again}");
}

/// A member of `r1` who does not read, with a tiny receive buffer.
async fn stalled(server: &ServerProcess) -> RawClient {
    let options = RawOptions { recv_buffer: Some(4096), ..RawOptions::default() };
    let mut slow = RawClient::connect_with(server.addr(), "/ws?user_id=slow", options).await;
    slow.expect("connected").await;
    slow.send(&Frame::text(r#"{"message_type":"join_room","data":{"room_id":"r1"}}"#)).await;
    slow.expect("room_joined").await;
    slow
}

/// Says something large in `r1`; gives the number of recipients.
async fn flood(talker: &mut Client) -> i64 {
    let accepted = talker.say("r1", json!("x".repeat(32 * 1024))).await;
    accepted["data"]["recipients"].as_i64().unwrap()
}

/// More messages than any socket buffer of the machine takes (24 MiB).
const FLOOD: u64 = 768;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_becomes_of_a_slow_consumer() {
    let keys = |max: &str, policy: &str| {
        format!("write_timeout: 10m, max_retries: 0, queue: {{max_bytes: {max}, policy: {policy}}}")
    };
    let server = hub(&keys("1GiB", "disconnect")).await;
    let _slow = stalled(&server).await;
    let mut talker = connect(&server, "talker").await;
    talker.join("r1").await;
    for _ in 0..FLOOD {
        assert_eq!(flood(&mut talker).await, 1, "there is room for all of it");
    }
    reconfigure(&server, &keys("256KiB", "drop_newest")).await;
    // Another one, who is dropped from and stays.
    for _ in 0..4 {
        assert_eq!(flood(&mut talker).await, 1);
    }
    eventually("the new policy is applied to the open connection", async || {
        flood(&mut talker).await;
        let slow = server.metrics().await.sum("wsc_slow_consumers_total", &[("policy", "drop_newest")]);
        (slow >= 1.0).then_some(())
    })
    .await;
    // And the last of them ends it.
    reconfigure(&server, &keys("256KiB", "disconnect")).await;
    eventually("it is disconnected", async || (flood(&mut talker).await == 0).then_some(())).await;
    eventually("the sum holds", async || (ledger(&server).await.in_flight == 0.0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_long_a_write_may_take() {
    let server = hub("write_timeout: 10m, queue: {max_bytes: 1GiB}").await;
    let _slow = stalled(&server).await;
    let mut talker = connect(&server, "talker").await;
    talker.join("r1").await;
    for _ in 0..FLOOD {
        assert_eq!(flood(&mut talker).await, 1);
    }
    reconfigure(&server, "write_timeout: 200ms, queue: {max_bytes: 1GiB}").await;
    eventually("it is cut off", async || (flood(&mut talker).await == 0).then_some(())).await;
    let metrics = server.metrics().await;
    assert_eq!(metrics.sum("wsc_disconnections_total", &[("reason", "write_timeout")]), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rooms_and_who_may_be_in_them() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    let join = |room: &str| json!({"message_type": "join_room", "data": {"room_id": room}});
    alice.join("r1").await;
    reconfigure(&server, "rooms: {auto_create: false}").await;
    alice.request_error(join("r2"), 3000).await;
    reconfigure(&server, "rooms: {max_clients: 1}").await;
    alice.join("small").await;
    bob.request_error(join("small"), 3002).await;
    alice.leave("small").await;
    reconfigure(&server, "rooms: {max_clients: 2, max_rooms: 1}").await;
    bob.join("r1").await;
    let refused = bob.request(join("r2")).await;
    assert_eq!(refused["message_type"], "error", "{refused}");
    reconfigure(&server, "limits: {rooms_per_connection: 1}").await;
    bob.request_error(join("r2"), 3005).await;
    reconfigure(&server, "rooms: {max_reliable_recipients: 1}").await;
    let mut carol = connect(&server, "carol").await;
    carol.join("r1").await;
    let reliable =
        json!({"message_type": "room_message", "require_ack": true, "data": {"room_id": "r1", "content": 1}});
    alice.request_error(reliable.clone(), 4002).await;
    reconfigure(&server, "").await;
    alice.request_ok(reliable, "accepted").await;
    bob.join("r2").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clients_may_ask_for() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let reliable =
        json!({"message_type": "direct_message", "require_ack": true, "data": {"target_id": "bob", "content": 1}});
    alice.request_ok(reliable.clone(), "accepted").await;
    reconfigure(&server, "limits: {client_require_ack: false}").await;
    assert_eq!(alice.request(reliable.clone()).await["message_type"], "error");
    reconfigure(&server, "limits: {stored_per_sender: 1}").await;
    alice.request_error(reliable.clone(), 4003).await;
    reconfigure(&server, "limits: {stored_per_sender: 2}").await;
    alice.request_ok(reliable, "accepted").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_and_the_log_of_failures() {
    let server = hub("").await;
    let retries = "max_retries: 7, base_delay: 20ms, backoff_factor: 3.0, retryable_errors: [timeout]";
    reconfigure(&server, retries).await;
    let config = server.get("/health/retry-config").await.json();
    assert_eq!(config["max_retries"], 7, "{config}");
    assert_eq!(config["backoff_factor"], 3.0, "{config}");
    assert_eq!(config["retryable_errors"], json!(["timeout"]), "{config}");

    // A failure is logged with its message's id, until that is switched off.
    let _bob = connect(&server, "bob").await;
    let fail = async |logging: bool| {
        let failures = format!("failure_handlers: {{enable_logging: {logging}}}");
        let acks = "ack_timeout: 20ms, ack_max_retries: 0, enable_offline_ack: false";
        reconfigure(&server, &format!("{failures}, {acks}")).await;
        let sent = id(&push_reliably(&server, "bob", json!(1)).await);
        expect_outcome(&server, &sent, "failed").await;
        sent
    };
    let (quiet, loud) = (fail(false).await, fail(true).await);
    eventually("the second failure is logged", async || {
        server.get("/health/live").await;
        server.log().contains(&loud).then_some(())
    })
    .await;
    assert!(!server.log().contains(&quiet), "{quiet} is logged");
}
