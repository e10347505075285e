//! Requests on their way.

use std::{
    fmt,
    future::{Future, IntoFuture},
    pin::{Pin, pin},
    time::Duration,
};

use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use tokio::time::{Instant, sleep_until, timeout_at};
use uuid::Uuid;
use wsc_protocol::Priority;

use crate::{
    Backoff, Client, RequestError,
    backoff::Schedule,
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
    timeout: Option<Duration>,
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
            timeout: None,
            read,
        }
    }

    /// How long to wait for the reply, the wait for a connection and all repetitions included. Default:
    /// [`Builder::request_timeout`](crate::Builder::request_timeout), and [`Resend::timeout`] for a message that
    /// [asks for an acknowledgement](Self::require_ack).
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Notes that this leaves a room.
    pub(crate) fn leaves(mut self, room_id: &str) -> Self {
        self.leaves = Some(room_id.to_owned());
        self
    }

    async fn send(mut self) -> Result<R, RequestError> {
        let data = std::mem::replace(&mut self.data, Ok(RawValue::NULL.to_owned())).map_err(RequestError::Encode)?;
        let reply = if self.flags.require_ack {
            self.insist(&data).await
        } else {
            let deadline = after(self.timeout.unwrap_or_else(|| self.client.shared().request_timeout));
            self.attempt(&data, deadline, None).await
        };
        (self.read)(&reply?).map_err(RequestError::Reply)
    }

    /// Sends it again and again until it is answered for good. Its key makes that harmless.
    async fn insist(&mut self, data: &RawValue) -> Result<Reply, RequestError> {
        let client = self.client.clone();
        let (resend, patience) = (&client.shared().resend, client.shared().request_timeout);
        let deadline = after(self.timeout.unwrap_or(resend.timeout));
        let mut schedule = Schedule::new(Backoff::new(resend.base, resend.cap), fastrand::Rng::new());
        let (mut unanswered, mut refusals) = (false, 0);
        loop {
            let error = match self.attempt(data, deadline, Some(patience)).await {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            unanswered |= error.may_have_been_processed();
            match error {
                RequestError::Refused(error) | RequestError::RepetitionRefused(error) => {
                    let pause = schedule.next_delay(error.retry_after().unwrap_or_default());
                    let at = Instant::now() + pause;
                    // A message that was accepted and failed has its fate; what is refused until the end is refused.
                    if error.temporary
                        && error.message_id().is_none()
                        && refusals < resend.max_refusals
                        && at < deadline
                    {
                        refusals += 1;
                        tracing::debug!(code = error.code, ?pause, "a message is refused for the moment");
                        sleep_until(at).await;
                        continue;
                    }
                    return Err(match unanswered {
                        true => RequestError::RepetitionRefused(error),
                        false => RequestError::Refused(error),
                    });
                }
                RequestError::Timeout { .. } if Instant::now() < deadline => {
                    tracing::debug!("a message that has no answer is repeated");
                }
                RequestError::Timeout { .. } => return Err(RequestError::Timeout { sent: unanswered }),
                RequestError::Closed { .. } => return Err(RequestError::Closed { sent: unanswered }),
                other => return Err(other),
            }
        }
    }

    /// Sends it and waits for the reply until the deadline. With `patience`, also no longer than that after it was
    /// written; and when a connection ends before the reply, it is sent again on the next one.
    async fn attempt(
        &mut self,
        data: &RawValue,
        deadline: Instant,
        patience: Option<Duration>,
    ) -> Result<Reply, RequestError> {
        let pending = &self.client.shared().pending;
        let mut ticket = pending.open()?;
        let id = ticket.id;
        let frame = Outgoing {
            message_type: &self.message_type,
            message_id: Some(id),
            data: Some(data),
            options: self.flags.clone(),
        };
        let frame = self.client.encode(&frame)?;
        let command = Command::Request { id, frame, leaves: self.leaves.take(), repeatable: patience.is_some() };
        let exchange = async {
            self.client.command(command).await?;
            // The sender is dropped unused only when the task is gone.
            (&mut ticket.reply).await.unwrap_or(Err(RequestError::Closed { sent: true }))
        };
        let mut exchange = pin!(exchange);
        let mut look = deadline;
        if let Some(patience) = patience {
            look = look.min(after(patience));
        }
        loop {
            if let Ok(reply) = timeout_at(look, &mut exchange).await {
                return reply;
            }
            let (sent, written) = pending.progress(id);
            let now = Instant::now();
            let Some(patience) = patience.filter(|_| now < deadline) else {
                return Err(RequestError::Timeout { sent });
            };
            // While it waits for a connection, nobody owes an answer.
            look = written.unwrap_or(now) + patience;
            if look <= now {
                return Err(RequestError::Timeout { sent });
            }
            look = look.min(deadline);
        }
    }
}

