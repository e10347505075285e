//! Why a connection ended, and what a client does about it.

use std::{io, sync::Arc, time::Duration};

use serde_json::Value;
use wsc_protocol::CloseCode;

use crate::HubError;

/// Why a connection ended, or an attempt to connect failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// The application asked for it: [`Client::close`](crate::Client::close), or the last handle was dropped.
    #[error("closed by the application")]
    Requested,
    /// The hub sent a close frame.
    #[error("closed by the hub: {0}")]
    Closed(Closing),
    /// The connection was cut without a close frame.
    #[error("the connection was lost")]
    Lost(#[source] Arc<io::Error>),
    /// Nothing came from the hub for too long, not even an answer to a ping.
    #[error("the hub is silent")]
    Silent,
    /// No connection to the address.
    #[error("cannot connect")]
    Connect(#[source] Arc<io::Error>),
    /// The attempt took longer than [`connect_timeout`](crate::Builder::connect_timeout).
    #[error("no answer in time")]
    Timeout,
    /// The upgrade was answered with an HTTP status.
    #[error("refused with HTTP status {status}{}", error.as_ref().map(|error| format!(": {error}")).unwrap_or_default())]
    Refused {
        /// The status.
        status: u16,
        /// What the hub says in the body; `None` where the answer is not the hub's, or came without its body.
        error: Option<HubError>,
        /// What `Retry-After` asks for.
        retry_after: Option<Duration>,
    },
    /// The other side does not speak the protocol, or broke its rules.
    #[error("protocol error: {0}")]
    Protocol(String),
    /// The client's task ended before its time: by a panic, such as one of the token provider, or with its runtime.
    #[error("the client's task was ended")]
    Aborted,
    /// The token provider had no token.
    #[error("no token")]
    Token(#[source] Arc<dyn std::error::Error + Send + Sync>),
}

/// What a close frame says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} {reason:?}", code.0)]
#[non_exhaustive]
pub struct Closing {
    /// The number; 1005 where the frame carries none.
    pub code: CloseCode,
    /// Why, for people.
    pub reason: String,
    /// Whether the hub expects the client back, where it says so.
    pub reconnect: Option<bool>,
    /// How long the client should stay away at least.
    pub retry_after: Option<Duration>,
}

impl Closing {
    /// Reads a close frame; a reason that is not the hub's JSON is taken as text, and a field that is not as it should
    /// be costs no other.
    pub(crate) fn parse(code: u16, reason: &str) -> Self {
        let fields: Value = serde_json::from_str(reason).unwrap_or_default();
        Self {
            code: CloseCode(code),
            reason: fields["reason"].as_str().unwrap_or(reason).to_owned(),
            reconnect: fields["reconnect"].as_bool(),
            retry_after: fields["retry_after_ms"].as_u64().map(Duration::from_millis),
        }
    }
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Connect again, after this time at least.
    Retry { at_least: Duration },
    /// Stay away: the same attempt would end the same way.
    Stop,
}

impl Cause {
    /// What a client does after this. `can_renew`: a new token can be had.
    ///
    /// The number of a close frame decides; its `reconnect` can forbid what the number allows, never allow what the
    /// number forbids.
    pub(crate) fn verdict(&self, can_renew: bool) -> Verdict {
        let retry = |allowed: bool, at_least: Option<Duration>| match allowed {
            true => Verdict::Retry { at_least: at_least.unwrap_or_default() },
            false => Verdict::Stop,
        };
        match self {
            Self::Requested | Self::Aborted => Verdict::Stop,
            Self::Closed(closing) => {
                let needs_token = closing.code == CloseCode::TOKEN_EXPIRED;
                let allowed = closing.code.reconnect() && closing.reconnect != Some(false);
                retry(allowed && (can_renew || !needs_token), closing.retry_after)
            }
            Self::Refused { status, retry_after, .. } => retry(matches!(status, 408 | 425 | 429 | 500..), *retry_after),
            Self::Lost(_) | Self::Silent | Self::Connect(_) | Self::Timeout | Self::Protocol(_) | Self::Token(_) => {
                retry(true, None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn closed(code: u16, reason: &str) -> Cause {
        Cause::Closed(Closing::parse(code, reason))
    }

    fn refused(status: u16) -> Cause {
        Cause::Refused { status, error: None, retry_after: None }
    }

    fn comes_back(cause: &Cause) -> bool {
        matches!(cause.verdict(true), Verdict::Retry { .. })
    }

    proptest! {
        #[test]
        fn the_number_decides(code in 1000_u16..5000) {
            let allowed = match code {
                1009 => false,
                1000..=2999 | 3000..=3499 | 4000..=4499 => true,
                _ => false,
            };
            prop_assert_eq!(comes_back(&closed(code, "")), allowed);
            prop_assert_eq!(comes_back(&closed(code, r#"{"reason":"x","reconnect":true}"#)), allowed);
            let forbidden = closed(code, r#"{"reason":"x","reconnect":false}"#);
            prop_assert!(!comes_back(&forbidden));
        }

        #[test]
        fn the_hub_says_how_long(ms in 0_u64..1_000_000_000) {
            let cause = closed(3001, &format!(r#"{{"reason":"bye","reconnect":true,"retry_after_ms":{ms}}}"#));
            prop_assert_eq!(cause.verdict(false), Verdict::Retry { at_least: Duration::from_millis(ms) });
        }

        #[test]
        fn a_hub_that_gives_no_reason_is_obeyed_all_the_same(ms in 0_u64..1_000_000, odd in "|,\"reason\":7") {
            let closing = Closing::parse(3001, &format!(r#"{{"reconnect":false,"retry_after_ms":{ms}{odd}}}"#));
            prop_assert_eq!(closing.reconnect, Some(false));
            prop_assert_eq!(closing.retry_after, Some(Duration::from_millis(ms)));
        }

        #[test]
        fn any_reason_can_be_read(code: u16, reason in ".{0,123}") {
            let closing = Closing::parse(code, &reason);
            prop_assert_eq!(closing.code.0, code);
        }
    }

    #[test]
    fn refusals_that_may_pass_are_tried_again() {
        for status in [408, 425, 429, 500, 502, 503, 504] {
            assert!(comes_back(&refused(status)), "{status}");
        }
        for status in [200, 301, 302, 400, 401, 403, 404, 409, 426] {
            assert!(!comes_back(&refused(status)), "{status}");
        }
    }

    #[test]
    fn an_expired_token_needs_another_one() {
        assert!(comes_back(&closed(3005, "")));
        assert_eq!(closed(3005, "").verdict(false), Verdict::Stop);
        assert_eq!(closed(3500, "").verdict(true), Verdict::Stop);
    }

    #[test]
    fn a_lost_socket_comes_back() {
        let error = || Arc::new(io::Error::from(io::ErrorKind::ConnectionReset));
        for cause in [Cause::Lost(error()), Cause::Connect(error()), Cause::Silent, Cause::Timeout] {
            assert!(comes_back(&cause), "{cause}");
        }
        assert!(!comes_back(&Cause::Requested));
    }
}
