//! The same at a larger scale, for `.ci/long`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use wsc_client::{Backoff, Cause, Event};
use wsc_testkit::{Launch, Post, ServerProcess, WAIT, WebhookReceiver, try_http};

use super::reload_load::{Load, run};
use super::{connect, hub_with_webhooks, ids};
use crate::support::{BIN, settings};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// `WSC_RELOADS` (1,000) while `WSC_TALKERS` (5,000) talk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs minutes"]
async fn a_thousand_reloads_while_thousands_talk() {
    let (reloads, clients) = (number("WSC_RELOADS").unwrap_or(1000), number("WSC_TALKERS").unwrap_or(5000));
    run(&Load { clients, room_size: 5, rounds: 20, reloads }).await;
}

/// What was told to the users: their sessions, in the order of time.
#[derive(Default)]
struct Book {
    sessions: BTreeMap<String, Vec<String>>,
    visits: u64,
}

impl Book {
    /// Has users come and go, one after the other, for so long.
    async fn keep(&mut self, server: &ServerProcess, time: Duration) {
        let start = Instant::now();
        let mut pace = tokio::time::interval(Duration::from_millis(20));
        while start.elapsed() < time {
            pace.tick().await;
            let user = format!("user-{}", self.visits % 10);
            let client = connect(server, &user).await;
            self.sessions.entry(user).or_default().push(client.session().to_owned());
            self.visits += 1;
            client.close().await;
        }
    }
}

/// The coming and going of each user as it was told, each event once.
fn told(posts: &[Post]) -> BTreeMap<String, Vec<(String, String)>> {
    let mut seen = BTreeSet::new();
    let mut told: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for event in posts.iter().filter(|post| post.is_taken()).flat_map(Post::events) {
        let name = text(&event["type"]);
        if seen.insert(text(&event["id"])) && matches!(&*name, "client.connected" | "client.disconnected") {
            told.entry(text(&event["data"]["user_id"])).or_default().push((name, text(&event["data"]["session"])));
        }
    }
    told
}

/// The receiver is away for `WSC_OUTAGE` seconds (180); in the middle the hub is told to end and started again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs minutes"]
async fn a_receiver_is_away_for_minutes_and_the_hub_restarts_in_the_middle() {
    let outage = Duration::from_secs(number("WSC_OUTAGE").unwrap_or(180));
    let mut receiver = WebhookReceiver::start().await;
    let filters = "event_filters: [client.connected, client.disconnected], webhook_timeout: 2s";
    let mut server = hub_with_webhooks(&receiver, filters, "drain: {deadline: 5s}").await;
    let mut book = Book::default();
    book.keep(&server, Duration::from_secs(5)).await;
    receiver.stop().await;
    book.keep(&server, outage / 2).await;
    assert_eq!(server.terminate().await, 0);
    server.restart().await;
    book.keep(&server, outage / 2).await;
    receiver.restart().await;
    let back = Instant::now();
    book.keep(&server, Duration::from_secs(5)).await;

    let want = 2 * book.visits as usize;
    receiver
        .wait_for_long(outage + Duration::from_secs(120), "all events", |posts| {
            let have: usize = told(posts).values().map(Vec::len).sum();
            (have >= want).then_some(())
        })
        .await;
    let took = back.elapsed();
    let posts = receiver.posts();
    let told = told(&posts);
    for (user, sessions) in &book.sessions {
        let pairs = sessions.iter().flat_map(|session| {
            ["client.connected", "client.disconnected"].map(|name| (name.to_owned(), session.clone()))
        });
        assert_eq!(told[user], pairs.collect::<Vec<_>>(), "of {user}");
    }
    let mut bodies: BTreeMap<String, &[u8]> = BTreeMap::new();
    for post in &posts {
        assert_eq!(*bodies.entry(post.id()).or_insert(&post.body), &*post.body, "another body under {}", post.id());
    }
    let all = ids(&posts);
    let each: BTreeSet<&String> = all.iter().collect();
    println!(
        "away for {outage:?} with a restart in the middle: {} visits, {want} events of {want} told in order per user, \
         {} told twice with the same ids, all within {took:?} of the return, in {} requests",
        book.visits,
        all.len() - each.len(),
        posts.len(),
    );
    let metrics = server.metrics().await;
    assert_eq!(metrics.sum("wsc_webhook_dead", &[]), 0.0);
    assert_eq!(metrics.sum("wsc_webhook_events_dropped_total", &[]), 0.0);
}

/// What many clients of the crate `wsc-client` live through.
#[derive(Default)]
struct Leavers {
    /// When each lost its first connection, and with which code.
    gone: Vec<(Instant, Option<u16>)>,
    back: u64,
    /// The keys of messages that came.
    received: BTreeSet<u64>,
}

