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

use crate::schema::Section;

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
