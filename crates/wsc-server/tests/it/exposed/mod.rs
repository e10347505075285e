//! The hub on the open internet: what an attacker tries, and how each try ends.

mod anonymous;
mod bombs;
mod expiry;
mod forged;
mod impostors;
mod keys;
mod limits;
mod page;
mod permissions;
mod proxies;
mod races;
mod renewal;
mod revocation;
mod routes;
mod secrets;
mod slow;
mod smuggled;
mod surface;
mod tokens;

use serde_json::{Value, json};
use wsc_testkit::{Client, ConnectOptions, HttpResponse, ServerProcess, TokenKey, claims, query};

use crate::support::{assert_closed, assert_refused, hub, upgrade};

/// What signs the tokens of [`guarded`] servers.
const SECRET: &str = "an HMAC secret of well over 32 bytes, for tests";

/// A credential of back ends, for servers that have [`API_KEYS`].
const API_KEY: &str = "api-key-of-a-back-end";
const API_KEYS: &str = "http: {api_keys: [api-key-of-a-back-end]}";

/// What an ordinary client of a chat needs.
const TALK: &[&str] = &["join:room", "create:room", "send:message"];

/// A server that wants tokens signed with [`SECRET`]. `auth` are further keys
/// of the section `auth`, `keys` of the section `wsc`.
async fn guarded(auth: &str, keys: &str) -> ServerProcess {
    let comma = if keys.is_empty() { "" } else { ", " };
    hub(&format!("auth: {{enabled: true, secret_key: \"{SECRET}\", {auth}}}{comma}{keys}")).await
}

fn secret() -> TokenKey {
    TokenKey::secret("HS256", SECRET)
}

/// A good token of this user with these permissions.
fn token(user: &str, permissions: &[&str]) -> String {
    token_with(user, json!({"permissions": permissions}))
}

/// A good token of this user; `changes` as of [`claims`].
fn token_with(user: &str, changes: Value) -> String {
    secret().token(&claims(user, changes))
}

/// A token of an operator.
fn admin() -> String {
    token("root-of-tests", &["admin:system"])
}

/// Connects with this token.
async fn connect(server: &ServerProcess, token: &str) -> Client {
    Client::connect(&ws_url(server, token)).await
}

/// Connects as this user, who may talk.
async fn enter(server: &ServerProcess, user: &str) -> Client {
    connect(server, &token(user, TALK)).await
}

fn ws_url(server: &ServerProcess, token: &str) -> String {
    format!("{}{}", server.ws_url(), query(&[("token", token)]))
}

/// Asserts that the upgrade with this token is refused in both ways: with a
/// status and code, and with a close for a client that offers our subprotocol.
/// A client without a token has `None`.
#[track_caller]
fn expect_refusal<'a>(
    server: &'a ServerProcess,
    token: Option<&'a str>,
    (status, code, close): (u16, i64, u16),
) -> impl Future<Output = ()> + use<'a> {
    let caller = std::panic::Location::caller();
    async move {
        let parameters: Vec<(&str, &str)> = token.map(|token| ("token", token)).into_iter().collect();
        let target = format!("/ws{}", query(&parameters));
        let response = upgrade(server, &target, |h| h).await;
        assert_eq!(response.status, status, "from {caller}: {response:?}");
        assert_eq!(response.error_code(), code, "from {caller}: {response:?}");
        let options = ConnectOptions { query: &parameters, subprotocols: &["wsc.v1"], ..ConnectOptions::default() };
        let mut client = Client::open(&server.ws_url(), &options).await;
        assert_closed(&client.expect_close().await, close);
    }
}

/// No token, or one that is not good.
const NO_TOKEN: (u16, i64, u16) = (401, 2000, 3500);
const BAD_TOKEN: (u16, i64, u16) = (401, 2003, 3500);
const OLD_TOKEN: (u16, i64, u16) = (401, 2002, 3005);

/// One HTTP request with a token (or API key) as `Authorization: Bearer`.
async fn call(server: &ServerProcess, method: &str, path: &str, token: &str, body: Option<&Value>) -> HttpResponse {
    let authorization = format!("Bearer {token}");
    let headers = [("Authorization", authorization.as_str()), ("Content-Type", "application/json")];
    let body = body.map(Value::to_string);
    server.http(method, path, &headers, body.as_ref().map(String::as_bytes)).await
}

/// [`call`], which must be answered with a status of 2xx; gives the body.
async fn call_ok(server: &ServerProcess, method: &str, path: &str, token: &str, body: Option<&Value>) -> Value {
    let answer = call(server, method, path, token, body).await;
    assert!((200..300).contains(&answer.status), "{method} {path}: {answer:?}");
    if answer.body.is_empty() { Value::Null } else { answer.json() }
}

/// Scrapes the metrics of a guarded server.
async fn metrics(server: &ServerProcess) -> wsc_testkit::Metrics {
    let answer = call(server, "GET", "/metrics", &admin(), None).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    wsc_testkit::Metrics::parse(answer.text())
}

/// Says with `authenticate` who one is.
fn authenticate(token: &str) -> Value {
    json!({"message_type": "authenticate", "data": {"token": token}})
}

/// A `join_room` request.
fn join(room: &str) -> Value {
    json!({"message_type": "join_room", "data": {"room_id": room}})
}

/// A direct message.
fn direct(to: &str, content: &Value) -> Value {
    json!({"message_type": "direct_message", "data": {"target_id": to, "content": content}})
}

/// Asserts that HTTP takes this token for nobody's: 401 with this code.
async fn expect_unauthorized(server: &ServerProcess, token: &str, code: i64) {
    // Needs to be somebody, and no more.
    let answer = call(server, "GET", "/api/messages/no-such-message", token, None).await;
    assert_refused(&answer, 401, code);
}

/// Asserts that HTTP takes this token for somebody's.
async fn expect_authorized(server: &ServerProcess, token: &str) {
    let answer = call(server, "GET", "/api/messages/no-such-message", token, None).await;
    assert!(matches!(answer.status, 403 | 404), "{answer:?}");
}
