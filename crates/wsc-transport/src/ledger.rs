//! The ledger: every accepted pair of a message and a recipient, and what became of it.

use std::{
    cell::Cell,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use parking_lot::Mutex;

/// Sums over pairs of a message and a recipient. At every moment [`taken`](Self::taken) equals
/// [`accounted`](Self::accounted): what came in is somewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tally {
    /// Pairs that were taken on.
    pub accepted: i64,
    /// Pairs found in the store at the start, or taken over from another node.
    pub recovered: i64,
    /// Pairs on their way: in a queue, or waiting for their ACK. A gauge.
    pub in_flight: i64,
    /// Pairs that rest in the inbox. A gauge.
    pub stored: i64,
    /// Settled: the kernel took the last byte of a message that asks for no ACK.
    pub sent: i64,
    /// Settled: the recipient acknowledged it.
    pub acked: i64,
    /// Settled: the recipient refused it.
    pub rejected: i64,
    /// Settled: its time to live was over.
    pub expired: i64,
    /// Settled: handed to another node.
    pub released: i64,
    /// Settled, failed: a full queue refused or dropped it.
    pub queue_full: i64,
    /// Settled, failed: the connection closed before.
    pub conn_closed: i64,
    /// Settled, failed: the recipient was away, and nothing is stored for it.
    pub offline: i64,
    /// Settled, failed: no ACK came in time.
    pub timed_out: i64,
    /// Settled, failed: for another reason.
    pub other: i64,
    /// Copies that the kernel took: a message to a user with two connections is two of them, one pair.
    pub copies: i64,
}

impl Tally {
    /// All pairs that ever came in.
    pub fn taken(&self) -> i64 {
        self.accepted + self.recovered
    }

    /// All pairs wherever they are now.
    pub fn accounted(&self) -> i64 {
        self.in_flight + self.stored + self.settled()
    }

    /// All pairs that reached a final state here, or were released.
    pub fn settled(&self) -> i64 {
        self.sent + self.acked + self.rejected + self.expired + self.released + self.failed()
    }

    /// All failures.
    pub fn failed(&self) -> i64 {
        self.queue_full + self.conn_closed + self.offline + self.timed_out + self.other
    }

    fn add(&mut self, other: &Self) {
        // Taken apart, so that a figure that is added later cannot be forgotten here.
        let Self {
            accepted,
            recovered,
            in_flight,
            stored,
            sent,
            acked,
            rejected,
            expired,
            released,
            queue_full,
            conn_closed,
            offline,
            timed_out,
            other,
            copies,
        } = *other;
        self.accepted += accepted;
        self.recovered += recovered;
        self.in_flight += in_flight;
        self.stored += stored;
        self.sent += sent;
        self.acked += acked;
        self.rejected += rejected;
        self.expired += expired;
        self.released += released;
        self.queue_full += queue_full;
        self.conn_closed += conn_closed;
        self.offline += offline;
        self.timed_out += timed_out;
        self.other += other;
        self.copies += copies;
    }
}

/// Counts pairs from many threads, and reads all counts at one moment.
///
/// Each thread counts in a part of its own, so that counting is an uncontended lock. A step that keeps the balance
/// within one [`note`](Self::note) keeps it for every reader, because a reader holds all parts at once.
#[derive(Debug)]
pub struct Ledger {
    parts: Box<[Part]>,
}

/// A cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Part(Mutex<Tally>);

impl Default for Ledger {
    fn default() -> Self {
        let parts = 4 * std::thread::available_parallelism().map_or(1, usize::from);
        Self { parts: (0..parts).map(|_| Part::default()).collect() }
    }
}

impl Ledger {
    /// Takes note of one step.
    pub fn note(&self, step: impl FnOnce(&mut Tally)) {
        thread_local! {
            static INDEX: Cell<usize> = const { Cell::new(usize::MAX) };
        }
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let index = INDEX.with(|index| {
            if index.get() == usize::MAX {
                index.set(NEXT.fetch_add(1, Relaxed));
            }
            index.get()
        });
        step(&mut self.parts[index % self.parts.len()].0.lock());
    }

    /// The sums at one moment.
    pub fn snapshot(&self) -> Tally {
        let parts: Vec<_> = self.parts.iter().map(|part| part.0.lock()).collect();
        let mut sum = Tally::default();
        for part in &parts {
            sum.add(part);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn the_sum_holds_at_every_moment() {
        let ledger = Arc::new(Ledger::default());
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let ledger = Arc::clone(&ledger);
                std::thread::spawn(move || {
                    for _ in 0..20_000 {
                        ledger.note(|t| {
                            t.accepted += 8;
                            t.recovered += 2;
                            t.in_flight += 8;
                            t.stored += 2;
                        });
                        ledger.note(|t| {
                            t.in_flight -= 8;
                            t.stored += 1;
                            t.sent += 2;
                            t.conn_closed += 1;
                            t.offline += 1;
                            t.timed_out += 1;
                            t.queue_full += 1;
                            t.other += 1;
                        });
                        ledger.note(|t| {
                            t.stored -= 3;
                            t.acked += 1;
                            t.expired += 1;
                            t.released += 1;
                        });
                    }
                })
            })
            .collect();
        while threads.iter().any(|thread| !thread.is_finished()) {
            let tally = ledger.snapshot();
            assert_eq!(tally.taken(), tally.accounted());
        }
        for thread in threads {
            thread.join().unwrap();
        }
        let end = ledger.snapshot();
        assert_eq!((end.in_flight, end.stored), (0, 0));
        assert_eq!((end.sent, end.failed(), end.settled()), (160_000, 400_000, 800_000));
    }
}
