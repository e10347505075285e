//! The same at a larger scale, for `.ci/long`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::Value;
use wsc_testkit::{Post, ServerProcess, WebhookReceiver};

use super::reload_load::{Load, run};
use super::{connect, hub_with_webhooks, ids};

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
    let after: Vec<&Post> = posts.iter().filter(|post| post.at > back).collect();
    let noticed = after[0].at - back;
    let pace = after.len() as f64 / (after[after.len() - 1].at - after[0].at).as_secs_f64();
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
         {} told twice with the same ids; the return was noticed after {noticed:?}, then {pace:.0} requests a second: all of it \
         within {took:?}",
        book.visits,
        all.len() - each.len(),
    );
    let metrics = server.metrics().await;
    assert_eq!(metrics.sum("wsc_webhook_dead", &[]), 0.0);
    assert_eq!(metrics.sum("wsc_webhook_events_dropped_total", &[]), 0.0);
}
