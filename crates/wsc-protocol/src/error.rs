//! Error codes (protocol §2, *Errors*).

use serde::{Serialize, Serializer};

/// The number in an `error` reply and in the body of a refused HTTP request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u16)]
pub enum ErrorCode {
    /// Something failed that has no code of its own.
    Unknown = 1000,
    /// The frame or body is no valid request, or names an unknown message type.
    InvalidFormat = 1001,
    /// `message_id` is neither an integer nor a text of at most 128 bytes.
    InvalidMessageId = 1002,
    /// The server failed; trying again may help.
    ServerError = 1003,
    /// The server took too long; trying again may help.
    Timeout = 1004,
    /// Too many requests; `details.retry_after_ms` says when to try again.
    RateLimited = 1005,
    /// No credentials.
    Unauthorized = 2000,
    /// The permission is missing.
    Forbidden = 2001,
    /// The token is no longer valid.
    TokenExpired = 2002,
    /// The token is not valid.
    InvalidToken = 2003,
    /// There is no such room.
    RoomNotFound = 3000,
    /// A room of this id exists.
    RoomAlreadyExists = 3001,
    /// The room has as many members as it takes.
    RoomFull = 3002,
    /// The connection is not a member of the room.
    NotInRoom = 3003,
    /// The connection is a member already.
    AlreadyInRoom = 3004,
    /// The connection or the hub has as many rooms as allowed.
    TooManyRooms = 3005,
    /// The named client is no live connection of that user.
    ClientNotFound = 4000,
    /// The user has no connection and nothing is stored for it.
    UserOffline = 4001,
    /// The message is larger, or has more recipients, than allowed.
    TooLarge = 4002,
    /// A queue, an inbox or a waiting room is full; trying again may help.
    Full = 4003,
    /// The idempotency key was used for other content.
    IdempotencyConflict = 4004,
}

impl ErrorCode {
    /// The number on the wire.
    pub fn code(self) -> u16 {
        self as u16
    }

    /// The HTTP status that goes with the code.
    pub fn http_status(self) -> u16 {
        match self {
            Self::Unknown | Self::ServerError => 500,
            Self::InvalidFormat | Self::InvalidMessageId => 400,
            Self::Timeout => 504,
            Self::RateLimited => 429,
            Self::Unauthorized | Self::TokenExpired | Self::InvalidToken => 401,
            Self::Forbidden | Self::NotInRoom => 403,
            Self::RoomNotFound | Self::ClientNotFound | Self::UserOffline => 404,
            Self::RoomAlreadyExists
            | Self::RoomFull
            | Self::AlreadyInRoom
            | Self::TooManyRooms
            | Self::IdempotencyConflict => 409,
            Self::TooLarge => 413,
            Self::Full => 503,
        }
    }

    /// Whether the same request may succeed a moment later.
    pub fn is_temporary(self) -> bool {
        matches!(self, Self::ServerError | Self::Timeout | Self::RateLimited | Self::Full)
    }

    /// The message that is sent where there is nothing more exact to say.
    pub fn default_message(self) -> &'static str {
        match self {
            Self::Unknown => "unknown error",
            Self::InvalidFormat => "invalid format",
            Self::InvalidMessageId => "message_id must be an integer or a text of at most 128 bytes",
            Self::ServerError => "server error",
            Self::Timeout => "timeout",
            Self::RateLimited => "rate limited",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::TokenExpired => "token expired",
            Self::InvalidToken => "invalid token",
            Self::RoomNotFound => "room not found",
            Self::RoomAlreadyExists => "room already exists",
            Self::RoomFull => "room is full",
            Self::NotInRoom => "not in room",
            Self::AlreadyInRoom => "already in room",
            Self::TooManyRooms => "too many rooms",
            Self::ClientNotFound => "client not found",
            Self::UserOffline => "user is offline",
            Self::TooLarge => "message too large",
            Self::Full => "queue is full",
            Self::IdempotencyConflict => "idempotency key was used for other content",
        }
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u16(self.code())
    }
}

/// A refused request: what an `error` frame or an HTTP error body says.
#[derive(Clone, Debug, PartialEq, Serialize, thiserror::Error)]
#[error("{message} ({})", code.code())]
pub struct ErrorReply {
    /// The number.
    pub code: ErrorCode,
    /// What went wrong, for people.
    pub message: String,
    /// More for programs, such as `retry_after_ms` or `limit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<serde_json::Value>,
}

impl ErrorReply {
    /// An error with a message of its own.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: None }
    }

    /// Adds details for programs.
    #[must_use]
    pub fn with_details(mut self, details: serde_json::Value) -> Self {
        self.details = Some(details);
        self
    }
}

impl From<ErrorCode> for ErrorReply {
    fn from(code: ErrorCode) -> Self {
        Self::new(code, code.default_message())
    }
}
