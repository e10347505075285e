//! Sending what must not get lost, and what must wait.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::value::RawValue;
use uuid::Uuid;
use wsc_delivery::mailbox::{Kind, Letter, Millis};
use wsc_failure::FailureEvent;
use wsc_protocol::{
    ErrorCode, ErrorReply, Event, EventType, FailureReason, Fate, Id, MessageInfo, Outcome, Priority, TraceContext,
    encode,
};

use super::{Accept, Answer, Answered, Begun, KeyedSend, Memory, MessageFate, News, Record, Told, Watch, has_inbox};
use crate::{
    core::Core,
    encode::{now_ms, with_frame},
    ledger::Transit,
    routing::{Direct, SendReceipt},
    session::{Seat, Session, SessionRef},
};

/// What a sender wants beyond delivery.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reliability<'m> {
    /// The receiver must acknowledge; what must be acknowledged is stored first.
    pub(crate) require_ack: bool,
    /// The sending user is told the final outcome.
    pub(crate) receipt: bool,
    /// Default `storage.message_ttl`, which it cannot exceed.
    pub(crate) ttl: Option<Duration>,
    /// How often a plain message is tried again; default `max_retries`.
    pub(crate) max_retries: Option<u32>,
    pub(crate) idempotency_key: Option<&'m str>,
    /// The distributed trace that it belongs to.
    pub(crate) trace: Option<TraceContext>,
}

/// One message to a room.
pub(crate) struct RoomSend<'m> {
    pub(crate) seat: &'m Seat,
    /// The connection that sends, which gets no copy.
    pub(crate) sender: Option<&'m Arc<Session>>,
    pub(crate) message_type: &'m str,
    pub(crate) sender_id: &'m str,
    pub(crate) content: &'m RawValue,
    pub(crate) wish: &'m Reliability<'m>,
    pub(crate) via: Via<'m>,
}

/// Who sends: what keys and limits are counted for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Via<'m> {
    /// A connection of the user that is the sender.
    Client,
    /// A user, over HTTP.
    User(&'m str),
    /// The embedding program, or a caller of the HTTP API by its name.
    Program(&'m str),
}

impl Via<'_> {
    /// Whether a client sends, over its connection or over HTTP, and no program: clients have limits.
    pub(crate) fn is_client(self) -> bool {
        !matches!(self, Self::Program(_))
    }
}

impl Core {
    /// Sends to a user. `answer` is called once: at once for a plain message to somebody who is there, else when the
    /// store has it and a first write was tried.
    pub(crate) fn send_user(
        self: &Arc<Self>,
        direct: &Direct<'_>,
        wish: &Reliability<'_>,
        via: Via<'_>,
        watch: Option<Watch>,
        answer: Answer,
    ) {
        let priority = direct.priority.as_str();
        let parts = [direct.message_type, direct.content.get(), direct.target_client.unwrap_or_default(), priority];
        let keyed = match self.keyed(wish, via, direct.sender_id, &format!("user\0{}", direct.target), &parts) {
            Ok(keyed) => keyed,
            Err(error) => return answer(Err(error)),
        };
        let Some(answer) = self.begin(keyed, answer) else { return };
        let id = Uuid::now_v7();
        self.traced.begin(id, wish.trace);
        if let Err(error) = self.check_reliable(wish, direct.target) {
            return answer(Err(error));
        }
        if !wish.require_ack {
            match self.send_plain(direct, id, wish, via, watch) {
                Ok(Plain::Done(receipt)) => return answer(Ok(Answered { receipt, recipients: 1 })),
                Err(error) => return answer(Err(error)),
                Ok(Plain::Away(watch)) => {
                    self.accept_user(direct, id, Kind::Plain, wish, via, keyed, watch, None, answer);
                    return;
                }
            }
        }
        let only = match direct.target_client {
            None => None,
            Some(client_id) => match self.users.get(direct.target).and_then(|user| user.find_client(client_id)) {
                Some(session) if session.outbound.is_open() => Some(session.id),
                _ => return answer(Err(ErrorCode::ClientNotFound.into())),
            },
        };
        self.accept_user(direct, id, Kind::Reliable, wish, via, keyed, watch, only, answer);
    }

