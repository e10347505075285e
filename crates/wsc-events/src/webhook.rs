//! Events posted to a URL: [`Webhooks`].

mod address;
mod client;
mod collect;
mod config;
mod entry;
#[cfg(feature = "webhook-client")]
mod http;
mod outbox;
mod pace;
mod post;
mod sign;
mod store;

use std::{
    borrow::Cow,
    fmt,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use wsc_protocol::{Event, TraceContext};

#[cfg(feature = "webhook-client")]
pub use self::http::HttpWebhookClient;
pub use self::{
    client::{WebhookAnswer, WebhookClient, WebhookError, WebhookRequest},
    config::{InvalidWebhook, WebhookConfig},
    outbox::{DeadLetter, DeadPage},
    pace::WebhookBreaker,
    store::{MemoryOutbox, OutboxChange, OutboxError, OutboxStore, Shelf},
};
use self::{
    collect::{Collector, Committer},
    config::Target,
    outbox::Outbox,
    pace::Pace,
    post::Poster,
};
use crate::{EventBus, EventFilter, SpanSink, SubscriptionId};

/// Posts the events of a bus to a URL, in order, until the receiver has them. Clones share one.
///
/// # What a receiver gets
///
/// `POST` requests with batches of events, as JSON:
///
/// ```json
/// {"id":"msg_0193…","node_id":"hub-1","events":[
///   {"id":"0193…","timestamp":1795209293015,"type":"client.connected","data":{"user_id":"alice"}},
///   {"id":"0193…","timestamp":1795209293768,"type":"room.joined","data":{"user_id":"alice"},"traceparent":"00-…"}
/// ]}
/// ```
///
/// They are signed as [Standard Webhooks](https://www.standardwebhooks.com) says: `webhook-id` is the id of the batch,
/// `webhook-timestamp` the time of this attempt in Unix seconds, `webhook-signature` one `v1,…` for each secret, with
/// spaces between them. A request whose events belong to a trace carries `traceparent`.
///
/// **Order.** Batches are posted one at a time, in the order in which their events were published; the next goes out when
/// the fate of the one before is known. So the events of one user come in order. An exception is what was
/// [replayed](Self::replay): it comes later.
///
/// **At least once.** A batch is in the [`OutboxStore`] before it is posted, and stays until it was taken. After a lost
/// answer or a crash it comes again, byte for byte, with the same `webhook-id`; only timestamp and signature are those of
/// the attempt. Receivers remember ids.
///
/// **Answers.**
///
/// | answer | what it means | what is done |
/// |---|---|---|
/// | 2xx | taken | |
/// | none (look-up, connection, TLS, time), 408, 425, 429, 503 | the receiver is away | waits, for up to [`max_age`](WebhookConfig::max_age) |
/// | other 5xx | the receiver failed on it | [`retries`](WebhookConfig::retries) more attempts, then a dead letter |
/// | anything else, redirects too | the receiver does not want it | a dead letter |
///
/// **Pace.** Before another attempt it waits a random part of 1, 2, 4 … 60 seconds, and at least as long as `Retry-After`
/// asks (seconds or a date, an hour at most). After five failures in a row a circuit breaker leaves the URL alone for 5
/// seconds, then one attempt shows whether the receiver is back; if not, the pause doubles, up to a minute. Over all
/// batches there is one retry each second and one more for every five first attempts; ten may be saved up. New
/// [settings](Self::reconfigure) are tried at once.
///
/// # What it costs
///
/// The publisher of an event waits neither for the network nor for the disk. Until a batch is committed, its events are
/// in memory, [`pending_bytes`](WebhookConfig::pending_bytes) at most; what does not fit is dropped and counted. Batches
/// that wait cost memory of a few words each. A crash loses what was published within about
/// [`batch_interval`](WebhookConfig::batch_interval) and a commit.
///
/// # Examples
///
/// ```no_run
/// use std::sync::Arc;
/// use wsc_events::{EventBus, HttpWebhookClient, MemoryOutbox, WebhookConfig, WebhookHooks, Webhooks};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let bus = EventBus::default();
/// let mut config = WebhookConfig::new("https://example.com/hook");
/// config.signing_secrets = vec!["whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD".into()];
/// let (store, client) = (Arc::new(MemoryOutbox::default()), Arc::new(HttpWebhookClient::new()));
/// let webhooks = Webhooks::start("hub-1", Some(config), store, client, &bus, WebhookHooks::default()).await?;
/// // …
/// bus.shutdown().await;
/// webhooks.shutdown(std::time::Duration::from_secs(5)).await;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Webhooks {
    inner: Arc<Inner>,
}

/// The tasks hold no reference to it: when the last clone goes, so do they.
struct Inner {
    bus: EventBus,
    subscription: SubscriptionId,
    collector: Arc<Collector>,
    outbox: Arc<Outbox>,
    target: watch::Sender<Option<Arc<Target>>>,
    pace: Arc<Mutex<Pace>>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Ends the poster where it does not end in time.
    kill: CancellationToken,
    _kill_on_drop: DropGuard,
}

