//! From a data directory to a store that runs.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use redb::{Database, ReadableDatabase};

use super::{
    EmbeddedInbox,
    config::{Durability, EmbeddedConfig, OpenError, Opened},
    disk::Disk,
    failure::Failure,
    index::{Index, Row},
    journal::{Record, read_row},
    records::{self, EmbeddedRecords},
    tables::{self, Snapshot, meta},
    writer::{NoteRow, begin_write},
};
use crate::Position;

/// What is kept in one data directory.
#[derive(Debug)]
#[non_exhaustive]
pub struct EmbeddedStore {
    /// The messages, in `inbox.redb`.
    pub inbox: EmbeddedInbox,
    /// The small things, in `records.redb`.
    pub records: EmbeddedRecords,
    /// What was found.
    pub opened: Opened,
}

/// Opens all that is kept in this data directory, or makes it. The directory is this process' alone until both stores
/// are closed.
///
/// It reads the files whole, as [`EmbeddedInbox::open`] does, and blocks.
///
/// # Errors
///
/// [`OpenError`] names the path, and what to do. Nothing in the directory is overwritten then.
pub fn open_embedded(path: &Path, config: EmbeddedConfig) -> Result<EmbeddedStore, OpenError> {
    let started = Instant::now();
    let directory = Arc::new(Directory::take(path)?);
    let records_disk = directory.disk("records.redb", config.durability, records::make)?;
    let inbox_disk = directory.inbox(&config)?;
    // Neither is marked as in use before the other is known to be fine.
    let records_loaded = records::load(&records_disk)?;
    let inbox_loaded = load(&inbox_disk, &config)?;

    let mut opened = inbox_loaded.opened.clone();
    opened.records = records_loaded.records;
    opened.was_repaired |= records_loaded.was_repaired;
    let records = EmbeddedRecords::start(records_disk, records_loaded, Some(Arc::clone(&directory)))?;
    let inbox = EmbeddedInbox::start(inbox_disk, config, inbox_loaded, Some(directory))?;
    opened.took = started.elapsed();
    Ok(EmbeddedStore { inbox, records, opened })
}

/// Opens the inbox alone.
pub(super) fn open_inbox(path: &Path, config: EmbeddedConfig) -> Result<(EmbeddedInbox, Opened), OpenError> {
    let directory = Arc::new(Directory::take(path)?);
    let disk = directory.inbox(&config)?;
    let loaded = load(&disk, &config)?;
    let opened = loaded.opened.clone();
    Ok((EmbeddedInbox::start(disk, config, loaded, Some(directory))?, opened))
}

/// Makes a directory for this user alone: messages are in it as they are. One that is there stays as it is.
fn make_directory(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// The data directory, which is this process' alone as long as this lives.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Makes the directory where it is missing, and takes it.
    pub(super) fn take(path: &Path) -> Result<Self, OpenError> {
        let unusable = |source| OpenError::Directory { path: path.to_owned(), source };
        make_directory(path).map_err(unusable)?;
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(path.join("lock"));
        let lock = lock.map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(OpenError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => Err(unusable(source)),
        }
    }

    /// The inbox's file in it, which is made where it is missing.
    fn inbox(&self, config: &EmbeddedConfig) -> Result<Disk, OpenError> {
        self.disk("inbox.redb", config.durability, make)
    }

    /// A file in it, which is made where it is missing.
    fn disk(
        &self,
        name: &str,
        durability: Durability,
        make: fn(&Database) -> Result<(), Failure>,
    ) -> Result<Disk, OpenError> {
        let path = self.path.join(name);
        match fs::metadata(&path) {
            Ok(file) if file.is_file() => check_kind(&path)?,
            Ok(_) => return Err(OpenError::Foreign { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // It gets its name when it is complete. So an empty file under that name is a damaged one, and not the
                // beginning of a new one.
                let new = self.path.join(format!("{name}.new"));
                let io = |source| OpenError::Io { path: new.clone(), source };
                match fs::remove_file(&new) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
                    _ => {}
                }
                let disk = Disk::file(new.clone(), durability);
                let database = open_database(&disk, NEW_CACHE_BYTES)?;
                make(&database).map_err(|failure| failed(&new, &failure))?;
                drop(database);
                fs::rename(&new, &path).map_err(io)?;
                File::open(&self.path).and_then(|directory| directory.sync_all()).map_err(io)?;
            }
            Err(source) => return Err(OpenError::Io { path, source }),
        }
        Ok(Disk::file(path, durability))
    }
}

