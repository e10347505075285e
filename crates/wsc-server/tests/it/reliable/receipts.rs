//! Senders that want to be told.

use serde_json::{Value, json};
use wsc_testkit::Client;

use super::{QUICK, connect, fate_in, reliable, text};
use crate::support::{assert_fields, hub};

/// Sends with a receipt; gives the id.
async fn tell(alice: &mut Client, to: &str, require_ack: bool) -> String {
    let mut message = reliable(to, &json!(1));
    message["require_ack"] = json!(require_ack);
    message["receipt"] = json!(true);
    let accepted = alice.request_ok(message, "accepted").await;
    text(&accepted["data"]["id"])
}

/// Takes the next `message_outcome`, about this message to Bob.
async fn receipt(alice: &mut Client, id: &str) -> Value {
    let receipt = alice.expect("message_outcome").await;
    assert_fields(&receipt["data"], &["id", "recipients"]);
    assert_eq!(receipt["data"]["id"], id, "{receipt}");
    assert_eq!(receipt["data"]["recipients"].as_array().map(Vec::len), Some(1), "{receipt}");
    fate_in(&receipt["data"], "bob")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_end_has_a_receipt_and_only_one() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    for (verdict, outcome) in [("ack", "acked"), ("nack", "rejected")] {
        let id = tell(&mut alice, "bob", true).await;
        alice.expect_quiet().await;
        bob.expect_reliable("direct_message").await;
        for _ in 0..2 {
            bob.send(&json!({"message_type": verdict, "data": {"id": id}})).await;
        }
        let fate = receipt(&mut alice, &id).await;
        assert_eq!((&fate["outcome"], &fate["attempts"]), (&json!(outcome), &json!(1)), "{fate}");
        bob.barrier().await;
        alice.expect_quiet().await;
    }
    let id = tell(&mut alice, "bob", false).await;
    assert_eq!(receipt(&mut alice, &id).await["outcome"], "sent");
    alice.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_rests_has_its_receipt_when_it_is_fetched() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let reliable = tell(&mut alice, "bob", true).await;
    let plain = tell(&mut alice, "bob", false).await;
    alice.expect_quiet().await;
    let mut bob = connect(&server, "bob").await;
    bob.expect_reliable("direct_message").await;
    bob.expect("direct_message").await;
    assert_eq!(receipt(&mut alice, &plain).await["outcome"], "sent");
    bob.ack(&[&reliable]).await;
    assert_eq!(receipt(&mut alice, &reliable).await["outcome"], "acked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_and_expiry_have_receipts() {
    let server = hub(&format!("{QUICK}, enable_offline_ack: false")).await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    let id = tell(&mut alice, "bob", true).await;
    let fate = receipt(&mut alice, &id).await;
    assert_eq!((&fate["outcome"], &fate["reason"]), (&json!("failed"), &json!("ack_timeout")), "{fate}");
    assert_eq!(fate["attempts"], 3, "{fate}");
    for _ in 0..3 {
        bob.expect_reliable("direct_message").await;
    }
    let server = hub("storage: {message_ttl: 1s}").await;
    let mut alice = connect(&server, "alice").await;
    let id = tell(&mut alice, "bob", true).await;
    assert_eq!(receipt(&mut alice, &id).await["outcome"], "expired");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_connections_of_the_sender_are_told_and_nobody_else() {
    let server = hub("").await;
    let mut phone = Client::connect(&server.ws_url_for("alice", "phone")).await;
    let mut laptop = Client::connect(&server.ws_url_for("alice", "laptop")).await;
    let mut bob = connect(&server, "bob").await;
    let id = tell(&mut phone, "bob", true).await;
    assert_eq!(laptop.expect("direct_message").await["data"]["echo"], true);
    super::take(&mut bob).await;
    for device in [&mut phone, &mut laptop] {
        assert_eq!(receipt(device, &id).await["outcome"], "acked");
    }
    bob.expect_quiet().await;
    // Nobody asked for one.
    let accepted = phone.request_ok(reliable("bob", &json!(1)), "accepted").await;
    super::take(&mut bob).await;
    super::expect_outcome(&server, &text(&accepted["data"]["id"]), "bob", "acked").await;
    phone.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receipt_survives_a_kill_of_the_server() {
    let mut server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let id = tell(&mut alice, "bob", true).await;
    server.kill().await;
    server.restart().await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    super::take(&mut bob).await;
    assert_eq!(receipt(&mut alice, &id).await["outcome"], "acked");
}
