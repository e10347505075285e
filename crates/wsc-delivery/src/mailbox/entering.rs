//! How letters enter: the line, and from it to the connections.

use uuid::Uuid;
use wsc_protocol::Fate;

use super::{
    Copy, Effect, Letter, Mailbox, Place, Refusal, Sort, Turn, Whereabouts,
    connections::{Connection, Held, Slot},
    flights::{CopyState, IdMap, Key},
    input::Kind,
    line::Entering,
};

impl Mailbox {
    pub(super) fn accept(&mut self, letter: Letter, turn: &mut Turn<'_>) {
        turn.emit(Effect::Persist(letter.clone()));
        self.line.store(letter);
    }

    pub(super) fn pass(&mut self, letter: Letter, turn: &mut Turn<'_>) {
        // Behind a store that hangs, the line of passed letters is bounded as it is behind a replay.
        let in_line = self.line.passing_bytes();
        if in_line > 0 && in_line + letter.body.len() > turn.config.held_bytes {
            let audience = self.audience(letter.only, letter.except);
            for slot in self.connections.slots().filter(|slot| audience.includes(*slot)) {
                let Some(connection) = self.connections.get(slot) else { continue };
                turn.emit(Effect::Overflow { conn: connection.session, id: letter.id, bytes: letter.body.len() });
            }
            turn.emit(Effect::Passed { id: letter.id });
            return;
        }
        self.line.pass(letter);
        self.move_line(turn);
    }

    pub(super) fn committed(&mut self, id: Uuid, place: Place, turn: &mut Turn<'_>) {
        if self.line.stored(id, place) {
            self.move_line(turn);
        }
    }

    pub(super) fn not_committed(&mut self, id: Uuid, refusal: Refusal, turn: &mut Turn<'_>) {
        if self.line.refused(id) {
            turn.emit(Effect::Refused { id, refusal });
            self.move_line(turn);
            self.line_moved();
        }
    }

    fn move_line(&mut self, turn: &mut Turn<'_>) {
        let mut has_moved = false;
        while let Some(entering) = self.line.pop() {
            has_moved = true;
            match entering {
                Entering::Stored(letter, place) => self.enter(letter, place, turn),
                Entering::Passing(letter) => self.pass_on(&letter, turn),
            }
        }
        if has_moved && self.connections.replaying() > 0 {
            self.line_moved();
        }
    }

    /// Replays that had come to a letter in the line look again.
    fn line_moved(&mut self) {
        for slot in self.connections.slots() {
            if let Some(replay) = self.connections.get_mut(slot).and_then(|c| c.replay_mut())
                && replay.waits_for_line
            {
                replay.waits_for_line = false;
                self.agenda.push_back(slot);
            }
        }
    }

    /// A letter that the store has leaves the line.
    fn enter(&mut self, letter: Letter, place: Place, turn: &mut Turn<'_>) {
        let id = letter.id;
        if self.flights.find(id).is_some() {
            // Only where an id was accepted twice. The first of the two stands.
            turn.emit(Effect::Refused { id, refusal: Refusal::Failed });
            return;
        }
        let is_first = self.last_place.is_none();
        self.last_place = self.last_place.max(Some(place));

        let is_over = turn.is_over(&letter);
        let audience = self.audience(letter.only, letter.except);
        if let Some(owner) = audience.owner
            && self.connections.len() > 1
            && let Some(connection) = self.connections.get_mut(owner)
        {
            connection.reserve(place);
        }
        let mut targets = smallvec::SmallVec::<[Slot; 8]>::new();
        for slot in self.connections.slots() {
            let Some(connection) = self.connections.get_mut(slot) else { continue };
            connection.live_from.get_or_insert(place);
            let is_target = !is_over && audience.includes(slot);
            if let Some(replay) = connection.replay_mut() {
                // It comes to this connection through its replay, which is not at its end any more.
                if is_first {
                    replay.first_committed(place);
                }
                replay.rewind(place.0);
                self.agenda.push_back(slot);
            } else if is_target {
                if connection.takes(letter.kind, letter.body.len() as u64, turn.config) {
                    targets.push(slot);
                } else {
                    self.connections.replay_from(slot, place.0);
                    self.agenda.push_back(slot);
                }
            }
        }
        if targets.is_empty() {
            turn.emit(Effect::Accepted { id, at: Whereabouts::Resting });
            if is_over {
                self.settle_resting(letter, Fate::EXPIRED, turn);
            }
            return;
        }
        turn.emit(Effect::Accepted { id, at: Whereabouts::InFlight });
        let key = self.flights.insert(letter, place);
        for slot in targets {
            self.offer(key, slot, false, turn);
        }
    }

