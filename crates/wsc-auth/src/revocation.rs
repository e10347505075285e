//! Tokens that are no longer honoured although they have not run out.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use parking_lot::RwLock;
use wsc_protocol::Id;

/// Longest `jti` of a token in bytes. A token with a longer one is invalid, so that what is kept of a revocation is
/// bounded.
pub const MAX_TOKEN_ID_LEN: usize = 256;

/// Most revocations that are kept. One takes about 100 bytes.
pub const MAX_REVOCATIONS: usize = 1_000_000;

/// The end of one token, or of all that a user has.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Revocation {
    /// The token with this id (`jti`).
    Token {
        /// The token's own id.
        token_id: Box<str>,
    },
    /// Every token of a user that was made before a moment, and those that do not say when they were made.
    User {
        /// The user.
        user_id: Id,
        /// The moment, in Unix milliseconds.
        at_ms: u64,
    },
}

impl Revocation {
    /// Revokes the token with this id.
    pub fn token(token_id: &str) -> Self {
        Self::Token { token_id: token_id.into() }
    }

    /// Revokes the user's tokens that were made before `at_ms`, in Unix milliseconds.
    pub fn user(user_id: Id, at_ms: u64) -> Self {
        Self::User { user_id, at_ms }
    }

    /// The key of this revocation in a store. A later one of the same token or user has the same key.
    pub fn to_key(&self) -> Vec<u8> {
        let (prefix, id) = match self {
            Self::Token { token_id } => (TOKEN, &**token_id),
            Self::User { user_id, .. } => (USER, user_id.as_str()),
        };
        [prefix, id].concat().into_bytes()
    }

    /// What a store keeps under [`to_key`](Self::to_key).
    pub fn to_value(&self) -> Vec<u8> {
        match self {
            Self::Token { .. } => Vec::new(),
            Self::User { at_ms, .. } => at_ms.to_string().into_bytes(),
        }
    }

    /// Reads a revocation back from its key and its value; `None` if they are none.
    pub fn from_record(key: &[u8], value: &[u8]) -> Option<Self> {
        let (key, value) = (str::from_utf8(key).ok()?, str::from_utf8(value).ok()?);
        if let Some(token_id) = key.strip_prefix(TOKEN) {
            return value.is_empty().then(|| Self::token(token_id));
        }
        // Anonymous users can be revoked too, so that the reserved ids count here.
        let user_id = Id::generated(key.strip_prefix(USER)?);
        Some(Self::User { user_id, at_ms: value.parse().ok()? })
    }
}

const TOKEN: &str = "token:";
const USER: &str = "user:";

/// The revocations in force, in memory. Whoever owns them keeps them over a restart, with
/// [`Revocation::to_key`] and its kin.
///
/// A look-up costs one relaxed load while nothing is revoked. There is one order that leaves no gap: make a connection
/// known first and look it up here then; add a revocation first and look through the known connections then.
///
/// ```
/// use wsc_auth::{Revocation, Revocations};
///
/// let revoked = Revocations::default();
/// revoked.add(Revocation::token("t-1"))?;
/// assert!(revoked.is_revoked(Some("t-1"), "alice", None));
/// assert!(!revoked.is_revoked(Some("t-2"), "alice", None));
/// # Ok::<(), wsc_auth::RevocationsFull>(())
/// ```
#[derive(Default)]
pub struct Revocations {
    count: AtomicUsize,
    entries: RwLock<Entries>,
}

#[derive(Default)]
struct Entries {
    tokens: HashSet<Box<str>>,
    /// The moment before which a user's tokens are no longer honoured, in Unix milliseconds.
    users: HashMap<Id, u64>,
}

impl Revocations {
    /// Revokes a token, or the tokens that a user has. Of two moments for one user the later counts.
    ///
    /// # Errors
    ///
    /// [`RevocationsFull`] when there are [`MAX_REVOCATIONS`] already; those stay in force.
    pub fn add(&self, revocation: Revocation) -> Result<(), RevocationsFull> {
        let mut entries = self.entries.write();
        let has_room = entries.len() < MAX_REVOCATIONS;
        match revocation {
            // No valid token has such an id.
            Revocation::Token { token_id } if token_id.len() > MAX_TOKEN_ID_LEN => {}
            Revocation::Token { token_id } => {
                if !has_room && !entries.tokens.contains(&token_id) {
                    return Err(RevocationsFull);
                }
                entries.tokens.insert(token_id);
            }
            Revocation::User { user_id, at_ms } => {
                if !has_room && !entries.users.contains_key(&user_id) {
                    return Err(RevocationsFull);
                }
                let known = entries.users.entry(user_id).or_default();
                *known = at_ms.max(*known);
            }
        }
        self.count.store(entries.len(), Relaxed);
        Ok(())
    }

    /// Whether [`add`](Self::add) would take this one.
    pub fn has_room_for(&self, revocation: &Revocation) -> bool {
        let entries = self.entries.read();
        entries.len() < MAX_REVOCATIONS
            || match revocation {
                Revocation::Token { token_id } => entries.tokens.contains(token_id),
                Revocation::User { user_id, .. } => entries.users.contains_key(user_id),
            }
    }

