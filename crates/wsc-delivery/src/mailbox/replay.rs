//! Replays: what rests, page by page, to one connection at the speed of its window.

use uuid::Uuid;
use wsc_protocol::Fate;

use super::{
    Effect, Letter, Mailbox, Place, Turn, Whereabouts,
    connections::Slot,
    entering::let_pass,
    flights::{CopyState, IdSet, Key},
};

/// The page that the store was asked for.
#[derive(Debug)]
pub(super) struct OpenRead {
    slot: Slot,
    next: u64,
    /// What had left the line when it was asked for: what came later may be missing in it.
    last_place: Option<Place>,
    /// What was settled since: the page may show it.
    settled: IdSet,
    /// So much was settled since that the page is worth nothing.
    is_void: bool,
}

impl OpenRead {
    fn after(&self) -> Option<Place> {
        self.next.checked_sub(1).map(Place)
    }

    /// Notes that a letter is settled.
    pub(super) fn retire(&mut self, id: Uuid) {
        if self.settled.len() < MOST_SETTLED {
            self.settled.insert(id);
        } else {
            self.is_void = true;
        }
    }
}

impl Mailbox {
    /// Lets a connection's replay go on until a letter's answer, an acknowledgement or a page must come first, or it
    /// is at its end.
    ///
    /// Letters are sent one at a time, the next when the connection has taken the one before: where one finds no room,
    /// those behind it have not been sent.
    pub(super) fn go_on(&mut self, slot: Slot, turn: &mut Turn<'_>) {
        while let Some((place, letter)) = self.next_in_feed(slot, turn) {
            // All before it has been offered by now.
            self.pass_by(slot, place.0, turn);
            match self.replay_letter(slot, place, letter, turn) {
                Step::Done => self.pass_by(slot, place.0.saturating_add(1), turn),
                Step::Sent { id } => {
                    if let Some(replay) = self.connections.get_mut(slot).and_then(|c| c.replay_mut()) {
                        replay.offering = Some(id);
                        replay.next = place.0.saturating_add(1);
                    }
                    return;
                }
                Step::NoRoom(letter) => {
                    if let Some(replay) = self.connections.get_mut(slot).and_then(|c| c.replay_mut()) {
                        replay.feed.push_front((place, letter));
                    }
                    return;
                }
            }
        }
    }

    fn next_in_feed(&mut self, slot: Slot, turn: &mut Turn<'_>) -> Option<(Place, Letter)> {
        let replay = self.connections.get_mut(slot)?.replay_mut()?;
        if replay.offering.is_some() {
            return None;
        }
        if let Some(first) = replay.feed.pop_front() {
            return Some(first);
        }
        let (end, is_last) = (replay.feed_end, replay.is_last);
        self.pass_by(slot, end, turn);
        if is_last {
            self.end_replay(slot, turn);
        } else {
            self.want_page(slot, turn);
        }
        None
    }

    /// One letter from a page, for one connection.
    fn replay_letter(&mut self, slot: Slot, place: Place, letter: Letter, turn: &mut Turn<'_>) -> Step {
        let id = letter.id;
        let key = self.flights.find(id);
        let flight = key.and_then(|key| self.flights.get(key));
        let (only, except) = flight.map_or((letter.only, letter.except), |flight| (flight.only(), flight.except()));
        let audience = self.audience(only, except);
        let (has_copy, is_over) = match flight {
            // Where its time is over it is not sent any more, though those who have it may still acknowledge it.
            Some(flight) => (flight.copy(slot).is_some(), flight.is_over(turn.now)),
            None => (false, turn.is_over(&letter)),
        };
        if let Some(owner) = audience.owner.filter(|owner| *owner != slot) {
            if let Some(connection) = self.connections.get_mut(owner) {
                connection.reserve(place);
            }
            return Step::Done;
        }
        if !audience.includes(slot) {
            return Step::Done;
        }
        if let Some(was_left_out) = self.taking.get_mut(&id) {
            *was_left_out = true;
            return Step::Done;
        }
        if has_copy {
            return Step::Done;
        }
        if is_over {
            if key.is_none() {
                self.settle_resting(letter, Fate::EXPIRED, turn);
            }
            return Step::Done;
        }
        let Some(connection) = self.connections.get_mut(slot) else { return Step::Done };
        if !connection.takes_replayed(letter.kind, letter.body.len() as u64, turn.config) {
            return Step::NoRoom(letter);
        }
        let is_replay = connection.counts_as_replay(place);
        let key = key.unwrap_or_else(|| {
            turn.emit(Effect::Moved { id, to: Whereabouts::InFlight });
            self.flights.insert(letter, place)
        });
        if self.adopt(key, slot, is_replay) {
            return Step::Done;
        }
        self.offer(key, slot, is_replay, turn);
        Step::Sent { id }
    }

    /// Where a copy from an earlier stay on line is still in the connection's queue, that is the copy. False where
    /// there is none.
    fn adopt(&mut self, key: Key, slot: Slot, is_replay: bool) -> bool {
        let (Some(flight), Some(connection)) = (self.flights.get_mut(key), self.connections.get_mut(slot)) else {
            return false;
        };
        if !connection.forget_queued(flight.id) {
            return false;
        }
        connection.load_mut(flight.kind).add(flight.len());
        flight.copies.push(CopyState { slot, is_queued: true, was_written: false, is_replay });
        true
    }

