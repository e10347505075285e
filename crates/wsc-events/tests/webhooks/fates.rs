//! What becomes of a batch that is not taken.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use tokio::time::Instant;
use wsc_events::{WebhookBreaker, WebhookError, WebhookHooks};

use crate::support::{SECOND, Site, single, until};

#[tokio::test(start_paused = true)]
async fn a_receiver_that_is_away_is_waited_for() {
    let mut site = Site::start(single()).await;
    site.online(0..2);
    let mut ids = Vec::new();
    for n in 0..60 {
        let call = site.calls.next().await;
        assert_eq!(call.users(), [0], "nobody overtakes");
        ids.push(call.id());
        match n % 6 {
            0 => call.fail(WebhookError::Timeout),
            1 => call.fail(WebhookError::Connect("refused".to_owned())),
            2 => call.answer(408),
            3 => call.answer(425),
            4 => call.answer(429),
            _ => call.answer(503),
        }
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
    assert_eq!(site.webhooks.stats().dead, 0);
    for user in 0..2 {
        let call = site.calls.next().await;
        assert_eq!(call.users(), [user]);
        call.answer(200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_hangs_is_away() {
    let mut site = Site::start(single()).await;
    site.online([0]);
    let call = site.calls.next().await;
    let again = site.calls.next().await;
    assert!(again.at - call.at >= SECOND * 5 && again.at - call.at <= SECOND * 8);
    assert_eq!(again.id(), call.id());
}

#[tokio::test(start_paused = true)]
async fn what_the_receiver_fails_on_is_a_dead_letter_after_some_retries() {
    let mut site = Site::start(single()).await;
    site.online(0..2);
    let id = {
        let call = site.calls.next().await;
        let id = call.id();
        call.answer(500);
        id
    };
    // Being away in between does not count.
    for status in [502, 503, 503, 500] {
        let call = site.calls.next().await;
        assert_eq!(call.id(), id);
        call.answer(status);
    }
    let call = site.calls.next().await;
    assert_eq!(call.id(), id, "one and three retries");
    call.answer(504);
    let next = site.calls.next().await;
    assert_eq!(next.users(), [1]);
    next.answer(200);

    let page = site.webhooks.dead(None, 10).await.unwrap();
    assert_eq!((page.total, page.letters.len(), page.next), (1, 1, None));
    let letter = &page.letters[0];
    assert_eq!((&letter.id, letter.attempts, letter.last_status, letter.events), (&id, 6, Some(504), 1));
    assert_eq!((letter.last_error.as_str(), &letter.event_types[..]), ("status 504", &["user.online".to_owned()][..]));
    assert!(letter.died_ms > letter.created_ms && letter.created_ms > 1_600_000_000_000);
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_is_a_dead_letter_at_once() {
    let mut site = Site::start(single()).await;
    let refusals = [100, 301, 302, 307, 308, 400, 401, 404, 410, 413, 422, 600];
    site.online(0..refusals.len());
    for (user, status) in refusals.into_iter().enumerate() {
        let call = site.calls.next().await;
        assert_eq!(call.users(), [user]);
        call.answer(status);
    }
    until(|| site.webhooks.stats().waiting == 0).await;
    assert_eq!(site.webhooks.stats().dead, refusals.len() as u64);
    assert_eq!(site.webhooks.stats().breaker, WebhookBreaker::Closed, "the receiver is there");

    // Page by page, oldest first.
    let (mut after, mut found) = (None, Vec::new());
    loop {
        let page = site.webhooks.dead(after.as_deref(), 5).await.unwrap();
        assert!(page.letters.len() <= 5 && page.total == refusals.len());
        found.extend(page.letters.iter().map(|letter| letter.last_status.unwrap()));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(found, refusals);
    assert!(site.webhooks.dead(Some("msg_x"), 5).await.is_err());
    assert!(site.webhooks.dead(Some("99999"), 5).await.unwrap().letters.is_empty());
    assert!(site.webhooks.dead(None, 0).await.unwrap().letters.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_is_replayed_at_the_end() {
    let mut site = Site::start(single()).await;
    site.online([0]);
    let call = site.calls.next().await;
    let (id, body) = (call.id(), call.request.body.clone());
    call.answer(400);
    site.online([1]);
    let busy = site.calls.next().await;
    site.keep([2]).await;
    assert!(site.webhooks.replay(&id).await.unwrap());
    assert!(!site.webhooks.replay(&id).await.unwrap(), "only once");
    assert!(!site.webhooks.replay("msg_0").await.unwrap() && !site.webhooks.replay("").await.unwrap());
    assert_eq!((site.webhooks.stats().dead, site.webhooks.stats().waiting), (0, 3));
    busy.answer(200);
    site.calls.next().await.answer(200);
    let again = site.calls.next().await;
    assert_eq!((again.id(), &again.request.body), (id.clone(), &body));
    // It may die again, and live again, also after a restart.
    again.answer(404);
    until(|| site.webhooks.stats().dead == 1).await;
    let mut site = site.restart(single()).await;
    assert_eq!(site.webhooks.dead(None, 10).await.unwrap().letters[0].last_status, Some(404));
    assert!(site.webhooks.replay(&id).await.unwrap());
    assert_eq!(site.calls.next().await.request.body, body);
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_obeyed() {
    let mut site = Site::start(single()).await;
    site.online([0]);
    let call = site.calls.next().await;
    let at = call.at;
    call.retry_after(429, "90");
    let call = site.calls.next().await;
    assert!(call.at - at >= SECOND * 90 && call.at - at < SECOND * 91, "{:?}", call.at - at);
    let at = call.at;
    call.retry_after(503, &httpdate::fmt_http_date(SystemTime::now() + SECOND * 200));
    let call = site.calls.next().await;
    assert!(call.at - at >= SECOND * 198 && call.at - at <= SECOND * 201, "{:?}", call.at - at);
    let at = call.at;
    // Nobody is kept waiting for a year by mistake.
    call.retry_after(503, "31536000");
    let call = site.calls.next().await;
    assert!(call.at - at <= SECOND * 3601);
    let at = call.at;
    // Nor asked in a loop.
    call.retry_after(429, "0");
    for _ in 0..20 {
        site.calls.next().await.retry_after(429, "0");
    }
    assert!(site.calls.next().await.at - at > SECOND * 100);
}

#[tokio::test(start_paused = true)]
async fn the_breaker_leaves_a_dead_receiver_alone_and_notices_when_it_is_back() {
    let mut site = Site::start(single()).await;
    site.online(0..3);
    let started = Instant::now();
    let mut attempts = 0;
    while started.elapsed() < SECOND * 3600 {
        site.calls.next().await.answer(503);
        attempts += 1;
        if attempts == 5 {
            until(|| site.webhooks.stats().breaker == WebhookBreaker::Open).await;
        }
    }
    assert!((60..80).contains(&attempts), "{attempts} in an hour");
    let probe = site.calls.next().await;
    assert_eq!(site.webhooks.stats().breaker, WebhookBreaker::HalfOpen);
    let at = probe.at;
    probe.answer(200);
    for user in 1..3 {
        let call = site.calls.next().await;
        assert_eq!((call.users(), call.at - at < SECOND), (vec![user], true));
        call.answer(200);
    }
    assert_eq!(site.webhooks.stats().breaker, WebhookBreaker::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_fails_on_everything_is_not_flooded() {
    let mut config = single();
    config.retries = 0;
    let mut site = Site::start(config).await;
    site.online(0..100);
    let started = Instant::now();
    for user in 0..100 {
        let call = site.calls.next().await;
        assert_eq!(call.users(), [user]);
        call.answer(500);
    }
    // Five at once, then one whenever the breaker lets one through.
    assert!(started.elapsed() > SECOND * 60 * 80, "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_fails_every_other_time_meets_a_budget() {
    let mut site = Site::start(single()).await;
    site.online(0..500);
    let started = Instant::now();
    for _ in 0..500 {
        site.calls.next().await.answer(500);
        site.calls.next().await.answer(200);
    }
    // 500 retries, of which 10 are free and 100 are earned by the first attempts; one each second.
    let took = started.elapsed();
    assert!(took >= SECOND * 380 && took < SECOND * 450, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn who_is_away_for_days_loses_the_oldest() {
    let mut config = single();
    config.max_age = SECOND * 600;
    let mut site = Site::start(config).await;
    site.online([0]);
    let started = Instant::now();
    while started.elapsed() < SECOND * 500 {
        site.calls.next().await.answer(503);
    }
    site.online([1]);
    let call = loop {
        let call = site.calls.next().await;
        if call.users() == [1] {
            break call;
        }
        call.answer(503);
    };
    assert!(started.elapsed() > SECOND * 600);
    call.answer(200);
    let letter = site.webhooks.dead(None, 1).await.unwrap().letters.remove(0);
    assert_eq!(letter.last_error, "the receiver was away for too long; before that: status 503");
}

#[tokio::test(start_paused = true)]
async fn a_refused_address_waits_for_an_operator() {
    let mut site = Site::start(single()).await;
    site.online([0]);
    for _ in 0..8 {
        site.calls.next().await.fail(WebhookError::RefusedAddress("[10.0.0.1] is not public".to_owned()));
    }
    site.calls.next().await.answer(200);
    until(|| site.webhooks.stats().waiting == 0).await;
    assert_eq!(site.webhooks.stats().dead, 0);
}

#[tokio::test(start_paused = true)]
async fn requests_are_measured() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&seen);
    let hooks = WebhookHooks {
        on_request: Box::new(move |outcome| record.lock().push((outcome.status.into_owned(), outcome.latency))),
        ..WebhookHooks::default()
    };
    let mut site = Site::on(Arc::default(), Some(single()), hooks).await;
    site.online([0]);
    let slow = site.calls.next().await;
    tokio::time::advance(SECOND * 2).await;
    slow.answer(503);
    site.calls.next().await.fail(WebhookError::Connect("refused".to_owned()));
    site.calls.next().await.fail(WebhookError::RefusedAddress("inside".to_owned()));
    // No answer at all.
    let hanging = site.calls.next().await;
    site.calls.next().await.answer(204);
    drop(hanging);
    until(|| seen.lock().len() == 5).await;
    let statuses: Vec<_> = seen.lock().iter().map(|(status, _)| status.clone()).collect();
    assert_eq!(statuses, ["503", "connect", "refused_address", "timeout", "204"]);
    assert!(seen.lock()[0].1 >= SECOND * 2);
}

#[tokio::test(start_paused = true)]
async fn new_settings_are_used_from_the_next_attempt_on() {
    let mut site = Site::start(single()).await;
    site.online(0..2);
    let in_flight = site.calls.next().await;
    let mut elsewhere = single();
    elsewhere.url = "https://example.org/".to_owned();
    site.webhooks.reconfigure(Some(elsewhere.clone()));
    // It was posted to the old URL, and taken there: it is not posted again.
    in_flight.answer(200);
    let call = site.calls.next().await;
    assert_eq!((call.users(), call.request.url.as_str()), (vec![1], "https://example.org/"));
    for _ in 0..8 {
        site.calls.next().await.answer(503);
    }
    drop(call);
    until(|| site.webhooks.stats().breaker == WebhookBreaker::Open).await;
    let now = Instant::now();
    // The same settings are no news; others are tried at once, also while the breaker is open.
    site.webhooks.reconfigure(Some(elsewhere));
    assert!(site.calls.within(SECOND).await.is_none());
    site.webhooks.reconfigure(Some(single()));
    let call = site.calls.next().await;
    assert!(call.at - now < SECOND * 2 && call.request.url.as_str() == crate::support::URL);
    call.answer(503);

    // Switched off: no attempt, nothing collected. Invalid settings are not used.
    site.webhooks.reconfigure(None);
    site.online([7]);
    assert!(site.calls.within(SECOND * 1000).await.is_none());
    let mut invalid = single();
    invalid.url = "http://127.0.0.1/".to_owned();
    assert!(wsc_events::Webhooks::check(&invalid).is_err());
    site.webhooks.reconfigure(Some(invalid));
    assert!(site.calls.within(SECOND * 1000).await.is_none());
    site.webhooks.reconfigure(Some(single()));
    let call = site.calls.next().await;
    assert_eq!(call.users(), [1]);
    call.answer(200);
    assert!(site.calls.within(Duration::from_secs(100)).await.is_none());
}
