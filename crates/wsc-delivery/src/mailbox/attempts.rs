//! The attempts at a letter in flight: copies, deadlines, resends.

use smallvec::SmallVec;
use uuid::Uuid;
use wsc_protocol::{FailureReason, Fate};

use super::{
    Effect, Mailbox, Transmission, Turn,
    connections::Slot,
    flights::{Key, Stage},
    input::Kind,
};

impl Mailbox {
    pub(super) fn transmitted(&mut self, conn: Uuid, id: Uuid, result: Transmission, turn: &mut Turn<'_>) {
        let Some(slot) = self.connections.find(conn) else { return };
        if result == Transmission::Gone {
            return self.disconnected(conn, turn);
        }
        if let Some(replay) = self.connections.get_mut(slot).and_then(|c| c.replay_mut())
            && replay.offering == Some(id)
        {
            replay.offering = None;
            self.agenda.push_back(slot);
        }
        match result {
            Transmission::Written => self.written_on(slot, id, turn),
            // As it was when it was transmitted.
            Transmission::Queued | Transmission::Gone => {}
            Transmission::Full => self.lost_on(slot, id, turn),
        }
    }

    pub(super) fn written(&mut self, conn: Uuid, id: Uuid, turn: &mut Turn<'_>) {
        if let Some(slot) = self.connections.find(conn) {
            self.written_on(slot, id, turn);
        }
    }

    pub(super) fn lost(&mut self, conn: Uuid, id: Uuid, turn: &mut Turn<'_>) {
        if let Some(slot) = self.connections.find(conn) {
            self.lost_on(slot, id, turn);
        }
    }

    fn written_on(&mut self, slot: Slot, id: Uuid, turn: &mut Turn<'_>) {
        let Some(key) = self.queued_on(slot, id) else { return };
        let Some(flight) = self.flights.get_mut(key) else { return };
        let (kind, stage) = (flight.kind, flight.stage);
        if let Some(copy) = flight.copy_mut(slot) {
            copy.is_queued = false;
            copy.was_written = true;
        }
        match (kind, stage) {
            (Kind::Plain, _) => self.settle(key, Fate::SENT, turn),
            (Kind::Reliable, Stage::Sending | Stage::Written) => {
                self.flights.set_stage(key, Stage::Written, Some(turn.after(turn.config.ack_timeout)));
            }
            (Kind::Reliable, Stage::TimedOut) => {
                // A slow connection's copy of an attempt that is over. It has its time too, before the next one.
                let due = self.flights.due_of(key).max(Some(turn.after(turn.config.ack_timeout)));
                self.flights.set_stage(key, Stage::TimedOut, due);
            }
        }
    }

    /// The flight of which a copy is in the connection's queue, if it is in memory. If it is not, the copy is one of an
    /// earlier stay on line; it is in the queue no more, whatever became of it.
    fn queued_on(&mut self, slot: Slot, id: Uuid) -> Option<Key> {
        let key = self.flights.find(id);
        let is_queued = |key: &Key| self.flights.get(*key).and_then(|f| f.copy(slot)).is_some_and(|c| c.is_queued);
        if let Some(key) = key.filter(is_queued) {
            return Some(key);
        }
        if let Some(connection) = self.connections.get_mut(slot) {
            connection.forget_queued(id);
        }
        None
    }

    /// A copy is not with the connection: there was no room, or it left the queue.
    fn lost_on(&mut self, slot: Slot, id: Uuid, turn: &mut Turn<'_>) {
        let Some(key) = self.queued_on(slot, id) else { return };
        let Some(flight) = self.flights.get_mut(key) else { return };
        let Some(at) = flight.copies.iter().position(|copy| copy.slot == slot) else { return };
        flight.copies[at].is_queued = false;
        if !flight.copies[at].was_written {
            flight.copies.swap_remove(at);
            let (kind, len) = (flight.kind, flight.len());
            if let Some(connection) = self.connections.get_mut(slot) {
                connection.load_mut(kind).remove(len);
            }
        }
        // There is no use in replaying more to it: the next would find no room either.
        self.break_off(slot, turn);
        self.rest_if_stranded(key, turn);
    }

