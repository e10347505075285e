//! The question and its answers.

use std::sync::Arc;

use async_trait::async_trait;
use wsc_protocol::{CloseCode, ErrorCode};

use crate::Identity;

/// Turns a token into the identity it speaks for.
///
/// The node asks once per connection, and again for each `authenticate` request and each HTTP call that carries a
/// token; an implementation that asks another service should keep a bounded cache of its own.
#[async_trait]
pub trait Authenticator: Send + Sync + 'static {
    /// The identity that `token` speaks for. An empty token is [`AuthError::Missing`].
    ///
    /// # Errors
    ///
    /// [`AuthError`] says what is wrong with the token, or that nobody could tell.
    ///
    /// # Cancel safety
    ///
    /// The node drops the future when the handshake times out; an implementation must keep nothing half done.
    async fn authenticate(&self, token: &str) -> Result<Identity, AuthError>;

    /// Whether tokens can be checked at all, as far as is known. While they cannot, the hub says that it is not ready.
    /// Default: true.
    fn is_ready(&self) -> bool {
        true
    }
}

#[async_trait]
impl<T: Authenticator + ?Sized> Authenticator for Arc<T> {
    async fn authenticate(&self, token: &str) -> Result<Identity, AuthError> {
        (**self).authenticate(token).await
    }

    fn is_ready(&self) -> bool {
        (**self).is_ready()
    }
}

/// Why a token gives no identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// There is no token.
    #[error("no token")]
    Missing,
    /// The token is forged, malformed, or not meant for this hub.
    #[error("invalid token")]
    Invalid,
    /// The token was valid once.
    #[error("token expired")]
    Expired,
    /// The token, or its user, was revoked.
    #[error("token revoked")]
    Revoked,
    /// Nobody could check the token just now; it may be fine.
    #[error("authentication is not available")]
    Unavailable,
}

impl AuthError {
    /// The code in an `error` reply or an HTTP body.
    pub fn error_code(self) -> ErrorCode {
        match self {
            Self::Missing => ErrorCode::Unauthorized,
            Self::Invalid | Self::Revoked => ErrorCode::InvalidToken,
            Self::Expired => ErrorCode::TokenExpired,
            Self::Unavailable => ErrorCode::ServerError,
        }
    }

    /// The code that a connection is closed with. It decides whether the client comes back: with a renewed token
    /// after [`Expired`](Self::Expired), with the same one after [`Unavailable`](Self::Unavailable), else not.
    pub fn close_code(self) -> CloseCode {
        match self {
            Self::Missing | Self::Invalid | Self::Revoked => CloseCode::INVALID_TOKEN,
            Self::Expired => CloseCode::TOKEN_EXPIRED,
            Self::Unavailable => CloseCode::SERVER_ERROR,
        }
    }

    /// The value of the label `reason` in `wsc_handshake_failures_total`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "token_missing",
            Self::Invalid => "token_invalid",
            Self::Expired => "token_expired",
            Self::Revoked => "token_revoked",
            Self::Unavailable => "auth_unavailable",
        }
    }
}

/// The trait is kept as `dyn` in the node.
const _: Option<&dyn Authenticator> = None;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_tells_the_client_whether_to_come_back() {
        for (error, code, close, reconnect) in [
            (AuthError::Missing, 2000, 3500, false),
            (AuthError::Invalid, 2003, 3500, false),
            (AuthError::Revoked, 2003, 3500, false),
            (AuthError::Expired, 2002, 3005, true),
            (AuthError::Unavailable, 1003, 3004, true),
        ] {
            assert_eq!(error.error_code().code(), code, "{error}");
            assert_eq!(error.close_code().0, close, "{error}");
            assert_eq!(error.close_code().reconnect(), reconnect, "{error}");
        }
    }
}
