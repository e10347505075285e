//! Where messages rest until their receiver has them.
//!
//! An [`InboxStore`] keeps, for each user, the messages that must survive: in the order in which they were accepted,
//! within limits, until they are removed. [`MemoryInbox`] is the implementation in memory, `EmbeddedInbox` the one in a
//! file of this machine; every other one is held to the same contract by the checks in `conformance`.
//!
//! A [`RecordStore`] keeps what is small and must survive as well: revoked tokens, events that wait to be posted.
//! [`MemoryRecords`] and `EmbeddedRecords` are its implementations; `open_embedded` opens all that one data directory
//! has.
//!
//! It deliberately does not know delivery: attempts, acknowledgements, windows and what a body means are the
//! caller's. A body is bytes.
//!
//! ```
//! use bytes::Bytes;
//! use uuid::Uuid;
//! use wsc_protocol::Id;
//! use wsc_store::{Admission, EntryKey, InboxLimits, InboxStore, MemoryInbox, NewEntry, ReadLimit};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let store = MemoryInbox::new(InboxLimits::default());
//! let (bob, id) = (Id::new("bob")?, Uuid::from_u128(1));
//!
//! let admitted = store.append(vec![NewEntry::new(bob.clone(), id, Bytes::from_static(b"hi"))]).await?;
//! assert!(matches!(admitted[..], [Admission::Stored(_)]));
//!
//! let page = store.read(&bob, None, ReadLimit::default()).await?;
//! assert_eq!(page.entries[0].body, "hi");
//!
//! assert_eq!(store.remove(vec![EntryKey::new(bob.clone(), id)]).await?, [true]);
//! assert_eq!(store.depth(&bob).await?.messages, 0);
//! # Ok(()) }
//! ```
//!
//! # Cargo features
//!
//! - `conformance`: the checks that every implementation must pass, for its tests; with `embedded`, a disk that fails
//!   on demand too.
//! - `embedded`: `EmbeddedInbox` and `EmbeddedRecords`, in files of this machine.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
#[cfg(feature = "embedded")]
mod embedded;
mod inbox;
mod memory;
mod records;

#[cfg(all(feature = "embedded", any(test, feature = "conformance")))]
pub use embedded::FaultyDisk;
#[cfg(feature = "embedded")]
pub use embedded::{
    Durability, EmbeddedConfig, EmbeddedInbox, EmbeddedRecords, EmbeddedStore, OpenError, Opened, is_guarded,
    open_embedded,
};
pub use inbox::{
    Admission, Depth, Entry, EntryKey, InboxLimits, InboxStore, Limit, NewEntry, Note, Page, Position, ReadLimit,
    StoreError,
};
pub use memory::MemoryInbox;
pub use records::{MemoryRecords, Record, RecordBound, RecordChange, RecordStore};
