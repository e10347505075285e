//! RFC 6455, sent by somebody who does not keep to it.

use serde_json::json;
use wsc_testkit::{Client, Frame, LengthForm, RawClient, ServerProcess};

use crate::support::{expect_clients, hub};

const PING: &str = r#"{"message_type":"ping","message_id":1}"#;

async fn connected(server: &ServerProcess) -> RawClient {
    let mut client = RawClient::connect(server.addr(), "/ws").await;
    client.expect("connected").await;
    client
}

/// Sends these frames on a fresh connection and expects this close code.
async fn closes_with(server: &ServerProcess, name: &str, frames: &[Frame], code: u16) {
    let mut client = connected(server).await;
    for frame in frames {
        client.try_send_bytes(&frame.encode()).await;
    }
    println!("{name}");
    let closed = client.expect_close().await;
    assert_eq!(closed, code, "{name}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn violations_of_the_protocol_close_with_1002() {
    let server = hub("").await;
    let text = || Frame::text(PING);
    let long = vec![b'x'; 126];
    let cases: Vec<(&str, Vec<Frame>)> = vec![
        ("unmasked text", vec![text().unmasked()]),
        ("unmasked empty text", vec![Frame::text("").unmasked()]),
        ("unmasked ping", vec![Frame::ping("").unmasked()]),
        ("RSV1", vec![text().rsv(4)]),
        ("RSV2", vec![text().rsv(2)]),
        ("RSV3", vec![text().rsv(1)]),
        ("RSV1 on a ping", vec![Frame::ping("").rsv(4)]),
        ("data opcode 3", vec![Frame::new(0x3, "x")]),
        ("data opcode 7", vec![Frame::new(0x7, "")]),
        ("control opcode 11", vec![Frame::new(0xB, "")]),
        ("control opcode 15", vec![Frame::new(0xF, "x")]),
        ("long ping", vec![Frame::ping(long.clone())]),
        ("long pong", vec![Frame::pong(long.clone())]),
        ("long close", vec![Frame::close(1000, &"x".repeat(124))]),
        ("fragmented ping", vec![Frame::ping("x").more()]),
        ("fragmented close", vec![Frame::close(1000, "").more()]),
        ("lone continuation", vec![Frame::continuation("x")]),
        ("lone middle fragment", vec![Frame::continuation("x").more()]),
        ("text within a fragmented message", vec![Frame::text("a").more(), text()]),
        ("binary within a fragmented message", vec![Frame::text("a").more(), Frame::binary("x").more()]),
        (
            "continuation after the end",
            vec![Frame::text(r#"{"message_type":"#).more(), Frame::continuation("\"x\"}").rsv(2)],
        ),
        ("close of one byte", vec![Frame::close_raw([3])]),
    ];
    for (name, frames) in cases {
        closes_with(&server, name, &frames, 1002).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn close_codes_that_nobody_may_send_are_answered_with_1002() {
    let server = hub("").await;
    for code in [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535] {
        let frames = [Frame::close(code, "")];
        closes_with(&server, &format!("close {code}"), &frames, 1002).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_is_answered_with_the_same_code() {
    let server = hub("").await;
    for code in [1000, 1001, 1003, 1007, 1011, 3000, 3999, 4000, 4999] {
        let frames = [Frame::close(code, "bye")];
        closes_with(&server, &format!("close {code}"), &frames, code).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_without_a_code_is_answered() {
    let server = hub("").await;
    let mut client = connected(&server).await;
    client.send(&Frame::close_raw([])).await;
    let code = client.expect_close().await;
    assert!(matches!(code, 1000 | 1005), "{code}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_follows_a_close_is_not_read() {
    let server = hub("").await;
    let mut client = connected(&server).await;
    let mut bytes = Frame::close(1000, "").encode();
    bytes.extend(Frame::text(PING).encode());
    bytes.extend(Frame::ping("x").encode());
    client.send_bytes(&bytes).await;
    assert_eq!(client.expect_close().await, 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_that_is_not_utf8_closes_with_1007() {
    let server = hub("").await;
    let cases: Vec<(&str, Vec<Frame>)> = vec![
        ("a lone byte", vec![Frame::text(b"{\"a\":\"\xff\"}".to_vec())]),
        ("an overlong form", vec![Frame::text(b"\xc0\xaf".to_vec())]),
        ("a surrogate", vec![Frame::text(b"\xed\xa0\x80".to_vec())]),
        ("beyond the last", vec![Frame::text(b"\xf4\x90\x80\x80".to_vec())]),
        ("cut at the end", vec![Frame::text(b"\xf0\x9f\xa6".to_vec())]),
        ("in the second fragment", vec![Frame::text("abc").more(), Frame::continuation(b"\xff".to_vec())]),
        ("cut at the end of the last fragment", vec![Frame::text("abc").more(), Frame::continuation(b"\xc3".to_vec())]),
        ("in the reason of a close", { vec![Frame::close_raw(b"\x03\xe8\xff\xfe".to_vec())] }),
    ];
    for (name, frames) in cases {
        closes_with(&server, name, &frames, 1007).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_character_may_be_split_between_fragments() {
    let server = hub("").await;
    let mut client = connected(&server).await;
    let text = r#"{"message_type":"ping","message_id":"é🦀"}"#.as_bytes();
    for at in text.len() - 8..text.len() {
        let (head, tail) = text.split_at(at);
        client.send(&Frame::text(head).more()).await;
        client.send(&Frame::continuation(tail)).await;
        assert_eq!(client.expect("pong").await["request_id"], "é🦀");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_large_a_frame_closes_with_1009_before_it_is_sent() {
    let server = hub("max_message_size: 1KiB").await;
    let mut over = PING.to_owned();
    over.push_str(&" ".repeat(1025 - PING.len()));
    let cases: Vec<(&str, Vec<Frame>)> = vec![
        ("one byte over", vec![Frame::text(over)]),
        ("64 KiB announced", vec![Frame::text("x").claims(65_536)]),
        ("4 GiB announced", vec![Frame::text("x").claims(1 << 32)]),
        ("all but everything", vec![Frame::text("x").claims(i64::MAX as u64)]),
        ("too large a binary frame", vec![Frame::binary("x").claims(2_000)]),
        (
            "the second fragment is too much",
            vec![Frame::text(vec![b' '; 1000]).more(), Frame::continuation(vec![b' '; 25])],
        ),
        (
            "the second fragment announces too much",
            vec![Frame::text("x").more(), Frame::continuation("").claims(1 << 40)],
        ),
    ];
    for (name, frames) in cases {
        closes_with(&server, name, &frames, 1009).await;
    }
    let mut client = connected(&server).await;
    let mut exact = PING.to_owned();
    exact.push_str(&" ".repeat(1024 - PING.len()));
    client.send(&Frame::text(exact.clone())).await;
    client.expect("pong").await;
    let (head, tail) = exact.as_bytes().split_at(500);
    client.send(&Frame::text(head).more()).await;
    client.send(&Frame::continuation(tail)).await;
    client.expect("pong").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_length_with_the_sign_bit_closes() {
    let server = hub("").await;
    let mut client = connected(&server).await;
    client.send(&Frame::text("x").claims(u64::MAX)).await;
    let code = client.expect_close().await;
    assert!(matches!(code, 1002 | 1009), "{code}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_length_written_too_long_is_read_or_closes_with_1002() {
    let server = hub("").await;
    for form in [LengthForm::Sixteen, LengthForm::SixtyFour] {
        let mut client = connected(&server).await;
        client.send(&Frame::text(PING).length_form(form)).await;
        let frame = client.read_frame().await;
        match frame.close() {
            Some((code, _)) => assert_eq!(code, 1002),
            None => assert!(frame.text().contains("\"pong\""), "{frame:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ping_is_answered_with_its_payload() {
    let server = hub("").await;
    let mut client = connected(&server).await;
    for payload in [vec![], b"hi".to_vec(), vec![0xff; 125]] {
        client.send(&Frame::ping(payload.clone())).await;
        let pong = client.read_frame().await;
        assert_eq!(pong.opcode, 0xA, "{pong:?}");
        assert_eq!(pong.payload, payload);
    }
    // A pong nobody asked for is taken silently.
    client.send(&Frame::pong("unasked")).await;
    client.send(&Frame::text(PING)).await;
    client.expect("pong").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ping_between_fragments_is_answered_before_the_message() {
    let server = hub("").await;
    let mut client = connected(&server).await;
    client.send(&Frame::text(&PING[..10]).more()).await;
    client.send(&Frame::ping("one")).await;
    assert_eq!(client.read_frame().await.payload, b"one");
    client.send(&Frame::continuation(&PING[10..20]).more()).await;
    client.send(&Frame::ping("two")).await;
    assert_eq!(client.read_frame().await.payload, b"two");
    client.send(&Frame::pong("three")).await;
    client.send(&Frame::continuation(&PING[20..])).await;
    client.expect("pong").await;
    // And the same once more in a single packet.
    let mut bytes = Frame::text(&PING[..10]).more().encode();
    bytes.extend(Frame::ping("four").encode());
    bytes.extend(Frame::continuation(&PING[10..]).encode());
    bytes.extend(Frame::text(PING).encode());
    client.send_bytes(&bytes).await;
    assert_eq!(client.read_frame().await.payload, b"four");
    client.expect("pong").await;
    client.expect("pong").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_may_come_in_any_number_of_fragments() {
    let server = hub("").await;
    let mut client = connected(&server).await;
    client.send(&Frame::text("").more()).await;
    for byte in PING.bytes() {
        client.send(&Frame::continuation([byte]).more()).await;
        client.send(&Frame::continuation("").more()).await;
    }
    client.send(&Frame::continuation("")).await;
    client.expect("pong").await;
    client.send(&Frame::binary(&PING[..1]).more()).await;
    client.send(&Frame::continuation(&PING[1..])).await;
    client.expect("pong").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_may_come_between_fragments() {
    let server = hub("").await;
    let frames = [Frame::text("half").more(), Frame::close(1000, "")];
    closes_with(&server, "close between fragments", &frames, 1000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_may_come_byte_by_byte_or_many_at_once() {
    let server = hub("").await;
    let mut client = connected(&server).await;
    for byte in Frame::text(PING).encode() {
        client.send_bytes(&[byte]).await;
    }
    client.expect("pong").await;
    let many = Frame::text(PING).encode().repeat(1_000);
    client.send_bytes(&many).await;
    for _ in 0..1_000 {
        client.expect("pong").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_length_of_message_is_read() {
    let server = hub("").await;
    let mut client = connected(&server).await;
    for length in [125, 126, 127, 1_000, 4_095, 4_096, 4_097, 65_535, 65_536] {
        let mut text = PING.to_owned();
        text.push_str(&" ".repeat(length - PING.len()));
        client.send(&Frame::text(text)).await;
        client.expect("pong").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_mask_is_undone() {
    let server = hub("").await;
    let mut client = connected(&server).await;
    for key in [[0; 4], [0xff; 4], [1, 2, 3, 4], [0x80, 0, 0, 1]] {
        client.send(&Frame::text(PING).mask(key)).await;
        client.expect("pong").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_sends_whole_unmasked_frames_without_reserved_bits() {
    let server = hub("").await;
    let mut client = RawClient::connect(server.addr(), "/ws?user_id=alice").await;
    let frame = client.read_frame().await;
    assert!(frame.fin && !frame.masked && frame.rsv == 0 && frame.opcode == 1);
    // Also a large one.
    let mut bob = Client::connect(&server.ws_url_as("bob")).await;
    bob.tell("alice", json!("x".repeat(60_000))).await;
    let frame = client.read_frame().await;
    assert!(frame.fin && !frame.masked && frame.rsv == 0 && frame.opcode == 1);
    assert!(frame.payload.len() > 60_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_frame_and_gone_leaves_nothing_behind() {
    let server = hub("").await;
    let whole = Frame::text(vec![b' '; 60_000]).encode();
    for cut in [1, 2, 5, 8, 5_000, whole.len() - 1] {
        let mut client = connected(&server).await;
        client.send_bytes(&whole[..cut]).await;
        drop(client);
        let mut client = connected(&server).await;
        client.send_bytes(&whole[..cut]).await;
        client.shut_down().await;
        client.read_to_end().await;
    }
    let mut fragmented = connected(&server).await;
    fragmented.send(&Frame::text("half").more()).await;
    drop(fragmented);
    expect_clients(&server, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_the_stream_ends_the_connection() {
    let server = hub("").await;
    let mut client = connected(&server).await;
    client.shut_down().await;
    client.read_to_end().await;
    expect_clients(&server, 0).await;
}
