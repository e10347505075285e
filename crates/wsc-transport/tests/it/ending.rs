//! How connections end, and what their handlers are told.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use tokio::io::AsyncWriteExt;
use wsc_protocol::{CloseCode, CloseReason, DisconnectReason};
use wsc_transport::{Adopted, Extensions, TransportConfig};

use crate::support::{Client, Hub, client_frame, close_code, eventually, server_frame, text, within};

fn bye() -> CloseReason {
    CloseReason::new(CloseCode::SHUTTING_DOWN, "bye")
}

/// Intervals that a test can wait for.
fn impatient() -> Hub {
    Hub::with(|c| {
        c.ping_interval = Duration::from_millis(60);
        c.pong_timeout = Duration::from_millis(60);
        c.write_timeout = Duration::from_millis(100);
    })
}

#[tokio::test]
async fn a_silent_peer_is_pinged_and_then_closed() {
    let hub = impatient();
    let mut client = hub.client().await;
    let frames = client.rest().await;
    assert_eq!(frames.first(), Some(&(0x89, vec![])));
    assert_eq!(frames.last().and_then(close_code), Some(3012));
    assert_eq!(hub.ended(1).await, [DisconnectReason::HeartbeatTimeout]);
    hub.finish().await;
}

#[tokio::test]
async fn any_sign_of_life_keeps_a_connection() {
    let hub = impatient();
    let mut listener = hub.client().await;
    let mut talker = hub.adopted(1 << 10);
    for _ in 0..10 {
        // Ten intervals: far more than silence would be given.
        assert_eq!(listener.frame().await, Some((0x89, vec![])));
        listener.write(&client_frame(0x8A, &[])).await;
        talker.say("alive").await;
        while talker.frame().await != Some((0x81, b"alive".to_vec())) {}
    }
    assert!(hub.lab.ended.lock().is_empty());
    hub.finish().await;
}

#[tokio::test]
async fn a_close_is_answered_with_its_code() {
    let hub = Hub::start(&TransportConfig::default());
    for (payload, code) in [(&b"\x03\xE8bye"[..], Some(1000)), (b"\x0F\xA0", Some(4000)), (b"", None)] {
        let mut client = hub.client().await;
        // What it says behind its farewell is not heard.
        client.write(&[text("before"), client_frame(0x88, payload), text("behind")].concat()).await;
        assert_eq!(client.text().await, "before");
        let (first, answer) = client.frame().await.unwrap();
        assert_eq!(first, 0x88);
        assert_eq!(answer.get(..2).map(|c| u16::from_be_bytes(c.try_into().unwrap())), code);
        // The server ends it, the client need not.
        assert_eq!(client.frame().await, None);
    }
    assert_eq!(hub.ended(3).await, [DisconnectReason::ClientRequest; 3]);
    assert_eq!(hub.transport.stats().messages_in(), 3);
    hub.finish().await;
}

#[tokio::test]
async fn our_close_waits_for_the_answer_but_not_for_ever() {
    let hub = impatient();
    // One answers.
    let mut polite = hub.client().await;
    polite.say("close").await;
    polite.say("not heard any more").await;
    assert_eq!(polite.close().await, 3503);
    polite.write(&client_frame(0x88, &3503_u16.to_be_bytes())).await;
    assert_eq!(polite.frame().await, None);
    // One does not: it is cut off.
    let mut rude = hub.client().await;
    rude.say("close").await;
    assert_eq!(rude.close().await, 3503);
    assert_eq!(rude.frame().await, None);
    assert_eq!(hub.ended(2).await, [DisconnectReason::KickOut; 2]);
    eventually("both are gone", || hub.transport.connections() == 0).await;
    assert_eq!(hub.transport.stats().messages_in(), 3);
    hub.finish().await;
}

#[tokio::test]
async fn who_vanishes_is_a_read_error() {
    let hub = Hub::start(&TransportConfig::default());
    // Without a farewell, in the middle of a frame, with a reset, and through a pipe.
    drop(hub.client().await);
    let mut client = hub.client().await;
    client.write(&text("half")[..5]).await;
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.frame().await, None);
    let client = hub.client().await;
    client.stream.set_zero_linger().unwrap();
    drop(client);
    drop(hub.adopted(64));
    assert_eq!(hub.ended(4).await, [DisconnectReason::ReadError; 4]);
    hub.finish().await;
}

