//! What observers cost and what they missed.

use std::{
    fmt,
    panic::AssertUnwindSafe,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use wsc_protocol::EventType;

use crate::{EventFilter, SubscriptionId};

/// What became of the events of one type, since the bus was made, over all observers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EventStats {
    /// The type.
    pub event_type: EventType,
    /// How often an observer was run.
    pub executions: u64,
    /// How many of those runs panicked or came back with an error.
    pub errors: u64,
    /// How often an observer was not told because its queue was full, or the bus went down first.
    pub drops: u64,
    /// How long the runs took together.
    pub duration: Duration,
}

/// One observer's share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscriptionStats {
    /// The observer's registration.
    pub id: SubscriptionId,
    /// What it asked for.
    pub filter: EventFilter,
    /// Events waiting for it now.
    pub queued: usize,
    /// How often it was run.
    pub executions: u64,
    /// How many of those runs panicked or came back with an error.
    pub errors: u64,
    /// How many events did not fit into its queue.
    pub drops: u64,
    /// How long its runs took together.
    pub duration: Duration,
}

/// One run of one observer that ended, for whoever keeps histograms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ObserverRun {
    /// What it was told about.
    pub event_type: EventType,
    /// How long it took.
    pub duration: Duration,
    /// Whether it panicked or came back with an error.
    pub is_error: bool,
}

/// Counts runs, and passes them on.
#[derive(Default)]
pub(crate) struct Meter {
    pub(crate) counters: Counters,
    observe: Option<Box<dyn Fn(ObserverRun) + Send + Sync>>,
}

impl Meter {
    pub(crate) fn observed(observe: Box<dyn Fn(ObserverRun) + Send + Sync>) -> Self {
        Self { counters: Counters::default(), observe: Some(observe) }
    }

    pub(crate) fn ran(&self, run: ObserverRun) {
        self.counters.ran(run);
        if let Some(observe) = &self.observe
            // It must not take the observer's task with it.
            && std::panic::catch_unwind(AssertUnwindSafe(|| observe(run))).is_err()
        {
            tracing::error!("who observes the event observers panicked");
        }
    }
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter").field("counters", &self.counters).finish_non_exhaustive()
    }
}

/// Counters of every type, by position.
#[derive(Debug, Default)]
pub(crate) struct Counters([PerType; EventType::ALL.len()]);

#[derive(Debug, Default)]
struct PerType {
    executions: AtomicU64,
    errors: AtomicU64,
    drops: AtomicU64,
    nanos: AtomicU64,
}

impl Counters {
    fn ran(&self, ObserverRun { event_type, duration, is_error }: ObserverRun) {
        let counters = &self.0[event_type as usize];
        counters.executions.fetch_add(1, Relaxed);
        counters.errors.fetch_add(is_error.into(), Relaxed);
        counters.nanos.fetch_add(nanos(duration), Relaxed);
    }

    pub(crate) fn dropped(&self, event_type: EventType) {
        self.0[event_type as usize].drops.fetch_add(1, Relaxed);
    }

    pub(crate) fn snapshot(&self) -> Vec<EventStats> {
        let read = |event_type: &EventType| {
            let counters = &self.0[*event_type as usize];
            EventStats {
                event_type: *event_type,
                executions: counters.executions.load(Relaxed),
                errors: counters.errors.load(Relaxed),
                drops: counters.drops.load(Relaxed),
                duration: Duration::from_nanos(counters.nanos.load(Relaxed)),
            }
        };
        EventType::ALL.iter().map(read).collect()
    }
}

/// 64 bits of nanoseconds are five centuries of running observers.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
