//! Writing what the hub sends.
//!
//! Frames are appended to a byte buffer that the caller owns, so that one encoding can be framed once and shared
//! by every receiver. Nothing here allocates beyond that buffer.

use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{ErrorReply, Fate, MessageId, Priority};

/// Appends JSON pieces to a buffer.
///
/// It only escapes and formats; that the pieces form a document is the caller's business.
#[derive(Debug)]
pub struct JsonWriter<'b> {
    out: &'b mut Vec<u8>,
}

impl<'b> JsonWriter<'b> {
    /// Appends to `out`.
    pub fn new(out: &'b mut Vec<u8>) -> Self {
        Self { out }
    }

    /// Appends text that is JSON already.
    pub fn raw(&mut self, json: &str) -> &mut Self {
        self.out.extend_from_slice(json.as_bytes());
        self
    }

    /// Appends a JSON string.
    pub fn string(&mut self, text: &str) -> &mut Self {
        let plain = !text.bytes().any(|b| b < 0x20 || b == b'"' || b == b'\\');
        if plain {
            self.out.push(b'"');
            self.out.extend_from_slice(text.as_bytes());
            self.out.push(b'"');
        } else {
            self.value(text);
        }
        self
    }

    /// Appends an unsigned number.
    pub fn number(&mut self, number: u64) -> &mut Self {
        self.value(&number)
    }

    /// Appends a UUID as a string.
    pub fn uuid(&mut self, uuid: Uuid) -> &mut Self {
        let mut buffer = Uuid::encode_buffer();
        self.raw("\"").raw(uuid.hyphenated().encode_lower(&mut buffer)).raw("\"")
    }

    /// Appends any value that serde can write as JSON.
    ///
    /// # Panics
    ///
    /// Panics where the value cannot be JSON (a map with keys that are no text): types of this workspace can.
    pub fn value(&mut self, value: &(impl serde::Serialize + ?Sized)) -> &mut Self {
        serde_json::to_writer(&mut *self.out, value).expect("hub types serialise, and a Vec takes every byte");
        self
    }
}

/// What every delivery of one message has in common.
#[derive(Clone, Copy, Debug)]
pub struct Delivery<'a> {
    /// The message's id.
    pub id: Uuid,
    /// `room_message`, `direct_message`, `user_message`, `broadcast` or an application's type.
    pub message_type: &'a str,
    /// User id of the sender.
    pub sender_id: &'a str,
    /// The room, for a room message.
    pub room_id: Option<&'a str>,
    /// Set on the copy for the sender's other devices: the user that the message was for.
    pub echo_target: Option<&'a str>,
    /// The payload, written as it is.
    pub content: &'a RawValue,
    /// Time of acceptance, Unix milliseconds.
    pub timestamp: u64,
    /// Queue class.
    pub priority: Priority,
    /// Whether the receiver must acknowledge it.
    pub require_ack: bool,
    /// Which transmission it is, from 1; shown from 2 on.
    pub attempt: u32,
    /// Whether it rested in the inbox before the receiver connected: `"source":"offline"`.
    pub is_replay: bool,
}

impl<'a> Delivery<'a> {
    /// A plain message on its first way, of normal priority.
    pub fn new(id: Uuid, message_type: &'a str, sender_id: &'a str, content: &'a RawValue, timestamp: u64) -> Self {
        Self {
            id,
            message_type,
            sender_id,
            room_id: None,
            echo_target: None,
            content,
            timestamp,
            priority: Priority::Normal,
            require_ack: false,
            attempt: 1,
            is_replay: false,
        }
    }

    /// Appends the delivery's text.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut json = JsonWriter::new(out);
        json.raw("{\"id\":").uuid(self.id).raw(",\"message_type\":").string(self.message_type).raw(",\"data\":{");
        if let Some(room_id) = self.room_id {
            json.raw("\"room_id\":").string(room_id).raw(",");
        }
        json.raw("\"content\":").raw(self.content.get());
        json.raw(",\"sender_id\":").string(self.sender_id);
        if let Some(target) = self.echo_target {
            json.raw(",\"echo\":true,\"target_id\":").string(target);
        }
        json.raw(",\"timestamp\":").number(self.timestamp).raw("},\"timestamp\":").number(self.timestamp);
        if self.priority != Priority::Normal {
            json.raw(",\"priority\":").string(self.priority.as_str());
        }
        if self.require_ack {
            json.raw(",\"require_ack\":true");
        }
        if self.attempt > 1 {
            json.raw(",\"attempt\":").number(self.attempt.into());
        }
        if self.is_replay {
            json.raw(",\"source\":\"offline\"");
        }
        json.raw("}");
    }

    /// About how many bytes [`encode`](Self::encode) appends, to size a buffer.
    pub fn size_hint(&self) -> usize {
        192 + self.content.get().len()
            + self.sender_id.len()
            + self.message_type.len()
            + self.room_id.map_or(0, |r| r.len() + 16)
    }
}

