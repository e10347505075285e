//! What handlers and the node may rely on.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test, also in a helper")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use serde_json::value::RawValue;
use tokio::sync::{Semaphore, mpsc};
use uuid::Uuid;
use wsc_failure::{
    AnyFailureHandler, CallEnd, ConnectionErrorHandler, FailureEvent, FailureHandlerRegistry, FailureRouter,
    FailureRouterConfig, FailureWatcher, HandlerType, LoggingHandler, QueueFullHandler, QueueType, Routed,
    SendFailureHandler, Shutdown, TimeoutHandler, TimeoutType, UserOfflineHandler,
};
use wsc_protocol::{ClientId, FailureInfo, FailureKind, FailureReason, HubMessage, Id, UserType};

fn message(n: u128) -> Arc<HubMessage> {
    Arc::new(HubMessage::new(Uuid::from_u128(n), "direct_message", "alice", RawValue::NULL, 5))
}

fn failure(n: u128, reason: FailureReason) -> FailureEvent {
    FailureEvent::new(message(n), Id::new("bob").unwrap(), reason, "it broke")
}

/// Writes down every call as text.
#[derive(Clone)]
struct Notes(mpsc::UnboundedSender<String>);

impl Notes {
    fn new() -> (Self, mpsc::UnboundedReceiver<String>) {
        let (sender, calls) = mpsc::unbounded_channel();
        (Self(sender), calls)
    }

    fn note(&self, message: &HubMessage, call: &str) {
        self.0.send(format!("{} {call}", message.id.as_u128())).unwrap();
    }
}

#[async_trait]
impl SendFailureHandler for Notes {
    async fn handle_send_failure(&self, message: &Arc<HubMessage>, recipient: &Id, reason: FailureReason, error: &str) {
        self.note(message, &format!("send {recipient} {reason} {error}"));
    }
}

#[async_trait]
impl QueueFullHandler for Notes {
    async fn handle_queue_full(&self, message: &Arc<HubMessage>, recipient: &Id, queue_type: QueueType, error: &str) {
        self.note(message, &format!("queue {recipient} {queue_type} {error}"));
    }
}

#[async_trait]
impl UserOfflineHandler for Notes {
    async fn handle_user_offline(&self, message: &Arc<HubMessage>, user_id: &Id, error: &str) {
        self.note(message, &format!("offline {user_id} {error}"));
    }
}

#[async_trait]
impl ConnectionErrorHandler for Notes {
    async fn handle_connection_error(
        &self,
        message: &Arc<HubMessage>,
        recipient: &Id,
        client_id: Option<&ClientId>,
        error: &str,
    ) {
        self.note(message, &format!("connection {recipient} {client_id:?} {error}"));
    }
}

#[async_trait]
impl TimeoutHandler for Notes {
    async fn handle_timeout(
        &self,
        message: &Arc<HubMessage>,
        recipient: &Id,
        timeout_type: TimeoutType,
        duration: Duration,
        error: &str,
    ) {
        self.note(message, &format!("timeout {recipient} {timeout_type} {duration:?} {error}"));
    }
}

