//! What all connections of one transport share.

use std::{
    fmt,
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use crate::{
    budget::Budget,
    config::{QueuePolicy, TransportConfig},
    conn::Conn,
    queue::Settled,
    stats::TransportStats,
};

pub(crate) struct Shared {
    pub(crate) limits: Limits,
    pub(crate) stats: TransportStats,
    pub(crate) conns: Conns,
    pub(crate) budget: Budget,
    start: Instant,
}

impl Shared {
    pub(crate) fn new(config: &TransportConfig) -> Self {
        Self {
            limits: Limits::new(config),
            stats: TransportStats::default(),
            conns: Conns::default(),
            budget: Budget::default(),
            start: Instant::now(),
        }
    }

    /// Milliseconds since the transport started. They wrap after 49 days: only differences mean something.
    pub(crate) fn now(&self) -> u32 {
        self.start.elapsed().as_millis() as u32
    }

    /// Counts what a queue has settled, and tells who wants to know. No lock may be held.
    pub(crate) fn settle(&self, settled: Settled) {
        let Settled { sent, queue_full, conn_closed, bytes, told } = settled;
        let stats = &self.stats;
        if bytes != 0 {
            let before = stats.queue_bytes.fetch_add(bytes, Relaxed);
            self.budget.note(before + bytes, self.limits.queue_total_bytes());
        }
        let ended = sent + queue_full + conn_closed;
        if ended > 0 {
            stats.ledger.note(|tally| {
                tally.in_flight -= i64::from(ended);
                tally.sent += i64::from(sent);
                tally.copies += i64::from(sent);
                tally.queue_full += i64::from(queue_full);
                tally.conn_closed += i64::from(conn_closed);
            });
        }
        for (settle, result) in told {
            // It may be a task that many depend on which finds out.
            let told = panic::catch_unwind(AssertUnwindSafe(|| settle.settle(result)));
            if told.is_err() {
                tracing::error!("whoever tracks a message panicked");
            }
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("connections", &self.conns.len()).finish_non_exhaustive()
    }
}

/// The settings that are read per message, each by itself: a reader that sees an old one beside a new one is fine.
pub(crate) struct Limits {
    max_message_size: AtomicUsize,
    queue_max_bytes: AtomicUsize,
    queue_total_bytes: AtomicUsize,
    fanout_max_bytes: AtomicUsize,
    /// [`OFF`] where compression is.
    compression_threshold: AtomicUsize,
    pending_handshakes: AtomicUsize,
    queue_policy: AtomicU8,
    handshake_timeout: AtomicU32,
    write_timeout: AtomicU32,
    ping_interval: AtomicU32,
    pong_timeout: AtomicU32,
}

impl Limits {
    fn new(config: &TransportConfig) -> Self {
        let limits = Self {
            max_message_size: AtomicUsize::default(),
            queue_max_bytes: AtomicUsize::default(),
            queue_total_bytes: AtomicUsize::default(),
            fanout_max_bytes: AtomicUsize::default(),
            compression_threshold: AtomicUsize::default(),
            pending_handshakes: AtomicUsize::default(),
            queue_policy: AtomicU8::default(),
            handshake_timeout: AtomicU32::default(),
            write_timeout: AtomicU32::default(),
            ping_interval: AtomicU32::default(),
            pong_timeout: AtomicU32::default(),
        };
        limits.set(config);
        limits
    }

    pub(crate) fn set(&self, config: &TransportConfig) {
        self.max_message_size.store(config.max_message_size, Relaxed);
        self.queue_max_bytes.store(config.queue_max_bytes, Relaxed);
        self.queue_total_bytes.store(config.queue_total_bytes, Relaxed);
        self.fanout_max_bytes.store(config.fanout_max_bytes, Relaxed);
        self.compression_threshold.store(config.compression_threshold.unwrap_or(OFF), Relaxed);
        self.pending_handshakes.store(config.pending_handshakes, Relaxed);
        self.queue_policy.store(config.queue_policy as u8, Relaxed);
        self.handshake_timeout.store(millis(config.handshake_timeout), Relaxed);
        self.write_timeout.store(millis(config.write_timeout), Relaxed);
        self.ping_interval.store(millis(config.ping_interval), Relaxed);
        self.pong_timeout.store(millis(config.pong_timeout), Relaxed);
    }

    pub(crate) fn max_message_size(&self) -> usize {
        self.max_message_size.load(Relaxed)
    }

    pub(crate) fn queue_max_bytes(&self) -> usize {
        self.queue_max_bytes.load(Relaxed)
    }

    pub(crate) fn queue_total_bytes(&self) -> usize {
        self.queue_total_bytes.load(Relaxed)
    }

    pub(crate) fn fanout_max_bytes(&self) -> usize {
        self.fanout_max_bytes.load(Relaxed)
    }

    /// The smallest payload that is compressed; none is so large where compression is off.
    pub(crate) fn compression_threshold(&self) -> usize {
        self.compression_threshold.load(Relaxed)
    }

    /// Whether new connections may agree on compression.
    pub(crate) fn offers_compression(&self) -> bool {
        self.compression_threshold() != OFF
    }

    pub(crate) fn pending_handshakes(&self) -> usize {
        self.pending_handshakes.load(Relaxed)
    }

    pub(crate) fn queue_policy(&self) -> QueuePolicy {
        match self.queue_policy.load(Relaxed) {
            1 => QueuePolicy::DropOldest,
            2 => QueuePolicy::DropNewest,
            3 => QueuePolicy::Spill,
            _ => QueuePolicy::Disconnect,
        }
    }

    pub(crate) fn handshake_timeout(&self) -> Duration {
        Duration::from_millis(self.handshake_timeout.load(Relaxed).into())
    }

    /// Milliseconds, as the next two.
    pub(crate) fn write_timeout(&self) -> u32 {
        self.write_timeout.load(Relaxed)
    }

    pub(crate) fn ping_interval(&self) -> u32 {
        self.ping_interval.load(Relaxed)
    }

    pub(crate) fn pong_timeout(&self) -> u32 {
        self.pong_timeout.load(Relaxed)
    }
}

const OFF: usize = usize::MAX;

/// A quarter of the range of the tick counter: sums of two stay comparable.
fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX).clamp(1, u32::MAX / 4)
}

