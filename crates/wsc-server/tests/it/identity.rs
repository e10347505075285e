//! Who a connection is: parameters, ids, replacement.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use wsc_testkit::{Client, ConnectOptions, ServerProcess, encode, query};

use crate::support::{
    assert_closed, assert_fields, assert_on_its_way, assert_refused, entries, expect_clients, hub, is_uuid_v7, upgrade,
};

async fn connect_query(server: &ServerProcess, query: &[(&str, &str)]) -> Client {
    let options = ConnectOptions { query, ..ConnectOptions::default() };
    Client::connect_with(&server.ws_url(), &options).await
}

async fn connect_headers(server: &ServerProcess, headers: &[(&str, &str)]) -> Client {
    let options = ConnectOptions { headers, ..ConnectOptions::default() };
    Client::connect_with(&server.ws_url(), &options).await
}

/// The one connection of this user, as `/api/clients` lists it.
async fn listed(server: &ServerProcess, user_id: &str) -> Value {
    let path = format!("/api/clients{}", query(&[("user_id", user_id)]));
    let answer = server.get(&path).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let clients = entries(&answer.json(), "clients");
    assert_eq!(clients.len(), 1, "of {user_id} in {clients:?}");
    clients[0].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_frame_tells_who_one_is() {
    let server = hub("node_id: n1").await;
    let client = Client::connect(&server.ws_url_for("alice", "phone")).await;
    let connected = client.connected();
    assert_fields(connected, &["message_type", "data", "timestamp"]);
    let data = &connected["data"];
    assert_fields(data, &["client_id", "user_id", "session", "node_id", "ping_interval_ms"]);
    assert_eq!(data["user_id"], "alice");
    assert_eq!(data["client_id"], "phone");
    assert_eq!(data["node_id"], "n1");
    assert_eq!(data["ping_interval_ms"], 25_000);
    assert!(is_uuid_v7(client.session()), "{connected}");
    let now = std::time::SystemTime::now();
    let now = now.duration_since(std::time::UNIX_EPOCH).unwrap();
    let age = now.as_millis() as i64 - connected["timestamp"].as_i64().unwrap();
    assert!((-60_000..60_000).contains(&age), "{connected}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_come_as_headers_too_and_the_query_wins() {
    let server = hub("").await;
    let client = connect_headers(
        &server,
        &[("X-User-ID", "alice"), ("X-Client-ID", "phone"), ("X-User-Type", "agent"), ("X-Device-ID", "Alice's phone")],
    )
    .await;
    assert_eq!(client.user_id(), "alice");
    assert_eq!(client.client_id(), "phone");
    let entry = listed(&server, "alice").await;
    assert_eq!(entry["user_type"], "agent", "{entry}");
    assert_eq!(entry["device_id"], "Alice's phone", "{entry}");

    let options = ConnectOptions {
        query: &[("user_id", "bob"), ("client_id", "laptop")],
        headers: &[("X-User-ID", "alice"), ("X-Client-ID", "phone")],
        ..ConnectOptions::default()
    };
    let client = Client::connect_with(&server.ws_url(), &options).await;
    assert_eq!(client.user_id(), "bob");
    assert_eq!(client.client_id(), "laptop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_id_alone_is_the_user_id_as_well() {
    let server = hub("").await;
    let client = connect_query(&server, &[("client_id", "c-17")]).await;
    assert_eq!(client.user_id(), "c-17");
    assert_eq!(client.client_id(), "c-17");
    let mut sender = Client::connect(&server.ws_url()).await;
    let accepted = sender.tell("c-17", json!("hi")).await;
    assert_on_its_way(&accepted["data"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_ids_both_are_generated() {
    let server = hub("").await;
    let mut seen = BTreeSet::new();
    for _ in 0..5 {
        let client = Client::connect(&server.ws_url()).await;
        assert!(is_uuid_v7(client.client_id()), "{:?}", client.connected());
        assert!(!client.user_id().is_empty());
        assert!(seen.insert(client.user_id().to_owned()));
        assert!(seen.insert(client.session().to_owned()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_are_any_text_of_up_to_128_bytes_compared_byte_for_byte() {
    let server = hub("").await;
    let long = "x".repeat(128);
    let wide = "ü".repeat(64);
    let ids = [
        "a",
        long.as_str(),
        wide.as_str(),
        "a b&c=d/e?f#g%h",
        "日本語 🦀",
        "A",
        "u\u{308}",
        "ü",
        "-_.~",
        "wsc",
        "_x",
        "x__",
        "anon",
    ];
    let mut clients = Vec::new();
    for id in ids {
        let client = connect_query(&server, &[("user_id", id), ("client_id", id)]).await;
        assert_eq!(client.user_id(), id);
        assert_eq!(client.client_id(), id);
        clients.push(client);
    }
    expect_clients(&server, ids.len() as i64).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_ids_are_refused() {
    let server = hub("").await;
    let long = "x".repeat(129);
    let wide = "ü".repeat(65);
    let bad = [
        String::new(),
        long,
        encode(&wide),
        "%00".to_owned(),
        "a%0Ab".to_owned(),
        "a%1Fb".to_owned(),
        "a%7Fb".to_owned(),
        "a%C2%85b".to_owned(),
        "%FF".to_owned(),
        "%ED%A0%80".to_owned(),
        "__root".to_owned(),
        "wsc.hub".to_owned(),
        "anon:1".to_owned(),
        "anon%3A1".to_owned(),
    ];
    for name in ["user_id", "client_id"] {
        for id in &bad {
            for protocol in ["wsc.v1", "other"] {
                let target = format!("/ws?{name}={id}");
                let response = upgrade(&server, &target, |h| h.add("Sec-WebSocket-Protocol", protocol)).await;
                assert_refused(&response, 400, 1001);
            }
        }
    }
    expect_clients(&server, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_ids_are_refused_in_headers_too() {
    let server = hub("").await;
    let long = "x".repeat(129);
    for (header, value) in [
        ("X-User-ID", "__root"),
        ("X-User-ID", "anon:1"),
        ("X-Client-ID", "wsc.hub"),
        ("X-Client-ID", long.as_str()),
        ("X-Device-ID", long.as_str()),
        ("X-User-Type", "root"),
    ] {
        let response = upgrade(&server, "/ws", |h| h.add(header, value)).await;
        assert_refused(&response, 400, 1001);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_user_type_is_known_and_no_other() {
    let server = hub("").await;
    let types = ["visitor", "customer", "agent", "admin", "bot", "vip", "system", "observer"];
    let mut clients = Vec::new();
    for kind in types {
        clients.push(connect_query(&server, &[("user_id", kind), ("user_type", kind)]).await);
        assert_eq!(listed(&server, kind).await["user_type"], kind);
    }
    let _plain = connect_query(&server, &[("user_id", "plain")]).await;
    assert_eq!(listed(&server, "plain").await["user_type"], "visitor");

    let response = upgrade(&server, "/ws?user_type=root", |h| h).await;
    assert_refused(&response, 400, 1001);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_user_and_client_id_replaces_the_older_connection() {
    let server = hub("").await;
    let mut old = Client::connect(&server.ws_url_for("alice", "phone")).await;
    old.join("r1").await;
    let mut new = Client::connect(&server.ws_url_for("alice", "phone")).await;
    assert_closed(&old.expect_close().await, 3502);
    assert_ne!(old.session(), new.session());

    let mut bob = Client::connect(&server.ws_url_as("bob")).await;
    bob.tell("alice", json!(1)).await;
    assert_eq!(new.expect("direct_message").await["data"]["content"], 1);
    new.expect_quiet().await;

    // Membership belonged to the connection that is gone.
    bob.join("r1").await;
    assert_eq!(bob.say("r1", json!(1)).await["data"]["recipients"], 0);
    new.join("r1").await;
    assert_eq!(bob.say("r1", json!(2)).await["data"]["recipients"], 1);
    expect_clients(&server, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_replacements_leave_one_connection_that_gets_one_copy() {
    let server = hub("").await;
    let mut last = Client::connect(&server.ws_url_for("alice", "phone")).await;
    for _ in 0..10 {
        let next = Client::connect(&server.ws_url_for("alice", "phone")).await;
        assert_closed(&last.expect_close().await, 3502);
        last = next;
    }
    let mut bob = Client::connect(&server.ws_url_as("bob")).await;
    bob.tell("alice", json!("once")).await;
    last.expect("direct_message").await;
    last.expect_quiet().await;
    expect_clients(&server, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_client_ids_of_different_users_do_not_meet() {
    let server = hub("").await;
    let mut alice = Client::connect(&server.ws_url_for("alice", "phone")).await;
    let mut bob = Client::connect(&server.ws_url_for("bob", "phone")).await;
    alice.expect_quiet().await;
    bob.tell("alice", json!("hi")).await;
    let delivery = alice.expect("direct_message").await;
    assert_eq!(delivery["data"]["sender_id"], "bob");
    bob.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generated_client_id_lets_a_user_have_many_devices() {
    let server = hub("").await;
    let mut devices = Vec::new();
    for _ in 0..3 {
        devices.push(Client::connect(&server.ws_url_as("alice")).await);
    }
    let mut bob = Client::connect(&server.ws_url_as("bob")).await;
    let accepted = bob.tell("alice", json!("hi")).await;
    for device in &mut devices {
        let delivery = device.expect("direct_message").await;
        assert_eq!(delivery["id"], accepted["data"]["id"]);
        device.expect_quiet().await;
    }
}
