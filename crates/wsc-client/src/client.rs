//! The application's two ends of a client.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    Builder, Cause, Connected, Event, RequestError, Resend,
    driver::Status,
    outbox::Command,
    pending::Pending,
    queue::EventReceiver,
    reply::{Authenticated, DirectAccepted, Members, MessageStatus, Pong, Reply, RoomAccepted},
    request::{Request, RoomOptions},
    settlements::Settlements,
    wire::{self, Outgoing, Settlement},
};

/// Sends requests to the hub. Cheap to clone; all clones share one connection.
///
/// The connection ends with [`close`](Self::close), or when every clone and the [`Events`] are dropped: then the
/// client says goodbye in the background, for at most [`close_timeout`](Builder::close_timeout).
#[derive(Clone)]
pub struct Client {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
}

/// What all handles of one client share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) pending: Arc<Pending>,
    pub(crate) settlements: Arc<Settlements>,
    pub(crate) status: watch::Receiver<Status>,
    pub(crate) stop: CancellationToken,
    pub(crate) request_timeout: Duration,
    pub(crate) resend: Resend,
    pub(crate) max_request_size: usize,
    pub(crate) auto_ack: bool,
    /// Ends the task when the last handle goes.
    pub(crate) _task: DropGuard,
}

/// The client is closed for good.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the client is closed")]
pub struct Closed(#[source] pub Cause);

impl Client {
    /// Starts to describe a client for the hub at this URL, such as `ws://127.0.0.1:8080/ws`.
    pub fn builder(url: impl Into<String>) -> Builder {
        Builder::new(url.into())
    }

    pub(crate) fn new(commands: mpsc::Sender<Command>, shared: Arc<Shared>) -> Self {
        Self { commands, shared }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Waits until a connection stands, and tells who the hub says it is.
    ///
    /// # Errors
    ///
    /// Where the client is closed for good.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn connected(&self) -> Result<Arc<Connected>, Closed> {
        let mut status = self.shared.status.clone();
        let settled = status.wait_for(|status| !matches!(status, Status::Connecting)).await;
        match settled.as_deref() {
            Ok(Status::Connected(connected)) => Ok(Arc::clone(connected)),
            Ok(Status::Closed(cause)) => Err(Closed(cause.clone())),
            // The task went without a word: its runtime is shutting down.
            Ok(Status::Connecting) | Err(_) => Err(Closed(Cause::Requested)),
        }
    }

    /// Who the hub says this client is; `None` while there is no connection.
    pub fn session(&self) -> Option<Arc<Connected>> {
        match &*self.shared.status.borrow() {
            Status::Connected(connected) => Some(Arc::clone(connected)),
            Status::Connecting | Status::Closed(_) => None,
        }
    }

    /// Joins a room. It is joined again after each reconnection, until it is left
    /// (see [`Builder::rejoin`]).
    ///
    /// Joining a room twice is an error, 3004.
    pub fn join_room(&self, room_id: &str) -> Request<()> {
        self.ask("join_room", &Room { room_id }, |_| Ok(()))
    }

    /// Leaves a room. It is not joined again after that, also where the hub says that this client was not in it.
    pub fn leave_room(&self, room_id: &str) -> Request<()> {
        self.ask("leave_room", &Room { room_id }, |_| Ok(())).leaves(room_id)
    }

    /// Sends to the other members of a room. This connection gets no copy.
    pub fn room_message(&self, room_id: &str, content: &(impl Serialize + ?Sized)) -> Request<RoomAccepted> {
        #[derive(Serialize)]
        struct Data<'a, T: ?Sized> {
            room_id: &'a str,
            content: &'a T,
        }
        self.ask("room_message", &Data { room_id, content }, Reply::data)
    }

    /// Sends to all connections of a user.
    pub fn direct_message(&self, user_id: &str, content: &(impl Serialize + ?Sized)) -> Request<DirectAccepted> {
        self.direct(user_id, None, content)
    }

    /// Sends to one connection of a user.
    pub fn direct_message_to(
        &self,
        user_id: &str,
        client_id: &str,
        content: &(impl Serialize + ?Sized),
    ) -> Request<DirectAccepted> {
        self.direct(user_id, Some(client_id), content)
    }

    fn direct(
        &self,
        target_id: &str,
        target_client: Option<&str>,
        content: &(impl Serialize + ?Sized),
    ) -> Request<DirectAccepted> {
        #[derive(Serialize)]
        struct Data<'a, T: ?Sized> {
            target_id: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            target_client: Option<&'a str>,
            content: &'a T,
        }
        self.ask("direct_message", &Data { target_id, target_client, content }, Reply::data)
    }

    /// Makes a room that lasts until it is deleted or the hub restarts. The client is not a member of it by that.
    pub fn create_room(&self, room_id: &str, options: RoomOptions) -> Request<()> {
        #[derive(Serialize)]
        struct Data<'a> {
            room_id: &'a str,
            #[serde(flatten)]
            options: RoomOptions,
        }
        self.ask("create_room", &Data { room_id, options }, |_| Ok(()))
    }

    /// Deletes a room.
    pub fn delete_room(&self, room_id: &str) -> Request<()> {
        self.ask("delete_room", &Room { room_id }, |_| Ok(()))
    }

    /// Lists the members of a room, at most `limit` of them (default: 100), starting at the `next_cursor` of the
    /// part before.
    pub fn room_members(&self, room_id: &str, limit: Option<u32>, cursor: Option<&str>) -> Request<Members> {
        #[derive(Serialize)]
        struct Data<'a> {
            room_id: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            limit: Option<u32>,
            #[serde(skip_serializing_if = "Option::is_none")]
            cursor: Option<&'a str>,
        }
        self.ask("room_members", &Data { room_id, limit, cursor }, Reply::data)
    }

    /// Asks what became of a message that this user sent.
    pub fn message_status(&self, id: &str) -> Request<MessageStatus> {
        #[derive(Serialize)]
        struct Data<'a> {
            id: &'a str,
        }
        self.ask("message_status", &Data { id }, Reply::data)
    }

    /// Gives the hub a new token for this connection. The next connection takes its token from the builder again:
    /// see [`Builder::token_provider`].
    pub fn authenticate(&self, token: &str) -> Request<Authenticated> {
        #[derive(Serialize)]
        struct Data<'a> {
            token: &'a str,
        }
        self.ask("authenticate", &Data { token }, Reply::data)
    }

    /// Makes a round trip to the hub, through everything that waits before it.
    ///
    /// # Errors
    ///
    /// As any request.
    pub async fn ping(&self) -> Result<Pong, RequestError> {
        #[derive(Serialize)]
        struct Data {
            ts: u64,
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let ts = u64::try_from(now.as_millis()).unwrap_or_default();
        let start = Instant::now();
        let request: Request<Pong> = self.ask("ping", &Data { ts }, Reply::data);
        let pong = request.await?;
        Ok(Pong { round_trip: start.elapsed(), ..pong })
    }

    /// Sends a request of an application's own type.
    pub fn request(&self, message_type: &str, data: &(impl Serialize + ?Sized)) -> Request<Reply> {
        self.ask(message_type, data, |reply| Ok(reply.clone()))
    }

    fn ask<R>(
        &self,
        message_type: &str,
        data: &(impl Serialize + ?Sized),
        read: fn(&Reply) -> Result<R, serde_json::Error>,
    ) -> Request<R> {
        Request::new(self, message_type, data, read)
    }

    /// Sends something without asking for a reply; a refusal comes as [`Event::Error`]. Done when it is queued: it
    /// is written to the connection that stands, or to the next one.
    ///
    /// # Errors
    ///
    /// Where it is no JSON or too large, the client is closed, or so much is queued already that it has no place
    /// within the [`request_timeout`](Builder::request_timeout).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it is queued with the result or not at all.
    pub async fn notify(&self, message_type: &str, data: &(impl Serialize + ?Sized)) -> Result<(), RequestError> {
        let data = serde_json::value::to_raw_value(data).map_err(RequestError::Encode)?;
        let frame = Outgoing { message_type, data: Some(&data), ..Outgoing::default() };
        let frame = self.encode(&frame)?;
        let queued = timeout(self.shared.request_timeout, self.command(Command::Send { frame })).await;
        queued.unwrap_or(Err(RequestError::Timeout { sent: false }))
    }

    /// Acknowledges deliveries: the hub need not send them again. They are noted at once, whatever the connection's
    /// state, sent as soon as there is one, and repeated where the hub sends one of them again.
    ///
    /// # Errors
    ///
    /// Where the client is closed.
    pub fn ack<I: Into<String>>(&self, ids: impl IntoIterator<Item = I>) -> Result<(), RequestError> {
        self.settle(ids, &Settlement::Ack)
    }

    /// Refuses deliveries for good; the sender learns of it. Noted and sent as an [`ack`](Self::ack); under
    /// [`auto_ack`](Builder::auto_ack) it counts if it comes before the next event is asked for.
    ///
    /// # Errors
    ///
    /// Where the client is closed, or the reason does not fit into a request. Nothing is refused then.
    pub fn nack<I: Into<String>>(&self, ids: impl IntoIterator<Item = I>, reason: &str) -> Result<(), RequestError> {
        self.settle(ids, &Settlement::Nack { reason: reason.to_owned() })
    }

    fn settle<I: Into<String>>(
        &self,
        ids: impl IntoIterator<Item = I>,
        settlement: &Settlement,
    ) -> Result<(), RequestError> {
        let ids: Vec<String> = ids.into_iter().map(Into::into).collect();
        for id in &ids {
            self.check_size(wire::settle_len(id, settlement))?;
        }
        if self.shared.settlements.settle(ids, settlement) { Ok(()) } else { Err(RequestError::Closed { sent: false }) }
    }

    /// Ends the connection for good: sends what is queued if a connection stands, then a close frame, and waits until the hub has closed
    /// too, at most [`close_timeout`](Builder::close_timeout). Requests that are still open fail.
    ///
    /// # Cancel safety
    ///
    /// The client closes even if this is dropped.
    pub async fn close(&self) {
        self.shared.stop.cancel();
        let mut status = self.shared.status.clone();
        // An error means that the task is gone already.
        let _ = status.wait_for(|status| matches!(status, Status::Closed(_))).await;
    }

    pub(crate) fn encode(&self, frame: &Outgoing<'_>) -> Result<Utf8Bytes, RequestError> {
        let frame = serde_json::to_string(frame).map_err(RequestError::Encode)?;
        self.check_size(frame.len())?;
        Ok(frame.into())
    }

    fn check_size(&self, size: usize) -> Result<(), RequestError> {
        let limit = self.shared.max_request_size;
        if size > limit { Err(RequestError::TooLarge { size, limit }) } else { Ok(()) }
    }

    pub(crate) async fn command(&self, command: Command) -> Result<(), RequestError> {
        self.commands.send(command).await.map_err(|_| RequestError::Closed { sent: false })
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("session", &self.session()).finish_non_exhaustive()
    }
}

