//! Programs that push: to users, to rooms, to everybody.

use serde_json::json;
use wsc_testkit::{Client, ConnectOptions, Inbound, ServerProcess};

use crate::support::{assert_fields, assert_on_its_way, assert_refused, hub, is_uuid_v7};

async fn connect(server: &ServerProcess, user: &str, kind: &str, protocols: &[&str]) -> Client {
    let options = ConnectOptions {
        query: &[("user_id", user), ("user_type", kind)],
        subprotocols: protocols,
        ..ConnectOptions::default()
    };
    Client::connect_with(&server.ws_url(), &options).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_reaches_every_device_of_the_user() {
    let server = hub("").await;
    let mut devices =
        [Client::connect(&server.ws_url_as("alice")).await, Client::connect(&server.ws_url_as("alice")).await];
    let answer = server.post("/api/users/alice/messages", &json!({"content": {"n": 1}})).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let answer = answer.json();
    assert_on_its_way(&answer);
    assert!(is_uuid_v7(answer["id"].as_str().unwrap()), "{answer}");
    for device in &mut devices {
        let delivery = device.expect("user_message").await;
        assert_fields(&delivery, &["id", "message_type", "data", "timestamp"]);
        assert_eq!(delivery["id"], answer["id"]);
        let data = &delivery["data"];
        assert_fields(data, &["content", "sender_id", "timestamp"]);
        assert_eq!(data["content"], json!({"n": 1}));
        assert_eq!(data["sender_id"], "system");
        assert_eq!(data["timestamp"], delivery["timestamp"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_may_name_its_type_and_its_sender() {
    let server = hub("").await;
    let mut alice = Client::connect(&server.ws_url_as("alice")).await;
    let body = json!({"content": 1, "message_type": "order_shipped", "sender_id": "shop"});
    let answer = server.post("/api/users/alice/messages", &body).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let delivery = alice.expect("order_shipped").await;
    assert_eq!(delivery["data"]["sender_id"], "shop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_cannot_pretend_to_be_the_hub() {
    let server = hub("").await;
    let mut alice = Client::connect(&server.ws_url_as("alice")).await;
    for kind in [
        "connected",
        "error",
        "accepted",
        "gap",
        "kick_out",
        "force_offline",
        "wsc.internal",
        "room_message",
        "direct_message",
        "ping",
        "pong",
        "room_joined",
        "ack",
    ] {
        let body = json!({"content": 1, "message_type": kind});
        let answer = server.post("/api/users/alice/messages", &body).await;
        assert_refused(&answer, 400, 1001);
    }
    alice.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_answered_in_its_order() {
    let server = hub("").await;
    let mut alice = Client::connect(&server.ws_url_as("alice")).await;
    let mut bob = Client::connect(&server.ws_url_as("bob")).await;
    let body = json!({"messages": [
        {"user_id": "alice", "content": 1},
        {"user_id": "nobody", "content": 2},
        {"user_id": "bob", "content": 3},
        {"user_id": "alice", "content": 4},
    ]});
    let answer = server.post("/api/messages/batch", &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = answer.json();
    let results = answer["results"].as_array().unwrap();
    assert_eq!(results.len(), 4, "{answer}");
    for at in [0, 2, 3] {
        assert_on_its_way(&results[at]);
    }
    assert_eq!(results[1]["outcome"], "stored", "{answer}");
    for content in [1, 4] {
        let delivery = alice.expect("user_message").await;
        assert_eq!(delivery["data"]["content"], content);
    }
    let delivery = bob.expect("user_message").await;
    assert_eq!(delivery["id"], results[2]["id"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_has_its_limit() {
    let server = hub("").await;
    let messages = |n| vec![json!({"user_id": "nobody", "content": 1}); n];
    let body = json!({"messages": messages(1_000)});
    let answer = server.post("/api/messages/batch", &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["results"].as_array().unwrap().len(), 1_000);
    let body = json!({"messages": messages(1_001)});
    let answer = server.post("/api/messages/batch", &body).await;
    assert!(matches!(answer.status, 400 | 413), "{answer:?}");
    answer.error_code();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_to_a_room_reaches_every_member() {
    let server = hub("").await;
    let mut members = Vec::new();
    for _ in 0..3 {
        let mut member = Client::connect(&server.ws_url()).await;
        member.join("r1").await;
        members.push(member);
    }
    let mut stranger = Client::connect(&server.ws_url()).await;
    let answer = server.post("/api/rooms/r1/messages", &json!({"content": "hi"})).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let answer = answer.json();
    assert_eq!(answer["recipients"], 3, "{answer}");
    for member in &mut members {
        let delivery = member.expect("room_message").await;
        assert_eq!(delivery["id"], answer["id"]);
        let data = &delivery["data"];
        assert_fields(data, &["room_id", "content", "sender_id", "timestamp"]);
        assert_eq!(data["room_id"], "r1");
        assert_eq!(data["content"], "hi");
        assert_eq!(data["sender_id"], "system");
        member.expect_quiet().await;
    }
    stranger.expect_quiet().await;

    let answer = server.post("/api/rooms/nowhere/messages", &json!({"content": 1})).await;
    assert_refused(&answer, 404, 3000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gohubs_path_for_a_room_works() {
    let server = hub("").await;
    let mut member = Client::connect(&server.ws_url()).await;
    member.join("r1").await;
    let body = json!({"room_id": "r1", "message": {"text": "hi"}});
    let answer = server.post("/api/broadcast/room", &body).await;
    assert!(matches!(answer.status, 200 | 202), "{answer:?}");
    let delivery = member.expect("room_message").await;
    assert_eq!(delivery["data"]["content"], json!({"text": "hi"}));
    let body = json!({"room_id": "nowhere", "message": 1});
    let answer = server.post("/api/broadcast/room", &body).await;
    assert_refused(&answer, 404, 3000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gohubs_broadcast_is_raw_text_for_its_own_clients() {
    let server = hub("").await;
    let mut old = connect(&server, "old", "visitor", &[]).await;
    let mut new = connect(&server, "new", "visitor", &["wsc.v1"]).await;
    for message in ["maintenance at noon", "{\"not\": parsed", "\"ü\" \\ \n"] {
        let answer = server.post("/api/broadcast", &json!({"message": message})).await;
        assert!((200..300).contains(&answer.status), "{answer:?}");
        assert_eq!(old.recv("the raw text").await, Inbound::Text(message.to_owned()));
        let delivery = new.expect("broadcast").await;
        assert_fields(&delivery, &["id", "message_type", "data", "timestamp"]);
        let data = &delivery["data"];
        assert_fields(data, &["content", "sender_id", "timestamp"]);
        assert_eq!(data["content"], message);
        assert_eq!(data["sender_id"], "system");
    }
    old.expect_quiet().await;
    new.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_broadcast_is_refused() {
    let server = hub("").await;
    let mut client = Client::connect(&server.ws_url()).await;
    for body in [json!({}), json!({"message": ""}), json!({"message": 7})] {
        let answer = server.post("/api/broadcast", &body).await;
        assert_refused(&answer, 400, 1001);
    }
    client.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broadcast_of_content_is_an_envelope_for_everybody() {
    let server = hub("").await;
    let mut old = connect(&server, "old", "visitor", &[]).await;
    let mut new = connect(&server, "new", "agent", &["wsc.v1"]).await;
    let answer = server.post("/api/broadcast", &json!({"content": {"at": "noon"}})).await;
    assert!((200..300).contains(&answer.status), "{answer:?}");
    for client in [&mut old, &mut new] {
        let delivery = client.expect("broadcast").await;
        assert_eq!(delivery["data"]["content"], json!({"at": "noon"}));
        client.expect_quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broadcast_may_be_for_one_type_of_user() {
    let server = hub("").await;
    let mut agents = [connect(&server, "a1", "agent", &["wsc.v1"]).await, connect(&server, "a2", "agent", &[]).await];
    let mut others = [connect(&server, "v", "vip", &["wsc.v1"]).await, connect(&server, "d", "visitor", &[]).await];
    let body = json!({"content": 1, "user_type": "agent"});
    let answer = server.post("/api/broadcast", &body).await;
    assert!((200..300).contains(&answer.status), "{answer:?}");
    for agent in &mut agents {
        agent.expect("broadcast").await;
    }
    // The next one goes to everybody and shows that the first did not.
    server.post("/api/broadcast", &json!({"content": 2})).await;
    for other in &mut others {
        assert_eq!(other.expect("broadcast").await["data"]["content"], 2);
    }
    let body = json!({"content": 1, "user_type": "root"});
    assert_refused(&server.post("/api/broadcast", &body).await, 400, 1001);
}
