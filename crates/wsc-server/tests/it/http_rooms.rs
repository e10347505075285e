//! Rooms over HTTP.

use serde_json::json;
use wsc_testkit::{Client, encode};

use crate::support::{assert_refused, entries, hub, room, rooms};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rooms_are_created_listed_and_deleted() {
    let server = hub("").await;
    let body = json!({"id": "r1", "name": "Room one", "max_clients": 5});
    let answer = server.post("/api/rooms", &body).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(answer.json(), json!({"status": "room created", "id": "r1"}));
    assert_refused(&server.post("/api/rooms", &body).await, 409, 3001);

    let listed = room(&server, "r1").await.unwrap();
    assert_eq!(listed["name"], "Room one");
    assert_eq!(listed["max_clients"], 5);
    assert_eq!(listed["member_count"], 0);

    let answer = server.delete("/api/rooms/r1").await;
    assert!((200..300).contains(&answer.status), "{answer:?}");
    assert_eq!(room(&server, "r1").await, None);
    assert_refused(&server.delete("/api/rooms/r1").await, 404, 3000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_of_rooms_is_an_array_as_gohub_had_it() {
    let server = hub("").await;
    server.post("/api/rooms", &json!({"id": "r1"})).await;
    let list = server.get("/api/rooms").await.json();
    assert!(list.is_array(), "{list}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_rooms_are_refused() {
    let server = hub("").await;
    let long = "x".repeat(129);
    for body in [
        json!({}),
        json!({"id": ""}),
        json!({"id": 7}),
        json!({"id": long}),
        json!({"id": "__r"}),
        json!({"id": "wsc.r"}),
        json!({"id": "a\nb"}),
        json!({"id": "r1", "max_clients": "many"}),
    ] {
        let answer = server.post("/api/rooms", &body).await;
        assert_refused(&answer, 400, 1001);
    }
    assert_eq!(rooms(&server).await.len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_of_the_api_outlives_its_members() {
    let server = hub("").await;
    server.post("/api/rooms", &json!({"id": "r1", "max_clients": 1})).await;
    let mut alice = Client::connect(&server.ws_url()).await;
    let mut bob = Client::connect(&server.ws_url()).await;
    alice.join("r1").await;
    let join = json!({"message_type": "join_room", "data": {"room_id": "r1"}});
    bob.request_error(join, 3002).await;
    alice.leave("r1").await;
    assert_eq!(room(&server, "r1").await.unwrap()["member_count"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleting_over_http_tells_the_members() {
    let server = hub("").await;
    let mut alice = Client::connect(&server.ws_url()).await;
    alice.join("r1").await;
    server.delete("/api/rooms/r1").await;
    let notice = alice.expect("room_deleted").await;
    assert_eq!(notice["data"]["room_id"], "r1");
    let message = json!({"message_type": "room_message", "data": {"room_id": "r1"}});
    alice.request_error(message, 3000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_listed_with_their_client_ids() {
    let server = hub("").await;
    let mut clients = Vec::new();
    for at in 0..3 {
        let mut client = Client::connect(&server.ws_url_for(&format!("u{at}"), "phone")).await;
        client.join("r1").await;
        clients.push(client);
    }
    let answer = server.get("/api/rooms/r1/members?limit=2").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let page = answer.json();
    assert_eq!(page["total"], 3, "{page}");
    let mut members = entries(&page, "members");
    assert_eq!(members.len(), 2, "{page}");
    let cursor = page["next_cursor"].as_str().unwrap();
    let path = format!("/api/rooms/r1/members?limit=2&cursor={}", encode(cursor));
    let page = server.get(&path).await.json();
    members.extend(entries(&page, "members"));
    assert_eq!(members.len(), 3, "{page}");
    assert!(page.get("next_cursor").is_none_or(|next| next.is_null()), "{page}");
    let mut users: Vec<_> = members.iter().map(|m| m["user_id"].to_string()).collect();
    users.sort();
    assert_eq!(users, ["\"u0\"", "\"u1\"", "\"u2\""]);
    assert!(members.iter().all(|m| m["client_id"] == "phone"), "{members:?}");

    let answer = server.get("/api/rooms/nowhere/members").await;
    assert_refused(&answer, 404, 3000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_is_added_and_removed_with_all_devices() {
    let server = hub("").await;
    server.post("/api/rooms", &json!({"id": "r1"})).await;
    let mut devices =
        [Client::connect(&server.ws_url_as("alice")).await, Client::connect(&server.ws_url_as("alice")).await];
    let path = "/api/rooms/r1/members/alice";
    let answer = server.http("POST", path, &[], None).await;
    assert!((200..300).contains(&answer.status), "{answer:?}");
    for device in &mut devices {
        let notice = device.expect("room_joined").await;
        assert_eq!(notice["data"], json!({"room_id": "r1", "status": "added"}));
        assert_eq!(notice.get("request_id"), None);
    }
    assert_eq!(devices[0].say("r1", json!(1)).await["data"]["recipients"], 1);
    devices[1].expect("room_message").await;

    let answer = server.delete(path).await;
    assert!((200..300).contains(&answer.status), "{answer:?}");
    for device in &mut devices {
        let notice = device.expect("room_left").await;
        assert_eq!(notice["data"]["room_id"], "r1");
        assert_eq!(notice["data"]["status"], "removed");
        assert!(notice["data"]["reason"].is_string(), "{notice}");
        let message = json!({"message_type": "room_message", "data": {"room_id": "r1"}});
        device.request_error(message, 3003).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_in_paths_are_percent_encoded() {
    let server = hub("").await;
    let room_id = "a/b c?ü#%";
    let user_id = "x/y z&ö";
    let mut client = Client::connect(&server.ws_url_as(user_id)).await;
    let answer = server.post("/api/rooms", &json!({"id": room_id})).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let path = format!("/api/rooms/{}/members/{}", encode(room_id), encode(user_id));
    let answer = server.http("POST", &path, &[], None).await;
    assert!((200..300).contains(&answer.status), "{answer:?}");
    let notice = client.expect("room_joined").await;
    assert_eq!(notice["data"]["room_id"], room_id);
    let path = format!("/api/rooms/{}/messages", encode(room_id));
    let answer = server.post(&path, &json!({"content": "hi"})).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let delivery = client.expect("room_message").await;
    assert_eq!(delivery["data"]["room_id"], room_id);
    let path = format!("/api/users/{}/messages", encode(user_id));
    let answer = server.post(&path, &json!({"content": "hi"})).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    client.expect("user_message").await;
    let answer = server.delete(&format!("/api/rooms/{}", encode(room_id))).await;
    assert!((200..300).contains(&answer.status), "{answer:?}");
    client.expect("room_deleted").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_ids_in_paths_are_refused() {
    let server = hub("").await;
    for id in ["__r", "anon%3Ar", "a%0Ab", "%FF"] {
        for path in [format!("/api/rooms/{id}/members"), format!("/api/users/{id}")] {
            let answer = server.get(&path).await;
            assert!(matches!(answer.status, 400 | 404), "{path}: {answer:?}");
        }
    }
}
