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
pub(super) enum Disk {
    File {
        path: PathBuf,
        durability: Durability,
    },
    #[cfg(any(test, feature = "conformance"))]
    Faulty(FaultyDisk),
}

impl Disk {
    /// The file, for messages.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::File { path, .. } => path,
            #[cfg(any(test, feature = "conformance"))]
            Self::Faulty(_) => Path::new("faulty disk"),
        }
    }

    /// Opens the database; an empty file becomes one.
    pub(super) fn open(&self, cache_bytes: usize) -> Result<Database, redb::DatabaseError> {
        let mut builder = Builder::new();
        builder.set_cache_size(cache_bytes);
        match self {
            Self::File { path, durability } => {
                let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
                let file = FileBackend::new(file)?;
                builder.create_with_backend(OsFile { file, durability: *durability })
            }
            #[cfg(any(test, feature = "conformance"))]
            Self::Faulty(disk) => builder.create_with_backend(disk.clone()),
        }
    }
}

/// A file, synced or not. It takes no locks: the data directory's is held from the first opening to the end, also while
/// a failed database is opened again.
#[derive(Debug)]
struct OsFile {
    file: FileBackend,
    durability: Durability,
}

impl StorageBackend for OsFile {
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
        match self.durability {
            Durability::Fsync => self.file.sync_data(),
            Durability::Os => Ok(()),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
}
