//! The bus under the names of go-wsc.

use std::{fmt, sync::Arc, time::Duration};

use futures_util::FutureExt;
use serde::Serialize;
use wsc_protocol::{Event, EventType};

use crate::{
    EventBus, EventFilter, EventStats, Published, SubscriptionId, SubscriptionStats, UnknownEvent, observer::Observer,
};

/// Names one registered callback.
pub type CallbackId = SubscriptionId;

/// Registers callbacks by pattern. It is a face of an [`EventBus`], with the words that users of go-wsc know: what holds
/// for the bus's observers holds for callbacks, and each sees what the other publishes.
///
/// A callback may come back with an error, which is counted and logged.
///
/// ```
/// use wsc_events::CallbackManager;
/// use wsc_protocol::{Event, EventType};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let callbacks = CallbackManager::default();
/// let (seen, mut names) = tokio::sync::mpsc::unbounded_channel();
/// // A pattern, or a type.
/// callbacks.register_callback("hub.*", move |event: &Event| seen.send(event.event_type().as_str()))?;
/// let id = callbacks.register_async_callback(EventType::RoomCreated, |published| async move {
///     println!("at {}: {:?}", published.timestamp, published.event);
/// })?;
///
/// callbacks.trigger_callback(Event::HubStarted { node_id: "n1".to_owned() });
/// assert_eq!(names.recv().await, Some("hub.started"));
/// assert!(callbacks.unregister_callback(id));
/// assert_eq!(callbacks.list().len(), 1);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
pub struct CallbackManager {
    bus: EventBus,
}

impl CallbackManager {
    /// Callbacks of this bus.
    pub fn new(bus: EventBus) -> Self {
        Self { bus }
    }

    /// Has a function called with the events of a pattern (`client.connected`, `failure.*`, `*`), of an [`EventType`]
    /// or of an [`EventFilter`] from now on.
    ///
    /// It must not block: it has a thread of the runtime for as long as it runs. It gives back nothing, or a `Result`.
    ///
    /// # Errors
    ///
    /// The pattern names no event.
    ///
    /// # Panics
    ///
    /// Panics outside a Tokio runtime: the callback's task is spawned here.
    pub fn register_callback<P, R>(
        &self,
        pattern: P,
        mut callback: impl FnMut(&Event) -> R + Send + 'static,
    ) -> Result<CallbackId, UnknownEvent>
    where
        P: TryInto<EventFilter, Error: Into<UnknownEvent>>,
        R: CallbackOutcome,
    {
        let filter = pattern.try_into().map_err(Into::into)?;
        Ok(self.bus.add(filter, Observer::Sync(Box::new(move |event| callback(event).into_result()))))
    }

    /// Has an async function called with the events of a pattern, of an [`EventType`] or of an [`EventFilter`] from now
    /// on. While it runs, later events wait in its bounded queue. It gives back nothing, or a `Result`.
    ///
    /// # Errors
    ///
    /// The pattern names no event.
    ///
    /// # Panics
    ///
    /// Panics outside a Tokio runtime: the callback's task is spawned here.
    pub fn register_async_callback<P, F>(
        &self,
        pattern: P,
        mut callback: impl FnMut(Arc<Published>) -> F + Send + 'static,
    ) -> Result<CallbackId, UnknownEvent>
    where
        P: TryInto<EventFilter, Error: Into<UnknownEvent>>,
        F: Future<Output: CallbackOutcome> + Send + 'static,
    {
        let filter = pattern.try_into().map_err(Into::into)?;
        let callback = move |published| callback(published).map(CallbackOutcome::into_result).boxed();
        Ok(self.bus.add(filter, Observer::Callback(Box::new(callback))))
    }

    /// Removes a callback; as [`EventBus::unregister`].
    pub fn unregister_callback(&self, id: CallbackId) -> bool {
        self.bus.unregister(id)
    }

    /// Publishes an event; as [`EventBus::publish`].
    pub fn trigger_callback(&self, event: Event) {
        self.bus.publish(event);
    }

    /// The callbacks of this moment, oldest first, observers of the bus included.
    pub fn list(&self) -> Vec<SubscriptionStats> {
        self.bus.subscriptions()
    }

    /// What there is to know about callbacks, for people who look for a fault.
    pub fn debug_info(&self) -> DebugInfo {
        DebugInfo::of(&self.bus)
    }

    /// The bus.
    pub fn bus(&self) -> &EventBus {
        &self.bus
    }
}

/// What a callback may give back: nothing, or a `Result` whose error can be shown.
pub trait CallbackOutcome {
    /// Whether it went well, else why not.
    ///
    /// # Errors
    ///
    /// What the callback reported.
    fn into_result(self) -> Result<(), String>;
}

impl CallbackOutcome for () {
    fn into_result(self) -> Result<(), String> {
        Ok(())
    }
}

impl<E: fmt::Display> CallbackOutcome for Result<(), E> {
    fn into_result(self) -> Result<(), String> {
        self.map_err(|error| error.to_string())
    }
}

/// Callbacks and events at one moment, to be shown as JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DebugInfo {
    /// How many callbacks are registered.
    pub registered: usize,
    /// The callbacks, oldest first.
    pub callbacks: Vec<CallbackDebug>,
    /// The event types about which a callback was told, or should have been.
    pub events: Vec<EventDebug>,
}

/// One callback.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CallbackDebug {
    /// Its number.
    pub id: u64,
    /// What it asked for.
    pub events: Vec<EventType>,
    /// Events waiting for it now.
    pub queued: usize,
    /// What became of the others.
    #[serde(flatten)]
    pub runs: RunsDebug,
}

/// One event type.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct EventDebug {
    /// The type.
    pub event_type: EventType,
    /// What became of its events.
    #[serde(flatten)]
    pub runs: RunsDebug,
}

/// Runs of callbacks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RunsDebug {
    /// How many there were.
    pub executions: u64,
    /// How many of them panicked or came back with an error.
    pub errors: u64,
    /// How many there were not, because the queue was full or the bus went down first.
    pub drops: u64,
    /// How long they took together, in milliseconds.
    pub total_duration_ms: f64,
    /// How long one took on average, in milliseconds; 0 before the first.
    pub mean_duration_ms: f64,
}

impl DebugInfo {
    /// The state of a bus.
    pub fn of(bus: &EventBus) -> Self {
        let callbacks: Vec<_> = bus.subscriptions().into_iter().map(CallbackDebug::from).collect();
        let was_told = |stats: &EventStats| stats.executions > 0 || stats.drops > 0;
        let events = bus.stats().into_iter().filter(was_told).map(EventDebug::from).collect();
        Self { registered: callbacks.len(), callbacks, events }
    }
}

impl From<SubscriptionStats> for CallbackDebug {
    fn from(stats: SubscriptionStats) -> Self {
        let SubscriptionStats { id, filter, queued, executions, errors, drops, duration } = stats;
        let runs = RunsDebug::new(executions, errors, drops, duration);
        Self { id: id.0, events: filter.types().collect(), queued, runs }
    }
}

impl From<EventStats> for EventDebug {
    fn from(stats: EventStats) -> Self {
        let EventStats { event_type, executions, errors, drops, duration } = stats;
        Self { event_type, runs: RunsDebug::new(executions, errors, drops, duration) }
    }
}

impl RunsDebug {
    fn new(executions: u64, errors: u64, drops: u64, duration: Duration) -> Self {
        let total_duration_ms = duration.as_secs_f64() * 1e3;
        let mean_duration_ms = if executions == 0 { 0.0 } else { total_duration_ms / executions as f64 };
        Self { executions, errors, drops, total_duration_ms, mean_duration_ms }
    }
}
