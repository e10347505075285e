//! How many failures there were, and what handling them took.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use wsc_protocol::{FailureKind, FailureReason, UserType};

use crate::HandlerType;

/// The counters at one moment, since the router was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FailureStats {
    by_reason: [u64; FailureReason::ALL.len()],
    by_user_type: [u64; UserType::ALL.len()],
    unknown_user_type: u64,
    handlers: [HandlerStats; HandlerType::ALL.len()],
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

    /// Every kind with its failures: `wsc_failures_by_type_total{type}`.
    pub fn by_kind(&self) -> impl Iterator<Item = (FailureKind, u64)> {
        FailureKind::ALL.into_iter().map(|kind| (kind, self.of_kind(kind)))
    }

    /// Every reason with its failures: `wsc_failures_by_reason_total{reason}`.
    pub fn by_reason(&self) -> impl Iterator<Item = (FailureReason, u64)> {
        FailureReason::ALL.into_iter().map(|reason| (reason, self.of_reason(reason)))
    }

    /// Every type of recipient with its failures, under its name; `unknown` comes last. The figures add up to
    /// [`total`](Self::total): `wsc_total_failures_total{client_type}`.
    pub fn by_client_type(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let known = UserType::ALL.into_iter().map(|t| (t.as_str(), self.of_user_type(Some(t))));
        known.chain([("unknown", self.unknown_user_type)])
    }

    /// What the handlers of a type did. A [`FailureKind`] names the type that is there for it;
    /// [`FailureKind::Other`] the general one.
    pub fn handler(&self, handler_type: impl Into<HandlerType>) -> HandlerStats {
        self.handlers[handler_type.into() as usize]
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

/// What the handlers of one type did.
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

/// One finished call of one handler, for whoever keeps histograms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HandlerCall {
    /// Which trait was called.
    pub handler_type: HandlerType,
    /// What the failure was.
    pub reason: FailureReason,
    /// How it ended.
    pub end: CallEnd,
    /// How long it took.
    pub duration: Duration,
}

/// How one call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallEnd {
    /// It came back.
    Done,
    /// It panicked.
    Panicked,
    /// It was dropped at the time limit.
    TimedOut,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    by_reason: [AtomicU64; FailureReason::ALL.len()],
    by_user_type: [AtomicU64; UserType::ALL.len()],
    unknown_user_type: AtomicU64,
    handlers: [HandlerCounters; HandlerType::ALL.len()],
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

    pub(crate) fn called(&self, HandlerCall { handler_type, end, duration, .. }: HandlerCall) {
        let counters = &self.handlers[handler_type as usize];
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
