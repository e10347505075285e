//! The bus's contract.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Inbox, InboxReceiver, Subject, inbox};

/// One node's connection to the others.
///
/// Nodes are equal, and a node never hears itself: what it publishes goes to the others only.
///
/// # Order
///
/// Messages that one node publishes to one subject, one after the other, arrive in that order. Between subjects and
/// between publishers there is none.
///
/// # Loss
///
/// A bus carries what is live, at most once. A message that does not fit into a subscriber's bounded queue is gone for
/// it: counted there, and in the publisher's [`Reach::missed`]. What must not be lost is in a store.
///
/// # Cancel safety
///
/// A call whose future is dropped may still take effect.
#[async_trait]
pub trait Bus: Send + Sync + 'static {
    /// Sends `payload` to every other node that has an interest in `subject`, and says how many took it.
    ///
    /// # Errors
    ///
    /// [`BusError`] where the message reached nobody, as far as is known.
    async fn publish(&self, subject: &Subject, payload: Bytes) -> Result<Reach, BusError>;

    /// Has messages to `subject` put into `inbox` for as long as the [`Interest`] lives. When this has returned, what
    /// others publish arrives.
    ///
    /// # Errors
    ///
    /// [`BusError`] where there is no interest.
    async fn attach(&self, subject: Subject, inbox: &Inbox) -> Result<Interest, BusError>;

    /// Subscribes to `subject` with a queue of its own for at most `capacity` messages.
    ///
    /// # Errors
    ///
    /// [`BusError`] where there is no subscription.
    async fn subscribe(&self, subject: Subject, capacity: usize) -> Result<Subscription, BusError> {
        let (inbox, receiver) = inbox(capacity);
        let interest = self.attach(subject, &inbox).await?;
        Ok(Subscription { interest, receiver })
    }

    /// Leaves: ends every interest and lets go of connections. Closing twice is fine.
    async fn close(&self);
}

/// The trait is kept as `dyn` in the node.
const _: Option<&dyn Bus> = None;

/// A message as it arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it was published to.
    pub subject: Subject,
    /// The node that published it.
    pub from: Arc<str>,
    /// What was published.
    pub payload: Bytes,
}

/// Whom a message reached: the interests of other nodes, not people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// How many took it.
    pub taken: u32,
    /// How many had no room for it.
    pub missed: u32,
}

impl Reach {
    /// Nobody has an interest.
    pub const NONE: Self = Self { taken: 0, missed: 0 };

    /// Whether somebody took it.
    pub fn is_taken(self) -> bool {
        self.taken > 0
    }
}

/// An interest in one subject. Dropping it ends it: nothing that is published afterwards arrives.
#[must_use = "dropping an interest ends it"]
pub struct Interest {
    subject: Subject,
    end: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Interest {
    /// An interest that a driver ends with `end`, which must not block.
    pub fn new(subject: Subject, end: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self { subject, end: Some(Box::new(end)) }
    }

    /// What it is an interest in.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            end();
        }
    }
}

impl fmt::Debug for Interest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Interest").field(&self.subject).finish()
    }
}

/// An interest with a bounded queue of its own. Dropping it ends it.
#[derive(Debug)]
pub struct Subscription {
    interest: Interest,
    receiver: InboxReceiver,
}

impl Subscription {
    /// The next message; `None` once the bus is closed and everything that had come was read.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost where the future is dropped.
    pub async fn recv(&mut self) -> Option<Message> {
        self.receiver.recv().await
    }

    /// The next message, where one waits.
    pub fn try_recv(&mut self) -> Option<Message> {
        self.receiver.try_recv()
    }

    /// How many messages did not fit so far.
    pub fn missed(&self) -> u64 {
        self.receiver.missed()
    }

    /// What it subscribes to.
    pub fn subject(&self) -> &Subject {
        self.interest.subject()
    }
}

/// Why the bus did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// The bus was closed.
    #[error("the bus is closed")]
    Closed,
    /// The other nodes, or the broker between them, cannot be reached. It may work again later.
    #[error("the bus is not available")]
    Unavailable(#[source] Arc<dyn std::error::Error + Send + Sync>),
}

impl BusError {
    /// A failure of what is behind the bus.
    pub fn unavailable(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Unavailable(cause.into().into())
    }
}
