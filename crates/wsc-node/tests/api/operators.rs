//! What operators see of connections, users and messages on their way.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use serde_json::{Value, json, value::to_raw_value};
use wsc_node::SendOptions;
use wsc_protocol::Id;
use wsc_store::{
    Admission, Depth, Entry, EntryKey, InboxLimits, InboxStore, MemoryInbox, NewEntry, Note, Page, Position, ReadLimit,
    StoreError,
};
use wsc_testkit::{Client, eventually};

use crate::support::{TestHub, assert_refused, hub, hub_with};

async fn phone(hub: &TestHub, user_id: &str) -> Client {
    Client::connect(&format!("ws://{}/ws?user_id={user_id}&client_id=phone", hub.addr)).await
}

/// What happened on a connection, oldest first.
async fn events(hub: &TestHub, session: &str) -> Vec<Value> {
    let client = hub.get(&format!("/api/clients/{session}")).await.json();
    let mut events = client["events"].as_array().unwrap_or_else(|| panic!("{client}")).clone();
    events.reverse();
    events
}

fn names(events: &[Value]) -> Vec<&str> {
    events.iter().map(|entry| entry["event"].as_str().unwrap()).collect()
}

async fn push(hub: &TestHub, user_id: &str, options: &SendOptions) -> String {
    let content = to_raw_value("hi").unwrap();
    hub.hub.send_to_user_with(user_id, &content, options).await.unwrap().id.to_string()
}

