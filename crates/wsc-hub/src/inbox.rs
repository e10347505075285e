//! The inbox that settings ask for.

use std::sync::Arc;

use wsc_config::{Durability as Wanted, Settings, StorageKind};
use wsc_store::{Durability, EmbeddedConfig, EmbeddedInbox, InboxStore, MemoryInbox, OpenError, Opened};

/// An inbox, and what was found in it.
pub type OpenedInbox = (Arc<dyn InboxStore>, Opened);

/// Opens the inbox that `storage.*` asks for, to be given to [`HubBuilder::inbox`](crate::HubBuilder::inbox), and says
/// what was found in it. `None` for `storage.kind: none`.
///
/// # Errors
///
/// [`OpenError`] names the path and what can be done about it.
pub fn open_inbox(settings: &Settings) -> Result<Option<OpenedInbox>, OpenError> {
    let storage = &settings.storage;
    let limits = wsc_node::inbox_limits(settings);
    Ok(match storage.kind {
        StorageKind::Embedded => {
            let mut config = EmbeddedConfig::default();
            config.durability = match storage.durability {
                Wanted::Os => Durability::Os,
                _ => Durability::Fsync,
            };
            config.commit_interval = storage.commit_interval;
            config.commit_batch = storage.commit_batch as usize;
            config.limits = limits;
            let (inbox, opened) = EmbeddedInbox::open(&storage.path, config)?;
            Some((Arc::new(inbox), opened))
        }
        StorageKind::Memory => Some((Arc::new(MemoryInbox::new(limits)), Opened::default())),
        _ => None,
    })
}
