//! Connections and users over HTTP.

use std::sync::Arc;

use axum::{Extension, response::Response};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;
use wsc_events::{ConnectionEvent, RingEntry};
use wsc_failure::ReconnectStats;
use wsc_protocol::{ErrorCode, ErrorReply, Id, UserType};
use wsc_transport::Amount;

use super::{
    access::Via,
    extract::{OptionalJson, Params, PathId, PathUser},
    reply::{self, ErrorBody, Refusal},
    system::InboxDepth,
};
use crate::{core::Core, dispatch::page, encode::now_ms, session::Session};

/// Which connections.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ClientQuery {
    /// Only those of this user.
    user_id: Option<String>,
    /// Only those of users of this type.
    #[param(value_type = Option<String>)]
    user_type: Option<UserType>,
    /// Entries at most, 1 to 1,000; default 100.
    limit: Option<u32>,
    /// Where the last part ended.
    cursor: Option<String>,
}

/// One connection.
#[derive(Serialize, ToSchema)]
pub(crate) struct Client {
    /// Its hub-wide unique id.
    #[schema(value_type = String)]
    session: Uuid,
    /// Its name within its user.
    client_id: String,
    user_id: String,
    #[schema(value_type = String)]
    user_type: UserType,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_id: Option<String>,
    /// Unix milliseconds.
    connected_at: u64,
    /// Whether it selected the subprotocol `wsc.v1`.
    speaks_v1: bool,
    rooms: Vec<String>,
    /// Bytes that wait in its queue.
    queue_bytes: usize,
    /// Messages that wait in its queue.
    queued: u64,
    /// Milliseconds since it was last heard of.
    silent_for_ms: u32,
}

impl From<&Session> for Client {
    fn from(session: &Session) -> Self {
        let (queue_bytes, queued) = session.outbound.queued();
        Self {
            session: session.id,
            client_id: session.client_id().to_string(),
            user_id: session.user().id.to_string(),
            user_type: session.user_type(),
            device_id: session.names.device_id().map(str::to_owned),
            connected_at: session.connected_at(),
            speaks_v1: session.speaks_v1,
            rooms: session.joined.lock().room_ids(),
            queue_bytes,
            queued,
            silent_for_ms: session.outbound.silent_for_ms(),
        }
    }
}

/// Connections.
#[derive(Serialize, ToSchema)]
pub(crate) struct Clients {
    /// All that there are, whatever was asked for.
    total_clients: usize,
    /// Unix seconds.
    timestamp: u64,
    clients: Vec<Client>,
    /// How many there are of those asked for.
    total: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    next_cursor: Option<Uuid>,
}

/// Lists connections, the oldest first.
#[utoipa::path(get, path = "/api/clients", tag = "clients", params(ClientQuery), responses(
    (status = 200, description = "connections", body = Clients),
    (status = "default", description = "refused", body = ErrorBody),
))]
pub(crate) async fn list_clients(
    Extension(via): Extension<Via>,
    Params(query): Params<ClientQuery>,
) -> Result<Response, Refusal> {
    let (_, limit) = page(None, query.limit)?;
    let after = match query.cursor.as_deref() {
        None | Some("") => None,
        Some(cursor) => Some(cursor.parse::<Uuid>().map_err(|_| Refusal::invalid("cursor is not one of ours"))?),
    };
    let core = &via.core;
    let mut sessions = match &query.user_id {
        Some(user_id) => core.users.get(user_id).map(|user| user.sessions()).unwrap_or_default(),
        None => core.users.all_sessions(),
    };
    sessions.retain(|session| query.user_type.is_none_or(|wanted| session.user_type() == wanted));
    let total = sessions.len();
    // Ids of connections grow with time, so a part stays where it was while others come and go.
    sessions.retain(|session| after.is_none_or(|after| session.id > after));
    let has_more = sessions.len() > limit;
    if has_more {
        sessions.select_nth_unstable_by_key(limit, |session| session.id);
        sessions.truncate(limit);
    }
    sessions.sort_unstable_by_key(|session| session.id);
    Ok(reply::ok(&Clients {
        total_clients: core.users.connections(),
        timestamp: now_ms() / 1000,
        next_cursor: sessions.last().filter(|_| has_more).map(|session| session.id),
        clients: sessions.iter().map(|session| Client::from(&**session)).collect(),
        total,
    }))
}