    #[expect(clippy::too_many_arguments, reason = "everything that makes a stored message, in one place")]
    fn accept_user(
        self: &Arc<Self>,
        direct: &Direct<'_>,
        id: Uuid,
        kind: Kind,
        wish: &Reliability<'_>,
        via: Via<'_>,
        keyed: Option<KeyedSend>,
        watch: Option<Watch>,
        only: Option<Uuid>,
        answer: Answer,
    ) {
        let record = Record {
            kind,
            wants_receipt: wish.receipt,
            is_from_client: via.is_client(),
            priority: direct.priority,
            timestamp: now_ms(),
            message_type: direct.message_type,
            sender_id: direct.sender_id,
            room_id: None,
            only,
            except: None,
            content: direct.content,
        };
        if let Err(error) = self.count_sender(&record, direct.target) {
            self.count_refusal(FailureReason::PendingFull);
            self.route_refusal(&record, id, Id::generated(direct.target), &error);
            return answer(Err(error));
        }
        let expires_at = self.expires_at(wish.ttl, record.timestamp);
        let letter = Letter { id, kind, body: record.encode(), expires_at: Some(expires_at), only, except: None };
        let from = direct.from.filter(|from| from.user().id.as_str() != direct.target).cloned();
        let owner = Id::generated(direct.target);
        let core = Arc::clone(self);
        let (body, user_id) = (letter.body.clone(), owner.clone());
        let told: Told = Box::new(move |result| {
            answer(result.map(|fate| {
                if let (Some(from), Some(record)) = (from, Record::decode(&body)) {
                    Self::echo(&from, &record.delivery(id), user_id.as_str());
                }
                core.note_accepted(&body, id, &user_id, fate);
                Answered { receipt: SendReceipt::new(id, fate), recipients: 1 }
            }));
        });
        let told = self.note_refused(id, owner.clone(), letter.body.clone(), told);
        let note = keyed.map(|keyed| keyed.note(id, 1, self.note_ends()));
        self.mail(&owner, News::Accept(Box::new(Accept { letter, note, told, watch, is_in_flight: false })));
    }

