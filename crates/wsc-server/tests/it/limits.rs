//! Limits per user, and what the rates do.

use serde_json::json;
use wsc_testkit::{Client, ConnectOptions};

use crate::support::{assert_closed, expect_clients, hub, upgrade};

const V1: &[&str] = &["wsc.v1"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oldest_connection_of_a_user_makes_room() {
    let server = hub("limits: {user_connections: 2, user_policy: kick_oldest}").await;
    let mut first = Client::connect(&server.ws_url_as("alice")).await;
    let mut second = Client::connect(&server.ws_url_as("alice")).await;
    let mut other = Client::connect(&server.ws_url_as("bob")).await;
    let mut third = Client::connect(&server.ws_url_as("alice")).await;
    let notice = first.expect("force_offline").await;
    assert!(notice["data"]["reason"].is_string(), "{notice}");
    assert_closed(&first.expect_close().await, 3505);
    for client in [&mut second, &mut third, &mut other] {
        client.expect_quiet().await;
    }
    expect_clients(&server, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn or_the_newest_is_refused() {
    let server = hub("limits: {user_connections: 1, user_policy: refuse}").await;
    let mut first = Client::connect(&server.ws_url_for("alice", "a")).await;

    let options = ConnectOptions { subprotocols: V1, ..ConnectOptions::default() };
    let mut second = Client::open(&server.ws_url_for("alice", "b"), &options).await;
    assert_closed(&second.expect_close().await, 3505);

    let response = upgrade(&server, "/ws?user_id=alice&client_id=b", |h| h).await;
    assert!((400..600).contains(&response.status), "{response:?}");
    response.error_code();

    first.expect_quiet().await;
    Client::connect(&server.ws_url_as("bob")).await;
    // The same device again is a replacement, not one more.
    Client::connect(&server.ws_url_for("alice", "a")).await;
    assert_closed(&first.expect_close().await, 3502);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_messages_a_second_are_refused_for_a_while() {
    let server = hub("limits: {messages_per_second: 5, burst: 10}").await;
    let mut client = Client::connect(&server.ws_url()).await;
    for id in 1..=30 {
        client.send(&json!({"message_type": "ping", "message_id": id})).await;
    }
    let error = loop {
        let text = client.expect_text("the refusal").await;
        let frame: serde_json::Value = serde_json::from_str(&text).unwrap();
        if frame["message_type"] == "error" {
            break frame;
        }
    };
    assert_eq!(error["data"]["code"], 1005, "{error}");
    assert_eq!(error["data"]["temporary"], true, "{error}");
    assert!(error["request_id"].as_u64().is_some_and(|id| id > 10), "it says which request: {error}");
    assert!(error["data"]["details"]["retry_after_ms"].is_u64(), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn far_too_many_messages_end_the_connection() {
    let server = hub("limits: {messages_per_second: 5, burst: 10}").await;
    let mut client = Client::connect(&server.ws_url()).await;
    for _ in 0..300 {
        if !client.try_send(&json!({"message_type": "ping"})).await {
            break;
        }
    }
    let (frames, code) = client.read_to_end().await;
    // The rest may still have been on its way: then the socket is reset.
    assert!(matches!(code, 3013 | 1006), "{code}");
    let errors = frames.iter().filter(|text| text.contains("1005")).count();
    assert!(errors <= 10, "{errors} errors, one per second at most");
}
