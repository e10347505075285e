//! What goes wrong below the store.

use std::{any::Any, cell::Cell, panic::AssertUnwindSafe, sync::Arc};

use super::config::OpenError;
use crate::StoreError;

/// Why something could not be done with the file.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Failure {
    /// Its text is all that this error has to say: it names no source.
    #[error("the database file failed: {0}")]
    Database(Arc<redb::Error>),
    #[error("the database file is damaged: {0} cannot be read")]
    Damaged(&'static str),
    #[error("the database code panicked: {0}")]
    Panicked(String),
    #[error("the database file failed, and cannot be opened again yet")]
    Reopen(#[source] Arc<OpenError>),
    #[error("more removals wait for the disk than may")]
    Backlog,
}

impl Failure {
    /// Whether the database is of no use any more until it is opened again. It keeps that up after the first failure of
    /// the disk; damage in one place hurts only who reads it.
    pub(super) fn needs_reopening(&self) -> bool {
        match self {
            Self::Database(error) => !matches!(**error, redb::Error::Corrupted(_)),
            Self::Panicked(_) => true,
            Self::Damaged(_) | Self::Reopen(_) | Self::Backlog => false,
        }
    }

    /// Runs `act` and makes a panic in it a failure: the file's contents must not be able to end the process.
    pub(super) fn catch<T>(act: impl FnOnce() -> Result<T, Self>) -> Result<T, Self> {
        // What `act` leaves half done is thrown away by its callers: a transaction is not committed, and the file is
        // opened anew.
        let outer = GUARDED.replace(true);
        let result = std::panic::catch_unwind(AssertUnwindSafe(act));
        GUARDED.set(outer);
        result.unwrap_or_else(|panic| Err(Self::Panicked(message(&*panic))))
    }
}

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic on this thread would be caught by the embedded inbox, which makes an error of it: a damaged file can
/// make the database panic. For the panic hook of a program that wants to show the error only.
pub fn is_guarded() -> bool {
    GUARDED.get()
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        Self::unavailable(failure)
    }
}

macro_rules! from_redb {
    ($($error:ident),+) => {$(
        impl From<redb::$error> for Failure {
            fn from(error: redb::$error) -> Self {
                Self::Database(Arc::new(error.into()))
            }
        }
    )+};
}

from_redb!(CommitError, DatabaseError, StorageError, TableError, TransactionError, SetDurabilityError, CompactionError);

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("without a message").to_owned()
}
