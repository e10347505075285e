//! The inbox's contract.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use uuid::Uuid;
use wsc_protocol::Id;

use crate::RecordBound;

/// Keeps messages for users, durably as configured, until they are removed.
///
/// # Order
///
/// Each entry gets a [`Position`]. Positions grow with every entry, over all users. An entry never appears behind a
/// position that a read of the same user has passed: whoever reads page after page misses nothing that is appended
/// meanwhile.
///
/// # Durability
///
/// [`append`](Self::append) returns when the entries are as durable as the store is configured to make them; many
/// calls at a time share one commit, so a caller with many entries either passes them together or makes many calls
/// at once. [`remove`](Self::remove) returns when reads no longer show the entries; it may become durable with a later
/// commit. A removed entry may therefore be there again after a crash, an appended one is never gone. An orderly
/// [`close`](Self::close) commits everything.
///
/// # Cancel safety
///
/// A call whose future is dropped may still take effect as a whole, or not at all.
#[async_trait]
pub trait InboxStore: Send + Sync + 'static {
    /// Appends entries in this order, and says for each whether it was taken, in the same order.
    ///
    /// Entries for several users may share one id: that is one message with several recipients, with one body. An
    /// entry of a user that has one of this id already is not stored twice, so a call whose result was lost can be
    /// repeated. One that a limit refuses changes nothing, and those after it are still considered.
    ///
    /// # Errors
    ///
    /// [`StoreError`] where nothing can be promised about any of the entries: they are not accepted, though after a
    /// crash they may turn out to be there.
    async fn append(&self, entries: Vec<NewEntry>) -> Result<Vec<Admission>, StoreError>;

    /// Reads a user's entries, oldest first, from the one after `after`, or from the oldest.
    ///
    /// As many as fit into `limit`, but at least one where there is one: a single entry over the byte limit must not
    /// hold up those behind it.
    ///
    /// # Errors
    ///
    /// [`StoreError`] where the store cannot be read.
    async fn read(&self, user: &Id, after: Option<Position>, limit: ReadLimit) -> Result<Page, StoreError>;

    /// One entry, where it is there.
    ///
    /// # Errors
    ///
    /// [`StoreError`] where the store cannot be read.
    async fn get(&self, key: &EntryKey) -> Result<Option<Entry>, StoreError>;

    /// Removes entries, and says for each whether it was there, in the same order. Of several calls that name one
    /// entry, exactly one is told that it was.
    ///
    /// # Errors
    ///
    /// [`StoreError`] where nothing was removed.
    async fn remove(&self, keys: Vec<EntryKey>) -> Result<Vec<bool>, StoreError>;

    /// Lists entries of any user whose time to live is over at `now` (Unix milliseconds), those that ended first in
    /// front, at most `limit`. They stay until they are removed: what became of them is the caller's to tell.
    ///
    /// # Errors
    ///
    /// [`StoreError`] where the store cannot be read.
    async fn expired(&self, now: u64, limit: usize) -> Result<Vec<EntryKey>, StoreError>;

    /// The notes that came with entries and whose time is not over at `now` (Unix milliseconds), in no order. They
    /// outlive their entries.
    ///
    /// # Errors
    ///
    /// [`StoreError`] where the store cannot be read.
    async fn notes(&self, now: u64) -> Result<Vec<Note>, StoreError>;

    /// Whether this user certainly has nothing, as far as that is known without waiting. False is no promise.
    fn is_surely_empty(&self, user: &Id) -> bool {
        let _ = user;
        false
    }

    /// Whether the store is known not to work at the moment.
    fn is_failing(&self) -> bool {
        false
    }

    /// How many entries turned out to be damaged, and were given up, since the store was opened. They are not in
    /// [`total`](Self::total) any more.
    fn lost(&self) -> u64 {
        0
    }

    /// How much one user has.
    ///
    /// # Errors
    ///
    /// [`StoreError`] where the store cannot be read.
    async fn depth(&self, user: &Id) -> Result<Depth, StoreError>;

    /// How much all users have. Right after opening: what was found.
    ///
    /// # Errors
    ///
    /// [`StoreError`] where the store cannot be read.
    async fn total(&self) -> Result<Depth, StoreError>;

    /// Sets the limits for entries that are appended from now on; what is there stays.
    fn set_limits(&self, limits: InboxLimits);

    /// Commits what is not committed and releases files. Calls after it end in [`StoreError::Closed`]; closing twice
    /// is fine.
    ///
    /// # Errors
    ///
    /// [`StoreError`] where the last commit failed.
    async fn close(&self) -> Result<(), StoreError>;
}

/// The trait is kept as `dyn` in the node.
const _: Option<&dyn InboxStore> = None;

/// An entry's place in the order of acceptance; grows with every entry and is never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position(pub u64);

/// Names one entry: one message for one user.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the type says it")]
pub struct EntryKey {
    pub user: Id,
    pub id: Uuid,
}

impl EntryKey {
    /// The entry of this message for this user.
    pub fn new(user: Id, id: Uuid) -> Self {
        Self { user, id }
    }
}

