//! A client of wsc-hub.
//!
//! It stays connected: after a cut it comes back with full jitter, as the hub's close codes tell it to, and joins its
//! rooms again. Requests are typed and have replies; everything else comes as [`Event`]s, in order.
//!
//! ```no_run
//! use serde_json::json;
//! use wsc_client::{Client, Event};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let (client, mut events) = Client::builder("ws://127.0.0.1:8080/ws").user_id("alice").connect().await?;
//!
//! client.join_room("lobby").await?;
//! let accepted = client.room_message("lobby", &json!({"text": "hello"})).await?;
//! println!("for {} member(s)", accepted.recipients);
//!
//! while let Some(event) = events.next().await {
//!     match event {
//!         Event::Delivery(delivery) => println!("{}: {}", delivery.sender_id, delivery.content),
//!         Event::Disconnected { cause, retry_in, .. } => println!("{cause}, again in {retry_in:?}"),
//!         _ => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Nothing that is acknowledged gets lost or comes twice on the way: messages with
//! [`require_ack`](Request::require_ack) are repeated under one key until the hub has accepted them, and copies of
//! deliveries are not shown, across cuts and across restarts of the hub.
//!
//! [`Client`] is a handle that is cheap to clone, [`Events`] what it is told. One task behind them owns the
//! connection; it ends with [`Client::close`], or when all handles are dropped.
//!
//! What it deliberately does not know: what is in a message ([`Delivery::content`] reads it as any type), how a hub
//! stores or routes, and where an application keeps what must survive its own restart.
//!
//! # Secrets
//!
//! Tokens travel in a header and are shown by no `Debug` and no log line of this crate. The WebSocket library below
//! writes whole handshakes to its log at level *trace*: leave the target `tungstenite` out of such a log.
//!
//! # Cargo features
//!
//! * `tls`: `wss://` URLs, with rustls, aws-lc-rs and the certificates of the system. Off by default.

mod backoff;
mod builder;
mod cause;
mod client;
mod connect;
mod driver;
mod error;
mod event;
mod liveness;
mod outbox;
mod pending;
mod queue;
mod reply;
mod request;
mod rooms;
mod seen;
mod settlements;
mod socket;
#[cfg(feature = "tls")]
mod tls;
mod token;
mod wire;

pub use backoff::Backoff;
pub use builder::{BuildError, Builder, ConnectError};
pub use cause::{Cause, Closing};
pub use client::{Client, Closed, Events};
pub use error::{HubError, RequestError};
pub use event::{Connected, Delivery, DeliveryKind, Event, Gap, Other, RoomNotice};
pub use reply::{
    Authenticated, DirectAccepted, Member, Members, MessageStatus, Pong, RecipientStatus, Reply, RoomAccepted,
};
pub use request::{Request, Resend, RoomOptions};
// Part of what a user of this crate handles, and of no other crate that they would have to depend on.
pub use wsc_protocol::{CloseCode, ErrorCode, FailureReason, Outcome, Priority, UserType};

/// The snippets of the user's page, so that they cannot rot.
#[cfg(doctest)]
mod guide {
    #[doc = include_str!("../../../docs/client.md")]
    struct Page;
}
