//! Who a token speaks for, and what that person may do.
//!
//! An [`Authenticator`] turns a token into an [`Identity`]: a user id, a user type and [`Permissions`] with resource
//! patterns (protocol §6). [`StaticTokens`] is the implementation in memory, for programs that embed the hub, for
//! API keys and for tests; others implement the trait.
//!
//! It deliberately does not know sockets, rooms or connections: it is asked, it answers, and the node acts.
//!
//! ```
//! use wsc_auth::{Authenticator, Identity, Permission, Permissions, StaticTokens};
//! use wsc_protocol::Id;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let may = Permissions::parse(["send:message:support-*", "send:message:@bob", "join:room"])?;
//! let tokens = StaticTokens::new().with("s3cret", Identity::new(Id::new("alice")?, may));
//!
//! let alice = tokens.authenticate("s3cret").await?;
//! assert!(alice.permissions.allows(Permission::SendMessage, Some("support-7")));
//! assert!(alice.permissions.allows(Permission::SendMessage, Some("@bob")));
//! assert!(!alice.permissions.allows(Permission::SendMessage, Some("lobby")));
//! assert!(tokens.authenticate("guess").await.is_err());
//! # Ok(()) }
//! ```
//!
//! Signed tokens are checked by `JwtAuthenticator`, with a shared key, a public key or the key set of an identity
//! provider, and made by `TokenIssuer`. [`Revocations`] are the tokens that are no longer honoured.
//!
//! # Cargo features
//!
//! | feature | |
//! |---|---|
//! | `jwt` | `JwtAuthenticator`, `TokenIssuer` |
//! | `jwks` | with `jwt`: key sets over HTTP, kept fresh by a task (tokio, reqwest) |
//!
//! None is on by default.

mod authenticator;
mod identity;
#[cfg(feature = "jwt")]
mod jwt;
mod permissions;
mod revocation;
mod static_tokens;

pub use authenticator::{AuthError, Authenticator};
pub use identity::Identity;
#[cfg(feature = "jwt")]
pub use jwt::{
    ExposeSecret, HmacAlgorithm, JwtAuthenticator, JwtConfig, JwtError, JwtKey, MAX_TOKEN_LEN, PreparedKeys,
    SecretString, TokenClaims, TokenIssuer, TokenProblem, UnknownAlgorithm,
};
pub use permissions::{InvalidPermission, Permission, Permissions, UnknownPermission};
pub use revocation::{MAX_REVOCATIONS, MAX_TOKEN_ID_LEN, Revocation, Revocations, RevocationsFull};
pub use static_tokens::StaticTokens;
