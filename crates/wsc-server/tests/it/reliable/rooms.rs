//! Reliable messages to rooms: one fate for each user.

use serde_json::{Value, json};
use wsc_testkit::{Client, ServerProcess};

use super::{connect, expect_outcome, fate, leave, text};
use crate::support::{assert_fields, assert_refused, hub};

async fn member(server: &ServerProcess, user: &str) -> Client {
    let mut client = connect(server, user).await;
    client.join("r1").await;
    client
}

fn to_room(content: &Value) -> Value {
    json!({"message_type": "room_message", "require_ack": true, "data": {"room_id": "r1", "content": content}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_user_has_a_fate_of_its_own() {
    let server = hub("").await;
    let mut alice = member(&server, "alice").await;
    let mut bob = member(&server, "bob").await;
    let mut phone = member(&server, "carol").await;
    let mut laptop = member(&server, "carol").await;
    let mut stranger = connect(&server, "dave").await;
    let accepted = alice.request_ok(to_room(&json!({"n": 1})), "accepted").await;
    let id = text(&accepted["data"]["id"]);
    // Connections, as with every room message; the fates are of users.
    assert_eq!(accepted["data"]["recipients"], 3, "{accepted}");
    for client in [&mut bob, &mut phone, &mut laptop] {
        let delivery = client.expect_reliable("room_message").await;
        assert_fields(&delivery, &["id", "message_type", "data", "timestamp", "require_ack"]);
        assert_eq!(delivery["id"], id.as_str());
        assert_fields(&delivery["data"], &["room_id", "content", "sender_id", "timestamp"]);
        assert_eq!((&delivery["data"]["room_id"], &delivery["data"]["sender_id"]), (&json!("r1"), &json!("alice")));
    }
    laptop.ack(&[&id]).await;
    expect_outcome(&server, &id, "carol", "acked").await;
    assert_eq!(fate(&server, &id, "bob").await["outcome"], "pending");
    bob.send(&json!({"message_type": "nack", "data": {"id": id, "reason": "busy"}})).await;
    expect_outcome(&server, &id, "bob", "rejected").await;
    let status = json!({"message_type": "message_status", "data": {"id": id}});
    let told = alice.request_ok(status, "message_status").await;
    assert_eq!(told["data"]["recipients"].as_array().map(Vec::len), Some(2), "{told}");
    // Neither the sender nor a stranger.
    stranger.ack(&[&id]).await;
    for client in [&mut alice, &mut stranger, &mut phone] {
        client.expect_quiet().await;
    }
    let ledger = server.metrics().await.ledger();
    ledger.check();
    assert_eq!((ledger.accepted, ledger.acked, ledger.rejected), (2.0, 1.0, 1.0), "{ledger:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_a_member_at_acceptance_gets_it_later_too() {
    let mut server = hub("").await;
    let mut alice = member(&server, "alice").await;
    let bob = member(&server, "bob").await;
    let mut carol = member(&server, "carol").await;
    let accepted = alice.request_ok(to_room(&json!("old")), "accepted").await;
    let id = text(&accepted["data"]["id"]);
    carol.expect_reliable("room_message").await;
    carol.ack(&[&id]).await;
    expect_outcome(&server, &id, "carol", "acked").await;
    leave(&server, bob).await;
    expect_outcome(&server, &id, "bob", "stored").await;
    assert_eq!(server.terminate().await, 0);
    server.restart().await;
    // He need not join the room again: it is his message now.
    let mut bob = connect(&server, "bob").await;
    let delivery = bob.expect_reliable("room_message").await;
    assert_eq!((&delivery["id"], &delivery["source"]), (&json!(id), &json!("offline")), "{delivery}");
    assert_eq!((&delivery["data"]["room_id"], &delivery["data"]["content"]), (&json!("r1"), &json!("old")));
    bob.ack(&[&id]).await;
    bob.expect_quiet().await;
    connect(&server, "carol").await.expect_quiet().await;
    // Who joins later was not meant.
    member(&server, "dave").await.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reliable_room_message_has_only_so_many_recipients() {
    let server = hub("rooms: {max_reliable_recipients: 2}").await;
    let mut alice = member(&server, "alice").await;
    let mut others = Vec::new();
    for user in ["bob", "carol", "carol"] {
        others.push(member(&server, user).await);
    }
    // Users are counted, not connections; the sender is none of them.
    alice.request_ok(to_room(&json!(1)), "accepted").await;
    others.push(member(&server, "dave").await);
    let error = alice.request_error(to_room(&json!(2)), 4002).await;
    assert_eq!(error["data"]["details"]["limit"], 2, "{error}");
    let answer = server.post("/api/rooms/r1/messages", &json!({"content": 2, "require_ack": true})).await;
    assert_refused(&answer, 413, 4002);
    // A plain one may be for any number.
    alice.say("r1", json!(3)).await;
    for (at, client) in others.iter_mut().enumerate() {
        if at < 3 {
            assert_eq!(client.expect_reliable("room_message").await["data"]["content"], 1);
        }
        assert_eq!(client.expect("room_message").await["data"]["content"], 3);
        client.expect_quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_an_inbox_is_no_hindrance() {
    let server = hub("").await;
    let mut alice = member(&server, "alice").await;
    let mut bob = member(&server, "bob").await;
    let mut nameless = Client::connect(&server.ws_url()).await;
    nameless.join("r1").await;
    let accepted = alice.request_ok(to_room(&json!(1)), "accepted").await;
    let id = text(&accepted["data"]["id"]);
    bob.expect_reliable("room_message").await;
    bob.ack(&[&id]).await;
    expect_outcome(&server, &id, "bob", "acked").await;
    // Whether it is asked for an ACK or not: it sees the message.
    assert_eq!(nameless.expect("room_message").await["id"], id.as_str());
    server.metrics().await.ledger().check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_inbox_among_many_is_the_fate_of_that_user() {
    let server = hub("storage: {inbox_max_messages: 1}").await;
    let mut alice = member(&server, "alice").await;
    let mut bob = member(&server, "bob").await;
    let mut carol = member(&server, "carol").await;
    super::tell_with_outcome(&mut alice, "bob", json!("first"), "pending").await;
    assert_eq!(bob.expect_reliable("direct_message").await["data"]["content"], "first");
    let reply = alice.request(to_room(&json!("second"))).await;
    let ledger = server.metrics().await.ledger();
    ledger.check();
    match reply["message_type"].as_str() {
        // Refused as a whole: then nobody has it.
        Some("error") => {
            assert_eq!(reply["data"]["code"], 4003, "{reply}");
            carol.expect_quiet().await;
        }
        // Accepted: then Carol has it, and Bob's is known to have failed.
        Some("accepted") => {
            let id = text(&reply["data"]["id"]);
            assert_eq!(carol.expect_reliable("room_message").await["id"], id.as_str());
            let status = server.get(&format!("/api/messages/{id}")).await.json();
            let bobs = status["recipients"].as_array().unwrap().iter().find(|entry| entry["user_id"] == "bob").cloned();
            assert!(bobs.is_none_or(|fate| fate["outcome"] == "failed"), "{status}");
        }
        _ => panic!("{reply}"),
    }
    bob.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_to_a_room_can_be_reliable() {
    let server = hub("").await;
    let mut bob = member(&server, "bob").await;
    let answer = server.post("/api/rooms/r1/messages", &json!({"content": 1, "require_ack": true})).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let answer = answer.json();
    assert_eq!(answer["recipients"], 1, "{answer}");
    let delivery = bob.expect_reliable("room_message").await;
    assert_eq!((&delivery["id"], &delivery["data"]["sender_id"]), (&answer["id"], &json!("system")));
    bob.ack(&[&text(&answer["id"])]).await;
    expect_outcome(&server, &text(&answer["id"]), "bob", "acked").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reliable_message_to_an_empty_room_is_for_nobody() {
    let server = hub("").await;
    let mut alice = member(&server, "alice").await;
    let accepted = alice.request_ok(to_room(&json!(1)), "accepted").await;
    assert_eq!(accepted["data"]["recipients"], 0, "{accepted}");
    // Her other device is a member connection, but she is the sender.
    let mut laptop = member(&server, "alice").await;
    alice.request_ok(to_room(&json!(2)), "accepted").await;
    assert_eq!(laptop.expect("room_message").await["data"]["content"], 2);
    server.metrics().await.ledger().check();
}