impl Webhooks {
    /// Begins to collect the events of `bus`, and to post what waits in `store`.
    ///
    /// Without a `config` they are switched off: nothing is collected or posted, and what waits stays.
    ///
    /// # Errors
    ///
    /// The settings are invalid, or the store can't be read.
    ///
    /// # Panics
    ///
    /// Panics outside a Tokio runtime: tasks are spawned here.
    pub async fn start(
        node_id: &str,
        config: Option<WebhookConfig>,
        store: Arc<dyn OutboxStore>,
        client: Arc<dyn WebhookClient>,
        bus: &EventBus,
        hooks: WebhookHooks,
    ) -> Result<Self, WebhookStartError> {
        let target = config.map(Target::new).transpose()?.map(Arc::new);
        let config = target.as_ref().map(|target| &target.config);
        warn_if_unsigned(config);
        let limits = config.map_or_else(|| (&WebhookConfig::new("")).into(), outbox::Limits::from);
        let outbox = Arc::new(Outbox::open(store, limits).await?);
        let hooks = Arc::new(hooks);
        let collector = Arc::new(Collector::new(config, Arc::clone(&hooks)));
        let filter = config.map_or(EventFilter::NONE, |config| config.filter);
        let subscription = bus.register_with_queue(filter, Arc::clone(&collector), QUEUE);

        let (tasks, kill) = (TaskTracker::new(), CancellationToken::new());
        let stop = kill.child_token();
        let (target, receiver) = watch::channel(target);
        let pace = Arc::new(Mutex::new(Pace::new(Instant::now())));
        let collected = CancellationToken::new();
        let committer = Committer {
            node_id: node_id.into(),
            collector: Arc::clone(&collector),
            outbox: Arc::clone(&outbox),
            stop: stop.clone(),
            done: collected.clone(),
        };
        let poster = Poster {
            outbox: Arc::clone(&outbox),
            client,
            target: receiver,
            hooks,
            pace: Arc::clone(&pace),
            stop: stop.clone(),
            collected,
        };
        tasks.spawn(committer.run());
        tasks.spawn(kill.clone().run_until_cancelled_owned(poster.run()));
        Ok(Self {
            inner: Arc::new(Inner {
                bus: bus.clone(),
                subscription,
                collector,
                outbox,
                target,
                pace,
                tasks,
                stop,
                _kill_on_drop: kill.clone().drop_guard(),
                kill,
            }),
        })
    }

    /// Says what is wrong with settings, without using them.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong.
    pub fn check(config: &WebhookConfig) -> Result<(), InvalidWebhook> {
        Target::new(config.clone()).map(drop)
    }

    /// Uses other settings from now on; `None` switches off.
    ///
    /// A request that is on its way keeps the old ones, and its outcome counts. What waits goes to the new URL, and is
    /// tried there at once. Settings that [`check`](Self::check) refuses are not used. The same settings change nothing.
    pub fn reconfigure(&self, config: Option<WebhookConfig>) {
        let inner = &*self.inner;
        let is_same = match (&config, &*inner.target.borrow()) {
            (Some(new), Some(old)) => new.is_same(&old.config),
            (None, None) => true,
            _ => false,
        };
        if is_same {
            return;
        }
        let target = match config.map(Target::new).transpose() {
            Ok(target) => target.map(Arc::new),
            Err(error) => {
                tracing::error!(%error, "the webhook's new settings are invalid; the old ones stay");
                return;
            }
        };
        let config = target.as_ref().map(|target| &target.config);
        warn_if_unsigned(config);
        inner.bus.set_filter(inner.subscription, config.map_or(EventFilter::NONE, |config| config.filter));
        if let Some(config) = config {
            inner.collector.configure(config);
            inner.outbox.set_limits(config.into());
        }
        inner.target.send_replace(target);
    }

    /// Batches that were given up, oldest first: those after the page that ended with the cursor `after`, `limit` at
    /// most.
    ///
    /// # Errors
    ///
    /// The store can't be read, or `after` is no cursor.
    pub async fn dead(&self, after: Option<&str>, limit: usize) -> Result<DeadPage, OutboxError> {
        self.inner.outbox.dead(after, limit).await
    }

    /// Has a dead letter posted again, with the same `webhook-id`. It is put at the end of the queue: receivers get it
    /// after what was published since. False where there is no dead letter of this id.
    ///
    /// # Errors
    ///
    /// The store failed, and the dead letter is where it was; or the webhooks were shut down.
    ///
    /// # Cancel safety
    ///
    /// When dropped, it is done nevertheless.
    pub async fn replay(&self, id: &str) -> Result<bool, OutboxError> {
        let inner = &*self.inner;
        if inner.stop.is_cancelled() {
            return Err(OutboxError::Closed);
        }
        let (outbox, id) = (Arc::clone(&inner.outbox), id.to_owned());
        // A task of its own: a caller that goes away must not leave memory and store apart.
        let replayed = inner.tasks.spawn(async move { outbox.replay(&id).await });
        replayed.await.unwrap_or(Err(OutboxError::Closed))
    }

