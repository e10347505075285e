//! What happened on connections lately: a ring for the whole node.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicUsize, Ordering},
};

use parking_lot::Mutex;
use serde::Serialize;
use uuid::Uuid;
use wsc_protocol::DisconnectReason;

/// How much an [`EventRing`] keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EventRingConfig {
    /// How many entries it keeps of all connections together. Default 65,536, about 3 MiB; 0 keeps none.
    pub entries: usize,
    /// How many sessions may be traced at a time. Default 100.
    pub traces: usize,
    /// How many entries are kept of a traced session. Default 10,000, about 480 KiB.
    pub trace_entries: usize,
}

impl Default for EventRingConfig {
    fn default() -> Self {
        Self { entries: 65_536, traces: 100, trace_entries: 10_000 }
    }
}

/// One thing that happened on a connection. Texts such as room ids are not kept: every entry has the same few bytes.
///
/// As JSON it is its name under `event`, with its fields beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ConnectionEvent {
    /// It was registered.
    Connected,
    /// It is gone.
    Disconnected {
        /// Why.
        reason: DisconnectReason,
    },
    /// A close frame was queued for it, or came from it.
    Closed {
        /// The close code.
        code: u16,
    },
    /// It was told to go.
    Kicked,
    /// It joined a room.
    Joined {
        /// In how many rooms it is now.
        rooms: u32,
    },
    /// It left a room, or was removed from it.
    Left {
        /// In how many rooms it is now.
        rooms: u32,
    },
    /// A request was answered with an error.
    Error {
        /// The error code.
        code: u16,
    },
    /// A frame was no request.
    BadFrame {
        /// How many of them came in a row.
        in_a_row: u32,
    },
    /// Its messages came faster than allowed.
    RateLimited,
    /// It read too slowly, and messages were dropped.
    SlowConsumer {
        /// How many.
        dropped: u32,
        /// How many bytes.
        bytes: u64,
    },
    /// A message found its queue full.
    QueueFull {
        /// The message; nil where it has none.
        message: Uuid,
        /// How many bytes waited.
        queued_bytes: u32,
    },
    /// The replay of what rested for its user began.
    ReplayStarted {
        /// How many messages rested.
        messages: u32,
    },
    /// The replay ended.
    ReplayEnded {
        /// How many messages were sent.
        messages: u32,
        /// Whether everything was; otherwise a message used up its attempts, and the rest keeps resting.
        is_complete: bool,
    },
    /// A reliable message was handed to the kernel.
    Delivered {
        /// The message.
        message: Uuid,
        /// The transmission, counted from 1.
        attempt: u32,
    },
    /// It acknowledged a message.
    Ack {
        /// The message.
        message: Uuid,
    },
    /// It refused a message.
    Nack {
        /// The message.
        message: Uuid,
    },
    /// It did not acknowledge a message in time.
    AckTimeout {
        /// The message.
        message: Uuid,
        /// The transmission, counted from 1.
        attempt: u32,
    },
    /// A message is sent to it again.
    AckRetry {
        /// The message.
        message: Uuid,
        /// The transmission: 2 or more.
        attempt: u32,
    },
}

/// What happened on which connection, and when.
///
/// As JSON: `{"timestamp":…,"session":"…","event":"ack_timeout","message":"…","attempt":2}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RingEntry {
    /// When, in Unix milliseconds.
    pub timestamp: u64,
    /// The connection.
    pub session: Uuid,
    /// What.
    #[serde(flatten)]
    pub event: ConnectionEvent,
}

// What the configuration's documentation promises rests on it.
const _: () = assert!(size_of::<RingEntry>() <= 48);

/// The newest events of all connections, and all events of the few that are traced.
///
/// The ring is divided by session, so that connections seldom wait for each other's lock, a question about one reads a
/// small part of it, and who causes many events drives out those of few others. Its memory is asked for with the first
/// entry. Time comes from outside.
///
/// ```
/// use uuid::Uuid;
/// use wsc_events::{ConnectionEvent, EventRing};
///
/// let ring = EventRing::default();
/// let session = Uuid::from_u128(7);
/// ring.append(1000, session, ConnectionEvent::Connected);
/// ring.append(1005, session, ConnectionEvent::Error { code: 3000 });
/// let newest = ring.for_session(session, 1);
/// assert_eq!((newest[0].timestamp, newest[0].event), (1005, ConnectionEvent::Error { code: 3000 }));
/// ```
#[derive(Debug)]
pub struct EventRing {
    config: EventRingConfig,
    shards: Box<[Mutex<Shard>]>,
    /// How many traces there are in all shards.
    traces: AtomicUsize,
}

#[derive(Debug, Default)]
struct Shard {
    /// Grows up to its share of the ring, then it is overwritten from `next` on.
    entries: Vec<RingEntry>,
    next: usize,
    traces: Vec<Trace>,
}

#[derive(Debug)]
struct Trace {
    session: Uuid,
    until: u64,
    entries: VecDeque<RingEntry>,
}

/// No more sessions can be traced at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{limit} sessions are traced already, the most there may be")]
pub struct TooManyTraces {
    limit: usize,
}

