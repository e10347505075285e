//! What happened on connections lately, for whoever asks why one behaves as it does.
//!
//! Plain messages leave no trace: they are too many. What is rare does, and every step of a message that must be
//! acknowledged.

use std::time::Duration;

use uuid::Uuid;
use wsc_events::{ConnectionEvent, TooManyTraces};
use wsc_protocol::{CloseReason, DisconnectReason, ErrorReply, MessageId};

use crate::{
    core::Core,
    encode::{error_frame, now_ms},
    session::Session,
};

impl Core {
    /// Takes note of what happened on a connection.
    pub(crate) fn trace(&self, session: Uuid, event: ConnectionEvent) {
        self.ring.append(now_ms(), session, event);
    }

    /// Keeps all that happens on a connection for a while. Returns until when, in Unix milliseconds.
    pub(crate) fn begin_trace(&self, session: Uuid) -> Result<u64, TooManyTraces> {
        let now = now_ms();
        let until = now + TRACE_TIME.as_millis() as u64;
        self.ring.trace(session, now, until).map(|()| until)
    }

    /// Closes a connection after what waits in its queue. False where it was closing already.
    pub(crate) fn close(&self, session: &Session, close: &CloseReason, cause: DisconnectReason) -> bool {
        let closes = session.outbound.close(close, cause);
        if closes {
            self.trace(session.id, ConnectionEvent::Closed { code: close.code.0 });
        }
        closes
    }

    /// Answers a request that failed.
    pub(crate) fn send_error(&self, session: &Session, error: &ErrorReply, request_id: Option<&MessageId<'_>>) {
        session.outbound.send(&error_frame(error, request_id, now_ms()));
        self.trace(session.id, ConnectionEvent::Error { code: error.code.code() });
    }

    /// The kernel took a message that must be acknowledged; `attempt` is `None` for others.
    pub(crate) fn trace_delivered(&self, session: Uuid, message: Uuid, attempt: Option<u32>) {
        if let Some(attempt) = attempt {
            self.trace(session, ConnectionEvent::Delivered { message, attempt });
        }
    }

    /// A message for one connection alone found no room in its queue.
    pub(crate) fn trace_full_queue(&self, session: &Session, message: Uuid) {
        let (bytes, _) = session.outbound.queued();
        let queued_bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.trace(session.id, ConnectionEvent::QueueFull { message, queued_bytes });
    }

    /// Tells a peer that a message is missing.
    pub(crate) fn tell_gap(&self, session: &Session, bytes: usize) {
        session.outbound.tell_gap(bytes);
        self.trace(session.id, ConnectionEvent::SlowConsumer { dropped: 1, bytes: bytes as u64 });
    }
}

/// How long a connection is traced.
const TRACE_TIME: Duration = Duration::from_secs(10 * 60);
