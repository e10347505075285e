//! The tasks that carry out fan-outs: a few for the whole transport, each serving its fan-outs in turn, a slice at
//! a time.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::service::FanoutReport;

/// Something with frames for many.
pub(crate) trait Flush: Send + Sync {
    /// Serves at most `budget` members. Returns how many it served and whether there is more to do.
    fn flush(&self, budget: usize) -> (usize, bool);
}

/// A handle to one of the tasks.
#[derive(Clone)]
pub(crate) struct Flusher(Arc<Shard>);

struct Shard {
    /// Fan-outs with something pending; each is here at most once.
    due: Mutex<VecDeque<Arc<dyn Flush>>>,
    wake: Notify,
    report: Arc<dyn Fn(FanoutReport) + Send + Sync>,
}

impl Flusher {
    pub(crate) fn schedule(&self, fanout: Arc<dyn Flush>) {
        self.0.due.lock().push_back(fanout);
        self.0.wake.notify_one();
    }

    pub(crate) fn report(&self, report: FanoutReport) {
        (self.0.report)(report);
    }

    async fn run(self, stop: CancellationToken) {
        let mut budget = SLICE;
        loop {
            let next = self.0.due.lock().pop_front();
            let Some(fanout) = next else {
                tokio::select! {
                    () = self.0.wake.notified() => continue,
                    () = stop.cancelled() => return,
                }
            };
            let (served, has_more) = fanout.flush(budget);
            if has_more {
                self.0.due.lock().push_back(fanout);
            }
            budget = budget.saturating_sub(served.max(1));
            if budget == 0 {
                budget = SLICE;
                tokio::task::yield_now().await;
            }
        }
    }
}

impl fmt::Debug for Flusher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flusher").finish_non_exhaustive()
    }
}

/// All flushers of a transport; fan-outs are spread over them.
pub(crate) struct Flushers {
    shards: Vec<Flusher>,
    next: AtomicUsize,
}

impl Flushers {
    /// Spawns one flusher for each core. They end with `stop`.
    pub(crate) fn spawn(
        report: &Arc<dyn Fn(FanoutReport) + Send + Sync>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Self {
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        let shards = (0..count)
            .map(|_| {
                let flusher =
                    Flusher(Arc::new(Shard { due: Mutex::default(), wake: Notify::new(), report: Arc::clone(report) }));
                tasks.spawn(flusher.clone().run(stop.clone()));
                flusher
            })
            .collect();
        Self { shards, next: AtomicUsize::new(0) }
    }

    /// The flusher of the next fan-out.
    pub(crate) fn next(&self) -> Flusher {
        self.shards[self.next.fetch_add(1, Relaxed) % self.shards.len()].clone()
    }
}

impl fmt::Debug for Flushers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flushers").field("shards", &self.shards.len()).finish_non_exhaustive()
    }
}

/// How many members are served before other tasks run: a large room must not hold up a ping. 32 instead of 256
/// halves the worst wait and costs about a tenth of the throughput.
const SLICE: usize = 64;
