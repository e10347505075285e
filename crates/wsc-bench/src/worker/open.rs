//! Opening connections.

use std::{
    collections::VecDeque,
    fmt::Write,
    time::{Duration, Instant},
};

use anyhow::bail;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{
    Load, Names, inbound,
    sockets::{Incident, Sockets},
};
use crate::{
    latency::Latency,
    message::{Done, Open, Rooms},
};

/// Brings connections as far as they are wanted: upgraded, registered, or in a room.
#[derive(Debug)]
pub(crate) struct Opening {
    open: Open,
    names: Names,
    /// Those that are still to begin, with when.
    waiting: VecDeque<(usize, Instant)>,
    /// When each began, by slot from the first; `None` once it is there.
    begun: Vec<Option<Instant>>,
    pending: usize,
    started: Instant,
    last: Instant,
    done: Done,
    latency: Latency,
    last_end: Option<String>,
}

impl Opening {
    pub(crate) fn new(open: Open, names: Names) -> Self {
        let now = Instant::now();
        Self {
            names,
            waiting: open.slots.clone().map(|slot| (slot, now)).collect(),
            begun: vec![None; open.slots.len()],
            pending: 0,
            started: now,
            last: now,
            done: Done::default(),
            latency: Latency::new(),
            last_end: None,
            open,
        }
    }

    /// A connection is as far as it was to come.
    fn arrived(&mut self, io: &mut Sockets, slot: usize) {
        if self.begun[slot - self.open.slots.start].take().is_some() {
            self.pending -= 1;
            self.done.count += 1;
            self.last = Instant::now();
            // From the start of all, not its own: what counts is when somebody is there.
            self.latency.record(self.last - self.started);
            if self.open.stuck {
                io.ignore(slot);
            }
        }
    }
}

impl Load for Opening {
    fn start(&mut self, _: &mut Sockets) -> anyhow::Result<()> {
        self.started = Instant::now();
        Ok(())
    }

    fn incident(&mut self, io: &mut Sockets, slot: usize, incident: Incident<'_>) -> anyhow::Result<()> {
        if !self.open.slots.contains(&slot) {
            return match incident {
                Incident::Ended(end) => bail!("a connection was lost while others were opened: {end}"),
                _ => Ok(()),
            };
        }
        match incident {
            Incident::Upgraded => {
                if matches!(self.open.rooms, Rooms::Unread) {
                    self.arrived(io, slot);
                }
            }
            Incident::Message(message) => match inbound::message_type(message).as_deref() {
                Some("connected") => match self.open.rooms {
                    Rooms::Unread => {}
                    Rooms::None => self.arrived(io, slot),
                    Rooms::Spread(rooms) => {
                        let room = self.names.room(self.names.number(slot) % rooms);
                        let join = format!(r#"{{"message_type":"join_room","data":{{"room_id":"{room}"}}}}"#);
                        io.send(slot, join.as_bytes())?;
                    }
                },
                Some("room_joined") => self.arrived(io, slot),
                Some("error") => bail!("the server refuses: {}", String::from_utf8_lossy(message)),
                _ => {}
            },
            Incident::Answered { .. } => {}
            Incident::Ended(end) => {
                let there = self.begun[slot - self.open.slots.start].take().is_none();
                if there || !self.open.retry {
                    bail!("while {} connections were opened: {end}", self.open.slots.len());
                }
                self.pending -= 1;
                self.done.retries += 1;
                self.last_end = Some(end.to_string());
                self.waiting.push_back((slot, Instant::now() + AGAIN));
            }
        }
        Ok(())
    }

    fn turn(&mut self, io: &mut Sockets) -> anyhow::Result<Option<Instant>> {
        // Not more than so many in one turn: what has come for those who have begun is due too.
        for _ in 0..BURST {
            let now = Instant::now();
            match self.waiting.front() {
                Some(&(slot, when)) if self.pending < self.open.pending && when <= now => {
                    self.waiting.pop_front();
                    let number = self.names.number(slot);
                    let mut query = String::with_capacity(96);
                    let user = self.names.user(slot);
                    let user = utf8_percent_encode(&user, NON_ALPHANUMERIC);
                    // Writing to a String does not fail.
                    let _ = write!(query, "user_id={user}&client_id=client-{number:08}&device_id=device-{number:08}");
                    io.connect(slot, number, &query, self.open.stuck)?;
                    self.begun[slot - self.open.slots.start] = Some(now);
                    self.pending += 1;
                }
                Some(&(_, when)) if self.pending < self.open.pending => return Ok(Some(when)),
                _ => return Ok(None),
            }
        }
        Ok(Some(Instant::now()))
    }

    fn progress(&self) -> u64 {
        self.done.count
    }

    fn stalled(&mut self) -> anyhow::Result<()> {
        let why = self.last_end.as_deref().map(|end| format!("; the last that failed: {end}")).unwrap_or_default();
        bail!("{} of {} connections are open, and no more get through{why}", self.done.count, self.open.slots.len())
    }

    fn finished(&mut self) -> Option<Done> {
        (self.done.count == self.open.slots.len() as u64).then(|| Done {
            elapsed: self.last - self.started,
            latency: self.latency.recorded(),
            ..std::mem::take(&mut self.done)
        })
    }
}

/// How many are begun before the loop looks what has come.
const BURST: usize = 64;

/// When to try again what failed.
const AGAIN: Duration = Duration::from_millis(50);
