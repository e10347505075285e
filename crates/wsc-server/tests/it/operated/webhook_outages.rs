//! Receivers that are away, busy or broken, and hubs that end in the middle.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};
use wsc_testkit::{Answer, Post, ServerProcess, WebhookReceiver, eventually};

use super::{callbacks, connect, hub_with_webhooks, is_about, reconfigure};

/// Has this user come and go, so many times.
async fn visits(server: &ServerProcess, user: &str, count: usize) {
    for _ in 0..count {
        connect(server, user).await.close().await;
    }
}

/// The connections and their ends that were told of this user, each once, in the order of their first arrival.
fn told(receiver: &WebhookReceiver, user: &str) -> Vec<(String, String)> {
    let mut seen = BTreeSet::new();
    let mut told = Vec::new();
    for event in receiver.events() {
        let is_of_user = event["data"]["user_id"] == user && event["data"]["session"].is_string();
        let is_new = seen.insert(event["id"].as_str().unwrap().to_owned());
        if is_of_user && is_new {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            told.push((text(&event["type"]), text(&event["data"]["session"])));
        }
    }
    told
}

/// Asserts that all of this user's coming and going was told, in order.
#[track_caller]
fn assert_told(receiver: &WebhookReceiver, user: &str, visits: usize) {
    let told = told(receiver, user);
    let told: Vec<_> = told.iter().filter(|(name, _)| name != "client.reconnected").collect();
    assert_eq!(told.len(), 2 * visits, "of {user}: {told:?}; {receiver}");
    for pair in told.chunks(2) {
        assert_eq!((pair[0].0.as_str(), pair[1].0.as_str()), ("client.connected", "client.disconnected"), "{told:?}");
        assert_eq!(pair[0].1, pair[1].1, "{told:?}");
    }
}

/// Asserts that what came twice has the same bytes, the ids of its events included.
#[track_caller]
fn assert_same_duplicates(posts: &[Post]) {
    let mut bodies: BTreeMap<String, &[u8]> = BTreeMap::new();
    let mut of_event: BTreeMap<String, String> = BTreeMap::new();
    for post in posts {
        let body = bodies.entry(post.id()).or_insert(&post.body);
        assert_eq!(*body, &*post.body, "another body under {}", post.id());
        assert_eq!(post.header("webhook-id"), Some(post.id().as_str()));
        for event in post.events() {
            let id = event["id"].as_str().unwrap().to_owned();
            let batch = of_event.entry(id.clone()).or_insert_with(|| post.id());
            assert_eq!(*batch, post.id(), "event {id} is in two batches");
        }
    }
}

/// Long enough for the pauses between attempts.
const LONG: Duration = Duration::from_secs(90);

