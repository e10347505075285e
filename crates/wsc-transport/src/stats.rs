//! What the transport counts. One set per [`Transport`](crate::Transport), read by the layer above.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use crate::ledger::Ledger;

/// Counters and gauges of everything that one transport does.
#[derive(Debug, Default)]
pub struct TransportStats {
    pub(crate) ledger: Ledger,
    pub(crate) queue_bytes: AtomicI64,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    pub(crate) messages_in: AtomicU64,
    pub(crate) slow_disconnect: AtomicU64,
    pub(crate) slow_drop_oldest: AtomicU64,
    pub(crate) slow_drop_newest: AtomicU64,
    pub(crate) slow_spill: AtomicU64,
    pub(crate) slow_shed: AtomicU64,
    pub(crate) handshakes_timed_out: AtomicU64,
    pub(crate) handshakes_cut: AtomicU64,
    pub(crate) handshakes_malformed: AtomicU64,
    pub(crate) handshakes_aborted: AtomicU64,
    pub(crate) handshakes_tls: AtomicU64,
    pub(crate) accepts_failed: AtomicU64,
}

impl TransportStats {
    /// What became of messages. Fan-outs enter theirs by themselves, a pair for each member; who sends single messages
    /// with [`Outbound::deliver`](crate::Outbound::deliver) knows what a pair is and enters them itself.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
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

    /// How often a full queue was met, by the name of what was done about it. A [reliable](crate::Terms::is_reliable)
    /// message that finds no room is a `spill` under every policy. A `shed` is a connection that was closed because the
    /// queues together were too large and its own was among the largest.
    pub fn slow_consumers(&self) -> [(&'static str, u64); 5] {
        [
            ("disconnect", self.slow_disconnect.load(Relaxed)),
            ("drop_oldest", self.slow_drop_oldest.load(Relaxed)),
            ("drop_newest", self.slow_drop_newest.load(Relaxed)),
            ("spill", self.slow_spill.load(Relaxed)),
            ("shed", self.slow_shed.load(Relaxed)),
        ]
    }

    /// Handshakes that failed before the layer above saw them, by reason. Under `accept` stand attempts to accept a
    /// connection that failed, twenty a second at most: the process is out of descriptors.
    pub fn handshake_failures(&self) -> [(&'static str, u64); 6] {
        [
            ("timeout", self.handshakes_timed_out.load(Relaxed)),
            ("too_many_pending", self.handshakes_cut.load(Relaxed)),
            ("malformed", self.handshakes_malformed.load(Relaxed)),
            ("aborted", self.handshakes_aborted.load(Relaxed)),
            ("tls", self.handshakes_tls.load(Relaxed)),
            ("accept", self.accepts_failed.load(Relaxed)),
        ]
    }
}

/// Adds one.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}
