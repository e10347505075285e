//! How fast established clients hear each other while something else goes on.

use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::JoinHandle, time::MissedTickBehavior};

use crate::{
    peer::{Answer, Heard, Peer},
    support::{per_mille, source},
};

/// Pairs of clients of which one writes to the other, again and again. In a `LocalSet`.
#[derive(Debug)]
pub(crate) struct Pace {
    epoch: Instant,
    seen: Seen,
    tasks: Vec<JoinHandle<()>>,
}

/// What was sent, and what came.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// When it was sent, and how long it took, in microseconds.
    heard: Rc<RefCell<Vec<(u64, u64)>>>,
    sent: Rc<RefCell<Vec<u64>>>,
    changes: Rc<watch::Sender<u64>>,
}

/// How long messages took that were sent in some time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) messages: usize,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    pub(crate) max: Duration,
}

impl Pace {
    /// Connects so many clients, half of which begin to write.
    pub(crate) async fn start(server: SocketAddr, clients: usize) -> Self {
        let (epoch, seen) = (Instant::now(), Seen::default());
        let mut tasks = Vec::new();
        for pair in 0..clients / 2 {
            let receiver = connect(server, 2 * pair, &format!("pace-to-{pair}")).await;
            let sender = connect(server, 2 * pair + 1, &format!("pace-from-{pair}")).await;
            tasks.push(tokio::task::spawn_local(listen(receiver, epoch, seen.clone())));
            tasks.push(tokio::task::spawn_local(write(sender, pair, clients / 2, epoch, seen.clone())));
        }
        Self { epoch, seen, tasks }
    }

    /// What was sent in so long.
    pub(crate) async fn window(&self, length: Duration) -> Window {
        // Not to wait for something: the window is what is measured.
        self.during(tokio::time::sleep(length)).await.0
    }

    /// What was sent while something else went on, and what came of that.
    ///
    /// # Panics
    ///
    /// Where a message does not come within ten seconds, or a client was disconnected.
    pub(crate) async fn during<F: Future>(&self, other: F) -> (Window, F::Output) {
        let begin = self.epoch.elapsed().as_micros() as u64;
        let output = other.await;
        let end = self.epoch.elapsed().as_micros() as u64;
        let is_within = |at: &u64| (begin..end).contains(at);
        let sent = self.seen.sent.borrow().iter().filter(|at| is_within(at)).count();
        let heard = || self.seen.heard.borrow().iter().filter(|(at, _)| is_within(at)).count();
        let mut changes = self.seen.changes.subscribe();
        let all = changes.wait_for(|_| heard() >= sent);
        let came = tokio::time::timeout(Duration::from_secs(10), all).await;
        assert!(came.is_ok(), "{} of {sent} messages of the established clients came", heard());
        assert!(!self.tasks.iter().any(JoinHandle::is_finished), "an established client was disconnected");
        let mut took: Vec<_> =
            self.seen.heard.borrow().iter().filter(|(at, _)| is_within(at)).map(|(_, took)| *took).collect();
        assert!(!took.is_empty(), "nothing was sent");
        let mut at = |of_thousand| Duration::from_micros(per_mille(&mut took, of_thousand));
        let (p50, p99, max) = (at(500), at(990), at(1000));
        self.seen.sent.borrow_mut().clear();
        self.seen.heard.borrow_mut().clear();
        (Window { messages: sent, p50, p99, max }, output)
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Asserts what the project promises: the established notice next to nothing. `(quiet, disturbed)`, of each round.
pub(crate) fn check(name: &str, rounds: &[(Window, Window)]) {
    let median = |of: fn(&(Window, Window)) -> Duration| per_mille(&mut rounds.iter().map(of).collect::<Vec<_>>(), 500);
    let (quiet, disturbed) = (median(|(quiet, _)| quiet.p99), median(|(_, disturbed)| disturbed.p99));
    for (quiet, disturbed) in rounds {
        println!(
            "{name}: quiet p50 {:?} p99 {:?} max {:?} ({}); disturbed p50 {:?} p99 {:?} max {:?} ({})",
            quiet.p50,
            quiet.p99,
            quiet.max,
            quiet.messages,
            disturbed.p50,
            disturbed.p99,
            disturbed.max,
            disturbed.messages
        );
    }
    println!("{name}: p99 of the established, median of {}: {quiet:?} quiet, {disturbed:?} disturbed", rounds.len());
    let bound = quiet.mul_f64(1.2).max(quiet + Duration::from_millis(10));
    assert!(disturbed <= bound, "{name}: p99 {disturbed:?} against {quiet:?} undisturbed; {bound:?} would be fine");
}

async fn connect(server: SocketAddr, number: usize, user: &str) -> Peer {
    let mut peer = match Peer::connect(server, source(number), &format!("user_id={user}"), true).await {
        Ok(Answer::Upgraded(peer)) => peer,
        other => panic!("{user} did not get in: {other:?}"),
    };
    let Heard::Text(_) = peer.next().await else { panic!("{user} was not connected") };
    peer
}

async fn listen(mut peer: Peer, epoch: Instant, seen: Seen) {
    while let Heard::Text(text) = peer.next().await {
        let now = epoch.elapsed().as_micros() as u64;
        let content = text.split("\"content\":").nth(1).unwrap_or_default();
        let digits = content.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        let Ok(at) = digits.parse::<u64>() else { continue };
        seen.heard.borrow_mut().push((at, now - at));
        seen.changes.send_modify(|changes| *changes += 1);
    }
}

async fn write(mut peer: Peer, pair: usize, pairs: usize, epoch: Instant, seen: Seen) {
    // Evenly spread, so that the senders do not meet.
    let first = tokio::time::Instant::now() + EVERY.mul_f64(pair as f64 / pairs as f64);
    let mut ticks = tokio::time::interval_at(first, EVERY);
    // What could not be sent in time is sent late, not left out.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let at = epoch.elapsed().as_micros() as u64;
                seen.sent.borrow_mut().push(at);
                let data = format!("{{\"target_id\":\"pace-to-{pair}\",\"content\":{at}}}");
                if peer.send(&format!("{{\"message_type\":\"direct_message\",\"data\":{data}}}")).await.is_err() {
                    return;
                }
            }
            heard = peer.next() => match heard {
                Heard::Text(text) => panic!("an established client heard {text}"),
                Heard::Closed { .. } | Heard::Cut => return,
            }
        }
    }
}

/// How often each sender writes.
const EVERY: Duration = Duration::from_millis(50);
