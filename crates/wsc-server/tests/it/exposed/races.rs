//! What happens in the moment between two moments.

use serde_json::{Value, json};
use wsc_testkit::{Client, ConnectOptions, Inbound, unix_now};

use super::{
    TALK, admin, authenticate, call_ok, connect, enter, expect_unauthorized, guarded, join, token, token_with, ws_url,
};
use crate::support::{assert_closed, expect_clients};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_in_while_the_token_is_taken_back_does_not_stay() {
    let server = guarded("", "").await;
    for n in 0..40 {
        let id = format!("t{n}");
        let held = token_with("alice", json!({"jti": id, "iat": unix_now() - 60}));
        let url = ws_url(&server, &held);
        let entering = tokio::spawn(async move {
            let options = ConnectOptions { subprotocols: &["wsc.v1"], ..ConnectOptions::default() };
            let mut client = Client::open(&url, &options).await;
            client.read_to_end().await
        });
        // Now and then the one comes first, now and then the other.
        if n % 2 == 0 {
            tokio::task::yield_now().await;
        }
        let by_user = json!({"user_id": "alice"});
        let by_id = json!({"jti": id});
        let what = if n % 4 < 2 { &by_id } else { &by_user };
        call_ok(&server, "POST", "/api/tokens/revoke", &admin(), Some(what)).await;
        let (_, code) = wsc_testkit::within("the end of the connection", entering).await.unwrap();
        assert_eq!(code, 3500, "in round {n}");
    }
    expect_clients_with_token(&server, 0).await;
}