/// Every open connection, for the sweep and for shutting down: eight bytes each.
#[derive(Default)]
pub(crate) struct Conns {
    slots: Mutex<Slots>,
    /// Told whenever the last one has left.
    emptied: Notify,
}

#[derive(Default)]
struct Slots {
    slots: Vec<Option<Arc<Conn>>>,
    free: Vec<u32>,
}

impl Conns {
    /// Adds a connection; returns its place.
    pub(crate) fn insert(&self, conn: &Arc<Conn>) -> u32 {
        let mut slots = self.slots.lock();
        match slots.free.pop() {
            Some(slot) => {
                slots.slots[slot as usize] = Some(Arc::clone(conn));
                slot
            }
            None => {
                slots.slots.push(Some(Arc::clone(conn)));
                slots.slots.len() as u32 - 1
            }
        }
    }

    pub(crate) fn remove(&self, slot: u32) {
        let mut slots = self.slots.lock();
        let removed = slots.slots.get_mut(slot as usize).and_then(Option::take);
        if removed.is_some() {
            slots.free.push(slot);
        }
        let is_empty = slots.free.len() == slots.slots.len();
        if is_empty {
            // Everybody left: give the memory back.
            *slots = Slots::default();
        }
        drop(slots);
        drop(removed);
        if is_empty {
            self.emptied.notify_waiters();
        }
    }

    /// Returns when there is nobody, at once where that is so already.
    pub(crate) async fn emptied(&self) {
        let mut emptied = std::pin::pin!(self.emptied.notified());
        emptied.as_mut().enable();
        if self.len() > 0 {
            emptied.await;
        }
    }

    pub(crate) fn len(&self) -> usize {
        let slots = self.slots.lock();
        slots.slots.len() - slots.free.len()
    }

    /// Copies the handles of the slots from `start` on, at most `max` slots; empty at the end.
    pub(crate) fn slice(&self, start: usize, max: usize) -> Option<Vec<Arc<Conn>>> {
        let slots = self.slots.lock();
        let end = slots.slots.len().min(start.saturating_add(max));
        (start < end).then(|| slots.slots[start..end].iter().flatten().map(Arc::clone).collect())
    }
}
