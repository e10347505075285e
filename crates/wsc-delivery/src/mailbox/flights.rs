//! The letters that are in flight, and when something is due for them.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    hash::{BuildHasherDefault, Hasher},
};

use bytes::Bytes;
use hashbrown::HashTable;
use slab::Slab;
use smallvec::SmallVec;
use uuid::Uuid;

use super::{Kind, Letter, Millis, Place, Slot};

/// Everything that is in flight, by id, with one order of what is due.
#[derive(Debug, Default)]
pub(super) struct Flights {
    all: Slab<Flight>,
    /// Only keys: the ids stand in the flights.
    by_id: HashTable<Key>,
    /// Each flight stands here at most once, under its own `due`.
    due: BTreeSet<(Millis, Key)>,
}

/// Names a flight while it is there.
pub(super) type Key = u32;

/// One letter in flight. There may be millions of these: what is rare is boxed, and "never" is a number.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) id: Uuid,
    pub(super) body: Bytes,
    pub(super) kind: Kind,
    pub(super) stage: Stage,
    pub(super) place: Place,
    /// From 1.
    pub(super) attempt: u32,
    /// On which connections it is or was in this stay on line.
    pub(super) copies: SmallVec<[CopyState; 2]>,
    expires_at: Millis,
    /// `only` and `except` of the letter, for the few that have them.
    audience: Option<Box<(Option<Uuid>, Option<Uuid>)>>,
    due: Millis,
}

/// Where the current attempt stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The kernel has no copy of this attempt; some connection has one in its queue.
    Sending,
    /// The kernel has one. At `due` the time for an acknowledgement is over.
    Written,
    /// No acknowledgement came in time. At `due` the letter is sent again.
    TimedOut,
}

/// One letter on one connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct CopyState {
    pub(super) slot: Slot,
    /// It is with the connection, which has not handed it to the kernel.
    pub(super) is_queued: bool,
    /// An earlier copy of it went out there.
    pub(super) was_written: bool,
    pub(super) is_replay: bool,
}

impl Flight {
    pub(super) fn len(&self) -> u64 {
        self.body.len() as u64
    }

    pub(super) fn is_over(&self, now: Millis) -> bool {
        self.expires_at <= now
    }

    pub(super) fn only(&self) -> Option<Uuid> {
        self.audience.as_deref()?.0
    }

    pub(super) fn except(&self) -> Option<Uuid> {
        self.audience.as_deref()?.1
    }

    pub(super) fn copy(&self, slot: Slot) -> Option<&CopyState> {
        self.copies.iter().find(|copy| copy.slot == slot)
    }

    pub(super) fn copy_mut(&mut self, slot: Slot) -> Option<&mut CopyState> {
        self.copies.iter_mut().find(|copy| copy.slot == slot)
    }

    pub(super) fn is_queued_somewhere(&self) -> bool {
        self.copies.iter().any(|copy| copy.is_queued)
    }

    /// Whether nothing more comes of this attempt by itself: no copy will be written, and no time runs.
    pub(super) fn is_stranded(&self) -> bool {
        self.stage == Stage::Sending && !self.is_queued_somewhere()
    }

    pub(super) fn into_letter(self) -> Letter {
        let (only, except) = (self.only(), self.except());
        Letter {
            id: self.id,
            kind: self.kind,
            body: self.body,
            expires_at: (self.expires_at != NEVER).then_some(self.expires_at),
            only,
            except,
        }
    }
}

impl Flights {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn find(&self, id: Uuid) -> Option<Key> {
        self.by_id.find(hash(id), |key| self.all.get(*key as usize).is_some_and(|flight| flight.id == id)).copied()
    }

