//! The envelope against serde_json: what is accepted, with which values, and what is not; and the replies to it.

use std::fmt::Debug;

use serde_json::{Value, value::RawValue};
use uuid::Uuid;
use wsc_protocol::{
    DirectMessage, Envelope, ErrorCode, ErrorReply, FailureReason, Fate, Id, MAX_ID_LEN, MAX_MESSAGE_ID_LEN,
    MAX_NESTING, PingData, Priority, RoomMembersQuery, RoomMessage, RoomRequest, check_text,
    encode::{self, Delivery},
    parse_data,
};

use crate::json::{Members, depth};

/// Checks one frame.
pub fn check(frame: &[u8]) {
    let decoded = Envelope::decode(frame);
    let Ok(text) = str::from_utf8(frame) else {
        assert!(decoded.is_err_and(|e| e.is_bad_frame), "not UTF-8");
        return;
    };
    check_id(text);
    match serde_json::from_str::<Value>(text) {
        Ok(value) => {
            let expected = expected(text, &value);
            match (&decoded, expected) {
                (Ok(_), Ok(())) => {}
                (Err(e), Err(expected)) => assert_eq!((e.code, e.is_bad_frame), expected, "{e}"),
                (decoded, expected) => panic!("{decoded:?}, expected {expected:?}"),
            }
            check_text(text).ok();
        }
        // Numbers that no f64 holds are in order as long as nobody reads them: the payload is passed on as it is.
        Err(e) if e.to_string().starts_with("number out of range") => {}
        Err(e) => assert!(decoded.as_ref().is_err_and(|e| e.is_bad_frame), "accepted, but {e}"),
    }
    if let Ok(envelope) = decoded {
        check_fields(&envelope, text);
        check_payloads(envelope.data);
        check_replies(&envelope);
    }
}

/// What the contract says about a text that is JSON: in order, or the error code and whether the frame is a bad one.
fn expected(text: &str, value: &Value) -> Result<(), (ErrorCode, bool)> {
    const KNOWN: [&str; 7] =
        ["message_type", "message_id", "data", "require_ack", "receipt", "idempotency_key", "priority"];
    let bad = Err((ErrorCode::InvalidFormat, true));
    let refused = Err((ErrorCode::InvalidFormat, false));
    let Value::Object(fields) = value else { return bad };
    let Ok(members) = Members::parse(text) else { return bad };
    if members.has_double(&KNOWN) || depth(value) > MAX_NESTING {
        return bad;
    }
    let field = |name: &str| fields.get(name).filter(|v| !v.is_null());
    let is_text = |name: &str| field(name).is_none_or(Value::is_string);
    let is_flag = |name: &str| field(name).is_none_or(Value::is_boolean);
    if !(is_text("message_type") && is_text("idempotency_key") && is_text("priority")) {
        return bad;
    }
    if !(is_flag("require_ack") && is_flag("receipt")) {
        return bad;
    }
    let is_id = match (field("message_id"), members.get("message_id")) {
        (None, _) | (_, None) => true,
        (Some(Value::String(text)), _) => text.len() <= MAX_MESSAGE_ID_LEN,
        // An integer of any size is one, as long as it is written as one.
        (Some(Value::Number(_)), Some(json)) => json.len() <= MAX_MESSAGE_ID_LEN && !json.contains(['.', 'e', 'E']),
        _ => false,
    };
    if !is_id {
        return Err((ErrorCode::InvalidMessageId, false));
    }
    let is_priority = field("priority").is_none_or(|p| p == "normal" || p == "low");
    if !is_priority || field("message_type").is_none() {
        return refused;
    }
    Ok(())
}

/// Each field holds what the frame says.
fn check_fields(envelope: &Envelope<'_>, text: &str) {
    let members = Members::parse(text).expect("an accepted frame is an object");
    assert_eq!(Some(envelope.message_type.to_string()), members.text("message_type"));
    assert_eq!(envelope.idempotency_key.as_ref().map(ToString::to_string), members.text("idempotency_key"));
    assert_eq!(envelope.require_ack, members.get("require_ack") == Some("true"));
    assert_eq!(envelope.receipt, members.get("receipt") == Some("true"));
    assert_eq!(envelope.priority == Priority::Low, members.text("priority").as_deref() == Some("low"));
    assert_eq!(envelope.data.map(RawValue::get), members.get("data").filter(|&json| json != "null"));
    let id = members.get("message_id").filter(|json| !matches!(*json, "0" | "-0" | "null" | "\"\""));
    assert_eq!(envelope.message_id.as_ref().map(|id| id.as_json()), id);
    if let Some(id) = &envelope.message_id {
        let text = members.text("message_id").unwrap_or_else(|| id.as_json().to_owned());
        assert_eq!(id.to_text(), text);
        assert!(text.len() <= MAX_MESSAGE_ID_LEN);
    }
}

/// Reading a payload never panics, and what it gives obeys the rules for ids.
fn check_payloads(data: Option<&RawValue>) {
    fn checked(id: Result<&str, impl Debug>) {
        if let Ok(id) = id {
            assert!(is_id(id) || id.starts_with("anon:"), "{id:?}");
        }
    }
    if let Ok(data) = parse_data::<RoomRequest<'_>>(data) {
        checked(data.room_id());
    }
    if let Ok(query) = parse_data::<RoomMembersQuery<'_>>(data) {
        checked(query.room_id());
    }
    if let Ok(message) = parse_data::<RoomMessage<'_>>(data) {
        checked(message.room_id());
        check_content(data, message.content());
    }
    if let Ok(message) = parse_data::<DirectMessage<'_>>(data) {
        checked(message.target_id());
        check_content(data, message.content());
    }
    let _ = parse_data::<PingData>(data);
}

