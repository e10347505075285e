//! From a failure to its handlers.

use std::{
    collections::VecDeque,
    fmt,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, future};
use parking_lot::{Mutex, RwLock};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wsc_protocol::{FailureReason, UserType};

use crate::{
    FailureEvent, FailureHandlerRegistry, FailureRecord, FailureStats, HandlerCall, HandlerType, QueueType,
    TimeoutType,
    registry::Handlers,
    stats::{CallEnd, Counters},
};

/// How a router behaves. All of it can be [changed](FailureRouter::reconfigure) while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FailureRouterConfig {
    /// How many failures are handled at a time. Default 4, at least 1.
    pub workers: usize,
    /// How many failures wait for a worker; what comes on top is counted and not handled. Default 1,000, at least 1.
    pub queue: usize,
    /// How long one handler may take for one failure. Default 5 seconds.
    pub timeout: Duration,
    /// How many of the newest failures are kept to look at. Default 1,000; 0 keeps none.
    pub recent: usize,
    /// How long [`FailureRouter::shutdown`] waits for what is queued. Default 5 seconds.
    pub drain_timeout: Duration,
}

impl Default for FailureRouterConfig {
    fn default() -> Self {
        Self {
            workers: 4,
            queue: 1000,
            timeout: Duration::from_secs(5),
            recent: 1000,
            drain_timeout: Duration::from_secs(5),
        }
    }
}

/// What became of a failure that was handed to the router. All of them are counted and recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routed {
    /// Handlers will be called.
    Queued,
    /// There is no handler for it.
    NoHandler,
    /// Too many wait already, or the router is shut down: no handler will be called.
    NotHandled,
}

/// How a shutdown went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Every queued failure was handled.
    Drained,
    /// The time was over first; what was left is counted as not handled.
    TimedOut,
}

/// Counts failures, keeps the newest ones and has handlers called. Clones share one router.
///
/// Where there is no handler for a failure it costs its counters and its record.
#[derive(Clone, Debug)]
pub struct FailureRouter {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Taken at shutdown: without a sender the workers end once the queue is empty. Its bound is the pool's count of
    /// what waits, because a channel's own could not be changed.
    queue: RwLock<Option<mpsc::UnboundedSender<FailureEvent>>>,
    receiver: Receiver,
    recent: Mutex<VecDeque<FailureRecord>>,
    /// What the workers look at before they take up the next failure.
    config: watch::Sender<FailureRouterConfig>,
    pool: Arc<Pool>,
    runtime: Handle,
    tasks: TaskTracker,
    kill: CancellationToken,
}

/// A Tokio lock, because a worker holds it while it waits for the next failure; that is how they take turns.
type Receiver = Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<FailureEvent>>>;

type Observe = Box<dyn Fn(HandlerCall) + Send + Sync>;

/// What the workers need. Not the queue's sender, so that they end with the last clone of the router.
struct Pool {
    registry: FailureHandlerRegistry,
    counters: Counters,
    observe: Option<Observe>,
    /// Failures that wait for a worker.
    queued: AtomicUsize,
    /// Workers that have not decided to end.
    workers: Mutex<usize>,
}

impl FailureRouter {
    /// A router for the handlers of `registry`, also for those that are added later.
    ///
    /// # Panics
    ///
    /// Panics outside a Tokio runtime: the workers are spawned here.
    pub fn new(registry: FailureHandlerRegistry, config: FailureRouterConfig) -> Self {
        Self::start(registry, config, None)
    }

    /// As [`new`](Self::new), and tells `observe` about every call of a handler that ended. It runs on the workers, so
    /// it must be quick; a panic in it is caught.
    ///
    /// # Panics
    ///
    /// Panics outside a Tokio runtime: the workers are spawned here.
    pub fn observed(
        registry: FailureHandlerRegistry,
        config: FailureRouterConfig,
        observe: impl Fn(HandlerCall) + Send + Sync + 'static,
    ) -> Self {
        Self::start(registry, config, Some(Box::new(observe)))
    }

