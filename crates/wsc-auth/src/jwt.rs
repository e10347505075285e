//! Signed tokens (RFC 7519): checking them, and making them.

mod authenticator;
mod claims;
mod config;
mod error;
mod issuer;
mod key;
#[cfg(feature = "jwks")]
mod key_set;
#[cfg(feature = "jwks")]
mod key_source;
mod problem;
#[cfg(test)]
mod tests;

pub use authenticator::{JwtAuthenticator, PreparedKeys};
pub use config::{JwtConfig, JwtKey};
pub use error::JwtError;
pub use issuer::{HmacAlgorithm, TokenClaims, TokenIssuer, UnknownAlgorithm};
pub use problem::TokenProblem;
pub use secrecy::{ExposeSecret, SecretString};

/// Longest token in bytes. A longer one is invalid, and not even looked at.
pub const MAX_TOKEN_LEN: usize = 8 * 1024;
