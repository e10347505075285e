//! What the built-in handlers do when the router calls them.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test, also in a helper")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use serde_json::value::RawValue;
use tokio::{
    sync::{Semaphore, mpsc},
    time::{Instant, advance},
};
use uuid::Uuid;
use wsc_failure::{
    AlertConfig, AlertHandler, AnyFailureHandler, BatchConfig, BatchSink, BatchingHandler, Breaker, BreakerState,
    FailureAlert, FailureEvent, FailureHandlerRegistry, FailureRouter, FailureRouterConfig, FailureSink, HandlerType,
    Shutdown, SinkError, StoreHandler,
};
use wsc_protocol::{FailureReason, HubMessage, Id};

fn failure(n: u128, reason: FailureReason) -> FailureEvent {
    let message = Arc::new(HubMessage::new(Uuid::from_u128(n), "direct_message", "alice", RawValue::NULL, 5));
    FailureEvent::new(message, Id::new("bob").unwrap(), reason, "it broke")
}

fn router(registry: &FailureHandlerRegistry) -> FailureRouter {
    FailureRouter::new(registry.clone(), FailureRouterConfig::default())
}

/// A sink that can be down, and that says what it took.
struct Inbox {
    is_down: Arc<AtomicBool>,
    taken: mpsc::UnboundedSender<(u128, String, FailureReason)>,
}

