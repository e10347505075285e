//! The ledger: every accepted pair of a message and a recipient, and what became of it.

use std::{
    cell::Cell,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use parking_lot::Mutex;

/// Sums over pairs of a message and a recipient. At every moment
/// `accepted = in_flight + sent + queue_full + conn_closed + other`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tally {
    /// Pairs that were taken on.
    pub accepted: i64,
    /// Those that are not settled.
    pub in_flight: i64,
    /// Settled: the kernel took the last byte.
    pub sent: i64,
    /// Settled: a full queue refused or dropped it.
    pub queue_full: i64,
    /// Settled: the connection closed before.
    pub conn_closed: i64,
    /// Settled: failed for another reason.
    pub other: i64,
    /// Copies that the kernel took: a message to a user with two connections is two of them, one pair.
    pub copies: i64,
}

impl Tally {
    /// All failures.
    pub fn failed(&self) -> i64 {
        self.queue_full + self.conn_closed + self.other
    }

    fn add(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.in_flight += other.in_flight;
        self.sent += other.sent;
        self.queue_full += other.queue_full;
        self.conn_closed += other.conn_closed;
        self.other += other.other;
        self.copies += other.copies;
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
                            t.accepted += 3;
                            t.in_flight += 3;
                        });
                        ledger.note(|t| {
                            t.in_flight -= 3;
                            t.sent += 2;
                            t.conn_closed += 1;
                        });
                    }
                })
            })
            .collect();
        while threads.iter().any(|thread| !thread.is_finished()) {
            let tally = ledger.snapshot();
            assert_eq!(tally.accepted, tally.in_flight + tally.sent + tally.failed());
        }
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(ledger.snapshot().sent, 160_000);
    }
}
