//! Which deliveries were seen already.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::wire::Settlement;

/// The last so many message ids, and how each was settled.
///
/// The hub sends a message again when it missed the acknowledgement, and replays what it does not know to have
/// arrived. A client gives each to its application once, and repeats an acknowledgement that was lost.
#[derive(Debug)]
pub(crate) struct Seen {
    limit: usize,
    order: VecDeque<Arc<str>>,
    settled: HashMap<Arc<str>, Option<Settlement>>,
}

/// What an id is to the client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Sighting {
    First,
    /// Seen, and not settled (yet).
    Again,
    /// Seen and settled like this.
    Settled(Settlement),
}

impl Seen {
    /// Remembers `limit` ids; with 0 everything is new.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, order: VecDeque::new(), settled: HashMap::new() }
    }

    pub(crate) fn note(&mut self, id: &str) -> Sighting {
        match self.settled.get(id) {
            Some(None) => return Sighting::Again,
            Some(Some(settlement)) => return Sighting::Settled(settlement.clone()),
            None => {}
        }
        if self.limit > 0 {
            if self.order.len() == self.limit
                && let Some(oldest) = self.order.pop_front()
            {
                self.settled.remove(&oldest);
            }
            let id: Arc<str> = id.into();
            self.order.push_back(Arc::clone(&id));
            self.settled.insert(id, None);
        }
        Sighting::First
    }

    pub(crate) fn settle(&mut self, id: &str, settlement: &Settlement) {
        if let Some(state) = self.settled.get_mut(id) {
            *state = Some(settlement.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_copy_is_noticed() {
        let mut seen = Seen::new(10);
        assert_eq!(seen.note("a"), Sighting::First);
        assert_eq!(seen.note("a"), Sighting::Again);
        seen.settle("a", &Settlement::Ack);
        assert_eq!(seen.note("a"), Sighting::Settled(Settlement::Ack));
        seen.settle("unknown", &Settlement::Ack);
        assert_eq!(seen.note("unknown"), Sighting::First);
    }

    #[test]
    fn the_window_is_bounded_and_forgets_the_oldest() {
        let mut seen = Seen::new(3);
        for n in 0..1000 {
            assert_eq!(seen.note(&n.to_string()), Sighting::First);
            assert!(seen.order.len() <= 3 && seen.settled.len() == seen.order.len());
        }
        assert_eq!(seen.note("999"), Sighting::Again);
        assert_eq!(seen.note("997"), Sighting::Again);
        assert_eq!(seen.note("996"), Sighting::First);
    }

    #[test]
    fn without_a_window_everything_is_new() {
        let mut seen = Seen::new(0);
        assert_eq!(seen.note("a"), Sighting::First);
        assert_eq!(seen.note("a"), Sighting::First);
    }
}
