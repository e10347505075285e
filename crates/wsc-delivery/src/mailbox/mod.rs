//! A user's mailbox: what was accepted for the user and is not settled, and in which order it goes where.
//!
//! A letter waits in the *line* until the store has it, then it is in flight, or rests in the store. What is in flight
//! is in memory (`flights.rs`), what rests is not: it comes back page by page through the *replay* of a connection
//! (`connections.rs`). A connection without a replay is live: it gets letters as they leave the line.

mod attempts;
mod config;
mod connections;
mod effect;
mod entering;
mod flights;
mod input;
mod inspect;
mod leaving;
mod line;
mod replay;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

pub use config::MailboxConfig;
pub use effect::{Copy, Effect, Sort, Whereabouts};
pub use input::{Input, Kind, Letter, Refusal, Transmission, Verdict};
pub use inspect::{InFlight, WaitsFor};
use uuid::Uuid;

use connections::{Connections, Slot};
use flights::{Flights, IdMap};
use line::Line;
use replay::OpenRead;

/// Unix milliseconds, from a clock that never goes back.
pub type Millis = u64;

/// A letter's place in the order in which the store took letters. Grows, and is never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(pub u64);

/// A mailbox (protocol §3): fates, order, window, replay, attempts and deadlines of everything that is on its way to
/// one user. It does nothing itself: it is told what happened, and says what is to be done.
///
/// The same inputs give the same effects. An input that makes no sense (an unknown connection, a second answer) does
/// nothing.
///
/// ```
/// use bytes::Bytes;
/// use uuid::Uuid;
/// use wsc_delivery::mailbox::{Effect, Input, Kind, Letter, Mailbox, MailboxConfig, Place, Whereabouts};
///
/// let (mut mailbox, config, mut effects) = (Mailbox::new(), MailboxConfig::default(), Vec::new());
/// let letter =
///     Letter { id: Uuid::from_u128(1), kind: Kind::Reliable, body: Bytes::from("hi"), expires_at: None, only: None, except: None };
///
/// mailbox.handle(0, &config, Input::Accept(letter.clone()), &mut effects);
/// assert_eq!(effects, [Effect::Persist(letter.clone())]);
///
/// effects.clear();
/// mailbox.handle(2, &config, Input::Committed { id: letter.id, place: Place(7) }, &mut effects);
/// assert_eq!(effects, [Effect::Accepted { id: letter.id, at: Whereabouts::Resting }]); // nobody is there
/// ```
#[derive(Debug, Default)]
pub struct Mailbox {
    line: Line,
    flights: Flights,
    connections: Connections,
    /// Of letters that are held behind replays: behind how many.
    passing: IdMap<usize>,
    /// Letters that are being taken out of the store, and whether a replay left them out meanwhile.
    taking: BTreeMap<Uuid, bool>,
    /// The last place that left the line.
    last_place: Option<Place>,
    read: Option<OpenRead>,
    /// Connections whose replay wants a page, in turn.
    readers: VecDeque<Slot>,
    /// Connections whose replay may be able to go on.
    agenda: VecDeque<Slot>,
    /// When what rests is tried again, where something rests although connections are there.
    retry_at: Option<Millis>,
    /// When the store is asked again after it failed.
    read_again_at: Option<Millis>,
}

/// What one input is handled with.
struct Turn<'a> {
    now: Millis,
    config: &'a MailboxConfig,
    effects: &'a mut Vec<Effect>,
}

impl Turn<'_> {
    fn emit(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    fn after(&self, delay: std::time::Duration) -> Millis {
        self.now.saturating_add(Millis::try_from(delay.as_millis()).unwrap_or(Millis::MAX))
    }

    fn is_over(&self, letter: &Letter) -> bool {
        letter.expires_at.is_some_and(|at| at <= self.now)
    }
}

impl Mailbox {
    /// An empty mailbox of a user without connections.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one input and appends what is to be done to `effects`.
    ///
    /// The effects are carried out in order; each [`Effect::Transmit`] is answered before the next effect is.
    pub fn handle(&mut self, now: Millis, config: &MailboxConfig, input: Input, effects: &mut Vec<Effect>) {
        let turn = &mut Turn { now, config, effects };
        match input {
            Input::Accept(letter) => self.accept(letter, turn),
            Input::Pass(letter) => self.pass(letter, turn),
            Input::Committed { id, place } => self.committed(id, place, turn),
            Input::NotCommitted { id, refusal } => self.not_committed(id, refusal, turn),
            Input::Connected { conn, nothing_rests } => self.connected(conn, nothing_rests),
            Input::Disconnected { conn } => self.disconnected(conn, turn),
            Input::Transmitted { conn, id, result } => self.transmitted(conn, id, result, turn),
            Input::Written { conn, id } => self.written(conn, id, turn),
            Input::Lost { conn, id } => self.lost(conn, id, turn),
            Input::Acked { id } => self.answered(id, Verdict::Acked, turn),
            Input::Nacked { id } => self.answered(id, Verdict::Rejected, turn),
            Input::Page { after, letters, has_more } => self.page(after, letters, has_more, turn),
            Input::ReadFailed { after } => self.read_failed(after, turn),
            Input::Taken { id, verdict, letter } => self.taken(id, verdict, letter, turn),
            Input::Expired { letter } => self.expired(letter.id, turn),
            Input::Retry => self.retry_what_rests(),
            Input::Wake => self.wake(turn),
        }
        while let Some(slot) = self.agenda.pop_front() {
            self.go_on(slot, turn);
        }
        self.ask_for_page(turn);
    }

    /// When [`Input::Wake`] is due.
    pub fn next_wake(&self) -> Option<Millis> {
        [self.flights.next_due(), self.retry_at, self.read_again_at].into_iter().flatten().min()
    }

    /// Whether a plain letter would overtake something if it did not go through [`Input::Pass`].
    pub fn holds_back(&self) -> bool {
        !self.line.is_empty() || self.connections.replaying() > 0
    }

    /// Whether nothing is lost by forgetting the mailbox.
    pub fn is_idle(&self) -> bool {
        self.line.is_empty()
            && self.flights.is_empty()
            && self.read.is_none()
            && self.taking.is_empty()
            && self.connections.replaying() == 0
            && self.retry_at.is_none()
    }

    /// How many letters are in flight: on their way to a connection, or waiting for an acknowledgement.
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    fn wake(&mut self, turn: &mut Turn<'_>) {
        while let Some(key) = self.flights.pop_due(turn.now) {
            self.come_due(key, turn);
        }
        if self.retry_at.is_some_and(|at| at <= turn.now) {
            self.retry_what_rests();
        }
        if self.read_again_at.is_some_and(|at| at <= turn.now) {
            self.read_again_at = None;
        }
    }

    /// Which connections get a letter.
    fn audience(&self, only: Option<Uuid>, except: Option<Uuid>) -> Audience {
        let find = |conn: Option<Uuid>| self.connections.find(conn?);
        Audience { owner: find(only), except: find(except) }
    }
}

/// Which connections get a letter: all of them in most cases.
#[derive(Clone, Copy, Debug)]
struct Audience {
    /// The one that alone gets it, while it is there.
    owner: Option<Slot>,
    /// The one that never does.
    except: Option<Slot>,
}

impl Audience {
    fn includes(self, slot: Slot) -> bool {
        self.owner.is_none_or(|owner| owner == slot) && self.except != Some(slot)
    }
}

/// Acknowledgements of letters that are not in memory which are looked up at a time, of one user. More are ignored:
/// the letters stay where they are, and come again.
const MOST_TAKEN: usize = 16_384;