    /// Sends to a room: to its members' users, each of whom must acknowledge it, or to its members as it is.
    pub(crate) fn send_room_with(self: &Arc<Self>, send: &RoomSend<'_>, answer: Answer) {
        let &RoomSend { seat, sender, message_type, sender_id, content, wish, via } = send;
        let room_id = seat.room.id.as_str();
        let parts = [message_type, content.get()];
        let keyed = match self.keyed(wish, via, sender_id, &format!("room\0{room_id}"), &parts) {
            Ok(keyed) => keyed,
            Err(error) => return answer(Err(error)),
        };
        let Some(answer) = self.begin(keyed, answer) else { return };
        if let Err(error) = self.check_reliable(wish, "") {
            return answer(Err(error));
        }
        if !wish.require_ack {
            if !seat.room.is_held_for(sender_id) {
                let published = self.publish_room(seat, message_type, sender_id, content, sender.is_some(), wish.trace);
                return answer(published.map(Answered::published));
            }
            // What the same sender wants to be acknowledged is on its way to the store: this must not overtake it.
            let (core, seat, excludes) = (Arc::clone(self), seat.clone(), sender.is_some());
            let (message_type, sender_id) = (message_type.to_owned(), sender_id.to_owned());
            let (content, trace) = (content.to_owned(), wish.trace);
            self.tasks.spawn(async move {
                seat.room.released(&sender_id).await;
                let published = core.publish_room(&seat, &message_type, &sender_id, &content, excludes, trace);
                answer(published.map(Answered::published));
            });
            return;
        }
        let (users, nameless) = match self.reliable_recipients(seat, sender) {
            Ok(recipients) => recipients,
            Err(error) => return answer(Err(error)),
        };
        let id = Uuid::now_v7();
        self.traced.begin(id, wish.trace);
        let record = Record {
            kind: Kind::Reliable,
            wants_receipt: wish.receipt,
            is_from_client: via.is_client(),
            priority: Priority::Normal,
            timestamp: now_ms(),
            message_type,
            sender_id,
            room_id: Some(room_id),
            only: None,
            except: None,
            content,
        };
        let body = record.encode();
        let expires_at = self.expires_at(wish.ttl, record.timestamp);
        let connections = users.iter().map(|user| user.connections).sum::<u64>() + nameless.len() as u64;
        let note = keyed.map(|keyed| keyed.note(id, connections, self.note_ends()));
        let shown = nameless.len() as u64;
        for session in nameless {
            self.show_live(&Record { kind: Kind::Plain, wants_receipt: false, ..record }, id, session);
        }
        if users.is_empty() {
            let receipt = SendReceipt::new(id, Fate::SENT);
            return answer(Ok(Answered { receipt, recipients: shown }));
        }
        seat.room.hold(sender_id);
        let room = Arc::clone(&seat.room);
        let sender_id = sender_id.to_owned();
        let answer: Answer = Box::new(move |result| {
            room.release(&sender_id);
            answer(result);
        });
        let gathered = Gathered { left: users.len(), accepted: shown, error: None, answer: Some(answer) };
        let gathered = Arc::new(Mutex::new(gathered));
        let own_body = sender.map(|sender| Record { except: Some(sender.id), ..record }.encode());
        for Member { user_id, connections } in users {
            // The sending connection gets no copy; its user's other devices do.
            let own = sender.zip(own_body.as_ref()).filter(|(sender, _)| sender.user().id == user_id);
            let (except, body) = own.map_or((None, &body), |(sender, own)| (Some(sender.id), own));
            let (expires_at, body) = (Some(expires_at), body.clone());
            let letter = Letter { id, kind: Kind::Reliable, body: body.clone(), expires_at, only: None, except };
            let (core, owner) = (Arc::clone(self), user_id.clone());
            let (kept, gathered) = (body.clone(), Arc::clone(&gathered));
            let told: Told = Box::new(move |result| {
                if let Ok(fate) = &result {
                    core.note_outcome_of(&kept, id, &owner, *fate);
                }
                if let Some((answer, accepted, error)) = Gathered::add(&gathered, connections, result.err()) {
                    answer(core.room_answer(&kept, id, accepted, error));
                }
            });
            let told = match self.count_sender(&record, user_id.as_str()) {
                Ok(()) => self.note_refused(id, user_id.clone(), body.clone(), told),
                Err(error) => {
                    self.count_refusal(FailureReason::PendingFull);
                    self.route_refusal(&record, id, user_id, &error);
                    told(Err(error));
                    continue;
                }
            };
            let accept = Accept { letter, note: note.clone(), told, watch: None, is_in_flight: false };
            self.mail(&user_id, News::Accept(Box::new(accept)));
        }
    }

    /// The users of a room's other members, and the connections of those that have no inbox.
    fn reliable_recipients(
        &self,
        seat: &Seat,
        sender: Option<&Arc<Session>>,
    ) -> Result<(Vec<Member>, Vec<Arc<Session>>), ErrorReply> {
        let most = self.settings().rooms.max_reliable_recipients;
        let mut users: Vec<Member> = Vec::new();
        let mut places: HashMap<Id, usize> = HashMap::new();
        let mut nameless = Vec::new();
        let (members, _) = seat.room.fanout.members(0, usize::MAX);
        for SessionRef(session) in members {
            if sender.is_some_and(|sender| Arc::ptr_eq(sender, &session)) {
                continue;
            }
            let user = session.user();
            let user_id = &user.id;
            if !has_inbox(user_id.as_str()) {
                nameless.push(session);
                continue;
            }
            if let Some(place) = places.get(user_id) {
                users[*place].connections += 1;
                continue;
            }
            places.insert(user_id.clone(), users.len());
            users.push(Member { user_id: user_id.clone(), connections: 1 });
            if users.len() as u64 > most {
                let details = serde_json::json!({ "limit": most });
                let error = ErrorReply::new(ErrorCode::TooLarge, "too many recipients for an acknowledged message");
                return Err(error.with_details(details));
            }
        }
        Ok((users, nameless))
    }

