//! Where messages go.

use std::{cell::Cell, sync::Arc, time::Duration};

use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;
use wsc_config::StorageKind;
use wsc_delivery::mailbox::{Kind, Letter};
use wsc_failure::FailureEvent;
use wsc_protocol::{
    ErrorCode, ErrorReply, Event, EventType, FailureInfo, FailureReason, Fate, HubMessage, Id, MessageInfo, Priority,
    TraceContext, UserType, encode::Delivery,
};
use wsc_transport::{Encoded, PublishError, QueuePolicy, Sent};

use crate::{
    core::Core,
    encode::{now_ms, with_frame},
    ledger::{Transit, note_failure},
    mail::{Answer, Plain, Record, Reliability, RoomSend, Via, Watch, has_inbox},
    session::{Seat, Session},
    users::Recipients,
};

/// How a program sends.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SendOptions {
    /// User id shown as the sender; default `system`.
    pub sender_id: Option<String>,
    /// Type of the message; default `user_message` for users, `room_message` for rooms.
    pub message_type: Option<String>,
    /// Queue class of a user-addressed message.
    pub priority: Priority,
    /// Only this connection of the user.
    pub client_id: Option<String>,
    /// Whether the receiver must acknowledge it. It is stored first, and sent again until it is settled.
    pub require_ack: bool,
    /// How long it may wait for its receiver; default `storage.message_ttl`, which it cannot exceed.
    pub ttl: Option<Duration>,
    /// How often a plain message is tried again where a queue is full; default `max_retries`. What must be
    /// acknowledged is governed by the `ack_*` settings alone.
    pub max_retries: Option<u32>,
    /// Makes a repeated send harmless: within `idempotency.window` the same key gets the first answer again.
    pub idempotency_key: Option<String>,
    /// The distributed trace that it belongs to: what becomes of it is told to
    /// [`HubBuilder::span_sink`](crate::HubBuilder::span_sink), and webhooks carry it on.
    pub trace: Option<TraceContext>,
}

impl SendOptions {
    /// Shows this user id as the sender.
    #[must_use]
    pub fn sender(mut self, sender_id: impl Into<String>) -> Self {
        self.sender_id = Some(sender_id.into());
        self
    }

    /// Gives the message a type of the application's.
    #[must_use]
    pub fn message_type(mut self, message_type: impl Into<String>) -> Self {
        self.message_type = Some(message_type.into());
        self
    }

    /// Sets the queue class.
    #[must_use]
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// Asks the receiver for an acknowledgement.
    #[must_use]
    pub fn require_ack(mut self) -> Self {
        self.require_ack = true;
        self
    }

    /// Sets how long it may wait for its receiver.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Sets how often a plain message is tried again.
    #[must_use]
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.max_retries = Some(retries);
        self
    }

    /// Names the send, so that it can be repeated without harm.
    #[must_use]
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// Says which distributed trace it belongs to.
    #[must_use]
    pub fn trace(mut self, context: TraceContext) -> Self {
        self.trace = Some(context);
        self
    }

    pub(crate) fn reliability(&self) -> Reliability<'_> {
        Reliability {
            require_ack: self.require_ack,
            receipt: false,
            ttl: self.ttl,
            max_retries: self.max_retries,
            idempotency_key: self.idempotency_key.as_deref(),
            trace: self.trace,
        }
    }

    /// Addresses one connection of the user.
    #[must_use]
    pub fn client(mut self, client_id: impl Into<String>) -> Self {
        self.client_id = Some(client_id.into());
        self
    }
}

/// An accepted message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SendReceipt {
    /// The message's id.
    pub id: Uuid,
    /// Where it stands.
    #[serde(flatten)]
    pub fate: Fate,
    /// Whether it answers a repetition: nothing was sent for that.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub duplicate: bool,
}

impl SendReceipt {
    pub(crate) fn new(id: Uuid, fate: Fate) -> Self {
        Self { id, fate, duplicate: false }
    }
}

/// A plain message to a user that is being sent.
struct PlainSend<'m> {
    id: Uuid,
    direct: &'m Direct<'m>,
    max_retries: Option<u32>,
    /// A program sends it, or a client by way of a program.
    is_over_http: bool,
    record: Record<'m>,
}

