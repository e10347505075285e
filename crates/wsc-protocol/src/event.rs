//! What observers of the hub are told (protocol §4, *Events*).

use std::{borrow::Cow, fmt};

use serde::{Serialize, Serializer};
use uuid::Uuid;

use crate::{ClientId, FailureKind, FailureReason, Id, UserType};

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

impl EventType {
    /// The event that a failure of this kind causes.
    pub fn of_failure(kind: FailureKind) -> Self {
        match kind {
            FailureKind::QueueFull => Self::FailureQueueFull,
            FailureKind::UserOffline => Self::FailureUserOffline,
            FailureKind::ConnectionError => Self::FailureConnection,
            FailureKind::Timeout => Self::FailureTimeout,
            FailureKind::Other => Self::FailureSend,
        }
    }
}

impl Serialize for EventType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
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

/// Which connection an event is about. It names nobody's token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the fields are the terms of protocol §1")]
pub struct ClientInfo {
    #[serde(serialize_with = "as_text")]
    pub user_id: Id,
    #[serde(serialize_with = "as_text")]
    pub client_id: ClientId,
    pub session: Uuid,
    pub user_type: UserType,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
}

/// Which message an event is about. Payloads are no part of events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MessageInfo {
    /// The message's id.
    #[serde(rename = "message_id")]
    pub id: Uuid,
    /// Its type.
    pub message_type: String,
    /// User id of its sender.
    pub sender_id: String,
    /// The room, for a room message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_id: Option<String>,
    /// The user, for a user-addressed message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
}

/// Which transmission of a reliable message an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AckInfo {
    /// The message.
    pub message_id: Uuid,
    /// The user it is for.
    #[serde(serialize_with = "as_text")]
    pub user_id: Id,
    /// The transmission, counted from 1.
    pub attempt: u32,
}

/// One message that did not reach one recipient, for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FailureInfo {
    /// The message.
    pub message_id: Uuid,
    /// Its type.
    pub message_type: String,
    /// User id of its sender.
    pub sender_id: String,
    /// The room, for a room message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_id: Option<String>,
    /// The user it was for.
    #[serde(serialize_with = "as_text")]
    pub user_id: Id,
    /// The connection it was for, where it was for one.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_optional_text")]
    pub client_id: Option<ClientId>,
    /// What kind of user the recipient is, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_type: Option<UserType>,
    /// Why. It also says which of the `failure.*` events this is.
    pub reason: FailureReason,
    /// What went wrong, for people.
    pub error: Cow<'static, str>,
    /// How often the send was tried again.
    pub retries: u32,
    /// From acceptance to failure, in milliseconds; for a timeout, how long was waited.
    pub duration_ms: u64,
}