    /// Notes how far a replay is, and lets pass what stands behind that.
    fn pass_by(&mut self, slot: Slot, next: u64, turn: &mut Turn<'_>) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let conn = connection.session;
        let Some(replay) = connection.replay_mut() else { return };
        replay.next = replay.next.max(next);
        while let Some(held) = replay.pop_held() {
            let_pass(held, conn, &mut self.passing, turn);
        }
    }

    /// Makes a connection live.
    fn end_replay(&mut self, slot: Slot, turn: &mut Turn<'_>) {
        let Some(replay) = self.connections.end_replay(slot) else { return };
        let Some(conn) = self.connections.get(slot).map(|connection| connection.session) else { return };
        for held in replay.into_held() {
            let_pass(held, conn, &mut self.passing, turn);
        }
    }

    /// Makes a connection live before its replay is at its end; what it did not get rests for a while.
    pub(super) fn break_off(&mut self, slot: Slot, turn: &mut Turn<'_>) {
        if self.connections.get(slot).is_some_and(|connection| !connection.is_live()) {
            self.end_replay(slot, turn);
            self.retry_later(turn);
        }
    }

    /// What rests is sent again to those who are there.
    pub(super) fn retry_what_rests(&mut self) {
        self.retry_at = None;
        for slot in self.connections.slots() {
            if let Some(connection) = self.connections.get_mut(slot)
                && connection.is_live()
            {
                // What it has been sent before is not live any more.
                connection.live_from = None;
            }
            self.connections.replay_from(slot, 0);
            self.agenda.push_back(slot);
        }
    }

    fn want_page(&mut self, slot: Slot, turn: &Turn<'_>) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let has_room = connection.page_size(turn.config).is_some();
        let Some(replay) = connection.replay_mut() else { return };
        if has_room && replay.wants_page() && !replay.is_reader {
            replay.is_reader = true;
            self.readers.push_back(slot);
        }
    }

    /// Asks the store for the next page, if somebody wants one and none is open.
    pub(super) fn ask_for_page(&mut self, turn: &mut Turn<'_>) {
        if self.connections.replaying() == 0 {
            self.read_again_at = None;
            return;
        }
        if self.read.is_some() || self.read_again_at.is_some() {
            return;
        }
        while let Some(slot) = self.readers.pop_front() {
            let Some(connection) = self.connections.get_mut(slot) else { continue };
            let page_size = connection.page_size(turn.config);
            let Some(replay) = connection.replay_mut() else { continue };
            replay.is_reader = false;
            let Some((messages, bytes)) = page_size.filter(|_| replay.wants_page()) else { continue };
            let read = OpenRead {
                slot,
                next: replay.next,
                last_place: self.last_place,
                settled: IdSet::default(),
                is_void: false,
            };
            turn.emit(Effect::Read { after: read.after(), messages, bytes });
            self.read = Some(read);
            return;
        }
    }

    pub(super) fn page(
        &mut self,
        after: Option<Place>,
        letters: Vec<(Place, Letter)>,
        has_more: bool,
        turn: &Turn<'_>,
    ) {
        let Some(read) = self.read.take_if(|read| read.after() == after) else { return };
        self.agenda.push_back(read.slot);
        let Some(replay) = self.connections.get_mut(read.slot).and_then(|c| c.replay_mut()) else { return };
        // It may have gone back since, or be another connection's.
        if read.is_void || replay.next != read.next || !replay.wants_page() {
            return;
        }
        let mut end = read.next;
        for (place, letter) in letters {
            if place.0 < end {
                continue;
            }
            if self.line.contains(letter.id) {
                // It is not accepted yet. It comes when it is, and those behind it after it.
                replay.waits_for_line = true;
                break;
            }
            end = place.0.saturating_add(1);
            if !read.settled.contains(&letter.id) {
                replay.feed.push_back((place, letter));
            }
        }
        replay.is_last = !has_more && !replay.waits_for_line && read.last_place == self.last_place;
        let has_moved = end > read.next || read.last_place != self.last_place;
        replay.feed_end = end;
        if replay.is_last {
            replay.feed_end = end.max(self.last_place.map_or(0, |place| place.0.saturating_add(1)));
        } else if !has_moved && !replay.waits_for_line {
            // A store that has more and does not give it is broken.
            self.read_later(turn);
        }
    }

    pub(super) fn read_failed(&mut self, after: Option<Place>, turn: &Turn<'_>) {
        if let Some(read) = self.read.take_if(|read| read.after() == after) {
            self.agenda.push_back(read.slot);
            self.read_later(turn);
        }
    }

    fn read_later(&mut self, turn: &Turn<'_>) {
        if !self.connections.is_empty() {
            self.read_again_at = Some(turn.after(turn.config.ack_retry_interval));
        }
    }
}

/// What became of a letter that a replay came to.
#[derive(Debug)]
enum Step {
    /// It need not be sent.
    Done,
    /// It is on its way to the connection.
    Sent { id: Uuid },
    /// The connection must acknowledge something first.
    NoRoom(Letter),
}

/// Letters that are remembered as settled while one page is read. A store that takes longer is asked again.
const MOST_SETTLED: usize = 4096;