    fn start(registry: FailureHandlerRegistry, config: FailureRouterConfig, observe: Option<Observe>) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        let pool = Pool {
            registry,
            counters: Counters::default(),
            observe,
            queued: AtomicUsize::new(0),
            workers: Mutex::new(0),
        };
        let shared = Shared {
            queue: RwLock::new(Some(sender)),
            receiver: Arc::new(tokio::sync::Mutex::new(receiver)),
            recent: Mutex::default(),
            config: watch::Sender::new(config),
            pool: Arc::new(pool),
            runtime: Handle::current(),
            tasks: TaskTracker::new(),
            kill: CancellationToken::new(),
        };
        shared.spawn_missing();
        Self { shared: Arc::new(shared) }
    }

    /// Takes note of a failure and has its handlers called. Never blocks, never waits.
    pub fn route(&self, event: FailureEvent) -> Routed {
        let shared = &*self.shared;
        let pool = &*shared.pool;
        pool.counters.failed(event.reason, event.user_type, 1);
        let (queue_limit, recent_limit) = {
            let config = shared.config.borrow();
            (config.queue.max(1), config.recent)
        };
        shared.remember(&event, recent_limit);
        let handlers = pool.registry.current();
        handlers.watch(event.reason, event.user_type, 1);
        if !handlers.is_handled(event.reason.kind()) {
            return Routed::NoHandler;
        }
        let queue = shared.queue.read();
        if queue.as_ref().is_some_and(|queue| pool.enter_queue(queue_limit) && queue.send(event).is_ok()) {
            Routed::Queued
        } else {
            pool.counters.not_handled(1);
            Routed::NotHandled
        }
    }

    /// Counts `times` failures that are not worth a call each, such as those of one plain room message. Watchers are told
    /// once.
    pub fn count(&self, reason: FailureReason, user_type: Option<UserType>, times: u64) {
        let pool = &self.shared.pool;
        pool.counters.failed(reason, user_type, times);
        pool.registry.current().watch(reason, user_type, times);
    }

    /// Lets other limits apply from now on.
    ///
    /// More workers start at once; of too many, each ends when it is done with what it does. What waits already stays
    /// queued under a smaller bound. A call that has begun keeps the time limit that it began with.
    pub fn reconfigure(&self, config: FailureRouterConfig) {
        let shared = &*self.shared;
        let recent = config.recent;
        // Sent also to nobody: after a shutdown there is no receiver left.
        if shared.config.send_replace(config).recent > recent {
            let mut kept = shared.recent.lock();
            let surplus = kept.len().saturating_sub(recent);
            kept.drain(..surplus);
            kept.shrink_to(recent);
        }
        shared.spawn_missing();
    }

    /// The limits of this moment.
    pub fn config(&self) -> FailureRouterConfig {
        self.shared.config.borrow().clone()
    }

    /// The handlers that are called.
    pub fn registry(&self) -> &FailureHandlerRegistry {
        &self.shared.pool.registry
    }

    /// The counters of this moment.
    pub fn stats(&self) -> FailureStats {
        let pool = &self.shared.pool;
        pool.counters.snapshot(pool.queued.load(Ordering::Relaxed))
    }

    /// The newest failures, newest first, at most `limit`.
    pub fn recent(&self, limit: usize) -> Vec<FailureRecord> {
        self.shared.recent.lock().iter().rev().take(limit).cloned().collect()
    }

    /// Takes no more failures for handlers, lets the workers do what is queued for at most
    /// [`drain_timeout`](FailureRouterConfig::drain_timeout), then drops what runs, and waits for every worker.
    ///
    /// A handler that blocks its thread cannot be ended; it is left behind after the same time again. Must not be
    /// called from a handler, which would wait for itself.
    ///
    /// # Cancel safety
    ///
    /// When dropped, the router stays closed and workers end once the queue is empty; calling it again goes on waiting.
    pub async fn shutdown(&self) -> Shutdown {
        let shared = &*self.shared;
        drop(shared.queue.write().take());
        shared.tasks.close();
        let limit = shared.config.borrow().drain_timeout;
        if tokio::time::timeout(limit, shared.tasks.wait()).await.is_ok() {
            return Shutdown::Drained;
        }
        shared.kill.cancel();
        if tokio::time::timeout(limit, shared.tasks.wait()).await.is_err() {
            tracing::error!(left = shared.tasks.len(), "failure handlers block their threads and were left behind");
        }
        Shutdown::TimedOut
    }
}

impl Shared {
    /// Starts as many workers as there are too few. None after a shutdown, whose workers are on their way out.
    fn spawn_missing(&self) {
        let queue = self.queue.read();
        if queue.is_none() {
            return;
        }
        let mut workers = self.pool.workers.lock();
        while *workers < wanted_workers(&self.config.borrow()) {
            *workers += 1;
            let work =
                Arc::clone(&self.pool).work(Arc::clone(&self.receiver), self.config.subscribe(), self.kill.clone());
            self.tasks.spawn_on(work, &self.runtime);
        }
    }

    fn remember(&self, event: &FailureEvent, limit: usize) {
        if limit == 0 {
            return;
        }
        let record = FailureRecord::from(event);
        let mut recent = self.recent.lock();
        while recent.len() >= limit {
            recent.pop_front();
        }
        recent.push_back(record);
    }
}

