//! Which deliveries were seen already, and what was said about them. No clock, no task: times are arguments.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use crate::wire::Settlement;

/// The ids of the last messages, and how each was settled.
///
/// The hub sends a message again when it missed the acknowledgement, and replays what it does not know to have
/// arrived. A client gives each to its application once, and repeats an acknowledgement that was lost.
///
/// Messages that ask for an acknowledgement are remembered apart from plain ones: they are the ones that are sent
/// again, and a flood of others must not make the client forget them. The two kinds of one id have nothing to do with
/// each other, such as the echo of a message and the message itself where somebody writes to themselves.
#[derive(Debug)]
pub(crate) struct Seen {
    reliable: Memory,
    plain: Memory,
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
    /// Remembers `limit` ids of each kind, each for at most `time`; with 0 everything is new.
    pub(crate) fn new(limit: usize, time: Duration) -> Self {
        Self { reliable: Memory::new(limit, time), plain: Memory::new(limit, time) }
    }

    /// Notes a delivery.
    pub(crate) fn note(&mut self, id: &str, require_ack: bool, now: Instant) -> Sighting {
        let memory = if require_ack { &mut self.reliable } else { &mut self.plain };
        memory.note(id, now)
    }

    /// Notes what the hub is told about a delivery. The first word counts, as it does there.
    pub(crate) fn settle(&mut self, id: &str, settlement: &Settlement, now: Instant) {
        self.reliable.settle(id, settlement, now);
    }

    /// How many deliveries the application has, or is about to have, that it has not settled.
    pub(crate) fn held(&self) -> usize {
        self.reliable.held.len()
    }
}

/// The ids of one kind.
#[derive(Debug)]
struct Memory {
    limit: usize,
    time: Duration,
    states: HashMap<Arc<str>, State>,
    /// Not settled, in the order in which they were first seen. What can be settled is looked up by its number.
    held: BTreeMap<u64, (Instant, Arc<str>)>,
    /// In the order in which they were settled.
    settled: VecDeque<(Instant, Arc<str>)>,
    last_number: u64,
}

#[derive(Debug)]
enum State {
    Held { number: u64 },
    Settled(Settlement),
}

impl Memory {
    fn new(limit: usize, time: Duration) -> Self {
        Self { limit, time, states: HashMap::new(), held: BTreeMap::new(), settled: VecDeque::new(), last_number: 0 }
    }

    fn note(&mut self, id: &str, now: Instant) -> Sighting {
        self.expire(now);
        match self.states.get(id) {
            Some(State::Held { .. }) => return Sighting::Again,
            Some(State::Settled(settlement)) => return Sighting::Settled(settlement.clone()),
            None => {}
        }
        if self.make_room() {
            self.last_number += 1;
            let id: Arc<str> = id.into();
            self.held.insert(self.last_number, (now, Arc::clone(&id)));
            self.states.insert(id, State::Held { number: self.last_number });
        }
        Sighting::First
    }

    fn settle(&mut self, id: &str, settlement: &Settlement, now: Instant) {
        let held = match self.states.get(id) {
            Some(State::Settled(_)) => return,
            Some(State::Held { number }) => self.held.remove(number),
            None => None,
        };
        let id = match held {
            Some((_, id)) => id,
            // Settled from elsewhere, or after it was forgotten: it is not to be shown (again) all the same.
            None if self.make_room() => id.into(),
            None => return,
        };
        self.states.insert(Arc::clone(&id), State::Settled(settlement.clone()));
        self.settled.push_back((now, id));
    }

    /// Forgets what nobody sends any more.
    fn expire(&mut self, now: Instant) {
        let is_old = |since: Instant| now.saturating_duration_since(since) >= self.time;
        while let Some((_, id)) = self.settled.pop_front_if(|(since, _)| is_old(*since)) {
            self.states.remove(&id);
        }
        while let Some(oldest) = self.held.first_entry().filter(|oldest| is_old(oldest.get().0)) {
            self.states.remove(&oldest.remove().1);
        }
    }

