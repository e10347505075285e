//! Events that are posted: which, in what form, signed by what, in which order.

use std::collections::BTreeSet;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use wsc_testkit::{Answer, Client, Post, WebhookReceiver, eventually, within};

use super::{connect, hub_with_webhooks, is_about, push, short};
use crate::support::{assert_fields, is_uuid_v7};

const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

fn types(events: &[Value]) -> BTreeSet<&str> {
    events.iter().filter_map(|event| event["type"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_to_a_client_is_told_in_order() {
    let receiver = WebhookReceiver::start().await;
    let server = hub_with_webhooks(&receiver, "", "presence_debounce: 10ms, node_id: n1").await;
    let mut alice = Client::connect(&server.ws_url_for("alice", "phone")).await;
    alice.join("r1").await;
    let session = alice.session().to_owned();
    alice.close().await;
    receiver.event("alice is away", |event| is_about(event, "user.offline", "alice")).await;
    let events = receiver.events();
    let of_alice: Vec<String> =
        events.iter().filter(|event| event["data"]["user_id"] == "alice").map(|event| short(event).0).collect();
    for pair in [
        ["client.connected", "room.joined"],
        ["room.joined", "client.disconnected"],
        ["client.disconnected", "user.offline"],
    ] {
        let [first, second] = pair.map(|name| of_alice.iter().position(|of| of == name));
        assert!(first.is_some() && first < second, "{pair:?} in {of_alice:?}");
    }
    assert!(of_alice.iter().any(|name| name == "user.online"), "{of_alice:?}");
    assert!(of_alice.iter().any(|name| name == "room.left"), "{of_alice:?}");
    let gone = events.iter().find(|event| event["type"] == "client.disconnected").unwrap();
    assert_fields(gone, &["id", "type", "timestamp", "data"]);
    assert!(is_uuid_v7(gone["id"].as_str().unwrap()), "{gone}");
    let now = wsc_testkit::unix_now() * 1000;
    assert!(gone["timestamp"].as_u64().unwrap().abs_diff(now) < 60_000, "{gone}");
    assert_eq!(gone["data"]["client_id"], "phone", "{gone}");
    assert_eq!(gone["data"]["session"], session.as_str(), "{gone}");
    assert_eq!(gone["data"]["reason"], "client_request", "{gone}");
    assert!(gone["data"]["duration_ms"].is_u64(), "{gone}");
    assert!(
        events.iter().any(|event| event["type"] == "hub.started" && event["data"]["node_id"] == "n1"),
        "{receiver}"
    );
    // Each has an id of its own.
    let ids: BTreeSet<&str> = events.iter().map(|event| event["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), events.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_as_the_standard_says() {
    let receiver = WebhookReceiver::start().await;
    let more = format!("signing_secrets: [\"{SECRET}\"], headers: {{X-Tenant: acme}}");
    let server = hub_with_webhooks(&receiver, &more, "node_id: n1").await;
    connect(&server, "alice").await.close().await;
    receiver.event("alice", |event| is_about(event, "client.disconnected", "alice")).await;
    let mut ids = BTreeSet::new();
    for post in receiver.posts() {
        assert_eq!((post.method.as_str(), post.target.as_str()), ("POST", "/hook"));
        assert_eq!(post.header("content-type"), Some("application/json"));
        assert!(post.header("user-agent").is_some_and(|agent| agent.starts_with("wsc")), "{post:?}");
        assert_eq!(post.header("x-tenant"), Some("acme"));
        assert_eq!(post.header("cookie"), None);
        assert_eq!(post.header("referer"), None);
        let body = post.json();
        assert_fields(&body, &["id", "node_id", "events"]);
        assert_eq!(body["node_id"], "n1");
        assert!(post.id().starts_with("msg_"), "{body}");
        assert_eq!(post.header("webhook-id"), Some(post.id().as_str()));
        assert_eq!(post.verify(SECRET), Ok(()));
        assert!(post.verify("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").is_err());
        assert!(ids.insert(post.id()), "{} twice", post.id());
    }
    let log = server.log();
    assert!(!log.contains(SECRET) && !log.contains("acme"), "{log}");
}

/// Verifies a request as somebody does who has read the standard and has no library: in Python.
const BY_HAND: &str = "
import base64, hashlib, hmac, json, sys
post = json.load(sys.stdin)
key = base64.b64decode(post['secret'].removeprefix('whsec_'))
signed = '.'.join([post['id'], post['timestamp'], post['body']]).encode()
mine = 'v1,' + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
sys.exit(0 if mine in post['signature'].split(' ') else 1)
";

async fn is_valid_by_hand(post: &Post, secret: &str) -> bool {
    let header = |name: &str| post.header(name).unwrap().to_owned();
    let input = json!({
        "id": header("webhook-id"), "timestamp": header("webhook-timestamp"),
        "signature": header("webhook-signature"), "body": String::from_utf8(post.body.clone()).unwrap(),
        "secret": secret,
    });
    let mut python =
        tokio::process::Command::new("python3").args(["-c", BY_HAND]).stdin(Stdio::piped()).spawn().unwrap();
    python.stdin.take().unwrap().write_all(input.to_string().as_bytes()).await.unwrap();
    within("the end of Python", python.wait()).await.unwrap().success()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs python3"]
async fn a_signature_can_be_verified_with_the_means_of_a_language() {
    let other = "whsec_bm90IHRoZSBzYW1lIHNlY3JldCBhdCBhbGwhISEh";
    let receiver = WebhookReceiver::start().await;
    let more = format!("signing_secrets: [\"{other}\", \"{SECRET}\"]");
    let server = hub_with_webhooks(&receiver, &more, "").await;
    connect(&server, "ällice").await.close().await;
    receiver.event("she", |event| is_about(event, "client.disconnected", "ällice")).await;
    for post in receiver.posts() {
        assert!(is_valid_by_hand(&post, SECRET).await, "{post:?}");
        assert!(is_valid_by_hand(&post, other).await, "{post:?}");
        assert!(!is_valid_by_hand(&post, "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").await, "{post:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_told_only_to_who_asks() {
    let receiver = WebhookReceiver::start().await;
    let server = hub_with_webhooks(&receiver, "", "").await;
    let mut alice = connect(&server, "alice").await;
    let _bob = connect(&server, "bob").await;
    alice.tell("bob", json!("secret words")).await;
    alice.close().await;
    receiver.event("alice", |event| is_about(event, "client.disconnected", "alice")).await;
    let events = receiver.events();
    assert!(types(&events).iter().all(|name| !name.starts_with("message.")), "{receiver}");

    let receiver = WebhookReceiver::start().await;
    let filters = "event_filters: [\"message.*\", \"client.disconnected\"]";
    let server = hub_with_webhooks(&receiver, filters, "").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    let accepted = alice.tell("bob", json!("secret words")).await;
    bob.expect("direct_message").await;
    let id = &accepted["data"]["id"];
    for name in ["message.sent", "message.delivered"] {
        let event = receiver.event(name, |event| event["type"] == name && event["data"]["message_id"] == *id).await;
        assert_eq!(event["data"]["sender_id"], "alice", "{event}");
        assert_eq!(event["data"]["message_type"], "direct_message", "{event}");
    }
    alice.close().await;
    receiver.event("alice", |event| is_about(event, "client.disconnected", "alice")).await;
    let events = receiver.events();
    let have = types(&events);
    let want = ["client.disconnected", "message.delivered", "message.received", "message.sent"];
    assert!(have.iter().all(|name| want.contains(name)), "{have:?}");
    for post in receiver.posts() {
        assert!(!String::from_utf8_lossy(&post.body).contains("secret words"), "a payload is told: {post:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_are_no_larger_than_they_may_be() {
    let receiver = WebhookReceiver::start().await;
    let keys = "event_filters: [\"room.joined\"], batch_max: 7, batch_interval: 500ms";
    let server = hub_with_webhooks(&receiver, keys, "").await;
    let mut alice = connect(&server, "alice").await;
    for n in 0..50 {
        alice.join(&format!("r{n}")).await;
    }
    let rooms = receiver
        .wait("fifty rooms", |posts| {
            let events: Vec<Value> = posts.iter().flat_map(Post::events).collect();
            (events.len() >= 50).then_some(events)
        })
        .await;
    let order: Vec<String> = (0..50).map(|n| format!("r{n}")).collect();
    let have: Vec<&str> = rooms.iter().map(|event| event["data"]["room_id"].as_str().unwrap()).collect();
    assert_eq!(have, order);
    let sizes: Vec<usize> = receiver.posts().iter().map(|post| post.events().len()).collect();
    assert!(sizes.iter().all(|size| *size <= 7), "{sizes:?}");
    assert!(sizes.len() <= 20, "they are hardly collected: {sizes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_order_of_a_user_holds_through_failures() {
    let receiver = WebhookReceiver::start().await;
    // Every other request fails at first, in different ways.
    let turn = std::sync::atomic::AtomicU32::new(0);
    receiver.answer_with(move |_| match turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 6 {
        1 => Answer::status(500),
        3 => Answer::retry_after(429, "0"),
        5 => Answer::cut(),
        _ => Answer::status(200),
    });
    let server = hub_with_webhooks(&receiver, "event_filters: [\"room.joined\"], batch_max: 10", "").await;
    let mut clients = Vec::new();
    for user in ["alice", "bob", "carol"] {
        clients.push(connect(&server, user).await);
    }
    for n in 0..20 {
        for client in &mut clients {
            client.join(&format!("r{n}")).await;
        }
    }
    let long = wsc_testkit::WAIT * 6;
    let all =
        |posts: &[Post]| posts.iter().filter(|post| post.is_taken()).map(|post| post.events().len()).sum::<usize>();
    receiver.wait_for_long(long, "all rooms", |posts| (all(posts) >= 60).then_some(())).await;
    for user in ["alice", "bob", "carol"] {
        let rooms: Vec<String> = receiver
            .events()
            .iter()
            .filter(|event| event["data"]["user_id"] == user)
            .map(|event| event["data"]["room_id"].as_str().unwrap().to_owned())
            .collect();
        let want: Vec<String> = (0..20).map(|n| format!("r{n}")).collect();
        assert_eq!(rooms, want, "of {user}");
    }
    // What came twice has the same id and the same bytes.
    let posts = receiver.posts();
    for post in posts.iter().filter(|post| !post.is_taken()) {
        let again = posts.iter().find(|other| other.is_taken() && other.id() == post.id());
        assert_eq!(again.map(|again| &again.body), Some(&post.body), "{post:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_goes_from_the_request_to_the_webhook() {
    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let receiver = WebhookReceiver::start().await;
    let server = hub_with_webhooks(&receiver, "event_filters: [\"message.*\"]", "").await;
    let mut bob = connect(&server, "bob").await;
    let headers = [("Content-Type", "application/json"), ("traceparent", PARENT)];
    let body = br#"{"content":"traced"}"#;
    let traced = server.http("POST", "/api/users/bob/messages", &headers, Some(body)).await.json();
    bob.expect("user_message").await;
    let plain = push(&server, "bob", json!("plain")).await.json();
    for name in ["message.sent", "message.delivered"] {
        let of = |answer: &Value| {
            let id = answer["id"].clone();
            move |event: &Value| event["type"] == name && event["data"]["message_id"] == id
        };
        let event = receiver.event(name, of(&traced)).await;
        let parent = event["traceparent"].as_str().unwrap_or_else(|| panic!("no trace in {event}"));
        assert!(parent.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-") && parent.ends_with("-01"), "{event}");
        let event = receiver.event(name, of(&plain)).await;
        assert_eq!(event.get("traceparent"), None, "{event}");
    }
    let of_trace = |post: &Post| post.events().iter().any(|event| event["data"]["message_id"] == traced["id"]);
    for post in receiver.posts().iter().filter(|post| of_trace(post)) {
        let parent = post.header("traceparent").unwrap_or_else(|| panic!("no trace in {post:?}"));
        assert!(parent.contains("4bf92f3577b34da6a3ce929d0e0e4736"), "{parent}");
    }
    // A context that is none is nobody's.
    let headers = [("Content-Type", "application/json"), ("traceparent", "00-zz-1-01")];
    let answer = server.http("POST", "/api/users/bob/messages", &headers, Some(br#"{"content":1}"#)).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let id = answer.json()["id"].clone();
    let event = receiver.event("the third", |event| event["data"]["message_id"] == id).await;
    assert_eq!(event.get("traceparent"), None, "{event}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_counted_and_timed() {
    let receiver = WebhookReceiver::start().await;
    receiver.answer_next([Answer::status(500), Answer::status(204)]);
    let server = hub_with_webhooks(&receiver, "", "").await;
    connect(&server, "alice").await.close().await;
    receiver.event("alice", |event| is_about(event, "client.disconnected", "alice")).await;
    eventually("all answers are counted", async || {
        let metrics = server.metrics().await;
        let posts = receiver.posts();
        let count = |status: &str| metrics.sum("wsc_webhook_requests_total", &[("status", status)]);
        let have =
            count("500") + count("5xx") == 1.0 && metrics.sum("wsc_webhook_requests_total", &[]) == posts.len() as f64;
        have.then_some(())
    })
    .await;
    let metrics = eventually("nothing waits", async || {
        let metrics = server.metrics().await;
        (metrics.sum("wsc_webhook_waiting_batches", &[]) == 0.0).then_some(metrics)
    })
    .await;
    assert!(metrics.sum("wsc_webhook_latency_seconds_count", &[]) >= 2.0);
    for name in ["wsc_webhook_events_dropped_total", "wsc_webhook_waiting_batches", "wsc_webhook_dead"] {
        assert!(metrics.has(name), "{name}");
        assert_eq!(metrics.sum(name, &[]), 0.0, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_hangs_slows_nobody_down() {
    let receiver = WebhookReceiver::start().await;
    receiver.answer(Answer::hang());
    let server = hub_with_webhooks(&receiver, "webhook_timeout: 5m, event_filters: [\"*\"]", "").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    receiver.requests(1).await;
    for n in 0..2000 {
        alice.tell("bob", json!(n)).await;
        assert_eq!(bob.expect("direct_message").await["data"]["content"], n);
    }
    // Every wait above ends after seconds; more events wait than a batch holds, and still only one request.
    let metrics = server.metrics().await;
    metrics.ledger().check();
    assert_eq!(metrics.sum("wsc_webhook_events_dropped_total", &[]), 0.0);
    assert!(metrics.sum("wsc_webhook_waiting_batches", &[]) > 10.0);
    assert_eq!(receiver.posts().len(), 1);
}
