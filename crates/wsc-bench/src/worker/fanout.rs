//! Messages from one connection to many.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Instant,
};

use anyhow::bail;

use super::{
    Load, Names,
    inbound::{Recognised, Recognition},
    sockets::{Incident, Sockets},
    tell,
};
use crate::{
    latency::Latency,
    message::{Command, Done, Event, Fanout, Limit, Sender},
};

/// Counts what arrives at this worker's members and, where the sender is here, sends.
///
/// A message is through when all members of all workers have it. Messages of one sender keep their order, so members
/// only count, and a worker tells the one that sends no more than how many messages all of its members have, once in a
/// turn of its loop.
#[derive(Debug)]
pub(crate) struct FanningOut {
    fanout: Fanout,
    recognition: Recognition,
    /// How many messages each member has.
    counts: Vec<u64>,
    /// How many members have the messages after those that are through here, oldest first.
    missing: VecDeque<usize>,
    /// How many messages all members here have.
    through: u64,
    told: u64,
    deliveries: u64,
    sending: Option<Sending>,
    stop: Option<u64>,
    given_up: bool,
}

/// The sender's side.
#[derive(Debug)]
struct Sending {
    sender: Sender,
    text: Vec<u8>,
    /// How many messages all members of each worker have.
    through: BTreeMap<usize, u64>,
    sent: u64,
    /// How many of them all members have.
    done: u64,
    /// When each of the others was sent.
    sent_at: VecDeque<Instant>,
    /// Whether a request to the HTTP API is not answered yet.
    asking: bool,
    started: Instant,
    last: Instant,
    latency: Latency,
}

