//! What observers and publishers may rely on.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test, also in a helper")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::{Notify, Semaphore, mpsc};
use wsc_events::{EventBus, EventBusConfig, EventFilter, EventObserver, EventStats, Shutdown};
use wsc_protocol::{Event, EventType, Id};

fn room(n: usize) -> Event {
    Event::RoomCreated { room_id: Id::new(&n.to_string()).unwrap() }
}

fn number(event: &Event) -> usize {
    match event {
        Event::RoomCreated { room_id } => room_id.as_str().parse().unwrap(),
        other => panic!("not a room: {other:?}"),
    }
}

fn small(queue: usize) -> EventBus {
    let mut config = EventBusConfig::default();
    config.queue = queue;
    EventBus::new(config)
}

fn of(bus: &EventBus, event_type: EventType) -> EventStats {
    bus.stats().into_iter().find(|s| s.event_type == event_type).unwrap()
}

/// Takes an event only when it is given a permit; says what it took.
struct Gated {
    permits: Arc<Semaphore>,
    seen: mpsc::UnboundedSender<usize>,
}

#[async_trait]
impl EventObserver for Gated {
    async fn on_event(&self, event: &Event) {
        self.permits.acquire().await.unwrap().forget();
        self.seen.send(number(event)).unwrap();
    }
}

fn gated() -> (Gated, Arc<Semaphore>, mpsc::UnboundedReceiver<usize>) {
    let permits = Arc::new(Semaphore::new(0));
    let (seen, events) = mpsc::unbounded_channel();
    (Gated { permits: Arc::clone(&permits), seen }, permits, events)
}

/// Lets the observers' tasks run until they wait.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn nothing_is_built_while_nobody_listens() {
    let bus = EventBus::default();
    bus.publish_with(EventType::RoomCreated, || panic!("nobody asked"));
    let id = bus.register_sync("client.*".parse().unwrap(), |_| {});
    bus.publish_with(EventType::RoomCreated, || panic!("nobody asked for rooms"));
    assert!(bus.wants(EventType::ClientConnected));
    bus.unregister(id);
    assert!(!bus.wants(EventType::ClientConnected));
    bus.publish_with(EventType::ClientConnected, || panic!("nobody asks any more"));
}

#[tokio::test]
async fn observers_see_what_they_asked_for_in_order() {
    let bus = EventBus::default();
    let (seen, mut rooms) = mpsc::unbounded_channel();
    let all = Arc::new(AtomicUsize::new(0));
    bus.register_sync("room.*".parse().unwrap(), move |e| seen.send(number(e)).unwrap());
    let count = Arc::clone(&all);
    bus.register_sync(EventFilter::ALL, move |_| {
        count.fetch_add(1, Ordering::SeqCst);
    });
    for n in 0..500 {
        bus.publish(room(n));
        bus.publish(Event::UserOnline { user_id: Id::new("alice").unwrap() });
    }
    assert_eq!(bus.shutdown().await, Shutdown::Drained);
    for n in 0..500 {
        assert_eq!(rooms.recv().await, Some(n));
    }
    assert_eq!(rooms.recv().await, None);
    assert_eq!(all.load(Ordering::SeqCst), 1000);
    assert_eq!(of(&bus, EventType::RoomCreated).executions, 1000);
    assert_eq!(of(&bus, EventType::UserOnline).executions, 500);
}

#[tokio::test]
async fn a_slow_observer_loses_its_own_events_and_nobody_elses() {
    let bus = small(4);
    let (slow, permits, mut slow_seen) = gated();
    let slow_id = bus.register(EventFilter::ALL, slow);
    let (seen, mut fast_seen) = mpsc::unbounded_channel();
    bus.register_sync(EventFilter::ALL, move |e| seen.send(number(e)).unwrap());

    for n in 0..10 {
        bus.publish(room(n));
        assert_eq!(fast_seen.recv().await, Some(n));
    }
    // The slow one holds the first and has four waiting: the other five are gone.
    let stats = bus.subscriptions().into_iter().find(|s| s.id == slow_id).unwrap();
    assert_eq!((stats.queued, stats.drops, stats.executions), (4, 5, 0));
    assert_eq!(of(&bus, EventType::RoomCreated).drops, 5);

    permits.add_permits(100);
    for n in 0..5 {
        assert_eq!(slow_seen.recv().await, Some(n));
    }
    settle().await;
    bus.publish(room(10));
    assert_eq!(slow_seen.recv().await, Some(10));
}

#[tokio::test]
async fn a_panic_hurts_nobody_and_is_counted() {
    struct Fragile(mpsc::UnboundedSender<usize>);
    #[async_trait]
    impl EventObserver for Fragile {
        async fn on_event(&self, event: &Event) {
            let n = number(event);
            assert!(n.is_multiple_of(2), "odd");
            self.0.send(n).unwrap();
        }
    }
    let bus = EventBus::default();
    let (seen, mut even) = mpsc::unbounded_channel();
    bus.register(EventFilter::ALL, Fragile(seen));
    bus.register_sync(EventFilter::ALL, |_| panic!("always"));
    for n in 0..6 {
        bus.publish(room(n));
    }
    bus.shutdown().await;
    for n in [0, 2, 4] {
        assert_eq!(even.recv().await, Some(n));
    }
    let stats = of(&bus, EventType::RoomCreated);
    assert_eq!((stats.executions, stats.errors, stats.drops), (12, 9, 0));
}

