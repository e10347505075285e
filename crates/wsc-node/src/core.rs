//! The node's state, shared by every connection, request and task.

use std::sync::{
    Arc, OnceLock, Weak,
    atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

use std::time::Instant;

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wsc_auth::{Authenticator, Revocations};
use wsc_config::Settings;
use wsc_events::{EventBus, EventRing};
use wsc_failure::{FailureRouter, HandlerId, ReconnectTracker};
use wsc_protocol::UserType;
use wsc_store::RecordStore;
use wsc_transport::{Fanout, Fanouts};

use crate::{
    context::Handlers,
    failures::FailureCounts,
    hub::HubInner,
    limits::{Addresses, Gcra, HttpPlaces},
    mail::Mail,
    metrics::Metrics,
    presence::Presence,
    reload::Reloading,
    retry::Retries,
    rooms::Rooms,
    session::SessionRef,
    tokens::Expiries,
    traced::Traced,
    users::Users,
    webhooks::WebhookSink,
};

/// Everything that one node knows. Data flows one way: the transport calls in, the node writes to connections.
pub(crate) struct Core {
    pub(crate) node_id: String,
    /// Unix milliseconds.
    pub(crate) started_at: u64,
    /// Where durations within the node are counted from.
    pub(crate) clock: Instant,
    /// Whoever must act on a change subscribes; everybody else reads once per decision.
    pub(crate) settings: watch::Sender<Arc<Settings>>,
    pub(crate) users: Users,
    pub(crate) rooms: Rooms,
    pub(crate) everyone: Everyone,
    pub(crate) fanouts: Fanouts,
    pub(crate) handlers: RwLock<Arc<Handlers>>,
    pub(crate) authenticator: Option<Arc<dyn Authenticator>>,
    pub(crate) revocations: Revocations,
    pub(crate) revoking: tokio::sync::Mutex<()>,
    pub(crate) expiries: Expiries,
    /// What must survive beside messages.
    pub(crate) records: Arc<dyn RecordStore>,
    pub(crate) webhooks: WebhookSink,
    pub(crate) reloading: Arc<Reloading>,
    /// Messages of distributed traces.
    pub(crate) traced: Arc<Traced>,
    /// The handler that writes failures to the log, while there is one.
    pub(crate) failure_log: Mutex<Option<HandlerId>>,
    pub(crate) events: EventBus,
    /// What happened on connections lately.
    pub(crate) ring: EventRing,
    pub(crate) failures: FailureRouter,
    pub(crate) failed: FailureCounts,
    /// Whose connections fail, and how fast they come back.
    pub(crate) reconnects: ReconnectTracker,
    pub(crate) metrics: Metrics,
    pub(crate) retries: Retries,
    pub(crate) mail: Mail,
    pub(crate) presence: Presence,
    /// Connections that are open or about to be.
    pub(crate) admitted: AtomicU64,
    pub(crate) addresses: Addresses,
    /// HTTP connections beside WebSockets: as many as `limits.pending_handshakes`.
    pub(crate) http_places: HttpPlaces,
    /// HTTP requests that wait for acknowledgements.
    pub(crate) waiting: AtomicU64,
    /// Goes up when the rates of connections change; 0 as long as there have never been any.
    pub(crate) rates_generation: AtomicU32,
    /// How many handshakes a second may begin.
    pub(crate) handshakes: Mutex<Option<Gcra>>,
    /// Cancelled when the node's own tasks must end.
    pub(crate) stop: CancellationToken,
    /// Cancelled when whoever balances the load should look elsewhere.
    pub(crate) leaving: CancellationToken,
    /// Cancelled when newcomers are refused.
    pub(crate) draining: CancellationToken,
    /// Cancelled when the last connection is gone and only HTTP is left to be ended.
    pub(crate) drained: CancellationToken,
    /// Tasks of the node itself; awaited at shutdown.
    pub(crate) tasks: TaskTracker,
    /// The handle that handlers of custom types are given.
    pub(crate) hub: OnceLock<Weak<HubInner>>,
}

impl Core {
    /// The settings of this moment.
    pub(crate) fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.borrow())
    }

    /// A place among the requests that wait for acknowledgements (`http.max_waiting`).
    pub(crate) fn waiting_place(self: &Arc<Self>) -> Option<WaitingPlace> {
        let place = WaitingPlace(Arc::clone(self));
        let others = self.waiting.fetch_add(1, Relaxed);
        (others < self.settings().http.max_waiting).then_some(place)
    }
}

/// Given back when it is dropped.
pub(crate) struct WaitingPlace(Arc<Core>);

impl Drop for WaitingPlace {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

/// Fan-outs of all connections, one for each combination that a broadcast can ask for: user type, and whether the
/// connection speaks `wsc.v1`.
pub(crate) struct Everyone(Vec<Fanout<SessionRef>>);

impl Everyone {
    pub(crate) fn new(fanouts: &Fanouts) -> Self {
        Self((0..2 * UserType::ALL.len()).map(|_| fanouts.fanout()).collect())
    }

    pub(crate) fn of(&self, user_type: UserType, speaks_v1: bool) -> &Fanout<SessionRef> {
        &self.0[2 * user_type as usize + usize::from(speaks_v1)]
    }

    /// The fan-outs of one user type, or of all, each with whether its members speak `wsc.v1`.
    pub(crate) fn select(&self, user_type: Option<UserType>) -> impl Iterator<Item = (&Fanout<SessionRef>, bool)> {
        let all = self.0.iter().enumerate();
        let selected = all.filter(move |(i, _)| user_type.is_none_or(|t| i / 2 == t as usize));
        selected.map(|(i, fanout)| (fanout, i % 2 == 1))
    }
}
