//! How many failures there were, and what handling them took.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use wsc_protocol::{FailureKind, FailureReason, UserType};

/// The counters at one moment, since the router was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FailureStats {
    by_reason: [u64; FailureReason::ALL.len()],
    by_user_type: [u64; UserType::ALL.len()],
    unknown_user_type: u64,
    handlers: [HandlerStats; FailureKind::ALL.len()],
    not_handled: u64,
    queued: usize,
}

impl FailureStats {
    /// All failures.
    pub fn total(&self) -> u64 {
        self.by_reason.iter().sum()
    }

    /// Failures of one reason.
    pub fn of_reason(&self, reason: FailureReason) -> u64 {
        self.by_reason[reason as usize]
    }

    /// Failures of one kind.
    pub fn of_kind(&self, kind: FailureKind) -> u64 {
        FailureReason::ALL.into_iter().filter(|r| r.kind() == kind).map(|r| self.of_reason(r)).sum()
    }

    /// Failures to recipients of one type; `None`: of a type that was not known.
    pub fn of_user_type(&self, user_type: Option<UserType>) -> u64 {
        user_type.map_or(self.unknown_user_type, |t| self.by_user_type[t as usize])
    }

    /// What the handlers of a kind did; [`FailureKind::Other`] names the general ones.
    pub fn handler(&self, kind: FailureKind) -> HandlerStats {
        self.handlers[kind as usize]
    }

    /// Failures for which there was a handler that was not called, because too many waited already or the router
    /// went down.
    pub fn not_handled(&self) -> u64 {
        self.not_handled
    }

    /// Failures that wait for a worker now.
    pub fn queued(&self) -> usize {
        self.queued
    }
}

/// What the handlers of one kind did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HandlerStats {
    /// Calls that ended, in whatever way.
    pub calls: u64,
    /// Calls that panicked.
    pub panics: u64,
    /// Calls that were dropped at the time limit.
    pub timeouts: u64,
    /// How long the calls took together.
    pub duration: Duration,
}

/// How one call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallEnd {
    Done,
    Panicked,
    TimedOut,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    by_reason: [AtomicU64; FailureReason::ALL.len()],
    by_user_type: [AtomicU64; UserType::ALL.len()],
    unknown_user_type: AtomicU64,
    handlers: [HandlerCounters; FailureKind::ALL.len()],
    not_handled: AtomicU64,
}

#[derive(Debug, Default)]
struct HandlerCounters {
    calls: AtomicU64,
    panics: AtomicU64,
    timeouts: AtomicU64,
    nanos: AtomicU64,
}

impl Counters {
    pub(crate) fn failed(&self, reason: FailureReason, user_type: Option<UserType>, times: u64) {
        self.by_reason[reason as usize].fetch_add(times, Relaxed);
        user_type.map_or(&self.unknown_user_type, |t| &self.by_user_type[t as usize]).fetch_add(times, Relaxed);
    }

    pub(crate) fn called(&self, kind: FailureKind, end: CallEnd, duration: Duration) {
        let counters = &self.handlers[kind as usize];
        counters.calls.fetch_add(1, Relaxed);
        counters.panics.fetch_add((end == CallEnd::Panicked).into(), Relaxed);
        counters.timeouts.fetch_add((end == CallEnd::TimedOut).into(), Relaxed);
        counters.nanos.fetch_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    pub(crate) fn not_handled(&self, times: u64) {
        self.not_handled.fetch_add(times, Relaxed);
    }

    pub(crate) fn snapshot(&self, queued: usize) -> FailureStats {
        let load = |counter: &AtomicU64| counter.load(Relaxed);
        FailureStats {
            by_reason: self.by_reason.each_ref().map(load),
            by_user_type: self.by_user_type.each_ref().map(load),
            unknown_user_type: load(&self.unknown_user_type),
            handlers: self.handlers.each_ref().map(|h| HandlerStats {
                calls: load(&h.calls),
                panics: load(&h.panics),
                timeouts: load(&h.timeouts),
                duration: Duration::from_nanos(load(&h.nanos)),
            }),
            not_handled: load(&self.not_handled),
            queued,
        }
    }
}
