//! What an authenticator is told.

use std::{fmt, time::Duration};

use secrecy::SecretString;

use super::{JwtError, key::VerifyingKey};

/// Which tokens are accepted.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct JwtConfig {
    /// What tokens are checked with. It alone decides which algorithms are accepted.
    pub key: JwtKey,
    /// The issuer (`iss`) that a token must name. `None`, the default: not checked.
    pub issuer: Option<String>,
    /// The audience (`aud`) that a token must name, possibly among others. `None`, the default: not checked.
    pub audience: Option<String>,
    /// Difference between the clocks of the issuer and of this machine that is tolerated at `exp` and `nbf`.
    /// Default: none. A larger one lets tokens live that much longer.
    pub leeway: Duration,
}

impl JwtConfig {
    /// Accepts tokens signed with this key, whatever issuer and audience they name, without leeway.
    pub fn new(key: JwtKey) -> Self {
        Self { key, issuer: None, audience: None, leeway: Duration::ZERO }
    }
}

/// What tokens are checked with.
#[derive(Clone)]
#[non_exhaustive]
pub enum JwtKey {
    /// A key that the issuer and the hub share: HS256, HS384 and HS512. At least 32 bytes.
    Secret(SecretString),
    /// The issuer's public key as PEM: RS256 (RSA, 2048 bits or more), ES256 (EC P-256) or EdDSA (Ed25519).
    PublicPem(String),
    /// The keys that an identity provider publishes (RFC 7517): RS256, ES256 and EdDSA. Needs the cargo feature
    /// `jwks`.
    KeySet {
        /// Where it publishes them. `https`, unless the provider is on this machine or the network is trusted.
        url: String,
    },
}

impl JwtKey {
    /// Checks whether the key can be used. A key set is not fetched for it.
    ///
    /// # Errors
    ///
    /// [`JwtError`] says what is wrong with it.
    pub fn check(&self) -> Result<(), JwtError> {
        match self {
            Self::Secret(secret) => VerifyingKey::from_secret(secret).map(drop),
            Self::PublicPem(pem) => VerifyingKey::from_public_pem(pem).map(drop),
            #[cfg(feature = "jwks")]
            Self::KeySet { url } => super::key_source::parse_url(url).map(drop),
            #[cfg(not(feature = "jwks"))]
            Self::KeySet { .. } => Err(JwtError::NoKeySets),
        }
    }
}

/// Says of which kind the key is; never the key, nor an address that may have a password in it.
impl fmt::Debug for JwtKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Secret(_) => "Secret(***)",
            Self::PublicPem(_) => "PublicPem(***)",
            Self::KeySet { .. } => "KeySet(***)",
        })
    }
}
