//! A program that pushes to users, rooms and everybody, and looks at what became of each message.
//!
//! ```sh
//! cargo run -p wsc-examples --example push
//! ```

#![expect(clippy::print_stdout, reason = "an example talks to its reader")]

use serde_json::{Value, json};
use wsc_client::{Client, DeliveryKind, Event, RoomNotice};
use wsc_examples::{Error, next_delivery};
use wsc_hub::{Hub, Outcome, RoomOptions};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let hub = Hub::builder().start().await?;
    let address = hub.listen("127.0.0.1:0".parse()?)?;
    hub.events().register_sync("user.*".parse()?, |event| println!("event: {event:?}"));

    // Who only listens needs no more than the events.
    let (_, mut alice) = Client::builder(format!("ws://{address}/ws")).user_id("alice").connect().await?;

    // To a user, on all devices.
    let receipt = hub.send_to_user("alice", json!({"order": 7, "state": "shipped"})).await?;
    println!("{} was {}", receipt.id, receipt.fate.outcome.as_str());
    assert_eq!(receipt.fate.outcome, Outcome::Sent);
    let message = next_delivery(&mut alice).await?;
    assert_eq!(message.content::<Value>()?["order"], 7);

    // To somebody who is away: it rests in the inbox until he comes.
    let receipt = hub.send_to_user("bob", "are you there?").await?;
    println!("bob's was {}", receipt.fate.outcome.as_str());
    assert_eq!(receipt.fate.outcome, Outcome::Stored);
    let (_, mut bob) = Client::builder(format!("ws://{address}/ws")).user_id("bob").connect().await?;
    let message = next_delivery(&mut bob).await?;
    assert_eq!((message.id, message.offline), (receipt.id.to_string(), true));

    // To a room that the program fills.
    hub.create_room("orders", RoomOptions::default())?;
    hub.join_room("orders", "alice")?;
    assert!(matches!(alice.next().await, Some(Event::Room(RoomNotice::Added { .. }))));
    let (id, members) = hub.send_to_room("orders", "new prices").await?;
    println!("{id} went to {members} member(s)");
    let message = next_delivery(&mut alice).await?;
    assert_eq!((message.room_id(), message.content::<String>()?.as_str()), (Some("orders"), "new prices"));

    // To everybody.
    let (_, connections) = hub.broadcast("maintenance at noon", None)?;
    println!("broadcast to {connections} connection(s)");
    assert_eq!(next_delivery(&mut alice).await?.kind, DeliveryKind::Broadcast);

    hub.shutdown().await;
    Ok(())
}