/// A message to keep for one user.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NewEntry {
    /// Whose it is, and which message.
    pub key: EntryKey,
    /// What to keep. Entries of one message share it.
    pub body: Bytes,
    /// When its time to live ends, in Unix milliseconds; `None`: never.
    pub expires_at: Option<u64>,
    /// What is written in the same commit, and is there again after a restart.
    pub note: Option<Note>,
}

/// Something small that must be as durable as the entry that it comes with, such as an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the type says it")]
pub struct Note {
    /// A later note under the same key takes its place.
    pub key: Bytes,
    pub value: Bytes,
    /// Unix milliseconds; it may be forgotten from then on.
    pub expires_at: u64,
}

impl NewEntry {
    /// An entry without an end.
    pub fn new(user: Id, id: Uuid, body: Bytes) -> Self {
        Self { key: EntryKey::new(user, id), body, expires_at: None, note: None }
    }

    /// Sets when its time to live ends, in Unix milliseconds.
    #[must_use]
    pub fn with_expires_at(mut self, unix_ms: u64) -> Self {
        self.expires_at = Some(unix_ms);
        self
    }

    /// Adds a note to the commit.
    #[must_use]
    pub fn with_note(mut self, note: Note) -> Self {
        self.note = Some(note);
        self
    }
}

/// A message as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// Its place in the order.
    pub position: Position,
    /// The message's id.
    pub id: Uuid,
    /// What was kept.
    pub body: Bytes,
    /// When its time to live ends, in Unix milliseconds; `None`: never.
    pub expires_at: Option<u64>,
}

impl Entry {
    /// An entry as a store reads it.
    pub fn new(position: Position, id: Uuid, body: Bytes, expires_at: Option<u64>) -> Self {
        Self { position, id, body, expires_at }
    }
}

/// Whether an entry was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is stored, at this place.
    Stored(Position),
    /// It was there already, at this place, and stays as it was.
    Duplicate(Position),
    /// It is not stored: this is full.
    Full(Limit),
}

/// Which limit an entry would exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Limit {
    /// [`InboxLimits::user_messages`].
    UserMessages,
    /// [`InboxLimits::user_bytes`].
    UserBytes,
    /// [`InboxLimits::total_bytes`].
    TotalBytes,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UserMessages => "the user's inbox holds as many messages as it may",
            Self::UserBytes => "the user's inbox holds as many bytes as it may",
            Self::TotalBytes => "all inboxes together hold as many bytes as they may",
        })
    }
}

/// How much may be stored. Bytes are those of bodies, each counted once for every user that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InboxLimits {
    /// Messages of one user. Default 1,000.
    pub user_messages: u64,
    /// Bytes of one user. Default 16 MiB.
    pub user_bytes: u64,
    /// Bytes of all users. Default 4 GiB.
    pub total_bytes: u64,
    /// Notes of all entries, about. Default 100,000. Notes refuse no entry: those that end first are forgotten.
    pub notes: u64,
}

impl Default for InboxLimits {
    fn default() -> Self {
        Self { user_messages: 1000, user_bytes: 16 << 20, total_bytes: 4 << 30, notes: 100_000 }
    }
}

impl InboxLimits {
    /// The limit that an entry of `len` bytes would exceed, where a user has `user` and all together have `total`.
    pub fn refuses(&self, len: u64, user: Depth, total: Depth) -> Option<Limit> {
        let exceeds = |held: u64, most: u64| held.checked_add(len).is_none_or(|sum| sum > most);
        if user.messages >= self.user_messages {
            Some(Limit::UserMessages)
        } else if exceeds(user.bytes, self.user_bytes) {
            Some(Limit::UserBytes)
        } else if exceeds(total.bytes, self.total_bytes) {
            Some(Limit::TotalBytes)
        } else {
            None
        }
    }
}

/// How much to read at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the type says it")]
pub struct ReadLimit {
    pub messages: usize,
    pub bytes: u64,
}

/// 128 messages, 256 KiB: one connection's window.
impl Default for ReadLimit {
    fn default() -> Self {
        Self { messages: 128, bytes: 256 << 10 }
    }
}

/// Part of a user's inbox, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The entries.
    pub entries: Vec<Entry>,
    /// Whether there was more behind the last of them.
    pub has_more: bool,
}

/// How much is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the type says it")]
pub struct Depth {
    pub messages: u64,
    pub bytes: u64,
}

impl Depth {
    pub(crate) fn grow(&mut self, len: u64) {
        self.messages += 1;
        self.bytes += len;
    }

    pub(crate) fn shrink(&mut self, len: u64) {
        self.messages = self.messages.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(len);
    }

    #[cfg(feature = "embedded")]
    pub(crate) fn plus(self, other: Self) -> Self {
        Self { messages: self.messages + other.messages, bytes: self.bytes + other.bytes }
    }
}

/// Why a store did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// The store, or the disk or service behind it, failed. It may work again later.
    #[error("the store failed")]
    Unavailable(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// Something about a record is longer than a store takes, or no name. Trying again does not help.
    #[error("the store takes no such record: {0}")]
    OutOfBounds(RecordBound),
}

impl StoreError {
    /// A failure of what is behind the store.
    pub fn unavailable(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Unavailable(cause.into().into())
    }
}
