//! How deliveries were settled, on its way to the hub.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::wire::{self, MAX_SETTLED, Settlement};

/// Everything that is to be said about deliveries: by the application, for what it took, and once more where the hub
/// missed it. Nobody waits to put something here, so an application can settle whatever state the connection is in.
///
/// What is said within a few milliseconds shares a frame: a flood of messages does not cause one of acknowledgements.
#[derive(Debug, Default)]
pub(crate) struct Settlements {
    state: Mutex<State>,
    more: Notify,
}

#[derive(Debug, Default)]
struct State {
    order: VecDeque<Arc<str>>,
    waiting: HashMap<Arc<str>, Entry>,
    /// How many of those that wait were said now, and not before.
    fresh: usize,
    /// Since when something waits.
    since: Option<Instant>,
    /// Taken by the application and not settled by it yet.
    taken: Option<String>,
    closed: bool,
}

#[derive(Debug)]
struct Entry {
    settlement: Settlement,
    source: Source,
}

/// Who says so. Later ones outweigh earlier ones; of two alike ones the first counts, as it does at the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    /// It was said before.
    Repeated,
    /// The application took it and asked for the next one.
    Taken,
    /// The application said so itself.
    Application,
}

impl Settlements {
    /// The application settles these: that wins over what would be said by itself. `false` after
    /// [`close`](Self::close).
    pub(crate) fn settle(&self, ids: impl IntoIterator<Item = String>, settlement: &Settlement) -> bool {
        let mut state = self.lock();
        if state.closed {
            return false;
        }
        for id in ids {
            state.taken.take_if(|taken| *taken == id);
            state.push(id, settlement.clone(), Source::Application);
        }
        drop(state);
        self.more.notify_one();
        true
    }

    /// Says again what was said before.
    pub(crate) fn repeat(&self, id: String, settlement: Settlement) {
        self.lock().push(id, settlement, Source::Repeated);
        self.more.notify_one();
    }

    /// The application took this delivery; it is acknowledged with [`done`](Self::done).
    pub(crate) fn taken(&self, id: String) {
        self.lock().taken = Some(id);
    }

    /// Acknowledges what was taken last, unless the application settled it by itself.
    pub(crate) fn done(&self) {
        let mut state = self.lock();
        if let Some(id) = state.taken.take() {
            state.push(id, Settlement::Ack, Source::Taken);
            drop(state);
            self.more.notify_one();
        }
    }

    /// Waits until something is there.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn more(&self) {
        self.more.notified().await;
    }

    /// When what waits is to be sent, `None` while nothing does: at once when the application has settled all that it
    /// was given, `held` deliveries, or a frame is full; else after a moment in which more may come.
    pub(crate) fn due(&self, held: usize) -> Option<Instant> {
        let state = self.lock();
        let since = state.since?;
        let complete = state.fresh > 0 && state.fresh >= held;
        Some(if complete || state.order.len() >= MAX_SETTLED { since } else { since + LINGER })
    }

    /// The next ones that go into one frame of `max_bytes`; one goes in any case.
    pub(crate) fn take(&self, max_bytes: usize) -> Option<(Vec<String>, Settlement)> {
        let mut state = self.lock();
        let (first, settlement) = state.pop()?;
        let mut bytes = wire::settle_len(&first, &settlement);
        let mut ids = vec![first];
        while ids.len() < MAX_SETTLED
            && let Some(next) = state.order.front()
            && state.waiting.get(next).is_some_and(|entry| entry.settlement == settlement)
        {
            bytes += wire::another_id_len(next);
            if bytes > max_bytes {
                break;
            }
            ids.extend(state.pop().map(|(id, _)| id));
        }
        Some((ids, settlement))
    }

    /// Takes nothing more; what waits can still be sent.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
    }

    /// A hub that sends and does not read gets no further.
    pub(crate) fn is_full(&self) -> bool {
        self.lock().order.len() >= MAX_WAITING
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock, and a half-done change cannot be.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, id: String, settlement: Settlement, source: Source) {
        let id: Arc<str> = id.into();
        match self.waiting.get_mut(&id) {
            Some(entry) if source > entry.source => {
                self.fresh += usize::from(entry.source == Source::Repeated);
                *entry = Entry { settlement, source };
            }
            Some(_) => {}
            None => {
                self.waiting.insert(Arc::clone(&id), Entry { settlement, source });
                self.order.push_back(id);
                self.fresh += usize::from(source != Source::Repeated);
                self.since.get_or_insert_with(Instant::now);
            }
        }
    }

    fn pop(&mut self) -> Option<(String, Settlement)> {
        let id = self.order.pop_front()?;
        let entry = self.waiting.remove(&id)?;
        self.fresh -= usize::from(entry.source != Source::Repeated);
        if self.order.is_empty() {
            self.since = None;
        }
        Some((id.as_ref().to_owned(), entry.settlement))
    }
}

