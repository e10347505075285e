//! A chat room between two clients of a hub that this program runs.
//!
//! ```sh
//! cargo run -p wsc-examples --example chat
//! ```

#![expect(clippy::print_stdout, reason = "an example talks to its reader")]

use serde_json::json;
use wsc_examples::{Client, Error};
use wsc_hub::Hub;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let hub = Hub::builder().start()?;
    let address = hub.listen("127.0.0.1:0".parse()?)?;

    let mut alice = Client::connect(address, "alice").await?;
    let mut bob = Client::connect(address, "bob").await?;
    for client in [&mut alice, &mut bob] {
        client.send(json!({"message_type": "join_room", "data": {"room_id": "garden"}})).await?;
        client.expect("room_joined").await?;
    }

    alice
        .send(json!({
            "message_type": "room_message",
            "message_id": 1,
            "data": {"room_id": "garden", "content": {"text": "hello, everybody"}},
        }))
        .await?;
    // The sender is told how many it was for, and gets no copy.
    let accepted = alice.expect("accepted").await?;
    println!("alice: accepted for {} member(s)", accepted["data"]["recipients"]);
    assert_eq!(accepted["data"]["recipients"], 1);

    let message = bob.expect("room_message").await?;
    println!("bob hears {} say {}", message["data"]["sender_id"], message["data"]["content"]["text"]);
    assert_eq!(message["data"]["sender_id"], "alice");

    bob.send(json!({
        "message_type": "direct_message",
        "message_id": 2,
        "data": {"target_id": "alice", "content": "and hello to you"},
    }))
    .await?;
    let message = alice.expect("direct_message").await?;
    println!("alice reads {}", message["data"]["content"]);
    let accepted = bob.expect("accepted").await?;
    println!("bob: {}", accepted["data"]["outcome"]);
    assert_eq!(accepted["data"]["outcome"], "sent");

    hub.shutdown().await;
    Ok(())
}
