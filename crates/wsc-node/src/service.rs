//! What the transport calls: admission, the opening and the end of connections, other HTTP requests.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering::Relaxed},
};

use http::Request;
use parking_lot::Mutex;
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
    session::{Joined, Names, Session, SessionRef},
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
        // A place for each, as handshakes have: who finds none is cut off.
        let Ok(_place) = self.0.http_places.try_acquire() else {
            self.0.metrics.handshake_failed("too_many_http");
            return;
        };
        api::serve(&self.0, stream, peer).await;
    }

    fn flushed(&self, report: FanoutReport) {
        self.0.metrics.fanout(report);
    }
}

/// One open connection.
pub(crate) struct Connected {
    pub(crate) core: Arc<Core>,
    pub(crate) session: Arc<Session>,
    everyone_slot: u32,
    /// What only some hubs ask for; most connections have none.
    extras: Option<Box<Extras>>,
}

/// Limits of one connection.
struct Extras {
    rates: Option<Rates>,
    /// Held until the connection ends.
    _address: Option<AddressPlace>,
}

impl Core {
    /// Registers a connection. Nothing is on the wire yet, so what is sent first here comes first there.
    fn open(self: &Arc<Self>, ticket: Ticket, outbound: &Outbound) -> Connected {
        let Ticket { user_id, client_id, device_id, user_type, permissions, expires_at, speaks_v1, place, address } =
            ticket;
        let id = Uuid::now_v7();
        let now = now_ms();
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
                    if let Some(expires_at) = expires_at {
                        json.raw(",\"expires_at\":").number(expires_at);
                    }
                    json.raw("}");
                });
            },
            |frame| outbound.send(frame),
        );
        let is_expected = self.expect_session(&user_id);
        let limit = UserLimit { max: settings.limits.user_connections, policy: settings.limits.user_policy };
        let make = |user| Session {
            id,
            user,
            names: Names::new(client_id.as_deref(), device_id.as_deref()),
            permissions,
            outbound: outbound.clone(),
            user_type,
            speaks_v1,
            bad_frames: AtomicU8::new(0),
            joined: Mutex::new(Joined::default()),
        };
        let came = || self.user_came(&user_id);
        let Attached { session, replaced, evicted } = self.users.attach(&user_id, limit, make, came);
        self.trace(id, ConnectionEvent::Connected);
        if has_inbox(user_id.as_str()) {
            self.reconnects.back(&user_id, now);
        }
        place.keep();
        if let Some(replaced) = &replaced {
            let close = CloseReason::new(CloseCode::REPLACED, "replaced by a newer connection of this client id");
            self.close(replaced, &close, DisconnectReason::Replaced);
        }
        for evicted in evicted {
            self.force_offline(&evicted);
        }
        // Without a limit a fan-out that is never closed takes everybody.
        let everyone = self.everyone.of(user_type, speaks_v1);
        let everyone_slot = everyone.join(SessionRef(Arc::clone(&session)), None).unwrap_or(u32::MAX);
        self.mail_connected(&session, is_expected);
        match replaced {
            Some(replaced) => self.events.publish_with(EventType::ClientReconnected, || Event::ClientReconnected {
                client: session.info(),
                replaced: replaced.id,
            }),
            None => self.events.publish_with(EventType::ClientConnected, || Event::ClientConnected(session.info())),
        }
        let rates = Rates::new(&settings.limits);
        let extras = (rates.is_some() || address.is_some()).then(|| Box::new(Extras { rates, _address: address }));
        Connected { core: Arc::clone(self), session, everyone_slot, extras }
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
        if let Some(rates) = self.extras.as_ref().and_then(|extras| extras.rates.as_ref()) {
            match rates.check(message.as_bytes().len()) {
                Verdict::Pass => {}
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
                    return Next::Read;
                }
                Verdict::Close => {
                    let close = CloseReason::new(CloseCode::RATE_LIMIT, "too many messages");
                    self.core.close(&self.session, &close, DisconnectReason::RateLimited);
                    return Next::Read;
                }
            }
        }
        self.dispatch(message)
    }

    fn closed(self, cause: DisconnectReason) {
        let Self { core, session, everyone_slot, extras: _ } = self;
        core.everyone.of(session.user_type, session.speaks_v1).leave(everyone_slot);
        core.leave_all(&session);
        let user_id = &session.user.id;
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
        tracing::debug!(session = %session.id, user_id = %session.user.id, %cause, "disconnected");
    }
}

/// Whether a connection that ended for this reason failed: nobody wanted it to end.
fn is_failure(cause: DisconnectReason) -> bool {
    use DisconnectReason::{HeartbeatTimeout, ReadError, SlowConsumer, WriteError, WriteTimeout};
    matches!(cause, ReadError | WriteError | HeartbeatTimeout | SlowConsumer | WriteTimeout)
}
