//! Why a message did not arrive (protocol §4, *Failure kinds*).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Why one message did not reach one recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
#[repr(u8)]
pub enum FailureReason {
    /// A connection's outbound queue had no room.
    QueueFull,
    /// A room's pending buffer had no room.
    BroadcastFull,
    /// The inbox or the tracker had no room.
    PendingFull,
    /// The user had no connection.
    UserOffline,
    /// The connection failed while writing.
    ConnError,
    /// The connection closed before the message was written.
    ConnClosed,
    /// The connection's queue was closed.
    ChannelClosed,
    /// Another node could not be reached.
    NetworkUnreachable,
    /// The operation took too long.
    Timeout,
    /// Writing took too long.
    SendTimeout,
    /// No acknowledgement came in time.
    AckTimeout,
    /// Connecting took too long.
    ConnectionTimeout,
    /// The sender or receiver may not.
    Permission,
    /// The message is not valid.
    Validation,
    /// The credentials are not valid.
    AuthenticationFailed,
    /// The message is larger than allowed.
    MessageTooLarge,
    /// The rate limit will not lift by itself.
    RateLimitPermanent,
    /// The receiver said no.
    Rejected,
    /// None of the others.
    Unknown,
}

impl FailureReason {
    /// Every reason, in declaration order: `ALL[r as usize] == r`.
    pub const ALL: [Self; 19] = [
        Self::QueueFull,
        Self::BroadcastFull,
        Self::PendingFull,
        Self::UserOffline,
        Self::ConnError,
        Self::ConnClosed,
        Self::ChannelClosed,
        Self::NetworkUnreachable,
        Self::Timeout,
        Self::SendTimeout,
        Self::AckTimeout,
        Self::ConnectionTimeout,
        Self::Permission,
        Self::Validation,
        Self::AuthenticationFailed,
        Self::MessageTooLarge,
        Self::RateLimitPermanent,
        Self::Rejected,
        Self::Unknown,
    ];

    /// The name in replies, settings and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::BroadcastFull => "broadcast_full",
            Self::PendingFull => "pending_full",
            Self::UserOffline => "user_offline",
            Self::ConnError => "conn_error",
            Self::ConnClosed => "conn_closed",
            Self::ChannelClosed => "channel_closed",
            Self::NetworkUnreachable => "network_unreachable",
            Self::Timeout => "timeout",
            Self::SendTimeout => "send_timeout",
            Self::AckTimeout => "ack_timeout",
            Self::ConnectionTimeout => "connection_timeout",
            Self::Permission => "permission",
            Self::Validation => "validation",
            Self::AuthenticationFailed => "authentication_failed",
            Self::MessageTooLarge => "message_too_large",
            Self::RateLimitPermanent => "rate_limit_permanent",
            Self::Rejected => "rejected",
            Self::Unknown => "unknown",
        }
    }

    /// Which handlers are told.
    pub fn kind(self) -> FailureKind {
        match self {
            Self::QueueFull | Self::BroadcastFull | Self::PendingFull => FailureKind::QueueFull,
            Self::UserOffline => FailureKind::UserOffline,
            Self::ConnError | Self::ConnClosed | Self::ChannelClosed | Self::NetworkUnreachable => {
                FailureKind::ConnectionError
            }
            Self::Timeout | Self::SendTimeout | Self::AckTimeout | Self::ConnectionTimeout => FailureKind::Timeout,
            Self::Permission
            | Self::Validation
            | Self::AuthenticationFailed
            | Self::MessageTooLarge
            | Self::RateLimitPermanent
            | Self::Rejected
            | Self::Unknown => FailureKind::Other,
        }
    }
}

impl fmt::Display for FailureReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for FailureReason {
    type Err = UnknownReason;

    fn from_str(text: &str) -> Result<Self, UnknownReason> {
        Self::ALL.into_iter().find(|r| r.as_str() == text).ok_or(UnknownReason)
    }
}

/// The text names no [`FailureReason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not the name of a failure reason")]
pub struct UnknownReason;

/// The group a [`FailureReason`] belongs to: one kind of failure handler each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum FailureKind {
    /// A queue, buffer or inbox was full.
    QueueFull,
    /// The user had no connection.
    UserOffline,
    /// A connection failed or was gone.
    ConnectionError,
    /// Something took too long.
    Timeout,
    /// Everything else.
    Other,
}

impl FailureKind {
    /// Every kind, in declaration order: `ALL[k as usize] == k`.
    pub const ALL: [Self; 5] = [Self::QueueFull, Self::UserOffline, Self::ConnectionError, Self::Timeout, Self::Other];

    /// The name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::UserOffline => "user_offline",
            Self::ConnectionError => "connection_error",
            Self::Timeout => "timeout",
            Self::Other => "other",
        }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_positions_agree() {
        for (position, reason) in FailureReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, position);
            assert_eq!(reason.as_str().parse(), Ok(reason));
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
        assert_eq!("user offline".parse::<FailureReason>(), Err(UnknownReason));
    }
}
