//! Trying again: a queue that is full now may have room in a moment.

use std::{
    sync::{Arc, atomic::AtomicU64, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use wsc_delivery::{Retry, RetryBudget, RetryPolicy};
use wsc_protocol::{Event, EventType, FailureReason};
use wsc_transport::{Encoded, QueuePolicy, Sent};

use crate::{core::Core, ledger::Transit, session::Session};

/// When and how often messages are tried again.
#[derive(Debug)]
pub(crate) struct Retries {
    policy: ArcSwap<RetryPolicy>,
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
            policy: ArcSwap::from_pointee(policy),
            budget: Mutex::new(Budget { budget, seen: 0 }),
            attempts: AtomicU64::new(0),
            successes: AtomicU64::new(0),
        }
    }

    /// From now on this policy and this budget apply.
    pub(crate) fn reconfigure(&self, policy: RetryPolicy, budget: RetryBudget) {
        self.policy.store(Arc::new(policy));
        self.budget.lock().budget = budget;
    }

    /// How often something was tried again, and how often that helped.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.attempts.load(Relaxed), self.successes.load(Relaxed))
    }
}

impl Core {
    /// Whether a message that failed for this reason is tried again. Of full queues only `drop_newest` refuses a
    /// message that may fit later; the other policies have dropped what they drop.
    pub(crate) fn may_retry(&self, reason: FailureReason, max_retries: Option<u32>) -> bool {
        let retries = &self.retries;
        let is_dropped = reason == FailureReason::QueueFull && self.fanouts.queue_policy() != QueuePolicy::DropNewest;
        let policy = retries.policy.load();
        let most = policy.config().max_retries;
        if is_dropped
            || self.is_draining()
            || max_retries.unwrap_or(most) == 0
            || policy.classify(reason, reason.as_str()) == Retry::No
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

    /// Tries a message again that no connection took, after a while, on the connections that its receiver has then.
    /// Returns false where it is not tried again.
    pub(crate) fn try_again(self: &Arc<Self>, transit: &Arc<Transit>, reason: FailureReason) -> bool {
        // A queue that was full has been tried again already, see `retry`.
        if reason == FailureReason::QueueFull {
            return false;
        }
        let done = transit.attempts() - 1;
        let seed = transit.id().as_u128() as u64;
        let delay = self.retries.policy.load().delays_of(seed, transit.max_retries()).nth(done as usize);
        let Some(delay) = delay.filter(|_| self.may_retry(reason, transit.max_retries())) else { return false };
        if let Some(watch) = transit.watch() {
            watch.attempt_failed(reason);
        }
        self.note_retry(transit, reason, done + 2, delay);
        transit.hold();
        let (core, transit) = (Arc::clone(self), Arc::clone(transit));
        self.tasks.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = core.stop.cancelled() => {}
            }
            core.retries.attempts.fetch_add(1, Relaxed);
            transit.attempt();
            core.offer_again(&transit, reason);
        });
        true
    }

    fn note_retry(&self, transit: &Transit, reason: FailureReason, attempt: u32, delay: Duration) {
        self.events.publish_with(EventType::RetryStarted, || Event::RetryStarted {
            message_id: transit.id(),
            user_id: transit.recipient().clone(),
            reason,
            attempt,
            delay_ms: delay.as_millis() as u64,
        });
    }

    /// Offers a frame again to the connections that had no room for it. `transit` waits on this, too.
    pub(crate) fn retry(self: &Arc<Self>, transit: Arc<Transit>, frame: Vec<u8>, mut full: Vec<Arc<Session>>) {
        let core = Arc::clone(self);
        let seed = full.first().map_or(0, |session| session.id.as_u128() as u64) ^ frame.len() as u64;
        self.tasks.spawn(async move {
            let encoded = Encoded::new(&frame);
            let reason = FailureReason::QueueFull;
            let delays = core.retries.policy.load().delays_of(seed, transit.max_retries());
            for (attempt, delay) in (2..).zip(delays) {
                if let Some(watch) = transit.watch() {
                    watch.attempt_failed(reason);
                }
                core.note_retry(&transit, reason, attempt, delay);
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    () = core.stop.cancelled() => break,
                }
                if transit.is_settled() {
                    break;
                }
                core.retries.attempts.fetch_add(1, Relaxed);
                transit.attempt();
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
                core.tell_gap(&session, frame.len());
            }
            transit.one_less(FailureReason::QueueFull);
        });
    }
}
