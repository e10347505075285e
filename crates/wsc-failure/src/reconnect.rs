//! Remembers whose connections fail, and how fast they come back.

use std::{fmt, num::NonZeroUsize, sync::Arc};

use async_trait::async_trait;
use lru::LruCache;
use parking_lot::Mutex;
use wsc_protocol::{FailureKind, Id};

use crate::{AnyFailureHandler, FailureEvent};

/// Remembers for each user how often its connections failed, and when it came back.
///
/// As a handler it learns of messages that a failing connection cost. Whoever sees connections come and go tells it
/// the rest with [`lost`](Self::lost) and [`back`](Self::back). It keeps the users of whom it heard last; clones share
/// one memory. Times are Unix milliseconds and come from outside.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use wsc_failure::ReconnectTracker;
/// use wsc_protocol::Id;
///
/// let tracker = ReconnectTracker::default();
/// let alice = Id::new("alice")?;
/// tracker.lost(&alice, 10_000);
/// tracker.back(&alice, 12_500);
/// let stats = tracker.stats(&alice).ok_or("unknown")?;
/// assert_eq!((stats.losses, stats.returns, stats.away_ms), (1, 1, 2_500));
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct ReconnectTracker {
    users: Arc<Mutex<LruCache<Id, ReconnectStats>>>,
}

/// What is known of one user's connections.
///
/// A user with several devices counts as lost from the first failure until any of them connects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReconnectStats {
    /// How often connections failed, as seen from a user that was there.
    pub losses: u64,
    /// How often the user came back afterwards.
    pub returns: u64,
    /// Messages that failed with a connection.
    pub failed_messages: u64,
    /// When a connection failed last, in Unix milliseconds.
    pub last_lost: Option<u64>,
    /// When the user came back last, in Unix milliseconds.
    pub last_back: Option<u64>,
    /// How long it took to come back, all times together, in milliseconds.
    pub away_ms: u64,
    /// Whether the user has not come back since the last loss.
    pub is_away: bool,
}

impl ReconnectStats {
    /// How long it takes to come back on average, in milliseconds; `None` before the first time.
    pub fn mean_away_ms(&self) -> Option<u64> {
        self.away_ms.checked_div(self.returns)
    }

    fn lost(&mut self, at: u64) {
        // What is reported late speaks of the connection before the one that the user has now.
        if self.is_away || self.last_back.is_some_and(|back| at < back) {
            return;
        }
        self.is_away = true;
        self.losses += 1;
        self.last_lost = Some(at);
    }

    fn back(&mut self, at: u64) {
        if !std::mem::take(&mut self.is_away) {
            return;
        }
        self.returns += 1;
        self.last_back = Some(at);
        self.away_ms = self.away_ms.saturating_add(at.saturating_sub(self.last_lost.unwrap_or(at)));
    }
}

impl ReconnectTracker {
    /// Remembers at most `users` users, at least one; those of whom nothing was heard for longest are forgotten first.
    pub fn new(users: usize) -> Self {
        let users = NonZeroUsize::new(users).unwrap_or(NonZeroUsize::MIN);
        // Not allocated for all of them at once: a hub without trouble should not pay for it.
        let mut cache = LruCache::unbounded();
        cache.resize(users);
        Self { users: Arc::new(Mutex::new(cache)) }
    }

    /// A connection of the user failed at this time. While the user is known to be away it changes nothing.
    pub fn lost(&self, user: &Id, unix_ms: u64) {
        self.change(user, |stats| stats.lost(unix_ms));
    }

    /// The user connected at this time. It matters where a connection of this user failed before.
    pub fn back(&self, user: &Id, unix_ms: u64) {
        if let Some(stats) = self.users.lock().get_mut(user) {
            stats.back(unix_ms);
        }
    }

    /// What is known of the user; `None` where no connection failed, or not lately.
    pub fn stats(&self, user: &Id) -> Option<ReconnectStats> {
        // To be asked about is no news of a user.
        self.users.lock().peek(user).copied()
    }

    /// How many users are remembered.
    pub fn users(&self) -> usize {
        self.users.lock().len()
    }

    fn change(&self, user: &Id, change: impl FnOnce(&mut ReconnectStats)) {
        change(self.users.lock().get_or_insert_mut_ref(user, ReconnectStats::default));
    }
}

impl Default for ReconnectTracker {
    /// Remembers 10,000 users.
    fn default() -> Self {
        Self::new(10_000)
    }
}

#[async_trait]
impl AnyFailureHandler for ReconnectTracker {
    async fn handle_failure(&self, failure: &FailureEvent) {
        if failure.reason.kind() == FailureKind::ConnectionError {
            self.change(&failure.recipient, |stats| {
                stats.failed_messages += 1;
                stats.lost(failure.timestamp);
            });
        }
    }
}

impl fmt::Debug for ReconnectTracker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReconnectTracker").field("users", &self.users()).finish()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;
    use uuid::Uuid;
    use wsc_protocol::{FailureReason, HubMessage};

    use super::*;

    fn user(name: &str) -> Id {
        Id::new(name).unwrap()
    }

    #[test]
    fn losses_and_returns_alternate() {
        let tracker = ReconnectTracker::default();
        let alice = user("alice");
        // Nobody is remembered for connecting.
        tracker.back(&alice, 1);
        assert_eq!(tracker.stats(&alice), None);
        for (lost, again, back) in [(100, 110, 150), (200, 201, 300)] {
            tracker.lost(&alice, lost);
            tracker.lost(&alice, again);
            assert!(tracker.stats(&alice).unwrap().is_away);
            tracker.back(&alice, back);
            tracker.back(&alice, back + 1);
        }
        let stats = tracker.stats(&alice).unwrap();
        assert_eq!((stats.losses, stats.returns, stats.away_ms, stats.is_away), (2, 2, 150, false));
        assert_eq!((stats.last_lost, stats.last_back, stats.mean_away_ms()), (Some(200), Some(300), Some(75)));
        // Reported after the user had come back: no loss of the new connection.
        tracker.lost(&alice, 250);
        assert!(!tracker.stats(&alice).unwrap().is_away);
        // A clock that went back gives no time, and no overflow.
        tracker.lost(&alice, 400);
        tracker.back(&alice, 390);
        assert_eq!(tracker.stats(&alice).unwrap().away_ms, 150);
    }

    #[test]
    fn only_those_heard_of_last_are_remembered() {
        let tracker = ReconnectTracker::new(2);
        for (n, name) in (1..).zip(["a", "b", "a", "c"]) {
            tracker.lost(&user(name), n);
            tracker.back(&user(name), n);
        }
        assert_eq!(tracker.users(), 2);
        assert_eq!(tracker.stats(&user("b")), None);
        assert_eq!(tracker.stats(&user("a")).unwrap().losses, 2);
        for n in 0..10_000 {
            tracker.lost(&user(&n.to_string()), n);
        }
        assert_eq!(tracker.users(), 2);
    }

    #[tokio::test]
    async fn failed_messages_tell_of_a_lost_connection() {
        let tracker = ReconnectTracker::default();
        let message = Arc::new(HubMessage::new(Uuid::nil(), "user_message", "system", RawValue::NULL, 7));
        for reason in [FailureReason::ConnError, FailureReason::ConnClosed, FailureReason::UserOffline] {
            let failure = FailureEvent::new(Arc::clone(&message), user("bob"), reason, "gone").with_timestamp(50);
            tracker.handle_failure(&failure).await;
        }
        let stats = tracker.stats(&user("bob")).unwrap();
        assert_eq!((stats.losses, stats.failed_messages, stats.last_lost), (1, 2, Some(50)));
    }
}
