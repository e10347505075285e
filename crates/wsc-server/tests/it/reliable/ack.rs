//! Who can settle a message, and how.

use serde_json::{Value, json};
use wsc_testkit::Client;

use super::{connect, expect_ledger, expect_outcome, fate, ignored_acks, tell_reliably, tell_with_outcome, text};
use crate::support::{assert_fields, assert_on_its_way, hub};

/// A message of Alice to Bob, as Bob got it.
async fn delivered(alice: &mut Client, bob: &mut Client) -> String {
    let accepted = tell_reliably(alice, "bob", json!("hi")).await;
    let delivery = bob.expect_reliable("direct_message").await;
    assert_eq!(delivery["id"], accepted["id"]);
    text(&delivery["id"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shape_of_a_reliable_message_is_fixed() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    let accepted = tell_reliably(&mut alice, "bob", json!("hi")).await;
    assert_eq!(accepted["outcome"], "pending", "{accepted}");
    let text = bob.expect_text("a direct message").await;
    let delivery: Value = serde_json::from_str(&text).unwrap();
    assert_fields(&delivery, &["id", "message_type", "data", "timestamp", "require_ack"]);
    assert_eq!(delivery["require_ack"], true);
    assert_eq!(delivery["id"], accepted["id"]);
    assert_eq!(delivery["timestamp"], delivery["data"]["timestamp"]);
    assert_fields(&delivery["data"], &["content", "sender_id", "timestamp"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ack_has_three_forms() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    for form in 0..3 {
        let id = delivered(&mut alice, &mut bob).await;
        assert_eq!(fate(&server, &id, "bob").await["outcome"], "pending");
        let ack = match form {
            0 => json!({"message_type": "ack", "message_id": id}),
            1 => json!({"message_type": "ack", "data": {"id": id}}),
            _ => json!({"message_type": "ack", "data": {"ids": [id]}}),
        };
        bob.send(&ack).await;
        // Never answered.
        bob.expect_quiet().await;
        let fate = expect_outcome(&server, &id, "bob", "acked").await;
        assert_eq!(fate["attempts"], 1, "{fate}");
        assert_eq!(fate.get("reason"), None, "{fate}");
    }
    alice.expect_quiet().await;
    assert_eq!(ignored_acks(&server).await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_wins_over_the_message_id() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    let first = delivered(&mut alice, &mut bob).await;
    let second = delivered(&mut alice, &mut bob).await;
    bob.send(&json!({"message_type": "ack", "message_id": first, "data": {"id": second}})).await;
    expect_outcome(&server, &second, "bob", "acked").await;
    assert_eq!(fate(&server, &first, "bob").await["outcome"], "pending");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_ack_may_name_a_thousand_messages_and_no_more() {
    let server = hub("inbox: {window_messages: 2000, window_bytes: 16MiB}").await;
    let mut bob = connect(&server, "bob").await;
    let messages = vec![json!({"user_id": "bob", "content": 1, "require_ack": true}); 1_000];
    let answer = server.post("/api/messages/batch", &json!({"messages": messages})).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let mut ids = Vec::new();
    for _ in 0..1_000 {
        ids.push(text(&bob.expect_reliable("user_message").await["id"]));
    }
    let mut too_many = ids.clone();
    too_many.push(ids[0].clone());
    bob.send(&json!({"message_type": "ack", "data": {"ids": too_many}})).await;
    bob.expect_error(1001).await;
    assert_eq!(fate(&server, &ids[0], "bob").await["outcome"], "pending");

    let named: Vec<&str> = ids.iter().map(String::as_str).collect();
    bob.ack(&named).await;
    for id in [&ids[0], &ids[500], &ids[999]] {
        expect_outcome(&server, id, "bob", "acked").await;
    }
    let ledger = server.metrics().await.ledger();
    ledger.check();
    assert_eq!((ledger.acked, ledger.here()), (1_000.0, 0.0), "{ledger:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malformed_ack_is_an_error_and_settles_nothing() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    let id = delivered(&mut alice, &mut bob).await;
    for kind in ["ack", "nack"] {
        for ack in [
            json!({"message_type": kind}),
            json!({"message_type": kind, "data": {}}),
            json!({"message_type": kind, "data": {"id": 7}}),
            json!({"message_type": kind, "data": {"ids": id}}),
            json!({"message_type": kind, "data": {"ids": [id, 7]}}),
            json!({"message_type": kind, "data": [id]}),
        ] {
            bob.send(&ack).await;
            bob.expect_error(1001).await;
        }
    }
    assert_eq!(fate(&server, &id, "bob").await["outcome"], "pending");
    bob.ack(&[&id]).await;
    expect_outcome(&server, &id, "bob", "acked").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_device_of_the_user_can_acknowledge() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let mut phone = Client::connect(&server.ws_url_for("bob", "phone")).await;
    let mut laptop = Client::connect(&server.ws_url_for("bob", "laptop")).await;
    let accepted = tell_reliably(&mut alice, "bob", json!(1)).await;
    for device in [&mut phone, &mut laptop] {
        let delivery = device.expect_reliable("direct_message").await;
        assert_eq!(delivery["id"], accepted["id"]);
    }
    laptop.ack(&[&text(&accepted["id"])]).await;
    let fate = expect_outcome(&server, &text(&accepted["id"]), "bob", "acked").await;
    // A copy for each device is one attempt.
    assert_eq!(fate["attempts"], 1, "{fate}");
    phone.expect_quiet().await;
    laptop.expect_quiet().await;
    // One pair, whatever the number of devices.
    let ledger = server.metrics().await.ledger();
    ledger.check();
    assert_eq!((ledger.accepted, ledger.acked), (1.0, 1.0), "{ledger:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_else_can_acknowledge() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    // The same client id does not make Eve one of Bob's devices.
    let mut eve = Client::connect(&server.ws_url_for("eve", bob.client_id())).await;
    let id = delivered(&mut alice, &mut bob).await;
    eve.ack(&[&id]).await;
    eve.send(&json!({"message_type": "nack", "data": {"id": id, "reason": "mine now"}})).await;
    alice.ack(&[&id]).await;
    for client in [&mut eve, &mut alice] {
        client.expect_quiet().await;
    }
    assert_eq!(fate(&server, &id, "bob").await["outcome"], "pending");
    assert_eq!(ignored_acks(&server).await, 3.0);
    bob.ack(&[&id]).await;
    expect_outcome(&server, &id, "bob", "acked").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_double_and_unknown_acks_are_ignored_and_counted() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    let id = delivered(&mut alice, &mut bob).await;
    bob.ack(&[&id]).await;
    expect_outcome(&server, &id, "bob", "acked").await;
    assert_eq!(ignored_acks(&server).await, 0.0);

    bob.ack(&[&id]).await;
    bob.send(&json!({"message_type": "nack", "data": {"id": id}})).await;
    bob.ack(&["01890000-0000-7000-8000-000000000000"]).await;
    bob.ack(&["never heard of"]).await;
    bob.expect_quiet().await;
    let metrics = server.metrics().await;
    assert_eq!(metrics.sum("wsc_acks_ignored_total", &[]), 4.0);
    let unlabelled = metrics.samples.iter().find(|sample| {
        sample.name == "wsc_acks_ignored_total" && sample.labels.get("reason").is_none_or(String::is_empty)
    });
    assert_eq!(unlabelled, None);
    assert_eq!(fate(&server, &id, "bob").await["outcome"], "acked");
    let ledger = metrics.ledger();
    ledger.check();
    assert_eq!((ledger.acked, ledger.rejected), (1.0, 0.0), "{ledger:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ack_of_a_plain_message_means_nothing() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    let accepted = alice.tell("bob", json!(1)).await;
    assert_on_its_way(&accepted["data"]);
    bob.expect("direct_message").await;
    bob.ack(&[&text(&accepted["data"]["id"])]).await;
    bob.expect_quiet().await;
    let ledger = expect_ledger(&server, "it is sent", |ledger| ledger.in_flight == 0.0).await;
    assert_eq!((ledger.sent, ledger.acked), (1.0, 0.0), "{ledger:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nack_rejects_the_message_for_good() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    for nack in [
        |id: &str| json!({"message_type": "nack", "message_id": id}),
        |id: &str| json!({"message_type": "nack", "data": {"id": id, "reason": "not for me"}}),
        |id: &str| json!({"message_type": "nack", "data": {"ids": [id], "reason": "not for me"}}),
    ] {
        let id = delivered(&mut alice, &mut bob).await;
        bob.send(&nack(&id)).await;
        bob.expect_quiet().await;
        expect_outcome(&server, &id, "bob", "rejected").await;
        bob.ack(&[&id]).await;
        bob.expect_quiet().await;
        assert_eq!(fate(&server, &id, "bob").await["outcome"], "rejected");
    }
    let ledger = server.metrics().await.ledger();
    ledger.check();
    assert_eq!((ledger.rejected, ledger.acked, ledger.here()), (3.0, 0.0, 0.0), "{ledger:?}");
    // Rejected is gone: nothing is sent again to the next device.
    connect(&server, "bob").await.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_rests_can_be_acknowledged_too() {
    // It rests after one attempt, while its user is connected.
    let server = hub("ack_timeout: 100ms, ack_retry_interval: 100ms, ack_max_retries: 0").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    let acked = delivered(&mut alice, &mut bob).await;
    let rejected = delivered(&mut alice, &mut bob).await;
    for id in [&acked, &rejected] {
        expect_outcome(&server, id, "bob", "stored").await;
    }
    bob.ack(&[&acked]).await;
    bob.send(&json!({"message_type": "nack", "data": {"id": rejected}})).await;
    expect_outcome(&server, &acked, "bob", "acked").await;
    expect_outcome(&server, &rejected, "bob", "rejected").await;
    connect(&server, "bob").await.expect_quiet().await;
    server.metrics().await.ledger().check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_device_can_be_asked_for_an_ack() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let mut phone = Client::connect(&server.ws_url_for("bob", "phone")).await;
    let mut laptop = Client::connect(&server.ws_url_for("bob", "laptop")).await;
    let data = json!({"target_id": "bob", "target_client": "phone", "content": "hi"});
    let message = json!({"message_type": "direct_message", "require_ack": true, "data": data});
    let accepted = alice.request_ok(message, "accepted").await;
    let id = text(&accepted["data"]["id"]);
    assert_eq!(phone.expect_reliable("direct_message").await["id"], id.as_str());
    laptop.expect_quiet().await;
    // Any device of the user settles it.
    laptop.ack(&[&id]).await;
    expect_outcome(&server, &id, "bob", "acked").await;

    let data = json!({"target_id": "bob", "target_client": "tablet", "content": "hi"});
    let message = json!({"message_type": "direct_message", "require_ack": true, "data": data});
    alice.request_error(message, 4000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_senders_other_devices_are_shown_it_and_need_not_acknowledge() {
    let server = hub("").await;
    let mut phone = Client::connect(&server.ws_url_for("alice", "phone")).await;
    let mut laptop = Client::connect(&server.ws_url_for("alice", "laptop")).await;
    let mut bob = connect(&server, "bob").await;
    let id = delivered(&mut phone, &mut bob).await;
    let echo = laptop.expect("direct_message").await;
    assert_eq!(echo["id"], id.as_str());
    assert_eq!(echo.get("require_ack"), None, "{echo}");
    assert_eq!(echo["data"]["echo"], true);
    phone.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_to_oneself_reaches_every_device() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let id = tell_with_outcome(&mut alice, "alice", json!("note"), "pending").await;
    assert_eq!(alice.expect_reliable("direct_message").await["id"], id.as_str());
    alice.ack(&[&id]).await;
    expect_outcome(&server, &id, "alice", "acked").await;
    alice.expect_quiet().await;
}
