//! Messages with a known fate: acknowledgements, the inbox, and what the sender learns.

mod ack;
mod debug;
mod http_sends;
mod idempotency;
mod inbox;
mod kill9;
mod metrics_sum;
mod outcomes;
mod priorities;
mod receipts;
mod replay;
mod resends;
mod rooms;
mod slow;
mod store_faults;
mod without_store;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wsc_testkit::{Client, Ledger, ServerProcess, WAIT, encode, eventually};

/// Times so short that a test sees all attempts of a message. For tests about
/// resends only: a slow machine may need longer for an ACK.
const QUICK: &str = "ack_timeout: 200ms, ack_retry_interval: 100ms, ack_max_retries: 2";

async fn connect(server: &ServerProcess, user: &str) -> Client {
    Client::connect(&server.ws_url_as(user)).await
}

/// A direct message with `require_ack`.
fn reliable(to: &str, content: &Value) -> Value {
    json!({"message_type": "direct_message", "require_ack": true, "data": {"target_id": to, "content": content}})
}

/// Sends a message that must be acknowledged; gives the `data` of the answer.
async fn tell_reliably(from: &mut Client, to: &str, content: Value) -> Value {
    let accepted = from.request_ok(reliable(to, &content), "accepted").await;
    accepted["data"].clone()
}

/// Sends a message with this outcome at once; gives its id.
async fn tell_with_outcome(from: &mut Client, to: &str, content: Value, outcome: &str) -> String {
    let accepted = tell_reliably(from, to, content).await;
    assert_eq!(accepted["outcome"], outcome, "{accepted}");
    text(&accepted["id"])
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

/// The fate of a message for this user, as `GET /api/messages/{id}` tells it.
async fn fate(server: &ServerProcess, id: &str, user: &str) -> Value {
    let answer = server.get(&format!("/api/messages/{id}")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = answer.json();
    assert_eq!(answer["id"], id, "{answer}");
    fate_in(&answer, user)
}

/// The entry of this user in a `message_status`, a `message_outcome`, or the
/// answer of `GET /api/messages/{id}`.
#[track_caller]
fn fate_in(status: &Value, user: &str) -> Value {
    let recipients = status["recipients"].as_array().unwrap_or_else(|| panic!("no recipients in {status}"));
    let fate = recipients.iter().find(|entry| entry["user_id"] == user);
    fate.unwrap_or_else(|| panic!("nothing about {user} in {status}")).clone()
}

/// Waits until the message has this outcome for the user; gives the fate.
async fn expect_outcome(server: &ServerProcess, id: &str, user: &str, outcome: &str) -> Value {
    let start = Instant::now();
    loop {
        let fate = fate(server, id, user).await;
        if fate["outcome"] == outcome {
            return fate;
        }
        assert!(start.elapsed() < WAIT, "{id} is not {outcome} but {fate}");
    }
}

/// Waits until the hub knows that the user has no connection.
async fn expect_away(server: &ServerProcess, user: &str) {
    let path = format!("/api/users/{}", encode(user));
    eventually(&format!("{user} is away"), async || (server.get(&path).await.json()["online"] == false).then_some(()))
        .await;
}

/// Scrapes until the figures are like this, and checks the sum each time;
/// gives the last.
async fn expect_ledger(server: &ServerProcess, what: &str, mut is_so: impl FnMut(&Ledger) -> bool) -> Ledger {
    let start = Instant::now();
    loop {
        let ledger = server.metrics().await.ledger();
        ledger.check();
        if is_so(&ledger) {
            return ledger;
        }
        assert!(start.elapsed() < WAIT, "not so after {WAIT:?}: {what}; {ledger:?}");
    }
}

/// Leaves for good, and waits until the hub knows.
async fn leave(server: &ServerProcess, client: Client) {
    let user = client.user_id().to_owned();
    client.close().await;
    expect_away(server, &user).await;
}

/// Keeps the connection busy until so much time has passed, and expects that
/// nothing comes: for what must not happen meanwhile.
async fn expect_quiet_for(client: &mut Client, time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        client.expect_quiet().await;
    }
}

/// Takes this many messages of the type and gives their contents.
async fn contents(client: &mut Client, message_type: &str, count: usize) -> Vec<Value> {
    let mut contents = Vec::with_capacity(count);
    for _ in 0..count {
        contents.push(client.expect(message_type).await["data"]["content"].clone());
    }
    contents
}

/// Takes the next `direct_message`, acknowledges it and gives its content.
async fn take(client: &mut Client) -> Value {
    let delivery = client.expect_reliable("direct_message").await;
    client.ack(&[&text(&delivery["id"])]).await;
    delivery["data"]["content"].clone()
}

/// The figure of `wsc_acks_ignored_total`, all reasons together.
async fn ignored_acks(server: &ServerProcess) -> f64 {
    server.metrics().await.sum("wsc_acks_ignored_total", &[])
}

/// What is in the inbox of a user, and what it has not acknowledged.
async fn user(server: &ServerProcess, id: &str) -> Value {
    let answer = server.get(&format!("/api/users/{}", encode(id))).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// How many messages are in the inbox, by what `GET /api/users/{id}` says.
fn inbox_depth(user: &Value) -> u64 {
    let inbox = &user["inbox"];
    let depth = inbox["messages"].as_u64().or_else(|| inbox.as_u64()).or_else(|| user["inbox_depth"].as_u64());
    depth.unwrap_or_else(|| panic!("no depth of the inbox in {user}"))
}
