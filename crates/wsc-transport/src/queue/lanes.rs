//! Whose turn is next: a lane for each priority, served by weight.
//!
//! Start-time fair queueing: each byte that a lane sends moves its due time on by the inverse of its weight, and the lane
//! with the earliest due time is next. A lane that has been empty starts at the present, neither with a credit nor
//! with a debt, so what is urgent goes at once and what is not still gets its share.

use std::collections::VecDeque;

use wsc_protocol::Priority;

use super::{Class, Entry};

#[derive(Debug, Default)]
pub(super) struct Lanes {
    /// The most urgent first.
    lanes: [Lane; 3],
    /// Due time of what was taken last.
    now: u64,
}

#[derive(Debug, Default)]
struct Lane {
    entries: VecDeque<Entry>,
    /// When its turn is, in bytes of the heaviest weight.
    due: u64,
}

/// What a byte costs: the inverses of the weights 8, 4 and 1.
const COSTS: [u64; 3] = [1, 2, 8];

/// The lane of a priority.
pub(super) fn index(priority: Priority) -> usize {
    match priority {
        Priority::High => 0,
        Priority::Normal => 1,
        Priority::Low => 2,
    }
}

/// Where a search for the oldest has come to.
#[derive(Debug, Default)]
pub(super) struct Search([usize; 3]);

impl Lanes {
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.lanes.iter().flat_map(|lane| &lane.entries)
    }

    pub(super) fn push(&mut self, entry: Entry) {
        let lane = &mut self.lanes[index(entry.kind.priority)];
        if lane.entries.is_empty() {
            lane.due = lane.due.max(self.now);
        }
        lane.entries.push_back(entry);
    }

    /// Puts back what [`pop`](Self::pop) took last and nobody needed, or the rest of it. The other way round than it
    /// was taken, so that everything stands as it did before.
    pub(super) fn put_back(&mut self, entry: Entry) {
        let n = index(entry.kind.priority);
        let lane = &mut self.lanes[n];
        lane.due = lane.due.saturating_sub(COSTS[n] * entry.len() as u64);
        self.now = self.now.min(lane.due);
        lane.entries.push_front(entry);
    }

    /// Takes the next entry; of joined frames about `len` bytes, at a border.
    pub(super) fn pop(&mut self, len: usize) -> Option<Entry> {
        let waiting = self.lanes.iter_mut().zip(COSTS).filter(|(lane, _)| !lane.entries.is_empty());
        // The first of equals, which is the most urgent.
        let (lane, cost) = waiting.min_by_key(|(lane, _)| lane.due)?;
        let part = lane.entries.front_mut()?.split_front(len);
        let entry = part.or_else(|| lane.entries.pop_front())?;
        self.now = lane.due;
        lane.due += cost * entry.len() as u64;
        Some(entry)
    }

    /// Takes the oldest message of all lanes that `search` has not passed; of joined frames about `len` bytes.
    pub(super) fn take_oldest(&mut self, search: &mut Search, len: usize) -> Option<Entry> {
        let mut oldest: Option<(usize, u32)> = None;
        for (n, lane) in self.lanes.iter().enumerate() {
            let at = &mut search.0[n];
            while lane.entries.get(*at).is_some_and(|e| e.kind.class == Class::Must) {
                *at += 1;
            }
            let Some(entry) = lane.entries.get(*at) else { continue };
            if oldest.is_none_or(|(_, arrival)| (entry.arrival.wrapping_sub(arrival) as i32) < 0) {
                oldest = Some((n, entry.arrival));
            }
        }
        let (n, _) = oldest?;
        let (entries, at) = (&mut self.lanes[n].entries, search.0[n]);
        let part = entries.get_mut(at)?.split_front(len);
        part.or_else(|| entries.remove(at))
    }

    /// Takes everything.
    pub(super) fn take_all(&mut self) -> Vec<Entry> {
        self.lanes.iter_mut().flat_map(|lane| std::mem::take(&mut lane.entries)).collect()
    }
}