/// Whether it looks like a database at all, before the database code sees it.
fn check_kind(path: &Path) -> Result<(), OpenError> {
    let mut start = [0; REDB.len()];
    let mut file = OpenOptions::new().read(true).write(true).open(path);
    let read = file.as_mut().map_err(|error| io::Error::new(error.kind(), error.to_string()));
    match read.and_then(|file| file.read_exact(&mut start)) {
        Ok(()) if start == *REDB => Ok(()),
        Ok(()) => Err(OpenError::Foreign { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(OpenError::Damaged { path: path.to_owned(), what: "it is cut off".to_owned() })
        }
        Err(source) => Err(OpenError::Io { path: path.to_owned(), source }),
    }
}

/// What a store starts with.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) database: Database,
    pub(super) index: Index,
    pub(super) next_position: Position,
    pub(super) next_sequence: u64,
    pub(super) note_rows: VecDeque<NoteRow>,
    pub(super) opened: Opened,
}

/// Opens what is on the disk and reads what must be in memory.
pub(super) fn load(disk: &Disk, config: &EmbeddedConfig) -> Result<Loaded, OpenError> {
    let started = Instant::now();
    let (database, was_repaired) = open_checked(disk, config.cache_bytes, make, meta::FORMAT, FORMAT)?;
    let path = disk.path();
    let closed = Failure::catch(|| Snapshot::new(database.begin_read()?).meta(meta::CLOSED));
    let was_closed = closed.map_err(|failure| failed(path, &failure))? == 1;
    let opened = Opened { was_closed, was_repaired, ..Opened::default() };

    let mut loaded = Failure::catch(|| read(database, config, opened)).map_err(|failure| failed(path, &failure))?;
    let unclosed = Failure::catch(|| {
        let txn = begin_write(&loaded.database)?;
        txn.open_table(tables::META)?.insert(meta::CLOSED, 0)?;
        Ok(txn.commit()?)
    });
    unclosed.map_err(|failure| failed(path, &failure))?;
    loaded.opened.took = started.elapsed();
    Ok(loaded)
}

/// Opens a database; an empty one is made. Says whether it was damaged and set right.
pub(super) fn open_checked(
    disk: &Disk,
    cache_bytes: usize,
    make: fn(&Database) -> Result<(), Failure>,
    format_key: &str,
    known: u64,
) -> Result<(Database, bool), OpenError> {
    let path = disk.path();
    let mut database = open_database(disk, cache_bytes)?;
    let format = Failure::catch(|| {
        if database.begin_read()?.list_tables()?.next().is_none() {
            make(&database)?;
        }
        Snapshot::new(database.begin_read()?).meta(format_key)
    });
    match format.map_err(|failure| failed(path, &failure))? {
        0 => return Err(OpenError::Foreign { path: path.to_owned() }),
        found if found > known => return Err(OpenError::NewerFormat { path: path.to_owned(), found, known }),
        _ => {}
    }
    let checked = Failure::catch(|| Ok(database.check_integrity()?));
    let was_repaired = !checked.map_err(|failure| failed(path, &failure))?;
    Failure::catch(|| compact(&mut database, disk)).map_err(|failure| failed(path, &failure))?;
    Ok((database, was_repaired))
}

pub(super) fn open_database(disk: &Disk, cache_bytes: usize) -> Result<Database, OpenError> {
    Failure::catch(|| Ok(disk.open(cache_bytes)?)).map_err(|failure| failed(disk.path(), &failure))
}

/// Makes what a new database needs.
fn make(database: &Database) -> Result<(), Failure> {
    let txn = begin_write(database)?;
    {
        let mut table = txn.open_table(tables::META)?;
        table.insert(meta::FORMAT, FORMAT)?;
        table.insert(meta::CLOSED, 1)?;
        txn.open_table(tables::JOURNAL)?;
        txn.open_table(tables::NOTES)?;
        txn.open_table(tables::USERS)?;
        tables::Resting::open(&txn)?;
    }
    Ok(txn.commit()?)
}

