//! What is urgent goes first, and nobody starves.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use parking_lot::Mutex;
use wsc_protocol::{CloseCode, CloseReason, DisconnectReason, FailureReason, Priority};
use wsc_transport::{Encoded, Outbound, QueuePolicy, Sent, Settle, Terms};

use crate::{
    flood::{Flood, hub, numbers, on_both},
    support::{Hub, Tracked, close_code, eventually, server_frame, within},
};

const PRIORITIES: [Priority; 3] = [Priority::High, Priority::Normal, Priority::Low];

fn message(priority: Priority, n: usize) -> Vec<u8> {
    server_frame(0x81, format!("{} {n} {}", priority.as_str(), "x".repeat(1_000)).as_bytes())
}

fn deliver(to: &Outbound, priority: Priority, n: usize) -> Sent {
    to.deliver_on(Terms::plain(priority), &Encoded::new(&message(priority, n)), &mut || None)
}

/// Priority and number of a message.
fn parse(payload: &[u8]) -> Option<(&str, usize)> {
    let (priority, rest) = std::str::from_utf8(payload).ok()?.split_once(' ')?;
    Some((priority, rest.split(' ').next()?.parse().ok()?))
}

#[tokio::test]
async fn what_is_urgent_passes_what_waits() {
    on_both(QueuePolicy::DropNewest, async |hub, client| {
        let outbound = hub.newest();
        let mut flood = Flood::default();
        flood.deliver_until(&outbound, 15).await;
        for n in 0..3 {
            assert_eq!(deliver(&outbound, Priority::High, n), Sent::Queued);
        }
        let waiting = flood.waiting();
        let mut frames = Vec::new();
        while numbers(&frames).len() < flood.sent.len() {
            frames.push(client.read().await.expect("a frame"));
        }
        let urgent: Vec<usize> =
            (0..frames.len()).filter(|&at| parse(&frames[at].1).is_some_and(|(p, _)| p == "high")).collect();
        assert_eq!(urgent.len(), 3);
        // Behind the frame that was begun, and two for each of those that waited.
        assert!(urgent[2] - urgent[0] <= 4, "{urgent:?}");
        let behind = frames.len() - 1 - urgent[2];
        assert!(behind + 3 >= waiting, "{behind} behind them of {waiting} that waited");
    })
    .await;
}

#[tokio::test]
async fn the_low_get_their_share() {
    let hub = Hub::with(|c| c.queue_max_bytes = 4 << 20);
    for is_piped in [false, true] {
        const EACH: usize = 800;
        let (mut tcp, mut piped);
        let client: &mut dyn crate::flood::Peer = if is_piped {
            piped = hub.adopted(4 << 10);
            &mut piped
        } else {
            tcp = hub.client().await;
            &mut tcp
        };
        let outbound = hub.newest();
        Flood::default().deliver_until(&outbound, 2).await;
        // The low ones come first and must not keep the others waiting, nor wait for them all.
        for priority in [Priority::Low, Priority::Normal, Priority::High] {
            for n in 0..EACH {
                assert_eq!(deliver(&outbound, priority, n), Sent::Queued);
            }
        }
        let mut seen = PRIORITIES.map(|p| (p.as_str(), 0));
        let mut at_the_last_high = None;
        while seen.iter().any(|(_, count)| *count < EACH) {
            let (_, payload) = client.read().await.expect("a frame");
            let Some((priority, n)) = parse(&payload) else { continue };
            let count = &mut seen.iter_mut().find(|(p, _)| *p == priority).expect("a priority").1;
            assert_eq!(n, *count, "{priority}");
            *count += 1;
            if seen[0].1 == EACH && at_the_last_high.is_none() {
                at_the_last_high = Some(seen);
            }
        }
        let [_, (_, normal), (_, low)] = at_the_last_high.expect("the last high one");
        assert!((EACH / 2 - 3..=EACH / 2 + 3).contains(&normal), "{normal}");
        assert!((EACH / 8 - 3..=EACH / 8 + 3).contains(&low), "{low}");
    }
    hub.finish().await;
}

#[tokio::test]
async fn the_close_frame_comes_after_the_low() {
    on_both(QueuePolicy::DropNewest, async |hub, client| {
        let outbound = hub.newest();
        Flood::default().deliver_until(&outbound, 2).await;
        for n in 0..5 {
            assert_eq!(deliver(&outbound, Priority::Low, n), Sent::Queued);
        }
        outbound.close(&CloseReason::new(CloseCode::KICKED, "bye"), DisconnectReason::KickOut);
        assert_eq!(deliver(&outbound, Priority::High, 0), Sent::Closed);
        let mut low = 0;
        let close = loop {
            let frame = client.read().await.expect("a frame");
            if let Some(code) = close_code(&frame) {
                break code;
            }
            low += usize::from(parse(&frame.1).is_some_and(|(p, _)| p == "low"));
        };
        assert_eq!((close, low), (3503, 5));
        client.send(&crate::support::client_frame(0x88, &3503_u16.to_be_bytes())).await;
    })
    .await;
}

