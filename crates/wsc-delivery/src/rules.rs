//! Which failures are worth another attempt.

use wsc_protocol::FailureReason;

/// Whether another attempt makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// It may help.
    Yes,
    /// It will not, or nobody said that it might.
    No,
}

/// Reasons that are tried again and reasons that are not.
///
/// The default is that of the settings `retryable_errors` and `non_retryable_errors`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryRules {
    /// One bit for each reason.
    retryable: u32,
    non_retryable: u32,
    temporary: bool,
}

// One bit for each reason; a 33rd needs wider masks.
const _: () = assert!(FailureReason::ALL.len() <= 32);

/// The word in `retryable_errors` that is matched with an error's text.
const TEMPORARY: &str = "temporary";

impl RetryRules {
    /// Reads the two lists: names of reasons, and in the first the word `temporary`.
    ///
    /// A name may stand in both; the second list wins.
    ///
    /// # Errors
    ///
    /// [`InvalidRules`] for a name that is no reason, and for `ack_timeout`, which the `ack_*` settings govern alone.
    pub fn parse<T: AsRef<str>>(
        retryable: impl IntoIterator<Item = T>,
        non_retryable: impl IntoIterator<Item = T>,
    ) -> Result<Self, InvalidRules> {
        let mut rules = Self { retryable: 0, non_retryable: 0, temporary: false };
        for name in retryable {
            match name.as_ref() {
                TEMPORARY => rules.temporary = true,
                name => rules.retryable |= parse_one("retryable_errors", name)?,
            }
        }
        for name in non_retryable {
            rules.non_retryable |= parse_one("non_retryable_errors", name.as_ref())?;
        }
        Ok(rules)
    }

    /// Decides from a failure's reason and text. What is said not to be retryable wins; then come the named reasons,
    /// and, where `temporary` is listed, every error whose text contains that word; all else is not tried again.
    ///
    /// A missing acknowledgement is no failed send: `ack_timeout` is always [`Retry::No`] here.
    pub fn classify(&self, reason: FailureReason, error_text: &str) -> Retry {
        if reason == FailureReason::AckTimeout || self.non_retryable & bit(reason) != 0 {
            return Retry::No;
        }
        if self.retryable & bit(reason) != 0 || (self.temporary && error_text.contains(TEMPORARY)) {
            return Retry::Yes;
        }
        Retry::No
    }

    /// The first list as the settings write it.
    pub fn retryable(&self) -> impl Iterator<Item = &'static str> {
        names(self.retryable).chain(self.temporary.then_some(TEMPORARY))
    }

    /// The second list as the settings write it.
    pub fn non_retryable(&self) -> impl Iterator<Item = &'static str> {
        names(self.non_retryable)
    }
}

impl Default for RetryRules {
    fn default() -> Self {
        use FailureReason::*;
        let retryable = [
            QueueFull,
            PendingFull,
            BroadcastFull,
            Timeout,
            SendTimeout,
            ConnectionTimeout,
            ConnError,
            ConnClosed,
            ChannelClosed,
            NetworkUnreachable,
        ];
        let non_retryable = [
            UserOffline,
            Permission,
            Validation,
            AuthenticationFailed,
            MessageTooLarge,
            RateLimitPermanent,
            Rejected,
            Unknown,
        ];
        let mask = |reasons: &[FailureReason]| reasons.iter().fold(0, |all, &r| all | bit(r));
        Self { retryable: mask(&retryable), non_retryable: mask(&non_retryable), temporary: false }
    }
}

fn bit(reason: FailureReason) -> u32 {
    1 << reason as u8
}

fn names(mask: u32) -> impl Iterator<Item = &'static str> {
    FailureReason::ALL.into_iter().filter(move |&r| mask & bit(r) != 0).map(FailureReason::as_str)
}

