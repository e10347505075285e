//! The sending half of a connection.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use wsc_protocol::{CloseReason, DisconnectReason, FailureReason};

use crate::{
    conn::{Conn, Payload, always},
    frame::Encoded,
    queue::Class,
};

/// Told what became of one queued message: once, from whatever task finds out. Must not block.
pub trait Settle: fmt::Debug + Send + Sync {
    /// The kernel took the message's last byte, or it failed for this reason on this connection.
    fn settle(&self, result: Result<(), FailureReason>);
}

/// What became of a message right away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The kernel took the last byte.
    Written,
    /// It waits in the queue.
    Queued,
    /// The queue was full and the policy did not take it; under [`QueuePolicy::Disconnect`](crate::QueuePolicy::Disconnect) the connection closes.
    Dropped,
    /// The connection is closed or closing.
    Closed,
}

/// A cheap handle to one connection's sending half.
///
/// Frames are written in the order of the calls. Where nothing waits the caller's thread writes to the socket
/// itself, without blocking; otherwise the frame joins the queue and the connection's task writes it.
#[derive(Clone)]
pub struct Outbound(pub(crate) Arc<Conn>);

impl Outbound {
    /// Sends a reply or notice: never dropped; where it does not fit, the connection is closed with 3008.
    pub fn send(&self, frame: &[u8]) -> Sent {
        let frame = Encoded::new(frame);
        self.0.submit(self.0.form_of(&frame), Class::Must, 0, None, always).unwrap_or(Sent::Closed)
    }

    /// Sends one message, which the queue's policy may drop.
    ///
    /// `track` is asked for somebody to tell the end only where the message has to wait; it must not send or lock
    /// anything. The message is not part of
    /// the [`Ledger`](crate::Ledger)'s sums by itself, as those of fan-outs are, nor is it part of a gap where it is
    /// [`Sent::Dropped`]: see [`tell_gap`](Self::tell_gap).
    pub fn deliver(&self, frame: &Encoded<'_>, track: &mut dyn FnMut() -> Option<Arc<dyn Settle>>) -> Sent {
        self.0.submit(self.0.form_of(frame), Class::Plain, 0, Some(track), always).unwrap_or(Sent::Closed)
    }

    /// Sends `deliveries` whole frames that other connections get too; they share the bytes. Nothing is sent where
    /// `allowed` says no: it is asked at the moment that settles the order with [`send_with`](Self::send_with).
    pub(crate) fn deliver_shared_if(
        &self,
        frames: &Bytes,
        deliveries: u32,
        allowed: impl FnOnce() -> bool,
    ) -> Option<Sent> {
        self.0.submit(Payload::Shared(frames), Class::Plain, deliveries, None, allowed)
    }

    /// Makes a reply or notice and puts it into the queue in one step: what `make` does elsewhere (join a room,
    /// leave it) cannot show on this connection before the frame that it returns, nor after. `make` is called on a
    /// closed connection too; where it returns `None` nothing is sent.
    ///
    /// `make` must not send to any connection.
    pub fn send_with(&self, make: impl FnOnce() -> Option<Vec<u8>>) -> Sent {
        self.0.submit_with(make)
    }

    /// Tells the peer, before the next message, that one of `bytes` bytes was not sent: to be called where a message
    /// that [`deliver`](Self::deliver) answered with [`Sent::Dropped`] is given up.
    pub fn tell_gap(&self, bytes: usize) {
        self.0.tell_gap(bytes);
    }

    /// Closes the connection after what waits in its queue. Returns false where it is closed or closing already.
    pub fn close(&self, close: &CloseReason, cause: DisconnectReason) -> bool {
        self.0.close(close, cause)
    }

    /// Bytes and messages that wait in the queue.
    pub fn queued(&self) -> (usize, u64) {
        self.0.queued()
    }

    /// Milliseconds since the peer was last heard of.
    pub fn silent_for_ms(&self) -> u32 {
        self.0.silent_for_ms()
    }

    /// Whether it takes messages: neither closed nor closing.
    pub fn is_open(&self) -> bool {
        self.0.is_open()
    }

    /// Whether both are handles to the same connection.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Whoever prints it may hold any lock, this connection's too.
        let mut text = f.debug_struct("Outbound");
        if let Some((bytes, deliveries)) = self.0.try_queued() {
            text.field("queue_bytes", &bytes).field("queued", &deliveries);
        }
        text.finish_non_exhaustive()
    }
}
