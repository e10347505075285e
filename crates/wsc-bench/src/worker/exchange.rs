//! Messages from one connection to one.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use super::{
    Load, Names,
    inbound::{Recognised, Recognition},
    sockets::{Incident, Sockets},
};
use crate::{
    latency::{Latency, Schedule},
    message::{Done, Exchange, ExchangeKind, Limit, Pace},
};

/// Sends from each connection, to itself or to another, at a pace.
#[derive(Debug)]
pub(crate) struct Exchanging {
    exchange: Exchange,
    recognition: Recognition,
    /// For each connection, what it sends.
    texts: Vec<Vec<u8>>,
    /// For each connection, when what it sent and what has not arrived was to be sent, and was. Messages from one to
    /// one keep their order, so the oldest is the next to arrive.
    under_way: Vec<VecDeque<(Instant, Instant)>>,
    sent: u64,
    arrived: u64,
    schedule: Schedule,
    started: Instant,
    last: Instant,
    latency: Latency,
    uncorrected: Latency,
    /// How late this worker was itself. Sending never waits for the server: what the kernel does not take is kept.
    lag: Latency,
    /// What was due when this worker stopped, being too late.
    unsent: u64,
    given_up: bool,
}

impl Exchanging {
    pub(crate) fn new(exchange: Exchange, names: &Names) -> Self {
        let connections = exchange.slots.len();
        let content = "x".repeat(exchange.payload);
        let text = |index: usize| match exchange.kind {
            ExchangeKind::Echo => format!(r#"{{"message_type":"ping","data":{{"ts":1}},"pad":"{content}"}}"#),
            ExchangeKind::Direct => {
                let target = names.user(exchange.slots.start + receiver(index, connections));
                format!(
                    r#"{{"message_type":"direct_message","data":{{"target_id":"{target}","content":"{content}"}}}}"#
                )
            }
        };
        let now = Instant::now();
        Self {
            recognition: Recognition::of(match exchange.kind {
                ExchangeKind::Echo => "pong",
                ExchangeKind::Direct => "direct_message",
            }),
            texts: (0..connections).map(|index| text(index).into_bytes()).collect(),
            under_way: vec![VecDeque::new(); connections],
            sent: 0,
            arrived: 0,
            schedule: Schedule::new(now, 1.0),
            started: now,
            last: now,
            latency: Latency::new(),
            uncorrected: Latency::new(),
            lag: Latency::new(),
            unsent: 0,
            given_up: false,
            exchange,
        }
    }

    /// Whether there is a message to send that is due at this time.
    fn may_send(&self, due: Instant) -> bool {
        !self.given_up
            && self.unsent == 0
            && match self.exchange.limit {
                Limit::Count(count) => self.sent < count,
                Limit::Time(time) => due - self.started < time,
            }
    }

    fn send(&mut self, io: &mut Sockets, index: usize, intended: Instant, now: Instant) -> anyhow::Result<()> {
        io.send(self.exchange.slots.start + index, &self.texts[index])?;
        self.under_way[index].push_back((intended, now));
        self.sent += 1;
        Ok(())
    }
}

impl Load for Exchanging {
    fn start(&mut self, io: &mut Sockets) -> anyhow::Result<()> {
        self.started = Instant::now();
        self.last = self.started;
        match self.exchange.pace {
            Pace::Closed { in_flight } => {
                for _ in 0..in_flight {
                    for index in 0..self.texts.len() {
                        let now = Instant::now();
                        if self.may_send(now) {
                            self.send(io, index, now, now)?;
                        }
                    }
                }
            }
            Pace::Rate { per_second } => self.schedule = Schedule::new(self.started, per_second),
        }
        Ok(())
    }

    fn incident(&mut self, io: &mut Sockets, slot: usize, incident: Incident<'_>) -> anyhow::Result<()> {
        match incident {
            Incident::Message(message) if self.exchange.slots.contains(&slot) => {
                match self.recognition.look(message) {
                    Recognised::Expected => {}
                    Recognised::Other => return Ok(()),
                    Recognised::Trouble(text) => bail!("the server answered a message with {text}"),
                }
                let index = slot - self.exchange.slots.start;
                let from = match self.exchange.kind {
                    ExchangeKind::Echo => index,
                    ExchangeKind::Direct => sender(index, self.texts.len()),
                };
                let (intended, sent) =
                    self.under_way[from].pop_front().context("more messages arrived than were sent")?;
                let now = Instant::now();
                self.last = now;
                self.arrived += 1;
                self.latency.record(now - intended);
                self.uncorrected.record(now - sent);
                if matches!(self.exchange.pace, Pace::Closed { .. }) && self.may_send(now) {
                    self.send(io, from, now, now)?;
                }
                Ok(())
            }
            Incident::Ended(end) => bail!("a connection ended while messages were under way: {end}"),
            _ => Ok(()),
        }
    }

    fn turn(&mut self, io: &mut Sockets) -> anyhow::Result<Option<Instant>> {
        let Pace::Rate { .. } = self.exchange.pace else { return Ok(None) };
        // Not more than so many in one turn: what has arrived meanwhile is to be timed, not to lie there.
        for _ in 0..BURST {
            let intended = self.schedule.at(self.sent);
            let now = Instant::now();
            // Asked of the intended time: what was due within the time is sent, also by a client that is late.
            if !self.may_send(intended) {
                return Ok(None);
            }
            if intended > now {
                return Ok(Some(intended));
            }
            // One that is this late does not catch up any more, and the end must come when it was said to come.
            if now - intended > TOO_LATE {
                let all = match self.exchange.limit {
                    Limit::Count(count) => count,
                    Limit::Time(time) => self.schedule.due_within(time),
                };
                self.unsent = all.saturating_sub(self.sent).max(1);
                return Ok(None);
            }
            let index = (self.sent % self.texts.len() as u64) as usize;
            self.lag.record(now - intended);
            self.send(io, index, intended, now)?;
        }
        Ok(Some(Instant::now()))
    }

    fn progress(&self) -> u64 {
        self.arrived
    }

    fn stalled(&mut self) -> anyhow::Result<()> {
        self.given_up = true;
        Ok(())
    }

    fn finished(&mut self) -> Option<Done> {
        let over = !self.may_send(match self.exchange.pace {
            Pace::Closed { .. } => Instant::now(),
            Pace::Rate { .. } => self.schedule.at(self.sent),
        });
        let missing = self.sent - self.arrived;
        (over && (missing == 0 || self.given_up)).then(|| Done {
            count: self.arrived,
            missing,
            elapsed: self.last - self.started,
            latency: self.latency.recorded(),
            uncorrected: self.uncorrected.recorded(),
            lag: self.lag.recorded(),
            unsent: self.unsent,
            ..Done::default()
        })
    }
}

/// How many are sent before the loop looks what has come.
const BURST: usize = 64;

/// When a worker gives a rate up.
const TOO_LATE: Duration = Duration::from_secs(1);

/// Whom a connection writes to: one that is far away in the table, and somebody else for each.
fn receiver(index: usize, connections: usize) -> usize {
    (index + connections / 2) % connections
}

/// Who writes to a connection.
fn sender(index: usize, connections: usize) -> usize {
    (index + connections - connections / 2) % connections
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_writes_to_somebody_else_and_is_written_to_by_one() {
        for connections in 2..50 {
            for index in 0..connections {
                assert_ne!(receiver(index, connections), index);
                assert_eq!(sender(receiver(index, connections), connections), index);
            }
        }
    }
}