impl FanningOut {
    pub(crate) fn new(fanout: Fanout, names: &Names) -> Self {
        let now = Instant::now();
        let sending = fanout.sender.clone().map(|sender| {
            let content = "x".repeat(sender.payload);
            let room = names.room(0);
            let text = if fanout.broadcast {
                format!(r#"{{"content":"{content}"}}"#)
            } else {
                format!(r#"{{"message_type":"room_message","data":{{"room_id":"{room}","content":"{content}"}}}}"#)
            };
            Sending {
                text: text.into_bytes(),
                through: sender.listeners.iter().map(|&worker| (worker, 0)).collect(),
                sent: 0,
                done: 0,
                sent_at: VecDeque::new(),
                asking: false,
                started: now,
                last: now,
                latency: Latency::new(),
                sender,
            }
        });
        Self {
            recognition: Recognition::of(if fanout.broadcast { "broadcast" } else { "room_message" }),
            counts: vec![0; fanout.members.len()],
            missing: VecDeque::new(),
            through: 0,
            told: 0,
            deliveries: 0,
            sending,
            stop: None,
            given_up: false,
            fanout,
        }
    }

    /// A member has one message more.
    fn arrived(&mut self, member: usize) -> anyhow::Result<()> {
        self.counts[member] += 1;
        self.deliveries += 1;
        let ahead = (self.counts[member] - self.through - 1) as usize;
        if ahead >= self.fanout.in_flight {
            bail!("a member got more messages than were sent");
        }
        while self.missing.len() <= ahead {
            self.missing.push_back(self.counts.len());
        }
        self.missing[ahead] -= 1;
        while self.missing.front() == Some(&0) {
            self.missing.pop_front();
            self.through += 1;
        }
        Ok(())
    }
}

impl Sending {
    fn may_send(&self, now: Instant) -> bool {
        match self.sender.limit {
            Limit::Count(count) => self.sent < count,
            Limit::Time(time) => now - self.started < time,
        }
    }

    /// All members of a worker have so many messages.
    fn note(&mut self, worker: usize, messages: u64) {
        if let Some(through) = self.through.get_mut(&worker) {
            *through = messages;
        }
        let done = self.through.values().copied().min().unwrap_or(self.sent);
        if done > self.done {
            self.last = Instant::now();
            while self.done < done {
                self.done += 1;
                if let Some(sent_at) = self.sent_at.pop_front() {
                    self.latency.record(self.last - sent_at);
                }
            }
        }
    }

    /// Fills up what is in flight.
    fn send_what_may_be_sent(&mut self, io: &mut Sockets, broadcast: bool, in_flight: usize) -> anyhow::Result<()> {
        let now = Instant::now();
        if self.asking || !self.may_send(now) {
            return Ok(());
        }
        let mut room = in_flight as u64 - (self.sent - self.done);
        if broadcast {
            room = room.min(1);
        }
        if let Limit::Count(count) = self.sender.limit {
            room = room.min(count - self.sent);
        }
        if room == 0 {
            return Ok(());
        }
        if broadcast {
            io.post(self.sender.slot, API, &self.text)?;
            self.asking = true;
        } else {
            // In one write, as a client with a buffer does. Messages that have become through together stay together,
            // so that so many in flight are a burst of so many.
            io.send_repeatedly(self.sender.slot, &self.text, room as usize)?;
        }
        self.sent += room;
        self.sent_at.extend(std::iter::repeat_n(now, room as usize));
        Ok(())
    }
}

impl Load for FanningOut {
    fn start(&mut self, io: &mut Sockets) -> anyhow::Result<()> {
        let gone = self.fanout.members.clone().filter(|&slot| !io.is_there(slot)).count();
        if gone > 0 {
            bail!("{gone} of {} members were disconnected before the messages began", self.counts.len());
        }
        if let Some(sending) = &mut self.sending {
            sending.started = Instant::now();
            sending.last = sending.started;
        }
        Ok(())
    }

    fn incident(&mut self, _: &mut Sockets, slot: usize, incident: Incident<'_>) -> anyhow::Result<()> {
        match incident {
            Incident::Message(message) => match self.recognition.look(message) {
                Recognised::Expected if self.fanout.members.contains(&slot) => {
                    self.arrived(slot - self.fanout.members.start)
                }
                Recognised::Trouble(text) => bail!("a connection was told {text}"),
                _ => Ok(()),
            },
            Incident::Answered { status, body } => {
                if status >= 300 {
                    bail!("the server refused the broadcast: {status} {}", String::from_utf8_lossy(body));
                }
                if let Some(sending) = &mut self.sending {
                    sending.asking = false;
                }
                Ok(())
            }
            Incident::Ended(end) => bail!("a connection ended while messages were under way: {end}"),
            Incident::Upgraded => Ok(()),
        }
    }

    fn turn(&mut self, io: &mut Sockets) -> anyhow::Result<Option<Instant>> {
        if let Some(sending) = &mut self.sending {
            sending.note(self.fanout.worker, self.through);
            if !self.given_up {
                sending.send_what_may_be_sent(io, self.fanout.broadcast, self.fanout.in_flight)?;
            }
        } else if self.through > self.told {
            self.told = self.through;
            tell(&Event::Arrived(self.through))?;
        }
        Ok(None)
    }

    fn told(&mut self, command: Command) -> anyhow::Result<()> {
        match command {
            Command::Arrived { worker, messages } => {
                if let Some(sending) = &mut self.sending {
                    sending.note(worker, messages);
                }
            }
            Command::Stop { messages } => self.stop = Some(messages),
            other => bail!("told during a fan-out: {other:?}"),
        }
        Ok(())
    }

    fn progress(&self) -> u64 {
        // A sender without members here lives from what others tell it.
        let done = self.sending.as_ref().map_or(0, |sending| sending.done);
        if self.counts.is_empty() { done } else { self.deliveries }
    }

    fn stalled(&mut self) -> anyhow::Result<()> {
        // Those who only listen wait to be told; only the sender can know that nothing comes any more.
        self.given_up = self.sending.is_some() || self.stop.is_some();
        Ok(())
    }

    fn finished(&mut self) -> Option<Done> {
        let Some(sending) = &self.sending else {
            let all = self.stop?;
            return (self.through >= all || self.given_up || self.counts.is_empty())
                .then(|| Done { deliveries: self.deliveries, ..Done::default() });
        };
        let all = !sending.may_send(Instant::now()) && sending.sent == sending.done && !sending.asking;
        (all || self.given_up).then(|| Done {
            count: sending.sent,
            deliveries: self.deliveries,
            missing: sending.sent - sending.done,
            elapsed: sending.last - sending.started,
            latency: sending.latency.recorded(),
            ..Done::default()
        })
    }
}

const API: &str = "/api/broadcast";
