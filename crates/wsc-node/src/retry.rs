//! Trying again: a queue that is full now may have room in a moment.

use std::{
    sync::{Arc, atomic::AtomicU64, atomic::Ordering::Relaxed},
    time::Instant,
};

use parking_lot::Mutex;
use wsc_delivery::{Retry, RetryBudget, RetryPolicy};
use wsc_protocol::{Event, EventType, FailureReason};
use wsc_transport::{Encoded, QueuePolicy, Sent};

use crate::{core::Core, ledger::Transit, session::Session};

/// When and how often messages are tried again.
#[derive(Debug)]
pub(crate) struct Retries {
    policy: RetryPolicy,
    budget: Mutex<Budget>,
    attempts: AtomicU64,
    successes: AtomicU64,
}

/// Keeps retries from multiplying an outage: they may be a share of the first attempts.
#[derive(Debug)]
struct Budget {
    budget: RetryBudget,
    /// First attempts that the budget knows of.
    seen: i64,
}

impl Retries {
    pub(crate) fn new(policy: RetryPolicy, budget: RetryBudget) -> Self {
        Self {
            policy,
            budget: Mutex::new(Budget { budget, seen: 0 }),
            attempts: AtomicU64::new(0),
            successes: AtomicU64::new(0),
        }
    }

    /// How often something was tried again, and how often that helped.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.attempts.load(Relaxed), self.successes.load(Relaxed))
    }
}

impl Core {
    /// Whether a message that failed for this reason is tried again. Only `drop_newest` refuses a message that may
    /// fit later; the other policies have dropped what they drop.
    pub(crate) fn may_retry(&self, reason: FailureReason) -> bool {
        let retries = &self.retries;
        if self.fanouts.queue_policy() != QueuePolicy::DropNewest
            || retries.policy.config().max_retries == 0
            || retries.policy.classify(reason, reason.as_str()) == Retry::No
        {
            return false;
        }
        let accepted = self.fanouts.stats().ledger().snapshot().accepted;
        let now = Instant::now();
        let mut budget = retries.budget.lock();
        let fresh = u64::try_from(accepted - budget.seen).unwrap_or(0);
        budget.seen = accepted;
        budget.budget.on_attempts(fresh, now);
        budget.budget.try_retry(now)
    }

    /// Offers a frame again to the connections that had no room for it. `transit` waits on this, too.
    /// `max_retries` may say how often, instead of the settings.
    pub(crate) fn retry(
        self: &Arc<Self>,
        transit: Arc<Transit>,
        frame: Vec<u8>,
        mut full: Vec<Arc<Session>>,
        max_retries: Option<u32>,
    ) {
        let core = Arc::clone(self);
        let seed = full.first().map_or(0, |session| session.id.as_u128() as u64) ^ frame.len() as u64;
        self.tasks.spawn(async move {
            let encoded = Encoded::new(&frame);
            let reason = FailureReason::QueueFull;
            for (attempt, delay) in (2..).zip(core.retries.policy.delays_of(seed, max_retries)) {
                if let Some(watch) = transit.watch() {
                    watch.attempt_failed(reason);
                }
                core.events.publish_with(EventType::RetryStarted, || Event::RetryStarted {
                    message_id: transit.id(),
                    user_id: transit.recipient().clone(),
                    reason,
                    attempt,
                    delay_ms: delay.as_millis() as u64,
                });
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    () = core.stop.cancelled() => break,
                }
                if transit.is_settled() {
                    break;
                }
                core.retries.attempts.fetch_add(1, Relaxed);
                if let Some(watch) = transit.watch() {
                    watch.attempt();
                }
                let priority = transit.priority();
                full.retain(|session| {
                    let sent = session.offer(&encoded, priority, false, &mut || Some(transit.wait_on_one_more()));
                    if sent == Sent::Written {
                        transit.written();
                    }
                    if matches!(sent, Sent::Written | Sent::Queued) {
                        core.retries.successes.fetch_add(1, Relaxed);
                    }
                    sent == Sent::Dropped
                });
                if full.is_empty() {
                    break;
                }
            }
            for session in full {
                session.outbound.tell_gap(frame.len());
            }
            transit.one_less(FailureReason::QueueFull);
        });
    }
}
