//! The thread that commits.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use redb::{Database, ReadableDatabase, ReadableTable, WriteTransaction};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use wsc_protocol::Id;

use super::{
    Shared,
    failure::Failure,
    index::{Admitted, Batch, Pending, Place, Row},
    journal::{Gone, RowWriter},
    open::open_database,
    tables::{JOURNAL, META, NOTES, Resting, Snapshot, USERS, meta},
};
use crate::{Admission, Entry, EntryKey, NewEntry, Note, Position, StoreError};

/// A call of `append` that waits for its commit.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) entries: Vec<NewEntry>,
    pub(super) reply: oneshot::Sender<Result<Vec<Admission>, StoreError>>,
    /// Its place among those that may wait, also when the caller no longer does.
    pub(super) _room: OwnedSemaphorePermit,
}

/// What the writer is asked for.
#[derive(Debug, Default)]
pub(super) struct Queue {
    jobs: VecDeque<Job>,
    /// How many entries the jobs have.
    entries: usize,
    /// Since when removals wait.
    removals: Option<Instant>,
    /// A reader could not read: the database has to be opened anew.
    is_suspect: bool,
    /// More removed entries wait to leave the tables than should.
    is_crowded: bool,
    is_closing: bool,
}

impl Queue {
    /// Adds a job; false, where the store closes. Says whether the writer must be woken.
    pub(super) fn push(&mut self, job: Job, batch: usize) -> Result<bool, Job> {
        if self.is_closing {
            return Err(job);
        }
        let before = self.entries;
        self.entries += job.entries.len();
        self.jobs.push_back(job);
        // The writer wakes by itself for what joins others, unless it is enough for a commit.
        Ok(self.jobs.len() == 1 || (before < batch && self.entries >= batch))
    }

    /// Says whether the writer must be woken.
    pub(super) fn removed(&mut self, is_crowded: bool) -> bool {
        let wake = self.removals.is_none() || (is_crowded && !self.is_crowded);
        self.is_crowded |= is_crowded;
        self.removals.get_or_insert_with(Instant::now);
        wake
    }

    pub(super) fn suspect(&mut self) {
        self.is_suspect = true;
    }

    pub(super) fn close(&mut self) {
        self.is_closing = true;
    }
}

/// What a row of the notes table holds.
#[derive(Debug)]
pub(super) struct NoteRow {
    pub(super) sequence: u64,
    pub(super) notes: u64,
    /// When the last of its notes is over.
    pub(super) last_end: u64,
}

impl NoteRow {
    pub(super) fn add(&mut self, note: &Note) {
        self.notes += 1;
        self.last_end = self.last_end.max(note.expires_at);
    }
}

/// Starts a transaction of the kind that all are.
pub(super) fn begin_write(database: &Database) -> Result<WriteTransaction, Failure> {
    let mut txn = database.begin_write()?;
    // Opening after a crash would walk the whole file otherwise.
    txn.set_quick_repair(true);
    Ok(txn)
}

#[derive(Debug)]
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) next_position: Position,
    pub(super) next_sequence: u64,
    pub(super) note_rows: VecDeque<NoteRow>,
    pub(super) state: WriterState,
}

/// How it goes.
#[derive(Debug, Default)]
pub(super) struct WriterState {
    /// When the last commit began.
    last_commit: Option<Instant>,
    /// When rows were last looked at for moving.
    last_move: Option<Instant>,
    /// There was more to move than went into one transaction.
    moves_more: bool,
    /// Rows were moved since the last commit.
    moved_last: bool,
    /// Removals that the commit at work has taken.
    taken: Pending,
    /// A batch whose transaction may or may not be in the file.
    in_doubt: Option<Batch>,
    /// The last failure, and when the file is next tried.
    failed: Option<(Failure, Instant)>,
    /// How long that was put off.
    patience: Duration,
}

enum Work {
    Commit(Vec<Job>),
    Move,
    Reopen,
    Close(Vec<Job>),
}

impl Writer {
    /// Works until the store is closed.
    pub(super) fn run(mut self) -> Result<(), StoreError> {
        loop {
            match self.wait() {
                Work::Commit(jobs) => self.commit(jobs),
                Work::Move => self.move_rows(),
                Work::Reopen => {
                    if self.state.failed.is_none() {
                        self.close_database();
                    }
                    // Its failure is kept, and the next try has its time.
                    let _ = self.attempt(|_| Ok(()));
                }
                Work::Close(jobs) => {
                    self.commit(jobs);
                    return self.close();
                }
            }
        }
    }

