//! Deliveries add up, whatever happens to the members.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use wsc_protocol::DisconnectReason;
use wsc_transport::{Encoded, JoinError, PublishError, QueuePolicy, TransportConfig};

use crate::support::{Hub, close_code, eventually, server_frame, within};

/// A room whose members read, do not read, and are killed while it is talked to.
async fn stormy(policy: QueuePolicy) {
    let hub = Hub::with(|c| {
        c.queue_policy = policy;
        c.queue_max_bytes = 64 << 10;
        c.fanout_max_bytes = 256 << 10;
    });
    let over = Arc::new(AtomicBool::new(false));
    let mut readers = Vec::new();
    let mut stalled = Vec::new();
    for n in 0..24 {
        let mut client = hub.client().await;
        client.say("join").await;
        assert_eq!(client.text().await, "joined");
        if n % 3 == 0 {
            stalled.push(client);
        } else {
            readers.push(tokio::spawn(async move {
                // A third of the readers goes in the middle of it.
                let patience = if n % 3 == 1 { 40 + n } else { usize::MAX };
                for _ in 0..patience {
                    if client.frame().await.is_none_or(|frame| close_code(&frame).is_some()) {
                        break;
                    }
                }
            }));
        }
    }
    let frame = server_frame(0x81, &[b'x'; 3_000]);
    let mut refused = 0;
    let mut publishers = Vec::new();
    for publisher in 0..2 {
        let (room, frame, over) = (hub.lab.room.clone(), frame.clone(), Arc::clone(&over));
        publishers.push(tokio::spawn(async move {
            let mut refused = 0;
            let mut n = 0_u32;
            while n < 2_000 && !over.load(SeqCst) {
                // An exception for a slot that may be anybody's, or nobody's.
                let except = (publisher == 1).then_some(n % 30);
                match room.publish(&Encoded::new(&frame), except) {
                    Ok(_) => n += 1,
                    Err(PublishError::Full) => refused += 1,
                    Err(e) => panic!("{e}"),
                }
                tokio::task::yield_now().await;
            }
            refused
        }));
    }
    for publisher in publishers {
        refused += publisher.await.unwrap();
    }
    let _ = refused;
    let stats = hub.transport.stats();
    // Members that were killed in every state they can be in.
    while let Some(client) = stalled.pop() {
        let _ = client.stream.set_zero_linger();
        drop(client);
        let _ = hub.lab.room.publish(&Encoded::new(&frame), None);
    }
    let members = hub.lab.room.close(&server_frame(0x81, b"closed"), None);
    assert!(members.is_some());
    assert_eq!(hub.lab.room.publish(&Encoded::new(&frame), None), Err(PublishError::Closed));
    eventually("the room empties", || hub.lab.room.is_empty()).await;
    assert!(stats.ledger().snapshot().accepted > 0 && stats.ledger().snapshot().sent > 0);
    if policy != QueuePolicy::Disconnect {
        assert!(stats.ledger().snapshot().queue_full > 0);
    }
    // Who still reads reads to the end.
    let close = wsc_protocol::CloseReason::new(wsc_protocol::CloseCode::GOING_AWAY, "over");
    for outbound in hub.lab.open.lock().values() {
        outbound.close(&close, DisconnectReason::ServerShutdown);
    }
    for reader in readers {
        within("a reader", reader).await.unwrap();
    }
    hub.settled().await;
    hub.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn deliveries_add_up_where_slow_members_are_disconnected() {
    stormy(QueuePolicy::Disconnect).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn deliveries_add_up_where_the_oldest_are_dropped() {
    stormy(QueuePolicy::DropOldest).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn deliveries_add_up_where_the_newest_are_dropped() {
    stormy(QueuePolicy::DropNewest).await;
}

#[tokio::test]
async fn the_notice_of_a_closing_room_is_no_delivery() {
    let hub = Hub::start(&TransportConfig::default());
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = hub.client().await;
        client.say("join").await;
        assert_eq!(client.text().await, "joined");
        clients.push(client);
    }
    let room = &hub.lab.room;
    assert_eq!(room.publish(&Encoded::new(&server_frame(0x81, b"one")), Some(1)), Ok(2));
    let members = room.close(&server_frame(0x81, b"gone"), Some(0)).unwrap();
    assert_eq!(members.len(), 3);
    assert!(room.close(&server_frame(0x81, b"gone"), None).is_none());
    assert_eq!(room.join(hub.newest(), None), Err(JoinError::Closed));
    clients[0].say("end").await;
    assert_eq!(clients[0].text().await, "one");
    assert_eq!(clients[0].text().await, "end");
    assert_eq!(clients[1].text().await, "gone");
    assert_eq!(clients[2].text().await, "one");
    assert_eq!(clients[2].text().await, "gone");
    hub.settled().await;
    assert_eq!(hub.transport.stats().ledger().snapshot().sent, 2);
    assert_eq!(room.len(), 0);
    hub.finish().await;
}

/// Who is let in elsewhere under the name of a room that is just being closed leaves the old one first: then nothing of
/// it follows.
#[tokio::test]
async fn nothing_of_a_closed_room_follows_whoever_leaves_it() {
    let hub = Hub::start(&TransportConfig::default());
    let mut stays = hub.client().await;
    let room = hub.transport.fanout();
    room.join(hub.newest(), None).unwrap();
    let mut moves = hub.client().await;
    let outbound = hub.newest();
    let slot = room.join(outbound.clone(), None).unwrap();
    // On a runtime of one thread no flusher runs before we wait.
    assert_eq!(room.publish(&Encoded::new(&server_frame(0x81, b"old")), None), Ok(2));
    assert!(!room.is_closed());
    assert_eq!(room.close(&server_frame(0x81, b"closed"), None).map(|members| members.len()), Some(2));
    assert!(room.is_closed());
    outbound.send_with(|| {
        assert!(room.leave(slot), "it has not got the notice");
        Some([server_frame(0x81, b"closed by hand"), server_frame(0x81, b"joined anew")].concat())
    });
    assert_eq!(stays.text().await, "old");
    assert_eq!(stays.text().await, "closed");
    for expected in ["closed by hand", "joined anew"] {
        assert_eq!(moves.text().await, expected);
    }
    moves.say("nothing else").await;
    assert_eq!(moves.text().await, "nothing else");
    assert!(room.is_empty());
    assert!(!room.leave(0), "who has the notice is a member no more");
    hub.settled().await;
    let tally = hub.transport.stats().ledger().snapshot();
    assert_eq!((tally.accepted, tally.sent, tally.conn_closed), (2, 1, 1));
    hub.finish().await;
}

/// The same against the flusher: the notice comes from exactly one of the two, and before the new room's first word.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_notice_of_a_closed_room_comes_once_and_in_time() {
    let hub = Hub::start(&TransportConfig::default());
    let mut clients = Vec::new();
    for n in 0..8 {
        if n % 2 == 0 {
            let client = hub.client().await;
            clients.push((hub.newest(), Ok(client)));
        } else {
            let client = hub.adopted(64 << 10);
            eventually("it is open", || hub.lab.open.lock().len() == n + 1).await;
            clients.push((hub.newest(), Err(client)));
        }
    }
    for round in 0..300 {
        let room = hub.transport.fanout();
        let slots: Vec<_> = clients.iter().map(|(outbound, _)| room.join(outbound.clone(), None).unwrap()).collect();
        for n in 0..3 {
            room.publish(&Encoded::new(&server_frame(0x81, format!("old {n}").as_bytes())), None).unwrap();
        }
        room.close(&server_frame(0x81, b"closed"), None);
        for ((outbound, _), slot) in clients.iter().zip(slots) {
            outbound.send_with(|| {
                let new = server_frame(0x81, format!("new {round}").as_bytes());
                if !room.leave(slot) {
                    return Some(new);
                }
                Some([server_frame(0x81, b"closed"), new].concat())
            });
        }
        for (_, client) in &mut clients {
            let mut texts = Vec::new();
            while !texts.last().is_some_and(|text: &String| text.starts_with("new")) {
                texts.push(match client {
                    Ok(tcp) => tcp.text().await,
                    Err(piped) => piped.text().await,
                });
            }
            let new = format!("new {round}");
            let expected = ["old 0", "old 1", "old 2", "closed", &new];
            assert_eq!(texts.iter().filter(|t| *t == "closed").count(), 1, "{texts:?}");
            assert_eq!(texts[texts.len() - 2..], expected[3..]);
            assert!(expected.starts_with(&texts.iter().map(String::as_str).take(texts.len() - 2).collect::<Vec<_>>()));
        }
    }
    hub.settled().await;
    hub.finish().await;
}

#[tokio::test]
async fn who_is_excepted_but_gone_is_no_recipient_less() {
    let hub = Hub::start(&TransportConfig::default());
    let mut stays = hub.client().await;
    stays.say("join").await;
    assert_eq!(stays.text().await, "joined");
    let mut leaves = hub.client().await;
    leaves.say("join").await;
    assert_eq!(leaves.text().await, "joined");
    leaves.say("leave").await;
    assert_eq!(leaves.text().await, "left");
    for except in [Some(1), Some(99), None] {
        assert_eq!(hub.lab.room.publish(&Encoded::new(&server_frame(0x81, b"hi")), except), Ok(1));
        assert_eq!(stays.text().await, "hi");
    }
    hub.settled().await;
    hub.finish().await;
}

#[tokio::test]
async fn a_full_room_and_a_full_buffer_say_so() {
    let hub = Hub::with(|c| c.fanout_max_bytes = 1_000);
    let mut client = hub.client().await;
    client.say("join").await;
    assert_eq!(client.text().await, "joined");
    let room = &hub.lab.room;
    assert_eq!(room.join(hub.newest(), Some(1)), Err(JoinError::Full));
    // On a runtime of one thread no flusher runs before we wait.
    let frame = server_frame(0x81, &[b'x'; 600]);
    assert_eq!(room.publish(&Encoded::new(&frame), None), Ok(1));
    assert_eq!(room.publish(&Encoded::new(&frame), None), Err(PublishError::Full));
    client.text().await;
    assert_eq!(room.publish(&Encoded::new(&server_frame(0x81, &[b'y'; 5_000])), None), Ok(1));
    assert_eq!(client.text().await.len(), 5_000);
    hub.finish().await;
}
