//! Who a new connection is, and whether it may connect (protocol §1).

use std::{
    borrow::Cow,
    net::IpAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use percent_encoding::percent_decode_str;
use uuid::Uuid;
use wsc_auth::{AuthError, Permissions};
use wsc_config::{Settings, UserPolicy};
use wsc_protocol::{CloseCode, CloseReason, ErrorCode, ErrorReply, Id, UserType};
use wsc_transport::{Admission, Peer};

use crate::{
    api::error_response, core::Core, exposure, grant::Grant, hub::Hub, limits::AddressPlace, mail::made_up_user_id,
    users::UserLimit,
};

/// An admitted connection that is not open yet. It holds a place among the hub's connections.
pub(crate) struct Ticket {
    pub(crate) user_id: Id,
    pub(crate) client_id: Option<Box<str>>,
    pub(crate) device_id: Option<Box<str>>,
    pub(crate) grant: Arc<Grant>,
    pub(crate) speaks_v1: bool,
    pub(crate) place: Place,
    /// Its address' place, where addresses have a limit.
    pub(crate) address: Option<AddressPlace>,
}

/// One of the hub's places; given back when it is dropped.
pub(crate) struct Place {
    core: Arc<Core>,
    /// How many places were taken with this one.
    number: u64,
}

impl Place {
    fn take(core: &Arc<Core>) -> Self {
        Self { number: core.admitted.fetch_add(1, Relaxed) + 1, core: Arc::clone(core) }
    }

    /// The connection is open and gives its place back by itself.
    pub(crate) fn keep(self) {
        self.core.admitted.fetch_add(1, Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.core.admitted.fetch_sub(1, Relaxed);
    }
}

/// What a client says about itself.
struct Parameters<'r> {
    query: Vec<(Cow<'r, str>, Cow<'r, str>)>,
    headers: &'r HeaderMap,
}

impl<'r> Parameters<'r> {
    fn new(request: &'r Request<()>) -> Result<Self, String> {
        let mut query = Vec::new();
        for pair in request.uri().query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            query.push((decode(name)?, decode(value)?));
        }
        Ok(Self { query, headers: request.headers() })
    }

    /// The parameter by this name in the query, else in this header.
    fn get(&self, name: &str, header: &str) -> Result<Option<Cow<'_, str>>, String> {
        if let Some((_, value)) = self.query.iter().find(|(n, _)| n == name) {
            return Ok(Some(Cow::Borrowed(&**value)));
        }
        let Some(value) = self.headers.get(header) else { return Ok(None) };
        let value = std::str::from_utf8(value.as_bytes()).map_err(|_| format!("{header} is not UTF-8"))?;
        Ok(Some(Cow::Borrowed(value)))
    }

    fn id(&self, name: &str, header: &str) -> Result<Option<Cow<'_, str>>, String> {
        let id = self.get(name, header)?;
        if let Some(id) = &id {
            Id::check(id).map_err(|invalid| format!("{name} {invalid}"))?;
        }
        Ok(id)
    }

    fn token(&self) -> Option<Cow<'_, str>> {
        if let Some((_, token)) = self.query.iter().find(|(name, _)| name == "token") {
            return Some(Cow::Borrowed(&**token));
        }
        let value = self.headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| Cow::Borrowed(token.trim()))
    }
}

/// Undoes percent and plus encoding.
fn decode(text: &str) -> Result<Cow<'_, str>, String> {
    let not_utf8 = |_| "the query is not UTF-8".to_owned();
    if text.contains('+') {
        let spaced = text.replace('+', " ");
        let decoded = percent_decode_str(&spaced).decode_utf8().map_err(not_utf8)?;
        return Ok(Cow::Owned(decoded.into_owned()));
    }
    percent_decode_str(text).decode_utf8().map_err(not_utf8)
}