impl PlainSend<'_> {
    /// Programs may ask what became of it; between clients that costs more than it is worth.
    fn is_remembered(&self) -> bool {
        self.is_over_http
    }

    /// Whether it may wait in the inbox. What is for one connection only ends with that.
    fn may_be_stored(&self) -> bool {
        self.direct.target_client.is_none() && has_inbox(self.direct.target)
    }
}

/// One message to one user.
pub(crate) struct Direct<'m> {
    pub(crate) message_type: &'m str,
    pub(crate) sender_id: &'m str,
    pub(crate) content: &'m RawValue,
    pub(crate) priority: Priority,
    pub(crate) target: &'m str,
    pub(crate) target_client: Option<&'m str>,
    /// The connection it came from; the sender's other ones are shown it too.
    pub(crate) from: Option<&'m Arc<Session>>,
}

impl Core {
    /// Sends a program's message to a user.
    pub(crate) fn push(
        self: &Arc<Self>,
        user_id: &str,
        content: &RawValue,
        options: &SendOptions,
        via: Via<'_>,
        watch: Option<Watch>,
        answer: Answer,
    ) {
        let direct = Direct {
            message_type: options.message_type.as_deref().unwrap_or("user_message"),
            sender_id: options.sender_id.as_deref().unwrap_or(SYSTEM),
            content,
            priority: options.priority,
            target: user_id,
            target_client: options.client_id.as_deref(),
            from: None,
        };
        self.send_user(&direct, &options.reliability(), via, watch, answer);
    }

    /// Sends a plain message to the connections of a user. Whoever is away has an inbox, or the message fails.
    pub(crate) fn send_plain(
        self: &Arc<Self>,
        direct: &Direct<'_>,
        id: Uuid,
        wish: &Reliability<'_>,
        via: Via<'_>,
        watch: Option<Watch>,
    ) -> Result<Plain, ErrorReply> {
        let plain = PlainSend {
            id,
            direct,
            // What is for one connection ends with it.
            max_retries: if direct.target_client.is_some() { Some(0) } else { wish.max_retries },
            is_over_http: !matches!(via, Via::Client),
            record: Record {
                kind: Kind::Plain,
                wants_receipt: wish.receipt,
                is_from_client: via.is_client(),
                priority: direct.priority,
                timestamp: now_ms(),
                message_type: direct.message_type,
                sender_id: direct.sender_id,
                room_id: None,
                only: None,
                except: None,
                content: direct.content,
            },
        };
        let user = self.users.get(direct.target);
        let recipients = match (&user, direct.target_client) {
            (None, _) => return Ok(self.away(&plain, watch)),
            (Some(user), None) => user.recipients(),
            (Some(user), Some(client_id)) => {
                let session = user.find_client(client_id).filter(|s| s.outbound.is_open());
                Recipients::One(session.ok_or(ErrorCode::ClientNotFound)?)
            }
        };
        let delivery = plain.record.delivery(id);
        let sent = if self.mail.holding_back(direct.target) {
            let only = direct.target_client.and_then(|_| recipients.as_slice().first().map(|session| session.id));
            Ok((self.pass_through(&plain, only, watch), true))
        } else {
            with_message(&delivery, |frame| self.deliver(&plain, &recipients, frame, watch))
        };
        let (fate, is_tracked) = match sent {
            Ok(sent) => sent,
            Err(watch) => return Ok(self.away(&plain, watch)),
        };
        if let Some(from) = direct.from.filter(|from| from.user().id.as_str() != direct.target) {
            Self::echo(from, &delivery, direct.target);
        }
        self.note_plain(&plain, fate, is_tracked);
        Ok(Plain::Done(SendReceipt::new(id, fate)))
    }

    /// Shows a message to a connection whose user has no inbox: now or never.
    pub(crate) fn show_live(self: &Arc<Self>, record: &Record<'_>, id: Uuid, session: Arc<Session>) {
        let user = Arc::clone(&session.user());
        let direct = Direct {
            message_type: record.message_type,
            sender_id: record.sender_id,
            content: record.content,
            priority: record.priority,
            target: user.id.as_str(),
            target_client: None,
            from: None,
        };
        let plain =
            PlainSend { id, direct: &direct, max_retries: None, is_over_http: !record.is_from_client, record: *record };
        let recipients = Recipients::One(session);
        let sent = with_message(&record.delivery(id), |frame| self.deliver(&plain, &recipients, frame, None));
        if sent.is_err() {
            self.settle_at_once(&plain, FailureReason::ConnClosed, None);
        }
    }

