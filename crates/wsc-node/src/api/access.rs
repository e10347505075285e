//! Who asks, and what they may (protocol §5, *Exposure*).

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use axum::{
    extract::{ConnectInfo, Request},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, Method, Uri, Version, header, request::Parts};
use percent_encoding::percent_decode_str;
use secrecy::ExposeSecret;
use wsc_auth::{AuthError, Identity, Permission, Permissions, StaticTokens};
use wsc_config::Settings;
use wsc_protocol::{ErrorCode, ErrorReply, Id, TraceContext};
use wsc_transport::Peer;

use super::reply::Refusal;
use crate::{
    core::Core, exposure, hub::Hub, limits::HttpState, mail::Via as Sender, routing::SYSTEM, traced::new_span_id,
};

/// How a request came to us: an extension of every request.
#[derive(Clone)]
pub(crate) struct Via {
    pub(crate) core: Arc<Core>,
    /// Set where the router was made by a handle.
    pub(crate) hub: Option<Hub>,
    /// `None` where a foreign server does not say who is asking.
    pub(crate) peer: Option<Peer>,
    pub(crate) surface: Surface,
    /// Of the connection, where it is one of ours.
    pub(crate) state: Option<Arc<HttpState>>,
}

impl Via {
    /// The hub, unless it is gone.
    pub(crate) fn hub(&self) -> Option<Hub> {
        self.hub.clone().or_else(|| self.core.hub.get().and_then(Hub::upgrade))
    }

    /// The peer of a request that a foreign server accepted.
    pub(crate) fn foreign_peer(request: &Request) -> Option<Peer> {
        let ConnectInfo(remote) = request.extensions().get::<ConnectInfo<SocketAddr>>()?;
        let local = SocketAddr::from(([0, 0, 0, 0], 0));
        Some(Peer { remote: *remote, local, is_tls: false })
    }

    /// Whether the request is one of this machine (protocol §5, *Exposure*).
    pub(crate) fn is_private(&self, headers: &HeaderMap, uri: &Uri) -> bool {
        exposure::check_private(headers, uri, self.peer.as_ref(), &self.settings()).is_ok()
    }

    /// The settings, as far as access goes: on the operators' listener its own address counts.
    fn settings(&self) -> Arc<Settings> {
        let mut settings = self.core.settings();
        if let (Surface::Internal, Some(peer)) = (self.surface, self.peer) {
            Arc::make_mut(&mut settings).listen = peer.local;
        }
        settings
    }
}

/// Which listener a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Surface {
    /// Where clients come.
    Public,
    /// Where operators come (`http.internal_listen`).
    Internal,
}

/// Who asks for something that is not for everybody.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// `None`: a back end, or a program of this machine.
    user_id: Option<Id>,
    permissions: Permissions,
    /// The distributed trace that the request belongs to.
    pub(crate) trace: Option<TraceContext>,
}

impl Caller {
    fn operator() -> Self {
        Self { user_id: None, permissions: Permissions::all(), trace: None }
    }

    pub(crate) fn is_admin(&self) -> bool {
        self.permissions.allows(Permission::AdminSystem, None)
    }

    /// Refuses where the caller may not do this to the room.
    pub(crate) fn require_room(&self, permission: Permission, room_id: &str) -> Result<(), Refusal> {
        if self.permissions.allows_room(permission, room_id) { Ok(()) } else { Err(missing(permission)) }
    }

    /// Refuses a send over the rate of clients (`limits.messages_per_second`). Over HTTP it is one for each user.
    fn keep_rate(&self, core: &Core) -> Result<(), Refusal> {
        let Some(user_id) = self.user_id.as_ref().filter(|_| !self.is_admin()) else { return Ok(()) };
        let Err(retry_after) = core.user_rates.check(user_id, &core.settings().limits) else { return Ok(()) };
        let details = serde_json::json!({ "retry_after_ms": retry_after.as_millis() as u64 + 1 });
        Err(Refusal::from(ErrorCode::RateLimited).details(details))
    }

    /// Refuses what only `admin:system` may ask for.
    pub(crate) fn require_admin(&self, what: &str) -> Result<(), Refusal> {
        if self.is_admin() { Ok(()) } else { Err(Refusal::forbidden(format!("{what} needs admin:system"))) }
    }

    /// Who sends: for whom idempotency keys are apart.
    pub(crate) fn via(&self) -> Sender<'_> {
        self.user_id.as_ref().map_or(Sender::Program("operator"), |user_id| Sender::User(user_id.as_str()))
    }

    /// Whether the caller is this user.
    pub(crate) fn is_user(&self, user_id: &str) -> bool {
        self.user_id.as_ref().is_some_and(|id| id.as_str() == user_id)
    }

    /// Who a message is from that does not say.
    pub(crate) fn sender_id(&self) -> &str {
        match &self.user_id {
            Some(user_id) if !self.is_admin() => user_id.as_str(),
            _ => SYSTEM,
        }
    }
}