/// The content has its bytes on the way in, and on the way out.
fn check_content(data: Option<&RawValue>, content: &RawValue) {
    let members = Members::parse(data.map_or("{}", RawValue::get)).expect("a payload is an object");
    assert_eq!(content.get(), members.get("content").unwrap_or("null"));
    let id = Uuid::from_u128(7);
    let delivery =
        Delivery { room_id: Some("r1"), ..Delivery::new(id, "room_message", "alice", content, 1_763_600_000_000) };
    let mut out = Vec::new();
    delivery.encode(&mut out);
    let delivered = Members::parse(utf8(&out)).expect("a delivery is JSON");
    let data = Members::parse(delivered.get("data").expect("a delivery has data")).expect("its data is an object");
    assert_eq!(data.get("content"), Some(content.get()));
}

/// What is answered is JSON, and says what it was given.
fn check_replies(envelope: &Envelope<'_>) {
    let id = envelope.message_id.as_ref();
    let id_value = id.map(|id| id.as_json());
    let any_text = &*envelope.message_type;
    let written = |encode: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        encode(&mut out);
        String::from_utf8(out).expect("a reply is text")
    };

    let json = written(&|out| {
        encode::reply(out, any_text, id, 5, |json| {
            json.string(any_text);
        })
    });
    let reply = Members::parse(&json).expect("a reply is JSON");
    assert_eq!(reply.text("message_type").as_deref(), Some(any_text));
    assert_eq!(reply.text("data").as_deref(), Some(any_text));
    assert_eq!(reply.get("request_id"), id_value);

    let error = ErrorReply::new(ErrorCode::RateLimited, any_text).with_details(serde_json::json!({ "what": any_text }));
    let json = written(&|out| encode::error(out, &error, id, 5));
    let reply = Members::parse(&json).expect("an error is JSON");
    let data = Members::parse(reply.get("data").expect("an error has data")).expect("its data is an object");
    assert_eq!(data.text("message").as_deref(), Some(any_text));
    assert_eq!(data.get("code"), Some("1005"));
    assert_eq!((reply.get("request_id"), data.get("request_id")), (id_value, id_value));
    let details: Value = serde_json::from_str(data.get("details").expect("details")).expect("details are JSON");
    assert_eq!(details["what"], any_text);

    if let Some(id) = id {
        let message = Uuid::from_u128(9);
        let json = written(&|out| encode::accepted_room(out, message, 3, envelope.receipt, id, 5));
        let reply = Members::parse(&json).expect("a reply is JSON");
        assert_eq!(reply.get("request_id"), id_value);
        let fate = Fate::failed(FailureReason::UserOffline);
        let json = written(&|out| encode::accepted_direct(out, message, fate, envelope.receipt, id, 5));
        let reply = Members::parse(&json).expect("a reply is JSON");
        assert_eq!(reply.get("request_id"), id_value);
    }

    // Names come from clients too: a room, a sender, a type of the application's.
    let delivery = Delivery {
        id: Uuid::from_u128(8),
        message_type: any_text,
        sender_id: any_text,
        room_id: Some(any_text),
        echo_target: Some(any_text),
        content: envelope.data.unwrap_or(RawValue::NULL),
        timestamp: u64::MAX,
        priority: envelope.priority,
        require_ack: envelope.require_ack,
        attempt: 2,
        is_replay: envelope.receipt,
    };
    let json = written(&|out| delivery.encode(out));
    let delivered = Members::parse(&json).expect("a delivery is JSON");
    let data = Members::parse(delivered.get("data").expect("data")).expect("its data is an object");
    assert_eq!(delivered.text("message_type").as_deref(), Some(any_text));
    for name in ["sender_id", "room_id", "target_id"] {
        assert_eq!(data.text(name).as_deref(), Some(any_text), "{name}");
    }
    assert_eq!(data.get("content"), Some(delivery.content.get()));
    // The next hub would take it as well.
    assert!(Envelope::decode(json.as_bytes()).is_ok() || depth_of(&json) > MAX_NESTING, "{json}");
}

fn depth_of(json: &str) -> usize {
    // The delivery nests the payload one level deeper than it came.
    serde_json::from_str(json).map_or(usize::MAX, |value| depth(&value))
}

fn utf8(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).expect("JSON is text")
}

/// The rules of protocol §1, written down once more.
fn is_id(text: &str) -> bool {
    let is_reserved = text.starts_with("__") || text.starts_with("wsc.") || text.starts_with("anon:");
    let has_control = text.chars().any(|c| matches!(u32::from(c), 0..=0x1F | 0x7F..=0x9F));
    (1..=MAX_ID_LEN).contains(&text.len()) && !has_control && !is_reserved
}

fn check_id(text: &str) {
    assert_eq!(Id::check(text).is_ok(), is_id(text), "{text:?}");
    if let Ok(id) = Id::new(text) {
        assert_eq!(id.as_str(), text);
    }
}
