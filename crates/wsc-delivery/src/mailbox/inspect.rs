//! What operators may look at.

use bytes::Bytes;
use uuid::Uuid;

use super::{
    Kind, Mailbox, Millis,
    flights::{Flight, Stage},
};

/// One letter in flight, to be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InFlight {
    /// The message's id.
    pub id: Uuid,
    /// Whether it must be acknowledged.
    pub kind: Kind,
    /// What is stored and transmitted.
    pub body: Bytes,
    /// Which transmission of this stay on line it is, from 1.
    pub attempt: u32,
    /// What it waits for.
    pub waits_for: WaitsFor,
    /// Until when; `None`: until it happens.
    pub due: Option<Millis>,
    /// With how many connections it is or was.
    pub connections: usize,
}

/// What a letter in flight waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WaitsFor {
    /// A connection that takes it.
    Transmission,
    /// Its receiver's acknowledgement.
    Acknowledgement,
    /// The next attempt: no acknowledgement came in time.
    NextAttempt,
}

impl WaitsFor {
    /// The name in listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Transmission => "transmission",
            Self::Acknowledgement => "ack",
            Self::NextAttempt => "next_attempt",
        }
    }
}

impl Mailbox {
    /// The letters in flight, in the order of acceptance.
    pub fn flights(&self) -> impl Iterator<Item = InFlight> {
        let keys = self.flights.keys(|_| true);
        keys.into_iter().filter_map(|key| {
            let Flight { id, kind, ref body, attempt, stage, ref copies, .. } = *self.flights.get(key)?;
            let waits_for = match stage {
                Stage::Sending => WaitsFor::Transmission,
                Stage::Written => WaitsFor::Acknowledgement,
                Stage::TimedOut => WaitsFor::NextAttempt,
            };
            let (body, due) = (body.clone(), self.flights.due_of(key));
            Some(InFlight { id, kind, body, attempt, waits_for, due, connections: copies.len() })
        })
    }

    /// How many letters wait for their receiver's acknowledgement, or are on their way to it.
    pub fn unacked(&self) -> usize {
        self.flights.keys(|flight| flight.kind == Kind::Reliable).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mailbox::{Effect, Input, Letter, MailboxConfig, Place, Transmission};

    const CONN: Uuid = Uuid::from_u128(0xA);

    fn letter(n: u128, kind: Kind) -> Letter {
        Letter { id: Uuid::from_u128(n), kind, body: Bytes::from("hi"), expires_at: None, only: None, except: None }
    }

    struct Bench {
        mailbox: Mailbox,
        now: Millis,
    }

    impl Bench {
        fn input(&mut self, input: Input) -> Vec<Effect> {
            let mut effects = Vec::new();
            self.mailbox.handle(self.now, &MailboxConfig::default(), input, &mut effects);
            effects
        }

        /// Accepts, commits and transmits a letter.
        fn send(&mut self, n: u128, kind: Kind, result: Transmission) {
            let letter = letter(n, kind);
            let id = letter.id;
            self.input(Input::Accept(letter));
            self.input(Input::Committed { id, place: Place(n as u64) });
            self.input(Input::Transmitted { conn: CONN, id, result });
        }

        fn stages(&self) -> Vec<(u128, &'static str, u32, Option<Millis>)> {
            let flights = self.mailbox.flights();
            flights.map(|f| (f.id.as_u128(), f.waits_for.as_str(), f.attempt, f.due)).collect()
        }
    }

    #[test]
    fn letters_in_flight_say_what_they_wait_for() {
        let mut bench = Bench { mailbox: Mailbox::new(), now: 1_000 };
        bench.input(Input::Connected { conn: CONN, nothing_rests: true });
        bench.send(2, Kind::Reliable, Transmission::Written);
        bench.send(3, Kind::Reliable, Transmission::Queued);
        bench.send(4, Kind::Plain, Transmission::Queued);
        assert_eq!(
            bench.stages(),
            [(2, "ack", 1, Some(6_000)), (3, "transmission", 1, None), (4, "transmission", 1, None)]
        );
        assert_eq!(bench.mailbox.unacked(), 2);
        bench.now = 6_000;
        bench.input(Input::Wake);
        assert_eq!(bench.stages()[0], (2, "next_attempt", 1, Some(8_000)));
        assert!(bench.mailbox.flights().all(|flight| flight.connections == 1 && flight.body == "hi"));
    }

    #[test]
    fn what_rests_is_tried_at_once_when_it_is_asked_for() {
        let mut bench = Bench { mailbox: Mailbox::new(), now: 0 };
        assert!(bench.input(Input::Retry).is_empty(), "nobody is there");
        bench.input(Input::Connected { conn: CONN, nothing_rests: true });
        // It finds no room, and rests for a minute.
        bench.send(1, Kind::Reliable, Transmission::Full);
        assert_eq!((bench.mailbox.in_flight(), bench.mailbox.next_wake()), (0, Some(60_000)));
        bench.now = 10;
        let effects = bench.input(Input::Retry);
        assert!(matches!(effects[..], [Effect::Read { after: None, .. }]), "{effects:?}");
        let letters = vec![(Place(1), letter(1, Kind::Reliable))];
        let effects = bench.input(Input::Page { after: None, letters, has_more: false });
        assert!(matches!(effects[..], [Effect::Moved { .. }, Effect::Transmit(_)]), "{effects:?}");
        assert_eq!(bench.mailbox.next_wake(), None, "it does not come a second time");
    }
}