/// One thing that happened, with what there is to know about it.
///
/// As JSON it is `{"type":"ack.received","data":{…}}`, with the fields of connections and messages directly in `data`.
/// No event carries a token, a secret or a payload.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", content = "data")]
#[non_exhaustive]
pub enum Event {
    /// See [`EventType::ClientConnected`].
    #[serde(rename = "client.connected")]
    ClientConnected(ClientInfo),
    /// See [`EventType::ClientDisconnected`].
    #[serde(rename = "client.disconnected")]
    ClientDisconnected {
        /// The connection.
        #[serde(flatten)]
        client: ClientInfo,
        /// Why it ended.
        reason: DisconnectReason,
        /// How long it lived, in milliseconds.
        duration_ms: u64,
    },
    /// See [`EventType::ClientReconnected`].
    #[serde(rename = "client.reconnected")]
    ClientReconnected {
        /// The new connection.
        #[serde(flatten)]
        client: ClientInfo,
        /// Session of the connection that it replaced.
        replaced: Uuid,
    },
    /// See [`EventType::UserOnline`].
    #[serde(rename = "user.online")]
    UserOnline {
        /// The user.
        #[serde(serialize_with = "as_text")]
        user_id: Id,
    },
    /// See [`EventType::UserOffline`].
    #[serde(rename = "user.offline")]
    UserOffline {
        /// The user.
        #[serde(serialize_with = "as_text")]
        user_id: Id,
    },
    /// See [`EventType::MessageReceived`].
    #[serde(rename = "message.received")]
    MessageReceived {
        /// The connection it came from.
        #[serde(flatten)]
        client: ClientInfo,
        /// What it asks for.
        message_type: String,
    },
    /// See [`EventType::MessageSent`].
    #[serde(rename = "message.sent")]
    MessageSent {
        /// The message.
        #[serde(flatten)]
        message: MessageInfo,
        /// How many recipients it was accepted for.
        recipients: u64,
    },
    /// See [`EventType::MessageDelivered`].
    #[serde(rename = "message.delivered")]
    MessageDelivered {
        /// The message.
        #[serde(flatten)]
        message: MessageInfo,
        /// How many recipients this event speaks of.
        recipients: u64,
    },
    /// See [`EventType::MessageFailed`].
    #[serde(rename = "message.failed")]
    MessageFailed {
        /// The message.
        #[serde(flatten)]
        message: MessageInfo,
        /// Why.
        reason: FailureReason,
        /// How many recipients this event speaks of.
        recipients: u64,
    },
    /// See [`EventType::AckReceived`]. A refusal (`nack`) is a [`MessageFailed`](Self::MessageFailed) instead.
    #[serde(rename = "ack.received")]
    AckReceived {
        /// The last transmission before it.
        #[serde(flatten)]
        ack: AckInfo,
        /// The connection that acknowledged, where it is known.
        #[serde(skip_serializing_if = "Option::is_none")]
        session: Option<Uuid>,
        /// From acceptance to the acknowledgement, in milliseconds.
        latency_ms: u64,
    },
    /// See [`EventType::AckTimeout`].
    #[serde(rename = "ack.timeout")]
    AckTimeout {
        /// The transmission that was not acknowledged.
        #[serde(flatten)]
        ack: AckInfo,
        /// How long was waited, in milliseconds.
        waited_ms: u64,
    },
    /// See [`EventType::AckRetry`].
    #[serde(rename = "ack.retry")]
    AckRetry {
        /// The new transmission: its attempt is 2 or more.
        #[serde(flatten)]
        ack: AckInfo,
    },
    /// See [`EventType::RetryStarted`].
    #[serde(rename = "retry.started")]
    RetryStarted {
        /// The message.
        message_id: Uuid,
        /// The user it is for.
        #[serde(serialize_with = "as_text")]
        user_id: Id,
        /// Why the attempt before failed.
        reason: FailureReason,
        /// The attempt that follows: 2 or more.
        attempt: u32,
        /// How long is waited before it, in milliseconds.
        delay_ms: u64,
    },
    /// See [`EventType::FailureSend`].
    #[serde(rename = "failure.send")]
    FailureSend(FailureInfo),
    /// See [`EventType::FailureQueueFull`].
    #[serde(rename = "failure.queue_full")]
    FailureQueueFull(FailureInfo),
    /// See [`EventType::FailureUserOffline`].
    #[serde(rename = "failure.user_offline")]
    FailureUserOffline(FailureInfo),
    /// See [`EventType::FailureConnection`].
    #[serde(rename = "failure.connection")]
    FailureConnection(FailureInfo),
    /// See [`EventType::FailureTimeout`].
    #[serde(rename = "failure.timeout")]
    FailureTimeout(FailureInfo),
    /// See [`EventType::RoomCreated`].
    #[serde(rename = "room.created")]
    RoomCreated {
        /// The room.
        #[serde(serialize_with = "as_text")]
        room_id: Id,
    },
    /// See [`EventType::RoomDeleted`].
    #[serde(rename = "room.deleted")]
    RoomDeleted {
        /// The room.
        #[serde(serialize_with = "as_text")]
        room_id: Id,
    },
    /// See [`EventType::RoomJoined`].
    #[serde(rename = "room.joined")]
    RoomJoined {
        /// The room.
        #[serde(serialize_with = "as_text")]
        room_id: Id,
        /// The connection.
        #[serde(flatten)]
        client: ClientInfo,
    },
    /// See [`EventType::RoomLeft`].
    #[serde(rename = "room.left")]
    RoomLeft {
        /// The room.
        #[serde(serialize_with = "as_text")]
        room_id: Id,
        /// The connection.
        #[serde(flatten)]
        client: ClientInfo,
    },
    /// See [`EventType::HubStarted`].
    #[serde(rename = "hub.started")]
    HubStarted {
        /// The node's name.
        node_id: String,
    },
    /// See [`EventType::HubStopped`].
    #[serde(rename = "hub.stopped")]
    HubStopped {
        /// The node's name.
        node_id: String,
    },
    /// See [`EventType::ConfigChanged`].
    #[serde(rename = "config.changed")]
    ConfigChanged {
        /// Paths of the keys that apply from now on; never their values.
        applied: Vec<String>,
        /// Paths of the keys that wait for a restart.
        pending_restart: Vec<String>,
    },
    /// See [`EventType::ConfigRejected`].
    #[serde(rename = "config.rejected")]
    ConfigRejected {
        /// What is wrong with them, for people.
        error: String,
    },
}

