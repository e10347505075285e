//! How the embedded stores are set up, and what opening it says.

use std::{io, path::PathBuf, time::Duration};

use crate::InboxLimits;

/// How the embedded stores work. Only [`durability`](Self::durability) is about the records too.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EmbeddedConfig {
    /// What a commit waits for. Default [`Durability::Fsync`].
    pub durability: Durability,
    /// Least time from the start of one commit to the start of the next, unless
    /// [`commit_batch`](Self::commit_batch) entries wait. Default 2 ms. More means fewer, larger commits and slower
    /// answers; an append that finds the store idle is committed at once in any case.
    pub commit_interval: Duration,
    /// How many waiting entries start a commit before the interval is over. Default 1,000. A commit takes whole calls
    /// of `append` until it has this many, so a single larger call is still one commit. Sixteen times this many
    /// entries may wait; further calls wait for room before they are queued.
    pub commit_batch: usize,
    /// How much may be stored. Changed later with [`set_limits`](crate::InboxStore::set_limits).
    pub limits: InboxLimits,
    /// How old an entry gets before it moves from the journal, which is in memory too, to the tables for resting mail,
    /// which are on disk only. Default 5 s. Most messages are acknowledged before, and then cost no table at all.
    pub rest_after: Duration,
    /// Bytes of journal from which on entries rest before that time. Default 128 MiB. Bounds the memory that young
    /// entries take, the file's size, and the time that a restart takes to read the journal. At twice as much, appends
    /// wait until some has moved.
    pub journal_bytes: usize,
    /// Young entries, without those that are removed, from which on the oldest rest before that time. Default 200,000.
    /// At twice as many, appends wait.
    pub journal_entries: usize,
    /// Memory for pages of the file. Default 32 MiB. More makes reads of resting mail faster.
    pub cache_bytes: usize,
}

impl Default for EmbeddedConfig {
    fn default() -> Self {
        Self {
            durability: Durability::Fsync,
            commit_interval: Duration::from_millis(2),
            commit_batch: 1000,
            limits: InboxLimits::default(),
            rest_after: Duration::from_secs(5),
            journal_bytes: 128 << 20,
            journal_entries: 200_000,
            cache_bytes: 32 << 20,
        }
    }
}

/// What a commit waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Durability {
    /// Until the disk has it. What was accepted survives a power cut.
    #[default]
    Fsync,
    /// Until the operating system has it. What was accepted survives the end of the process, however it ends. A power
    /// cut or a crash of the system may lose the last half minute, or leave a file that does not open.
    Os,
}

/// What opening a store found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Opened {
    /// Entries that are there.
    pub messages: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Notes that are there, over or not; ones that were replaced count too.
    pub notes: u64,
    /// Records that are there; 0 where only the inbox was opened.
    pub records: u64,
    /// Whether the store was closed in order the last time, or is new.
    pub was_closed: bool,
    /// Whether the file was damaged and set right.
    pub was_repaired: bool,
    /// Entries and notes that were in the file and could not be read any more. They are lost; the log names what is
    /// known about them.
    pub dropped: u64,
    /// How long it took.
    pub took: Duration,
}

/// Why a store did not open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The data directory cannot be made, or nothing can be written in it.
    #[error("cannot use {} as data directory: it must be a directory that this user may write to", path.display())]
    #[expect(missing_docs, reason = "the message says it")]
    Directory { path: PathBuf, source: io::Error },
    /// Another store, in this process or another one, has the directory.
    #[error("the data directory {} is in use by another process", path.display())]
    #[expect(missing_docs, reason = "the message says it")]
    InUse { path: PathBuf },
    /// The file is something else.
    #[error("{} is no file of this hub; move it away, or name another data directory", path.display())]
    #[expect(missing_docs, reason = "the message says it")]
    Foreign { path: PathBuf },
    /// A newer version wrote the file.
    #[error(
        "{} has format {found}, written by a newer version; this one knows formats up to {known}", path.display()
    )]
    #[expect(missing_docs, reason = "the message says it")]
    NewerFormat { path: PathBuf, found: u64, known: u64 },
    /// The file is damaged beyond repair. It is left as it is.
    #[error(
        "{} is damaged ({what}); put back a copy of it, or move it away to start without what it keeps", path.display()
    )]
    #[expect(missing_docs, reason = "the message says it")]
    Damaged { path: PathBuf, what: String },
    /// The file cannot be read or written.
    #[error("cannot open {}", path.display())]
    #[expect(missing_docs, reason = "the message says it")]
    Io { path: PathBuf, source: io::Error },
}
