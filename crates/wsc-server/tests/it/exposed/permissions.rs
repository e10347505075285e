//! What each permission opens on the socket, and what it does not.

use serde_json::{Value, json};
use wsc_testkit::{Client, ServerProcess};

use super::{admin, call_ok, connect, direct, enter, guarded, join, token};

/// Every permission there is.
pub(super) const ALL: [&str; 8] = [
    "read:message",
    "send:message",
    "create:room",
    "delete:room",
    "join:room",
    "leave:room",
    "admin:room",
    "admin:system",
];

/// Makes a room that lasts.
async fn room(server: &ServerProcess, id: &str) {
    call_ok(server, "POST", "/api/rooms", &admin(), Some(&json!({"id": id}))).await;
}

fn say(room: &str) -> Value {
    json!({"message_type": "room_message", "data": {"room_id": room, "content": 1}})
}

fn about_room(message_type: &str, room: &str) -> Value {
    json!({"message_type": message_type, "data": {"room_id": room}})
}

/// The code of the error that answers this request; 0 where it worked.
async fn code(client: &mut Client, request: &Value) -> i64 {
    let reply = client.request(request.clone()).await;
    if reply["message_type"] == "error" { reply["data"]["code"].as_i64().unwrap() } else { 0 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_permission_opens_what_it_names_and_nothing_else() {
    let server = guarded("", "").await;
    let mut bob = enter(&server, "bob").await;
    for (n, held) in ALL.into_iter().enumerate() {
        for id in ["hall", "hut", "gone"] {
            room(&server, &format!("{id}-{n}")).await;
        }
        let mut client = connect(&server, &token(&format!("user-{n}"), &[held])).await;
        let is = |names: &[&str]| held == "admin:system" || names.contains(&held);
        // What it may do is done (0), or fails for a reason that comes after the permission.
        for (request, opened_by, otherwise) in [
            (json!({"message_type": "ping"}), &ALL[..], 0),
            (join(&format!("hall-{n}")), &["join:room"][..], 0),
            // Auto-creation needs both.
            (join(&format!("new-{n}")), &["join:room"], if held == "admin:system" { 0 } else { 3000 }),
            (about_room("create_room", &format!("made-{n}")), &["create:room"], 0),
            (about_room("delete_room", &format!("gone-{n}")), &["delete:room"], 0),
            // Who may not join is no member.
            (say(&format!("hut-{n}")), &["send:message"], 3003),
            (direct("bob", &json!(n)), &["send:message"], 0),
            (about_room("leave_room", &format!("hut-{n}")), &ALL[..], 3003),
        ] {
            let expected = if is(opened_by) { otherwise } else { 2001 };
            assert_eq!(code(&mut client, &request).await, expected, "{held}: {request}");
        }
        let members = about_room("room_members", &format!("hut-{n}"));
        let got = code(&mut client, &members).await;
        let expected: &[i64] = if is(&["admin:room"]) { &[0] } else { &[2001, 3003] };
        assert!(expected.contains(&got), "{held}: {members}: {got}");
        if is(&["send:message"]) {
            assert_eq!(bob.expect("direct_message").await["data"]["content"], n);
        }
        bob.expect_quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patterns_narrow_a_permission_to_rooms() {
    let server = guarded("", "").await;
    for id in ["support-1", "support-", "support", "Support-1", "xsupport-1", "lobby", "@bob", "support-*"] {
        room(&server, id).await;
    }
    for (pattern, open) in [
        ("support-1", &["support-1"][..]),
        ("support-*", &["support-1", "support-", "support-*"]),
        ("*", &["support-1", "support-", "support", "Support-1", "xsupport-1", "lobby", "@bob", "support-*"]),
        ("lobby", &["lobby"]),
    ] {
        for id in ["support-1", "support-", "support", "Support-1", "xsupport-1", "lobby", "support-*"] {
            let permission = format!("join:room:{pattern}");
            let mut client = connect(&server, &token("alice", &[&permission])).await;
            let expected = if open.contains(&id) { 0 } else { 2001 };
            assert_eq!(code(&mut client, &join(id)).await, expected, "{permission} on {id}");
            client.close().await;
        }
    }
    let held = ["create:room:mine-*", "delete:room:mine-1", "join:room:mine-*", "send:message:mine-1"];
    let mut client = connect(&server, &token("alice", &held)).await;
    for (request, expected) in [
        (about_room("create_room", "yours-1"), 2001),
        (about_room("create_room", "mine-1"), 0),
        (about_room("create_room", "mine-2"), 0),
        (join("mine-1"), 0),
        (join("mine-2"), 0),
        (join("mine-3"), 0),
        (join("yours-3"), 2001),
        (say("mine-1"), 0),
        (say("mine-2"), 2001),
        (direct("mine-1", &json!(1)), 2001),
        (about_room("delete_room", "mine-2"), 2001),
        (about_room("delete_room", "mine-1"), 0),
        (about_room("delete_room", "lobby"), 2001),
    ] {
        assert_eq!(code(&mut client, &request).await, expected, "{request}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_and_rooms_of_one_name_are_told_apart() {
    let server = guarded("", "").await;
    let mut bob = enter(&server, "bob").await;
    let _carol = enter(&server, "carol").await;
    for id in ["bob", "@bob"] {
        room(&server, id).await;
    }
    for (held, to_bob, to_carol, to_room_bob, to_room_at_bob) in [
        ("send:message:@bob", 0, 2001, 2001, 2001),
        ("send:message:bob", 2001, 2001, 0, 2001),
        ("send:message:@*", 0, 0, 2001, 2001),
        ("send:message", 0, 0, 0, 0),
    ] {
        let mut alice = connect(&server, &token("alice", &[held, "join:room"])).await;
        for id in ["bob", "@bob"] {
            alice.join(id).await;
        }
        for (request, expected) in [
            (direct("bob", &json!(1)), to_bob),
            (direct("carol", &json!(1)), to_carol),
            (say("bob"), to_room_bob),
            (say("@bob"), to_room_at_bob),
        ] {
            assert_eq!(code(&mut alice, &request).await, expected, "{held}: {request}");
        }
        alice.close().await;
    }
    for _ in 0..3 {
        bob.expect("direct_message").await;
    }
    bob.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_permissions_grant_nothing() {
    let server = guarded("", "").await;
    room(&server, "r1").await;
    for text in [
        "",
        "*",
        "join",
        "join:",
        "join:room:",
        "join:*",
        "*:room",
        "JOIN:ROOM",
        " join:room",
        "join:room ",
        "join:room:*1",
        "join:room:r*1",
        "join:rooms",
        "admin:*",
        "admin:system:*",
        "join:room\u{0}",
        "join:room,admin:system",
    ] {
        let mut client = connect(&server, &token("alice", &[text])).await;
        assert_eq!(code(&mut client, &join("r1")).await, 2001, "{text:?}");
        let answer = super::call(&server, "GET", "/api/stats", &token("alice", &[text]), None).await;
        assert_eq!(answer.status, 403, "{text:?}");
        client.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_see_each_other_and_only_room_admins_see_devices() {
    let server = guarded("", "").await;
    let mut alice = enter(&server, "alice").await;
    let mut bob = connect(&server, &token("bob", &["join:room", "admin:room"])).await;
    let mut eve = enter(&server, "eve").await;
    alice.join("r1").await;
    bob.join("r1").await;
    let seen = alice.request_ok(about_room("room_members", "r1"), "room_members").await;
    assert!(
        seen["data"]["members"].as_array().unwrap().iter().all(|member| member.get("client_id").is_none()),
        "{seen}"
    );
    let seen = bob.request_ok(about_room("room_members", "r1"), "room_members").await;
    assert!(seen["data"]["members"].as_array().unwrap().iter().all(|member| member["client_id"].is_string()), "{seen}");
    assert!(matches!(code(&mut eve, &about_room("room_members", "r1")).await, 2001 | 3003));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permission_is_asked_before_anything_is_told() {
    let server = guarded("", "rooms: {max_clients: 1}").await;
    room(&server, "full").await;
    let mut bob = enter(&server, "bob").await;
    bob.join("full").await;
    let mut eve = connect(&server, &token("eve", &["join:room:mine"])).await;
    // Whether the room exists, and is full, is none of her business.
    for id in ["full", "no-such-room"] {
        for request in [join(id), say(id), about_room("delete_room", id), about_room("create_room", id)] {
            assert_eq!(code(&mut eve, &request).await, 2001, "{request}");
        }
    }
    // Nor whether a user is there.
    for user in ["bob", "nobody"] {
        assert_eq!(code(&mut eve, &direct(user, &json!(1))).await, 2001);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_authentication_nobody_on_a_socket_is_an_admin() {
    let server = crate::support::hub("").await;
    let mut alice = Client::connect(&server.ws_url_as("alice")).await;
    let mut bob = Client::connect(&server.ws_url_as("bob")).await;
    bob.join("r1").await;
    assert!(matches!(code(&mut alice, &about_room("room_members", "r1")).await, 2001 | 3003));
    alice.join("r1").await;
    let seen = alice.request_ok(about_room("room_members", "r1"), "room_members").await;
    assert!(
        seen["data"]["members"].as_array().unwrap().iter().all(|member| member.get("client_id").is_none()),
        "{seen}"
    );
}