/// Finds a connection by its session id, or by a client id that only one has.
fn find(core: &Core, id: &str) -> Result<Arc<Session>, Refusal> {
    if let Some(session) = id.parse().ok().and_then(|session| core.users.session(session)) {
        return Ok(session);
    }
    let mut found = core.users.all_sessions();
    found.retain(|session| session.is_client(id));
    match &found[..] {
        [] => Err(ErrorCode::ClientNotFound.into()),
        [only] => Ok(Arc::clone(only)),
        many => {
            let candidates: Vec<_> = many
                .iter()
                .take(MAX_CANDIDATES)
                .map(|s| json!({ "session": s.id, "user_id": s.user().id.as_str(), "client_id": id }))
                .collect();
            let message = "several connections have this client id: name one by its session";
            Err(Refusal::with_status(StatusCode::CONFLICT, ErrorCode::InvalidFormat, message)
                .details(json!({ "candidates": candidates })))
        }
    }
}

/// One connection explained.
#[derive(Serialize, ToSchema)]
pub(crate) struct Explained {
    #[serde(flatten)]
    client: Client,
    /// Whether it takes messages: neither closed nor closing.
    is_open: bool,
    /// Whether messages to it are compressed.
    is_compressed: bool,
    queue: QueueState,
    lag: Lag,
    /// Messages that the user, not this connection alone, has not acknowledged.
    unacked: usize,
    limits_hit: LimitsHit,
    /// What happened lately, newest first: `timestamp`, `event` and what belongs to it.
    #[schema(value_type = Vec<Object>)]
    events: Vec<RingEntry>,
    /// Until when all events of it are kept, Unix milliseconds; absent where they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    traced_until: Option<u64>,
}

/// What waits in its queue, by priority. Replies and notices are `normal`, and count as bytes only.
#[derive(Serialize, ToSchema)]
pub(crate) struct QueueState {
    high: Backlog,
    normal: Backlog,
    low: Backlog,
}

/// So much.
#[derive(Serialize, ToSchema)]
pub(crate) struct Backlog {
    bytes: u64,
    messages: u64,
}

impl From<Amount> for Backlog {
    fn from(Amount { bytes, messages }: Amount) -> Self {
        Self { bytes, messages }
    }
}

/// How far it is behind, in milliseconds.
#[derive(Serialize, ToSchema)]
pub(crate) struct Lag {
    /// How long the oldest of what waits has been waiting.
    oldest_ms: u32,
    /// For how long the kernel has taken nothing of it.
    stalled_ms: u32,
}

/// Which limits it met.
#[derive(Serialize, ToSchema)]
pub(crate) struct LimitsHit {
    /// What a full queue has cost it since this backlog began.
    lost: Backlog,
    /// How often it was told that it sends too fast, as far as that is remembered.
    rate_limited: usize,
    /// How often a message to it alone found its queue full, as far as that is remembered.
    queue_full: usize,
    /// Frames in a row that were no requests; the tenth ends a connection.
    bad_frames: u8,
}

impl Explained {
    async fn new(core: &Core, session: &Session, limit: usize) -> Self {
        let state = session.outbound.state();
        let events = core.ring.for_session(session.id, usize::MAX);
        let count = |is_one: fn(&ConnectionEvent) -> bool| events.iter().filter(|entry| is_one(&entry.event)).count();
        Self {
            client: Client::from(session),
            is_open: state.is_open,
            is_compressed: state.is_compressed,
            queue: QueueState { high: state.high.into(), normal: state.normal.into(), low: state.low.into() },
            lag: Lag { oldest_ms: state.oldest_ms, stalled_ms: state.stalled_ms },
            unacked: core.mail.unacked(session.user().id.as_str()).await,
            limits_hit: LimitsHit {
                lost: state.lost.into(),
                rate_limited: count(|event| matches!(event, ConnectionEvent::RateLimited)),
                queue_full: count(|event| matches!(event, ConnectionEvent::QueueFull { .. })),
                bad_frames: session.bad_frames(),
            },
            events: events.into_iter().take(limit).collect(),
            traced_until: core.ring.traced_until(session.id),
        }
    }
}