/// Stays connected, acknowledges what comes, and tells the others.
async fn leaver(url: String, user: String, admitted: Arc<Semaphore>, told: watch::Sender<Leavers>) {
    let backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(4));
    let builder = wsc_client::Client::builder(url).user_id(user).backoff(backoff).auto_ack(true);
    let place = admitted.acquire_owned().await.unwrap();
    let (_client, mut events) = builder.connect().await.unwrap();
    drop(place);
    let mut is_gone = false;
    while let Some(event) = events.next().await {
        match event {
            Event::Disconnected { cause, .. } if !is_gone => {
                is_gone = true;
                let code = match cause {
                    Cause::Closed(closing) => Some(closing.code.0),
                    _ => None,
                };
                told.send_modify(|leavers| leavers.gone.push((Instant::now(), code)));
            }
            Event::Connected(connected) if connected.reconnected => told.send_modify(|leavers| leavers.back += 1),
            Event::Delivery(delivery) => {
                let key = delivery.content::<u64>().unwrap();
                told.send_modify(|leavers| _ = leavers.received.insert(key));
            }
            _ => {}
        }
    }
}

/// Waits for what the clients tell.
async fn until(told: &mut watch::Receiver<Leavers>, what: &str, time: Duration, is_so: impl FnMut(&Leavers) -> bool) {
    if tokio::time::timeout(time, told.wait_for(is_so)).await.is_err() {
        let leavers = told.borrow();
        panic!(
            "{what}: {} are gone, {} are back, {} messages came",
            leavers.gone.len(),
            leavers.back,
            leavers.received.len()
        );
    }
}

/// Sends messages that must be acknowledged until it is told to stop; gives the keys of what was accepted.
async fn push(http: String, users: u64, stop: Arc<Mutex<bool>>) -> Vec<u64> {
    let mut accepted = Vec::new();
    let mut pace = tokio::time::interval(Duration::from_millis(5));
    for key in 0.. {
        pace.tick().await;
        if *stop.lock().unwrap() {
            break;
        }
        let body = json!({"content": key, "require_ack": true, "idempotency_key": key.to_string()}).to_string();
        let url = format!("{http}/api/users/user-{}/messages", (key * 7919) % users);
        let headers = [("Content-Type", "application/json")];
        if let Ok(answer) = try_http("POST", &url, &headers, Some(body.as_bytes())).await
            && answer.status == 202
        {
            accepted.push(key);
        }
    }
    accepted
}

/// `WSC_LEAVERS` clients (15,000) of `wsc-client`, a thousand of which are sent away each second (`WSC_DRAIN_RATE`), and a
/// new hub that takes over address and data.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs minutes"]
async fn thousands_are_sent_away_at_the_rate_and_all_come_back() {
    let (count, rate) = (number("WSC_LEAVERS").unwrap_or(15_000), number("WSC_DRAIN_RATE").unwrap_or(1000));
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = free.local_addr().unwrap();
    drop(free);
    let keys = format!("drain: {{rate: {rate}, deadline: 10m}}, limits: {{stored_per_sender: 1000000}}");
    let file = settings(&keys).replace("127.0.0.1:0", &addr.to_string());
    let launch = Launch { args: &["serve", "--config", "settings.yaml"], files: &[("settings.yaml", &file)], env: &[] };
    let mut server = ServerProcess::launch(BIN, &launch).await;
    let (told, mut listening) = watch::channel(Leavers::default());
    let admitted = Arc::new(Semaphore::new(64));
    let mut clients = JoinSet::new();
    for n in 0..count {
        clients.spawn(leaver(server.ws_url(), format!("user-{n}"), Arc::clone(&admitted), told.clone()));
    }
    let start = Instant::now();
    while server.metrics().await.sum("wsc_connections", &[]) < count as f64 {
        assert!(start.elapsed() < WAIT * 12, "they do not get in");
    }
    let stop = Arc::new(Mutex::new(false));
    let pusher = tokio::spawn(push(server.http_url(), count, Arc::clone(&stop)));
    until(&mut listening, "messages flow", WAIT * 3, |leavers| leavers.received.len() > 100).await;

    server.signal_terminate();
    let patience = Duration::from_secs(2 * count / rate) + WAIT * 3;
    until(&mut listening, "all are sent away", patience, |leavers| leavers.gone.len() as u64 >= count).await;
    assert_eq!(server.wait().await, 0);
    server.restart().await;
    let began = Instant::now();
    until(&mut listening, "all are back", WAIT * 12, |leavers| leavers.back >= count).await;
    let return_took = began.elapsed();
    *stop.lock().unwrap() = true;
    let accepted = pusher.await.unwrap();
    until(&mut listening, "nothing is lost", WAIT * 6, |leavers| {
        accepted.iter().all(|key| leavers.received.contains(key))
    })
    .await;

    let leavers = listening.borrow();
    let mut ends: Vec<Instant> = leavers.gone.iter().map(|(at, _)| *at).collect();
    ends.sort_unstable();
    // The middle nine tenths: neither the first burst nor the last stragglers.
    let (from, to) = (ends.len() / 20, ends.len() - 1 - ends.len() / 20);
    let measured = (to - from) as f64 / (ends[to] - ends[from]).as_secs_f64();
    let unsaid = leavers.gone.iter().filter(|(_, code)| *code != Some(3001)).count();
    println!(
        "{count} clients were sent away at {measured:.0} a second ({rate} set), {unsaid} of them without 3001; all were back \
         {return_took:?} after the new hub's start; {} messages accepted, none lost",
        accepted.len(),
    );
    assert!((measured / rate as f64 - 1.0).abs() < 0.2, "{measured}");
    assert_eq!(unsaid, 0);
    assert!(accepted.len() > 100);
    server.metrics().await.ledger().check();
}