    /// A letter that is refused does not count for its sender. Handlers hear of a full inbox.
    fn note_refused(self: &Arc<Self>, id: Uuid, user_id: Id, body: Bytes, told: Told) -> Told {
        let core = Arc::clone(self);
        Box::new(move |result| {
            if let (Err(error), Some(record)) = (&result, Record::decode(&body)) {
                core.forget_sender(&record);
                if error.code == ErrorCode::Full {
                    core.route_refusal(&record, id, user_id, error);
                }
            }
            told(result);
        })
    }

    fn route_refusal(&self, record: &Record<'_>, id: Uuid, user_id: Id, error: &ErrorReply) {
        let message = Arc::new(record.message(id));
        self.route_failure(FailureEvent::new(message, user_id, FailureReason::PendingFull, error.message.clone()));
    }

    /// Has a mailbox send a plain message behind what it sends before.
    pub(crate) fn pass_on(self: &Arc<Self>, owner: &Id, letter: Letter, transit: Arc<Transit>) {
        self.mail(owner, News::Pass(letter, transit));
    }

    /// Stores a plain message that was in flight. Where the inbox does not take it, it has failed.
    pub(crate) fn store_transit(self: &Arc<Self>, transit: &Arc<Transit>) {
        let Some(record) = Record::decode(transit.body()) else { return };
        // It was accepted, so its sender's limit is no reason to lose it.
        self.add_to_sender(&record);
        let expires_at = Some(self.expires_at(None, record.timestamp));
        let (id, body) = (transit.id(), transit.body().clone());
        let letter = Letter { id, kind: Kind::Plain, body, expires_at, only: None, except: None };
        let transit = Arc::clone(transit);
        let owner = transit.recipient().clone();
        let core = Arc::clone(self);
        let told: Told = Box::new(move |result| match result {
            Ok(fate) => {
                if let Some(watch) = transit.watch() {
                    watch.finish(id, fate);
                }
                core.note_outcome_of(transit.body(), id, transit.recipient(), fate);
            }
            Err(_) => {
                if let Some(record) = Record::decode(transit.body()) {
                    core.forget_sender(&record);
                }
                transit.fail(FailureReason::QueueFull);
            }
        });
        self.mail(&owner, News::Accept(Box::new(Accept { letter, note: None, told, watch: None, is_in_flight: true })));
    }

    fn room_answer(
        &self,
        body: &[u8],
        id: Uuid,
        accepted: u64,
        error: Option<ErrorReply>,
    ) -> Result<Answered, ErrorReply> {
        if let Some(error) = error.filter(|_| accepted == 0) {
            return Err(error);
        }
        if let Some(record) = Record::decode(body) {
            self.events.publish_with(EventType::MessageSent, || Event::MessageSent {
                message: MessageInfo { user_id: None, ..record.info(id, "") },
                recipients: accepted,
            });
        }
        Ok(Answered { receipt: SendReceipt::new(id, Fate::PENDING), recipients: accepted })
    }

    /// The key of a send that names one.
    fn keyed(
        &self,
        wish: &Reliability<'_>,
        via: Via<'_>,
        sender_id: &str,
        target: &str,
        parts: &[&str],
    ) -> Result<Option<KeyedSend>, ErrorReply> {
        let Some(key) = wish.idempotency_key else { return Ok(None) };
        crate::hub::check_id("idempotency_key", key)?;
        let scope = match via {
            Via::Client => format!("user\0{sender_id}"),
            Via::User(user_id) => format!("user\0{user_id}"),
            Via::Program(name) => format!("program\0{name}"),
        };
        let ttl = wish.ttl.map_or(0, |ttl| ttl.as_millis()).to_string();
        let require_ack = if wish.require_ack { "1" } else { "0" };
        let parts = [&[sender_id, require_ack, &ttl], parts].concat();
        Ok(Some(KeyedSend::new(&scope, target, key, &parts)))
    }

