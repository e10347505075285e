//! What an operator does with a running hub: gives it other settings, listens to its events, sends it home.

mod drain;
mod drain_messages;
mod foreign;
mod long;
mod reload;
mod reload_auth;
mod reload_callbacks;
mod reload_delivery;
mod reload_edge;
mod reload_load;
mod reload_refused;
mod reload_table;
mod reload_there;
mod webhook_outages;
mod webhook_refusals;
mod webhooks;

use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use wsc_testkit::{Client, HttpResponse, Post, ServerProcess, WebhookReceiver, eventually};

use crate::support::{hub, settings};

async fn connect(server: &ServerProcess, user: &str) -> Client {
    Client::connect(&server.ws_url_as(user)).await
}

/// Puts a file in the place of another one, or of none, in one step.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, path).unwrap();
}

/// Writes the settings file of a server that [`hub`] started, with these keys instead of the former.
fn rewrite(server: &ServerProcess, keys: &str) {
    replace(&server.dir().join("settings.yaml"), &settings(keys));
}

async fn reload(server: &ServerProcess) -> HttpResponse {
    server.http("POST", "/api/admin/config/reload", &[], Some(b"")).await
}

/// Gives a server that [`hub`] started these keys instead of the former; they apply when this returns. Gives what the
/// hub says about it.
async fn reconfigure(server: &ServerProcess, keys: &str) -> Value {
    rewrite(server, keys);
    let answer = reload(server).await;
    assert_eq!(answer.status, 200, "{keys}: {answer:?}");
    answer.json()
}

/// `GET /debug/hub/status`.
async fn status(server: &ServerProcess) -> Value {
    let answer = server.get("/debug/hub/status").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// The value that a key has in the running hub.
async fn running(server: &ServerProcess, path: &str) -> Value {
    at(&status(server).await["current_config"], path).clone()
}

/// What stands under a dotted path.
#[track_caller]
fn at<'a>(config: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(config, |map, name| map.get(name).unwrap_or_else(|| panic!("no {path} in {config}")))
}

/// Waits until a key of the running hub has this value.
async fn expect_running(server: &ServerProcess, path: &str, value: &Value) {
    eventually(&format!("{path} is {value}"), async || (running(server, path).await == *value).then_some(())).await;
}

/// How often settings were read again with this result: `applied`, `rejected` or `unchanged`.
async fn reloads(server: &ServerProcess, result: &str) -> f64 {
    server.metrics().await.sum("wsc_config_reloads_total", &[("result", result)])
}

/// Sends the process of this server a signal.
fn send_signal(server: &ServerProcess, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(server.pid()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// The keys that have events posted to this receiver, to be joined with others.
fn callbacks(receiver: &WebhookReceiver, more: &str) -> String {
    let interval = if more.contains("batch_interval") { "" } else { ", batch_interval: 10ms" };
    let comma = if more.is_empty() { "" } else { ", " };
    let url = receiver.url();
    format!(
        "callbacks: {{enable_webhooks: true, webhook_url: \"{url}\", allow_private_addresses: true{interval}{comma}{more}}}"
    )
}

/// A hub that posts its events to this receiver; `more` are further keys of `callbacks`, `keys` of `wsc`.
async fn hub_with_webhooks(receiver: &WebhookReceiver, more: &str, keys: &str) -> ServerProcess {
    let comma = if keys.is_empty() { "" } else { ", " };
    hub(&format!("{}{comma}{keys}", callbacks(receiver, more))).await
}

/// Whether it is an event of this type about this user.
fn is_about(event: &Value, event_type: &str, user: &str) -> bool {
    event["type"] == event_type && event["data"]["user_id"] == user
}

/// What a test compares of events: type and user.
fn short(event: &Value) -> (String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&event["type"]), text(&event["data"]["user_id"]))
}

/// The ids of all events that were posted, taken or not: whoever receives one again knows it by that.
fn ids(posts: &[Post]) -> Vec<String> {
    posts.iter().flat_map(Post::events).map(|event| event["id"].as_str().unwrap().to_owned()).collect()
}

/// Sends something that is not acknowledged to a user; gives the answer of the HTTP API.
async fn push(server: &ServerProcess, user: &str, content: Value) -> HttpResponse {
    server.post(&format!("/api/users/{user}/messages"), &json!({"content": content})).await
}
