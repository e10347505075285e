//! Plain user-addressed messages that have to wait. What became of every message stands in the transport's ledger.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use bytes::Bytes;
use uuid::Uuid;
use wsc_failure::FailureEvent;
use wsc_protocol::{FailureReason, Fate, Id, Priority};
use wsc_transport::{Settle, Tally};

use crate::{
    core::Core,
    encode::now_ms,
    mail::{Record, Watch},
};

/// Enters one pair that failed for `reason`.
pub(crate) fn note_failure(tally: &mut Tally, reason: FailureReason) {
    match reason {
        FailureReason::QueueFull => tally.queue_full += 1,
        FailureReason::ConnClosed => tally.conn_closed += 1,
        FailureReason::UserOffline => tally.offline += 1,
        FailureReason::AckTimeout => tally.timed_out += 1,
        _ => tally.other += 1,
    }
}

/// One message that has to wait on all the connections that take it: sent with the first that writes it, failed with
/// the last that cannot.
pub(crate) struct Transit {
    core: Arc<Core>,
    id: Uuid,
    /// The [`Record`] of the message.
    body: Bytes,
    recipient: Id,
    /// Whether its fate can be asked for.
    is_remembered: bool,
    watch: Option<Watch>,
    /// Connections that may still write it, and one for the sender until it has asked them all.
    open: AtomicU32,
    settled: AtomicBool,
    /// A queue was too full for it.
    refused: AtomicBool,
    attempts: AtomicU32,
    /// How often it is tried again, where that is not for the settings to say.
    max_retries: Option<u32>,
}

impl Transit {
    /// Accepts the message.
    pub(crate) fn new(
        core: &Arc<Core>,
        id: Uuid,
        body: Bytes,
        recipient: Id,
        is_remembered: bool,
        watch: Option<Watch>,
        max_retries: Option<u32>,
    ) -> Arc<Self> {
        core.fanouts.stats().ledger().note(|tally| {
            tally.accepted += 1;
            tally.in_flight += 1;
        });
        if let Some(watch) = &watch {
            watch.attempt();
        }
        let (open, settled, refused) = (AtomicU32::new(1), AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self {
            core: Arc::clone(core),
            id,
            body,
            recipient,
            is_remembered,
            watch,
            open,
            settled,
            refused,
            attempts: AtomicU32::new(1),
            max_retries,
        })
    }

    pub(crate) fn id(&self) -> Uuid {
        self.id
    }

    pub(crate) fn recipient(&self) -> &Id {
        &self.recipient
    }

    pub(crate) fn body(&self) -> &Bytes {
        &self.body
    }

    pub(crate) fn watch(&self) -> Option<&Watch> {
        self.watch.as_ref()
    }

    pub(crate) fn priority(&self) -> Priority {
        Record::decode(&self.body).map_or_else(Priority::default, |record| record.priority)
    }

    /// One more connection has it in its queue.
    pub(crate) fn wait_on_one_more(self: &Arc<Self>) -> Arc<dyn Settle> {
        self.open.fetch_add(1, Ordering::Relaxed);
        Arc::new(Waiting(Arc::clone(self)))
    }

    /// One more attempt may still write it.
    pub(crate) fn hold(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    /// The first connection that wrote it settles it; returns whether this one was.
    pub(crate) fn sent(&self) -> bool {
        let first = !self.settled.swap(true, Ordering::AcqRel);
        if first {
            self.core.fanouts.stats().ledger().note(|tally| {
                tally.in_flight -= 1;
                tally.sent += 1;
            });
            self.tell(Fate::SENT);
        }
        first
    }

    /// A connection wrote it.
    pub(crate) fn written(&self) {
        self.core.fanouts.stats().ledger().note(|tally| tally.copies += 1);
        self.sent();
    }

    /// How often it was tried so far.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts.load(Ordering::Relaxed)
    }

    /// One more try begins.
    pub(crate) fn attempt(&self) {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        if let Some(watch) = &self.watch {
            watch.attempt();
        }
    }

    pub(crate) fn max_retries(&self) -> Option<u32> {
        self.max_retries
    }

    /// Whether it needs no more tries.
    pub(crate) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    /// A queue was too full for it.
    pub(crate) fn refused(&self) {
        self.refused.store(true, Ordering::Relaxed);
    }

    /// The sender has asked all connections that there are.
    pub(crate) fn offered(self: &Arc<Self>) {
        let is_refused = self.refused.load(Ordering::Relaxed);
        self.one_less(if is_refused { FailureReason::QueueFull } else { FailureReason::ConnClosed });
    }

    /// One of those that might have written it cannot (or was never needed).
    pub(crate) fn one_less(self: &Arc<Self>, reason: FailureReason) {
        if self.open.fetch_sub(1, Ordering::AcqRel) != 1 || self.is_settled() || self.core.try_again(self, reason) {
            return;
        }
        if self.settled.swap(true, Ordering::AcqRel) {
            return;
        }
        if reason == FailureReason::QueueFull && self.core.spill(self) {
            return;
        }
        self.fail(reason);
    }

    /// It has failed for good.
    pub(crate) fn fail(&self, reason: FailureReason) {
        self.core.count_failure(reason, self.recipient.as_str());
        self.core.fanouts.stats().ledger().note(|tally| {
            tally.in_flight -= 1;
            note_failure(tally, reason);
        });
        self.tell(Fate::failed(reason));
        if let Some(record) = Record::decode(&self.body) {
            let message = Arc::new(record.message(self.id));
            let event = FailureEvent::new(message, self.recipient.clone(), reason, reason.as_str());
            let waited = std::time::Duration::from_millis(now_ms().saturating_sub(record.timestamp));
            self.core.route_failure(event.after(self.attempts().saturating_sub(1), waited).with_timestamp(now_ms()));
        }
    }

    fn tell(&self, fate: Fate) {
        if let Some(watch) = &self.watch {
            watch.finish(self.id, fate);
        }
        let Some(record) = Record::decode(&self.body) else { return };
        let user_id = self.recipient.as_str();
        if self.is_remembered {
            self.core.note_outcome(self.id, record.sender_id, &self.recipient, fate, self.attempts());
        }
        if record.wants_receipt {
            self.core.send_receipt(self.id, &record, user_id, fate, self.attempts());
        }
        self.core.note_end_of(|| record.info(self.id, user_id), fate);
    }
}

/// One connection's copy in its queue.
#[derive(Debug)]
struct Waiting(Arc<Transit>);

impl Settle for Waiting {
    fn settle(&self, result: Result<(), FailureReason>) {
        match result {
            Ok(()) => {
                self.0.written();
                self.0.one_less(FailureReason::Unknown);
            }
            Err(reason) => self.0.one_less(reason),
        }
    }
}

impl std::fmt::Debug for Transit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transit").field("id", &self.id).field("recipient", &self.recipient).finish_non_exhaustive()
    }
}
