//! The stores in files of this machine.

mod config;
mod disk;
mod failure;
#[cfg(any(test, feature = "conformance"))]
mod faulty;
mod index;
mod journal;
mod open;
mod records;
#[cfg(test)]
mod records_tests;
mod tables;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    collections::HashMap,
    fmt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use async_trait::async_trait;
use parking_lot::{Condvar, Mutex};
use redb::{Database, ReadableDatabase};
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use wsc_protocol::Id;

pub use self::config::{Durability, EmbeddedConfig, OpenError, Opened};
pub use self::failure::is_guarded;
#[cfg(any(test, feature = "conformance"))]
pub use self::faulty::FaultyDisk;
pub use self::open::{EmbeddedStore, open_embedded};
pub use self::records::EmbeddedRecords;
use self::{
    disk::Disk,
    failure::Failure,
    index::{End, Index, PageBuilder, Place},
    journal::{Gone, Record, read_row},
    open::{Directory, Loaded},
    tables::{Read, Snapshot},
    writer::{Job, Queue, REMOVED_MOST, REMOVED_SOFT, Writer, WriterState},
};
use crate::{
    Admission, Depth, Entry, EntryKey, InboxLimits, InboxStore, NewEntry, Note, Page, Position, ReadLimit, StoreError,
};

/// Keeps inboxes in a file, as durably as it is told to.
///
/// A thread of its own commits what calls bring, many to one commit. What is appended stands in a journal first, in
/// the file and in memory; most of it is removed again before it is old. What is not moves to tables, and then only
/// the file has it: beside the young entries and the pages of a cache, memory holds a short record for each user who
/// has anything at all.
///
/// When the disk fails, appends fail with it, removals count and wait, and all goes on once it works again.
///
/// Calls need a Tokio runtime: reads of resting mail run on its threads for blocking work.
///
/// # Space
///
/// The file grows as more is stored at a time than ever before, and what is removed makes room in it for what comes. It
/// hardly shrinks while it is open; opening compacts it where it is large and less than half of it is in use.
///
/// # Dropping
///
/// Call [`close`](InboxStore::close). A store that is dropped without it commits what it has to, but whoever drops it
/// inside a runtime does not wait for that.
pub struct EmbeddedInbox {
    shared: Arc<Shared>,
    done: watch::Receiver<Option<Result<(), StoreError>>>,
    thread: Option<JoinHandle<()>>,
}

/// What callers and the writer share.
#[derive(Debug)]
struct Shared {
    config: EmbeddedConfig,
    disk: Disk,
    state: Mutex<State>,
    queue: Mutex<Queue>,
    wake: Condvar,
    /// What may wait for a commit.
    room: Arc<Semaphore>,
    /// Told when entries have moved, when they cannot because the file fails, and when it works again.
    moved: Notify,
    /// The latest time that a caller named.
    seen_now: AtomicU64,
    lost: AtomicU64,
}

#[derive(Debug)]
struct State {
    index: Index,
    /// `None` after a failure.
    database: Option<Database>,
    is_failing: bool,
    is_closed: bool,
}

impl EmbeddedInbox {
    /// Opens the store in this data directory, or makes one. Says what was found.
    ///
    /// This reads the whole file to see whether it is undamaged, so it may take seconds for large ones, and compacts a
    /// large one of which less than half is in use. It blocks.
    ///
    /// # Errors
    ///
    /// [`OpenError`] names the path, and what to do. Nothing in the directory is overwritten then.
    pub fn open(path: &Path, config: EmbeddedConfig) -> Result<(Self, Opened), OpenError> {
        open::open_inbox(path, config)
    }

    /// Opens the store on a disk that fails as a test tells it to.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    #[cfg(any(test, feature = "conformance"))]
    pub fn open_on(disk: &FaultyDisk, config: EmbeddedConfig) -> Result<(Self, Opened), OpenError> {
        let disk = Disk::faulty(disk.clone());
        let loaded = open::load(&disk, &config)?;
        let opened = loaded.opened.clone();
        Ok((Self::start(disk, config, loaded, None)?, opened))
    }

    fn start(
        disk: Disk,
        config: EmbeddedConfig,
        loaded: Loaded,
        directory: Option<Arc<Directory>>,
    ) -> Result<Self, OpenError> {
        let Loaded { database, index, next_position, next_sequence, note_rows, opened: _ } = loaded;
        let shared = Arc::new(Shared {
            room: Arc::new(Semaphore::new(config.commit_batch.max(1) * WAITING_BATCHES)),
            config,
            disk,
            state: Mutex::new(State { index, database: Some(database), is_failing: false, is_closed: false }),
            queue: Mutex::default(),
            wake: Condvar::new(),
            moved: Notify::new(),
            seen_now: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        });
        let (tell_done, done) = watch::channel(None);
        let state = WriterState::default();
        let writer = Writer { shared: Arc::clone(&shared), next_position, next_sequence, note_rows, state };
        let path = shared.disk.path().to_owned();
        let thread = thread::Builder::new().name("wsc-inbox".to_owned()).spawn(move || {
            let result = writer.run();
            // Others may have the directory before anybody hears that it is free.
            drop(directory);
            tell_done.send_replace(Some(result));
        });
        let thread = thread.map_err(|source| OpenError::Io { path, source })?;
        Ok(Self { shared, done, thread: Some(thread) })
    }
}