fn reliable() -> SendOptions {
    SendOptions::default().require_ack()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_tells_what_happened_on_it() {
    let hub = hub("limits: {messages_per_second: 5, burst: 20}").await;
    let mut alice = phone(&hub, "alice").await;
    let session = alice.session().to_owned();
    alice.join("r1").await;
    alice.leave("r1").await;
    alice.request_error(json!({"message_type": "leave_room", "data": {"room_id": "r1"}}), 3000).await;
    alice.send_text("no JSON").await;
    alice.expect_error(1001).await;
    let id = push(&hub, "alice", &reliable()).await;
    assert_eq!(alice.expect_reliable("user_message").await["id"], *id);
    // The kernel has it, but whoever wrote it may still be about to say so.
    let client = eventually("nothing waits in the queue", async || {
        let client = hub.get("/api/clients/phone").await.json();
        (client["queue"]["normal"]["bytes"] == 0 && client["events"][0]["event"] == "delivered").then_some(client)
    })
    .await;
    assert_eq!((&client["unacked"], &client["limits_hit"]["bad_frames"]), (&json!(1), &json!(1)), "{client}");
    assert_eq!((&client["is_open"], &client["lag"]["oldest_ms"]), (&json!(true), &json!(0)), "{client}");
    // What nobody sent leaves no trace.
    alice.ack(&[&id, "00000000-0000-7000-8000-000000000000"]).await;
    eventually("it is acknowledged", async || {
        (hub.get("/api/clients/phone").await.json()["unacked"] == 0).then_some(())
    })
    .await;
    let seen = events(&hub, &session).await;
    let expected = ["connected", "joined", "left", "error", "error", "bad_frame", "delivered", "ack"];
    assert_eq!(names(&seen), expected, "{seen:?}");
    assert_eq!((&seen[1]["rooms"], &seen[2]["rooms"]), (&json!(1), &json!(0)));
    assert_eq!((&seen[3]["code"], &seen[4]["code"]), (&json!(3000), &json!(1001)));
    assert_eq!((&seen[6]["message"], &seen[6]["attempt"]), (&json!(id), &json!(1)));
    for _ in 0..20 {
        alice.send(&json!({"message_type": "ping"})).await;
    }
    alice.expect_error(1005).await;
    let client = hub.get("/api/clients/phone?limit=2").await.json();
    assert_eq!(client["limits_hit"]["rate_limited"], 1, "{client}");
    assert_eq!(client["events"].as_array().unwrap().len(), 2);
    assert_refused(&hub.get("/api/clients/phone?limit=0").await, 400, 1001);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_messages_leave_no_trace() {
    let hub = hub("").await;
    let (mut alice, mut bob) = (phone(&hub, "alice").await, hub.connect("bob").await);
    for client in [&mut alice, &mut bob] {
        client.join("r1").await;
    }
    for n in 0..3 {
        alice.say("r1", json!(n)).await;
        alice.tell("bob", json!(n)).await;
        hub.hub.send_to_user("bob", n).await.unwrap();
    }
    assert_eq!(names(&events(&hub, alice.session()).await), ["connected", "joined"]);
    assert_eq!(names(&events(&hub, bob.session()).await), ["connected", "joined"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_keeps_what_happens_from_then_on() {
    // Without the ring only what is traced is kept.
    let hub = hub("debug: {events: 0}").await;
    let mut alice = phone(&hub, "alice").await;
    assert_eq!(events(&hub, "phone").await, [] as [Value; 0]);
    assert!(hub.get("/api/clients/phone").await.json()["traced_until"].is_null());
    let answer = hub.http("POST", "/api/clients/phone/trace", &[], None).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let traced = answer.json();
    assert_eq!(traced["session"], alice.session());
    let until = traced["until"].as_u64().unwrap();
    let client = hub.get("/api/clients/phone").await.json();
    assert_eq!(client["traced_until"], until);
    let connected_at = client["connected_at"].as_u64().unwrap();
    assert!((600_000..660_000).contains(&(until - connected_at)), "{until} - {connected_at}");
    alice.join("r1").await;
    assert_eq!(names(&events(&hub, "phone").await), ["joined"]);

    let _other = phone(&hub, "bob").await;
    let ambiguous = hub.http("POST", "/api/clients/phone/trace", &[], None).await;
    assert_eq!(ambiguous.status, 409, "{ambiguous:?}");
    assert_eq!(ambiguous.json()["error"]["details"]["candidates"].as_array().unwrap().len(), 2);
    assert_refused(&hub.http("POST", "/api/clients/nobody/trace", &[], None).await, 404, 4000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_is_shown_with_inbox_and_returns() {
    let hub = hub("").await;
    push(&hub, "bob", &SendOptions::default()).await;
    push(&hub, "bob", &reliable()).await;
    let away = hub.get("/api/users/bob").await.json();
    assert_eq!((&away["online"], &away["inbox"]["messages"]), (&json!(false), &json!(2)), "{away}");
    assert!(away["inbox"]["bytes"].as_u64().unwrap() > 0, "{away}");
    assert!(away["reconnects"].is_null(), "{away}");

    let mut bob = hub.connect("bob").await;
    bob.expect("user_message").await;
    let id = bob.expect_reliable("user_message").await["id"].clone();
    let here = eventually("one is left", async || {
        let user = hub.get("/api/users/bob").await.json();
        (user["inbox"]["messages"] == 1).then_some(user)
    })
    .await;
    assert_eq!((&here["online"], &here["unacked"]), (&json!(true), &json!(1)), "{here}");
    bob.cut();
    eventually("it is known to be lost", async || {
        (hub.get("/api/users/bob").await.json()["reconnects"]["is_away"] == true).then_some(())
    })
    .await;
    let mut bob = hub.connect("bob").await;
    bob.expect_reliable("user_message").await;
    bob.ack(&[id.as_str().unwrap()]).await;
    bob.close().await;
    let left = eventually("it is settled", async || {
        let user = hub.get("/api/users/bob").await.json();
        (user["inbox"]["messages"] == 0 && user["online"] == false).then_some(user)
    })
    .await;
    // It closed in order: that is no loss.
    let reconnects = &left["reconnects"];
    assert_eq!(
        (&reconnects["losses"], &reconnects["returns"], &reconnects["is_away"]),
        (&json!(1), &json!(1), &json!(false)),
        "{left}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_acknowledgements_is_listed() {
    let hub = hub("ack_timeout: 1m").await;
    let (mut alice, mut bob) = (hub.connect("alice").await, hub.connect("bob").await);
    let mut sent = Vec::new();
    for (user_id, client) in [("alice", &mut alice), ("bob", &mut bob)] {
        for _ in 0..2 {
            sent.push((user_id, push(&hub, user_id, &reliable()).await));
            client.expect_reliable("user_message").await;
        }
    }
    let mut seen = Vec::new();
    let mut path = "/debug/ack/pending?limit=1".to_owned();
    loop {
        let part = hub.get(&path).await.json();
        assert_eq!(part["total"], 4, "{part}");
        for entry in part["pending"].as_array().unwrap() {
            assert_eq!((&entry["waits_for"], &entry["attempt"]), (&json!("ack"), &json!(1)), "{entry}");
            assert!((1..=60_000).contains(&entry["due_in_ms"].as_u64().unwrap()), "{entry}");
            assert_eq!((&entry["sender_id"], &entry["require_ack"]), (&json!("system"), &json!(true)), "{entry}");
            seen.push((entry["user_id"].as_str().unwrap().to_owned(), entry["id"].as_str().unwrap().to_owned()));
        }
        let Some(cursor) = part["next_cursor"].as_str() else { break };
        path = format!("/debug/ack/pending?limit=1&cursor={}", wsc_testkit::encode(cursor));
    }
    assert_eq!(seen, sent.iter().map(|(user, id)| ((*user).to_owned(), id.clone())).collect::<Vec<_>>());
    assert_refused(&hub.get("/debug/ack/pending?cursor=x").await, 400, 1001);

    alice.ack(&[&sent[0].1]).await;
    alice.send(&json!({"message_type": "nack", "data": {"id": sent[1].1}})).await;
    // Not hers.
    alice.ack(&[&sent[2].1]).await;
    push(&hub, "carol", &reliable()).await;
    let stats = eventually("both are settled", async || {
        let stats = hub.get("/debug/ack/stats").await.json();
        (stats["pending"] == 2 && stats["ignored"]["foreign"] == 1).then_some(stats)
    })
    .await;
    for (field, count) in [("stored", 1), ("acked", 1), ("rejected", 1), ("expired", 0), ("timed_out", 0)] {
        assert_eq!(stats[field], count, "{field}: {stats}");
    }
    assert_eq!(stats["outcomes"], 5, "{stats}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_rests_can_be_tried_at_once() {
    let hub = hub("ack_timeout: 50ms, ack_max_retries: 0, inbox: {retry_interval: 1h}").await;
    let (mut alice, mut bob) = (hub.connect("alice").await, hub.connect("bob").await);
    for client in [&mut alice, &mut bob] {
        let id = push(&hub, client.user_id(), &reliable()).await;
        assert_eq!(client.expect_reliable("user_message").await["id"], *id);
    }
    eventually("both rest", async || {
        let stats = hub.get("/debug/ack/stats").await.json();
        (stats["stored"] == 2 && stats["pending"] == 0 && stats["timed_out"] == 2).then_some(())
    })
    .await;
    let answer = hub.post_json("/debug/ack/retry", &json!({"user_id": "alice"})).await;
    assert_eq!((answer.status, answer.json()), (202, json!({"users": 1})));
    let again = alice.expect_reliable("user_message").await;
    assert_eq!(again["source"], "offline", "{again}");
    bob.expect_quiet().await;
    assert_refused(&hub.post_json("/debug/ack/retry", &json!({"user_id": "carol"})).await, 404, 4001);
    assert_refused(&hub.post_json("/debug/ack/retry", &json!({"user": "alice"})).await, 400, 1001);
    let answer = hub.http("POST", "/debug/ack/retry", &[], None).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    bob.expect_reliable("user_message").await;
    let told = names(&events(&hub, bob.session()).await).join(" ");
    assert!(told.starts_with("connected delivered ack_timeout"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_of_the_hub_has_all_its_parts() {
    let hub = hub("").await;
    let _alice = hub.connect("alice").await;
    push(&hub, "bob", &reliable()).await;
    let status = hub.get("/debug/hub/status").await.json();
    assert_eq!((&status["active_connections"], &status["total_connections"]), (&json!(1), &json!(1)));
    assert_eq!(status["failure_stats"]["total_failures"], 0);
    assert_eq!(status["retry_stats"], json!({"attempts": 0, "successes": 0}));
    assert_eq!(status["callback_stats"]["registered"], 0);
    assert_eq!(status["current_config"]["storage"]["kind"], "memory", "{status}");
    assert_eq!(status["handler_status"]["workers"], 4);
    assert_eq!(status["storage"]["depth"]["messages"], 1, "{status}");
    assert_eq!((&status["storage"]["healthy"], &status["pending_restart"]), (&json!(true), &json!([])));
}

/// A store in memory that can be made to fail.
#[derive(Default)]
struct Fragile {
    store: MemoryInbox,
    is_broken: AtomicBool,
}

#[async_trait::async_trait]
impl InboxStore for Fragile {
    async fn append(&self, entries: Vec<NewEntry>) -> Result<Vec<Admission>, StoreError> {
        if self.is_broken.load(Relaxed) {
            return Err(StoreError::unavailable("the disk is gone"));
        }
        self.store.append(entries).await
    }

    async fn read(&self, user: &Id, after: Option<Position>, limit: ReadLimit) -> Result<Page, StoreError> {
        self.store.read(user, after, limit).await
    }

    async fn get(&self, key: &EntryKey) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }

    async fn remove(&self, keys: Vec<EntryKey>) -> Result<Vec<bool>, StoreError> {
        self.store.remove(keys).await
    }

    async fn expired(&self, now: u64, limit: usize) -> Result<Vec<EntryKey>, StoreError> {
        self.store.expired(now, limit).await
    }

    async fn notes(&self, now: u64) -> Result<Vec<Note>, StoreError> {
        self.store.notes(now).await
    }

    async fn depth(&self, user: &Id) -> Result<Depth, StoreError> {
        self.store.depth(user).await
    }

    async fn total(&self) -> Result<Depth, StoreError> {
        self.store.total().await
    }

    fn set_limits(&self, limits: InboxLimits) {
        self.store.set_limits(limits);
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.store.close().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_fails_makes_the_hub_degraded_until_it_works_again() {
    let store = Arc::new(Fragile::default());
    let hub = hub_with("", |builder| builder.inbox(Arc::clone(&store) as Arc<dyn InboxStore>)).await;
    assert_eq!(hub.get("/health").await.json()["checks"]["storage"], "ok");
    let send = async || {
        let content = to_raw_value("hi").unwrap();
        hub.hub.send_to_user_with("bob", &content, &reliable()).await
    };
    store.is_broken.store(true, Relaxed);
    let health = eventually("it is degraded", async || {
        send().await.unwrap_err();
        Some(hub.get("/health").await).filter(|health| health.status == 503)
    })
    .await
    .json();
    assert_eq!((&health["status"], &health["checks"]["storage"]), (&json!("degraded"), &json!("failing")));
    assert_eq!(hub.get("/debug/hub/status").await.json()["storage"]["healthy"], false);
    // It still answers, and takes what needs no store.
    assert_eq!(hub.get("/health/live").await.status, 200);
    let mut alice = hub.connect("alice").await;
    hub.hub.send_to_user("alice", 1).await.unwrap();
    alice.expect("user_message").await;

    store.is_broken.store(false, Relaxed);
    eventually("it is well again", async || {
        let _ = send().await;
        (hub.get("/health").await.status == 200).then_some(())
    })
    .await;
}
