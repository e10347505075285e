//! What is left when connections are gone: nothing.

use std::sync::Arc;

use wsc_protocol::DisconnectReason;
use wsc_transport::{Outbound, TransportConfig};

use crate::support::{Hub, client_frame, eventually};

/// How many descriptors of sockets to and from `hub` this process holds; other tests run beside this one.
fn sockets_of(hub: &Hub) -> usize {
    let port = format!(":{:04X}", hub.addr.port());
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let inodes: Vec<String> = table
        .lines()
        .filter(|line| line.split_whitespace().skip(1).take(2).any(|addr| addr.ends_with(&port)))
        .filter_map(|line| line.split_whitespace().nth(9).map(|inode| format!("socket:[{inode}]")))
        .collect();
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let links = descriptors.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links.filter(|link| link.to_str().is_some_and(|link| inodes.iter().any(|inode| inode == link))).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_leave_nothing_behind() {
    let hub = Hub::start(&TransportConfig::default());
    let listener = sockets_of(&hub);
    for round in 1..=4 {
        for batch in 0..5 {
            let mut clients = Vec::new();
            for _ in 0..100 {
                let mut client = hub.client().await;
                client.write(&[client_frame(0x81, b"join"), client_frame(0x81, b"publish hi")].concat()).await;
                clients.push(client);
            }
            for (n, client) in clients.iter_mut().enumerate() {
                assert_eq!(client.text().await, "joined");
                if n % 2 == 0 {
                    client.write(&client_frame(0x88, &[])).await;
                } else if n % 7 == 0 {
                    client.stream.set_zero_linger().unwrap();
                }
            }
            drop(clients);
            hub.ended(((round - 1) * 5 + batch + 1) * 100).await;
        }
        eventually("all are gone", || hub.transport.connections() == 0).await;
        eventually("no socket is left", || sockets_of(&hub) <= listener).await;
        assert!(hub.lab.room.is_empty());
        hub.settled().await;
    }
    hub.finish().await;
}

#[tokio::test]
async fn a_handle_that_outlives_its_connection_is_only_closed() {
    let hub = Hub::start(&TransportConfig::default());
    let mut client = hub.client().await;
    let outbound: Outbound = hub.newest();
    client.write(&client_frame(0x88, &[])).await;
    client.rest().await;
    assert_eq!(hub.ended(1).await, [DisconnectReason::ClientRequest]);
    assert!(!outbound.is_open());
    assert_eq!(outbound.send(&[0x81, 0]), wsc_transport::Sent::Closed);
    assert_eq!(outbound.queued(), (0, 0));
    assert_eq!(hub.transport.connections(), 0);
    hub.finish().await;
}

#[tokio::test]
async fn a_transport_lets_its_service_go() {
    let hub = Hub::start(&TransportConfig::default());
    let mut client = hub.client().await;
    client.say("join").await;
    client.say("publish hi").await;
    assert_eq!(client.text().await, "joined");
    let lab = Arc::downgrade(&hub.lab);
    hub.finish().await;
    assert_eq!(lab.strong_count(), 0, "something keeps the service");
}
