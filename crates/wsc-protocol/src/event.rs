//! What observers of the hub are told (protocol §4, *Events*).

use std::fmt;

use serde::Serialize;
use uuid::Uuid;

use crate::{ClientId, FailureReason, Id, UserType};

macro_rules! event_types {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// The fixed names of events.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum EventType { $($(#[$doc])* $variant,)* }

        impl EventType {
            /// Every event type, in declaration order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name, such as `client.connected`.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

event_types! {
    /// A connection was registered.
    ClientConnected = "client.connected",
    /// A registered connection is gone; exactly once each.
    ClientDisconnected = "client.disconnected",
    /// A connection took the place of an older one of its client id.
    ClientReconnected = "client.reconnected",
    /// A user has a first connection.
    UserOnline = "user.online",
    /// A user has no connection any more.
    UserOffline = "user.offline",
    /// A client's message was read.
    MessageReceived = "message.received",
    /// A message was accepted; once each.
    MessageSent = "message.sent",
    /// A message reached a recipient.
    MessageDelivered = "message.delivered",
    /// A message did not reach a recipient.
    MessageFailed = "message.failed",
    /// A receiver acknowledged.
    AckReceived = "ack.received",
    /// No acknowledgement came in time.
    AckTimeout = "ack.timeout",
    /// A message was sent again for want of an acknowledgement.
    AckRetry = "ack.retry",
    /// A failed send is tried again.
    RetryStarted = "retry.started",
    /// A send failed for good.
    FailureSend = "failure.send",
    /// A queue was full.
    FailureQueueFull = "failure.queue_full",
    /// A user was away.
    FailureUserOffline = "failure.user_offline",
    /// A connection failed.
    FailureConnection = "failure.connection",
    /// Something took too long.
    FailureTimeout = "failure.timeout",
    /// A room was made.
    RoomCreated = "room.created",
    /// A room was deleted, or went with its last member.
    RoomDeleted = "room.deleted",
    /// A connection joined a room.
    RoomJoined = "room.joined",
    /// A connection left a room.
    RoomLeft = "room.left",
    /// The hub accepts connections.
    HubStarted = "hub.started",
    /// The hub is down.
    HubStopped = "hub.stopped",
    /// New settings apply.
    ConfigChanged = "config.changed",
    /// New settings were refused.
    ConfigRejected = "config.rejected",
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
#[repr(u8)]
pub enum DisconnectReason {
    /// The client closed it in order.
    ClientRequest,
    /// Reading failed, or the peer vanished.
    ReadError,
    /// Writing failed.
    WriteError,
    /// The peer broke RFC 6455 or a size limit.
    ProtocolError,
    /// The peer was silent for too long.
    HeartbeatTimeout,
    /// The peer read too slowly for its queue.
    SlowConsumer,
    /// The peer took no bytes for too long.
    WriteTimeout,
    /// The peer sent far too much.
    RateLimited,
    /// The peer sent too many frames that are no requests.
    BadFrames,
    /// A newer connection of the same client id took its place.
    Replaced,
    /// An operator removed it.
    KickOut,
    /// The user has too many connections.
    ForceOffline,
    /// The token ran out.
    TokenExpired,
    /// The token was revoked.
    TokenRevoked,
    /// A permission was withdrawn.
    Permission,
    /// The hub shuts down.
    ServerShutdown,
}

impl DisconnectReason {
    /// Every reason, in declaration order: `ALL[r as usize] == r`.
    pub const ALL: [Self; 16] = [
        Self::ClientRequest,
        Self::ReadError,
        Self::WriteError,
        Self::ProtocolError,
        Self::HeartbeatTimeout,
        Self::SlowConsumer,
        Self::WriteTimeout,
        Self::RateLimited,
        Self::BadFrames,
        Self::Replaced,
        Self::KickOut,
        Self::ForceOffline,
        Self::TokenExpired,
        Self::TokenRevoked,
        Self::Permission,
        Self::ServerShutdown,
    ];

    /// The name in events and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClientRequest => "client_request",
            Self::ReadError => "read_error",
            Self::WriteError => "write_error",
            Self::ProtocolError => "protocol_error",
            Self::HeartbeatTimeout => "heartbeat_timeout",
            Self::SlowConsumer => "slow_consumer",
            Self::WriteTimeout => "write_timeout",
            Self::RateLimited => "rate_limited",
            Self::BadFrames => "bad_frames",
            Self::Replaced => "replaced",
            Self::KickOut => "kick_out",
            Self::ForceOffline => "force_offline",
            Self::TokenExpired => "token_expired",
            Self::TokenRevoked => "token_revoked",
            Self::Permission => "permission",
            Self::ServerShutdown => "server_shutdown",
        }
    }
}

impl fmt::Display for DisconnectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which connection an event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the terms of protocol §1")]
pub struct ClientInfo {
    pub user_id: Id,
    pub client_id: ClientId,
    pub session: Uuid,
    pub user_type: UserType,
    pub device_id: Option<String>,
}

/// Which message an event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageInfo {
    /// The message's id.
    pub id: Uuid,
    /// Its type.
    pub message_type: String,
    /// User id of its sender.
    pub sender_id: String,
    /// The room, for a room message.
    pub room_id: Option<String>,
    /// The user, for a user-addressed message.
    pub user_id: Option<String>,
}

