//! What a request means (protocol §2).

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;
use wsc_auth::{AuthError, Permission};
use wsc_delivery::mailbox::Verdict;
use wsc_events::ConnectionEvent;
use wsc_protocol::{
    CloseCode, CloseReason, DecodeError, DirectMessage, DisconnectReason, Envelope, ErrorCode, ErrorReply, Event,
    EventType, FailureReason, MessageId, PingData, RoomMembersQuery, RoomMessage, RoomRequest, encode,
    encode::JsonWriter, parse_data,
};
use wsc_transport::{Message, Next};

use crate::{
    context::{Context, guarded},
    encode::{now_ms, reply_frame, with_frame},
    hub::Hub,
    mail::{Answer, Answered, Reliability, Via},
    rooms::RoomOptions,
    routing::{Direct, SendReceipt},
    service::Connected,
};

/// A request that is not fulfilled.
struct Refusal {
    error: ErrorReply,
    is_bad_frame: bool,
}

impl From<ErrorReply> for Refusal {
    fn from(error: ErrorReply) -> Self {
        Self { error, is_bad_frame: false }
    }
}

impl From<ErrorCode> for Refusal {
    fn from(code: ErrorCode) -> Self {
        ErrorReply::from(code).into()
    }
}

impl From<DecodeError> for Refusal {
    fn from(error: DecodeError) -> Self {
        Self { error: ErrorReply::new(error.code, error.message), is_bad_frame: error.is_bad_frame }
    }
}

impl Connected {
    /// Takes one frame.
    pub(crate) fn dispatch(&self, message: Message<'_>) -> Next {
        let decoded = match message {
            Message::Text(text) => Envelope::decode_str(text),
            Message::Binary(bytes) => Envelope::decode(bytes),
        };
        let envelope = match decoded {
            Ok(envelope) => envelope,
            Err(error) => {
                let message_id = error.message_id.clone();
                self.refuse(&error.into(), message_id.as_ref());
                return Next::Read;
            }
        };
        self.core.events.publish_with(EventType::MessageReceived, || Event::MessageReceived {
            client: self.session.info(),
            message_type: envelope.message_type.clone().into_owned(),
        });
        match self.request(&envelope) {
            Ok(next) => {
                self.session.count_good_frame();
                next
            }
            Err(refusal) => {
                self.refuse(&refusal, envelope.message_id.as_ref());
                Next::Read
            }
        }
    }

    fn refuse(&self, refusal: &Refusal, message_id: Option<&MessageId<'_>>) {
        self.core.send_error(&self.session, &refusal.error, message_id);
        if !refusal.is_bad_frame {
            self.session.count_good_frame();
            return;
        }
        let in_a_row = self.session.count_bad_frame();
        self.core.trace(self.session.id, ConnectionEvent::BadFrame { in_a_row: in_a_row.into() });
        if in_a_row >= MAX_BAD_FRAMES {
            let close = CloseReason::new(CloseCode::BAD_FRAMES, "too many bad frames");
            self.core.close(&self.session, &close, DisconnectReason::BadFrames);
        }
    }

    fn request(&self, envelope: &Envelope<'_>) -> Result<Next, Refusal> {
        let id = envelope.message_id.as_ref();
        match &*envelope.message_type {
            "room_message" => return self.room_message(envelope),
            "direct_message" => self.direct_message(envelope)?,
            "ping" | "heartbeat" => self.ping(envelope)?,
            "join_room" => {
                let request: RoomRequest<'_> = parse_data(envelope.data)?;
                let room_id = request.room_id()?;
                self.permit_room(Permission::JoinRoom, room_id, "you may not join this room")?;
                self.core.join(&self.session, room_id, id, true)?;
            }
            "leave_room" => {
                let request: RoomRequest<'_> = parse_data(envelope.data)?;
                self.core.leave(&self.session, request.room_id()?, id, None)?;
            }
            "create_room" => {
                let request: RoomRequest<'_> = parse_data(envelope.data)?;
                let room_id = request.room_id()?;
                self.permit_room(Permission::CreateRoom, room_id, "you may not create this room")?;
                let options = RoomOptions::new(request.name().map(str::to_owned), request.max_clients);
                self.core.create_room(room_id, options)?;
                self.reply_room("room_created", id, room_id);
            }
            "delete_room" => {
                let request: RoomRequest<'_> = parse_data(envelope.data)?;
                let room_id = request.room_id()?;
                self.permit_room(Permission::DeleteRoom, room_id, "you may not delete this room")?;
                self.core.delete_room(room_id, Some(&self.session))?;
                self.session.outbound.send_with(|| {
                    // Nothing of the room comes after the answer.
                    if let Some(seat) = self.session.joined.lock().take_deleted(room_id) {
                        seat.room.fanout.leave(seat.slot);
                    }
                    Some(reply_frame("room_deleted", id, now_ms(), |json| {
                        json.raw("{\"room_id\":").string(room_id).raw("}");
                    }))
                });
            }
            "room_members" => self.room_members(envelope)?,
            "ack" => return self.verdict(envelope, Verdict::Acked),
            "nack" => return self.verdict(envelope, Verdict::Rejected),
            "message_status" => self.message_status(envelope)?,
            "authenticate" => return self.authenticate(envelope),
            _ => return self.custom(envelope),
        }
        Ok(Next::Read)
    }

