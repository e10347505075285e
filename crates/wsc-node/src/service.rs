//! What the transport calls: admission, the opening and the end of connections, other HTTP requests.

use std::sync::{
    Arc,
    atomic::Ordering::{Acquire, Relaxed},
};

use arc_swap::ArcSwapOption;
use http::Request;
use uuid::Uuid;
use wsc_events::ConnectionEvent;
use wsc_protocol::{
    CloseCode, CloseReason, DisconnectReason, Envelope, ErrorCode, ErrorReply, Event, EventType, encode,
};
use wsc_transport::{Admission, FanoutReport, Handler, Message, Next, Outbound, Peer, Service, Stream};

use crate::{
    admission::Ticket,
    api,
    core::Core,
    encode::{now_ms, with_frame},
    limits::{AddressPlace, Rates, Verdict},
    mail::has_inbox,
    session::{Names, Session, SessionRef},
    users::{Attached, UserLimit},
};

/// The node behind its transport.
pub(crate) struct NodeService(pub(crate) Arc<Core>);

impl Service for NodeService {
    type Ticket = Ticket;
    type Handler = Connected;

    async fn admit(&self, request: &Request<()>, peer: Peer) -> Admission<Ticket> {
        self.0.admit(request, Some(&peer)).await
    }

    fn open(&self, ticket: Ticket, outbound: &Outbound) -> Connected {
        self.0.open(ticket, outbound)
    }

    async fn http(&self, stream: Stream, peer: Peer) {
        // A place for each, as handshakes have.
        let Some(place) = self.0.http_places.take(self.0.settings().limits.pending_handshakes) else {
            self.0.metrics.handshake_failed("too_many_http");
            return;
        };
        tokio::select! {
            () = api::serve(&self.0, stream, peer, &place.state) => {}
            () = place.is_cut() => self.0.metrics.handshake_failed("too_many_http"),
        }
    }

    fn flushed(&self, report: FanoutReport) {
        self.0.metrics.fanout(report);
    }
}

/// One open connection.
pub(crate) struct Connected {
    pub(crate) core: Arc<Core>,
    pub(crate) session: Arc<Session>,
    /// What only some hubs ask for; most connections have none.
    extras: ArcSwapOption<Extras>,
}

/// Limits of one connection.
struct Extras {
    /// Made of the settings of this generation.
    generation: u32,
    rates: Option<Rates>,
    /// Held until the connection ends.
    address: Option<Arc<AddressPlace>>,
}

impl Core {
    /// Registers a connection. Nothing is on the wire yet, so what is sent first here comes first there.
    fn open(self: &Arc<Self>, ticket: Ticket, outbound: &Outbound) -> Connected {
        let Ticket { user_id, client_id, device_id, grant, speaks_v1, place, address } = ticket;
        let id = Uuid::now_v7();
        let now = now_ms();
        // In this order: rates of new settings under an old number are made anew, the other way round they would stay.
        let generation = self.rates_generation.load(Acquire);
        let settings = self.settings();
        let ping_interval_ms = settings.ping_interval.as_millis() as u64;
        with_frame(
            |out| {
                encode::reply(out, "connected", None, now, |json| {
                    json.raw("{\"client_id\":");
                    match &client_id {
                        Some(given) => json.string(given),
                        None => json.uuid(id),
                    };
                    json.raw(",\"user_id\":").string(user_id.as_str()).raw(",\"session\":").uuid(id);
                    json.raw(",\"node_id\":").string(&self.node_id);
                    json.raw(",\"ping_interval_ms\":").number(ping_interval_ms);
                    if let Some(expires_at) = grant.expires_at_ms() {
                        json.raw(",\"expires_at\":").number(expires_at);
                    }
                    json.raw("}");
                });
            },
            |frame| outbound.send(frame),
        );
        let is_expected = self.expect_session(&user_id);
        let limit = UserLimit { max: settings.limits.user_connections, policy: settings.limits.user_policy };
        let user_type = grant.user_type;
        let names = Names::new(client_id.as_deref(), device_id.as_deref());
        let make = |user| Session::new(id, user, names, Arc::clone(&grant), outbound.clone(), speaks_v1);
        let came = || self.user_came(&user_id);
        let Attached { session, replaced, evicted } = self.users.attach(&user_id, limit, make, came);
        self.trace(id, ConnectionEvent::Connected);
        self.expiries.note(&grant);
        if has_inbox(user_id.as_str()) {
            self.reconnects.back(&user_id, now);
        }
        place.keep();
        self.end_others(replaced.as_deref(), &evicted);
        // Without a limit a fan-out that is never closed takes everybody.
        let everyone = self.everyone.of(user_type, speaks_v1);
        let slot = everyone.join(SessionRef(Arc::clone(&session)), None).unwrap_or(u32::MAX);
        session.everyone_slot.store(slot, Relaxed);
        self.mail_connected(&session, is_expected);
        match replaced {
            Some(replaced) => self.events.publish_with(EventType::ClientReconnected, || Event::ClientReconnected {
                client: session.info(),
                replaced: replaced.id,
            }),
            None => self.events.publish_with(EventType::ClientConnected, || Event::ClientConnected(session.info())),
        }
        // Between the look at the token and now, when nobody could find the connection yet, it may have been revoked, or
        // the settings may have changed.
        self.close_if_revoked(&session);
        if self.authenticator.is_some() {
            self.renew_anonymous(&session);
        }
        let rates = Rates::new(&settings.limits);
        let extras = Extras { generation, rates, address: address.map(Arc::new) };
        let has_extras = extras.rates.is_some() || extras.address.is_some();
        Connected { core: Arc::clone(self), session, extras: ArcSwapOption::new(has_extras.then(|| Arc::new(extras))) }
    }

