//! New settings of authentication do what they say, and tokens of old keys are worth nothing.

use serde_json::{Value, json};
use wsc_testkit::{Client, Launch, ServerProcess, TokenKey, claims, eventually};

use super::replace;
use crate::support::{BIN, hub, settings, upgrade};

const FIRST: &str = "0123456789abcdef0123456789abcdef";
const SECOND: &str = "fedcba9876543210fedcba9876543210";

/// Opens what an operator needs, whatever becomes of the tokens.
const API_KEY: &str = "0123456789abcdef0123";

fn keys(auth: &str) -> String {
    format!("http: {{api_keys: [{API_KEY}]}}, auth: {{enabled: true, {auth}}}")
}

async fn guarded(auth: &str) -> ServerProcess {
    hub(&keys(auth)).await
}

/// As [`super::reconfigure`], with an API key.
async fn reconfigure(server: &ServerProcess, auth: &str) -> Value {
    replace(&server.dir().join("settings.yaml"), &settings(&keys(auth)));
    let headers = [("X-API-Key", API_KEY)];
    let answer = server.http("POST", "/api/admin/config/reload", &headers, Some(b"")).await;
    assert_eq!(answer.status, 200, "{auth}: {answer:?}");
    answer.json()
}

fn token(secret: &str, changes: Value) -> String {
    TokenKey::secret("HS256", secret).token(&claims("alice", changes))
}

async fn try_token(server: &ServerProcess, token: &str) -> u16 {
    upgrade(server, &format!("/ws?token={token}"), |h| h).await.status
}

