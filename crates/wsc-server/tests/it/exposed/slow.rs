//! Clients that take their time, to keep others from being served.

use std::time::{Duration, Instant};

use serde_json::json;
use wsc_testkit::{Client, Frame, Handshake, Launch, RawClient, ServerProcess, TlsIdentity, WAIT, eventually};

use crate::support::{BIN, expect_clients, hub, settings};

/// How long a quiet client waits for its answers: the 99th percentile of so many pings.
async fn p99(client: &mut Client, pings: usize) -> Duration {
    let mut times = Vec::new();
    for _ in 0..pings {
        let start = Instant::now();
        client.expect_quiet().await;
        times.push(start.elapsed());
    }
    times.sort();
    times[times.len() * 99 / 100]
}

/// What the machine of a test may add, with other programs on it.
const TOLERATED: Duration = Duration::from_secs(1);

/// Runs an attack of many clients, each on a connection of its own, and
/// asserts that one who was there before is served all the while.
async fn unmoved<F, A>(server: &ServerProcess, attackers: usize, attack: F)
where
    F: Fn(RawClient) -> A,
    A: Future<Output = ()> + Send + 'static,
{
    let mut alice = Client::connect(&server.ws_url_as("alice")).await;
    let before = p99(&mut alice, 100).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..attackers {
        tasks.spawn(attack(RawClient::tcp(server.addr()).await));
    }
    let during = p99(&mut alice, 200).await;
    let start = Instant::now();
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
        assert!(start.elapsed() < 2 * WAIT, "the attack goes on");
        alice.expect_quiet().await;
    }
    assert!(during < before + TOLERATED, "{before:?} before, {during:?} during the attack");
    expect_clients(server, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_handshakes_end_in_time() {
    let server = hub("handshake_timeout: 1s").await;
    let head = Handshake::new(server.addr(), "/ws").set("X-Filler", &"x".repeat(4000)).encode();
    unmoved(&server, 50, |mut raw| {
        let head = head.clone();
        async move {
            let start = Instant::now();
            raw.trickle(&head, Duration::from_millis(20)).await;
            // Only the whole request in its whole time counts, not each byte.
            assert!(start.elapsed() >= Duration::from_millis(500), "cut after {:?}", start.elapsed());
            assert!(start.elapsed() < WAIT, "{:?}", start.elapsed());
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_heads_and_bodies_of_requests_end_in_time() {
    let server = hub("handshake_timeout: 1s, http: {read_timeout: 1s}").await;
    let head = format!("GET /api/stats HTTP/1.1\r\nHost: localhost\r\nX-Filler: {}\r\n\r\n", "x".repeat(4000));
    let post = "POST /api/broadcast HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let body = format!("{post}Content-Length: 4000\r\n\r\n");
    let chunked = format!("{post}Transfer-Encoding: chunked\r\n\r\n");
    for (at_once, drop_by_drop) in
        [("", head.as_str()), (body.as_str(), &"[".repeat(4000)), (&chunked, &"1\r\n[\r\n".repeat(600))]
    {
        unmoved(&server, 20, |mut raw| {
            let (at_once, rest) = (at_once.to_owned(), drop_by_drop.to_owned());
            async move {
                raw.send_bytes(at_once.as_bytes()).await;
                let sent = raw.trickle(rest.as_bytes(), Duration::from_millis(20)).await;
                assert!(sent < rest.len(), "all was taken");
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_say_nothing_end_in_time() {
    let server = hub("handshake_timeout: 500ms, http: {read_timeout: 500ms}").await;
    unmoved(&server, 100, |mut raw| async move {
        raw.trickle(b"", Duration::ZERO).await;
    })
    .await;
    // Nor does one that was served hold its place for ever.
    let mut raw = RawClient::tcp(server.addr()).await;
    raw.send_bytes(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!(raw.read_http_response().await.status, 200);
    raw.trickle(b"", Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_tls_handshakes_end_in_time() {
    let identity = TlsIdentity::new();
    let launch = Launch {
        args: &["serve", "--config", "settings.yaml"],
        files: &[
            ("settings.yaml", &settings("handshake_timeout: 1s, tls: {cert: cert.pem, key: key.pem}")),
            ("cert.pem", identity.cert_pem()),
            ("key.pem", identity.key_pem()),
        ],
        env: &[],
    };
    let server = ServerProcess::launch(BIN, &launch).await;
    // The head of a record that announces 16 kB of a handshake message as long, and then hardly any of it.
    let mut hello = vec![0x16, 0x03, 0x01, 0x40, 0x00, 0x01, 0x00, 0x3f, 0xfc, 0x03, 0x03];
    hello.resize(4000, 0);
    let mut tasks = tokio::task::JoinSet::new();
    for at_once in [0, 1, 5, 11] {
        for _ in 0..10 {
            let mut raw = RawClient::tcp(server.addr()).await;
            let hello = hello.clone();
            tasks.spawn(async move {
                raw.send_bytes(&hello[..at_once]).await;
                raw.trickle(&hello[at_once..], Duration::from_millis(20)).await
            });
        }
    }
    // Meanwhile somebody else comes in.
    let mut alice = RawClient::tls(server.addr(), &identity).await;
    let response = alice.handshake(&Handshake::new(server.addr(), "/ws?user_id=alice")).await;
    assert_eq!(response.status, 101, "{response:?}");
    alice.expect("connected").await;
    while let Some(sent) = tasks.join_next().await {
        assert!(sent.unwrap() < 3000, "they were listened to for ever");
    }
    // Nor does TLS without a request hold a place.
    let mut silent = RawClient::tls(server.addr(), &identity).await;
    silent.trickle(b"", Duration::ZERO).await;
}

/// An open connection, `connected` read.
async fn opened(mut raw: RawClient) -> RawClient {
    let response = raw.handshake(&Handshake::new(raw.addr(), "/ws")).await;
    assert_eq!(response.status, 101, "{response:?}");
    raw.expect("connected").await;
    raw
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fragments_are_cut_at_the_limit_of_their_message() {
    let server = hub("max_message_size: 4KiB, ping_interval: 1h").await;
    let first = Frame::text("x".repeat(100)).more().encode();
    let part = Frame::continuation("x".repeat(100)).more().encode();
    unmoved(&server, 20, |raw| {
        let (first, part) = (first.clone(), part.clone());
        async move {
            let mut raw = opened(raw).await;
            raw.send_bytes(&first).await;
            raw.send_bytes(&part.repeat(41)).await;
            assert_eq!(raw.expect_close().await, 1009);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fragments_of_nothing_cost_nothing() {
    let server = hub("ping_interval: 1h").await;
    let first = Frame::text("").more().encode();
    let part = Frame::continuation("").more().encode();
    let last = Frame::continuation(r#"{"message_type":"ping","message_id":1}"#).encode();
    unmoved(&server, 5, |raw| {
        let (first, part, last) = (first.clone(), part.clone(), last.clone());
        async move {
            let mut raw = opened(raw).await;
            raw.send_bytes(&first).await;
            // Each is a frame in its own right; the message that they make is what its last one says.
            for _ in 0..40 {
                raw.send_bytes(&part.repeat(500)).await;
            }
            raw.send_bytes(&last).await;
            raw.expect("pong").await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_pings_fills_nothing() {
    let server = hub("queue: {max_bytes: 64KiB}, write_timeout: 1s, ping_interval: 1h").await;
    let mut alice = Client::connect(&server.ws_url_as("alice")).await;
    let options = wsc_testkit::RawOptions { recv_buffer: Some(4096), ..Default::default() };
    let mut raw = RawClient::connect_with(server.addr(), "/ws?user_id=flood", options).await;
    raw.expect("connected").await;
    // Pongs that nobody reads: the last ping is what has to be answered, the others need not be (RFC 6455, 5.5.3).
    let ping = Frame::new(0x9, vec![b'p'; 125]).encode().repeat(100);
    let mut peak: f64 = 0.0;
    for _ in 0..100 {
        let sent = tokio::time::timeout(Duration::from_secs(2), raw.try_send_bytes(&ping)).await;
        peak = peak.max(server.metrics().await.sum("wsc_queue_bytes", &[]));
        alice.expect_quiet().await;
        if sent != Ok(true) {
            break;
        }
    }
    assert!(peak < 256.0 * 1024.0, "{peak} bytes are queued for somebody who does not read");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_floods_does_not_keep_others_waiting() {
    let server = hub("").await;
    let mut alice = Client::connect(&server.ws_url_as("alice")).await;
    let mut bob = Client::connect(&server.ws_url_as("bob")).await;
    let addr = server.addr();
    let flooding = tokio::spawn(async move {
        let mut raw = RawClient::connect(addr, "/ws?user_id=flood").await;
        let text = json!({"message_type": "ping", "data": {"filler": "x".repeat(40_000)}}).to_string();
        let frame = Frame::text(text).encode();
        for _ in 0..400 {
            if !raw.try_send_bytes(&frame).await {
                break;
            }
        }
        raw
    });
    let mut slowest = Duration::ZERO;
    while !flooding.is_finished() {
        let start = Instant::now();
        alice.tell("bob", json!(1)).await;
        bob.expect("direct_message").await;
        slowest = slowest.max(start.elapsed());
    }
    assert!(slowest < 3 * TOLERATED, "a message took {slowest:?}");
    drop(flooding.await.unwrap());
    eventually("the flood is over", async || (crate::support::client_count(&server).await == 2).then_some(())).await;
}
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_that_never_ends_is_no_sign_of_life() {
    let server = hub("ping_interval: 1s, pong_timeout: 1s").await;
    let frame = Frame::text("x".repeat(30_000)).encode();
    unmoved_but_pinged(&server, 20, |raw| {
        let frame = frame.clone();
        async move {
            let mut raw = opened(raw).await;
            let sent = raw.trickle(&frame, Duration::from_millis(20)).await;
            assert!(sent < frame.len(), "all was taken");
        }
    })
    .await;
    expect_clients(&server, 0).await;
    let metrics = server.metrics().await;
    assert!(metrics.sum("wsc_disconnections_total", &[("reason", "heartbeat_timeout")]) >= 20.0);
}

/// As [`unmoved`], but the victim goes on for as long as the attack does, so
/// that it answers the server's pings, and leaves when that is over.
async fn unmoved_but_pinged<F, A>(server: &ServerProcess, attackers: usize, attack: F)
where
    F: Fn(RawClient) -> A,
    A: Future<Output = ()> + Send + 'static,
{
    let mut alice = Client::connect(&server.ws_url_as("alice")).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..attackers {
        tasks.spawn(attack(RawClient::tcp(server.addr()).await));
    }
    let mut slowest = Duration::ZERO;
    let mut answers = 0;
    loop {
        let start = Instant::now();
        alice.expect_quiet().await;
        slowest = slowest.max(start.elapsed());
        answers += 1;
        match tasks.try_join_next() {
            Some(ended) => ended.unwrap(),
            None if tasks.is_empty() => break,
            None => {}
        }
    }
    assert!(answers > attackers && slowest < 3 * TOLERATED, "{answers} answers, the slowest after {slowest:?}");
}
