//! Who somebody is.

use wsc_protocol::{Id, UserType};

use crate::Permissions;

/// What a valid token says about its bearer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Identity {
    /// The user.
    pub user_id: Id,
    /// A name for people; the hub only shows it.
    pub username: Option<Box<str>>,
    /// What kind of user it is. Default: visitor.
    pub user_type: UserType,
    /// What the user may do.
    pub permissions: Permissions,
    /// When the token runs out, in Unix seconds; `None`: never.
    pub expires_at: Option<u64>,
    /// When the token was made, in Unix seconds. Revoking a user ends its tokens made before that moment, and those
    /// that do not say.
    pub issued_at: Option<u64>,
    /// The same moment in Unix milliseconds, for tokens that say it that exactly.
    pub issued_at_ms: Option<u64>,
    /// The token's own id (`jti`), by which it can be revoked.
    pub token_id: Option<Box<str>>,
}

impl Identity {
    /// A visitor whose token does not run out.
    pub fn new(user_id: Id, permissions: Permissions) -> Self {
        Self {
            user_id,
            username: None,
            user_type: UserType::default(),
            permissions,
            expires_at: None,
            issued_at: None,
            issued_at_ms: None,
            token_id: None,
        }
    }

    /// Sets the kind of user.
    #[must_use]
    pub fn with_user_type(mut self, user_type: UserType) -> Self {
        self.user_type = user_type;
        self
    }

    /// Sets the moment when the token runs out, in Unix seconds.
    #[must_use]
    pub fn with_expires_at(mut self, unix_seconds: u64) -> Self {
        self.expires_at = Some(unix_seconds);
        self
    }

    /// Sets the moment when the token was made, in Unix seconds.
    #[must_use]
    pub fn with_issued_at(self, unix_seconds: u64) -> Self {
        self.with_issued_at_ms(unix_seconds.saturating_mul(1000))
    }

    /// Sets the moment when the token was made, in Unix milliseconds.
    #[must_use]
    pub fn with_issued_at_ms(mut self, unix_milliseconds: u64) -> Self {
        self.issued_at = Some(unix_milliseconds / 1000);
        self.issued_at_ms = Some(unix_milliseconds);
        self
    }

    /// Sets the name for people.
    #[must_use]
    pub fn with_username(mut self, username: &str) -> Self {
        self.username = Some(username.into());
        self
    }

    /// Sets the token's own id.
    #[must_use]
    pub fn with_token_id(mut self, token_id: &str) -> Self {
        self.token_id = Some(token_id.into());
        self
    }

    /// Whether the token has run out at `now`, in Unix seconds.
    pub fn is_expired(&self, now: u64) -> bool {
        self.expires_at.is_some_and(|end| now >= end)
    }
}