    /// Renews the connection's token, or gives it a first one.
    fn authenticate(&self, envelope: &Envelope<'_>) -> Result<Next, Refusal> {
        if self.core.authenticator.is_none() {
            return Err(ErrorReply::new(ErrorCode::InvalidToken, "authentication is off").into());
        }
        let TokenRequest { token } = parse_data(envelope.data)?;
        let token = token.ok_or_else(|| ErrorReply::new(ErrorCode::InvalidFormat, "token is missing"))?;
        let (core, session) = (Arc::clone(&self.core), Arc::clone(&self.session));
        let message_id = envelope.message_id.clone().map(MessageId::into_owned);
        Ok(Next::Wait(Box::pin(async move {
            let patience = core.settings().handshake_timeout;
            let identity = tokio::time::timeout(patience, core.authenticate(&token)).await;
            let taken = match identity.unwrap_or(Err(AuthError::Unavailable)) {
                Ok(identity) => core.take_token(&session, &identity, |grant| {
                    let authenticated = reply_frame("authenticated", message_id.as_ref(), now_ms(), |json| {
                        json.raw("{\"user_id\":").string(identity.user_id.as_str());
                        json.raw(",\"permissions\":").value(&grant.permissions.to_strings());
                        json.raw(",\"expires_at\":").value(&grant.expires_at_ms()).raw("}");
                    });
                    session.outbound.send(&authenticated);
                }),
                Err(error) => Err(ErrorReply::new(error.error_code(), error.to_string())),
            };
            if let Err(error) = taken {
                core.send_error(&session, &error, message_id.as_ref());
            }
        })))
    }

    fn permit_room(&self, permission: Permission, room_id: &str, message: &str) -> Result<(), Refusal> {
        if self.session.grant().permissions.allows_room(permission, room_id) {
            return Ok(());
        }
        Err(ErrorReply::new(ErrorCode::Forbidden, message).into())
    }

