//! A user's mailbox: what was accepted for the user and is not settled, and in which order it goes where.

mod config;
mod effect;
mod input;

pub use config::MailboxConfig;
pub use effect::{Copy, Effect, Sort, Whereabouts};
pub use input::{Input, Kind, Letter, Refusal, Transmission, Verdict};

/// Unix milliseconds, from a clock that never goes back.
pub type Millis = u64;

/// A letter's place in the order in which the store took letters. Grows, and is never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(pub u64);

/// A mailbox (protocol §3): fates, order, window, replay, attempts and deadlines of everything that is on its way to
/// one user. It does nothing itself: it is told what happened, and says what is to be done.
#[derive(Debug, Default)]
pub struct Mailbox {}

impl Mailbox {
    /// An empty mailbox of a user without connections.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one input and appends what is to be done to `effects`.
    ///
    /// The effects are carried out in order; each [`Effect::Transmit`] is answered before the next effect is.
    pub fn handle(&mut self, now: Millis, config: &MailboxConfig, input: Input, effects: &mut Vec<Effect>) {
        let _ = (now, config, input, effects);
    }

    /// When [`Input::Wake`] is due.
    pub fn next_wake(&self) -> Option<Millis> {
        None
    }

    /// Whether a plain letter would overtake something if it did not go through [`Input::Pass`].
    pub fn holds_back(&self) -> bool {
        false
    }

    /// Whether nothing is lost by forgetting the mailbox.
    pub fn is_idle(&self) -> bool {
        true
    }

    /// How many letters are in flight, and how many of them wait for an acknowledgement.
    pub fn in_flight(&self) -> usize {
        0
    }
}
