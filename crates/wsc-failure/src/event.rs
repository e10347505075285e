//! One failure.

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use uuid::Uuid;
use wsc_protocol::{ClientId, FailureInfo, FailureReason, HubMessage, Id, UserType};

/// One message that did not reach one recipient, for good.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FailureEvent {
    /// The message.
    pub message: Arc<HubMessage>,
    /// The user it was for.
    pub recipient: Id,
    /// The connection it was for, where it was for one.
    pub client_id: Option<ClientId>,
    /// What kind of user the recipient is, where that is known.
    pub user_type: Option<UserType>,
    /// Why. It also says which handlers are called.
    pub reason: FailureReason,
    /// What went wrong, for people.
    pub error: Cow<'static, str>,
    /// How often the send was tried again.
    pub retries: u32,
    /// How long it took from acceptance to failure; for a timeout, how long was waited.
    pub duration: Duration,
    /// When it failed, Unix milliseconds.
    pub timestamp: u64,
}

impl FailureEvent {
    /// A failure of which only this is known. The time is the message's own until it is
    /// [set](Self::with_timestamp).
    pub fn new(
        message: Arc<HubMessage>,
        recipient: Id,
        reason: FailureReason,
        error: impl Into<Cow<'static, str>>,
    ) -> Self {
        let timestamp = message.timestamp;
        Self {
            message,
            recipient,
            client_id: None,
            user_type: None,
            reason,
            error: error.into(),
            retries: 0,
            duration: Duration::ZERO,
            timestamp,
        }
    }

    /// Names the connection.
    #[must_use]
    pub fn with_client(mut self, client_id: ClientId, user_type: UserType) -> Self {
        self.client_id = Some(client_id);
        self.user_type = Some(user_type);
        self
    }

    /// Says how often the send was tried again, and how long all of it took.
    #[must_use]
    pub fn after(mut self, retries: u32, duration: Duration) -> Self {
        self.retries = retries;
        self.duration = duration;
        self
    }

    /// Says when it failed, in Unix milliseconds.
    #[must_use]
    pub fn with_timestamp(mut self, unix_ms: u64) -> Self {
        self.timestamp = unix_ms;
        self
    }
}

/// What observers are told of a failure: everything but the payload.
impl From<&FailureEvent> for FailureInfo {
    fn from(event: &FailureEvent) -> Self {
        Self {
            message_id: event.message.id,
            message_type: event.message.message_type.clone(),
            sender_id: event.message.sender_id.clone(),
            room_id: event.message.room_id.clone(),
            user_id: event.recipient.clone(),
            client_id: event.client_id.clone(),
            user_type: event.user_type,
            reason: event.reason,
            error: event.error.clone(),
            retries: event.retries,
            duration_ms: u64::try_from(event.duration.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// What is kept of a failure to look at later: everything but the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields are those of the event and of its message")]
pub struct FailureRecord {
    pub message_id: Uuid,
    pub message_type: String,
    pub sender_id: String,
    pub room_id: Option<String>,
    pub recipient: Id,
    pub client_id: Option<ClientId>,
    pub user_type: Option<UserType>,
    pub reason: FailureReason,
    pub error: Cow<'static, str>,
    pub retries: u32,
    pub duration: Duration,
    pub timestamp: u64,
}

impl From<&FailureEvent> for FailureRecord {
    fn from(event: &FailureEvent) -> Self {
        Self {
            message_id: event.message.id,
            message_type: event.message.message_type.clone(),
            sender_id: event.message.sender_id.clone(),
            room_id: event.message.room_id.clone(),
            recipient: event.recipient.clone(),
            client_id: event.client_id.clone(),
            user_type: event.user_type,
            reason: event.reason,
            error: event.error.clone(),
            retries: event.retries,
            duration: event.duration,
            timestamp: event.timestamp,
        }
    }
}

/// What was full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum QueueType {
    /// A connection's outbound queue (`queue_full`).
    Connection,
    /// A room's pending buffer (`broadcast_full`).
    Room,
    /// The inbox, or the tracker of unacknowledged messages (`pending_full`).
    Inbox,
}

impl QueueType {
    /// The name in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Room => "room",
            Self::Inbox => "inbox",
        }
    }

    /// Which queue a reason of kind *queue full* speaks of; others speak of none.
    pub fn of(reason: FailureReason) -> Option<Self> {
        match reason {
            FailureReason::QueueFull => Some(Self::Connection),
            FailureReason::BroadcastFull => Some(Self::Room),
            FailureReason::PendingFull => Some(Self::Inbox),
            _ => None,
        }
    }
}

impl fmt::Display for QueueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What took too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TimeoutType {
    /// Something without a name of its own.
    Operation,
    /// Writing to the connection.
    Send,
    /// The receiver's acknowledgement.
    Ack,
    /// Connecting.
    Connection,
}

impl TimeoutType {
    /// The name, which is the reason's.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Operation => "timeout",
            Self::Send => "send_timeout",
            Self::Ack => "ack_timeout",
            Self::Connection => "connection_timeout",
        }
    }

    /// Which timeout a reason of kind *timeout* speaks of; others speak of none.
    pub fn of(reason: FailureReason) -> Option<Self> {
        match reason {
            FailureReason::Timeout => Some(Self::Operation),
            FailureReason::SendTimeout => Some(Self::Send),
            FailureReason::AckTimeout => Some(Self::Ack),
            FailureReason::ConnectionTimeout => Some(Self::Connection),
            _ => None,
        }
    }
}

impl fmt::Display for TimeoutType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use wsc_protocol::FailureKind;

    use super::*;

    #[test]
    fn every_reason_of_a_kind_has_its_type() {
        for reason in FailureReason::ALL {
            assert_eq!(QueueType::of(reason).is_some(), reason.kind() == FailureKind::QueueFull, "{reason}");
            assert_eq!(TimeoutType::of(reason).is_some(), reason.kind() == FailureKind::Timeout, "{reason}");
            if let Some(timeout) = TimeoutType::of(reason) {
                assert_eq!(timeout.as_str(), reason.as_str());
            }
        }
    }
}
