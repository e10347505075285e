//! What is kept, and how much.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use wsc_events::{Shelf, WebhookHooks};

use crate::support::{SECOND, Site, single, until};

#[tokio::test(start_paused = true)]
async fn a_batch_is_kept_before_it_is_posted_and_until_it_is_taken() {
    let mut site = Site::start(single()).await;
    site.online([0]);
    let call = site.calls.next().await;
    assert_eq!(site.store.len(Shelf::Waiting).await, 1);
    call.answer(200);
    until(|| site.webhooks.stats().waiting == 0).await;
    assert_eq!(site.store.len(Shelf::Waiting).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_restart_goes_on_where_the_last_one_ended() {
    let mut site = Site::start(single()).await;
    site.keep(0..60).await;
    // Killed while one is on its way.
    let in_flight = site.calls.next().await;
    let (id, body) = (in_flight.id(), in_flight.request.body.clone());
    let mut site = site.restart(single()).await;
    assert!(site.store.longest_page.load(SeqCst) <= 16, "page by page");
    assert_eq!((site.webhooks.stats().waiting, site.webhooks.stats().waiting_events), (60, 60));
    site.online([60]);
    for user in 0..61 {
        let call = site.calls.next().await;
        assert_eq!(call.users(), [user]);
        if user == 0 {
            assert_eq!((call.id(), &call.request.body), (id.clone(), &body));
        }
        call.answer(200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_posts_what_it_can_and_keeps_the_rest() {
    let mut config = single();
    config.batch_max = 10;
    config.batch_interval = SECOND * 50;
    let mut site = Site::start(config.clone()).await;
    site.online(0..15);
    let first = site.calls.next().await;
    let webhooks = site.webhooks.clone();
    let bus = site.bus.clone();
    let stopping = tokio::spawn(async move {
        bus.shutdown().await;
        webhooks.shutdown(SECOND * 10).await;
    });
    first.answer(200);
    // The batch that was not full is posted too.
    let second = site.calls.next().await;
    assert_eq!(second.users(), [10, 11, 12, 13, 14]);
    second.answer(200);
    stopping.await.unwrap();
    assert_eq!(site.store.len(Shelf::Waiting).await, 0);
    assert!(site.webhooks.replay("msg_00000000000000000000000000000000").await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_does_not_wait_for_who_is_away() {
    let mut config = single();
    config.batch_interval = SECOND * 50;
    config.batch_max = 10;
    let mut site = Site::start(config.clone()).await;
    site.online(0..10);
    site.calls.next().await.answer(503);
    until(|| !matches!(site.webhooks.stats().waiting, 0)).await;
    site.online(10..13);
    let started = tokio::time::Instant::now();
    site.stop(SECOND * 30).await;
    assert!(started.elapsed() < SECOND, "{:?}", started.elapsed());
    assert_eq!(site.store.len(Shelf::Waiting).await, 2, "what was collected is kept");

    // Nor for who hangs, longer than it is told to.
    let mut site = Site::on(site.store, Some(config), WebhookHooks::default()).await;
    let hanging = site.calls.next().await;
    let started = tokio::time::Instant::now();
    site.stop(SECOND * 3).await;
    assert_eq!(started.elapsed().as_secs(), 3);
    drop(hanging);
    assert_eq!(site.store.len(Shelf::Waiting).await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_full_outbox_gives_up_the_oldest_that_is_not_on_its_way() {
    let mut config = single();
    config.outbox_batches = 5;
    config.dead_letters = 3;
    let mut site = Site::start(config.clone()).await;
    site.keep([0]).await;
    let in_flight = site.calls.next().await;
    site.keep(1..10).await;
    let stats = site.webhooks.stats();
    // 0 and 6 to 9 wait; 1 and 2 were forgotten, 3 to 5 are dead.
    assert_eq!((stats.waiting, stats.dead, stats.dead_total, stats.dead_forgotten), (5, 3, 5, 2));
    assert_eq!((site.store.len(Shelf::Waiting).await, site.store.len(Shelf::Dead).await), (5, 3));
    let letters = site.webhooks.dead(None, 10).await.unwrap().letters;
    assert!(letters.iter().all(|letter| letter.last_error == "the outbox is full" && letter.attempts == 0));
    // A replay finds room in the same way.
    assert!(site.webhooks.replay(&letters[0].id).await.unwrap());
    in_flight.answer(200);
    for user in [7, 8, 9, 3] {
        let call = site.calls.next().await;
        assert_eq!(call.users(), [user]);
        call.answer(200);
    }
    until(|| site.webhooks.stats().waiting == 0).await;
    // A restart counts the same.
    let site = site.restart(config).await;
    assert_eq!((site.webhooks.stats().waiting, site.webhooks.stats().dead), (0, 3));
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_was_tried_may_be_given_up_too() {
    let mut config = single();
    config.outbox_bytes = 2_000;
    let mut site = Site::start(config).await;
    site.keep([0]).await;
    site.calls.next().await.retry_after(429, "3000");
    site.keep(1..10).await;
    let stats = site.webhooks.stats();
    assert!(stats.waiting_bytes <= 2_000 && stats.dead > 0, "{stats:?}");
    let letter = site.webhooks.dead(None, 1).await.unwrap().letters.remove(0);
    assert_eq!((letter.attempts, letter.last_status), (1, Some(429)));
    assert_eq!(letter.last_error, "the outbox is full; before that: status 429");
    // The receiver's wish holds for the next one as well.
    assert!(site.calls.within(SECOND * 2900).await.is_none());
    assert!(site.calls.next().await.users()[0] > 0);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_into_memory_is_dropped_and_counted() {
    let mut config = single();
    config.pending_bytes = 2_000;
    let mut site = Site::start(config).await;
    site.store.is_down.store(true, SeqCst);
    site.online(0..100);
    until(|| site.webhooks.stats().events_dropped > 0).await;
    site.store.is_down.store(false, SeqCst);
    let mut arrived = Vec::new();
    while let Some(call) = site.calls.within(SECOND * 30).await {
        arrived.extend(call.users());
        call.answer(200);
    }
    // The first ones, without a gap.
    assert_eq!(arrived, (0..arrived.len()).collect::<Vec<_>>());
    assert!(arrived.len() > 5 && arrived.len() + site.webhooks.stats().events_dropped as usize == 100);
    // There is room again.
    site.online([100]);
    assert_eq!(site.calls.next().await.users(), [100]);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_for_a_while_loses_nothing_and_doubles_nothing() {
    let mut site = Site::start(single()).await;
    site.store.is_down.store(true, SeqCst);
    site.online(0..3);
    until(|| site.store.failures.load(SeqCst) >= 3).await;
    site.store.is_down.store(false, SeqCst);
    for user in 0..3 {
        let call = site.calls.next().await;
        assert_eq!(call.users(), [user]);
        // It can't note that the batch was taken: it tries that again, not the request.
        let failures = site.store.failures.load(SeqCst);
        site.store.is_down.store(true, SeqCst);
        call.answer(200);
        until(|| site.store.failures.load(SeqCst) >= failures + 2).await;
        site.store.is_down.store(false, SeqCst);
    }
    assert!(site.calls.within(SECOND * 100).await.is_none());
    assert_eq!(site.store.len(Shelf::Waiting).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_to_the_end_does_not_hold_up_the_end() {
    let site = Site::start(single()).await;
    site.store.is_down.store(true, SeqCst);
    site.online(0..3);
    until(|| site.store.failures.load(SeqCst) >= 1).await;
    let started = tokio::time::Instant::now();
    site.stop(SECOND * 10).await;
    assert!(started.elapsed() < SECOND);
    assert_eq!(site.webhooks.stats().events_dropped, 3);
}

#[tokio::test(start_paused = true)]
async fn a_replay_whose_caller_goes_away_is_done_nevertheless() {
    let mut site = Site::start(single()).await;
    site.online([0]);
    let call = site.calls.next().await;
    let id = call.id();
    call.answer(410);
    until(|| site.webhooks.stats().dead == 1).await;
    {
        let replay = site.webhooks.replay(&id);
        // Polled once, then dropped.
        assert!(futures_util::FutureExt::now_or_never(replay).is_none());
    }
    assert_eq!(site.calls.next().await.id(), id);
    assert_eq!(site.store.len(Shelf::Dead).await, 0);
}

#[tokio::test(start_paused = true)]
async fn what_cant_be_read_is_left_alone() {
    let store: Arc<crate::support::Store> = Arc::default();
    let odd = wsc_events::OutboxChange { shelf: Shelf::Waiting, key: 5, value: Some(b"from the future".to_vec()) };
    wsc_events::OutboxStore::commit(&*store, vec![odd]).await.unwrap();
    let mut site = Site::on(store, Some(single()), WebhookHooks::default()).await;
    site.online([0]);
    site.calls.next().await.answer(200);
    until(|| site.store.commits.load(SeqCst) == 3).await;
    assert_eq!(site.store.len(Shelf::Waiting).await, 1);
    assert!(site.calls.within(Duration::from_secs(60)).await.is_none());
}
