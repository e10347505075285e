//! What users of go-wsc's words may rely on.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test, also in a helper")]

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use tokio::sync::{Semaphore, mpsc};
use wsc_events::{CallbackManager, EventBus, EventBusConfig, EventFilter, Shutdown};
use wsc_protocol::{Event, EventType, Id};

fn online(user: &str) -> Event {
    Event::UserOnline { user_id: Id::new(user).unwrap() }
}

fn offline(user: &str) -> Event {
    Event::UserOffline { user_id: Id::new(user).unwrap() }
}

#[tokio::test]
async fn patterns_types_and_filters_register_and_unregister_removes() {
    let callbacks = CallbackManager::default();
    let (seen, mut heard) = mpsc::unbounded_channel();
    let note = |name: &'static str| {
        let seen = seen.clone();
        move |event: &Event| seen.send(format!("{name} {}", event.event_type())).map_err(|_| "nobody listens")
    };
    let by_pattern = callbacks.register_callback("user.*", note("pattern")).unwrap();
    let by_type = callbacks.register_callback(EventType::UserOffline, note("type")).unwrap();
    let by_filter = callbacks.register_callback(EventFilter::ALL, note("filter")).unwrap();
    assert_eq!(callbacks.list().iter().map(|c| c.id).collect::<Vec<_>>(), [by_pattern, by_type, by_filter]);

    let mut told = async |event: Event, times: usize| {
        callbacks.trigger_callback(event);
        let mut names = Vec::new();
        for _ in 0..times {
            names.push(heard.recv().await.unwrap());
        }
        names.sort_unstable();
        names
    };
    assert_eq!(told(online("a"), 2).await, ["filter user.online", "pattern user.online"]);
    assert_eq!(told(offline("a"), 3).await, ["filter user.offline", "pattern user.offline", "type user.offline"]);
    assert!(callbacks.unregister_callback(by_pattern) && !callbacks.unregister_callback(by_pattern));
    assert_eq!(told(offline("a"), 2).await, ["filter user.offline", "type user.offline"]);
    assert!(callbacks.unregister_callback(by_filter));
    assert_eq!(told(offline("a"), 1).await, ["type user.offline"]);

    for nothing in ["", "failures.*", "user.onlin"] {
        let error = callbacks.register_callback(nothing, note("never")).unwrap_err();
        assert!(error.to_string().contains("names no event"), "{error}");
    }
    assert_eq!(callbacks.list().len(), 1);
}

#[tokio::test]
async fn an_async_callback_gets_events_in_order_with_their_time() {
    let callbacks = CallbackManager::default();
    let (seen, mut heard) = mpsc::unbounded_channel();
    callbacks
        .register_async_callback("user.online", move |published| {
            let seen = seen.clone();
            async move {
                // The later one would overtake, were they not one after the other.
                if published.event.user_id() == Some("0") {
                    tokio::task::yield_now().await;
                }
                seen.send(serde_json::to_value(&*published).unwrap())
            }
        })
        .unwrap();
    for n in 0..3 {
        callbacks.trigger_callback(online(&n.to_string()));
    }
    for n in 0..3 {
        let published = heard.recv().await.unwrap();
        assert!(published["timestamp"].as_u64().unwrap() > 1_600_000_000_000);
        assert_eq!(published["type"], "user.online");
        assert_eq!(published["data"], json!({"user_id": n.to_string()}));
        assert_eq!(published.as_object().unwrap().len(), 3);
    }
}

#[tokio::test]
async fn errors_and_panics_are_counted_and_shown() {
    let callbacks = CallbackManager::default();
    callbacks
        .register_callback("user.*", |event: &Event| match event.user_id() {
            Some("bad") => Err("no such user"),
            Some("worse") => panic!("no such user at all"),
            _ => Ok(()),
        })
        .unwrap();
    callbacks.register_async_callback("room.*", |_| async { Err::<(), _>("always") }).unwrap();
    for user in ["good", "bad", "worse", "good"] {
        callbacks.trigger_callback(online(user));
    }
    callbacks.trigger_callback(Event::RoomCreated { room_id: Id::new("lobby").unwrap() });
    while callbacks.bus().stats().iter().map(|s| s.executions).sum::<u64>() < 5 {
        tokio::task::yield_now().await;
    }

    let shown = serde_json::to_value(callbacks.debug_info()).unwrap();
    assert_eq!(shown["registered"], 2);
    let first = &shown["callbacks"][0];
    assert_eq!(first["events"], json!(["user.online", "user.offline"]));
    assert_eq!((&first["executions"], &first["errors"], &first["drops"]), (&json!(4), &json!(2), &json!(0)));
    let events = shown["events"].as_array().unwrap();
    // Only those that happened, in declaration order.
    assert_eq!(events.iter().map(|e| &e["event_type"]).collect::<Vec<_>>(), ["user.online", "room.created"]);
    assert_eq!((&events[1]["executions"], &events[1]["errors"]), (&json!(1), &json!(1)));
    let (total, mean) = (&events[0]["total_duration_ms"], &events[0]["mean_duration_ms"]);
    assert!((total.as_f64().unwrap() / 4.0 - mean.as_f64().unwrap()).abs() < 1e-9, "{shown}");
}

