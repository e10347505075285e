//! Small things that must survive: revoked tokens, events that wait to be posted.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    ops::Bound,
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use crate::StoreError;

/// Keeps bytes under keys, in tables that are named by whoever uses them, ordered by key.
///
/// It is for what is counted in thousands, and is written before somebody is answered. Messages have an
/// [`InboxStore`](crate::InboxStore) of their own.
///
/// Table names are short ASCII text (`webhooks`); keys are at most 512 bytes, values 16 MiB. [`RecordBound`] has the
/// rules; what breaks one is [`StoreError::OutOfBounds`].
#[async_trait]
pub trait RecordStore: Send + Sync + 'static {
    /// Applies all changes, or none. When it returns they survive as `storage.durability` says. Of several changes to
    /// one key the last counts. Calls that overlap may share a commit; those that follow each other are applied in
    /// that order.
    ///
    /// # Errors
    ///
    /// [`StoreError`] where nothing was changed, as far as is known: after a failure of the disk, changes may turn out to
    /// have been applied all the same.
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

/// The trait is kept as `dyn` in the node.
const _: Option<&dyn RecordStore> = None;

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

    /// Looks whether it is within bounds. Every store does so before it changes anything.
    ///
    /// # Errors
    ///
    /// [`StoreError::OutOfBounds`] where it is not.
    pub fn check(&self) -> Result<(), StoreError> {
        check_table(self.table)?;
        check_key(&self.key)?;
        check(self.value.as_ref().is_none_or(|value| value.len() <= RecordBound::VALUE_BYTES), RecordBound::Value)
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

/// What about a record is out of bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RecordBound {
    /// The table's name is not 1 to [`TABLE_BYTES`](Self::TABLE_BYTES) printable ASCII characters.
    Table,
    /// The key has more than [`KEY_BYTES`](Self::KEY_BYTES) bytes.
    Key,
    /// The value has more than [`VALUE_BYTES`](Self::VALUE_BYTES) bytes.
    Value,
}

impl RecordBound {
    /// Most bytes of a table's name: 64.
    pub const TABLE_BYTES: usize = 64;
    /// Most bytes of a key: 512.
    pub const KEY_BYTES: usize = 512;
    /// Most bytes of a value: 16 MiB.
    pub const VALUE_BYTES: usize = 16 << 20;
}

impl fmt::Display for RecordBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table => write!(f, "a table's name is 1 to {} printable ASCII characters", Self::TABLE_BYTES),
            Self::Key => write!(f, "a key has at most {} bytes", Self::KEY_BYTES),
            Self::Value => write!(f, "a value has at most {} bytes", Self::VALUE_BYTES),
        }
    }
}

pub(crate) fn check_table(name: &str) -> Result<(), StoreError> {
    let is_name = (1..=RecordBound::TABLE_BYTES).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic());
    check(is_name, RecordBound::Table)
}

pub(crate) fn check_key(key: &[u8]) -> Result<(), StoreError> {
    check(key.len() <= RecordBound::KEY_BYTES, RecordBound::Key)
}

fn check(is_within: bool, bound: RecordBound) -> Result<(), StoreError> {
    if is_within { Ok(()) } else { Err(StoreError::OutOfBounds(bound)) }
}

/// Keeps records in memory: as durable as the process. For tests, and for hubs that need not remember.
///
/// Nothing in it waits, so its futures are ready at once.
///
/// ```
/// use wsc_store::{MemoryRecords, RecordChange, RecordStore};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = MemoryRecords::default();
/// store.commit(vec![RecordChange::put("revoked", *b"token-7", "until 1795209293015")]).await?;
/// assert_eq!(store.scan("revoked", None, 100).await?[0].value, "until 1795209293015");
///
/// store.commit(vec![RecordChange::remove("revoked", *b"token-7")]).await?;
/// assert_eq!(store.get("revoked", b"token-7").await?, None);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct MemoryRecords {
    /// `None`: closed.
    tables: Mutex<Option<HashMap<&'static str, Table>>>,
}

type Table = BTreeMap<Box<[u8]>, Bytes>;

impl MemoryRecords {
    /// An empty store.
    pub fn new() -> Self {
        Self { tables: Mutex::new(Some(HashMap::new())) }
    }

    fn open<T>(&self, act: impl FnOnce(&mut HashMap<&'static str, Table>) -> T) -> Result<T, StoreError> {
        self.tables.lock().as_mut().map(act).ok_or(StoreError::Closed)
    }
}

impl Default for MemoryRecords {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl RecordStore for MemoryRecords {
    async fn commit(&self, changes: Vec<RecordChange>) -> Result<(), StoreError> {
        changes.iter().try_for_each(RecordChange::check)?;
        self.open(|tables| {
            for RecordChange { table, key, value } in changes {
                let records = tables.entry(table).or_default();
                match value {
                    Some(value) => records.insert(key, value),
                    None => records.remove(&key),
                };
            }
        })
    }

    async fn scan(&self, table: &str, after: Option<&[u8]>, limit: usize) -> Result<Vec<Record>, StoreError> {
        check_table(table)?;
        let first = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.open(|tables| {
            let records =
                tables.get(table).into_iter().flat_map(|records| records.range::<[u8], _>((first, Bound::Unbounded)));
            records.take(limit).map(|(key, value)| Record::new(&**key, value.clone())).collect()
        })
    }

    async fn get(&self, table: &str, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        check_table(table)?;
        check_key(key)?;
        self.open(|tables| tables.get(table).and_then(|records| records.get(key)).cloned())
    }

    async fn close(&self) {
        // What is not durable has no reason to stay.
        *self.tables.lock() = None;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn it_keeps_the_contract() {
        crate::conformance::check_records(async || Arc::new(MemoryRecords::new()) as Arc<dyn RecordStore>).await;
    }
}