fn parse_one(list: &'static str, name: &str) -> Result<u32, InvalidRules> {
    match name.parse() {
        Ok(FailureReason::AckTimeout) => Err(InvalidRules::AckTimeout { list }),
        Ok(reason) => Ok(bit(reason)),
        Err(_) => Err(InvalidRules::UnknownReason { list, name: name.to_owned() }),
    }
}

/// Why the lists cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidRules {
    /// A name is no reason.
    #[error("{list}: {name:?} is not the name of a failure reason")]
    UnknownReason {
        /// The setting.
        list: &'static str,
        /// The name as it was given.
        name: String,
    },
    /// `ack_timeout` has settings of its own.
    #[error("{list}: ack_timeout does not belong here, the ack_* settings govern it")]
    AckTimeout {
        /// The setting.
        list: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(retryable: &[&str], non_retryable: &[&str]) -> RetryRules {
        RetryRules::parse(retryable, non_retryable).unwrap()
    }

    #[test]
    fn the_default_knows_every_reason() {
        let rules = RetryRules::default();
        for reason in FailureReason::ALL {
            let listed = [rules.retryable, rules.non_retryable].map(|mask| mask & bit(reason) != 0);
            let expected = reason != FailureReason::AckTimeout;
            assert_eq!(listed[0] ^ listed[1], expected, "{reason}");
        }
        assert_eq!(rules.classify(FailureReason::QueueFull, ""), Retry::Yes);
        assert_eq!(rules.classify(FailureReason::UserOffline, "temporary"), Retry::No);
        assert_eq!(rules.retryable().count(), 10);
        assert_eq!(RetryRules::parse(rules.retryable(), rules.non_retryable()), Ok(rules));
    }

    #[test]
    fn what_is_not_retryable_wins() {
        let rules = rules(&["queue_full", "conn_error", "temporary"], &["queue_full", "permission"]);
        assert_eq!(rules.classify(FailureReason::QueueFull, "temporary"), Retry::No);
        assert_eq!(rules.classify(FailureReason::Permission, "temporary"), Retry::No);
        assert_eq!(rules.classify(FailureReason::ConnError, ""), Retry::Yes);
        assert_eq!(rules.classify(FailureReason::Timeout, "timed out"), Retry::No);
    }

    #[test]
    fn temporary_is_matched_with_the_text() {
        let with = rules(&["temporary"], &[]);
        assert_eq!(with.classify(FailureReason::Unknown, "a temporary failure"), Retry::Yes);
        assert_eq!(with.classify(FailureReason::Unknown, "a lasting failure"), Retry::No);
        assert_eq!(rules(&[], &[]).classify(FailureReason::Unknown, "a temporary failure"), Retry::No);
        assert_eq!(with.classify(FailureReason::AckTimeout, "temporary"), Retry::No);
        assert_eq!(with.retryable().collect::<Vec<_>>(), ["temporary"]);
    }

    #[test]
    fn bad_names_are_named() {
        let error = RetryRules::parse(["queue-full"], []).unwrap_err();
        assert_eq!(error.to_string(), "retryable_errors: \"queue-full\" is not the name of a failure reason");
        let error = RetryRules::parse([], ["ack_timeout"]).unwrap_err();
        assert_eq!(error, InvalidRules::AckTimeout { list: "non_retryable_errors" });
        // The word means nothing in the second list.
        assert!(RetryRules::parse([], ["temporary"]).is_err());
    }

    proptest! {
        #[test]
        fn no_reason_is_retried_unless_somebody_said_so(yes in 0..1_u32 << 19, no in 0..1_u32 << 19, r in 0..19_usize) {
            let ack = bit(FailureReason::AckTimeout);
            let rules = RetryRules::parse(names(yes & !ack), names(no & !ack)).unwrap();
            let reason = FailureReason::ALL[r];
            let expected = yes & !no & !ack & bit(reason) != 0;
            prop_assert_eq!(rules.classify(reason, "temporary") == Retry::Yes, expected);
        }
    }
}
