//! Virtual time, and what happens of itself: people send, come and go, stores fail, nodes crash.

use std::collections::BTreeMap;

use bytes::Bytes;
use fastrand::Rng;
use uuid::Uuid;
use wsc_delivery::mailbox::{Kind, Letter, MailboxConfig, Millis};

use crate::{client::Conn, node::Node, oracle::Oracle, store::Store};

type Event = Box<dyn FnOnce(&mut World)>;

pub(crate) struct World {
    pub(crate) now: Millis,
    pub(crate) rng: Rng,
    pub(crate) config: MailboxConfig,
    pub(crate) nodes: Vec<Option<Node>>,
    pub(crate) conns: BTreeMap<Uuid, Conn>,
    pub(crate) store: Store,
    pub(crate) oracle: Oracle,
    /// No more faults; everybody is willing.
    pub(crate) is_quiet: bool,
    /// How long it goes on until then.
    pub(crate) length: Millis,
    pub(crate) trace: Vec<String>,
    is_traced: bool,
    /// By time, and then in the order in which they were planned. With the run of the node that they belong to.
    events: BTreeMap<(Millis, u64), (Option<u64>, Event)>,
    planned: u64,
    /// Which run of the node this is.
    epoch: u64,
    ids: u64,
}

impl World {
    pub(crate) fn new(seed: u64, is_traced: bool) -> Self {
        let mut rng = Rng::with_seed(seed);
        let users = rng.usize(1..4);
        let mut config = MailboxConfig::default();
        let ms = std::time::Duration::from_millis;
        config.ack_timeout = ms([100, 1_000, 5_000][rng.usize(0..3)]);
        config.ack_retry_interval = ms([0, 50, 2_000][rng.usize(0..3)]);
        config.ack_max_retries = rng.u32(0..4);
        config.enable_offline_ack = rng.u32(0..4) > 0;
        config.window_messages = [1, 2, 5, 128][rng.usize(0..4)];
        config.window_bytes = [1, 150, 1_000, 256 << 10][rng.usize(0..4)];
        config.retry_interval = ms([1_000, 10_000, 60_000][rng.usize(0..3)]);
        config.held_bytes = [1, 300, 1 << 20][rng.usize(0..3)];
        let limit = [5, 30, 1_000][rng.usize(0..3)];
        let length = rng.u64(5_000..60_000);
        Self {
            now: 1_000_000,
            rng,
            config,
            nodes: (0..users).map(|_| None).collect(),
            conns: BTreeMap::new(),
            store: Store::new(users, limit),
            oracle: Oracle::default(),
            is_quiet: false,
            length,
            trace: Vec::new(),
            is_traced,
            events: BTreeMap::new(),
            planned: 0,
            epoch: 0,
            ids: 0,
        }
    }

    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        if self.is_traced {
            let line = format!("{:>8} {}", self.now - 1_000_000, shorten(&line()));
            self.trace.push(line);
        }
    }

    pub(crate) fn new_id(&mut self) -> Uuid {
        self.ids += 1;
        // In the order in which they are made, as UUIDv7 mostly are, or not.
        let random = if self.rng.bool() { 0 } else { self.rng.u128(0..1 << 100) };
        Uuid::from_u128(random << 24 | u128::from(self.ids))
    }

    /// Plans what belongs to this run of the node, and ends with it.
    pub(crate) fn after(&mut self, delay: Millis, event: impl FnOnce(&mut Self) + 'static) {
        self.plan(delay, Some(self.epoch), Box::new(event));
    }

    /// Plans what happens whether or not the node is there.
    fn after_all(&mut self, delay: Millis, event: impl FnOnce(&mut Self) + 'static) {
        self.plan(delay, None, Box::new(event));
    }

    fn plan(&mut self, delay: Millis, epoch: Option<u64>, event: Event) {
        self.planned += 1;
        self.events.insert((self.now + delay, self.planned), (epoch, event));
    }

    pub(crate) fn run(&mut self) {
        let (users, length) = (self.nodes.len(), self.length);
        for user in 0..users {
            let bursts = self.rng.usize(3..25);
            for _ in 0..bursts {
                let at = self.rng.u64(0..length);
                self.after_all(at, move |world| world.send_some(user));
            }
            for _ in 0..self.rng.usize(1..20) {
                let at = self.rng.u64(0..length);
                self.after_all(at, move |world| world.come(user));
            }
        }
        for _ in 0..self.rng.usize(0..4) {
            let (at, ms) = (self.rng.u64(0..length), self.rng.u64(1..5_000));
            self.after_all(at, move |world| world.store_fails(ms));
        }
        for _ in 0..self.rng.usize(0..3) {
            let at = self.rng.u64(0..length);
            self.after_all(at, Self::crash);
        }
        if self.rng.u32(0..4) == 0 {
            let at = self.rng.u64(0..length);
            self.after_all(at, |world| {
                world.config.ack_timeout = std::time::Duration::from_millis(world.rng.u64(1..6_000));
                world.note(|| "settings are changed".to_owned());
            });
        }
        self.sweep();
        self.after_all(length, Self::become_quiet);

        // After the quiet begins, everything has time for several rounds of attempts, rests and retries.
        let end = self.now + length + 400_000;
        while let Some(((at, _), (epoch, event))) = self.events.pop_first() {
            if at > end || self.is_quiet && self.is_done() {
                break;
            }
            if epoch.is_none_or(|epoch| epoch == self.epoch) {
                self.now = at;
                event(self);
            }
        }
        self.check_end();
    }

    fn send_some(&mut self, user: usize) {
        if self.is_quiet {
            return;
        }
        for _ in 0..[1, 1, 3, 20][self.rng.usize(0..4)] {
            let len = [1, 50, 100, 400][self.rng.usize(0..4)];
            let body = Bytes::from(vec![b'x'; len]);
            let expires_at = match self.rng.u32(0..4) {
                0 => Some(self.now + self.rng.u64(0..20_000)),
                _ => None,
            };
            let sessions: Vec<_> = self.conns.values().filter(|c| c.user == user).map(|c| c.session).collect();
            let only = match self.rng.u32(0..6) {
                0 if !sessions.is_empty() => Some(sessions[self.rng.usize(0..sessions.len())]),
                _ => None,
            };
            let kind = if self.rng.u32(0..3) == 0 { Kind::Plain } else { Kind::Reliable };
            let letter = Letter { id: self.new_id(), kind, body, expires_at, only, except: None };
            self.send(user, letter);
        }
    }

    fn come(&mut self, user: usize) {
        if !self.is_quiet {
            self.connect(user);
        }
    }

    fn crash(&mut self) {
        if self.is_quiet {
            return;
        }
        self.note(|| "the node crashes".to_owned());
        self.epoch += 1;
        self.conns.clear();
        self.store.crash();
        for node in &mut self.nodes {
            *node = None;
        }
        self.oracle.crashed(self.nodes.len(), &self.store);
        self.sweep();
    }

    fn become_quiet(&mut self) {
        self.note(|| "quiet".to_owned());
        let sessions: Vec<_> = self.conns.keys().copied().collect();
        for session in sessions {
            self.hang_up(session);
        }
        self.is_quiet = true;
        // Long enough for those who are willing.
        self.config.ack_timeout = std::time::Duration::from_secs(1);
        self.store_fails(0);
        for user in 0..self.nodes.len() {
            self.connect_for_good(user);
        }
    }

    fn connect_for_good(&mut self, user: usize) {
        // Those who have hung up may still count.
        if self.conns.values().filter(|conn| conn.user == user).count() >= 4 {
            self.after_all(5_000, move |world| world.connect_for_good(user));
        } else {
            self.connect(user);
        }
    }

    fn is_done(&self) -> bool {
        self.nodes.iter().all(Option::is_none)
            && self.oracle.is_settled()
            && (0..self.nodes.len()).all(|user| self.store.letters(user).next().is_none())
    }
}

/// Leaves the bodies and the random part of the ids out.
fn shorten(line: &str) -> String {
    let mut short = String::new();
    let mut rest = line;
    while let Some(at) = rest.find('-').filter(|at| *at >= 8 && rest.len() >= at + 28) {
        let (before, id) = rest.split_at(at - 8);
        if id.as_bytes()[13] == b'-' && id.as_bytes()[23] == b'-' {
            short.push_str(before);
            short.push_str(id[30..36].trim_start_matches('0'));
            rest = &id[36..];
        } else {
            break;
        }
    }
    short.push_str(rest);
    while short.contains("xx") {
        short = short.replace("xx", "x");
    }
    short
}
