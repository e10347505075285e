//! What a request can fail with.

use std::time::Duration;

use serde::Deserialize;
use wsc_protocol::ErrorCode;

/// An `error` reply: the hub read the request and did not do it.
#[derive(Clone, Debug, PartialEq, Deserialize, thiserror::Error)]
#[error("{message} ({code})")]
#[non_exhaustive]
pub struct HubError {
    /// The number; [`HubError::is`] compares it with a name.
    pub code: u16,
    /// What went wrong, for people.
    #[serde(default)]
    pub message: String,
    /// Whether the same request may succeed a moment later.
    #[serde(default)]
    pub temporary: bool,
    /// More for programs, such as `retry_after_ms`, `limit` or the `id` of a message that failed at once.
    #[serde(default)]
    pub details: Option<serde_json::Value>,
}

impl HubError {
    /// Whether this is that error.
    pub fn is(&self, code: ErrorCode) -> bool {
        self.code == code.code()
    }

    /// The id of the message, where it was accepted and failed at once: nothing will come of it, also not when it is
    /// asked for again. `None` where the hub did not take it.
    pub fn message_id(&self) -> Option<&str> {
        self.details.as_ref()?.get("id")?.as_str()
    }

    /// How long to wait before trying again, where the hub says it.
    pub fn retry_after(&self) -> Option<Duration> {
        self.details.as_ref()?.get("retry_after_ms")?.as_u64().map(Duration::from_millis)
    }
}

/// Why a request has no reply.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The hub said no.
    #[error(transparent)]
    Refused(#[from] HubError),
    /// A message that [asks for an acknowledgement](crate::Request::require_ack) was sent, had no answer, and was
    /// refused when the client repeated it. The hub may have taken it the first time.
    #[error("the repetition was refused: {0}")]
    RepetitionRefused(#[source] HubError),
    /// The connection ended after the request was written and before its reply came. The hub may have processed it.
    #[error("the connection ended before the reply")]
    Disconnected,
    /// No reply in time.
    #[error("no reply in time")]
    Timeout {
        /// Whether it was written. If not, the client had no connection, or the hub did not read.
        sent: bool,
    },
    /// The client is closed for good.
    #[error("the client is closed")]
    Closed {
        /// Whether it was written before.
        sent: bool,
    },
    /// The request is larger than [`max_request_size`](crate::Builder::max_request_size). Nothing was sent: the hub
    /// would have ended the connection.
    #[error("the request has {size} bytes, more than the {limit} allowed")]
    TooLarge {
        /// Bytes of the request.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The data cannot be written as JSON. Nothing was sent.
    #[error("the request cannot be written as JSON")]
    Encode(#[source] serde_json::Error),
    /// The reply came and is not what it should be.
    #[error("the reply cannot be read")]
    Reply(#[source] serde_json::Error),
}

impl RequestError {
    /// Whether the hub may have done what was asked: sending the request again might do it twice. (An
    /// [idempotency key](crate::Request::idempotency_key) makes that harmless.)
    pub fn may_have_been_processed(&self) -> bool {
        match self {
            Self::Disconnected | Self::Reply(_) | Self::RepetitionRefused(_) => true,
            Self::Timeout { sent } | Self::Closed { sent } => *sent,
            Self::Refused(_) | Self::TooLarge { .. } | Self::Encode(_) => false,
        }
    }

    /// Whether the same request may succeed a moment later.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Refused(error) | Self::RepetitionRefused(error) => error.temporary,
            Self::Disconnected | Self::Timeout { .. } => true,
            Self::Closed { .. } | Self::TooLarge { .. } | Self::Encode(_) | Self::Reply(_) => false,
        }
    }

    /// What the hub said, where it was the hub that said no.
    pub fn hub_error(&self) -> Option<&HubError> {
        match self {
            Self::Refused(error) | Self::RepetitionRefused(error) => Some(error),
            _ => None,
        }
    }
}
