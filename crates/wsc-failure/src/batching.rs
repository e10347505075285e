//! Hands failures on in batches.

use std::{
    fmt,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::FutureExt;
use parking_lot::RwLock;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{AnyFailureHandler, BatchSink, Breaker, BreakerError, BreakerState, FailureEvent, Shutdown, SinkError};

/// How a [`BatchingHandler`] collects.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BatchConfig {
    /// How many failures make a batch that is handed on at once. Default 100, at least 1.
    pub max: usize,
    /// How long the first failure of a batch waits for others. Default 1 second.
    pub interval: Duration,
    /// How many failures wait, beside the batch that is being made or handed on; what comes on top is dropped and
    /// counted. Default 1,000, at least 1. Each holds its message.
    pub queue: usize,
    /// How long the sink may take for a batch. Default 5 seconds.
    pub timeout: Duration,
    /// How long [`BatchingHandler::shutdown`] waits for what is left. Default 5 seconds.
    pub drain_timeout: Duration,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self {
            max: 100,
            interval: Duration::from_secs(1),
            queue: 1000,
            timeout: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(5),
        }
    }
}

/// Collects failures and hands them to a [`BatchSink`] when a batch is full or its time is over, whichever is first.
///
/// One task of its own does the handing on, behind a [`Breaker`], so that a slow sink takes no worker from the router.
/// Clones share one collection. Whoever makes it ends it with [`shutdown`](Self::shutdown), after the router's own;
/// when all clones are dropped instead, the task hands on what is left and ends.
#[derive(Clone)]
pub struct BatchingHandler {
    shared: Arc<Shared>,
}

struct Shared {
    /// Taken at shutdown, which is how the task learns that nothing follows.
    queue: RwLock<Option<mpsc::Sender<FailureEvent>>>,
    counters: Arc<Counters>,
    breaker: Breaker,
    drain_timeout: Duration,
    tasks: TaskTracker,
    kill: CancellationToken,
}

#[derive(Debug, Default)]
struct Counters {
    batches: AtomicU64,
    taken: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
}

/// What a [`BatchingHandler`] did so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BatchStats {
    /// Batches that the sink took.
    pub batches: u64,
    /// Failures that the sink took.
    pub taken: u64,
    /// Failures in batches that the sink did not take: errors, panics, the time limit, an open breaker, or the end
    /// came first.
    pub failed: u64,
    /// Failures that got into no batch: there was no room, or they came after the end.
    pub dropped: u64,
    /// Failures that wait now, without those of the batch being made.
    pub queued: usize,
    /// What would become of the next batch.
    pub breaker: BreakerState,
}

impl BatchingHandler {
    /// Collects for `sink`.
    ///
    /// # Panics
    ///
    /// Panics outside a Tokio runtime: the task is spawned here.
    pub fn new(config: BatchConfig, sink: impl BatchSink) -> Self {
        Self::with_breaker(config, sink, Breaker::default())
    }

    /// Collects for `sink`, behind this breaker.
    ///
    /// # Panics
    ///
    /// Panics outside a Tokio runtime: the task is spawned here.
    pub fn with_breaker(config: BatchConfig, sink: impl BatchSink, breaker: Breaker) -> Self {
        let (sender, receiver) = mpsc::channel(config.queue.max(1));
        let shared = Shared {
            queue: RwLock::new(Some(sender)),
            counters: Arc::default(),
            breaker: breaker.clone(),
            drain_timeout: config.drain_timeout,
            tasks: TaskTracker::new(),
            kill: CancellationToken::new(),
        };
        let batcher = Batcher { config, sink: Box::new(sink), breaker, counters: Arc::clone(&shared.counters) };
        shared.tasks.spawn(batcher.run(receiver, shared.kill.clone()));
        Self { shared: Arc::new(shared) }
    }

