//! The way into the store: what is accepted goes there in groups, and what is settled leaves it.

use std::{
    fmt, mem,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio_retry::RetryIf;
use uuid::Uuid;
use wsc_delivery::{
    RetryPolicy,
    mailbox::{Input, Kind, Letter, Millis, Place, Refusal, Verdict},
};
use wsc_failure::{Breaker, BreakerError, BreakerState};
use wsc_protocol::{Fate, Id};
use wsc_store::{Admission, Entry, EntryKey, InboxStore, NewEntry, Page, Position, ReadLimit, StoreError};

use super::{News, PairFate, Record, Slot, recent::Recent};
use crate::core::Core;

/// The store, and what waits for it.
pub(crate) struct Keeper {
    store: Arc<dyn InboxStore>,
    appends: mpsc::Sender<Append>,
    /// Bytes of the letters that wait for the store.
    waiting_bytes: AtomicUsize,
    /// Taken by the task that works for the keeper.
    waiting: Mutex<Option<mpsc::Receiver<Append>>>,
    removals: Mutex<Removals>,
    removed: Notify,
    /// Keeps senders from waiting for a store that does not work.
    breaker: Breaker,
}

/// Letters that are settled but that the store has not forgotten at once.
#[derive(Default)]
struct Removals {
    waiting: Vec<EntryKey>,
    /// They are not to be seen any more, also not by a read that began before the store forgot them.
    hidden: Recent<EntryKey, ()>,
}

/// One letter on its way into the store.
struct Append {
    slot: Arc<Slot>,
    entry: NewEntry,
}

impl Keeper {
    pub(crate) fn new(store: Arc<dyn InboxStore>) -> Self {
        let (appends, waiting) = mpsc::channel(MOST_APPENDS);
        Self {
            store,
            appends,
            waiting_bytes: AtomicUsize::new(0),
            waiting: Mutex::new(Some(waiting)),
            removals: Mutex::default(),
            removed: Notify::new(),
            breaker: Breaker::default(),
        }
    }

    pub(crate) fn store(&self) -> &Arc<dyn InboxStore> {
        &self.store
    }

    /// Whether the store takes letters, as far as is known.
    pub(crate) fn is_healthy(&self) -> bool {
        // Half open it is waiting for somebody to try: the store knows better.
        !self.store.is_failing() && self.breaker.state() != BreakerState::Open
    }

    /// Hands a letter to the store.
    ///
    /// # Errors
    ///
    /// Where too many wait already, or the store does not work.
    pub(super) fn append(&self, slot: &Arc<Slot>, entry: NewEntry) -> Result<(), Refusal> {
        if self.breaker.state() == BreakerState::Open {
            return Err(Refusal::Failed);
        }
        let len = entry.body.len();
        if self.waiting_bytes.fetch_add(len, Relaxed) > MOST_WAITING_BYTES {
            self.waiting_bytes.fetch_sub(len, Relaxed);
            return Err(Refusal::Full);
        }
        self.appends.try_send(Append { slot: Arc::clone(slot), entry }).map_err(|_| {
            self.waiting_bytes.fetch_sub(len, Relaxed);
            Refusal::Full
        })
    }

    /// Has a settled letter removed: nobody sees it from now on. When the store commits that is its business.
    pub(super) fn remove(&self, user: Id, id: Uuid, now: Millis) {
        let key = EntryKey::new(user, id);
        // Most stores only take note of it in memory.
        if let Some(Ok(_)) = self.store.remove(vec![key.clone()]).now_or_never() {
            return;
        }
        let mut removals = self.removals.lock();
        removals.hidden.put(key.clone(), (), now);
        removals.waiting.push(key);
        drop(removals);
        self.removed.notify_one();
    }

    /// Whether a letter that was found in the store is settled.
    fn is_hidden(&self, key: &EntryKey) -> bool {
        self.removals.lock().hidden.get(key).is_some()
    }

    async fn flush_removals(&self, now: Millis) {
        let keys = mem::take(&mut self.removals.lock().waiting);
        if keys.is_empty() {
            return;
        }
        let result = self.store.remove(keys.clone()).await;
        let mut removals = self.removals.lock();
        for key in &keys {
            removals.hidden.put(key.clone(), (), now);
        }
        match result {
            Ok(_) => drop(removals.hidden.forget(now, HIDDEN_FOR, usize::MAX)),
            // They would come again after a restart, under the same ids.
            Err(StoreError::Closed) => {}
            Err(error) => {
                tracing::warn!(%error, count = keys.len(), "the inbox could not forget what is settled");
                removals.waiting.extend(keys);
            }
        }
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("is_healthy", &self.is_healthy()).finish_non_exhaustive()
    }
}

/// Letters on their way into the store, of all users.
const MOST_APPENDS: usize = 65_536;

/// Bytes of letters on their way into the store from which on no more are taken.
const MOST_WAITING_BYTES: usize = 256 << 20;

/// Letters that go into the store together, at most.
const BATCH: usize = 1_000;

/// How much longer than the store needs a settled letter is looked for in what was read, in milliseconds.
const HIDDEN_FOR: u64 = 10_000;

/// How often the store is asked for what has expired.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// How long the letters of one page have to leave the store.
const SWEEP_PAUSE: Duration = Duration::from_millis(5);

/// Pages of expired letters that are taken one after the other.
const MOST_SWEEPS: usize = 100;

/// Expired letters that are taken at a time.
const SWEEP_BATCH: usize = 1_000;

impl Core {
    /// Puts letters into the store, in groups: while one group is written the next gathers.
    pub(crate) async fn run_keeper(self: Arc<Self>) {
        let Some(keeper) = self.mail.keeper() else { return };
        let Some(mut waiting) = keeper.waiting.lock().take() else { return };
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let removed = keeper.removed.notified();
            tokio::select! {
                biased;
                _ = waiting.recv_many(&mut batch, BATCH) => {}
                () = removed => {}
                () = self.stop.cancelled() => break,
            }
            keeper.flush_removals(self.mail.now()).await;
            self.commit(keeper, &mut batch).await;
        }
        // What was accepted while the hub went down is kept, too.
        waiting.close();
        while waiting.recv_many(&mut batch, BATCH).await > 0 {
            self.commit(keeper, &mut batch).await;
        }
        keeper.flush_removals(self.mail.now()).await;
        if let Err(error) = keeper.store.close().await {
            tracing::error!(%error, "the inbox could not be closed in order");
        }
    }

    async fn commit(self: &Arc<Self>, keeper: &Keeper, batch: &mut Vec<Append>) {
        if batch.is_empty() {
            return;
        }
        let (slots, entries): (Vec<_>, Vec<_>) =
            batch.drain(..).map(|append| ((append.slot, append.entry.key.id), append.entry)).unzip();
        let bytes: usize = entries.iter().map(|entry: &NewEntry| entry.body.len()).sum();
        let result = keeper.breaker.call(keeper.store.append(entries)).await;
        keeper.waiting_bytes.fetch_sub(bytes, Relaxed);
        let mut admissions = match result {
            Ok(admissions) => admissions,
            Err(BreakerError::Open) => Vec::new(),
            Err(BreakerError::Failed(error)) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the inbox could not be written");
                Vec::new()
            }
        }
        .into_iter();
        for (slot, id) in slots {
            let input = match admissions.next() {
                Some(Admission::Stored(at) | Admission::Duplicate(at)) => Input::Committed { id, place: Place(at.0) },
                Some(Admission::Full(_)) => Input::NotCommitted { id, refusal: Refusal::Full },
                None => Input::NotCommitted { id, refusal: Refusal::Failed },
            };
            // A slot with a letter in its line is not forgotten.
            let _ = self.feed(&slot, News::Input(input));
        }
    }

    /// Reads a page for a mailbox.
    pub(super) fn read_page(self: &Arc<Self>, slot: &Arc<Slot>, after: Option<Place>, messages: usize, bytes: u64) {
        let (core, slot) = (Arc::clone(self), Arc::clone(slot));
        self.tasks.spawn(async move {
            let Some(keeper) = core.mail.keeper() else { return };
            let input = match core.read_shown(keeper, &slot.owner, after, ReadLimit { messages, bytes }).await {
                Ok(page) => {
                    let letters = page.entries.into_iter();
                    let letters = letters.map(|entry| (Place(entry.position.0), letter(entry))).collect();
                    Input::Page { after, letters, has_more: page.has_more }
                }
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "an inbox could not be read");
                    Input::ReadFailed { after }
                }
            };
            let _ = core.feed(&slot, News::Input(input));
        });
    }

    /// Reads a page without what is settled; empty only where there is nothing more.
    async fn read_shown(
        &self,
        keeper: &Keeper,
        owner: &Id,
        after: Option<Place>,
        limit: ReadLimit,
    ) -> Result<Page, StoreError> {
        let mut after = after.map(|place| Position(place.0));
        loop {
            let read = async || keeper.store.read(owner, after, limit).await;
            let delays = RetryPolicy::default().delays(owner.as_str().len() as u64);
            let mut page = RetryIf::start(delays, read, is_transient).await?;
            let last = page.entries.last().map(|entry| entry.position);
            page.entries.retain(|entry| !keeper.is_hidden(&EntryKey::new(owner.clone(), entry.id)));
            if !page.entries.is_empty() || !page.has_more || last.is_none() {
                return Ok(page);
            }
            after = last;
        }
    }

    /// Takes letters that rest out of the store, because their receiver knows them or their time is over.
    pub(super) fn take_letters(self: &Arc<Self>, slot: &Arc<Slot>, wanted: Vec<(Uuid, Verdict)>) {
        let (core, slot) = (Arc::clone(self), Arc::clone(slot));
        self.tasks.spawn(async move {
            let mut found = Vec::with_capacity(wanted.len());
            for (id, verdict) in wanted {
                found.push((id, verdict, core.take_letter(&slot.owner, id).await));
            }
            let _ = core.feed(&slot, News::Taken(found));
        });
    }

    async fn take_letter(&self, owner: &Id, id: Uuid) -> Option<Letter> {
        let keeper = self.mail.keeper()?;
        let key = EntryKey::new(owner.clone(), id);
        if keeper.is_hidden(&key) {
            return None;
        }
        let taken = async {
            let Some(entry) = keeper.store.get(&key).await? else { return Ok(None) };
            let was_there = keeper.store.remove(vec![key]).await?;
            // Of several who take it at the same moment one was told that it was there.
            Ok::<_, StoreError>(Some(entry).filter(|_| was_there == [true]))
        };
        match taken.await {
            Ok(entry) => entry.map(letter),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "an acknowledged message was not found");
                None
            }
        }
    }

    /// Settles what has rested for longer than it may.
    pub(crate) async fn run_expiry(self: Arc<Self>) {
        let Some(keeper) = self.mail.keeper() else { return };
        let mut counted_lost = keeper.store.lost();
        loop {
            tokio::select! {
                () = tokio::time::sleep(SWEEP_INTERVAL) => {}
                () = self.stop.cancelled() => return,
            }
            // What the store found to be damaged is gone, and nobody will ever have it.
            let lost = keeper.store.lost();
            if lost > counted_lost {
                let count = (lost - counted_lost) as i64;
                counted_lost = lost;
                self.fanouts.stats().ledger().note(|tally| {
                    tally.stored -= count;
                    tally.other += count;
                });
            }
            // Where much ends at once one page after the other, but not for ever: some of it may be in flight.
            for _ in 0..MOST_SWEEPS {
                if !self.sweep(keeper).await {
                    break;
                }
                // What was found is on its way out; the next page should not find it again.
                tokio::time::sleep(SWEEP_PAUSE).await;
            }
        }
    }

    /// Settles a page of what has rested for longer than it may. Returns whether there may be more.
    async fn sweep(self: &Arc<Self>, keeper: &Keeper) -> bool {
        let keys = match keeper.store.expired(self.mail.now(), SWEEP_BATCH).await {
            Ok(keys) => keys,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "expired messages could not be listed");
                return false;
            }
        };
        let is_full = keys.len() == SWEEP_BATCH;
        for key in keys.into_iter().filter(|key| !keeper.is_hidden(key)) {
            if let Ok(Some(entry)) = keeper.store.get(&key).await {
                self.mail(&key.user, News::Input(Input::Expired { letter: letter(entry) }));
            }
        }
        is_full
    }

    /// Takes account of what an earlier run left.
    pub(crate) async fn recover(&self, keeper: &Keeper) -> Result<u64, StoreError> {
        let found = keeper.store.total().await?.messages;
        self.fanouts.stats().ledger().note(|tally| {
            tally.recovered += found as i64;
            tally.stored += found as i64;
        });
        let now = self.mail.now();
        let window = self.settings().idempotency.window.as_millis() as u64;
        self.mail.idempotency.restore(keeper.store.notes(now).await?, window);
        Ok(found)
    }

    /// Takes note of where a durable message stands, for those who ask.
    pub(crate) fn note_outcome(&self, id: Uuid, sender_id: &str, user_id: &Id, fate: Fate, attempts: u32) {
        let pair = PairFate { user_id: user_id.clone(), outcome: fate.outcome, reason: fate.reason, attempts };
        self.mail.outcomes.note(id, sender_id, pair, self.mail.now(), self.outcome_memory());
    }
}

fn is_transient(error: &StoreError) -> bool {
    matches!(error, StoreError::Unavailable(_))
}

/// A stored entry as a mailbox has it. One that this version cannot read is kept as it is: it will not be written to
/// anybody, and not be lost either.
fn letter(entry: Entry) -> Letter {
    let (kind, only, except) =
        Record::decode(&entry.body).map_or((Kind::Plain, None, None), |r| (r.kind, r.only, r.except));
    Letter { id: entry.id, kind, body: entry.body, expires_at: entry.expires_at, only, except }
}
