//! Life signs in both directions.

use std::time::{Duration, Instant};

use serde_json::json;
use wsc_testkit::{Client, Frame, RawClient};

use crate::support::{assert_closed, expect_clients, hub};

const FAST: &str = "ping_interval: 200ms, pong_timeout: 200ms";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ping_comes_every_interval() {
    let server = hub(FAST).await;
    let mut client = Client::connect(&server.ws_url()).await;
    assert_eq!(client.connected()["data"]["ping_interval_ms"], 200);
    client.expect_ping().await;
    let start = Instant::now();
    for _ in 0..5 {
        client.expect_ping().await;
    }
    // Five intervals, generously: a machine under load may stretch them.
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(600), "{took:?}");
    assert!(took <= Duration::from_secs(5), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_client_is_closed() {
    let server = hub(FAST).await;
    let mut client = RawClient::connect(server.addr(), "/ws").await;
    let start = Instant::now();
    client.expect("connected").await;
    assert_eq!(client.expect_close().await, 3012);
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(350), "{took:?}");
    expect_clients(&server, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_close_says_why() {
    let server = hub(FAST).await;
    let mut client = RawClient::connect(server.addr(), "/ws").await;
    client.expect("connected").await;
    let (code, reason) = loop {
        if let Some(closed) = client.read_frame().await.close() {
            break closed;
        }
    };
    assert_closed(&(code, serde_json::from_str(&reason).unwrap()), 3012);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_that_only_answers_pings_stays() {
    let server = hub(FAST).await;
    let mut listener = RawClient::connect(server.addr(), "/ws?user_id=listener").await;
    listener.expect("connected").await;
    for _ in 0..8 {
        let ping = listener.read_frame().await;
        assert_eq!(ping.opcode, 0x9, "{ping:?}");
        listener.send(&Frame::pong(ping.payload)).await;
    }
    let answer = server.post("/api/users/listener/messages", &json!({"content": 1})).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    listener.expect("user_message").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_frame_counts_as_life() {
    let server = hub(FAST).await;
    let frames = [
        Frame::text(r#"{"message_type":"room_message"}"#),
        Frame::binary(r#"{"message_type":"ping"}"#),
        Frame::ping("x"),
        Frame::pong("unasked"),
    ];
    for frame in frames {
        let mut client = RawClient::connect(server.addr(), "/ws").await;
        client.expect("connected").await;
        let mut pings = 0;
        while pings < 8 {
            let got = client.read_frame().await;
            assert_eq!(got.close(), None, "after {pings} pings, with {frame:?}");
            if got.opcode == 0x9 {
                pings += 1;
                client.send(&frame).await;
                if frame.encode()[0] & 0x0f == 1 {
                    // Nine bad frames would do, ten would not.
                    client.send(&Frame::text(r#"{"message_type":"ping"}"#)).await;
                }
            }
        }
    }
}