    /// Looks whether a send is a repetition; `None` where it is, and its answer has been taken care of.
    fn begin(self: &Arc<Self>, keyed: Option<KeyedSend>, answer: Answer) -> Option<Answer> {
        let Some(keyed) = keyed else { return Some(answer) };
        let idempotency = self.settings().idempotency.clone();
        let window = idempotency.window.as_millis() as u64;
        let max = usize::try_from(idempotency.max_keys).unwrap_or(usize::MAX);
        let now = self.mail.now();
        match self.mail.idempotency.begin(keyed, answer, now, window, max) {
            Begun::Repeated => None,
            Begun::First(answer) => {
                let core = Arc::clone(self);
                Some(Box::new(move |result| {
                    core.mail.idempotency.finish(keyed, &result);
                    answer(result);
                }))
            }
        }
    }

    /// How long a key is remembered from now on.
    fn note_ends(&self) -> Millis {
        self.mail.now() + self.settings().idempotency.window.as_millis() as u64
    }

    fn check_reliable(&self, wish: &Reliability<'_>, target: &str) -> Result<(), ErrorReply> {
        if !wish.require_ack {
            return Ok(());
        }
        if self.mail.keeper().is_none() {
            return Err(ErrorReply::new(ErrorCode::InvalidFormat, "require_ack needs the inbox, which is off"));
        }
        if !has_inbox(target) {
            return Err(ErrorReply::new(ErrorCode::UserOffline, "this user has no name of its own, and so no inbox"));
        }
        Ok(())
    }

    fn expires_at(&self, ttl: Option<Duration>, now: Millis) -> Millis {
        let most = self.settings().storage.message_ttl;
        now + ttl.unwrap_or(most).min(most).as_millis() as u64
    }

    /// A durable message was accepted for one user.
    fn note_accepted(&self, body: &[u8], id: Uuid, user_id: &Id, fate: Fate) {
        self.note_outcome_of(body, id, user_id, fate);
        if let Some(record) = Record::decode(body) {
            self.events.publish_with(EventType::MessageSent, || Event::MessageSent {
                message: record.info(id, user_id.as_str()),
                recipients: 1,
            });
        }
    }

    fn note_outcome_of(&self, body: &[u8], id: Uuid, user_id: &Id, fate: Fate) {
        if let Some(record) = Record::decode(body) {
            self.note_outcome(id, record.sender_id, user_id, fate, u32::from(fate == Fate::PENDING));
        }
    }

    /// A durable message reached its end for one user.
    pub(super) fn note_end(&self, record: &Record<'_>, id: Uuid, user_id: &str, fate: Fate) {
        self.note_end_of(|| record.info(id, user_id), fate);
    }

    /// Tells observers that a user-addressed message has arrived, or has not.
    pub(crate) fn note_end_of(&self, message: impl Fn() -> MessageInfo, fate: Fate) {
        if self.traced.is_active() {
            self.traced.ended(message().id, fate);
        }
        match fate.outcome {
            Outcome::Sent | Outcome::Acked => {
                self.events.publish_with(EventType::MessageDelivered, || Event::MessageDelivered {
                    message: message(),
                    recipients: 1,
                });
            }
            outcome => {
                let reason = fate.reason.unwrap_or(match outcome {
                    Outcome::Rejected => FailureReason::Rejected,
                    Outcome::Expired => FailureReason::Timeout,
                    _ => FailureReason::Unknown,
                });
                self.events.publish_with(EventType::MessageFailed, || Event::MessageFailed {
                    message: message(),
                    reason,
                    recipients: 1,
                });
            }
        }
    }

