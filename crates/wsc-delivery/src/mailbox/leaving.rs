//! How letters leave: to their end, or back to rest; and how connections come and go.

use uuid::Uuid;
use wsc_protocol::Fate;

use super::{
    Effect, Letter, MOST_TAKEN, Mailbox, Turn, Verdict, Whereabouts,
    entering::release,
    flights::{Flight, Key},
    input::Kind,
};

impl Mailbox {
    /// A receiver acknowledged or rejected a letter.
    pub(super) fn answered(&mut self, id: Uuid, verdict: Verdict, turn: &mut Turn<'_>) {
        if let Some(key) = self.flights.find(id) {
            match self.flights.get(key).map(|flight| flight.kind) {
                Some(Kind::Reliable) => self.settle(key, fate_of(verdict), turn),
                _ => turn.emit(Effect::AckIgnored { id }),
            }
        } else if !self.take(id, verdict, turn) {
            turn.emit(Effect::AckIgnored { id });
        }
    }

    /// The store says that a letter's time to live is over. In flight, that is looked at when the attempt ends.
    pub(super) fn expired(&mut self, id: Uuid, turn: &mut Turn<'_>) {
        if self.flights.find(id).is_none() {
            self.take(id, Verdict::Expired, turn);
        }
    }

    /// Has a letter taken that may rest. False where it cannot be: it has not left the line, so nobody has it yet, or
    /// it is being taken already.
    fn take(&mut self, id: Uuid, verdict: Verdict, turn: &mut Turn<'_>) -> bool {
        if self.taking.len() >= MOST_TAKEN || self.taking.contains_key(&id) || self.line.contains(id) {
            return false;
        }
        let was_left_out = self.leave_out(id);
        self.taking.insert(id, was_left_out);
        turn.emit(Effect::Take { id, verdict });
        true
    }

    pub(super) fn taken(&mut self, id: Uuid, verdict: Verdict, letter: Option<Letter>, turn: &mut Turn<'_>) {
        let Some(was_left_out) = self.taking.remove(&id) else { return };
        match letter {
            Some(letter) => {
                self.retire(id);
                let (was, fate) = (Whereabouts::Resting, fate_of(verdict));
                turn.emit(Effect::Settled { letter, was, fate, attempts: 0 });
            }
            None => {
                if verdict != Verdict::Expired {
                    turn.emit(Effect::AckIgnored { id });
                }
                // The store may not have been able to look: then it rests on.
                if was_left_out {
                    self.retry_later(turn);
                }
            }
        }
    }

    /// A letter in flight reaches its end.
    pub(super) fn settle(&mut self, key: Key, fate: Fate, turn: &mut Turn<'_>) {
        let Some(flight) = self.flights.remove(key) else { return };
        self.free_windows(&flight);
        let (id, attempts) = (flight.id, flight.attempt);
        self.retire(id);
        turn.emit(Effect::Settled { letter: flight.into_letter(), was: Whereabouts::InFlight, fate, attempts });
        turn.emit(Effect::Remove { id });
    }

    /// A letter that rests reaches its end.
    pub(super) fn settle_resting(&mut self, letter: Letter, fate: Fate, turn: &mut Turn<'_>) {
        let id = letter.id;
        self.retire(id);
        turn.emit(Effect::Settled { letter, was: Whereabouts::Resting, fate, attempts: 0 });
        turn.emit(Effect::Remove { id });
    }

    /// A letter leaves memory, and rests in the store until it is tried again.
    pub(super) fn rest(&mut self, key: Key, turn: &mut Turn<'_>) {
        let Some(flight) = self.flights.remove(key) else { return };
        self.free_windows(&flight);
        for copy in flight.copies.iter().filter(|copy| copy.is_queued) {
            if let Some(connection) = self.connections.get_mut(copy.slot) {
                connection.left_queued.push(flight.id);
            }
        }
        turn.emit(Effect::Moved { id: flight.id, to: Whereabouts::Resting });
        self.retry_later(turn);
    }

    /// Has what rests tried again after a while, if somebody is there to get it.
    pub(super) fn retry_later(&mut self, turn: &Turn<'_>) {
        if !self.connections.is_empty() {
            let at = turn.after(turn.config.retry_interval);
            self.retry_at = Some(self.retry_at.map_or(at, |waits_until| waits_until.min(at)));
        }
    }

    fn free_windows(&mut self, flight: &Flight) {
        for copy in &flight.copies {
            let Some(connection) = self.connections.get_mut(copy.slot) else { continue };
            connection.load_mut(flight.kind).remove(flight.len());
            if !connection.is_live() {
                self.agenda.push_back(copy.slot);
            }
        }
    }

    /// What is settled must not be sent any more, though pages that were read before may hold it.
    fn retire(&mut self, id: Uuid) {
        if let Some(read) = &mut self.read {
            read.retire(id);
        }
        self.leave_out(id);
    }

    /// Removes a letter from what was read and is not sent yet. False where it was not there.
    fn leave_out(&mut self, id: Uuid) -> bool {
        if self.connections.replaying() == 0 {
            return false;
        }
        let mut was_there = false;
        for slot in self.connections.slots() {
            if let Some(replay) = self.connections.get_mut(slot).and_then(|c| c.replay_mut())
                && replay.feed.iter().any(|(_, letter)| letter.id == id)
            {
                replay.feed.retain(|(_, letter)| letter.id != id);
                was_there = true;
                self.agenda.push_back(slot);
            }
        }
        was_there
    }

    pub(super) fn connected(&mut self, conn: Uuid, nothing_rests: bool) {
        let Some(slot) = self.connections.insert(conn) else { return };
        // What is in flight is in the store too, whatever is said of it.
        if !nothing_rests || !self.flights.is_empty() {
            self.connections.replay_from(slot, 0);
            self.agenda.push_back(slot);
        }
    }

    pub(super) fn disconnected(&mut self, conn: Uuid, turn: &mut Turn<'_>) {
        let Some(slot) = self.connections.find(conn) else { return };
        if let Some(replay) = self.connections.end_replay(slot) {
            for held in replay.into_held() {
                release(held.id, &mut self.passing, turn);
            }
        }
        let Some(gone) = self.connections.remove(slot) else { return };
        if self.connections.is_empty() {
            for key in self.flights.keys(|_| true) {
                match self.flights.get(key).is_some_and(|flight| flight.is_over(turn.now)) {
                    true => self.settle(key, Fate::EXPIRED, turn),
                    false => self.rest(key, turn),
                }
            }
            self.retry_at = None;
            self.readers.clear();
            return;
        }
        for key in self.flights.keys(|flight| flight.copy(slot).is_some()) {
            if let Some(flight) = self.flights.get_mut(key) {
                flight.copies.retain(|copy| copy.slot != slot);
            }
            self.rest_if_stranded(key, turn);
        }
        // What only this connection was to get is the others' now.
        if let Some(place) = gone.reserved_from {
            for slot in self.connections.slots() {
                self.connections.replay_from(slot, place.0);
                self.agenda.push_back(slot);
            }
        }
    }
}

fn fate_of(verdict: Verdict) -> Fate {
    match verdict {
        Verdict::Acked => Fate::ACKED,
        Verdict::Rejected => Fate::REJECTED,
        Verdict::Expired => Fate::EXPIRED,
    }
}
