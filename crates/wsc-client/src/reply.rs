//! What the hub answers.

use std::{fmt, time::Duration};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use wsc_protocol::{FailureReason, Outcome};

/// Any reply, unread.
#[derive(Clone)]
#[non_exhaustive]
pub struct Reply {
    /// Its type.
    pub message_type: String,
    /// Its data; `null` where it has none.
    pub data: Box<RawValue>,
}

impl Reply {
    /// Reads the data as a `T`.
    ///
    /// # Errors
    ///
    /// Where it is none.
    pub fn data<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.data.get())
    }
}

impl fmt::Debug for Reply {
    /// Shows no data: it may be anything.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply")
            .field("message_type", &self.message_type)
            .field("data_len", &self.data.get().len())
            .finish()
    }
}

/// A room message was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct RoomAccepted {
    /// The message's id.
    pub id: String,
    /// Member connections that it is for, other than the sending one.
    pub recipients: u64,
    /// Whether the same message under the same idempotency key was accepted before: nothing was sent now. Also where
    /// this client repeated the message by itself, see [`Request::require_ack`](crate::Request::require_ack).
    #[serde(default)]
    pub duplicate: bool,
}

/// A direct message was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct DirectAccepted {
    /// The message's id.
    pub id: String,
    /// Where it stood when the hub answered: `pending` or `stored` where an acknowledgement is asked for, which
    /// [`Event::Outcome`](crate::Event::Outcome) and [`Client::message_status`](crate::Client::message_status) tell
    /// more about later.
    pub outcome: Outcome,
    /// Why, when it failed; see [`failure`](Self::failure).
    #[serde(default)]
    pub reason: Option<String>,
    /// Whether the same message under the same idempotency key was accepted before: nothing was sent now. Also where
    /// this client repeated the message by itself, see [`Request::require_ack`](crate::Request::require_ack).
    #[serde(default)]
    pub duplicate: bool,
}

impl DirectAccepted {
    /// The [`reason`](Self::reason), as far as it is one that the hub gives; a receiver that refuses says what it likes.
    pub fn failure(&self) -> Option<FailureReason> {
        self.reason.as_deref()?.parse().ok()
    }
}

/// The members of a room, or a part of them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Members {
    /// The room.
    pub room_id: String,
    /// This part of the list.
    pub members: Vec<Member>,
    /// Members in all.
    pub total: u64,
    /// Where the next part starts; `None` at the end.
    #[serde(default)]
    pub next_cursor: Option<String>,
}

/// A member of a room.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Member {
    /// The user.
    pub user_id: String,
    /// The connection, for those who may see it.
    #[serde(default)]
    pub client_id: Option<String>,
}

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct MessageStatus {
    /// The message's id.
    pub id: String,
    /// Its recipients.
    pub recipients: Vec<RecipientStatus>,
}

impl MessageStatus {
    /// What became of it for this user.
    pub fn of(&self, user_id: &str) -> Option<&RecipientStatus> {
        self.recipients.iter().find(|recipient| recipient.user_id == user_id)
    }

    /// Whether nothing can change it any more, for anybody.
    pub fn is_final(&self) -> bool {
        self.recipients.iter().all(|recipient| recipient.outcome.is_final())
    }
}

/// What became of a message for one recipient.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct RecipientStatus {
    /// The recipient.
    pub user_id: String,
    /// Where it stands.
    pub outcome: Outcome,
    /// Why, when it failed; see [`failure`](Self::failure). When it was rejected, what the receiver said.
    #[serde(default)]
    pub reason: Option<String>,
    /// How often it was sent.
    #[serde(default)]
    pub attempts: u32,
}

impl RecipientStatus {
    /// The [`reason`](Self::reason), as far as it is one that the hub gives; a receiver that refuses says what it likes.
    pub fn failure(&self) -> Option<FailureReason> {
        self.reason.as_deref()?.parse().ok()
    }
}

/// The token was taken.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Authenticated {
    /// The user.
    pub user_id: String,
    /// What this connection may do now.
    #[serde(default)]
    pub permissions: Vec<String>,
    /// When the token runs out, Unix milliseconds.
    #[serde(default)]
    pub expires_at: Option<u64>,
}

/// The answer to a `ping`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Pong {
    /// The hub's clock, Unix milliseconds.
    pub server_ts: i64,
    /// How long the round trip took, by this machine's clock.
    #[serde(skip)]
    pub round_trip: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{connect::Connector, connect::Dial, event::Other, outbox::Command, token::TokenSource};

    #[test]
    fn a_log_shows_neither_what_people_say_nor_their_secrets() {
        let data = || serde_json::value::to_raw_value("sesame").unwrap();
        let mut headers = http::HeaderMap::new();
        headers.insert("x-api-key", http::HeaderValue::from_static("sesame"));
        let connector = Connector {
            uri: http::Uri::from_static("ws://h/ws?key=sesame"),
            headers,
            token: TokenSource::Fixed("sesame".into()),
            dial: Dial::tcp("h:1".into()),
            timeout: Duration::ZERO,
            max_message_size: 0,
            max_request_size: 0,
        };
        let shown = format!(
            "{:?} {:?} {:?} {:?} {:?}",
            Reply { message_type: "t".into(), data: data() },
            Other { message_type: "t".into(), data: data() },
            Command::Request { id: 1, frame: "sesame".into(), leaves: None, repeatable: true },
            Command::Send { frame: "sesame".into() },
            connector,
        );
        assert!(!shown.contains("sesame"), "{shown}");
    }
}
