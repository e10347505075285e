//! Frames as text: reading what the hub sends, writing what a client sends.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use wsc_protocol::Priority;

use crate::event::{Connected, Delivery, DeliveryData, DeliveryKind, Event, Other, RoomNotice};
use crate::{HubError, reply::Reply};

/// What came from the hub.
pub(crate) enum Inbound {
    Connected(Connected),
    Reply { id: u64, reply: Result<Reply, HubError> },
    Event(Event),
}

/// How a message was settled by its receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Settlement {
    Ack,
    Nack { reason: String },
}

#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(borrow)]
    message_type: Cow<'a, str>,
    #[serde(borrow, default)]
    request_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    timestamp: u64,
    #[serde(default)]
    require_ack: bool,
    #[serde(default)]
    attempt: Option<u32>,
    #[serde(borrow, default)]
    source: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    priority: Option<Cow<'a, str>>,
}

/// Reads one frame.
///
/// # Errors
///
/// Where it is not JSON or lacks what its type needs.
pub(crate) fn decode(text: &str) -> Result<Inbound, serde_json::Error> {
    let frame: Frame<'_> = serde_json::from_str(text)?;
    let data = frame.data.unwrap_or(RawValue::NULL);
    if let Some(id) = frame.request_id.and_then(|id| id.get().parse().ok()) {
        let reply = match &*frame.message_type {
            "error" => Err(serde_json::from_str(data.get())?),
            _ => Ok(Reply { message_type: frame.message_type.into_owned(), data: data.to_owned() }),
        };
        return Ok(Inbound::Reply { id, reply });
    }
    if frame.id.is_some() {
        return delivery(frame, data).map(|delivery| Inbound::Event(Event::Delivery(delivery)));
    }
    let event = match &*frame.message_type {
        "connected" => return serde_json::from_str(data.get()).map(Inbound::Connected),
        "gap" => Event::Gap(serde_json::from_str(data.get())?),
        // One without a request that says `joined` answers a request that asked for no reply.
        "room_joined" if room(data)?.status != "joined" => {
            Event::Room(RoomNotice::Added { room_id: room(data)?.room_id })
        }
        "room_deleted" => Event::Room(RoomNotice::Deleted { room_id: room(data)?.room_id }),
        "room_left" => {
            let RoomData { room_id, reason, .. } = room(data)?;
            Event::Room(RoomNotice::Removed { room_id, reason })
        }
        "kick_out" => Event::KickOut { reason: serde_json::from_str::<Reason>(data.get())?.reason },
        "force_offline" => Event::ForceOffline { reason: serde_json::from_str::<Reason>(data.get())?.reason },
        "token_expiring" => Event::TokenExpiring { expires_at: serde_json::from_str::<Expiry>(data.get())?.expires_at },
        "message_outcome" => Event::Outcome(serde_json::from_str(data.get())?),
        "error" => Event::Error(serde_json::from_str(data.get())?),
        _ => Event::Other(Other { message_type: frame.message_type.into_owned(), data: data.to_owned() }),
    };
    Ok(Inbound::Event(event))
}

fn delivery(frame: Frame<'_>, data: &RawValue) -> Result<Delivery, serde_json::Error> {
    let data: DeliveryData<'_> = serde_json::from_str(data.get())?;
    let kind = match &*frame.message_type {
        "room_message" => DeliveryKind::Room { room_id: data.room_id.unwrap_or_default().into_owned() },
        "direct_message" if data.echo => {
            DeliveryKind::Echo { target_id: data.target_id.unwrap_or_default().into_owned() }
        }
        "direct_message" => DeliveryKind::Direct,
        "user_message" => DeliveryKind::User,
        "broadcast" => DeliveryKind::Broadcast,
        _ => DeliveryKind::Custom { message_type: frame.message_type.into_owned() },
    };
    Ok(Delivery {
        id: frame.id.unwrap_or_default().into_owned(),
        kind,
        sender_id: data.sender_id.into_owned(),
        content: data.content.unwrap_or(RawValue::NULL).to_owned(),
        timestamp: data.timestamp.unwrap_or(frame.timestamp),
        require_ack: frame.require_ack,
        attempt: frame.attempt.unwrap_or(1),
        offline: frame.source.as_deref() == Some("offline"),
        priority: match frame.priority.as_deref() {
            Some("high") => Priority::High,
            Some("low") => Priority::Low,
            _ => Priority::Normal,
        },
    })
}

