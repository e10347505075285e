//! Where the database file is.

use std::{
    fs::OpenOptions,
    io, mem,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use redb::{Builder, Database, StorageBackend, backends::FileBackend};

use super::config::Durability;
#[cfg(any(test, feature = "conformance"))]
use super::faulty::FaultyDisk;

/// How to get at the bytes of the database, again after a failure too.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    place: Place,
    syncs: bool,
    unsynced: Unsynced,
}

#[derive(Clone, Debug)]
enum Place {
    File(PathBuf),
    #[cfg(any(test, feature = "conformance"))]
    Faulty(FaultyDisk),
}

/// Where was written since the last sync that worked: offset and length.
type Unsynced = Arc<Mutex<Vec<(u64, usize)>>>;

impl Disk {
    pub(super) fn file(path: PathBuf, durability: Durability) -> Self {
        Self { place: Place::File(path), syncs: durability == Durability::Fsync, unsynced: Arc::default() }
    }

    #[cfg(any(test, feature = "conformance"))]
    pub(super) fn faulty(disk: FaultyDisk) -> Self {
        Self { place: Place::Faulty(disk), syncs: true, unsynced: Arc::default() }
    }

    /// The file, for messages.
    pub(super) fn path(&self) -> &Path {
        match &self.place {
            Place::File(path) => path,
            #[cfg(any(test, feature = "conformance"))]
            Place::Faulty(_) => Path::new("faulty disk"),
        }
    }

    /// How long the file is.
    pub(super) fn len(&self) -> Result<u64, redb::DatabaseError> {
        match &self.place {
            Place::File(path) => Ok(path.metadata()?.len()),
            #[cfg(any(test, feature = "conformance"))]
            Place::Faulty(disk) => Ok(disk.size()),
        }
    }

    /// Opens the database; an empty file becomes one.
    pub(super) fn open(&self, cache_bytes: usize) -> Result<Database, redb::DatabaseError> {
        match &self.place {
            Place::File(path) => {
                let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
                self.open_in(FileBackend::new(file)?, cache_bytes)
            }
            #[cfg(any(test, feature = "conformance"))]
            Place::Faulty(disk) => self.open_in(disk.clone(), cache_bytes),
        }
    }

    fn open_in(&self, file: impl StorageBackend, cache_bytes: usize) -> Result<Database, redb::DatabaseError> {
        let file = Tracked { file, syncs: self.syncs, unsynced: Arc::clone(&self.unsynced) };
        let has_failed = file.write_again()?;
        let mut database = Builder::new().set_cache_size(cache_bytes).create_with_backend(file)?;
        if has_failed {
            // What was written again is what the system still had. It need not have been all.
            database.check_integrity()?;
        }
        Ok(database)
    }
}

/// A file that remembers what a failed sync may have lost.
///
/// After a sync that fails, the system may take what was not written for written: reads show it, a later sync has
/// nothing to do and works, and the next power cut loses it. So it is written once more before the file is used again.
///
/// It takes no locks: the data directory's is held from the first opening to the end, also while a failed database is
/// opened again.
#[derive(Debug)]
struct Tracked<F> {
    file: F,
    syncs: bool,
    unsynced: Unsynced,
}

impl<F: StorageBackend> Tracked<F> {
    /// Writes again what no sync has confirmed; whether there was such a thing.
    fn write_again(&self) -> io::Result<bool> {
        let unsynced = self.unsynced.lock().clone();
        if unsynced.is_empty() {
            return Ok(false);
        }
        let len = self.file.len()?;
        for (offset, size) in unsynced {
            let size = size.min(usize::try_from(len.saturating_sub(offset)).unwrap_or(usize::MAX));
            let mut data = vec![0; size];
            self.file.read(offset, &mut data)?;
            self.file.write(offset, &data)?;
        }
        self.sync_data()?;
        Ok(true)
    }
}

impl<F: StorageBackend> StorageBackend for Tracked<F> {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        if !self.syncs {
            return Ok(());
        }
        let unsynced = mem::take(&mut *self.unsynced.lock());
        self.file.sync_data().inspect_err(|_| self.unsynced.lock().extend(unsynced))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if self.syncs {
            self.unsynced.lock().push((offset, data.len()));
        }
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
}
