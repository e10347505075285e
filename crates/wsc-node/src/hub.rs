//! The hub as programs see it.

use std::{
    fmt, io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::FutureExt;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::{RawValue, to_raw_value};
use tokio::{net::TcpListener, sync::oneshot, time::Instant};
use uuid::Uuid;
use wsc_auth::Revocation;
use wsc_config::Settings;
use wsc_delivery::SendResult;
use wsc_events::{ConnectionEvent, EventBus};
use wsc_protocol::{CloseCode, CloseReason, DisconnectReason, ErrorCode, ErrorReply, Event, EventType, Id, UserType};
use wsc_transport::{Drain, Transport};

use crate::{
    api,
    builder::{HubBuilder, is_reserved},
    context::{Context, typed},
    core::Core,
    encode::{now_ms, with_frame},
    mail::{Answer, Answered, MessageFate, Via, Watch},
    rooms::{RoomInfo, RoomOptions},
    routing::{SendOptions, SendReceipt},
    service::NodeService,
    session::Session,
};

/// A running hub. A cheap handle: all clones are one hub, which runs until [`shutdown`](Self::shutdown) or until the
/// last clone is dropped and its connections are gone.
#[derive(Clone)]
pub struct Hub(Arc<HubInner>);

pub(crate) struct HubInner {
    pub(crate) core: Arc<Core>,
    pub(crate) transport: Transport<NodeService>,
}

impl Hub {
    /// Starts to put a hub together.
    pub fn builder() -> HubBuilder {
        HubBuilder::new()
    }

    pub(crate) fn new(inner: HubInner) -> Self {
        let hub = Self(Arc::new(inner));
        let _ = hub.0.core.hub.set(Arc::downgrade(&hub.0));
        hub
    }

    pub(crate) fn upgrade(weak: &Weak<HubInner>) -> Option<Self> {
        weak.upgrade().map(Self)
    }

    pub(crate) fn inner(&self) -> &HubInner {
        &self.0
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.0.core
    }

    /// Listens on `address` for clients and for the HTTP API. Port 0 takes a free one. Returns the address.
    ///
    /// # Errors
    ///
    /// [`ListenError`] names the address, also where another process has the port, and where strangers could reach
    /// it while authentication is off and `auth.allow_insecure` is not set.
    pub fn listen(&self, address: SocketAddr) -> Result<SocketAddr, ListenError> {
        let is_safe = address.ip().is_loopback() || self.core().authenticator.is_some();
        if !is_safe && !self.core().settings().auth.allow_insecure {
            let reason = "authentication is off, and auth.allow_insecure is not set";
            return Err(ListenError { address, source: io::Error::new(io::ErrorKind::PermissionDenied, reason) });
        }
        let listener = bind(address).map_err(|source| ListenError { address, source })?;
        let local = listener.local_addr().map_err(|source| ListenError { address, source })?;
        self.0.transport.listen(listener);
        Ok(local)
    }

    /// Listens on `address` for operators only: metrics, debug and admin pages. See `http.internal_listen`.
    ///
    /// # Errors
    ///
    /// [`ListenError`] names the address.
    pub fn listen_internal(&self, address: SocketAddr) -> Result<SocketAddr, ListenError> {
        let listener = bind(address).map_err(|source| ListenError { address, source })?;
        let local = listener.local_addr().map_err(|source| ListenError { address, source })?;
        let serving = api::serve_internal(Arc::clone(self.core()), listener, self.core().stop.clone());
        self.core().tasks.spawn(serving);
        Ok(local)
    }

    /// The hub's routes, to be mounted in an axum application: `/ws`, the HTTP API, health, metrics and the page.
    /// An application with a page of its own at `/` sets `http.demo_page` to `off`, which leaves ours out.
    ///
    /// Pages that are closed to strangers answer there only if the application is served with
    /// `into_make_service_with_connect_info::<SocketAddr>()`: without it nobody knows who is asking.
    pub fn router(&self) -> axum::Router {
        api::router(Arc::clone(self.core()), Some(self.clone()))
    }

    /// Adds or replaces the handler of a message type, see [`HubBuilder::on`].
    ///
    /// # Panics
    ///
    /// Panics where the type is one of the protocol's own.
    pub fn on<F, T, R, Fut>(&self, message_type: &str, handler: F)
    where
        F: Fn(Context, T) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, ErrorReply>> + Send + 'static,
        T: DeserializeOwned + Send + 'static,
        R: Serialize + Send + 'static,
    {
        assert!(!is_reserved(message_type), "message type {message_type:?} belongs to the protocol");
        let mut handlers = self.core().handlers.write();
        Arc::make_mut(&mut handlers).insert(message_type.into(), typed(handler));
    }

    /// Sends to a user: to every connection there is, or into the inbox of somebody who is away. The receipt says
    /// where the message stands by then; for what has to be stored that is after the commit.
    ///
    /// # Errors
    ///
    /// 1001 where the content is no JSON, 4003 where the inbox is full.
    ///
    /// # Cancel safety
    ///
    /// The message is sent, or not, before the first await; dropping the future only loses the receipt.
    pub async fn send_to_user(&self, user_id: &str, content: impl Serialize) -> Result<SendReceipt, ErrorReply> {
        self.send_to_user_with(user_id, &json(&content)?, &SendOptions::default()).await
    }

    /// Sends JSON as it is to a user, with options.
    ///
    /// # Errors
    ///
    /// As [`send_to_user`](Self::send_to_user); 4000 where the named client is none of the user's, 4004 where the
    /// idempotency key was used for other content, 1001 for `require_ack` without an inbox.
    ///
    /// # Cancel safety
    ///
    /// As [`send_to_user`](Self::send_to_user).
    pub async fn send_to_user_with(
        &self,
        user_id: &str,
        content: &RawValue,
        options: &SendOptions,
    ) -> Result<SendReceipt, ErrorReply> {
        self.send_to(user_id, content, options, None).await.map(|answered| answered.receipt)
    }

    /// Sends to a user and waits for the end: until the message is acknowledged, sent, or has failed, all tries
    /// included, or rests in the inbox.
    ///
    /// # Errors
    ///
    /// As [`send_to_user_with`](Self::send_to_user_with): of a message that was not accepted there is no result.
    ///
    /// # Cancel safety
    ///
    /// The message goes on when the future is dropped.
    pub async fn send_to_user_with_retry(
        &self,
        user_id: &str,
        content: impl Serialize,
        options: &SendOptions,
    ) -> Result<SendResult, ErrorReply> {
        let (watch, result) = Watch::new();
        let answered = self.send_to(user_id, &json(&content)?, options, Some(watch)).await?;
        let SendReceipt { id, fate, .. } = answered.receipt;
        // A repetition has nothing to wait for: the first send knows the end.
        Ok(result.await.unwrap_or_else(|_| SendResult::new(id, fate, Vec::new(), Duration::ZERO)))
    }

    /// Sends one message to many users, each as [`send_to_user_with`](Self::send_to_user_with); returns what became
    /// of each, in their order.
    ///
    /// # Cancel safety
    ///
    /// As [`send_to_user`](Self::send_to_user).
    pub async fn send_to_users<'u>(
        &self,
        user_ids: impl IntoIterator<Item = &'u str>,
        content: &RawValue,
        options: &SendOptions,
    ) -> Vec<Result<SendReceipt, ErrorReply>> {
        let sends = user_ids.into_iter().map(|user_id| self.send_to_user_with(user_id, content, options));
        futures_util::future::join_all(sends).await
    }

    async fn send_to(
        &self,
        user_id: &str,
        content: &RawValue,
        options: &SendOptions,
        watch: Option<Watch>,
    ) -> Result<Answered, ErrorReply> {
        // Ids of users without a name are reserved, and yet they can be addressed.
        if !user_id.starts_with("anon:") {
            check_id("user_id", user_id)?;
        }
        check_options(options)?;
        let (answer, answered) = oneshot_answer();
        self.core().push(user_id, content, options, Via::Program("hub"), watch, answer);
        answered.await
    }

    /// Sends to one connection of a user.
    ///
    /// # Errors
    ///
    /// 4000 where the client is no connection of the user, though the user has others.
    ///
    /// # Cancel safety
    ///
    /// As [`send_to_user`](Self::send_to_user).
    pub async fn send_to_client(
        &self,
        user_id: &str,
        client_id: &str,
        content: impl Serialize,
    ) -> Result<SendReceipt, ErrorReply> {
        self.send_to_user_with(user_id, &json(&content)?, &SendOptions::default().client(client_id)).await
    }

    /// Sends to all members of a room. Returns the message's id and the number of recipients.
    ///
    /// # Errors
    ///
    /// 3000 where there is no such room, 4003 where too much waits to be sent to it.
    ///
    /// # Cancel safety
    ///
    /// As [`send_to_user`](Self::send_to_user).
    pub async fn send_to_room(&self, room_id: &str, content: impl Serialize) -> Result<(Uuid, u64), ErrorReply> {
        self.send_to_room_with(room_id, &json(&content)?, &SendOptions::default()).await
    }

    /// Sends JSON as it is to a room, with options. With `require_ack` it goes to the users of the members, each of
    /// whom must acknowledge it.
    ///
    /// # Errors
    ///
    /// As [`send_to_room`](Self::send_to_room); 4002 where `require_ack` would have too many recipients.
    ///
    /// # Cancel safety
    ///
    /// As [`send_to_user`](Self::send_to_user).
    pub async fn send_to_room_with(
        &self,
        room_id: &str,
        content: &RawValue,
        options: &SendOptions,
    ) -> Result<(Uuid, u64), ErrorReply> {
        check_options(options)?;
        let (answer, answered) = oneshot_answer();
        self.core().send_room(room_id, content, options, Via::Program("hub"), answer);
        answered.await.map(|answered| (answered.receipt.id, answered.recipients))
    }

    /// What became of a message for each recipient, as long as that is remembered (`outcomes.retention`). Plain room
    /// messages and broadcasts, and plain messages between clients, are not.
    pub fn message_status(&self, id: Uuid) -> Option<MessageFate> {
        self.core().message_fate(id)
    }

    /// Sends to everybody, or to everybody of one user type. Returns the message's id and the number of connections.
    ///
    /// # Errors
    ///
    /// 4003 where too many broadcasts wait to be sent.
    pub fn broadcast(&self, content: impl Serialize, user_type: Option<UserType>) -> Result<(Uuid, usize), ErrorReply> {
        self.core().broadcast(&json(&content)?, user_type, &SendOptions::default())
    }

    /// Makes a room that stays until it is deleted.
    ///
    /// # Errors
    ///
    /// 3001 where it exists, 3005 where there are too many, 1001 where the id breaks the rules.
    pub fn create_room(&self, room_id: &str, options: RoomOptions) -> Result<RoomInfo, ErrorReply> {
        check_id("room_id", room_id)?;
        self.core().create_room(room_id, options).map(|room| RoomInfo::new(&room, &self.settings()))
    }

    /// Deletes a room and tells its members.
    ///
    /// # Errors
    ///
    /// 3000 where there is no such room.
    pub fn delete_room(&self, room_id: &str) -> Result<(), ErrorReply> {
        self.core().delete_room(room_id, None)
    }

    /// All rooms, by id.
    pub fn rooms(&self) -> Vec<RoomInfo> {
        let settings = self.settings();
        self.core().rooms.list().iter().map(|room| RoomInfo::new(room, &settings)).collect()
    }

    /// Puts every connection of a user into a room. Returns how many joined.
    ///
    /// # Errors
    ///
    /// 3000 where there is no such room, 4001 where the user has no connection, else what the last refusal said
    /// where no connection joined.
    pub fn join_room(&self, room_id: &str, user_id: &str) -> Result<usize, ErrorReply> {
        self.core().join_user(room_id, user_id)
    }

    /// Takes every connection of a user out of a room. Returns how many left.
    ///
    /// # Errors
    ///
    /// 3000 where there is no such room, 4001 where the user has no connection, 3003 where none was in it.
    pub fn leave_room(&self, room_id: &str, user_id: &str, reason: &str) -> Result<usize, ErrorReply> {
        self.core().remove_user(room_id, user_id, reason)
    }

    /// Closes every connection of a user with 3503, after a `kick_out` notice where `notify`. Returns how many.
    pub fn disconnect_user(&self, user_id: &str, reason: &str, notify: bool) -> usize {
        self.core().kick_user(user_id, reason, notify)
    }

    /// Revokes a token, or all of a user's so far, for good: new connections with them are refused, open ones closed with
    /// 3500. Returns how many were closed. It survives a restart where [`HubBuilder::records`] does.
    ///
    /// # Errors
    ///
    /// 1003 where the store does not work, 4003 where too many are revoked already; nothing is revoked then.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future does not undo what was begun.
    pub async fn revoke(&self, revocation: Revocation) -> Result<usize, ErrorReply> {
        self.core().revoke(revocation).await
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.core().users.connections()
    }

    /// Whether a user has a connection.
    pub fn is_online(&self, user_id: &str) -> bool {
        self.core().users.get(user_id).is_some()
    }

    /// Where observers register.
    pub fn events(&self) -> &EventBus {
        &self.core().events
    }

    /// The node's name.
    pub fn node_id(&self) -> &str {
        &self.core().node_id
    }

    /// The running settings.
    pub fn settings(&self) -> Arc<Settings> {
        self.core().settings()
    }

    /// The files whose content counts at a [`reload`](Self::reload): those that the settings name which run, and those
    /// that the settings name which were read last, should they have been refused.
    pub fn named_files(&self) -> Vec<PathBuf> {
        self.core().reloading.named_files(&self.settings())
    }

    /// Ends when the hub begins to refuse newcomers, see [`shutdown`](Self::shutdown).
    ///
    /// # Cancel safety
    ///
    /// There is no effect.
    pub async fn draining(&self) {
        self.core().draining.cancelled().await;
    }

    /// Shuts down in the order of settings.md, *Drain*: says that it is not ready, and after `drain.delay` refuses
    /// newcomers and closes every connection with 3001 at `drain.rate`, each after what waits in its queue. Returns when
    /// every task has ended, at the latest a moment after `drain.deadline`.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the hub closing; calling it again goes on.
    pub async fn shutdown(&self) {
        let core = self.core();
        let settings = core.settings();
        let deadline = Instant::now() + settings.drain.deadline;
        if !core.leaving.is_cancelled() {
            core.leaving.cancel();
            tokio::time::sleep(settings.drain.delay).await;
        }
        core.draining.cancel();
        let close = CloseReason::new(CloseCode::SHUTTING_DOWN, "shutting down");
        let left = deadline.saturating_duration_since(Instant::now());
        let mut plan = Drain::default();
        (plan.rate, plan.deadline, plan.close) = (u32::try_from(settings.drain.rate).unwrap_or(u32::MAX), left, close);
        tokio::join!(self.0.transport.drain(plan), self.end_http());
        core.stop.cancel();
        core.tasks.close();
        core.tasks.wait().await;
        core.events.publish_with(EventType::HubStopped, || Event::HubStopped { node_id: core.node_id.clone() });
        core.events.shutdown().await;
        if let Some(webhooks) = &core.webhooks.0 {
            let left = deadline.saturating_duration_since(Instant::now());
            webhooks.shutdown(left.clamp(SHORTEST_FLUSH, LONGEST_FLUSH)).await;
        }
        core.failures.shutdown().await;
        core.records.close().await;
    }

    /// Ends HTTP when the last WebSocket is gone: until then health pages and the like are looked at.
    async fn end_http(&self) {
        while self.0.transport.connections() > 0 {
            tokio::time::sleep(DRAIN_POLL).await;
        }
        self.core().drained.cancel();
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").field("node_id", &self.node_id()).finish_non_exhaustive()
    }
}

