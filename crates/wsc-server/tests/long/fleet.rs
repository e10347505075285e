//! Clients that stay connected, many to a process, and remember what came to them.

use std::{cell::RefCell, collections::BTreeMap, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{sync::Semaphore, sync::watch, task::LocalSet};
use wsc_client::{Backoff, Cause, Client, Event};

use crate::{
    child::{Child, Requests, Role, answer, done},
    peer::{Answer, Heard, Peer},
    support::{source, unix_us},
};

/// What a parent asks a fleet for.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// Connects so many; answers once all are.
    Connect {
        server: SocketAddr,
        kind: Kind,
        count: usize,
    },
    /// Answers once so many have been closed since they were connected.
    Closed(usize),
    /// Answers once so many are connected to the node of this name.
    On {
        node: String,
        count: usize,
    },
    /// Answers once all of these have come, to whomever.
    Got(Vec<String>),
    Report,
    /// Forgets what came, and who was closed.
    Forget,
}

/// What the clients of a fleet are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// Sockets that acknowledge nothing, and do not come back.
    Plain,
    /// `wsc-client`, which acknowledges and comes back.
    Client,
}

impl Kind {
    /// Who client `number` is.
    pub(crate) fn user(self, number: usize) -> String {
        match self {
            Self::Plain => format!("plain-{number}"),
            Self::Client => format!("client-{number}"),
        }
    }
}

/// What became of a fleet so far.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) closes: Vec<Close>,
    /// Message id → how often it came to an application.
    pub(crate) got: BTreeMap<String, usize>,
    /// Node → how many are connected to it.
    pub(crate) nodes: BTreeMap<String, usize>,
}

/// How a connection ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Close {
    /// When, in microseconds since 1970.
    pub(crate) at_us: u64,
    /// 1006 without a close frame.
    pub(crate) code: u16,
    pub(crate) retry_after_ms: Option<u64>,
    pub(crate) reconnect: Option<bool>,
}

impl Close {
    /// An end without a close frame, now.
    fn cut() -> Self {
        Self { at_us: unix_us(), code: 1006, retry_after_ms: None, reconnect: None }
    }

    fn of(cause: &Cause) -> Self {
        let Cause::Closed(closing) = cause else { return Self::cut() };
        let retry_after_ms = closing.retry_after.map(|after| after.as_millis() as u64);
        Self { at_us: unix_us(), code: closing.code.0, retry_after_ms, reconnect: closing.reconnect }
    }
}

/// A fleet, in a process of its own.
#[derive(Debug)]
pub(crate) struct Fleet(Child);

impl Fleet {
    pub(crate) fn start() -> Self {
        Self(Child::start(Role::Fleet))
    }

    /// Connects so many more.
    pub(crate) async fn connect(&mut self, server: SocketAddr, kind: Kind, count: usize) {
        self.0.ask::<Value>(&Request::Connect { server, kind, count }, LIMIT).await;
    }

    /// Waits until so many have been closed.
    pub(crate) async fn closed(&mut self, count: usize) {
        self.0.ask::<Value>(&Request::Closed(count), LIMIT).await;
    }

    /// Waits until so many are connected to this node.
    pub(crate) async fn on(&mut self, node: &str, count: usize) {
        self.0.ask::<Value>(&Request::On { node: node.to_owned(), count }, LIMIT).await;
    }

    /// Waits until these messages have come; says which of them did not.
    pub(crate) async fn missing(&mut self, ids: Vec<String>) -> Vec<String> {
        self.0.ask(&Request::Got(ids), LIMIT).await
    }

    /// Forgets what came, and who was closed.
    pub(crate) async fn forget(&mut self) {
        self.0.ask::<Value>(&Request::Forget, LIMIT).await;
    }

    pub(crate) async fn report(&mut self) -> Report {
        self.0.ask(&Request::Report, LIMIT).await
    }
}

/// How long anything takes at most.
const LIMIT: Duration = Duration::from_secs(180);

/// The child.
pub(crate) async fn run(mut requests: Requests) {
    LocalSet::new()
        .run_until(async {
            let crew = Crew::default();
            while let Some(request) = requests.next().await {
                match request {
                    Request::Connect { server, kind, count } => {
                        crew.connect(server, kind, count).await;
                        done();
                    }
                    Request::Closed(count) => {
                        crew.until(|report| report.closes.len() >= count).await;
                        done();
                    }
                    Request::On { node, count } => {
                        crew.until(|report| report.nodes.get(&node).is_some_and(|&there| there >= count)).await;
                        done();
                    }
                    Request::Got(ids) => {
                        let is_missing = |report: &Report, id: &String| !report.got.contains_key(id);
                        let all = crew.until(|report| !ids.iter().any(|id| is_missing(report, id)));
                        // Who is late is named.
                        let _ = tokio::time::timeout(LIMIT / 3, all).await;
                        let report = crew.report.borrow();
                        answer(&ids.iter().filter(|id| is_missing(&report, id)).collect::<Vec<_>>());
                    }
                    Request::Report => answer(&*crew.report.borrow()),
                    Request::Forget => {
                        crew.note(|report| {
                            report.closes.clear();
                            report.got.clear();
                        });
                        done();
                    }
                }
            }
        })
        .await;
}