    /// Lets a letter rest of which nothing will come in this attempt.
    pub(super) fn rest_if_stranded(&mut self, key: Key, turn: &mut Turn<'_>) {
        let Some(flight) = self.flights.get(key) else { return };
        if !flight.is_stranded() {
            return;
        }
        if flight.is_over(turn.now) {
            self.settle(key, Fate::EXPIRED, turn);
        } else {
            self.rest(key, turn);
        }
    }

    pub(super) fn come_due(&mut self, key: Key, turn: &mut Turn<'_>) {
        match self.flights.get(key).map(|flight| flight.stage) {
            Some(Stage::Written) => self.time_out(key, turn),
            Some(Stage::TimedOut) => self.send_again(key, turn),
            Some(Stage::Sending) | None => {}
        }
    }

    fn time_out(&mut self, key: Key, turn: &mut Turn<'_>) {
        let Some(flight) = self.flights.get(key) else { return };
        let is_last = flight.attempt > turn.config.ack_max_retries;
        let (id, body, attempt) = (flight.id, flight.body.clone(), flight.attempt);
        turn.emit(Effect::AckTimeout { id, body, attempt, is_last });
        if flight.is_over(turn.now) {
            self.settle(key, Fate::EXPIRED, turn);
        } else if is_last {
            self.give_up(key, turn);
        } else {
            self.flights.set_stage(key, Stage::TimedOut, Some(turn.after(turn.config.ack_retry_interval)));
        }
    }

    /// All attempts at a letter were in vain.
    fn give_up(&mut self, key: Key, turn: &mut Turn<'_>) {
        let Some(flight) = self.flights.get(key) else { return };
        let had_it: SmallVec<[Slot; 8]> = flight.copies.iter().map(|copy| copy.slot).collect();
        if turn.config.enable_offline_ack {
            self.rest(key, turn);
        } else {
            self.settle(key, Fate::failed(FailureReason::AckTimeout), turn);
        }
        // One who does not acknowledge this is not sent more of the past; what is live must not wait for it.
        for slot in had_it {
            self.break_off(slot, turn);
        }
    }

    fn send_again(&mut self, key: Key, turn: &mut Turn<'_>) {
        let Some(flight) = self.flights.get(key) else { return };
        if flight.is_over(turn.now) {
            return self.settle(key, Fate::EXPIRED, turn);
        }
        let audience = self.audience(flight.only(), flight.except());
        let mut targets = SmallVec::<[(Slot, bool); 8]>::new();
        for slot in self.connections.slots().filter(|slot| audience.includes(*slot)) {
            let Some(connection) = self.connections.get(slot) else { continue };
            let is_target = match flight.copy(slot) {
                Some(copy) => !copy.is_queued,
                // It was refused there, or is not for this connection's replay any more.
                None => {
                    !connection.left_queued.contains(&flight.id)
                        && connection.replay().is_none_or(|replay| replay.next > flight.place.0)
                        && connection.takes(flight.kind, flight.len(), turn.config)
                }
            };
            if is_target {
                targets.push((slot, connection.counts_as_replay(flight.place)));
            }
        }
        self.flights.set_stage(key, Stage::Sending, None);
        if targets.is_empty() {
            // A copy may still be in a queue. Where none is, a replay that has not come to it will send it.
            return self.rest_if_stranded(key, turn);
        }
        let Some(flight) = self.flights.get_mut(key) else { return };
        flight.attempt += 1;
        let (id, body, attempt) = (flight.id, flight.body.clone(), flight.attempt);
        turn.emit(Effect::AckRetry { id, body, attempt });
        for (slot, is_replay) in targets {
            self.offer(key, slot, is_replay, turn);
        }
    }
}
