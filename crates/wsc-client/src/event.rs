//! What the client tells its application.

use std::{borrow::Cow, fmt, time::Duration};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use wsc_protocol::Priority;

use crate::{Cause, HubError, reply::MessageStatus};

/// Something that happened, in the order in which it did.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A connection stands. Rooms are joined again behind it.
    Connected(Connected),
    /// A message.
    Delivery(Delivery),
    /// A room changed without a request of this client.
    Room(RoomNotice),
    /// Deliveries were dropped here because this client did not read fast enough.
    Gap(Gap),
    /// The connection is about to be closed because somebody kicked it.
    KickOut {
        /// Why, for people.
        reason: String,
    },
    /// The connection is about to be closed because a newer one of the same user takes its place.
    ForceOffline {
        /// Why, for people.
        reason: String,
    },
    /// The token runs out. [`Client::authenticate`](crate::Client::authenticate) renews it; without that the hub
    /// closes after a grace period, and the client connects again with a new token of its provider.
    TokenExpiring {
        /// When, Unix milliseconds.
        expires_at: u64,
    },
    /// What became of a message that was sent with [`receipt`](crate::Request::receipt).
    Outcome(MessageStatus),
    /// The hub refused something to which no request waits for a reply, such as a
    /// [notification](crate::Client::notify).
    Error(HubError),
    /// A message without an id, of a type that this client does not know.
    Other(Other),
    /// A frame came that cannot be read, a message perhaps: nothing else tells of it.
    Unreadable {
        /// Bytes of the frame.
        len: usize,
    },
    /// The connection ended, or an attempt to connect failed; the next attempt comes.
    Disconnected {
        /// Why.
        cause: Cause,
        /// How long until the next attempt.
        retry_in: Duration,
        /// Failures in a row, this one included; starts at 1 again after a stable connection.
        failures: u32,
    },
    /// The end: no further attempt is made, and this is the last event.
    Closed {
        /// Why.
        cause: Cause,
    },
}

/// Who the hub says this connection is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Connected {
    /// The hub-wide unique id of this connection; a new one after each reconnection.
    pub session: String,
    /// The user.
    pub user_id: String,
    /// The name of this connection within its user.
    pub client_id: String,
    /// The node that serves it.
    #[serde(default)]
    pub node_id: String,
    /// How often the hub pings, milliseconds.
    #[serde(default)]
    pub ping_interval_ms: Option<u64>,
    /// When the token runs out, Unix milliseconds.
    #[serde(default)]
    pub expires_at: Option<u64>,
    /// Whether this client was connected before.
    #[serde(skip)]
    pub reconnected: bool,
}

/// A message for this client.
#[derive(Clone)]
#[non_exhaustive]
pub struct Delivery {
    /// Its unique id, equal for all recipients and all attempts.
    pub id: String,
    /// How it was addressed.
    pub kind: DeliveryKind,
    /// User id of the sender; `system` for a program without one.
    pub sender_id: String,
    /// The payload, byte for byte as it was sent; see [`Delivery::content`].
    pub content: Box<RawValue>,
    /// Time of acceptance, Unix milliseconds.
    pub timestamp: u64,
    /// Whether the hub waits for an [`ack`](crate::Client::ack).
    pub require_ack: bool,
    /// 1, or more on a retransmission.
    pub attempt: u32,
    /// Whether it rested in the inbox while the user was away.
    pub offline: bool,
    /// Its queue class.
    pub priority: Priority,
}

/// How a message was addressed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeliveryKind {
    /// To a room that this connection is in.
    Room {
        /// The room.
        room_id: String,
    },
    /// To this user, by another.
    Direct,
    /// By another connection of this user to somebody else: the copy for the sender's devices.
    Echo {
        /// Whom it was for.
        target_id: String,
    },
    /// To this user, by a program.
    User,
    /// To everybody.
    Broadcast,
    /// To this user, by a program and with a type of its own.
    Custom {
        /// The type.
        message_type: String,
    },
}

impl Delivery {
    /// Reads the payload as a `T`.
    ///
    /// # Errors
    ///
    /// Where it is none.
    pub fn content<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.content.get())
    }

    /// The room, where it was sent to one.
    pub fn room_id(&self) -> Option<&str> {
        match &self.kind {
            DeliveryKind::Room { room_id } => Some(room_id),
            _ => None,
        }
    }

    /// The type on the wire.
    pub fn message_type(&self) -> &str {
        match &self.kind {
            DeliveryKind::Room { .. } => "room_message",
            DeliveryKind::Direct | DeliveryKind::Echo { .. } => "direct_message",
            DeliveryKind::User => "user_message",
            DeliveryKind::Broadcast => "broadcast",
            DeliveryKind::Custom { message_type } => message_type,
        }
    }
}

impl fmt::Debug for Delivery {
    /// Shows no payload: what people write to each other has no place in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("id", &self.id)
            .field("kind", &self.kind)
            .field("sender_id", &self.sender_id)
            .field("content_len", &self.content.get().len())
            .field("timestamp", &self.timestamp)
            .field("require_ack", &self.require_ack)
            .field("attempt", &self.attempt)
            .field("offline", &self.offline)
            .field("priority", &self.priority)
            .finish()
    }
}

/// What happened to a room without a request of this client.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RoomNotice {
    /// A program added this connection. Such a room is not joined again after a reconnection: that is the program's
    /// business.
    Added {
        /// The room.
        room_id: String,
    },
    /// This connection was removed.
    Removed {
        /// The room.
        room_id: String,
        /// Why, for people.
        reason: String,
    },
    /// The room is gone.
    Deleted {
        /// The room.
        room_id: String,
    },
    /// Joined again after a reconnection: from here on its messages come.
    Rejoined {
        /// The room.
        room_id: String,
    },
    /// Not joined again after a reconnection, and not tried any more.
    RejoinFailed {
        /// The room.
        room_id: String,
        /// What the hub said.
        error: HubError,
    },
}

/// Deliveries that were dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Gap {
    /// How many.
    pub dropped: u64,
    /// Bytes in all.
    #[serde(default)]
    pub bytes: u64,
    /// Since when, Unix milliseconds.
    #[serde(default)]
    pub since: u64,
}

/// A message without an id, of a type that this client does not know.
#[derive(Clone)]
#[non_exhaustive]
pub struct Other {
    /// Its type.
    pub message_type: String,
    /// Its data; `null` where it has none.
    pub data: Box<RawValue>,
}

impl fmt::Debug for Other {
    /// Shows no data, as for a [`Delivery`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Other")
            .field("message_type", &self.message_type)
            .field("data_len", &self.data.get().len())
            .finish()
    }
}

/// What a `data` of a delivery holds.
#[derive(Deserialize)]
pub(crate) struct DeliveryData<'a> {
    #[serde(borrow, default)]
    pub(crate) room_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(crate) content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(crate) sender_id: Cow<'a, str>,
    #[serde(default)]
    pub(crate) timestamp: Option<u64>,
    #[serde(default)]
    pub(crate) echo: bool,
    #[serde(borrow, default)]
    pub(crate) target_id: Option<Cow<'a, str>>,
}
