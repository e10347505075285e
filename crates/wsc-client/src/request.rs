//! Requests on their way.

use std::{
    fmt,
    future::{Future, IntoFuture},
    pin::Pin,
    time::Duration,
};

use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use tokio::time::timeout;
use wsc_protocol::Priority;

use crate::{
    Client, RequestError,
    outbox::Command,
    reply::{DirectAccepted, Reply, RoomAccepted},
    wire::{Flags, Outgoing},
};

/// A request that is sent when it is awaited, and gives the hub's reply.
///
/// While there is no connection it waits for the next one, at most until its [`timeout`](Self::timeout). Requests of
/// one client are sent in the order in which they are first polled.
///
/// # Cancel safety
///
/// A request that is dropped before its reply may have been sent or not; the reply is forgotten.
#[must_use = "a request is sent when it is awaited"]
pub struct Request<R> {
    client: Client,
    message_type: String,
    data: Result<Box<RawValue>, serde_json::Error>,
    flags: Flags,
    leaves: Option<String>,
    timeout: Duration,
    read: fn(&Reply) -> Result<R, serde_json::Error>,
}

impl<R> Request<R> {
    pub(crate) fn new(
        client: &Client,
        message_type: impl Into<String>,
        data: &(impl Serialize + ?Sized),
        read: fn(&Reply) -> Result<R, serde_json::Error>,
    ) -> Self {
        Self {
            client: client.clone(),
            message_type: message_type.into(),
            data: to_raw_value(data),
            flags: Flags::default(),
            leaves: None,
            timeout: client.request_timeout(),
            read,
        }
    }

    /// How long to wait for the reply, the wait for a connection included. Default:
    /// [`Builder::request_timeout`](crate::Builder::request_timeout).
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Notes that this leaves a room.
    pub(crate) fn leaves(mut self, room_id: &str) -> Self {
        self.leaves = Some(room_id.to_owned());
        self
    }

    async fn send(self) -> Result<R, RequestError> {
        let data = self.data.map_err(RequestError::Encode)?;
        let shared = self.client.shared();
        let mut ticket = shared.pending.open()?;
        let frame = Outgoing {
            message_type: &self.message_type,
            message_id: Some(ticket.id),
            data: Some(&data),
            options: self.flags,
        };
        let frame = self.client.encode(&frame)?;
        let exchange = async {
            let command = Command::Request { id: ticket.id, frame, leaves: self.leaves };
            self.client.command(command).await?;
            // The sender is dropped unused only when the task is gone.
            (&mut ticket.reply).await.unwrap_or(Err(RequestError::Closed { sent: true }))
        };
        let Ok(reply) = timeout(self.timeout, exchange).await else {
            return Err(RequestError::Timeout { sent: ticket.sent() });
        };
        (self.read)(&reply?).map_err(RequestError::Reply)
    }
}

/// A message to somebody: what the sender can ask for beyond its delivery.
#[expect(private_bounds, reason = "which replies belong to messages is nobody else's business")]
impl<R: MessageReply> Request<R> {
    /// Asks the receiver to acknowledge: the message is on disk before it is accepted, and is sent again until it is
    /// acknowledged.
    pub fn require_ack(mut self) -> Self {
        self.flags.require_ack = true;
        self
    }

    /// Asks to be told what became of the message, see [`Event::Outcome`](crate::Event::Outcome).
    pub fn receipt(mut self) -> Self {
        self.flags.receipt = true;
        self
    }

    /// Makes it harmless to send the same message again under the same key: the hub gives its first answer again and
    /// sends nothing.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.flags.idempotency_key = Some(key.into());
        self
    }

    /// Asks for a queue class. A client may lower it, not raise it: the hub refuses [`Priority::High`].
    pub fn priority(mut self, priority: Priority) -> Self {
        self.flags.priority = Some(priority);
        self
    }
}

/// The reply to a message.
trait MessageReply {}

impl MessageReply for RoomAccepted {}
impl MessageReply for DirectAccepted {}

impl<R: Send + 'static> IntoFuture for Request<R> {
    type Output = Result<R, RequestError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

impl<R> fmt::Debug for Request<R> {
    /// Shows no data: it may hold a token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("message_type", &self.message_type)
            .field("flags", &self.flags)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// What a room is created with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RoomOptions {
    /// A name for people. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Most members at a time. Default: the hub's setting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_clients: Option<u32>,
}

impl RoomOptions {
    /// Sets [`name`](Self::name).
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets [`max_clients`](Self::max_clients).
    #[must_use]
    pub fn max_clients(mut self, max_clients: u32) -> Self {
        self.max_clients = Some(max_clients);
        self
    }
}
