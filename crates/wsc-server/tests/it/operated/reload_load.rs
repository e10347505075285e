//! New settings while everybody talks: nobody is disconnected, nothing is lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::{Barrier, watch};
use tokio::task::JoinSet;
use wsc_testkit::{Client, ServerProcess, eventually};

use super::{connect, reconfigure, reloads};
use crate::support::{client_count, hub};

/// How much is talked, and how often the settings change meanwhile.
pub(super) struct Load {
    pub(super) clients: u64,
    pub(super) room_size: u64,
    /// Messages of each client.
    pub(super) rounds: u64,
    pub(super) reloads: u64,
}

/// Settings that differ in what concerns open connections, and cut none of them off.
const TURNS: &[&str] = &[
    "ping_interval: 20s, pong_timeout: 30s, queue: {max_bytes: 512KiB, policy: drop_oldest}",
    "limits: {messages_per_second: 100000, bytes_per_second: 100000000}, max_message_size: 32KiB",
    "ping_interval: 30s, pong_timeout: 40s, rooms: {max_clients: 100000}, compression: {enabled: true}",
    "queue: {max_bytes: 2MiB, policy: spill}, write_timeout: 20s, ack_timeout: 1s, max_connections: 50000",
    "auth: {allowed_origins: [\"https://app.example\"]}, http: {allowed_hosts: [hub.example]}, max_retries: 7",
];

/// Settings of which no two in a row are the same.
fn turn(n: u64) -> String {
    format!("{}, base_delay: {}ms", TURNS[(n % TURNS.len() as u64) as usize], 100 + n)
}

/// Runs it; prints and asserts what came of it.
pub(super) async fn run(load: &Load) {
    let server = hub("").await;
    let (round, rounds) = watch::channel(0);
    let joined = Arc::new(Barrier::new(load.clients as usize + 1));
    let mut talkers = JoinSet::new();
    for n in 0..load.clients {
        let client = connect(&server, &format!("user-{n}")).await;
        let room = format!("room-{}", n / load.room_size);
        talkers.spawn(talk(client, n, room, load.rounds, load.room_size, rounds.clone(), Arc::clone(&joined)));
    }
    joined.wait().await;

    let start = Instant::now();
    let mut slowest = Duration::ZERO;
    for n in 0..load.reloads {
        round.send_replace(1 + n * load.rounds / load.reloads);
        let asked = Instant::now();
        let said = reconfigure(&server, &turn(n)).await;
        slowest = slowest.max(asked.elapsed());
        assert_eq!(said["pending_restart"], json!([]), "{said}");
    }
    round.send_replace(load.rounds);
    let took = start.elapsed();
    let mut received = 0;
    // They stay until all are counted.
    let mut clients = Vec::new();
    while let Some(ended) = talkers.join_next().await {
        let (client, count) = ended.unwrap();
        received += count;
        clients.push(client);
    }
    let want = load.clients * (load.room_size - 1) * load.rounds;
    let applied = reloads(&server, "applied").await;
    let disconnected = check(&server, load).await;
    println!(
        "{applied} reloads in {took:?} (the slowest took {slowest:?}) while {} clients in rooms of {} said {} messages: \
         {received} of {want} deliveries, {disconnected} disconnected",
        load.clients,
        load.room_size,
        load.clients * load.rounds,
    );
    assert_eq!(received, want);
    assert!(applied >= load.reloads as f64, "{applied}");
}

async fn check(server: &ServerProcess, load: &Load) -> f64 {
    assert_eq!(client_count(server).await, load.clients as i64);
    let metrics = eventually("all is delivered", async || {
        let metrics = server.metrics().await;
        metrics.ledger().check();
        (metrics.ledger().in_flight == 0.0).then_some(metrics)
    })
    .await;
    let disconnected = metrics.sum("wsc_disconnections_total", &[]);
    assert_eq!(disconnected, 0.0, "{}", server.log());
    let ledger = metrics.ledger();
    assert_eq!(ledger.failed, 0.0, "{ledger:?}");
    assert_eq!(ledger.sent, (load.clients * (load.room_size - 1) * load.rounds) as f64, "{ledger:?}");
    disconnected
}

/// Says one thing in each round, and takes what the others say, each of them in order; gives how much that was.
async fn talk(
    mut client: Client,
    me: u64,
    room: String,
    rounds: u64,
    room_size: u64,
    mut round: watch::Receiver<u64>,
    joined: Arc<Barrier>,
) -> (Client, u64) {
    client.join(&room).await;
    joined.wait().await;
    for n in 0..rounds {
        round.wait_for(|round| *round > n).await.unwrap();
        let accepted = client.say(&room, json!({"from": me, "n": n})).await;
        assert_eq!(accepted["data"]["recipients"], room_size - 1, "{accepted}");
    }
    let mut next: BTreeMap<u64, u64> = BTreeMap::new();
    let count = (room_size - 1) * rounds;
    for _ in 0..count {
        let message = client.expect("room_message").await;
        let content = &message["data"]["content"];
        let of_sender = next.entry(content["from"].as_u64().unwrap()).or_default();
        assert_eq!(content["n"], *of_sender, "{message}");
        *of_sender += 1;
    }
    client.expect_quiet().await;
    (client, count)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_reloads_while_fifty_clients_talk() {
    run(&Load { clients: 50, room_size: 10, rounds: 100, reloads: 200 }).await;
}
