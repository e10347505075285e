//! Gives failed messages to a sink.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use async_trait::async_trait;
use wsc_protocol::{FailureKind, FailureReason};

use crate::{AnyFailureHandler, Breaker, BreakerError, BreakerState, FailureEvent, FailureSink};

/// Gives every failed message that is worth it to a [`FailureSink`], behind a [`Breaker`]: a sink that is down is left
/// alone for a while.
///
/// The fate of the message is not changed by it: it stays `failed`, whatever the sink does with it. Clones share one
/// state.
#[derive(Clone)]
pub struct StoreHandler {
    shared: Arc<Shared>,
}

struct Shared {
    sink: Box<dyn FailureSink>,
    breaker: Breaker,
    reasons: Vec<FailureReason>,
    stored: AtomicU64,
    failed: AtomicU64,
    refused: AtomicU64,
}

/// What a [`StoreHandler`] did so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreStats {
    /// Messages that the sink keeps.
    pub stored: u64,
    /// Messages that the sink did not keep: errors, panics and calls over the time limit.
    pub failed: u64,
    /// Messages that were not offered because the breaker was open.
    pub refused: u64,
    /// What would become of the next one.
    pub breaker: BreakerState,
}

impl StoreHandler {
    /// Stores what a later attempt could deliver: failures of every kind but [`FailureKind::Other`], and not
    /// `pending_full`, for there it was the inbox itself that had no room.
    pub fn new(sink: impl FailureSink) -> Self {
        let worth_it = |r: &FailureReason| r.kind() != FailureKind::Other && *r != FailureReason::PendingFull;
        Self::for_reasons(sink, FailureReason::ALL.into_iter().filter(worth_it), Breaker::default())
    }

    /// Stores the failures of these reasons, behind this breaker.
    pub fn for_reasons(
        sink: impl FailureSink,
        reasons: impl IntoIterator<Item = FailureReason>,
        breaker: Breaker,
    ) -> Self {
        let shared = Shared {
            sink: Box::new(sink),
            breaker,
            reasons: reasons.into_iter().collect(),
            stored: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The counters of this moment.
    pub fn stats(&self) -> StoreStats {
        let shared = &*self.shared;
        StoreStats {
            stored: shared.stored.load(Relaxed),
            failed: shared.failed.load(Relaxed),
            refused: shared.refused.load(Relaxed),
            breaker: shared.breaker.state(),
        }
    }
}

#[async_trait]
impl AnyFailureHandler for StoreHandler {
    async fn handle_failure(&self, failure: &FailureEvent) {
        let shared = &*self.shared;
        if !shared.reasons.contains(&failure.reason) {
            return;
        }
        // Counted as failed unless it gets further: a call that panics or is dropped says nothing any more.
        let mut counted = CountOnDrop(&shared.failed);
        let FailureEvent { message, recipient, reason, .. } = failure;
        match shared.breaker.call(shared.sink.store(message, recipient, *reason)).await {
            Ok(()) => counted.0 = &shared.stored,
            Err(BreakerError::Open) => counted.0 = &shared.refused,
            Err(BreakerError::Failed(error)) => tracing::warn!(
                message_id = %message.id, user_id = %recipient, %error, "a failed message could not be stored"
            ),
        }
    }
}

impl fmt::Debug for StoreHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreHandler").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

struct CountOnDrop<'a>(&'a AtomicU64);

impl Drop for CountOnDrop<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Relaxed);
    }
}
