//! The table of slow consumers, row by row: what a full queue does to messages of each kind, and what the peer is told.

use std::time::{SystemTime, UNIX_EPOCH};

use wsc_protocol::{DisconnectReason, FailureReason, Priority};
use wsc_transport::{Encoded, Outbound, QueuePolicy, Sent, Terms};

use crate::{
    flood::{Flood, MESSAGE, Peer, gaps, hub, numbered, numbers, on_both},
    support::{Frame, Hub, close_code, eventually, server_frame},
};

const ALL: [QueuePolicy; 4] =
    [QueuePolicy::Disconnect, QueuePolicy::DropOldest, QueuePolicy::DropNewest, QueuePolicy::Spill];

/// How often each policy was applied.
fn applied(hub: &Hub) -> Vec<(&'static str, u64)> {
    hub.transport.stats().slow_consumers().into_iter().filter(|(_, times)| *times > 0).collect()
}

/// A message of the room.
fn of_room(n: u32) -> Vec<u8> {
    server_frame(0x81, format!("r{n:0width$}", width = MESSAGE).as_bytes())
}

fn is_of_room(frame: &Frame) -> bool {
    frame.0 == 0x81 && frame.1.starts_with(b"r")
}

/// Publishes to the room, and lets it reach the queues.
async fn publish(hub: &Hub, frame: &[u8]) {
    let rounds = &hub.lab.rounds;
    let before = rounds.load(std::sync::atomic::Ordering::SeqCst);
    hub.lab.room.publish(&Encoded::new(frame), None).unwrap();
    eventually("a round", || rounds.load(std::sync::atomic::Ordering::SeqCst) > before).await;
}

async fn join(client: &mut dyn Peer) {
    client.send(&crate::support::text("join")).await;
    assert_eq!(client.read().await, Some((0x81, b"joined".to_vec())));
}

async fn read_until(client: &mut dyn Peer, is_last: impl Fn(&[Frame]) -> bool) -> Vec<Frame> {
    let mut frames = Vec::new();
    while !is_last(&frames) {
        frames.push(client.read().await.expect("a frame"));
    }
    frames
}

/// Sends a reply, and reads up to it.
async fn read_all(client: &mut dyn Peer, outbound: &Outbound) -> Vec<Frame> {
    assert_ne!(outbound.send(&server_frame(0x81, b"the end")), Sent::Dropped);
    read_until(client, |frames| frames.last().is_some_and(|f| f.1 == b"the end")).await
}

#[tokio::test]
async fn a_reliable_message_that_does_not_fit_hurts_nobody() {
    for policy in ALL {
        on_both(policy, async |hub, client| {
            let outbound = hub.newest();
            let mut flood = Flood::on(Terms::reliable(Priority::Normal));
            flood.deliver_until_dropped(&outbound).await;
            let taken = flood.sent.len() - 1;
            assert!(outbound.is_open());
            assert_eq!(outbound.state().lost.messages, 0);
            // Nothing was thrown out for it.
            let frames = read_until(client, |frames| numbers(frames).len() == taken).await;
            assert!(numbers(&frames).into_iter().eq(0..taken as u32));
            assert_eq!(gaps(&frames), 0);
            assert!(flood.fates().await.iter().all(|(_, fate)| fate.is_ok()));
            eventually("an empty queue", || outbound.queued() == (0, 0)).await;
            assert_ne!(flood.deliver(&outbound), Sent::Dropped);
            let last = taken as u32 + 1;
            assert_eq!(gaps(&read_until(client, |frames| numbers(frames) == [last]).await), 0);
            assert!(applied(hub).iter().all(|(policy, _)| *policy == "spill"));
        })
        .await;
    }
}

#[tokio::test]
async fn a_reliable_message_that_makes_room_leaves_no_gap() {
    for policy in [QueuePolicy::DropOldest, QueuePolicy::Spill] {
        on_both(policy, async |hub, client| {
            join(client).await;
            let outbound = hub.newest();
            let mut flood = Flood::on(Terms::reliable(Priority::Normal));
            flood.deliver_until_dropped(&outbound).await;
            for n in 0..10 {
                publish(hub, &of_room(n)).await;
            }
            let frames = read_all(client, &outbound).await;
            assert_eq!(frames.iter().filter(|f| is_of_room(f)).count(), 10);
            assert_eq!(gaps(&frames), 0);
            let seen = numbers(&frames);
            let mut left = 0;
            for (n, fate) in flood.fates().await {
                assert_eq!(fate, if seen.contains(&n) { Ok(()) } else { Err(FailureReason::QueueFull) }, "message {n}");
                left += usize::from(fate.is_err());
            }
            assert!((10..=11).contains(&left), "{left} made room for 10 of the same size");
        })
        .await;
    }
}

