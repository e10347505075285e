//! What reaches a receiver: the exact shape, the exact bytes, the right ones.

use serde_json::{Value, json};
use wsc_testkit::{Client, ServerProcess};

use crate::support::{assert_fields, assert_on_its_way, hub, is_uuid_v7};

/// Payloads that a program would like to tidy up on the way.
pub(crate) const CONTENTS: &[&str] = &[
    "null",
    "true",
    "0",
    "-0",
    "-0.0",
    "1.0e5",
    "1E400",
    "0.1000",
    "123456789012345678901234567890.5",
    "\"\"",
    r#""\u0041\u00e4\/\b\f\n\r\t\"\\""#,
    r#""\ud83d\ude00 and 😀""#,
    "\"\u{7f}\u{2028}\u{2029}\u{feff}\"",
    r#""<script>&'</script>""#,
    r#"{"b":1,"a":2,"B":3}"#,
    r#"{"a":1,"a":2}"#,
    r#"{ "spaced" :  [ 1 ,  2 ] , "nested":{"deep":[[],{},[{}]]} }"#,
    "[\n\t1\r\n]",
    r#"{"content":1,"room_id":"other","sender_id":"eve"}"#,
    r#""}{\"data\":[""#,
];

async fn pair(server: &ServerProcess) -> (Client, Client) {
    let mut alice = Client::connect(&server.ws_url_as("alice")).await;
    let mut bob = Client::connect(&server.ws_url_as("bob")).await;
    alice.join("r1").await;
    bob.join("r1").await;
    (alice, bob)
}

