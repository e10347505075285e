//! What a mailbox is told.

use bytes::Bytes;
use uuid::Uuid;

use super::{Millis, Place};

/// Whether the receiver must acknowledge a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// With `require_ack`: it leaves by an ACK, a nack, its end, or a failure.
    Reliable,
    /// Without: it is done when one connection has written it.
    Plain,
}

/// A message for the owner of a mailbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// The message's id.
    pub id: Uuid,
    /// Whether it must be acknowledged.
    pub kind: Kind,
    /// What is stored and transmitted; the mailbox never looks into it. Its length counts for the window.
    pub body: Bytes,
    /// When its time to live ends; `None`: never.
    pub expires_at: Option<Millis>,
    /// Only this connection gets it, for as long as it is there; afterwards it is a letter for its user as any other.
    pub only: Option<Uuid>,
    /// This connection never gets it: it is where the letter comes from.
    pub except: Option<Uuid>,
}

/// What happens to a mailbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A letter that must be stored before it counts as accepted. Answered by [`Effect::Persist`](super::Effect).
    Accept(Letter),
    /// A plain letter that was accepted already, is never stored, and must not overtake what came before it.
    Pass(Letter),
    /// The store has it, at this place.
    Committed {
        /// Which letter.
        id: Uuid,
        /// Its place in the store's order.
        place: Place,
    },
    /// The store has not taken it.
    NotCommitted {
        /// Which letter.
        id: Uuid,
        /// Why.
        refusal: Refusal,
    },
    /// A connection of the owner's is there. Told twice it is one.
    Connected {
        /// Its session id.
        conn: Uuid,
        /// Nothing rests in the store for this owner, so there is nothing to replay to it.
        nothing_rests: bool,
    },
    /// A connection is gone. Its unsettled copies are lost with it, whether or not each is told.
    Disconnected {
        /// Its session id.
        conn: Uuid,
    },
    /// The answer to an [`Effect::Transmit`](super::Effect), given before anything else.
    Transmitted {
        /// The connection.
        conn: Uuid,
        /// The letter.
        id: Uuid,
        /// What the connection said at once.
        result: Transmission,
    },
    /// A copy that was queued has been handed to the kernel.
    Written {
        /// The connection.
        conn: Uuid,
        /// The letter.
        id: Uuid,
    },
    /// A copy that was queued will not be written: it left the queue, or the connection ended.
    Lost {
        /// The connection.
        conn: Uuid,
        /// The letter.
        id: Uuid,
    },
    /// A connection of the owner's acknowledged.
    Acked {
        /// Which letter.
        id: Uuid,
    },
    /// A connection of the owner's rejected it.
    Nacked {
        /// Which letter.
        id: Uuid,
    },
    /// The answer to an [`Effect::Read`](super::Effect) with the same `after`: letters in the store's order.
    Page {
        /// Behind which place it begins.
        after: Option<Place>,
        /// The letters.
        letters: Vec<(Place, Letter)>,
        /// Whether there is more behind the last of them.
        has_more: bool,
    },
    /// The store could not be read.
    ReadFailed {
        /// Behind which place the page would have begun.
        after: Option<Place>,
    },
    /// The answer to an [`Effect::Take`](super::Effect).
    Taken {
        /// Which letter.
        id: Uuid,
        /// What the receiver said of it.
        verdict: Verdict,
        /// The letter, where it was there.
        letter: Option<Letter>,
    },
    /// The time to live of a letter that rests is over: the store lists it. It may have been settled since then, so it
    /// is [taken](super::Effect::Take) out of the store first.
    Expired {
        /// The letter as the store has it.
        letter: Letter,
    },
    /// What rests is to be tried now, as if [`retry_interval`](super::MailboxConfig::retry_interval) had passed.
    Retry,
    /// The time that [`next_wake`](super::Mailbox::next_wake) named has come.
    Wake,
}

/// What a connection made of a copy at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transmission {
    /// The kernel has its last byte.
    Written,
    /// It waits; [`Input::Written`] or [`Input::Lost`] follows.
    Queued,
    /// There was no room.
    Full,
    /// The connection takes nothing any more.
    Gone,
}

/// Why a letter that rests is taken out of the store: what its receiver said of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It has it.
    Acked,
    /// It does not want it.
    Rejected,
    /// Nothing: the letter's time to live is over.
    Expired,
}

/// Why the store did not take a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// A limit is reached.
    Full,
    /// The store does not work.
    Failed,
}
