//! The owner's connections, what each has not acknowledged, and how far its replay is.

use std::collections::VecDeque;

use bytes::Bytes;
use uuid::Uuid;

use super::{Kind, Letter, MailboxConfig, Place};

/// The connections of one user. A slot names one while it is there, and may then name another.
#[derive(Debug, Default)]
pub(super) struct Connections {
    slots: Vec<Option<Box<Connection>>>,
    /// In the order of their session ids, so that nothing depends on which slot was free.
    by_session: Vec<(Uuid, Slot)>,
    replaying: usize,
}

pub(super) type Slot = u32;

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) session: Uuid,
    /// The first place that was committed after it connected: from there on letters are live, not replayed.
    pub(super) live_from: Option<Place>,
    /// The first place that others left out because only this connection gets the letter.
    pub(super) reserved_from: Option<Place>,
    /// Reliable letters that were transmitted to it and are not acknowledged.
    pub(super) unacked: Load,
    /// Plain letters from the store that it has not written. They take no place in the window; this keeps a replay of
    /// many from filling the connection's queue.
    pub(super) unwritten: Load,
    /// Letters that rest again, with a copy still in this connection's queue.
    pub(super) left_queued: Vec<Uuid>,
    /// `None`: it is live.
    replay: Option<Box<Replay>>,
}

/// Messages, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    messages: usize,
    bytes: u64,
}

impl Load {
    pub(super) fn add(&mut self, bytes: u64) {
        self.messages += 1;
        self.bytes += bytes;
    }

    pub(super) fn remove(&mut self, bytes: u64) {
        self.messages = self.messages.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// How many messages and bytes there is room for; one message of any size where there is nothing yet.
    fn room(self, config: &MailboxConfig) -> (usize, u64) {
        let messages = config.window_messages.saturating_sub(self.messages);
        let bytes = config.window_bytes.saturating_sub(self.bytes);
        if self.messages == 0 { (messages.max(1), bytes.max(1)) } else { (messages, bytes) }
    }

    fn takes(self, len: u64, config: &MailboxConfig) -> bool {
        let (messages, bytes) = self.room(config);
        self.messages == 0 || (messages > 0 && bytes >= len)
    }
}

/// How far a connection is in what rests.
#[derive(Debug, Default)]
pub(super) struct Replay {
    /// The first place that it has not been offered, and that was not left out for it.
    pub(super) next: u64,
    /// Letters that were read for it and are not sent yet.
    pub(super) feed: VecDeque<(Place, Letter)>,
    /// Where `next` is when the feed is used up.
    pub(super) feed_end: u64,
    /// With the feed the replay is at its end.
    pub(super) is_last: bool,
    /// The next letter in the store is still in the line.
    pub(super) waits_for_line: bool,
    /// It stands among those that want a page.
    pub(super) is_reader: bool,
    /// The letter that is on its way to the connection; its answer comes first.
    pub(super) offering: Option<Uuid>,
    held: VecDeque<Held>,
    held_bytes: usize,
}

/// A letter that is only passed through, and waits behind a replay.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) id: Uuid,
    pub(super) body: Bytes,
    /// It may go when the replay's `next` is here. Not known before something has been committed: then when the replay
    /// is at its end.
    behind: Option<u64>,
}

impl Connection {
    fn new(session: Uuid) -> Self {
        Self {
            session,
            live_from: None,
            reserved_from: None,
            unacked: Load::default(),
            unwritten: Load::default(),
            left_queued: Vec::new(),
            replay: None,
        }
    }

    pub(super) fn replay(&self) -> Option<&Replay> {
        self.replay.as_deref()
    }

    pub(super) fn replay_mut(&mut self) -> Option<&mut Replay> {
        self.replay.as_deref_mut()
    }

    pub(super) fn is_live(&self) -> bool {
        self.replay.is_none()
    }

    /// Whether a letter of this place comes to it as a replay.
    pub(super) fn counts_as_replay(&self, place: Place) -> bool {
        self.live_from.is_none_or(|from| place < from)
    }

    pub(super) fn load_mut(&mut self, kind: Kind) -> &mut Load {
        match kind {
            Kind::Reliable => &mut self.unacked,
            Kind::Plain => &mut self.unwritten,
        }
    }

    /// Whether a letter may be transmitted to it as far as the window goes.
    pub(super) fn takes(&self, kind: Kind, len: u64, config: &MailboxConfig) -> bool {
        match kind {
            Kind::Reliable => self.unacked.takes(len, config),
            Kind::Plain => true,
        }
    }

    /// As [`takes`](Self::takes), for a letter that its replay would send.
    pub(super) fn takes_replayed(&self, kind: Kind, len: u64, config: &MailboxConfig) -> bool {
        match kind {
            Kind::Reliable => self.unacked.takes(len, config),
            Kind::Plain => self.unwritten.takes(len, config),
        }
    }

    /// How much its replay may read at once: none of it is to wait in memory. `None`: nothing at the moment.
    pub(super) fn page_size(&self, config: &MailboxConfig) -> Option<(usize, u64)> {
        let (unacked, unwritten) = (self.unacked.room(config), self.unwritten.room(config));
        let (messages, bytes) = (unacked.0.min(unwritten.0), unacked.1.min(unwritten.1));
        (messages > 0 && bytes > 0).then_some((messages, bytes))
    }

