//! What goes when all queues together are too large, and in which order.

use std::{sync::Arc, time::Duration};

use tokio::io::DuplexStream;
use wsc_protocol::{DisconnectReason, FailureReason};
use wsc_transport::{Encoded, Outbound, QueuePolicy, Sent, Settle, Terms, TransportConfig};

use crate::{
    flood::numbered,
    support::{Client, Hub, Tracked, close_code, eventually, server_frame, within},
};

const BUDGET: usize = 800_000;

fn config() -> TransportConfig {
    let mut config = TransportConfig::default();
    config.queue_total_bytes = BUDGET;
    config.write_timeout = Duration::from_secs(600);
    config
}

/// A client that does not read, over a pipe that holds next to nothing.
fn idle(hub: &Hub) -> (Client<DuplexStream>, Outbound) {
    (hub.adopted(16), hub.newest())
}

/// Sends so many messages of a thousand bytes, all of which wait.
fn fill(to: &Outbound, messages: u32) {
    for n in 0..messages {
        assert_eq!(to.deliver(&Encoded::new(&numbered(n)), &mut || None), Sent::Queued);
    }
}

fn cut(hub: &Hub) -> u64 {
    hub.transport.stats().slow_consumers().iter().find(|(policy, _)| *policy == "shed").unwrap().1
}

fn waits(hub: &Hub) -> usize {
    hub.transport.stats().queue_bytes() as usize
}

/// The clock stands still: nobody waits for the next sweep.
#[tokio::test(start_paused = true)]
async fn the_largest_queues_go_first_and_no_more_than_needed() {
    for policy in [QueuePolicy::Disconnect, QueuePolicy::DropOldest, QueuePolicy::DropNewest, QueuePolicy::Spill] {
        let mut config = config();
        config.queue_policy = policy;
        let hub = Hub::start(&config);
        let (mut small, to_small) = idle(&hub);
        let (mut largest, to_largest) = idle(&hub);
        let (mut large, to_large) = idle(&hub);
        fill(&to_small, 100);
        fill(&to_large, 300);
        fill(&to_largest, 380);
        // A reliable one in the largest goes back to whoever keeps it.
        let kept = Arc::<Tracked>::default();
        let track = || Some(Arc::clone(&kept) as Arc<dyn Settle>);
        let terms = Terms::reliable(Default::default());
        assert_eq!(to_largest.deliver_on(terms, &Encoded::new(&numbered(0)), &mut { track }), Sent::Queued);
        assert_eq!(cut(&hub), 0);
        assert!(hub.transport.is_pressed());
        // It is the smallest that asks for more.
        fill(&to_small, 30);
        eventually("somebody is cut", || cut(&hub) == 1).await;
        assert!(!to_largest.is_open() && to_large.is_open() && to_small.is_open());
        assert!(waits(&hub) < BUDGET * 7 / 8, "{}", waits(&hub));
        assert!(!hub.transport.is_pressed());
        assert_eq!(kept.0.lock()[..], [Err(FailureReason::QueueFull)]);
        // It learns why. Nobody else misses anything.
        let frames = largest.rest().await;
        assert_eq!(frames.last().and_then(close_code), Some(3008));
        for (client, messages) in [(&mut small, 130), (&mut large, 300)] {
            for _ in 0..messages {
                assert_eq!(client.frame().await.map(|f| f.1.len()), Some(1001));
            }
        }
        assert_eq!(hub.ended(1).await, [DisconnectReason::SlowConsumer]);
        assert_eq!(cut(&hub), 1);
        hub.finish().await;
    }
}

#[tokio::test]
async fn as_many_go_as_must() {
    let hub = Hub::start(&config());
    let mut clients = Vec::new();
    for _ in 0..50 {
        let (client, to) = idle(&hub);
        fill(&to, 15);
        clients.push((client, to));
    }
    // A budget that becomes smaller is kept at once, too.
    let mut config = config();
    config.queue_total_bytes = BUDGET / 2;
    hub.transport.reconfigure(&config);
    eventually("enough is free", || waits(&hub) <= BUDGET / 2 * 7 / 8).await;
    // 754 KB waited, 350 may. Each gave back 14 KB: the message that is begun stays, and the farewell comes on top.
    let cut = cut(&hub);
    assert_eq!(cut, 29);
    assert_eq!(clients.iter().filter(|(_, to)| !to.is_open()).count() as u64, cut);
    hub.finish().await;
}

#[tokio::test]
async fn the_pressure_is_not_gone_until_it_is() {
    let hub = Hub::start(&config());
    let (mut client, to) = idle(&hub);
    let (_other, to_other) = idle(&hub);
    fill(&to_other, 300);
    fill(&to, 390);
    assert!(!hub.transport.is_pressed(), "{}", waits(&hub));
    fill(&to, 20);
    assert!(hub.transport.is_pressed());
    let mut read_down_to = async |bytes: usize| {
        while waits(&hub) > bytes {
            client.frame().await.unwrap();
        }
    };
    read_down_to(BUDGET * 13 / 16).await;
    assert!(hub.transport.is_pressed());
    read_down_to(BUDGET * 3 / 4 - 5_000).await;
    assert!(!hub.transport.is_pressed());
    assert_eq!(cut(&hub), 0);
    // It follows the setting.
    let mut config = config();
    config.queue_total_bytes = 620_000;
    hub.transport.reconfigure(&config);
    assert!(hub.transport.is_pressed());
    config.queue_total_bytes = BUDGET;
    hub.transport.reconfigure(&config);
    assert!(!hub.transport.is_pressed());
    hub.finish().await;
}

/// More than anybody could have taken: what is sent faster than queues are cut does not pile up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_messages_stays_within_bounds() {
    let mut config = config();
    config.queue_policy = QueuePolicy::DropNewest;
    let hub = Hub::start(&config);
    let mut clients = Vec::new();
    for _ in 0..100 {
        clients.push(idle(&hub));
    }
    let outbounds: Vec<_> = clients.iter().map(|(_, to)| to.clone()).collect();
    let transport = hub.transport.clone();
    let storm = tokio::task::spawn_blocking(move || {
        let mut most = 0;
        for n in 0..200 {
            for to in &outbounds {
                to.deliver(&Encoded::new(&numbered(n)), &mut || None);
                most = most.max(transport.stats().queue_bytes());
            }
        }
        most
    });
    let most = within("the storm", storm).await.unwrap();
    // The last limit, one message for each queue that was empty, and the farewells.
    assert!(most as usize <= BUDGET * 9 / 8 + 100 * 1_200, "{most}");
    eventually("enough is free", || waits(&hub) <= BUDGET).await;
    assert!(cut(&hub) > 0);
    // Who is there now gets what is sent now.
    let (mut late, to_late) = idle(&hub);
    assert_eq!(to_late.send(&server_frame(0x81, b"hello")), Sent::Queued);
    assert_eq!(late.text().await, "hello");
    hub.finish().await;
}
