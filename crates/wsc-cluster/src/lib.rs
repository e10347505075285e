//! How the nodes of a hub hear of each other's messages.
//!
//! A node [subscribes](Bus::subscribe) to the [`Subject`]s of the users and rooms that it has, and publishes to those
//! that other nodes may have. The bus routes, so a message travels only to nodes that want it, and answers how many
//! [took it](Reach). [`InProcessBus`] links the nodes of one process: a hub of one node runs the same code over it.
//!
//! It deliberately does not know local connections or what a message means: a payload is bytes.
//!
//! ```
//! use bytes::Bytes;
//! use wsc_cluster::{Bus, InProcessNetwork, Subject};
//! use wsc_protocol::Id;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let network = InProcessNetwork::new();
//! let (a, b) = (network.join("a"), network.join("b"));
//! let bob = Subject::User(Id::new("bob")?);
//!
//! let mut messages = b.subscribe(bob.clone(), 16).await?;
//! let reach = a.publish(&bob, Bytes::from_static(b"hi")).await?;
//! assert_eq!(reach.taken, 1);
//! let message = messages.recv().await.unwrap();
//! assert_eq!((&*message.from, &message.payload[..]), ("a", &b"hi"[..]));
//!
//! drop(messages);
//! assert_eq!(a.publish(&bob, Bytes::from_static(b"hi")).await?.taken, 0);
//! # Ok(()) }
//! ```
//!
//! # Cargo features
//!
//! None.

mod bus;
mod in_process;
mod inbox;
mod subject;

pub use bus::{Bus, BusError, Interest, Message, Reach, Subscription};
pub use in_process::{InProcessBus, InProcessNetwork};
pub use inbox::{Inbox, InboxReceiver, inbox};
pub use subject::{InvalidSubject, Subject};
