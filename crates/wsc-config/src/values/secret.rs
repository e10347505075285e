//! Text that must not be shown.

use std::fmt;

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

    /// Returns hexadecimal digits that differ when the secret differs: eight, or two for a secret of less than
    /// 16 bytes.
    ///
    /// They serve to compare two running hubs, or a hub with its file, without showing the secret. So they are the same
    /// on every node, and remain so over versions of the hub: the first digits of the SHA-256 of the text
    /// `wsc fingerprint v1`, a zero byte and the secret.
    ///
    /// What can be compared can also be tried: somebody who sees a fingerprint can sort out guesses. For a random key
    /// that is no help. For a password that stands in a list it would be, and no slow hash changes that for long. What
    /// bounds it is how much is shown: two digits leave one guess of 256, thousands of a list, at the price that two
    /// different short secrets look equal once in 256 times.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        /// What is shorter was hardly made at random.
        const RANDOM: usize = 16;

        let secret = self.expose_secret().as_bytes();
        let mut hash = hmac_sha256::Hash::new();
        hash.update(b"wsc fingerprint v1\0");
        hash.update(secret);
        let shown = if secret.len() < RANDOM { 1 } else { 4 };
        hash.finalize()[..shown].iter().map(|byte| format!("{byte:02x}")).collect()
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
        assert_ne!(secret, Secret::new("hunter3"));
    }

    /// `printf 'wsc fingerprint v1\0SECRET' | sha256sum`: nodes of different versions are compared by it.
    #[test]
    fn fingerprints_are_what_they_always_were() {
        assert_eq!(Secret::new("0123456789abcdef0123456789abcdef").fingerprint(), "0c2b0937");
        assert_eq!(Secret::new("hunter2").fingerprint(), "55");
        assert_eq!(Secret::new("").fingerprint(), "f4");
    }

    #[test]
    fn a_secret_that_can_be_guessed_shows_little() {
        assert_eq!(Secret::new("x".repeat(15)).fingerprint().len(), 2);
        assert_eq!(Secret::new("x".repeat(16)).fingerprint().len(), 8);
    }
}