/// The `data` of everything about a room.
#[derive(Deserialize)]
pub(crate) struct RoomData {
    pub(crate) room_id: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    reason: String,
}

/// Reads the `data` of a frame about a room.
pub(crate) fn room(data: &RawValue) -> Result<RoomData, serde_json::Error> {
    serde_json::from_str(data.get())
}

#[derive(Deserialize)]
struct Reason {
    #[serde(default)]
    reason: String,
}

#[derive(Deserialize)]
struct Expiry {
    expires_at: u64,
}

/// A request on its way out.
#[derive(Default, Serialize)]
pub(crate) struct Outgoing<'a> {
    pub(crate) message_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) message_id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) data: Option<&'a RawValue>,
    #[serde(flatten)]
    pub(crate) options: Flags,
}

/// What a message asks for beyond its delivery.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Flags {
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) require_ack: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) receipt: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) idempotency_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) priority: Option<Priority>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a function of a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// The frame that settles these messages.
pub(crate) fn settle(ids: &[String], settlement: &Settlement) -> Result<String, serde_json::Error> {
    #[derive(Serialize)]
    struct Data<'a> {
        ids: &'a [String],
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'a str>,
    }
    #[derive(Serialize)]
    struct Settle<'a> {
        message_type: &'static str,
        data: Data<'a>,
    }
    let (message_type, reason) = match settlement {
        Settlement::Ack => ("ack", None),
        Settlement::Nack { reason } => ("nack", Some(&**reason)),
    };
    serde_json::to_string(&Settle { message_type, data: Data { ids, reason } })
}

/// Bytes of the frame that settles this one message, at most.
pub(crate) fn settle_len(id: &str, settlement: &Settlement) -> usize {
    const ACK: usize = r#"{"message_type":"ack","data":{"ids":[]}}"#.len();
    const NACK: usize = r#"{"message_type":"nack","data":{"ids":[],"reason":}}"#.len();
    json_len(id)
        + match settlement {
            Settlement::Ack => ACK,
            Settlement::Nack { reason } => NACK + json_len(reason),
        }
}

/// Bytes that one more id adds to such a frame, at most.
pub(crate) fn another_id_len(id: &str) -> usize {
    json_len(id) + ",".len()
}

/// Bytes of a string in JSON, at most: escapes have two bytes or six.
fn json_len(text: &str) -> usize {
    let bytes = text.bytes().map(|byte| match byte {
        b'"' | b'\\' => 2,
        ..b' ' => 6,
        _ => 1,
    });
    bytes.sum::<usize>() + "\"\"".len()
}