/// What happens to a client, in order.
///
/// Events wait here until the application takes them, at most [`event_buffer`](Builder::event_buffer) bytes of them.
/// When that is full the client stops reading from the socket, so that the hub's queue for this connection fills and
/// its policy applies; nothing is dropped here. What the application says still goes out, and a connection that breaks
/// over it is made anew: of those that came and went unseen only the last is told. Replies stand behind the deliveries
/// on the same socket, so requests time out meanwhile, and a hub that gets no answers to its pings ends the
/// connection. **Who wants no events drops this**; then they are discarded.
pub struct Events {
    queue: EventReceiver,
    shared: Arc<Shared>,
}

impl Events {
    pub(crate) fn new(queue: EventReceiver, shared: Arc<Shared>) -> Self {
        Self { queue, shared }
    }

    /// Waits for the next event; `None` after [`Event::Closed`].
    ///
    /// With [`auto_ack`](Builder::auto_ack) asking for the next event acknowledges the delivery before it.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: an event is taken with the result or not at all.
    pub async fn next(&mut self) -> Option<Event> {
        self.shared.settlements.done();
        let event = self.queue.next().await;
        if self.shared.auto_ack
            && let Some(Event::Delivery(delivery)) = &event
            && delivery.require_ack
        {
            self.shared.settlements.taken(delivery.id.clone());
        }
        event
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

#[derive(Serialize)]
struct Room<'a> {
    room_id: &'a str,
}
