//! The ways in which a token may be brought along, and API keys.

use serde_json::json;
use wsc_testkit::{Client, ConnectOptions, query};

use super::{
    API_KEY, API_KEYS, BAD_TOKEN, NO_TOKEN, OLD_TOKEN, TALK, admin, authenticate, call, connect, enter,
    expect_authorized, expect_refusal, expect_unauthorized, guarded, token, token_with,
};
use crate::support::{assert_fields, assert_refused, entries, upgrade};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_comes_by_query_or_header() {
    let server = guarded("", "").await;
    let alice = token("alice", TALK);
    assert_eq!(connect(&server, &alice).await.user_id(), "alice");
    for value in [format!("Bearer {alice}"), format!("bearer {alice}")] {
        let options = ConnectOptions { headers: &[("Authorization", &value)], ..ConnectOptions::default() };
        assert_eq!(Client::connect_with(&server.ws_url(), &options).await.user_id(), "alice");
    }
    // The query wins, as with every other parameter.
    let bearer = format!("Bearer {}", token("bob", TALK));
    let options = ConnectOptions {
        query: &[("token", &alice)],
        headers: &[("Authorization", &bearer)],
        ..ConnectOptions::default()
    };
    assert_eq!(Client::connect_with(&server.ws_url(), &options).await.user_id(), "alice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_frame_says_when_the_token_runs_out() {
    let server = guarded("", "").await;
    let exp = wsc_testkit::unix_now() + 1234;
    let client = connect(&server, &token_with("alice", json!({"exp": exp}))).await;
    let data = &client.connected()["data"];
    assert_fields(data, &["client_id", "user_id", "session", "node_id", "ping_interval_ms", "expires_at"]);
    // Seconds as in the token, or milliseconds as everywhere else.
    assert!(data["expires_at"] == exp || data["expires_at"] == exp * 1000, "{data}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_good_token_nobody_comes_in() {
    let server = guarded("", "").await;
    expect_refusal(&server, None, NO_TOKEN).await;
    for bad in ["x", "a.b.c", "....", "Bearer x", "null", "\u{202e}", "eyJhbGciOiJIUzI1NiJ9"] {
        expect_refusal(&server, Some(bad), BAD_TOKEN).await;
    }
    let old = token_with("alice", json!({"exp": wsc_testkit::unix_now() - 1}));
    expect_refusal(&server, Some(&old), OLD_TOKEN).await;
    // A token that says nothing is none.
    let response = upgrade(&server, "/ws?token=", |h| h).await;
    assert_eq!(response.status, 401, "{response:?}");
    let response = upgrade(&server, "/ws", |h| h.add("Authorization", "Basic YWxpY2U6cGFzcw==")).await;
    assert_eq!(response.status, 401, "{response:?}");

    let metrics = super::metrics(&server).await;
    let failures = |reason| metrics.sum("wsc_handshake_failures_total", &[("reason", reason)]);
    assert!(failures("token_missing") >= 2.0 && failures("token_invalid") >= 14.0, "{:?}", metrics.samples);
    assert_eq!(failures("token_expired"), 2.0);
    assert_eq!(metrics.sum("wsc_connections_total", &[]), 0.0, "none of them was a connection");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_tokens_in_one_query_do_not_add_up() {
    let server = guarded("", "").await;
    let (alice, bob) = (token("alice", TALK), token("bob", TALK));
    // Whichever is taken: it is one of them, whole, or a refusal.
    let target = format!("/ws?token={alice}&token={bob}");
    let response = upgrade(&server, &target, |h| h).await;
    assert!(matches!(response.status, 101 | 400 | 401), "{response:?}");
    let target = format!("/ws?token=x&token={bob}");
    let response = upgrade(&server, &target, |h| h).await;
    assert!(matches!(response.status, 400 | 401), "a good token does not cover for a bad one: {response:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_token_says_who_one_is_and_nothing_else_does() {
    let server = guarded("", "").await;
    let agent = token_with("alice", json!({"user_type": "agent", "permissions": TALK}));
    let options = ConnectOptions {
        query: &[("token", &agent), ("user_id", "bob"), ("user_type", "admin"), ("client_id", "phone")],
        headers: &[("X-User-ID", "carol"), ("X-User-Type", "system")],
        ..ConnectOptions::default()
    };
    let mut client = Client::connect_with(&server.ws_url(), &options).await;
    assert_eq!(client.user_id(), "alice");
    assert_eq!(client.client_id(), "phone");
    client.expect_quiet().await;
    let listed = super::call_ok(&server, "GET", "/api/clients?user_id=alice", &admin(), None).await;
    let listed = entries(&listed, "clients");
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(listed[0]["user_type"], "agent", "{listed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_are_read_as_the_contract_says() {
    let server = guarded("", "").await;
    let by_sub = token_with("x", json!({"user_id": null, "sub": "alice"}));
    assert_eq!(connect(&server, &by_sub).await.user_id(), "alice");
    let both = token_with("alice", json!({"sub": "bob"}));
    assert_eq!(connect(&server, &both).await.user_id(), "alice");
    let number = token_with("x", json!({"user_id": 42}));
    assert_eq!(connect(&server, &number).await.user_id(), "42");
    let nobody = token_with("x", json!({"user_id": null}));
    expect_refusal(&server, Some(&nobody), BAD_TOKEN).await;
    for id in [
        json!(""),
        json!("__root"),
        json!("wsc.hub"),
        json!("anon:0192"),
        json!("a\nb"),
        json!("x".repeat(129)),
        json!(1.5),
        json!(true),
        json!(["alice"]),
        json!({"alice": 1}),
    ] {
        let forged = token_with("x", json!({"user_id": id}));
        expect_refusal(&server, Some(&forged), BAD_TOKEN).await;
    }
    for (claim, value) in [
        ("user_type", json!("root")),
        ("permissions", json!("admin:system")),
        ("permissions", json!({"admin:system": true})),
        ("permissions", json!([1])),
    ] {
        let forged = token_with("alice", json!({claim: value}));
        expect_refusal(&server, Some(&forged), BAD_TOKEN).await;
    }
    // A scope of somebody else's API grants nothing and does no harm.
    let foreign = token_with("alice", json!({"permissions": ["read:mail", "admin:systems", "join:room"]}));
    let mut client = connect(&server, &foreign).await;
    client.request_error(super::direct("bob", &json!(1)), 2001).await;
    assert_eq!(call(&server, "GET", "/api/stats", &foreign, None).await.status, 403);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_takes_tokens_by_header_only() {
    let server = guarded("", "").await;
    let good = admin();
    assert_eq!(call(&server, "GET", "/api/stats", &good, None).await.status, 200);
    let path = format!("/api/stats{}", query(&[("token", &good)]));
    assert_refused(&server.get(&path).await, 401, 2000);
    let cookie = format!("token={good}");
    let answer = server.http("GET", "/api/stats", &[("Cookie", &cookie)], None).await;
    assert_refused(&answer, 401, 2000);
    let basic = [("Authorization", "Basic cm9vdDpyb290")];
    assert_eq!(server.http("GET", "/api/stats", &basic, None).await.status, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn api_keys_are_for_http() {
    let server = guarded("", API_KEYS).await;
    for headers in [[("X-API-Key", API_KEY)], [("Authorization", "Bearer api-key-of-a-back-end")]] {
        for path in ["/api/stats", "/api/clients", "/metrics", "/debug/hub/status"] {
            assert_eq!(server.http("GET", path, &headers, None).await.status, 200, "{path} with {headers:?}");
        }
    }
    let short = &API_KEY[..API_KEY.len() - 1];
    let long = format!("{API_KEY}x");
    let other_case = API_KEY.to_uppercase();
    for key in ["", short, &long, &other_case, "*", " "] {
        for path in ["/api/stats", "/metrics", "/debug/hub/status", "/api/rooms", "/health/failure-stats"] {
            let answer = server.http("GET", path, &[("X-API-Key", key)], None).await;
            assert_eq!(answer.status, 401, "{path} with {key:?}");
            assert_eq!(call(&server, "GET", path, key, None).await.status, 401, "{path} with Bearer {key:?}");
        }
    }
    // A wrong key is not made good by a right token beside it, nor the other way round.
    let bearer = format!("Bearer {}", admin());
    let both = [("X-API-Key", "wrong-key-of-a-back-end"), ("Authorization", bearer.as_str())];
    assert_eq!(server.http("GET", "/api/stats", &both, None).await.status, 401);
    // A client is a user, and a back end is none.
    expect_refusal(&server, Some(API_KEY), BAD_TOKEN).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_key_opens_the_api_while_authentication_is_off() {
    let server = crate::support::hub(API_KEYS).await;
    let forwarded = ("X-Forwarded-For", "203.0.113.9");
    let answer = server.http("GET", "/api/stats", &[forwarded], None).await;
    assert_eq!(answer.status, 403, "{answer:?}");
    let answer = server.http("GET", "/api/stats", &[forwarded, ("X-API-Key", API_KEY)], None).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = server.http("GET", "/api/stats", &[("X-API-Key", "wrong-key-of-a-back-end")], None).await;
    assert_eq!(answer.status, 401, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_makes_tokens_that_the_server_takes() {
    let server = guarded("", "").await;
    let made = |args: Vec<&'static str>| {
        let dir = server.dir().to_owned();
        async move {
            let launch = wsc_testkit::Launch { args: &args, files: &[], env: &[] };
            launch.run_in(&dir, crate::support::BIN).await
        }
    };
    let output = made(vec![
        "gen-token",
        "-u",
        "alice",
        "--ttl",
        "1h",
        "--user-type",
        "agent",
        "-p",
        "join:room:a-*",
        "-p",
        "create:room",
        "--jti",
        "t1",
        "--config",
        "settings.yaml",
    ])
    .await;
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8(output.stdout).unwrap();
    let token = printed.trim();
    let mut client = connect(&server, token).await;
    assert_eq!(client.user_id(), "alice");
    client.join("a-1").await;
    client.request_error(super::join("b-1"), 2001).await;
    let renewed = client.request_ok(authenticate(token), "authenticated").await;
    assert_eq!(renewed["data"]["user_id"], "alice", "{renewed}");

    let args: Vec<&'static str> = vec!["gen-token", "-u", "alice", "-t", "1s", "--config", "settings.yaml"];
    let output = made(args).await;
    let short = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let checked = |token: String| {
        let dir = server.dir().to_owned();
        async move {
            let args = ["check-token", token.as_str(), "--config", "settings.yaml"];
            wsc_testkit::Launch { args: &args, files: &[], env: &[] }.run_in(&dir, crate::support::BIN).await
        }
    };
    let output = checked(token.to_owned()).await;
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("alice"), "{output:?}");
    let mut forged = token.to_owned();
    forged.replace_range(forged.len() - 8.., "AAAAAAAA");
    for bad in [forged, "x".to_owned(), wsc_testkit::TokenKey::secret("HS256", "x".repeat(40)).token(&json!({}))] {
        let output = checked(bad).await;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
    }
    // It runs out in its own time; the server sees it end.
    let mut client = Client::open(&super::ws_url(&server, &short), &ConnectOptions::default()).await;
    let expiring = loop {
        let text = client.expect_text("the end of the token").await;
        if text.contains("token_expiring") {
            break text;
        }
    };
    assert!(expiring.contains("expires_at"), "{expiring}");
    let output = checked(short).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_band_a_bad_token_changes_nothing() {
    let server = guarded("", "").await;
    let mut alice = enter(&server, "alice").await;
    alice.join("r1").await;
    for bad in ["", "x", "a.b.c"] {
        let reply = alice.request(authenticate(bad)).await;
        assert!(matches!(reply["data"]["code"].as_i64(), Some(2000 | 2003)), "{reply}");
    }
    let old = token_with("alice", json!({"exp": wsc_testkit::unix_now() - 1}));
    alice.request_error(authenticate(&old), 2002).await;
    alice.request_error(json!({"message_type": "authenticate", "data": {}}), 1001).await;
    // Still alice, still in the room, still allowed.
    let mut bob = enter(&server, "bob").await;
    bob.join("r1").await;
    assert_eq!(alice.say("r1", json!(1)).await["data"]["recipients"], 1);
    assert_eq!(bob.expect("room_message").await["data"]["sender_id"], "alice");
    expect_authorized(&server, &token("alice", &[])).await;
    expect_unauthorized(&server, &old, 2002).await;
}