    /// The receiver is away.
    fn away(self: &Arc<Self>, plain: &PlainSend<'_>, watch: Option<Watch>) -> Plain {
        if plain.may_be_stored() && self.stores_for_absent() {
            return Plain::Away(watch);
        }
        let fate = Fate::failed(FailureReason::UserOffline);
        self.settle_at_once(plain, FailureReason::UserOffline, watch);
        self.note_plain(plain, fate, false);
        Plain::Done(SendReceipt::new(plain.id, fate))
    }

    /// Has the receiver's mailbox send it, behind what it sends before.
    fn pass_through(self: &Arc<Self>, plain: &PlainSend<'_>, only: Option<Uuid>, watch: Option<Watch>) -> Fate {
        let owner = Id::generated(plain.direct.target);
        let body = plain.record.encode();
        let transit =
            Transit::new(self, plain.id, body.clone(), owner.clone(), plain.is_remembered(), watch, plain.max_retries);
        let letter = Letter { id: plain.id, kind: Kind::Plain, body, expires_at: None, only, except: None };
        self.pass_on(&owner, letter, transit);
        Fate::PENDING
    }

    /// Writes one frame to each recipient. Returns where the message stands, and whether a [`Transit`] has it. The
    /// watch comes back where the message is not accepted: nobody takes it now, but the inbox may.
    fn deliver(
        self: &Arc<Self>,
        plain: &PlainSend<'_>,
        recipients: &Recipients,
        frame: &Encoded<'_>,
        watch: Option<Watch>,
    ) -> Result<(Fate, bool), Option<Watch>> {
        let watch = Cell::new(watch);
        let ledger = self.fanouts.stats().ledger();
        let mut transit: Option<Arc<Transit>> = None;
        let mut written = 0;
        let mut dropped = Vec::new();
        let begin = |user_id: &Id| {
            let body = plain.record.encode();
            Transit::new(self, plain.id, body, user_id.clone(), plain.is_remembered(), watch.take(), plain.max_retries)
        };
        for session in recipients.as_slice() {
            let mut track = || Some(transit.get_or_insert_with(|| begin(&session.user().id)).wait_on_one_more());
            match session.offer(frame, plain.record.priority, false, &mut track) {
                Sent::Written => written += 1,
                Sent::Dropped => {
                    self.trace_full_queue(session, plain.id);
                    dropped.push(Arc::clone(session));
                }
                Sent::Queued | Sent::Closed => {}
            }
        }
        if written == 0 && dropped.is_empty() && transit.is_none() {
            return Err(watch.take());
        }
        if written == 0 && transit.is_none() && self.spills() && plain.may_be_stored() {
            // Nobody has it in a queue: it is stored as if its receiver were away.
            return Err(watch.take());
        }
        if written == 0 && !dropped.is_empty() && self.may_retry(FailureReason::QueueFull, plain.max_retries) {
            let transit = transit.get_or_insert_with(|| begin(&dropped[0].user().id));
            transit.hold();
            self.retry(Arc::clone(transit), frame.plain().to_vec(), std::mem::take(&mut dropped));
        }
        for session in dropped {
            self.tell_gap(&session, frame.plain().len());
        }
        match transit {
            Some(transit) => {
                if written > 0 {
                    ledger.note(|tally| tally.copies += written);
                    transit.sent();
                }
                transit.one_less(FailureReason::QueueFull);
                Ok((if written > 0 { Fate::SENT } else { Fate::PENDING }, true))
            }
            None if written > 0 => {
                ledger.note(|tally| {
                    tally.accepted += 1;
                    tally.sent += 1;
                    tally.copies += written;
                });
                self.settled_at_once(plain, Fate::SENT, watch.take());
                Ok((Fate::SENT, false))
            }
            None => {
                self.settle_at_once(plain, FailureReason::QueueFull, watch.take());
                Ok((Fate::failed(FailureReason::QueueFull), false))
            }
        }
    }

