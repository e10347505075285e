//! A hub without a store: what could not survive is refused.

use serde_json::{Value, json};

use super::{connect, reliable};
use crate::support::{assert_refused, hub};

const NONE: &str = "storage: {kind: none}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ack_cannot_be_asked_for() {
    let server = hub(NONE).await;
    let mut bob = connect(&server, "bob").await;
    let mut alice = connect(&server, "alice").await;
    for client in [&mut alice, &mut bob] {
        client.join("r1").await;
    }
    for (kind, data) in [
        ("direct_message", json!({"target_id": "bob", "content": 1})),
        ("direct_message", json!({"target_id": "nobody", "content": 1})),
        ("room_message", json!({"room_id": "r1", "content": 1})),
    ] {
        let request = json!({"message_type": kind, "require_ack": true, "data": data});
        alice.request_error(request.clone(), 1001).await;
        // Errors are told without a message id, too.
        alice.send(&request).await;
        alice.expect_error(1001).await;
    }
    for path in ["/api/users/bob/messages", "/api/rooms/r1/messages"] {
        let answer = server.post(path, &json!({"content": 1, "require_ack": true})).await;
        assert_refused(&answer, 400, 1001);
    }
    bob.expect_quiet().await;
    let ledger = server.metrics().await.ledger();
    ledger.check();
    assert_eq!(ledger.accepted, 0.0, "{ledger:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn not_asking_for_one_is_fine_also_in_so_many_words() {
    let server = hub(NONE).await;
    let mut bob = connect(&server, "bob").await;
    let mut alice = connect(&server, "alice").await;
    for client in [&mut alice, &mut bob] {
        client.join("r1").await;
    }
    for (kind, data) in [
        ("direct_message", json!({"target_id": "bob", "content": 1})),
        ("room_message", json!({"room_id": "r1", "content": 1})),
    ] {
        let request = json!({"message_type": kind, "require_ack": false, "data": data});
        alice.request_ok(request, "accepted").await;
        let delivery = bob.expect(kind).await;
        assert_eq!(delivery.get("require_ack"), None, "{delivery}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_is_away_is_an_error() {
    let server = hub(NONE).await;
    let mut alice = connect(&server, "alice").await;
    let data = json!({"target_id": "nobody", "content": 1});
    let message = json!({"message_type": "direct_message", "data": data});
    let error = alice.request_error(message.clone(), 4001).await;
    assert_eq!(error["data"]["temporary"], false, "{error}");
    // Errors are told without a message id, too.
    alice.send(&message).await;
    alice.expect_error(4001).await;
    let answer = server.post("/api/users/nobody/messages", &json!({"content": 1})).await;
    assert_away(answer.status, &answer.json());
    connect(&server, "nobody").await.expect_quiet().await;
    let metrics = server.metrics().await;
    metrics.ledger().check();
    assert_eq!(metrics.sum("wsc_failures_by_reason_total", &[("reason", "user_offline")]), 3.0);
    assert!(!server.dir().join("data").exists(), "it writes nothing");
}

/// Refused, or accepted and failed at once: either way the reason is told.
pub(super) fn assert_away(status: u16, answer: &Value) {
    if status == 202 {
        assert_eq!(answer["outcome"], "failed", "{answer}");
        assert_eq!(answer["reason"], "user_offline", "{answer}");
    } else {
        assert_eq!(status, 404, "{answer}");
        assert_eq!(answer["error"]["code"], 4001, "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idempotency_keys_and_status_work_all_the_same() {
    let server = hub(NONE).await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    let mut message = reliable("bob", &json!(1));
    message["require_ack"] = json!(false);
    message["idempotency_key"] = json!("k");
    let first = alice.request_ok(message.clone(), "accepted").await;
    let again = alice.request_ok(message, "accepted").await;
    assert_eq!((&again["data"]["id"], &again["data"]["duplicate"]), (&first["data"]["id"], &json!(true)));
    bob.expect("direct_message").await;
    bob.expect_quiet().await;
}