/// How many events.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct EventQuery {
    /// Events at most, 1 to 1,000; default 100.
    limit: Option<u32>,
}

/// Explains one connection: what waits for it, how far it is behind, what happened on it lately.
#[utoipa::path(get, path = "/api/clients/{id}", tag = "clients",
    params(("id" = String, Path, description = "Session id, or a client id"), EventQuery), responses(
        (status = 200, description = "the connection", body = Explained),
        (status = 409, description = "several have this client id: `details.candidates`", body = ErrorBody),
        (status = "default", description = "refused; 4000 where there is none", body = ErrorBody),
    ))]
pub(crate) async fn show_client(
    Extension(via): Extension<Via>,
    PathId(id): PathId,
    Params(query): Params<EventQuery>,
) -> Result<Response, Refusal> {
    let (_, limit) = page(None, query.limit)?;
    let session = find(&via.core, &id)?;
    Ok(reply::ok(&Explained::new(&via.core, &session, limit).await))
}

/// A connection that is traced.
#[derive(Serialize, ToSchema)]
pub(crate) struct Traced {
    #[schema(value_type = String)]
    session: Uuid,
    /// Unix milliseconds.
    until: u64,
}

/// Keeps all events of one connection for 10 minutes, those that are still remembered included.
#[utoipa::path(post, path = "/api/clients/{id}/trace", tag = "clients",
    params(("id" = String, Path, description = "Session id, or a client id")), responses(
        (status = 202, description = "it is traced", body = Traced),
        (status = 409, description = "several have this client id: `details.candidates`", body = ErrorBody),
        (status = "default", description = "refused; 4000 where there is none, 4003 where too many are traced",
            body = ErrorBody),
    ))]
pub(crate) async fn trace_client(Extension(via): Extension<Via>, PathId(id): PathId) -> Result<Response, Refusal> {
    let session = find(&via.core, &id)?;
    let until = via.core.begin_trace(session.id).map_err(|e| ErrorReply::new(ErrorCode::Full, e.to_string()))?;
    Ok(reply::json(StatusCode::ACCEPTED, &Traced { session: session.id, until }))
}

/// How somebody is disconnected.
#[derive(Default, Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Kick {
    /// Told to the client; default `kicked`.
    reason: Option<String>,
    /// Whether a `kick_out` comes before the close; default true.
    notify: Option<bool>,
}

impl Kick {
    /// What the body says goes before what the query says.
    fn or(self, query: Self) -> (String, bool) {
        let reason = self.reason.or(query.reason).unwrap_or_else(|| "kicked".to_owned());
        (reason, self.notify.or(query.notify).unwrap_or(true))
    }
}

/// How many were disconnected.
#[derive(Serialize, ToSchema)]
pub(crate) struct Disconnected {
    disconnected: usize,
}

/// Closes one connection with 3503.
#[utoipa::path(delete, path = "/api/clients/{id}", tag = "clients",
    params(("id" = String, Path, description = "Session id, or a client id"), Kick),
    request_body(content = Option<Kick>), responses(
        (status = 200, description = "closed", body = Disconnected),
        (status = 409, description = "several have this client id: `details.candidates`", body = ErrorBody),
        (status = "default", description = "refused; 4000 where there is none", body = ErrorBody),
    ))]
