//! `kill -9` at random moments, under a load of acknowledged sends: nothing that was accepted may be lost.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use wsc_testkit::{Client, Inbound, Ledger, Metrics, ServerProcess, WAIT, try_http};

use super::text;
use crate::support::hub;

/// Who plays: so many of each.
const SOCKET_SENDERS: u64 = 3;
const HTTP_SENDERS: u64 = 3;
const RECEIVERS: u64 = 6;

/// Unanswered sends of one connection.
const PIPELINE: usize = 16;

/// What the clients know; the server's word is not asked for.
#[derive(Default)]
struct Book {
    /// By idempotency key: the id that was told, and whom it is for.
    accepted: BTreeMap<String, (String, String)>,
    /// By receiver and id: the key in the content, and how often it came.
    received: BTreeMap<(String, String), (String, u32)>,
    /// Answers marked `duplicate`: what was accepted, though the first answer was lost.
    repeated: u32,
    replays: u32,
    resends: u32,
    reconnects: u32,
}

impl Book {
    fn accept(&mut self, key: &str, to: &str, answer: &Value) {
        let id = text(&answer["id"]);
        self.repeated += u32::from(answer["duplicate"] == true);
        let before = self.accepted.insert(key.to_owned(), (id.clone(), to.to_owned()));
        assert!(before.as_ref().is_none_or(|(first, _)| *first == id), "{key} was {before:?} and is {answer}");
    }

    fn receive(&mut self, me: &str, delivery: &Value) {
        let key = text(&delivery["data"]["content"]["key"]);
        assert_eq!(delivery["data"]["content"]["to"], me, "{delivery}");
        self.replays += u32::from(delivery["source"] == "offline");
        self.resends += u32::from(delivery["attempt"].is_u64());
        let entry = self.received.entry((me.to_owned(), text(&delivery["id"])));
        let (first, times) = entry.or_insert_with(|| (key.clone(), 0));
        assert_eq!(*first, key, "one id, two messages");
        *times += 1;
    }

    /// What was accepted and did not arrive.
    fn missing(&self) -> Vec<&str> {
        let arrived = |(id, to): &(String, String)| self.received.contains_key(&(to.clone(), id.clone()));
        self.accepted.iter().filter(|(_, sent)| !arrived(sent)).map(|(key, _)| key.as_str()).collect()
    }
}

/// What goes on.
#[derive(Clone, Debug, PartialEq)]
enum Scene {
    /// The server is here.
    Up { ws: String, http: String, is_sending: bool },
    /// It was killed.
    Down,
    /// Go home.
    End,
}

#[derive(Clone)]
struct Actor {
    book: Arc<Mutex<Book>>,
    scene: watch::Receiver<Scene>,
    /// How many were accepted.
    progress: watch::Sender<usize>,
}

impl Actor {
    /// Waits for a server: its addresses, and whether there is more to send. `None` when all is over.
    async fn next(&mut self) -> Option<(String, String, bool)> {
        let scene = self.scene.wait_for(|scene| *scene != Scene::Down).await.ok()?;
        match &*scene {
            Scene::Up { ws, http, is_sending } => Some((ws.clone(), http.clone(), *is_sending)),
            _ => None,
        }
    }

    fn is_sending(&self) -> bool {
        matches!(&*self.scene.borrow(), Scene::Up { is_sending: true, .. })
    }

    /// Waits until so many more were accepted, or nothing is sent any more.
    async fn stay_away(&mut self, messages: u64) {
        let mut progress = self.progress.subscribe();
        let goal = *progress.borrow() + messages as usize;
        let over = |scene: &Scene| !matches!(scene, Scene::Down | Scene::Up { is_sending: true, .. });
        tokio::select! {
            _ = progress.wait_for(|count| *count >= goal) => {}
            _ = self.scene.wait_for(over) => {}
        }
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }

    fn accept(&self, key: &str, to: &str, answer: &Value) {
        let mut book = self.book();
        book.accept(key, to, answer);
        self.progress.send_replace(book.accepted.len());
    }
}

/// What one sender sends: numbered messages, each with a key and a receiver.
fn message(sender: &str, n: u64) -> (String, String, Value) {
    let key = format!("{sender}-{n}");
    let to = format!("receiver-{}", n % RECEIVERS);
    let content = json!({"key": key, "to": to, "filler": "x".repeat((n % 400) as usize)});
    (key, to, content)
}

