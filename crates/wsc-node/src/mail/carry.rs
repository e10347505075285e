//! Carrying out what a mailbox asks for.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use uuid::Uuid;
use wsc_delivery::mailbox::{Copy, Effect, Input, Letter, Refusal, Sort, Transmission, Verdict, Whereabouts};
use wsc_events::ConnectionEvent;
use wsc_failure::FailureEvent;
use wsc_protocol::{
    AckInfo, CloseCode, CloseReason, DisconnectReason, ErrorCode, ErrorReply, Event, EventType, FailureReason, Fate,
    Outcome,
};
use wsc_store::NewEntry;
use wsc_transport::{Encoded, QueuePolicy, Sent, Settle, Tally};

use super::{Accept, Desk, News, Record, Slot};
use crate::{
    core::Core,
    ledger::{Transit, note_failure},
    routing::with_message,
    session::Session,
};

impl Core {
    /// Takes one piece of news and does all that follows from it at once.
    pub(super) fn take_news(self: &Arc<Self>, slot: &Arc<Slot>, desk: &mut Desk, news: News) {
        match news {
            News::Input(input) => {
                if let Input::Disconnected { conn } = &input {
                    desk.sessions.retain(|session| session.id != *conn);
                }
                self.handle(desk, input);
            }
            News::Accept(accept) => {
                let Accept { letter, note, told, watch, is_in_flight } = *accept;
                if is_in_flight {
                    desk.spilled.insert(letter.id);
                }
                desk.asked.insert(letter.id, (told, None));
                if let Some(note) = note {
                    desk.notes.insert(letter.id, note);
                }
                if let Some(watch) = watch {
                    desk.watches.insert(letter.id, watch);
                }
                self.handle(desk, Input::Accept(letter));
            }
            News::Pass(letter, transit) => {
                // Who sends a plain message has seen connections; the mailbox may be about to hear of them.
                self.look(slot, desk);
                desk.passing.insert(letter.id, transit);
                self.handle(desk, Input::Pass(letter));
            }
            News::Verdicts { ids, verdict, reason, session } => {
                (desk.acker, desk.nack_reason) = (Some(session), reason);
                for id in ids {
                    let input = match verdict {
                        Verdict::Acked => Input::Acked { id },
                        _ => Input::Nacked { id },
                    };
                    self.handle(desk, input);
                    self.carry_all_out(slot, desk);
                }
            }
            News::Taken(found) => {
                desk.is_taking = false;
                for (id, verdict, letter) in found {
                    self.handle(desk, Input::Taken { id, verdict, letter });
                    self.carry_all_out(slot, desk);
                }
            }
            News::Connected(session) => self.greet(slot, desk, session),
            News::Look => self.look(slot, desk),
        }
        self.carry_all_out(slot, desk);
        (desk.acker, desk.nack_reason) = (None, None);
        if !desk.is_taking && !desk.wanted.is_empty() {
            desk.is_taking = true;
            self.take_letters(slot, std::mem::take(&mut desk.wanted));
        }
    }

    fn carry_all_out(self: &Arc<Self>, slot: &Arc<Slot>, desk: &mut Desk) {
        while let Some(effect) = desk.effects.pop_front() {
            self.carry_out(slot, desk, effect);
        }
    }

    fn handle(&self, desk: &mut Desk, input: Input) {
        let config = Arc::clone(&self.mail.config.read());
        desk.mailbox.handle(self.mail.now(), &config, input, &mut desk.fresh);
        desk.effects.extend(desk.fresh.drain(..));
    }

    /// Tells the mailbox of every connection that its owner has.
    fn look(self: &Arc<Self>, slot: &Arc<Slot>, desk: &mut Desk) {
        let Some(user) = self.users.get(slot.owner.as_str()) else { return };
        for session in user.sessions() {
            self.greet(slot, desk, session);
        }
    }

    fn greet(&self, slot: &Slot, desk: &mut Desk, session: Arc<Session>) {
        if desk.sessions.iter().any(|known| known.id == session.id) {
            return;
        }
        let conn = session.id;
        desk.sessions.push(session);
        let nothing_rests = self.mail.keeper().is_none_or(|keeper| keeper.store().is_surely_empty(&slot.owner));
        self.handle(desk, Input::Connected { conn, nothing_rests });
    }

