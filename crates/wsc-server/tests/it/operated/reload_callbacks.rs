//! Webhooks are switched, moved and signed anew while the hub runs.

use serde_json::{Value, json};
use wsc_testkit::{Answer, ServerProcess, WebhookReceiver};

use super::{callbacks, connect, hub_with_webhooks, is_about, reconfigure};
use crate::support::hub;

const OLD: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const NEW: &str = "whsec_bm90IHRoZSBzYW1lIHNlY3JldCBhdCBhbGwhISEh";

/// Connects as this user and leaves; the receiver is told.
async fn visit(server: &ServerProcess, receiver: &WebhookReceiver, user: &str) -> Value {
    connect(server, user).await.close().await;
    receiver.event(user, |event| is_about(event, "client.disconnected", user)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_are_switched_on_and_off() {
    let receiver = WebhookReceiver::start().await;
    let server = hub("").await;
    connect(&server, "before").await.close().await;
    reconfigure(&server, &callbacks(&receiver, "")).await;
    visit(&server, &receiver, "on").await;
    reconfigure(&server, "").await;
    connect(&server, "off").await.close().await;
    reconfigure(&server, &callbacks(&receiver, "")).await;
    visit(&server, &receiver, "on again").await;
    let users: Vec<Value> = receiver.events().iter().map(|event| event["data"]["user_id"].clone()).collect();
    assert!(!users.contains(&json!("before")) && !users.contains(&json!("off")), "{users:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_move_to_another_address() {
    let (first, second) = (WebhookReceiver::start().await, WebhookReceiver::start().await);
    let server = hub_with_webhooks(&first, "", "").await;
    visit(&server, &first, "alice").await;
    reconfigure(&server, &callbacks(&second, "")).await;
    visit(&server, &second, "bob").await;
    assert!(!first.events().iter().any(|event| is_about(event, "client.connected", "bob")), "{first}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_lost_receiver_goes_to_the_new_one() {
    let (mut lost, found) = (WebhookReceiver::start().await, WebhookReceiver::start().await);
    let server = hub_with_webhooks(&lost, "", "").await;
    visit(&server, &lost, "first").await;
    lost.stop().await;
    for user in ["alice", "bob", "carol"] {
        connect(&server, user).await.close().await;
    }
    reconfigure(&server, &callbacks(&found, "")).await;
    for user in ["alice", "bob", "carol"] {
        found.event(user, |event| is_about(event, "client.disconnected", user)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_is_replaced_without_a_gap() {
    let receiver = WebhookReceiver::start().await;
    let server = hub_with_webhooks(&receiver, &format!("signing_secrets: [\"{OLD}\"]"), "").await;
    visit(&server, &receiver, "old").await;
    reconfigure(&server, &callbacks(&receiver, &format!("signing_secrets: [\"{NEW}\", \"{OLD}\"]"))).await;
    visit(&server, &receiver, "both").await;
    reconfigure(&server, &callbacks(&receiver, &format!("signing_secrets: [\"{NEW}\"]"))).await;
    visit(&server, &receiver, "new").await;
    for post in receiver.posts() {
        for event in post.events() {
            let valid = (post.verify(OLD).is_ok(), post.verify(NEW).is_ok());
            match event["data"]["user_id"].as_str() {
                Some("old") => assert_eq!(valid, (true, false), "{post:?}"),
                Some("both") => assert_eq!(valid, (true, true), "{post:?}"),
                Some("new") => assert_eq!(valid, (false, true), "{post:?}"),
                _ => assert!(valid.0 || valid.1, "{post:?}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_headers_and_batches() {
    let receiver = WebhookReceiver::start().await;
    let server = hub_with_webhooks(&receiver, "", "").await;
    visit(&server, &receiver, "alice").await;
    let more = "event_filters: [\"room.*\"], headers: {X-Tenant: acme, Authorization: Bearer 1234}, batch_max: 1";
    reconfigure(&server, &callbacks(&receiver, more)).await;
    let mut bob = connect(&server, "bob").await;
    bob.join("r1").await;
    receiver.event("room.joined", |event| is_about(event, "room.joined", "bob")).await;
    for post in receiver.posts().iter().rev().take_while(|post| post.header("x-tenant").is_some()) {
        assert_eq!(post.header("x-tenant"), Some("acme"));
        assert_eq!(post.header("authorization"), Some("Bearer 1234"));
        let events = post.events();
        assert_eq!(events.len(), 1, "{post:?}");
        assert!(events[0]["type"].as_str().unwrap().starts_with("room."), "{post:?}");
    }
    assert_eq!(receiver.posts().last().unwrap().header("x-tenant"), Some("acme"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timeouts_and_private_addresses() {
    let receiver = WebhookReceiver::start().await;
    let server = hub_with_webhooks(&receiver, "webhook_timeout: 5m", "").await;
    visit(&server, &receiver, "before").await;
    reconfigure(&server, &callbacks(&receiver, "webhook_timeout: 200ms")).await;
    // With the former timeout this would take five minutes.
    receiver.answer_next([Answer::hang()]);
    visit(&server, &receiver, "alice").await;
    let refused = callbacks(&receiver, "").replace("allow_private_addresses: true", "allow_private_addresses: false");
    let before = receiver.posts().len();
    super::rewrite(&server, &refused);
    let answer = super::reload(&server).await;
    if answer.status == 200 {
        connect(&server, "bob").await.close().await;
        // Allowed again, it comes: first what was held back.
        reconfigure(&server, &callbacks(&receiver, "")).await;
        receiver.event("bob", |event| is_about(event, "client.disconnected", "bob")).await;
        assert!(receiver.posts().len() > before);
    }
}
