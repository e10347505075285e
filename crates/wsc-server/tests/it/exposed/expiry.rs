//! Tokens that run out while their bearer is connected.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;
use wsc_testkit::{Client, RawClient, RawOptions, unix_now};

use super::{API_KEY, API_KEYS, TALK, authenticate, connect, enter, expect_unauthorized, guarded, token_with};
use crate::support::assert_closed;

fn now_ms() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()
}

/// Expects the end of a token without a grace; a warning may come before it.
pub(super) async fn expect_expired(client: &mut Client) {
    let (frames, code) = client.read_to_end().await;
    assert_eq!(code, 3005, "{client}");
    assert!(frames.iter().all(|frame| frame.contains("token_expiring")) && frames.len() < 2, "{frames:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_warning_at_the_end_and_a_close_after_the_grace() {
    let server = guarded("expiry_grace: 2s", "").await;
    let exp = unix_now() + 2;
    let mut alice = connect(&server, &token_with("alice", json!({"exp": exp, "permissions": TALK}))).await;
    let mut bob = enter(&server, "bob").await;
    let warning = alice.expect("token_expiring").await;
    let warned = now_ms();
    assert!(warned >= u128::from(exp) * 1000, "{} ms early", u128::from(exp) * 1000 - warned);
    assert!(warning["data"]["expires_at"].is_u64(), "{warning}");
    // In the grace everything works.
    alice.tell("bob", json!("still here")).await;
    bob.expect("direct_message").await;
    let (code, reason) = alice.expect_close().await;
    let closed = now_ms();
    assert_closed(&(code, reason.clone()), 3005);
    assert_eq!(reason["reconnect"], true);
    let due = u128::from(exp + 2) * 1000;
    assert!(closed >= due, "{} ms early", due - closed);
    assert!(closed < due + 5000, "{} ms late", closed - due);
    bob.expect_quiet().await;

    let metrics = super::metrics(&server).await;
    assert_eq!(metrics.sum("wsc_disconnections_total", &[("reason", "token_expired")]), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_the_grace_it_may_be_renewed() {
    let server = guarded("expiry_grace: 2s", "").await;
    let exp = unix_now() + 1;
    let short = token_with("alice", json!({"exp": exp}));
    let mut renewed = connect(&server, &short).await;
    let mut other = connect(&server, &short).await;
    renewed.expect("token_expiring").await;
    other.expect("token_expiring").await;
    // Not with the token that has just run out.
    other.request_error(authenticate(&short), 2002).await;
    renewed.request_ok(authenticate(&token_with("alice", json!({}))), "authenticated").await;
    assert_closed(&other.expect_close().await, 3005);
    renewed.expect_quiet().await;
    // New connections and HTTP have no grace.
    super::expect_refusal(&server, Some(&short), super::OLD_TOKEN).await;
    expect_unauthorized(&server, &short, 2002).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_end_at_once_and_nobody_else() {
    let server = guarded("expiry_grace: 0s", "").await;
    let exp = unix_now() + 3;
    let mut short = Vec::new();
    for n in 0..50 {
        short.push(connect(&server, &token_with(&format!("u{n}"), json!({"exp": exp}))).await);
    }
    let mut alice = enter(&server, "alice").await;
    for client in &mut short {
        expect_expired(client).await;
    }
    alice.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_let_in_with_leeway_stays_that_long() {
    let server = guarded("leeway: 5m, expiry_grace: 0s", "").await;
    let late = token_with("alice", json!({"exp": unix_now() - 60, "permissions": TALK}));
    let mut client = Client::connect(&super::ws_url(&server, &late)).await;
    client.join("r1").await;
    super::expect_refusal(&server, Some(&token_with("alice", json!({"exp": unix_now() - 400}))), super::OLD_TOKEN)
        .await;
}

/// Being told of the end has to make room in the queue: what is dropped for it is counted by its receiver, while all
/// connections are being looked through for tokens that have run out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_token_finds_a_full_queue() {
    let queue = "queue: {policy: drop_oldest, max_bytes: 64KiB}, storage: {kind: none}";
    let server = guarded("expiry_grace: 1h", &format!("{queue}, {API_KEYS}")).await;
    let exp = unix_now() + 4;
    let users: Vec<String> = (0..8).map(|number| format!("deaf-{number}")).collect();
    let mut deaf = Vec::new();
    for user in &users {
        let path = format!("/ws?token={}", token_with(user, json!({"exp": exp})));
        let options = RawOptions { recv_buffer: Some(4096), ..RawOptions::default() };
        let mut raw = RawClient::connect_with(server.addr(), &path, options).await;
        raw.expect("connected").await;
        deaf.push(raw);
    }
    let fill = async |lens: &[usize]| {
        let message = |(user, len): (&String, usize)| json!({"user_id": user, "content": "x".repeat(len)});
        // Each queue is filled in a way of its own.
        let shifted = |number: usize| lens.iter().cycle().skip(number).take(lens.len() - number % 2).copied();
        let for_user = |(number, user)| shifted(number).map(move |len| message((user, len)));
        let messages: Vec<_> = users.iter().enumerate().flat_map(for_user).collect();
        let body = json!({"messages": messages}).to_string();
        let headers = [("content-type", "application/json"), ("x-api-key", API_KEY)];
        let answer = server.http("POST", "/api/messages/batch", &headers, Some(body.as_bytes())).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    };
    // More than the kernel takes, then small ones of all sizes until it has happened, so that some queue has no room
    // for one frame more.
    for _ in 0..60 {
        fill(&[15_000; 6]).await;
    }
    let lens: Vec<usize> = (0..97).map(|number| number * 29 % 61).collect();
    while unix_now() < exp + 3 {
        fill(&lens).await;
    }
    assert_eq!(server.get("/health").await.status, 200);
    for user in &users {
        let shown = server.http("GET", &format!("/api/users/{user}"), &[("x-api-key", API_KEY)], None).await;
        assert_eq!(shown.status, 200, "{shown:?}");
    }
}
