//! A client that reads too slowly, and that nobody else pays for it.

use serde_json::{Value, json};
use wsc_testkit::{Client, Frame, RawClient, RawOptions, ServerProcess};

use crate::support::{expect_clients, hub};

/// A member of room `r1` with a tiny receive buffer, who has read everything
/// so far and from now on does not read.
async fn stalled(server: &ServerProcess) -> RawClient {
    let options = RawOptions { recv_buffer: Some(4096), ..RawOptions::default() };
    let mut slow = RawClient::connect_with(server.addr(), "/ws?user_id=slow", options).await;
    slow.expect("connected").await;
    let join = r#"{"message_type":"join_room","data":{"room_id":"r1"}}"#;
    slow.send(&Frame::text(join)).await;
    slow.expect("room_joined").await;
    slow
}

/// Two members of `r1`: one who talks, one who listens.
async fn talkers(server: &ServerProcess) -> (Client, Client) {
    let mut talker = Client::connect(&server.ws_url_as("talker")).await;
    let mut listener = Client::connect(&server.ws_url_as("listener")).await;
    talker.join("r1").await;
    listener.join("r1").await;
    (talker, listener)
}

/// Says `n` with 32 KiB of filling, and waits until the listener has it; gives
/// the number of recipients.
async fn say(talker: &mut Client, listener: &mut Client, n: u64) -> i64 {
    let content = json!({"n": n, "filler": "x".repeat(32 * 1024)});
    let accepted = talker.say("r1", content).await;
    let delivery = listener.expect("room_message").await;
    assert_eq!(delivery["data"]["content"]["n"], n);
    accepted["data"]["recipients"].as_i64().unwrap()
}

/// More messages than any socket buffer of the machine takes (24 MiB).
const FLOOD: u64 = 768;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_disconnect_the_slow_one_goes_and_the_others_lose_nothing() {
    let server = hub("queue: {max_bytes: 64KiB, policy: disconnect}").await;
    let mut slow = stalled(&server).await;
    let (mut talker, mut listener) = talkers(&server).await;
    let mut n = 0;
    while say(&mut talker, &mut listener, n).await == 2 {
        n += 1;
        assert!(n < FLOOD, "the slow one is still there");
    }
    // It reads at last: what the kernel still had, and the close, if there
    // was room for one.
    let frames = slow.read_to_end().await;
    let closed = frames.last().and_then(|frame| frame.close());
    assert!(closed.is_none_or(|(code, _)| code == 3008));
    expect_clients(&server, 2).await;
    let metrics = server.metrics().await;
    let policy = [("policy", "disconnect")];
    assert!(metrics.sum("wsc_slow_consumers_total", &policy) >= 1.0);
    let reason = [("reason", "slow_consumer")];
    assert_eq!(metrics.sum("wsc_disconnections_total", &reason), 1.0);
}