impl EventRing {
    /// An empty ring.
    pub fn new(config: EventRingConfig) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { config, shards, traces: AtomicUsize::new(0) }
    }

    /// Adds what happened at this time (Unix milliseconds). It costs a lock that few others want, and some 50 bytes
    /// written.
    pub fn append(&self, unix_ms: u64, session: Uuid, event: ConnectionEvent) {
        let entry = RingEntry { timestamp: unix_ms, session, event };
        let mut shard = self.shard(session).lock();
        shard.keep(entry, self.config.entries.div_ceil(SHARDS));
        if let Some(position) = shard.traces.iter().position(|trace| trace.session == session) {
            if shard.traces[position].until < unix_ms {
                self.forget(&mut shard, position);
            } else {
                shard.traces[position].keep(entry, self.config.trace_entries);
            }
        }
    }

    /// What is known of a session, newest first, at most `limit`.
    pub fn for_session(&self, session: Uuid, limit: usize) -> Vec<RingEntry> {
        let shard = self.shard(session).lock();
        match shard.traces.iter().find(|trace| trace.session == session) {
            Some(trace) => trace.entries.iter().rev().take(limit).copied().collect(),
            None => shard.newest_first().filter(|entry| entry.session == session).take(limit).copied().collect(),
        }
    }

    /// Keeps every event of a session, those that the ring still has included, until this time (Unix milliseconds).
    /// After it the list is forgotten. For one that is traced already, the end is moved.
    ///
    /// # Errors
    ///
    /// So many are traced already that there is no room for another.
    pub fn trace(&self, session: Uuid, now: u64, until: u64) -> Result<(), TooManyTraces> {
        self.expire(now);
        let mut shard = self.shard(session).lock();
        if let Some(trace) = shard.traces.iter_mut().find(|trace| trace.session == session) {
            trace.until = until;
            return Ok(());
        }
        let limit = self.config.traces;
        let take_place = |traces: usize| (traces < limit).then_some(traces + 1);
        if self.traces.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take_place).is_err() {
            return Err(TooManyTraces { limit });
        }
        let known = shard.newest_first().filter(|entry| entry.session == session).take(self.config.trace_entries);
        let mut entries: VecDeque<_> = known.copied().collect();
        entries.make_contiguous().reverse();
        shard.traces.push(Trace { session, until, entries });
        Ok(())
    }

    /// Ends a trace before its time. False where the session is not traced.
    pub fn untrace(&self, session: Uuid) -> bool {
        let mut shard = self.shard(session).lock();
        let position = shard.traces.iter().position(|trace| trace.session == session);
        position.map(|position| self.forget(&mut shard, position)).is_some()
    }

    /// Until when a session is traced, in Unix milliseconds; `None` where it is not.
    pub fn traced_until(&self, session: Uuid) -> Option<u64> {
        self.shard(session).lock().traces.iter().find(|trace| trace.session == session).map(|trace| trace.until)
    }

    /// Forgets the traces whose time is over. To be called now and then, for sessions on which nothing happens any
    /// more.
    pub fn expire(&self, now: u64) {
        if self.traces.load(Ordering::Relaxed) == 0 {
            return;
        }
        for shard in &self.shards {
            let mut shard = shard.lock();
            while let Some(position) = shard.traces.iter().position(|trace| trace.until < now) {
                self.forget(&mut shard, position);
            }
        }
    }

    /// How many sessions are traced.
    pub fn traces(&self) -> usize {
        self.traces.load(Ordering::Relaxed)
    }

    /// The low bits of a session (UUIDv7) are random.
    fn shard(&self, session: Uuid) -> &Mutex<Shard> {
        &self.shards[session.as_bytes()[15] as usize % SHARDS]
    }

    fn forget(&self, shard: &mut Shard, position: usize) {
        shard.traces.swap_remove(position);
        self.traces.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Default for EventRing {
    fn default() -> Self {
        Self::new(EventRingConfig::default())
    }
}

impl Shard {
    fn keep(&mut self, entry: RingEntry, limit: usize) {
        if self.entries.len() < limit {
            if self.entries.capacity() == 0 {
                // All at once, so that no later entry pays for a move; the system gives memory when it is written to.
                self.entries.reserve_exact(limit);
            }
            self.entries.push(entry);
        } else if limit > 0 {
            self.entries[self.next] = entry;
            self.next = (self.next + 1) % limit;
        }
    }

    fn newest_first(&self) -> impl Iterator<Item = &RingEntry> {
        let (newer, older) = self.entries.split_at(self.next);
        newer.iter().rev().chain(older.iter().rev())
    }
}

impl Trace {
    fn keep(&mut self, entry: RingEntry, limit: usize) {
        while self.entries.len() >= limit.max(1) {
            self.entries.pop_front();
        }
        self.entries.push_back(entry);
    }
}

/// Enough that connections on a dozen threads seldom meet, and few enough that a chatty one has room.
const SHARDS: usize = 16;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn ring(entries: usize, traces: usize, trace_entries: usize) -> EventRing {
        EventRing::new(EventRingConfig { entries, traces, trace_entries })
    }

    fn session(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    fn times(entries: &[RingEntry]) -> Vec<u64> {
        entries.iter().map(|entry| entry.timestamp).collect()
    }

    const JOINED: ConnectionEvent = ConnectionEvent::Joined { rooms: 1 };

    #[test]
    fn entries_are_shown_with_their_fields() {
        let ring = EventRing::default();
        ring.append(5, session(1), ConnectionEvent::Disconnected { reason: DisconnectReason::SlowConsumer });
        ring.append(6, session(1), ConnectionEvent::AckTimeout { message: session(9), attempt: 2 });
        assert_eq!(
            serde_json::to_value(ring.for_session(session(1), 10)).unwrap(),
            json!([
                {"timestamp": 6, "session": session(1), "event": "ack_timeout", "message": session(9), "attempt": 2},
                {"timestamp": 5, "session": session(1), "event": "disconnected", "reason": "slow_consumer"},
            ])
        );
    }

    #[test]
    fn an_unused_ring_holds_nothing_and_one_of_no_size_neither() {
        let unused = EventRing::default();
        assert!(unused.shards.iter().all(|shard| shard.lock().entries.capacity() == 0));
        let off = ring(0, 1, 10);
        off.append(1, session(1), JOINED);
        assert!(off.for_session(session(1), 10).is_empty());
        // A trace works without it.
        off.trace(session(1), 2, 100).unwrap();
        off.append(3, session(1), JOINED);
        assert_eq!(times(&off.for_session(session(1), 10)), [3]);
    }

    #[test]
    fn a_trace_keeps_what_the_ring_would_lose() {
        let ring = ring(16 * 4, 2, 6);
        // All in one shard: the first session and one that makes much noise.
        let (quiet, noisy) = (session(0), session(16));
        ring.append(0, quiet, ConnectionEvent::Connected);
        ring.append(1, quiet, JOINED);
        ring.trace(quiet, 2, 1000).unwrap();
        for at in 3..100 {
            ring.append(at, noisy, JOINED);
        }
        ring.append(100, quiet, JOINED);
        assert_eq!(times(&ring.for_session(quiet, 10)), [100, 1, 0]);
        assert_eq!(times(&ring.for_session(noisy, 10)), [99, 98, 97]);
        // Bounded, too: the oldest goes.
        for at in 101..=106 {
            ring.append(at, quiet, JOINED);
        }
        assert_eq!(times(&ring.for_session(quiet, 10)), [106, 105, 104, 103, 102, 101]);
        assert_eq!(times(&ring.for_session(quiet, 2)), [106, 105]);
    }

    #[test]
    fn traces_are_few_and_end() {
        let ring = ring(1024, 2, 10);
        ring.trace(session(1), 0, 100).unwrap();
        ring.trace(session(2), 0, 200).unwrap();
        assert_eq!(ring.trace(session(3), 100, 300), Err(TooManyTraces { limit: 2 }));
        // One that is traced already takes no second place.
        ring.trace(session(1), 50, 150).unwrap();
        assert_eq!((ring.traces(), ring.traced_until(session(1))), (2, Some(150)));
        ring.append(151, session(1), JOINED);
        assert_eq!((ring.traces(), ring.traced_until(session(1))), (1, None));
        // What the ring has is still there.
        assert_eq!(times(&ring.for_session(session(1), 10)), [151]);
        ring.trace(session(3), 201, 300).unwrap();
        ring.trace(session(4), 201, 300).unwrap();
        assert!(ring.untrace(session(4)) && !ring.untrace(session(4)));
        ring.expire(301);
        assert_eq!(ring.traces(), 0);
    }

    #[test]
    fn threads_do_not_lose_each_others_events() {
        let ring = ring(16 * 8000, 10, 10_000);
        ring.trace(session(3), 0, u64::MAX).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let ring = &ring;
                scope.spawn(move || {
                    for at in 0..2000 {
                        ring.append(at, session(thread), JOINED);
                    }
                });
            }
        });
        for thread in 0..4 {
            let newest_first: Vec<_> = (0..2000).rev().collect();
            assert_eq!(times(&ring.for_session(session(thread), usize::MAX)), newest_first, "{thread}");
        }
    }

    proptest! {
        /// Against the plain thing: a list per shard of which the newest are kept.
        #[test]
        fn the_newest_of_each_shard_are_kept(
            per_shard in 1_usize..9,
            sessions in prop::collection::vec(0_u128..40, 0..200),
        ) {
            let ring = ring(per_shard * SHARDS, 0, 0);
            for (at, &n) in (0..).zip(&sessions) {
                ring.append(at, session(n), JOINED);
            }
            for n in 0..40 {
                let shard = sessions.iter().enumerate().rev().filter(|(_, m)| **m % SHARDS as u128 == n % SHARDS as u128);
                let expected: Vec<_> =
                    shard.take(per_shard).filter(|(_, m)| **m == n).map(|(at, _)| at as u64).collect();
                prop_assert_eq!(times(&ring.for_session(session(n), usize::MAX)), expected);
            }
        }
    }
}