fn missing(permission: Permission) -> Refusal {
    Refusal::forbidden(format!("this needs {}", permission.as_str()))
}

/// Lets a request in, or answers it: who may talk to us at all, what this listener serves, who asks, what they may.
pub(crate) async fn guard(request: Request, next: Next) -> Response {
    let traced = TracedRequest::of(&request);
    let mut response = match admit(request, traced.as_ref().map(|traced| traced.own)).await {
        Ok(request) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };
    if let Some(TracedRequest { core, method, caller, own, begun_at }) = traced {
        core.traced.answered(caller, own, begun_at, method.as_str(), response.status());
    }
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// A request that belongs to a distributed trace.
struct TracedRequest {
    core: Arc<Core>,
    method: Method,
    /// What the caller says.
    caller: TraceContext,
    /// What the request causes belongs to this.
    own: TraceContext,
    begun_at: SystemTime,
}

impl TracedRequest {
    /// `None` where the caller says nothing of a trace, or something that is none.
    fn of(request: &Request) -> Option<Self> {
        let mut headers = request.headers().get_all("traceparent").iter();
        let (Some(header), None) = (headers.next(), headers.next()) else { return None };
        let caller: TraceContext = header.to_str().ok()?.parse().ok()?;
        let core = Arc::clone(&request.extensions().get::<Via>()?.core);
        let own = caller.child(new_span_id());
        Some(Self { core, method: request.method().clone(), caller, own, begun_at: SystemTime::now() })
    }
}

async fn admit(request: Request, trace: Option<TraceContext>) -> Result<Request, Refusal> {
    let (mut parts, body) = request.into_parts();
    let Some(via) = parts.extensions.get::<Via>().cloned() else {
        return Err(ErrorCode::ServerError.into());
    };
    let settings = via.settings();
    let path = Path::of(parts.uri.path());
    if !(path.is_websocket() && parts.headers.contains_key(header::UPGRADE)) {
        exposure::check_origin(&parts.headers, &settings)
            .and_then(|()| exposure::check_host(&parts.headers, &parts.uri, &settings))
            .map_err(Refusal::forbidden)?;
    }
    if !path.is_served_on(via.surface, settings.http.internal_listen.is_some()) {
        return Err(Refusal::no_such_path());
    }
    if path.is_send() && via.core.is_draining() {
        return Err(Refusal::draining());
    }
    let need = path.need(&parts.method);
    if need.is_some() || path.tells_some_more() {
        match (caller(&via, &parts, &settings).await, need) {
            (Ok(caller), need) => {
                let caller = Caller { trace, ..caller };
                need.map_or(Ok(()), |need| need.check(&caller.permissions))?;
                if path.is_send() {
                    caller.keep_rate(&via.core)?;
                }
                parts.extensions.insert(caller);
            }
            (Err(_), None) => {}
            (Err(refusal), Some(_)) => return Err(refusal),
        }
    }
    Ok(Request::from_parts(parts, body))
}

/// Finds out who asks.
async fn caller(via: &Via, parts: &Parts, settings: &Settings) -> Result<Caller, Refusal> {
    let credentials = Credentials::of(&parts.headers);
    let keys = &settings.http.api_keys;
    let authenticator = via.core.authenticator.as_ref();
    // Where nothing is checked nothing can be wrong: clients may send tokens to a hub that wants none.
    if let Some(credentials) = credentials.filter(|_| authenticator.is_some() || !keys.is_empty()) {
        if is_api_key(credentials.text(), settings) {
            return Ok(Caller::operator());
        }
        let (Credentials::Bearer(token), Some(_)) = (credentials, authenticator) else {
            return Err(ErrorReply::new(ErrorCode::InvalidToken, "this is no API key").into());
        };
        let identity = tokio::time::timeout(settings.handshake_timeout, via.core.authenticate(token)).await;
        let Identity { user_id, permissions, .. } = identity
            .unwrap_or(Err(AuthError::Unavailable))
            .map_err(|error| ErrorReply::new(error.error_code(), error.to_string()))?;
        return Ok(Caller { user_id: Some(user_id), permissions, trace: None });
    }
    if authenticator.is_some() {
        return Err(ErrorReply::new(ErrorCode::Unauthorized, "this needs an API key or a token").into());
    }
    if parts.version < Version::HTTP_11 {
        // Proxies that say nothing of themselves speak it to what stands behind them; programs of this machine do not.
        return Err(Refusal::forbidden("closed to HTTP/1.0 while authentication is off"));
    }
    exposure::check_private(&parts.headers, &parts.uri, via.peer.as_ref(), settings).map_err(Refusal::forbidden)?;
    Ok(Caller::operator())
}

/// What a request says to prove who it is from.
#[derive(Clone, Copy)]
enum Credentials<'r> {
    Bearer(&'r str),
    ApiKey(&'r str),
}

impl<'r> Credentials<'r> {
    fn of(headers: &'r HeaderMap) -> Option<Self> {
        if let Some(key) = headers.get("x-api-key") {
            // One that is no text is as wrong as any other.
            return Some(Self::ApiKey(key.to_str().unwrap_or_default()));
        }
        let value = headers.get(header::AUTHORIZATION)?.to_str().unwrap_or_default();
        let (scheme, token) = value.split_once(' ').unwrap_or((value, ""));
        Some(Self::Bearer(if scheme.eq_ignore_ascii_case("bearer") { token.trim() } else { "" }))
    }

    fn text(self) -> &'r str {
        match self {
            Self::Bearer(text) | Self::ApiKey(text) => text,
        }
    }
}

fn is_api_key(text: &str, settings: &Settings) -> bool {
    let nobody = || Identity::new(Id::generated(SYSTEM), Permissions::none());
    // It compares all of them in constant time.
    let keys: StaticTokens =
        settings.http.api_keys.iter().map(|key| (key.expose_secret().to_owned(), nobody())).collect();
    keys.find(text).is_some()
}

/// A path, taken apart.
struct Path<'p>(Vec<&'p str>);

