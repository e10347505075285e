//! HTTP connections from their first byte to a shutdown.

use std::time::{Duration, Instant};

use wsc_testkit::{Client, RawClient, eventually, http, within};

use crate::support::{assert_refused, hub};

const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_ends_idle_http_connections() {
    let hub = hub("drain: {deadline: 8s}").await;
    let mut idle = RawClient::tcp(hub.addr).await;
    idle.send_bytes(HEALTH).await;
    assert_eq!(idle.read_http_response().await.status, 200);
    let start = Instant::now();
    within("the shutdown", hub.hub.shutdown()).await;
    assert!(start.elapsed() < Duration::from_secs(5), "it waited for an idle connection");
    idle.expect_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_cuts_who_does_not_end_in_time() {
    let hub = hub("drain: {deadline: 100ms}, http: {read_timeout: 9s}").await;
    let mut slow = RawClient::tcp(hub.addr).await;
    let head = "POST /api/broadcast HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    slow.send_bytes(format!("{head}Content-Length: 100\r\n\r\n").as_bytes()).await;
    within("the shutdown", hub.hub.shutdown()).await;
    slow.expect_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_hub_drains_operators_are_told() {
    let hub = hub("drain: {deadline: 5s}").await;
    let internal = hub.hub.listen_internal("127.0.0.1:0".parse().unwrap()).unwrap();
    let ready = format!("http://{internal}/health/ready");
    assert_eq!(http("GET", &ready, &[], None).await.status, 200);
    // It does not answer the close: the hub waits for it until the deadline.
    let lingering = RawClient::connect(hub.addr, "/ws?user_id=alice").await;
    let leaving = hub.hub.clone();
    let shutdown = tokio::spawn(async move { leaving.shutdown().await });
    eventually("it is not ready", async || (http("GET", &ready, &[], None).await.status == 503).then_some(())).await;
    assert_eq!(http("GET", &format!("http://{internal}/metrics"), &[], None).await.status, 200);
    drop(lingering);
    within("the shutdown", shutdown).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_is_not_kept_for_ever() {
    let hub = hub("http: {read_timeout: 100ms}").await;
    let mut idle = RawClient::tcp(hub.addr).await;
    idle.send_bytes(HEALTH).await;
    assert_eq!(idle.read_http_response().await.status, 200);
    idle.expect_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_is_answered_or_cut_and_hurts_nobody() {
    let hub = hub("").await;
    let mut alice = Client::connect(&format!("ws://{}/ws?user_id=alice", hub.addr)).await;
    let long = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(40_000));
    for bytes in [b"\x16\x03\x01\x02\x00".as_slice(), b"oops\r\n\r\n", b"GET  HTTP/1.1\r\n\r\n", long.as_bytes()] {
        let mut client = RawClient::tcp(hub.addr).await;
        client.try_send_bytes(bytes).await;
        client.shut_down().await;
        client.trickle(b"", Duration::ZERO).await;
    }
    for path in ["/api/rooms/%FF/members", "/api/users/%00", "/api/clients/__x", "/api/rooms/wsc.x/members"] {
        assert_refused(&hub.get(path).await, 400, 1001);
    }
    alice.expect_quiet().await;
    assert_eq!(hub.get("/health").await.status, 200);
}