#[tokio::test]
async fn breaking_the_protocol_is_told_before_the_end() {
    let hub = impatient();
    let unmasked = server_frame(0x81, b"hi");
    let oversized = [0x82, 0xFF, 0, 0, 0, 1, 0, 0, 0, 0, 1, 2, 3, 4];
    for (bytes, code) in [
        (&unmasked[..], 1002),
        (&client_frame(0x81, &[0xFF]), 1007),
        (&oversized, 1009),
        (&client_frame(0xC1, b""), 1002),
    ] {
        let mut client = hub.client().await;
        client.write(&[bytes, &text("not heard")].concat()).await;
        assert_eq!(client.close().await, code);
        assert_eq!(client.frame().await, None);
        let mut client = hub.adopted(256);
        client.write(bytes).await;
        assert_eq!(client.close().await, code);
        drop(client);
    }
    assert_eq!(hub.ended(8).await, [DisconnectReason::ProtocolError; 8]);
    hub.finish().await;
}

#[tokio::test]
async fn a_panic_ends_that_connection_alone_and_is_told_once() {
    let hub = Hub::start(&TransportConfig::default());
    let mut other = hub.client().await;
    let mut client = hub.client().await;
    client.say("panic").await;
    assert_eq!(client.frame().await, None);
    let mut client = hub.adopted(256);
    client.say("panic").await;
    assert_eq!(client.frame().await, None);
    // The handler may be in pieces: a second panic at its end is survived too.
    let mut client = hub.client().await;
    client.say("panic twice").await;
    assert_eq!(client.frame().await, None);
    assert_eq!(hub.ended(3).await.len(), 3);
    other.say("alive").await;
    assert_eq!(other.text().await, "alive");
    hub.finish().await;
}

#[tokio::test]
async fn a_shutdown_closes_everybody_in_order() {
    let hub = Hub::start(&TransportConfig::default());
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(hub.client().await);
    }
    let readers: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            tokio::spawn(async move {
                assert_eq!(client.close().await, 3001);
                client.write(&client_frame(0x88, &3001_u16.to_be_bytes())).await;
                assert_eq!(client.frame().await, None);
            })
        })
        .collect();
    assert!(hub.transport.is_accepting());
    within("a shutdown", hub.transport.shutdown(&bye(), Duration::from_secs(60))).await;
    assert!(!hub.transport.is_accepting());
    assert_eq!(hub.ended(20).await, [DisconnectReason::ServerShutdown; 20]);
    for reader in readers {
        reader.await.unwrap();
    }
    // Nobody is let in any more, and a second call has nothing to do.
    let (ours, theirs) = tokio::io::duplex(64);
    hub.transport.adopt(Adopted::Stream(Box::new(theirs)), Vec::new(), Extensions::default(), ());
    assert_eq!(Client::new(ours).frame().await, None);
    hub.finish().await;
}

#[tokio::test]
async fn a_shutdown_cuts_off_who_does_not_go() {
    let hub = Hub::start(&TransportConfig::default());
    let mut silent = hub.client().await;
    let piped = hub.adopted(4);
    let mut waits = hub.client().await;
    waits.say("wait").await;
    let mut web = Client::new(hub.tcp().await);
    web.write(b"GET /stay HTTP/1.1\r\n\r\n").await;
    web.head().await;
    let half_open = hub.tcp().await;
    eventually("all of it has begun", || hub.transport.stats().messages_in() == 1).await;
    within("a shutdown", hub.transport.shutdown(&bye(), Duration::from_millis(50))).await;
    assert_eq!(hub.ended(3).await, [DisconnectReason::ServerShutdown; 3]);
    assert_eq!(hub.lab.waits_over.load(SeqCst), 1);
    assert_eq!(silent.close().await, 3001);
    assert_eq!(silent.frame().await, None);
    assert_eq!(hub.transport.connections(), 0);
    drop((piped, half_open));
    hub.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_shutdown_without_patience_misses_nobody() {
    for _ in 0..20 {
        let hub = Hub::start(&TransportConfig::default());
        let comers: Vec<_> = (0..20)
            .map(|_| {
                let addr = hub.addr;
                tokio::spawn(async move {
                    let Ok(mut tcp) = tokio::net::TcpStream::connect(addr).await else { return };
                    let request = format!("GET /ws {}", crate::support::REQUEST);
                    let _ = tcp.write_all(request.as_bytes()).await;
                    let mut client = Client::new(tcp);
                    client.read_to_end().await;
                })
            })
            .collect();
        tokio::task::yield_now().await;
        within("a shutdown", hub.transport.shutdown(&bye(), Duration::ZERO)).await;
        assert_eq!(hub.transport.connections(), 0);
        let lab = std::sync::Arc::clone(&hub.lab);
        hub.finish().await;
        drop(lab);
        for comer in comers {
            within("a comer", comer).await.unwrap();
        }
    }
}
