//! The bus.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::RwLock;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wsc_protocol::{Event, EventType};

use crate::{
    EventFilter, EventObserver, EventStats, ObserverRun, Published, SubscriptionId, SubscriptionStats,
    observer::Observer,
    stats::{Counters, Meter},
    subscriber::Subscriber,
};

/// How a bus behaves.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EventBusConfig {
    /// How many events wait for one observer; what comes on top is dropped for it. Default 1,024, at least 1. More
    /// forgives longer stalls and holds more memory: a waiting event is shared by all observers.
    pub queue: usize,
    /// How long [`EventBus::shutdown`] waits for observers to work off their queues. Default 5 seconds.
    pub drain_timeout: Duration,
}

impl Default for EventBusConfig {
    fn default() -> Self {
        Self { queue: 1024, drain_timeout: Duration::from_secs(5) }
    }
}

/// Carries events from publishers to observers. Clones share one bus.
#[derive(Clone, Debug, Default)]
pub struct EventBus {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    config: EventBusConfig,
    /// The types that somebody listens to, so that a publisher need not take the lock to learn that nobody does.
    wanted: AtomicU64,
    list: RwLock<List>,
    meter: Arc<Meter>,
    next_id: AtomicU64,
    /// Owns every observer's task.
    tasks: TaskTracker,
    /// Ends the tasks that did not end by themselves.
    kill: CancellationToken,
}

/// Tasks hold no reference to it: when the last clone of the bus goes, so do the queues, and the tasks end.
#[derive(Debug, Default)]
struct List {
    subscribers: Vec<Subscriber>,
    is_closed: bool,
}

/// How a shutdown went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Every observer saw every event that was queued for it.
    Drained,
    /// The time was over first; what was left is counted as dropped.
    TimedOut,
}

impl EventBus {
    /// A bus without observers.
    pub fn new(config: EventBusConfig) -> Self {
        Self { shared: Arc::new(Shared { config, ..Shared::default() }) }
    }

    /// A bus without observers that tells `observe` about every run of an observer that ended. It runs on the tasks of
    /// the observers, so it must be quick; a panic in it is caught.
    pub fn observed(config: EventBusConfig, observe: impl Fn(ObserverRun) + Send + Sync + 'static) -> Self {
        let meter = Arc::new(Meter::observed(Box::new(observe)));
        Self { shared: Arc::new(Shared { config, meter, ..Shared::default() }) }
    }

    /// Has `observer` told about the events of `filter` from now on.
    ///
    /// After a [`shutdown`](Self::shutdown) nothing comes any more.
    ///
    /// # Panics
    ///
    /// Panics outside a Tokio runtime: the observer's task is spawned here.
    pub fn register(&self, filter: EventFilter, observer: impl EventObserver) -> SubscriptionId {
        self.add(filter, Observer::Async(Box::new(observer)))
    }

    /// As [`register`](Self::register), with room for `queue` waiting events instead of
    /// [`EventBusConfig::queue`], at least 1: for an observer that is quick, and that should lose nothing in a burst.
    ///
    /// # Panics
    ///
    /// Panics outside a Tokio runtime: the observer's task is spawned here.
    pub fn register_with_queue(
        &self,
        filter: EventFilter,
        observer: impl EventObserver,
        queue: usize,
    ) -> SubscriptionId {
        self.add_with_queue(filter, Observer::Async(Box::new(observer)), queue)
    }

    /// Has an observer told about the events of `filter` instead of those it asked for. False where it was not, or no
    /// longer, registered.
    ///
    /// What waits in its queue still reaches it, also with [`EventFilter::NONE`]. An event that is published while this
    /// runs is told by the old filter or by the new one, and never twice.
    pub fn set_filter(&self, id: SubscriptionId, filter: EventFilter) -> bool {
        let mut list = self.shared.list.write();
        let Some(subscriber) = list.subscribers.iter_mut().find(|s| s.id == id) else {
            return false;
        };
        subscriber.filter = filter;
        self.shared.note_wanted(&list);
        true
    }

    /// Has a function called with the events of `filter` from now on, on a task of its own.
    ///
    /// It must not block: it has a thread of the runtime for as long as it runs. Work that waits is a case for
    /// [`register`](Self::register).
    ///
    /// # Panics
    ///
    /// Panics outside a Tokio runtime: the observer's task is spawned here.
    pub fn register_sync(
        &self,
        filter: EventFilter,
        mut observer: impl FnMut(&Event) + Send + 'static,
    ) -> SubscriptionId {
        let observer = move |event: &Event| {
            observer(event);
            Ok(())
        };
        self.add(filter, Observer::Sync(Box::new(observer)))
    }

