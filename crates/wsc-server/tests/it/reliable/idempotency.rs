//! The same request twice is one message.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wsc_testkit::Client;

use super::{connect, reliable, text};
use crate::support::{assert_refused, hub};

fn keyed(to: &str, content: &Value, key: &str) -> Value {
    let mut message = reliable(to, content);
    message["idempotency_key"] = json!(key);
    message
}

fn keyed_plain(to: &str, content: &Value, key: &str) -> Value {
    let mut message = keyed(to, content, key);
    message.as_object_mut().unwrap().remove("require_ack");
    message
}

/// Asserts that `again` is the first answer, marked as a repetition.
#[track_caller]
fn assert_repeated(first: &Value, again: &Value) {
    assert_eq!(first.get("duplicate"), None, "{first}");
    let mut expected = first.clone();
    expected["duplicate"] = json!(true);
    assert_eq!(*again, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_direct_message_is_answered_and_not_sent() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    for (n, message) in [keyed("bob", &json!("hi"), "k1"), keyed_plain("bob", &json!("hi"), "k2")].iter().enumerate() {
        let first = alice.request_ok(message.clone(), "accepted").await;
        assert_eq!(bob.expect("direct_message").await["id"], first["data"]["id"]);
        for _ in 0..2 {
            let again = alice.request_ok(message.clone(), "accepted").await;
            assert_repeated(&first["data"], &again["data"]);
        }
        bob.expect_quiet().await;
        let ledger = server.metrics().await.ledger();
        ledger.check();
        assert_eq!(ledger.accepted, f64::from(u32::try_from(n + 1).unwrap()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_answer_is_given_again_though_things_went_on() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let message = keyed("bob", &json!(1), "k");
    let first = alice.request_ok(message.clone(), "accepted").await;
    assert_eq!(first["data"]["outcome"], "stored");
    let mut bob = connect(&server, "bob").await;
    super::take(&mut bob).await;
    super::expect_outcome(&server, &text(&first["data"]["id"]), "bob", "acked").await;
    let again = alice.request_ok(message, "accepted").await;
    assert_repeated(&first["data"], &again["data"]);
    bob.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_content_under_the_same_key_is_refused() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    let text = r#"{"message_type":"direct_message","message_id":1,"require_ack":true,"idempotency_key":"k","data":{"target_id":"bob","content":{"a":1}}}"#;
    let first = alice.request_text(text, &json!(1)).await;
    assert_eq!(first["message_type"], "accepted", "{first}");
    bob.expect_reliable("direct_message").await;
    // The same to a program is not the same bytes.
    for other in [r#"{"a":2}"#, r#"{"a": 1}"#, "null"] {
        let reply = alice.request_text(&text.replace(r#"{"a":1}"#, other), &json!(1)).await;
        assert_eq!(reply["data"]["code"], 4004, "{other}: {reply}");
        assert_eq!(reply["data"]["temporary"], false, "{reply}");
    }
    bob.expect_quiet().await;
    // The key still stands for the first.
    let again = alice.request_text(text, &json!(1)).await;
    assert_repeated(&first["data"], &again["data"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_belongs_to_a_sender_and_a_target() {
    let server = hub("").await;
    let mut phone = Client::connect(&server.ws_url_for("alice", "phone")).await;
    let mut dave = connect(&server, "dave").await;
    let mut bob = connect(&server, "bob").await;
    let mut carol = connect(&server, "carol").await;
    let first = phone.request_ok(keyed("bob", &json!(1), "k"), "accepted").await;
    // Another target, another sender: other messages.
    phone.request_ok(keyed("carol", &json!(2), "k"), "accepted").await;
    dave.request_ok(keyed("bob", &json!(3), "k"), "accepted").await;
    let body = json!({"content": 4, "idempotency_key": "k"});
    assert_eq!(server.post("/api/users/bob/messages", &body).await.status, 202);
    for content in [1, 3] {
        assert_eq!(bob.expect("direct_message").await["data"]["content"], content);
    }
    assert_eq!(bob.expect("user_message").await["data"]["content"], 4);
    assert_eq!(carol.expect("direct_message").await["data"]["content"], 2);
    // The sender is the user, not the device.
    let mut laptop = Client::connect(&server.ws_url_for("alice", "laptop")).await;
    let again = laptop.request_ok(keyed("bob", &json!(1), "k"), "accepted").await;
    assert_repeated(&first["data"], &again["data"]);
    bob.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_room_message_reaches_nobody_twice() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    for client in [&mut alice, &mut bob] {
        client.join("r1").await;
        client.join("r2").await;
    }
    for require_ack in [false, true] {
        let key = format!("k-{require_ack}");
        let message = |room: &str| {
            json!({"message_type": "room_message", "require_ack": require_ack, "idempotency_key": key,
                   "data": {"room_id": room, "content": 1}})
        };
        let first = alice.request_ok(message("r1"), "accepted").await;
        assert_eq!(first["data"]["recipients"], 1);
        let again = alice.request_ok(message("r1"), "accepted").await;
        assert_repeated(&first["data"], &again["data"]);
        assert_eq!(bob.expect("room_message").await["id"], first["data"]["id"]);
        bob.expect_quiet().await;
        // Another room is another target.
        alice.request_ok(message("r2"), "accepted").await;
        assert_eq!(bob.expect("room_message").await["data"]["room_id"], "r2");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_http_it_is_the_same() {
    let server = hub("").await;
    let mut bob = connect(&server, "bob").await;
    bob.join("r1").await;
    let body = json!({"content": 1, "require_ack": true, "idempotency_key": "order-7"});
    let first = server.post("/api/users/bob/messages", &body).await;
    assert_eq!(first.status, 202, "{first:?}");
    bob.expect_reliable("user_message").await;
    let again = server.post("/api/users/bob/messages", &body).await;
    assert!(matches!(again.status, 200 | 202), "{again:?}");
    assert_repeated(&first.json(), &again.json());
    let other = json!({"content": 2, "require_ack": true, "idempotency_key": "order-7"});
    assert_refused(&server.post("/api/users/bob/messages", &other).await, 409, 4004);

    let body = json!({"content": 1, "idempotency_key": "order-7"});
    let first = server.post("/api/rooms/r1/messages", &body).await;
    assert_eq!(first.status, 202, "{first:?}");
    bob.expect("room_message").await;
    let again = server.post("/api/rooms/r1/messages", &body).await;
    assert_repeated(&first.json(), &again.json());

    // Within one batch as well.
    let one = json!({"user_id": "bob", "content": 3, "idempotency_key": "order-8"});
    let other = json!({"user_id": "bob", "content": 4, "idempotency_key": "order-8"});
    let answer = server.post("/api/messages/batch", &json!({"messages": [one, one, other]})).await.json();
    assert_eq!(bob.expect("user_message").await["data"]["content"], 3);
    assert_repeated(&answer["results"][0], &answer["results"][1]);
    assert_eq!(answer["results"][2]["error"]["code"], 4004, "{answer}");
    bob.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_at_the_same_time_are_one_message() {
    let server = hub("").await;
    let mut bob = connect(&server, "bob").await;
    let mut phone = Client::connect(&server.ws_url_for("alice", "phone")).await;
    let mut laptop = Client::connect(&server.ws_url_for("alice", "laptop")).await;
    for n in 0..50 {
        let message = keyed("bob", &json!(n), &format!("k{n}"));
        let (one, two) =
            tokio::join!(phone.request_ok(message.clone(), "accepted"), laptop.request_ok(message.clone(), "accepted"));
        let (one, two) = (&one["data"], &two["data"]);
        assert_eq!(one["id"], two["id"]);
        let marks = [one, two].map(|data| data["duplicate"] == true);
        assert_eq!(marks.iter().filter(|&&is_marked| is_marked).count(), 1, "{one} {two}");
        assert_eq!(super::take(&mut bob).await, n);
    }
    bob.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_message_leaves_no_key_behind() {
    let server = hub("storage: {inbox_max_messages: 1}").await;
    let mut alice = connect(&server, "alice").await;
    alice.request_ok(keyed("bob", &json!(1), "k1"), "accepted").await;
    alice.request_error(keyed("bob", &json!(2), "k2"), 4003).await;
    let mut bob = connect(&server, "bob").await;
    super::take(&mut bob).await;
    bob.barrier().await;
    super::leave(&server, bob).await;
    // Tried again it is sent, and with other content, too.
    let accepted = alice.request_ok(keyed("bob", &json!("two"), "k2"), "accepted").await;
    assert_eq!(accepted["data"].get("duplicate"), None, "{accepted}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_durable_messages_survive_the_end_of_the_server() {
    let mut server = hub("").await;
    for is_killed in [false, true] {
        let key = format!("k-{is_killed}");
        let mut alice = connect(&server, "alice").await;
        let mut bob = connect(&server, "bob").await;
        let direct = keyed("bob", &json!([1, key]), &key);
        let first = alice.request_ok(direct.clone(), "accepted").await;
        let body = json!({"content": 2, "require_ack": true, "idempotency_key": key});
        let pushed = server.post("/api/users/carol/messages", &body).await.json();
        assert_eq!(pushed["outcome"], "stored", "{pushed}");
        // Acknowledged and gone: the key stays.
        super::take(&mut bob).await;
        super::expect_outcome(&server, &text(&first["data"]["id"]), "bob", "acked").await;
        if is_killed {
            server.kill().await;
        } else {
            assert_eq!(server.terminate().await, 0);
        }
        server.restart().await;

        let mut alice = connect(&server, "alice").await;
        let mut bob = connect(&server, "bob").await;
        let again = alice.request_ok(direct, "accepted").await;
        assert_eq!(again["data"]["id"], first["data"]["id"]);
        assert_eq!(again["data"]["duplicate"], true, "{again}");
        alice.request_error(keyed("bob", &json!("other"), &key), 4004).await;
        let again = server.post("/api/users/carol/messages", &body).await.json();
        assert_eq!(again["id"], pushed["id"]);
        assert_eq!(again["duplicate"], true, "{again}");
        // What was acknowledged just before a kill may come once more, with
        // the same id; never under another one.
        for passed in bob.barrier().await {
            assert!(is_killed && passed["id"] == first["data"]["id"], "{passed}");
            bob.ack(&[&text(&passed["id"])]).await;
        }
        bob.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_its_window_a_key_is_new_again() {
    let server = hub("idempotency: {window: 1s}").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    for message in [keyed("bob", &json!(1), "k1"), keyed_plain("bob", &json!(1), "k2")] {
        let before = Instant::now();
        let first = alice.request_ok(message.clone(), "accepted").await;
        bob.expect("direct_message").await;
        loop {
            let again = alice.request_ok(message.clone(), "accepted").await;
            if again["data"]["id"] != first["data"]["id"] {
                // The server counts whole milliseconds.
                assert!(before.elapsed() >= Duration::from_millis(990), "{:?}", before.elapsed());
                assert_eq!(again["data"].get("duplicate"), None, "{again}");
                assert_eq!(bob.expect("direct_message").await["id"], again["data"]["id"]);
                break;
            }
            assert!(before.elapsed() < wsc_testkit::WAIT, "the key is never forgotten");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_so_many_keys_are_kept_the_oldest_go_first() {
    let server = hub("idempotency: {max_keys: 10}").await;
    let mut alice = connect(&server, "alice").await;
    let _bob = connect(&server, "bob").await;
    let mut ids = Vec::new();
    for n in 0..30 {
        let message = keyed_plain("bob", &json!(n), &format!("k{n}"));
        ids.push(alice.request_ok(message, "accepted").await["data"]["id"].clone());
    }
    let newest = alice.request_ok(keyed_plain("bob", &json!(29), "k29"), "accepted").await;
    assert_eq!(newest["data"]["id"], ids[29]);
    let oldest = alice.request_ok(keyed_plain("bob", &json!(0), "k0"), "accepted").await;
    assert_ne!(oldest["data"]["id"], ids[0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_obeys_the_rules_for_ids() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    let long = "k".repeat(129);
    for key in ["", "a\nb", long.as_str()] {
        alice.request_error(keyed("bob", &json!(1), key), 1001).await;
        let body = json!({"content": 1, "idempotency_key": key});
        assert_refused(&server.post("/api/users/bob/messages", &body).await, 400, 1001);
    }
    bob.expect_quiet().await;
}