async fn expect_clients_with_token(server: &wsc_testkit::ServerProcess, count: i64) {
    wsc_testkit::eventually(&format!("{count} connections"), async || {
        let stats = call_ok(server, "GET", "/api/stats", &admin(), None).await;
        (stats["client_count"] == count).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_renews_while_the_new_token_is_taken_back_does_not_stay() {
    let server = guarded("", "").await;
    for n in 0..20 {
        let mut alice = connect(&server, &token_with("alice", json!({"jti": format!("old-{n}")}))).await;
        let renewed = token_with("alice", json!({"jti": format!("new-{n}")}));
        alice.send(&authenticate(&renewed)).await;
        let what = json!({"jti": format!("new-{n}")});
        call_ok(&server, "POST", "/api/tokens/revoke", &admin(), Some(&what)).await;
        // It was renewed first and is closed, or refused and stays with the old token, which is good.
        alice.send(&json!({"message_type": "ping", "message_id": "marker"})).await;
        let mut closed = false;
        loop {
            match alice.recv("an answer").await {
                Inbound::Text(text) if text.contains("\"marker\"") => break,
                Inbound::Text(text) => {
                    assert!(text.contains("authenticated") || text.contains("2003"), "{text}");
                    if text.contains("2003") {
                        continue;
                    }
                    assert_eq!(alice.read_to_end().await.1, 3500, "in round {n}");
                    closed = true;
                    break;
                }
                Inbound::Closed(code, _) => {
                    assert_eq!(code, 3500, "in round {n}");
                    closed = true;
                    break;
                }
                _ => {}
            }
        }
        if !closed {
            alice.expect_quiet().await;
        }
        expect_unauthorized(&server, &renewed, 2003).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_behind_an_authenticate_wait_for_it() {
    let server = guarded("allow_anonymous: true", "").await;
    for _ in 0..20 {
        let mut client = Client::connect(&server.ws_url()).await;
        // All at once: a stranger, then Alice who may talk, then Alice who may not.
        let mut requests = [
            join("r1"),
            authenticate(&token("alice", TALK)),
            join("r1"),
            authenticate(&token("alice", &[])),
            join("r2"),
            json!({"message_type": "leave_room", "data": {"room_id": "r1"}}),
        ];
        for (id, request) in requests.iter_mut().enumerate() {
            request["message_id"] = json!(id + 1);
            client.send(request).await;
        }
        let mut answers = Vec::new();
        while answers.len() < requests.len() {
            let frame: Value = serde_json::from_str(&client.expect_text("an answer").await).unwrap();
            if frame["request_id"].is_u64() {
                answers.push((frame["request_id"].as_u64().unwrap(), frame));
            } else {
                assert_eq!(frame["message_type"], "room_left", "{frame}");
            }
        }
        let kinds: Vec<(u64, &str, i64)> = answers
            .iter()
            .map(|(id, frame)| {
                (*id, frame["message_type"].as_str().unwrap(), frame["data"]["code"].as_i64().unwrap_or_default())
            })
            .collect();
        assert_eq!(
            kinds,
            [
                (1, "error", 2001),
                (2, "authenticated", 0),
                (3, "room_joined", 0),
                (4, "authenticated", 0),
                (5, "error", 2001),
                // It went with its last member.
                (6, "error", 3000),
            ]
        );
        client.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_speaks_in_a_room_that_was_just_taken_away() {
    let server = guarded("", "").await;
    let mut bob = enter(&server, "bob").await;
    bob.join("r1").await;
    let mut alice = enter(&server, "alice").await;
    alice.join("r1").await;
    let say = json!({"message_type": "room_message", "data": {"room_id": "r1", "content": "too late"}});
    for _ in 0..10 {
        alice.send(&authenticate(&token("alice", &["send:message"]))).await;
        for _ in 0..5 {
            alice.send(&say).await;
        }
        alice.send(&authenticate(&token("alice", TALK))).await;
        alice.send(&join("r1")).await;
        alice.barrier().await;
    }
    bob.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kick_and_a_taken_token_close_once() {
    let server = guarded("", "").await;
    for n in 0..20 {
        let id = format!("t{n}");
        let mut alice = connect(&server, &token_with("alice", json!({"jti": id}))).await;
        let (what, root) = (json!({"jti": id}), admin());
        let revoke = call_ok(&server, "POST", "/api/tokens/revoke", &root, Some(&what));
        let kick = super::call(&server, "POST", "/api/users/alice/disconnect", &root, None);
        let (revoked, kicked) = tokio::join!(revoke, kick);
        assert!(revoked["closed"].as_u64().is_some_and(|closed| closed <= 1), "{revoked}");
        assert!(kicked.status < 500, "{kicked:?}");
        let (_, code) = alice.read_to_end().await;
        assert!(matches!(code, 3500 | 3503), "{code}");
    }
    expect_clients_with_token(&server, 0).await;
    let metrics = super::metrics(&server).await;
    let ended = |reason| metrics.sum("wsc_disconnections_total", &[("reason", reason)]);
    assert_eq!(ended("token_revoked") + ended("kick_out"), 20.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_taken_back_without_a_store_as_well() {
    for kind in ["none", "memory"] {
        let server = guarded("", &format!("storage: {{kind: {kind}}}")).await;
        let held = token_with("alice", json!({"jti": "t1"}));
        let mut alice = connect(&server, &held).await;
        call_ok(&server, "POST", "/api/tokens/revoke", &admin(), Some(&json!({"jti": "t1"}))).await;
        assert_closed(&alice.expect_close().await, 3500);
        expect_unauthorized(&server, &held, 2003).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_authentication_a_token_is_a_word_like_any_other() {
    let server = crate::support::hub("").await;
    let mut alice = Client::connect(&format!("{}?user_id=alice&token=whatever", server.ws_url())).await;
    assert_eq!(alice.user_id(), "alice");
    // Nothing can be proved here, so nobody becomes somebody else.
    let reply = alice.request(authenticate(&token("bob", &["admin:system"]))).await;
    assert_ne!(reply["data"]["user_id"], "bob", "{reply}");
    let mut bob = Client::connect(&server.ws_url_as("bob")).await;
    alice.tell("bob", json!(1)).await;
    assert_eq!(bob.expect("direct_message").await["data"]["sender_id"], "alice");
    expect_clients(&server, 2).await;
}
