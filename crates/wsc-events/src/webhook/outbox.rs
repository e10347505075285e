//! The queue of batches, and the dead letters, on a store.

use std::{
    collections::{HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use tokio::{
    sync::{Mutex, MutexGuard, Notify},
    time::Instant,
};

use super::{
    config::WebhookConfig,
    entry::{About, End, Entry, id_of, id_text},
    store::{OutboxChange, OutboxError, OutboxStore, Shelf},
};

/// Batches wait here until they are posted. The store has their bytes; memory has a few words for each.
pub(super) struct Outbox {
    store: Arc<dyn OutboxStore>,
    /// Held while the store commits, so that what is in memory and what is in the store change in the same order.
    index: Mutex<Index>,
    limits: parking_lot::Mutex<Limits>,
    /// Told when there is more to post.
    pub(super) news: Notify,
    pub(super) gauges: Gauges,
    clock: Clock,
}

/// Figures that are read without waiting for the store.
#[derive(Debug, Default)]
pub(super) struct Gauges {
    pub(super) waiting: AtomicU64,
    pub(super) waiting_events: AtomicU64,
    pub(super) waiting_bytes: AtomicU64,
    pub(super) dead: AtomicU64,
    pub(super) dead_total: AtomicU64,
    pub(super) forgotten: AtomicU64,
}

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    batches: usize,
    bytes: u64,
    dead: usize,
}

impl From<&WebhookConfig> for Limits {
    fn from(config: &WebhookConfig) -> Self {
        Self { batches: config.outbox_batches, bytes: config.outbox_bytes, dead: config.dead_letters }
    }
}

/// The oldest batch, to be posted. It is not given up by anybody else until it is [put back](Outbox::put_back),
/// [removed](Outbox::remove) or [buried](Outbox::bury).
#[derive(Debug)]
pub(super) struct Head {
    pub(super) key: u64,
    pub(super) entry: Entry,
    pub(super) tries: Tries,
    /// How long it has been waiting, in milliseconds.
    pub(super) age_ms: u64,
}

/// What was tried with the oldest batch since the start.
#[derive(Clone, Debug, Default)]
pub(super) struct Tries {
    /// How often it was posted.
    pub(super) attempts: u32,
    /// How many of these the receiver failed on.
    pub(super) failed: u32,
    pub(super) status: Option<u16>,
    pub(super) error: String,
}

/// Batches that were given up, oldest first.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DeadPage {
    /// The letters of this page.
    pub letters: Vec<DeadLetter>,
    /// How many there are in all.
    pub total: usize,
    /// What to ask for the page after this one with; `None` where this is the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A batch that was given up.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Its id, the `webhook-id` of its requests.
    pub id: String,
    /// When it was made, in Unix milliseconds.
    pub created_ms: u64,
    /// When it was given up, in Unix milliseconds.
    pub died_ms: u64,
    /// How often it was posted since it was queued or the hub was started.
    pub attempts: u32,
    /// The status of the last answer; `None` where there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_status: Option<u16>,
    /// Why it was given up.
    pub last_error: String,
    /// The first event types in it, each once.
    pub event_types: Vec<String>,
    /// How many events are in it.
    pub events: u32,
}

impl Outbox {
    /// Reads what the store has, page by page.
    pub(super) async fn open(store: Arc<dyn OutboxStore>, limits: Limits) -> Result<Self, OutboxError> {
        let mut index = Index::new();
        for shelf in [Shelf::Waiting, Shelf::Dead] {
            let mut after = None;
            loop {
                let page = store.scan(shelf, after, PAGE).await?;
                let is_last = page.len() < PAGE;
                for (key, value) in page {
                    after = Some(key);
                    index.next_key = index.next_key.max(key.saturating_add(1));
                    match About::decode(&value) {
                        Some(about) => index.add(shelf, Slot::new(key, &about, value.len())),
                        // A later version may be able to read it.
                        None => tracing::error!(?shelf, key, "a webhook batch can't be read and is left alone"),
                    }
                }
                if is_last {
                    break;
                }
            }
        }
        let outbox = Self {
            store,
            limits: parking_lot::Mutex::new(limits),
            index: Mutex::new(index),
            news: Notify::new(),
            gauges: Gauges::default(),
            clock: Clock::started_now(),
        };
        outbox.show(&*outbox.index.lock().await);
        Ok(outbox)
    }

    /// Limits from the next change on.
    pub(super) fn set_limits(&self, limits: Limits) {
        *self.limits.lock() = limits;
    }