/// How long a settlement waits for others.
const LINGER: Duration = Duration::from_millis(5);

/// Settlements that wait to be written before reading stops.
const MAX_WAITING: usize = 10 * MAX_SETTLED;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nack(reason: &str) -> Settlement {
        Settlement::Nack { reason: reason.to_owned() }
    }

    fn ids(ids: &[&str]) -> Vec<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    proptest! {
        #[test]
        fn no_frame_is_larger_than_allowed_and_every_id_is_in_one(
            all in proptest::collection::btree_set("\\PC{1,20}|[\"\\\\\n]{1,20}", 0..200),
            limit in 400_usize..2000, reason in proptest::option::of("[ -~]{0,60}"),
        ) {
            let settlements = Settlements::default();
            let settlement = reason.as_deref().map_or(Settlement::Ack, nack);
            settlements.settle(all.iter().cloned(), &settlement);
            let mut seen = Vec::new();
            while let Some((ids, settlement)) = settlements.take(limit) {
                let frame = wire::settle(&ids, &settlement).unwrap();
                prop_assert!(frame.len() <= limit, "{} of {limit}", frame.len());
                seen.extend(ids);
            }
            prop_assert_eq!(seen, all.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_application_has_the_last_word_about_what_it_took() {
        let settlements = Settlements::default();
        settlements.taken("1".into());
        settlements.settle(ids(&["1"]), &nack("no"));
        settlements.done();
        assert_eq!(settlements.take(1000), Some((ids(&["1"]), nack("no"))));
        assert_eq!(settlements.take(1000), None);
        // Also where the acknowledgement waits already.
        settlements.taken("2".into());
        settlements.done();
        settlements.settle(ids(&["2"]), &nack("no"));
        assert_eq!(settlements.take(1000), Some((ids(&["2"]), nack("no"))));
        assert_eq!(settlements.take(1000), None);
    }

    #[test]
    fn each_id_is_settled_once_and_alike_ones_share_a_frame() {
        let settlements = Settlements::default();
        settlements.settle(ids(&["1", "2", "1"]), &Settlement::Ack);
        settlements.repeat("2".into(), Settlement::Ack);
        settlements.settle(ids(&["2", "3"]), &nack("no"));
        settlements.close();
        assert!(!settlements.settle(ids(&["4"]), &Settlement::Ack));
        assert_eq!(settlements.take(1000), Some((ids(&["1", "2"]), Settlement::Ack)));
        assert_eq!(settlements.take(1000), Some((ids(&["3"]), nack("no"))));
        assert_eq!(settlements.take(1000), None);
    }

    #[test]
    fn what_is_said_waits_for_more_but_not_where_nothing_more_can_come() {
        let settlements = Settlements::default();
        assert_eq!(settlements.due(0), None);
        settlements.settle(ids(&["1"]), &Settlement::Ack);
        let at_once = settlements.due(1).unwrap();
        assert_eq!(settlements.due(2), Some(at_once + LINGER));
        settlements.settle(ids(&["2"]), &Settlement::Ack);
        assert_eq!(settlements.due(2), Some(at_once));
        settlements.take(1000);
        assert_eq!(settlements.due(2), None);
        // The copies of a replay come one behind the other.
        settlements.repeat("1".into(), Settlement::Ack);
        let at_once = settlements.due(1000).unwrap() - LINGER;
        assert_eq!(settlements.due(0), Some(at_once + LINGER));
        for n in 0..MAX_SETTLED {
            settlements.repeat(n.to_string(), Settlement::Ack);
        }
        assert_eq!(settlements.due(0), Some(at_once));
        while settlements.take(1 << 20).is_some() {}
        assert_eq!((settlements.due(0), settlements.lock().fresh), (None, 0));
    }

    #[test]
    fn a_word_of_the_application_does_not_wait_behind_repetitions() {
        let settlements = Settlements::default();
        settlements.repeat("1".into(), Settlement::Ack);
        let later = settlements.due(1).unwrap();
        settlements.settle(ids(&["1"]), &nack("no"));
        assert_eq!(settlements.due(1), Some(later - LINGER));
        assert_eq!(settlements.take(1000), Some((ids(&["1"]), nack("no"))));
        assert_eq!(settlements.lock().fresh, 0);
    }
}