    /// Offers a message to the connections that its receiver has now; `reason` is why the try before failed.
    pub(crate) fn offer_again(self: &Arc<Self>, transit: &Arc<Transit>, reason: FailureReason) {
        let Some(record) = Record::decode(transit.body()) else { return transit.one_less(reason) };
        let owner = transit.recipient().clone();
        if self.mail.holding_back(owner.as_str()) {
            let (id, body) = (transit.id(), transit.body().clone());
            let letter = Letter { id, kind: Kind::Plain, body, expires_at: None, only: None, except: None };
            return self.pass_on(&owner, letter, Arc::clone(transit));
        }
        if let Some(user) = self.users.get(owner.as_str()) {
            let mut full = Vec::new();
            with_message(&record.delivery(transit.id()), |frame| {
                for session in user.recipients().as_slice() {
                    match session.offer(frame, record.priority, false, &mut || Some(transit.wait_on_one_more())) {
                        Sent::Written => transit.written(),
                        Sent::Dropped => full.push(Arc::clone(session)),
                        Sent::Queued | Sent::Closed => {}
                    }
                }
                if !full.is_empty() && !transit.is_settled() {
                    self.refused_by_queue(transit, frame, full);
                }
            });
        }
        transit.one_less(reason);
    }

    /// Queues were full: they are tried again, where that may help, or tell their peers what they miss.
    pub(crate) fn refused_by_queue(
        self: &Arc<Self>,
        transit: &Arc<Transit>,
        frame: &Encoded<'_>,
        full: Vec<Arc<Session>>,
    ) {
        if self.may_retry(FailureReason::QueueFull, transit.max_retries()) {
            transit.hold();
            self.retry(Arc::clone(transit), frame.plain().to_vec(), full);
            return;
        }
        transit.refused();
        if self.spills() {
            // Whether it is stored or one of several devices has missed it shows when all have been asked.
            return;
        }
        for session in full {
            self.tell_gap(&session, frame.plain().len());
        }
    }

    /// Whether plain messages wait in the inbox of who is away.
    fn stores_for_absent(&self) -> bool {
        self.mail.keeper().is_some() && self.settings().failure_handlers.offline_storage != StorageKind::None
    }

    /// Whether what finds a full queue goes to the inbox.
    fn spills(&self) -> bool {
        self.fanouts.queue_policy() == QueuePolicy::Spill
    }

    /// Stores a message that was dropped from a full queue, where the settings say so.
    pub(crate) fn spill(self: &Arc<Self>, transit: &Arc<Transit>) -> bool {
        if !self.spills() || !has_inbox(transit.recipient().as_str()) {
            return false;
        }
        self.store_transit(transit);
        true
    }

    /// Shows a direct message to the sender's other connections.
    pub(crate) fn echo(from: &Arc<Session>, delivery: &Delivery<'_>, target: &str) {
        let Recipients::Many(sessions) = from.user().recipients() else { return };
        let delivery = Delivery { echo_target: Some(target), ..*delivery };
        with_message(&delivery, |frame| {
            for session in sessions.iter().filter(|s| !Arc::ptr_eq(s, from)) {
                if session.offer(frame, delivery.priority, false, &mut || None) == Sent::Dropped {
                    session.outbound.tell_gap(frame.plain().len());
                }
            }
        });
    }

    /// Accepts a message that has nowhere to go.
    fn settle_at_once(self: &Arc<Self>, plain: &PlainSend<'_>, reason: FailureReason, watch: Option<Watch>) {
        self.count_failure(reason, plain.direct.target);
        self.fanouts.stats().ledger().note(|tally| {
            tally.accepted += 1;
            note_failure(tally, reason);
        });
        self.settled_at_once(plain, Fate::failed(reason), watch);
        let message = Arc::new(plain.record.message(plain.id));
        let recipient = Id::generated(plain.direct.target);
        let event = FailureEvent::new(message, recipient, reason, reason.as_str());
        self.route_failure(event);
    }

    /// Takes note of a fate that was final at once.
    fn settled_at_once(&self, plain: &PlainSend<'_>, fate: Fate, watch: Option<Watch>) {
        if let Some(watch) = watch {
            watch.attempt();
            watch.finish(plain.id, fate);
        }
        if plain.record.wants_receipt {
            self.send_receipt(plain.id, &plain.record, plain.direct.target, fate, 1);
        }
    }