#[tokio::test]
async fn every_run_is_observed() {
    let (sender, mut runs) = mpsc::unbounded_channel();
    let bus = EventBus::observed(EventBusConfig::default(), move |run| {
        sender.send((run.event_type, run.is_error)).unwrap();
        // The callbacks outlive it.
        panic!("the observer is broken");
    });
    let callbacks = CallbackManager::new(bus.clone());
    callbacks
        .register_callback("user.*", |event: &Event| assert!(event.event_type() != EventType::UserOffline, "never"))
        .unwrap();
    for _ in 0..3 {
        callbacks.trigger_callback(online("a"));
        callbacks.trigger_callback(offline("a"));
    }
    assert_eq!(bus.shutdown().await, Shutdown::Drained);
    for _ in 0..3 {
        assert_eq!(runs.recv().await, Some((EventType::UserOnline, false)));
        assert_eq!(runs.recv().await, Some((EventType::UserOffline, true)));
    }
    assert!(runs.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn an_async_callback_that_hangs_is_ended_with_the_bus() {
    let callbacks = CallbackManager::default();
    callbacks.register_async_callback("*", |_| std::future::pending::<()>()).unwrap();
    callbacks.trigger_callback(online("a"));
    callbacks.trigger_callback(online("b"));
    assert_eq!(callbacks.bus().shutdown().await, Shutdown::TimedOut);
    assert_eq!(callbacks.bus().stats().iter().map(|s| s.drops).sum::<u64>(), 2);
}

const PUBLISHERS: usize = 4;
const EACH: usize = 5_000;

/// The publisher and the number of an event that `publish_all` made.
fn numbers(event: &Event) -> (usize, usize) {
    let (publisher, n) = event.user_id().unwrap().split_once('-').unwrap();
    (publisher.parse().unwrap(), n.parse().unwrap())
}

/// Publishes from several threads at once, and waits for all of them.
async fn publish_all(callbacks: &CallbackManager) {
    let publishers: Vec<_> = (0..PUBLISHERS)
        .map(|publisher| {
            let callbacks = callbacks.clone();
            tokio::spawn(async move {
                for n in 0..EACH {
                    callbacks.trigger_callback(online(&format!("{publisher}-{n}")));
                    if n % 16 == 0 {
                        tokio::task::yield_now().await;
                    }
                }
            })
        })
        .collect();
    for publisher in publishers {
        publisher.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_order_holds_and_every_event_was_seen_or_counted() {
    let mut config = EventBusConfig::default();
    config.queue = 32;
    let callbacks = CallbackManager::new(EventBus::new(config));
    let seen: Vec<_> = (0..3).map(|_| Arc::new(AtomicU64::new(0))).collect();

    // One as fast as it can be, one that gives way all the time, one that panics now and then.
    let in_order = |mut last: [Option<usize>; PUBLISHERS], seen: Arc<AtomicU64>| {
        move |event: &Event| {
            let (publisher, n) = numbers(event);
            assert!(last[publisher] < Some(n), "{publisher}: {n} after {:?}", last[publisher]);
            last[publisher] = Some(n);
            seen.fetch_add(1, Ordering::SeqCst);
        }
    };
    let mut ids = vec![callbacks.register_callback("*", in_order([None; PUBLISHERS], Arc::clone(&seen[0]))).unwrap()];
    let slow = Arc::new(parking_lot::Mutex::new(in_order([None; PUBLISHERS], Arc::clone(&seen[1]))));
    ids.push(
        callbacks
            .register_async_callback("*", move |published| {
                let slow = Arc::clone(&slow);
                async move {
                    tokio::task::yield_now().await;
                    slow.lock()(&published.event);
                }
            })
            .unwrap(),
    );
    let fragile = Arc::clone(&seen[2]);
    ids.push(
        callbacks
            .register_callback("*", move |event: &Event| {
                fragile.fetch_add(1, Ordering::SeqCst);
                assert!(!numbers(event).1.is_multiple_of(7), "every seventh");
            })
            .unwrap(),
    );

    publish_all(&callbacks).await;
    let total = (PUBLISHERS * EACH) as u64;
    let stats = loop {
        let stats = callbacks.list();
        if stats.iter().all(|s| s.executions + s.drops == total) {
            break stats;
        }
        assert!(stats.iter().all(|s| s.executions + s.drops < total + 1), "{stats:?}");
        tokio::task::yield_now().await;
    };
    for (position, stats) in stats.iter().enumerate() {
        assert_eq!(stats.id, ids[position]);
        assert_eq!(stats.executions, seen[position].load(Ordering::SeqCst), "{stats:?}");
        assert_eq!(stats.queued, 0);
    }
    assert_eq!((stats[0].errors, stats[1].errors), (0, 0));
    assert!(stats[2].errors > 0);
    // The figures of the type are the sum of those of the callbacks.
    assert_eq!(callbacks.bus().shutdown().await, Shutdown::Drained);
    let of_type = callbacks.bus().stats().into_iter().find(|s| s.event_type == EventType::UserOnline).unwrap();
    assert_eq!(of_type.executions, stats.iter().map(|s| s.executions).sum::<u64>());
    assert_eq!(of_type.drops, stats.iter().map(|s| s.drops).sum::<u64>());
    assert_eq!(of_type.errors, stats[2].errors);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callbacks_come_and_go_under_load_and_none_is_called_after_it_went() {
    let callbacks = CallbackManager::default();
    let late = Arc::new(AtomicUsize::new(0));
    let churn = {
        let (callbacks, late) = (callbacks.clone(), Arc::clone(&late));
        tokio::spawn(async move {
            for _ in 0..300 {
                // Holds each run open until it may end, so that "has begun" and "is done" can be told apart.
                let gate = Arc::new(Semaphore::new(0));
                let begun = Arc::new(AtomicUsize::new(0));
                let id = callbacks
                    .register_async_callback("user.*", {
                        let (gate, begun) = (Arc::clone(&gate), Arc::clone(&begun));
                        move |_| {
                            begun.fetch_add(1, Ordering::SeqCst);
                            let gate = Arc::clone(&gate);
                            async move { gate.acquire().await.map(drop) }
                        }
                    })
                    .unwrap();
                while begun.load(Ordering::SeqCst) == 0 {
                    callbacks.trigger_callback(online("0-0"));
                    tokio::task::yield_now().await;
                }
                // One run has begun and is held, many events wait behind it.
                assert!(callbacks.unregister_callback(id));
                gate.add_permits(1_000);
                for _ in 0..5 {
                    tokio::task::yield_now().await;
                }
                late.fetch_add(begun.load(Ordering::SeqCst) - 1, Ordering::SeqCst);
            }
        })
    };
    publish_all(&callbacks).await;
    tokio::time::timeout(Duration::from_secs(60), churn).await.unwrap().unwrap();
    assert_eq!(late.load(Ordering::SeqCst), 0);
    assert!(callbacks.list().is_empty());
    assert!(!callbacks.bus().wants(EventType::UserOnline));
    // Their tasks are gone too.
    assert_eq!(callbacks.bus().shutdown().await, Shutdown::Drained);
}

/// Where the log goes.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_failed_callback_is_logged_with_event_duration_and_error() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().json().with_writer(move || writer.clone()).finish();
    // The tasks of the bus run on this thread, too.
    let _guard = tracing::subscriber::set_default(subscriber);
    let bus = EventBus::default();
    let callbacks = CallbackManager::new(bus.clone());
    callbacks.register_callback("hub.started", |_: &Event| Err::<(), _>("it broke")).unwrap();
    callbacks.register_callback("hub.started", |_: &Event| -> () { panic!("it fell") }).unwrap();
    callbacks.trigger_callback(Event::HubStarted { node_id: "n".to_owned() });
    bus.shutdown().await;
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let records: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut errors = Vec::new();
    for record in &records {
        let fields = &record["fields"];
        assert_eq!(fields["event"], "hub.started", "{record}");
        assert!(fields["duration"].as_f64().is_some_and(|ms| (0.0..10_000.0).contains(&ms)), "{record}");
        errors.push(fields["error"].as_str().unwrap());
    }
    errors.sort_unstable();
    assert_eq!(errors, ["it broke", "it fell"]);
}
