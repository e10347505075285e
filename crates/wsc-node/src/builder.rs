//! Putting a hub together.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, AtomicU64},
    },
    time::{Duration, Instant},
};

use parking_lot::{Mutex, RwLock};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wsc_auth::Authenticator;
use wsc_config::{ConfigError, Problems, Settings, StorageKind};
use wsc_events::{EventBus, EventRing, SpanSink, WebhookClient, Webhooks};
use wsc_failure::{AlertSink, FailureHandlerRegistry, FailureRouter, ReconnectTracker};
use wsc_protocol::{ErrorReply, Event, EventType};
use wsc_store::{InboxStore, MemoryInbox, MemoryRecords, RecordStore, StoreError};
use wsc_transport::{TlsConfig, TlsError, Transport};

use crate::{
    context::{Context, Handlers, MessageHandler, typed},
    core::{Core, Everyone},
    encode::now_ms,
    failures::FailureCounts,
    hub::{Hub, HubInner},
    limits::{Addresses, Gcra, HttpPlaces, Rates},
    mail::{Keeper, Mail},
    metrics::Metrics,
    presence::Presence,
    reload::{Last, Reloadable, Reloading},
    retry::Retries,
    rooms::Rooms,
    service::NodeService,
    settings,
    tokens::{Expiries, load_revocations},
    traced::Traced,
    users::Users,
    webhooks::{self, RecordOutbox, WebhookSink},
};

/// Builds a [`Hub`].
#[must_use = "a builder does nothing until it is started"]
pub struct HubBuilder {
    settings: Settings,
    handlers: Handlers,
    authenticator: Option<Arc<dyn Authenticator>>,
    failures: FailureHandlerRegistry,
    inbox: Option<Arc<dyn InboxStore>>,
    records: Option<Arc<dyn RecordStore>>,
    webhook_client: Option<Arc<dyn WebhookClient>>,
    alert_sink: Option<Arc<dyn AlertSink>>,
    span_sink: Option<Arc<dyn SpanSink>>,
    reloading: Reloading,
}

impl HubBuilder {
    pub(crate) fn new() -> Self {
        let mut settings = Settings::default();
        // Without a word about storage nothing is written to anybody's disk.
        settings.storage.kind = StorageKind::Memory;
        Self {
            settings,
            handlers: HashMap::new(),
            authenticator: None,
            failures: FailureHandlerRegistry::new(),
            inbox: None,
            records: None,
            webhook_client: None,
            alert_sink: None,
            span_sink: None,
            reloading: Reloading::default(),
        }
    }

    /// Uses these settings instead of the defaults. (Without this call the inbox is in memory, `storage.kind: memory`.)
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// Answers requests of type `message_type` with an async function from its deserialised `data` to the `data` of
    /// the reply. See [`MessageHandler`] for what holds while it runs.
    ///
    /// # Panics
    ///
    /// Panics where the type is one of the protocol's own.
    pub fn on<F, T, R, Fut>(self, message_type: &str, handler: F) -> Self
    where
        F: Fn(Context, T) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, ErrorReply>> + Send + 'static,
        T: DeserializeOwned + Send + 'static,
        R: Serialize + Send + 'static,
    {
        self.handler(message_type, typed(handler))
    }

    /// Answers requests of type `message_type` with a handler that does its own reading and writing.
    ///
    /// # Panics
    ///
    /// Panics where the type is one of the protocol's own.
    pub fn handler(mut self, message_type: &str, handler: Arc<dyn MessageHandler>) -> Self {
        assert!(!is_reserved(message_type), "message type {message_type:?} belongs to the protocol");
        self.handlers.insert(message_type.into(), handler);
        self
    }

    /// Switches authentication on: every connection needs a token that `authenticator` accepts.
    pub fn authenticator(mut self, authenticator: impl Authenticator) -> Self {
        self.authenticator = Some(Arc::new(authenticator));
        self
    }

    /// Uses this registry of failure handlers; it can be added to at any time.
    pub fn failure_handlers(mut self, handlers: FailureHandlerRegistry) -> Self {
        self.failures = handlers;
        self
    }

    /// Keeps what must not get lost in this store, whatever `storage.kind` says. The hub closes it when it shuts down.
    pub fn inbox(mut self, store: Arc<dyn InboxStore>) -> Self {
        self.inbox = Some(store);
        self
    }

    /// Keeps the rest that must survive in this store: revoked tokens, and events that wait to be posted. Without it
    /// they are kept in memory. The hub closes it when it shuts down.
    pub fn records(mut self, store: Arc<dyn RecordStore>) -> Self {
        self.records = Some(store);
        self
    }

    /// Posts events with this client where the settings ask for webhooks (`callbacks.*`).
    pub fn webhook_client(mut self, client: Arc<dyn WebhookClient>) -> Self {
        self.webhook_client = Some(client);
        self
    }