impl fmt::Debug for EmbeddedInbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedInbox").field("path", &self.shared.disk.path()).finish_non_exhaustive()
    }
}

impl Drop for EmbeddedInbox {
    fn drop(&mut self) {
        self.shared.close();
        if let Some(thread) = self.thread.take()
            && tokio::runtime::Handle::try_current().is_err()
        {
            // A panic in it was reported where it happened.
            let _ = thread.join();
        }
    }
}

#[async_trait]
impl InboxStore for EmbeddedInbox {
    fn is_failing(&self) -> bool {
        self.shared.state.lock().is_failing
    }

    fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    async fn append(&self, entries: Vec<NewEntry>) -> Result<Vec<Admission>, StoreError> {
        let shared = &self.shared;
        drop(shared.open()?);
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let most = shared.config.commit_batch.max(1) * WAITING_BATCHES;
        let weight = entries.iter().map(|entry| 1 + entry.body.len() / WEIGHT_BYTES).sum::<usize>().min(most);
        let room = Arc::clone(&shared.room).acquire_many_owned(u32::try_from(weight).unwrap_or(u32::MAX)).await;
        let room = room.map_err(|_| StoreError::Closed)?;
        let (reply, answer) = oneshot::channel();
        let wake = shared.queue.lock().push(Job { entries, reply, _room: room }, shared.config.commit_batch);
        if wake.map_err(|_| StoreError::Closed)? {
            shared.wake.notify_one();
        }
        answer.await.unwrap_or_else(|_| Err(Failure::Panicked("the writer ended".to_owned()).into()))
    }

    async fn read(&self, user: &Id, after: Option<Position>, limit: ReadLimit) -> Result<Page, StoreError> {
        loop {
            let (view, young) = {
                let state = self.shared.open()?;
                let young = state.index.page(user, after, limit);
                if !state.index.has_resting(user, after) {
                    return Ok(young);
                }
                (state.view()?, young)
            };
            let user = user.clone();
            let page = self.shared.read(move |shared| shared.resting_page(&view, &user, after, limit)).await?;
            if let Some(mut page) = page {
                page.append(&young);
                return Ok(page.finish());
            }
        }
    }

    async fn get(&self, key: &EntryKey) -> Result<Option<Entry>, StoreError> {
        loop {
            let view = {
                let state = self.shared.open()?;
                match state.index.place(key) {
                    Place::Young(position) => return Ok(state.index.young(position).cloned()),
                    Place::Nowhere => return Ok(None),
                    Place::MayRest => state.view()?,
                }
            };
            let key = key.clone();
            if let Some(entry) = self.shared.read(move |shared| shared.resting_entry(&view, &key)).await? {
                return Ok(entry);
            }
        }
    }

    async fn remove(&self, keys: Vec<EntryKey>) -> Result<Vec<bool>, StoreError> {
        let shared = &self.shared;
        shared.removal_room().await?;
        // What the tables know about those keys that only they know.
        let mut found = HashMap::new();
        let mut seen = None;
        loop {
            let (view, unknown) = {
                let mut state = shared.open()?;
                if seen.is_some_and(|generation| !state.index.knows(generation)) {
                    found.clear();
                }
                let is_unknown =
                    |key: &&EntryKey| state.index.place(key) == Place::MayRest && !found.contains_key(*key);
                let unknown: Vec<_> = keys.iter().filter(is_unknown).cloned().collect();
                if unknown.is_empty() {
                    let removed: Vec<_> = keys.iter().map(|key| state.remove(key, &found)).collect();
                    let is_crowded = state.index.removed() > REMOVED_SOFT;
                    drop(state);
                    if removed.contains(&true) && shared.queue.lock().removed(is_crowded) {
                        shared.wake.notify_one();
                    }
                    return Ok(removed);
                }
                (state.view()?, unknown)
            };
            // The oldest look counts.
            if found.is_empty() {
                seen = Some(view.generation);
            }
            let places = shared.read(move |_| {
                let places = view.snapshot.find(unknown.iter())?;
                Ok(unknown.into_iter().zip(places).collect::<Vec<_>>())
            });
            found.extend(places.await?);
        }
    }

