//! The fates of messages, counted. Fan-outs keep theirs in the transport's statistics; this is the rest.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering},
};

use wsc_failure::{FailureEvent, FailureRouter};
use wsc_protocol::{FailureReason, HubMessage, Id};
use wsc_transport::Settle;

/// Pairs of a user-addressed message and its recipient.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) accepted: AtomicU64,
    pub(crate) sent: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) in_flight: AtomicI64,
    /// Copies that the kernel took; a user with two devices gets two.
    pub(crate) copies: AtomicU64,
}

/// One user-addressed message that has to wait on all the connections that take it: sent with the first that writes
/// it, failed with the last that cannot.
#[derive(Debug)]
pub(crate) struct Transit {
    ledger: Arc<Ledger>,
    failures: FailureRouter,
    message: Arc<HubMessage>,
    recipient: Id,
    /// Connections that may still write it, and one for the sender until it has asked them all.
    open: AtomicU32,
    settled: AtomicBool,
}

impl Transit {
    pub(crate) fn new(
        ledger: &Arc<Ledger>,
        failures: &FailureRouter,
        message: HubMessage,
        recipient: &Id,
    ) -> Arc<Self> {
        ledger.in_flight.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self {
            ledger: Arc::clone(ledger),
            failures: failures.clone(),
            message: Arc::new(message),
            recipient: recipient.clone(),
            open: AtomicU32::new(1),
            settled: AtomicBool::new(false),
        })
    }

    /// One more connection has it in its queue.
    pub(crate) fn wait_on_one_more(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    /// The first connection that wrote it settles it; returns whether this one was.
    pub(crate) fn sent(&self) -> bool {
        let first = !self.settled.swap(true, Ordering::AcqRel);
        if first {
            self.ledger.in_flight.fetch_sub(1, Ordering::Relaxed);
            self.ledger.sent.fetch_add(1, Ordering::Relaxed);
        }
        first
    }

    /// One of those that might have written it cannot (or was never needed).
    pub(crate) fn one_less(&self, reason: FailureReason) {
        if self.open.fetch_sub(1, Ordering::AcqRel) == 1 && !self.settled.swap(true, Ordering::AcqRel) {
            self.ledger.in_flight.fetch_sub(1, Ordering::Relaxed);
            self.ledger.failed.fetch_add(1, Ordering::Relaxed);
            let event = FailureEvent::new(Arc::clone(&self.message), self.recipient.clone(), reason, reason.as_str());
            self.failures.route(event);
        }
    }
}

impl Settle for Transit {
    fn settle(&self, result: Result<(), FailureReason>) {
        match result {
            Ok(()) => {
                self.ledger.copies.fetch_add(1, Ordering::Relaxed);
                self.sent();
                self.one_less(FailureReason::Unknown);
            }
            Err(reason) => self.one_less(reason),
        }
    }
}