    /// How things are.
    pub fn stats(&self) -> WebhookStats {
        let inner = &*self.inner;
        let gauges = &inner.outbox.gauges;
        let not_queued =
            inner.bus.subscriptions().into_iter().find(|s| s.id == inner.subscription).map_or(0, |s| s.drops);
        WebhookStats {
            is_on: inner.target.borrow().is_some(),
            waiting: gauges.waiting.load(Relaxed),
            waiting_events: gauges.waiting_events.load(Relaxed),
            waiting_bytes: gauges.waiting_bytes.load(Relaxed),
            dead: gauges.dead.load(Relaxed),
            dead_total: gauges.dead_total.load(Relaxed),
            dead_forgotten: gauges.forgotten.load(Relaxed),
            events_dropped: inner.collector.dropped() + not_queued,
            breaker: inner.pace.lock().breaker(Instant::now()),
        }
    }

    /// Commits what was collected, posts what waits for up to `patience`, and ends. What could not be posted stays in
    /// the store. Where the receiver is known to be away, nothing is tried; else the first failure ends it.
    ///
    /// To be called when the bus was shut down: what still waits in its queues would be lost.
    ///
    /// # Cancel safety
    ///
    /// When dropped, the tasks end by themselves; calling it again goes on waiting.
    pub async fn shutdown(&self, patience: Duration) {
        let inner = &*self.inner;
        inner.bus.unregister(inner.subscription);
        inner.stop.cancel();
        inner.tasks.close();
        if timeout(patience, inner.tasks.wait()).await.is_ok() {
            return;
        }
        inner.kill.cancel();
        // The poster ends at once; what was collected is worth waiting for.
        if timeout(COMMIT_PATIENCE, inner.tasks.wait()).await.is_err() {
            tracing::error!("the webhook outbox did not take what was collected in time");
        }
    }
}

impl fmt::Debug for Webhooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhooks").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// Why webhooks could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WebhookStartError {
    /// The settings can't be used.
    #[error("the webhook is not usable: {0}")]
    Invalid(#[from] InvalidWebhook),
    /// What waits could not be read.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
}

/// How webhooks are doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct WebhookStats {
    /// Whether events are collected and posted.
    pub is_on: bool,
    /// Batches that wait in the outbox, with the one that is being posted.
    pub waiting: u64,
    /// Events in them.
    pub waiting_events: u64,
    /// Bytes that they take.
    pub waiting_bytes: u64,
    /// Dead letters.
    pub dead: u64,
    /// Batches that became dead letters since the start.
    pub dead_total: u64,
    /// Dead letters that were forgotten since the start, because there were too many.
    pub dead_forgotten: u64,
    /// Events that were dropped since the start, because they came faster than they could be kept.
    pub events_dropped: u64,
    /// The breaker of the URL.
    pub breaker: WebhookBreaker,
}

/// One request that is over, for metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WebhookOutcome {
    /// The status of the answer as text, such as `200`; else [`timeout`, `connect`, `refused_address` or
    /// `broken`](WebhookError::as_str).
    pub status: Cow<'static, str>,
    /// How long it took.
    pub latency: Duration,
}

/// What is called while webhooks are posted. By default nothing is done. All of it must be quick and must not block.
pub struct WebhookHooks {
    /// Told about each request that is over.
    pub on_request: Box<dyn Fn(WebhookOutcome) + Send + Sync>,
    /// Says which trace an event belongs to.
    pub trace_of: Box<TraceOf>,
    /// Takes a span for each request and each trace that is recorded.
    pub spans: Option<Arc<dyn SpanSink>>,
}

/// Says which trace an event belongs to; `None` where it belongs to none.
pub type TraceOf = dyn Fn(&Event) -> Option<TraceContext> + Send + Sync;

impl Default for WebhookHooks {
    fn default() -> Self {
        Self { on_request: Box::new(|_| ()), trace_of: Box::new(|_| None), spans: None }
    }
}

impl fmt::Debug for WebhookHooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookHooks").finish_non_exhaustive()
    }
}

fn warn_if_unsigned(config: Option<&WebhookConfig>) {
    if config.is_some_and(|config| config.signing_secrets.is_empty()) {
        tracing::warn!("webhook requests are not signed: there is no signing secret");
    }
}

/// Events that may wait for the collector, which is quick: enough for a burst while its thread does something else.
const QUEUE: usize = 65_536;

/// How long a shutdown waits for the store on top of what it was given.
const COMMIT_PATIENCE: Duration = Duration::from_secs(5);