/// Sends over a socket; what is not answered when the connection ends is sent
/// again over the next one, under the same key.
async fn socket_sender(me: String, mut actor: Actor) {
    let mut next = 0;
    let mut unanswered: VecDeque<u64> = VecDeque::new();
    while let Some((ws, _, is_sending)) = actor.next().await {
        if !is_sending && unanswered.is_empty() {
            return;
        }
        let Some(mut client) = Client::try_connect(&format!("{ws}?user_id={me}")).await else {
            // It is down, or will be in a moment.
            let _ = actor.scene.changed().await;
            continue;
        };
        let mut to_send = std::mem::take(&mut unanswered);
        loop {
            while unanswered.len() < PIPELINE {
                let n = match to_send.pop_front() {
                    Some(n) => n,
                    None if actor.is_sending() => {
                        next += 1;
                        next - 1
                    }
                    None => break,
                };
                unanswered.push_back(n);
                let (key, to, content) = message(&me, n);
                let mut request = super::reliable(&to, &content);
                request["idempotency_key"] = json!(key);
                request["message_id"] = json!(n + 1);
                client.try_send(&request).await;
            }
            if unanswered.is_empty() {
                break;
            }
            let answer: Value = match client.recv("an answer").await {
                Inbound::Text(text) => serde_json::from_str(&text).unwrap(),
                Inbound::Closed(..) => break,
                _ => continue,
            };
            let Some(n) = answer["request_id"].as_u64().map(|id| id - 1) else { continue };
            unanswered.retain(|waiting| *waiting != n);
            if answer["message_type"] == "accepted" {
                let (key, to, _) = message(&me, n);
                actor.accept(&key, &to, &answer["data"]);
            } else {
                assert_eq!(answer["data"]["temporary"], true, "{answer}");
                to_send.push_back(n);
            }
        }
        unanswered.extend(to_send);
    }
}