impl Core {
    /// Decides about an upgrade request.
    pub(crate) async fn admit(self: &Arc<Self>, request: &Request<()>, peer: Option<&Peer>) -> Admission<Ticket> {
        let settings = self.settings();
        let checked = exposure::check_origin(request.headers(), &settings)
            .and_then(|()| exposure::check_host(request.headers(), request.uri(), &settings));
        if let Err(objection) = checked {
            return self.refuse("forbidden", ErrorCode::Forbidden.into(), Some(objection), None);
        }
        if self.is_draining() {
            return self.refuse("draining", ErrorCode::Full.into(), Some("the hub is shutting down"), Some(1));
        }
        if self.is_pressed() {
            let message = "too much waits to be sent to those who are connected";
            return self.refuse("memory", ErrorCode::Full.into(), Some(message), Some(1));
        }
        let offers_v1 = offers(request.headers(), SUBPROTOCOL);
        let address = peer.map(|peer| exposure::client_address(request.headers(), peer, &settings));
        // Before the rate that all share: who has too many already must not use it up for the others.
        let max = settings.limits.ip_connections;
        if max > 0 && address.is_some_and(|address| self.addresses.is_full(address, max)) {
            return self.refuse_address(offers_v1);
        }
        if let Err(retry_after) = self.admit_rate() {
            let seconds = retry_after.as_secs() + 1;
            return self.refuse("rate", ErrorCode::Full.into(), Some("too many handshakes a second"), Some(seconds));
        }
        let parameters = match Parameters::new(request) {
            Ok(parameters) => parameters,
            Err(message) => return self.refuse_parameters(message),
        };
        match self.identify(&parameters, offers_v1).await {
            Ok(Ok(mut ticket)) => {
                if let Some(refused) = self.check_limits(&mut ticket, address, &settings) {
                    return refused;
                }
                tracing::debug!(user_id = %ticket.user_id, client_id = ?ticket.client_id, ?address, "admitted");
                Admission::Accept { ticket, subprotocol: offers_v1.then_some(SUBPROTOCOL) }
            }
            Ok(Err(error)) => {
                self.metrics.handshake_failed(error.as_str());
                let reply = ErrorReply::new(error.error_code(), error.to_string());
                refuse_either_way(offers_v1, &reply, CloseReason::new(error.close_code(), error.to_string()))
            }
            Err(message) => self.refuse_parameters(message),
        }
    }

    /// Whether so much waits in all queues (`queue.total_bytes`) that newcomers would make it worse.
    fn is_pressed(&self) -> bool {
        let hub = self.hub.get().and_then(Hub::upgrade);
        hub.is_some_and(|hub| hub.inner().transport.is_pressed())
    }

    /// Whether one more handshake may begin in this second.
    fn admit_rate(&self) -> Result<(), Duration> {
        let mut cell = self.handshakes.lock();
        match &mut *cell {
            Some(cell) => cell.check(1, self.clock.elapsed().as_nanos() as u64),
            None => Ok(()),
        }
    }

    fn refuse_address(&self, speaks_v1: bool) -> Admission<Ticket> {
        let message = "too many connections from this address";
        self.metrics.handshake_failed("too_many_from_address");
        let reply = ErrorReply::new(ErrorCode::RateLimited, message);
        refuse_either_way(speaks_v1, &reply, CloseReason::new(CloseCode::TOO_MANY_CONNECTIONS, message))
    }

    /// Checks the limits of the hub, of the address and of the user, in this order.
    fn check_limits(
        &self,
        ticket: &mut Ticket,
        address: Option<IpAddr>,
        settings: &Settings,
    ) -> Option<Admission<Ticket>> {
        let refuse = |label, code, message: &str, close| {
            self.metrics.handshake_failed(label);
            let reply = ErrorReply::new(code, message);
            Some(refuse_either_way(ticket.speaks_v1, &reply, CloseReason::new(close, message)))
        };
        if ticket.place.number > settings.max_connections {
            let close = CloseCode::TOO_MANY_CONNECTIONS;
            return refuse("too_many_connections", ErrorCode::Full, "too many connections", close);
        }
        if let Some(address) = address.filter(|_| settings.limits.ip_connections > 0) {
            ticket.address = self.addresses.take(address, settings.limits.ip_connections);
            if ticket.address.is_none() {
                return Some(self.refuse_address(ticket.speaks_v1));
            }
        }
        let limit = UserLimit { max: settings.limits.user_connections, policy: settings.limits.user_policy };
        if let Err(error) = self.check_user_limit(&ticket.user_id, ticket.client_id.as_deref(), limit) {
            let close = CloseCode::TOO_MANY_CONNECTIONS_OF_USER;
            return refuse("too_many_of_user", error.code, &error.message, close);
        }
        None
    }

