//! What is taken in a body, and what of it arrives.

use serde_json::json;
use wsc_testkit::RawClient;

use crate::support::{JSON, assert_refused, hub};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_arrives_byte_for_byte() {
    let hub = hub("").await;
    let mut alice = hub.connect("alice").await;
    alice.join("r1").await;
    for content in ["1.0e5", "12345678901234567890123", r#"{"b":1,  "a":"\u00fc\/"}"#, "null", "\"\\ud83d\\ude00\""] {
        let body = format!(r#"{{ "content" : {content} }}"#);
        let wrapped = format!("\"content\":{content},");
        for (path, message_type) in [
            ("/api/users/alice/messages", "user_message"),
            ("/api/rooms/r1/messages", "room_message"),
            ("/api/broadcast", "broadcast"),
        ] {
            let answer = hub.post(path, &body).await;
            assert_eq!(answer.status, 202, "{answer:?}");
            let delivery = alice.expect_text(message_type).await;
            assert!(delivery.contains(&wrapped), "{delivery}");
            assert!(delivery.contains(message_type), "{delivery}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_obey_the_rules_of_frames() {
    let hub = hub("").await;
    let mut alice = hub.connect("alice").await;
    let nested = |depth: usize| format!("{{\"content\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
    assert_eq!(hub.post("/api/broadcast", &nested(63)).await.status, 202);
    alice.expect("broadcast").await;
    for body in [
        nested(64),
        nested(100_000),
        r#"{"content":"\ud800"}"#.to_owned(),
        r#"{"content":{"\udc00":1}}"#.to_owned(),
        r#"{"content":1,"content":2}"#.to_owned(),
        r#"[{"content":1}]"#.to_owned(),
        r#"["hi"]"#.to_owned(),
        r#"{"content":1} 2"#.to_owned(),
        "{".to_owned(),
    ] {
        assert_refused(&hub.post("/api/broadcast", &body).await, 400, 1001);
    }
    alice.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mistakes_are_pointed_at() {
    let hub = hub("").await;
    for (path, body, expected) in [
        ("/api/broadcast", "{\"content\":1,\n  oops}", "line 2 column 3"),
        ("/api/broadcast", r#"{"content":1,"colour":2}"#, "unknown field `colour`"),
        ("/api/rooms", r#"{"id":"r1","max_clients":"many"}"#, "line 1 column 31"),
        ("/api/rooms", r#"{"name":"r1"}"#, "missing field `id`"),
        ("/api/users/alice/messages", r#"{"require_ack":false}"#, "missing field `content`"),
        ("/api/users/alice/messages", r#"{"content":1,"user_id":"bob"}"#, "unknown field `user_id`"),
        ("/api/messages/batch", r#"{"messages":[{"user_id":"a","contents":1}]}"#, "unknown field `contents`"),
        ("/api/users/alice/disconnect", r#"{"why":1}"#, "unknown field `why`"),
        ("/api/broadcast", r#"{"content":1,"message":"x"}"#, "cannot go together"),
        ("/api/broadcast", r#"{"message":"x","user_type":"agent"}"#, "user_type"),
        ("/api/rooms/r1/messages", r#"{"content":1,"priority":"low"}"#, "normal priority"),
    ] {
        let answer = hub.post(path, body).await;
        assert_refused(&answer, 400, 1001);
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains(expected), "{path}: {message}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_inbox_acknowledgements_are_refused() {
    let hub = hub("storage: {kind: none}").await;
    let mut alice = hub.connect("alice").await;
    alice.join("r1").await;
    let push = json!({"content": 1, "require_ack": true});
    for path in ["/api/users/alice/messages", "/api/rooms/r1/messages"] {
        let answer = hub.post_json(path, &push).await;
        assert_refused(&answer, 400, 1001);
        assert!(answer.text().contains("require_ack needs the inbox"), "{answer:?}");
    }
    let batch = json!({"messages": [{"user_id": "alice", "content": 1, "require_ack": true}]});
    let answer = hub.post_json("/api/messages/batch", &batch).await;
    assert_eq!(answer.json()["results"][0]["error"]["code"], 1001, "{answer:?}");
    alice.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_is_taken_only_as_json() {
    let hub = hub("").await;
    let body = Some(r#"{"content":1}"#);
    for kind in ["application/json", "Application/JSON ; charset=utf-8"] {
        assert_eq!(hub.http("POST", "/api/broadcast", &[("Content-Type", kind)], body).await.status, 202, "{kind}");
    }
    // Forms and plain text are what a foreign page can send without asking first.
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonp", ""] {
        for (method, path) in [("POST", "/api/broadcast"), ("DELETE", "/api/clients/x")] {
            assert_refused(&hub.http(method, path, &[("Content-Type", kind)], body).await, 415, 1001);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_has_a_largest_size() {
    let hub = hub("http: {max_body_size: 1KiB}").await;
    let body = |size: usize| format!(r#"{{"content":"{}"}}"#, "x".repeat(size - 14));
    assert_eq!(hub.post("/api/broadcast", &body(1_024)).await.status, 202);
    let answer = hub.post("/api/broadcast", &body(1_025)).await;
    assert_refused(&answer, 413, 4002);
    assert_eq!(answer.json()["error"]["details"]["limit"], 1_024);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_body_is_given_up() {
    let hub = hub("http: {read_timeout: 100ms}").await;
    let mut client = RawClient::tcp(hub.addr).await;
    let head = "POST /api/broadcast HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    client.send_bytes(format!("{head}Content-Length: 100\r\n\r\n{{\"content\":").as_bytes()).await;
    let answer = client.read_http_response().await;
    assert_refused(&answer, 408, 1004);
    client.expect_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_answers_each_message() {
    let hub = hub("").await;
    let mut alice = hub.connect("alice").await;
    let batch = json!({"messages": [
        {"user_id": "alice", "content": 1},
        {"user_id": "__hub", "content": 2},
        {"user_id": "alice", "content": 3, "message_type": "connected"},
        {"user_id": "bob", "content": 4},
        {"user_id": "alice", "content": 5, "message_type": "order"},
    ]});
    let answer = hub.post_json("/api/messages/batch", &batch).await.json();
    let codes: Vec<_> = answer["results"].as_array().unwrap().iter().map(|r| r["error"]["code"].as_i64()).collect();
    assert_eq!(codes, [None, Some(1001), Some(1001), None, None], "{answer}");
    assert_eq!(answer["results"][3]["outcome"], "stored");
    assert_eq!(alice.expect("user_message").await["id"], answer["results"][0]["id"]);
    assert_eq!(alice.expect("order").await["data"]["content"], 5);
    let empty = hub.post("/api/messages/batch", r#"{"messages":[]}"#).await;
    assert_eq!(empty.json(), json!({"results": []}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kick_takes_its_reason_from_the_body_or_the_query() {
    let hub = hub("").await;
    for (query, headers, body, reason) in [
        ("", &[] as &[_], None, "kicked"),
        ("?reason=from%20the%20query", &[], None, "from the query"),
        ("?reason=query", &[JSON], Some(r#"{"reason":"body"}"#), "body"),
    ] {
        let mut alice = hub.connect("alice").await;
        let answer = hub.http("POST", &format!("/api/users/alice/disconnect{query}"), headers, body).await;
        assert_eq!((answer.status, answer.json()), (200, json!({"disconnected": 1})), "{answer:?}");
        assert_eq!(alice.expect("kick_out").await["data"]["reason"], reason);
        let (code, said) = alice.expect_close().await;
        assert_eq!((code, said["reason"].as_str()), (3503, Some(reason)));
    }
}