pub(crate) async fn kick_client(
    Extension(via): Extension<Via>,
    PathId(id): PathId,
    Params(query): Params<Kick>,
    OptionalJson(body): OptionalJson<Kick>,
) -> Result<Response, Refusal> {
    let (reason, notify) = body.or(query);
    let session = find(&via.core, &id)?;
    if !via.core.kick(&session, &reason, notify) {
        return Err(ErrorCode::ClientNotFound.into());
    }
    Ok(reply::ok(&Disconnected { disconnected: 1 }))
}

/// Closes every connection of a user with 3503.
#[utoipa::path(post, path = "/api/users/{user}/disconnect", tag = "users",
    params(("user" = String, Path, description = "User id"), Kick), request_body(content = Option<Kick>), responses(
        (status = 200, description = "closed", body = Disconnected),
        (status = "default", description = "refused; 4001 where the user is away", body = ErrorBody),
    ))]
pub(crate) async fn disconnect_user(
    Extension(via): Extension<Via>,
    PathUser(user_id): PathUser,
    Params(query): Params<Kick>,
    OptionalJson(body): OptionalJson<Kick>,
) -> Result<Response, Refusal> {
    let (reason, notify) = body.or(query);
    match via.core.kick_user(&user_id, &reason, notify) {
        0 => Err(ErrorCode::UserOffline.into()),
        disconnected => Ok(reply::ok(&Disconnected { disconnected })),
    }
}

/// A user.
#[derive(Serialize, ToSchema)]
pub(crate) struct User {
    user_id: String,
    /// Whether there is a connection.
    online: bool,
    /// The connections.
    devices: Vec<Client>,
    /// What is in the inbox, in flight or resting; absent where the store does not say, or there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    inbox: Option<InboxDepth>,
    /// Messages that are on their way or wait for an acknowledgement.
    unacked: usize,
    /// Absent where no connection of the user failed lately.
    #[serde(skip_serializing_if = "Option::is_none")]
    reconnects: Option<Reconnects>,
}

/// How a user's connections fail and come back. Only what nobody wanted counts: lost sockets, silence, no reading.
#[derive(Serialize, ToSchema)]
pub(crate) struct Reconnects {
    /// How often a connection failed, as seen from a user that was there.
    losses: u64,
    /// How often the user came back afterwards.
    returns: u64,
    /// Unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_lost: Option<u64>,
    /// Unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_back: Option<u64>,
    /// How long it took to come back on average, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    mean_away_ms: Option<u64>,
    /// Whether the user has not come back since the last loss.
    is_away: bool,
}

impl From<ReconnectStats> for Reconnects {
    fn from(stats: ReconnectStats) -> Self {
        Self {
            losses: stats.losses,
            returns: stats.returns,
            last_lost: stats.last_lost,
            last_back: stats.last_back,
            mean_away_ms: stats.mean_away_ms(),
            is_away: stats.is_away,
        }
    }
}

/// Shows a user with all connections and the inbox; one that is away and has nothing there is nobody special.
#[utoipa::path(get, path = "/api/users/{user}", tag = "users",
    params(("user" = String, Path, description = "User id")), responses(
        (status = 200, description = "the user", body = User),
        (status = "default", description = "refused", body = ErrorBody),
    ))]
pub(crate) async fn show_user(
    Extension(via): Extension<Via>,
    PathUser(user_id): PathUser,
) -> Result<Response, Refusal> {
    let core = &via.core;
    let mut sessions = core.users.get(&user_id).map(|user| user.sessions()).unwrap_or_default();
    sessions.sort_unstable_by_key(|session| session.id);
    let devices: Vec<_> = sessions.iter().map(|session| Client::from(&**session)).collect();
    let id = Id::generated(user_id.as_str());
    let inbox = match core.mail.keeper() {
        Some(keeper) => InboxDepth::read(keeper.store().depth(&id)).await,
        None => None,
    };
    Ok(reply::ok(&User {
        online: !devices.is_empty(),
        devices,
        inbox,
        unacked: core.mail.unacked(&user_id).await,
        reconnects: core.reconnects.stats(&id).map(Reconnects::from),
        user_id,
    }))
}

/// Most connections that an ambiguous name is answered with.
const MAX_CANDIDATES: usize = 100;
