//! A store: group commits, limits, failures, pages that are stale, removals that wait, crashes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use uuid::Uuid;
use wsc_delivery::mailbox::{Input, Letter, Millis, Place, Refusal, Verdict};

use crate::world::World;

#[derive(Default)]
pub(crate) struct Store {
    /// What survives a crash, per user.
    durable: Vec<BTreeMap<u64, Letter>>,
    next_place: u64,
    /// What waits for the next commit.
    queue: VecDeque<(usize, Letter)>,
    is_committing: bool,
    /// What is to be removed with the next commit. Nobody is shown it any more.
    removing: BTreeSet<(usize, Uuid)>,
    fails_until: Millis,
    /// Most letters of one user.
    pub(crate) limit: usize,
}

impl Store {
    pub(crate) fn new(users: usize, limit: usize) -> Self {
        Self { durable: vec![BTreeMap::new(); users], next_place: 1, limit, ..Self::default() }
    }

    /// What a user has in it, as it is shown.
    pub(crate) fn letters(&self, user: usize) -> impl Iterator<Item = (Place, &Letter)> {
        self.durable[user]
            .iter()
            .filter(move |(_, letter)| !self.removing.contains(&(user, letter.id)))
            .map(|(place, letter)| (Place(*place), letter))
    }

    pub(crate) fn has(&self, user: usize, id: Uuid) -> bool {
        self.letters(user).any(|(_, letter)| letter.id == id)
    }

    fn page(&self, user: usize, after: Option<Place>, messages: usize, bytes: u64) -> Input {
        let mut letters = Vec::new();
        let mut sum = 0;
        let mut rest = self.letters(user).filter(|(place, _)| after.is_none_or(|after| *place > after)).peekable();
        while let Some((place, letter)) = rest.peek() {
            sum += letter.body.len() as u64;
            if letters.len() == messages || !letters.is_empty() && sum > bytes {
                break;
            }
            letters.push((*place, (*letter).clone()));
            rest.next();
        }
        let has_more = rest.peek().is_some();
        Input::Page { after, letters, has_more }
    }

    pub(crate) fn crash(&mut self) {
        self.queue.clear();
        self.is_committing = false;
        // What was not removed yet comes back.
        self.removing.clear();
    }
}

impl World {
    fn store_works(&self) -> bool {
        self.now >= self.store.fails_until
    }

    pub(crate) fn store_fails(&mut self, ms: u64) {
        self.store.fails_until = self.now + ms;
        self.oracle.figures.store_failures += 1;
        self.note(|| format!("the store fails for {ms} ms"));
    }

    /// False where it takes nothing at the moment.
    pub(crate) fn append(&mut self, user: usize, letter: Letter) -> bool {
        if self.store.queue.len() >= 64 {
            return false;
        }
        self.store.queue.push_back((user, letter));
        self.commit_soon();
        true
    }

    fn commit_soon(&mut self) {
        if !self.store.is_committing {
            self.store.is_committing = true;
            let latency = self.rng.u64(0..20);
            self.after(latency, Self::commit);
        }
    }

    fn commit(&mut self) {
        self.store.is_committing = false;
        let works = self.store_works();
        if works {
            for (user, id) in std::mem::take(&mut self.store.removing) {
                self.store.durable[user].retain(|_, letter| letter.id != id);
            }
        } else {
            self.after(500, Self::commit_soon);
        }
        let count = self.store.queue.len().min(16);
        let batch: Vec<_> = self.store.queue.drain(..count).collect();
        for (user, letter) in batch {
            let id = letter.id;
            let input = if !works {
                Input::NotCommitted { id, refusal: Refusal::Failed }
            } else if self.store.durable[user].len() >= self.store.limit {
                Input::NotCommitted { id, refusal: Refusal::Full }
            } else {
                let place = self.store.next_place;
                self.store.next_place += self.rng.u64(1..4);
                self.store.durable[user].insert(place, letter);
                Input::Committed { id, place: Place(place) }
            };
            // Answers come in any order.
            let latency = if self.rng.bool() { 0 } else { self.rng.u64(0..30) };
            self.after(latency, move |world| world.feed(user, input));
        }
        if !self.store.queue.is_empty() {
            self.commit_soon();
        }
    }

    pub(crate) fn remove(&mut self, user: usize, id: Uuid) {
        self.store.removing.insert((user, id));
        self.commit_soon();
    }

    pub(crate) fn read(&mut self, user: usize, after: Option<Place>, messages: usize, bytes: u64) {
        // What the page shows is of some moment between question and answer.
        let (until_read, until_told) = (self.rng.u64(0..15), self.rng.u64(0..15));
        self.after(until_read, move |world| {
            let answer = match world.store_works() {
                true => world.store.page(user, after, messages, bytes),
                false => Input::ReadFailed { after },
            };
            world.after(until_told, move |world| world.feed(user, answer));
        });
    }

    pub(crate) fn take(&mut self, user: usize, id: Uuid, verdict: Verdict) {
        let (until_taken, until_told) = (self.rng.u64(0..15), self.rng.u64(0..15));
        self.after(until_taken, move |world| {
            let mut letter = None;
            if world.store_works() && world.store.has(user, id) {
                let letters = &mut world.store.durable[user];
                let place = letters.iter().find(|(_, letter)| letter.id == id).map(|(place, _)| *place);
                letter = place.and_then(|place| letters.remove(&place));
                world.oracle.taken.insert(id);
            }
            world.after(until_told, move |world| {
                if letter.is_none() {
                    world.oracle.not_taken(user, &mut world.conns);
                }
                world.feed(user, Input::Taken { id, verdict, letter });
            });
        });
    }

    /// Lists what has expired, and tells of it somewhat later.
    pub(crate) fn sweep(&mut self) {
        let now = self.now;
        for user in 0..self.store.durable.len() {
            let is_over = |letter: &Letter| letter.expires_at.is_some_and(|at| at <= now);
            let expired: Vec<_> =
                self.store.letters(user).map(|(_, letter)| letter).filter(|l| is_over(l)).cloned().collect();
            for letter in expired {
                let latency = self.rng.u64(0..200);
                self.after(latency, move |world| world.feed(user, Input::Expired { letter }));
            }
        }
        self.after(1_000, Self::sweep);
    }
}
