//! What the coordinating process and its workers say to each other: one JSON object on a line.

use std::{net::SocketAddr, ops::Range, time::Duration};

use serde::{Deserialize, Serialize};

use crate::latency::Recorded;

/// Which server, as the clients have to name it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    /// For the `Host` header.
    pub(crate) host: String,
    /// Path of the WebSocket, with the query that every connection has.
    pub(crate) path: String,
    pub(crate) token: Option<String>,
}

/// What a worker is told to do. It does one thing at a time and answers with [`Event::Done`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) enum Command {
    /// The first line that a worker gets. Not answered.
    Begin {
        endpoint: Endpoint,
        /// Makes the ids of this run differ from those of another.
        run: String,
        /// The number in the ids of its first connection; that of the others follows from their slots.
        first: u64,
        /// How long nothing may happen before something is wrong.
        patience: Duration,
        /// How much less important than others this process is to the scheduler.
        nice: i32,
    },
    Open(Open),
    Exchange(Exchange),
    Fanout(Fanout),
    /// Writes to users who never read until the server can get rid of no more.
    Fill {
        stuck: Range<usize>,
        /// Who writes to them.
        sender: usize,
    },
    /// Looks which of those who never read the server still has.
    Look {
        stuck: Range<usize>,
    },
    /// To a worker in [`Fanout`]: all members of another worker have this many messages.
    Arrived {
        worker: usize,
        messages: u64,
    },
    /// To a worker in [`Fanout`] that does not send: this many were sent in all, it is over.
    Stop {
        messages: u64,
    },
    /// Opens this many connections to the HTTP API at the end of the table.
    OpenHttp {
        count: usize,
    },
    Close {
        slots: Range<usize>,
        how: Ending,
    },
    /// Waits until the server has ended these connections.
    AwaitEnd {
        slots: Range<usize>,
    },
}

/// Opens connections.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Open {
    /// Their places in the worker's table, which grows as needed.
    pub(crate) slots: Range<usize>,
    pub(crate) rooms: Rooms,
    /// At most this many at a time on their way.
    pub(crate) pending: usize,
    /// Whether to try again what fails: where everybody comes at once, some are turned away.
    pub(crate) retry: bool,
    /// Never read once they are in: with a small receive buffer, so that it is soon full.
    pub(crate) stuck: bool,
}

/// How far a connection is brought.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) enum Rooms {
    /// Until the 101, no further: nothing is read after it.
    Unread,
    /// Until `connected`.
    None,
    /// Until `room_joined` of one of so many rooms.
    Spread(u64),
}

/// Messages that go from one connection to one.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Exchange {
    pub(crate) slots: Range<usize>,
    pub(crate) kind: ExchangeKind,
    pub(crate) pace: Pace,
    pub(crate) limit: Limit,
    /// Bytes of the content.
    pub(crate) payload: usize,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) enum ExchangeKind {
    /// `ping`, answered to the connection itself with `pong`.
    Echo,
    /// `direct_message` to the user of another connection of this worker.
    Direct,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) enum Pace {
    /// Each connection sends its next message when one of its so many has arrived.
    Closed { in_flight: usize },
    /// So many messages a second, whatever happens to them.
    Rate { per_second: f64 },
}

/// What ends the sending. What was sent by then is waited for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) enum Limit {
    Count(u64),
    Time(Duration),
}

impl Limit {
    /// How many messages there will be, where that is known.
    pub(crate) fn count(self) -> Option<u64> {
        match self {
            Self::Count(count) => Some(count),
            Self::Time(_) => None,
        }
    }
}

/// Messages that go to many.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Fanout {
    /// This worker's number.
    pub(crate) worker: usize,
    /// Whether the messages are broadcasts, sent through the HTTP API, and not a room's.
    pub(crate) broadcast: bool,
    /// Its members; those that are stuck are not among them.
    pub(crate) members: Range<usize>,
    pub(crate) sender: Option<Sender>,
    /// Messages that can be on their way at a time.
    pub(crate) in_flight: usize,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Sender {
    pub(crate) slot: usize,
    /// The workers that have members.
    pub(crate) listeners: Vec<usize>,
    pub(crate) limit: Limit,
    pub(crate) payload: usize,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) enum Ending {
    /// A close frame and the end of the stream; the server's end is waited for.
    Polite,
    /// A TCP reset, as from a machine that is gone.
    Reset,
}

/// What a worker tells.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) enum Event {
    /// A command is being worked on, so that others may begin to send.
    Started,
    /// How far the command has come, a few times a second.
    Progress(u64),
    /// In a [`Fanout`]: all members here have this many messages.
    Arrived(u64),
    Done(Done),
    /// The run cannot go on.
    Failed(String),
}

/// What came of a command.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Done {
    /// Connections opened or ended, messages exchanged, or messages sent to many.
    pub(crate) count: u64,
    /// Messages that arrived at a member.
    pub(crate) deliveries: u64,
    /// What was sent and did not arrive; connections that were not ended in order.
    pub(crate) missing: u64,
    /// Connections that had to be tried again.
    pub(crate) retries: u64,
    /// From the first send to the last arrival.
    pub(crate) elapsed: Duration,
    /// From when it was to be sent (or was, where the pace is closed).
    pub(crate) latency: Recorded,
    /// From when it really was sent.
    pub(crate) uncorrected: Recorded,
    /// At a fixed rate: from when it was to be sent until this worker sent it.
    pub(crate) lag: Recorded,
    /// What was due at a fixed rate and was not sent, since the worker was too late already.
    pub(crate) unsent: u64,
    /// The least that the server holds for one of those who never read, in bytes.
    pub(crate) held: Option<u64>,
}