/// Most ids in one `ack` or `nack`, by the protocol.
pub(crate) const MAX_SETTLED: usize = 1000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(text: &str) -> Event {
        match decode(text).unwrap() {
            Inbound::Event(event) => event,
            _ => panic!("no event: {text}"),
        }
    }

    fn delivered(text: &str) -> Delivery {
        match event(text) {
            Event::Delivery(delivery) => delivery,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn deliveries_keep_their_payload_byte_for_byte() {
        let delivery = delivered(
            r#"{"id":"0192","message_type":"room_message","data":{"room_id":"r1","content":{"n": 1.0e5,"a":1},"sender_id":"al\"ice","timestamp":17},"timestamp":18}"#,
        );
        assert_eq!(delivery.room_id(), Some("r1"));
        assert_eq!(delivery.content.get(), r#"{"n": 1.0e5,"a":1}"#);
        assert_eq!((delivery.id.as_str(), delivery.sender_id.as_str()), ("0192", "al\"ice"));
        assert_eq!((delivery.timestamp, delivery.attempt), (17, 1));
        assert!(!delivery.require_ack && !delivery.offline);
    }

    #[test]
    fn what_the_contract_says_about_a_delivery_is_visible() {
        let delivery = delivered(
            r#"{"id":"1","message_type":"direct_message","data":{"content":"hi","sender_id":"a","timestamp":1},"require_ack":true,"attempt":3,"source":"offline","priority":"low","new_field":[1]}"#,
        );
        assert_eq!(delivery.kind, DeliveryKind::Direct);
        assert_eq!((delivery.attempt, delivery.offline, delivery.require_ack), (3, true, true));
        assert_eq!(delivery.priority, Priority::Low);
        assert_eq!(delivery.content::<String>().unwrap(), "hi");

        let echo = r#"{"id":"1","message_type":"direct_message","data":{"content":1,"sender_id":"a","timestamp":1,"echo":true,"target_id":"b"}}"#;
        assert_eq!(delivered(echo).kind, DeliveryKind::Echo { target_id: "b".into() });
        let custom = r#"{"id":"1","message_type":"price","data":{"content":1,"sender_id":"system","timestamp":1}}"#;
        assert_eq!(delivered(custom).message_type(), "price");
    }

    #[test]
    fn replies_find_their_request_and_errors_their_fields() {
        match decode(r#"{"message_type":"pong","request_id":7,"data":{"server_ts":1},"timestamp":1}"#).unwrap() {
            Inbound::Reply { id: 7, reply: Ok(reply) } => assert_eq!(reply.message_type, "pong"),
            _ => panic!("no reply"),
        }
        let text = r#"{"message_type":"error","request_id":8,"data":{"code":1005,"message":"slow","temporary":true,"request_id":8,"details":{"retry_after_ms":250}},"timestamp":1}"#;
        match decode(text).unwrap() {
            Inbound::Reply { id: 8, reply: Err(error) } => {
                assert!(error.is(wsc_protocol::ErrorCode::RateLimited) && error.temporary);
                assert_eq!(error.retry_after(), Some(std::time::Duration::from_millis(250)));
            }
            _ => panic!("no reply"),
        }
    }

    #[test]
    fn notices_are_events() {
        assert!(matches!(
            event(r#"{"message_type":"room_left","data":{"room_id":"r","status":"removed","reason":"x"}}"#),
            Event::Room(RoomNotice::Removed { reason, .. }) if reason == "x"
        ));
        assert!(matches!(
            event(r#"{"message_type":"gap","data":{"dropped":3,"bytes":4,"since":5}}"#),
            Event::Gap(crate::Gap { dropped: 3, bytes: 4, since: 5 })
        ));
        assert!(matches!(
            event(r#"{"message_type":"kick_out","data":{"reason":"bye","kicked_at":1}}"#),
            Event::KickOut { reason } if reason == "bye"
        ));
        assert!(matches!(event(r#"{"message_type":"tomorrow"}"#), Event::Other(_)));
        let joined = |status| {
            event(&format!(r#"{{"message_type":"room_joined","data":{{"room_id":"r","status":"{status}"}}}}"#))
        };
        assert!(matches!(joined("added"), Event::Room(RoomNotice::Added { .. })));
        assert!(matches!(joined("joined"), Event::Other(_)));
    }

    #[test]
    fn requests_say_only_what_was_asked_for() {
        let plain = Outgoing { message_type: "ping", message_id: Some(1), ..Outgoing::default() };
        assert_eq!(serde_json::to_string(&plain).unwrap(), r#"{"message_type":"ping","message_id":1}"#);
        let options = Flags { require_ack: true, idempotency_key: Some("k".into()), ..Flags::default() };
        let full = Outgoing { message_type: "m", data: Some(RawValue::NULL), options, ..Outgoing::default() };
        let text = serde_json::to_string(&full).unwrap();
        assert_eq!(text, r#"{"message_type":"m","data":null,"require_ack":true,"idempotency_key":"k"}"#);
        let ids = ["a".to_owned()];
        assert_eq!(settle(&ids, &Settlement::Ack).unwrap(), r#"{"message_type":"ack","data":{"ids":["a"]}}"#);
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,200}") {
            let _ = decode(&text);
        }

        #[test]
        fn what_the_hub_writes_can_be_read(
            content in "[ -~]{0,40}", sender in "\\PC{1,20}", room_id in proptest::option::of("\\PC{1,20}"),
            require_ack: bool, attempt in 1..5_u32, is_replay: bool,
        ) {
            let content = serde_json::value::to_raw_value(&content).unwrap();
            let id = uuid::Uuid::now_v7();
            let message_type = if room_id.is_some() { "room_message" } else { "user_message" };
            let mut written = wsc_protocol::encode::Delivery::new(id, message_type, &sender, &content, 5);
            written.room_id = room_id.as_deref();
            (written.require_ack, written.attempt, written.is_replay) = (require_ack, attempt, is_replay);
            let mut out = Vec::new();
            written.encode(&mut out);
            let delivery = delivered(&String::from_utf8(out).unwrap());
            prop_assert_eq!(&delivery.id, &id.to_string());
            prop_assert_eq!(delivery.content.get(), content.get());
            prop_assert_eq!(&delivery.sender_id, &sender);
            prop_assert_eq!(delivery.room_id(), room_id.as_deref());
            prop_assert_eq!((delivery.require_ack, delivery.attempt, delivery.offline), (require_ack, attempt, is_replay));
        }
    }
}
