//! Programs that send reliably.

use serde_json::json;

use super::{connect, expect_outcome, take, text};
use crate::support::{assert_fields, assert_on_its_way, assert_refused, hub};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_can_ask_for_an_ack() {
    let server = hub("").await;
    let mut bob = connect(&server, "bob").await;
    let body =
        json!({"content": {"order": 7}, "require_ack": true, "message_type": "order_shipped", "sender_id": "shop"});
    let answer = server.post("/api/users/bob/messages", &body).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let answer = answer.json();
    assert_fields(&answer, &["id", "outcome"]);
    assert_eq!(answer["outcome"], "pending");
    let delivery = bob.expect_reliable("order_shipped").await;
    assert_eq!((&delivery["id"], &delivery["data"]["sender_id"]), (&answer["id"], &json!("shop")));
    bob.ack(&[&text(&answer["id"])]).await;
    expect_outcome(&server, &text(&answer["id"]), "bob", "acked").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_to_a_user_who_is_away_is_stored_as_it_is() {
    let server = hub("").await;
    let body = json!({"content": [1], "message_type": "order_shipped", "sender_id": "shop"});
    let answer = server.post("/api/users/bob/messages", &body).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    assert_eq!(answer.json()["outcome"], "stored");
    let mut bob = connect(&server, "bob").await;
    let delivery = bob.expect("order_shipped").await;
    assert_eq!((&delivery["source"], &delivery["data"]["content"]), (&json!("offline"), &json!([1])));
    assert_eq!(delivery["data"]["sender_id"], "shop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_answered_in_order_with_an_error_for_each_that_fails() {
    let server = hub("storage: {inbox_max_messages: 2}").await;
    let mut bob = connect(&server, "bob").await;
    let reliable = |user: &str, n: i32| json!({"user_id": user, "content": n, "require_ack": true});
    let messages = json!([
        reliable("bob", 0),
        reliable("__reserved", 1),
        reliable("away", 2),
        reliable("away", 3),
        reliable("away", 4),
        {"user_id": "bob", "content": 5},
        {"user_id": "bob", "content": 6, "message_type": "connected"},
        {"user_id": "bob", "content": 7, "priority": "low"},
    ]);
    let answer = server.post("/api/messages/batch", &json!({"messages": messages})).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = answer.json();
    let results = answer["results"].as_array().unwrap();
    assert_eq!(results.len(), 8, "{answer}");
    for (at, outcome) in [(0, "pending"), (2, "stored"), (3, "stored")] {
        assert_eq!(results[at]["outcome"], outcome, "{at} of {answer}");
    }
    for at in [5, 7] {
        // Behind the reliable one, which may still be on its way to the disk.
        assert_on_its_way(&results[at]);
    }
    for (at, code) in [(1, 1001), (4, 4003), (6, 1001)] {
        assert_eq!(results[at]["error"]["code"], code, "{at} of {answer}");
    }
    let first = bob.expect_reliable("user_message").await;
    assert_eq!((&first["id"], &first["data"]["content"]), (&results[0]["id"], &json!(0)));
    for at in [5, 7] {
        let delivery = bob.expect("user_message").await;
        assert_eq!((&delivery["id"], &delivery["data"]["content"]), (&results[at]["id"], &json!(at)));
    }
    let mut away = connect(&server, "away").await;
    for at in [2, 3] {
        let delivery = away.expect_reliable("user_message").await;
        assert_eq!(delivery["id"], results[at]["id"]);
    }
    server.metrics().await.ledger().check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_keeps_the_order_of_each_user() {
    let server = hub("").await;
    let mut bob = connect(&server, "bob").await;
    let message = |n: i32| json!({"user_id": "bob", "content": n, "require_ack": n % 3 == 0});
    let batch = json!({"messages": (0..300).map(message).collect::<Vec<_>>()});
    let (answer, ()) = tokio::join!(server.post("/api/messages/batch", &batch), async {
        for n in 0..300 {
            let delivery = bob.expect("user_message").await;
            assert_eq!(delivery["data"]["content"], n, "{bob}");
            if delivery["require_ack"] == true {
                bob.ack(&[&text(&delivery["id"])]).await;
            }
        }
    });
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_values_are_refused() {
    let server = hub("").await;
    let mut bob = connect(&server, "bob").await;
    for (field, value) in [
        ("require_ack", json!("yes")),
        ("ttl_ms", json!(-1)),
        ("ttl_ms", json!("1s")),
        ("idempotency_key", json!(7)),
        ("priority", json!("highest")),
    ] {
        let body = json!({"content": 1, field: value});
        assert_refused(&server.post("/api/users/bob/messages", &body).await, 400, 1001);
    }
    bob.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_with_an_odd_name_has_an_inbox_as_well() {
    let server = hub("").await;
    for name in ["ä ö/ü", "a%2Fb", "?&=#"] {
        let path = format!("/api/users/{}/messages", wsc_testkit::encode(name));
        let answer = server.post(&path, &json!({"content": 1, "require_ack": true})).await;
        assert_eq!(answer.json()["outcome"], "stored", "{answer:?}");
        let mut receiver = connect(&server, name).await;
        let delivery = receiver.expect_reliable("user_message").await;
        receiver.ack(&[&text(&delivery["id"])]).await;
        expect_outcome(&server, &text(&delivery["id"]), name, "acked").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_totals_tell_every_outcome() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    super::tell_reliably(&mut alice, "bob", json!(1)).await;
    take(&mut bob).await;
    bob.barrier().await;
    super::tell_reliably(&mut alice, "away", json!(1)).await;
    let messages = server.get("/api/stats").await.json()["messages"].clone();
    for (outcome, count) in [("accepted", 2), ("acked", 1), ("stored", 1), ("in_flight", 0), ("failed", 0)] {
        assert_eq!(messages[outcome], count, "{outcome} in {messages}");
    }
}
