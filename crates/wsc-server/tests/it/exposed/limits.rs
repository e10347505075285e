//! Floods of one client, one user, one address, and what the others notice.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wsc_testkit::{Client, ConnectOptions, Frame, Handshake, HttpResponse, RawClient, RawOptions, eventually};

use super::{TALK, enter, guarded, token};
use crate::support::{assert_closed, assert_refused, expect_clients, hub, upgrade};

const V1: &[&str] = &["wsc.v1"];

fn ping() -> Value {
    json!({"message_type": "ping"})
}

/// Upgrades as a client of our protocol and reads nothing.
async fn v1(url: &str) -> Client {
    Client::open(url, &ConnectOptions { subprotocols: V1, ..ConnectOptions::default() }).await
}

/// Sends `count` pings at once; gives how many pongs came, and the errors.
async fn flood(client: &mut Client, count: usize, filler: &str) -> (usize, Vec<Value>) {
    for id in 1..=count {
        client.send(&json!({"message_type": "ping", "message_id": id, "data": {"filler": filler}})).await;
    }
    // A marker that is let through again shows the end of what was answered.
    let (mut pongs, mut errors) = (0, Vec::new());
    let start = Instant::now();
    loop {
        client.send(&json!({"message_type": "ping", "message_id": "marker"})).await;
        loop {
            let text = client.expect_text("an answer").await;
            let frame: Value = serde_json::from_str(&text).unwrap();
            match frame["message_type"].as_str() {
                Some("pong") if frame["request_id"] == "marker" => return (pongs, errors),
                Some("pong") => pongs += 1,
                Some("error") => {
                    assert_eq!(frame["data"]["code"], 1005, "{frame}");
                    errors.push(frame);
                    break;
                }
                _ => panic!("{frame}"),
            }
        }
        assert!(start.elapsed() < Duration::from_secs(8), "it is not let through again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_the_rate_one_hears_when_to_go_on_and_not_more_than_once_a_second() {
    let server = hub("limits: {messages_per_second: 20, burst: 40}").await;
    let mut client = Client::connect(&server.ws_url_as("alice")).await;
    let mut other = Client::connect(&server.ws_url_as("bob")).await;
    let start = Instant::now();
    for id in 1..=200 {
        client.send(&json!({"message_type": "ping", "message_id": id})).await;
    }
    let (mut pongs, mut errors) = (0, 0);
    // Each refused message costs nothing; the first that passes again is the marker.
    let wait = loop {
        let text = client.expect_text("an answer").await;
        let frame: Value = serde_json::from_str(&text).unwrap();
        if frame["message_type"] == "pong" {
            pongs += 1;
            continue;
        }
        assert_eq!(frame["data"]["code"], 1005, "{frame}");
        assert_eq!(frame["data"]["temporary"], true, "{frame}");
        errors += 1;
        break frame["data"]["details"]["retry_after_ms"].as_u64().unwrap();
    };
    assert!((1..=2000).contains(&wait), "{wait} ms");
    assert!(pongs >= 40, "{pongs} of the burst");
    other.expect_quiet().await;
    // Going on at once, the rest of the errors stay under one per second.
    let marker = json!("marker");
    'passed: loop {
        client.send(&json!({"message_type": "ping", "message_id": marker})).await;
        let asked = Instant::now();
        while asked.elapsed() < Duration::from_millis(wait) {
            server.get("/health/live").await;
        }
        client.send(&json!({"message_type": "ping", "message_id": "last"})).await;
        loop {
            let text = client.expect_text("an answer").await;
            let frame: Value = serde_json::from_str(&text).unwrap();
            match (frame["message_type"].as_str(), frame["request_id"].as_str()) {
                (Some("pong"), Some("last")) => break 'passed,
                (Some("error"), _) => {
                    errors += 1;
                    break;
                }
                _ => pongs += 1,
            }
        }
    }
    let seconds = start.elapsed().as_secs() + 1;
    assert!(errors <= seconds + 1, "{errors} errors in {seconds} s");
    let allowed = 40 + 20 * seconds + 2;
    assert!(pongs <= allowed, "{pongs} passed in {seconds} s, {allowed} were allowed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_count_as_well() {
    let server = hub("limits: {bytes_per_second: 20000}").await;
    let mut client = Client::connect(&server.ws_url_as("alice")).await;
    let filler = "x".repeat(10_000);
    let (pongs, errors) = flood(&mut client, 8, &filler).await;
    assert!((2..=6).contains(&pongs), "{pongs} frames of 10 kB passed: 40 kB at once, then 20 kB a second");
    assert!(!errors.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_stop_is_cut_off_and_the_others_are_not() {
    let server = hub("limits: {messages_per_second: 10, burst: 20}").await;
    let mut other = Client::connect(&server.ws_url_as("bob")).await;
    other.join("r1").await;
    let mut client = Client::connect(&server.ws_url_as("alice")).await;
    client.join("r1").await;
    // More than 10 times the burst refused. The first 20 pass, and no more than 10 a second.
    let mut sent = 0;
    while sent < 100_000 && client.try_send(&ping()).await {
        sent += 1;
    }
    let (frames, code) = client.read_to_end().await;
    assert!(matches!(code, 3013 | 1006), "{code}");
    assert!(sent >= 220, "cut off after {sent}");
    let errors = frames.iter().filter(|text| text.contains("1005")).count();
    assert!((1..=10).contains(&errors), "{errors} errors");
    other.expect_quiet().await;
    expect_clients(&server, 1).await;
    let metrics = server.metrics().await;
    assert_eq!(metrics.sum("wsc_disconnections_total", &[("reason", "rate_limited")]), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_close_for_a_flood_says_so() {
    let server = hub("limits: {messages_per_second: 10, burst: 10}").await;
    let mut raw = RawClient::connect(server.addr(), "/ws?user_id=alice").await;
    raw.expect("connected").await;
    // Just as many as it takes, so that nothing unread resets the socket.
    let mut frames = Vec::new();
    for _ in 0..111 {
        frames.extend(Frame::text(r#"{"message_type":"ping"}"#).encode());
    }
    raw.send_bytes(&frames).await;
    loop {
        // A burst that was partly let through again is made up for, one by one.
        raw.try_send_bytes(&Frame::text(r#"{"message_type":"ping"}"#).encode()).await;
        let Some(frame) = raw.next_frame().await else { panic!("no close frame") };
        if let Some((code, reason)) = frame.close() {
            assert_eq!(code, 3013);
            let reason: Value = serde_json::from_str(&reason).unwrap();
            assert_eq!(reason["reconnect"], true, "{reason}");
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_one_user_too_many_the_oldest_goes_and_hears_why() {
    let server = guarded("", "limits: {user_connections: 2, user_policy: kick_oldest}").await;
    let mut first = enter(&server, "alice").await;
    let mut second = enter(&server, "alice").await;
    let mut bob = enter(&server, "bob").await;
    let third = enter(&server, "alice").await;
    assert!(first.expect("force_offline").await["data"]["reason"].is_string());
    assert_closed(&first.expect_close().await, 3505);
    let fourth = enter(&server, "alice").await;
    second.expect("force_offline").await;
    assert_closed(&second.expect_close().await, 3505);
    for mut client in [third, fourth] {
        client.expect_quiet().await;
    }
    bob.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_one_user_too_many_the_newest_is_refused() {
    let server = guarded("", "limits: {user_connections: 2, user_policy: refuse}").await;
    let mut first = enter(&server, "alice").await;
    let mut second = enter(&server, "alice").await;
    let target = format!("/ws?token={}", token("alice", TALK));
    let response = upgrade(&server, &target, |h| h).await;
    assert_refused(&response, 429, 1005);
    let mut third = v1(&super::ws_url(&server, &token("alice", TALK))).await;
    assert_closed(&third.expect_close().await, 3505);
    // Neither a stranger's token nor a bad one takes a place.
    upgrade(&server, "/ws?token=x", |h| h).await;
    for client in [&mut first, &mut second] {
        client.expect_quiet().await;
    }
    enter(&server, "bob").await.expect_quiet().await;
    first.close().await;
    eventually("a place is free", async || (upgrade(&server, &target, |h| h).await.status == 101).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_do_not_slip_past_the_limit_of_a_user() {
    for policy in ["refuse", "kick_oldest"] {
        let server = hub(&format!("limits: {{user_connections: 3, user_policy: {policy}}}")).await;
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..40 {
            let url = server.ws_url_as("alice");
            tasks.spawn(async move {
                let mut client = v1(&url).await;
                // `connected` and nothing more, or the end.
                client.recv("the first frame").await;
                client
            });
        }
        let mut clients = Vec::new();
        while let Some(client) = tasks.join_next().await {
            clients.push(client.unwrap());
        }
        expect_clients(&server, 3).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_has_so_many_connections_and_no_more() {
    let server = hub("limits: {ip_connections: 3}").await;
    let mut clients = Vec::new();
    for n in 0..3 {
        clients.push(Client::connect(&server.ws_url_as(&format!("u{n}"))).await);
    }
    let mut refused = v1(&server.ws_url_as("u3")).await;
    assert_closed(&refused.expect_close().await, 3504);
    let response = upgrade(&server, "/ws?user_id=u3", |h| h).await;
    assert_refused(&response, 429, 1005);
    // Another address has its own.
    let options = RawOptions { source: Some([127, 0, 0, 2].into()), ..RawOptions::default() };
    let mut elsewhere = RawClient::connect_with(server.addr(), "/ws?user_id=u4", options).await;
    elsewhere.expect("connected").await;
    for client in &mut clients {
        client.expect_quiet().await;
    }
    clients.pop().unwrap().close().await;
    eventually("a place is free", async || {
        (upgrade(&server, "/ws?user_id=u5", |h| h).await.status == 101).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_without_end_from_one_address_leave_nothing_behind() {
    let server = hub("limits: {ip_connections: 5}").await;
    let mut alice = Client::connect(&server.ws_url_as("alice")).await;
    let mut held = Vec::new();
    for n in 0..4 {
        held.push(Client::connect(&server.ws_url_as(&format!("h{n}"))).await);
    }
    for n in 0..300 {
        let response = upgrade(&server, &format!("/ws?user_id=u{n}"), |h| h).await;
        assert_eq!(response.status, 429, "{response:?}");
        if n % 100 == 0 {
            alice.expect_quiet().await;
        }
    }
    expect_clients(&server, 5).await;
    let metrics = server.metrics().await;
    assert_eq!(metrics.sum("wsc_handshake_failures_total", &[("reason", "too_many_from_address")]), 300.0);
    assert_eq!(metrics.sum("wsc_connections_total", &[]), 5.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_in_so_many_rooms_and_no_more() {
    let server = hub("limits: {rooms_per_connection: 3}").await;
    let mut alice = Client::connect(&server.ws_url_as("alice")).await;
    for n in 0..3 {
        alice.join(&format!("r{n}")).await;
    }
    let one_more = json!({"message_type": "join_room", "data": {"room_id": "r3"}});
    alice.request_error(one_more.clone(), 3005).await;
    // It was not made either.
    assert!(crate::support::room(&server, "r3").await.is_none());
    let mut tablet = Client::connect(&server.ws_url_as("alice")).await;
    tablet.join("r3").await;
    alice.leave("r1").await;
    alice.join("r3").await;
    // An operator who adds the user does not get past it.
    server.post("/api/rooms", &json!({"id": "r4"})).await;
    server.post("/api/rooms/r4/members/alice", &json!({})).await;
    tablet.expect("room_joined").await;
    alice.expect_quiet().await;
    alice.request_error(json!({"message_type": "room_message", "data": {"room_id": "r4", "content": 1}}), 3003).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_have_a_rate() {
    let server = hub("limits: {handshakes_per_second: 5}").await;
    let start = Instant::now();
    let mut statuses = Vec::new();
    for n in 0..60 {
        let response =
            upgrade(&server, &format!("/ws?user_id=u{n}"), |h| h.add("Sec-WebSocket-Protocol", "wsc.v1")).await;
        if response.status == 503 {
            let wait: u64 = response.header("retry-after").unwrap().parse().unwrap();
            assert!((1..=60).contains(&wait), "{wait}");
            response.error_code();
        } else {
            assert_eq!(response.status, 101, "{response:?}");
        }
        statuses.push(response.status);
    }
    let accepted = statuses.iter().filter(|&&status| status == 101).count() as u64;
    let allowed = 5 * (start.elapsed().as_secs() + 3);
    assert!(accepted >= 1 && accepted <= allowed, "{accepted} in {:?}", start.elapsed());
    // Other requests are not upgrades.
    assert_eq!(server.get("/health").await.status, 200);
    eventually("it goes on", async || (upgrade(&server, "/ws?user_id=late", |h| h).await.status == 101).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_handshakes_under_way_the_oldest_goes_first() {
    let server = hub("limits: {pending_handshakes: 4}").await;
    let mut alice = Client::connect(&server.ws_url_as("alice")).await;
    let mut half = Vec::new();
    for _ in 0..8 {
        let mut raw = RawClient::tcp(server.addr()).await;
        raw.send_bytes(b"GET /ws HTTP/1.1\r\nHost: localhost\r\n").await;
        half.push(raw);
    }
    // The first four are cut to make room; the last one is still worked on.
    for raw in &mut half[..4] {
        raw.expect_end().await;
    }
    alice.expect_quiet().await;
    let mut last = half.pop().unwrap();
    let rest = Handshake::new(server.addr(), "/ws?user_id=bob").encode();
    let rest = String::from_utf8(rest).unwrap();
    let (_, rest) = rest.split_once("Upgrade: ").unwrap();
    // It asked for no user: a generated one.
    last.send_bytes(format!("Upgrade: {rest}").as_bytes()).await;
    let response = last.read_http_response().await;
    assert_eq!(response.status, 101, "{response:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_for_queues_has_an_end_and_the_largest_pays() {
    let server = hub("queue: {max_bytes: 4MiB, total_bytes: 4MiB}, write_timeout: 5m, ping_interval: 1h").await;
    let mut talker = Client::connect(&server.ws_url_as("talker")).await;
    let mut stalled = Vec::new();
    let users = ["greedy", "slow-1", "slow-2", "slow-3"];
    for user in users {
        let options = RawOptions { recv_buffer: Some(4096), ..RawOptions::default() };
        let mut raw = RawClient::connect_with(server.addr(), &format!("/ws?user_id={user}"), options).await;
        raw.expect("connected").await;
        stalled.push(raw);
    }
    let content = json!("x".repeat(60_000));
    let (mut peak, mut refused): (f64, Option<HttpResponse>) = (0.0, None);
    let mut rounds = 0;
    loop {
        for user in ["greedy", "greedy", "greedy"].iter().chain(&users) {
            // Who is about to go may fail to take it.
            talker.request(super::direct(user, &content)).await;
        }
        let metrics = server.metrics().await;
        peak = peak.max(metrics.sum("wsc_queue_bytes", &[]));
        if metrics.sum("wsc_shed_connections_total", &[]) > 0.0 {
            break;
        }
        let newcomer = upgrade(&server, "/ws?user_id=new", |h| h).await;
        if newcomer.status != 101 {
            refused = Some(newcomer);
        }
        rounds += 1;
        assert!(rounds < 1000, "nobody was cut; the queues held {peak} bytes at most");
    }
    // First newcomers are refused, then the largest queue goes, before the budget is passed by much.
    let refused = refused.unwrap();
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    assert!(peak <= 4.5 * 1024.0 * 1024.0, "{peak} bytes were queued");
    eventually("the greedy one is gone", async || {
        let greedy = server.get("/api/users/greedy").await;
        (greedy.status == 404 || greedy.json()["online"] == false).then_some(())
    })
    .await;
    let mut spared = 0;
    for user in &users[1..] {
        let there = server.get(&format!("/api/users/{user}")).await.json()["online"] == true;
        spared += usize::from(there);
    }
    // One may have been in the way at the moment when the budget was passed.
    assert!(spared >= 2, "only {spared} of the others are still there");
    talker.expect_quiet().await;
    // Once there is room newcomers come in.
    drop(stalled);
    eventually("newcomers come in again", async || {
        (upgrade(&server, "/ws?user_id=new", |h| h).await.status == 101).then_some(())
    })
    .await;
    server.metrics().await.ledger().check();
}