    /// Transmits a copy of the current attempt.
    pub(super) fn offer(&mut self, key: Key, slot: Slot, is_replay: bool, turn: &mut Turn<'_>) {
        let (Some(flight), Some(connection)) = (self.flights.get_mut(key), self.connections.get_mut(slot)) else {
            return;
        };
        let is_replay = match flight.copy_mut(slot) {
            Some(copy) => {
                copy.is_queued = true;
                copy.is_replay
            }
            None => {
                flight.copies.push(CopyState { slot, is_queued: true, was_written: false, is_replay });
                let len = flight.len();
                connection.load_mut(flight.kind).add(len);
                is_replay
            }
        };
        let sort = match flight.kind {
            Kind::Plain => Sort::Plain { is_replay },
            Kind::Reliable => Sort::Reliable { is_replay, attempt: flight.attempt },
        };
        turn.emit(Effect::Transmit(Copy { conn: connection.session, id: flight.id, body: flight.body.clone(), sort }));
    }

    /// A letter that is only passed through leaves the line.
    fn pass_on(&mut self, letter: &Letter, turn: &mut Turn<'_>) {
        let audience = self.audience(letter.only, letter.except);
        let behind = self.last_place.map(|place| place.0.saturating_add(1));
        let mut holders = 0;
        for slot in self.connections.slots().filter(|slot| audience.includes(*slot)) {
            // One who does not acknowledge is not sent more of the past; what is live must not get lost for it.
            let is_full = |connection: &Connection| {
                let overflows =
                    connection.replay().is_some_and(|r| r.holds(behind) && !r.can_hold(letter, turn.config));
                overflows && connection.waits_for_acks(turn.config)
            };
            if self.connections.get(slot).is_some_and(is_full) {
                self.break_off(slot, turn);
            }
            let Some(connection) = self.connections.get_mut(slot) else { continue };
            let conn = connection.session;
            match connection.replay_mut() {
                Some(replay) if replay.holds(behind) => {
                    if replay.hold(letter, behind, turn.config) {
                        holders += 1;
                    } else {
                        turn.emit(Effect::Overflow { conn, id: letter.id, bytes: letter.body.len() });
                    }
                }
                _ => {
                    let (id, body) = (letter.id, letter.body.clone());
                    turn.emit(Effect::Transmit(Copy { conn, id, body, sort: Sort::Passed }));
                }
            }
        }
        if holders == 0 {
            turn.emit(Effect::Passed { id: letter.id });
        } else {
            *self.passing.entry(letter.id).or_default() += holders;
        }
    }
}

/// Transmits what was held behind a replay.
pub(super) fn let_pass(held: Held, conn: Uuid, passing: &mut IdMap<usize>, turn: &mut Turn<'_>) {
    let id = held.id;
    turn.emit(Effect::Transmit(Copy { conn, id, body: held.body, sort: Sort::Passed }));
    release(id, passing, turn);
}

/// Notes that one connection does not hold a letter any more.
pub(super) fn release(id: Uuid, passing: &mut IdMap<usize>, turn: &mut Turn<'_>) {
    let Some(holders) = passing.get_mut(&id) else { return };
    *holders -= 1;
    if *holders == 0 {
        passing.remove(&id);
        turn.emit(Effect::Passed { id });
    }
}
