//! The storage that settings ask for.

use std::sync::Arc;

use wsc_config::{Settings, StorageKind};
use wsc_store::{InboxStore, MemoryInbox, MemoryRecords, RecordStore};

/// What `storage.*` asks for, opened.
#[non_exhaustive]
pub struct Storage {
    /// For [`HubBuilder::inbox`](crate::HubBuilder::inbox); `None` for `storage.kind: none`.
    pub inbox: Option<Arc<dyn InboxStore>>,
    /// For [`HubBuilder::records`](crate::HubBuilder::records).
    pub records: Arc<dyn RecordStore>,
    /// What was found.
    pub found: Found,
}

impl std::fmt::Debug for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Storage").field("found", &self.found).finish_non_exhaustive()
    }
}

/// What was found in a data directory.
#[cfg(feature = "embedded")]
pub type Found = wsc_store::Opened;
/// What was found in a data directory: nothing, as there is none.
#[cfg(not(feature = "embedded"))]
pub type Found = ();

/// A storage that cannot be opened.
#[cfg(feature = "embedded")]
pub type StorageError = wsc_store::OpenError;
/// A storage that cannot be opened.
#[cfg(not(feature = "embedded"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("storage.kind asks for a store on disk, which this program was built without (feature `embedded` of wsc-hub)")]
pub struct StorageError;

/// Opens the storage that `storage.*` asks for.
///
/// # Errors
///
/// [`StorageError`] names the path and what can be done about it.
pub fn open_storage(settings: &Settings) -> Result<Storage, StorageError> {
    let limits = wsc_node::inbox_limits(settings);
    let records = || Arc::new(MemoryRecords::default());
    match settings.storage.kind {
        StorageKind::Memory => {
            let inbox = Some(Arc::new(MemoryInbox::new(limits)) as Arc<dyn InboxStore>);
            Ok(Storage { inbox, records: records(), found: nothing_found() })
        }
        StorageKind::None => Ok(Storage { inbox: None, records: records(), found: nothing_found() }),
        _ => open_embedded(settings, limits),
    }
}

/// There was nothing to find, and so nothing was left open.
#[cfg(feature = "embedded")]
fn nothing_found() -> Found {
    let mut found = Found::default();
    found.was_closed = true;
    found
}

#[cfg(not(feature = "embedded"))]
fn nothing_found() -> Found {}

#[cfg(feature = "embedded")]
fn open_embedded(settings: &Settings, limits: wsc_store::InboxLimits) -> Result<Storage, StorageError> {
    use wsc_store::{Durability, EmbeddedConfig};

    let storage = &settings.storage;
    let mut config = EmbeddedConfig::default();
    config.durability = match storage.durability {
        wsc_config::Durability::Os => Durability::Os,
        _ => Durability::Fsync,
    };
    config.commit_interval = storage.commit_interval;
    config.commit_batch = storage.commit_batch as usize;
    config.limits = limits;
    let opened = wsc_store::open_embedded(&storage.path, config)?;
    Ok(Storage { inbox: Some(Arc::new(opened.inbox)), records: Arc::new(opened.records), found: opened.opened })
}

#[cfg(not(feature = "embedded"))]
fn open_embedded(_: &Settings, _: wsc_store::InboxLimits) -> Result<Storage, StorageError> {
    Err(StorageError)
}
