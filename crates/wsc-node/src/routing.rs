//! Where messages go.

use std::sync::Arc;

use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;
use wsc_failure::FailureEvent;
use wsc_protocol::{
    ErrorCode, ErrorReply, Event, EventType, FailureReason, Fate, HubMessage, Id, MessageInfo, Priority, UserType,
    encode::Delivery,
};
use wsc_transport::{Encoded, PublishError, Sent};

use crate::{
    core::Core,
    encode::{now_ms, with_frame},
    ledger::{Transit, note_failure},
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
    /// Sends to the connections of a user. A message to an offline user fails at once: nothing is stored yet.
    pub(crate) fn send_direct(self: &Arc<Self>, direct: &Direct<'_>) -> Result<SendReceipt, ErrorReply> {
        let user = self.users.get(direct.target);
        let recipients = match (&user, direct.target_client) {
            (None, _) => return Ok(self.fail_offline(direct)),
            (Some(user), None) => user.recipients(),
            (Some(user), Some(client_id)) => {
                let session = user.find_client(client_id).filter(|s| s.outbound.is_open());
                Recipients::One(session.ok_or(ErrorCode::ClientNotFound)?)
            }
        };
        let id = Uuid::now_v7();
        let delivery = Delivery {
            id,
            message_type: direct.message_type,
            sender_id: direct.sender_id,
            room_id: None,
            echo_target: None,
            content: direct.content,
            timestamp: now_ms(),
            priority: direct.priority,
        };
        let fate = with_message(&delivery, |frame| self.deliver(direct, &delivery, &recipients, frame));
        let Some(fate) = fate else { return Ok(self.fail_offline(direct)) };
        if let Some(from) = direct.from.filter(|from| from.user.id.as_str() != direct.target) {
            Self::echo(from, &delivery, direct.target);
        }
        self.note_direct(direct, id, fate);
        Ok(SendReceipt { id, fate })
    }

    /// Writes one frame to each recipient; `None` where none of them takes messages any more.
    fn deliver(
        self: &Arc<Self>,
        direct: &Direct<'_>,
        delivery: &Delivery<'_>,
        recipients: &Recipients,
        frame: &Encoded<'_>,
    ) -> Option<Fate> {
        let ledger = self.fanouts.stats().ledger();
        let mut transit: Option<Arc<Transit>> = None;
        let mut written = 0;
        let mut dropped = Vec::new();
        let begin = |user_id: &Id| {
            let Delivery { id, message_type, sender_id, content, timestamp, priority, .. } = *delivery;
            let mut message = HubMessage::new(id, message_type, sender_id, content, timestamp);
            message.priority = priority;
            Transit::new(&self.fanouts, &self.events, &self.failures, message, user_id)
        };
        for session in recipients.as_slice() {
            let mut track = || Some(transit.get_or_insert_with(|| begin(&session.user.id)).wait_on_one_more());
            match session.outbound.deliver(frame, &mut track) {
                Sent::Written => written += 1,
                Sent::Dropped => dropped.push(Arc::clone(session)),
                Sent::Queued | Sent::Closed => {}
            }
        }
        if written == 0 && dropped.is_empty() && transit.is_none() {
            return None;
        }
        if written == 0 && !dropped.is_empty() && self.may_retry(FailureReason::QueueFull) {
            let transit = transit.get_or_insert_with(|| begin(&dropped[0].user.id));
            transit.wait_on_one_more();
            self.retry(Arc::clone(transit), frame.plain().to_vec(), std::mem::take(&mut dropped));
        }
        for session in dropped {
            session.outbound.tell_gap(frame.plain().len());
        }
        match transit {
            Some(transit) => {
                if written > 0 {
                    ledger.note(|tally| tally.copies += written);
                    transit.sent();
                }
                transit.one_less(FailureReason::QueueFull);
                Some(if written > 0 { Fate::SENT } else { Fate::PENDING })
            }
            None if written > 0 => {
                ledger.note(|tally| {
                    tally.accepted += 1;
                    tally.sent += 1;
                    tally.copies += written;
                });
                Some(Fate::SENT)
            }
            None => {
                ledger.note(|tally| {
                    tally.accepted += 1;
                    note_failure(tally, FailureReason::QueueFull);
                });
                self.fail(direct, delivery.id, FailureReason::QueueFull);
                Some(Fate::failed(FailureReason::QueueFull))
            }
        }
    }

    /// Shows a direct message to the sender's other connections.
    fn echo(from: &Arc<Session>, delivery: &Delivery<'_>, target: &str) {
        let Recipients::Many(sessions) = from.user.recipients() else { return };
        let delivery = Delivery { echo_target: Some(target), ..*delivery };
        with_message(&delivery, |frame| {
            for session in sessions.iter().filter(|s| !Arc::ptr_eq(s, from)) {
                if session.outbound.deliver(frame, &mut || None) == Sent::Dropped {
                    session.outbound.tell_gap(frame.plain().len());
                }
            }
        });
    }

    /// Accepts a message that has nowhere to go.
    fn fail_offline(&self, direct: &Direct<'_>) -> SendReceipt {
        let (id, reason) = (Uuid::now_v7(), FailureReason::UserOffline);
        self.fanouts.stats().ledger().note(|tally| {
            tally.accepted += 1;
            note_failure(tally, reason);
        });
        self.fail(direct, id, reason);
        let fate = Fate::failed(reason);
        self.note_direct(direct, id, fate);
        SendReceipt { id, fate }
    }

    fn fail(&self, direct: &Direct<'_>, id: Uuid, reason: FailureReason) {
        let mut message = HubMessage::new(id, direct.message_type, direct.sender_id, direct.content, now_ms());
        message.priority = direct.priority;
        let recipient = Id::generated(direct.target);
        self.failures.route(FailureEvent::new(Arc::new(message), recipient, reason, reason.as_str()));
    }

    fn note_direct(&self, direct: &Direct<'_>, id: Uuid, fate: Fate) {
        let info = || MessageInfo {
            id,
            message_type: direct.message_type.to_owned(),
            sender_id: direct.sender_id.to_owned(),
            room_id: None,
            user_id: Some(direct.target.to_owned()),
        };
        self.events.publish_with(EventType::MessageSent, || Event::MessageSent { message: info(), recipients: 1 });
        if fate == Fate::SENT {
            self.events.publish_with(EventType::MessageDelivered, || Event::MessageDelivered {
                message: info(),
                recipients: 1,
            });
        } else if let Some(reason) = fate.reason {
            self.events.publish_with(EventType::MessageFailed, || Event::MessageFailed {
                message: info(),
                reason,
                recipients: 1,
            });
        }
    }

    /// Sends a connection's message to the other members of its room.
    pub(crate) fn send_room_from(
        &self,
        session: &Session,
        seat: &Seat,
        content: &RawValue,
    ) -> Result<(Uuid, usize), ErrorReply> {
        self.publish_room(seat, "room_message", session.user.id.as_str(), content, true)
    }

    /// Sends a program's message to all members of a room.
    pub(crate) fn send_room(
        &self,
        room_id: &str,
        content: &RawValue,
        options: &SendOptions,
    ) -> Result<(Uuid, usize), ErrorReply> {
        let room = self.rooms.get(room_id).ok_or(ErrorCode::RoomNotFound)?;
        let message_type = options.message_type.as_deref().unwrap_or("room_message");
        let sender_id = options.sender_id.as_deref().unwrap_or(SYSTEM);
        self.publish_room(&Seat { room, slot: 0 }, message_type, sender_id, content, false)
    }

    fn publish_room(
        &self,
        seat: &Seat,
        message_type: &str,
        sender_id: &str,
        content: &RawValue,
        exclude_seat: bool,
    ) -> Result<(Uuid, usize), ErrorReply> {
        let id = Uuid::now_v7();
        let room = &seat.room;
        let delivery = Delivery {
            id,
            message_type,
            sender_id,
            room_id: Some(room.id.as_str()),
            echo_target: None,
            content,
            timestamp: now_ms(),
            priority: Priority::Normal,
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
            Err(PublishError::Closed) => Err(ErrorCode::RoomNotFound.into()),
            Err(PublishError::Full) => {
                self.failures.count(FailureReason::BroadcastFull, None, 1);
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
        let delivery = Delivery {
            id: Uuid::now_v7(),
            message_type: options.message_type.as_deref().unwrap_or("broadcast"),
            sender_id: options.sender_id.as_deref().unwrap_or(SYSTEM),
            room_id: None,
            echo_target: None,
            content,
            timestamp: now_ms(),
            priority: Priority::Normal,
        };
        let recipients = with_message(&delivery, |frame| self.publish_everywhere(user_type, |_| frame))?;
        self.note_broadcast(&delivery, recipients);
        Ok((delivery.id, recipients))
    }

    /// GoHub's broadcast: the bare text for connections that did not select `wsc.v1`, a `broadcast` for the others.
    pub(crate) fn broadcast_text(&self, text: &str) -> Result<(Uuid, usize), ErrorReply> {
        let content = serde_json::value::to_raw_value(text)
            .map_err(|e| ErrorReply::new(ErrorCode::ServerError, e.to_string()))?;
        let delivery = Delivery {
            id: Uuid::now_v7(),
            message_type: "broadcast",
            sender_id: SYSTEM,
            room_id: None,
            echo_target: None,
            content: &content,
            timestamp: now_ms(),
            priority: Priority::Normal,
        };
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
            self.failures.count(FailureReason::BroadcastFull, None, 1);
            return Err(ErrorReply::new(ErrorCode::Full, "too many broadcasts wait to be sent"));
        }
        Ok(recipients)
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
fn with_message<R>(delivery: &Delivery<'_>, send: impl FnOnce(&Encoded<'_>) -> R) -> R {
    with_frame(|out| delivery.encode(out), |bytes| send(&Encoded::new(bytes)))
}

/// Sender of what a program pushes without naming one.
pub(crate) const SYSTEM: &str = "system";