/// One thing that happened, with what there is to know about it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// See [`EventType::ClientConnected`].
    ClientConnected(ClientInfo),
    /// See [`EventType::ClientDisconnected`].
    ClientDisconnected {
        /// The connection.
        client: ClientInfo,
        /// Why it ended.
        reason: DisconnectReason,
        /// How long it lived, in milliseconds.
        duration_ms: u64,
    },
    /// See [`EventType::ClientReconnected`].
    ClientReconnected {
        /// The new connection.
        client: ClientInfo,
        /// Session of the connection that it replaced.
        replaced: Uuid,
    },
    /// See [`EventType::UserOnline`].
    UserOnline {
        /// The user.
        user_id: Id,
    },
    /// See [`EventType::UserOffline`].
    UserOffline {
        /// The user.
        user_id: Id,
    },
    /// See [`EventType::MessageReceived`].
    MessageReceived {
        /// The connection it came from.
        client: ClientInfo,
        /// What it asks for.
        message_type: String,
    },
    /// See [`EventType::MessageSent`].
    MessageSent {
        /// The message.
        message: MessageInfo,
        /// How many recipients it was accepted for.
        recipients: u64,
    },
    /// See [`EventType::MessageDelivered`].
    MessageDelivered {
        /// The message.
        message: MessageInfo,
        /// How many recipients this event speaks of.
        recipients: u64,
    },
    /// See [`EventType::MessageFailed`].
    MessageFailed {
        /// The message.
        message: MessageInfo,
        /// Why.
        reason: FailureReason,
        /// How many recipients this event speaks of.
        recipients: u64,
    },
    /// See [`EventType::RoomCreated`].
    RoomCreated {
        /// The room.
        room_id: Id,
    },
    /// See [`EventType::RoomDeleted`].
    RoomDeleted {
        /// The room.
        room_id: Id,
    },
    /// See [`EventType::RoomJoined`].
    RoomJoined {
        /// The room.
        room_id: Id,
        /// The connection.
        client: ClientInfo,
    },
    /// See [`EventType::RoomLeft`].
    RoomLeft {
        /// The room.
        room_id: Id,
        /// The connection.
        client: ClientInfo,
    },
    /// See [`EventType::HubStarted`].
    HubStarted {
        /// The node's name.
        node_id: String,
    },
    /// See [`EventType::HubStopped`].
    HubStopped {
        /// The node's name.
        node_id: String,
    },
}

impl Event {
    /// The event's name.
    pub fn event_type(&self) -> EventType {
        match self {
            Self::ClientConnected(_) => EventType::ClientConnected,
            Self::ClientDisconnected { .. } => EventType::ClientDisconnected,
            Self::ClientReconnected { .. } => EventType::ClientReconnected,
            Self::UserOnline { .. } => EventType::UserOnline,
            Self::UserOffline { .. } => EventType::UserOffline,
            Self::MessageReceived { .. } => EventType::MessageReceived,
            Self::MessageSent { .. } => EventType::MessageSent,
            Self::MessageDelivered { .. } => EventType::MessageDelivered,
            Self::MessageFailed { .. } => EventType::MessageFailed,
            Self::RoomCreated { .. } => EventType::RoomCreated,
            Self::RoomDeleted { .. } => EventType::RoomDeleted,
            Self::RoomJoined { .. } => EventType::RoomJoined,
            Self::RoomLeft { .. } => EventType::RoomLeft,
            Self::HubStarted { .. } => EventType::HubStarted,
            Self::HubStopped { .. } => EventType::HubStopped,
        }
    }
}