/// So much later, or as late as makes no difference.
fn after(duration: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
    Instant::now() + duration.min(FAR)
}

/// A message to somebody: what the sender can ask for beyond its delivery.
#[expect(private_bounds, reason = "which replies belong to messages is nobody else's business")]
impl<R: MessageReply> Request<R> {
    /// Asks the receiver to acknowledge: the message is on disk before it is accepted, and is sent again until it is
    /// acknowledged.
    ///
    /// The client sees to it that it is accepted once. The message has an
    /// [idempotency key](Self::idempotency_key), one that no other has where the application gives none, and is sent
    /// again under it when its connection ends before the answer, when no answer comes within the
    /// [`request_timeout`](crate::Builder::request_timeout), and, after a pause, when the hub refuses it for the
    /// moment: as long and as often as [`Resend`] allows. Other refusals are returned. A message that is repeated may
    /// come behind those that were sent after it; where the order matters, await one before the next.
    pub fn require_ack(mut self) -> Self {
        self.flags.require_ack = true;
        self.flags.idempotency_key.get_or_insert_with(|| Uuid::now_v7().to_string());
        self
    }

    /// Asks to be told what became of the message, see [`Event::Outcome`](crate::Event::Outcome).
    pub fn receipt(mut self) -> Self {
        self.flags.receipt = true;
        self
    }

    /// Makes it harmless to send the same message again under the same key: the hub gives its first answer again and
    /// sends nothing. It remembers keys for its `idempotency.window`, those of messages without
    /// [`require_ack`](Self::require_ack) not across its own restart.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.flags.idempotency_key = Some(key.into());
        self
    }

    /// The key under which the message is sent: the application's, or the one that was made for it. Who keeps it can
    /// send the same message again after an error, or after a restart of its own.
    pub fn key(&self) -> Option<&str> {
        self.flags.idempotency_key.as_deref()
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

/// How messages that ask for an acknowledgement are repeated until the hub has accepted them, see
/// [`Request::require_ack`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Resend {
    /// How long in all, the wait for a connection included. Default 60 s, time for a hub to start again. Keep it below
    /// the hub's `idempotency.window` (5 min): a repetition behind that would be another message.
    pub timeout: Duration,
    /// How many refusals that may pass (1003, 1004, 1005, 4003) are waited out before one is returned. Default 10; 0
    /// returns the first.
    pub max_refusals: u32,
    /// The longest pause after the first refusal. Default 100 ms. A pause is a random time below its longest, which
    /// doubles with each refusal; the hub's `retry_after_ms`, where it gives one, is added.
    pub base: Duration,
    /// The longest pause after any number of refusals. Default 5 s.
    pub cap: Duration,
}

impl Default for Resend {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(60),
            max_refusals: 10,
            base: Duration::from_millis(100),
            cap: Duration::from_secs(5),
        }
    }
}

impl Resend {
    /// Sets [`timeout`](Self::timeout).
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets [`max_refusals`](Self::max_refusals).
    #[must_use]
    pub fn max_refusals(mut self, max_refusals: u32) -> Self {
        self.max_refusals = max_refusals;
        self
    }

    /// Sets [`base`](Self::base) and [`cap`](Self::cap).
    #[must_use]
    pub fn pauses(mut self, base: Duration, cap: Duration) -> Self {
        self.base = base;
        self.cap = cap;
        self
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
