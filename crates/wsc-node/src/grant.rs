//! What a connection may do, and until when.

use std::sync::{Arc, LazyLock};

use wsc_auth::{Identity, Permissions};
use wsc_protocol::UserType;

/// What a connection may do. It is replaced as a whole when the connection's token is renewed.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) permissions: Permissions,
    pub(crate) user_type: UserType,
    /// What the connection's token says about itself; `None` without a token.
    pub(crate) token: Option<Token>,
}

/// A token, after it was checked. Not the token itself: nobody needs it any more.
#[derive(Debug)]
pub(crate) struct Token {
    /// Unix seconds.
    pub(crate) expires_at: Option<u64>,
    /// Unix milliseconds.
    pub(crate) issued_at_ms: Option<u64>,
    /// Its `jti`.
    pub(crate) id: Option<Box<str>>,
}

impl Grant {
    /// What every connection of this type holds while authentication is off. They share it.
    pub(crate) fn open(user_type: UserType) -> Arc<Self> {
        static OPEN: LazyLock<Vec<Arc<Grant>>> = LazyLock::new(|| {
            let grant = |user_type| Grant { permissions: Permissions::all_but_admin(), user_type, token: None };
            UserType::ALL.into_iter().map(|user_type| Arc::new(grant(user_type))).collect()
        });
        Arc::clone(&OPEN[user_type as usize])
    }

    /// What somebody without a token holds while authentication is on.
    pub(crate) fn anonymous(permissions: Permissions) -> Arc<Self> {
        Arc::new(Self { permissions, user_type: UserType::Visitor, token: None })
    }

    /// What the bearer of a token holds.
    pub(crate) fn of(identity: &Identity) -> Arc<Self> {
        Arc::new(Self {
            permissions: identity.permissions.clone(),
            user_type: identity.user_type,
            token: Some(Token {
                expires_at: identity.expires_at,
                issued_at_ms: identity.issued_at_ms,
                id: identity.token_id.clone(),
            }),
        })
    }

    /// When the token runs out, in Unix milliseconds.
    pub(crate) fn expires_at_ms(&self) -> Option<u64> {
        self.token.as_ref()?.expires_at.map(|seconds| seconds.saturating_mul(1000))
    }
}