    async fn expired(&self, now: u64, limit: usize) -> Result<Vec<EntryKey>, StoreError> {
        self.shared.seen_now.fetch_max(now, Ordering::Relaxed);
        loop {
            let (view, young) = {
                let state = self.shared.open()?;
                let young = state.index.ended(now, limit);
                if state.index.total().messages as usize == state.index.young_count() {
                    return Ok(young.into_iter().map(|(_, _, key)| key).collect());
                }
                (state.view()?, young)
            };
            let resting = self.shared.read(move |shared| shared.resting_ended(&view, now, limit)).await?;
            if let Some(mut ended) = resting {
                ended.extend(young);
                ended.sort_unstable_by_key(|(end, position, _)| (*end, *position));
                ended.truncate(limit);
                return Ok(ended.into_iter().map(|(_, _, key)| key).collect());
            }
        }
    }

    async fn notes(&self, now: u64) -> Result<Vec<Note>, StoreError> {
        self.shared.seen_now.fetch_max(now, Ordering::Relaxed);
        let (view, young, most) = {
            let state = self.shared.open()?;
            (state.view()?, state.index.notes().cloned().collect::<Vec<_>>(), state.index.limits.notes)
        };
        self.shared
            .read(move |_| {
                let mut notes = HashMap::new();
                view.snapshot.notes(|_, row| {
                    // Damage was counted when the store was opened.
                    let _ = read_row(row, |record| {
                        if let Record::Note(note) = record {
                            notes.insert(note.key.clone(), note);
                        }
                    });
                })?;
                notes.extend(young.into_iter().map(|note| (note.key.clone(), note)));
                let mut notes: Vec<_> = notes.into_values().filter(|note| note.expires_at > now).collect();
                notes.sort_unstable_by_key(|note| std::cmp::Reverse(note.expires_at));
                notes.truncate(usize::try_from(most).unwrap_or(usize::MAX));
                Ok(notes)
            })
            .await
    }

    fn is_surely_empty(&self, user: &Id) -> bool {
        self.shared.state.lock().index.is_empty(user)
    }

    async fn depth(&self, user: &Id) -> Result<Depth, StoreError> {
        Ok(self.shared.open()?.index.depth(user))
    }

    async fn total(&self) -> Result<Depth, StoreError> {
        Ok(self.shared.open()?.index.total())
    }

    fn set_limits(&self, limits: InboxLimits) {
        self.shared.state.lock().index.limits = limits;
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.shared.close();
        let mut done = self.done.clone();
        match done.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(Ok(())),
            Err(_) => Err(Failure::Panicked("the writer ended".to_owned()).into()),
        }
    }
}

/// The tables at one moment, and what was known about them.
struct View {
    snapshot: Snapshot,
    generation: u64,
    rested: Position,
}

impl State {
    fn snapshot(&self) -> Result<Snapshot, Failure> {
        match &self.database {
            Some(database) => Ok(Snapshot::new(database.begin_read()?)),
            None => Err(Failure::Damaged("resting mail, until the file works again,")),
        }
    }

    /// The tables as they are now. They may have moved rows already that the index still has as young ones; what is
    /// behind `rested` does not count.
    fn view(&self) -> Result<View, Failure> {
        let snapshot = self.snapshot()?;
        Ok(View { snapshot, generation: self.index.generation(), rested: self.index.rested() })
    }

    fn remove(&mut self, key: &EntryKey, found: &HashMap<EntryKey, Option<Gone>>) -> bool {
        match self.index.place(key) {
            Place::Young(position) => {
                let removed = self.index.remove_young(position);
                if removed {
                    self.index.pending.young.push(position);
                }
                removed
            }
            Place::MayRest => found.get(key).and_then(Option::as_ref).is_some_and(|gone| self.remove_resting(gone)),
            Place::Nowhere => false,
        }
    }

    fn remove_resting(&mut self, gone: &Gone) -> bool {
        let removed = self.index.remove_resting(gone);
        if removed {
            self.index.pending.resting.push(gone.clone());
        }
        removed
    }
}

