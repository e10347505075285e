//! What is posted, in which order, and as what.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use http::HeaderMap;
use parking_lot::Mutex;
use standardwebhooks::Webhook;
use wsc_events::{Span, SpanSink, WebhookConfig, WebhookHooks};
use wsc_protocol::{Event, TraceContext};

use crate::support::{Call, SECOND, SECRET, Site, Store, URL, single, until};

fn verify(secret: &str, call: &Call) -> bool {
    // Other crates' types of the same name.
    let headers: HeaderMap = call.request.headers.clone();
    Webhook::new(secret).unwrap().verify(&call.request.body, &headers).is_ok()
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_what_came_within_its_interval() {
    let mut config = WebhookConfig::new(URL);
    config.signing_secrets = vec![SECRET.into()];
    config.headers = vec![("x-team".to_owned(), "chat".into())];
    let mut site = Site::start(config).await;
    site.online(0..3);
    let started = tokio::time::Instant::now();
    let call = site.calls.next().await;
    assert!(call.at - started >= Duration::from_millis(50) && call.at - started < Duration::from_millis(70));

    assert_eq!(call.users(), [0, 1, 2]);
    let body = call.body();
    assert_eq!(body["id"], call.id());
    assert!(call.id().starts_with("msg_") && call.id().len() == 36, "{}", call.id());
    assert_eq!(body["node_id"], "hub-1");
    let event = &body["events"][1];
    assert_eq!((&event["type"], &event["data"]["user_id"]), (&"user.online".into(), &"u1".into()));
    assert!(event["timestamp"].as_u64().unwrap() > 1_600_000_000_000);
    assert_eq!(event.as_object().unwrap().len(), 4, "{event}");
    let ids: Vec<uuid::Uuid> = (0..3).map(|n| body["events"][n]["id"].as_str().unwrap().parse().unwrap()).collect();
    assert!(ids.is_sorted() && ids[0] != ids[1] && ids[0].get_version_num() == 7);

    assert_eq!((call.request.url.as_str(), call.header("content-type")), (URL, "application/json"));
    assert_eq!(
        (call.header("user-agent"), call.header("x-team")),
        (concat!("wsc-hub/", env!("CARGO_PKG_VERSION")), "chat")
    );
    assert!(verify(SECRET, &call));
    assert_eq!(call.header("traceparent"), "");
    call.answer(204);
    until(|| site.webhooks.stats().waiting == 0).await;
    assert!(site.calls.within(SECOND * 100).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_full_batch_does_not_wait() {
    let mut config = WebhookConfig::new(URL);
    config.batch_max = 4;
    config.batch_interval = SECOND * 60;
    let mut site = Site::start(config).await;
    site.online(0..10);
    let started = tokio::time::Instant::now();
    for users in [&[0, 1, 2, 3][..], &[4, 5, 6, 7], &[8, 9]] {
        let call = site.calls.next().await;
        assert_eq!(call.users(), users);
        assert_eq!(call.at - started >= SECOND * 60, users.len() == 2, "only the last one waits for more");
        // Unsigned where there is no secret.
        assert_eq!(call.header("webhook-signature"), "");
        call.answer(200);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_asked_for_is_not_posted() {
    let mut config = single();
    config.filter = WebhookConfig::filter_of(&["user.*".to_owned()]).unwrap();
    let mut site = Site::start(config).await;
    site.bus.publish(Event::HubStarted { node_id: "n".to_owned() });
    site.online([7]);
    assert_eq!(site.calls.next().await.users(), [7]);
}

#[tokio::test(start_paused = true)]
async fn a_body_stays_below_a_million_bytes() {
    let mut config = WebhookConfig::new(URL);
    config.batch_max = 10_000;
    config.filter = WebhookConfig::filter_of(&["hub.*".to_owned()]).unwrap();
    let mut site = Site::start(config).await;
    for _ in 0..30 {
        site.bus.publish(Event::HubStarted { node_id: "n".repeat(100_000) });
    }
    let mut events = 0;
    while events < 30 {
        let call = site.calls.next().await;
        assert!(call.request.body.len() <= 1_000_200, "{}", call.request.body.len());
        events += call.body()["events"].as_array().unwrap().len();
        call.answer(200);
    }
}

#[tokio::test(start_paused = true)]
async fn an_attempt_is_the_same_request_signed_anew_with_the_secrets_of_now() {
    let mut site = Site::start(single()).await;
    site.online([1]);
    let first = site.calls.next().await;
    let (id, body) = (first.id(), first.request.body.clone());
    assert!(verify(SECRET, &first));
    // Keys are changed: for a while there are two.
    let new = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let mut both = single();
    both.signing_secrets = vec![new.into(), SECRET.into()];
    site.webhooks.reconfigure(Some(both));
    first.answer(503);
    let second = site.calls.next().await;
    assert_eq!((second.id(), &second.request.body), (id.clone(), &body));
    assert!(verify(SECRET, &second) && verify(new, &second));
    assert_eq!(second.header("webhook-signature").split(' ').count(), 2);
    let mut only = single();
    only.signing_secrets = vec![new.into()];
    site.webhooks.reconfigure(Some(only));
    second.answer(503);
    let third = site.calls.next().await;
    assert_eq!((third.id(), &third.request.body), (id, &body));
    assert!(!verify(SECRET, &third) && verify(new, &third));
}

#[tokio::test(start_paused = true)]
async fn a_trace_goes_through() {
    #[derive(Default)]
    struct Sink(Mutex<Vec<Span>>);
    impl SpanSink for Sink {
        fn finished(&self, span: Span) {
            self.0.lock().push(span);
        }
    }
    let parent: TraceContext = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap();
    let sink = Arc::new(Sink::default());
    let hooks = WebhookHooks {
        trace_of: Box::new(move |event| {
            matches!(event, Event::UserOnline { user_id } if user_id.as_str() == "u1").then_some(parent)
        }),
        spans: Some(Arc::<Sink>::clone(&sink)),
        ..WebhookHooks::default()
    };
    let mut config = single();
    config.batch_max = 2;
    let mut site = Site::on(Arc::default(), Some(config), hooks).await;
    site.online(0..2);
    let call = site.calls.next().await;
    let body = call.body();
    assert_eq!(
        (body["events"][0].get("traceparent"), &body["events"][1]["traceparent"]),
        (None, &parent.to_string().into())
    );
    let sent: TraceContext = call.header("traceparent").parse().unwrap();
    assert!(sent.trace_id == parent.trace_id && sent.span_id != parent.span_id && sent.is_sampled);
    call.answer(500);
    until(|| !sink.0.lock().is_empty()).await;
    let span = sink.0.lock().remove(0);
    assert_eq!((span.name, span.context, span.parent_id), ("wsc.webhook", sent, parent.span_id));
    assert_eq!(span.error.as_deref(), Some("status 500"));
    assert!(span.attributes.contains(&("http.response.status_code", "500".to_owned())));
}

/// A receiver that answers as it likes, hubs that come and go: every event arrives, those of a user in order; what comes
/// twice has an id that was seen.
#[tokio::test(start_paused = true)]
async fn whatever_happens_events_arrive_in_order() {
    for seed in 0..30 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut config = single();
        config.batch_max = random.usize(1..5);
        config.batch_interval = Duration::from_millis(random.u64(0..80));
        config.retries = 1000;
        let mut site = Site::start(config.clone()).await;
        let (mut next, mut seen) = (0, BTreeMap::<usize, String>::new());
        let mut bodies = HashMap::<String, Vec<u8>>::new();
        let mut newest = 0;
        while seen.len() < 200 {
            if next < 200 {
                let burst = random.usize(0..20).min(200 - next);
                site.online(next..next + burst);
                next += burst;
            }
            if random.u8(..) < 20 {
                site.store.is_down.store(random.bool(), SeqCst);
            }
            if random.u8(..) < 20 {
                site.store.is_down.store(false, SeqCst);
                site = site.restart(config.clone()).await;
            }
            let Some(call) = site.calls.within(SECOND * 3).await else { continue };
            let body = bodies.entry(call.id()).or_insert_with(|| call.request.body.clone());
            assert_eq!(*body, call.request.body, "the same id means the same bytes, seed {seed}");
            let is_taken = random.bool();
            if is_taken || random.bool() {
                // Also where the answer is lost the receiver has it.
                for user in call.users() {
                    match seen.insert(user, call.id()) {
                        Some(id) => assert_eq!(id, call.id(), "seed {seed}"),
                        None => {
                            assert_eq!(user, newest, "in order, seed {seed}");
                            newest += 1;
                        }
                    }
                }
            }
            match random.u8(..) {
                _ if is_taken => call.answer(200),
                0..60 => call.answer(500),
                60..120 => call.retry_after(429, "2"),
                120..200 => drop(call),
                _ => call.answer(503),
            }
        }
        let stats = site.webhooks.stats();
        assert_eq!((stats.events_dropped, stats.dead), (0, 0), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hub_that_was_switched_off_keeps_what_waits() {
    let mut site = Site::start(single()).await;
    site.keep(0..3).await;
    site.calls.next().await.answer(503);
    until(|| site.webhooks.stats().waiting == 3).await;
    site.stop(Duration::ZERO).await;
    let mut off = Site::on(site.store, None, WebhookHooks::default()).await;
    off.online([99]);
    assert!(off.calls.within(SECOND * 1000).await.is_none());
    assert!(!off.bus.wants(wsc_protocol::EventType::UserOnline), "nothing is built for nobody");
    assert_eq!((off.webhooks.stats().waiting, off.webhooks.stats().is_on), (3, false));
    off.webhooks.reconfigure(Some(single()));
    off.online([3]);
    for user in 0..4 {
        let call = off.calls.next().await;
        assert_eq!(call.users(), [user]);
        call.answer(200);
    }
}

#[tokio::test]
async fn the_tasks_end_when_the_last_handle_goes() {
    let site = Site::on(Arc::<Store>::default(), Some(single()), WebhookHooks::default()).await;
    let Site { webhooks, mut calls, store, .. } = site;
    let kept = Arc::downgrade(&store);
    drop((webhooks, store));
    // The client's end is dropped with the tasks.
    assert!(calls.within(SECOND * 10).await.is_none());
    until(|| kept.strong_count() == 0).await;
}
