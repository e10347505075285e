//! User-addressed messages that have to wait. What became of every message stands in the transport's ledger.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use wsc_events::EventBus;
use wsc_failure::{FailureEvent, FailureRouter};
use wsc_protocol::{Event, EventType, FailureReason, HubMessage, Id, MessageInfo};
use wsc_transport::{Fanouts, Ledger, Settle, Tally};

/// Enters one pair that failed for `reason`.
pub(crate) fn note_failure(tally: &mut Tally, reason: FailureReason) {
    match reason {
        FailureReason::QueueFull => tally.queue_full += 1,
        FailureReason::ConnClosed => tally.conn_closed += 1,
        _ => tally.other += 1,
    }
}

/// One user-addressed message that has to wait on all the connections that take it: sent with the first that writes
/// it, failed with the last that cannot.
#[derive(Debug)]
pub(crate) struct Transit {
    fanouts: Fanouts,
    events: EventBus,
    failures: FailureRouter,
    message: Arc<HubMessage>,
    recipient: Id,
    /// Connections that may still write it, and one for the sender until it has asked them all.
    open: AtomicU32,
    settled: AtomicBool,
}

impl Transit {
    /// Accepts the message.
    pub(crate) fn new(
        fanouts: &Fanouts,
        events: &EventBus,
        failures: &FailureRouter,
        message: HubMessage,
        recipient: &Id,
    ) -> Arc<Self> {
        fanouts.stats().ledger().note(|tally| {
            tally.accepted += 1;
            tally.in_flight += 1;
        });
        Arc::new(Self {
            fanouts: fanouts.clone(),
            events: events.clone(),
            failures: failures.clone(),
            message: Arc::new(message),
            recipient: recipient.clone(),
            open: AtomicU32::new(1),
            settled: AtomicBool::new(false),
        })
    }

    fn info(&self) -> MessageInfo {
        MessageInfo {
            id: self.message.id,
            message_type: self.message.message_type.clone(),
            sender_id: self.message.sender_id.clone(),
            room_id: None,
            user_id: Some(self.recipient.to_string()),
        }
    }

    fn ledger(&self) -> &Ledger {
        self.fanouts.stats().ledger()
    }

    /// One more connection has it in its queue.
    pub(crate) fn wait_on_one_more(self: &Arc<Self>) -> Arc<dyn Settle> {
        self.open.fetch_add(1, Ordering::Relaxed);
        Arc::clone(self) as Arc<dyn Settle>
    }

    /// The first connection that wrote it settles it; returns whether this one was.
    pub(crate) fn sent(&self) -> bool {
        let first = !self.settled.swap(true, Ordering::AcqRel);
        if first {
            self.ledger().note(|tally| {
                tally.in_flight -= 1;
                tally.sent += 1;
            });
        }
        first
    }

    /// A connection wrote it after a while.
    pub(crate) fn written(&self) {
        self.ledger().note(|tally| tally.copies += 1);
        if self.sent() {
            self.events.publish_with(EventType::MessageDelivered, || Event::MessageDelivered {
                message: self.info(),
                recipients: 1,
            });
        }
    }

    /// Whether it needs no more tries.
    pub(crate) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    /// One of those that might have written it cannot (or was never needed).
    pub(crate) fn one_less(&self, reason: FailureReason) {
        if self.open.fetch_sub(1, Ordering::AcqRel) == 1 && !self.settled.swap(true, Ordering::AcqRel) {
            self.ledger().note(|tally| {
                tally.in_flight -= 1;
                note_failure(tally, reason);
            });
            self.events.publish_with(EventType::MessageFailed, || Event::MessageFailed {
                message: self.info(),
                reason,
                recipients: 1,
            });
            let event = FailureEvent::new(Arc::clone(&self.message), self.recipient.clone(), reason, reason.as_str());
            self.failures.route(event);
        }
    }
}

impl Settle for Transit {
    fn settle(&self, result: Result<(), FailureReason>) {
        match result {
            Ok(()) => {
                self.written();
                self.one_less(FailureReason::Unknown);
            }
            Err(reason) => self.one_less(reason),
        }
    }
}