    fn reply(&self, message_type: &str, id: Option<&MessageId<'_>>, data: impl FnOnce(&mut JsonWriter<'_>)) {
        with_frame(
            |out| encode::reply(out, message_type, id, now_ms(), data),
            |frame| self.session.outbound.send(frame),
        );
    }

    fn reply_room(&self, message_type: &str, id: Option<&MessageId<'_>>, room_id: &str) {
        self.reply(message_type, id, |json| {
            json.raw("{\"room_id\":").string(room_id).raw("}");
        });
    }

    fn ping(&self, envelope: &Envelope<'_>) -> Result<(), Refusal> {
        let PingData { ts } = parse_data(envelope.data)?;
        let server_ts = now_ms();
        self.reply("pong", envelope.message_id.as_ref(), |json| {
            match ts {
                Some(ts) => {
                    let rtt = (server_ts as i64).wrapping_sub(ts);
                    json.raw("{\"ts\":").value(&ts).raw(",\"server_ts\":").number(server_ts);
                    json.raw(",\"rtt\":").value(&rtt).raw("}");
                }
                None => {
                    json.raw("{\"server_ts\":").number(server_ts).raw("}");
                }
            };
        });
        Ok(())
    }

    fn room_message(&self, envelope: &Envelope<'_>) -> Result<Next, Refusal> {
        let request: RoomMessage<'_> = parse_data(envelope.data)?;
        let room_id = request.room_id()?;
        self.permit_room(Permission::SendMessage, room_id, "you may not send to this room")?;
        let wish = self.wish(envelope)?;
        let seat = self.session.joined.lock().find_any(room_id).cloned();
        let Some(seat) = seat else {
            let exists = self.core.rooms.get(room_id).is_some();
            return Err(if exists { ErrorCode::NotInRoom.into() } else { ErrorCode::RoomNotFound.into() });
        };
        let message_id = envelope.message_id.as_ref();
        let encode = |out: &mut Vec<u8>, answered: &Answered, message_id: &MessageId<'_>| {
            let (id, duplicate) = (answered.receipt.id, answered.receipt.duplicate);
            encode::accepted_room(out, id, answered.recipients, duplicate, message_id, now_ms());
        };
        if !wish.require_ack && seat.room.is_held_for(self.session.user().id.as_str()) {
            // What the same sender wants to be acknowledged is on its way to the store: this must not overtake it.
            let (core, session) = (Arc::clone(&self.core), Arc::clone(&self.session));
            let (content, key) = (request.content().to_owned(), wish.idempotency_key.map(str::to_owned));
            let answer = self.answer(message_id, encode);
            return Ok(Next::Wait(Box::pin(async move {
                seat.room.released(session.user().id.as_str()).await;
                let wish = Reliability { idempotency_key: key.as_deref(), ..Reliability::default() };
                core.send_room_from(&session, &seat, &content, &wish, answer);
            })));
        }
        if wish.require_ack || wish.idempotency_key.is_some() {
            let answer = self.answer(message_id, encode);
            self.core.send_room_from(&self.session, &seat, request.content(), &wish, answer);
            return Ok(Next::Read);
        }
        let (id, recipients) = self.core.send_room_plain(&self.session, &seat, request.content())?;
        if let Some(message_id) = message_id {
            with_frame(
                |out| encode::accepted_room(out, id, recipients as u64, false, message_id, now_ms()),
                |frame| self.session.outbound.send(frame),
            );
        }
        Ok(Next::Read)
    }

    fn direct_message(&self, envelope: &Envelope<'_>) -> Result<(), Refusal> {
        let request: DirectMessage<'_> = parse_data(envelope.data)?;
        let target = request.target_id()?;
        if !self.session.grant().permissions.allows_direct(target) {
            return Err(ErrorReply::new(ErrorCode::Forbidden, "you may not send to this user").into());
        }
        let wish = self.wish(envelope)?;
        let sender = self.session.user();
        let direct = Direct {
            message_type: "direct_message",
            sender_id: sender.id.as_str(),
            content: request.content(),
            priority: envelope.priority,
            target,
            target_client: request.target_client(),
            from: Some(&self.session),
        };
        let answer = self.answer(envelope.message_id.as_ref(), |out, answered, message_id| {
            let SendReceipt { id, fate, duplicate } = answered.receipt;
            encode::accepted_direct(out, id, fate, duplicate, message_id, now_ms());
        });
        self.core.send_user(&direct, &wish, Via::Client, None, answer);
        Ok(())
    }

    /// What a request asks for beyond delivery.
    fn wish<'e>(&self, envelope: &'e Envelope<'_>) -> Result<Reliability<'e>, Refusal> {
        if envelope.require_ack && !self.core.settings().limits.client_require_ack {
            return Err(ErrorReply::new(ErrorCode::Forbidden, "clients may not ask for acknowledgements here").into());
        }
        Ok(Reliability {
            require_ack: envelope.require_ack,
            receipt: envelope.receipt,
            ttl: None,
            max_retries: None,
            idempotency_key: envelope.idempotency_key.as_deref(),
            trace: None,
        })
    }

    /// Answers a send when its answer is known: with `encode`, where the request had an id, or with an error.
    fn answer(
        &self,
        message_id: Option<&MessageId<'_>>,
        encode: impl FnOnce(&mut Vec<u8>, &Answered, &MessageId<'_>) + Send + 'static,
    ) -> Answer {
        let (core, session) = (Arc::clone(&self.core), Arc::clone(&self.session));
        let message_id = message_id.cloned().map(MessageId::into_owned);
        Box::new(move |result| {
            let error = match result {
                Ok(answered) => match answered.receipt.fate.reason {
                    None => {
                        let Some(message_id) = message_id else { return };
                        with_frame(|out| encode(out, &answered, &message_id), |frame| session.outbound.send(frame));
                        return;
                    }
                    // Accepted, but failed at once: an error that names the message.
                    Some(reason) => {
                        let code = match reason {
                            FailureReason::QueueFull => ErrorCode::Full,
                            FailureReason::UserOffline => ErrorCode::UserOffline,
                            _ => ErrorCode::Unknown,
                        };
                        let details = serde_json::json!({ "id": answered.receipt.id, "reason": reason });
                        ErrorReply::from(code).with_details(details)
                    }
                },
                Err(error) => error,
            };
            core.send_error(&session, &error, message_id.as_ref());
        })
    }

    fn verdict(&self, envelope: &Envelope<'_>, verdict: Verdict) -> Result<Next, Refusal> {
        let Acknowledgement { ids, reason } = Acknowledgement::of(envelope)?;
        self.core.mail_verdict(&self.session, &ids, verdict, reason);
        let user = self.session.user();
        let user_id = &user.id;
        if !self.core.mail_is_busy(user_id) {
            return Ok(Next::Read);
        }
        // Whoever acknowledges faster than that can be worked off waits for it.
        let (core, user_id) = (Arc::clone(&self.core), user_id.clone());
        Ok(Next::Wait(Box::pin(async move {
            while core.mail_is_busy(&user_id) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })))
    }

    fn message_status(&self, envelope: &Envelope<'_>) -> Result<(), Refusal> {
        let request: StatusRequest = parse_data(envelope.data)?;
        let id = request.id.as_deref().and_then(|id| Uuid::try_parse(id).ok());
        let Some(id) = id else {
            return Err(ErrorReply::new(ErrorCode::InvalidFormat, "id is missing or no message's id").into());
        };
        // Who is not its sender learns no more than who asks for one that never was.
        let fate = self.core.message_fate(id).filter(|fate| fate.sender_id == self.session.user().id.as_str());
        let Some(fate) = fate else {
            return Err(ErrorReply::new(ErrorCode::InvalidMessageId, "nothing is known of this message").into());
        };
        self.reply("message_status", envelope.message_id.as_ref(), |json| {
            json.value(&fate);
        });
        Ok(())
    }

    fn room_members(&self, envelope: &Envelope<'_>) -> Result<(), Refusal> {
        let query: RoomMembersQuery<'_> = parse_data(envelope.data)?;
        let room_id = query.room_id()?;
        let is_admin = self.session.grant().permissions.allows_room(Permission::AdminRoom, room_id);
        let room = self.core.rooms.get(room_id).ok_or(ErrorCode::RoomNotFound)?;
        if !is_admin && self.session.joined.lock().find(room_id).is_none() {
            return Err(ErrorCode::NotInRoom.into());
        }
        let (start, limit) = page(query.cursor(), query.limit)?;
        let (members, next) = room.fanout.members(start, limit);
        let total = room.fanout.len() as u64;
        self.reply("room_members", envelope.message_id.as_ref(), |json| {
            json.raw("{\"room_id\":").string(room_id).raw(",\"members\":[");
            for (i, member) in members.iter().enumerate() {
                json.raw(if i == 0 { "{\"user_id\":" } else { ",{\"user_id\":" }).string(member.0.user().id.as_str());
                if is_admin {
                    json.raw(",\"client_id\":").string(&member.0.client_id().to_string());
                }
                json.raw("}");
            }
            json.raw("],\"total\":").number(total);
            if let Some(next) = next {
                json.raw(",\"next_cursor\":").string(&next.to_string());
            }
            json.raw("}");
        });
        Ok(())
    }

    /// A type of the embedding program's.
    fn custom(&self, envelope: &Envelope<'_>) -> Result<Next, Refusal> {
        let handlers = self.core.handlers.read().clone();
        let Some((message_type, handler)) = handlers.get_key_value(&*envelope.message_type) else {
            let message = format!("unknown message_type {:?}", shorten(&envelope.message_type));
            return Err(ErrorReply::new(ErrorCode::InvalidFormat, message).into());
        };
        let Some(hub) = self.core.hub.get().and_then(Hub::upgrade) else {
            return Err(ErrorReply::new(ErrorCode::ServerError, "the hub is shutting down").into());
        };
        let context = Context::new(hub, self.session.clone(), message_type.clone());
        let data = envelope.data.map(RawValue::to_owned);
        let answer = guarded(handler.clone(), context, data);
        let (core, session) = (self.core.clone(), self.session.clone());
        let message_type = message_type.clone();
        let message_id = envelope.message_id.clone().map(MessageId::into_owned);
        Ok(Next::Wait(Box::pin(async move {
            match answer.await {
                Ok(Some(data)) => {
                    with_frame(
                        |out| {
                            encode::reply(out, &message_type, message_id.as_ref(), now_ms(), |json| {
                                json.raw(data.get());
                            });
                        },
                        |frame| session.outbound.send(frame),
                    );
                }
                Ok(None) => {}
                Err(error) => core.send_error(&session, &error, message_id.as_ref()),
            }
        })))
    }
}