#[async_trait]
impl FailureSink for Inbox {
    async fn store(&self, message: &Arc<HubMessage>, recipient: &Id, reason: FailureReason) -> Result<(), SinkError> {
        if self.is_down.load(Ordering::SeqCst) {
            return Err("the disk is full".into());
        }
        self.taken.send((message.id.as_u128(), recipient.to_string(), reason)).unwrap();
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_gets_what_is_worth_it_and_is_left_alone_while_it_is_down() {
    let is_down = Arc::new(AtomicBool::new(false));
    let (taken, mut messages) = mpsc::unbounded_channel();
    let store = StoreHandler::new(Inbox { is_down: Arc::clone(&is_down), taken });
    for (n, reason) in (0..).zip(FailureReason::ALL) {
        store.handle_failure(&failure(n, reason)).await;
    }
    let mut reasons = Vec::new();
    while let Ok((_, user, reason)) = messages.try_recv() {
        assert_eq!(user, "bob");
        reasons.push(reason);
    }
    assert!(reasons.contains(&FailureReason::UserOffline) && reasons.contains(&FailureReason::QueueFull));
    for never in [FailureReason::PendingFull, FailureReason::Permission, FailureReason::Rejected] {
        assert!(!reasons.contains(&never), "{never}");
    }
    let before = store.stats();
    assert_eq!((before.stored, before.failed, before.refused), (reasons.len() as u64, 0, 0));

    is_down.store(true, Ordering::SeqCst);
    for n in 0..100 {
        store.handle_failure(&failure(n, FailureReason::UserOffline)).await;
    }
    let down = store.stats();
    assert_eq!(down.breaker, BreakerState::Open);
    assert_eq!(down.failed + down.refused, 100);
    assert!(down.refused > 70, "{down:?}");

    is_down.store(false, Ordering::SeqCst);
    advance(Duration::from_secs(1)).await;
    store.handle_failure(&failure(7, FailureReason::UserOffline)).await;
    assert_eq!(messages.try_recv().unwrap().0, 7);
    assert_eq!(store.stats().breaker, BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_or_panics_has_not_stored() {
    struct Bad;
    #[async_trait]
    impl FailureSink for Bad {
        async fn store(&self, m: &Arc<HubMessage>, _: &Id, _: FailureReason) -> Result<(), SinkError> {
            assert!(m.id.as_u128() != 1, "as it always does");
            std::future::pending().await
        }
    }
    let registry = FailureHandlerRegistry::new();
    let store = StoreHandler::new(Bad);
    registry.add_any_failure_handler(store.clone());
    let router = router(&registry);
    for n in 0..4 {
        router.route(failure(n, FailureReason::UserOffline));
    }
    // The limit of a call, five seconds, is also that of the shutdown.
    advance(Duration::from_secs(5)).await;
    router.shutdown().await;
    assert_eq!((store.stats().stored, store.stats().failed), (0, 4));
    let calls = router.stats().handler(HandlerType::AnyFailure);
    assert_eq!((calls.panics, calls.timeouts), (1, 3));
}

#[tokio::test(start_paused = true)]
async fn too_many_failures_of_a_kind_raise_one_alert_through_the_router() {
    let registry = FailureHandlerRegistry::new();
    let (sender, mut alerts) = mpsc::unbounded_channel();
    let alert =
        AlertHandler::new(AlertConfig::default(), move |alert: &FailureAlert| sender.send(alert.clone()).unwrap());
    let id = registry.add_failure_watcher(alert);
    let router = router(&registry);
    for n in 0..500 {
        // Nobody handles them, and still they are heard of.
        router.route(failure(n, if n % 2 == 0 { FailureReason::QueueFull } else { FailureReason::UserOffline }));
    }
    router.count(FailureReason::ConnClosed, None, 99);
    router.count(FailureReason::ConnError, None, 1);
    assert!(!registry.remove_any_failure_handler(id) && registry.remove_failure_watcher(id));
    router.count(FailureReason::Timeout, None, 1000);
    let mut raised = Vec::new();
    while let Ok(alert) = alerts.try_recv() {
        assert_eq!(alert.count, 100);
        raised.push(alert.kind.as_str());
    }
    raised.sort_unstable();
    assert_eq!(raised, ["connection_error", "queue_full", "user_offline"]);
}

/// Says which failures came together; takes a batch only when it is given a permit.
struct Batches {
    permits: Arc<Semaphore>,
    taken: mpsc::UnboundedSender<Vec<u128>>,
}

#[async_trait]
impl BatchSink for Batches {
    async fn take(&self, batch: Vec<FailureEvent>) -> Result<(), SinkError> {
        self.permits.acquire().await?.forget();
        self.taken.send(batch.iter().map(|failure| failure.message.id.as_u128()).collect())?;
        Ok(())
    }
}

fn batching(
    permits: usize,
    change: impl FnOnce(&mut BatchConfig),
) -> (BatchingHandler, Arc<Semaphore>, mpsc::UnboundedReceiver<Vec<u128>>) {
    let mut config = BatchConfig::default();
    change(&mut config);
    let permits = Arc::new(Semaphore::new(permits));
    let (taken, batches) = mpsc::unbounded_channel();
    (BatchingHandler::new(config, Batches { permits: Arc::clone(&permits), taken }), permits, batches)
}

#[tokio::test(start_paused = true)]
async fn a_batch_goes_when_it_is_full_or_its_time_is_over() {
    let (handler, _permits, mut batches) = batching(100, |config| config.max = 3);
    let started = Instant::now();
    for n in 0..4 {
        handler.handle_failure(&failure(n, FailureReason::Unknown)).await;
    }
    assert_eq!(batches.recv().await.unwrap(), [0, 1, 2]);
    assert_eq!(started.elapsed(), Duration::ZERO);
    // The fourth waits for others, for a second.
    assert_eq!(batches.recv().await.unwrap(), [3]);
    assert_eq!(started.elapsed(), Duration::from_secs(1));
    let stats = handler.stats();
    assert_eq!((stats.batches, stats.taken, stats.failed, stats.dropped, stats.queued), (2, 4, 0, 0, 0));

    // What waits at the end goes at once.
    handler.handle_failure(&failure(4, FailureReason::Unknown)).await;
    assert_eq!(handler.shutdown().await, Shutdown::Drained);
    assert_eq!(started.elapsed(), Duration::from_secs(1));
    assert_eq!(batches.recv().await.unwrap(), [4]);
    handler.handle_failure(&failure(5, FailureReason::Unknown)).await;
    assert_eq!((handler.stats().taken, handler.stats().dropped), (5, 1));
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_not_taken_is_counted_and_no_more_than_the_queue_waits() {
    let (handler, permits, mut batches) = batching(0, |config| {
        config.max = 2;
        config.queue = 3;
    });
    for n in 0..2 {
        handler.handle_failure(&failure(n, FailureReason::Unknown)).await;
    }
    // The first batch hangs in the sink; then there is room for three.
    while handler.stats().queued > 0 {
        tokio::task::yield_now().await;
    }
    for n in 2..10 {
        handler.handle_failure(&failure(n, FailureReason::Unknown)).await;
    }
    let stats = handler.stats();
    assert_eq!((stats.queued, stats.dropped), (3, 5));
    // After its five seconds it has failed, and the next one is taken.
    advance(Duration::from_secs(5)).await;
    while handler.stats().failed == 0 {
        tokio::task::yield_now().await;
    }
    permits.add_permits(10);
    assert_eq!(batches.recv().await.unwrap(), [2, 3]);
    assert_eq!(handler.shutdown().await, Shutdown::Drained);
    let stats = handler.stats();
    assert_eq!((stats.batches, stats.taken, stats.failed, stats.dropped), (2, 3, 2, 5));
}

#[tokio::test(start_paused = true)]
async fn the_end_does_not_wait_for_a_sink_that_hangs() {
    let (handler, _permits, _batches) = batching(0, |config| {
        config.max = 10;
        config.timeout = Duration::from_secs(3600);
    });
    for n in 0..25 {
        handler.handle_failure(&failure(n, FailureReason::Unknown)).await;
    }
    let started = Instant::now();
    assert_eq!(handler.shutdown().await, Shutdown::TimedOut);
    assert_eq!(started.elapsed(), Duration::from_secs(5));
    let stats = handler.stats();
    assert_eq!((stats.taken, stats.failed, stats.dropped, stats.queued), (0, 25, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_batch_sink_that_fails_all_the_time_is_left_alone() {
    struct Down(mpsc::UnboundedSender<()>);
    #[async_trait]
    impl BatchSink for Down {
        async fn take(&self, _: Vec<FailureEvent>) -> Result<(), SinkError> {
            self.0.send(()).unwrap();
            panic!("as it always does")
        }
    }
    let (called, mut calls) = mpsc::unbounded_channel();
    let mut config = BatchConfig::default();
    config.max = 1;
    let handler = BatchingHandler::with_breaker(config, Down(called), Breaker::default());
    for n in 0..100 {
        handler.handle_failure(&failure(n, FailureReason::Unknown)).await;
    }
    handler.shutdown().await;
    let mut times = 0;
    while calls.try_recv().is_ok() {
        times += 1;
    }
    assert_eq!(times, 5);
    assert_eq!((handler.stats().failed, handler.stats().breaker), (100, BreakerState::Open));
}

#[tokio::test(start_paused = true)]
async fn what_is_left_is_handed_on_when_all_clones_are_dropped() {
    let (handler, _permits, mut batches) = batching(1, |_| {});
    handler.clone().handle_failure(&failure(1, FailureReason::Unknown)).await;
    drop(handler);
    assert_eq!(batches.recv().await.unwrap(), [1]);
    // The sink went with the task.
    assert_eq!(batches.recv().await, None);
}