    /// The counters of this moment.
    pub fn stats(&self) -> BatchStats {
        let Shared { counters, breaker, queue, .. } = &*self.shared;
        BatchStats {
            batches: counters.batches.load(Relaxed),
            taken: counters.taken.load(Relaxed),
            failed: counters.failed.load(Relaxed),
            dropped: counters.dropped.load(Relaxed),
            queued: queue.read().as_ref().map_or(0, |queue| queue.max_capacity() - queue.capacity()),
            breaker: breaker.state(),
        }
    }

    /// Collects no more, hands on what is there for at most [`drain_timeout`](BatchConfig::drain_timeout), and waits
    /// for the task. What comes afterwards is counted as dropped.
    ///
    /// # Cancel safety
    ///
    /// When dropped, the handler stays closed and its task ends when it is done; calling it again goes on waiting.
    pub async fn shutdown(&self) -> Shutdown {
        let shared = &*self.shared;
        drop(shared.queue.write().take());
        shared.tasks.close();
        if timeout(shared.drain_timeout, shared.tasks.wait()).await.is_ok() {
            return Shutdown::Drained;
        }
        shared.kill.cancel();
        if timeout(shared.drain_timeout, shared.tasks.wait()).await.is_err() {
            tracing::error!("a sink of failures blocks its thread and was left behind");
        }
        Shutdown::TimedOut
    }
}

#[async_trait]
impl AnyFailureHandler for BatchingHandler {
    async fn handle_failure(&self, failure: &FailureEvent) {
        let queue = self.shared.queue.read();
        if queue.as_ref().is_none_or(|queue| queue.try_send(failure.clone()).is_err()) {
            self.shared.counters.dropped.fetch_add(1, Relaxed);
        }
    }
}

impl fmt::Debug for BatchingHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchingHandler").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

struct Batcher {
    config: BatchConfig,
    sink: Box<dyn BatchSink>,
    breaker: Breaker,
    counters: Arc<Counters>,
}

impl Batcher {
    async fn run(self, mut queue: mpsc::Receiver<FailureEvent>, kill: CancellationToken) {
        while let Some(batch) = self.collect(&mut queue).await {
            let size = batch.len() as u64;
            // Once killed, no batch is handed on any more, and each is counted.
            let handed_on = kill.run_until_cancelled(self.hand_on(batch)).await;
            if matches!(handed_on, Some(Ok(()))) {
                self.counters.batches.fetch_add(1, Relaxed);
                self.counters.taken.fetch_add(size, Relaxed);
            } else {
                self.counters.failed.fetch_add(size, Relaxed);
            }
            match handed_on {
                Some(Ok(())) => {}
                Some(Err(BreakerError::Open)) => tracing::debug!(size, "a batch of failures met an open breaker"),
                Some(Err(BreakerError::Failed(error))) => {
                    tracing::warn!(size, %error, "a batch of failures was not taken");
                }
                None => tracing::warn!(size, "the end came before a batch of failures was taken"),
            }
        }
    }

    /// The next batch; `None` when nothing follows.
    async fn collect(&self, queue: &mut mpsc::Receiver<FailureEvent>) -> Option<Vec<FailureEvent>> {
        let mut batch = vec![queue.recv().await?];
        let until = Instant::now() + self.config.interval;
        while batch.len() < self.config.max.max(1) {
            match timeout_at(until, queue.recv()).await {
                Ok(Some(failure)) => batch.push(failure),
                // Nothing follows, or the time is over: both end the batch.
                Ok(None) | Err(_) => break,
            }
        }
        Some(batch)
    }

    async fn hand_on(&self, batch: Vec<FailureEvent>) -> Result<(), BreakerError<SinkError>> {
        let take = AssertUnwindSafe(async { self.sink.take(batch).await }).catch_unwind();
        let limited = async {
            match timeout(self.config.timeout, take).await {
                Ok(Ok(taken)) => taken,
                Ok(Err(_)) => Err("the sink panicked".into()),
                Err(_) => Err("the sink took too long".into()),
            }
        };
        self.breaker.call(limited).await
    }
}