    fn carry_out(self: &Arc<Self>, slot: &Arc<Slot>, desk: &mut Desk, effect: Effect) {
        match effect {
            Effect::Persist(letter) => self.persist(slot, desk, letter),
            Effect::Read { after, messages, bytes } => self.read_page(slot, after, messages, bytes),
            Effect::Remove { id } => {
                if let Some(keeper) = self.mail.keeper() {
                    keeper.remove(slot.owner.clone(), id, self.mail.now());
                }
            }
            Effect::Take { id, verdict } => {
                // Whoever acknowledges what it never got makes work for the store, but only so much.
                if desk.wanted.len() < MOST_TAKES {
                    desk.wanted.push((id, verdict));
                } else {
                    self.handle(desk, Input::Taken { id, verdict, letter: None });
                }
            }
            Effect::Transmit(copy) => {
                let (conn, id) = (copy.conn, copy.id);
                let result = self.transmit(slot, desk, &copy);
                self.handle(desk, Input::Transmitted { conn, id, result });
            }
            Effect::Accepted { id, at } => {
                let is_spilled = desk.spilled.remove(&id);
                self.fanouts.stats().ledger().note(|tally| {
                    if is_spilled {
                        tally.in_flight -= 1;
                    } else {
                        tally.accepted += 1;
                    }
                    *gauge(tally, at) += 1;
                });
                desk.stands(id, fate_of(at));
                if at == Whereabouts::Resting
                    && let Some(watch) = desk.watches.remove(&id)
                {
                    watch.finish(id, Fate::STORED);
                }
            }
            Effect::Refused { id, refusal } => {
                // Counted before the sender hears of it.
                if refusal == Refusal::Full {
                    self.count_refusal(FailureReason::PendingFull);
                }
                desk.notes.remove(&id);
                desk.spilled.remove(&id);
                desk.watches.remove(&id);
                if let Some((told, _)) = desk.asked.remove(&id) {
                    told(Err(refused(refusal)));
                }
            }
            Effect::Moved { id, to } => {
                self.fanouts.stats().ledger().note(|tally| {
                    let from = match to {
                        Whereabouts::InFlight => Whereabouts::Resting,
                        Whereabouts::Resting => Whereabouts::InFlight,
                    };
                    *gauge(tally, from) -= 1;
                    *gauge(tally, to) += 1;
                });
                desk.stands(id, fate_of(to));
                self.mail.outcomes.moved(id, &slot.owner, fate_of(to), self.mail.now(), self.outcome_memory());
                if to == Whereabouts::Resting
                    && let Some(watch) = desk.watches.remove(&id)
                {
                    watch.finish(id, Fate::STORED);
                }
            }
            Effect::Settled { letter, was, fate, attempts } => {
                self.settle_letter(slot, desk, &letter, was, fate, attempts);
            }
            Effect::Passed { id } => {
                if let Some(transit) = desk.passing.remove(&id) {
                    transit.offered();
                }
            }
            Effect::Overflow { conn, id, bytes } => {
                if let Some(transit) = desk.passing.get(&id) {
                    transit.refused();
                }
                let Some(session) = desk.session(conn) else { return };
                match self.fanouts.queue_policy() {
                    QueuePolicy::Disconnect => {
                        // What is held for it goes with it, and for this reason.
                        desk.passing.values().for_each(|transit| transit.refused());
                        let close = CloseReason::new(CloseCode::SLOW_CONSUMER, "slow consumer");
                        self.close(session, &close, DisconnectReason::SlowConsumer);
                    }
                    // It is stored when all connections have been asked.
                    QueuePolicy::Spill => {}
                    QueuePolicy::DropOldest | QueuePolicy::DropNewest => self.tell_gap(session, bytes),
                }
                tracing::debug!(%id, user_id = %slot.owner, "a message did not fit behind a replay");
            }
            Effect::AckTimeout { id, body, attempt, is_last } => {
                if let Some(watch) = desk.watches.get(&id) {
                    watch.attempt_failed(FailureReason::AckTimeout);
                }
                for session in &desk.sessions {
                    self.trace(session.id, ConnectionEvent::AckTimeout { message: id, attempt });
                }
                self.metrics.ack_timed_out();
                self.note_ack_timeout(slot, id, &body, attempt, is_last);
            }
            Effect::AckRetry { id, body: _, attempt } => {
                self.mail.outcomes.attempt(id, &slot.owner, attempt);
                for session in &desk.sessions {
                    self.trace(session.id, ConnectionEvent::AckRetry { message: id, attempt });
                }
                self.metrics.ack_retried();
                self.events.publish_with(EventType::AckRetry, || Event::AckRetry {
                    ack: AckInfo { message_id: id, user_id: slot.owner.clone(), attempt },
                });
            }
            Effect::AckIgnored { id } => self.mail.ignore_ack(self.mail.outcomes.ignored_ack(id, &slot.owner)),
        }
    }

