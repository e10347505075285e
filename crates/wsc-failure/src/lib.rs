//! Tells handlers which messages did not arrive, and why.
//!
//! A program implements any of five handler traits, one for each kind of failure (protocol §4), and adds them to a
//! [`FailureHandlerRegistry`]. The node hands every failure to the [`FailureRouter`], which counts it, keeps a short
//! record of it and has the handlers called by a bounded pool of workers: with a time limit, a panic in one hurting
//! nobody, and never on the path that messages take. [`SendFailureHandler`]s are the general ones: they are also
//! called for a failure that no handler of its own kind is there for. An [`AnyFailureHandler`] sees every failure and
//! takes nobody's place; a [`FailureWatcher`] only counts, but misses nothing.
//!
//! Built in, none of them taking anybody's place:
//!
//! | handler | what it does |
//! |---|---|
//! | [`LoggingHandler`] | one log line for each failure |
//! | [`AlertHandler`] (a watcher) | one alert when too many failures of a kind fall within a time |
//! | [`StoreHandler`] | gives the message to a [`FailureSink`], such as an inbox, behind a [`Breaker`] |
//! | [`BatchingHandler`] | hands failures on in batches, behind a [`Breaker`] |
//! | [`ReconnectTracker`] | remembers whose connections fail, and how fast they come back |
//!
//! There is none for metrics: a handler would miss what its pool has no room for. The router counts every failure
//! ([`FailureRouter::stats`]) and tells an observer about every call ([`FailureRouter::observed`]).
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
mod registry;
mod router;
mod stats;

mod breaker;
mod sink;

mod alert;
mod batching;
mod logging;
mod reconnect;
mod store;

pub use alert::{AlertConfig, AlertHandler, AlertSink, FailureAlert};
pub use batching::{BatchConfig, BatchStats, BatchingHandler};
pub use breaker::{Breaker, BreakerConfig, BreakerError, BreakerState, Permit};
pub use event::{FailureEvent, FailureRecord, QueueType, TimeoutType};
pub use handler::{
    AnyFailureHandler, ConnectionErrorHandler, FailureWatcher, QueueFullHandler, SendFailureHandler, TimeoutHandler,
    UserOfflineHandler,
};
pub use logging::LoggingHandler;
pub use reconnect::{ReconnectStats, ReconnectTracker};
pub use registry::{FailureHandlerRegistry, HandlerId, HandlerType};
pub use router::{FailureRouter, FailureRouterConfig, Routed, Shutdown};
pub use sink::{BatchSink, FailureSink, SinkError};
pub use stats::{CallEnd, FailureStats, HandlerCall, HandlerStats};
pub use store::{StoreHandler, StoreStats};