#[tokio::test]
async fn a_disconnect_fails_all_that_is_unsent() {
    on_both(QueuePolicy::Disconnect, async |hub, client| {
        let outbound = hub.newest();
        let mut reliable = Flood::on(Terms::reliable(Priority::High));
        reliable.deliver_until(&outbound, 10).await;
        let mut plain = Flood::default();
        plain.deliver_until_dropped(&outbound).await;
        assert!(!outbound.is_open());
        let mut frames = Vec::new();
        while let Some(frame) = client.read().await {
            let is_last = close_code(&frame).is_some();
            frames.push(frame);
            if is_last {
                client.send(&crate::support::client_frame(0x88, &3008_u16.to_be_bytes())).await;
            }
        }
        assert_eq!(frames.last().and_then(close_code), Some(3008));
        assert_eq!(gaps(&frames), 0);
        let fates = reliable.fates().await;
        let sent = fates.iter().filter(|(_, fate)| fate.is_ok()).count();
        assert!(sent < fates.len() && fates[sent..].iter().all(|(_, fate)| *fate == Err(FailureReason::QueueFull)));
        assert!(plain.fates().await.iter().all(|(_, fate)| *fate == Err(FailureReason::QueueFull)));
        assert_eq!(hub.lab.ended.lock().last().map(|(_, cause)| *cause), Some(DisconnectReason::SlowConsumer));
    })
    .await;
}

#[tokio::test]
async fn spilling_tells_nobody_but_who_keeps_the_message() {
    on_both(QueuePolicy::Spill, async |hub, client| {
        join(client).await;
        let outbound = hub.newest();
        let mut flood = Flood::default();
        flood.deliver_until_dropped(&outbound).await;
        assert!(outbound.is_open());
        // Ten room messages put ten others away; nobody else hears of it.
        for n in 0..10 {
            publish(hub, &of_room(n)).await;
        }
        let away = flood.tracked.iter().filter(|(_, t)| t.0.lock().first() == Some(&Err(FailureReason::QueueFull)));
        assert!((10..=11).contains(&away.count()));
        assert_eq!(outbound.state().lost.messages, 0);
        // Forty more can only make room for each other: these are lost, and told.
        for n in 10..50 {
            publish(hub, &of_room(n)).await;
        }
        let lost = outbound.state().lost;
        assert!(lost.messages >= 30, "{lost:?}");
        let frames = read_all(client, &outbound).await;
        assert_eq!(frames.iter().filter(|f| is_of_room(f)).count() + gaps(&frames), 50);
        assert_eq!(gaps(&frames) as u64, lost.messages);
        let seen = numbers(&frames);
        for (n, fate) in flood.fates().await {
            assert_eq!(fate, if seen.contains(&n) { Ok(()) } else { Err(FailureReason::QueueFull) }, "message {n}");
        }
        assert!(applied(hub).iter().all(|(policy, _)| *policy == "spill"), "{:?}", applied(hub));
    })
    .await;
}

#[tokio::test]
async fn the_gap_of_refused_room_messages_stands_where_they_are_missing() {
    on_both(QueuePolicy::DropNewest, async |hub, client| {
        join(client).await;
        let outbound = hub.newest();
        let mut flood = Flood::default();
        flood.deliver_until_dropped(&outbound).await;
        let taken = flood.sent.len() - 1;
        let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        for n in 0..3 {
            publish(hub, &of_room(n)).await;
        }
        // One that was given up joins them.
        outbound.tell_gap(500);
        let mut frames = read_until(client, |frames| numbers(frames).len() == taken).await;
        assert_eq!(gaps(&frames), 0);
        publish(hub, &of_room(3)).await;
        frames = read_until(client, |frames| frames.last().is_some_and(is_of_room)).await;
        assert_eq!(frames.len(), 2);
        let gap = String::from_utf8(frames[0].1.clone()).unwrap();
        let bytes = 3 * of_room(0).len() + 500;
        let start = format!("{{\"message_type\":\"gap\",\"data\":{{\"dropped\":4,\"bytes\":{bytes},\"since\":");
        let since: u128 = gap.strip_prefix(&start).expect(&gap).split('}').next().unwrap().parse().unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        assert!((before..=now).contains(&since), "{gap}");
        assert_eq!(frames[1].1, of_room(3)[4..]);
        assert!(applied(hub).iter().all(|(policy, _)| *policy == "drop_newest"));
    })
    .await;
}

