//! The sum adds up, to the last message, at every scrape.

use std::collections::BTreeSet;
use std::time::Instant;

use serde_json::{Value, json};
use tokio::sync::watch;
use wsc_testkit::{Client, Inbound, ServerProcess, WAIT, eventually, try_http};

use super::{connect, expect_away, inbox_depth, tell_with_outcome, text, user};
use crate::support::hub;

/// Every figure whose name the contract fixes, of messages and their fates.
const NAMES: &[&str] = &[
    "wsc_connections",
    "wsc_users",
    "wsc_rooms",
    "wsc_connections_total",
    "wsc_disconnections_total",
    "wsc_messages_accepted_total",
    "wsc_messages_recovered_total",
    "wsc_messages_released_total",
    "wsc_messages_total",
    "wsc_messages_stored",
    "wsc_messages_in_flight",
    "wsc_deliveries_total",
    "wsc_bytes_total",
    "wsc_queue_bytes",
    "wsc_slow_consumers_total",
    "wsc_fanout_duration_seconds",
    "wsc_ack_latency_seconds",
    "wsc_acks_ignored_total",
    "wsc_total_failures_total",
    "wsc_failures_by_type_total",
    "wsc_failures_by_reason_total",
    "wsc_retry_attempts_total",
    "wsc_retry_success_total",
    "wsc_failure_handler_duration_seconds",
    "wsc_callback_executions_total",
    "wsc_callback_errors_total",
    "wsc_callback_duration_seconds",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fixed_names_are_there() {
    let server =
        hub("ack_timeout: 100ms, ack_retry_interval: 1ms, ack_max_retries: 0, enable_offline_ack: false").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    for client in [&mut alice, &mut bob] {
        client.join("r1").await;
    }
    alice.say("r1", json!(1)).await;
    bob.expect("room_message").await;
    tell_with_outcome(&mut alice, "bob", json!(1), "pending").await;
    super::take(&mut bob).await;
    let id = tell_with_outcome(&mut alice, "bob", json!(1), "pending").await;
    super::expect_outcome(&server, &id, "bob", "failed").await;
    bob.expect_reliable("direct_message").await;
    bob.ack(&[&id]).await;
    bob.barrier().await;
    let metrics = server.metrics().await;
    for name in NAMES {
        let count = format!("{name}_count");
        assert!(metrics.has(name) || metrics.has(&count), "no {name}");
    }
    // With the labels that the contract names.
    for (name, labels) in [
        ("wsc_total_failures_total", &["hub_id", "client_type"][..]),
        ("wsc_failures_by_type_total", &["type", "hub_id"]),
        ("wsc_failures_by_reason_total", &["reason"]),
        ("wsc_acks_ignored_total", &["reason"]),
        ("wsc_messages_total", &["outcome"]),
    ] {
        let sample = metrics.samples.iter().find(|sample| sample.name == name && sample.value > 0.0);
        let sample = sample.unwrap_or_else(|| panic!("{name} counted nothing"));
        let have: BTreeSet<&str> = sample.labels.keys().map(String::as_str).collect();
        assert_eq!(have, labels.iter().copied().collect(), "{name}");
    }
    assert_eq!(metrics.sum("wsc_failures_by_reason_total", &[("reason", "ack_timeout")]), 1.0);
    assert_eq!(metrics.sum("wsc_ack_latency_seconds_count", &[]), 1.0);
    for outcome in ["acked", "sent", "failed", "expired", "rejected"] {
        let labels = |sample: &wsc_testkit::Sample| sample.labels.get("outcome").is_some_and(|have| have == outcome);
        assert!(metrics.samples.iter().any(|s| s.name == "wsc_messages_total" && labels(s)), "no {outcome}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fate_is_counted_where_it_belongs() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    let ledger = async || {
        let ledger = server.metrics().await.ledger();
        ledger.check();
        ledger
    };
    tell_with_outcome(&mut alice, "bob", json!(1), "pending").await;
    let now = ledger().await;
    assert_eq!((now.accepted, now.in_flight, now.stored), (1.0, 1.0, 0.0), "{now:?}");
    super::take(&mut bob).await;
    bob.barrier().await;
    tell_with_outcome(&mut alice, "away", json!(1), "stored").await;
    alice.tell("away", json!(2)).await;
    alice.tell("bob", json!(3)).await;
    bob.expect("direct_message").await;
    let now = ledger().await;
    assert_eq!((now.acked, now.sent, now.stored, now.in_flight), (1.0, 1.0, 2.0, 0.0), "{now:?}");
    // Refused before acceptance: not in the sum.
    alice
        .request_error(json!({"message_type": "direct_message", "data": {"target_id": "__x", "content": 1}}), 1001)
        .await;
    assert_eq!(ledger().await.came(), 4.0);
    let mut away = connect(&server, "away").await;
    away.expect_reliable("direct_message").await;
    away.expect("direct_message").await;
    eventually("the plain one is sent", async || (ledger().await.sent == 2.0).then_some(())).await;
    assert_eq!(ledger().await.in_flight, 1.0);
    away.close().await;
    expect_away(&server, "away").await;
    let now = ledger().await;
    assert_eq!((now.stored, now.in_flight, now.accepted), (1.0, 0.0, 4.0), "{now:?}");
}

/// Says whether the load should go on, and where the server is; `None` while there is none.
type Stage = watch::Receiver<Option<Addresses>>;

#[derive(Clone)]
struct Addresses {
    ws: String,
    http: String,
}

impl Addresses {
    fn of(server: &ServerProcess) -> Self {
        Self { ws: server.ws_url(), http: server.http_url() }
    }
}

/// Waits until there is a server; `None` at the end of the play.
async fn next_server(stage: &mut Stage) -> Option<Addresses> {
    stage.wait_for(Option::is_some).await.ok()?.clone()
}

/// Somebody who sends every kind of message and reads what comes.
async fn talker(me: usize, mut stage: Stage) {
    while let Some(at) = next_server(&mut stage).await {
        let Some(mut client) = Client::try_connect(&format!("{}?user_id=talker-{me}", at.ws)).await else {
            stage.changed().await.ok();
            continue;
        };
        client.try_send(&json!({"message_type": "join_room", "data": {"room_id": "r1"}})).await;
        for n in 0.. {
            let to = format!("listener-{}", n % 4);
            let message = match n % 5 {
                0 => json!({"message_type": "room_message", "data": {"room_id": "r1", "content": n}}),
                1 => {
                    json!({"message_type": "room_message", "require_ack": true, "data": {"room_id": "r1", "content": n}})
                }
                2 => json!({"message_type": "direct_message", "data": {"target_id": to, "content": n}}),
                3 => super::reliable(&to, &json!(n)),
                _ => super::reliable("nobody", &json!(n)),
            };
            let mut message = message;
            message["message_id"] = json!(n + 1);
            if !client.try_send(&message).await || !answered(&mut client, &json!(n + 1)).await {
                break;
            }
            if n % 40 == 39 {
                break; // Gone without a word, to come again.
            }
        }
        if stage.has_changed().is_err() {
            return;
        }
    }
}

/// Reads up to the reply; acknowledges nothing. False when the connection ended.
async fn answered(client: &mut Client, id: &Value) -> bool {
    loop {
        match client.recv("a reply").await {
            Inbound::Text(text) => {
                let frame: Value = serde_json::from_str(&text).unwrap();
                if frame.get("request_id") == Some(id) {
                    return true;
                }
            }
            Inbound::Closed(..) => return false,
            _ => {}
        }
    }
}

/// Somebody who reads, acknowledges some, refuses some, forgets some, and comes and goes.
async fn listener(me: usize, mut stage: Stage) {
    while let Some(at) = next_server(&mut stage).await {
        let Some(mut client) = Client::try_connect(&format!("{}?user_id=listener-{me}", at.ws)).await else {
            stage.changed().await.ok();
            continue;
        };
        client.try_send(&json!({"message_type": "join_room", "data": {"room_id": "r1"}})).await;
        let mut seen = 0;
        while seen < 30 {
            let text = tokio::select! {
                inbound = client.recv("anything") => match inbound {
                    Inbound::Text(text) => text,
                    Inbound::Closed(..) => break,
                    _ => continue,
                },
                gone = stage.changed() => if gone.is_err() { return } else { break },
            };
            let frame: Value = serde_json::from_str(&text).unwrap();
            if frame["require_ack"] == true {
                seen += 1;
                let kind = match seen % 7 {
                    0 => continue,
                    1 => "nack",
                    _ => "ack",
                };
                client.try_send(&json!({"message_type": kind, "data": {"id": frame["id"]}})).await;
            }
        }
    }
}

/// Pushes with a short life.
async fn pusher(mut stage: Stage) {
    while let Some(at) = next_server(&mut stage).await {
        let body = json!({"content": 1, "require_ack": true, "ttl_ms": 50}).to_string();
        for user in ["listener-0", "never-there"] {
            let url = format!("{}/api/users/{user}/messages", at.http);
            let _ = try_http("POST", &url, &[("Content-Type", "application/json")], Some(body.as_bytes())).await;
        }
        if stage.has_changed().is_err() {
            return;
        }
    }
}

/// Scrapes and checks each time, until enough went on in this run of the server.
async fn watch_the_sum(server: &ServerProcess) {
    let start = Instant::now();
    let mut last = server.metrics().await.ledger();
    last.check();
    let mut scrapes = 1;
    while scrapes < 40 || last.accepted < 300.0 || last.acked < 30.0 || last.expired < 1.0 {
        assert!(start.elapsed() < WAIT, "too little goes on: {last:?}");
        let next = server.metrics().await.ledger();
        next.check();
        assert!(next.came() >= last.came() && next.ended() >= last.ended(), "counters only grow: {last:?} {next:?}");
        last = next;
        scrapes += 1;
    }
    println!("{scrapes} scrapes, {last:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sum_holds_under_load_with_reconnects_and_a_kill() {
    let keys = "ack_timeout: 200ms, ack_retry_interval: 50ms, ack_max_retries: 1, inbox: {retry_interval: 500ms, \
                window_messages: 16}, storage: {inbox_max_messages: 500}";
    let mut server = hub(keys).await;
    let (play, stage) = watch::channel(Some(Addresses::of(&server)));
    let mut actors = tokio::task::JoinSet::new();
    for me in 0..4 {
        actors.spawn(talker(me, stage.clone()));
        actors.spawn(listener(me, stage.clone()));
    }
    actors.spawn(pusher(stage.clone()));
    drop(stage);
    for is_killed in [true, false, true] {
        watch_the_sum(&server).await;
        play.send_replace(None);
        if is_killed {
            server.kill().await;
        } else {
            assert_eq!(server.terminate().await, 0);
        }
        server.restart().await;
        // Nobody is there yet: what was found is what rests.
        let first = server.metrics().await.ledger();
        first.check();
        assert!(first.recovered > 0.0, "{first:?}");
        assert_eq!((first.accepted, first.in_flight), (0.0, 0.0), "{first:?}");
        play.send_replace(Some(Addresses::of(&server)));
    }
    watch_the_sum(&server).await;
    drop(play);
    while let Some(ended) = actors.join_next().await {
        ended.unwrap();
    }
    // All are gone: nothing is on its way.
    let rest = eventually("nothing is in flight", async || {
        let ledger = server.metrics().await.ledger();
        ledger.check();
        (ledger.in_flight == 0.0).then_some(ledger)
    })
    .await;
    // And what rests is really there: those who come get it.
    println!("at the end: {rest:?}");
    let mut fetched = BTreeSet::new();
    for name in (0..4).flat_map(|n| [format!("listener-{n}"), format!("talker-{n}")]) {
        let mut client = connect(&server, &name).await;
        let start = Instant::now();
        while inbox_depth(&user(&server, &name).await) > 0 {
            assert!(start.elapsed() < WAIT, "{name} does not get everything; {client}");
            let passed = client.barrier().await;
            let ids: Vec<String> =
                passed.iter().filter(|frame| frame["require_ack"] == true).map(|frame| text(&frame["id"])).collect();
            if !ids.is_empty() {
                client.ack(&ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
            }
            for frame in passed {
                assert!(frame["id"].is_string(), "{frame}");
                fetched.insert((name.clone(), text(&frame["id"])));
            }
        }
        client.close().await;
    }
    let ledger = server.metrics().await.ledger();
    ledger.check();
    let mut left = 0;
    for name in ["nobody", "never-there"] {
        left += inbox_depth(&user(&server, name).await);
    }
    println!("{} were fetched, {left} are for nobody", fetched.len());
    assert_eq!(ledger.stored, left as f64, "{ledger:?}");
}