    /// Tells the sending user's connections what became of a message.
    pub(crate) fn send_receipt(&self, id: Uuid, record: &Record<'_>, user_id: &str, fate: Fate, attempts: u32) {
        let Some(sender) = self.users.get(record.sender_id).filter(|_| record.is_from_client) else { return };
        with_frame(
            |out| {
                encode::reply(out, "message_outcome", None, now_ms(), |json| {
                    json.raw("{\"id\":").uuid(id).raw(",\"recipients\":[{\"user_id\":").string(user_id);
                    json.raw(",\"outcome\":").string(fate.outcome.as_str());
                    if let Some(reason) = fate.reason {
                        json.raw(",\"reason\":").string(reason.as_str());
                    }
                    json.raw(",\"attempts\":").number(attempts.into()).raw("}]}");
                });
            },
            |frame| {
                for session in sender.sessions() {
                    session.outbound.send(frame);
                }
            },
        );
    }

    /// How much is remembered for those who ask.
    pub(crate) fn outcome_memory(&self) -> Memory {
        let settings = self.settings();
        Memory {
            retention: settings.outcomes.retention.as_millis() as u64,
            max: usize::try_from(settings.outcomes.max).unwrap_or(usize::MAX),
        }
    }

    /// What became of a message, if that is remembered.
    pub(crate) fn message_fate(&self, id: Uuid) -> Option<MessageFate> {
        self.mail.outcomes.get(id, self.mail.now(), self.outcome_memory())
    }

    /// Counts a message for the client that sent it, until it is settled. With `limits.stored_per_sender` of them
    /// waiting there can be no more for users who are away.
    fn count_sender(&self, record: &Record<'_>, user_id: &str) -> Result<(), ErrorReply> {
        let limit = self.settings().limits.stored_per_sender;
        if !record.is_from_client {
            return Ok(());
        }
        let mut count = self.mail.stored_by.entry(record.sender_id.into()).or_insert(0);
        if limit > 0 && *count >= limit && self.users.get(user_id).is_none() {
            let details = serde_json::json!({ "limit": limit, "reason": FailureReason::PendingFull });
            let error = ErrorReply::new(ErrorCode::Full, "too many messages of this sender wait for their receivers");
            return Err(error.with_details(details));
        }
        *count += 1;
        Ok(())
    }

    fn add_to_sender(&self, record: &Record<'_>) {
        if record.is_from_client {
            *self.mail.stored_by.entry(record.sender_id.into()).or_insert(0) += 1;
        }
    }

    /// A message that a client sent is settled. Those of an earlier run were never counted.
    pub(super) fn forget_sender(&self, record: &Record<'_>) {
        if !record.is_from_client || record.timestamp < self.started_at {
            return;
        }
        if let dashmap::Entry::Occupied(mut count) = self.mail.stored_by.entry(record.sender_id.into()) {
            *count.get_mut() = count.get().saturating_sub(1);
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// What became of a plain message.
pub(crate) enum Plain {
    /// It was accepted, and stands there.
    Done(SendReceipt),
    /// Its receiver is away, and has an inbox.
    Away(Option<Watch>),
}

/// A user whose connections are in a room.
struct Member {
    user_id: Id,
    connections: u64,
}

/// The answers of the mailboxes that one room message went to.
struct Gathered {
    left: usize,
    accepted: u64,
    error: Option<ErrorReply>,
    answer: Option<Answer>,
}

impl Gathered {
    /// Adds a member with its connections, or why it was refused; returns the whole with the last.
    fn add(
        this: &Mutex<Self>,
        connections: u64,
        error: Option<ErrorReply>,
    ) -> Option<(Answer, u64, Option<ErrorReply>)> {
        let mut this = this.lock();
        this.left -= 1;
        match error {
            None => this.accepted += connections,
            some => this.error = some,
        }
        if this.left > 0 {
            return None;
        }
        Some((this.answer.take()?, this.accepted, this.error.take()))
    }
}
