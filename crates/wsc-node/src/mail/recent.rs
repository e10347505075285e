//! What is remembered for a while.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
};

/// A map whose entries are forgotten a fixed time after they were last put in, and the oldest of them when there are
/// too many.
#[derive(Debug)]
pub(crate) struct Recent<K, V> {
    entries: HashMap<K, (V, u64)>,
    /// In the order of being put in, each with when that was; what was put in again has a later one behind it.
    order: VecDeque<(u64, u64, K)>,
    last: u64,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Self { entries: HashMap::new(), order: VecDeque::new(), last: 0 }
    }
}

impl<K: Clone + Eq + Hash, V> Recent<K, V> {
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(value, _)| value)
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.entries.get_mut(key).map(|(value, _)| value)
    }

    /// Puts an entry in, or the newest value in its place; its time begins anew.
    pub(crate) fn put(&mut self, key: K, value: V, now: u64) {
        self.last += 1;
        // What was put in again and again leaves its earlier places behind.
        if self.order.len() > 2 * self.entries.len() + MOST_STALE {
            let entries = &self.entries;
            self.order.retain(|(_, number, key)| entries.get(key).is_some_and(|(_, current)| current == number));
        }
        self.order.push_back((now, self.last, key.clone()));
        self.entries.insert(key, (value, self.last));
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        self.entries.remove(key).map(|(value, _)| value)
    }

    /// Forgets what is older than `retention` milliseconds at `now`, and the oldest above `max` entries; returns it.
    pub(crate) fn forget(&mut self, now: u64, retention: u64, max: usize) -> Vec<V> {
        let mut forgotten = Vec::new();
        while let Some((since, number, key)) = self.order.front() {
            let is_current = self.entries.get(key).is_some_and(|(_, current)| current == number);
            if is_current && self.entries.len() <= max && since + retention > now {
                break;
            }
            if is_current {
                forgotten.extend(self.entries.remove(key).map(|(value, _)| value));
            }
            self.order.pop_front();
        }
        forgotten
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

/// Earlier places that are left behind before it is worth to look for them.
const MOST_STALE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_often_takes_no_more_room() {
        let mut recent = Recent::default();
        recent.put(0, (), 0);
        for now in 0..10_000 {
            recent.put(1, (), now);
        }
        assert!(recent.order.len() <= 2 * 2 + MOST_STALE + 1, "{}", recent.order.len());
    }

    #[test]
    fn old_ones_and_too_many_are_forgotten() {
        let mut recent = Recent::default();
        for n in 0..5_u64 {
            recent.put(n, n, n);
        }
        recent.put(0, 10, 5);
        recent.forget(5, 4, 100);
        // 1 is four milliseconds old; 0 was put in again.
        assert_eq!((recent.get(&1), recent.get(&0), recent.len()), (None, Some(&10), 4));
        recent.forget(5, 100, 2);
        assert_eq!((recent.get(&4), recent.get(&0), recent.len()), (Some(&4), Some(&10), 2));
        recent.remove(&4);
        recent.forget(1000, 100, 2);
        assert_eq!((recent.len(), recent.order.len()), (0, 0));
    }
}
