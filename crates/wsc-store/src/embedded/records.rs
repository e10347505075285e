//! The records in a file of this machine.

use std::{
    collections::VecDeque,
    fmt, mem,
    ops::Bound,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::{
    config::OpenError,
    disk::Disk,
    failure::Failure,
    open::{self, Directory, open_database},
    tables::{META, checksum},
    writer::{RETRY, RETRY_MOST, begin_write},
};
use crate::{Record, RecordChange, RecordStore, StoreError, records};

/// Keeps records in a file beside the inbox's, as durably as that one.
///
/// A thread of its own commits what calls bring. All that comes while one commit runs shares the next.
///
/// When the disk fails, so do commits and reads; it is tried again after a while, and all goes on once it works. A
/// commit that was reported as failed then may turn out to be in the file all the same.
///
/// Calls need a Tokio runtime: reads run on its threads for blocking work.
///
/// # Damage
///
/// Opening reads the whole file. A record that is damaged later, while the store is open, is an error to whoever reads
/// it, also as part of a scan: a token that is no longer known to be revoked must not pass for one that never was.
///
/// # Dropping
///
/// As for [`EmbeddedInbox`](super::EmbeddedInbox).
pub struct EmbeddedRecords {
    shared: Arc<Shared>,
    done: watch::Receiver<bool>,
    thread: Option<JoinHandle<()>>,
}

/// What callers and the writer share.
#[derive(Debug)]
struct Shared {
    disk: Disk,
    state: Mutex<State>,
    wake: Condvar,
    /// What may wait for a commit, in units of [`WEIGHT_BYTES`].
    room: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct State {
    /// `None` after a failure.
    database: Option<Database>,
    jobs: VecDeque<Job>,
    failed: Option<Failed>,
    /// A reader could not read: the database has to be opened anew.
    is_suspect: bool,
    is_closed: bool,
}

/// A call of `commit` that waits.
#[derive(Debug)]
struct Job {
    changes: Vec<RecordChange>,
    bytes: usize,
    reply: oneshot::Sender<Result<(), StoreError>>,
    /// Its place among those that may wait, also when the caller no longer does.
    _room: OwnedSemaphorePermit,
}

/// How the file failed last, and when it is tried again.
#[derive(Clone, Debug)]
struct Failed {
    failure: Failure,
    retry: Instant,
    /// How long that was put off.
    patience: Duration,
}

/// What a store of records starts with.
#[derive(Debug)]
pub(super) struct Loaded {
    database: Database,
    pub(super) records: u64,
    pub(super) was_repaired: bool,
}

/// Opens what is on the disk, and reads it once.
pub(super) fn load(disk: &Disk) -> Result<Loaded, OpenError> {
    let (database, was_repaired) = open::open_checked(disk, CACHE_BYTES, make, FORMAT_KEY, FORMAT)?;
    let count = Failure::catch(|| {
        let mut records = 0;
        for row in database.begin_read()?.open_table(RECORDS)?.iter()? {
            let (key, value) = row?;
            decode(key.value(), value.value())?;
            records += 1;
        }
        Ok(records)
    });
    let records = count.map_err(|failure| open::failed(disk.path(), &failure))?;
    Ok(Loaded { database, records, was_repaired })
}

/// Makes what a new database needs.
pub(super) fn make(database: &Database) -> Result<(), Failure> {
    let txn = begin_write(database)?;
    txn.open_table(META)?.insert(FORMAT_KEY, FORMAT)?;
    txn.open_table(RECORDS)?;
    Ok(txn.commit()?)
}

impl EmbeddedRecords {
    pub(super) fn start(disk: Disk, loaded: Loaded, directory: Option<Arc<Directory>>) -> Result<Self, OpenError> {
        let shared = Arc::new(Shared {
            disk,
            state: Mutex::new(State { database: Some(loaded.database), ..State::default() }),
            wake: Condvar::new(),
            room: Arc::new(Semaphore::new(WAITING)),
        });
        let (tell_done, done) = watch::channel(false);
        let writer = Writer(Arc::clone(&shared));
        let path = shared.disk.path().to_owned();
        let thread = thread::Builder::new().name("wsc-records".to_owned()).spawn(move || {
            writer.run();
            drop(writer);
            // Others may have the directory before anybody hears that it is free.
            drop(directory);
            tell_done.send_replace(true);
        });
        let thread = thread.map_err(|source| OpenError::Io { path, source })?;
        Ok(Self { shared, done, thread: Some(thread) })
    }

    /// Opens the store on a disk that fails as a test tells it to.
    ///
    /// # Errors
    ///
    /// As [`open_embedded`](super::open_embedded).
    #[cfg(any(test, feature = "conformance"))]
    pub fn open_on(disk: &super::FaultyDisk) -> Result<Self, OpenError> {
        let disk = Disk::faulty(disk.clone());
        let loaded = load(&disk)?;
        Self::start(disk, loaded, None)
    }
}

impl fmt::Debug for EmbeddedRecords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedRecords").field("path", &self.shared.disk.path()).finish_non_exhaustive()
    }
}