    /// Refuses one connection more where the user may not have it and the newest is the one to go.
    pub(crate) fn check_user_limit(
        &self,
        user_id: &Id,
        client_id: Option<&str>,
        limit: UserLimit,
    ) -> Result<(), ErrorReply> {
        if limit.max == 0 || limit.policy != UserPolicy::Refuse {
            return Ok(());
        }
        // Who takes the place of an older connection is not one more.
        let others = self.users.get(user_id.as_str()).map_or(0, |user| user.count_others(client_id));
        if (others as u64) < limit.max {
            return Ok(());
        }
        Err(ErrorReply::new(ErrorCode::RateLimited, "too many connections of this user"))
    }

    /// Who this is: the outer error is one of the parameters, the inner one of the credentials.
    async fn identify(
        self: &Arc<Self>,
        parameters: &Parameters<'_>,
        speaks_v1: bool,
    ) -> Result<Result<Ticket, AuthError>, String> {
        let client_id = parameters.id("client_id", "x-client-id")?;
        let device_id = parameters.id("device_id", "x-device-id")?.map(|id| id.into_owned().into_boxed_str());
        let named_client = client_id.as_deref();
        let settings = self.settings();
        let (user_id, grant) = match &self.authenticator {
            None => {
                let user_type = match parameters.get("user_type", "x-user-type")? {
                    Some(text) => text.parse().map_err(|unknown| format!("user_type {unknown}"))?,
                    None => UserType::default(),
                };
                let user_id = match (parameters.id("user_id", "x-user-id")?, named_client) {
                    (Some(user_id), _) => Id::generated(&*user_id),
                    (None, Some(client_id)) => Id::generated(client_id),
                    (None, None) => Id::generated(made_up_user_id().to_string()),
                };
                (user_id, Grant::open(user_type))
            }
            Some(_) => match parameters.token() {
                Some(token) => match self.authenticate(&token).await {
                    Ok(identity) => {
                        let grant = Grant::of(&identity);
                        (identity.user_id, grant)
                    }
                    Err(error) => return Ok(Err(error)),
                },
                None if settings.auth.allow_anonymous => {
                    let user_id = Id::generated(format!("{ANONYMOUS}{}", Uuid::now_v7()));
                    let permissions = Permissions::parse(&settings.auth.anonymous_permissions);
                    (user_id, Grant::anonymous(permissions.unwrap_or_else(|_| Permissions::none())))
                }
                None => return Ok(Err(AuthError::Missing)),
            },
        };
        let client_id = named_client.map(Box::from);
        let place = Place::take(self);
        Ok(Ok(Ticket { user_id, client_id, device_id, grant, speaks_v1, place, address: None }))
    }

    fn refuse_parameters(&self, message: String) -> Admission<Ticket> {
        self.metrics.handshake_failed("bad_parameters");
        Admission::Refuse(error_response(&ErrorReply::new(ErrorCode::InvalidFormat, message)))
    }

    fn refuse(
        &self,
        reason: &'static str,
        mut error: ErrorReply,
        message: Option<&str>,
        retry_after: Option<u64>,
    ) -> Admission<Ticket> {
        self.metrics.handshake_failed(reason);
        if let Some(message) = message {
            message.clone_into(&mut error.message);
        }
        let mut response = error_response(&error);
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        Admission::Refuse(response)
    }
}

/// Browsers hide the status of a refused upgrade from scripts; who offers our subprotocol is upgraded and told.
fn refuse_either_way(offers_v1: bool, error: &ErrorReply, close: CloseReason) -> Admission<Ticket> {
    if offers_v1 {
        return Admission::Close { close, subprotocol: Some(SUBPROTOCOL) };
    }
    let mut response: Response<Vec<u8>> = error_response(error);
    if error.code == ErrorCode::Full {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    Admission::Refuse(response)
}

/// Whether the client offers a subprotocol.
fn offers(headers: &HeaderMap, subprotocol: &str) -> bool {
    let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    offered.filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).any(|name| name.trim() == subprotocol)
}

/// How the user ids of those begin who came without a token.
pub(crate) const ANONYMOUS: &str = "anon:";

/// The protocol that this hub speaks.
pub(crate) const SUBPROTOCOL: &str = "wsc.v1";
