//! Compressed messages that are far larger than they look.

use serde_json::json;
use wsc_testkit::{Client, Frame, Handshake, RawClient, ServerProcess};

use crate::support::{expect_clients, hub};

/// Deflated text (RFC 1951) of `count` times 258 letters and one more, in the
/// form of RFC 7692: 13 bits for each 258 letters, about the most there is.
fn inflating(count: usize) -> Vec<u8> {
    let mut bits = Bits::default();
    // Not the last block; fixed codes.
    bits.put(0b0, 1);
    bits.put(0b01, 2);
    bits.put_code(0x30 + u32::from(b'x'), 8);
    for _ in 0..count {
        // "258 letters", then "as one before".
        bits.put_code(0b1100_0101, 8);
        bits.put_code(0, 5);
    }
    // The end of the block, then an empty one whose last four bytes are left out.
    bits.put_code(0, 7);
    bits.put(0b000, 3);
    bits.bytes
}

#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    used: u32,
}

impl Bits {
    /// Appends a number, its lowest bit first.
    fn put(&mut self, value: u32, count: u32) {
        for at in 0..count {
            if self.used.is_multiple_of(8) {
                self.bytes.push(0);
            }
            let last = self.bytes.last_mut().unwrap();
            *last |= u8::from(value >> at & 1 == 1) << (self.used % 8);
            self.used += 1;
        }
    }

    /// Appends a Huffman code, its highest bit first.
    fn put_code(&mut self, code: u32, count: u32) {
        for at in (0..count).rev() {
            self.put(code >> at & 1, 1);
        }
    }
}

/// Connects with compression agreed on.
async fn compressing(server: &ServerProcess) -> RawClient {
    let mut raw = RawClient::tcp(server.addr()).await;
    let handshake = Handshake::new(server.addr(), "/ws").add("Sec-WebSocket-Extensions", "permessage-deflate");
    let response = raw.handshake(&handshake).await;
    assert_eq!(response.status, 101, "{response:?}");
    assert!(response.header("sec-websocket-extensions").is_some(), "{response:?}");
    raw.expect("connected").await;
    raw
}

const COMPRESSED: &str = "compression: {enabled: true}, max_message_size: 64KiB";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_inflates_beyond_the_limit_is_cut_at_it() {
    let server = hub(COMPRESSED).await;
    let mut alice = Client::connect(&server.ws_url_as("alice")).await;
    // 250 letters more than fit, then 8 MB out of 51 kB.
    for count in [255, 32_000] {
        let bomb = inflating(count);
        assert!(bomb.len() < 64 * 1024);
        let mut raw = compressing(&server).await;
        raw.send(&Frame::text(bomb).rsv(4)).await;
        assert_eq!(raw.expect_close().await, 1009, "{count}");
    }
    alice.expect_quiet().await;
    // As large as may be is answered: it is no JSON.
    let mut raw = compressing(&server).await;
    raw.send(&Frame::text(inflating(250)).rsv(4)).await;
    assert_eq!(raw.expect("error").await["data"]["code"], 1001);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bombs_in_fragments_are_bombs() {
    let server = hub(COMPRESSED).await;
    let mut raw = compressing(&server).await;
    let bomb = inflating(32_000);
    let (first, rest) = bomb.split_at(1000);
    let (rest, last) = rest.split_at(rest.len() - 1000);
    raw.send(&Frame::text(first).rsv(4).more()).await;
    for part in rest.chunks(1000) {
        if !raw.try_send_bytes(&Frame::continuation(part).more().encode()).await {
            break;
        }
    }
    raw.try_send_bytes(&Frame::continuation(last).encode()).await;
    let frames = raw.read_to_end().await;
    let code = frames.last().and_then(|frame| frame.close()).map(|(code, _)| code);
    // Input that was still on its way may have reset the socket.
    assert!(matches!(code, Some(1009) | None), "{code:?}");
    expect_clients(&server, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_bombs_cost_little_and_hurt_nobody() {
    let server = hub(COMPRESSED).await;
    let mut alice = Client::connect(&server.ws_url_as("alice")).await;
    let bomb = Frame::text(inflating(32_000)).rsv(4).encode();
    let before = resident_kib(server.pid());
    for _ in 0..10 {
        let mut raws = Vec::new();
        for _ in 0..20 {
            let mut raw = compressing(&server).await;
            raw.try_send_bytes(&bomb).await;
            raws.push(raw);
        }
        alice.expect_quiet().await;
        for mut raw in raws {
            raw.read_to_end().await;
        }
    }
    let grown = resident_kib(server.pid()).saturating_sub(before);
    // 200 of 8 MB each would be 1.6 GB.
    assert!(grown < 100 * 1024, "{grown} KiB more");
    let accepted = alice.tell("nobody-yet", json!("hi")).await;
    assert_eq!(accepted["data"]["outcome"], "stored", "{accepted}");
}

/// The resident memory of a process, in KiB.
fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compression_of_nothing_is_nothing() {
    let server = hub(COMPRESSED).await;
    let mut alice = Client::connect(&server.ws_url_as("alice")).await;
    // An empty message, an empty block, rubbish, a block that is not finished, and one that asks for what is not there.
    for payload in [&[][..], &[0x00], &[0x02, 0x00], &[0xff; 100], &[0x4a], &[0x63, 0x00, 0x02]] {
        let mut raw = compressing(&server).await;
        raw.send(&Frame::text(payload).rsv(4)).await;
        raw.send(&Frame::close(1000, "")).await;
        let frames = raw.read_to_end().await;
        let code = frames.last().and_then(|frame| frame.close()).map(|(code, _)| code);
        assert!(matches!(code, Some(1000 | 1002 | 1003 | 1007) | None), "{payload:?}: {frames:?}");
    }
    // Compressed without having agreed on it.
    let mut raw = RawClient::connect(server.addr(), "/ws").await;
    raw.expect("connected").await;
    raw.send(&Frame::text(inflating(1)).rsv(4)).await;
    assert_eq!(raw.expect_close().await, 1002);
    alice.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_over_http_are_not_inflated() {
    let server = hub("http: {max_body_size: 64KiB}").await;
    for encoding in ["gzip", "deflate", "br"] {
        let headers = [("Content-Type", "application/json"), ("Content-Encoding", encoding)];
        let answer = server.http("POST", "/api/broadcast", &headers, Some(&inflating(32_000))).await;
        assert!(matches!(answer.status, 400 | 413 | 415), "{encoding}: {answer:?}");
    }
    let answer = server.post_text("/api/broadcast", &format!("{{\"content\":\"{}\"}}", "x".repeat(70_000))).await;
    crate::support::assert_refused(&answer, 413, 4002);
    let deep = format!("{{\"content\":{}1{}}}", "[".repeat(30_000), "]".repeat(30_000));
    let answer = server.post_text("/api/broadcast", &deep).await;
    assert!(answer.status < 500, "{answer:?}");
    assert_eq!(server.get("/health").await.status, 200);
}
