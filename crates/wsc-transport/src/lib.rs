//! The WebSocket transport of wsc-hub.
//!
//! A [`Transport`] accepts sockets, does the handshake, and runs one small task per connection. What arrives goes to
//! a [`Handler`] as a borrowed [`Message`]; what leaves goes through an [`Outbound`] handle per connection or a
//! [`Fanout`] for many. Every queue is bounded in bytes, one slow peer costs its own queue and nobody else, and an
//! idle connection holds no buffer, no timer and no channel.
//!
//! It deliberately does not know users, rooms, retries or clusters: a [`Service`] above decides who may connect and
//! what a message means. Requests that are no upgrade on the hub's path are handed on with their bytes replayed.
//!
//! ```no_run
//! use std::sync::Arc;
//! use http::Request;
//! use wsc_protocol::DisconnectReason;
//! use wsc_transport::{Admission, Handler, Message, Next, Outbound, Peer, Service, Stream, Transport, text_frame};
//!
//! struct Echo;
//!
//! impl Service for Echo {
//!     type Ticket = ();
//!     type Handler = EchoHandler;
//!
//!     async fn admit(&self, _: &Request<()>, _: Peer) -> Admission<()> {
//!         Admission::Accept { ticket: (), subprotocol: None }
//!     }
//!
//!     fn open(&self, (): (), outbound: &Outbound) -> EchoHandler {
//!         EchoHandler(outbound.clone())
//!     }
//!
//!     async fn http(&self, _: Stream, _: Peer) {}
//! }
//!
//! struct EchoHandler(Outbound);
//!
//! impl Handler for EchoHandler {
//!     fn message(&self, message: Message<'_>) -> Next {
//!         let mut buffer = Vec::new();
//!         self.0.send(text_frame(&mut buffer, |out| out.extend_from_slice(message.as_bytes())));
//!         Next::Read
//!     }
//!
//!     fn closed(self, cause: DisconnectReason) {
//!         println!("gone: {cause}");
//!     }
//! }
//!
//! # async fn run() -> std::io::Result<()> {
//! let transport = Transport::start("/ws", &Default::default(), |_| Arc::new(Echo));
//! transport.listen(tokio::net::TcpListener::bind("127.0.0.1:8080").await?);
//! # Ok(())
//! # }
//! ```
//!
//! # Cargo features
//!
//! None.

mod budget;
mod config;
mod conn;
mod connection;
mod decoder;
mod deflate;
mod drain;
mod fanout;
mod flusher;
mod frame;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod handshake;
mod ledger;
mod outbound;
mod queue;
mod replay;
mod service;
mod shared;
mod stats;
mod tls;
mod transport;

pub use config::{QueuePolicy, TransportConfig};
pub use connection::{AsyncStream, Stream};
pub use drain::Drain;
pub use fanout::{Fanout, Fanouts, JoinError, Member, PublishError, Slot};
pub use frame::{Encoded, text_frame};
pub use handshake::{Extensions, upgrade_response, wants_upgrade};
pub use ledger::{Ledger, Tally};
pub use outbound::{Amount, Outbound, OutboundState, Sent, Settle, Terms};
pub use service::{Admission, FanoutReport, Handler, Message, Next, Peer, Service};
pub use stats::TransportStats;
pub use tls::{TlsConfig, TlsError};
pub use transport::{Adopted, Transport};
