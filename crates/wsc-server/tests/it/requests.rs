//! Requests, their replies, and how the two are matched.

use serde_json::{Value, json};
use wsc_testkit::{Client, Inbound};

use crate::support::{assert_fields, hub};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ping_answers_with_the_times() {
    let server = hub("").await;
    let mut client = Client::connect(&server.ws_url()).await;
    for kind in ["ping", "heartbeat"] {
        let request = json!({"message_type": kind, "data": {"ts": 1_000}});
        let pong = client.request_ok(request, "pong").await;
        assert_fields(&pong, &["message_type", "request_id", "data", "timestamp"]);
        let data = &pong["data"];
        assert_fields(data, &["ts", "server_ts", "rtt"]);
        assert_eq!(data["ts"], 1_000);
        let rtt = data["server_ts"].as_i64().unwrap() - 1_000;
        assert_eq!(data["rtt"], rtt);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ping_without_a_time_answers_with_the_servers() {
    let server = hub("").await;
    let mut client = Client::connect(&server.ws_url()).await;
    for request in [
        json!({"message_type": "ping"}),
        json!({"message_type": "ping", "data": null}),
        json!({"message_type": "ping", "data": {}}),
    ] {
        let pong = client.request_ok(request, "pong").await;
        assert_fields(&pong["data"], &["server_ts"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ping_without_a_message_id_is_answered_too() {
    let server = hub("").await;
    let mut client = Client::connect(&server.ws_url()).await;
    client.send(&json!({"message_type": "ping"})).await;
    let pong = client.expect("pong").await;
    assert_fields(&pong, &["message_type", "data", "timestamp"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_id_comes_back_with_its_json_type() {
    let server = hub("").await;
    let mut client = Client::connect(&server.ws_url()).await;
    let long = "x".repeat(128);
    for id in [
        json!(1),
        json!(-7),
        json!(9_007_199_254_740_993_i64),
        json!(i64::MAX),
        json!("1"),
        json!("a"),
        json!("ä \"quoted\" \\ \u{1}"),
        json!(long),
    ] {
        let request = json!({"message_type": "ping", "message_id": id});
        let pong = client.request_ok(request, "pong").await;
        assert_eq!(pong["request_id"], id);
    }
    // Written with escapes, it is the same text.
    let text = r#"{"message_type":"ping","message_id":"\u0041\u00e4"}"#;
    client.request_text(text, &json!("A\u{e4}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zero_empty_and_null_count_as_no_message_id() {
    let server = hub("").await;
    let mut client = Client::connect(&server.ws_url()).await;
    for id in ["0", "\"\"", "null"] {
        let text = format!(r#"{{"message_type":"ping","message_id":{id}}}"#);
        client.send_text(text).await;
        let pong = client.expect("pong").await;
        assert_fields(&pong, &["message_type", "data", "timestamp"]);
    }
    // And so such a room message is not answered.
    client.join("r1").await;
    for id in ["0", "\"\"", "null"] {
        let text = format!(r#"{{"message_type":"room_message","message_id":{id},"data":{{"room_id":"r1"}}}}"#);
        client.send_text(text).await;
    }
    client.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_message_ids_are_refused_and_nothing_happens() {
    let server = hub("").await;
    let mut client = Client::connect(&server.ws_url()).await;
    let long = format!("\"{}\"", "x".repeat(129));
    for id in ["1.5", "1.0", "1e3", "true", "[]", "[1]", "{}", long.as_str()] {
        let text = format!(r#"{{"message_type":"join_room","message_id":{id},"data":{{"room_id":"r1"}}}}"#);
        client.send_text(text).await;
        let error = client.expect_error(1002).await;
        assert_eq!(error.get("request_id"), None, "{error}");
        client.expect_quiet().await;
    }
    client.join("r1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_names_the_request() {
    let server = hub("").await;
    let mut client = Client::connect(&server.ws_url()).await;
    for id in [json!(42), json!("forty-two")] {
        let request = json!({"message_type": "leave_room", "message_id": id, "data": {"room_id": "r1"}});
        let error = client.request_error(request, 3000).await;
        assert_fields(&error, &["message_type", "request_id", "data", "timestamp"]);
        assert_eq!(error["request_id"], id);
        assert_eq!(error["data"]["request_id"], id);
        assert_eq!(error["data"]["temporary"], false);
    }
    client.send(&json!({"message_type": "leave_room", "data": {"room_id": "r1"}})).await;
    let error = client.expect_error(3000).await;
    assert_eq!(error.get("request_id"), None, "{error}");
    assert_eq!(error["data"].get("request_id"), None, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_type_is_answered_however_often() {
    let server = hub("").await;
    let mut client = Client::connect(&server.ws_url()).await;
    for _ in 0..15 {
        client.request_error(json!({"message_type": "dance"}), 1001).await;
    }
    // What only the server sends is no request either.
    for kind in
        ["connected", "pong", "accepted", "error", "gap", "kick_out", "user_message", "broadcast", "", "PING", "ping "]
    {
        client.request_error(json!({"message_type": kind}), 1001).await;
    }
    client.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_fields_are_ignored() {
    let server = hub("").await;
    let mut client = Client::connect(&server.ws_url()).await;
    let request = json!({
        "message_type": "join_room",
        "data": {"room_id": "r1", "colour": "red", "deep": {"a": [1, {"b": null}]}},
        "id": "my own",
        "request_id": 99,
        "timestamp": 1,
        "client_id": "someone",
        "whatever": [],
    });
    let reply = client.request_ok(request, "room_joined").await;
    assert_ne!(reply["timestamp"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn payloads_of_the_wrong_shape_are_refused() {
    let server = hub("").await;
    let mut client = Client::connect(&server.ws_url()).await;
    let long = "x".repeat(129);
    for kind in ["join_room", "leave_room", "room_message", "create_room", "delete_room", "room_members"] {
        for data in [
            Value::Null,
            json!("r1"),
            json!(["r1"]),
            json!({}),
            json!({"room_id": null}),
            json!({"room_id": 7}),
            json!({"room_id": ""}),
            json!({"room_id": long}),
            json!({"room_id": "a\u{7}b"}),
            json!({"room_id": "__r"}),
            json!({"room_id": "wsc.r"}),
            json!({"room_id": "anon:r"}),
        ] {
            client.request_error(json!({"message_type": kind, "data": data}), 1001).await;
            // A good frame, so that the bad ones do not add up.
            client.expect_quiet().await;
        }
        client.request_error(json!({"message_type": kind}), 1001).await;
    }
    for data in [
        json!({}),
        json!({"target_id": 7, "content": 1}),
        json!({"target_id": "", "content": 1}),
        json!({"target_id": long, "content": 1}),
        json!({"target_id": "bob", "target_client": 7, "content": 1}),
    ] {
        client.request_error(json!({"message_type": "direct_message", "data": data}), 1001).await;
        client.expect_quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn binary_frames_may_hold_the_same_json() {
    let server = hub("").await;
    let mut client = Client::connect(&server.ws_url()).await;
    client.send_binary(r#"{"message_type":"ping","message_id":"b"}"#).await;
    let Inbound::Text(text) = client.recv("a pong").await else {
        panic!("no text: {client}");
    };
    let pong: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(pong["request_id"], "b");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn white_space_and_key_order_do_not_matter() {
    let server = hub("").await;
    let mut client = Client::connect(&server.ws_url()).await;
    let text = "\r\n\t {\"data\" : { \"room_id\"\n:\t\"r1\" } ,\"message_id\":5, \"message_type\" : \"join_room\" } \n";
    let reply = client.request_text(text, &json!(5)).await;
    assert_eq!(reply["message_type"], "room_joined");
    // Escapes are allowed in names and values that the hub itself reads.
    let text = r#"{"message\u005ftype":"leav\u0065_room","message_id":6,"data":{"room_id":"\u00721"}}"#;
    let reply = client.request_text(text, &json!(6)).await;
    assert_eq!(reply["message_type"], "room_left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_come_in_the_order_of_the_requests() {
    let server = hub("").await;
    let mut client = Client::connect(&server.ws_url()).await;
    for id in 1..=200 {
        client.send(&json!({"message_type": "ping", "message_id": id})).await;
    }
    for id in 1..=200 {
        assert_eq!(client.expect("pong").await["request_id"], id);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authenticate_is_answered_while_authentication_is_off() {
    let server = hub("").await;
    let mut client = Client::connect(&server.ws_url()).await;
    let request = json!({"message_type": "authenticate", "data": {"token": "nonsense"}});
    let reply = client.request(request).await;
    assert_eq!(reply["message_type"], "error", "{reply}");
    client.expect_quiet().await;
}
