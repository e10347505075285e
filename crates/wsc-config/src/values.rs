//! The types of single values: what a duration, a size, a secret or a choice looks like as text.

mod choice;
mod duration;
mod net;
mod node_name;
mod secret;
mod size;

pub use choice::{BusType, DemoPage, Durability, LogFormat, LogLevel, QueuePolicy, RedisMode, StorageKind, UserPolicy};
pub use duration::{format_duration, parse_duration};
pub use net::IpRange;
pub use node_name::NodeName;
pub use secret::Secret;
pub use size::ByteSize;

pub(crate) use choice::one_of;
pub(crate) use duration::{EXPECTED as DURATION_EXPECTED, bare_number};
pub(crate) use size::EXPECTED as SIZE_EXPECTED;

/// Says why a text is not the value that it should be, in words for the person who wrote it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(pub(crate) String);

/// Puts a found text between quotes, short enough for one line.
pub(crate) fn quoted(text: &str) -> String {
    const LONGEST: usize = 60;
    let mut shown: String = text.chars().take(LONGEST).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("{shown:?}")
}
