//! Small things that must survive: revoked tokens, events that wait to be posted.

use async_trait::async_trait;
use bytes::Bytes;

use crate::StoreError;

/// Keeps bytes under keys, in tables that are named by whoever uses them, ordered by key.
///
/// It is for what is counted in thousands, and is written before somebody is answered. Messages have an
/// [`InboxStore`](crate::InboxStore) of their own.
///
/// Table names are short ASCII text (`webhooks`); keys are at most 512 bytes.
#[async_trait]
pub trait RecordStore: Send + Sync + 'static {
    /// Applies all changes, or none. When it returns they survive as `storage.durability` says. Of several changes to
    /// one key the last counts. Calls that overlap may share a commit; those that follow each other are applied in
    /// that order.
    ///
    /// # Errors
    ///
    /// [`StoreError`] where nothing was changed, as far as is known.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future does not undo the changes; they are applied or not, together.
    async fn commit(&self, changes: Vec<RecordChange>) -> Result<(), StoreError>;

    /// The records of a table whose keys lie behind `after` (`None`: from the first one), in order, at most `limit`.
    ///
    /// # Errors
    ///
    /// [`StoreError`] where the store cannot be read.
    ///
    /// # Cancel safety
    ///
    /// Reading has no effect.
    async fn scan(&self, table: &str, after: Option<&[u8]>, limit: usize) -> Result<Vec<Record>, StoreError>;

    /// The value under a key.
    ///
    /// # Errors
    ///
    /// [`StoreError`] where the store cannot be read.
    ///
    /// # Cancel safety
    ///
    /// Reading has no effect.
    async fn get(&self, table: &str, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// Closes the store after what was committed; later calls are [`StoreError`]s. Calling it again does nothing.
    async fn close(&self);
}

/// What happens to one key of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordChange {
    /// The table.
    pub table: &'static str,
    /// The key.
    pub key: Box<[u8]>,
    /// The new value; `None` removes it.
    pub value: Option<Bytes>,
}

impl RecordChange {
    /// Sets a value.
    pub fn put(table: &'static str, key: impl Into<Box<[u8]>>, value: impl Into<Bytes>) -> Self {
        Self { table, key: key.into(), value: Some(value.into()) }
    }

    /// Removes what is under a key, if anything.
    pub fn remove(table: &'static str, key: impl Into<Box<[u8]>>) -> Self {
        Self { table, key: key.into(), value: None }
    }
}

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// The key.
    pub key: Box<[u8]>,
    /// The value.
    pub value: Bytes,
}

impl Record {
    /// A record.
    pub fn new(key: impl Into<Box<[u8]>>, value: impl Into<Bytes>) -> Self {
        Self { key: key.into(), value: value.into() }
    }
}