impl Event {
    /// The failure event of the reason's kind.
    pub fn failure(info: FailureInfo) -> Self {
        match info.reason.kind() {
            FailureKind::QueueFull => Self::FailureQueueFull(info),
            FailureKind::UserOffline => Self::FailureUserOffline(info),
            FailureKind::ConnectionError => Self::FailureConnection(info),
            FailureKind::Timeout => Self::FailureTimeout(info),
            FailureKind::Other => Self::FailureSend(info),
        }
    }

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
            Self::AckReceived { .. } => EventType::AckReceived,
            Self::AckTimeout { .. } => EventType::AckTimeout,
            Self::AckRetry { .. } => EventType::AckRetry,
            Self::RetryStarted { .. } => EventType::RetryStarted,
            Self::FailureSend(_) => EventType::FailureSend,
            Self::FailureQueueFull(_) => EventType::FailureQueueFull,
            Self::FailureUserOffline(_) => EventType::FailureUserOffline,
            Self::FailureConnection(_) => EventType::FailureConnection,
            Self::FailureTimeout(_) => EventType::FailureTimeout,
            Self::RoomCreated { .. } => EventType::RoomCreated,
            Self::RoomDeleted { .. } => EventType::RoomDeleted,
            Self::RoomJoined { .. } => EventType::RoomJoined,
            Self::RoomLeft { .. } => EventType::RoomLeft,
            Self::HubStarted { .. } => EventType::HubStarted,
            Self::HubStopped { .. } => EventType::HubStopped,
            Self::ConfigChanged { .. } => EventType::ConfigChanged,
            Self::ConfigRejected { .. } => EventType::ConfigRejected,
        }
    }

    /// The connection it is about, where it is about one.
    pub fn client(&self) -> Option<&ClientInfo> {
        match self {
            Self::ClientConnected(client)
            | Self::ClientDisconnected { client, .. }
            | Self::ClientReconnected { client, .. }
            | Self::MessageReceived { client, .. }
            | Self::RoomJoined { client, .. }
            | Self::RoomLeft { client, .. } => Some(client),
            _ => None,
        }
    }

    /// The session of the connection that it is about, where it is about one.
    pub fn session(&self) -> Option<Uuid> {
        match self {
            Self::AckReceived { session, .. } => *session,
            other => other.client().map(|client| client.session),
        }
    }

    /// The user that it is about: whose connection it is, or whom the message is for.
    pub fn user_id(&self) -> Option<&str> {
        match self {
            Self::UserOnline { user_id } | Self::UserOffline { user_id } | Self::RetryStarted { user_id, .. } => {
                Some(user_id.as_str())
            }
            Self::MessageSent { message, .. }
            | Self::MessageDelivered { message, .. }
            | Self::MessageFailed { message, .. } => message.user_id.as_deref(),
            Self::AckReceived { ack, .. } | Self::AckTimeout { ack, .. } | Self::AckRetry { ack, .. } => {
                Some(ack.user_id.as_str())
            }
            Self::FailureSend(failure)
            | Self::FailureQueueFull(failure)
            | Self::FailureUserOffline(failure)
            | Self::FailureConnection(failure)
            | Self::FailureTimeout(failure) => Some(failure.user_id.as_str()),
            other => other.client().map(|client| client.user_id.as_str()),
        }
    }

    /// The message that it is about, where it is about one.
    pub fn message_id(&self) -> Option<Uuid> {
        match self {
            Self::MessageSent { message, .. }
            | Self::MessageDelivered { message, .. }
            | Self::MessageFailed { message, .. } => Some(message.id),
            Self::AckReceived { ack, .. } | Self::AckTimeout { ack, .. } | Self::AckRetry { ack, .. } => {
                Some(ack.message_id)
            }
            Self::RetryStarted { message_id, .. } => Some(*message_id),
            Self::FailureSend(failure)
            | Self::FailureQueueFull(failure)
            | Self::FailureUserOffline(failure)
            | Self::FailureConnection(failure)
            | Self::FailureTimeout(failure) => Some(failure.message_id),
            _ => None,
        }
    }
}