    /// Closes the connections that a user may not have beside a new one.
    pub(crate) fn end_others(&self, replaced: Option<&Session>, evicted: &[Arc<Session>]) {
        if let Some(replaced) = replaced {
            let close = CloseReason::new(CloseCode::REPLACED, "replaced by a newer connection of this client id");
            self.close(replaced, &close, DisconnectReason::Replaced);
        }
        for evicted in evicted {
            self.force_offline(evicted);
        }
    }

    /// Closes a connection that its user may not have beside the others.
    fn force_offline(&self, session: &Session) {
        let reason = "too many connections of this user";
        with_frame(
            |out| {
                encode::reply(out, "force_offline", None, now_ms(), |json| {
                    json.raw("{\"reason\":").string(reason).raw("}");
                });
            },
            |frame| session.outbound.send(frame),
        );
        let close = CloseReason::new(CloseCode::TOO_MANY_CONNECTIONS_OF_USER, reason);
        self.close(session, &close, DisconnectReason::ForceOffline);
    }
}

impl Handler for Connected {
    fn message(&self, message: Message<'_>) -> Next {
        // As long as nobody asked for rates there is nothing to look at.
        if self.core.rates_generation.load(Relaxed) != 0 && !self.is_within_rates(&message) {
            return Next::Read;
        }
        self.dispatch(message)
    }

    fn closed(self, cause: DisconnectReason) {
        let Self { core, session, extras: _ } = self;
        core.everyone.of(session.user_type(), session.speaks_v1).leave(session.everyone_slot.load(Relaxed));
        core.leave_all(&session);
        let user = Arc::clone(&session.user());
        let user_id = &user.id;
        if is_failure(cause) && has_inbox(user_id.as_str()) {
            core.reconnects.lost(user_id, now_ms());
        }
        core.trace(session.id, ConnectionEvent::Disconnected { reason: cause });
        core.admitted.fetch_sub(1, Relaxed);
        core.metrics.disconnected(cause);
        let tell = || {
            core.events.publish_with(EventType::ClientDisconnected, || Event::ClientDisconnected {
                client: session.info(),
                reason: cause,
                duration_ms: now_ms().saturating_sub(session.connected_at()),
            });
        };
        let mut is_told = false;
        core.users.detach(&session, || {
            // The connection goes, then its user.
            tell();
            is_told = true;
            core.user_went(user_id, session.id.as_u128() as u64);
        });
        if !is_told {
            tell();
        }
        core.mail_disconnected(&session);
        tracing::debug!(session = %session.id, user_id = %session.user().id, %cause, "disconnected");
    }
}

impl Connected {
    /// Whether a message keeps the connection's rates; says so to the sender where it does not.
    fn is_within_rates(&self, message: &Message<'_>) -> bool {
        let extras = self.current_extras();
        let Some(rates) = extras.as_ref().and_then(|extras| extras.rates.as_ref()) else { return true };
        match rates.check(message.as_bytes().len()) {
            Verdict::Pass => return true,
            Verdict::Refuse { retry_after, tell } => {
                if tell {
                    let details = serde_json::json!({ "retry_after_ms": retry_after.as_millis() as u64 + 1 });
                    let error = ErrorReply::from(ErrorCode::RateLimited).with_details(details);
                    // Decoded for those only who are told, so that a flood costs little.
                    let envelope = Envelope::decode(message.as_bytes()).ok();
                    let request_id = envelope.as_ref().and_then(|envelope| envelope.message_id.as_ref());
                    self.core.trace(self.session.id, ConnectionEvent::RateLimited);
                    self.core.send_error(&self.session, &error, request_id);
                }
            }
            Verdict::Close => {
                let close = CloseReason::new(CloseCode::RATE_LIMIT, "too many messages");
                self.core.close(&self.session, &close, DisconnectReason::RateLimited);
            }
        }
        false
    }

    /// The connection's limits, made anew where the settings have changed.
    fn current_extras(&self) -> Option<Arc<Extras>> {
        let extras = self.extras.load_full();
        let generation = self.core.rates_generation.load(Acquire);
        if extras.as_ref().is_some_and(|extras| extras.generation == generation) {
            return extras;
        }
        let address = extras.and_then(|extras| extras.address.clone());
        let rates = Rates::new(&self.core.settings().limits);
        let extras = Some(Arc::new(Extras { generation, rates, address }));
        self.extras.store(extras.clone());
        extras
    }
}

/// Whether a connection that ended for this reason failed: nobody wanted it to end.
fn is_failure(cause: DisconnectReason) -> bool {
    use DisconnectReason::{HeartbeatTimeout, ReadError, SlowConsumer, WriteError, WriteTimeout};
    matches!(cause, ReadError | WriteError | HeartbeatTimeout | SlowConsumer | WriteTimeout)
}
