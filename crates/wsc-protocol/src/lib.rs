//! The wire protocol of wsc-hub as plain data.
//!
//! This crate knows what travels: the JSON envelope, ids and their rules, error and close codes, outcomes,
//! failure kinds and reasons, and the names and payloads of events. It reads frames that clients send
//! ([`Envelope`]) and writes frames that the hub sends ([`encode`]).
//!
//! It deliberately does not know tokio, clocks, sockets or files: time and ids are arguments.
//!
//! ```
//! use wsc_protocol::Envelope;
//!
//! let frame = br#"{"message_type":"room_message","message_id":7,"data":{"room_id":"r1","content":1.0e5}}"#;
//! let envelope = Envelope::decode(frame).unwrap();
//! assert_eq!(envelope.message_type, "room_message");
//! assert_eq!(envelope.message_id.unwrap().as_json(), "7");
//! // The payload is kept as it was sent, byte for byte.
//! assert_eq!(envelope.data.unwrap().get(), r#"{"room_id":"r1","content":1.0e5}"#);
//! ```
//!
//! # Cargo features
//!
//! None.

mod close;
pub mod encode;
mod envelope;
mod error;
mod event;
mod failure;
mod id;
mod message;
mod outcome;
mod request;
mod trace;
mod user_type;

pub use close::{CloseCode, CloseReason};
pub use envelope::{DecodeError, Envelope, MAX_MESSAGE_ID_LEN, MAX_NESTING, MessageId, check_text};
pub use error::{ErrorCode, ErrorReply};
pub use event::{AckInfo, ClientInfo, DisconnectReason, Event, EventType, FailureInfo, MessageInfo};
pub use failure::{FailureKind, FailureReason, UnknownReason};
pub use id::{ClientId, Id, InvalidId, MAX_ID_LEN};
pub use message::{HubMessage, Priority};
pub use outcome::{Fate, Outcome};
pub use request::{DirectMessage, PingData, RoomMembersQuery, RoomMessage, RoomRequest, parse_data};
pub use trace::{InvalidTraceContext, TraceContext};
pub use user_type::{UnknownUserType, UserType};