    pub(crate) fn add(&self, filter: EventFilter, observer: Observer) -> SubscriptionId {
        self.add_with_queue(filter, observer, self.shared.config.queue)
    }

    fn add_with_queue(&self, filter: EventFilter, observer: Observer, queue: usize) -> SubscriptionId {
        let shared = &*self.shared;
        let id = SubscriptionId(shared.next_id.fetch_add(1, Ordering::Relaxed));
        let mut list = shared.list.write();
        if list.is_closed {
            return id;
        }
        let (subscriber, task) =
            Subscriber::new(id, filter, observer, queue.max(1), Arc::clone(&shared.meter), shared.kill.clone());
        shared.tasks.spawn(task);
        list.subscribers.push(subscriber);
        shared.note_wanted(&list);
        id
    }

    /// Removes an observer. False where it was not, or no longer, registered.
    ///
    /// What waits in its queue is discarded. A run that has begun goes on; none begins after this has returned.
    pub fn unregister(&self, id: SubscriptionId) -> bool {
        let mut list = self.shared.list.write();
        let Some(position) = list.subscribers.iter().position(|s| s.id == id) else {
            return false;
        };
        let subscriber = list.subscribers.remove(position);
        subscriber.end();
        self.shared.note_wanted(&list);
        true
    }

    /// Whether anybody listens to events of this type. One relaxed load.
    pub fn wants(&self, event_type: EventType) -> bool {
        EventFilter::from_bits(self.shared.wanted.load(Ordering::Relaxed)).matches(event_type)
    }

    /// Builds and publishes an event of this type where somebody listens to it. Never blocks, never waits.
    ///
    /// The event that `build` gives decides who is told; it should be of the type that was named.
    pub fn publish_with(&self, event_type: EventType, build: impl FnOnce() -> Event) {
        if self.wants(event_type) {
            self.publish(build());
        }
    }

    /// Publishes an event. Never blocks, never waits. Events that one thread publishes reach an observer in that
    /// order.
    pub fn publish(&self, event: Event) {
        let event_type = event.event_type();
        if !self.wants(event_type) {
            return;
        }
        let published = Arc::new(Published::new(unix_ms(), event));
        let list = self.shared.list.read();
        for subscriber in list.subscribers.iter().filter(|s| s.filter.matches(event_type)) {
            if !subscriber.offer(&published) {
                self.counters().dropped(event_type);
            }
        }
    }

    /// What became of the events so far, one entry for each type, in declaration order.
    pub fn stats(&self) -> Vec<EventStats> {
        self.counters().snapshot()
    }

    /// The observers of this moment, oldest first.
    pub fn subscriptions(&self) -> Vec<SubscriptionStats> {
        self.shared.list.read().subscribers.iter().map(Subscriber::stats).collect()
    }

    fn counters(&self) -> &Counters {
        &self.shared.meter.counters
    }

    /// Takes no more events, lets observers work off their queues for at most
    /// [`drain_timeout`](EventBusConfig::drain_timeout), then ends those that are not done, and waits for every task.
    ///
    /// An observer that blocks its thread cannot be ended; it is left behind after the same time again. Must not be
    /// called from an observer, which would wait for itself.
    ///
    /// # Cancel safety
    ///
    /// When dropped, the bus stays closed and tasks end once their queues are empty; calling it again goes on waiting.
    pub async fn shutdown(&self) -> Shutdown {
        let shared = &*self.shared;
        {
            let mut list = shared.list.write();
            list.is_closed = true;
            // Dropping the queues' ends is what tells the tasks that nothing follows.
            list.subscribers.clear();
            shared.note_wanted(&list);
        }
        shared.tasks.close();
        let limit = shared.config.drain_timeout;
        if tokio::time::timeout(limit, shared.tasks.wait()).await.is_ok() {
            return Shutdown::Drained;
        }
        shared.kill.cancel();
        if tokio::time::timeout(limit, shared.tasks.wait()).await.is_err() {
            tracing::error!(left = shared.tasks.len(), "event observers block their threads and were left behind");
        }
        Shutdown::TimedOut
    }
}

impl Shared {
    /// Called with the list locked for writing, so that the last change is the one that stays.
    fn note_wanted(&self, list: &List) {
        let wanted = list.subscribers.iter().fold(EventFilter::NONE, |all, s| all.or(s.filter));
        self.wanted.store(wanted.bits(), Ordering::Relaxed);
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
