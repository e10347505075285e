//! A program that pushes to users, rooms and everybody, and looks at what became of each message.
//!
//! ```sh
//! cargo run -p wsc-examples --example push
//! ```

#![expect(clippy::print_stdout, reason = "an example talks to its reader")]

use serde_json::json;
use wsc_examples::{Client, Error};
use wsc_hub::{FailureReason, Hub, Outcome, RoomOptions};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let hub = Hub::builder().start()?;
    let address = hub.listen("127.0.0.1:0".parse()?)?;
    hub.events().register_sync("user.*".parse()?, |event| println!("event: {event:?}"));

    let mut alice = Client::connect(address, "alice").await?;

    // To a user, on all devices.
    let receipt = hub.send_to_user("alice", json!({"order": 7, "state": "shipped"}))?;
    println!("{} was {}", receipt.id, receipt.fate.outcome.as_str());
    assert_eq!(receipt.fate.outcome, Outcome::Sent);
    assert_eq!(alice.expect("user_message").await?["data"]["content"]["order"], 7);

    // To somebody who is away: it fails at once, and says why.
    let receipt = hub.send_to_user("bob", "are you there?")?;
    println!("bob: {} because {:?}", receipt.fate.outcome.as_str(), receipt.fate.reason);
    assert_eq!(receipt.fate.reason, Some(FailureReason::UserOffline));

    // To a room that the program fills.
    hub.create_room("orders", RoomOptions::default())?;
    hub.join_room("orders", "alice")?;
    alice.expect("room_joined").await?;
    let (id, members) = hub.send_to_room("orders", "new prices")?;
    println!("{id} went to {members} member(s)");
    assert_eq!(alice.expect("room_message").await?["data"]["content"], "new prices");

    // To everybody.
    let (_, connections) = hub.broadcast("maintenance at noon", None)?;
    println!("broadcast to {connections} connection(s)");
    assert_eq!(alice.expect("broadcast").await?["data"]["content"], "maintenance at noon");

    hub.shutdown().await;
    Ok(())
}
