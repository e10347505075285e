//! A chat room between two clients of a hub that this program runs.
//!
//! ```sh
//! cargo run -p wsc-examples --example chat
//! ```

#![expect(clippy::print_stdout, reason = "an example talks to its reader")]

use serde::{Deserialize, Serialize};
use wsc_client::{Client, Outcome};
use wsc_examples::{Error, next_delivery};
use wsc_hub::Hub;

/// What people say to each other: any type that serde can write and read.
#[derive(Serialize, Deserialize)]
struct Line {
    text: String,
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let hub = Hub::builder().start().await?;
    let url = format!("ws://{}/ws", hub.listen("127.0.0.1:0".parse()?)?);

    let (alice, mut alice_events) = Client::builder(&url).user_id("alice").connect().await?;
    let (bob, mut bob_events) = Client::builder(&url).user_id("bob").connect().await?;
    alice.join_room("garden").await?;
    bob.join_room("garden").await?;

    // The sender is told how many it was for, and gets no copy.
    let accepted = alice.room_message("garden", &Line { text: "hello, everybody".into() }).await?;
    println!("alice: accepted for {} member(s)", accepted.recipients);
    assert_eq!(accepted.recipients, 1);

    let message = next_delivery(&mut bob_events).await?;
    println!("bob hears {} say {:?}", message.sender_id, message.content::<Line>()?.text);
    assert_eq!((message.sender_id.as_str(), message.room_id()), ("alice", Some("garden")));

    let accepted = bob.direct_message("alice", "and hello to you").await?;
    println!("bob: {}", accepted.outcome.as_str());
    assert_eq!(accepted.outcome, Outcome::Sent);
    println!("alice reads {}", next_delivery(&mut alice_events).await?.content);

    alice.close().await;
    bob.close().await;
    hub.shutdown().await;
    Ok(())
}
