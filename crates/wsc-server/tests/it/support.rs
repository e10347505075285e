//! What several modules share.

use std::collections::BTreeSet;

use serde_json::Value;
use wsc_testkit::{Handshake, HttpResponse, RawClient, ServerProcess, eventually};

/// The binary under test.
pub(crate) const BIN: &str = env!("CARGO_BIN_EXE_wsc");

/// Starts a server on a free port; `keys` are further settings of the section
/// `wsc`, in YAML's flow form.
pub(crate) async fn hub(keys: &str) -> ServerProcess {
    ServerProcess::start(BIN, &settings(keys)).await
}

/// The settings file of [`hub`].
pub(crate) fn settings(keys: &str) -> String {
    let comma = if keys.is_empty() { "" } else { ", " };
    format!("wsc: {{listen: \"127.0.0.1:0\"{comma}{keys}}}\n")
}

/// Sends a handshake for this target (changed by `change`) on a fresh
/// connection and gives the answer.
pub(crate) async fn upgrade(
    server: &ServerProcess,
    target: &str,
    change: impl FnOnce(Handshake) -> Handshake,
) -> HttpResponse {
    let mut client = RawClient::tcp(server.addr()).await;
    let handshake = change(Handshake::new(server.addr(), target));
    client.handshake(&handshake).await
}

/// Asserts that an object has exactly these fields.
#[track_caller]
pub(crate) fn assert_fields(value: &Value, fields: &[&str]) {
    let object = value.as_object().unwrap_or_else(|| panic!("no object: {value}"));
    let have: BTreeSet<&str> = object.keys().map(String::as_str).collect();
    let want: BTreeSet<&str> = fields.iter().copied().collect();
    assert_eq!(have, want, "in {value}");
}

/// Asserts the code of a close, and that its reason says in words and in
/// `reconnect` what the range of the code says.
#[track_caller]
pub(crate) fn assert_closed(closed: &(u16, Value), code: u16) {
    let (have, reason) = closed;
    assert_eq!(*have, code, "with reason {reason}");
    let reconnect = !matches!(code, 1009 | 3500..=3999 | 4500..=4999);
    assert_eq!(reason["reconnect"], reconnect, "of {code} in {reason}");
    assert!(reason["reason"].as_str().is_some_and(|text| !text.is_empty()), "no words in {reason}");
}

/// Asserts a refusal: status, and the code in the JSON body.
#[track_caller]
pub(crate) fn assert_refused(response: &HttpResponse, status: u16, code: i64) {
    assert_eq!(response.status, status, "{response:?}");
    assert_eq!(response.error_code(), code, "{response:?}");
}

/// Asserts that a plain message to somebody who is there was taken: it is
/// `sent`, or `pending` where another thread was about to end its write to the
/// same socket, which a busy machine makes likely.
#[track_caller]
pub(crate) fn assert_on_its_way(answer: &Value) {
    assert!(answer["outcome"] == "sent" || answer["outcome"] == "pending", "{answer}");
}

/// Whether the text is a UUID of version 7.
pub(crate) fn is_uuid_v7(text: &str) -> bool {
    let shape = text.char_indices().all(|(at, char)| match at {
        8 | 13 | 18 | 23 => char == '-',
        14 => char == '7',
        19 => matches!(char, '8' | '9' | 'a' | 'b'),
        _ => char.is_ascii_hexdigit() && !char.is_ascii_uppercase(),
    });
    shape && text.len() == 36
}

/// The entries of a list answer: the array itself, or the one under `name`.
#[track_caller]
pub(crate) fn entries(answer: &Value, name: &str) -> Vec<Value> {
    let list = answer.as_array().or_else(|| answer[name].as_array());
    list.unwrap_or_else(|| panic!("no list of {name} in {answer}")).clone()
}

/// What `GET /api/rooms` lists.
pub(crate) async fn rooms(server: &ServerProcess) -> Vec<Value> {
    let answer = server.get("/api/rooms").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    entries(&answer.json(), "rooms")
}

/// What `GET /api/rooms` says about this room.
pub(crate) async fn room(server: &ServerProcess, id: &str) -> Option<Value> {
    rooms(server).await.into_iter().find(|room| room["id"] == id)
}

/// The `client_count` of `GET /api/stats`.
pub(crate) async fn client_count(server: &ServerProcess) -> i64 {
    let answer = server.get("/api/stats").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = answer.json();
    answer["client_count"].as_i64().unwrap_or_else(|| panic!("no client_count in {answer}"))
}

/// Waits until so many connections are counted: the end of one is seen by the
/// client first and by the statistics a moment later.
pub(crate) async fn expect_clients(server: &ServerProcess, count: i64) {
    eventually(&format!("{count} connections are counted"), async || {
        (client_count(server).await == count).then_some(())
    })
    .await;
}
