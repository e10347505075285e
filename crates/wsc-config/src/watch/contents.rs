//! What a followed file holds, as far as it takes to see that it changed.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Read};
use std::path::Path;
use std::time::SystemTime;

/// What was found at a path. It keeps no contents: they may be secret.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Contents {
    /// The digest of a regular file.
    File(u64),
    /// A file too large to be read again and again.
    Large { len: u64, modified: Option<SystemTime> },
    /// A directory, pipe or device. It is not opened: that could wait, or take what another reads.
    NoFile,
    /// Nothing that could be read.
    Unreadable(io::ErrorKind),
}

/// Settings, keys and certificates are far smaller.
const LARGEST: u64 = 4 << 20;

impl Contents {
    /// Reads what is at a path, with blocking calls.
    pub(crate) fn of(path: &Path) -> Self {
        Self::read(path).unwrap_or_else(|error| Self::Unreadable(error.kind()))
    }

    fn read(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        if !metadata.is_file() {
            return Ok(Self::NoFile);
        }
        if metadata.len() > LARGEST {
            return Ok(Self::Large { len: metadata.len(), modified: metadata.modified().ok() });
        }
        let mut contents = Vec::new();
        File::open(path)?.take(LARGEST + 1).read_to_end(&mut contents)?;
        let mut hasher = DefaultHasher::new();
        hasher.write(&contents);
        Ok(Self::File(hasher.finish()))
    }
}
