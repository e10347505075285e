//! Messages whose handling takes time.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use wsc_protocol::{CloseCode, CloseReason, DisconnectReason};
use wsc_transport::TransportConfig;

use crate::support::{Hub, eventually, text};

#[tokio::test]
async fn the_next_message_waits() {
    let hub = Hub::start(&TransportConfig::default());
    let mut client = hub.client().await;
    client.write(&[text("before"), text("wait"), text("after"), text("wait"), text("last")].concat()).await;
    assert_eq!(client.text().await, "before");
    // What others send goes out meanwhile.
    hub.newest().send(&crate::support::server_frame(0x81, b"meanwhile"));
    assert_eq!(client.text().await, "meanwhile");
    assert_eq!(hub.transport.stats().messages_in(), 2);
    hub.lab.gate.add_permits(1);
    assert_eq!(client.text().await, "waited");
    assert_eq!(client.text().await, "after");
    client.say("more").await;
    assert_eq!(hub.transport.stats().messages_in(), 4);
    hub.lab.gate.add_permits(1);
    assert_eq!(client.text().await, "waited");
    assert_eq!(client.text().await, "last");
    assert_eq!(client.text().await, "more");
    hub.finish().await;
}

#[tokio::test]
async fn a_wait_ends_with_its_connection() {
    let hub = Hub::start(&TransportConfig::default());
    let mut client = hub.client().await;
    client.write(&[text("wait"), text("never handled")].concat()).await;
    eventually("it waits", || hub.transport.stats().messages_in() == 1).await;
    hub.newest().close(&CloseReason::new(CloseCode::KICKED, "bye"), DisconnectReason::KickOut);
    assert_eq!(client.close().await, 3503);
    assert_eq!(hub.ended(1).await, [DisconnectReason::KickOut]);
    assert_eq!(hub.lab.waits_over.load(SeqCst), 1);
    hub.lab.gate.add_permits(1);
    drop(client);
    eventually("it is gone", || hub.transport.connections() == 0).await;
    hub.finish().await;
}

#[tokio::test]
async fn who_waits_for_us_is_not_called_silent() {
    let mut config = TransportConfig::default();
    config.ping_interval = Duration::from_millis(20);
    config.pong_timeout = Duration::from_millis(20);
    let hub = Hub::start(&config);
    let mut client = hub.client().await;
    client.say("wait").await;
    // The peer answers every ping, but nobody reads that until the wait is over.
    for _ in 0..10 {
        assert_eq!(client.frame().await.map(|(first, _)| first & 0x0F), Some(0x9));
    }
    hub.lab.gate.add_permits(1);
    while client.frame().await.is_some_and(|(first, _)| first & 0x0F == 0x9) {}
    assert_eq!(hub.transport.connections(), 1);
    hub.finish().await;
}

#[tokio::test]
async fn a_panic_while_waiting_ends_that_connection_alone() {
    let hub = Hub::start(&TransportConfig::default());
    let mut other = hub.client().await;
    let mut client = hub.client().await;
    client.say("panic-later").await;
    assert_eq!(client.frame().await, None);
    assert_eq!(hub.ended(1).await.len(), 1);
    other.say("alive").await;
    assert_eq!(other.text().await, "alive");
    hub.finish().await;
}

#[tokio::test]
async fn waits_that_are_over_at_once_do_not_keep_others_from_running() {
    let hub = Hub::start(&TransportConfig::default());
    let mut busy = hub.client().await;
    let mut other = hub.client().await;
    // On one thread: a poll that did not end would handle all of it before the other is heard.
    let many = text("soon").repeat(5_000);
    busy.write(&many).await;
    other.say("hello").await;
    assert_eq!(other.text().await, "hello");
    busy.say("done").await;
    assert_eq!(busy.text().await, "done");
    assert_eq!(hub.transport.stats().messages_in(), 5_002);
    hub.finish().await;
}
