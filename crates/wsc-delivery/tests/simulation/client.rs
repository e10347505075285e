//! Connections and the people behind them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use uuid::Uuid;
use wsc_delivery::mailbox::{Input, Transmission};

use crate::world::World;

/// One connection, from its upgrade to its end, with what the oracle knows of it.
pub(crate) struct Conn {
    pub(crate) user: usize,
    pub(crate) session: Uuid,
    pub(crate) habit: Habit,
    /// The socket has ended; the node may not have been told.
    pub(crate) is_dead: bool,
    /// What waits to be written.
    pub(crate) queue: VecDeque<(Uuid, bool)>,
    is_draining: bool,
    capacity: usize,
    /// Milliseconds for one frame; 0: it is written at once.
    pace: u64,
    /// Letters handed in before it was there.
    pub(crate) since: u64,
    /// When it connected, as the oracle counts.
    pub(crate) moment: u64,
    /// Reliable letters that were transmitted to it and are in flight, and their length.
    pub(crate) unacked: BTreeMap<Uuid, u64>,
    /// The last attempt that it got of what is in flight.
    pub(crate) attempts: BTreeMap<Uuid, u32>,
    /// Of what is in flight, what it has been handed.
    pub(crate) written: BTreeSet<Uuid>,
    /// What was ever transmitted to it.
    pub(crate) seen: BTreeSet<Uuid>,
    /// The newest of that.
    pub(crate) newest: u64,
    /// Up to here order is not promised: something was refused, or not acknowledged.
    pub(crate) unordered_to: u64,
}

/// How a receiver acknowledges.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Habit {
    Willing,
    Late,
    Forgetful,
    Twice,
    Picky,
    Never,
}

impl World {
    pub(crate) fn connect(&mut self, user: usize) {
        if self.conns.values().filter(|conn| conn.user == user).count() >= 4 {
            return;
        }
        let session = self.new_id();
        let habits = [
            (Habit::Willing, 8),
            (Habit::Late, 2),
            (Habit::Forgetful, 2),
            (Habit::Twice, 2),
            (Habit::Picky, 2),
            (Habit::Never, 1),
        ];
        let mut dice = self.rng.u32(0..17);
        let habit = habits
            .iter()
            .find(|(_, weight)| {
                let is_it = dice < *weight;
                dice = dice.saturating_sub(*weight);
                is_it
            })
            .map_or(Habit::Willing, |(habit, _)| *habit);
        let habit = if self.is_quiet { Habit::Willing } else { habit };
        let pace = if self.is_quiet || self.rng.u32(0..3) > 0 { 0 } else { self.rng.u64(1..400) };
        let conn = Conn {
            user,
            session,
            habit,
            is_dead: false,
            queue: VecDeque::new(),
            is_draining: false,
            capacity: self.rng.usize(1..12),
            pace,
            since: self.oracle.handed_in,
            moment: self.oracle.moment(),
            unacked: BTreeMap::new(),
            attempts: BTreeMap::new(),
            written: BTreeSet::new(),
            seen: BTreeSet::new(),
            newest: 0,
            unordered_to: 0,
        };
        self.note(|| format!("user {user} connects as {session}, {habit:?}, pace {pace}"));
        self.conns.insert(session, conn);
        self.oracle.figures.connections += 1;
        let nothing_rests = self.nothing_rests(user);
        // The node looks at the store a moment before the mailbox hears of the connection, and not always at all.
        if self.nodes[user].is_some() || !nothing_rests {
            self.feed(user, Input::Connected { conn: session, nothing_rests });
        }
        if !self.is_quiet {
            let stays = self.rng.u64(1..self.length);
            self.after(stays, move |world| world.hang_up(session));
        }
    }

    /// What a connection says to a frame.
    pub(crate) fn transmit_to(&mut self, session: Uuid, id: Uuid, is_letter: bool) -> Transmission {
        let Some(conn) = self.conns.get_mut(&session) else { return Transmission::Gone };
        if conn.is_dead {
            return Transmission::Gone;
        }
        if conn.pace == 0 && conn.queue.is_empty() {
            self.deliver(session, id);
            return Transmission::Written;
        }
        if conn.queue.len() >= conn.capacity {
            return Transmission::Full;
        }
        conn.queue.push_back((id, is_letter));
        self.drain_soon(session);
        Transmission::Queued
    }