async fn with_token(server: &ServerProcess, token: &str) -> Client {
    Client::connect(&format!("{}?token={token}", server.ws_url())).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_key_takes_the_place_of_the_old_one() {
    let server = guarded(&format!("secret_key: {FIRST}")).await;
    let mut old = with_token(&server, &token(FIRST, json!({}))).await;
    assert_eq!(try_token(&server, &token(SECOND, json!({}))).await, 401);
    reconfigure(&server, &format!("secret_key: {SECOND}")).await;
    assert_eq!(try_token(&server, &token(FIRST, json!({}))).await, 401);
    with_token(&server, &token(SECOND, json!({}))).await.expect_quiet().await;
    // A connection is not asked again before its token ends.
    old.expect_quiet().await;
    let renew = json!({"message_type": "authenticate", "data": {"token": token(FIRST, json!({}))}});
    old.request_error(renew, 2003).await;
    let renew = json!({"message_type": "authenticate", "data": {"token": token(SECOND, json!({}))}});
    old.request_ok(renew, "authenticated").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_too_short_is_refused_and_not_told() {
    let server = guarded(&format!("secret_key: {FIRST}")).await;
    replace(&server.dir().join("settings.yaml"), &settings(&keys("secret_key: hunter2")));
    let answer = server.http("POST", "/api/admin/config/reload", &[("X-API-Key", API_KEY)], Some(b"")).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    assert!(answer.text().contains("secret_key") && !answer.text().contains("hunter2"), "{answer:?}");
    assert_eq!(try_token(&server, &token(FIRST, json!({}))).await, 101);
    assert_eq!(try_token(&server, &token("hunter2", json!({}))).await, 401);
    assert!(!server.log().contains("hunter2"), "{}", server.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_file_that_changes_is_read_again_by_itself() {
    let launch = Launch {
        args: &["serve", "--config", "settings.yaml"],
        files: &[("settings.yaml", &settings(&keys("secret_key_file: secret.key"))), ("secret.key", FIRST)],
        env: &[],
    };
    let server = ServerProcess::launch(BIN, &launch).await;
    assert_eq!(try_token(&server, &token(FIRST, json!({}))).await, 101);
    replace(&server.dir().join("secret.key"), SECOND);
    let new = token(SECOND, json!({}));
    eventually("the new key is taken", async || (try_token(&server, &new).await == 101).then_some(())).await;
    assert_eq!(try_token(&server, &token(FIRST, json!({}))).await, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_kind_of_key_is_another_kind_of_token() {
    let server = guarded(&format!("secret_key: {FIRST}")).await;
    let key = TokenKey::ed25519();
    let pem = key.public_pem().replace('\n', "\\n");
    let signed = key.token(&claims("alice", json!({})));
    assert_eq!(try_token(&server, &signed).await, 401);
    reconfigure(&server, &format!("public_key: \"{pem}\"")).await;
    assert_eq!(try_token(&server, &signed).await, 101);
    assert_eq!(try_token(&server, &token(FIRST, json!({}))).await, 401);
    // Nor may the public key be somebody's secret now.
    assert_eq!(try_token(&server, &token(&key.public_pem(), json!({}))).await, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn issuer_and_audience() {
    let server = guarded(&format!("secret_key: {FIRST}")).await;
    let good = token(FIRST, json!({}));
    let elsewhere = token(FIRST, json!({"iss": "elsewhere", "aud": "hub"}));
    assert_eq!((try_token(&server, &good).await, try_token(&server, &elsewhere).await), (101, 401));
    reconfigure(&server, &format!("secret_key: {FIRST}, issuer: elsewhere")).await;
    assert_eq!((try_token(&server, &good).await, try_token(&server, &elsewhere).await), (401, 101));
    reconfigure(&server, &format!("secret_key: {FIRST}, issuer: elsewhere, audience: other")).await;
    assert_eq!(try_token(&server, &elsewhere).await, 401);
    reconfigure(&server, &format!("secret_key: {FIRST}, issuer: elsewhere, audience: hub")).await;
    assert_eq!(try_token(&server, &elsewhere).await, 101);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anonymous_visitors_and_what_they_may() {
    let server = guarded(&format!("secret_key: {FIRST}")).await;
    assert_eq!(upgrade(&server, "/ws", |h| h).await.status, 401);
    reconfigure(&server, &format!("secret_key: {FIRST}, allow_anonymous: true")).await;
    let mut visitor = Client::connect(&server.ws_url()).await;
    assert!(visitor.user_id().starts_with("anon:"), "{}", visitor.user_id());
    let join = json!({"message_type": "join_room", "data": {"room_id": "r1"}});
    visitor.request_error(join.clone(), 2001).await;
    let may = "allow_anonymous: true, anonymous_permissions: [\"join:room\", \"create:room\", \"send:message\"]";
    reconfigure(&server, &format!("secret_key: {FIRST}, {may}")).await;
    // Permissions apply to all, also to those that are there.
    visitor.request_ok(join.clone(), "room_joined").await;
    visitor.say("r1", json!(1)).await;
    reconfigure(&server, &format!("secret_key: {FIRST}, allow_anonymous: true")).await;
    // What it may no longer be in it is removed from.
    let left = visitor.expect("room_left").await;
    assert_eq!((&left["data"]["room_id"], &left["data"]["status"]), (&json!("r1"), &json!("removed")), "{left}");
    let say = json!({"message_type": "room_message", "data": {"room_id": "r1", "content": 1}});
    visitor.request_error(say, 2001).await;
    reconfigure(&server, &format!("secret_key: {FIRST}")).await;
    assert_eq!(upgrade(&server, "/ws", |h| h).await.status, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_other_origins() {
    let server = guarded(&format!("secret_key: {FIRST}")).await;
    let target = format!("/ws?token={}", token(FIRST, json!({})));
    let from = async |origin: &str| upgrade(&server, &target, |h| h.add("Origin", origin)).await.status;
    assert_eq!(from("https://app.example").await, 403);
    reconfigure(&server, &format!("secret_key: {FIRST}, allowed_origins: [\"https://app.example\"]")).await;
    assert_eq!(from("https://app.example").await, 101);
    assert_eq!(from("https://app.example.evil").await, 403);
    reconfigure(&server, &format!("secret_key: {FIRST}")).await;
    assert_eq!(from("https://app.example").await, 403);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_that_a_connection_outlives_its_token() {
    let server = guarded(&format!("secret_key: {FIRST}, expiry_grace: 1h")).await;
    let short = token(FIRST, json!({"exp": wsc_testkit::unix_now() + 2}));
    let mut alice = with_token(&server, &short).await;
    reconfigure(&server, &format!("secret_key: {FIRST}, expiry_grace: 100ms")).await;
    alice.expect("token_expiring").await;
    crate::support::assert_closed(&alice.expect_close().await, 3005);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn switching_authentication_waits_for_a_restart() {
    let server = hub("").await;
    let said = super::reconfigure(&server, &format!("auth: {{enabled: true, secret_key: {FIRST}}}")).await;
    let waits = said["pending_restart"].as_array().unwrap();
    assert!(waits.contains(&json!("auth.enabled")), "{said}");
    // Not half of it.
    Client::connect(&server.ws_url_as("alice")).await.expect_quiet().await;
    assert_eq!(server.get("/api/stats").await.status, 200);
}
