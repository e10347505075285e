//! What the transport counts. One set per [`Transport`](crate::Transport), read by the layer above.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

/// Counters and gauges of everything that one transport does.
///
/// A *delivery* is one message of a fan-out for one member. Every one that was accepted ends as exactly one of sent,
/// failed (by reason); until then it is counted in [`deliveries_in_fanouts`](Self::deliveries_in_fanouts) or
/// [`deliveries_queued`](Self::deliveries_queued).
#[derive(Debug, Default)]
pub struct TransportStats {
    pub(crate) deliveries_accepted: AtomicU64,
    pub(crate) deliveries_sent: AtomicU64,
    pub(crate) deliveries_queue_full: AtomicU64,
    pub(crate) deliveries_conn_closed: AtomicU64,
    pub(crate) deliveries_queued: AtomicI64,
    pub(crate) deliveries_in_fanouts: AtomicI64,
    pub(crate) queue_bytes: AtomicI64,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    pub(crate) messages_in: AtomicU64,
    pub(crate) slow_disconnect: AtomicU64,
    pub(crate) slow_drop_oldest: AtomicU64,
    pub(crate) slow_drop_newest: AtomicU64,
    pub(crate) handshakes_timed_out: AtomicU64,
    pub(crate) handshakes_cut: AtomicU64,
    pub(crate) handshakes_malformed: AtomicU64,
    pub(crate) handshakes_aborted: AtomicU64,
    pub(crate) handshakes_tls: AtomicU64,
}

impl TransportStats {
    /// Deliveries that fan-outs took on.
    pub fn deliveries_accepted(&self) -> u64 {
        self.deliveries_accepted.load(Relaxed)
    }

    /// Deliveries whose last byte the kernel took.
    pub fn deliveries_sent(&self) -> u64 {
        self.deliveries_sent.load(Relaxed)
    }

    /// Deliveries that a full queue refused or dropped.
    pub fn deliveries_queue_full(&self) -> u64 {
        self.deliveries_queue_full.load(Relaxed)
    }

    /// Deliveries that ended with their connection.
    pub fn deliveries_conn_closed(&self) -> u64 {
        self.deliveries_conn_closed.load(Relaxed)
    }

    /// Deliveries that wait in queues now.
    pub fn deliveries_queued(&self) -> i64 {
        self.deliveries_queued.load(Relaxed)
    }

    /// Deliveries that wait in fan-outs now.
    pub fn deliveries_in_fanouts(&self) -> i64 {
        self.deliveries_in_fanouts.load(Relaxed)
    }

    pub(crate) fn fanout_accepted(&self, deliveries: usize) {
        self.deliveries_accepted.fetch_add(deliveries as u64, Relaxed);
        self.deliveries_in_fanouts.fetch_add(deliveries as i64, Relaxed);
    }

    /// Deliveries went from a fan-out to their connections.
    pub(crate) fn fanout_handed(&self, deliveries: u64) {
        self.deliveries_in_fanouts.fetch_sub(deliveries as i64, Relaxed);
    }

    /// Deliveries whose connection had left the fan-out meanwhile.
    pub(crate) fn fanout_lost(&self, deliveries: u64) {
        self.deliveries_in_fanouts.fetch_sub(deliveries as i64, Relaxed);
        self.deliveries_conn_closed.fetch_add(deliveries, Relaxed);
    }

    /// Bytes that wait in queues now. Bytes that several connections share count for each.
    pub fn queue_bytes(&self) -> i64 {
        self.queue_bytes.load(Relaxed)
    }

    /// Bytes read from open connections.
    pub fn bytes_in(&self) -> u64 {
        self.bytes_in.load(Relaxed)
    }

    /// Bytes that the kernel took.
    pub fn bytes_out(&self) -> u64 {
        self.bytes_out.load(Relaxed)
    }

    /// Messages read, whatever they said.
    pub fn messages_in(&self) -> u64 {
        self.messages_in.load(Relaxed)
    }

    /// How often a full queue was met, by the name of what was done about it.
    pub fn slow_consumers(&self) -> [(&'static str, u64); 3] {
        [
            ("disconnect", self.slow_disconnect.load(Relaxed)),
            ("drop_oldest", self.slow_drop_oldest.load(Relaxed)),
            ("drop_newest", self.slow_drop_newest.load(Relaxed)),
        ]
    }

    /// Handshakes that failed before the layer above saw them, by reason.
    pub fn handshake_failures(&self) -> [(&'static str, u64); 5] {
        [
            ("timeout", self.handshakes_timed_out.load(Relaxed)),
            ("too_many_pending", self.handshakes_cut.load(Relaxed)),
            ("malformed", self.handshakes_malformed.load(Relaxed)),
            ("aborted", self.handshakes_aborted.load(Relaxed)),
            ("tls", self.handshakes_tls.load(Relaxed)),
        ]
    }
}

/// Adds one.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}