async fn last(receiver: &WebhookReceiver, user: &str) {
    let what = format!("the end of {user}");
    receiver
        .wait_for_long(LONG, &what, |posts| {
            let taken = posts.iter().filter(|post| post.is_taken());
            taken.flat_map(Post::events).find(|event| is_about(event, "client.disconnected", user))
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_was_away_is_told_all_of_it_later() {
    let mut receiver = WebhookReceiver::start().await;
    let server = hub_with_webhooks(&receiver, "webhook_timeout: 1s", "").await;
    visits(&server, "alice", 5).await;
    receiver.stop().await;
    visits(&server, "alice", 20).await;
    visits(&server, "end", 1).await;
    receiver.restart().await;
    last(&receiver, "end").await;
    assert_told(&receiver, "alice", 25);
    assert_same_duplicates(&receiver.posts());
    let metrics = server.metrics().await;
    assert_eq!(metrics.sum("wsc_webhook_dead", &[]), 0.0);
    assert_eq!(metrics.sum("wsc_webhook_events_dropped_total", &[]), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_ends_meanwhile_tells_it_when_it_is_back() {
    let mut receiver = WebhookReceiver::start().await;
    let mut server = hub_with_webhooks(&receiver, "webhook_timeout: 1s", "drain: {deadline: 3s}").await;
    visits(&server, "alice", 5).await;
    receiver.stop().await;
    visits(&server, "alice", 5).await;
    let mut stays = connect(&server, "bob").await;
    server.signal_terminate();
    stays.expect_close().await;
    assert_eq!(server.wait().await, 0);
    server.restart().await;
    visits(&server, "alice", 5).await;
    visits(&server, "end", 1).await;
    receiver.restart().await;
    last(&receiver, "end").await;
    assert_told(&receiver, "alice", 15);
    assert_told(&receiver, "bob", 1);
    assert_same_duplicates(&receiver.posts());
    let events = receiver.events();
    let of_bob = events.iter().find(|event| is_about(event, "client.disconnected", "bob")).unwrap();
    assert_eq!(of_bob["data"]["reason"], "server_shutdown");
    let starts = events.iter().filter(|event| event["type"] == "hub.started").count();
    assert_eq!(starts, 2, "{receiver}");
    assert!(events.iter().any(|event| event["type"] == "hub.stopped"), "{receiver}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_committed_survives_a_kill() {
    let mut receiver = WebhookReceiver::start().await;
    let mut server = hub_with_webhooks(&receiver, "webhook_timeout: 1s, batch_max: 4", "").await;
    receiver.event("the hub", |event| event["type"] == "hub.started").await;
    receiver.stop().await;
    visits(&server, "alice", 10).await;
    // On disk: twenty of them, in fours, beside those that nobody counts here.
    eventually("the batches are in the outbox", async || {
        (server.metrics().await.sum("wsc_webhook_waiting_batches", &[]) >= 6.0).then_some(())
    })
    .await;
    server.kill().await;
    server.restart().await;
    receiver.restart().await;
    visits(&server, "end", 1).await;
    last(&receiver, "end").await;
    let told = told(&receiver, "alice");
    let connected = told.iter().filter(|(name, _)| name == "client.connected").count();
    assert!((9..=10).contains(&connected), "{told:?}");
    let sessions: Vec<&String> =
        told.iter().filter(|(name, _)| name == "client.connected").map(|(_, session)| session).collect();
    assert!(sessions.is_sorted(), "in the order of time: {told:?}");
    assert_same_duplicates(&receiver.posts());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_was_taken_when_the_hub_was_killed_comes_again_as_it_was() {
    let receiver = WebhookReceiver::start().await;
    let mut server = hub_with_webhooks(&receiver, "webhook_timeout: 5m", "").await;
    receiver.event("the hub", |event| event["type"] == "hub.started").await;
    // The receiver has it, and the hub never learns.
    receiver.answer(Answer::hang());
    let before = receiver.posts().len();
    visits(&server, "alice", 1).await;
    let first = receiver.wait("a request that hangs", |posts| posts.get(before).cloned()).await;
    server.kill().await;
    receiver.answer(Answer::status(200));
    server.restart().await;
    let again = receiver
        .wait("it comes again", |posts| posts[before + 1..].iter().find(|post| post.id() == first.id()).cloned())
        .await;
    assert_eq!(again.body, first.body);
}

/// The requests that carry the same batch as the first one that carries this user's coming.
fn attempts(posts: &[Post], user: &str) -> Vec<Post> {
    let is_it = |post: &&Post| post.events().iter().any(|event| is_about(event, "client.connected", user));
    let Some(first) = posts.iter().find(is_it) else { return Vec::new() };
    posts.iter().filter(|post| post.id() == first.id()).cloned().collect()
}

/// A hub whose first events were taken, and a receiver that answers with this from now on.
async fn answered_with(more: &str, answers: &[Answer]) -> (WebhookReceiver, ServerProcess) {
    let receiver = WebhookReceiver::start().await;
    let filters = "event_filters: [client.connected, hub.started]";
    let comma = if more.is_empty() { "" } else { ", " };
    let server = hub_with_webhooks(&receiver, &format!("{filters}{comma}{more}"), "").await;
    receiver.event("the hub", |event| event["type"] == "hub.started").await;
    receiver.answer_next(answers.iter().cloned());
    (receiver, server)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_receiver_is_left_alone_for_as_long_as_it_says() {
    for status in [429, 503] {
        let busy = Answer::retry_after(status, "2");
        let (receiver, server) = answered_with("", &[busy.clone(), busy]).await;
        visits(&server, "alice", 1).await;
        let attempts = receiver
            .wait_for_long(LONG, "the third attempt", |posts| {
                let attempts = attempts(posts, "alice");
                (attempts.len() == 3).then_some(attempts)
            })
            .await;
        for pair in attempts.windows(2) {
            let pause = pair[1].at - pair[0].at;
            assert!(pause >= Duration::from_millis(1950), "after {status} only {pause:?}");
        }
        assert!(attempts[2].is_taken());
        // Nothing else was posted meanwhile.
        let between =
            receiver.posts().iter().filter(|post| post.at > attempts[0].at && post.at < attempts[2].at).count();
        assert_eq!(between, 1);
    }
}

async fn dead(server: &ServerProcess) -> Value {
    let answer = server.get("/api/webhooks/dead").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

async fn expect_dead(server: &ServerProcess, count: u64) -> Value {
    let what = format!("{count} dead letters");
    let start = std::time::Instant::now();
    loop {
        let dead = dead(server).await;
        if dead["total"] == count {
            return dead;
        }
        assert!(start.elapsed() < LONG, "{what}: {dead}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_receiver_gets_so_many_attempts() {
    let broken = Answer::status(500);
    let (receiver, server) = answered_with("webhook_retries: 2", &[broken.clone(), broken.clone(), broken]).await;
    visits(&server, "alice", 1).await;
    let letter = expect_dead(&server, 1).await["dead"][0].clone();
    let attempts = attempts(&receiver.posts(), "alice");
    assert_eq!(attempts.len(), 3, "{receiver}");
    assert!(attempts.iter().all(|post| post.status == Some(500)), "{receiver}");
    assert_eq!(letter["id"], attempts[0].id(), "{letter}");
    assert_eq!(letter["attempts"], 3, "{letter}");
    assert_eq!(letter["events"], 1, "{letter}");
    assert_eq!(letter["types"], json!(["client.connected"]), "{letter}");
    assert!(letter["error"].as_str().is_some_and(|error| error.contains("500")), "{letter}");
    assert!(letter["created_ms"].is_u64(), "{letter}");
    // Those behind it are not held up.
    visits(&server, "bob", 1).await;
    receiver.event("bob", |event| is_about(event, "client.connected", "bob")).await;
    assert_eq!(server.metrics().await.sum("wsc_webhook_dead", &[]), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_does_not_want_it_is_not_asked_again() {
    for status in [400, 401, 404, 410, 422] {
        let (receiver, server) = answered_with("", &[Answer::status(status)]).await;
        visits(&server, "alice", 1).await;
        let dead = expect_dead(&server, 1).await;
        assert_eq!(dead["dead"][0]["attempts"], 1, "{status}: {dead}");
        visits(&server, "bob", 1).await;
        receiver.event("bob", |event| is_about(event, "client.connected", "bob")).await;
        assert_eq!(attempts(&receiver.posts(), "alice").len(), 1, "{status}: {receiver}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_are_listed_survive_and_are_sent_again() {
    let (receiver, mut server) = answered_with("batch_max: 1", &[]).await;
    receiver.answer(Answer::status(400));
    for user in ["alice", "bob", "carol"] {
        visits(&server, user, 1).await;
    }
    expect_dead(&server, 3).await;
    assert_eq!(server.terminate().await, 0);
    receiver.answer(Answer::status(200));
    server.restart().await;
    let all = expect_dead(&server, 3).await;
    let ids: Vec<String> =
        all["dead"].as_array().unwrap().iter().map(|dead| dead["id"].as_str().unwrap().into()).collect();
    // Page by page it is the same.
    let mut paged = Vec::new();
    let mut path = "/api/webhooks/dead?limit=2".to_owned();
    loop {
        let page = server.get(&path).await.json();
        assert_eq!(page["total"], 3, "{page}");
        paged.extend(page["dead"].as_array().unwrap().iter().map(|dead| dead["id"].as_str().unwrap().to_owned()));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/api/webhooks/dead?limit=2&cursor={}", wsc_testkit::encode(cursor));
    }
    assert_eq!(paged, ids);

    let before = receiver.posts().len();
    let answer = server.post(&format!("/api/webhooks/dead/{}/replay", ids[1]), &json!({})).await;
    assert_eq!((answer.status, answer.json()), (202, json!({"status": "replayed"})));
    let replayed =
        receiver.wait("the replay", |posts| posts[before..].iter().find(|post| post.id() == ids[1]).cloned()).await;
    assert!(is_about(&replayed.events()[0], "client.connected", "bob"), "{replayed:?}");
    expect_dead(&server, 2).await;
    let answer = server.post(&format!("/api/webhooks/dead/{}/replay", ids[1]), &json!({})).await;
    assert_eq!(answer.status, 404, "{answer:?}");
    let answer = server.post("/api/webhooks/dead/msg_0/replay", &json!({})).await;
    assert_eq!(answer.status, 404, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_is_away_for_long_is_asked_rarely() {
    let (receiver, server) = answered_with("", &[]).await;
    receiver.answer(Answer::status(503));
    visits(&server, "alice", 1).await;
    let attempts = receiver
        .wait_for_long(LONG, "some attempts", |posts| {
            let attempts = attempts(posts, "alice");
            (attempts.len() >= 6).then_some(attempts)
        })
        .await;
    let took = attempts[5].at - attempts[0].at;
    assert!(took >= Duration::from_secs(1), "six attempts in {took:?}");
    receiver.answer(Answer::status(200));
    receiver
        .wait_for_long(LONG, "it is taken", |posts| {
            posts.iter().any(|post| post.is_taken() && post.id() == attempts[0].id()).then_some(())
        })
        .await;
    assert_eq!(dead(&server).await["total"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_while_they_are_off_is_told_when_they_are_on_again() {
    let mut receiver = WebhookReceiver::start().await;
    let server = hub_with_webhooks(&receiver, "", "").await;
    receiver.event("the hub", |event| event["type"] == "hub.started").await;
    receiver.stop().await;
    visits(&server, "alice", 3).await;
    eventually("it waits", async || {
        (server.metrics().await.sum("wsc_webhook_waiting_batches", &[]) > 0.0).then_some(())
    })
    .await;
    reconfigure(&server, "").await;
    visits(&server, "unseen", 1).await;
    receiver.restart().await;
    reconfigure(&server, &callbacks(&receiver, "")).await;
    visits(&server, "end", 1).await;
    last(&receiver, "end").await;
    assert_told(&receiver, "alice", 3);
    assert!(told(&receiver, "unseen").is_empty(), "{receiver}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_is_killed_again_and_again_tells_no_lies() {
    let receiver = WebhookReceiver::start().await;
    // Now and then it is not there, or does not take it.
    let turn = std::sync::atomic::AtomicU32::new(0);
    receiver.answer_with(move |_| match turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 7 {
        2 => Answer::cut(),
        5 => Answer::retry_after(503, "0"),
        _ => Answer::status(200),
    });
    let filters = "event_filters: [client.connected, hub.started], batch_max: 3";
    let mut server = hub_with_webhooks(&receiver, filters, "").await;
    // What happened in each life of the hub, in order.
    let mut lives: Vec<Vec<String>> = Vec::new();
    for life in 0..5 {
        let mut sessions = Vec::new();
        for n in 0..(7 + 11 * life) % 30 + 5 {
            let client = connect(&server, &format!("user-{}", n % 3)).await;
            sessions.push(client.session().to_owned());
            client.close().await;
        }
        // In the middle of telling.
        let first = &sessions[0];
        let is_first = |event: &Value| event["data"]["session"] == first.as_str();
        receiver
            .wait_for_long(LONG, "the first of this life", |posts| {
                posts.iter().filter(|post| post.is_taken()).flat_map(Post::events).find(is_first)
            })
            .await;
        lives.push(sessions);
        server.kill().await;
        server.restart().await;
    }
    visits(&server, "end", 1).await;
    receiver
        .wait_for_long(LONG, "the end", |posts| {
            let mut events = posts.iter().filter(|post| post.is_taken()).flat_map(Post::events);
            events.find(|event| is_about(event, "client.connected", "end"))
        })
        .await;
    assert_same_duplicates(&receiver.posts());
    let mut seen = BTreeSet::new();
    let told: Vec<String> = receiver
        .events()
        .iter()
        .filter(|event| event["type"] == "client.connected" && event["data"]["user_id"] != "end")
        .map(|event| event["data"]["session"].as_str().unwrap().to_owned())
        .filter(|session| seen.insert(session.clone()))
        .collect();
    // Only what had just happened when it was killed may be missing: nothing in the middle, and nothing out of order.
    let mut rest = told.as_slice();
    for (life, sessions) in lives.iter().enumerate() {
        let count = rest.iter().take_while(|told| sessions.contains(told)).count();
        let (of_life, after) = rest.split_at(count);
        assert_eq!(of_life, &sessions[..count], "of life {life}");
        assert!(count >= 1, "nothing of life {life}");
        rest = after;
    }
    assert!(rest.is_empty(), "out of order: {rest:?}");
    let all: usize = lives.iter().map(Vec::len).sum();
    println!("{} of {all} were told over five kills", told.len());
}
