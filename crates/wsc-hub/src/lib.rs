//! The WebSocket hub where every message has a known fate.
//!
//! A program embeds a [`Hub`], lets clients connect, and sends to users, rooms or everybody; each send says what
//! became of the message. The same hub runs as a server of its own: the `wsc` command of `wsc-server`.
//!
//! This crate is what programs depend on. It gathers the crates below it and puts them together as settings ask; each of
//! them can be used alone.
//!
//! # A hub in ten lines
//!
//! ```no_run
//! use wsc_hub::{Context, ErrorReply, Hub};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let hub = Hub::builder()
//!         .on("shout", |_: Context, text: String| async move { Ok::<_, ErrorReply>(text.to_uppercase()) })
//!         .start()
//!         .await?;
//!     let address = hub.listen("127.0.0.1:8080".parse()?)?;
//!     println!("try http://{address}/");
//!     tokio::signal::ctrl_c().await?;
//!     hub.shutdown().await;
//!     Ok(())
//! }
//! ```
//!
//! # Inside an axum application
//!
//! [`Hub::router`] has all routes of the hub; mount it beside your own. The upgrade goes through the same transport
//! as with [`Hub::listen`].
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use axum::{Router, routing::get};
//! use wsc_hub::Hub;
//!
//! let hub = Hub::builder().start().await?;
//! let app = Router::new().route("/hello", get(async || "hello")).merge(hub.router());
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
//! axum::serve(listener, app.into_make_service_with_connect_info::<std::net::SocketAddr>()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Sending
//!
//! ```no_run
//! # async fn send(hub: &wsc_hub::Hub) -> Result<(), wsc_hub::ErrorReply> {
//! let receipt = hub.send_to_user("alice", serde_json::json!({ "text": "your order has shipped" })).await?;
//! println!("{} is {}", receipt.id, receipt.fate.outcome.as_str());
//! let (_, members) = hub.send_to_room("support", "a customer waits").await?;
//! println!("{members} agents were told");
//! hub.broadcast("maintenance at noon", None)?;
//! # Ok(())
//! # }
//! ```
//!
//! # Watching
//!
//! ```no_run
//! # fn watch(hub: &wsc_hub::Hub) -> Result<(), Box<dyn std::error::Error>> {
//! let callbacks = hub.callbacks();
//! let id = callbacks.register_callback("user.*", |event: &wsc_hub::Event| println!("{event:?}"))?;
//! assert!(callbacks.unregister_callback(id));
//! # Ok(())
//! # }
//! ```
//!
//! # Cargo features
//!
//! All but `jwt` alone are on by default; without them [`assemble`] refuses settings that ask for what is missing.
//!
//! - `embedded`: [`EmbeddedInbox`], the inbox in a file.
//! - `jwt`: signed tokens, `auth.*`; `jwks`: and their keys from an identity provider, `auth.jwks_url`.
//! - `webhook`: events are posted, `callbacks.*`.
//! - `watch`: [`follow_settings`], settings that are applied when their file changes.

pub use wsc_auth as auth;
pub use wsc_cluster as cluster;
pub use wsc_config as config;
pub use wsc_delivery as delivery;
pub use wsc_events as events;
pub use wsc_failure as failure;
pub use wsc_protocol as protocol;
pub use wsc_store as store;
pub use wsc_transport as transport;

mod assemble;
#[cfg(feature = "watch")]
mod follow;
#[cfg(feature = "jwt")]
mod keys;
mod storage;

pub use assemble::{AssembleError, Assembled, assemble, check_settings};
/// What the traits of this crate are implemented with.
pub use async_trait::async_trait;
#[cfg(feature = "watch")]
pub use follow::follow_settings;
#[cfg(feature = "jwt")]
pub use keys::{KeyError, jwt_config};
pub use storage::{Found, Storage, StorageError, open_storage};
pub use wsc_config::Settings;
pub use wsc_delivery::{SendAttempt, SendResult};
pub use wsc_events::{CallbackId, CallbackManager, DebugInfo, EventBus, EventFilter, EventObserver};
pub use wsc_failure::{
    AlertSink, ConnectionErrorHandler, FailureAlert, FailureEvent, FailureHandlerRegistry, FailureRouter, HandlerId,
    QueueFullHandler, SendFailureHandler, TimeoutHandler, UserOfflineHandler,
};
pub use wsc_node::{
    Apply, Context, Hub, HubBuilder, ListenError, MessageFate, MessageHandler, PairFate, ReloadError, Reloadable,
    Reloaded, RoomInfo, RoomOptions, SendOptions, SendReceipt, StartError,
};
pub use wsc_protocol::{
    CloseCode, DisconnectReason, ErrorCode, ErrorReply, Event, EventType, FailureReason, Fate, HubMessage, Id, Outcome,
    Priority, UserType,
};
#[cfg(feature = "embedded")]
pub use wsc_store::EmbeddedInbox;
pub use wsc_store::{InboxStore, MemoryInbox};

/// The snippets of the guide and of the README, so that they cannot rot.
#[cfg(doctest)]
mod guide {
    #[doc = include_str!("../../../docs/embedding.md")]
    struct Embedding;
    #[doc = include_str!("../../../README.md")]
    struct Readme;
}
