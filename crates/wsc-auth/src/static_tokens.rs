//! Tokens kept in memory.

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::{AuthError, Authenticator, Identity};

/// A handful of fixed tokens with the identities they speak for.
///
/// Every token is compared, in constant time for equal lengths, so that the time of an answer says nothing about how
/// close a guess was; the cost grows with the number of tokens.
#[derive(Clone, Default)]
pub struct StaticTokens {
    entries: Vec<(Box<[u8]>, Identity)>,
}

impl StaticTokens {
    /// No tokens: every one is invalid.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a token; an equal one that was there is replaced. An empty token can never be used.
    #[must_use]
    pub fn with(mut self, token: impl AsRef<str>, identity: Identity) -> Self {
        let token = token.as_ref().as_bytes();
        self.entries.retain(|(known, _)| **known != *token);
        self.entries.push((token.into(), identity));
        self
    }

    /// The identity of `token`, whether or not it has run out.
    pub fn find(&self, token: &str) -> Option<&Identity> {
        if token.is_empty() {
            return None;
        }
        // No early exit: the position of the match is not for the clock to tell either.
        let mut found = 0_u64;
        for (number, (known, _)) in (1_u64..).zip(&self.entries) {
            let same: Choice = known.ct_eq(token.as_bytes());
            found.conditional_assign(&number, same);
        }
        let index = usize::try_from(found).ok()?.checked_sub(1)?;
        self.entries.get(index).map(|(_, identity)| identity)
    }
}

impl<T: AsRef<str>> FromIterator<(T, Identity)> for StaticTokens {
    fn from_iter<I: IntoIterator<Item = (T, Identity)>>(entries: I) -> Self {
        entries.into_iter().fold(Self::new(), |tokens, (token, identity)| tokens.with(token, identity))
    }
}

#[async_trait]
impl Authenticator for StaticTokens {
    async fn authenticate(&self, token: &str) -> Result<Identity, AuthError> {
        if token.is_empty() {
            return Err(AuthError::Missing);
        }
        let identity = self.find(token).ok_or(AuthError::Invalid)?;
        // A clock before 1970 is no reason to let an expired token pass; nor is it a reason to refuse all others.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(u64::MAX, |since| since.as_secs());
        if identity.is_expired(now) {
            return Err(AuthError::Expired);
        }
        Ok(identity.clone())
    }
}

/// Says how many tokens there are, and for whom; never a token.
impl fmt::Debug for StaticTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.entries.iter().map(|(_, identity)| &identity.user_id)).finish()
    }
}

#[cfg(test)]
mod tests {
    use wsc_protocol::Id;

    use super::*;
    use crate::Permissions;

    fn identity(user: &str) -> Identity {
        Identity::new(Id::new(user).unwrap(), Permissions::none())
    }

    #[tokio::test]
    async fn a_token_gives_its_own_identity_and_no_other() {
        let tokens: StaticTokens =
            [("one", identity("alice")), ("two", identity("bob")), ("two-longer", identity("carol"))]
                .into_iter()
                .collect();
        for (token, user) in [("one", "alice"), ("two", "bob"), ("two-longer", "carol")] {
            assert_eq!(tokens.authenticate(token).await.unwrap().user_id.as_str(), user);
        }
        for wrong in ["on", "onee", "One", "two-", "three", " one"] {
            assert_eq!(tokens.authenticate(wrong).await, Err(AuthError::Invalid), "{wrong:?}");
        }
        assert_eq!(tokens.authenticate("").await, Err(AuthError::Missing));
    }

    #[tokio::test]
    async fn an_empty_token_never_speaks_for_anybody() {
        let tokens = StaticTokens::new().with("", identity("alice"));
        assert_eq!(tokens.authenticate("").await, Err(AuthError::Missing));
    }

    #[tokio::test]
    async fn a_token_runs_out() {
        let tokens = StaticTokens::new()
            .with("old", identity("alice").with_expires_at(1))
            .with("new", identity("alice").with_expires_at(u64::MAX));
        assert_eq!(tokens.authenticate("old").await, Err(AuthError::Expired));
        assert!(tokens.authenticate("new").await.is_ok());
    }

    #[tokio::test]
    async fn the_last_identity_given_for_a_token_counts() {
        let tokens = StaticTokens::new().with("t", identity("alice")).with("t", identity("bob"));
        assert_eq!(tokens.authenticate("t").await.unwrap().user_id.as_str(), "bob");
    }

    #[test]
    fn debug_output_holds_no_token() {
        let text = format!("{:?}", StaticTokens::new().with("s3cret", identity("alice")));
        assert!(text.contains("alice") && !text.contains("s3cret"), "{text}");
    }
}