/// The text of `content` in a delivery, taken without parsing it.
pub(crate) fn content_of(text: &str) -> &str {
    let start = text.find("\"content\":").expect("a content") + "\"content\":".len();
    let end = text.rfind("\"sender_id\":").expect("a sender after it");
    text[start..end].trim_end_matches(',')
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn room_messages_arrive_byte_for_byte() {
    let server = hub("").await;
    let (mut alice, mut bob) = pair(&server).await;
    for content in CONTENTS {
        let text = format!(r#"{{"message_type":"room_message","data":{{"room_id":"r1","content":{content}}}}}"#);
        alice.send_text(text).await;
        let delivery = bob.expect_text("a room message").await;
        assert!(delivery.contains(&format!("\"content\":{content},")), "{content} became {delivery}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn direct_messages_arrive_byte_for_byte() {
    let server = hub("").await;
    let (mut alice, mut bob) = pair(&server).await;
    for content in CONTENTS {
        let text = format!(r#"{{"message_type":"direct_message","data":{{"content":{content},"target_id":"bob"}}}}"#);
        alice.send_text(text).await;
        let delivery = bob.expect_text("a direct message").await;
        assert_eq!(content_of(&delivery), *content, "{delivery}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pushed_content_arrives_byte_for_byte() {
    let server = hub("").await;
    let (_alice, mut bob) = pair(&server).await;
    for content in CONTENTS {
        let body = format!(r#"{{"content":{content}}}"#);
        for path in ["/api/users/bob/messages", "/api/rooms/r1/messages"] {
            let answer = server.post_text(path, &body).await;
            assert_eq!(answer.status, 202, "{content}: {answer:?}");
            let delivery = bob.expect_text("a pushed message").await;
            assert_eq!(content_of(&delivery), *content, "{delivery}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shape_of_a_room_message_is_fixed() {
    let server = hub("").await;
    let (mut alice, mut bob) = pair(&server).await;
    alice.say("r1", json!({"text": "hi"})).await;
    let text = bob.expect_text("a room message").await;
    let delivery: Value = serde_json::from_str(&text).unwrap();
    let id = delivery["id"].as_str().unwrap();
    let time = delivery["timestamp"].as_i64().unwrap();
    assert!(is_uuid_v7(id), "{text}");
    assert_eq!(
        text,
        format!(
            r#"{{"id":"{id}","message_type":"room_message","data":{{"room_id":"r1","content":{{"text":"hi"}},"sender_id":"alice","timestamp":{time}}},"timestamp":{time}}}"#
        )
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shape_of_a_direct_message_is_fixed() {
    let server = hub("").await;
    let (mut alice, mut bob) = pair(&server).await;
    let accepted = alice.tell("bob", json!("hi")).await;
    assert_on_its_way(&accepted["data"]);
    let text = bob.expect_text("a direct message").await;
    let delivery: Value = serde_json::from_str(&text).unwrap();
    let id = delivery["id"].as_str().unwrap();
    let time = delivery["timestamp"].as_i64().unwrap();
    assert_eq!(accepted["data"]["id"], id);
    assert_eq!(
        text,
        format!(
            r#"{{"id":"{id}","message_type":"direct_message","data":{{"content":"hi","sender_id":"alice","timestamp":{time}}},"timestamp":{time}}}"#
        )
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_content_is_null() {
    let server = hub("").await;
    let (mut alice, mut bob) = pair(&server).await;
    let message = json!({"message_type": "room_message", "data": {"room_id": "r1"}});
    alice.send(&message).await;
    let data = &bob.expect("room_message").await["data"];
    assert_eq!(data.get("content"), Some(&Value::Null));
    let message = json!({"message_type": "direct_message", "data": {"target_id": "bob"}});
    alice.send(&message).await;
    let data = &bob.expect("direct_message").await["data"];
    assert_eq!(data.get("content"), Some(&Value::Null));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_of_the_largest_size_passes_and_one_byte_more_does_not() {
    let server = hub("").await;
    let (mut alice, mut bob) = pair(&server).await;
    let message = |size: usize| {
        let head = r#"{"message_type":"room_message","data":{"room_id":"r1","content":""#;
        let tail = r#""}}"#;
        let filler = "x".repeat(size - head.len() - tail.len());
        format!("{head}{filler}{tail}")
    };
    let largest = 64 * 1024;
    alice.send_text(message(largest)).await;
    let delivery = bob.expect("room_message").await;
    let content = delivery["data"]["content"].as_str().unwrap();
    assert!(content.len() > 65_000 && content.bytes().all(|byte| byte == b'x'));

    alice.send_text(message(largest + 1)).await;
    assert_eq!(alice.expect_close().await.0, 1009);
    bob.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nesting_of_sixty_levels_is_content_like_any_other() {
    let server = hub("").await;
    let (mut alice, mut bob) = pair(&server).await;
    let deep = format!("{}1{}", "[".repeat(60), "]".repeat(60));
    let text = format!(r#"{{"message_type":"room_message","data":{{"room_id":"r1","content":{deep}}}}}"#);
    alice.send_text(text).await;
    assert!(bob.expect_text("a room message").await.contains(&deep));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_can_pretend_to_be_someone_else() {
    let server = hub("").await;
    let (mut alice, mut bob) = pair(&server).await;
    for (kind, address) in [("room_message", "room_id"), ("direct_message", "target_id")] {
        let to = if address == "room_id" { "r1" } else { "bob" };
        let message = json!({
            "message_type": kind,
            "message_id": 7,
            "id": "01890000-0000-7000-8000-000000000000",
            "timestamp": 1,
            "sender": "eve",
            "sender_id": "eve",
            "user_id": "eve",
            "client_id": "eve",
            "source": "offline",
            "attempt": 9,
            "data": {
                address: to,
                "content": 1,
                "sender_id": "eve",
                "timestamp": 1,
                "echo": true,
            },
        });
        alice.request_ok(message, "accepted").await;
        let delivery = bob.expect(kind).await;
        assert_fields(&delivery, &["id", "message_type", "data", "timestamp"]);
        assert_ne!(delivery["id"], "01890000-0000-7000-8000-000000000000");
        assert_ne!(delivery["timestamp"], 1);
        let data = &delivery["data"];
        assert_eq!(data["sender_id"], "alice");
        assert_eq!(data["timestamp"], delivery["timestamp"]);
        assert_eq!(data.get("echo"), None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_devices_of_the_target_get_it_and_the_senders_others_an_echo() {
    let server = hub("").await;
    let mut phone = Client::connect(&server.ws_url_for("alice", "phone")).await;
    let mut laptop = Client::connect(&server.ws_url_for("alice", "laptop")).await;
    let mut bobs = [Client::connect(&server.ws_url_as("bob")).await, Client::connect(&server.ws_url_as("bob")).await];
    let accepted = phone.tell("bob", json!("hi")).await;
    let id = &accepted["data"]["id"];
    for bob in &mut bobs {
        let delivery = bob.expect("direct_message").await;
        assert_eq!(&delivery["id"], id);
        assert_fields(&delivery["data"], &["content", "sender_id", "timestamp"]);
        bob.expect_quiet().await;
    }
    let echo = laptop.expect("direct_message").await;
    assert_eq!(&echo["id"], id);
    let data = &echo["data"];
    assert_fields(data, &["content", "sender_id", "timestamp", "echo", "target_id"]);
    assert_eq!(data["echo"], true);
    assert_eq!(data["target_id"], "bob");
    assert_eq!(data["sender_id"], "alice");
    assert_eq!(data["content"], "hi");
    phone.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_device_can_be_addressed() {
    let server = hub("").await;
    let mut alice = Client::connect(&server.ws_url_as("alice")).await;
    let mut phone = Client::connect(&server.ws_url_for("bob", "phone")).await;
    let mut laptop = Client::connect(&server.ws_url_for("bob", "laptop")).await;
    let data = json!({"target_id": "bob", "target_client": "phone", "content": "hi"});
    let message = json!({"message_type": "direct_message", "data": data});
    alice.request_ok(message, "accepted").await;
    phone.expect("direct_message").await;
    laptop.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_is_not_there_is_an_error() {
    let server = hub("").await;
    let mut alice = Client::connect(&server.ws_url_for("alice", "tablet")).await;
    let mut bob = Client::connect(&server.ws_url_for("bob", "phone")).await;
    // Unknown, or a device of somebody else.
    for client in ["laptop", "tablet"] {
        let data = json!({"target_id": "bob", "target_client": client, "content": 1});
        let message = json!({"message_type": "direct_message", "data": data});
        alice.request_error(message, 4000).await;
    }
    bob.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn direct_messages_keep_their_order() {
    let server = hub("").await;
    let (mut alice, mut bob) = pair(&server).await;
    for n in 0..500 {
        let data = json!({"target_id": "bob", "content": n});
        alice.send(&json!({"message_type": "direct_message", "data": data})).await;
    }
    for n in 0..500 {
        assert_eq!(bob.expect("direct_message").await["data"]["content"], n);
    }
    alice.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_low_priority_is_accepted_and_an_unknown_one_harms_nobody() {
    let server = hub("").await;
    let (mut alice, mut bob) = pair(&server).await;
    for priority in ["normal", "low"] {
        let message = json!({
            "message_type": "direct_message",
            "priority": priority,
            "data": {"target_id": "bob", "content": priority},
        });
        alice.request_ok(message, "accepted").await;
        let delivery = bob.expect("direct_message").await;
        assert_eq!(delivery["data"]["content"], priority);
        if priority == "normal" {
            assert_eq!(delivery.get("priority"), None);
        }
    }
}
