//! A hub with an inbox, as far as a client can tell: it keeps messages that ask for an acknowledgement across its own
//! restarts, sends them again, replays them, and knows the keys of messages it has accepted. What goes wrong on the way
//! is drawn from a seed.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    select,
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_tungstenite::tungstenite::Message as Frame;
use wsc_client::{Builder, Outcome};

use crate::hub::{Hub, Peer};

/// What may go wrong, each with a chance of one in so many frames; `None` for never.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    pub(crate) seed: u64,
    /// A frame of a client is lost with its connection.
    pub(crate) lost: Option<u32>,
    /// A frame is taken, and the connection ends before its answer.
    pub(crate) unanswered: Option<u32>,
    /// The hub is killed with all its connections, and starts again.
    pub(crate) restart: Option<u32>,
    /// A message is refused for the moment.
    pub(crate) refused: Option<u32>,
    /// A frame is taken and simply not answered.
    pub(crate) swallowed: Option<u32>,
    /// So much may go wrong in all, so that there is an end.
    pub(crate) budget: u32,
}

/// What is on disk.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) messages: Vec<Stored>,
    keys: HashMap<(String, String, String), usize>,
    pub(crate) restarts: u32,
    pub(crate) faults: u32,
    /// Copies sent in all.
    pub(crate) transmissions: u32,
    /// Acknowledgements of what was settled already.
    pub(crate) late_acks: u32,
    /// Frames with acknowledgements.
    pub(crate) ack_frames: u32,
}

#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) id: String,
    pub(crate) content: Value,
    pub(crate) outcome: Outcome,
    pub(crate) reason: Option<String>,
    from: String,
    to: String,
    receipt: bool,
    attempts: u32,
    resend_at: Option<Instant>,
}

/// A connection, as the others see it.
struct Seat {
    user: String,
    push: mpsc::UnboundedSender<Value>,
    /// Messages that were sent here.
    sent: HashSet<String>,
}

#[derive(Default)]
struct State {
    store: Store,
    seats: HashMap<u64, Seat>,
    last_seat: u64,
    random: fastrand::Rng,
    faults: Faults,
}

/// The hub that runs beside a test.
pub(crate) struct InboxHub {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<()>,
    restart: mpsc::UnboundedSender<()>,
    _tasks: JoinSet<()>,
}

impl InboxHub {
    pub(crate) fn start(faults: Faults) -> (Self, Builder) {
        let (hub, builder) = Hub::new();
        let random = fastrand::Rng::with_seed(faults.seed);
        let state = Arc::new(Mutex::new(State { random, faults, ..State::default() }));
        let (changed, _) = watch::channel(());
        let (restart, restarts) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(run(hub, Arc::clone(&state), changed.clone(), restart.clone(), restarts));
        (Self { state, changed, restart, _tasks: tasks }, builder)
    }

    /// Kills it and starts it again.
    pub(crate) fn restart(&self) {
        self.restart.send(()).unwrap();
    }

    /// Lets one more thing go wrong.
    pub(crate) fn lose_next(&self) {
        self.state.lock().unwrap().faults.budget = 1;
    }

    pub(crate) fn read<R>(&self, read: impl FnOnce(&Store) -> R) -> R {
        read(&self.state.lock().unwrap().store)
    }

    /// Waits until this can be said of what is on disk.
    pub(crate) async fn until(&self, mut condition: impl FnMut(&Store) -> bool) {
        let mut changed = self.changed.subscribe();
        while !self.read(&mut condition) {
            changed.changed().await.unwrap();
        }
    }
}

/// Takes connections, sends again what is due, and dies and lives again.
async fn run(
    mut hub: Hub,
    state: Arc<Mutex<State>>,
    changed: watch::Sender<()>,
    restart: mpsc::UnboundedSender<()>,
    mut restarts: mpsc::UnboundedReceiver<()>,
) {
    let mut connections = JoinSet::new();
    let mut clock = interval(Duration::from_secs(1));
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        select! {
            // A stream that is dropped on the way was an attempt that failed.
            peer = hub.accept() => {
                connections.spawn(serve(peer, Arc::clone(&state), changed.clone(), restart.clone()));
            }
            Some(()) = restarts.recv() => {
                connections.shutdown().await;
                let mut state = state.lock().unwrap();
                state.seats.clear();
                state.store.restarts += 1;
                for message in &mut state.store.messages {
                    message.resend_at = None;
                    if message.outcome == Outcome::Pending {
                        message.outcome = Outcome::Stored;
                    }
                }
            }
            Some(ended) = connections.join_next() => ended.unwrap(),
            _ = clock.tick() => state.lock().unwrap().send_again(),
        }
        changed.send_replace(());
    }
}

