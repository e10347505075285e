//! Where the database file is.

use std::{
    fs::OpenOptions,
    io,
    path::{Path, PathBuf},
};

use redb::{Builder, Database, StorageBackend, backends::FileBackend};

use super::config::Durability;
#[cfg(any(test, feature = "conformance"))]
use super::faulty::FaultyDisk;

/// How to get at the bytes of the database, again after a failure too.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    place: Place,
    syncs: bool,
}

#[derive(Clone, Debug)]
enum Place {
    File(PathBuf),
    #[cfg(any(test, feature = "conformance"))]
    Faulty(FaultyDisk),
}

impl Disk {
    pub(super) fn file(path: PathBuf, durability: Durability) -> Self {
        Self { place: Place::File(path), syncs: durability == Durability::Fsync }
    }

    #[cfg(any(test, feature = "conformance"))]
    pub(super) fn faulty(disk: FaultyDisk) -> Self {
        Self { place: Place::Faulty(disk), syncs: true }
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
        Builder::new().set_cache_size(cache_bytes).create_with_backend(Synced { file, syncs: self.syncs })
    }
}

/// A file that is synced, or is not.
///
/// It takes no locks: the data directory's is held from the first opening to the end, also while a failed database is
/// opened again.
///
/// After a sync that fails, systems take for written what is not: reads show it, and later syncs pass it by. That is no
/// danger here. The database names new pages in its header only after their sync has worked, and it writes the header
/// anew with each commit, so nothing that a failed sync may have lost is ever built upon.
#[derive(Debug)]
struct Synced<F> {
    file: F,
    syncs: bool,
}

impl<F: StorageBackend> StorageBackend for Synced<F> {
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
        if self.syncs { self.file.sync_data() } else { Ok(()) }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
}