/// The clients of this process. All on one thread.
#[derive(Clone, Default)]
struct Crew {
    report: Rc<RefCell<Report>>,
    /// Counts what was noted.
    noted: Rc<watch::Sender<u64>>,
}

impl Crew {
    fn note(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.report.borrow_mut());
        self.noted.send_modify(|noted| *noted += 1);
    }

    async fn until(&self, is_so: impl Fn(&Report) -> bool) {
        let mut noted = self.noted.subscribe();
        // It cannot be gone: it is ours.
        let _ = noted.wait_for(|_| is_so(&self.report.borrow())).await;
    }

    async fn connect(&self, server: SocketAddr, kind: Kind, count: usize) {
        // So many handshakes at a time: this is not the storm.
        let places = Arc::new(Semaphore::new(64));
        let mut tasks = Vec::with_capacity(count);
        for number in 0..count {
            let place = Arc::clone(&places).acquire_owned().await.unwrap();
            let crew = self.clone();
            let (ready, is_ready) = tokio::sync::oneshot::channel();
            tasks.push(is_ready);
            tokio::task::spawn_local(async move {
                match kind {
                    Kind::Plain => crew.plain(server, number, || drop((place, ready.send(())))).await,
                    Kind::Client => crew.client(server, number, || drop((place, ready.send(())))).await,
                }
            });
        }
        for is_ready in tasks {
            is_ready.await.expect("a client did not get in");
        }
    }

    async fn plain(&self, server: SocketAddr, number: usize, ready: impl FnOnce()) {
        let query = format!("user_id={}", Kind::Plain.user(number));
        let mut peer = match Peer::connect(server, source(number), &query, true).await {
            Ok(Answer::Upgraded(peer)) => peer,
            other => panic!("client {number} did not get in: {other:?}"),
        };
        let Heard::Text(connected) = peer.next().await else { panic!("client {number} was not connected") };
        let connected: Value = serde_json::from_str(&connected).unwrap();
        let node = connected["data"]["node_id"].as_str().unwrap_or_default().to_owned();
        self.note(|report| *report.nodes.entry(node.clone()).or_default() += 1);
        ready();
        loop {
            match peer.next().await {
                Heard::Text(text) => {
                    let frame: Value = serde_json::from_str(&text).unwrap();
                    if let Some(id) = frame["id"].as_str() {
                        self.note(|report| *report.got.entry(id.to_owned()).or_default() += 1);
                    }
                }
                Heard::Closed { code, reason } => {
                    let reason: Value = serde_json::from_str(&reason).unwrap_or_default();
                    let (retry_after_ms, reconnect) =
                        (reason["retry_after_ms"].as_u64(), reason["reconnect"].as_bool());
                    break self.ended(&node, Close { at_us: unix_us(), code, retry_after_ms, reconnect });
                }
                Heard::Cut => break self.ended(&node, Close::cut()),
            }
        }
        peer.reset();
    }

    async fn client(&self, server: SocketAddr, number: usize, ready: impl FnOnce()) {
        let builder = Client::builder(format!("ws://{server}/ws"))
            .user_id(Kind::Client.user(number))
            .auto_ack(true)
            // A crowd on one machine: a handshake may wait for a turn.
            .connect_timeout(Duration::from_secs(30))
            .backoff(Backoff::new(Duration::from_millis(500), Duration::from_secs(5)));
        // The handle is kept: the client ends with it.
        let (_client, mut events) = builder.start().unwrap();
        let mut ready = Some(ready);
        // While connected: to which.
        let mut node = None::<String>;
        while let Some(event) = events.next().await {
            match event {
                Event::Connected(connected) => {
                    self.note(|report| *report.nodes.entry(connected.node_id.clone()).or_default() += 1);
                    node = Some(connected.node_id);
                    if let Some(ready) = ready.take() {
                        ready();
                    }
                }
                Event::Delivery(delivery) => {
                    self.note(|report| *report.got.entry(delivery.id).or_default() += 1);
                }
                // What else ends is an attempt to come back.
                Event::Disconnected { cause, .. } => {
                    if let Some(node) = node.take() {
                        self.ended(&node, Close::of(&cause));
                    }
                }
                Event::Closed { cause } => panic!("client {number} gave up: {cause}"),
                _ => {}
            }
        }
    }

    fn ended(&self, node: &str, close: Close) {
        self.note(|report| {
            report.closes.push(close);
            if let Some(there) = report.nodes.get_mut(node) {
                *there -= 1;
            }
        });
    }
}
