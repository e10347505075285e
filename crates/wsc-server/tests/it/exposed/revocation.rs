//! Tokens that are taken back.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wsc_testkit::{ServerProcess, encode, eventually, unix_now};

use super::{
    API_KEY, API_KEYS, BAD_TOKEN, TALK, admin, authenticate, call, call_ok, connect, enter, expect_authorized,
    expect_refusal, expect_unauthorized, guarded, token, token_with,
};
use crate::support::{assert_closed, assert_refused};

/// Waits until the hub knows nothing of a connection of this user.
pub(super) async fn expect_gone(server: &ServerProcess, user: &str) {
    let path = format!("/api/clients?user_id={}", encode(user));
    eventually(&format!("{user} is gone"), async || {
        let listed = call_ok(server, "GET", &path, &admin(), None).await;
        crate::support::entries(&listed, "clients").is_empty().then_some(())
    })
    .await;
}

async fn revoke(server: &ServerProcess, what: &Value) -> Value {
    call_ok(server, "POST", "/api/tokens/revoke", &admin(), Some(what)).await
}

/// A token of yesterday, so that "made before now" is beyond doubt.
fn aged(user: &str, changes: Value) -> String {
    let mut all = json!({"iat": unix_now() - 60, "permissions": TALK});
    let Value::Object(changes) = changes else { panic!("no object: {changes}") };
    for (name, value) in changes {
        all[name] = value;
    }
    token_with(user, all)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_its_id_one_token_ends_within_a_second() {
    let server = guarded("", "").await;
    let (stolen, own) = (aged("alice", json!({"jti": "t1"})), aged("alice", json!({"jti": "t2"})));
    let mut thief = connect(&server, &stolen).await;
    let mut thief_again = connect(&server, &stolen).await;
    let mut alice = connect(&server, &own).await;
    let mut bob = enter(&server, "bob").await;

    let start = Instant::now();
    let answer = revoke(&server, &json!({"jti": "t1"})).await;
    assert_eq!(answer["closed"], 2, "{answer}");
    for client in [&mut thief, &mut thief_again] {
        assert_closed(&client.expect_close().await, 3500);
    }
    assert!(start.elapsed() < Duration::from_secs(1), "after {:?}", start.elapsed());

    expect_refusal(&server, Some(&stolen), BAD_TOKEN).await;
    expect_unauthorized(&server, &stolen, 2003).await;
    alice.request_error(authenticate(&stolen), 2003).await;
    for client in [&mut alice, &mut bob] {
        client.expect_quiet().await;
    }
    expect_authorized(&server, &own).await;
    connect(&server, &own).await;
    let metrics = super::metrics(&server).await;
    assert_eq!(metrics.sum("wsc_disconnections_total", &[("reason", "token_revoked")]), 2.0);
    // Once more is no error, and closes nobody.
    assert_eq!(revoke(&server, &json!({"jti": "t1"})).await["closed"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_user_all_tokens_made_until_now_end() {
    let server = guarded("", "").await;
    let old = aged("alice", json!({}));
    let undated = token_with("alice", json!({"iat": null}));
    let mut clients = vec![connect(&server, &old).await, connect(&server, &undated).await];
    let mut bob = enter(&server, "bob").await;
    let start = Instant::now();
    let answer = revoke(&server, &json!({"user_id": "alice"})).await;
    assert_eq!(answer["closed"], 2, "{answer}");
    for client in &mut clients {
        assert_closed(&client.expect_close().await, 3500);
    }
    assert!(start.elapsed() < Duration::from_secs(1), "after {:?}", start.elapsed());
    for token in [&old, &undated] {
        expect_refusal(&server, Some(token), BAD_TOKEN).await;
        expect_unauthorized(&server, token, 2003).await;
    }
    bob.expect_quiet().await;
    expect_authorized(&server, &aged("bob", json!({}))).await;
    // Tokens made after it are good.
    let fresh = token_with("alice", json!({"iat": unix_now() + 1, "permissions": TALK}));
    let mut alice = connect(&server, &fresh).await;
    alice.tell("bob", json!("back again")).await;
    bob.expect("direct_message").await;
    // And do not save an old one.
    alice.request_error(authenticate(&old), 2003).await;
    alice.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_connection_goes_by_the_token_that_it_has_now() {
    let server = guarded("", "").await;
    let mut alice = connect(&server, &aged("alice", json!({"jti": "first"}))).await;
    alice.request_ok(authenticate(&aged("alice", json!({"jti": "second"}))), "authenticated").await;
    assert_eq!(revoke(&server, &json!({"jti": "first"})).await["closed"], 0);
    alice.expect_quiet().await;
    assert_eq!(revoke(&server, &json!({"jti": "second"})).await["closed"], 1);
    assert_closed(&alice.expect_close().await, 3500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_taken_back_stays_so_after_a_restart() {
    let mut server = guarded("", "").await;
    let by_id = aged("alice", json!({"jti": "t1"}));
    let by_user = aged("bob", json!({}));
    let untouched = aged("carol", json!({"jti": "t3"}));
    revoke(&server, &json!({"jti": "t1"})).await;
    revoke(&server, &json!({"user_id": "bob"})).await;
    assert_eq!(server.terminate().await, 0);
    server.restart().await;
    for token in [&by_id, &by_user] {
        expect_refusal(&server, Some(token), BAD_TOKEN).await;
        expect_unauthorized(&server, token, 2003).await;
    }
    connect(&server, &untouched).await;
    // It was answered, so it is on disk: a crash does not undo it either.
    revoke(&server, &json!({"jti": "t3"})).await;
    server.kill().await;
    server.restart().await;
    for token in [&by_id, &by_user, &untouched] {
        expect_refusal(&server, Some(token), BAD_TOKEN).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_operators_take_tokens_back() {
    let server = guarded("", API_KEYS).await;
    let victim = aged("alice", json!({"jti": "t1"}));
    let mut alice = connect(&server, &victim).await;
    for body in [json!({"jti": "t1"}), json!({"user_id": "alice"})] {
        for weak in [token("alice", TALK), token("mallory", &["admin:room", "send:message", "delete:room"])] {
            assert_refused(&call(&server, "POST", "/api/tokens/revoke", &weak, Some(&body)).await, 403, 2001);
        }
        let answer = server.post("/api/tokens/revoke", &body).await;
        assert_refused(&answer, 401, 2000);
    }
    alice.expect_quiet().await;
    for body in [json!({}), json!({"jti": 1}), json!({"user": "alice"}), json!({"jti": ""}), json!([])] {
        let answer = call(&server, "POST", "/api/tokens/revoke", &admin(), Some(&body)).await;
        assert_refused(&answer, 400, 1001);
    }
    alice.expect_quiet().await;
    let body = json!({"jti": "t1"});
    let answer = call_ok(&server, "POST", "/api/tokens/revoke", API_KEY, Some(&body)).await;
    assert_eq!(answer["closed"], 1, "{answer}");
    assert_closed(&alice.expect_close().await, 3500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_may_take_back_its_own_token() {
    let server = guarded("", API_KEYS).await;
    let own = token_with("root", json!({"jti": "op", "permissions": ["admin:system"]}));
    assert_eq!(call(&server, "GET", "/api/stats", &own, None).await.status, 200);
    call_ok(&server, "POST", "/api/tokens/revoke", &own, Some(&json!({"jti": "op"}))).await;
    assert_refused(&call(&server, "GET", "/api/stats", &own, None).await, 401, 2003);
    assert_eq!(call(&server, "GET", "/api/stats", API_KEY, None).await.status, 200);
}