    /// Adds batches at the end. Where there is no room, the oldest that is not just being posted is given up.
    ///
    /// # Errors
    ///
    /// Nothing was added, and the same may be added again.
    pub(super) async fn append(&self, entries: &[Entry]) -> Result<(), OutboxError> {
        let mut index = self.index.lock().await;
        let mut plan = Plan::default();
        for entry in entries {
            plan.queue(&index, entry);
        }
        self.make_room(&index, &mut plan).await?;
        self.carry_out(&mut index, plan).await?;
        self.news.notify_one();
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.gauges.waiting.load(Relaxed) == 0
    }

    /// Whether the oldest batch was posted before.
    pub(super) async fn was_tried(&self) -> bool {
        let index = self.index.lock().await;
        let head = index.waiting.front().map(|slot| slot.key);
        index.tries.as_ref().is_some_and(|(key, tries)| Some(*key) == head && tries.attempts > 0)
    }

    /// Takes the oldest batch to be posted; `None` where none waits.
    pub(super) async fn head(&self) -> Result<Option<Head>, OutboxError> {
        let mut index = self.index.lock().await;
        loop {
            let Some(key) = index.waiting.front().map(|slot| slot.key) else {
                return Ok(None);
            };
            let Some(entry) = self.read(Shelf::Waiting, key).await? else {
                tracing::error!(key, "a webhook batch is not in its store any more");
                index.forget(key);
                self.show(&index);
                continue;
            };
            let tries = match &index.tries {
                Some((tried, tries)) if *tried == key => tries.clone(),
                _ => Tries::default(),
            };
            index.in_flight = Some(key);
            let age_ms = self.clock.now_ms().saturating_sub(entry.about.queued_ms);
            return Ok(Some(Head { key, entry, tries, age_ms }));
        }
    }

    /// The head was not taken by the receiver; it is tried again.
    pub(super) async fn put_back(&self, key: u64, tries: Tries) {
        let mut index = self.index.lock().await;
        index.in_flight = None;
        index.tries = Some((key, tries));
    }

    /// The head was taken by the receiver.
    ///
    /// # Errors
    ///
    /// It is still there, and still nobody else's.
    pub(super) async fn remove(&self, key: u64) -> Result<(), OutboxError> {
        let mut index = self.index.lock().await;
        let mut plan = Plan::default();
        plan.take_away(Shelf::Waiting, key);
        self.carry_out(&mut index, plan).await?;
        index.in_flight = None;
        Ok(())
    }

    /// The head is given up.
    ///
    /// # Errors
    ///
    /// It is still there, and still nobody else's.
    pub(super) async fn bury(&self, key: u64, entry: &Entry, tries: &Tries) -> Result<(), OutboxError> {
        let mut index = self.index.lock().await;
        let mut plan = Plan::default();
        plan.bury(&index, key, entry.clone(), tries.clone(), self.clock.now_ms());
        self.carry_out(&mut index, plan).await?;
        index.in_flight = None;
        Ok(())
    }

    /// Puts a dead letter back, at the end of the queue. False where there is none of this id.
    pub(super) async fn replay(&self, id: &str) -> Result<bool, OutboxError> {
        let mut index = self.index.lock().await;
        let slot = id_of(id).and_then(|id| index.dead.iter().find(|slot| slot.id == id));
        let Some(key) = slot.map(|slot| slot.key) else {
            return Ok(false);
        };
        let Some(mut entry) = self.read(Shelf::Dead, key).await? else {
            return Ok(false);
        };
        entry.about.end = None;
        entry.about.queued_ms = self.clock.now_ms();
        let mut plan = Plan::default();
        plan.queue(&index, &entry);
        plan.take_away(Shelf::Dead, key);
        self.make_room(&index, &mut plan).await?;
        self.carry_out(&mut index, plan).await?;
        self.news.notify_one();
        Ok(true)
    }