    fn drain_soon(&mut self, session: Uuid) {
        let Some(conn) = self.conns.get_mut(&session) else { return };
        if !conn.is_draining && !conn.queue.is_empty() {
            conn.is_draining = true;
            let pace = conn.pace;
            self.after(pace, move |world| world.drain(session));
        }
    }

    fn drain(&mut self, session: Uuid) {
        let Some(conn) = self.conns.get_mut(&session) else { return };
        conn.is_draining = false;
        if conn.is_dead {
            return;
        }
        let user = conn.user;
        let Some((id, is_letter)) = conn.queue.pop_front() else { return };
        // Now and then a letter leaves the queue unsent, to make room.
        let is_lost = is_letter && !self.is_quiet && self.rng.u32(0..40) == 0;
        if is_lost {
            self.oracle.lost(session, id, &mut self.conns);
            self.feed_if_there(user, Input::Lost { conn: session, id });
        } else {
            self.deliver(session, id);
            if is_letter {
                self.feed_if_there(user, Input::Written { conn: session, id });
            }
        }
        self.drain_soon(session);
    }

    /// The kernel has a frame. The client may get it.
    fn deliver(&mut self, session: Uuid, id: Uuid) {
        self.oracle.written(session, id, self.now, &mut self.conns);
        let latency = self.rng.u64(1..40);
        self.after(latency, move |world| world.receive(session, id));
    }

    fn receive(&mut self, session: Uuid, id: Uuid) {
        let Some(conn) = self.conns.get(&session).filter(|conn| !conn.is_dead) else { return };
        let (user, habit) = (conn.user, conn.habit);
        if !self.oracle.received(user, id) {
            return;
        }
        let (times, delay) = match habit {
            Habit::Willing | Habit::Picky => (1, self.rng.u64(0..50)),
            Habit::Late => (1, self.rng.u64(0..20_000)),
            Habit::Forgetful => (self.rng.usize(0..2), self.rng.u64(0..50)),
            Habit::Twice => (2, self.rng.u64(0..3_000)),
            Habit::Never => (0, 0),
        };
        let is_ack = habit != Habit::Picky || self.rng.bool();
        for n in 0..times {
            self.after(delay * (n as u64 + 1), move |world| world.answer(session, id, is_ack));
        }
    }

    fn answer(&mut self, session: Uuid, id: Uuid, is_ack: bool) {
        let Some(conn) = self.conns.get(&session).filter(|conn| !conn.is_dead) else { return };
        let user = conn.user;
        self.oracle.answered(id, is_ack);
        if self.nodes[user].is_none() && self.nothing_rests(user) {
            return;
        }
        self.feed(user, if is_ack { Input::Acked { id } } else { Input::Nacked { id } });
    }

    /// The socket ends; some time later the node knows.
    pub(crate) fn hang_up(&mut self, session: Uuid) {
        let Some(conn) = self.conns.get_mut(&session) else { return };
        if conn.is_dead {
            return;
        }
        conn.is_dead = true;
        self.note(|| format!("{session} hangs up"));
        let latency = if self.rng.bool() { 0 } else { self.rng.u64(0..3_000) };
        self.after(latency, move |world| world.disconnect(session));
    }

    fn disconnect(&mut self, session: Uuid) {
        let Some(conn) = self.conns.get_mut(&session) else { return };
        let user = conn.user;
        let queue = std::mem::take(&mut conn.queue);
        if self.rng.bool() {
            for (id, is_letter) in queue {
                if is_letter {
                    self.oracle.lost(session, id, &mut self.conns);
                    self.feed_if_there(user, Input::Lost { conn: session, id });
                }
            }
        }
        self.conns.remove(&session);
        self.oracle.figures.disconnections += 1;
        self.feed_if_there(user, Input::Disconnected { conn: session });
    }
}
