//! The part of the hub's wire protocol that the load tool uses, the same for every server here.

use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderValue, Uri, header::SEC_WEBSOCKET_PROTOCOL};
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

/// Sent when a request names a room that there is not.
pub(crate) const ROOM_NOT_FOUND: u16 = 3000;
/// Sent when a direct message goes to nobody.
pub(crate) const USER_OFFLINE: u16 = 4001;
const INVALID: u16 = 1001;

/// Who connects, from the query of `/ws?user_id=…&client_id=…&device_id=…`.
#[derive(Debug, Default)]
pub(crate) struct Identity {
    pub(crate) user_id: String,
    pub(crate) client_id: String,
}

impl Identity {
    pub(crate) fn from_uri(uri: &Uri) -> Self {
        let mut identity = Self::default();
        for (name, value) in uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('=')) {
            let value = || percent_decode_str(value).decode_utf8_lossy().into_owned();
            match name {
                "user_id" => identity.user_id = value(),
                "client_id" => identity.client_id = value(),
                _ => {}
            }
        }
        identity
    }
}

/// The one subprotocol, for the answer to a request that offers it.
pub(crate) fn subprotocol(request: &HeaderMap) -> Option<HeaderValue> {
    let offers = request.get_all(SEC_WEBSOCKET_PROTOCOL).into_iter().filter_map(|value| value.to_str().ok());
    let mut offers = offers.flat_map(|value| value.split(',')).map(str::trim);
    offers.any(|name| name == SUBPROTOCOL).then(|| HeaderValue::from_static(SUBPROTOCOL))
}

pub(crate) const SUBPROTOCOL: &str = "wsc.v1";

/// One message of a client. Borrows from the frame; the content is not parsed.
#[derive(Debug)]
pub(crate) enum Request<'a> {
    Ping { ts: Option<i64> },
    JoinRoom { room_id: &'a str },
    RoomMessage { room_id: &'a str, content: &'a RawValue },
    DirectMessage { target_id: &'a str, content: &'a RawValue },
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    message_type: &'a str,
    #[serde(borrow)]
    message_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    data: Data<'a>,
}

#[derive(Default, Deserialize)]
struct Data<'a> {
    ts: Option<i64>,
    room_id: Option<&'a str>,
    target_id: Option<&'a str>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
}

/// Reads a text frame: the request, and its `message_id`, which the reply carries.
///
/// # Errors
///
/// The error frame to answer with.
pub(crate) fn parse(text: &str) -> Result<(Request<'_>, RequestId<'_>), String> {
    let envelope: Envelope<'_> = serde_json::from_str(text).map_err(|e| error(None, INVALID, &e.to_string()))?;
    let request_id = envelope.message_id.filter(|id| !matches!(id.get(), "0" | "\"\""));
    let Data { ts, room_id, target_id, content } = envelope.data;
    let content = content.unwrap_or(RawValue::NULL);
    let request = match (envelope.message_type, room_id, target_id) {
        ("ping", ..) => Request::Ping { ts },
        ("join_room", Some(room_id), _) => Request::JoinRoom { room_id },
        ("room_message", Some(room_id), _) => Request::RoomMessage { room_id, content },
        ("direct_message", _, Some(target_id)) => Request::DirectMessage { target_id, content },
        (other, ..) => return Err(error(request_id, INVALID, other)),
    };
    Ok((request, request_id))
}

/// Copied from the request as it stands there, a number or a text.
pub(crate) type RequestId<'a> = Option<&'a RawValue>;

pub(crate) fn connected(identity: &Identity) -> String {
    #[derive(Serialize)]
    struct Connected<'a> {
        client_id: &'a str,
        user_id: &'a str,
        session: Uuid,
        node_id: &'a str,
        ping_interval_ms: u32,
    }
    let Identity { user_id, client_id } = identity;
    let data = Connected { client_id, user_id, session: Uuid::now_v7(), node_id: "target", ping_interval_ms: 25_000 };
    reply("connected", None, data)
}

pub(crate) fn pong(request_id: RequestId<'_>, ts: Option<i64>) -> String {
    #[derive(Serialize)]
    struct Pong {
        #[serde(skip_serializing_if = "Option::is_none")]
        ts: Option<i64>,
        server_ts: i64,
        #[serde(skip_serializing_if = "Option::is_none")]
        rtt: Option<i64>,
    }
    let server_ts = now_ms();
    reply("pong", request_id, Pong { ts, server_ts, rtt: ts.map(|ts| server_ts.saturating_sub(ts)) })
}

pub(crate) fn room_joined(request_id: RequestId<'_>, room_id: &str) -> String {
    #[derive(Serialize)]
    struct Joined<'a> {
        room_id: &'a str,
        status: &'a str,
    }
    reply("room_joined", request_id, Joined { room_id, status: "joined" })
}

pub(crate) fn room_accepted(request_id: RequestId<'_>, id: Uuid, recipients: usize) -> String {
    #[derive(Serialize)]
    struct Accepted {
        id: Uuid,
        recipients: usize,
    }
    reply("accepted", request_id, Accepted { id, recipients })
}

pub(crate) fn direct_accepted(request_id: RequestId<'_>, id: Uuid) -> String {
    #[derive(Serialize)]
    struct Accepted<'a> {
        id: Uuid,
        outcome: &'a str,
    }
    reply("accepted", request_id, Accepted { id, outcome: "sent" })
}

pub(crate) fn error(request_id: RequestId<'_>, code: u16, message: &str) -> String {
    #[derive(Serialize)]
    struct Failure<'a> {
        code: u16,
        message: &'a str,
        temporary: bool,
    }
    reply("error", request_id, Failure { code, message, temporary: false })
}

/// A room message as every other member gets it.
pub(crate) fn room_message(id: Uuid, room_id: &str, content: &RawValue, sender_id: &str) -> String {
    delivery(id, "room_message", Some(room_id), content, sender_id)
}

pub(crate) fn direct_message(id: Uuid, content: &RawValue, sender_id: &str) -> String {
    delivery(id, "direct_message", None, content, sender_id)
}

fn delivery(id: Uuid, message_type: &str, room_id: Option<&str>, content: &RawValue, sender_id: &str) -> String {
    #[derive(Serialize)]
    struct Delivered<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        room_id: Option<&'a str>,
        content: &'a RawValue,
        sender_id: &'a str,
        timestamp: i64,
    }
    let timestamp = now_ms();
    let data = Delivered { room_id, content, sender_id, timestamp };
    encode(&Frame { id: Some(id), message_type, request_id: None, data, timestamp })
}

fn reply(message_type: &str, request_id: RequestId<'_>, data: impl Serialize) -> String {
    encode(&Frame { id: None, message_type, request_id, data, timestamp: now_ms() })
}

#[derive(Serialize)]
struct Frame<'a, D> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Uuid>,
    message_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: RequestId<'a>,
    data: D,
    timestamp: i64,
}

#[expect(clippy::expect_used, reason = "none of these structs has a map or an implementation of its own")]
fn encode(frame: &impl Serialize) -> String {
    serde_json::to_string(frame).expect("plain structs are always JSON")
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}