impl<'p> Path<'p> {
    fn of(path: &'p str) -> Self {
        Self(path.split('/').skip(1).collect())
    }
}

/// What a caller must hold.
#[derive(Debug, PartialEq, Eq)]
enum Need {
    /// For everything.
    Everywhere(Permission),
    /// For this room; `None` where the body names it.
    Room(Permission, Option<String>),
    /// To send to this user.
    User(String),
    /// To be somebody; the handler asks for more.
    Anybody,
}

impl Need {
    fn check(&self, permissions: &Permissions) -> Result<(), Refusal> {
        let (is_held, permission) = match self {
            Self::Everywhere(permission) => (permissions.allows(*permission, None), *permission),
            Self::Room(permission, Some(room_id)) => (permissions.allows_room(*permission, room_id), *permission),
            // The handler asks again once it knows which.
            Self::Room(permission, None) => (permissions.holds_some(*permission), *permission),
            Self::Anybody => return Ok(()),
            Self::User(user_id) => (permissions.allows_direct(user_id), Permission::SendMessage),
        };
        if is_held { Ok(()) } else { Err(missing(permission)) }
    }
}

impl Path<'_> {
    /// What the path and method need; `None`: nothing. A path that is not known is closed.
    fn need(&self, method: &Method) -> Option<Need> {
        use Permission::{AdminRoom, AdminSystem, CreateRoom};
        let decoded = |id: &str| percent_decode_str(id).decode_utf8_lossy().into_owned();
        Some(match &self.0[..] {
            ["api", "rooms"] if method == Method::POST => Need::Room(CreateRoom, None),
            ["api", "rooms"] => Need::Everywhere(AdminRoom),
            ["api", "rooms", id, ..] => Need::Room(AdminRoom, Some(decoded(id))),
            ["api", "broadcast", "room"] => Need::Room(AdminRoom, None),
            ["api", "messages", id] if *id != "batch" => Need::Anybody,
            ["api", "users", id, "messages"] => Need::User(decoded(id)),
            ["api" | "debug" | "metrics", ..] | ["health", "failure-stats" | "retry-config"] => {
                Need::Everywhere(AdminSystem)
            }
            _ => return None,
        })
    }

    /// Whether messages are sent there.
    fn is_send(&self) -> bool {
        matches!(
            &self.0[..],
            ["api", "users" | "rooms", _, "messages"] | ["api", "messages", "batch"] | ["api", "broadcast", ..]
        )
    }

    /// Whether upgrades go there; admission does its own checks, and counts.
    fn is_websocket(&self) -> bool {
        self.0[..] == ["ws"]
    }

    /// Whether everybody may see it, but not everybody the same.
    fn tells_some_more(&self) -> bool {
        matches!(&self.0[..], ["health"])
    }

    /// Whether a listener serves the path. The operators' one, where there is one, has their pages for itself.
    fn is_served_on(&self, surface: Surface, has_internal: bool) -> bool {
        let is_operators = matches!(
            &self.0[..],
            ["metrics" | "debug", ..] | ["api", "admin", ..] | ["health", "failure-stats" | "retry-config"]
        );
        match surface {
            Surface::Internal => is_operators || self.0.first() == Some(&"health"),
            Surface::Public => !(is_operators && has_internal),
        }
    }
}
