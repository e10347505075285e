//! The order and the pace in which what waited is sent.

use serde_json::{Value, json};
use wsc_testkit::{Client, ServerProcess};

use super::{
    connect, contents, expect_away, expect_outcome, fate, reliable, take, tell_reliably, tell_with_outcome, text,
};
use crate::support::hub;

/// Messages of Alice for Bob, who is away: their ids.
async fn waiting(server: &ServerProcess, contents: impl IntoIterator<Item = Value>) -> Vec<String> {
    let mut alice = connect(server, "alice").await;
    let mut ids = Vec::new();
    for content in contents {
        ids.push(tell_with_outcome(&mut alice, "bob", content, "stored").await);
    }
    alice.close().await;
    ids
}

fn numbers(count: u32) -> impl Iterator<Item = Value> {
    (0..count).map(|n| json!(n))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_is_under_way_than_the_window_takes() {
    let server = hub("inbox: {window_messages: 3}").await;
    let ids = waiting(&server, numbers(8)).await;
    let mut bob = connect(&server, "bob").await;
    assert_eq!(contents(&mut bob, "direct_message", 3).await, [0, 1, 2]);
    bob.expect_quiet().await;
    assert_eq!(fate(&server, &ids[2], "bob").await["outcome"], "pending");
    assert_eq!(fate(&server, &ids[3], "bob").await["outcome"], "stored");
    // Each ACK makes room for one more, in whatever order they come.
    for (acked, next) in [(1, 3), (0, 4), (4, 5)] {
        bob.ack(&[&ids[acked]]).await;
        assert_eq!(contents(&mut bob, "direct_message", 1).await, [next]);
        bob.expect_quiet().await;
    }
    bob.ack(&[&ids[2], &ids[3]]).await;
    assert_eq!(contents(&mut bob, "direct_message", 2).await, [6, 7]);
    bob.send(&json!({"message_type": "nack", "data": {"ids": [ids[5], ids[6]]}})).await;
    bob.ack(&[&ids[7]]).await;
    bob.expect_quiet().await;
    for (at, id) in ids.iter().enumerate() {
        let outcome = if matches!(at, 5 | 6) { "rejected" } else { "acked" };
        expect_outcome(&server, id, "bob", outcome).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_window_has_a_limit_in_bytes_too_and_always_takes_one() {
    let server = hub("inbox: {window_bytes: 4KiB}").await;
    let sizes = [1_500_usize, 1_500, 1_500, 20_000, 10];
    let ids = waiting(&server, sizes.map(|size| json!("x".repeat(size)))).await;
    let mut bob = connect(&server, "bob").await;
    for at in [0, 1] {
        assert_eq!(bob.expect_reliable("direct_message").await["id"], ids[at].as_str());
    }
    bob.expect_quiet().await;
    bob.ack(&[&ids[0]]).await;
    assert_eq!(bob.expect_reliable("direct_message").await["id"], ids[2].as_str());
    bob.expect_quiet().await;
    // The large one is larger than the window: it goes alone.
    bob.ack(&[&ids[1]]).await;
    bob.expect_quiet().await;
    bob.ack(&[&ids[2]]).await;
    assert_eq!(bob.expect_reliable("direct_message").await["id"], ids[3].as_str());
    bob.expect_quiet().await;
    bob.ack(&[&ids[3]]).await;
    assert_eq!(bob.expect_reliable("direct_message").await["id"], ids[4].as_str());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_window_holds_for_live_messages_as_well() {
    let server = hub("inbox: {window_messages: 2}").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(text(&tell_reliably(&mut alice, "bob", json!(n)).await["id"]));
    }
    for at in 0..5 {
        let delivery = bob.expect_reliable("direct_message").await;
        assert_eq!(delivery["data"]["content"], at);
        // They never rested while Bob was away.
        assert_eq!(delivery.get("source"), None, "{delivery}");
        if at >= 1 {
            bob.expect_quiet().await;
            bob.ack(&[&ids[at - 1]]).await;
        }
    }
    bob.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_messages_take_no_place_in_the_window() {
    let server = hub("inbox: {window_messages: 1}").await;
    let mut alice = connect(&server, "alice").await;
    for n in 0..10 {
        alice.tell("bob", json!(n)).await;
    }
    tell_with_outcome(&mut alice, "bob", json!(10), "stored").await;
    for n in 11..15 {
        alice.tell("bob", json!(n)).await;
    }
    let last = tell_with_outcome(&mut alice, "bob", json!(15), "stored").await;
    let mut bob = connect(&server, "bob").await;
    let expected: Vec<u32> = (0..11).collect();
    assert_eq!(contents(&mut bob, "direct_message", 11).await, expected);
    // What stands between two that take a place may come now or later, in order.
    let delivery = bob.seen().last().cloned();
    let wsc_testkit::Inbound::Text(delivery) = delivery.unwrap() else { panic!("{bob}") };
    let delivery: Value = serde_json::from_str(&delivery).unwrap();
    bob.ack(&[&text(&delivery["id"])]).await;
    assert_eq!(contents(&mut bob, "direct_message", 4).await, [11, 12, 13, 14]);
    assert_eq!(bob.expect_reliable("direct_message").await["id"], last.as_str());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disconnect_in_the_middle_loses_and_reorders_nothing() {
    let server = hub("inbox: {window_messages: 4}").await;
    let ids = waiting(&server, numbers(12)).await;
    let mut bob = connect(&server, "bob").await;
    assert_eq!(contents(&mut bob, "direct_message", 4).await, [0, 1, 2, 3]);
    bob.ack(&[&ids[0], &ids[2]]).await;
    assert_eq!(contents(&mut bob, "direct_message", 2).await, [4, 5]);
    bob.cut();
    expect_away(&server, "bob").await;
    let mut bob = connect(&server, "bob").await;
    for n in [1, 3, 4, 5, 6, 7, 8, 9, 10, 11] {
        assert_eq!(take(&mut bob).await, n);
    }
    bob.expect_quiet().await;
    let ledger = server.metrics().await.ledger();
    ledger.check();
    assert_eq!((ledger.acked, ledger.here()), (12.0, 0.0), "{ledger:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_devices_that_connect_at_once_are_both_sent_everything() {
    let server = hub("").await;
    let ids = waiting(&server, numbers(50)).await;
    let (phone, laptop) = (server.ws_url_for("bob", "phone"), server.ws_url_for("bob", "laptop"));
    let (mut phone, mut laptop) = tokio::join!(Client::connect(&phone), Client::connect(&laptop));
    let expected: Vec<u32> = (0..50).collect();
    for device in [&mut phone, &mut laptop] {
        assert_eq!(contents(device, "direct_message", 50).await, expected);
    }
    // An ACK of one settles it for both.
    let (mine, yours) = ids.split_at(20);
    phone.ack(&mine.iter().map(String::as_str).collect::<Vec<_>>()).await;
    laptop.ack(&yours.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for id in &ids {
        expect_outcome(&server, id, "bob", "acked").await;
    }
    for device in [&mut phone, &mut laptop] {
        device.expect_quiet().await;
    }
    let ledger = server.metrics().await.ledger();
    ledger.check();
    assert_eq!((ledger.acked, ledger.here()), (50.0, 0.0), "{ledger:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ack_of_one_device_frees_the_window_of_the_other() {
    let server = hub("inbox: {window_messages: 2}").await;
    let ids = waiting(&server, numbers(4)).await;
    let mut phone = Client::connect(&server.ws_url_for("bob", "phone")).await;
    let mut laptop = Client::connect(&server.ws_url_for("bob", "laptop")).await;
    for device in [&mut phone, &mut laptop] {
        assert_eq!(contents(device, "direct_message", 2).await, [0, 1]);
        device.expect_quiet().await;
    }
    phone.ack(&[&ids[0], &ids[1]]).await;
    for device in [&mut phone, &mut laptop] {
        assert_eq!(contents(device, "direct_message", 2).await, [2, 3]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_new_waits_behind_the_replay_and_rooms_do_not() {
    let server = hub("inbox: {window_messages: 1}").await;
    let ids = waiting(&server, numbers(3)).await;
    let mut alice = connect(&server, "alice").await;
    alice.join("r1").await;
    let mut bob = connect(&server, "bob").await;
    assert_eq!(contents(&mut bob, "direct_message", 1).await, [0]);
    // A reply, a room message and a broadcast pass.
    bob.join("r1").await;
    alice.tell("bob", json!("plain")).await;
    let live = tell_reliably(&mut alice, "bob", json!("reliable")).await;
    alice.tell("bob", json!("last")).await;
    alice.say("r1", json!("room")).await;
    assert_eq!(bob.expect("room_message").await["data"]["content"], "room");
    assert_eq!(server.post("/api/broadcast", &json!({"content": "all"})).await.status, 202);
    assert_eq!(bob.expect("broadcast").await["data"]["content"], "all");
    bob.expect_quiet().await;
    for n in [1, 2] {
        bob.ack(&[&ids[n - 1]]).await;
        let delivery = bob.expect_reliable("direct_message").await;
        assert_eq!((&delivery["data"]["content"], &delivery["source"]), (&json!(n), &json!("offline")));
    }
    // The window is full, and nothing plain stands before the next: it may
    // come at once, or behind the ACK.
    bob.ack(&[&ids[2]]).await;
    let plain = bob.expect("direct_message").await;
    assert_eq!(plain["data"]["content"], "plain");
    assert_eq!(plain.get("source"), None, "{plain}");
    let reliable = bob.expect_reliable("direct_message").await;
    assert_eq!((&reliable["id"], reliable.get("source")), (&live["id"], None), "{reliable}");
    bob.ack(&[&text(&live["id"])]).await;
    assert_eq!(bob.expect("direct_message").await["data"]["content"], "last");
    bob.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_that_is_not_acknowledged_ends_and_lets_live_messages_pass() {
    let keys = "ack_timeout: 100ms, ack_retry_interval: 50ms, ack_max_retries: 1, inbox: {window_messages: 1}";
    let server = hub(keys).await;
    let ids = waiting(&server, numbers(3)).await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    alice.tell("bob", json!("live")).await;
    loop {
        let delivery = bob.expect("direct_message").await;
        if delivery["data"]["content"] == "live" {
            break;
        }
        assert_eq!(delivery["id"], ids[0].as_str(), "only the oldest is tried");
    }
    for id in &ids {
        expect_outcome(&server, id, "bob", "stored").await;
    }
    // The next stay begins with the oldest again.
    let mut back = connect(&server, "bob").await;
    for n in 0..3 {
        loop {
            let delivery = back.expect_reliable("direct_message").await;
            back.ack(&[&text(&delivery["id"])]).await;
            if delivery["data"]["content"] == n {
                break;
            }
            // A resend that was under way when the ACK came.
            assert!(delivery["attempt"].is_u64(), "{delivery}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_is_kept_between_what_waited_and_what_is_new() {
    let server = hub("inbox: {window_messages: 8}").await;
    let mut alice = connect(&server, "alice").await;
    let mut expected = 0;
    for round in 0..5 {
        // Bob comes in the middle of a stream of both kinds.
        let stream = async {
            for n in 0..60 {
                let content = json!(round * 60 + n);
                let mut message = reliable("bob", &content);
                message["require_ack"] = json!(n % 2 == 0);
                alice.send(&message).await;
            }
            alice.barrier().await;
        };
        let reader = async {
            let mut bob = connect(&server, "bob").await;
            while expected < (round + 1) * 60 {
                let delivery = bob.expect("direct_message").await;
                assert_eq!(delivery["data"]["content"], expected, "{bob}");
                if delivery["require_ack"] == true {
                    bob.ack(&[&text(&delivery["id"])]).await;
                }
                expected += 1;
            }
            bob.expect_quiet().await;
            bob.close().await;
        };
        tokio::join!(stream, reader);
        expect_away(&server, "bob").await;
    }
    let ledger = server.metrics().await.ledger();
    ledger.check();
    assert_eq!((ledger.accepted, ledger.here()), (300.0, 0.0), "{ledger:?}");
}

/// Fills Bob's inbox by way of batches, lets him fetch all of it, and gives
/// how many KiB the server's memory grew meanwhile.
async fn deep(count: u32) -> u64 {
    let keys = "storage: {inbox_max_messages: 1000000, inbox_max_bytes: 1GiB}, limits: {stored_per_sender: 1000000}, \
                http: {max_body_size: 8MiB}, outcomes: {max: 1000}";
    let server = hub(keys).await;
    let filler = "x".repeat(2_000);
    for batch in 0..count / 1_000 {
        let message = |n| json!({"user_id": "bob", "content": [batch * 1_000 + n, filler], "require_ack": true});
        let messages: Vec<Value> = (0..1_000).map(message).collect();
        let answer = server.post("/api/messages/batch", &json!({"messages": messages})).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let answer = answer.json();
        let results = answer["results"].as_array().unwrap();
        assert!(results.iter().all(|result| result["outcome"] == "stored"), "{answer}");
    }
    let before = resident_kib(&server);
    let mut most = before;
    let mut bob = connect(&server, "bob").await;
    let mut ids = Vec::new();
    for n in 0..count {
        let delivery = bob.expect_reliable("user_message").await;
        assert_eq!(delivery["data"]["content"][0], n);
        ids.push(text(&delivery["id"]));
        if ids.len() == 64 {
            bob.ack(&ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
            ids.clear();
            most = most.max(resident_kib(&server));
        }
    }
    bob.ack(&ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    wsc_testkit::eventually("all are acknowledged", async || {
        let ledger = server.metrics().await.ledger();
        ledger.check();
        (ledger.acked == f64::from(count)).then_some(())
    })
    .await;
    most - before
}

fn resident_kib(server: &ServerProcess) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deep_inbox_is_fetched_in_order() {
    deep(5_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs minutes"]
async fn a_hundred_thousand_messages_are_fetched_with_bounded_memory() {
    // 200 MB of messages.
    let grown = deep(100_000).await;
    println!("the replay of 100,000 messages took {grown} KiB");
    assert!(grown < 100 * 1024, "{grown} KiB");
}
