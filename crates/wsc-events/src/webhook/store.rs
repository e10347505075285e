//! Where batches are kept: the door that the node opens to its store.

use std::{collections::BTreeMap, error::Error};

use async_trait::async_trait;
use parking_lot::Mutex;

/// Which part of the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Shelf {
    /// Batches that are still to be posted.
    Waiting,
    /// Batches that were given up: dead letters.
    Dead,
}

/// One record that is written or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxChange {
    /// Where.
    pub shelf: Shelf,
    /// Its place on the shelf.
    pub key: u64,
    /// What to write, in the place of what may be there; `None` removes.
    pub value: Option<Vec<u8>>,
}

/// Keeps the outbox. Records are a few hundred bytes to one MiB, and are not looked into.
///
/// [`MemoryOutbox`] is one that does not survive the process.
#[async_trait]
pub trait OutboxStore: Send + Sync + 'static {
    /// Makes the changes, in this order: all of them, or none. They are durable when it comes back.
    ///
    /// # Errors
    ///
    /// None was made. Where that can't be known, the caller makes the same changes again.
    ///
    /// # Cancel safety
    ///
    /// The future may be dropped; then all changes are made, or none.
    async fn commit(&self, changes: Vec<OutboxChange>) -> Result<(), OutboxError>;

    /// The first records of a shelf in the order of their keys, those above `after` only, `limit` at most.
    ///
    /// # Errors
    ///
    /// The store can't be read.
    async fn scan(&self, shelf: Shelf, after: Option<u64>, limit: usize) -> Result<Vec<(u64, Vec<u8>)>, OutboxError>;
}

/// Why the outbox can't be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutboxError {
    /// The store failed.
    #[error("the webhook outbox failed: {0}")]
    Store(#[source] Box<dyn Error + Send + Sync>),
    /// A page of dead letters was asked for with a cursor that none ended with.
    #[error("is no cursor of a page of dead letters")]
    Cursor,
    /// The webhooks were shut down.
    #[error("the webhooks were shut down")]
    Closed,
}

impl OutboxError {
    /// The store failed with this.
    pub fn new(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Store(source.into())
    }
}

/// An outbox in memory, for tests and for hubs that keep nothing.
#[derive(Debug, Default)]
pub struct MemoryOutbox {
    records: Mutex<BTreeMap<(Shelf, u64), Vec<u8>>>,
}

#[async_trait]
impl OutboxStore for MemoryOutbox {
    async fn commit(&self, changes: Vec<OutboxChange>) -> Result<(), OutboxError> {
        let mut records = self.records.lock();
        for OutboxChange { shelf, key, value } in changes {
            match value {
                Some(value) => records.insert((shelf, key), value),
                None => records.remove(&(shelf, key)),
            };
        }
        Ok(())
    }

    async fn scan(&self, shelf: Shelf, after: Option<u64>, limit: usize) -> Result<Vec<(u64, Vec<u8>)>, OutboxError> {
        let Some(first) = after.map_or(Some(0), |key| key.checked_add(1)) else {
            return Ok(Vec::new());
        };
        let records = self.records.lock();
        let found = records.range((shelf, first)..=(shelf, u64::MAX)).take(limit);
        Ok(found.map(|(&(_, key), value)| (key, value.clone())).collect())
    }
}