fn as_text<T: fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn as_optional_text<T: fmt::Display, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn id(text: &str) -> Id {
        Id::new(text).unwrap()
    }

    fn client() -> ClientInfo {
        ClientInfo {
            user_id: id("alice"),
            client_id: ClientId::given("tab-1").unwrap(),
            session: Uuid::from_u128(1),
            user_type: UserType::Agent,
            device_id: None,
        }
    }

    fn message() -> MessageInfo {
        MessageInfo {
            id: Uuid::from_u128(2),
            message_type: "direct_message".to_owned(),
            sender_id: "bob".to_owned(),
            room_id: None,
            user_id: Some("alice".to_owned()),
        }
    }

    fn ack() -> AckInfo {
        AckInfo { message_id: Uuid::from_u128(2), user_id: id("alice"), attempt: 3 }
    }

    fn failure(reason: FailureReason) -> FailureInfo {
        FailureInfo {
            message_id: Uuid::from_u128(2),
            message_type: "direct_message".to_owned(),
            sender_id: "bob".to_owned(),
            room_id: None,
            user_id: id("alice"),
            client_id: None,
            user_type: Some(UserType::Vip),
            reason,
            error: "no room".into(),
            retries: 3,
            duration_ms: 700,
        }
    }

    /// One event of every type, in declaration order.
    fn every_event() -> Vec<Event> {
        let room_id = || id("lobby");
        vec![
            Event::ClientConnected(client()),
            Event::ClientDisconnected { client: client(), reason: DisconnectReason::KickOut, duration_ms: 5 },
            Event::ClientReconnected { client: client(), replaced: Uuid::from_u128(9) },
            Event::UserOnline { user_id: id("alice") },
            Event::UserOffline { user_id: id("alice") },
            Event::MessageReceived { client: client(), message_type: "ping".to_owned() },
            Event::MessageSent { message: message(), recipients: 1 },
            Event::MessageDelivered { message: message(), recipients: 1 },
            Event::MessageFailed { message: message(), reason: FailureReason::Rejected, recipients: 1 },
            Event::AckReceived { ack: ack(), session: Some(Uuid::from_u128(1)), latency_ms: 8 },
            Event::AckTimeout { ack: ack(), waited_ms: 5000 },
            Event::AckRetry { ack: ack() },
            Event::RetryStarted {
                message_id: Uuid::from_u128(2),
                user_id: id("alice"),
                reason: FailureReason::QueueFull,
                attempt: 2,
                delay_ms: 100,
            },
            Event::failure(failure(FailureReason::Permission)),
            Event::failure(failure(FailureReason::QueueFull)),
            Event::failure(failure(FailureReason::UserOffline)),
            Event::failure(failure(FailureReason::ConnClosed)),
            Event::failure(failure(FailureReason::AckTimeout)),
            Event::RoomCreated { room_id: room_id() },
            Event::RoomDeleted { room_id: room_id() },
            Event::RoomJoined { room_id: room_id(), client: client() },
            Event::RoomLeft { room_id: room_id(), client: client() },
            Event::HubStarted { node_id: "n1".to_owned() },
            Event::HubStopped { node_id: "n1".to_owned() },
            Event::ConfigChanged { applied: vec!["ack_timeout".to_owned()], pending_restart: vec![] },
            Event::ConfigRejected { error: "ack_timeout: is no duration".to_owned() },
        ]
    }

    #[test]
    fn every_type_has_an_event_that_names_it_in_json() {
        let events = every_event();
        assert_eq!(events.iter().map(Event::event_type).collect::<Vec<_>>(), EventType::ALL);
        for event in events {
            let json = serde_json::to_value(&event).unwrap();
            assert_eq!(json["type"], event.event_type().as_str());
            assert!(json["data"].is_object(), "{json}");
            assert_eq!(json.as_object().unwrap().len(), 2, "{json}");
            // What the accessors find is what a subscriber reads in the JSON.
            let text = |field: &str| json["data"][field].as_str().map(str::to_owned);
            assert_eq!(text("user_id").as_deref(), event.user_id(), "{json}");
            assert_eq!(text("session"), event.session().map(|s| s.to_string()), "{json}");
            assert_eq!(text("message_id"), event.message_id().map(|m| m.to_string()), "{json}");
        }
    }

    #[test]
    fn payloads_are_flat() {
        let event = Event::ClientDisconnected { client: client(), reason: DisconnectReason::ReadError, duration_ms: 5 };
        assert_eq!(
            serde_json::to_value(&event).unwrap(),
            json!({"type": "client.disconnected", "data": {
                "user_id": "alice", "client_id": "tab-1", "session": Uuid::from_u128(1), "user_type": "agent",
                "reason": "read_error", "duration_ms": 5,
            }})
        );
        assert_eq!(
            serde_json::to_value(Event::failure(failure(FailureReason::QueueFull))).unwrap(),
            json!({"type": "failure.queue_full", "data": {
                "message_id": Uuid::from_u128(2), "message_type": "direct_message", "sender_id": "bob",
                "user_id": "alice", "user_type": "vip", "reason": "queue_full", "error": "no room",
                "retries": 3, "duration_ms": 700,
            }})
        );
        assert_eq!(
            serde_json::to_value(Event::AckTimeout { ack: ack(), waited_ms: 5000 }).unwrap(),
            json!({"type": "ack.timeout", "data": {
                "message_id": Uuid::from_u128(2), "user_id": "alice", "attempt": 3, "waited_ms": 5000,
            }})
        );
    }

    #[test]
    fn a_failure_is_of_its_reasons_kind() {
        for reason in FailureReason::ALL {
            assert_eq!(Event::failure(failure(reason)).event_type(), EventType::of_failure(reason.kind()), "{reason}");
        }
    }
}