/// Floods the room while the slow member does not read, then lets it read.
/// Gives the numbers it got, in order, and how many were dropped.
async fn flooded(policy: &str) -> (Vec<u64>, u64) {
    let keys = format!("queue: {{max_bytes: 256KiB, policy: {policy}}}, max_retries: 0, write_timeout: 5m");
    let server = hub(&keys).await;
    let mut slow = stalled(&server).await;
    let (mut talker, mut listener) = talkers(&server).await;
    for n in 0..FLOOD {
        assert_eq!(say(&mut talker, &mut listener, n).await, 2);
    }
    let metrics = server.metrics().await;
    assert!(metrics.sum("wsc_slow_consumers_total", &[("policy", policy)]) >= 1.0);

    let reading = tokio::spawn(async move {
        let mut got = Vec::new();
        let mut dropped = 0;
        loop {
            let message = slow.read_json().await;
            match message["message_type"].as_str() {
                Some("room_message") if message["data"]["content"] == "end" => break,
                Some("room_message") => {
                    got.push(message["data"]["content"]["n"].as_u64().unwrap());
                }
                Some("gap") => {
                    dropped += message["data"]["dropped"].as_u64().unwrap();
                    assert!(message["data"]["bytes"].as_u64().unwrap() > 0, "{message}");
                    assert!(message["data"]["since"].is_u64(), "{message}");
                }
                _ => panic!("{message}"),
            }
        }
        (slow, got, dropped)
    });
    // An end may be dropped, too, while the queue is still full.
    while !reading.is_finished() {
        talker.say("r1", json!("end")).await;
        listener.expect("room_message").await;
    }
    let (_slow, got, dropped) = reading.await.unwrap();
    expect_clients(&server, 3).await;
    (got, dropped)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_drop_oldest_the_newest_arrive() {
    let (got, dropped) = flooded("drop_oldest").await;
    assert!(got.is_sorted_by(|a, b| a < b), "{got:?}");
    assert_eq!(got.last(), Some(&(FLOOD - 1)));
    assert!(dropped > 0);
    // Nothing vanishes without being counted.
    assert!(got.len() as u64 + dropped >= FLOOD, "{} {dropped}", got.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_drop_newest_the_oldest_arrive() {
    let (got, dropped) = flooded("drop_newest").await;
    let expected: Vec<u64> = (0..got.len() as u64).collect();
    assert_eq!(got, expected);
    assert!(dropped > 0);
    assert!(got.len() as u64 + dropped >= FLOOD, "{} {dropped}", got.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_is_told_before_the_next_delivery() {
    let server = hub("queue: {max_bytes: 64KiB, policy: drop_oldest}, max_retries: 0, write_timeout: 5m").await;
    let mut slow = stalled(&server).await;
    let (mut talker, mut listener) = talkers(&server).await;
    for n in 0..FLOOD {
        say(&mut talker, &mut listener, n).await;
    }
    let mut last = None;
    let mut gaps = 0;
    loop {
        let message = slow.read_json().await;
        if message["message_type"] == "gap" {
            gaps += 1;
            continue;
        }
        let n = message["data"]["content"]["n"].as_u64().unwrap();
        let expected = last.map_or(0, |last| last + 1);
        if n != expected {
            assert!(gaps > 0, "{n} follows {last:?} without a gap");
        }
        last = Some(n);
        if n == FLOOD - 1 {
            break;
        }
    }
    assert!(gaps > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_message_larger_than_the_queue_still_passes() {
    let server = hub("queue: {max_bytes: 16KiB}").await;
    let mut alice = Client::connect(&server.ws_url_as("alice")).await;
    let mut bob = Client::connect(&server.ws_url_as("bob")).await;
    for _ in 0..20 {
        alice.tell("bob", json!("x".repeat(60_000))).await;
        bob.expect("direct_message").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_that_nobody_reads_end_the_connection() {
    for policy in ["disconnect", "drop_oldest", "drop_newest"] {
        let keys = format!("queue: {{max_bytes: 64KiB, policy: {policy}}}");
        let server = hub(&keys).await;
        let mut slow = stalled(&server).await;
        let id = "x".repeat(128);
        let ping = format!(r#"{{"message_type":"ping","message_id":"{id}"}}"#);
        let many = Frame::text(ping).encode().repeat(500);
        // 128 MiB of requests at most; the replies are longer than those.
        let mut open = true;
        for _ in 0..1_400 {
            open = slow.try_send_bytes(&many).await;
            if !open {
                break;
            }
        }
        assert!(!open, "still connected under {policy}");
        expect_clients(&server, 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_does_not_progress_times_out() {
    // The queue is never full: it is the time that ends this connection.
    let server = hub("queue: {max_bytes: 256MiB}, write_timeout: 500ms").await;
    let mut slow = stalled(&server).await;
    let (mut talker, mut listener) = talkers(&server).await;
    for n in 0..FLOOD {
        if say(&mut talker, &mut listener, n).await == 1 {
            break;
        }
    }
    expect_clients(&server, 2).await;
    let frames = slow.read_to_end().await;
    let closed = frames.last().and_then(|frame| frame.close());
    assert!(closed.is_none_or(|(code, _)| code == 3009));
    let metrics = server.metrics().await;
    let reason = [("reason", "write_timeout")];
    assert_eq!(metrics.sum("wsc_disconnections_total", &reason), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_in_small_messages_reaches_a_reader_whole() {
    let server = hub("").await;
    let (mut talker, mut listener) = talkers(&server).await;
    // Read while it is written, as a client does.
    let reading = tokio::spawn(async move {
        let mut expected = 0;
        while expected < 5_000 {
            let message = listener.expect("room_message").await;
            assert_eq!(message["data"]["content"], expected, "{listener}");
            expected += 1;
        }
    });
    for n in 0..5_000 {
        let data: Value = json!({"room_id": "r1", "content": n});
        talker.send(&json!({"message_type": "room_message", "data": data})).await;
    }
    reading.await.unwrap();
}
