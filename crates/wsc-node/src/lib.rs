//! One node of wsc-hub.
//!
//! It ties the layers together: who is connected ([`Hub`]), in which rooms, where a message goes, what a request
//! means, and what became of each message. It drives the layers with the real clock and serves the HTTP API.
//!
//! It deliberately does not know concrete drivers (stores, brokers) or the command line. Programs depend on `wsc-hub`, which re-exports this crate beside the others.
//!
//! ```no_run
//! use wsc_node::{Context, ErrorReply, Hub};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let hub = Hub::builder()
//!     .on("shout", |_: Context, text: String| async move { Ok::<_, ErrorReply>(text.to_uppercase()) })
//!     .start()
//!     .await?;
//! hub.listen("127.0.0.1:8080".parse()?)?;
//! hub.send_to_user("alice", "hello").await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Cargo features
//!
//! None.

mod admission;
mod api;
mod builder;
mod context;
mod core;
mod dispatch;
mod encode;
mod exposure;
mod failures;
mod grant;
mod handlers;
mod hub;
mod ledger;
mod limits;
mod mail;
mod metrics;
mod presence;
mod reload;
mod retry;
mod rooms;
mod routing;
mod service;
mod session;
mod settings;
mod tokens;
mod trace;
mod traced;
mod users;
mod webhooks;

pub use builder::{HubBuilder, StartError, check_settings};
pub use context::{Context, MessageHandler};
pub use hub::{Hub, ListenError};
pub use mail::{MessageFate, PairFate};
pub use reload::{Apply, ReloadError, Reloadable, Reloaded};
pub use rooms::{RoomInfo, RoomOptions};
pub use routing::{SendOptions, SendReceipt};
pub use settings::inbox_limits;
pub use wsc_protocol::ErrorReply;
