//! Connections without a token, where they are welcome.

use serde_json::json;
use wsc_testkit::{Client, ConnectOptions, ServerProcess};

use super::{
    BAD_TOKEN, OLD_TOKEN, TALK, authenticate, direct, enter, expect_refusal, guarded, join, token, token_with,
};
use crate::support::{assert_on_its_way, assert_refused};

const OPEN: &str = "allow_anonymous: true";

async fn nobody(server: &ServerProcess) -> Client {
    Client::connect(&server.ws_url()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_is_somebody_else_each_time_and_may_nothing() {
    let server = guarded(OPEN, "").await;
    let mut first = nobody(&server).await;
    // Parameters name nobody while authentication is on.
    let options = ConnectOptions {
        query: &[("user_id", "alice"), ("user_type", "admin")],
        headers: &[("X-User-ID", "alice")],
        ..ConnectOptions::default()
    };
    let second = Client::connect_with(&server.ws_url(), &options).await;
    for client in [&first, &second] {
        let uuid = client.user_id().strip_prefix("anon:").unwrap_or_else(|| panic!("{}", client.user_id()));
        assert!(crate::support::is_uuid_v7(uuid), "{uuid}");
        assert_eq!(client.connected()["data"].get("expires_at"), None);
    }
    assert_ne!(first.user_id(), second.user_id());

    enter(&server, "bob").await.join("r1").await;
    for request in [
        join("r1"),
        join("new"),
        direct("bob", &json!(1)),
        json!({"message_type": "create_room", "data": {"room_id": "r2"}}),
        json!({"message_type": "delete_room", "data": {"room_id": "r1"}}),
        json!({"message_type": "room_message", "data": {"room_id": "r1", "content": 1}}),
    ] {
        first.request_error(request, 2001).await;
    }
    let pong = first.request(json!({"message_type": "ping"})).await;
    assert_eq!(pong["message_type"], "pong");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_may_what_the_settings_say() {
    let server =
        guarded("allow_anonymous: true, anonymous_permissions: [\"join:room:lobby\", \"send:message:lobby\"]", "")
            .await;
    let mut bob = enter(&server, "bob").await;
    bob.join("lobby").await;
    let mut stranger = nobody(&server).await;
    stranger.join("lobby").await;
    stranger.say("lobby", json!("hello")).await;
    let heard = bob.expect("room_message").await;
    assert_eq!(heard["data"]["sender_id"], stranger.user_id());
    stranger.request_error(join("cellar"), 2001).await;
    stranger.request_error(direct("bob", &json!(1)), 2001).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_kept_for_strangers() {
    let server = guarded(OPEN, "").await;
    let mut bob = enter(&server, "bob").await;
    let stranger = nobody(&server).await;
    let name = stranger.user_id().to_owned();
    assert_on_its_way(&bob.tell(&name, json!("hi")).await["data"]);
    stranger.close().await;
    crate::exposed::revocation::expect_gone(&server, &name).await;
    for reliable in [false, true] {
        let mut message = direct(&name, &json!("later"));
        message["require_ack"] = json!(reliable);
        bob.request_error(message, 4001).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_token_is_not_better_than_none() {
    let server = guarded(OPEN, "").await;
    expect_refusal(&server, Some("x"), BAD_TOKEN).await;
    let old = token_with("alice", json!({"exp": wsc_testkit::unix_now() - 1}));
    expect_refusal(&server, Some(&old), OLD_TOKEN).await;
    // HTTP has no strangers.
    assert_refused(&server.get("/api/messages/x").await, 401, 2000);
    assert_refused(&server.get("/api/stats").await, 401, 2000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_may_say_once_who_it_is() {
    let server = guarded(OPEN, "").await;
    let mut bob = enter(&server, "bob").await;
    let kept = bob.tell("alice", json!("while you were away")).await;
    assert_eq!(kept["data"]["outcome"], "stored", "{kept}");

    let mut client = nobody(&server).await;
    let was = client.user_id().to_owned();
    client.request_error(authenticate("x"), 2003).await;
    client.request_error(join("r1"), 2001).await;
    let reply = client.request_ok(authenticate(&token("alice", TALK)), "authenticated").await;
    assert_eq!(reply["data"]["user_id"], "alice", "{reply}");
    assert!(reply["data"]["expires_at"].is_u64() && reply["data"]["permissions"].is_array(), "{reply}");

    // It is Alice now: her inbox comes, and what is sent to her.
    let replayed = client.expect("direct_message").await;
    assert_eq!(replayed["id"], kept["data"]["id"], "{replayed}");
    assert_eq!(replayed["source"], "offline", "{replayed}");
    bob.tell("alice", json!("live")).await;
    assert_eq!(client.expect("direct_message").await["data"]["content"], "live");
    client.tell("bob", json!("it is me")).await;
    assert_eq!(bob.expect("direct_message").await["data"]["sender_id"], "alice");
    client.join("r1").await;
    // Who it was is gone.
    bob.request_error(direct(&was, &json!(1)), 4001).await;

    // Once.
    client.request_error(authenticate(&token("bob", TALK)), 2003).await;
    bob.tell("alice", json!("still you?")).await;
    assert_eq!(client.expect("direct_message").await["data"]["content"], "still you?");
    // To renew is something else.
    let reply = client.request_ok(authenticate(&token("alice", TALK)), "authenticated").await;
    assert_eq!(reply["data"]["user_id"], "alice", "{reply}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_becomes_somebody_counts_as_one_of_their_connections() {
    let server = guarded(OPEN, "limits: {user_connections: 1, user_policy: kick_oldest}").await;
    let mut first = enter(&server, "alice").await;
    let mut client = nobody(&server).await;
    client.request_ok(authenticate(&token("alice", TALK)), "authenticated").await;
    first.expect("force_offline").await;
    crate::support::assert_closed(&first.expect_close().await, 3505);
    client.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_ids_do_not_let_a_stranger_take_somebodys_place() {
    let server = guarded(OPEN, "").await;
    let url = format!("{}?client_id=phone&token={}", server.ws_url(), token("alice", TALK));
    let mut alice = Client::connect(&url).await;
    let mut stranger = Client::connect(&format!("{}?client_id=phone", server.ws_url())).await;
    alice.expect_quiet().await;
    stranger.expect_quiet().await;
}
