//! Renewing a token in place, and what it changes.

use serde_json::{Value, json};
use wsc_testkit::{Client, unix_now};

use super::expiry::expect_expired;
use super::{TALK, authenticate, connect, direct, enter, guarded, join, token, token_with};

/// Milliseconds, or seconds as tokens have them.
fn seconds(value: &Value) -> u64 {
    let value = value.as_u64().unwrap_or_else(|| panic!("no time: {value}"));
    if value > 100_000_000_000 { value / 1000 } else { value }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_token_moves_the_end() {
    let server = guarded("expiry_grace: 0s", "").await;
    let exp = unix_now() + 3;
    let short = token_with("alice", json!({"exp": exp, "permissions": TALK}));
    let mut renewed = connect(&server, &short).await;
    let mut not_renewed = connect(&server, &short).await;
    let later = unix_now() + 500;
    let reply = renewed.request_ok(authenticate(&token_with("alice", json!({"exp": later}))), "authenticated").await;
    assert_eq!(reply["data"]["user_id"], "alice", "{reply}");
    assert_eq!(seconds(&reply["data"]["expires_at"]), later, "{reply}");
    // The end of the one shows that the time of both has come.
    expect_expired(&mut not_renewed).await;
    renewed.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shorter_token_moves_the_end_as_well() {
    let server = guarded("expiry_grace: 0s", "").await;
    let mut client = enter(&server, "alice").await;
    let exp = unix_now() + 2;
    client.request_ok(authenticate(&token_with("alice", json!({"exp": exp}))), "authenticated").await;
    expect_expired(&mut client).await;
    assert!(unix_now() >= exp);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_another_user_changes_nothing() {
    let server = guarded("", "").await;
    let mut bob = enter(&server, "bob").await;
    bob.join("r1").await;
    let mut alice = connect(&server, &token("alice", &["join:room"])).await;
    alice.join("r1").await;
    let stronger = token("mallory", &["admin:system"]);
    alice.request_error(authenticate(&stronger), 2003).await;
    alice.request_error(direct("bob", &json!(1)), 2001).await;
    bob.say("r1", json!("still here?")).await;
    assert_eq!(alice.expect("room_message").await["data"]["content"], "still here?");
    // Not even by another spelling.
    for other in ["Alice", "alice ", "ALICE", "al\u{131}ce"] {
        alice.request_error(authenticate(&token(other, TALK)), 2003).await;
    }
}

/// Renews and gives what came until the answer, the answer last, and what came until the next ping's answer.
async fn renew(client: &mut Client, token: &str) -> Vec<Value> {
    let reply = client.request_ok(authenticate(token), "authenticated").await;
    let mut all = client.barrier().await;
    all.push(reply);
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_narrower_token_takes_rooms_away_at_once() {
    let server = guarded("", "").await;
    let mut alice = enter(&server, "alice").await;
    let mut bob = enter(&server, "bob").await;
    for room in ["support-1", "support-2", "cellar"] {
        alice.join(room).await;
        bob.join(room).await;
    }
    let narrow = token("alice", &["join:room:support-*", "send:message:support-1"]);
    let came = renew(&mut alice, &narrow).await;
    let left: Vec<&Value> = came.iter().filter(|frame| frame["message_type"] == "room_left").collect();
    assert_eq!(left.len(), 1, "{came:?}");
    assert_eq!(left[0]["data"]["room_id"], "cellar", "{left:?}");
    assert_eq!(left[0]["data"]["status"], "removed", "{left:?}");
    assert!(left[0]["data"]["reason"].is_string(), "{left:?}");

    // Nothing of that room reaches her; of the others, all.
    assert_eq!(bob.say("cellar", json!("secret")).await["data"]["recipients"], 0);
    assert_eq!(bob.say("support-2", json!("open")).await["data"]["recipients"], 1);
    assert_eq!(alice.expect("room_message").await["data"]["content"], "open");
    alice.request_error(join("cellar"), 2001).await;
    let to_room = |room: &str| json!({"message_type": "room_message", "data": {"room_id": room, "content": 1}});
    alice.request_error(to_room("cellar"), 2001).await;
    alice.request_error(to_room("support-2"), 2001).await;
    alice.request_ok(to_room("support-1"), "accepted").await;
    alice.request_error(direct("bob", &json!(1)), 2001).await;
    bob.expect("room_message").await;
    bob.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_without_permissions_leaves_no_room() {
    let server = guarded("", "").await;
    let mut alice = enter(&server, "alice").await;
    for room in ["r1", "r2", "r3"] {
        alice.join(room).await;
    }
    let came = renew(&mut alice, &token("alice", &[])).await;
    let left = came.iter().filter(|frame| frame["message_type"] == "room_left").count();
    assert_eq!(left, 3, "{came:?}");
    let stats = super::call_ok(&server, "GET", "/api/users/alice", &super::admin(), None).await;
    assert_eq!(stats["online"], true, "it may stay: {stats}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wider_token_opens_more_at_once() {
    let server = guarded("", "").await;
    let mut bob = enter(&server, "bob").await;
    let mut alice = connect(&server, &token("alice", &[])).await;
    alice.request_error(join("r1"), 2001).await;
    let reply = alice.request_ok(authenticate(&token("alice", TALK)), "authenticated").await;
    let granted: Vec<&str> =
        reply["data"]["permissions"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(granted.contains(&"join:room") && granted.contains(&"send:message"), "{reply}");
    alice.join("r1").await;
    alice.tell("bob", json!(1)).await;
    bob.expect("direct_message").await;
    // Only this connection's: the token of another device is its own.
    let mut tablet = connect(&server, &token("alice", &[])).await;
    tablet.request_error(join("r1"), 2001).await;
}
