//! Messages for users who are away.

use std::time::Duration;

use serde_json::{Value, json};
use wsc_testkit::{Client, ConnectOptions, ServerProcess, eventually};

use super::{
    connect, contents, expect_away, expect_ledger, expect_outcome, expect_quiet_for, fate, inbox_depth, leave,
    reliable, take, tell_reliably, tell_with_outcome, text, user,
};
use crate::delivery::{CONTENTS, content_of};
use crate::support::{assert_fields, assert_on_its_way, assert_refused, hub};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reliable_message_waits_for_its_user() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let id = tell_with_outcome(&mut alice, "bob", json!("hi"), "stored").await;
    let told = fate(&server, &id, "bob").await;
    assert_eq!((&told["outcome"], &told["attempts"]), (&json!("stored"), &json!(0)), "{told}");
    let ledger = server.metrics().await.ledger();
    ledger.check();
    assert_eq!((ledger.accepted, ledger.stored), (1.0, 1.0), "{ledger:?}");

    let mut bob = connect(&server, "bob").await;
    let delivery = bob.expect_reliable("direct_message").await;
    assert_fields(&delivery, &["id", "message_type", "data", "timestamp", "require_ack", "source"]);
    assert_eq!((&delivery["id"], &delivery["source"]), (&json!(id), &json!("offline")));
    assert_eq!(delivery["timestamp"], delivery["data"]["timestamp"]);
    assert_eq!(delivery["data"]["sender_id"], "alice");
    assert_eq!(fate(&server, &id, "bob").await["outcome"], "pending");
    bob.ack(&[&id]).await;
    expect_outcome(&server, &id, "bob", "acked").await;
    connect(&server, "bob").await.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_message_waits_as_well_and_is_done_when_it_is_written() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let accepted = alice.tell("bob", json!("hi")).await;
    assert_eq!(accepted["data"]["outcome"], "stored", "{accepted}");
    let id = text(&accepted["data"]["id"]);
    let mut bob = connect(&server, "bob").await;
    let delivery = bob.expect("direct_message").await;
    assert_fields(&delivery, &["id", "message_type", "data", "timestamp", "source"]);
    assert_eq!((&delivery["id"], &delivery["source"]), (&json!(id), &json!("offline")));
    expect_outcome(&server, &id, "bob", "sent").await;
    bob.expect_quiet().await;
    connect(&server, "bob").await.expect_quiet().await;
    let ledger = server.metrics().await.ledger();
    ledger.check();
    assert_eq!((ledger.accepted, ledger.sent, ledger.here()), (1.0, 1.0, 0.0), "{ledger:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waited_comes_oldest_first_whatever_its_kind_and_priority() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    for n in 0..12 {
        let priority = if n % 2 == 0 { "low" } else { "normal" };
        let message = json!({
            "message_type": "direct_message",
            "require_ack": n % 3 == 0,
            "priority": priority,
            "data": {"target_id": "bob", "content": n},
        });
        alice.request_ok(message, "accepted").await;
    }
    let body = json!({"content": 12, "priority": "high"});
    assert_eq!(server.post("/api/users/bob/messages", &body).await.status, 202);
    let mut bob = connect(&server, "bob").await;
    for n in 0..12 {
        let delivery = bob.expect("direct_message").await;
        assert_eq!(delivery["data"]["content"], n);
        assert_eq!(delivery["require_ack"] == true, n % 3 == 0, "{delivery}");
        assert_eq!(delivery["source"], "offline");
    }
    assert_eq!(bob.expect("user_message").await["data"]["content"], 12);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waited_arrives_byte_for_byte() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    for (n, content) in CONTENTS.iter().enumerate() {
        let is_reliable = n % 2 == 0;
        let text = format!(
            r#"{{"message_type":"direct_message","message_id":1,"require_ack":{is_reliable},"data":{{"target_id":"bob","content":{content}}}}}"#
        );
        let accepted = alice.request_text(&text, &json!(1)).await;
        assert_eq!(accepted["data"]["outcome"], "stored", "{accepted}");
    }
    let mut bob = connect(&server, "bob").await;
    for content in CONTENTS {
        let delivery = bob.expect_text("what waited").await;
        assert_eq!(content_of(&delivery), *content, "{delivery}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_last_device_goes_what_is_unacknowledged_waits() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let phone = Client::connect(&server.ws_url_for("bob", "phone")).await;
    let mut laptop = Client::connect(&server.ws_url_for("bob", "laptop")).await;
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(tell_with_outcome(&mut alice, "bob", json!(n), "pending").await);
    }
    phone.close().await;
    eventually("one device is left", async || {
        (user(&server, "bob").await["devices"].as_array().map(Vec::len) == Some(1)).then_some(())
    })
    .await;
    assert_eq!(fate(&server, &ids[0], "bob").await["outcome"], "pending");
    for n in 0..5 {
        assert_eq!(laptop.expect_reliable("direct_message").await["data"]["content"], n);
    }
    laptop.ack(&[&ids[1]]).await;
    expect_outcome(&server, &ids[1], "bob", "acked").await;
    laptop.cut();
    for at in [0, 2, 3, 4] {
        expect_outcome(&server, &ids[at], "bob", "stored").await;
    }
    let mut back = connect(&server, "bob").await;
    for at in [0, 2, 3, 4] {
        let delivery = back.expect_reliable("direct_message").await;
        assert_eq!((&delivery["id"], &delivery["source"]), (&json!(ids[at]), &json!("offline")));
        assert_eq!(delivery.get("attempt"), None, "{delivery}");
    }
    back.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generated_users_have_no_inbox() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let stranger = Client::connect(&server.ws_url()).await;
    let name = stranger.user_id().to_owned();
    let accepted = alice.tell(&name, json!(1)).await;
    assert_on_its_way(&accepted["data"]);
    leave(&server, stranger).await;
    let plain = json!({"message_type": "direct_message", "data": {"target_id": name, "content": 1}});
    for message in [plain, reliable(&name, &json!(1))] {
        let error = alice.request_error(message, 4001).await;
        assert_eq!(error["data"]["temporary"], false, "{error}");
    }
    let answer = server.post(&format!("/api/users/{name}/messages"), &json!({"content": 1})).await;
    super::without_store::assert_away(answer.status, &answer.json());
    let ledger = server.metrics().await.ledger();
    ledger.check();
    assert_eq!(ledger.stored, 0.0, "{ledger:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_durable_is_promised_to_a_generated_user() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let mut stranger = Client::connect(&server.ws_url()).await;
    let name = stranger.user_id().to_owned();
    // It is there, but an ACK is for what survives.
    alice.request_error(reliable(&name, &json!(1)), 4001).await;
    let answer = server.post(&format!("/api/users/{name}/messages"), &json!({"content": 1, "require_ack": true})).await;
    assert_refused(&answer, 404, 4001);
    stranger.expect_quiet().await;
    alice.tell(&name, json!(2)).await;
    assert_eq!(stranger.expect("direct_message").await["data"]["content"], 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_id_alone_is_an_identity() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let options = ConnectOptions { query: &[("client_id", "desk-7")], ..ConnectOptions::default() };
    let desk = Client::connect_with(&server.ws_url(), &options).await;
    assert_eq!(desk.user_id(), "desk-7");
    leave(&server, desk).await;
    let id = tell_with_outcome(&mut alice, "desk-7", json!(1), "stored").await;
    let mut desk = Client::connect_with(&server.ws_url(), &options).await;
    assert_eq!(desk.expect_reliable("direct_message").await["id"], id.as_str());
}

/// Fills Bob's inbox with these until it is full, by one more than it takes.
async fn fill(server: &ServerProcess, alice: &mut Client, content: &Value) -> usize {
    let mut taken = 0;
    loop {
        let reply = alice.request(reliable("bob", content)).await;
        if reply["message_type"] == "accepted" {
            assert_eq!(reply["data"]["outcome"], "stored", "{reply}");
            taken += 1;
            assert!(taken < 10_000, "it is never full");
            continue;
        }
        assert_eq!((&reply["message_type"], &reply["data"]["code"]), (&json!("error"), &json!(4003)), "{reply}");
        assert_eq!(reply["data"]["temporary"], true, "{reply}");
        // Refused before acceptance: no id, and not in the sum.
        assert_eq!(reply["data"]["details"].get("id"), None, "{reply}");
        let ledger = server.metrics().await.ledger();
        ledger.check();
        assert_eq!(ledger.accepted, f64::from(u32::try_from(taken).unwrap()), "{ledger:?}");
        return taken;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_inbox_refuses_what_is_new_and_keeps_what_is_old() {
    let server = hub("storage: {inbox_max_messages: 3}").await;
    let mut alice = connect(&server, "alice").await;
    assert_eq!(fill(&server, &mut alice, &json!("x")).await, 3);
    // Plain messages need a place as well.
    let plain = json!({"message_type": "direct_message", "data": {"target_id": "bob", "content": 1}});
    alice.request_error(plain, 4003).await;
    for require_ack in [true, false] {
        let body = json!({"content": 1, "require_ack": require_ack});
        let answer = server.post("/api/users/bob/messages", &body).await;
        assert_refused(&answer, 503, 4003);
    }
    // Somebody else's inbox is another one.
    tell_with_outcome(&mut alice, "carol", json!(1), "stored").await;
    let failures = server.metrics().await;
    assert!(failures.sum("wsc_failures_by_reason_total", &[("reason", "pending_full")]) >= 4.0);

    let mut bob = connect(&server, "bob").await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(text(&bob.expect_reliable("direct_message").await["id"]));
    }
    bob.expect_quiet().await;
    bob.ack(&[&ids[0]]).await;
    expect_outcome(&server, &ids[0], "bob", "acked").await;
    // One place is free.
    tell_with_outcome(&mut alice, "bob", json!("new"), "pending").await;
    alice.request_error(reliable("bob", &json!("newer")), 4003).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_inbox_is_full_after_a_restart_as_well() {
    let mut server = hub("storage: {inbox_max_messages: 2}").await;
    let mut alice = connect(&server, "alice").await;
    for n in 0..2 {
        tell_with_outcome(&mut alice, "bob", json!(n), "stored").await;
    }
    server.kill().await;
    server.restart().await;
    let mut alice = connect(&server, "alice").await;
    alice.request_error(reliable("bob", &json!(2)), 4003).await;
    let mut bob = connect(&server, "bob").await;
    for n in 0..2 {
        assert_eq!(take(&mut bob).await, n);
    }
    bob.expect_quiet().await;
    expect_ledger(&server, "both are acknowledged", |ledger| ledger.acked == 2.0).await;
    tell_with_outcome(&mut alice, "bob", json!(3), "pending").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inbox_is_full_by_bytes_as_well() {
    let server = hub("storage: {inbox_max_bytes: 10KiB}").await;
    let mut alice = connect(&server, "alice").await;
    let taken = fill(&server, &mut alice, &json!("x".repeat(1_000))).await;
    assert!((5..=10).contains(&taken), "{taken}");
    let mut bob = connect(&server, "bob").await;
    for _ in 0..taken {
        take(&mut bob).await;
    }
    bob.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_inboxes_together_have_a_limit() {
    let server = hub("storage: {max_bytes: 1MiB, inbox_max_bytes: 1MiB}, limits: {stored_per_sender: 100000}").await;
    let content = "x".repeat(30_000);
    let mut taken = 0;
    for n in 0..40 {
        let body = json!({"content": content, "require_ack": true});
        let answer = server.post(&format!("/api/users/u{n}/messages"), &body).await;
        if answer.status == 503 {
            assert_refused(&answer, 503, 4003);
            break;
        }
        assert_eq!(answer.status, 202, "{answer:?}");
        taken += 1;
    }
    assert!((20..=34).contains(&taken), "{taken} of 30 kB in 1 MiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_sender_cannot_fill_everybodys_inbox() {
    let server = hub("limits: {stored_per_sender: 2}").await;
    let mut alice = connect(&server, "alice").await;
    let mut dave = connect(&server, "dave").await;
    let first = tell_with_outcome(&mut alice, "bob", json!(1), "stored").await;
    tell_with_outcome(&mut alice, "carol", json!(1), "stored").await;
    alice.request_error(reliable("erin", &json!(1)), 4003).await;
    tell_with_outcome(&mut dave, "erin", json!(1), "stored").await;
    // Who is there can still be written to.
    assert_on_its_way(&alice.tell("dave", json!(1)).await["data"]);
    dave.expect("direct_message").await;
    // What was fetched makes room.
    let mut bob = connect(&server, "bob").await;
    assert_eq!(take(&mut bob).await, 1);
    expect_outcome(&server, &first, "bob", "acked").await;
    tell_with_outcome(&mut alice, "erin", json!(2), "stored").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_can_be_kept_from_asking_for_acks() {
    let server = hub("limits: {client_require_ack: false}").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    let refused = alice.request(reliable("bob", &json!(1))).await;
    assert_eq!(refused["message_type"], "error", "{refused}");
    bob.expect_quiet().await;
    // Programs are not meant.
    let body = json!({"content": 1, "require_ack": true});
    let answer = server.post("/api/users/bob/messages", &body).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    bob.expect_reliable("user_message").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_old_is_not_delivered() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let mut ids = Vec::new();
    for require_ack in [true, false] {
        let body = json!({"content": "old", "require_ack": require_ack, "ttl_ms": 100});
        let answer = server.post("/api/users/bob/messages", &body).await.json();
        assert_eq!(answer["outcome"], "stored", "{answer}");
        ids.push(text(&answer["id"]));
    }
    let fresh = tell_with_outcome(&mut alice, "bob", json!("fresh"), "stored").await;
    expect_quiet_for(&mut alice, Duration::from_millis(150)).await;
    let mut bob = connect(&server, "bob").await;
    assert_eq!(bob.expect_reliable("direct_message").await["id"], fresh.as_str());
    for id in &ids {
        let fate = expect_outcome(&server, id, "bob", "expired").await;
        assert_eq!(fate["attempts"], 0, "{fate}");
    }
    let ledger = server.metrics().await.ledger();
    ledger.check();
    assert_eq!((ledger.expired, ledger.here()), (2.0, 1.0), "{ledger:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_old_leaves_the_inbox_though_nobody_comes() {
    let server = hub("storage: {message_ttl: 1s, inbox_max_messages: 1}").await;
    let mut alice = connect(&server, "alice").await;
    let id = tell_with_outcome(&mut alice, "bob", json!(1), "stored").await;
    alice.request_error(reliable("bob", &json!(2)), 4003).await;
    expect_outcome(&server, &id, "bob", "expired").await;
    tell_with_outcome(&mut alice, "bob", json!(2), "stored").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_survives_the_end_of_the_server() {
    let mut server = hub("").await;
    let mut ids = Vec::new();
    for is_killed in [false, true] {
        let mut alice = connect(&server, "alice").await;
        let mut carol = connect(&server, "carol").await;
        for n in 0..3 {
            ids.push((tell_with_outcome(&mut alice, "bob", json!(n), "stored").await, "bob", true));
            let stored = alice.tell("bob", json!(n)).await;
            ids.push((text(&stored["data"]["id"]), "bob", false));
        }
        // On its way, not acknowledged.
        ids.push((tell_with_outcome(&mut alice, "carol", json!(1), "pending").await, "carol", true));
        carol.expect_reliable("direct_message").await;
        if is_killed {
            server.kill().await;
        } else {
            assert_eq!(server.terminate().await, 0);
        }
        server.restart().await;
        let ledger = server.metrics().await.ledger();
        ledger.check();
        assert_eq!(ledger.accepted, 0.0, "{ledger:?}");
        assert_eq!(ledger.recovered, f64::from(u32::try_from(ids.len()).unwrap()), "{ledger:?}");
        for name in ["bob", "carol"] {
            let mut receiver = connect(&server, name).await;
            for (id, _, is_reliable) in ids.iter().filter(|(_, to, _)| *to == name) {
                let delivery = receiver.expect("direct_message").await;
                assert_eq!((&delivery["id"], &delivery["source"]), (&json!(id), &json!("offline")));
                assert_eq!(delivery["require_ack"] == true, *is_reliable, "{delivery}");
            }
            receiver.expect_quiet().await;
            if is_killed {
                let settled: Vec<&str> = ids.iter().filter(|(_, to, _)| *to == name).map(|(id, ..)| &**id).collect();
                receiver.ack(&settled).await;
            }
            receiver.close().await;
            expect_away(&server, name).await;
        }
        // What was plain and is written now is done.
        ids.retain(|(_, _, is_reliable)| *is_reliable);
        eventually("what rests is counted", async || {
            let ledger = server.metrics().await.ledger();
            ledger.check();
            let rest = if is_killed { 0 } else { ids.len() };
            (ledger.stored == f64::from(u32::try_from(rest).unwrap()) && ledger.in_flight == 0.0).then_some(())
        })
        .await;
    }
    // Acknowledged before the end: not there after it.
    assert_eq!(server.terminate().await, 0);
    server.restart().await;
    assert_eq!(server.metrics().await.ledger().recovered, 0.0);
    connect(&server, "bob").await.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_memory_what_waits_does_not_survive() {
    let mut server = hub("storage: {kind: memory}").await;
    let mut alice = connect(&server, "alice").await;
    let id = tell_with_outcome(&mut alice, "bob", json!(1), "stored").await;
    let mut bob = connect(&server, "bob").await;
    assert_eq!(bob.expect_reliable("direct_message").await["id"], id.as_str());
    server.kill().await;
    assert!(!server.dir().join("data").exists(), "it writes nothing");
    server.restart().await;
    connect(&server, "bob").await.expect_quiet().await;
    server.metrics().await.ledger().check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_data_directory_is_where_the_settings_say() {
    let mut server = hub("storage: {path: some/where}").await;
    let mut alice = connect(&server, "alice").await;
    tell_with_outcome(&mut alice, "bob", json!(1), "stored").await;
    assert!(server.dir().join("some/where").read_dir().unwrap().next().is_some());
    assert!(!server.dir().join("data").exists());
    assert_eq!(server.terminate().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_can_be_looked_at() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    for n in 0..3 {
        tell_with_outcome(&mut alice, "bob", json!(n), "stored").await;
    }
    let away = user(&server, "bob").await;
    assert_eq!((&away["user_id"], &away["online"], &away["devices"]), (&json!("bob"), &json!(false), &json!([])));
    assert_eq!(inbox_depth(&away), 3, "{away}");
    let mut bob = connect(&server, "bob").await;
    let got = contents(&mut bob, "direct_message", 3).await;
    assert_eq!(got, [0, 1, 2]);
    let here = user(&server, "bob").await;
    assert_eq!(here["online"], true);
    assert_eq!(here["unacked"], 3, "{here}");
    let nobody = user(&server, "nobody").await;
    assert_eq!((&nobody["online"], inbox_depth(&nobody)), (&json!(false), 0), "{nobody}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_meets_its_receiver_coming_or_going_is_not_lost() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let mut got = Vec::new();
    let mut accepted = Vec::new();
    for round in 0..30 {
        // Bob comes while Alice writes, and goes without a word.
        let (bob, ()) = tokio::join!(connect(&server, "bob"), async {
            for n in 0..5 {
                let data = tell_reliably(&mut alice, "bob", json!([round, n])).await;
                accepted.push(text(&data["id"]));
            }
        });
        let mut bob = bob;
        let first = bob.expect_reliable("direct_message").await;
        got.push(text(&first["id"]));
        bob.ack(&[&text(&first["id"])]).await;
        bob.barrier().await;
        bob.cut();
    }
    expect_away(&server, "bob").await;
    let mut bob = connect(&server, "bob").await;
    while got.len() < accepted.len() {
        let id = text(&bob.expect_reliable("direct_message").await["id"]);
        bob.ack(&[&id]).await;
        got.push(id);
    }
    bob.expect_quiet().await;
    // Each round took the oldest: all of them once, in the order of acceptance.
    assert_eq!(got, accepted);
}