    /// Tells `sink` about the steps of messages that belong to a distributed trace, see [`Span`](wsc_events::Span).
    pub fn span_sink(mut self, sink: Arc<dyn SpanSink>) -> Self {
        self.span_sink = Some(sink);
        self
    }

    /// Says where settings come from, for [`Hub::reload`]. Called on a thread that may block.
    pub fn settings_source(mut self, load: impl Fn() -> Result<Settings, ConfigError> + Send + Sync + 'static) -> Self {
        self.reloading.source = Some(Arc::new(load));
        self
    }

    /// Has this part of the program follow the settings when they are reloaded.
    pub fn reloadable(mut self, part: Arc<dyn Reloadable>) -> Self {
        self.reloading.parts.push(part);
        self
    }

    /// Tells `sink` when too much fails, beside the log and the metrics: with `failure_handlers.enable_alert`, when
    /// `alert_threshold` failures of one kind fall within `alert_window`. It is told within a second, on a task of the
    /// hub's own.
    pub fn alert_sink(mut self, sink: impl AlertSink) -> Self {
        self.alert_sink = Some(Arc::new(sink));
        self
    }

    /// Starts the hub. It listens nowhere until [`Hub::listen`], and serves whatever [`Hub::router`] is mounted in.
    ///
    /// # Errors
    ///
    /// [`StartError`] where the settings cannot work.
    ///
    /// # Panics
    ///
    /// Panics outside of a tokio runtime.
    pub async fn start(self) -> Result<Hub, StartError> {
        let Self {
            settings,
            handlers,
            authenticator,
            failures,
            inbox,
            records,
            webhook_client,
            alert_sink,
            span_sink,
            reloading,
        } = self;
        let mut checked = settings.clone();
        // The program brings its own authentication: strangers cannot get in.
        checked.auth.allow_insecure |= authenticator.is_some();
        wsc_config::check(&checked).map_err(StartError::Settings)?;
        if settings.auth.enabled && authenticator.is_none() {
            return Err(StartError::NoAuthenticator);
        }
        let tls = match (&settings.tls.cert, &settings.tls.key) {
            (Some(cert), Some(key)) => Some(TlsConfig::from_files(cert, key).map_err(StartError::Tls)?),
            _ => None,
        };
        *reloading.last.lock().await = Last { settings: settings.clone(), files: reloading.digest_files(&settings) };
        let inbox = match (inbox, settings.storage.kind) {
            (Some(inbox), _) => Some(inbox),
            (None, StorageKind::None) => None,
            (None, StorageKind::Memory) => Some(Arc::new(MemoryInbox::default()) as Arc<dyn InboxStore>),
            (None, _) => return Err(StartError::NoInbox),
        };
        if let Some(inbox) = &inbox {
            inbox.set_limits(settings::inbox_limits(&settings));
        }
        let transport_config = settings::transport(&settings, inbox.is_some());
        let mail = Mail::new(inbox.map(Keeper::new), settings::mailbox(&settings), now_ms());
        let metrics = Metrics::new().map_err(|e| StartError::Metrics(e.to_string()))?;
        let (policy, budget) = settings::retry_policy(&settings).map_err(StartError::Retry)?;
        let retries = Retries::new(policy, budget);
        metrics.measure_failures(settings.failure_handlers.enable_metrics);
        let records = records.unwrap_or_else(|| Arc::new(MemoryRecords::default()));
        let revocations = load_revocations(&*records).await.map_err(StartError::Records)?;
        let node_id = settings.node_id.as_str().to_owned();
        let rate = settings.limits.handshakes_per_second;
        let handshakes = Gcra::new(rate, rate);
        let ring = EventRing::new(settings::ring(&settings));
        let calls = metrics.handler_calls();
        let failures = FailureRouter::observed(failures, settings::failures(&settings), calls);
        let events = EventBus::observed(settings::events(&settings), metrics.callback_runs());
        let traced = Arc::new(Traced::new(span_sink));
        let webhooks = {
            let config = webhooks::config(&settings).map_err(StartError::Webhooks)?;
            match webhook_client {
                None if config.is_some() => return Err(StartError::Webhooks(webhooks::NO_CLIENT.to_owned())),
                None => None,
                Some(client) => {
                    let outbox = Arc::new(RecordOutbox(Arc::clone(&records)));
                    let hooks = traced.webhook_hooks(metrics.webhook_requests());
                    let started = Webhooks::start(&node_id, config, outbox, client, &events, hooks).await;
                    Some(started.map_err(|e| StartError::Webhooks(e.to_string()))?)
                }
            }
        };
        let has_rates = Rates::new(&settings.limits).is_some();
        let settings = watch::Sender::new(Arc::new(settings));
        let mut core = None;
        let transport = Transport::start(WS_PATH, &transport_config, |fanouts| {
            let made = Arc::new(Core {
                node_id,
                started_at: now_ms(),
                clock: Instant::now(),
                settings,
                users: Users::default(),
                rooms: Rooms::default(),
                everyone: Everyone::new(fanouts),
                fanouts: fanouts.clone(),
                handlers: RwLock::new(Arc::new(handlers)),
                authenticator,
                revocations,
                revoking: tokio::sync::Mutex::default(),
                expiries: Expiries::default(),
                records,
                webhooks: WebhookSink(webhooks),
                reloading: Arc::new(reloading),
                traced,
                failure_log: Mutex::new(None),
                events,
                ring,
                failures,
                failed: FailureCounts::default(),
                reconnects: ReconnectTracker::default(),
                metrics,
                retries,
                mail,
                presence: Presence::default(),
                admitted: AtomicU64::new(0),
                addresses: Addresses::default(),
                rates_generation: AtomicU32::new(has_rates.into()),
                handshakes: Mutex::new(handshakes),
                http_places: HttpPlaces::default(),
                waiting: AtomicU64::new(0),
                stop: CancellationToken::new(),
                leaving: CancellationToken::new(),
                draining: CancellationToken::new(),
                drained: CancellationToken::new(),
                tasks: TaskTracker::new(),
                hub: OnceLock::new(),
            });
            core = Some(Arc::clone(&made));
            Arc::new(NodeService(made))
        });
        let Some(core) = core else { unreachable!("the transport makes its service before it returns") };
        if let Some(tls) = tls {
            transport.set_tls(&tls);
        }
        let hub = Hub::new(HubInner { core: Arc::clone(&core), transport });
        if let Some(keeper) = core.mail.keeper() {
            let found = core.recover(keeper).await.map_err(StartError::Inbox)?;
            if found > 0 {
                tracing::info!(messages = found, "the inbox has messages of an earlier run");
            }
            core.tasks.spawn(Arc::clone(&core).run_keeper());
            core.tasks.spawn(Arc::clone(&core).run_expiry());
        }
        core.tasks.spawn(Arc::clone(&core).run_mail_timers());
        core.tasks.spawn(Arc::clone(&core).run_alerts(alert_sink));
        core.log_failures(core.settings().failure_handlers.enable_logging);
        if core.authenticator.is_some() {
            core.tasks.spawn(Arc::clone(&core).run_expiry_of_tokens());
        }
        core.tasks.spawn(upkeep(Arc::clone(&core), core.stop.clone()));
        core.events.publish_with(EventType::HubStarted, || Event::HubStarted { node_id: core.node_id.clone() });
        Ok(hub)
    }
}