    fn wait(&self) -> Work {
        let Shared { config, queue, wake, .. } = &*self.shared;
        let move_at = self.move_at();
        let retry_at = self.state.failed.as_ref().map(|(_, retry)| *retry);
        let mut queue = queue.lock();
        loop {
            if queue.is_closing {
                queue.entries = 0;
                return Work::Close(queue.jobs.drain(..).collect());
            }
            let now = Instant::now();
            // Readers need it too.
            if mem::take(&mut queue.is_suspect) || retry_at.is_some_and(|at| at <= now) {
                return Work::Reopen;
            }
            let next_commit = self.state.last_commit.map_or(now, |last| last + config.commit_interval);
            let commit_at = if queue.entries >= config.commit_batch {
                Some(now)
            } else if !queue.jobs.is_empty() {
                Some(next_commit)
            } else {
                // Nobody waits for these, so they wait for others to come along.
                let due = queue.removals.map(|since| next_commit.max(since + config.commit_interval));
                due.map(|due| retry_at.map_or(due, |retry| due.max(retry)))
            };
            let must_commit = commit_at.is_some_and(|at| at <= now);
            let must_move = queue.is_crowded || move_at.is_some_and(|at| at <= now);
            // In turn: where one commit follows the other, the journal must get shorter all the same.
            if must_move && !(must_commit && self.state.moved_last) {
                queue.is_crowded = false;
                return Work::Move;
            }
            if must_commit {
                queue.removals = None;
                return Work::Commit(take_jobs(&mut queue, config.commit_batch));
            }
            match commit_at.into_iter().chain(move_at).chain(retry_at).min() {
                Some(at) => {
                    wake.wait_until(&mut queue, at);
                }
                None => wake.wait(&mut queue),
            }
        }
    }

    /// When rows have to be moved next.
    fn move_at(&self) -> Option<Instant> {
        let shared = &*self.shared;
        let oldest = shared.state.lock().index.oldest()?;
        if self.state.moves_more {
            return Some(Instant::now());
        }
        let due = oldest + shared.config.rest_after;
        // Many rows together, for the price of one transaction.
        let due = self.state.last_move.map_or(due, |last| due.max(last + MOVE_INTERVAL.min(shared.config.rest_after)));
        Some(self.state.failed.as_ref().map_or(due, |(_, retry)| due.max(*retry)))
    }

    /// Does something with the file, and what a failure demands.
    fn attempt<T>(&mut self, act: impl FnOnce(&mut Self) -> Result<T, Failure>) -> Result<T, Failure> {
        // Whoever comes too early must not put off the next try.
        if let Some((failure, retry)) = &self.state.failed
            && Instant::now() < *retry
        {
            return Err(failure.clone());
        }
        let result = Failure::catch(|| {
            self.ensure_open()?;
            act(self)
        });
        if let Err(failure) = &result {
            if self.state.failed.is_none() {
                let path = self.shared.disk.path().display();
                tracing::error!(%path, error = failure as &dyn std::error::Error, "the inbox cannot be written");
            }
            self.close_database();
            let taken = mem::take(&mut self.state.taken);
            let mut state = self.shared.state.lock();
            state.index.pending.put_back(taken);
            state.is_failing = true;
            drop(state);
            // A call of its own failed to get here, so there is no storm to fear from those who wait.
            self.shared.moved.notify_waiters();
            self.state.patience = (self.state.patience * 2).clamp(RETRY, RETRY_MOST);
            self.state.failed = Some((failure.clone(), Instant::now() + self.state.patience));
            self.state.moves_more = false;
        } else if self.state.failed.take().is_some() {
            tracing::info!("the inbox can be written again");
            self.state.patience = Duration::ZERO;
            self.shared.state.lock().is_failing = false;
            self.shared.moved.notify_waiters();
        }
        result
    }

    fn commit(&mut self, mut jobs: Vec<Job>) {
        self.state.last_commit = Some(Instant::now());
        self.state.moved_last = false;
        let entries = jobs.iter_mut().map(|job| mem::take(&mut job.entries)).collect();
        match self.attempt(|writer| writer.try_commit(entries)) {
            Ok(admissions) => {
                for (job, admissions) in jobs.into_iter().zip(admissions) {
                    // Who no longer waits has an entry all the same, as the contract allows.
                    let _ = job.reply.send(Ok(admissions));
                }
            }
            Err(failure) => {
                // Removals are not lost with the rest.
                self.shared.queue.lock().removals.get_or_insert_with(Instant::now);
                let error = StoreError::from(failure);
                for job in jobs {
                    let _ = job.reply.send(Err(error.clone()));
                }
            }
        }
    }