    /// Makes room for one more id; `false` where there is none at all. What was settled goes first: a copy of it
    /// costs the application less than one of a message that it is working on.
    fn make_room(&mut self) -> bool {
        while self.states.len() >= self.limit {
            let oldest = self.settled.pop_front().or_else(|| self.held.pop_first().map(|(_, oldest)| oldest));
            let Some((_, id)) = oldest else { return false };
            self.states.remove(&id);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_secs(60 * 60);

    fn refused() -> Settlement {
        Settlement::Nack { reason: "no".to_owned() }
    }

    #[test]
    fn a_second_copy_is_noticed() {
        let now = Instant::now();
        let mut seen = Seen::new(10, HOUR);
        assert_eq!(seen.note("a", true, now), Sighting::First);
        assert_eq!(seen.note("a", true, now), Sighting::Again);
        assert_eq!(seen.held(), 1);
        seen.settle("a", &Settlement::Ack, now);
        seen.settle("a", &refused(), now);
        assert_eq!(seen.note("a", true, now), Sighting::Settled(Settlement::Ack));
        assert_eq!(seen.held(), 0);
        seen.settle("unknown", &refused(), now);
        assert_eq!(seen.note("unknown", true, now), Sighting::Settled(refused()));
    }

    #[test]
    fn the_memory_is_bounded_and_forgets_the_oldest() {
        let now = Instant::now();
        let mut seen = Seen::new(3, HOUR);
        for n in 0..1000 {
            assert_eq!(seen.note(&n.to_string(), false, now), Sighting::First);
            assert!(seen.plain.states.len() <= 3 && seen.plain.held.len() == seen.plain.states.len());
        }
        assert_eq!(seen.note("999", false, now), Sighting::Again);
        assert_eq!(seen.note("997", false, now), Sighting::Again);
        assert_eq!(seen.note("996", false, now), Sighting::First);
    }

    #[test]
    fn plain_messages_do_not_push_out_what_will_be_sent_again() {
        let now = Instant::now();
        let mut seen = Seen::new(3, HOUR);
        seen.note("a", true, now);
        for n in 0..1000 {
            seen.note(&n.to_string(), false, now);
        }
        assert_eq!(seen.note("a", true, now), Sighting::Again);
        // Somebody wrote to themselves: the echo is another message than the one to be acknowledged.
        assert_eq!(seen.note("a", false, now), Sighting::First);
    }

    #[test]
    fn what_the_application_works_on_is_forgotten_last() {
        let now = Instant::now();
        let mut seen = Seen::new(3, HOUR);
        seen.note("held", true, now);
        for n in 0..1000 {
            let id = n.to_string();
            seen.note(&id, true, now);
            seen.settle(&id, &Settlement::Ack, now);
        }
        assert_eq!(seen.note("held", true, now), Sighting::Again);
        assert_eq!(seen.note("999", true, now), Sighting::Settled(Settlement::Ack));
        assert_eq!(seen.note("997", true, now), Sighting::First);
    }

    #[test]
    fn nothing_is_remembered_for_ever() {
        let start = Instant::now();
        let mut seen = Seen::new(1000, HOUR);
        seen.note("settled", true, start);
        seen.note("held", true, start);
        seen.settle("settled", &Settlement::Ack, start + HOUR / 2);
        let later = start + HOUR;
        assert_eq!(seen.note("settled", true, later), Sighting::Settled(Settlement::Ack));
        assert_eq!(seen.note("held", true, later), Sighting::First);
        seen.note("x", true, start + 3 * HOUR);
        assert_eq!((seen.reliable.states.len(), seen.reliable.settled.len(), seen.held()), (1, 0, 1));
    }

    #[test]
    fn without_a_memory_everything_is_new() {
        let now = Instant::now();
        let mut seen = Seen::new(0, HOUR);
        for _ in 0..2 {
            assert_eq!(seen.note("a", true, now), Sighting::First);
            seen.settle("a", &Settlement::Ack, now);
        }
        assert!(seen.reliable.states.is_empty() && seen.reliable.settled.is_empty());
    }

    fn is_held(state: &State) -> bool {
        matches!(state, State::Held { .. })
    }

    proptest! {
        #[test]
        fn whatever_happens_it_stays_bounded_and_consistent(
            limit in 0_usize..8, steps in proptest::collection::vec((0..3_u8, 0..20_u8, 0..40_u64), 0..300),
        ) {
            let mut memory = Memory::new(limit, HOUR);
            let mut now = Instant::now();
            for (step, id, minutes) in steps {
                now += Duration::from_secs(60 * minutes);
                let id = id.to_string();
                let first = match step {
                    0 => { memory.settle(&id, &Settlement::Ack, now); false }
                    _ => memory.note(&id, now) == Sighting::First,
                };
                if first && limit > 0 {
                    prop_assert_eq!(memory.note(&id, now), Sighting::Again);
                }
                prop_assert!(memory.states.len() <= limit);
                prop_assert_eq!(memory.held.len() + memory.settled.len(), memory.states.len());
                for (_, id) in memory.held.values() {
                    prop_assert!(is_held(&memory.states[id]));
                }
                for (_, id) in &memory.settled {
                    prop_assert!(!is_held(&memory.states[id]));
                }
            }
        }
    }
}
