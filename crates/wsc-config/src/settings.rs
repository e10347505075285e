//! The settings: one struct per section, every key with its default, range and meaning.

mod delivery;
mod edge;
mod ops;
mod root;

pub use delivery::{
    FailureHandlerSettings, IdempotencySettings, InboxSettings, OutcomeSettings, QueueSettings, RetryBudgetSettings,
    RoomSettings, StorageSettings,
};
pub use edge::{AuthSettings, CallbackSettings, CompressionSettings, HttpSettings, LimitSettings, TlsSettings};
pub use ops::{ClusterSettings, DebugSettings, DrainSettings, LogSettings, NatsSettings, RedisSettings};
pub use root::Settings;

use std::path::PathBuf;

use crate::schema::Section;

/// Names the files that settings point to and whose contents take effect at a reload: `auth.secret_key_file`,
/// `auth.public_key_file`, `tls.cert` and `tls.key`, as far as they are set.
#[must_use]
pub fn watched_files(settings: &Settings) -> Vec<PathBuf> {
    let Settings { auth, tls, .. } = settings;
    [&auth.secret_key_file, &auth.public_key_file, &tls.cert, &tls.key].into_iter().flatten().cloned().collect()
}

/// All sections, in the order of the documentation.
pub(crate) const SECTIONS: &[Section] = &[
    Settings::SECTION,
    RetryBudgetSettings::SECTION,
    InboxSettings::SECTION,
    StorageSettings::SECTION,
    OutcomeSettings::SECTION,
    IdempotencySettings::SECTION,
    QueueSettings::SECTION,
    RoomSettings::SECTION,
    LimitSettings::SECTION,
    FailureHandlerSettings::SECTION,
    CallbackSettings::SECTION,
    AuthSettings::SECTION,
    TlsSettings::SECTION,
    HttpSettings::SECTION,
    CompressionSettings::SECTION,
    ClusterSettings::SECTION,
    NatsSettings::SECTION,
    RedisSettings::SECTION,
    DrainSettings::SECTION,
    LogSettings::SECTION,
    DebugSettings::SECTION,
];