/// Serves one connection to its end.
async fn serve(
    mut peer: Peer,
    state: Arc<Mutex<State>>,
    changed: watch::Sender<()>,
    restart: mpsc::UnboundedSender<()>,
) {
    let user = peer.target.split("user_id=").nth(1).unwrap().split('&').next().unwrap().to_owned();
    let (push, mut pushed) = mpsc::unbounded_channel();
    let seat = state.lock().unwrap().connected(user, push.clone());
    loop {
        select! {
            frame = peer.next() => {
                let Some(Ok(frame)) = frame else { break };
                let Frame::Text(text) = frame else { continue };
                let request: Value = serde_json::from_str(&text).unwrap();
                let mut state = state.lock().unwrap();
                if state.happens(|faults| faults.lost) {
                    break;
                }
                let answer = state.take(seat, &request);
                changed.send_replace(());
                if state.happens(|faults| faults.restart) {
                    restart.send(()).unwrap();
                    break;
                }
                if state.happens(|faults| faults.unanswered) {
                    break;
                }
                if !state.happens(|faults| faults.swallowed) && let Some(answer) = answer {
                    push.send(answer).unwrap();
                }
            }
            Some(frame) = pushed.recv() => {
                if !peer.try_send(frame).await {
                    break;
                }
            }
        }
    }
    state.lock().unwrap().disconnected(seat);
}

const WINDOW: usize = 16;
const ACK_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_INTERVAL: Duration = Duration::from_secs(60);
const MAX_RETRIES: u32 = 3;

impl State {
    fn happens(&mut self, what: impl Fn(&Faults) -> Option<u32>) -> bool {
        let Some(chance) = what(&self.faults).filter(|_| self.faults.budget > 0) else {
            return false;
        };
        let happens = self.random.u32(0..chance) == 0;
        self.faults.budget -= u32::from(happens);
        self.store.faults += u32::from(happens);
        happens
    }

    fn connected(&mut self, user: String, push: mpsc::UnboundedSender<Value>) -> u64 {
        self.last_seat += 1;
        self.seats.insert(self.last_seat, Seat { user, push, sent: HashSet::new() });
        self.deliver(self.last_seat, true);
        self.last_seat
    }

    fn disconnected(&mut self, seat: u64) {
        // A restart was faster.
        let Some(Seat { user, .. }) = self.seats.remove(&seat) else { return };
        if !self.seats.values().any(|seat| seat.user == user) {
            for message in self.store.messages.iter_mut().filter(|message| message.to == user) {
                if message.outcome == Outcome::Pending {
                    message.outcome = Outcome::Stored;
                    message.resend_at = None;
                }
            }
        }
    }

    /// Sends on this connection what it has not had yet, oldest first, as far as the window allows.
    fn deliver(&mut self, seat: u64, offline: bool) {
        let Some(seat) = self.seats.get_mut(&seat) else { return };
        let mut unsettled = 0;
        for message in &mut self.store.messages {
            if message.to != seat.user || message.outcome.is_final() {
                continue;
            }
            unsettled += 1;
            if unsettled > WINDOW {
                break;
            }
            if seat.sent.insert(message.id.clone()) {
                message.outcome = Outcome::Pending;
                self.store.transmissions += 1;
                message.send(seat, offline);
            }
        }
    }

    /// Sends again what was not acknowledged in time.
    fn send_again(&mut self) {
        let now = Instant::now();
        for message in &mut self.store.messages {
            if message.outcome.is_final() || message.resend_at.is_none_or(|at| now < at) {
                continue;
            }
            if message.attempts > MAX_RETRIES {
                message.attempts = 0;
                message.outcome = Outcome::Stored;
                message.resend_at = Some(now + RETRY_INTERVAL);
                continue;
            }
            message.outcome = Outcome::Pending;
            let to = message.to.clone();
            for seat in self.seats.values().filter(|seat| seat.user == to) {
                self.store.transmissions += 1;
                message.send(seat, false);
            }
        }
    }

