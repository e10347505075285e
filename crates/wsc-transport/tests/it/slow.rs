//! Peers that read slowly, or not at all.

use std::{sync::Arc, time::Duration};

use wsc_protocol::{DisconnectReason, FailureReason};
use wsc_transport::{Encoded, QueuePolicy, Sent, Settle};

use crate::{
    flood::{Flood, MESSAGE, QUEUE, gaps, hub, numbered, numbers, on_both},
    support::{Hub, client_frame, close_code, eventually, server_frame},
};

#[tokio::test]
async fn the_disconnected_learns_why_when_it_reads() {
    on_both(QueuePolicy::Disconnect, async |hub, client| {
        let outbound = hub.newest();
        let mut flood = Flood::default();
        while flood.deliver(&outbound) != Sent::Dropped {
            tokio::task::yield_now().await;
        }
        assert!(!outbound.is_open());
        assert_eq!(flood.deliver(&outbound), Sent::Closed);
        assert_eq!(outbound.send(&numbered(0)), Sent::Closed);
        let mut frames = Vec::new();
        while let Some(frame) = client.read().await {
            let last = close_code(&frame);
            frames.push(frame);
            if last.is_some() {
                client.send(&client_frame(0x88, &3008_u16.to_be_bytes())).await;
            }
        }
        assert_eq!(frames.last().and_then(close_code), Some(3008));
        // Nothing is missing before the farewell.
        let seen = numbers(&frames);
        assert!(seen.iter().copied().eq(0..seen.len() as u32), "{seen:?}");
        for (n, fate) in flood.fates().await {
            let expected = if (n as usize) < seen.len() { Ok(()) } else { Err(FailureReason::QueueFull) };
            assert_eq!(fate, expected, "message {n} of {}", seen.len());
        }
        let ended = hub.lab.ended.lock().last().copied();
        assert_eq!(ended.map(|(_, cause)| cause), Some(DisconnectReason::SlowConsumer));
    })
    .await;
}

#[tokio::test]
async fn who_never_reads_is_gone_in_time() {
    let hub = Hub::with(|c| {
        c.queue_max_bytes = QUEUE;
        c.write_timeout = Duration::from_millis(100);
    });
    let _client = hub.client().await;
    let outbound = hub.newest();
    let mut flood = Flood::default();
    while flood.deliver(&outbound) != Sent::Dropped {
        tokio::task::yield_now().await;
    }
    eventually("it is gone", || hub.transport.connections() == 0).await;
    assert!(flood.fates().await.iter().any(|(_, fate)| fate.is_err()));
    // The same without an overflow: it is the time that ends it.
    let _client = hub.client().await;
    let outbound = hub.newest();
    Flood::default().deliver_until(&outbound, 2).await;
    eventually("it is gone too", || hub.transport.connections() == 0).await;
    assert_eq!(hub.ended(2).await, [DisconnectReason::SlowConsumer, DisconnectReason::WriteTimeout]);
    hub.finish().await;
}

#[tokio::test]
async fn a_peer_that_stalls_is_told_of_the_write_timeout_if_it_reads_again() {
    let hub = Hub::with(|c| c.write_timeout = Duration::from_millis(400));
    let mut client = hub.client().await;
    let outbound = hub.newest();
    Flood::default().deliver_until(&outbound, 3).await;
    eventually("it is closing", || !outbound.is_open()).await;
    let frames = client.rest().await;
    assert_eq!(frames.last().and_then(close_code), Some(3009));
    assert_eq!(hub.ended(1).await, [DisconnectReason::WriteTimeout]);
    hub.finish().await;
}

