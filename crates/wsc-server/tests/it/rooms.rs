//! Rooms over the socket: their life, their members, their messages.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use wsc_testkit::{Client, Inbound, eventually};

use crate::support::{assert_fields, hub, room};

fn request(kind: &str, room_id: &str) -> Value {
    json!({"message_type": kind, "data": {"room_id": room_id}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn join_and_leave_answer_with_the_room() {
    let server = hub("").await;
    let mut client = Client::connect(&server.ws_url()).await;
    let joined = client.join("r1").await;
    assert_fields(&joined, &["message_type", "request_id", "data", "timestamp"]);
    assert_eq!(joined["data"], json!({"room_id": "r1", "status": "joined"}));
    let left = client.leave("r1").await;
    assert_eq!(left["data"], json!({"room_id": "r1", "status": "left"}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joining_twice_is_an_error() {
    let server = hub("").await;
    let mut client = Client::connect(&server.ws_url()).await;
    client.join("r1").await;
    client.request_error(request("join_room", "r1"), 3004).await;
    client.leave("r1").await;
    client.join("r1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn membership_is_of_the_connection_not_of_the_user() {
    let server = hub("").await;
    let mut phone = Client::connect(&server.ws_url_as("alice")).await;
    let mut laptop = Client::connect(&server.ws_url_as("alice")).await;
    phone.join("r1").await;
    laptop.request_error(request("leave_room", "r1"), 3003).await;
    laptop.join("r1").await;
    let accepted = phone.say("r1", json!("to myself")).await;
    assert_eq!(accepted["data"]["recipients"], 1);
    assert_eq!(laptop.expect("room_message").await["data"]["sender_id"], "alice");
    phone.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_to_a_room_can_do_nothing_in_it() {
    let server = hub("").await;
    let mut member = Client::connect(&server.ws_url()).await;
    let mut stranger = Client::connect(&server.ws_url()).await;
    member.join("r1").await;
    for kind in ["leave_room", "room_message", "room_members"] {
        stranger.request_error(request(kind, "r1"), 3003).await;
    }
    // Errors are told without a message id, too.
    stranger.send(&request("room_message", "r1")).await;
    stranger.expect_error(3003).await;
    member.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_room_is_not_found() {
    let server = hub("").await;
    let mut client = Client::connect(&server.ws_url()).await;
    for kind in ["leave_room", "room_message", "room_members", "delete_room"] {
        client.request_error(request(kind, "nowhere"), 3000).await;
    }
    assert_eq!(room(&server, "nowhere").await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_room_is_not_made_when_that_is_switched_off() {
    let server = hub("rooms: {auto_create: false}").await;
    let mut client = Client::connect(&server.ws_url()).await;
    client.request_error(request("join_room", "r1"), 3000).await;
    client.request_ok(request("create_room", "r1"), "room_created").await;
    client.join("r1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_made_by_a_join_goes_with_its_last_member() {
    let server = hub("").await;
    let mut alice = Client::connect(&server.ws_url()).await;
    let mut bob = Client::connect(&server.ws_url()).await;
    alice.join("r1").await;
    bob.join("r1").await;
    alice.leave("r1").await;
    assert_eq!(room(&server, "r1").await.unwrap()["member_count"], 1);
    bob.leave("r1").await;
    assert_eq!(room(&server, "r1").await, None);
    bob.request_error(request("leave_room", "r1"), 3000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_connection_leaves_its_rooms() {
    let server = hub("").await;
    let mut alice = Client::connect(&server.ws_url()).await;
    let mut bob = Client::connect(&server.ws_url()).await;
    alice.join("shared").await;
    alice.join("own").await;
    bob.join("shared").await;
    alice.cut();
    eventually("the room of the lost connection goes", async || room(&server, "own").await.is_none().then_some(()))
        .await;
    assert_eq!(bob.say("shared", json!(1)).await["data"]["recipients"], 0);
    assert_eq!(room(&server, "shared").await.unwrap()["member_count"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_created_room_stays_and_has_no_member_yet() {
    let server = hub("").await;
    let mut client = Client::connect(&server.ws_url()).await;
    let create = json!({"message_type": "create_room", "data": {"room_id": "r1", "name": "Room one"}});
    let created = client.request_ok(create.clone(), "room_created").await;
    assert_eq!(created["data"], json!({"room_id": "r1"}));
    client.request_error(create, 3001).await;
    client.request_error(request("room_message", "r1"), 3003).await;
    client.join("r1").await;
    client.leave("r1").await;
    let listed = room(&server, "r1").await.unwrap();
    assert_eq!(listed["name"], "Room one");
    assert_eq!(listed["member_count"], 0);
    client.request_error(request("create_room", "r1"), 3001).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creating_a_room_that_a_join_made_is_an_error() {
    let server = hub("").await;
    let mut client = Client::connect(&server.ws_url()).await;
    client.join("r1").await;
    client.request_error(request("create_room", "r1"), 3001).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_holds_so_many_members_and_no_more() {
    let server = hub("").await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(Client::connect(&server.ws_url()).await);
    }
    let create = json!({"message_type": "create_room", "data": {"room_id": "r1", "max_clients": 2}});
    clients[0].request_ok(create, "room_created").await;
    clients[0].join("r1").await;
    clients[1].join("r1").await;
    clients[2].request_error(request("join_room", "r1"), 3002).await;
    // Being in is looked at before being full.
    clients[1].request_error(request("join_room", "r1"), 3004).await;
    clients[0].leave("r1").await;
    clients[2].join("r1").await;
    assert_eq!(room(&server, "r1").await.unwrap()["member_count"], 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rooms_made_by_a_join_take_the_limit_of_the_settings() {
    let server = hub("rooms: {max_clients: 1}").await;
    let mut alice = Client::connect(&server.ws_url()).await;
    let mut bob = Client::connect(&server.ws_url()).await;
    alice.join("r1").await;
    bob.request_error(request("join_room", "r1"), 3002).await;
    alice.leave("r1").await;
    bob.join("r1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_that_is_no_number_is_refused() {
    let server = hub("").await;
    let mut client = Client::connect(&server.ws_url()).await;
    for max in [json!(-1), json!("2"), json!(1.5)] {
        let data = json!({"room_id": "r1", "max_clients": max});
        client.request_error(json!({"message_type": "create_room", "data": data}), 1001).await;
    }
    assert_eq!(room(&server, "r1").await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleting_a_room_tells_its_members() {
    let server = hub("").await;
    let mut alice = Client::connect(&server.ws_url()).await;
    let mut bob = Client::connect(&server.ws_url()).await;
    let mut owner = Client::connect(&server.ws_url()).await;
    alice.join("r1").await;
    bob.join("r1").await;
    let deleted = owner.request_ok(request("delete_room", "r1"), "room_deleted").await;
    assert_eq!(deleted["data"], json!({"room_id": "r1"}));
    for member in [&mut alice, &mut bob] {
        let notice = member.expect("room_deleted").await;
        assert_eq!(notice["data"]["room_id"], "r1");
        assert_eq!(notice.get("request_id"), None);
        member.request_error(request("room_message", "r1"), 3000).await;
    }
    owner.request_error(request("delete_room", "r1"), 3000).await;
    // The name is free again, and nobody is in it.
    alice.join("r1").await;
    assert_eq!(alice.say("r1", json!(1)).await["data"]["recipients"], 0);
    bob.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_listed_in_pages() {
    let server = hub("").await;
    let mut clients = Vec::new();
    let mut expected = BTreeSet::new();
    for at in 0..7 {
        let user = format!("user-{at}");
        let mut client = Client::connect(&server.ws_url_as(&user)).await;
        client.join("r1").await;
        clients.push(client);
        expected.insert(user);
    }
    let reader = &mut clients[0];
    let all = reader.request_ok(request("room_members", "r1"), "room_members").await;
    assert_fields(&all["data"], &["room_id", "members", "total"]);
    assert_eq!(all["data"]["room_id"], "r1");
    assert_eq!(all["data"]["total"], 7);
    assert_eq!(all["data"]["members"].as_array().unwrap().len(), 7);
    // Client ids are for administrators.
    assert_fields(&all["data"]["members"][0], &["user_id"]);

    let mut seen = BTreeSet::new();
    let mut cursor = None;
    let mut pages = 0;
    loop {
        let mut data = json!({"room_id": "r1", "limit": 3});
        if let Some(cursor) = &cursor {
            data["cursor"] = json!(cursor);
        }
        let page = reader.request_ok(json!({"message_type": "room_members", "data": data}), "room_members").await;
        assert_eq!(page["data"]["total"], 7);
        let members = page["data"]["members"].as_array().unwrap();
        assert!(members.len() <= 3, "{page}");
        for member in members {
            let user = member["user_id"].as_str().unwrap().to_owned();
            assert!(seen.insert(user), "twice in {page}");
        }
        pages += 1;
        match page["data"]["next_cursor"].as_str() {
            Some(next) => cursor = Some(next.to_owned()),
            None => break,
        }
        assert!(pages < 10, "the pages do not end: {page}");
    }
    assert_eq!(seen, expected);
    assert_eq!(pages, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_may_be_in_so_many_rooms() {
    let server = hub("limits: {rooms_per_connection: 2}").await;
    let mut alice = Client::connect(&server.ws_url()).await;
    let mut bob = Client::connect(&server.ws_url()).await;
    alice.join("r1").await;
    alice.join("r2").await;
    alice.request_error(request("join_room", "r3"), 3005).await;
    assert_eq!(room(&server, "r3").await, None);
    bob.join("r3").await;
    alice.leave("r1").await;
    alice.join("r3").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sender_gets_no_copy_and_the_others_one() {
    let server = hub("").await;
    let mut alice = Client::connect(&server.ws_url_as("alice")).await;
    let mut bob = Client::connect(&server.ws_url_as("bob")).await;
    let mut carol = Client::connect(&server.ws_url_as("carol")).await;
    for client in [&mut alice, &mut bob, &mut carol] {
        client.join("r1").await;
    }
    let accepted = alice.say("r1", json!({"text": "hi"})).await;
    assert_fields(&accepted["data"], &["id", "recipients"]);
    assert_eq!(accepted["data"]["recipients"], 2);
    for client in [&mut bob, &mut carol] {
        let delivery = client.expect("room_message").await;
        assert_eq!(delivery["id"], accepted["data"]["id"]);
        client.expect_quiet().await;
    }
    alice.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_message_is_answered_only_when_it_has_an_id() {
    let server = hub("").await;
    let mut alice = Client::connect(&server.ws_url()).await;
    let mut bob = Client::connect(&server.ws_url()).await;
    alice.join("r1").await;
    bob.join("r1").await;
    let data = json!({"room_id": "r1", "content": "hi"});
    alice.send(&json!({"message_type": "room_message", "data": data})).await;
    bob.expect("room_message").await;
    alice.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_one_sender_keep_their_order() {
    let server = hub("").await;
    let mut alice = Client::connect(&server.ws_url()).await;
    let mut bob = Client::connect(&server.ws_url()).await;
    alice.join("r1").await;
    bob.join("r1").await;
    for n in 0..500 {
        let data = json!({"room_id": "r1", "content": n});
        alice.send(&json!({"message_type": "room_message", "data": data})).await;
    }
    for n in 0..500 {
        assert_eq!(bob.expect("room_message").await["data"]["content"], n);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_comes_before_joined_or_after_left() {
    let server = hub("").await;
    let mut talker = Client::connect(&server.ws_url()).await;
    let mut guest = Client::connect(&server.ws_url()).await;
    talker.join("r1").await;
    let talk = async {
        for n in 0..2_000 {
            let data = json!({"room_id": "r1", "content": n});
            let message = json!({"message_type": "room_message", "data": data});
            talker.send(&message).await;
        }
        talker.barrier().await;
    };
    let visit = async {
        for _ in 0..20 {
            guest.expect_quiet().await;
            let start = guest.seen().len();
            guest.join("r1").await;
            let first = &guest.seen()[start];
            assert!(is(first, "room_joined"), "{first:?} before joining");
            guest.barrier().await;
            guest.leave("r1").await;
            guest.barrier().await;
            let left = guest.seen().iter().rposition(|frame| is(frame, "room_left"));
            let after = &guest.seen()[left.unwrap() + 1..];
            assert_eq!(after.len(), 1, "{after:?} after leaving");
        }
    };
    tokio::join!(talk, visit);
}

fn is(frame: &Inbound, message_type: &str) -> bool {
    let Inbound::Text(text) = frame else {
        return false;
    };
    let value: Value = serde_json::from_str(text).unwrap();
    value["message_type"] == message_type
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rooms_do_not_hear_each_other() {
    let server = hub("").await;
    let mut alice = Client::connect(&server.ws_url()).await;
    let mut bob = Client::connect(&server.ws_url()).await;
    alice.join("r1").await;
    alice.join("r2").await;
    bob.join("r2").await;
    assert_eq!(alice.say("r1", json!("one")).await["data"]["recipients"], 0);
    assert_eq!(alice.say("r2", json!("two")).await["data"]["recipients"], 1);
    assert_eq!(bob.expect("room_message").await["data"]["room_id"], "r2");
    bob.expect_quiet().await;
}
