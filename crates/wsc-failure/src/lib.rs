//! Tells handlers which messages did not arrive, and why.
//!
//! A program implements any of five handler traits, one for each kind of failure (protocol §4), and adds them to a
//! [`FailureHandlerRegistry`]. The node hands every failure to the [`FailureRouter`], which counts it, keeps a short
//! record of it and has the handlers called by a bounded pool of workers: with a time limit, a panic in one hurting
//! nobody, and never on the path that messages take. [`SendFailureHandler`]s are the general ones: they are also
//! called for a failure that no handler of its own kind is there for. [`LoggingHandler`] is built in.
//!
//! It deliberately does not know who failed to send, whether the send was tried again, or where a message rests:
//! a failure comes here when it is final.
//!
//! ```
//! use std::sync::Arc;
//! use wsc_failure::{FailureEvent, FailureHandlerRegistry, FailureRouter, UserOfflineHandler};
//! use wsc_protocol::{FailureKind, FailureReason, HubMessage, Id};
//!
//! struct Remember(tokio::sync::mpsc::UnboundedSender<String>);
//!
//! #[async_trait::async_trait]
//! impl UserOfflineHandler for Remember {
//!     async fn handle_user_offline(&self, _message: &Arc<HubMessage>, user_id: &Id, _error: &str) {
//!         let _ = self.0.send(user_id.to_string());
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let message = Arc::new(HubMessage::new(Default::default(), "user_message", "system", serde_json::value::RawValue::NULL, 0));
//! let registry = FailureHandlerRegistry::default();
//! let (missed, mut users) = tokio::sync::mpsc::unbounded_channel();
//! registry.add_user_offline_handler(Remember(missed));
//!
//! let router = FailureRouter::new(registry, Default::default());
//! router.route(FailureEvent::new(message, Id::new("bob")?, FailureReason::UserOffline, "bob is away"));
//! assert_eq!(users.recv().await.as_deref(), Some("bob"));
//! assert_eq!(router.stats().of_kind(FailureKind::UserOffline), 1);
//! router.shutdown().await;
//! # Ok(()) }
//! ```
//!
//! # Cargo features
//!
//! None.

mod event;
mod handler;
mod logging;
mod registry;
mod router;
mod stats;

pub use event::{FailureEvent, FailureRecord, QueueType, TimeoutType};
pub use handler::{
    AnyFailureHandler, ConnectionErrorHandler, QueueFullHandler, SendFailureHandler, TimeoutHandler, UserOfflineHandler,
};
pub use logging::LoggingHandler;
pub use registry::{FailureHandlerRegistry, HandlerId, HandlerType};
pub use router::{FailureRouter, FailureRouterConfig, Routed, Shutdown};
pub use stats::{CallEnd, FailureStats, HandlerCall, HandlerStats};
