//! Lists and their parts.

use std::collections::BTreeSet;

use serde_json::json;

use crate::support::{assert_refused, hub};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rooms_come_in_parts() {
    let hub = hub("").await;
    for room in ["c", "a/ü", "b %", "d"] {
        assert_eq!(hub.post_json("/api/rooms", &json!({"id": room})).await.status, 201);
    }
    let mut seen = Vec::new();
    let mut path = "/api/rooms?limit=3".to_owned();
    loop {
        let answer = hub.get(&path).await;
        assert_eq!(answer.header("x-total-count"), Some("4"));
        let part = answer.json();
        seen.extend(part.as_array().unwrap().iter().map(|room| room["id"].as_str().unwrap().to_owned()));
        let Some(cursor) = answer.header("x-next-cursor") else { break };
        path = format!("/api/rooms?limit=3&cursor={}", wsc_testkit::encode(cursor));
        // What is gone does not shift the rest.
        hub.hub.delete_room("a/ü").unwrap();
        hub.hub.create_room("a/ü", wsc_node::RoomOptions::default()).unwrap();
    }
    assert_eq!(seen, ["a/ü", "b %", "c", "d"]);
    for query in ["limit=0", "limit=1001", "limit=-1", "limit=x"] {
        assert_refused(&hub.get(&format!("/api/rooms?{query}")).await, 400, 1001);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_of_the_connections_stays_while_others_go() {
    let hub = hub("").await;
    let mut clients = Vec::new();
    for user in 0..5 {
        clients.push(hub.connect(&format!("u{user}")).await);
    }
    let first = hub.get("/api/clients?limit=2").await.json();
    assert_eq!(first["clients"][0]["session"], clients[0].session());
    assert_eq!(first["clients"][1]["session"], clients[1].session());
    let gone = clients.remove(0);
    hub.hub.disconnect_user(gone.user_id(), "bye", false);
    wsc_testkit::eventually("one is gone", async || (hub.hub.connections() == 4).then_some(())).await;
    let path = format!("/api/clients?limit=2&cursor={}", first["next_cursor"].as_str().unwrap());
    let second = hub.get(&path).await.json();
    assert_eq!(second["clients"][0]["session"], clients[1].session(), "{second}");
    assert_eq!(second["clients"][1]["session"], clients[2].session(), "{second}");
    assert_eq!(second["total"], 4);
    assert_refused(&hub.get("/api/clients?cursor=x").await, 400, 1001);
    assert_refused(&hub.get("/api/clients?user_type=root").await, 400, 1001);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_explained() {
    let hub = hub("").await;
    let url = format!("ws://{}/ws?user_id=alice&client_id=phone&device_id=Pixel&user_type=agent", hub.addr);
    let mut alice = wsc_testkit::Client::connect(&url).await;
    alice.join("r1").await;
    let entry = hub.get("/api/clients/phone").await.json();
    for (field, value) in [
        ("session", json!(alice.session())),
        ("client_id", json!("phone")),
        ("user_id", json!("alice")),
        ("user_type", json!("agent")),
        ("device_id", json!("Pixel")),
        ("rooms", json!(["r1"])),
        ("queue_bytes", json!(0)),
        ("queued", json!(0)),
        ("speaks_v1", json!(false)),
    ] {
        assert_eq!(entry[field], value, "{field} of {entry}");
    }
    assert!(entry["connected_at"].as_u64().unwrap() > 1_500_000_000_000, "{entry}");
    assert!(entry["silent_for_ms"].is_u64(), "{entry}");
    let user = hub.get("/api/users/alice").await.json();
    assert_eq!(user["devices"][0]["session"], entry["session"]);
    let away = hub.get("/api/users/bob").await.json();
    let nothing = json!({"messages": 0, "bytes": 0});
    let nobody = json!({"user_id": "bob", "online": false, "devices": [], "inbox": nothing, "unacked": 0});
    assert_eq!(away, nobody);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_are_counted_and_remembered() {
    let hub = hub("storage: {kind: none}").await;
    for user in ["bob", "carol"] {
        let answer = hub.post_json(&format!("/api/users/{user}/messages"), &json!({"content": 1})).await;
        assert_eq!(answer.status, 202);
        let answer = answer.json();
        assert_eq!((&answer["outcome"], &answer["reason"]), (&json!("failed"), &json!("user_offline")));
    }
    let stats = hub.get("/health/failure-stats").await.json();
    assert_eq!((&stats["total_failures"], &stats["offline_count"]), (&json!(2), &json!(2)), "{stats}");
    let failures = hub.get("/debug/failures?limit=1").await.json();
    let newest = &failures["failures"].as_array().unwrap()[..];
    assert_eq!(newest.len(), 1);
    assert_eq!((&newest[0]["user_id"], &newest[0]["reason"]), (&json!("carol"), &json!("user_offline")));
    let users: BTreeSet<_> = hub.get("/debug/failures").await.json()["failures"]
        .as_array()
        .unwrap()
        .iter()
        .map(|failure| failure["user_id"].to_string())
        .collect();
    assert_eq!(users.len(), 2);
    let retry = hub.get("/health/retry-config").await.json();
    assert_eq!(retry["base_delay"], 100, "milliseconds: {retry}");
}
