//! The sending half of a connection.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use wsc_protocol::{CloseReason, DisconnectReason, FailureReason, Priority};

use crate::{
    conn::{Conn, Payload, always},
    frame::Encoded,
    queue::Kind,
};

/// Told what became of one queued message: once, from whatever task finds out. Must not block.
pub trait Settle: fmt::Debug + Send + Sync {
    /// The kernel took the message's last byte, or it failed for this reason on this connection.
    fn settle(&self, result: Result<(), FailureReason>);
}

/// On what terms one message is queued where it has to wait. The default is a plain message of normal priority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Terms {
    /// Which of the waiting messages goes first: by bytes, high ones get eight parts of what the peer takes, normal
    /// ones four and low ones one, so that nothing starves. Order is kept within a priority.
    pub priority: Priority,
    /// Somebody keeps the message until it is acknowledged. It is never dropped for good, so it makes no gap and
    /// costs nobody the connection: where it does not fit it is [`Sent::Dropped`] whatever the policy, and where it
    /// has to make room it is settled with [`FailureReason::QueueFull`].
    pub is_reliable: bool,
}

impl Terms {
    /// A plain message, which the policy may drop.
    pub fn plain(priority: Priority) -> Self {
        Self { priority, is_reliable: false }
    }

    /// A message that somebody keeps.
    pub fn reliable(priority: Priority) -> Self {
        Self { priority, is_reliable: true }
    }
}

/// What became of a message right away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The kernel took the last byte.
    Written,
    /// It waits in the queue.
    Queued,
    /// The queue was full and did not take it. Under [`QueuePolicy::Disconnect`](crate::QueuePolicy::Disconnect) the
    /// connection closes, unless the message is [reliable](Terms::is_reliable).
    Dropped,
    /// The connection is closed or closing.
    Closed,
}

/// So many bytes, and so many messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "a pair with names")]
pub struct Amount {
    /// Bytes as they go over the wire.
    pub bytes: u64,
    /// Messages; replies, notices and control frames are none.
    pub messages: u64,
}

/// How one connection's sending half stands, see [`Outbound::state`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutboundState {
    /// Whether it takes messages: neither closed nor closing.
    pub is_open: bool,
    /// What waits with high priority.
    pub high: Amount,
    /// What waits with normal priority: also replies, notices and what comes through fan-outs.
    pub normal: Amount,
    /// What waits with low priority.
    pub low: Amount,
    /// How many milliseconds the oldest of it has been waiting; 0 where nothing waits.
    pub oldest_ms: u32,
    /// For how many milliseconds the kernel has taken nothing of it; 0 where nothing waits.
    pub stalled_ms: u32,
    /// Milliseconds since the peer was last heard of.
    pub silent_ms: u32,
    /// Whether messages are compressed.
    pub is_compressed: bool,
    /// What a full queue cost the peer since this backlog began: all that gap notices stand for.
    pub lost: Amount,
}

/// A cheap handle to one connection's sending half.
///
/// Frames of one priority are written in the order of the calls. Where nothing waits the caller's thread writes to the socket
/// itself, without blocking; otherwise the frame joins the queue and the connection's task writes it.
#[derive(Clone)]
pub struct Outbound(pub(crate) Arc<Conn>);

impl Outbound {
    /// Sends a reply or notice: never dropped; where it does not fit, the connection is closed with 3008.
    pub fn send(&self, frame: &[u8]) -> Sent {
        let frame = Encoded::new(frame);
        self.0.submit(self.0.form_of(&frame), Kind::MUST, None, always).unwrap_or(Sent::Closed)
    }

    /// Sends one message to this connection alone, on the terms of a plain message of normal priority; see
    /// [`deliver_on`](Self::deliver_on).
    pub fn deliver(&self, frame: &Encoded<'_>, track: &mut dyn FnMut() -> Option<Arc<dyn Settle>>) -> Sent {
        self.deliver_on(Terms::default(), frame, track)
    }

    /// Sends one message to this connection alone.
    ///
    /// `track` is asked for somebody to tell the end only where the message has to wait; it must not send or lock
    /// anything. The message is not part of the [`Ledger`](crate::Ledger)'s sums by itself, as those of fan-outs are,
    /// nor is it part of a gap where it is [`Sent::Dropped`]: see [`tell_gap`](Self::tell_gap).
    ///
    /// A message that has to leave the queue again makes a gap, unless somebody keeps it: a
    /// [reliable](Terms::is_reliable) one, or under [`QueuePolicy::Spill`](crate::QueuePolicy::Spill) any one. In both
    /// cases whoever `track` named is told [`FailureReason::QueueFull`] and puts it away; a message that nobody tracks
    /// makes a gap all the same.
    pub fn deliver_on(
        &self,
        terms: Terms,
        frame: &Encoded<'_>,
        track: &mut dyn FnMut() -> Option<Arc<dyn Settle>>,
    ) -> Sent {
        self.0.submit(self.0.form_of(frame), Kind::single(terms), Some(track), always).unwrap_or(Sent::Closed)
    }

    /// Sends `deliveries` whole frames that other connections get too; they share the bytes. Nothing is sent where
    /// `allowed` says no: it is asked at the moment that settles the order with [`send_with`](Self::send_with).
    pub(crate) fn deliver_shared_if(
        &self,
        frames: &Bytes,
        deliveries: u32,
        allowed: impl FnOnce() -> bool,
    ) -> Option<Sent> {
        self.0.submit(Payload::Shared(frames), Kind::shared(deliveries), None, allowed)
    }

    /// As [`send`](Self::send), with bytes that other connections get too, where `allowed` says so.
    pub(crate) fn notify_if(&self, frame: &Bytes, allowed: impl FnOnce() -> bool) -> Option<Sent> {
        self.0.submit(Payload::Shared(frame), Kind::MUST, None, allowed)
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

    /// How things stand, in full: for people who ask why a connection lags. It looks at everything that waits.
    pub fn state(&self) -> OutboundState {
        self.0.state()
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
        if let Some((bytes, messages)) = self.0.try_queued() {
            text.field("queue_bytes", &bytes).field("queued", &messages);
        }
        text.finish_non_exhaustive()
    }
}
