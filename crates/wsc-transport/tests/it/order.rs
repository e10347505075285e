//! What comes before what.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
};

use parking_lot::Mutex;
use wsc_transport::{Encoded, Sent, TransportConfig};

use crate::support::{Hub, eventually, server_frame};

/// Sends numbered messages over one connection from several tasks while a lock gives them out in order: exactly
/// that order must arrive.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whoever_sends_first_is_read_first() {
    let hub = Hub::with(|c| c.queue_max_bytes = 64 << 20);
    let mut tcp = hub.client().await;
    let mut senders = vec![hub.newest()];
    let mut piped = hub.adopted(4 << 10);
    senders.push(hub.newest());
    let mut tasks = Vec::new();
    for sender in senders {
        let next = Arc::new(Mutex::new(0_u64));
        for way in 0..4 {
            let (sender, next) = (sender.clone(), Arc::clone(&next));
            tasks.push(tokio::spawn(async move {
                for round in 0..1_000 {
                    {
                        let mut next = next.lock();
                        let frame = server_frame(0x81, next.to_string().as_bytes());
                        let sent = match way {
                            0 => sender.send(&frame),
                            1 => sender.send_with(|| Some(frame)),
                            _ => sender.deliver(&Encoded::new(&frame), &mut || None),
                        };
                        assert!(matches!(sent, Sent::Written | Sent::Queued));
                        *next += 1;
                    }
                    if round % 16 == 0 {
                        tokio::task::yield_now().await;
                    }
                }
            }));
        }
    }
    for n in 0..4_000_u64 {
        assert_eq!(tcp.text().await, n.to_string());
    }
    for n in 0..4_000_u64 {
        assert_eq!(piped.text().await, n.to_string());
    }
    for task in tasks {
        task.await.unwrap();
    }
    hub.finish().await;
}

/// A guest that comes and goes sees the room only between its `joined` and its `left`; who stays sees every message
/// once, in the order of publishing, and none of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_room_is_seen_from_joining_to_leaving() {
    const ROUNDS: u64 = 1_500;
    let hub = Hub::with(|c| {
        c.queue_max_bytes = 64 << 20;
        c.fanout_max_bytes = 64 << 20;
    });
    let published = Arc::new(AtomicU64::new(0));
    let visitors_left = Arc::new(AtomicUsize::new(3));
    let mut tasks = Vec::new();

    // Over a socket each, the third over a pipe.
    for visitor in 0..3_usize {
        let left = Arc::clone(&visitors_left);
        macro_rules! visit {
            ($client:expr) => {{
                let mut client = $client;
                tasks.push(tokio::spawn(async move {
                    let mut heard = 0_u64;
                    let mut last = None;
                    for _ in 0..ROUNDS {
                        client.say("join").await;
                        assert_eq!(client.text().await, "joined");
                        client.say("leave").await;
                        loop {
                            let text = client.text().await;
                            if text == "left" {
                                break;
                            }
                            let n: u64 = text.strip_prefix("m ").expect("a message of the room").parse().unwrap();
                            assert!(last.is_none_or(|last| last < n), "{n} after {last:?}");
                            last = Some(n);
                            heard += 1;
                        }
                        // Nothing follows the leave: the echo must be next.
                        client.say("still here").await;
                        assert_eq!(client.text().await, "still here");
                    }
                    left.fetch_sub(1, SeqCst);
                    heard
                }));
            }};
        }
        if visitor == 2 {
            visit!(hub.adopted(64 << 10));
        } else {
            visit!(hub.client().await);
        }
    }

    // One that stays and listens.
    let mut resident = hub.client().await;
    resident.say("join").await;
    assert_eq!(resident.text().await, "joined");
    // One that stays and talks: it hears nothing of its own.
    let mut talker = hub.client().await;
    talker.say("join").await;
    assert_eq!(talker.text().await, "joined");

    let room = hub.lab.room.clone();
    let talk = tokio::spawn({
        let (published, left) = (Arc::clone(&published), Arc::clone(&visitors_left));
        async move {
            while left.load(SeqCst) > 0 {
                let n = published.fetch_add(1, SeqCst);
                talker.say(&format!("publish m {n}")).await;
                if n % 8 == 0 {
                    // A round trip, so that the room is never far behind.
                    talker.say("done").await;
                    assert_eq!(talker.text().await, "done");
                }
            }
            talker.say("end").await;
            assert_eq!(talker.text().await, "end");
            talker
        }
    });
    let listen = tokio::spawn(async move {
        let mut next = 0_u64;
        loop {
            let text = resident.text().await;
            if text == "over" {
                return (resident, next);
            }
            assert_eq!(text, format!("m {next}"));
            next += 1;
        }
    });
    for task in tasks {
        task.await.unwrap();
    }
    let mut talker = talk.await.unwrap();
    room.publish(&Encoded::new(&server_frame(0x81, b"over")), None).unwrap();
    assert_eq!(talker.text().await, "over");
    let (_resident, heard) = listen.await.unwrap();
    assert_eq!(heard, published.load(SeqCst));
    hub.settled().await;
    hub.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishers_on_several_threads_agree_on_one_order() {
    let hub = Hub::with(|c| {
        c.queue_max_bytes = 64 << 20;
        c.fanout_max_bytes = 64 << 20;
    });
    let mut members = Vec::new();
    for _ in 0..3 {
        let mut member = hub.client().await;
        member.say("join").await;
        assert_eq!(member.text().await, "joined");
        members.push(member);
    }
    let publishers: Vec<_> = (0..4)
        .map(|publisher| {
            let room = hub.lab.room.clone();
            tokio::spawn(async move {
                for n in 0..500 {
                    room.publish(&Encoded::new(&server_frame(0x81, format!("{publisher} {n}").as_bytes())), None)
                        .unwrap();
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    let mut orders = Vec::new();
    for member in &mut members {
        let mut order = Vec::new();
        for _ in 0..2_000 {
            order.push(member.text().await);
        }
        orders.push(order);
    }
    for publisher in publishers {
        publisher.await.unwrap();
    }
    assert_eq!(orders[0], orders[1]);
    assert_eq!(orders[0], orders[2]);
    for publisher in 0..4 {
        let own: Vec<&String> = orders[0].iter().filter(|t| t.starts_with(&format!("{publisher} "))).collect();
        let expected: Vec<String> = (0..500).map(|n| format!("{publisher} {n}")).collect();
        assert!(own.into_iter().eq(&expected));
    }
    eventually("a report", || hub.lab.rounds.load(SeqCst) > 0).await;
    hub.finish().await;
}

#[tokio::test]
async fn a_reply_about_a_room_that_is_not_made_is_not_sent() {
    let hub = Hub::start(&TransportConfig::default());
    let mut client = hub.client().await;
    client.say("leave").await;
    client.say("next").await;
    assert_eq!(client.text().await, "next");
    hub.finish().await;
}
