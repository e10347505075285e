//! Text that must not be shown.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer};

/// A secret text (key, password, header value) that no `Debug`, error or dump shows.
///
/// It is a [`SecretString`] that can also be compared, so that a reload knows whether it changed.
/// It cannot be serialised. Call [`expose_secret`](ExposeSecret::expose_secret) to use it.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// Wraps a secret text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(SecretString::from(text.into()))
    }

    /// Returns eight hexadecimal digits that differ when the secret differs.
    ///
    /// It serves to compare two running hubs, or a hub with its file, without showing the secret.
    /// It keeps 32 bits of the secret at most, and is not stable over versions of the hub.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut hasher = DefaultHasher::new();
        self.expose_secret().hash(&mut hasher);
        format!("{:08x}", hasher.finish() >> 32)
    }

    /// Returns what a dump shows in the secret's place: stars and the fingerprint.
    pub(crate) fn masked(&self) -> String {
        format!("*** {}", self.fingerprint())
    }
}

impl ExposeSecret<str> for Secret {
    fn expose_secret(&self) -> &str {
        self.0.expose_secret()
    }
}

impl From<SecretString> for Secret {
    fn from(secret: SecretString) -> Self {
        Self(secret)
    }
}

impl PartialEq for Secret {
    /// Compares the texts. Not constant in time: both sides come from the operator.
    fn eq(&self, other: &Self) -> bool {
        self.expose_secret() == other.expose_secret()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        SecretString::deserialize(deserializer).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_nothing_and_compares() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?}"), "Secret(***)");
        assert_eq!(secret, Secret::new("hunter2"));
        assert_eq!(secret.fingerprint(), Secret::new("hunter2").fingerprint());
        assert_ne!(secret, Secret::new("hunter3"));
        assert_ne!(secret.fingerprint(), Secret::new("hunter3").fingerprint());
    }
}