#[tokio::test]
async fn unregister_discards_what_waits() {
    let bus = EventBus::default();
    let (observer, permits, mut seen) = gated();
    let id = bus.register(EventFilter::ALL, observer);
    for n in 0..3 {
        bus.publish(room(n));
    }
    settle().await;
    assert!(bus.unregister(id));
    assert!(!bus.unregister(id));
    bus.publish(room(3));
    permits.add_permits(100);
    // The run that had begun ends; the observer is dropped and nothing else came.
    assert_eq!(seen.recv().await, Some(0));
    assert_eq!(seen.recv().await, None);
    assert!(bus.subscriptions().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_most_the_run_that_had_begun_follows_unregister() {
    for _ in 0..200 {
        let bus = small(64);
        let running = Arc::new(AtomicBool::new(false));
        let (ended, late) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let id = bus.register_sync(EventFilter::ALL, {
            let (running, ended, late) = (Arc::clone(&running), Arc::clone(&ended), Arc::clone(&late));
            move |_| {
                running.store(true, Ordering::SeqCst);
                if ended.load(Ordering::SeqCst) {
                    late.fetch_add(1, Ordering::SeqCst);
                }
                running.store(false, Ordering::SeqCst);
            }
        });
        for n in 0..20 {
            bus.publish(room(n));
        }
        assert!(bus.unregister(id));
        // A run that had begun may still be on its way: at most that one.
        while running.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
        ended.store(true, Ordering::SeqCst);
        assert_eq!(bus.shutdown().await, Shutdown::Drained);
        assert!(late.load(Ordering::SeqCst) <= 1, "{late:?}");
    }
}

#[tokio::test]
async fn an_observer_may_remove_itself_and_publish() {
    let bus = EventBus::default();
    let (seen, mut rooms) = mpsc::unbounded_channel();
    let (inner, own) = (bus.clone(), Arc::new(parking_lot::Mutex::new(None)));
    let id = bus.register_sync(EventFilter::only(EventType::RoomCreated), {
        let own = Arc::clone(&own);
        move |e| {
            seen.send(number(e)).unwrap();
            inner.publish(room(99));
            assert!(inner.unregister(own.lock().unwrap()));
        }
    });
    *own.lock() = Some(id);
    bus.publish(room(1));
    assert_eq!(rooms.recv().await, Some(1));
    assert_eq!(rooms.recv().await, None);
    assert_eq!(of(&bus, EventType::RoomCreated).errors, 0);
}

#[tokio::test(start_paused = true)]
async fn shutdown_waits_for_a_slow_observer() {
    struct Slow(Arc<AtomicUsize>);
    #[async_trait]
    impl EventObserver for Slow {
        async fn on_event(&self, _: &Event) {
            tokio::time::sleep(Duration::from_millis(100)).await;
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let bus = EventBus::default();
    let done = Arc::new(AtomicUsize::new(0));
    bus.register(EventFilter::ALL, Slow(Arc::clone(&done)));
    for n in 0..10 {
        bus.publish(room(n));
    }
    assert_eq!(bus.shutdown().await, Shutdown::Drained);
    assert_eq!(done.load(Ordering::SeqCst), 10);
    // Closed for good.
    bus.register_sync(EventFilter::ALL, |_| panic!("after the end"));
    assert!(!bus.wants(EventType::RoomCreated));
    bus.publish(room(11));
    assert_eq!(bus.shutdown().await, Shutdown::Drained);
}

#[tokio::test(start_paused = true)]
async fn shutdown_waits_no_longer_than_it_should() {
    let bus = EventBus::default();
    let (stuck, _permits, mut seen) = gated();
    bus.register(EventFilter::ALL, stuck);
    for n in 0..3 {
        bus.publish(room(n));
    }
    let started = tokio::time::Instant::now();
    assert_eq!(bus.shutdown().await, Shutdown::TimedOut);
    assert_eq!(started.elapsed().as_secs(), 5);
    // Its task is gone, with the observer in it, and what it never saw is counted.
    assert_eq!(seen.recv().await, None);
    let stats = of(&bus, EventType::RoomCreated);
    assert_eq!((stats.executions, stats.drops), (0, 3));
}

#[tokio::test]
async fn tasks_end_with_the_bus() {
    struct Dropped(Arc<Notify>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }
    let bus = EventBus::default();
    let gone = Arc::new(Notify::new());
    let held = Dropped(Arc::clone(&gone));
    bus.register_sync(EventFilter::ALL, move |_| {
        let _ = &held;
    });
    drop(bus);
    gone.notified().await;
}

#[tokio::test]
async fn a_queue_may_be_of_another_size_than_the_others() {
    let bus = small(1);
    let (observer, permits, mut events) = gated();
    let id = bus.register_with_queue(EventFilter::ALL, observer, 100);
    (0..100).for_each(|n| bus.publish(room(n)));
    assert_eq!(bus.subscriptions()[0].drops, 0);
    permits.add_permits(100);
    for n in 0..100 {
        assert_eq!(events.recv().await, Some(n));
    }
    assert!(bus.unregister(id));
}

#[tokio::test]
async fn an_observer_may_listen_to_something_else_and_keeps_what_waits() {
    let bus = EventBus::default();
    let (observer, permits, mut events) = gated();
    let id = bus.register(EventType::RoomCreated.into(), observer);
    (0..3).for_each(|n| bus.publish(room(n)));
    assert!(bus.set_filter(id, EventFilter::NONE));
    assert!(!bus.wants(EventType::RoomCreated));
    (3..6).for_each(|n| bus.publish(room(n)));
    assert!(bus.set_filter(id, EventFilter::ALL) && bus.wants(EventType::HubStarted));
    bus.publish(room(6));
    permits.add_permits(10);
    for n in [0, 1, 2, 6] {
        assert_eq!(events.recv().await, Some(n));
    }
    bus.unregister(id);
    assert!(!bus.set_filter(id, EventFilter::ALL) && !bus.wants(EventType::HubStarted));
}