    fn persist(self: &Arc<Self>, slot: &Arc<Slot>, desk: &mut Desk, letter: Letter) {
        let id = letter.id;
        let mut entry = NewEntry::new(slot.owner.clone(), id, letter.body);
        entry.expires_at = letter.expires_at;
        entry.note = desk.notes.remove(&id);
        let result = match self.mail.keeper() {
            Some(keeper) => keeper.append(slot, entry),
            None => Err(Refusal::Failed),
        };
        if let Err(refusal) = result {
            self.handle(desk, Input::NotCommitted { id, refusal });
        }
    }

    /// Writes one copy to one connection.
    fn transmit(self: &Arc<Self>, slot: &Arc<Slot>, desk: &Desk, copy: &Copy) -> Transmission {
        let Some(session) = desk.session(copy.conn) else { return Transmission::Gone };
        let Some(record) = Record::decode(&copy.body) else {
            tracing::error!(id = %copy.id, user_id = %slot.owner, "a stored message cannot be read by this version");
            return Transmission::Full;
        };
        let mut delivery = record.delivery(copy.id);
        match copy.sort {
            Sort::Passed => {
                let Some(transit) = desk.passing.get(&copy.id) else { return Transmission::Gone };
                return with_message(&delivery, |frame| self.pass(session, transit, frame));
            }
            Sort::Plain { is_replay } => delivery.is_replay = is_replay,
            Sort::Reliable { is_replay, attempt } => {
                delivery.require_ack = true;
                delivery.is_replay = is_replay;
                delivery.attempt = attempt;
            }
        }
        if let Some(watch) = desk.watches.get(&copy.id) {
            watch.attempt();
        }
        let attempt = match copy.sort {
            Sort::Reliable { attempt, .. } => Some(attempt),
            Sort::Plain { .. } | Sort::Passed => None,
        };
        let ticket = || {
            let (core, slot) = (Arc::clone(self), Arc::clone(slot));
            Arc::new(Ticket { core, slot, conn: copy.conn, id: copy.id, attempt }) as Arc<dyn Settle>
        };
        let sent = with_message(&delivery, |frame| session.offer(frame, record.priority, true, &mut || Some(ticket())));
        match sent {
            Sent::Written => {
                self.fanouts.stats().ledger().note(|tally| tally.copies += 1);
                self.trace_delivered(copy.conn, copy.id, attempt);
                Transmission::Written
            }
            Sent::Queued => Transmission::Queued,
            Sent::Dropped => {
                self.trace_full_queue(session, copy.id);
                Transmission::Full
            }
            Sent::Closed => Transmission::Gone,
        }
    }

    /// Writes a plain message that has waited behind others.
    fn pass(self: &Arc<Self>, session: &Arc<Session>, transit: &Arc<Transit>, frame: &Encoded<'_>) -> Transmission {
        match session.offer(frame, transit.priority(), false, &mut || Some(transit.wait_on_one_more())) {
            Sent::Written => {
                transit.written();
                Transmission::Written
            }
            Sent::Queued => Transmission::Queued,
            Sent::Dropped => {
                self.refused_by_queue(transit, frame, vec![Arc::clone(session)]);
                Transmission::Full
            }
            Sent::Closed => Transmission::Gone,
        }
    }

