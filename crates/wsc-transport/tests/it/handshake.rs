//! From an accepted socket to an open connection, or not.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use wsc_protocol::{CloseCode, CloseReason};
use wsc_transport::TransportConfig;

use crate::support::{Client, Hub, REQUEST, certificate, eventually, localhost, within};

/// How often handshakes failed for this reason.
pub(crate) fn failures(hub: &Hub, reason: &str) -> u64 {
    let failures = hub.transport.stats().handshake_failures();
    failures.iter().find(|(name, _)| *name == reason).expect("a known reason").1
}

#[tokio::test]
async fn a_flood_of_half_open_connections_cuts_itself() {
    let hub = Hub::with(|c| c.pending_handshakes = 50);
    let mut open = hub.client().await;
    let mut half: Vec<TcpStream> = Vec::new();
    for n in 0..500 {
        let mut tcp = hub.tcp().await;
        if n % 2 == 0 {
            tcp.write_all(b"GET /ws HTTP/1.1\r\nHost: lo").await.unwrap();
        }
        half.push(tcp);
    }
    eventually("450 are cut", || failures(&hub, "too_many_pending") == 450).await;
    // The oldest are.
    for tcp in &mut half[..450] {
        assert_eq!(within("the end", tcp.read(&mut [0; 16])).await.unwrap_or(0), 0);
    }
    // Neither who is in nor who comes now is the victim.
    open.say("alive").await;
    assert_eq!(open.text().await, "alive");
    let mut late = hub.client().await;
    late.say("welcome").await;
    assert_eq!(late.text().await, "welcome");
    assert_eq!(hub.transport.connections(), 2);
    drop(half);
    hub.finish().await;
}

#[tokio::test]
async fn slow_handshakes_time_out() {
    let hub = Hub::with(|c| c.handshake_timeout = Duration::from_millis(100));
    let mut client = hub.client().await;
    let mut silent = Client::new(hub.tcp().await);
    assert_eq!(silent.frame().await, None);
    let mut undecided = Client::new(hub.tcp().await);
    undecided.write(format!("GET /ws?never {REQUEST}").as_bytes()).await;
    assert_eq!(undecided.frame().await, None);
    assert_eq!(failures(&hub, "timeout"), 2);
    // Who made it in is not bound by it.
    client.say("alive").await;
    assert_eq!(client.text().await, "alive");
    hub.finish().await;
}

#[tokio::test]
async fn everything_else_is_handed_on_as_it_came() {
    let hub = Hub::start(&TransportConfig::default());
    let endless = [b"GET /ws HTTP/1.1\r\nX: ".to_vec(), vec![b'x'; 20 << 10]].concat();
    for bytes in [
        &b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nand more"[..],
        b"GET /ws HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /wsx HTTP/1.1\r\nUpgrade: websocket\r\n\r\n",
        b"POST /ws HTTP/1.1\r\nUpgrade: websocket\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xFC\x03\x03",
        b"\0garbage",
        b"get / http",
        &endless,
    ] {
        let mut client = Client::new(hub.tcp().await);
        client.write(bytes).await;
        assert!(client.head().await.starts_with("HTTP/1.1 200"));
        let got = hub.lab.http.lock().pop().unwrap();
        if bytes.len() < 1_000 {
            assert_eq!(got, bytes);
        } else {
            // Read as far as heads go, and no further.
            assert!(got.len() > 16 << 10 && bytes.starts_with(&got));
        }
    }
    hub.finish().await;
}

#[tokio::test]
async fn refusals_can_be_read() {
    let hub = Hub::start(&TransportConfig::default());
    let mut client = Client::new(hub.tcp().await);
    client.write(format!("GET /ws?refuse {REQUEST}").as_bytes()).await;
    let head = client.head().await;
    assert!(head.to_ascii_lowercase().contains("content-length: 2"), "{head}");
    let mut client = Client::new(hub.tcp().await);
    client.upgrade("/ws?close").await;
    assert_eq!(client.close().await, 3500);
    assert_eq!(client.frame().await, None);
    // Not an upgrade that RFC 6455 would take.
    for (broken, status) in [("13", "426"), ("dGhlIHNhbXBsZSBub25jZQ==", "400")] {
        let mut client = Client::new(hub.tcp().await);
        client.write(format!("GET /ws {}", REQUEST.replace(broken, "12")).as_bytes()).await;
        let head = client.head().await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
    }
    assert_eq!(failures(&hub, "malformed"), 2);
    assert_eq!(hub.transport.connections(), 0);
    hub.finish().await;
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_handshakes() {
    let hub = Hub::start(&TransportConfig::default());
    let mut half = Vec::new();
    for _ in 0..20 {
        half.push(hub.tcp().await);
    }
    let mut undecided = Client::new(hub.tcp().await);
    undecided.write(format!("GET /ws?never {REQUEST}").as_bytes()).await;
    let close = CloseReason::new(CloseCode::SHUTTING_DOWN, "bye");
    within("a shutdown", hub.transport.shutdown(&close, Duration::from_secs(3_600))).await;
    assert_eq!(undecided.frame().await, None);
    hub.finish().await;
}

/// Certificates are replaced while clients come and go.
#[tokio::test]
async fn a_new_certificate_is_for_those_who_come_now() {
    let hub = Hub::start(&TransportConfig::default());
    let (old, trusts_old) = certificate();
    let (new, trusts_new) = certificate();
    hub.transport.set_tls(&old);
    // Who is in the middle of a handshake, and who is through: connections are accepted in order.
    let early = hub.tcp().await;
    let mut open = Client::new(trusts_old.connect(localhost(), hub.tcp().await).await.unwrap());
    open.upgrade("/ws").await;
    hub.transport.set_tls(&new);
    let mut early = Client::new(within("TLS", trusts_old.connect(localhost(), early)).await.unwrap());
    early.upgrade("/ws").await;
    let mut late = Client::new(within("TLS", trusts_new.connect(localhost(), hub.tcp().await)).await.unwrap());
    late.upgrade("/ws").await;
    assert!(within("TLS", trusts_old.connect(localhost(), hub.tcp().await)).await.is_err());
    for client in [&mut open, &mut early, &mut late] {
        client.say("still here").await;
        assert_eq!(client.text().await, "still here");
    }
    hub.finish().await;
}