    fn try_commit(&mut self, jobs: Vec<Vec<NewEntry>>) -> Result<Vec<Vec<Admission>>, Failure> {
        while self.is_full() {
            self.move_batch(true)?;
        }
        let resting = self.find_resting(&jobs)?;

        let mut position = self.next_position;
        let mut admitted = Admitted::default();
        let lens: Vec<_> = jobs.iter().map(Vec::len).collect();
        {
            let mut state = self.shared.state.lock();
            for entries in jobs {
                state.index.admit(&mut admitted, entries, &mut position, &resting);
            }
            // Taken behind the admission: an entry that was removed and is appended anew goes first, then comes.
            self.state.taken = mem::take(&mut state.index.pending);
        }
        let mut admissions = mem::take(&mut admitted.admissions).into_iter();
        let admissions = lens.into_iter().map(|len| admissions.by_ref().take(len).collect()).collect();
        if admitted.entries.is_empty() && self.state.taken.is_empty() {
            return Ok(admissions);
        }

        let rows = Rows::new(self.next_sequence, self.next_position).write(&self.state.taken, &admitted);
        let txn = self.begin()?;
        {
            let mut journal = txn.open_table(JOURNAL)?;
            for (row, bytes) in &rows {
                journal.insert(row.sequence, &**bytes)?;
            }
        }
        txn.commit()?;

        self.state.taken = Pending::default();
        self.next_position = position;
        self.next_sequence += rows.len() as u64;
        let mut state = self.shared.state.lock();
        state.index.insert(admitted.entries);
        for (row, _) in rows {
            state.index.push_row(row);
        }
        Ok(admissions)
    }

    /// Where the entries are that only the tables can tell to be there already.
    fn find_resting(&self, jobs: &[Vec<NewEntry>]) -> Result<HashMap<EntryKey, Position>, Failure> {
        let (keys, snapshot) = {
            let state = self.shared.state.lock();
            let keys = jobs.iter().flatten().map(|entry| &entry.key);
            let keys: Vec<_> = keys.filter(|key| state.index.place(key) == Place::MayRest).cloned().collect();
            if keys.is_empty() {
                return Ok(HashMap::new());
            }
            (keys, state.snapshot()?)
        };
        let found = snapshot.find(keys.iter())?;
        Ok(keys.into_iter().zip(found).filter_map(|(key, found)| Some((key, found?.position))).collect())
    }

    /// Whether the journal holds so much that appends must wait until some of it has moved.
    fn is_full(&self) -> bool {
        let config = &self.shared.config;
        let state = self.shared.state.lock();
        state.index.journal_bytes() > config.journal_bytes.saturating_mul(2)
            || state.index.young_count() > config.journal_entries.saturating_mul(2)
    }

    fn move_rows(&mut self) {
        self.state.last_move = Some(Instant::now());
        self.state.moved_last = true;
        let moved = self.attempt(|writer| writer.move_batch(false));
        self.state.moves_more = moved.unwrap_or(false);
    }

    /// Moves what is old, and as much as is too much, from the journal to the tables; at most one transaction. Returns
    /// whether it did.
    fn move_batch(&mut self, any_age: bool) -> Result<bool, Failure> {
        let config = &self.shared.config;
        let now = Instant::now();
        let batch = {
            let index = &self.shared.state.lock().index;
            let is_crowded = index.journal_bytes() > config.journal_bytes
                || index.young_count() > config.journal_entries
                || index.removed() > REMOVED_SOFT;
            index.batch(MOVED_AT_ONCE, |row| any_age || is_crowded || now >= row.at + config.rest_after)
        };
        let Some(batch) = batch else { return Ok(false) };
        let txn = self.begin()?;
        {
            let mut tables = Resting::open(&txn)?;
            for gone in &batch.gone {
                tables.remove(gone)?;
            }
            for (user, entry) in &batch.moved {
                tables.insert(user, entry)?;
            }
            let mut users = txn.open_table(USERS)?;
            for (user, (depth, max_id)) in &batch.users {
                if depth.messages == 0 {
                    users.remove(user.as_str())?;
                } else {
                    users.insert(user.as_str(), (depth.messages, depth.bytes, max_id.as_u128()))?;
                }
            }
            let mut journal = txn.open_table(JOURNAL)?;
            journal.retain_in(..=batch.last_sequence, |_, _| false)?;
            let mut meta = txn.open_table(META)?;
            meta.insert(meta::POSITION, batch.last.0)?;
            meta.insert(meta::SEQUENCE, batch.last_sequence)?;
        }
        let notes = self.move_notes(&txn, &batch)?;
        self.state.in_doubt = Some(batch);
        txn.commit()?;
        self.note_rows.drain(..notes.forgotten);
        self.note_rows.extend(notes.new);
        self.finish_move();
        Ok(true)
    }