    /// Dead letters, oldest first.
    pub(super) async fn dead(&self, after: Option<&str>, limit: usize) -> Result<DeadPage, OutboxError> {
        let after = after.map(|text| text.parse().map_err(|_| OutboxError::Cursor)).transpose()?;
        let keys: Vec<_> = {
            let index = self.index.lock().await;
            let left = index.dead.iter().map(|slot| slot.key).filter(|&key| after.is_none_or(|after| key > after));
            left.take(limit.saturating_add(1)).collect()
        };
        let mut letters = Vec::new();
        for &key in keys.iter().take(limit) {
            // It may have been replayed meanwhile.
            letters.extend(self.read(Shelf::Dead, key).await?.map(DeadLetter::from));
        }
        let next = if keys.len() > limit { keys.get(limit.wrapping_sub(1)).map(u64::to_string) } else { None };
        Ok(DeadPage { letters, total: self.gauges.dead.load(Relaxed) as usize, next })
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// Plans who has to go, so that what is queued has room.
    async fn make_room(&self, index: &Index, plan: &mut Plan) -> Result<(), OutboxError> {
        let limits = *self.limits.lock();
        let mut batches = index.waiting.len() + plan.queued.len();
        let mut bytes = index.waiting_bytes + plan.queued.iter().map(|slot| slot.bytes).sum::<u64>();
        let mut oldest = index.waiting.iter().filter(|slot| Some(slot.key) != index.in_flight);
        while batches > limits.batches || bytes > limits.bytes {
            let Some(slot) = oldest.next() else { break };
            let mut tries = match &index.tries {
                Some((tried, tries)) if *tried == slot.key => tries.clone(),
                _ => Tries::default(),
            };
            let last = std::mem::take(&mut tries.error);
            tries.error = if last.is_empty() { FULL.to_owned() } else { format!("{FULL}; before that: {last}") };
            match self.read(Shelf::Waiting, slot.key).await? {
                Some(entry) => plan.bury(index, slot.key, entry, tries, self.clock.now_ms()),
                None => plan.take_away(Shelf::Waiting, slot.key),
            }
            batches -= 1;
            bytes -= slot.bytes;
        }
        Ok(())
    }

    async fn carry_out(&self, index: &mut MutexGuard<'_, Index>, mut plan: Plan) -> Result<(), OutboxError> {
        plan.forget_the_oldest(index, *self.limits.lock());
        self.store.commit(plan.changes).await?;
        let gone: HashSet<_> = plan.gone.into_iter().collect();
        index.settle(&gone, plan.queued, plan.buried);
        self.gauges.dead_total.fetch_add(plan.died, Relaxed);
        self.gauges.forgotten.fetch_add(plan.forgotten, Relaxed);
        self.show(index);
        Ok(())
    }

    async fn read(&self, shelf: Shelf, key: u64) -> Result<Option<Entry>, OutboxError> {
        let found = self.store.scan(shelf, key.checked_sub(1), 1).await?.pop();
        Ok(found.filter(|(at, _)| *at == key).and_then(|(_, value)| Entry::decode(value)))
    }

    fn show(&self, index: &Index) {
        self.gauges.waiting.store(index.waiting.len() as u64, Relaxed);
        self.gauges.waiting_events.store(index.waiting_events, Relaxed);
        self.gauges.waiting_bytes.store(index.waiting_bytes, Relaxed);
        self.gauges.dead.store(index.dead.len() as u64, Relaxed);
    }
}

/// What memory knows of the store, oldest first.
struct Index {
    next_key: u64,
    waiting: VecDeque<Slot>,
    waiting_events: u64,
    waiting_bytes: u64,
    dead: VecDeque<Slot>,
    dead_bytes: u64,
    in_flight: Option<u64>,
    tries: Option<(u64, Tries)>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    key: u64,
    id: uuid::Uuid,
    events: u32,
    bytes: u64,
}

impl Slot {
    fn new(key: u64, about: &About, bytes: usize) -> Self {
        Self { key, id: about.id, events: about.events, bytes: bytes as u64 }
    }
}

impl Index {
    fn new() -> Self {
        Self {
            next_key: 1,
            waiting: VecDeque::new(),
            waiting_events: 0,
            waiting_bytes: 0,
            dead: VecDeque::new(),
            dead_bytes: 0,
            in_flight: None,
            tries: None,
        }
    }

    fn add(&mut self, shelf: Shelf, slot: Slot) {
        match shelf {
            Shelf::Waiting => {
                self.waiting_events += u64::from(slot.events);
                self.waiting_bytes += slot.bytes;
                self.waiting.push_back(slot);
            }
            Shelf::Dead => {
                self.dead_bytes += slot.bytes;
                self.dead.push_back(slot);
            }
        }
    }

    fn settle(&mut self, gone: &HashSet<(Shelf, u64)>, queued: Vec<Slot>, buried: Vec<Slot>) {
        for slot in queued {
            self.next_key = self.next_key.max(slot.key + 1);
            self.add(Shelf::Waiting, slot);
        }
        for slot in buried {
            self.next_key = self.next_key.max(slot.key + 1);
            self.add(Shelf::Dead, slot);
        }
        if gone.iter().any(|(shelf, _)| *shelf == Shelf::Waiting) {
            let (events, bytes) = (&mut self.waiting_events, &mut self.waiting_bytes);
            remove_from(&mut self.waiting, Shelf::Waiting, gone, |slot| {
                *events -= u64::from(slot.events);
                *bytes -= slot.bytes;
            });
        }
        if gone.iter().any(|(shelf, _)| *shelf == Shelf::Dead) {
            let bytes = &mut self.dead_bytes;
            remove_from(&mut self.dead, Shelf::Dead, gone, |slot| *bytes -= slot.bytes);
        }
    }