    /// Whether a token with this id and moment of issue (Unix milliseconds) is revoked, or its user is.
    pub fn is_revoked(&self, token_id: Option<&str>, user_id: &str, issued_at_ms: Option<u64>) -> bool {
        // A load that is not ordered is enough: who has to see an entry took a lock after it was added.
        if self.is_empty() {
            return false;
        }
        let entries = self.entries.read();
        token_id.is_some_and(|id| entries.tokens.contains(id))
            || entries.users.get(user_id).is_some_and(|&at| issued_at_ms.is_none_or(|issued| issued < at))
    }

    /// How many tokens and users are revoked.
    pub fn len(&self) -> usize {
        self.count.load(Relaxed)
    }

    /// Whether nothing is revoked.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Entries {
    fn len(&self) -> usize {
        self.tokens.len() + self.users.len()
    }
}

/// Says how many there are.
impl fmt::Debug for Revocations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Revocations").field("len", &self.len()).finish()
    }
}

/// There is no room for one more revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are {MAX_REVOCATIONS} revocations already; changing the signing key ends every token at once")]
pub struct RevocationsFull;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn user(id: &str) -> Id {
        Id::new(id).unwrap()
    }

    #[test]
    fn a_revoked_token_is_its_own_affair() {
        let revoked = Revocations::default();
        assert!(!revoked.is_revoked(Some("t1"), "alice", None));
        revoked.add(Revocation::token("t1")).unwrap();
        assert!(revoked.is_revoked(Some("t1"), "alice", Some(u64::MAX)));
        assert!(!revoked.is_revoked(Some("t2"), "alice", Some(0)));
        assert!(!revoked.is_revoked(None, "alice", None));
        // Ids of tokens and of users do not meet.
        assert!(!revoked.is_revoked(None, "t1", None));
    }

    #[test]
    fn a_users_revocation_ends_the_tokens_made_before_it_and_those_that_do_not_say() {
        let revoked = Revocations::default();
        revoked.add(Revocation::user(user("alice"), 5_000)).unwrap();
        for (issued, expected) in [(Some(0), true), (Some(4_999), true), (Some(5_000), false), (None, true)] {
            assert_eq!(revoked.is_revoked(Some("t"), "alice", issued), expected, "{issued:?}");
            assert!(!revoked.is_revoked(Some("t"), "bob", issued));
        }
    }

    #[test]
    fn of_two_moments_for_a_user_the_later_counts() {
        let revoked = Revocations::default();
        revoked.add(Revocation::user(user("alice"), 5_000)).unwrap();
        revoked.add(Revocation::user(user("alice"), 4_000)).unwrap();
        assert!(revoked.is_revoked(None, "alice", Some(4_500)));
        assert_eq!(revoked.len(), 1);
    }

    #[test]
    fn when_it_is_full_the_known_ones_stay_in_force_and_can_be_renewed() {
        let revoked = Revocations::default();
        for n in 1..MAX_REVOCATIONS {
            revoked.add(Revocation::token(&n.to_string())).unwrap();
        }
        revoked.add(Revocation::user(user("alice"), 1)).unwrap();
        assert_eq!(revoked.len(), MAX_REVOCATIONS);
        assert_eq!(revoked.add(Revocation::token("one more")), Err(RevocationsFull));
        assert_eq!(revoked.add(Revocation::user(user("bob"), 1)), Err(RevocationsFull));
        revoked.add(Revocation::token("1")).unwrap();
        revoked.add(Revocation::user(user("alice"), 9)).unwrap();
        assert!(revoked.is_revoked(Some("1"), "x", None) && revoked.is_revoked(None, "alice", Some(8)));
        assert!(!revoked.is_revoked(Some("one more"), "bob", None));
    }

    #[test]
    fn an_id_that_no_token_can_have_takes_no_room() {
        let revoked = Revocations::default();
        revoked.add(Revocation::token(&"x".repeat(MAX_TOKEN_ID_LEN + 1))).unwrap();
        assert!(revoked.is_empty());
        revoked.add(Revocation::token(&"x".repeat(MAX_TOKEN_ID_LEN))).unwrap();
        assert_eq!(revoked.len(), 1);
    }

    #[test]
    fn what_is_no_record_is_no_revocation() {
        for (key, value) in
            [("", ""), ("token:a", "1"), ("user:a", ""), ("user:a", "-1"), ("room:a", "1"), ("user", "1")]
        {
            assert_eq!(Revocation::from_record(key.as_bytes(), value.as_bytes()), None, "{key} {value}");
        }
        assert_eq!(Revocation::from_record(b"user:\xff", b"1"), None);
    }

    proptest! {
        #[test]
        fn a_record_gives_the_revocation_back(id in ".{1,20}", at_ms: u64, of_user: bool) {
            let revocation =
                if of_user { Revocation::user(Id::generated(id), at_ms) } else { Revocation::token(&id) };
            let read = Revocation::from_record(&revocation.to_key(), &revocation.to_value());
            prop_assert_eq!(read, Some(revocation));
        }
    }
}