#[tokio::test]
async fn dropping_the_oldest_keeps_the_newest() {
    on_both(QueuePolicy::DropOldest, async |hub, client| {
        let outbound = hub.newest();
        let mut flood = Flood::default();
        flood.deliver_until(&outbound, 100).await;
        assert!(!flood.sent.contains(&Sent::Dropped));
        let last = flood.sent.len() as u32 - 1;
        let mut frames = Vec::new();
        while numbers(&frames).last() != Some(&last) {
            let read = client.read().await.expect("a frame");
            frames.push(read);
        }
        let seen = numbers(&frames);
        assert!(seen.is_sorted_by(|a, b| a < b), "{seen:?}");
        assert!(seen.len() < flood.sent.len());
        // It is told how many it did not get.
        assert_eq!(seen.len() + gaps(&frames), flood.sent.len());
        // The end is whole.
        let kept = seen.iter().rev().zip((0..=last).rev()).take_while(|(a, b)| *a == b).count();
        assert!((15..=20).contains(&kept), "{kept} messages of {MESSAGE} bytes fit into {QUEUE}");
        for (n, fate) in flood.fates().await {
            assert_eq!(fate, if seen.contains(&n) { Ok(()) } else { Err(FailureReason::QueueFull) }, "message {n}");
        }
    })
    .await;
}

#[tokio::test]
async fn dropping_the_newest_keeps_the_oldest() {
    on_both(QueuePolicy::DropNewest, async |hub, client| {
        let outbound = hub.newest();
        let mut flood = Flood::default();
        while flood.deliver(&outbound) != Sent::Dropped {
            tokio::task::yield_now().await;
        }
        let taken = flood.sent.iter().filter(|s| **s != Sent::Dropped).count() as u32;
        let mut frames = Vec::new();
        while numbers(&frames).len() < taken as usize {
            let read = client.read().await.expect("a frame");
            frames.push(read);
        }
        assert!(numbers(&frames).into_iter().eq(0..taken));
        assert!(flood.fates().await.iter().all(|(_, fate)| fate.is_ok()));
        // There is room again.
        eventually("an empty queue", || outbound.queued() == (0, 0)).await;
        assert_ne!(flood.deliver(&outbound), Sent::Dropped);
        while numbers(&frames).last() != Some(&(flood.sent.len() as u32 - 1)) {
            let read = client.read().await.expect("a frame");
            frames.push(read);
        }
    })
    .await;
}