/// Holds every call until it gets a permit.
#[derive(Clone)]
struct Held {
    permits: Arc<Semaphore>,
    running: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Held {
    fn new() -> Self {
        Self { permits: Arc::new(Semaphore::new(0)), running: Arc::default(), most: Arc::default() }
    }
}

#[async_trait]
impl SendFailureHandler for Held {
    async fn handle_send_failure(&self, _: &Arc<HubMessage>, _: &Id, _: FailureReason, _: &str) {
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(running, Ordering::SeqCst);
        self.permits.acquire().await.unwrap().forget();
        self.running.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Panics;

#[async_trait]
impl SendFailureHandler for Panics {
    async fn handle_send_failure(&self, _: &Arc<HubMessage>, _: &Id, _: FailureReason, _: &str) {
        panic!("as it always does");
    }
}

fn router(registry: &FailureHandlerRegistry, change: impl FnOnce(&mut FailureRouterConfig)) -> FailureRouter {
    let mut config = FailureRouterConfig::default();
    change(&mut config);
    FailureRouter::new(registry.clone(), config)
}

async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

async fn all(mut calls: mpsc::UnboundedReceiver<String>) -> Vec<String> {
    let mut texts = Vec::new();
    calls.close();
    while let Some(call) = calls.recv().await {
        texts.push(call);
    }
    texts
}

#[tokio::test]
async fn each_kind_goes_to_its_handlers_with_its_own_words() {
    let registry = FailureHandlerRegistry::new();
    let (notes, calls) = Notes::new();
    registry.add_send_failure_handler(notes.clone());
    registry.add_queue_full_handler(notes.clone());
    registry.add_user_offline_handler(notes.clone());
    registry.add_connection_error_handler(notes.clone());
    registry.add_timeout_handler(notes);
    let router = router(&registry, |config| config.workers = 1);
    let client = ClientId::given("tab-1").unwrap();
    for event in [
        failure(1, FailureReason::QueueFull),
        failure(2, FailureReason::BroadcastFull),
        failure(3, FailureReason::UserOffline),
        failure(4, FailureReason::ConnClosed).with_client(client, UserType::Agent),
        failure(5, FailureReason::AckTimeout).after(3, Duration::from_secs(7)),
        failure(6, FailureReason::Permission),
    ] {
        assert_eq!(router.route(event), Routed::Queued);
    }
    assert_eq!(router.shutdown().await, Shutdown::Drained);
    assert_eq!(
        all(calls).await,
        [
            "1 queue bob connection it broke",
            "2 queue bob room it broke",
            "3 offline bob it broke",
            "4 connection bob Some(\"tab-1\") it broke",
            "5 timeout bob ack_timeout 7s it broke",
            "6 send bob permission it broke",
        ]
    );
}

#[tokio::test]
async fn general_handlers_see_what_no_other_is_there_for() {
    let registry = FailureHandlerRegistry::new();
    let (general, seen) = Notes::new();
    let (offline, _own) = Notes::new();
    registry.add_send_failure_handler(general);
    let id = registry.add_user_offline_handler(offline);
    let router = router(&registry, |config| config.workers = 1);

    router.route(failure(1, FailureReason::UserOffline));
    router.route(failure(2, FailureReason::QueueFull));
    settle().await;
    assert!(registry.remove(id));
    assert!(!registry.remove(id));
    router.route(failure(3, FailureReason::UserOffline));
    router.shutdown().await;

    assert_eq!(all(seen).await, ["2 send bob queue_full it broke", "3 send bob user_offline it broke"]);
    assert_eq!(router.stats().handler(FailureKind::UserOffline).calls, 1);
    assert_eq!(router.stats().handler(FailureKind::Other).calls, 2);
}

#[tokio::test]
async fn any_number_of_handlers_is_called() {
    let registry = FailureHandlerRegistry::new();
    let (notes, calls) = Notes::new();
    let ids: Vec<_> = (0..3).map(|_| registry.add_send_failure_handler(Arc::new(notes.clone()))).collect();
    drop(notes);
    let router = router(&registry, |_| {});
    router.route(failure(1, FailureReason::Unknown));
    settle().await;
    registry.remove(ids[1]);
    assert_eq!(registry.count(FailureKind::Other), 2);
    router.route(failure(2, FailureReason::Unknown));
    router.shutdown().await;
    assert_eq!(all(calls).await.len(), 5);
}

#[tokio::test]
async fn without_handlers_failures_are_counted_and_recorded() {
    let router = router(&FailureHandlerRegistry::new(), |_| {});
    assert_eq!(router.route(failure(1, FailureReason::UserOffline)), Routed::NoHandler);
    let client = ClientId::given("c").unwrap();
    assert_eq!(
        router.route(failure(2, FailureReason::QueueFull).with_client(client, UserType::Vip)),
        Routed::NoHandler
    );
    router.count(FailureReason::BroadcastFull, None, 10);

    let stats = router.stats();
    assert_eq!(stats.total(), 12);
    assert_eq!(stats.of_kind(FailureKind::QueueFull), 11);
    assert_eq!(stats.of_reason(FailureReason::UserOffline), 1);
    assert_eq!((stats.of_user_type(Some(UserType::Vip)), stats.of_user_type(None)), (1, 11));
    assert_eq!(stats.not_handled(), 0);

    let recent = router.recent(10);
    assert_eq!(recent.iter().map(|r| r.message_id.as_u128()).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(recent[1].reason, FailureReason::UserOffline);
}

#[tokio::test]
async fn the_newest_failures_are_kept() {
    let router = router(&FailureHandlerRegistry::new(), |_| {});
    for n in 0..1500 {
        router.route(failure(n, FailureReason::Unknown));
    }
    let recent = router.recent(usize::MAX);
    assert_eq!(recent.len(), 1000);
    assert_eq!((recent[0].message_id.as_u128(), recent[999].message_id.as_u128()), (1499, 500));
    assert_eq!(router.recent(3).len(), 3);
}

#[tokio::test]
async fn a_full_queue_never_holds_the_caller_up() {
    let registry = FailureHandlerRegistry::new();
    let held = Held::new();
    registry.add_send_failure_handler(held.clone());
    let router = router(&registry, |config| {
        config.workers = 2;
        config.queue = 3;
    });
    for n in 0..2 {
        assert_eq!(router.route(failure(n, FailureReason::Unknown)), Routed::Queued);
    }
    settle().await;
    let routed: Vec<_> = (2..7).map(|n| router.route(failure(n, FailureReason::Unknown))).collect();
    assert_eq!(routed, [Routed::Queued, Routed::Queued, Routed::Queued, Routed::NotHandled, Routed::NotHandled]);
    let stats = router.stats();
    assert_eq!((stats.total(), stats.queued(), stats.not_handled()), (7, 3, 2));

    held.permits.add_permits(100);
    assert_eq!(router.shutdown().await, Shutdown::Drained);
    assert_eq!(router.stats().handler(FailureKind::Other).calls, 5);
    assert_eq!(held.most.load(Ordering::SeqCst), 2);
    // After the end nothing is handled, and all is counted.
    assert_eq!(router.route(failure(8, FailureReason::Unknown)), Routed::NotHandled);
    assert_eq!(router.stats().total(), 8);
}

#[tokio::test]
async fn a_panic_hurts_nobody() {
    let registry = FailureHandlerRegistry::new();
    let (notes, calls) = Notes::new();
    registry.add_send_failure_handler(Panics);
    registry.add_send_failure_handler(notes);
    let router = router(&registry, |config| config.workers = 1);
    for n in 0..3 {
        router.route(failure(n, FailureReason::Unknown));
    }
    assert_eq!(router.shutdown().await, Shutdown::Drained);
    assert_eq!(all(calls).await.len(), 3);
    let handlers = router.stats().handler(FailureKind::Other);
    assert_eq!((handlers.calls, handlers.panics, handlers.timeouts), (6, 3, 0));
}

#[tokio::test(start_paused = true)]
async fn a_call_ends_at_its_time_limit() {
    let registry = FailureHandlerRegistry::new();
    let (notes, mut calls) = Notes::new();
    registry.add_send_failure_handler(Held::new());
    registry.add_send_failure_handler(notes);
    let router = router(&registry, |config| config.workers = 1);
    let started = tokio::time::Instant::now();
    router.route(failure(1, FailureReason::Unknown));
    router.route(failure(2, FailureReason::Unknown));
    // The other handler of the same failure does not wait for the stuck one.
    assert!(calls.recv().await.unwrap().starts_with("1 "));
    assert_eq!(started.elapsed(), Duration::ZERO);
    // The next failure waits for the only worker, no longer than the limit.
    assert!(calls.recv().await.unwrap().starts_with("2 "));
    assert_eq!(started.elapsed().as_secs(), 5);
    router.shutdown().await;
    let handlers = router.stats().handler(FailureKind::Other);
    assert_eq!((handlers.calls, handlers.timeouts), (4, 2));
    assert_eq!(handlers.duration.as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn shutdown_waits_no_longer_than_it_should() {
    let registry = FailureHandlerRegistry::new();
    registry.add_send_failure_handler(Held::new());
    let router = router(&registry, |config| {
        config.timeout = Duration::from_secs(3600);
        config.workers = 2;
    });
    for n in 0..5 {
        router.route(failure(n, FailureReason::Unknown));
    }
    let started = tokio::time::Instant::now();
    assert_eq!(router.shutdown().await, Shutdown::TimedOut);
    assert_eq!(started.elapsed().as_secs(), 5);
    assert_eq!(router.stats().not_handled(), 5);
}

#[tokio::test]
async fn the_logging_handler_stands_beside_all_others() {
    let registry = FailureHandlerRegistry::new();
    let id = LoggingHandler::add_to(&registry);
    let (general, seen) = Notes::new();
    registry.add_send_failure_handler(general);
    let router = router(&registry, |_| {});
    for reason in FailureReason::ALL {
        assert_eq!(router.route(failure(1, reason)), Routed::Queued);
    }
    router.shutdown().await;
    let all = FailureReason::ALL.len() as u64;
    assert_eq!(router.stats().handler(HandlerType::AnyFailure).calls, all);
    // The general handler is called as if the built-in one were not there.
    assert_eq!(seen.len() as u64, all);
    assert!(registry.remove(id));
}

#[tokio::test]
async fn workers_end_with_the_router() {
    let registry = FailureHandlerRegistry::new();
    let (notes, mut calls) = Notes::new();
    registry.add_send_failure_handler(notes);
    let router = router(&registry, |_| {});
    router.route(failure(1, FailureReason::Unknown));
    drop(router);
    drop(registry);
    assert!(calls.recv().await.is_some());
    // The handler went with the last worker.
    assert_eq!(calls.recv().await, None);
}

#[tokio::test]
async fn a_handler_is_removed_by_the_name_of_its_kind() {
    type Remove = fn(&FailureHandlerRegistry, wsc_failure::HandlerId) -> bool;
    let registry = FailureHandlerRegistry::new();
    let (notes, _calls) = Notes::new();
    let ids = [
        registry.add_send_failure_handler(notes.clone()),
        registry.add_queue_full_handler(notes.clone()),
        registry.add_user_offline_handler(notes.clone()),
        registry.add_connection_error_handler(notes.clone()),
        registry.add_timeout_handler(notes),
        LoggingHandler::add_to(&registry),
    ];
    let removals: [Remove; 6] = [
        FailureHandlerRegistry::remove_send_failure_handler,
        FailureHandlerRegistry::remove_queue_full_handler,
        FailureHandlerRegistry::remove_user_offline_handler,
        FailureHandlerRegistry::remove_connection_error_handler,
        FailureHandlerRegistry::remove_timeout_handler,
        FailureHandlerRegistry::remove_any_failure_handler,
    ];
    for (position, remove) in removals.into_iter().enumerate() {
        for (other, id) in ids.into_iter().enumerate().filter(|(other, _)| *other != position) {
            assert!(!remove(&registry, id), "{position} {other}");
        }
        assert_eq!(registry.count(HandlerType::ALL[position]), 1);
        assert!(remove(&registry, ids[position]));
        assert!(!remove(&registry, ids[position]));
        assert_eq!(registry.count(HandlerType::ALL[position]), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn an_observer_hears_of_every_call() {
    let registry = FailureHandlerRegistry::new();
    registry.add_send_failure_handler(Panics);
    registry.add_timeout_handler(Notes::new().0);
    registry.add_any_failure_handler(Idle);
    let (sender, mut calls) = mpsc::unbounded_channel();
    let router = FailureRouter::observed(registry, FailureRouterConfig::default(), move |call| {
        sender.send((call.handler_type.as_str(), call.reason, call.end, call.duration.as_secs())).unwrap();
        // The workers outlive it.
        panic!("the observer is broken");
    });
    router.route(failure(1, FailureReason::Validation));
    let mut heard = [calls.recv().await.unwrap(), calls.recv().await.unwrap()];
    heard.sort_by_key(|call| call.0);
    assert_eq!(
        heard,
        [
            ("any_failure", FailureReason::Validation, CallEnd::TimedOut, 5),
            ("send_failure", FailureReason::Validation, CallEnd::Panicked, 0),
        ]
    );
    for n in 0..20 {
        router.route(failure(n, FailureReason::Validation));
    }
    for _ in 0..40 {
        calls.recv().await.unwrap();
    }
    assert_eq!(router.stats().handler(HandlerType::AnyFailure).timeouts, 21);
}

#[tokio::test]
async fn a_watcher_that_panics_hurts_nobody() {
    struct Broken;
    impl FailureWatcher for Broken {
        fn on_failures(&self, _: FailureReason, _: Option<UserType>, _: u64) {
            panic!("as it always does");
        }
    }
    let registry = FailureHandlerRegistry::new();
    let (notes, calls) = Notes::new();
    registry.add_failure_watcher(Broken);
    registry.add_send_failure_handler(notes);
    let router = router(&registry, |_| {});
    assert_eq!(router.route(failure(1, FailureReason::Unknown)), Routed::Queued);
    router.count(FailureReason::Unknown, None, 3);
    router.shutdown().await;
    assert_eq!(router.stats().total(), 4);
    assert_eq!(all(calls).await.len(), 1);
}

#[test]
fn an_event_says_all_of_a_failure_but_its_payload() {
    let client = ClientId::given("tab-1").unwrap();
    let event = failure(7, FailureReason::ConnClosed)
        .with_client(client.clone(), UserType::Vip)
        .after(2, Duration::from_millis(1500));
    let info = FailureInfo::from(&event);
    assert_eq!((info.message_id, info.user_id.as_str()), (Uuid::from_u128(7), "bob"));
    assert_eq!((info.client_id, info.user_type), (Some(client), Some(UserType::Vip)));
    assert_eq!((info.reason, &*info.error, info.retries, info.duration_ms), (event.reason, "it broke", 2, 1500));
}

/// Never comes back.
struct Idle;

#[async_trait]
impl AnyFailureHandler for Idle {
    async fn handle_failure(&self, _: &FailureEvent) {
        std::future::pending().await
    }
}

#[tokio::test]
async fn workers_come_and_go_with_the_settings() {
    let registry = FailureHandlerRegistry::new();
    let held = Held::new();
    registry.add_send_failure_handler(held.clone());
    let router = router(&registry, |config| config.workers = 2);
    let resize = |workers: usize| {
        let mut config = router.config();
        config.workers = workers;
        router.reconfigure(config);
    };
    for n in 0..100 {
        router.route(failure(n, FailureReason::Unknown));
    }
    settle().await;
    let running = || held.running.load(Ordering::SeqCst);
    assert_eq!(running(), 2);

    resize(5);
    settle().await;
    assert_eq!(running(), 5);

    // Down and up again before any of them has noticed: still five, not ten.
    resize(1);
    resize(5);
    settle().await;
    assert_eq!(running(), 5);

    resize(1);
    settle().await;
    // Who is too many finishes what it does.
    assert_eq!(running(), 5);
    held.permits.add_permits(4);
    settle().await;
    assert_eq!(running(), 1);
    held.permits.add_permits(3);
    settle().await;
    assert_eq!(running(), 1);

    // Idle workers end and start as well.
    held.permits.add_permits(1000);
    settle().await;
    resize(3);
    settle().await;
    resize(0);
    settle().await;
    held.permits.forget_permits(usize::MAX);
    for n in 0..5 {
        router.route(failure(n, FailureReason::Unknown));
    }
    settle().await;
    assert_eq!(running(), 1);
    held.permits.add_permits(1000);
    assert_eq!(router.shutdown().await, Shutdown::Drained);
    assert_eq!(router.stats().handler(FailureKind::Other).calls, 105);
    // After the end it is of no effect.
    resize(10);
    assert_eq!(router.route(failure(1, FailureReason::Unknown)), Routed::NotHandled);
}

#[tokio::test(start_paused = true)]
async fn limits_change_for_what_comes_next() {
    let registry = FailureHandlerRegistry::new();
    registry.add_send_failure_handler(Held::new());
    let router = router(&registry, |config| {
        config.workers = 1;
        config.queue = 10;
    });
    for n in 0..5 {
        router.route(failure(n, FailureReason::Unknown));
    }
    settle().await;
    assert_eq!((router.stats().queued(), router.recent(100).len()), (4, 5));

    let mut config = router.config();
    (config.queue, config.recent, config.timeout) = (4, 2, Duration::from_secs(1));
    router.reconfigure(config);
    assert_eq!(router.route(failure(5, FailureReason::Unknown)), Routed::NotHandled);
    assert_eq!(router.stats().queued(), 4);
    assert_eq!(router.recent(100).iter().map(|r| r.message_id.as_u128()).collect::<Vec<_>>(), [5, 4]);

    // The call that runs keeps its five seconds; the others have one each.
    let started = tokio::time::Instant::now();
    while router.stats().handler(FailureKind::Other).timeouts < 5 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(started.elapsed().as_secs(), 9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_failure_is_handled_or_counted_while_settings_and_handlers_change() {
    let registry = FailureHandlerRegistry::new();
    let handled = Arc::new(AtomicUsize::new(0));
    struct Count(Arc<AtomicUsize>);
    #[async_trait]
    impl AnyFailureHandler for Count {
        async fn handle_failure(&self, _: &FailureEvent) {
            tokio::task::yield_now().await;
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    registry.add_any_failure_handler(Count(Arc::clone(&handled)));
    let router = router(&registry, |config| config.queue = 50);
    let publishers: Vec<_> = (0..4)
        .map(|_| {
            let router = router.clone();
            tokio::spawn(async move {
                let mut queued = 0;
                for n in 0..2_000 {
                    queued += usize::from(router.route(failure(n, FailureReason::Unknown)) == Routed::Queued);
                    if n % 64 == 0 {
                        tokio::task::yield_now().await;
                    }
                }
                queued
            })
        })
        .collect();
    for workers in (0..200).map(|n| n % 7) {
        let mut config = router.config();
        config.workers = workers;
        router.reconfigure(config);
        let id = registry.add_send_failure_handler(Panics);
        tokio::task::yield_now().await;
        assert!(registry.remove(id));
    }
    let mut queued = 0;
    for publisher in publishers {
        queued += publisher.await.unwrap();
    }
    assert_eq!(router.shutdown().await, Shutdown::Drained);
    let stats = router.stats();
    assert_eq!((stats.total(), stats.queued()), (8_000, 0));
    assert_eq!(handled.load(Ordering::SeqCst), queued);
    assert_eq!(stats.not_handled(), 8_000 - queued as u64);
    assert_eq!(stats.by_client_type().map(|(_, n)| n).sum::<u64>(), 8_000);
    assert_eq!(stats.by_kind().map(|(_, n)| n).sum::<u64>(), 8_000);
    assert_eq!(stats.by_reason().map(|(_, n)| n).sum::<u64>(), 8_000);
}