/// Appends a reply or notice: `{"message_type",["request_id"],"data","timestamp"}`.
pub fn reply(
    out: &mut Vec<u8>,
    message_type: &str,
    request_id: Option<&MessageId<'_>>,
    timestamp: u64,
    data: impl FnOnce(&mut JsonWriter<'_>),
) {
    let mut json = JsonWriter::new(out);
    json.raw("{\"message_type\":").string(message_type);
    if let Some(id) = request_id {
        json.raw(",\"request_id\":").raw(id.as_json());
    }
    json.raw(",\"data\":");
    data(&mut json);
    json.raw(",\"timestamp\":").number(timestamp).raw("}");
}

/// Appends an `error` reply (protocol §2, *Errors*).
pub fn error(out: &mut Vec<u8>, error: &ErrorReply, request_id: Option<&MessageId<'_>>, timestamp: u64) {
    reply(out, "error", request_id, timestamp, |json| {
        json.raw("{\"code\":").number(error.code.code().into()).raw(",\"message\":").string(&error.message);
        json.raw(",\"temporary\":").value(&error.code.is_temporary());
        if let Some(id) = request_id {
            json.raw(",\"request_id\":").raw(id.as_json());
        }
        if let Some(details) = &error.details {
            json.raw(",\"details\":").value(details);
        }
        json.raw("}");
    });
}

/// Appends an `accepted` reply to a `room_message`.
pub fn accepted_room(
    out: &mut Vec<u8>,
    id: Uuid,
    recipients: u64,
    is_duplicate: bool,
    request_id: &MessageId<'_>,
    timestamp: u64,
) {
    reply(out, "accepted", Some(request_id), timestamp, |json| {
        json.raw("{\"id\":").uuid(id).raw(",\"recipients\":").number(recipients);
        json.raw(if is_duplicate { ",\"duplicate\":true}" } else { "}" });
    });
}

/// Appends an `accepted` reply to a `direct_message`.
pub fn accepted_direct(
    out: &mut Vec<u8>,
    id: Uuid,
    fate: Fate,
    is_duplicate: bool,
    request_id: &MessageId<'_>,
    timestamp: u64,
) {
    reply(out, "accepted", Some(request_id), timestamp, |json| {
        json.raw("{\"id\":").uuid(id).raw(",\"outcome\":").string(fate.outcome.as_str());
        if let Some(reason) = fate.reason {
            json.raw(",\"reason\":").string(reason.as_str());
        }
        json.raw(if is_duplicate { ",\"duplicate\":true}" } else { "}" });
    });
}

/// Appends a `gap` notice: `dropped` messages of together `bytes` bytes were dropped here since `since`, Unix
/// milliseconds (protocol §4, *Slow consumers*).
pub fn gap(out: &mut Vec<u8>, dropped: u64, bytes: u64, since: u64, timestamp: u64) {
    reply(out, "gap", None, timestamp, |json| {
        json.raw("{\"dropped\":").number(dropped).raw(",\"bytes\":").number(bytes);
        json.raw(",\"since\":").number(since).raw("}");
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Envelope, ErrorCode};

    fn text(encode: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        encode(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn deliveries_look_as_the_contract_shows_them() {
        let content: Box<RawValue> = serde_json::from_str(r#"{"n": 1.0e5, "u":"\u0041"}"#).unwrap();
        let delivery = Delivery {
            room_id: Some("r1"),
            ..Delivery::new(Uuid::from_u128(1), "room_message", "al\"ice", &content, 5)
        };
        assert_eq!(
            text(|out| delivery.encode(out)),
            "{\"id\":\"00000000-0000-0000-0000-000000000001\",\"message_type\":\"room_message\",\"data\":{\"room_id\":\"r1\",\
             \"content\":{\"n\": 1.0e5, \"u\":\"\\u0041\"},\"sender_id\":\"al\\\"ice\",\"timestamp\":5},\"timestamp\":5}"
        );
        let echo = Delivery { room_id: None, echo_target: Some("bob"), priority: Priority::Low, ..delivery };
        let value: serde_json::Value = serde_json::from_str(&text(|out| echo.encode(out))).unwrap();
        assert_eq!(value["data"]["echo"], true);
        assert_eq!(value["data"]["target_id"], "bob");
        assert_eq!(value["priority"], "low");
    }

    #[test]
    fn errors_carry_the_request_id_twice() {
        let frame = br#"{"message_type":"x","message_id":"7"}"#;
        let id = Envelope::decode(frame).unwrap().message_id.unwrap();
        let json = text(|out| error(out, &ErrorCode::RoomFull.into(), Some(&id), 9));
        assert_eq!(
            json,
            r#"{"message_type":"error","request_id":"7","data":{"code":3002,"message":"room is full","temporary":false,"request_id":"7"},"timestamp":9}"#
        );
    }
}