#[tokio::test]
async fn the_notice_of_a_closed_room_is_never_dropped() {
    for policy in [QueuePolicy::DropOldest, QueuePolicy::Spill] {
        on_both(policy, async |hub, client| {
            let outbound = hub.newest();
            let room = hub.transport.fanout();
            room.join(outbound.clone(), None).unwrap();
            Flood::default().deliver_until(&outbound, 40).await;
            assert!(room.close(&server_frame(0x81, b"closed"), None).is_some());
            eventually("the notice is on its way", || room.is_empty()).await;
            let mut more = Flood::default();
            more.deliver_until(&outbound, 40).await;
            let frames = read_all(client, &outbound).await;
            assert_eq!(frames.iter().filter(|f| f.1 == b"closed").count(), 1);
        })
        .await;
    }
    // Where messages may not make room for it, the connection goes.
    for policy in [QueuePolicy::Disconnect, QueuePolicy::DropNewest] {
        let hub = hub(policy);
        let mut client = hub.client().await;
        let outbound = hub.newest();
        let room = hub.transport.fanout();
        room.join(outbound.clone(), None).unwrap();
        let mut flood = Flood::on(Terms::reliable(Priority::Normal));
        flood.deliver_until_dropped(&outbound).await;
        room.close(&server_frame(0x81, &[b'x'; MESSAGE]), None);
        assert_eq!(client.rest().await.last().and_then(close_code), Some(3008));
        hub.ended(1).await;
        hub.finish().await;
    }
}

#[tokio::test]
async fn a_connection_says_how_it_stands() {
    on_both(QueuePolicy::DropOldest, async |hub, client| {
        let outbound = hub.newest();
        let idle = outbound.state();
        assert!(idle.is_open && !idle.is_compressed);
        assert_eq!((idle.high.bytes + idle.normal.bytes + idle.low.bytes, idle.oldest_ms, idle.stalled_ms), (0, 0, 0));
        let mut normal = Flood::default();
        normal.deliver_until(&outbound, 5).await;
        for (priority, count) in [(Priority::High, 2), (Priority::Low, 3)] {
            for _ in 0..count {
                outbound.deliver_on(Terms::plain(priority), &Encoded::new(&numbered(0)), &mut || None);
            }
        }
        let reply = server_frame(0x81, b"reply");
        outbound.send(&reply);
        let len = numbered(0).len() as u64;
        let state = outbound.state();
        assert_eq!((state.high.messages, state.high.bytes), (2, 2 * len));
        assert_eq!((state.low.messages, state.low.bytes), (3, 3 * len));
        let waiting = normal.waiting() as u64;
        assert_eq!(state.normal.messages, waiting);
        let most = waiting * len + reply.len() as u64;
        assert!((most - len..=most).contains(&state.normal.bytes), "{state:?}");
        assert_eq!(outbound.queued(), ((state.normal.bytes + 5 * len) as usize, waiting + 5));
        assert!(state.oldest_ms >= state.stalled_ms);
        eventually("it has been waiting for a while", || outbound.state().oldest_ms >= 5).await;
        assert!(outbound.state().stalled_ms >= 5 && outbound.state().lost.messages == 0);
        Flood::default().deliver_until(&outbound, 60).await;
        let lost = outbound.state().lost;
        assert!(lost.messages >= 40 && lost.bytes >= lost.messages * (len - 1), "{lost:?}");
        read_all(client, &outbound).await;
        eventually("it is idle again", || outbound.state().oldest_ms == 0).await;
        let end = outbound.state();
        assert_eq!((end.normal.messages, end.lost.messages, end.stalled_ms), (0, 0, 0));
        assert!(end.silent_ms >= 5);
    })
    .await;
}
