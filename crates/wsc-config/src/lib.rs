//! The settings of wsc-hub: one schema, loaded in layers, checked whole, with messages that name
//! the key.
//!
//! **What it is.** [`Settings`] is a plain tree of typed values whose [`Default`] is the documented
//! default of every key. [`load()`] lays one file (YAML, TOML or JSON), a profile of that file and the
//! environment over the defaults and reports *every* mistake at once as [`Problem`]s; [`check()`]
//! does the same for settings that a program built itself. [`reload`], [`diff()`] and [`apply`] say what new
//! settings mean for a running hub: which keys apply at once, which wait for a restart, whether that
//! goes together. [`current_config`] shows running values with secrets masked,
//! [`default_config`] and [`reference_markdown`] write the commented default file and the reference
//! page. All of it comes from one table, [`keys`].
//!
//! **What it deliberately does not know.** The other layers (each has a plain configuration of its
//! own; the node maps one to the other in one place), running tasks, sockets, and whether the files
//! that it names exist. Loading, checking and comparing are pure functions. `Watch` (feature `watch`)
//! only says when to call them.
//!
//! **Precedence.** Defaults, then the `wsc` section of the file, then the profile, then the
//! environment (`WSC__ACK_TIMEOUT=10s`, `WSC__QUEUE__POLICY=drop_oldest`).
//!
//! ```
//! use wsc_config::{Format, Strictness, load_str};
//!
//! let file = "
//! wsc:
//!   ack_timeout: 3s
//! prod:
//!   wsc:
//!     queue: {max_bytes: 4MiB}
//! ";
//! let env = [("WSC__ACK_TIMEOUT".to_owned(), "10s".to_owned())];
//! let settings = load_str(Format::Yaml, file, Some("prod"), Strictness::Strict, env)?;
//! assert_eq!(settings.ack_timeout.as_secs(), 10);
//! assert_eq!(settings.queue.max_bytes.to_string(), "4MiB");
//!
//! let wrong = "wsc: {ack_timout: 3s}";
//! let error = load_str(Format::Yaml, wrong, None, Strictness::Strict, []).unwrap_err();
//! assert_eq!(
//!     error.to_string(),
//!     "wsc.ack_timout: unknown key, did you mean \"ack_timeout\"?",
//! );
//! # Ok::<(), wsc_config::ConfigError>(())
//! ```
//!
//! **Cargo features.** `watch`: `Watch`, which waits for changes of the settings file and of the files that it names.

mod check;
mod diff;
mod docs;
mod dump;
mod error;
mod field;
mod load;
mod node;
mod rules;
mod schema;
mod settings;
mod source;
mod suggest;
mod values;
#[cfg(feature = "watch")]
mod watch;

pub use check::check;
pub use diff::{Change, KeyPath, Reloaded, apply, diff};
pub use docs::reference_markdown;
pub use dump::{current_config, default_config};
pub use error::{ConfigError, Problem, ProblemKind, Problems};
pub use load::{load, load_str, reload};
pub use schema::{Key, Reload, keys};
pub use settings::{
    AuthSettings, CallbackSettings, ClusterSettings, CompressionSettings, DebugSettings, DrainSettings,
    FailureHandlerSettings, HttpSettings, IdempotencySettings, InboxSettings, LimitSettings, LogSettings, NatsSettings,
    OutcomeSettings, QueueSettings, RedisSettings, RetryBudgetSettings, RoomSettings, Settings, StorageSettings,
    TlsSettings, watched_files,
};
pub use source::{Format, Source, Strictness, environment};
pub use values::{
    BusType, ByteSize, DemoPage, Durability, IpRange, LogFormat, LogLevel, NodeName, ParseError, QueuePolicy,
    RedisMode, Secret, StorageKind, UserPolicy, format_duration, parse_duration,
};
#[cfg(feature = "watch")]
pub use watch::{Watch, WatchError};
