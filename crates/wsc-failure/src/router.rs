//! From a failure to its handlers.

use std::{collections::VecDeque, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::{FutureExt, future};
use parking_lot::{Mutex, RwLock};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wsc_protocol::{FailureKind, FailureReason, UserType};

use crate::{
    FailureEvent, FailureHandlerRegistry, FailureRecord, FailureStats, QueueType, TimeoutType,
    registry::Handlers,
    stats::{CallEnd, Counters},
};

/// How a router behaves.
#[derive(Clone, Debug)]
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
    /// Taken at shutdown: without a sender the workers end once the queue is empty.
    queue: RwLock<Option<mpsc::Sender<FailureEvent>>>,
    recent: Mutex<VecDeque<FailureRecord>>,
    pool: Arc<Pool>,
    tasks: TaskTracker,
    kill: CancellationToken,
}

/// What the workers need. Not the queue's sender, so that they end with the last clone of the router.
#[derive(Debug)]
struct Pool {
    config: FailureRouterConfig,
    registry: FailureHandlerRegistry,
    counters: Counters,
}

impl FailureRouter {
    /// A router for the handlers of `registry`, also for those that are added later.
    ///
    /// # Panics
    ///
    /// Panics outside a Tokio runtime: the workers are spawned here.
    pub fn new(registry: FailureHandlerRegistry, config: FailureRouterConfig) -> Self {
        let (sender, receiver) = mpsc::channel(config.queue.max(1));
        // A Tokio lock, because a worker holds it while it waits for the next failure; that is how they take turns.
        let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
        let (tasks, kill) = (TaskTracker::new(), CancellationToken::new());
        let pool = Arc::new(Pool { config, registry, counters: Counters::default() });
        for _ in 0..pool.config.workers.max(1) {
            tasks.spawn(Arc::clone(&pool).work(Arc::clone(&receiver), kill.clone()));
        }
        let shared = Shared { queue: RwLock::new(Some(sender)), recent: Mutex::default(), pool, tasks, kill };
        Self { shared: Arc::new(shared) }
    }

    /// Takes note of a failure and has its handlers called. Never blocks, never waits.
    pub fn route(&self, event: FailureEvent) -> Routed {
        let shared = &*self.shared;
        let pool = &*shared.pool;
        pool.counters.failed(event.reason, event.user_type, 1);
        shared.remember(&event);
        if pool.registry.current().responsible(event.reason.kind()).is_none() {
            return Routed::NoHandler;
        }
        let queue = shared.queue.read();
        if queue.as_ref().is_some_and(|queue| queue.try_send(event).is_ok()) {
            Routed::Queued
        } else {
            pool.counters.not_handled(1);
            Routed::NotHandled
        }
    }

    /// Counts `times` failures that are not worth a call each, such as those of one plain room message.
    pub fn count(&self, reason: FailureReason, user_type: Option<UserType>, times: u64) {
        self.shared.pool.counters.failed(reason, user_type, times);
    }

    /// The handlers that are called.
    pub fn registry(&self) -> &FailureHandlerRegistry {
        &self.shared.pool.registry
    }

    /// The counters of this moment.
    pub fn stats(&self) -> FailureStats {
        let queued = self.shared.queue.read().as_ref().map_or(0, |queue| queue.max_capacity() - queue.capacity());
        self.shared.pool.counters.snapshot(queued)
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
        let limit = shared.pool.config.drain_timeout;
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
    fn remember(&self, event: &FailureEvent) {
        let limit = self.pool.config.recent;
        if limit == 0 {
            return;
        }
        let record = FailureRecord::from(event);
        let mut recent = self.recent.lock();
        if recent.len() >= limit {
            recent.pop_front();
        }
        recent.push_back(record);
    }
}

impl Pool {
    async fn work(
        self: Arc<Self>,
        queue: Arc<tokio::sync::Mutex<mpsc::Receiver<FailureEvent>>>,
        kill: CancellationToken,
    ) {
        loop {
            let next = queue.lock().await.recv().await;
            let Some(event) = next else {
                return;
            };
            let handled = kill.run_until_cancelled(self.handle(&event)).await;
            if handled.is_none() {
                self.counters.not_handled(1);
            }
        }
    }

    /// Calls every responsible handler, all at once: a slow one takes no time away from the others.
    async fn handle(&self, event: &FailureEvent) {
        let handlers = self.registry.current();
        let Some(kind) = handlers.responsible(event.reason.kind()) else {
            return;
        };
        future::join_all(calls(&handlers, kind, event).into_iter().map(|call| self.call(kind, event, call))).await;
    }

    async fn call(&self, kind: FailureKind, event: &FailureEvent, call: Call<'_>) {
        let started = Instant::now();
        let outcome = tokio::time::timeout(self.config.timeout, AssertUnwindSafe(call).catch_unwind()).await;
        let end = match outcome {
            Ok(Ok(())) => CallEnd::Done,
            Ok(Err(_)) => CallEnd::Panicked,
            Err(_) => CallEnd::TimedOut,
        };
        self.counters.called(kind, end, started.elapsed());
        if end != CallEnd::Done {
            let (handler, reason) = (kind.as_str(), event.reason.as_str());
            tracing::error!(handler, reason, message_id = %event.message.id, ?end, "a failure handler did not finish");
        }
    }
}

type Call<'a> = future::BoxFuture<'a, ()>;

/// The calls to make. Each is made inside its future, so that also a panic before the first await is that call's own.
fn calls<'a>(handlers: &'a Handlers, kind: FailureKind, event: &'a FailureEvent) -> Vec<Call<'a>> {
    let FailureEvent { message, recipient, reason, error, .. } = event;
    match (kind, QueueType::of(*reason), TimeoutType::of(*reason)) {
        (FailureKind::QueueFull, Some(queue), _) => handlers
            .queue_full
            .iter()
            .map(|h| async move { h.handle_queue_full(message, recipient, queue, error).await }.boxed())
            .collect(),
        (FailureKind::Timeout, _, Some(timeout)) => handlers
            .timeout
            .iter()
            .map(|h| async move { h.handle_timeout(message, recipient, timeout, event.duration, error).await }.boxed())
            .collect(),
        (FailureKind::UserOffline, ..) => handlers
            .user_offline
            .iter()
            .map(|h| async move { h.handle_user_offline(message, recipient, error).await }.boxed())
            .collect(),
        (FailureKind::ConnectionError, ..) => handlers
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