    /// Whether its replay stands still until something is acknowledged.
    pub(super) fn waits_for_acks(&self, config: &MailboxConfig) -> bool {
        let (messages, bytes) = self.unacked.room(config);
        let next = self.replay().and_then(|replay| replay.feed.front());
        let is_too_large = next.is_some_and(|(_, letter)| {
            letter.kind == Kind::Reliable && !self.unacked.takes(letter.body.len() as u64, config)
        });
        messages == 0 || bytes == 0 || is_too_large
    }

    /// Notes that others leave out the letter at this place because it is this connection's.
    pub(super) fn reserve(&mut self, place: Place) {
        self.reserved_from = Some(self.reserved_from.map_or(place, |from| from.min(place)));
    }

    pub(super) fn forget_queued(&mut self, id: Uuid) -> bool {
        let at = self.left_queued.iter().position(|queued| *queued == id);
        at.map(|at| self.left_queued.swap_remove(at)).is_some()
    }
}

impl Replay {
    /// Goes back so that this place is offered.
    pub(super) fn rewind(&mut self, next: u64) {
        if self.next > next {
            self.next = next;
            self.feed.clear();
            self.feed_end = next;
        }
        self.is_last = false;
    }

    /// Whether a page would help it.
    pub(super) fn wants_page(&self) -> bool {
        self.feed.is_empty() && !self.is_last && !self.waits_for_line && self.offering.is_none()
    }

    /// Whether a letter fits behind the replay; the first always does.
    pub(super) fn can_hold(&self, letter: &Letter, config: &MailboxConfig) -> bool {
        self.held.is_empty() || self.held_bytes + letter.body.len() <= config.held_bytes
    }

    /// Keeps a letter behind the replay. False where it does not fit.
    pub(super) fn hold(&mut self, letter: &Letter, behind: Option<u64>, config: &MailboxConfig) -> bool {
        if !self.can_hold(letter, config) {
            return false;
        }
        self.held_bytes += letter.body.len();
        self.held.push_back(Held { id: letter.id, body: letter.body.clone(), behind });
        true
    }

    /// Whether a letter that stands there would have to wait.
    pub(super) fn holds(&self, behind: Option<u64>) -> bool {
        !self.held.is_empty() || behind.is_none_or(|behind| behind > self.next)
    }

    /// Takes the first of the held letters whose turn it is.
    pub(super) fn pop_held(&mut self) -> Option<Held> {
        let next = self.next;
        let held = self.held.pop_front_if(|held| held.behind.is_some_and(|behind| behind <= next))?;
        self.held_bytes -= held.body.len();
        Some(held)
    }

    /// Gives those that were held before anything was committed their position: before that first place.
    pub(super) fn first_committed(&mut self, place: Place) {
        for held in &mut self.held {
            held.behind.get_or_insert(place.0);
        }
    }

    pub(super) fn into_held(self) -> impl Iterator<Item = Held> {
        self.held.into_iter()
    }
}

impl Connections {
    pub(super) fn is_empty(&self) -> bool {
        self.by_session.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.by_session.len()
    }

    /// How many of them have a replay.
    pub(super) fn replaying(&self) -> usize {
        self.replaying
    }

    pub(super) fn find(&self, session: Uuid) -> Option<Slot> {
        let at = self.by_session.binary_search_by_key(&session, |(session, _)| *session).ok()?;
        Some(self.by_session[at].1)
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&Connection> {
        self.slots.get(slot as usize)?.as_deref()
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut Connection> {
        self.slots.get_mut(slot as usize)?.as_deref_mut()
    }

    /// Adds a live connection. `None` where it is there already.
    pub(super) fn insert(&mut self, session: Uuid) -> Option<Slot> {
        let at = self.by_session.binary_search_by_key(&session, |(session, _)| *session).err()?;
        let free = self.slots.iter().position(Option::is_none).unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[free] = Some(Box::new(Connection::new(session)));
        self.by_session.insert(at, (session, free as Slot));
        Some(free as Slot)
    }

    pub(super) fn remove(&mut self, slot: Slot) -> Option<Connection> {
        let connection = self.slots.get_mut(slot as usize)?.take()?;
        self.by_session.retain(|(_, s)| *s != slot);
        self.replaying -= usize::from(connection.replay.is_some());
        Some(*connection)
    }

    /// The slots, in the order of the session ids.
    pub(super) fn slots(&self) -> impl Iterator<Item = Slot> + use<> {
        // Callers change connections while they go through them; there are few.
        self.by_session.iter().map(|(_, slot)| *slot).collect::<smallvec::SmallVec<[Slot; 8]>>().into_iter()
    }

    /// Lets a connection's replay go on from this place, or from its own if that is before it. A live one has one from
    /// then on.
    pub(super) fn replay_from(&mut self, slot: Slot, next: u64) {
        let Some(connection) = self.slots.get_mut(slot as usize).and_then(Option::as_deref_mut) else { return };
        match &mut connection.replay {
            Some(replay) => replay.rewind(next),
            none => {
                *none = Some(Box::new(Replay { next, feed_end: next, ..Replay::default() }));
                self.replaying += 1;
            }
        }
    }

    /// Makes a connection live, and gives what its replay was.
    pub(super) fn end_replay(&mut self, slot: Slot) -> Option<Box<Replay>> {
        let replay = self.slots.get_mut(slot as usize)?.as_deref_mut()?.replay.take()?;
        self.replaying -= 1;
        Some(replay)
    }
}