impl fmt::Debug for HubBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubBuilder").field("handlers", &self.handlers.keys()).finish_non_exhaustive()
    }
}

/// What is done every now and then.
async fn upkeep(core: Arc<Core>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(UPKEEP_INTERVAL) => {
                core.metrics.upkeep();
                core.ring.expire(now_ms());
            }
            () = stop.cancelled() => return,
        }
    }
}

/// Whether a message type belongs to the protocol.
pub(crate) fn is_reserved(message_type: &str) -> bool {
    message_type.starts_with("wsc.") || BUILT_IN.contains(&message_type)
}

/// Requests, replies, deliveries and notices of the protocol.
const BUILT_IN: [&str; 33] = [
    "ping",
    "heartbeat",
    "pong",
    "authenticate",
    "authenticated",
    "join_room",
    "room_joined",
    "leave_room",
    "room_left",
    "room_message",
    "direct_message",
    "create_room",
    "room_created",
    "delete_room",
    "room_deleted",
    "room_members",
    "message_status",
    "message_outcome",
    "ack",
    "nack",
    "accepted",
    "connected",
    "error",
    "gap",
    "kick_out",
    "force_offline",
    "token_expiring",
    "user_message",
    "broadcast",
    "system_notice",
    "connecting",
    "disconnected",
    "resume",
];

/// Where clients connect.
const WS_PATH: &str = "/ws";

const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// A hub that cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The settings are wrong; every problem is named.
    #[error("{0}")]
    Settings(#[source] Problems),
    /// The certificate or its key cannot be used.
    #[error("tls: {0}")]
    Tls(#[source] TlsError),
    /// The retry settings contradict each other.
    #[error("retries: {0}")]
    Retry(String),
    /// `storage.kind` names a store that the program has not given, see [`HubBuilder::inbox`].
    #[error("storage.kind asks for a store on disk, and none was given: open one, or set it to \"memory\" or \"none\"")]
    NoInbox,
    /// The store cannot be read.
    #[error("the inbox cannot be read")]
    Inbox(#[source] StoreError),
    /// The store of what must survive beside messages cannot be read.
    #[error("the records cannot be read")]
    Records(#[source] StoreError),
    /// `auth.enabled` is set, and the program has not given anything that checks tokens, see
    /// [`HubBuilder::authenticator`].
    #[error("auth.enabled is set, and this program has nothing to check tokens with (feature `jwt` of wsc-hub)")]
    NoAuthenticator,
    /// Webhooks cannot be posted as the settings ask.
    #[error("{0}")]
    Webhooks(String),
    /// The metrics cannot be set up.
    #[error("metrics: {0}")]
    Metrics(String),
}
