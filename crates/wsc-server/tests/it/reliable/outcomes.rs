//! What a sender can ask for afterwards, and what it can wait for.

use serde_json::{Value, json};
use wsc_testkit::{Client, HttpResponse, ServerProcess, eventually};

use super::{connect, expect_outcome, fate_in, leave, take, tell_with_outcome, text};
use crate::support::{assert_fields, assert_refused, hub};

async fn status(client: &mut Client, id: &str) -> Value {
    let request = json!({"message_type": "message_status", "data": {"id": id}});
    let reply = client.request_ok(request, "message_status").await;
    assert_eq!(reply["data"]["id"], id, "{reply}");
    reply["data"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_can_ask_what_became_of_its_message() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    let id = tell_with_outcome(&mut alice, "bob", json!(1), "pending").await;
    bob.expect_reliable("direct_message").await;
    let told = status(&mut alice, &id).await;
    assert_fields(&told, &["id", "recipients"]);
    let pending = json!([{"user_id": "bob", "outcome": "pending", "attempts": 1}]);
    assert_eq!(told["recipients"], pending);
    bob.ack(&[&id]).await;
    expect_outcome(&server, &id, "bob", "acked").await;
    // Another device of the sender may ask as well.
    let mut laptop = connect(&server, "alice").await;
    assert_eq!(fate_in(&status(&mut laptop, &id).await, "bob")["outcome"], "acked");

    let plain = alice.tell("carol", json!(1)).await;
    let id = text(&plain["data"]["id"]);
    assert_eq!(fate_in(&status(&mut alice, &id).await, "carol")["outcome"], "stored");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_else_is_told() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    let id = tell_with_outcome(&mut alice, "bob", json!(1), "pending").await;
    bob.expect_reliable("direct_message").await;
    let unknown = "01890000-0000-7000-8000-000000000000";
    let mut texts = Vec::new();
    for (client, id) in [(&mut bob, id.as_str()), (&mut alice, unknown)] {
        let request = json!({"message_type": "message_status", "data": {"id": id}});
        let reply = client.request(request).await;
        assert_eq!(reply["message_type"], "error", "{reply}");
        texts.push(json!([reply["data"]["code"], reply["data"]["message"]]));
    }
    // Not even whether it exists.
    assert_eq!(texts[0], texts[1]);
    for data in [json!({}), json!({"id": 7}), json!([])] {
        alice.request_error(json!({"message_type": "message_status", "data": data}), 1001).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_can_ask_about_every_message() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let id = tell_with_outcome(&mut alice, "bob", json!(1), "stored").await;
    let answer = server.get(&format!("/api/messages/{id}")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let expected = json!([{"user_id": "bob", "outcome": "stored", "attempts": 0}]);
    assert_eq!(answer.json()["recipients"], expected);
    let pushed = server.post("/api/users/carol/messages", &json!({"content": 1})).await.json();
    let id = text(&pushed["id"]);
    assert_eq!(super::fate(&server, &id, "carol").await["outcome"], "stored");
    assert_eq!(server.get("/api/messages/01890000-0000-7000-8000-000000000000").await.status, 404);
    assert!(matches!(server.get("/api/messages/nonsense").await.status, 400 | 404));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fates_are_kept_up_to_a_number() {
    let server = hub("outcomes: {max: 5}").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    let mut ids = Vec::new();
    for n in 0..10 {
        ids.push(tell_with_outcome(&mut alice, "bob", json!(n), "pending").await);
        assert_eq!(take(&mut bob).await, n);
    }
    eventually("the oldest is forgotten", async || {
        (server.get(&format!("/api/messages/{}", ids[0])).await.status == 404).then_some(())
    })
    .await;
    expect_outcome(&server, &ids[9], "bob", "acked").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fates_are_kept_for_a_time() {
    let server = hub("outcomes: {retention: 1s}").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    let id = tell_with_outcome(&mut alice, "bob", json!(1), "pending").await;
    take(&mut bob).await;
    expect_outcome(&server, &id, "bob", "acked").await;
    eventually("it is forgotten", async || {
        (server.get(&format!("/api/messages/{id}")).await.status == 404).then_some(())
    })
    .await;
}

/// Pushes to this user and waits for the end.
async fn push_and_wait(server: &ServerProcess, user: &str, require_ack: bool) -> HttpResponse {
    let body = json!({"content": 1, "require_ack": require_ack, "wait": "ack"});
    server.post(&format!("/api/users/{user}/messages"), &body).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_can_wait_for_the_ack() {
    let server = hub("").await;
    let mut bob = connect(&server, "bob").await;
    for verdict in ["ack", "nack"] {
        let (answer, ()) = tokio::join!(push_and_wait(&server, "bob", true), async {
            let delivery = bob.expect_reliable("user_message").await;
            bob.send(&json!({"message_type": verdict, "data": {"id": delivery["id"]}})).await;
        });
        assert_eq!(answer.status, 200, "{answer:?}");
        let result = answer.json();
        let (outcome, success) = if verdict == "ack" { ("acked", true) } else { ("rejected", false) };
        assert_eq!((&result["outcome"], &result["success"]), (&json!(outcome), &json!(success)), "{result}");
        assert_eq!(super::fate(&server, &text(&result["id"]), "bob").await["outcome"], outcome);
        let attempts = result["attempts"].as_array().unwrap_or_else(|| panic!("no attempts in {result}"));
        assert_eq!(attempts.len(), 1, "{result}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_ends_when_the_message_rests() {
    let server = hub("").await;
    let answer = push_and_wait(&server, "bob", true).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["outcome"], "stored");
    // Also when it comes to rest while somebody waits.
    let mut carol = connect(&server, "carol").await;
    let (answer, ()) = tokio::join!(push_and_wait(&server, "carol", true), async {
        carol.expect_reliable("user_message").await;
        carol.cut();
    });
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["outcome"], "stored");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_for_a_plain_message_ends_with_sent() {
    let server = hub("").await;
    let mut bob = connect(&server, "bob").await;
    let answer = push_and_wait(&server, "bob", false).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["outcome"], "sent");
    bob.expect("user_message").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_has_its_limit_in_time() {
    let server = hub("http: {wait_timeout: 200ms}").await;
    let mut bob = connect(&server, "bob").await;
    let answer = push_and_wait(&server, "bob", true).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let answer = answer.json();
    assert_eq!(answer["outcome"], "pending", "{answer}");
    let delivery = bob.expect_reliable("user_message").await;
    assert_eq!(delivery["id"], answer["id"]);
    bob.ack(&[&text(&answer["id"])]).await;
    expect_outcome(&server, &text(&answer["id"]), "bob", "acked").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_so_many_may_wait() {
    let server = hub("http: {max_waiting: 1}").await;
    let mut bob = connect(&server, "bob").await;
    let (answer, ()) = tokio::join!(push_and_wait(&server, "bob", true), async {
        // The first waits: its message is here and not acknowledged.
        let delivery = bob.expect_reliable("user_message").await;
        assert_refused(&push_and_wait(&server, "bob", true).await, 503, 4003);
        // Who does not wait is not concerned.
        let body = json!({"content": 2});
        assert_eq!(server.post("/api/users/bob/messages", &body).await.status, 202);
        bob.ack(&[&text(&delivery["id"])]).await;
    });
    assert_eq!(answer.json()["outcome"], "acked", "{answer:?}");
    // Refused before acceptance: it is not sent.
    assert_eq!(bob.expect("user_message").await["data"]["content"], 2);
    bob.expect_quiet().await;
    leave(&server, bob).await;
    assert_eq!(push_and_wait(&server, "bob", true).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_can_wait_for_an_ack_and_nothing_else() {
    let server = hub("").await;
    let mut bob = connect(&server, "bob").await;
    for wait in [json!("sent"), json!(""), json!(true)] {
        let answer = server.post("/api/users/bob/messages", &json!({"content": 1, "wait": wait})).await;
        assert_refused(&answer, 400, 1001);
    }
    bob.expect_quiet().await;
}
