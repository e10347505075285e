//! Clients that pretend to be somebody else, and reach for what is somebody else's.

use serde_json::{Value, json};
use wsc_testkit::{Client, ServerProcess, eventually};

use super::{TALK, authenticate, call, call_ok, direct, enter, guarded, metrics, token};
use crate::support::{assert_closed, assert_on_its_way};

async fn enter_as(server: &ServerProcess, user: &str, client_id: &str) -> Client {
    let url = format!(
        "{}{}",
        server.ws_url(),
        wsc_testkit::query(&[("token", &token(user, TALK)), ("client_id", client_id)])
    );
    Client::connect(&url).await
}

fn reliable(to: &str, content: &Value) -> Value {
    let mut message = direct(to, content);
    message["require_ack"] = json!(true);
    message
}

/// Sends a reliable message and takes it at the receiver; gives its id.
async fn sent_reliably(from: &mut Client, to: &mut Client, content: Value) -> String {
    from.request_ok(reliable(to.user_id(), &content), "accepted").await;
    let delivery = to.expect_reliable("direct_message").await;
    delivery["id"].as_str().unwrap().to_owned()
}

async fn outcome(from: &mut Client, id: &str) -> String {
    let status = json!({"message_type": "message_status", "data": {"id": id}});
    let status = from.request_ok(status, "message_status").await;
    status["data"]["recipients"][0]["outcome"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stolen_client_id_replaces_nobody() {
    let server = guarded("", "").await;
    let mut alice = enter_as(&server, "alice", "phone").await;
    let mut mallory = enter_as(&server, "mallory", "phone").await;
    alice.expect_quiet().await;
    let mut bob = enter(&server, "bob").await;
    let mut named = direct("alice", &json!("for the phone"));
    named["data"]["target_client"] = json!("phone");
    assert_on_its_way(&bob.request_ok(named, "accepted").await["data"]);
    alice.expect("direct_message").await;
    mallory.expect_quiet().await;
    // A session is public and no credential: as a client id it is a name like any other.
    let mut again = enter_as(&server, "mallory", alice.session()).await;
    alice.expect_quiet().await;
    again.expect_quiet().await;
    // The user herself may.
    let _new = enter_as(&server, "alice", "phone").await;
    assert_closed(&alice.expect_close().await, 3502);
    mallory.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identity_in_a_frame_is_not_read() {
    let server = guarded("", "").await;
    let mut mallory = enter(&server, "mallory").await;
    let mut bob = enter(&server, "bob").await;
    let mut carol = enter(&server, "carol").await;
    for client in [&mut mallory, &mut bob] {
        client.join("r1").await;
    }
    let lies = json!({
        "sender": "alice", "sender_id": "alice", "user_id": "alice", "client_id": "alice", "session": bob.session(),
        "id": "01900000-0000-7000-8000-000000000000", "timestamp": 1, "source": "offline", "attempt": 7,
        "user_type": "system", "permissions": ["admin:system"], "echo": true, "request_id": 5,
    });
    for (request, message_type) in [
        (json!({"message_type": "room_message", "data": {"room_id": "r1", "content": 1}}), "room_message"),
        (direct("bob", &json!(1)), "direct_message"),
    ] {
        let mut request = request;
        for (name, value) in lies.as_object().unwrap() {
            request[name] = value.clone();
            request["data"][name] = value.clone();
        }
        let accepted = mallory.request_ok(request, "accepted").await;
        let delivery = bob.expect(message_type).await;
        assert_eq!(delivery["data"]["sender_id"], "mallory", "{delivery}");
        assert_eq!(delivery["id"], accepted["data"]["id"], "{delivery}");
        assert_ne!(delivery["id"], lies["id"], "{delivery}");
        assert!(delivery["timestamp"].as_u64().unwrap() > 1_000_000_000_000, "{delivery}");
        for absent in ["source", "attempt", "user_id", "session", "permissions"] {
            assert_eq!(delivery.get(absent), None, "{delivery}");
        }
        for absent in ["user_type", "permissions", "session", "client_id", "echo"] {
            assert_eq!(delivery["data"].get(absent), None, "{delivery}");
        }
    }
    // A high priority is not a client's to give.
    let mut urgent = direct("bob", &json!(2));
    urgent["priority"] = json!("high");
    mallory.request(urgent).await;
    for delivery in bob.barrier().await {
        assert_eq!(delivery.get("priority"), None, "{delivery}");
    }
    carol.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_the_hub_says_a_client_cannot() {
    let server = guarded("", "").await;
    let mut mallory = enter(&server, "mallory").await;
    let mut bob = enter(&server, "bob").await;
    for name in [
        "connected",
        "accepted",
        "error",
        "pong",
        "gap",
        "kick_out",
        "force_offline",
        "token_expiring",
        "room_joined",
        "room_left",
        "room_deleted",
        "user_message",
        "broadcast",
        "authenticated",
        "message_outcome",
        "wsc.x",
        "__proto__",
    ] {
        let forged = json!({"message_type": name, "data": {"room_id": "r1", "target_id": "bob", "user_id": "bob", "reason": "x"}});
        mallory.request_error(forged, 1001).await;
    }
    bob.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acks_of_others_settle_nothing_and_are_counted() {
    let server = guarded("", "").await;
    let mut alice = enter(&server, "alice").await;
    let mut bob = enter(&server, "bob").await;
    let mut mallory = enter(&server, "mallory").await;
    let id = sent_reliably(&mut alice, &mut bob, json!("for bob")).await;
    let ignored = async |reason: &str| metrics(&server).await.sum("wsc_acks_ignored_total", &[("reason", reason)]);
    for reached in ["ack", "nack"] {
        mallory.send(&json!({"message_type": reached, "message_id": id})).await;
        mallory
            .send(&json!({"message_type": reached, "data": {"ids": [id, id], "user_id": "bob", "reason": "no"}}))
            .await;
        alice.send(&json!({"message_type": reached, "data": {"id": id}})).await;
    }
    for unknown in ["x", "01900000-0000-7000-8000-000000000000", "../../etc/passwd"] {
        mallory.send(&json!({"message_type": "ack", "message_id": unknown})).await;
    }
    mallory.expect_quiet().await;
    alice.expect_quiet().await;
    assert_eq!(outcome(&mut alice, &id).await, "pending");
    assert!(ignored("foreign").await + ignored("unknown").await >= 8.0, "{:?}", metrics(&server).await.samples);
    bob.ack(&[&id]).await;
    eventually("bob's own counts", async || (outcome(&mut alice, &id).await == "acked").then_some(())).await;
    metrics(&server).await.ledger().check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_authenticates_as_another_gets_no_say_over_their_messages() {
    let server = guarded("", "").await;
    let mut alice = enter(&server, "alice").await;
    let mut bob = enter(&server, "bob").await;
    let mut mallory = enter(&server, "mallory").await;
    let id = sent_reliably(&mut alice, &mut bob, json!("for bob")).await;
    mallory.request_error(authenticate(&token("bob", TALK)), 2003).await;
    mallory.ack(&[&id]).await;
    mallory.expect_quiet().await;
    assert_eq!(outcome(&mut alice, &id).await, "pending");
    // Nor does she hear of its fate.
    let status = json!({"message_type": "message_status", "data": {"id": id}});
    let reply = mallory.request(status.clone()).await;
    assert_eq!(reply["message_type"], "error", "{reply}");
    let reply = bob.request(status).await;
    assert_eq!(reply["message_type"], "error", "only the sender asks: {reply}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idempotency_keys_of_others_are_others() {
    let server = guarded("", "").await;
    let mut alice = enter(&server, "alice").await;
    let mut mallory = enter(&server, "mallory").await;
    let mut bob = enter(&server, "bob").await;
    let keyed = |content: &Value| {
        let mut message = reliable("bob", content);
        message["idempotency_key"] = json!("order-7");
        message
    };
    // She guesses the key and comes first: Alice's message goes out all the same.
    let hers = mallory.request_ok(keyed(&json!("cancel")), "accepted").await;
    let own = alice.request_ok(keyed(&json!("order")), "accepted").await;
    assert_ne!(hers["data"]["id"], own["data"]["id"]);
    assert_eq!(own["data"].get("duplicate"), None, "{own}");
    for sender in ["mallory", "alice"] {
        assert_eq!(bob.expect_reliable("direct_message").await["data"]["sender_id"], sender);
    }
    // And over HTTP: a back end's keys are its own, as are each user's.
    let body = json!({"content": "from a program", "idempotency_key": "order-7"});
    let path = "/api/users/bob/messages";
    for bearer in [super::admin(), token("carol", &["send:message"])] {
        let sent = call_ok(&server, "POST", path, &bearer, Some(&body)).await;
        assert_eq!(sent.get("duplicate"), None, "{sent}");
        bob.expect("user_message").await;
        let again = call_ok(&server, "POST", path, &bearer, Some(&body)).await;
        assert_eq!((&again["id"], &again["duplicate"]), (&sent["id"], &json!(true)), "{again}");
    }
    // Her answer tells nothing of his.
    let other = json!({"content": "something else", "idempotency_key": "order-7"});
    assert_eq!(call(&server, "POST", path, &token("carol", &["send:message"]), Some(&other)).await.status, 409);
    bob.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inbox_is_its_users_alone() {
    let server = guarded("", "").await;
    let mut alice = enter(&server, "alice").await;
    alice.request_ok(reliable("bob", &json!("private")), "accepted").await;
    for impostor in ["Bob", "bob ", "b\u{43e}b", "bob/"] {
        let mut client = enter_as(&server, impostor, "bob").await;
        client.expect_quiet().await;
    }
    let mut bob = enter(&server, "bob").await;
    assert_eq!(bob.expect_reliable("direct_message").await["data"]["content"], "private");
}