/// Gives back the space of a large file where most of it is unused: it grew for more than is there now.
fn compact(database: &mut Database, disk: &Disk) -> Result<(), Failure> {
    let len = disk.len()?;
    if len < COMPACT_FROM {
        return Ok(());
    }
    let stats = database.begin_write()?.stats()?;
    if stats.allocated_pages() * stats.page_size() as u64 > len / 2 {
        return Ok(());
    }
    database.compact()?;
    tracing::info!(path = %disk.path().display(), before = len, after = disk.len()?, "compacted a large file");
    Ok(())
}

/// Reads what must be in memory.
fn read(database: Database, config: &EmbeddedConfig, mut opened: Opened) -> Result<Loaded, Failure> {
    let snapshot = Snapshot::new(database.begin_read()?);
    let rested = Position(snapshot.meta(meta::POSITION)?);
    let mut index = Index::new(config.limits, rested);
    snapshot.users(|user, depth, max_id| index.load_user(user, depth, max_id))?;

    let mut note_rows = VecDeque::new();
    snapshot.notes(|sequence, row| {
        let mut note_row = NoteRow { sequence, notes: 0, last_end: 0 };
        let read = read_row(row, |record| {
            if let Record::Note(note) = record {
                note_row.add(&note);
            }
        });
        if let Err(damage) = read {
            tracing::error!(sequence, lost = damage.records, "stored notes are damaged and lost");
            opened.dropped += damage.records;
        }
        opened.notes += note_row.notes;
        note_rows.push_back(note_row);
    })?;

    let mut last = rested;
    let mut last_sequence = snapshot.meta(meta::SEQUENCE)?;
    let now = Instant::now();
    snapshot.journal(|sequence, bytes| {
        let mut row = Row { sequence, last, bytes: bytes.len(), at: now, gone: Vec::new(), notes: Vec::new() };
        let mut entries = Vec::new();
        let read = read_row(bytes, |record| match record {
            Record::Entry(user, entry) if entry.position > row.last => {
                row.last = entry.position;
                entries.push((user, entry));
            }
            Record::Entry(_, entry) => tracing::warn!(position = entry.position.0, "an entry is there twice"),
            Record::GoneYoung(position) => {
                index.remove_young(position);
            }
            Record::GoneResting(gone) => {
                if index.remove_resting(&gone) {
                    row.gone.push(gone);
                }
            }
            Record::Note(note) => row.notes.push(note),
        });
        if let Err(damage) = read {
            let behind = row.last.0;
            tracing::error!(sequence, behind, lost = damage.records, "stored messages are damaged and lost");
            opened.dropped += damage.records;
        }
        opened.notes += row.notes.len() as u64;
        (last, last_sequence) = (row.last, sequence);
        index.insert(entries);
        index.push_row(row);
    })?;
    (opened.messages, opened.bytes) = (index.total().messages, index.total().bytes);
    let (next_position, next_sequence) = (Position(last.0 + 1), last_sequence + 1);
    Ok(Loaded { database, index, next_position, next_sequence, note_rows, opened })
}

/// What an operator should know and do about it.
pub(super) fn failed(path: &Path, failure: &Failure) -> OpenError {
    let path = path.to_owned();
    if let Failure::Database(error) = failure {
        match &**error {
            redb::Error::DatabaseAlreadyOpen => return OpenError::InUse { path },
            redb::Error::Io(error)
                if !matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
            {
                return OpenError::Io { path, source: io::Error::new(error.kind(), error.to_string()) };
            }
            error => return OpenError::Damaged { path, what: error.to_string() },
        }
    }
    OpenError::Damaged { path, what: failure.to_string() }
}

/// Memory for pages of a file that is being made.
const NEW_CACHE_BYTES: usize = 1 << 20;

/// Smaller files are not worth it.
const COMPACT_FROM: u64 = 64 << 20;

/// How such files begin.
const REDB: &[u8; 9] = b"redb\x1a\x0a\xa9\x0d\x0a";

/// The format that this version writes, and the highest that it reads.
const FORMAT: u64 = 1;