/// Several threads write at every priority, plain and reliable, while a room talks; the peer reads in fits and starts.
async fn stress(policy: QueuePolicy) {
    const EACH: usize = 1_500;
    let hub = hub(policy);
    let mut client = hub.client().await;
    client.say("join").await;
    assert_eq!(client.text().await, "joined");
    let outbound = hub.newest();
    let over = Arc::new(AtomicBool::new(false));
    let tracked = Arc::new(Mutex::new(Vec::<(String, bool, Arc<Tracked>)>::new()));
    let mut writers = Vec::new();
    for priority in PRIORITIES {
        for is_reliable in [false, true] {
            let (outbound, tracked) = (outbound.clone(), Arc::clone(&tracked));
            writers.push(tokio::spawn(async move {
                let terms = if is_reliable { Terms::reliable(priority) } else { Terms::plain(priority) };
                let (mut written, mut dropped) = (Vec::new(), 0);
                for n in 0..EACH {
                    let name = format!("{}-{is_reliable} {n} ", priority.as_str());
                    let frame = server_frame(0x81, (name.clone() + &"x".repeat(n % 900)).as_bytes());
                    let sent = outbound.deliver_on(terms, &Encoded::new(&frame), &mut || {
                        let settle = Arc::<Tracked>::default();
                        tracked.lock().push((name.clone(), is_reliable, Arc::clone(&settle)));
                        Some(settle as Arc<dyn Settle>)
                    });
                    match sent {
                        Sent::Written => written.push(name),
                        Sent::Dropped if !is_reliable && policy != QueuePolicy::Spill => {
                            outbound.tell_gap(frame.len());
                            dropped += 1;
                        }
                        Sent::Queued | Sent::Dropped => {}
                        Sent::Closed => panic!("closed"),
                    }
                    tokio::task::yield_now().await;
                }
                (written, dropped)
            }));
        }
    }
    let room = hub.lab.room.clone();
    let talker = tokio::spawn({
        let over = Arc::clone(&over);
        async move {
            let mut n = 0;
            while !over.load(SeqCst) {
                let frame = server_frame(0x81, format!("room {n} {}", "x".repeat(200)).as_bytes());
                n += usize::from(room.publish(&Encoded::new(&frame), None).is_ok());
                tokio::task::yield_now().await;
            }
            n
        }
    });
    let reader = tokio::spawn(async move {
        let (mut names, mut missing) = (Vec::new(), 0);
        loop {
            let text = client.text().await;
            if text == "the end" {
                return (names, missing, client);
            }
            match text.split_once("\"dropped\":") {
                Some((_, rest)) => missing += rest.split(',').next().unwrap().parse::<usize>().unwrap(),
                None => names.push(text.split_inclusive(' ').take(2).collect::<String>()),
            }
            if names.len() % 50 == 0 {
                // Long enough for queues to fill up.
                for _ in 0..200 {
                    tokio::task::yield_now().await;
                }
            }
        }
    });
    let (mut written, mut dropped) = (Vec::new(), 0);
    for writer in writers {
        let (own, lost) = within("a writer", writer).await.unwrap();
        written.extend(own);
        dropped += lost;
    }
    over.store(true, SeqCst);
    let published = within("the talker", talker).await.unwrap();
    eventually("the last word fits", || outbound.queued() == (0, 0)).await;
    assert!(outbound.is_open());
    outbound.send(&server_frame(0x81, b"the end"));
    let (names, missing, client) = within("the reader", reader).await.unwrap();

    let mut seen = std::collections::HashMap::<&str, Vec<usize>>::new();
    for name in &names {
        let (lane, n) = name.trim().split_once(' ').unwrap();
        seen.entry(lane).or_default().push(n.parse().unwrap());
    }
    for (lane, numbers) in &seen {
        assert!(numbers.is_sorted_by(|a, b| a < b), "{lane}: {numbers:?}");
    }
    let of_room = seen.get("room").map_or(0, Vec::len);
    let names: std::collections::HashSet<&str> = names.iter().map(String::as_str).collect();
    assert!(written.iter().all(|name| names.contains(name.as_str())));
    let mut lost = dropped + (published - of_room);
    for (name, is_reliable, settle) in &*tracked.lock() {
        let told = settle.0.lock();
        let expected = if names.contains(name.as_str()) { Ok(()) } else { Err(FailureReason::QueueFull) };
        assert_eq!(*told, [expected], "{name}");
        lost += usize::from(told[0].is_err() && !is_reliable && policy != QueuePolicy::Spill);
    }
    assert!(hub.transport.stats().slow_consumers().iter().any(|(_, times)| *times > 100), "the reader was too fast");
    // Each message that nobody keeps was seen, or is in a gap: not one more, not one less.
    assert_eq!(missing, lost);
    drop(client);
    hub.ended(1).await;
    hub.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_writers_and_a_slow_reader_where_the_oldest_go() {
    stress(QueuePolicy::DropOldest).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_writers_and_a_slow_reader_where_the_newest_go() {
    stress(QueuePolicy::DropNewest).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_writers_and_a_slow_reader_where_messages_spill() {
    stress(QueuePolicy::Spill).await;
}