    fn move_notes(&self, txn: &WriteTransaction, batch: &Batch) -> Result<MovedNotes, Failure> {
        let mut table = txn.open_table(NOTES)?;
        let mut new = None;
        if !batch.notes.is_empty() {
            let mut row = RowWriter::new();
            let mut note_row = NoteRow { sequence: batch.last_sequence, notes: 0, last_end: 0 };
            for note in &batch.notes {
                row.note(note);
                note_row.add(note);
            }
            table.insert(batch.last_sequence, &*row.finish())?;
            new = Some(note_row);
        }
        // Whole rows go: when all of their notes are over, or there are enough without them.
        let now = self.shared.seen_now.load(Ordering::Relaxed);
        let most = self.shared.state.lock().index.limits.notes;
        let mut held: u64 = self.note_rows.iter().chain(&new).map(|row| row.notes).sum();
        let mut forgotten = 0;
        for row in &self.note_rows {
            if row.last_end > now && held - row.notes < most {
                break;
            }
            table.remove(row.sequence)?;
            held -= row.notes;
            forgotten += 1;
        }
        Ok(MovedNotes { new, forgotten })
    }

    fn finish_move(&mut self) {
        let Some(batch) = self.state.in_doubt.take() else { return };
        self.shared.state.lock().index.moved(batch);
        self.shared.moved.notify_waiters();
    }

    fn begin(&self) -> Result<WriteTransaction, Failure> {
        match &self.shared.state.lock().database {
            Some(database) => begin_write(database),
            None => Err(self.not_open()),
        }
    }

    fn not_open(&self) -> Failure {
        self.state.failed.as_ref().map_or(Failure::Damaged("the database"), |(failure, _)| failure.clone())
    }

    /// Opens the database again where it failed, and makes it what is known in memory.
    fn ensure_open(&mut self) -> Result<(), Failure> {
        if self.shared.state.lock().database.is_some() {
            return Ok(());
        }
        let Shared { disk, config, .. } = &*self.shared;
        let database = open_database(disk, config.cache_bytes).map_err(|error| Failure::Reopen(Arc::new(error)))?;
        let txn = begin_write(&database)?;
        let first = {
            let mut journal = txn.open_table(JOURNAL)?;
            // A commit that failed may be in the file all the same. Its entries were reported as not stored.
            journal.retain_in(self.next_sequence.., |_, _| false)?;
            journal.first()?.map(|(sequence, _)| sequence.value())
        };
        txn.commit()?;
        // So may be one that moved rows. Then they are no longer in the journal.
        if let Some(batch) = &self.state.in_doubt {
            if first.is_none_or(|first| first > batch.last_sequence) {
                self.finish_move();
            } else {
                self.state.in_doubt = None;
            }
            self.note_rows = read_note_rows(&database)?;
        }
        self.shared.state.lock().database = Some(database);
        Ok(())
    }

    fn close_database(&self) {
        let database = self.shared.state.lock().database.take();
        let _ = Failure::catch(|| {
            drop(database);
            Ok(())
        });
    }

    fn close(&mut self) -> Result<(), StoreError> {
        // The last try does not wait.
        if let Some((_, retry)) = &mut self.state.failed {
            *retry = Instant::now();
        }
        let closed = self.attempt(|writer| {
            // Removals that came while the last jobs were committed, or that could not be before.
            writer.try_commit(Vec::new())?;
            let txn = writer.begin()?;
            txn.open_table(META)?.insert(meta::CLOSED, 1)?;
            txn.commit()?;
            let database = writer.shared.state.lock().database.take();
            database.map_or(Ok(()), |database| Ok(database.close()?))
        });
        closed.map_err(StoreError::from)
    }
}