impl Core {
    /// Whether newcomers are refused.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    pub(crate) fn join_user(&self, room_id: &str, user_id: &str) -> Result<usize, ErrorReply> {
        if self.rooms.get(room_id).is_none() {
            return Err(ErrorCode::RoomNotFound.into());
        }
        let user = self.users.get(user_id).ok_or(ErrorCode::UserOffline)?;
        let results: Vec<_> = user.sessions().iter().map(|session| self.join(session, room_id, None, false)).collect();
        count_or_refuse(results)
    }

    pub(crate) fn remove_user(&self, room_id: &str, user_id: &str, reason: &str) -> Result<usize, ErrorReply> {
        if self.rooms.get(room_id).is_none() {
            return Err(ErrorCode::RoomNotFound.into());
        }
        let user = self.users.get(user_id).ok_or(ErrorCode::UserOffline)?;
        let results: Vec<_> =
            user.sessions().iter().map(|session| self.leave(session, room_id, None, Some(reason))).collect();
        count_or_refuse(results)
    }

    pub(crate) fn kick_user(&self, user_id: &str, reason: &str, notify: bool) -> usize {
        let Some(user) = self.users.get(user_id) else { return 0 };
        user.sessions().iter().filter(|session| self.kick(session, reason, notify)).count()
    }

    /// Closes one connection. Returns false where it was closing already.
    pub(crate) fn kick(&self, session: &Session, reason: &str, notify: bool) -> bool {
        if notify {
            let now = now_ms();
            with_frame(
                |out| {
                    wsc_protocol::encode::reply(out, "kick_out", None, now, |json| {
                        json.raw("{\"reason\":").string(reason);
                        json.raw(",\"kicked_at\":").number(now / 1000).raw("}");
                    });
                },
                |frame| session.outbound.send(frame),
            );
        }
        let closes = self.close(session, &CloseReason::new(CloseCode::KICKED, reason), DisconnectReason::KickOut);
        if closes {
            self.trace(session.id, ConnectionEvent::Kicked);
        }
        closes
    }
}

