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