    /// Has the handlers of a failure called; observers hear of it, too. Who finds a failure counts it, see
    /// [`count_failure`](Self::count_failure).
    pub(crate) fn route_failure(&self, mut event: FailureEvent) {
        event.user_type = event.user_type.or_else(|| self.user_type_of(event.recipient.as_str()));
        let event_type = EventType::of_failure(event.reason.kind());
        self.events.publish_with(event_type, || Event::failure(FailureInfo::from(&event)));
        self.failures.route(event);
    }

    /// Takes note of a plain message that was accepted, and of its end where it has it.
    fn note_plain(&self, plain: &PlainSend<'_>, fate: Fate, is_tracked: bool) {
        let info = || plain.record.info(plain.id, plain.direct.target);
        if plain.is_remembered() {
            let recipient = Id::generated(plain.direct.target);
            self.note_outcome(plain.id, plain.record.sender_id, &recipient, fate, 1);
        }
        self.events.publish_with(EventType::MessageSent, || Event::MessageSent { message: info(), recipients: 1 });
        if !is_tracked {
            self.note_end_of(info, fate);
        }
    }

    /// Sends a connection's plain message to the other members of its room.
    pub(crate) fn send_room_plain(
        &self,
        session: &Session,
        seat: &Seat,
        content: &RawValue,
    ) -> Result<(Uuid, usize), ErrorReply> {
        self.publish_room(seat, "room_message", session.user().id.as_str(), content, true, None)
    }

    /// Sends a connection's message to the other members of its room, with wishes.
    pub(crate) fn send_room_from(
        self: &Arc<Self>,
        session: &Arc<Session>,
        seat: &Seat,
        content: &RawValue,
        wish: &Reliability<'_>,
        answer: Answer,
    ) {
        self.send_room_with(
            &RoomSend {
                seat,
                sender: Some(session),
                message_type: "room_message",
                sender_id: session.user().id.as_str(),
                content,
                wish,
                via: Via::Client,
            },
            answer,
        );
    }

    /// Sends a program's message to all members of a room.
    pub(crate) fn send_room(
        self: &Arc<Self>,
        room_id: &str,
        content: &RawValue,
        options: &SendOptions,
        via: Via<'_>,
        answer: Answer,
    ) {
        let Some(room) = self.rooms.get(room_id) else { return answer(Err(ErrorCode::RoomNotFound.into())) };
        self.send_room_with(
            &RoomSend {
                seat: &Seat { room, slot: 0 },
                sender: None,
                message_type: options.message_type.as_deref().unwrap_or("room_message"),
                sender_id: options.sender_id.as_deref().unwrap_or(SYSTEM),
                content,
                wish: &options.reliability(),
                via,
            },
            answer,
        );
    }

    pub(crate) fn publish_room(
        &self,
        seat: &Seat,
        message_type: &str,
        sender_id: &str,
        content: &RawValue,
        exclude_seat: bool,
        trace: Option<TraceContext>,
    ) -> Result<(Uuid, usize), ErrorReply> {
        let id = Uuid::now_v7();
        self.traced.begin(id, trace);
        let room = &seat.room;
        let delivery = Delivery {
            room_id: Some(room.id.as_str()),
            ..Delivery::new(id, message_type, sender_id, content, now_ms())
        };
        let except = exclude_seat.then_some(seat.slot);
        let published = with_message(&delivery, |frame| room.fanout.publish(frame, except));
        match published {
            Ok(recipients) => {
                self.events.publish_with(EventType::MessageSent, || Event::MessageSent {
                    message: MessageInfo {
                        id,
                        message_type: message_type.to_owned(),
                        sender_id: sender_id.to_owned(),
                        room_id: Some(room.id.to_string()),
                        user_id: None,
                    },
                    recipients: recipients as u64,
                });
                Ok((id, recipients))
            }
            // It was deleted, and the sender is not in a new one of this id.
            Err(PublishError::Closed) if self.rooms.get(room.id.as_str()).is_some() => Err(ErrorCode::NotInRoom.into()),
            Err(PublishError::Closed) => Err(ErrorCode::RoomNotFound.into()),
            Err(PublishError::Full) => {
                self.refuse_broadcast(&delivery, &room.id);
                Err(ErrorReply::new(ErrorCode::Full, "too much waits to be sent to this room"))
            }
        }
    }