/// Payload of `authenticate`.
#[derive(Deserialize)]
struct TokenRequest {
    #[serde(default)]
    token: Option<String>,
}

/// Payload of `message_status`.
#[derive(Deserialize)]
struct StatusRequest {
    #[serde(default)]
    id: Option<String>,
}

/// Payload of `ack` and `nack` (protocol §3): which messages, in `data` or else as the `message_id`.
#[derive(Deserialize)]
struct AcknowledgementData {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    ids: Option<Vec<String>>,
    #[serde(default)]
    reason: Option<String>,
}

/// What an `ack` or `nack` says.
struct Acknowledgement {
    /// What is no id of ours is nil: it names nothing, which is for others to count.
    ids: Vec<Uuid>,
    reason: Option<Box<str>>,
}

impl Acknowledgement {
    fn of(envelope: &Envelope<'_>) -> Result<Self, Refusal> {
        let AcknowledgementData { id, ids, reason } = parse_data(envelope.data)?;
        let named = match (id, ids, &envelope.message_id) {
            (id, Some(ids), _) => id.into_iter().chain(ids).collect(),
            (Some(id), None, _) => vec![id],
            (None, None, Some(message_id)) => vec![message_id.to_text()],
            (None, None, None) => Vec::new(),
        };
        if named.is_empty() || named.len() > MAX_ACKS {
            let message = format!("an acknowledgement names 1 to {MAX_ACKS} messages");
            return Err(ErrorReply::new(ErrorCode::InvalidFormat, message).into());
        }
        let ids = named.iter().map(|id| Uuid::try_parse(id).unwrap_or_default()).collect();
        Ok(Self { ids, reason: reason.map(|reason| shorten(&reason).into()) })
    }
}

/// Reads a cursor and a limit of a listing (protocol §5: 100 by default, 1,000 at most).
pub(crate) fn page(cursor: Option<&str>, limit: Option<u32>) -> Result<(u32, usize), ErrorReply> {
    let start = match cursor {
        None | Some("") => 0,
        Some(cursor) => {
            cursor.parse().map_err(|_| ErrorReply::new(ErrorCode::InvalidFormat, "cursor is not one of ours"))?
        }
    };
    let limit = limit.unwrap_or(DEFAULT_PAGE);
    if limit == 0 || limit > MAX_PAGE {
        return Err(ErrorReply::new(ErrorCode::InvalidFormat, format!("limit must be 1 to {MAX_PAGE}")));
    }
    Ok((start, limit as usize))
}

/// The start of a text that a client sent, to show it back.
fn shorten(text: &str) -> &str {
    let end = text.char_indices().nth(64).map_or(text.len(), |(at, _)| at);
    &text[..end]
}

/// Most messages that one frame acknowledges.
const MAX_ACKS: usize = 1_000;

/// The tenth bad frame in a row ends a connection.
const MAX_BAD_FRAMES: u8 = 10;

const DEFAULT_PAGE: u32 = 100;
const MAX_PAGE: u32 = 1_000;
