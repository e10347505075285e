//! permessage-deflate, seen from a client that does it by hand.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use http::{Request, Response};
use tokio::net::TcpStream;
use wsc_protocol::{CloseCode, CloseReason, DisconnectReason};
use wsc_transport::{Adopted, Encoded, TransportConfig};

use crate::support::{Client, Hub, client_frame, close_code, eventually, most_between_turns, server_frame, text};

const OFFER: &str = "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n";

fn hub() -> Hub {
    Hub::with(|config| config.compression_threshold = Some(100))
}

/// A client that agreed to compression.
async fn agreed(hub: &Hub) -> Client<TcpStream> {
    let (client, head) = offered(hub).await;
    let answer = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
    assert!(head.to_lowercase().contains(&format!("sec-websocket-extensions: {answer}\r\n")), "{head}");
    client
}

async fn offered(hub: &Hub) -> (Client<TcpStream>, String) {
    let mut client = Client::new(hub.tcp().await);
    client.write(OFFER.as_bytes()).await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    (client, head)
}

pub(crate) fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::with_capacity(bytes.len() + 100);
    Compress::new(Compression::best(), false).compress_vec(bytes, &mut packed, FlushCompress::Sync).unwrap();
    packed.truncate(packed.len() - 4);
    packed
}

fn inflate(packed: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(1 << 20);
    let tail = [packed, &[0, 0, 0xFF, 0xFF]].concat();
    Decompress::new(false).decompress_vec(&tail, &mut bytes, FlushDecompress::Sync).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// The next frame, which must be a compressed text.
async fn packed(client: &mut Client<TcpStream>) -> (String, Vec<u8>) {
    match client.frame().await {
        Some((0xC1, payload)) => (inflate(&payload), payload),
        other => panic!("expected a compressed text, got {other:?}"),
    }
}

#[tokio::test]
async fn nothing_is_agreed_on_where_it_is_off() {
    let hub = Hub::start(&TransportConfig::default());
    let (mut client, head) = offered(&hub).await;
    assert!(!head.to_lowercase().contains("sec-websocket-extensions"), "{head}");
    client.write(&client_frame(0xC1, &deflate(b"hello"))).await;
    assert_eq!(client.close().await, 1002);
    hub.finish().await;
}

#[tokio::test]
async fn messages_are_compressed_both_ways_from_the_threshold_on() {
    let hub = hub();
    let mut client = agreed(&hub).await;
    for len in [0, 99] {
        let words = "x".repeat(len);
        client.write(&client_frame(0xC1, &deflate(words.as_bytes()))).await;
        assert_eq!(client.text().await, words);
    }
    for len in [100, 60_000] {
        let words = "y".repeat(len);
        client.write(&client_frame(0xC1, &deflate(words.as_bytes()))).await;
        assert_eq!(packed(&mut client).await.0, words);
        // Each message says for itself whether it is compressed.
        client.say(&words).await;
        assert_eq!(packed(&mut client).await.0, words);
    }
    hub.finish().await;
}

#[tokio::test]
async fn a_compressed_message_may_come_in_fragments() {
    let hub = hub();
    let mut client = agreed(&hub).await;
    let bytes = deflate("grüße".as_bytes());
    let (first, rest) = bytes.split_at(3);
    for frame in [
        client_frame(0x41, first),
        client_frame(0x89, b"p"),
        client_frame(0x00, b""),
        client_frame(0x00, &rest[..1]),
        client_frame(0x80, &rest[1..]),
    ] {
        client.write(&frame).await;
    }
    assert_eq!(client.frame().await, Some((0x8A, b"p".to_vec())));
    assert_eq!(client.text().await, "grüße");
    client.say("plain again").await;
    assert_eq!(client.text().await, "plain again");
    hub.finish().await;
}

#[tokio::test]
async fn what_is_wrong_with_compressed_messages_has_its_code() {
    let hub = Hub::with(|config| {
        config.compression_threshold = Some(100);
        config.max_message_size = 10_000;
    });
    let bomb = deflate(&vec![b'0'; 10_001]);
    let in_fragments = [client_frame(0x41, &bomb[..5]), client_frame(0x80, &bomb[5..])].concat();
    for (frames, code) in [
        (client_frame(0xC1, &bomb), 1009),
        (in_fragments, 1009),
        (client_frame(0xC1, &[0xFF, 0xFF, 0xFF]), 1007),
        (client_frame(0xC1, &deflate(&[0xFF])), 1007),
        // Only the first frame of a message carries the bit, and control frames never do.
        ([client_frame(0x41, &bomb[..5]), client_frame(0xC0, &bomb[5..])].concat(), 1002),
        ([client_frame(0x41, &bomb[..5]), client_frame(0xC1, &bomb)].concat(), 1002),
        (client_frame(0xC9, b""), 1002),
        (client_frame(0xA1, b""), 1002),
        (client_frame(0xE1, b""), 1002),
    ] {
        let mut client = agreed(&hub).await;
        client.write(&frames).await;
        assert_eq!(client.close().await, code, "{frames:?}");
    }
    hub.finish().await;
}

/// Who agreed and who did not get the same messages in the same order; each message is compressed once for all.
#[tokio::test]
async fn a_room_is_told_in_both_forms() {
    let hub = hub();
    let mut packing = agreed(&hub).await;
    let mut also_packing = agreed(&hub).await;
    let mut plain = hub.client().await;
    for client in [&mut packing, &mut also_packing, &mut plain] {
        client.say("join").await;
        assert_eq!(client.text().await, "joined");
    }
    let words: Vec<String> =
        (0..20).map(|n| format!("{n} {}", "z".repeat(if n % 3 == 0 { 10 } else { 500 }))).collect();
    for words in &words {
        // Whoever publishes gets no copy.
        plain.say(&format!("publish {words}")).await;
        packing.say(&format!("publish {words}")).await;
    }
    for expected in &words {
        if expected.len() < 100 {
            assert_eq!(&packing.text().await, expected);
        } else {
            assert_eq!(&packed(&mut packing).await.0, expected);
        }
        assert_eq!(&plain.text().await, expected);
    }
    let mut from_both = Vec::new();
    for _ in 0..2 * words.len() {
        let (first, payload) = also_packing.frame().await.unwrap();
        from_both.push(if first == 0xC1 { inflate(&payload) } else { String::from_utf8(payload).unwrap() });
    }
    from_both.sort_unstable();
    let mut expected = [&words[..], &words[..]].concat();
    expected.sort_unstable();
    assert_eq!(from_both, expected);
    hub.settled().await;
    hub.finish().await;
}

/// A queue that is full of compressed messages is cut at a frame's border like any other.
#[tokio::test]
async fn a_slow_member_is_told_where_messages_are_missing() {
    let hub = Hub::with(|config| {
        config.compression_threshold = Some(100);
        config.queue_max_bytes = 20_000;
        config.queue_policy = wsc_transport::QueuePolicy::DropOldest;
    });
    let mut slow = agreed(&hub).await;
    slow.say("join").await;
    assert_eq!(slow.text().await, "joined");
    let stats = hub.transport.stats();
    let mut published = 0_u64;
    while stats.ledger().snapshot().queue_full < 50 {
        // Digits shrink, but not to nothing.
        let hasher = BuildHasherDefault::<DefaultHasher>::new();
        let body: String = (0..40_u64).map(|n| format!("{:020}", hasher.hash_one((published, n)))).collect();
        let message = server_frame(0x81, format!("{published} {body}").as_bytes());
        if hub.lab.room.publish(&Encoded::new(&message), None).is_ok() {
            published += 1;
        }
        tokio::task::yield_now().await;
    }
    let member = hub.newest();
    eventually("all rounds are over", || stats.ledger().snapshot().in_flight as u64 == member.queued().1).await;
    member.close(&CloseReason::new(CloseCode::KICKED, "bye"), DisconnectReason::KickOut);
    let mut next = 0;
    let (mut read, mut dropped) = (0, 0);
    for (first, payload) in slow.rest().await {
        let words = match first {
            0xC1 => inflate(&payload),
            0x81 => String::from_utf8(payload).unwrap(),
            _ => {
                assert_eq!(close_code(&(first, payload)), Some(3503));
                continue;
            }
        };
        if words.starts_with('{') {
            dropped += words.split_once("\"dropped\":").unwrap().1.split(',').next().unwrap().parse::<u64>().unwrap();
            continue;
        }
        let number: u64 = words.split(' ').next().unwrap().parse().unwrap();
        assert!(number >= next, "{number} after {next}");
        next = number + 1;
        read += 1;
    }
    assert_eq!(read + dropped, published, "{read} read, {dropped} dropped");
    hub.finish().await;
}

/// What was agreed on at the beginning holds, whatever the settings say later.
#[tokio::test]
async fn switching_it_off_concerns_new_connections() {
    let hub = hub();
    let mut client = agreed(&hub).await;
    hub.transport.reconfigure(&TransportConfig::default());
    let words = "w".repeat(200);
    client.write(&client_frame(0xC1, &deflate(words.as_bytes()))).await;
    assert_eq!(client.text().await, words);
    let (mut other, head) = offered(&hub).await;
    assert!(!head.to_lowercase().contains("extensions"), "{head}");
    other.write(&text("hi")).await;
    assert_eq!(other.text().await, "hi");
    hub.finish().await;
}

/// Few bytes may hold much work: a connection lets others run after a bounded part of it.
#[tokio::test]
async fn who_sends_much_in_few_bytes_does_not_keep_others_from_running() {
    const MESSAGES: u64 = 200;
    let hub = hub();
    let offer = Request::builder().header("Sec-WebSocket-Extensions", "permessage-deflate").body(()).unwrap();
    let extensions = hub.transport.agree(&offer, &mut Response::new(()));
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    hub.transport.adopt(Adopted::Stream(Box::new(theirs)), Vec::new(), extensions, ());
    let mut client = Client::new(ours);
    let message = format!("publish {}", "0".repeat(60_000));
    let frame = client_frame(0xC1, &deflate(message.as_bytes()));
    client.write(&frame.repeat(MESSAGES as usize)).await;
    let most = most_between_turns(&hub, MESSAGES, |hub| hub.stats().messages_in()).await;
    // 256 KiB are over after the fifth.
    assert_eq!(most, 5);
    hub.finish().await;
}
