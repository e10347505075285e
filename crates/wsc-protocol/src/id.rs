//! Ids that people choose, and the rules they obey.

use std::{borrow::Borrow, fmt, sync::Arc};

use uuid::Uuid;

/// Longest id in bytes: users, clients, devices, rooms, idempotency keys.
pub const MAX_ID_LEN: usize = 128;

/// A checked id of a user, a room or a device: 1 to 128 bytes of UTF-8 without control characters, compared
/// byte for byte, outside the reserved names (protocol §1).
///
/// Cloning shares the text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(Arc<str>);

impl Id {
    /// Checks `text` and keeps it.
    ///
    /// # Errors
    ///
    /// [`InvalidId`] says which rule the text breaks.
    pub fn new(text: &str) -> Result<Self, InvalidId> {
        Self::check(text)?;
        Ok(Self(text.into()))
    }

    /// Keeps an id that the hub made itself, also a reserved one (`anon:…`), unchecked.
    pub fn generated(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// Checks `text` without keeping it.
    ///
    /// # Errors
    ///
    /// [`InvalidId`] says which rule the text breaks.
    pub fn check(text: &str) -> Result<(), InvalidId> {
        if text.is_empty() {
            return Err(InvalidId::Empty);
        }
        if text.len() > MAX_ID_LEN {
            return Err(InvalidId::TooLong { len: text.len() });
        }
        if text.chars().any(char::is_control) {
            return Err(InvalidId::ControlCharacter);
        }
        if ["__", "wsc.", "anon:"].iter().any(|reserved| text.starts_with(reserved)) {
            return Err(InvalidId::Reserved);
        }
        Ok(())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Id {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Id {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// The rule that an id breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidId {
    /// An id has at least one byte.
    #[error("is empty")]
    Empty,
    /// An id has at most [`MAX_ID_LEN`] bytes.
    #[error("has {len} bytes, more than the {MAX_ID_LEN} allowed")]
    TooLong {
        /// Length of the text in bytes.
        len: usize,
    },
    /// Control characters (Unicode class Cc) have no place in an id.
    #[error("contains a control character")]
    ControlCharacter,
    /// `__…`, `wsc.…` and `anon:…` belong to the hub.
    #[error("is reserved (`__…`, `wsc.…` and `anon:…` belong to the hub)")]
    Reserved,
}

/// The name of a connection within its user.
///
/// A generated one is kept in its 16 bytes: most connections have one, and an idle connection should be small.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum ClientId {
    /// Made by the hub (UUIDv7).
    Generated(Uuid),
    /// Chosen by the client.
    Given(Box<str>),
}

impl ClientId {
    /// Checks a name that a client chose.
    ///
    /// # Errors
    ///
    /// [`InvalidId`] says which rule the text breaks.
    pub fn given(text: &str) -> Result<Self, InvalidId> {
        Id::check(text)?;
        Ok(Self::Given(text.into()))
    }

    /// Whether the text is this name.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Given(given) => **given == *text,
            Self::Generated(uuid) => {
                let mut buffer = Uuid::encode_buffer();
                *uuid.hyphenated().encode_lower(&mut buffer) == *text
            }
        }
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Generated(uuid) => fmt::Display::fmt(&uuid.hyphenated(), f),
            Self::Given(text) => f.write_str(text),
        }
    }
}

impl fmt::Debug for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_obey_the_rules() {
        for good in ["a", "alice", "ä ö", "user@example.org", "a:b", "_x", &"x".repeat(128)] {
            assert!(Id::new(good).is_ok(), "{good:?}");
        }
        assert_eq!(Id::new(""), Err(InvalidId::Empty));
        assert_eq!(Id::new(&"x".repeat(129)), Err(InvalidId::TooLong { len: 129 }));
        // 128 bytes, not characters.
        assert!(Id::new(&"ä".repeat(65)).is_err());
        for control in ["a\n", "\u{0}", "a\u{7f}", "a\u{85}b"] {
            assert_eq!(Id::new(control), Err(InvalidId::ControlCharacter), "{control:?}");
        }
        for reserved in ["__x", "wsc.x", "anon:1"] {
            assert_eq!(Id::new(reserved), Err(InvalidId::Reserved), "{reserved:?}");
        }
    }

    #[test]
    fn a_generated_client_id_is_found_by_its_text() {
        let uuid = Uuid::from_u128(7);
        assert!(ClientId::Generated(uuid).matches(&uuid.to_string()));
        assert!(!ClientId::Generated(uuid).matches("7"));
        assert!(ClientId::given("tab-1").unwrap().matches("tab-1"));
    }
}