impl Drop for Writer {
    /// Also where the thread panics: nobody must wait for ever.
    fn drop(&mut self) {
        self.shared.close();
        self.shared.queue.lock().jobs.clear();
    }
}

#[derive(Debug)]
struct MovedNotes {
    new: Option<NoteRow>,
    /// How many rows went, from the oldest on.
    forgotten: usize,
}

fn read_note_rows(database: &Database) -> Result<VecDeque<NoteRow>, Failure> {
    let mut rows = VecDeque::new();
    Snapshot::new(database.begin_read()?).notes(|sequence, row| {
        let mut note_row = NoteRow { sequence, notes: 0, last_end: 0 };
        // Damage was counted when the store was opened.
        let _ = super::journal::read_row(row, |record| {
            if let super::journal::Record::Note(note) = record {
                note_row.add(&note);
            }
        });
        rows.push_back(note_row);
    })?;
    Ok(rows)
}

/// Takes whole jobs, until there are enough entries for a commit.
fn take_jobs(queue: &mut Queue, batch: usize) -> Vec<Job> {
    let mut jobs = Vec::new();
    let mut entries = 0;
    while entries < batch
        && let Some(job) = queue.jobs.pop_front()
    {
        entries += job.entries.len();
        jobs.push(job);
    }
    queue.entries -= entries;
    jobs
}

/// Cuts what a commit changes into rows.
struct Rows {
    done: Vec<(Row, Vec<u8>)>,
    writer: RowWriter,
    sequence: u64,
    last: Position,
    gone: Vec<Gone>,
    notes: Vec<Note>,
    at: Instant,
}

impl Rows {
    fn new(sequence: u64, next: Position) -> Self {
        Self {
            done: Vec::new(),
            writer: RowWriter::new(),
            sequence,
            last: Position(next.0 - 1),
            gone: Vec::new(),
            notes: Vec::new(),
            at: Instant::now(),
        }
    }

    fn write(mut self, removed: &Pending, admitted: &Admitted) -> Vec<(Row, Vec<u8>)> {
        for positions in removed.young.chunks(512) {
            self.room(positions.len() * 8);
            self.writer.gone_young(positions);
        }
        for gone in &removed.resting {
            self.room(gone.key.user.as_str().len());
            self.writer.gone_resting(gone);
            self.gone.push(gone.clone());
        }
        for (user, entry) in &admitted.entries {
            self.entry(user, entry);
        }
        for note in &admitted.notes {
            self.room(note.key.len() + note.value.len());
            self.writer.note(note);
            self.notes.push(note.clone());
        }
        self.finish_row();
        self.done
    }

    fn entry(&mut self, user: &Id, entry: &Entry) {
        self.room(entry.body.len() + user.as_str().len());
        self.writer.entry(user, entry);
        self.last = entry.position;
    }

    /// Starts a new row where so many bytes do not fit into this one.
    fn room(&mut self, len: usize) {
        if self.writer.len() + len + RECORD_OVERHEAD > ROW_BYTES {
            self.finish_row();
        }
    }

    fn finish_row(&mut self) {
        if self.writer.is_empty() {
            return;
        }
        let bytes = mem::replace(&mut self.writer, RowWriter::new()).finish();
        let row = Row {
            sequence: self.sequence,
            last: self.last,
            bytes: bytes.len(),
            at: self.at,
            gone: mem::take(&mut self.gone),
            notes: mem::take(&mut self.notes),
        };
        self.sequence += 1;
        self.done.push((row, bytes));
    }
}

/// How full rows get. The database gives large values pages of powers of two: just below one wastes least.
const ROW_BYTES: usize = (64 << 10) - 512;
/// Most that a record has beside its texts and body.
const RECORD_OVERHEAD: usize = 64;

/// Least time between two looks at what has become old.
const MOVE_INTERVAL: Duration = Duration::from_millis(500);

/// About how many entries change the tables in one transaction. Appends wait meanwhile, so not too many.
const MOVED_AT_ONCE: usize = 1000;

/// How long a failed file is left alone, at first and at most. Appends fail at once meanwhile.
pub(super) const RETRY: Duration = Duration::from_millis(100);
pub(super) const RETRY_MOST: Duration = Duration::from_secs(5);

/// From so many removed entries on, they leave the tables before they are old.
pub(super) const REMOVED_SOFT: usize = 16_384;

/// So many removed entries wait to leave the tables, and then callers wait.
pub(super) const REMOVED_MOST: usize = 65_536;