impl Drop for EmbeddedRecords {
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
impl RecordStore for EmbeddedRecords {
    async fn commit(&self, changes: Vec<RecordChange>) -> Result<(), StoreError> {
        changes.iter().try_for_each(RecordChange::check)?;
        drop(self.shared.open()?);
        if changes.is_empty() {
            return Ok(());
        }
        let bytes = changes.iter().map(|change| change.key.len() + change.value.as_ref().map_or(0, Bytes::len)).sum();
        let weight = changes.len().saturating_add(bytes / WEIGHT_BYTES).min(WAITING);
        let room = Arc::clone(&self.shared.room).acquire_many_owned(u32::try_from(weight).unwrap_or(u32::MAX)).await;
        let room = room.map_err(|_| StoreError::Closed)?;
        let (reply, answer) = oneshot::channel();
        self.shared.open()?.jobs.push_back(Job { changes, bytes, reply, _room: room });
        self.shared.wake.notify_one();
        answer.await.unwrap_or_else(|_| Err(Failure::Panicked("the writer ended".to_owned()).into()))
    }

    async fn scan(&self, table: &str, after: Option<&[u8]>, limit: usize) -> Result<Vec<Record>, StoreError> {
        records::check_table(table)?;
        let (first, end) = (key(table, after.unwrap_or_default()), end(table));
        let first = if after.is_some() { Bound::Excluded(first) } else { Bound::Included(first) };
        let prefix = 1 + table.len();
        self.shared
            .read(move |txn| {
                let table = txn.open_table(RECORDS)?;
                let mut found = Vec::new();
                let first = first.as_ref().map(|first| &**first);
                for row in table.range::<&[u8]>((first, Bound::Excluded(&*end)))?.take(limit) {
                    let (key, value) = row?;
                    let (key, value) = (key.value(), value.value());
                    found.push(Record::new(&key[prefix..], decode(key, value)?));
                }
                Ok(found)
            })
            .await
    }

    async fn get(&self, table: &str, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        records::check_table(table)?;
        records::check_key(key)?;
        let key = self::key(table, key);
        self.shared
            .read(move |txn| {
                let value = txn.open_table(RECORDS)?.get(&*key)?;
                value.map(|value| decode(&key, value.value())).transpose()
            })
            .await
    }

    async fn close(&self) {
        self.shared.close();
        // Whether it closed well is in the log; where the thread panicked, nobody tells.
        let _ = self.done.clone().wait_for(|done| *done).await;
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
        // Whoever waits for room is told.
        self.room.close();
        self.wake.notify_one();
    }