    /// Sends a program's message to every connection, or to those of one user type.
    pub(crate) fn broadcast(
        &self,
        content: &RawValue,
        user_type: Option<UserType>,
        options: &SendOptions,
    ) -> Result<(Uuid, usize), ErrorReply> {
        let message_type = options.message_type.as_deref().unwrap_or("broadcast");
        let sender_id = options.sender_id.as_deref().unwrap_or(SYSTEM);
        let delivery = Delivery::new(Uuid::now_v7(), message_type, sender_id, content, now_ms());
        self.traced.begin(delivery.id, options.trace);
        let recipients = with_message(&delivery, |frame| self.publish_everywhere(user_type, |_| frame))?;
        self.note_broadcast(&delivery, recipients);
        Ok((delivery.id, recipients))
    }

    /// GoHub's broadcast: the bare text for connections that did not select `wsc.v1`, a `broadcast` for the others.
    pub(crate) fn broadcast_text(&self, text: &str) -> Result<(Uuid, usize), ErrorReply> {
        let content = serde_json::value::to_raw_value(text)
            .map_err(|e| ErrorReply::new(ErrorCode::ServerError, e.to_string()))?;
        let delivery = Delivery::new(Uuid::now_v7(), "broadcast", SYSTEM, &content, now_ms());
        let bare = with_frame(|out| out.extend_from_slice(text.as_bytes()), <[u8]>::to_vec);
        let bare = Encoded::new(&bare);
        let recipients = with_message(&delivery, |frame| {
            self.publish_everywhere(None, |speaks_v1| if speaks_v1 { frame } else { &bare })
        })?;
        self.note_broadcast(&delivery, recipients);
        Ok((delivery.id, recipients))
    }

    fn publish_everywhere<'f>(
        &self,
        user_type: Option<UserType>,
        frame: impl Fn(bool) -> &'f Encoded<'f>,
    ) -> Result<usize, ErrorReply> {
        let mut recipients = 0;
        let mut refused = false;
        for (fanout, speaks_v1) in self.everyone.select(user_type) {
            match fanout.publish(frame(speaks_v1), None) {
                Ok(count) => recipients += count,
                Err(_) => refused = true,
            }
        }
        if refused && recipients == 0 {
            self.count_refusal(FailureReason::BroadcastFull);
            return Err(ErrorReply::new(ErrorCode::Full, "too many broadcasts wait to be sent"));
        }
        Ok(recipients)
    }

    /// A room, or everybody, has too much waiting: counted, and told to handlers with the room as the recipient.
    fn refuse_broadcast(&self, delivery: &Delivery<'_>, recipient: &Id) {
        self.count_refusal(FailureReason::BroadcastFull);
        let Delivery { id, message_type, sender_id, content, timestamp, .. } = *delivery;
        let mut message = HubMessage::new(id, message_type, sender_id, content, timestamp);
        message.room_id = delivery.room_id.map(str::to_owned);
        let reason = FailureReason::BroadcastFull;
        self.route_failure(FailureEvent::new(Arc::new(message), recipient.clone(), reason, reason.as_str()));
    }

    fn note_broadcast(&self, delivery: &Delivery<'_>, recipients: usize) {
        self.events.publish_with(EventType::MessageSent, || Event::MessageSent {
            message: MessageInfo {
                id: delivery.id,
                message_type: delivery.message_type.to_owned(),
                sender_id: delivery.sender_id.to_owned(),
                room_id: None,
                user_id: None,
            },
            recipients: recipients as u64,
        });
    }
}

/// Encodes a message once, for all who get it.
pub(crate) fn with_message<R>(delivery: &Delivery<'_>, send: impl FnOnce(&Encoded<'_>) -> R) -> R {
    with_frame(|out| delivery.encode(out), |bytes| send(&Encoded::new(bytes)))
}

/// Sender of what a program pushes without naming one.
pub(crate) const SYSTEM: &str = "system";
