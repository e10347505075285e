//! A hub that is told to end: who learns it when, in which order and how fast.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use wsc_testkit::{
    Client, Handshake, Metrics, RawClient, RawOptions, ServerProcess, TlsIdentity, eventually, try_http,
};

use super::{connect, push, reconfigure, send_signal};
use crate::support::{assert_closed, expect_clients, hub, upgrade};
use crate::tls::hub_with_tls;

/// Waits until the hub says that it is not ready for more.
async fn expect_not_ready(server: &ServerProcess) {
    eventually("it is not ready", async || (server.get("/health/ready").await.status == 503).then_some(())).await;
}

/// Asserts that somebody was sent away with what a client needs to come back; gives `retry_after_ms`.
#[track_caller]
fn assert_sent_away(closed: &(u16, Value)) -> u64 {
    assert_closed(closed, 3001);
    closed.1["retry_after_ms"].as_u64().unwrap_or_else(|| panic!("no retry_after_ms in {closed:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_fails_first_and_everything_works_on_for_a_while() {
    let mut server = hub("drain: {delay: 2s, rate: 1000}").await;
    let mut alice = connect(&server, "alice").await;
    alice.join("r1").await;
    assert_eq!(server.get("/health/ready").await.status, 200);
    let asked = Instant::now();
    server.signal_terminate();
    expect_not_ready(&server).await;
    // A load balancer needs that time to notice; nobody else does.
    let mut bob = connect(&server, "bob").await;
    bob.join("r1").await;
    alice.say("r1", json!("still here")).await;
    assert_eq!(bob.expect("room_message").await["data"]["content"], "still here");
    assert_eq!(push(&server, "alice", json!("too")).await.status, 202);
    alice.expect("user_message").await;
    assert_eq!(server.get("/health/live").await.status, 200);
    let early = asked.elapsed();
    assert!(early < Duration::from_secs(2), "this machine is too slow for this test: {early:?}");
    for client in [&mut alice, &mut bob] {
        assert_sent_away(&client.expect_close().await);
        assert!(asked.elapsed() >= Duration::from_secs(2), "closed after {:?}", asked.elapsed());
    }
    assert_eq!(server.wait().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_come_late_are_told_when_to_come_again() {
    // Long enough to look around.
    let mut server = hub("drain: {rate: 1, deadline: 4s}").await;
    let mut clients = Vec::new();
    for n in 0..20 {
        clients.push(connect(&server, &format!("user-{n}")).await);
    }
    server.signal_terminate();
    expect_not_ready(&server).await;
    let refused = eventually("upgrades are refused", async || {
        let answer = upgrade(&server, "/ws?user_id=late", |h| h).await;
        (answer.status != 101).then_some(answer)
    })
    .await;
    assert_eq!(refused.status, 503, "{refused:?}");
    let seconds = |value: Option<&str>| value.and_then(|value| value.parse::<u64>().ok());
    assert!(seconds(refused.header("retry-after")).is_some(), "{refused:?}");
    // Refused before the upgrade also where refusals are otherwise told after it.
    let refused = upgrade(&server, "/ws?user_id=late", |h| h.add("Sec-WebSocket-Protocol", "wsc.v1")).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    for (path, body) in [
        ("/api/users/user-0/messages", json!({"content": 1})),
        ("/api/users/nobody/messages", json!({"content": 1, "require_ack": true})),
        ("/api/broadcast", json!({"content": 1})),
        ("/api/messages/batch", json!({"messages": [{"user_id": "user-0", "content": 1}]})),
    ] {
        let answer = server.post(path, &body).await;
        assert_eq!(answer.status, 503, "{path}: {answer:?}");
        assert!(seconds(answer.header("retry-after")).is_some(), "{path}: {answer:?}");
        answer.error_code();
    }
    // Looking is still allowed: whoever watches the drain needs it.
    assert_eq!(server.get("/health/live").await.status, 200);
    assert_eq!(server.get("/metrics").await.status, 200);
    assert_eq!(server.wait().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_closed_at_the_rate_and_come_back_spread() {
    const CLIENTS: u64 = 500;
    let mut server = hub("drain: {rate: 250}").await;
    let mut clients = JoinSet::new();
    for n in 0..CLIENTS {
        let client = connect(&server, &format!("user-{n}")).await;
        clients.spawn(closed_at(client));
    }
    let start = Instant::now();
    server.signal_terminate();
    let mut waits = Vec::new();
    let mut ends = Vec::new();
    while let Some(ended) = clients.join_next().await {
        let (at, closed) = ended.unwrap();
        waits.push(assert_sent_away(&closed));
        ends.push(at - start);
    }
    assert_eq!(server.wait().await, 0);
    ends.sort_unstable();
    let (first, last) = (ends[0], ends[ends.len() - 1]);
    println!("{CLIENTS} connections at 250/s: the first closed after {first:?}, the last after {last:?}");
    assert!(last >= Duration::from_millis(1500), "all were closed after {last:?}");
    // A tenth of them may go at once, no more.
    let soon = ends.iter().filter(|end| **end < first + Duration::from_millis(100)).count();
    assert!(soon <= 150, "{soon} were closed within 100 ms");
    // n / rate are two seconds.
    let most = *waits.iter().max().unwrap();
    assert!(most <= 2000, "{most}");
    for quarter in 0..4_u64 {
        let within = waits.iter().filter(|wait| **wait / 500 == quarter).count();
        assert!(within > 60, "{within} of 500 come back in quarter {quarter}");
    }
}

async fn closed_at(mut client: Client) -> (Instant, (u16, Value)) {
    // Patient: the last one waits for two seconds, on a busy machine for longer.
    let closed = client.expect_close().await;
    (Instant::now(), closed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_few_come_back_within_a_second() {
    let mut server = hub("drain: {rate: 100000}").await;
    let mut clients = Vec::new();
    for n in 0..40 {
        clients.push(connect(&server, &format!("user-{n}")).await);
    }
    server.signal_terminate();
    let mut waits = Vec::new();
    for client in &mut clients {
        waits.push(assert_sent_away(&client.expect_close().await));
    }
    assert!(waits.iter().all(|wait| *wait <= 1000), "{waits:?}");
    assert!(waits.iter().any(|wait| *wait < 400) && waits.iter().any(|wait| *wait > 600), "{waits:?}");
    assert_eq!(server.wait().await, 0);
}

/// A connection that reads nothing, and has more waiting for it than any kernel takes.
async fn stuck(server: &ServerProcess) -> RawClient {
    let options = RawOptions { recv_buffer: Some(4096), ..RawOptions::default() };
    let mut stuck = RawClient::connect_with(server.addr(), "/ws?user_id=stuck", options).await;
    stuck.expect("connected").await;
    let content = json!("x".repeat(60_000));
    for _ in 0..400 {
        assert_eq!(push(server, "stuck", content.clone()).await.status, 202);
    }
    stuck
}

const ENDLESS: &str = "write_timeout: 10m, queue: {max_bytes: 1GiB}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_reads_holds_nobody_beyond_the_deadline() {
    let mut server = hub(&format!("{ENDLESS}, drain: {{deadline: 2s}}")).await;
    let _stuck = stuck(&server).await;
    let mut alice = connect(&server, "alice").await;
    let start = Instant::now();
    server.signal_terminate();
    assert_sent_away(&alice.expect_close().await);
    assert_eq!(server.wait().await, 0);
    let took = start.elapsed();
    assert!(took < Duration::from_secs(6), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_reads_is_given_the_write_timeout() {
    let drain = "drain: {deadline: 10m}";
    let mut server = hub(&format!("{ENDLESS}, {drain}")).await;
    let _stuck = stuck(&server).await;
    reconfigure(&server, &format!("write_timeout: 1s, queue: {{max_bytes: 1GiB}}, {drain}")).await;
    let start = Instant::now();
    server.signal_terminate();
    assert_eq!(server.wait().await, 0);
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_at_once() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut server = hub(&format!("{ENDLESS}, drain: {{deadline: 10m, delay: 5m}}")).await;
        let _stuck = stuck(&server).await;
        send_signal(&server, signal);
        expect_not_ready(&server).await;
        assert!(server.is_running());
        let start = Instant::now();
        send_signal(&server, signal);
        server.wait().await;
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupt_is_the_same() {
    let mut server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    send_signal(&server, Signal::INT);
    assert_sent_away(&alice.expect_close().await);
    assert_eq!(server.wait().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_half_done_does_not_hold_the_end() {
    let slow = "http: {read_timeout: 10m}, handshake_timeout: 10m";
    let mut server = hub(&format!("{slow}, drain: {{deadline: 10m}}")).await;
    let mut idle = RawClient::tcp(server.addr()).await;
    idle.send_bytes(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!(idle.read_http_response().await.status, 200);
    let mut body = RawClient::tcp(server.addr()).await;
    body.send_bytes(
        b"POST /api/broadcast HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
          Content-Length: 100\r\n\r\n{\"content\":",
    )
    .await;
    let mut head = RawClient::tcp(server.addr()).await;
    head.send_bytes(b"GET /ws HTTP/1.1\r\nHost: local").await;
    let _silent = RawClient::tcp(server.addr()).await;
    // They are all accepted: this came after them, over the same listener.
    assert_eq!(server.get("/health").await.status, 200);
    server.signal_terminate();
    assert_eq!(server.wait().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_waits_is_answered() {
    let mut server = hub("http: {wait_timeout: 10m}, ack_timeout: 1h, drain: {deadline: 10m}").await;
    let mut bob = connect(&server, "bob").await;
    let url = format!("{}/api/users/bob/messages", server.http_url());
    let asking = tokio::spawn(async move {
        let body = json!({"content": 1, "require_ack": true, "wait": "ack"}).to_string();
        try_http("POST", &url, &[("Content-Type", "application/json")], Some(body.as_bytes())).await
    });
    bob.expect_reliable("user_message").await;
    server.signal_terminate();
    assert_sent_away(&bob.expect_close().await);
    let answer = asking.await.unwrap().expect("an answer, not only the end");
    assert!(matches!(answer.status, 200 | 202), "{answer:?}");
    let answer = answer.json();
    assert!(answer["outcome"] == "stored" || answer["outcome"] == "pending", "{answer}");
    assert_eq!(server.wait().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_settings_of_the_last_reload_count() {
    let mut server = hub("drain: {rate: 1, delay: 10m, deadline: 1h}").await;
    let mut clients = Vec::new();
    for n in 0..30 {
        clients.push(connect(&server, &format!("user-{n}")).await);
    }
    reconfigure(&server, "drain: {rate: 1000, delay: 0s, deadline: 10s}").await;
    server.signal_terminate();
    for client in &mut clients {
        assert_sent_away(&client.expect_close().await);
    }
    assert_eq!(server.wait().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_under_way_is_refused_or_closed_but_not_forgotten() {
    let mut server = hub("drain: {delay: 0s, deadline: 10m}, handshake_timeout: 10m").await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        let mut client = RawClient::tcp(server.addr()).await;
        let bytes = Handshake::new(server.addr(), "/ws").encode();
        client.send_bytes(&bytes[..bytes.len() - 2]).await;
        clients.push((client, bytes));
    }
    assert_eq!(server.get("/health").await.status, 200);
    server.signal_terminate();
    let mut answered = 0;
    for (client, bytes) in &mut clients {
        // It may be gone already.
        if client.try_send_bytes(&bytes[bytes.len() - 2..]).await {
            answered += 1;
        }
    }
    println!("{answered} of 10 were still there");
    assert_eq!(server.wait().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_there_is_quickly_done() {
    let mut server = hub("drain: {rate: 1}").await;
    connect(&server, "alice").await.close().await;
    expect_clients(&server, 0).await;
    let start = Instant::now();
    assert_eq!(server.terminate().await, 0);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn to_have_the_settings_read_again_does_not_end_a_drain() {
    let mut server = hub("drain: {delay: 1s}").await;
    let mut alice = connect(&server, "alice").await;
    server.signal_terminate();
    expect_not_ready(&server).await;
    for _ in 0..3 {
        send_signal(&server, Signal::HUP);
        assert_eq!(push(&server, "alice", json!(1)).await.status, 202);
        alice.expect("user_message").await;
    }
    assert_sent_away(&alice.expect_close().await);
    assert_eq!(server.wait().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_behind_tls_are_sent_away_as_all_others() {
    let identity = TlsIdentity::new();
    let mut server = hub_with_tls(&identity).await;
    let mut client = RawClient::tls(server.addr(), &identity).await;
    let answer = client.handshake(&Handshake::new(server.addr(), "/ws?user_id=alice")).await;
    assert_eq!(answer.status, 101, "{answer:?}");
    client.expect("connected").await;
    server.signal_terminate();
    let closed = loop {
        if let Some((code, reason)) = client.read_frame().await.close() {
            break (code, serde_json::from_str(&reason).unwrap());
        }
    };
    assert_sent_away(&closed);
    drop(client);
    assert_eq!(server.wait().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operators_listener_answers_to_the_end() {
    let mut server = hub("http: {internal_listen: \"127.0.0.1:0\"}, drain: {rate: 1, deadline: 3s}").await;
    let url = eventually("the address is printed", async || {
        server.get("/health/live").await;
        let line = "wsc: metrics and debug pages on ";
        server.log().lines().find_map(|text| text.strip_prefix(line).map(str::to_owned))
    })
    .await;
    let mut clients = Vec::new();
    for n in 0..10 {
        clients.push(connect(&server, &format!("user-{n}")).await);
    }
    server.signal_terminate();
    assert_sent_away(&clients[0].expect_close().await);
    let metrics = try_http("GET", &format!("{url}/metrics"), &[], None).await.expect("metrics of a hub that drains");
    let connections = Metrics::parse(metrics.text()).sum("wsc_connections", &[]);
    assert!((1.0..10.0).contains(&connections), "{connections}");
    assert_eq!(server.wait().await, 0);
}
