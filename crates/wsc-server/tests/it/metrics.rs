//! The figures of `/metrics`.

use serde_json::json;
use wsc_testkit::{Client, Metrics, ServerProcess, eventually};

use crate::support::{hub, upgrade};

/// The figures that the hub has from the first release on.
const NAMES: &[&str] = &[
    "wsc_connections",
    "wsc_users",
    "wsc_rooms",
    "wsc_connections_total",
    "wsc_disconnections_total",
    "wsc_handshake_failures_total",
    "wsc_messages_accepted_total",
    "wsc_messages_total",
    "wsc_messages_stored",
    "wsc_messages_in_flight",
    "wsc_deliveries_total",
    "wsc_bytes_total",
    "wsc_queue_bytes",
    "wsc_fanout_duration_seconds",
];

/// Waits until nothing is under way.
async fn settled(server: &ServerProcess) -> Metrics {
    eventually("nothing is in flight", async || {
        let metrics = server.metrics().await;
        (metrics.sum("wsc_messages_in_flight", &[]) == 0.0).then_some(metrics)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fixed_names_are_there_after_some_traffic() {
    let server = hub("").await;
    let mut alice = Client::connect(&server.ws_url()).await;
    let mut bob = Client::connect(&server.ws_url_as("bob")).await;
    alice.join("r1").await;
    bob.join("r1").await;
    alice.say("r1", json!(1)).await;
    alice.tell("bob", json!(1)).await;
    upgrade(&server, "/ws?user_id=__bad", |h| h).await;
    alice.close().await;
    eventually("the close is counted", async || {
        let metrics = server.metrics().await;
        (metrics.sum("wsc_disconnections_total", &[]) == 1.0).then_some(())
    })
    .await;
    let metrics = server.metrics().await;
    for name in NAMES {
        // A histogram or a summary shows as its parts.
        let count = format!("{name}_count");
        assert!(metrics.has(name) || metrics.has(&count), "no {name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_users_and_rooms_are_counted() {
    let server = hub("").await;
    let mut devices = Vec::new();
    for user in ["alice", "alice", "bob"] {
        devices.push(Client::connect(&server.ws_url_as(user)).await);
    }
    devices[0].join("r1").await;
    devices[1].join("r1").await;
    devices[2].join("r2").await;
    let metrics = server.metrics().await;
    assert_eq!(metrics.sum("wsc_connections", &[]), 3.0);
    assert_eq!(metrics.sum("wsc_users", &[]), 2.0);
    assert_eq!(metrics.sum("wsc_rooms", &[]), 2.0);
    assert_eq!(metrics.sum("wsc_connections_total", &[]), 3.0);
    assert_eq!(metrics.sum("wsc_disconnections_total", &[]), 0.0);

    devices.pop().unwrap().close().await;
    devices.pop().unwrap().cut();
    eventually("two connections are gone", async || {
        let metrics = server.metrics().await;
        (metrics.sum("wsc_connections", &[]) == 1.0).then_some(())
    })
    .await;
    let metrics = server.metrics().await;
    assert_eq!(metrics.sum("wsc_users", &[]), 1.0);
    assert_eq!(metrics.sum("wsc_rooms", &[]), 1.0);
    assert_eq!(metrics.sum("wsc_connections_total", &[]), 3.0);
    assert_eq!(metrics.sum("wsc_disconnections_total", &[]), 2.0);
    let reason = [("reason", "client_request")];
    assert_eq!(metrics.sum("wsc_disconnections_total", &reason), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_counted_in_pairs_and_the_sum_holds() {
    let server = hub("").await;
    let mut alice = Client::connect(&server.ws_url_as("alice")).await;
    let mut bobs = [Client::connect(&server.ws_url_as("bob")).await, Client::connect(&server.ws_url_as("bob")).await];
    alice.join("r1").await;
    for bob in &mut bobs {
        bob.join("r1").await;
    }
    // Five messages to two other connections each, four to one user.
    for n in 0..5 {
        alice.say("r1", json!(n)).await;
    }
    for n in 0..4 {
        alice.tell("bob", json!(n)).await;
    }
    for bob in &mut bobs {
        for _ in 0..9 {
            bob.expect_text("a room message or a direct one").await;
        }
        bob.expect_quiet().await;
    }
    let metrics = settled(&server).await;
    let ledger = metrics.ledger();
    ledger.check();
    assert_eq!((ledger.accepted, ledger.sent), (14.0, 14.0), "{ledger:?}");
    // Every connection that something was written to.
    assert!(metrics.sum("wsc_deliveries_total", &[]) >= 18.0);
    assert!(metrics.sum("wsc_bytes_total", &[]) > 0.0);
    assert_eq!(metrics.sum("wsc_queue_bytes", &[]), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sum_holds_at_every_scrape_of_a_busy_hub() {
    let server = hub("").await;
    let mut talker = Client::connect(&server.ws_url_as("talker")).await;
    talker.join("r1").await;
    let mut members = Vec::new();
    for _ in 0..10 {
        let mut member = Client::connect(&server.ws_url()).await;
        member.join("r1").await;
        members.push(member);
    }
    let talk = async {
        for n in 0..500 {
            let data = json!({"room_id": "r1", "content": n});
            talker.send(&json!({"message_type": "room_message", "data": data})).await;
            if n % 50 == 0 {
                // Somebody leaves with messages under way.
                drop(members.pop());
                talker.barrier().await;
            }
        }
    };
    let watch = async {
        for _ in 0..50 {
            server.metrics().await.ledger().check();
        }
    };
    tokio::join!(talk, watch);
    let ledger = settled(&server).await.ledger();
    ledger.check();
    assert!(ledger.came() > 0.0, "{ledger:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_handshakes_are_counted_by_reason() {
    let server = hub("").await;
    upgrade(&server, "/ws?user_id=__bad", |h| h).await;
    upgrade(&server, "/ws", |h| h.add("Origin", "http://evil.example")).await;
    let metrics = server.metrics().await;
    assert_eq!(metrics.sum("wsc_handshake_failures_total", &[]), 2.0);
    let reasons =
        metrics.samples.iter().filter(|sample| sample.name == "wsc_handshake_failures_total" && sample.value > 0.0);
    assert_eq!(reasons.count(), 2, "two different reasons");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_id_is_ever_a_label() {
    let server = hub("").await;
    let mut alice = Client::connect(&server.ws_url_for("zzuser", "zzclient")).await;
    let mut bob = Client::connect(&server.ws_url_as("zzother")).await;
    alice.join("zzroom").await;
    bob.join("zzroom").await;
    alice.say("zzroom", json!("zzcontent")).await;
    alice.tell("zzother", json!(1)).await;
    alice.request(json!({"message_type": "zztype"})).await;
    server.post("/api/users/zzuser/messages", &json!({"content": 1})).await;
    let ids = [alice.session().to_owned(), bob.client_id().to_owned()];
    bob.cut();
    let scrape = server.get("/metrics").await;
    assert!(!scrape.text().contains("zz"), "{}", scrape.text());
    for id in ids {
        assert!(!scrape.text().contains(&id), "{}", scrape.text());
    }
    assert!(scrape.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")), "{:?}", scrape.headers);
}
