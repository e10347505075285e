//! What the layer above supplies.

use std::{net::SocketAddr, pin::Pin, time::Duration};

use http::{Request, Response};
use wsc_protocol::{CloseReason, DisconnectReason};

use crate::{connection::Stream, outbound::Outbound};

/// Decides who may connect, and handles those who do. One value serves a whole [`Transport`](crate::Transport).
pub trait Service: Send + Sync + 'static {
    /// What [`admit`](Self::admit) found out about a connection; dropped where the connection never opens.
    type Ticket: Send + 'static;
    /// One open connection.
    type Handler: Handler;

    /// Decides about a well-formed upgrade request. The handshake's timeout covers it; dropping the future must
    /// leave nothing behind.
    fn admit(&self, request: &Request<()>, peer: Peer) -> impl Future<Output = Admission<Self::Ticket>> + Send;

    /// Opens a connection. Nothing is written before it returns: what it sends comes first on the wire.
    fn open(&self, ticket: Self::Ticket, outbound: &Outbound) -> Self::Handler;

    /// Serves a connection whose first request is no upgrade on the hub's path; its bytes are replayed.
    fn http(&self, stream: Stream, peer: Peer) -> impl Future<Output = ()> + Send;

    /// Told after each round of a [`Fanout`](crate::Fanout).
    fn flushed(&self, _report: FanoutReport) {}
}

/// One open connection, seen from above.
pub trait Handler: Send + Sync + 'static {
    /// Takes one message. Messages of a connection come one after the other.
    fn message(&self, message: Message<'_>) -> Next;

    /// A frame came that is no message and brings next to nothing: a ping, a pong, or a fragment of no length. `len` is
    /// that of the whole frame, in bytes. Default: nothing.
    fn small_frame(&self, _len: usize) {}

    /// The connection takes no more messages and gets none: called exactly once, also where its task is aborted.
    fn closed(self, cause: DisconnectReason);
}

/// A message as it lies in the read buffer.
#[derive(Clone, Copy, Debug)]
pub enum Message<'m> {
    /// From a text frame: valid UTF-8.
    Text(&'m str),
    /// From a binary frame.
    Binary(&'m [u8]),
}

impl Message<'_> {
    /// The payload's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Binary(bytes) => bytes,
        }
    }
}

/// When a connection reads its next message.
pub enum Next {
    /// Now.
    Read,
    /// After this future, which the connection's task drives. It is dropped when the connection closes.
    Wait(Pin<Box<dyn Future<Output = ()> + Send>>),
}

impl std::fmt::Debug for Next {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Read => "Read",
            Self::Wait(_) => "Wait(..)",
        })
    }
}

/// The answer to an upgrade request.
#[derive(Debug)]
pub enum Admission<T> {
    /// Switch protocols.
    Accept {
        /// Handed to [`Service::open`].
        ticket: T,
        /// The selected subprotocol, one that the client offered.
        subprotocol: Option<&'static str>,
    },
    /// Switch protocols and close at once: browsers show scripts nothing of a refused upgrade.
    Close {
        /// What the close frame says.
        close: CloseReason,
        /// The selected subprotocol.
        subprotocol: Option<&'static str>,
    },
    /// Answer in HTTP.
    Refuse(Response<Vec<u8>>),
}

/// Who is at the other end, and which of our addresses it came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "programs that hand connections over make one")]
pub struct Peer {
    /// The peer's address.
    pub remote: SocketAddr,
    /// Our address.
    pub local: SocketAddr,
    /// Whether the stream is encrypted.
    pub is_tls: bool,
}

/// One round of a fan-out.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct FanoutReport {
    /// Frames that were joined.
    pub frames: u32,
    /// Members that the round went to.
    pub members: u64,
    /// From the round's start to the last member's write.
    pub duration: Duration,
}