    fn take(&mut self, seat: u64, request: &Value) -> Option<Value> {
        let user = self.seats.get(&seat)?.user.clone();
        let reply = |message_type: &str, data: Value| json!({"message_type": message_type, "request_id": request["message_id"], "data": data, "timestamp": 1});
        let error = |code: u16| reply("error", json!({"code": code, "message": "no", "temporary": code == 4003}));
        let data = &request["data"];
        match request["message_type"].as_str().unwrap() {
            "direct_message" => {
                let to = data["target_id"].as_str().unwrap().to_owned();
                let key = (user.clone(), to.clone(), request["idempotency_key"].as_str().unwrap().to_owned());
                if let Some(known) = self.store.keys.get(&key) {
                    let known = &self.store.messages[*known];
                    if known.content != data["content"] {
                        return Some(error(4004));
                    }
                    return Some(reply("accepted", json!({"id": known.id, "outcome": "stored", "duplicate": true})));
                }
                if self.happens(|faults| faults.refused) {
                    return Some(error(4003));
                }
                let id = format!("m{}", self.store.messages.len());
                self.store.keys.insert(key, self.store.messages.len());
                self.store.messages.push(Stored {
                    id: id.clone(),
                    content: data["content"].clone(),
                    outcome: Outcome::Stored,
                    reason: None,
                    from: user,
                    to: to.clone(),
                    receipt: request["receipt"] == true,
                    attempts: 0,
                    resend_at: None,
                });
                self.deliver_to(&to);
                Some(reply("accepted", json!({"id": id, "outcome": self.store.messages.last().unwrap().outcome})))
            }
            "message_status" => {
                let id = data["id"].as_str().unwrap();
                let message = self.store.messages.iter().find(|message| message.id == id && message.from == user);
                Some(message.map_or_else(|| error(1001), |message| reply("message_status", message.status())))
            }
            kind @ ("ack" | "nack") => {
                self.store.ack_frames += 1;
                for id in data["ids"].as_array().unwrap() {
                    self.settle(&user, id.as_str().unwrap(), kind, data["reason"].as_str());
                }
                self.deliver_to(&user);
                None
            }
            other => panic!("{other}"),
        }
    }

    /// The first word of any connection of the user counts; late and foreign ones are ignored.
    fn settle(&mut self, user: &str, id: &str, kind: &str, reason: Option<&str>) {
        let messages = &mut self.store.messages;
        let Some(message) = messages.iter_mut().find(|message| message.id == id && message.to == user) else { return };
        if message.outcome.is_final() {
            self.store.late_acks += 1;
            return;
        }
        message.outcome = if kind == "ack" { Outcome::Acked } else { Outcome::Rejected };
        message.reason = reason.map(str::to_owned);
        if message.receipt {
            let notice = json!({"message_type": "message_outcome", "data": message.status(), "timestamp": 1});
            for seat in self.seats.values().filter(|seat| seat.user == message.from) {
                let _ = seat.push.send(notice.clone());
            }
        }
    }

    fn deliver_to(&mut self, user: &str) {
        let seats: Vec<_> = self.seats.iter().filter(|(_, seat)| seat.user == user).map(|(seat, _)| *seat).collect();
        for seat in seats {
            self.deliver(seat, false);
        }
    }
}

impl Stored {
    fn send(&mut self, seat: &Seat, offline: bool) {
        self.attempts += 1;
        self.resend_at = Some(Instant::now() + ACK_TIMEOUT);
        let data = json!({"content": self.content, "sender_id": self.from, "timestamp": 1});
        let mut frame = json!({
            "id": self.id, "message_type": "direct_message", "data": data, "timestamp": 1, "require_ack": true,
        });
        if self.attempts > 1 {
            frame["attempt"] = json!(self.attempts);
        }
        if offline {
            frame["source"] = json!("offline");
        }
        let _ = seat.push.send(frame);
    }

    fn status(&self) -> Value {
        let mut recipient = json!({"user_id": self.to, "outcome": self.outcome, "attempts": self.attempts});
        if let Some(reason) = &self.reason {
            recipient["reason"] = json!(reason);
        }
        json!({"id": self.id, "recipients": [recipient]})
    }
}