/// Sends over HTTP, one at a time.
async fn http_sender(me: String, mut actor: Actor) {
    let mut n = 0;
    let mut is_open = false;
    while let Some((_, http, is_sending)) = actor.next().await {
        if !is_sending && !is_open {
            return;
        }
        let (key, to, content) = message(&me, n);
        let body = json!({"content": content, "require_ack": true, "idempotency_key": key}).to_string();
        let url = format!("{http}/api/users/{to}/messages");
        is_open = true;
        let headers = [("Content-Type", "application/json")];
        match try_http("POST", &url, &headers, Some(body.as_bytes())).await {
            Ok(answer) if answer.status == 202 => {
                actor.accept(&key, &to, &answer.json());
                n += 1;
                is_open = false;
            }
            Ok(answer) => assert_eq!(answer.status, 503, "{answer:?}"),
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

/// Receives, acknowledges most, comes and goes, and is away for longer than a server lives.
async fn receiver(me: String, mut actor: Actor, mut dice: Dice) {
    while let Some((ws, ..)) = actor.next().await {
        let Some(mut client) = Client::try_connect(&format!("{ws}?user_id={me}")).await else {
            let _ = actor.scene.changed().await;
            continue;
        };
        actor.book().reconnects += 1;
        let mut stay = dice.below(300) + 20;
        let mut held: Vec<String> = Vec::new();
        let mut patience = tokio::time::interval(Duration::from_secs(1));
        while stay > 0 {
            let inbound = tokio::select! {
                inbound = client.recv("a delivery") => inbound,
                // Where nothing comes any more it is not this one who says what is missing.
                _ = patience.tick() => continue,
                _ = actor.scene.changed() => {
                    if *actor.scene.borrow() == Scene::End {
                        return;
                    }
                    continue;
                }
            };
            let delivery: Value = match inbound {
                Inbound::Text(text) => serde_json::from_str(&text).unwrap(),
                Inbound::Closed(..) => break,
                _ => continue,
            };
            assert_eq!(delivery["require_ack"], true, "{delivery}");
            actor.book().receive(&me, &delivery);
            let is_sending = actor.is_sending();
            // Acknowledged now, with later ones, or not in this stay.
            match dice.below(20) {
                0 if is_sending => {}
                1..6 if is_sending => held.push(text(&delivery["id"])),
                _ => {
                    held.push(text(&delivery["id"]));
                    let ids = json!(std::mem::take(&mut held));
                    client.try_send(&json!({"message_type": "ack", "data": {"ids": ids}})).await;
                }
            }
            if is_sending {
                stay -= 1;
            }
        }
        client.cut();
        let is_long = dice.below(3) == 0;
        actor.stay_away(dice.below(if is_long { 600 } else { 20 })).await;
    }
}

/// Random numbers that a seed repeats (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

fn up(server: &ServerProcess, is_sending: bool) -> Scene {
    Scene::Up { ws: server.ws_url(), http: server.http_url(), is_sending }
}

/// Scrapes while it waits for `is_done`, and checks the sum each time.
async fn watch_until(server: &ServerProcess, book: &Mutex<Book>, is_done: impl Fn(&Ledger, &Book) -> bool) {
    let start = Instant::now();
    loop {
        let ledger = server.metrics().await.ledger();
        ledger.check();
        let book = book.lock().unwrap();
        if is_done(&ledger, &book) {
            return;
        }
        assert!(start.elapsed() < LAST_CALL, "after {LAST_CALL:?} {ledger:?}, and lost are {:?}", book.missing());
    }
}

/// How long the receivers have for what is still to come when nobody sends any more.
const LAST_CALL: Duration = Duration::from_secs(60);

/// The times are short, so that resends and replays are under way when the server is killed.
const KEYS: &str = "ack_timeout: 500ms, ack_retry_interval: 100ms, inbox: {retry_interval: 500ms}, \
    storage: {inbox_max_messages: 1000000, inbox_max_bytes: 1GiB}, idempotency: {window: 1h, max_keys: 10000000}, \
    limits: {stored_per_sender: 10000000}";

/// Kills the server `WSC_KILLS` times (10); `WSC_SEED` repeats the dice of an earlier run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_loses_nothing_that_it_accepted() {
    let kills = number("WSC_KILLS").unwrap_or(10);
    let seed = number("WSC_SEED").unwrap_or_else(|| {
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        time.as_nanos() as u64
    });
    println!("WSC_SEED={seed} WSC_KILLS={kills}");
    let mut dice = Dice(seed);
    let start = Instant::now();
    let mut server = hub(KEYS).await;

    let (scene, watching) = watch::channel(up(&server, true));
    let (progress, mut accepted) = watch::channel(0);
    let actor = Actor { book: Arc::default(), scene: watching, progress };
    let (mut senders, mut receivers) = (JoinSet::new(), JoinSet::new());
    for n in 0..SOCKET_SENDERS {
        senders.spawn(socket_sender(format!("sender-{n}"), actor.clone()));
    }
    for n in 0..HTTP_SENDERS {
        senders.spawn(http_sender(format!("program-{n}"), actor.clone()));
    }
    for n in 0..RECEIVERS {
        receivers.spawn(receiver(format!("receiver-{n}"), actor.clone(), Dice(seed ^ (n + 1))));
    }

    let mut recovered = 0.0;
    let mut slowest = Duration::ZERO;
    for kill in 0..kills {
        // A random number of messages later, wherever the server is then.
        let goal = *accepted.borrow() + dice.below(400) as usize + 1;
        let moved = tokio::time::timeout(WAIT, accepted.wait_for(|count| *count >= goal)).await.is_ok();
        assert!(moved, "nothing is accepted any more; {}", server.log());
        if dice.below(3) == 0 {
            server.metrics().await.ledger().check();
        }
        scene.send_replace(Scene::Down);
        server.kill().await;
        let began = Instant::now();
        server.restart().await;
        slowest = slowest.max(began.elapsed());
        let log = server.log();
        assert!(!log.contains("panicked at"), "{log}");
        let answer = server.get("/metrics").await;
        let ledger = Metrics::parse(answer.text()).ledger();
        ledger.check();
        assert_eq!(ledger.accepted, 0.0, "after kill {kill}: {ledger:?}");
        recovered += ledger.recovered;
        scene.send_replace(up(&server, true));
    }

    // Enough. What is not answered is repeated, what is stored is fetched.
    scene.send_replace(up(&server, false));
    while let Some(ended) = tokio::time::timeout(WAIT * 3, senders.join_next()).await.expect("the senders are answered")
    {
        ended.unwrap();
    }
    let book = Arc::clone(&actor.book);
    watch_until(&server, &book, |_, book| book.missing().is_empty()).await;
    watch_until(&server, &book, |ledger, _| ledger.here() == 0.0).await;
    scene.send_replace(Scene::End);
    while let Some(ended) = receivers.join_next().await {
        ended.unwrap();
    }

    let book = actor.book();
    let ids: BTreeSet<&str> = book.accepted.values().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids.len(), book.accepted.len(), "each key has an id of its own");
    for ((to, id), (key, _)) in &book.received {
        let told = book.accepted.get(key);
        assert_eq!(told, Some(&(id.clone(), to.clone())), "{key} came as {id}");
    }
    let deliveries: u32 = book.received.values().map(|(_, times)| times).sum();
    println!(
        "{kills} kills in {:?}: {} accepted, {} received, {} lost, {} duplicates with the same id \
         ({} resends, {} replays), {} answers repeated, {} connections of receivers, \
         {recovered} found at restarts, the slowest start took {slowest:?}",
        start.elapsed(),
        book.accepted.len(),
        book.received.len(),
        book.missing().len(),
        deliveries as usize - book.received.len(),
        book.resends,
        book.replays,
        book.repeated,
        book.reconnects,
    );
    assert!(recovered > 10.0 * kills as f64, "hardly anything was at stake: {recovered} found at restarts");
}