    fn settle_letter(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        desk: &mut Desk,
        letter: &Letter,
        was: Whereabouts,
        fate: Fate,
        attempts: u32,
    ) {
        let id = letter.id;
        // Only what settled something: anybody can acknowledge what there never was.
        if let Some(session) = desk.acker {
            match fate.outcome {
                Outcome::Acked => self.trace(session, ConnectionEvent::Ack { message: id }),
                Outcome::Rejected => self.trace(session, ConnectionEvent::Nack { message: id }),
                _ => {}
            }
        }
        self.fanouts.stats().ledger().note(|tally| {
            *gauge(tally, was) -= 1;
            match (fate.outcome, fate.reason) {
                (Outcome::Acked, _) => tally.acked += 1,
                (Outcome::Sent, _) => tally.sent += 1,
                (Outcome::Expired, _) => tally.expired += 1,
                (Outcome::Rejected, _) => tally.rejected += 1,
                (_, reason) => note_failure(tally, reason.unwrap_or(FailureReason::Unknown)),
            }
        });
        desk.stands(id, fate);
        if let Some(watch) = desk.watches.remove(&id) {
            watch.finish(id, fate);
        }
        let Some(record) = Record::decode(&letter.body) else { return };
        self.note_outcome(id, record.sender_id, &slot.owner, fate, attempts);
        self.forget_sender(&record);
        if record.wants_receipt {
            self.send_receipt(id, &record, slot.owner.as_str(), fate, attempts);
        }
        if fate == Fate::ACKED {
            let waited = self.mail.now().saturating_sub(record.timestamp);
            self.metrics.ack_latency(waited);
            self.events.publish_with(EventType::AckReceived, || Event::AckReceived {
                ack: AckInfo { message_id: id, user_id: slot.owner.clone(), attempt: attempts.max(1) },
                session: desk.acker,
                latency_ms: waited,
            });
        }
        self.note_end(&record, id, slot.owner.as_str(), fate);
        let reason = match fate.outcome {
            Outcome::Rejected => FailureReason::Rejected,
            Outcome::Expired => FailureReason::Timeout,
            // The timeout itself has been told already.
            Outcome::Failed => match fate.reason {
                Some(FailureReason::AckTimeout) => return,
                reason => reason.unwrap_or(FailureReason::Unknown),
            },
            _ => return,
        };
        self.count_failure(reason, slot.owner.as_str());
        let text: Cow<'static, str> = match (fate, desk.nack_reason.as_deref()) {
            (Fate::EXPIRED, _) => "its time to live is over".into(),
            (Fate::REJECTED, Some(why)) => format!("rejected: {why}").into(),
            _ => reason.as_str().into(),
        };
        let waited = std::time::Duration::from_millis(self.mail.now().saturating_sub(record.timestamp));
        let event = FailureEvent::new(Arc::new(record.message(id)), slot.owner.clone(), reason, text);
        self.route_failure(event.after(attempts.saturating_sub(1), waited).with_timestamp(self.mail.now()));
    }

    fn note_ack_timeout(self: &Arc<Self>, slot: &Slot, id: Uuid, body: &Bytes, attempt: u32, is_last: bool) {
        self.events.publish_with(EventType::AckTimeout, || Event::AckTimeout {
            ack: AckInfo { message_id: id, user_id: slot.owner.clone(), attempt },
            waited_ms: self.mail.config.read().ack_timeout.as_millis() as u64,
        });
        if !is_last {
            return;
        }
        let Some(record) = Record::decode(body) else { return };
        let now = self.mail.now();
        let waited = std::time::Duration::from_millis(now.saturating_sub(record.timestamp));
        let text = "no acknowledgement came in time";
        let reason = FailureReason::AckTimeout;
        self.count_failure(reason, slot.owner.as_str());
        let event = FailureEvent::new(Arc::new(record.message(id)), slot.owner.clone(), reason, text);
        self.route_failure(event.after(attempt.saturating_sub(1), waited).with_timestamp(now));
    }
}

impl Desk {
    /// Whether letters are looked for in the store.
    pub(super) fn is_looking(&self) -> bool {
        self.is_taking || !self.wanted.is_empty()
    }

    fn session(&self, conn: Uuid) -> Option<&Arc<Session>> {
        self.sessions.iter().find(|session| session.id == conn)
    }

    /// A letter stands elsewhere: a sender that has no answer yet hears the newest.
    fn stands(&mut self, id: Uuid, fate: Fate) {
        if let Some((_, known)) = self.asked.get_mut(&id) {
            *known = Some(fate);
        }
    }
}

/// Told what became of a copy that had to wait.
struct Ticket {
    core: Arc<Core>,
    slot: Arc<Slot>,
    conn: Uuid,
    id: Uuid,
    /// `None`: nobody has to acknowledge it.
    attempt: Option<u32>,
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket").field("conn", &self.conn).field("id", &self.id).finish_non_exhaustive()
    }
}

impl Settle for Ticket {
    fn settle(&self, result: Result<(), FailureReason>) {
        let (conn, id) = (self.conn, self.id);
        let input = match result {
            Ok(()) => {
                self.core.fanouts.stats().ledger().note(|tally| tally.copies += 1);
                self.core.trace_delivered(conn, id, self.attempt);
                Input::Written { conn, id }
            }
            Err(_) => Input::Lost { conn, id },
        };
        // A slot that was forgotten had nothing in flight.
        let _ = self.core.feed(&self.slot, News::Input(input));
    }
}

/// Letters of one user that are looked for in the store at a time, because they were acknowledged.
const MOST_TAKES: usize = 1_000;

fn gauge(tally: &mut Tally, at: Whereabouts) -> &mut i64 {
    match at {
        Whereabouts::InFlight => &mut tally.in_flight,
        Whereabouts::Resting => &mut tally.stored,
    }
}

fn fate_of(at: Whereabouts) -> Fate {
    match at {
        Whereabouts::InFlight => Fate::PENDING,
        Whereabouts::Resting => Fate::STORED,
    }
}

fn refused(refusal: Refusal) -> ErrorReply {
    match refusal {
        Refusal::Full => {
            let details = serde_json::json!({ "reason": FailureReason::PendingFull });
            ErrorReply::new(ErrorCode::Full, "the inbox is full").with_details(details)
        }
        Refusal::Failed => ErrorReply::new(ErrorCode::ServerError, "the inbox cannot be written at the moment"),
    }
}