/// How many succeeded; the last refusal where none did.
fn count_or_refuse(results: Vec<Result<(), ErrorReply>>) -> Result<usize, ErrorReply> {
    let succeeded = results.iter().filter(|result| result.is_ok()).count();
    match results.into_iter().rev().find_map(Result::err) {
        Some(error) if succeeded == 0 => Err(error),
        _ => Ok(succeeded),
    }
}

/// Refuses names that break the rules, and types that belong to the protocol.
fn check_options(options: &SendOptions) -> Result<(), ErrorReply> {
    if let Some(sender_id) = &options.sender_id {
        check_id("sender_id", sender_id)?;
    }
    if let Some(message_type) = &options.message_type {
        check_id("message_type", message_type)?;
        // The two that a push has anyway may be named.
        if is_reserved(message_type) && !matches!(&**message_type, "user_message" | "room_message") {
            let message = format!("message_type {message_type:?} belongs to the protocol");
            return Err(ErrorReply::new(ErrorCode::InvalidFormat, message));
        }
    }
    Ok(())
}

/// An answer, and where it arrives.
pub(crate) fn oneshot_answer() -> (Answer, impl Future<Output = Result<Answered, ErrorReply>>) {
    let (sender, receiver) = oneshot::channel();
    let answer: Answer = Box::new(move |result| {
        // Whoever asked may have gone.
        let _ = sender.send(result);
    });
    let answered = receiver.map(|result| {
        result.unwrap_or_else(|_| Err(ErrorReply::new(ErrorCode::ServerError, "the hub is shutting down")))
    });
    (answer, answered)
}

fn json(content: &impl Serialize) -> Result<Box<RawValue>, ErrorReply> {
    to_raw_value(content).map_err(|e| ErrorReply::new(ErrorCode::InvalidFormat, format!("content is no JSON: {e}")))
}

pub(crate) fn check_id(field: &str, id: &str) -> Result<(), ErrorReply> {
    Id::check(id).map_err(|invalid| ErrorReply::new(ErrorCode::InvalidFormat, format!("{field} {invalid}")))
}

/// Binds without `SO_REUSEPORT`: a port that is taken is an error, not a share.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    // A restart must not wait for connections of the last run that the kernel still remembers.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Connections that wait to be accepted: everybody may come back at once. The kernel cuts it to its own limit.
const BACKLOG: i32 = 4096;

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub struct ListenError {
    address: SocketAddr,
    source: io::Error,
}

/// How often a shutdown looks whether the last connection is gone.
const DRAIN_POLL: Duration = Duration::from_millis(10);

/// How long a shutdown waits for webhooks; what is not posted by then waits for the next start.
const SHORTEST_FLUSH: Duration = Duration::from_millis(500);
const LONGEST_FLUSH: Duration = Duration::from_secs(5);
