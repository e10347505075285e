//! Tells observers what happens in a hub.
//!
//! An [`EventBus`] carries the events of protocol §4 from the node to whoever [registered](EventBus::register):
//! callbacks of the embedding program, metrics, webhooks. Each observer has a bounded queue and a task of its own, so
//! it sees events in the order in which they were published, and neither its slowness nor its panics reach anybody
//! else. Where its queue is full, events are dropped and counted. While nobody listens to a type, publishing it costs
//! one load ([`EventBus::wants`]) and nothing is built.
//!
//! [`CallbackManager`] is the same bus under the names of go-wsc. An [`EventRing`] is no part of the bus: it keeps, in a
//! fixed space, what happened on each connection lately, for whoever asks why one behaves as it does.
//!
//! It deliberately does not know what causes events or what observers do with them. Observers watch: nothing they do
//! changes the outcome of a message.
//!
//! ```
//! use wsc_events::{EventBus, EventFilter};
//! use wsc_protocol::{Event, EventType};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let bus = EventBus::default();
//! let (seen, mut names) = tokio::sync::mpsc::unbounded_channel();
//! let id = bus.register_sync("hub.*".parse()?, move |event: &Event| {
//!     let _ = seen.send(event.event_type().as_str());
//! });
//!
//! assert!(bus.wants(EventType::HubStarted) && !bus.wants(EventType::RoomCreated));
//! bus.publish_with(EventType::HubStarted, || Event::HubStarted { node_id: "n1".into() });
//! assert_eq!(names.recv().await, Some("hub.started"));
//!
//! assert!(bus.unregister(id));
//! bus.shutdown().await;
//! # Ok(()) }
//! ```
//!
//! # Cargo features
//!
//! - `webhook`: `Webhooks` posts events to a URL, signed and in order, and keeps them in an outbox until they were taken.
//! - `webhook-client`: `HttpWebhookClient`, which carries them over the network.

mod bus;
mod filter;
mod observer;
mod span;
mod stats;
mod subscriber;

mod callback;
mod ring;

#[cfg(feature = "webhook")]
mod webhook;

pub use bus::{EventBus, EventBusConfig, Shutdown};
pub use callback::{CallbackDebug, CallbackId, CallbackManager, CallbackOutcome, DebugInfo, EventDebug, RunsDebug};
pub use filter::{EventFilter, UnknownEvent};
pub use observer::{EventObserver, Published};
pub use ring::{ConnectionEvent, EventRing, EventRingConfig, RingEntry, TooManyTraces};
pub use span::{Span, SpanSink};
pub use stats::{EventStats, ObserverRun, SubscriptionStats};
pub use subscriber::SubscriptionId;
#[cfg(feature = "webhook-client")]
pub use webhook::HttpWebhookClient;
#[cfg(feature = "webhook")]
pub use webhook::{
    DeadLetter, DeadPage, InvalidWebhook, MemoryOutbox, OutboxChange, OutboxError, OutboxStore, Shelf, TraceOf,
    WebhookAnswer, WebhookBreaker, WebhookClient, WebhookConfig, WebhookError, WebhookHooks, WebhookOutcome,
    WebhookRequest, WebhookStartError, WebhookStats, Webhooks,
};
