//! A message as programs and handlers see it.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

/// Which queue class a user-addressed message takes. Room messages and broadcasts are always normal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Before normal ones; only for holders of `admin:system` and programs.
    High,
    /// The default.
    #[default]
    Normal,
    /// After normal ones.
    Low,
}

impl Priority {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }
}

/// One message, with the identity, the time and the id that the hub gave it.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct HubMessage {
    /// Unique id (UUIDv7), equal for all recipients and attempts.
    pub id: Uuid,
    /// `room_message`, `direct_message`, `user_message`, `broadcast` or an application's own type.
    pub message_type: String,
    /// User id of the sender; `system` for a program without one.
    pub sender_id: String,
    /// The room it was sent to, when it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_id: Option<String>,
    /// The payload, byte for byte as it was sent.
    pub content: Box<RawValue>,
    /// Time of acceptance, Unix milliseconds.
    pub timestamp: u64,
    /// Whether the receiver must acknowledge it.
    pub require_ack: bool,
    /// Its queue class.
    pub priority: Priority,
}

impl HubMessage {
    /// A plain message of normal priority.
    pub fn new(id: Uuid, message_type: &str, sender_id: &str, content: &RawValue, timestamp: u64) -> Self {
        Self {
            id,
            message_type: message_type.into(),
            sender_id: sender_id.into(),
            room_id: None,
            content: content.to_owned(),
            timestamp,
            require_ack: false,
            priority: Priority::Normal,
        }
    }
}