    pub(super) fn get(&self, key: Key) -> Option<&Flight> {
        self.all.get(key as usize)
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut Flight> {
        self.all.get_mut(key as usize)
    }

    /// Adds a letter that is not there yet, before its first attempt.
    pub(super) fn insert(&mut self, letter: Letter, place: Place) -> Key {
        // Doubling would leave up to half of the space unused, and this is where the memory goes.
        if self.all.len() == self.all.capacity() {
            self.all.reserve_exact((self.all.len() / 4).max(4));
        }
        let id = letter.id;
        let key = self.all.insert(Flight {
            id,
            body: letter.body,
            kind: letter.kind,
            stage: Stage::Sending,
            place,
            attempt: 1,
            copies: SmallVec::new(),
            expires_at: letter.expires_at.unwrap_or(NEVER),
            audience: (letter.only.is_some() || letter.except.is_some())
                .then(|| Box::new((letter.only, letter.except))),
            due: NEVER,
        }) as Key;
        let all = &self.all;
        let rehash = |key: &Key| all.get(*key as usize).map_or(0, |flight| hash(flight.id));
        self.by_id.insert_unique(hash(id), key, rehash);
        key
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Flight> {
        let flight = self.all.try_remove(key as usize)?;
        if let Ok(entry) = self.by_id.find_entry(hash(flight.id), |k| *k == key) {
            entry.remove();
        }
        if flight.due != NEVER {
            self.due.remove(&(flight.due, key));
        }
        if self.all.is_empty() && self.all.capacity() > KEPT_CAPACITY {
            self.all = Slab::new();
            self.by_id = HashTable::new();
        }
        Some(flight)
    }

    /// Brings a flight to a stage that lasts until `due`, or until something happens to it.
    pub(super) fn set_stage(&mut self, key: Key, stage: Stage, due: Option<Millis>) {
        let Some(flight) = self.all.get_mut(key as usize) else { return };
        let due = due.unwrap_or(NEVER);
        flight.stage = stage;
        if flight.due != due {
            if flight.due != NEVER {
                self.due.remove(&(flight.due, key));
            }
            if due != NEVER {
                self.due.insert((due, key));
            }
            flight.due = due;
        }
    }

    /// When something is due next.
    pub(super) fn next_due(&self) -> Option<Millis> {
        self.due.first().map(|(due, _)| *due)
    }

    /// The next flight for which something is due at `now`. What is due is done once: it is not due any more.
    pub(super) fn pop_due(&mut self, now: Millis) -> Option<Key> {
        let &(due, key) = self.due.first()?;
        if due > now {
            return None;
        }
        self.due.pop_first();
        if let Some(flight) = self.all.get_mut(key as usize) {
            flight.due = NEVER;
        }
        Some(key)
    }

    /// The flights that `which` chooses, in the order of acceptance.
    pub(super) fn keys(&self, mut which: impl FnMut(&Flight) -> bool) -> Vec<Key> {
        let mut keys: Vec<_> = self
            .all
            .iter()
            .filter(|(_, flight)| which(flight))
            .map(|(key, flight)| (flight.place, key as Key))
            .collect();
        keys.sort_unstable();
        keys.into_iter().map(|(_, key)| key).collect()
    }

    pub(super) fn due_of(&self, key: Key) -> Option<Millis> {
        self.get(key).map(|flight| flight.due).filter(|due| *due != NEVER)
    }
}

/// No time comes up to it.
const NEVER: Millis = Millis::MAX;

/// Flights for which an empty mailbox keeps the space.
const KEPT_CAPACITY: usize = 64;

/// A map by message ids. The hub makes these itself, with 62 random bits at their end, so nobody can choose ids that
/// collide, and one multiplication spreads them.
pub(super) type IdMap<T> = HashMap<Uuid, T, BuildHasherDefault<IdHasher>>;

/// A set of message ids.
pub(super) type IdSet = HashSet<Uuid, BuildHasherDefault<IdHasher>>;

#[derive(Debug, Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Ok(id) = Uuid::from_slice(bytes) {
            self.0 = hash(id);
        }
    }

    /// The length in front of the bytes, always the same.
    fn write_usize(&mut self, _: usize) {}
}

fn hash(id: Uuid) -> u64 {
    let product = u128::from(id.as_u128() as u64) * 0x9E37_79B9_7F4A_7C15;
    product as u64 ^ (product >> 64) as u64
}