#[tokio::test]
async fn an_empty_queue_takes_a_batch_of_any_size() {
    for policy in [QueuePolicy::Disconnect, QueuePolicy::DropOldest, QueuePolicy::DropNewest, QueuePolicy::Spill] {
        on_both(policy, async |hub, client| {
            let outbound = hub.newest();
            let large = vec![b'x'; 40 * QUEUE];
            for _ in 0..3 {
                let sent = outbound.deliver(&Encoded::new(&server_frame(0x82, &large)), &mut || None);
                assert_eq!(sent, Sent::Queued);
                assert!(client.read().await == Some((0x82, large.clone())));
                eventually("an empty queue", || outbound.queued() == (0, 0)).await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn replies_are_never_dropped() {
    on_both(QueuePolicy::DropOldest, async |hub, client| {
        let outbound = hub.newest();
        let mut flood = Flood::default();
        flood.deliver_until(&outbound, 30).await;
        for n in 0..10 {
            assert_eq!(outbound.send(&server_frame(0x81, format!("reply {n}").as_bytes())), Sent::Queued);
            flood.deliver(&outbound);
        }
        flood.deliver_until(&outbound, 30).await;
        let mut replies = Vec::new();
        while replies.len() < 10 {
            let (_, payload) = client.read().await.expect("a frame");
            if payload.starts_with(b"reply") {
                replies.push(String::from_utf8(payload).unwrap());
            }
        }
        assert!(replies.into_iter().eq((0..10).map(|n| format!("reply {n}"))));
    })
    .await;
    // Where replies alone are too many, the connection goes.
    for policy in [QueuePolicy::Disconnect, QueuePolicy::DropOldest, QueuePolicy::DropNewest, QueuePolicy::Spill] {
        let hub = Hub::with(|c| {
            c.queue_policy = policy;
            c.queue_max_bytes = QUEUE;
            c.write_timeout = Duration::from_millis(300);
        });
        let mut client = hub.client().await;
        let outbound = hub.newest();
        while outbound.send(&numbered(0)) != Sent::Dropped {
            tokio::task::yield_now().await;
        }
        assert_eq!(client.rest().await.last().and_then(close_code), Some(3008));
        hub.ended(1).await;
        hub.finish().await;
    }
}

#[tokio::test]
async fn a_pong_passes_the_backlog() {
    on_both(QueuePolicy::DropOldest, async |hub, client| {
        let outbound = hub.newest();
        Flood::default().deliver_until(&outbound, 30).await;
        let before = hub.transport.stats().messages_in();
        for payload in [&b"first"[..], b"last"] {
            client.send(&client_frame(0x89, payload)).await;
        }
        client.send(&client_frame(0x82, b"echo")).await;
        eventually("the pings are read", || hub.transport.stats().messages_in() > before).await;
        let mut frames = Vec::new();
        loop {
            let frame = client.read().await.expect("a frame");
            if frame == (0x82, b"echo".to_vec()) {
                break;
            }
            frames.push(frame);
        }
        let pongs: Vec<_> = frames.iter().filter(|f| f.0 == 0x8A).collect();
        // One answer to the newest is enough (RFC 6455 §5.5.3).
        assert_eq!(pongs.last().map(|p| &p.1[..]), Some(&b"last"[..]));
        let at = frames.iter().position(|f| f.0 == 0x8A).unwrap();
        assert!(at < numbers(&frames).len(), "the pong came after the whole backlog");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_else_notices() {
    let hub = Hub::with(|c| {
        c.queue_policy = QueuePolicy::DropOldest;
        c.queue_max_bytes = QUEUE;
        c.write_timeout = Duration::from_secs(600);
    });
    let mut stalled = Vec::new();
    for _ in 0..5 {
        let mut client = hub.client().await;
        client.say("join").await;
        assert_eq!(client.text().await, "joined");
        stalled.push(client);
    }
    let mut reads = hub.client().await;
    reads.say("join").await;
    assert_eq!(reads.text().await, "joined");
    for n in 0..2_000 {
        hub.lab.room.publish(&Encoded::new(&numbered(n)), None).unwrap();
        assert_eq!(numbers(&[reads.frame().await.unwrap()]), [n]);
    }
    assert_eq!(hub.transport.connections(), 6);
    assert!(hub.transport.stats().ledger().snapshot().queue_full > 0);
    drop((stalled, reads));
    hub.ended(6).await;
    hub.finish().await;
}

#[tokio::test]
async fn what_waits_at_the_end_is_told_so() {
    let hub = hub(QueuePolicy::DropNewest);
    let client = hub.client().await;
    let outbound = hub.newest();
    let mut flood = Flood::default();
    flood.deliver_until(&outbound, 5).await;
    client.stream.set_zero_linger().unwrap();
    drop(client);
    hub.ended(1).await;
    let fates = flood.fates().await;
    assert_eq!(fates.last().map(|f| f.1), Some(Err(FailureReason::ConnClosed)));
    hub.finish().await;
}

/// Tracks a message by falling over.
#[derive(Debug)]
struct Clumsy;

impl Settle for Clumsy {
    fn settle(&self, _: Result<(), FailureReason>) {
        panic!("over my own feet");
    }
}

#[tokio::test]
async fn a_tracker_that_panics_hurts_nobody() {
    let hub = hub(QueuePolicy::DropOldest);
    let mut client = hub.client().await;
    client.say("join").await;
    assert_eq!(client.text().await, "joined");
    let outbound = hub.newest();
    let mut waiting = 0;
    while waiting < 15 {
        let sent = outbound.deliver(&Encoded::new(&numbered(0)), &mut || Some(Arc::new(Clumsy)));
        waiting += usize::from(sent == Sent::Queued);
    }
    // The flusher makes room, and so comes across them.
    for n in 0..100 {
        hub.lab.room.publish(&Encoded::new(&numbered(n)), None).unwrap();
        tokio::task::yield_now().await;
    }
    loop {
        if numbers(&[client.frame().await.unwrap()]) == [99] {
            break;
        }
    }
    hub.lab.room.publish(&Encoded::new(&server_frame(0x81, b"alive")), None).unwrap();
    assert_eq!(client.text().await, "alive");
    hub.finish().await;
}