    /// A batch that the store does not have.
    fn forget(&mut self, key: u64) {
        self.settle(&HashSet::from([(Shelf::Waiting, key)]), Vec::new(), Vec::new());
    }
}

/// Takes out what is gone. Nearly always that is the first one, which costs nothing; else the list is gone through.
fn remove_from(slots: &mut VecDeque<Slot>, shelf: Shelf, gone: &HashSet<(Shelf, u64)>, mut removed: impl FnMut(&Slot)) {
    let mut left = gone.iter().filter(|(s, _)| *s == shelf).count();
    while left > 0
        && let Some(slot) = slots.pop_front_if(|slot| gone.contains(&(shelf, slot.key)))
    {
        removed(&slot);
        left -= 1;
    }
    if left > 0 {
        slots.retain(|slot| {
            let is_gone = gone.contains(&(shelf, slot.key));
            if is_gone {
                removed(slot);
            }
            !is_gone
        });
    }
}

/// Changes that are made together. Keys are given out by the plan, and are used up only when it was carried out: so a
/// commit that is made again after an error writes the same records.
#[derive(Default)]
struct Plan {
    changes: Vec<OutboxChange>,
    gone: Vec<(Shelf, u64)>,
    queued: Vec<Slot>,
    buried: Vec<Slot>,
    died: u64,
    forgotten: u64,
}

impl Plan {
    fn queue(&mut self, index: &Index, entry: &Entry) {
        let slot = self.write(index, Shelf::Waiting, entry);
        self.queued.push(slot);
    }

    fn bury(&mut self, index: &Index, key: u64, mut entry: Entry, tries: Tries, now_ms: u64) {
        let Tries { attempts, status, error, .. } = tries;
        entry.about.end = Some(End { at_ms: now_ms, attempts, status, error });
        self.take_away(Shelf::Waiting, key);
        let slot = self.write(index, Shelf::Dead, &entry);
        self.buried.push(slot);
        self.died += 1;
    }

    fn take_away(&mut self, shelf: Shelf, key: u64) {
        self.changes.push(OutboxChange { shelf, key, value: None });
        self.gone.push((shelf, key));
    }

    fn write(&mut self, index: &Index, shelf: Shelf, entry: &Entry) -> Slot {
        let key = index.next_key + (self.queued.len() + self.buried.len()) as u64;
        let value = entry.encode();
        let slot = Slot::new(key, &entry.about, value.len());
        self.changes.push(OutboxChange { shelf, key, value: Some(value) });
        slot
    }

    /// Dead letters that are too many. Of those that this plan buries, too: they are taken away again in its order.
    fn forget_the_oldest(&mut self, index: &Index, limits: Limits) {
        if self.buried.is_empty() {
            return;
        }
        let mut count = index.dead.len() + self.buried.len();
        let mut bytes = index.dead_bytes + self.buried.iter().map(|slot| slot.bytes).sum::<u64>();
        let too_many: Vec<_> = index
            .dead
            .iter()
            .chain(&self.buried)
            .take_while(|slot| {
                let is_one = count > limits.dead || (bytes > limits.bytes && count > 1);
                count -= 1;
                bytes -= slot.bytes;
                is_one
            })
            .map(|slot| slot.key)
            .collect();
        for key in too_many {
            self.take_away(Shelf::Dead, key);
            self.forgotten += 1;
        }
    }
}

/// The time of day, as it was at the start and has passed since. Ages are measured with it: they do not jump with the
/// clock of the machine.
#[derive(Debug)]
struct Clock {
    started: Instant,
    started_ms: u64,
}

impl Clock {
    fn started_now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), started_ms: since.as_millis() as u64 }
    }

    fn now_ms(&self) -> u64 {
        self.started_ms + self.started.elapsed().as_millis() as u64
    }
}

impl From<Entry> for DeadLetter {
    fn from(Entry { about, .. }: Entry) -> Self {
        let About { id, created_ms, events, types, end, .. } = about;
        let End { at_ms, attempts, status, error } =
            end.unwrap_or(End { at_ms: created_ms, attempts: 0, status: None, error: String::new() });
        Self {
            id: id_text(id),
            created_ms,
            died_ms: at_ms,
            attempts,
            last_status: status,
            last_error: error,
            event_types: types,
            events,
        }
    }
}

/// Records of up to one MiB, so that the pages that are read at the start stay small.
const PAGE: usize = 16;

const FULL: &str = "the outbox is full";