impl Shared {
    /// The state of a store that is not closed.
    fn open(&self) -> Result<parking_lot::MutexGuard<'_, State>, StoreError> {
        let state = self.state.lock();
        if state.is_closed { Err(StoreError::Closed) } else { Ok(state) }
    }

    fn close(&self) {
        self.state.lock().is_closed = true;
        self.queue.lock().close();
        self.wake.notify_one();
        self.moved.notify_waiters();
    }

    /// Waits until a removal may be remembered.
    async fn removal_room(&self) -> Result<(), StoreError> {
        loop {
            let moved = self.moved.notified();
            {
                let state = self.open()?;
                if state.index.removed() < REMOVED_MOST {
                    return Ok(());
                }
                if state.is_failing {
                    return Err(Failure::Backlog.into());
                }
            }
            moved.await;
        }
    }

    /// Reads tables where blocking is allowed.
    async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        act: impl FnOnce(&Self) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || {
            let result = Failure::catch(|| act(&shared));
            if let Err(failure) = &result {
                tracing::error!(error = failure as &dyn std::error::Error, "resting mail cannot be read");
                if failure.needs_reopening() {
                    shared.queue.lock().suspect();
                    shared.wake.notify_one();
                }
            }
            result
        });
        match read.await {
            Ok(result) => Ok(result?),
            // The runtime ends.
            Err(_) => Err(StoreError::Closed),
        }
    }

    /// A page of a user's resting entries; `None` where too much has moved meanwhile to tell what is removed.
    fn resting_page(
        &self,
        view: &View,
        user: &Id,
        after: Option<Position>,
        limit: ReadLimit,
    ) -> Result<Option<PageBuilder>, Failure> {
        let mut page = PageBuilder::new(limit);
        let mut from = after.map_or(0, |after| after.0.saturating_add(1));
        // One more than fits, so that it is known whether there is more.
        let at_once = limit.messages.clamp(1, READ_AT_ONCE) + 1;
        loop {
            let (mut read, mut bytes) = (Vec::new(), 0_u64);
            view.snapshot.scan(user, from..=view.rested.0, |row| {
                if let Read::Entry(entry) = &row {
                    bytes = bytes.saturating_add(entry.body.len() as u64);
                }
                read.push(row);
                read.len() < at_once && bytes <= limit.bytes
            })?;
            let Some(last) = read.last().map(Read::position) else { return Ok(Some(page)) };
            from = last.0 + 1;
            let Some(live) = self.live(view, user, read)? else { return Ok(None) };
            if !live.iter().all(|entry| page.push(entry)) || page.is_full() {
                return Ok(Some(page));
            }
        }
    }

    fn resting_entry(&self, view: &View, key: &EntryKey) -> Result<Option<Option<Entry>>, Failure> {
        let Some(gone) = view.snapshot.find(std::iter::once(key))?.pop().flatten() else { return Ok(Some(None)) };
        if gone.position > view.rested {
            return Ok(Some(None));
        }
        let read = view.snapshot.at(&key.user, gone.position)?;
        let live = self.live(view, &key.user, read.into_iter().collect())?;
        Ok(live.map(|mut live| live.pop()))
    }

    fn resting_ended(&self, view: &View, now: u64, limit: usize) -> Result<Option<Vec<End>>, Failure> {
        let mut ended = Vec::new();
        let mut after = None;
        while ended.len() < limit {
            let mut read = Vec::new();
            view.snapshot.ends(after, now, |end, position, key| {
                read.push((end, position, key));
                read.len() < READ_AT_ONCE
            })?;
            let Some((end, position, _)) = read.last() else { break };
            after = Some((*end, *position));
            let state = self.state.lock();
            if !state.index.knows(view.generation) {
                return Ok(None);
            }
            read.retain(|(_, position, _)| *position <= view.rested && !state.index.is_removed(*position));
            drop(state);
            ended.append(&mut read);
        }
        Ok(Some(ended))
    }

    /// Those of the rows that are not removed; damaged ones are reported and removed.
    fn live(&self, view: &View, user: &Id, read: Vec<Read>) -> Result<Option<Vec<Entry>>, Failure> {
        let mut damaged = Vec::new();
        let mut entries = Vec::new();
        {
            let state = self.state.lock();
            if !state.index.knows(view.generation) {
                return Ok(None);
            }
            for row in read {
                match row {
                    _ if state.index.is_removed(row.position()) => {}
                    Read::Entry(entry) => entries.push(entry),
                    Read::Damaged(position) => damaged.push(position),
                }
            }
        }
        for position in damaged {
            self.give_up(view, user, position)?;
        }
        Ok(Some(entries))
    }

    /// Removes an entry that the file no longer has in one piece.
    fn give_up(&self, view: &View, user: &Id, position: Position) -> Result<(), Failure> {
        let found = view.snapshot.find_position(user, position)?;
        let removed = found.as_ref().is_none_or(|gone| self.state.lock().remove_resting(gone));
        if removed {
            self.lost.fetch_add(1, Ordering::Relaxed);
            let id = found.map(|gone| gone.key.id);
            tracing::error!(%user, ?id, position = position.0, "a stored message is damaged and lost");
        }
        Ok(())
    }
}

/// How many commits' worth of entries may wait.
const WAITING_BATCHES: usize = 16;

/// So many bytes of a body count as one entry more, for what may wait.
const WEIGHT_BYTES: usize = 4096;

/// How many rows are read before it is looked which of them are removed.
const READ_AT_ONCE: usize = 512;