    /// Reads the tables as they are now, where blocking is allowed.
    async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        act: impl FnOnce(&ReadTransaction) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, StoreError> {
        drop(self.open()?);
        let shared = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || {
            let result = Failure::catch(|| {
                // Bound first: the lock is not held while reading.
                let txn = shared.state.lock().begin_read()?;
                act(&txn)
            });
            if let Err(failure) = &result {
                tracing::error!(error = failure as &dyn std::error::Error, "records cannot be read");
                if failure.needs_reopening() {
                    shared.state.lock().is_suspect = true;
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
}

impl State {
    fn begin_read(&self) -> Result<ReadTransaction, Failure> {
        match (&self.database, &self.failed) {
            (Some(database), _) => Ok(database.begin_read()?),
            (None, Some(failed)) => Err(failed.failure.clone()),
            (None, None) => Err(Failure::Damaged("the database")),
        }
    }

    /// Takes whole jobs, until there are enough bytes for a commit.
    fn take_jobs(&mut self) -> Vec<Job> {
        let (mut jobs, mut bytes) = (Vec::new(), 0_usize);
        while bytes < COMMIT_BYTES
            && let Some(job) = self.jobs.pop_front()
        {
            bytes = bytes.saturating_add(job.bytes);
            jobs.push(job);
        }
        jobs
    }
}

/// The thread that commits.
#[derive(Debug)]
struct Writer(Arc<Shared>);

enum Work {
    Commit(Vec<Job>),
    Reopen,
    Close,
}

impl Writer {
    /// Works until the store is closed.
    fn run(&self) {
        loop {
            match self.wait() {
                Work::Commit(jobs) => self.commit(jobs),
                Work::Reopen => {
                    if self.0.state.lock().failed.is_none() {
                        self.close_database();
                    }
                    // Its failure is kept, and the next try has its time.
                    let _ = self.attempt(|| Ok(()));
                }
                Work::Close => {
                    self.close_database();
                    return;
                }
            }
        }
    }

    fn wait(&self) -> Work {
        let state = &mut self.0.state.lock();
        loop {
            // Also what came before the end.
            if !state.jobs.is_empty() {
                if state.is_closed
                    && let Some(failed) = &mut state.failed
                {
                    // The last try does not wait.
                    failed.retry = Instant::now();
                }
                return Work::Commit(state.take_jobs());
            }
            if state.is_closed {
                return Work::Close;
            }
            let retry = state.failed.as_ref().map(|failed| failed.retry);
            if mem::take(&mut state.is_suspect) || retry.is_some_and(|at| at <= Instant::now()) {
                return Work::Reopen;
            }
            match retry {
                Some(at) => {
                    self.0.wake.wait_until(state, at);
                }
                None => self.0.wake.wait(state),
            }
        }
    }

    fn commit(&self, mut jobs: Vec<Job>) {
        let changes: Vec<_> = jobs.iter_mut().map(|job| mem::take(&mut job.changes)).collect();
        let result = self.attempt(|| self.try_commit(changes.iter().flatten()));
        for job in jobs {
            // Who no longer waits has the changes all the same, as the contract allows.
            let _ = job.reply.send(result.clone().map_err(StoreError::from));
        }
    }

    fn try_commit<'a>(&self, changes: impl Iterator<Item = &'a RecordChange>) -> Result<(), Failure> {
        let txn = match &self.0.state.lock().database {
            Some(database) => begin_write(database)?,
            None => return Err(Failure::Damaged("the database")),
        };
        {
            let mut table = txn.open_table(RECORDS)?;
            let mut bytes = Vec::new();
            for change in changes {
                let key = key(change.table, &change.key);
                if let Some(value) = &change.value {
                    bytes.clear();
                    // The key is in the sum, so a value cannot turn up in the wrong place either.
                    bytes.extend_from_slice(&checksum(&key, value).to_le_bytes());
                    bytes.extend_from_slice(value);
                    table.insert(&*key, &*bytes)?;
                } else {
                    table.remove(&*key)?;
                }
            }
        }
        Ok(txn.commit()?)
    }

    /// Does something with the file, and what a failure demands.
    fn attempt(&self, act: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
        let before = self.0.state.lock().failed.clone();
        // Whoever comes too early must not put off the next try.
        if let Some(failed) = &before
            && Instant::now() < failed.retry
        {
            return Err(failed.failure.clone());
        }
        let result = Failure::catch(|| {
            self.ensure_open()?;
            act()
        });
        let path = self.0.disk.path().display();
        match &result {
            Err(failure) => {
                if before.is_none() {
                    tracing::error!(%path, error = failure as &dyn std::error::Error, "the records cannot be written");
                }
                self.close_database();
                let patience = before.map_or(RETRY, |failed| (failed.patience * 2).min(RETRY_MOST));
                let retry = Instant::now() + patience;
                self.0.state.lock().failed = Some(Failed { failure: failure.clone(), retry, patience });
            }
            Ok(()) if before.is_some() => {
                tracing::info!(%path, "the records can be written again");
                self.0.state.lock().failed = None;
            }
            Ok(()) => {}
        }
        result
    }

    /// Opens the database again where it failed.
    fn ensure_open(&self) -> Result<(), Failure> {
        if self.0.state.lock().database.is_some() {
            return Ok(());
        }
        let database = open_database(&self.0.disk, CACHE_BYTES).map_err(|error| Failure::Reopen(Arc::new(error)))?;
        self.0.state.lock().database = Some(database);
        Ok(())
    }

    fn close_database(&self) {
        let database = self.0.state.lock().database.take();
        let closed = Failure::catch(|| database.map_or(Ok(()), |database| Ok(database.close()?)));
        if let Err(failure) = closed {
            // All that was promised is committed.
            tracing::debug!(error = &failure as &dyn std::error::Error, "the records' file did not close in order");
        }
    }
}

impl Drop for Writer {
    /// Also where the thread panics: nobody must wait for ever.
    fn drop(&mut self) {
        self.0.close();
        self.0.state.lock().jobs.clear();
    }
}

/// The length in front keeps tables apart whose names begin alike.
fn key(table: &str, key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + table.len() + key.len());
    // Names are checked, so it fits.
    bytes.push(table.len() as u8);
    bytes.extend_from_slice(table.as_bytes());
    bytes.extend_from_slice(key);
    bytes
}

/// What comes behind all keys of a table.
fn end(table: &str) -> Vec<u8> {
    let mut end = key(table, &[]);
    if let Some(last) = end.last_mut() {
        // Names are ASCII, so there is a next byte.
        *last += 1;
    }
    end
}

fn decode(key: &[u8], value: &[u8]) -> Result<Bytes, Failure> {
    match value.split_first_chunk() {
        Some((sum, value)) if u32::from_le_bytes(*sum) == checksum(key, value) => Ok(Bytes::copy_from_slice(value)),
        _ => Err(Failure::Damaged("a record")),
    }
}

/// Table and key → checksum and value.
const RECORDS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("records");

/// Under which the format stands. Not the inbox's: one file must not pass for the other.
pub(super) const FORMAT_KEY: &str = "records-format";

/// The format that this version writes, and the highest that it reads.
const FORMAT: u64 = 1;

/// Memory for pages of the file. Most records are written, read once at the start, and removed.
pub(super) const CACHE_BYTES: usize = 4 << 20;

/// So many bytes count as one change more, for what may wait.
const WEIGHT_BYTES: usize = 4096;

/// How much may wait for a commit: as many changes, or 64 MiB.
const WAITING: usize = (64 << 20) / WEIGHT_BYTES;

/// About how many bytes go into one commit.
const COMMIT_BYTES: usize = 16 << 20;
