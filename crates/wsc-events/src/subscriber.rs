//! One observer's queue and task.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    EventFilter, ObserverRun, Published, SubscriptionStats,
    observer::Observer,
    stats::{Meter, nanos},
};

/// Names one registration for as long as the bus lives; ids are not reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubscriptionId(pub(crate) u64);

/// The bus's end of a subscription. Dropping it lets the task end once it has worked off its queue.
#[derive(Debug)]
pub(crate) struct Subscriber {
    pub(crate) id: SubscriptionId,
    pub(crate) filter: EventFilter,
    queue: mpsc::Sender<Arc<Published>>,
    shared: Arc<Shared>,
}

/// What both ends see.
#[derive(Debug, Default)]
struct Shared {
    turn: Turn,
    executions: AtomicU64,
    errors: AtomicU64,
    drops: AtomicU64,
    nanos: AtomicU64,
}

impl Subscriber {
    /// A subscriber and the loop that feeds its observer; the caller spawns it.
    pub(crate) fn new(
        id: SubscriptionId,
        filter: EventFilter,
        observer: Observer,
        queue: usize,
        meter: Arc<Meter>,
        kill: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (sender, receiver) = mpsc::channel(queue);
        let shared = Arc::new(Shared::default());
        let worker = Worker { observer, shared: Arc::clone(&shared), meter };
        (Self { id, filter, queue: sender, shared }, worker.run(receiver, kill))
    }

    /// Queues the event. False where there was no room: it is counted as dropped.
    pub(crate) fn offer(&self, event: &Arc<Published>) -> bool {
        let taken = self.queue.try_send(Arc::clone(event)).is_ok();
        if !taken {
            self.shared.drops.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }

    /// No run of the observer begins after this.
    pub(crate) fn end(&self) {
        self.shared.turn.end();
    }

    pub(crate) fn stats(&self) -> SubscriptionStats {
        SubscriptionStats {
            id: self.id,
            filter: self.filter,
            queued: self.queue.max_capacity() - self.queue.capacity(),
            executions: self.shared.executions.load(Ordering::Relaxed),
            errors: self.shared.errors.load(Ordering::Relaxed),
            drops: self.shared.drops.load(Ordering::Relaxed),
            duration: Duration::from_nanos(self.shared.nanos.load(Ordering::Relaxed)),
        }
    }
}

/// Whether the observer runs, and whether it may run again. Both in one word, so that there is no moment between
/// "may I?" and "I run" in which `unregister` could return.
#[derive(Debug, Default)]
struct Turn(AtomicU8);

impl Turn {
    const RUNNING: u8 = 1;
    const ENDED: u8 = 2;

    fn begin(&self) -> bool {
        self.0.compare_exchange(0, Self::RUNNING, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn finish(&self) {
        self.0.fetch_and(!Self::RUNNING, Ordering::AcqRel);
    }

    fn end(&self) {
        self.0.fetch_or(Self::ENDED, Ordering::AcqRel);
    }
}

struct Worker {
    observer: Observer,
    shared: Arc<Shared>,
    meter: Arc<Meter>,
}

impl Worker {
    async fn run(mut self, mut queue: mpsc::Receiver<Arc<Published>>, kill: CancellationToken) {
        while let Some(published) = queue.recv().await {
            let event_type = published.event.event_type();
            if !self.shared.turn.begin() {
                return;
            }
            let started = Instant::now();
            let run = AssertUnwindSafe(self.observer.call(&published)).catch_unwind();
            // The observer first: one that is done at once is run even while the bus goes down.
            let outcome = tokio::select! {
                biased;
                outcome = run => Some(outcome),
                () = kill.cancelled() => None,
            };
            self.shared.turn.finish();
            let Some(outcome) = outcome else {
                self.give_up(&published, &mut queue);
                return;
            };
            let run = ObserverRun { event_type, duration: started.elapsed(), is_error: !matches!(outcome, Ok(Ok(()))) };
            self.shared.executions.fetch_add(1, Ordering::Relaxed);
            self.shared.errors.fetch_add(run.is_error.into(), Ordering::Relaxed);
            self.shared.nanos.fetch_add(nanos(run.duration), Ordering::Relaxed);
            self.meter.ran(run);
            // The fields of go-wsc's callback records; the duration is in milliseconds.
            let (event, duration) = (event_type.as_str(), run.duration.as_secs_f64() * 1e3);
            match outcome {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(event, duration, error, "an event observer failed"),
                Err(panic) => {
                    let error = panic_text(&*panic);
                    tracing::error!(event, duration, error, "an event observer panicked");
                }
            }
        }
    }

    /// The bus waits no longer: what was begun and what still waits is dropped.
    fn give_up(&self, running: &Published, queue: &mut mpsc::Receiver<Arc<Published>>) {
        self.meter.counters.dropped(running.event.event_type());
        let mut dropped = 1;
        while let Ok(published) = queue.try_recv() {
            self.meter.counters.dropped(published.event.event_type());
            dropped += 1;
        }
        self.shared.drops.fetch_add(dropped, Ordering::Relaxed);
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "no text"
    }
}
