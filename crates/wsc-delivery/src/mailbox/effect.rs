//! What a mailbox asks for.

use bytes::Bytes;
use uuid::Uuid;
use wsc_protocol::Fate;

use super::{Letter, Place, Verdict};

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Store the letter; answered by [`Input::Committed`](super::Input) or `NotCommitted`.
    Persist(Letter),
    /// Read the store; answered by `Page` or `ReadFailed`. At most one is open at a time.
    Read {
        /// Behind which place to begin.
        after: Option<Place>,
        /// Most letters.
        messages: usize,
        /// Most bytes, though at least one letter.
        bytes: u64,
    },
    /// Remove from the store what is settled. Not answered.
    ///
    /// Whether or not the store has done it yet: no later `Read` or `Take` may find this letter, also not those of a
    /// mailbox that is made anew. A page that was asked for before may still hold it.
    Remove {
        /// Which letter.
        id: Uuid,
    },
    /// Remove a letter that is not in memory, if it is in the store; answered by `Taken`. Of several that name one
    /// letter, and of those behind a `Remove`, one at most finds it.
    Take {
        /// Which letter.
        id: Uuid,
        /// Why.
        verdict: Verdict,
    },
    /// Send a copy; answered by `Transmitted` before anything else is done.
    Transmit(Copy),
    /// The letter counts as accepted from here on. Its first copies follow; when they are answered, its sender may be
    /// told where it stands.
    Accepted {
        /// Which letter.
        id: Uuid,
        /// Where it is.
        at: Whereabouts,
    },
    /// The letter is not accepted.
    Refused {
        /// Which letter.
        id: Uuid,
        /// Why.
        refusal: super::Refusal,
    },
    /// An accepted letter moved, see the table of protocol §3.
    Moved {
        /// Which letter.
        id: Uuid,
        /// Where to.
        to: Whereabouts,
    },
    /// An accepted letter reached its end.
    Settled {
        /// The letter.
        letter: Letter,
        /// Where it was.
        was: Whereabouts,
        /// What became of it.
        fate: Fate,
        /// How often it was transmitted in this stay on line; a copy for each device is one attempt.
        attempts: u32,
    },
    /// A passed letter was offered to every connection that there was.
    Passed {
        /// Which letter.
        id: Uuid,
    },
    /// A passed letter does not fit behind this connection's replay: it is as if the connection's queue were full.
    Overflow {
        /// The connection.
        conn: Uuid,
        /// Which letter.
        id: Uuid,
        /// The length of its body.
        bytes: usize,
    },
    /// No acknowledgement came in time (event `ack.timeout`).
    AckTimeout {
        /// The letter.
        id: Uuid,
        /// What is stored of it.
        body: Bytes,
        /// Which attempt it was, from 1.
        attempt: u32,
        /// Whether it was the last: the timeout handlers run.
        is_last: bool,
    },
    /// It is sent again (event `ack.retry`); the copies follow.
    AckRetry {
        /// The letter.
        id: Uuid,
        /// What is stored of it.
        body: Bytes,
        /// Which attempt begins, from 2.
        attempt: u32,
    },
    /// An acknowledgement of something that this mailbox does not have (`wsc_acks_ignored_total`).
    AckIgnored {
        /// What it named.
        id: Uuid,
    },
}

/// Where an accepted letter is that is not settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Whereabouts {
    /// `pending`: on its way to a connection, or waiting for an acknowledgement.
    InFlight,
    /// `stored`: in the inbox.
    Resting,
}

/// A copy of a letter for one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// The connection's session id.
    pub conn: Uuid,
    /// The letter's id.
    pub id: Uuid,
    /// What is stored of it.
    pub body: Bytes,
    /// What sort of copy.
    pub sort: Sort,
}

/// What sort of copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// A letter that was only passed through; what becomes of this copy is not the mailbox's business.
    Passed,
    /// A plain letter from the store.
    Plain {
        /// `"source":"offline"`.
        is_replay: bool,
    },
    /// One that must be acknowledged.
    Reliable {
        /// `"source":"offline"`.
        is_replay: bool,
        /// From 1.
        attempt: u32,
    },
}