impl Pool {
    /// Takes a place in the queue, which `work` gives back. False where there is none.
    fn enter_queue(&self, limit: usize) -> bool {
        let enter = |queued: usize| (queued < limit).then_some(queued + 1);
        self.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter).is_ok()
    }

    async fn work(
        self: Arc<Self>,
        queue: Receiver,
        mut config: watch::Receiver<FailureRouterConfig>,
        kill: CancellationToken,
    ) {
        // The configuration's sender goes with the last clone of the router. The queue says so too, after its last
        // failure, so that only the queue ends a worker.
        let mut is_configurable = true;
        while !self.is_surplus(&config) {
            // Both are cancel safe: what waits for the lock or for a failure has taken none.
            let next = tokio::select! {
                biased;
                changed = config.changed(), if is_configurable => {
                    is_configurable = changed.is_ok();
                    continue;
                }
                next = async { queue.lock().await.recv().await } => next,
            };
            let Some(event) = next else {
                return;
            };
            self.queued.fetch_sub(1, Ordering::Relaxed);
            let timeout = config.borrow().timeout;
            let handled = kill.run_until_cancelled(self.handle(&event, timeout)).await;
            if handled.is_none() {
                self.counters.not_handled(1);
            }
        }
    }

    /// Whether the worker that asks has to end. Deciding and counting are one step, so that never more end than are
    /// too many.
    fn is_surplus(&self, config: &watch::Receiver<FailureRouterConfig>) -> bool {
        let mut workers = self.workers.lock();
        let is_surplus = *workers > wanted_workers(&config.borrow());
        if is_surplus {
            *workers -= 1;
        }
        is_surplus
    }

    /// Calls every handler that the failure concerns, all at once: a slow one takes no time away from the others.
    async fn handle(&self, event: &FailureEvent, timeout: Duration) {
        let handlers = self.registry.current();
        let of_kind = handlers
            .responsible(event.reason.kind())
            .into_iter()
            .flat_map(|t| calls(&handlers, t, event).into_iter().map(move |call| (t, call)));
        let any = handlers.any.iter().map(|h| {
            let call = async move { h.handle_failure(event).await }.boxed();
            (HandlerType::AnyFailure, call)
        });
        future::join_all(of_kind.chain(any).map(|(t, call)| self.call(t, event, call, timeout))).await;
    }

    async fn call(&self, handler_type: HandlerType, event: &FailureEvent, call: Call<'_>, timeout: Duration) {
        let started = Instant::now();
        let outcome = tokio::time::timeout(timeout, AssertUnwindSafe(call).catch_unwind()).await;
        let end = match outcome {
            Ok(Ok(())) => CallEnd::Done,
            Ok(Err(_)) => CallEnd::Panicked,
            Err(_) => CallEnd::TimedOut,
        };
        let call = HandlerCall { handler_type, reason: event.reason, end, duration: started.elapsed() };
        self.counters.called(call);
        if let Some(observe) = &self.observe {
            // A worker that an observer's panic ended would never be replaced.
            if std::panic::catch_unwind(AssertUnwindSafe(|| observe(call))).is_err() {
                tracing::error!("the observer of failure handlers panicked");
            }
        }
        if end != CallEnd::Done {
            let (handler, reason) = (handler_type.as_str(), event.reason.as_str());
            tracing::error!(handler, reason, message_id = %event.message.id, ?end, "a failure handler did not finish");
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("registry", &self.registry).field("queued", &self.queued).finish_non_exhaustive()
    }
}

fn wanted_workers(config: &FailureRouterConfig) -> usize {
    config.workers.max(1)
}

type Call<'a> = future::BoxFuture<'a, ()>;

/// The calls to make. Each is made inside its future, so that also a panic before the first await is that call's own.
fn calls<'a>(handlers: &'a Handlers, handler_type: HandlerType, event: &'a FailureEvent) -> Vec<Call<'a>> {
    let FailureEvent { message, recipient, reason, error, .. } = event;
    match (handler_type, QueueType::of(*reason), TimeoutType::of(*reason)) {
        (HandlerType::QueueFull, Some(queue), _) => handlers
            .queue_full
            .iter()
            .map(|h| async move { h.handle_queue_full(message, recipient, queue, error).await }.boxed())
            .collect(),
        (HandlerType::Timeout, _, Some(timeout)) => handlers
            .timeout
            .iter()
            .map(|h| async move { h.handle_timeout(message, recipient, timeout, event.duration, error).await }.boxed())
            .collect(),
        (HandlerType::UserOffline, ..) => handlers
            .user_offline
            .iter()
            .map(|h| async move { h.handle_user_offline(message, recipient, error).await }.boxed())
            .collect(),
        (HandlerType::ConnectionError, ..) => handlers
            .connection_error
            .iter()
            .map(|h| {
                async move { h.handle_connection_error(message, recipient, event.client_id.as_ref(), error).await }
                    .boxed()
            })
            .collect(),
        _ => handlers
            .send_failure
            .iter()
            .map(|h| async move { h.handle_send_failure(message, recipient, *reason, error).await }.boxed())
            .collect(),
    }
}
