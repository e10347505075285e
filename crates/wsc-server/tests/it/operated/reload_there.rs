//! What a reload does to those who are there already.

use serde_json::json;
use wsc_testkit::{RawClient, eventually};

use super::reload_delivery::{expect_outcome, id, push_reliably};
use super::{connect, reconfigure, reload, rewrite};
use crate::support::{assert_closed, hub};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_level_and_the_form_of_the_log() {
    let server = hub("").await;
    // A refused reload is a line of its own at every level but the silent ones.
    let wrong = async |word: &str, keys: &str| {
        let comma = if keys.is_empty() { "" } else { ", " };
        rewrite(&server, &format!("{keys}{comma}{word}: 1"));
        assert_eq!(reload(&server).await.status, 400);
        rewrite(&server, keys);
        assert_eq!(reload(&server).await.status, 200);
    };
    let logged = async |word: &str| {
        eventually(&format!("{word} is logged"), async || {
            server.get("/health/live").await;
            server.log().lines().find(|line| line.contains(word)).map(str::to_owned)
        })
        .await
    };
    wrong("at_info", "").await;
    let line = logged("at_info").await;
    assert!(!line.starts_with('{'), "{line}");
    let lines = server.log().lines().count();
    reconfigure(&server, "log: {level: debug}").await;
    connect(&server, "alice").await.close().await;
    wrong("at_debug", "log: {level: debug}").await;
    logged("at_debug").await;
    let log = server.log();
    assert!(log.lines().skip(lines).any(|line| line.contains("DEBUG")), "nothing more is said: {log}");

    reconfigure(&server, "log: {level: info, format: json}").await;
    wrong("as_json", "log: {level: info, format: json}").await;
    let line = logged("as_json").await;
    let line: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
    assert!(line["level"].is_string(), "{line}");

    reconfigure(&server, "log: {level: off}").await;
    wrong("at_off", "log: {level: off}").await;
    reconfigure(&server, "").await;
    wrong("at_info_again", "").await;
    logged("at_info_again").await;
    assert!(!server.log().contains("at_off"), "{}", server.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_of_open_connections() {
    let server = hub("ping_interval: 1h, pong_timeout: 1h").await;
    let mut polite = connect(&server, "polite").await;
    let mut silent = RawClient::connect(server.addr(), "/ws?user_id=silent").await;
    silent.expect("connected").await;
    // Longer than they have been silent, and than any sweep takes: whoever is closed was asked before.
    reconfigure(&server, "ping_interval: 500ms, pong_timeout: 1500ms").await;
    for _ in 0..3 {
        polite.expect_ping().await;
    }
    assert_eq!(silent.read_frame().await.opcode, 0x9, "closed without having been asked; {silent}");
    let (code, reason) = loop {
        if let Some(closed) = silent.read_frame().await.close() {
            break closed;
        }
    };
    assert_closed(&(code, serde_json::from_str(&reason).unwrap()), 3012);
    // And back. Those that come are told.
    reconfigure(&server, "ping_interval: 1h, pong_timeout: 1h").await;
    let late = connect(&server, "late").await;
    assert_eq!(late.connected()["data"]["ping_interval_ms"], 3_600_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_soon_what_rests_is_tried_again() {
    let quick = "ack_timeout: 50ms, ack_retry_interval: 10ms, ack_max_retries: 0";
    let server = hub(&format!("{quick}, inbox: {{retry_interval: 24h}}")).await;
    let mut bob = connect(&server, "bob").await;
    let first = id(&push_reliably(&server, "bob", json!(1)).await);
    bob.expect_reliable("user_message").await;
    expect_outcome(&server, &first, "stored").await;
    bob.expect_quiet().await;
    reconfigure(&server, &format!("{quick}, inbox: {{retry_interval: 100ms}}")).await;
    let second = id(&push_reliably(&server, "bob", json!(2)).await);
    // What comes to rest from now on is tried again soon.
    let mut seen = 0;
    while seen < 2 {
        let delivery = bob.expect_reliable("user_message").await;
        if delivery["id"] == second.as_str() {
            seen += 1;
        }
    }
    bob.ack(&[&first, &second]).await;
    expect_outcome(&server, &second, "acked").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_for_rooms_counts_for_those_that_are_there() {
    let server = hub("").await;
    let (mut alice, mut bob) = (connect(&server, "alice").await, connect(&server, "bob").await);
    alice.join("r1").await;
    reconfigure(&server, "rooms: {max_clients: 1}").await;
    bob.request_error(json!({"message_type": "join_room", "data": {"room_id": "r1"}}), 3002).await;
    reconfigure(&server, "rooms: {max_clients: 2}").await;
    bob.join("r1").await;
}
