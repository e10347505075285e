//! A node: drives mailboxes as a real one does.

use std::collections::VecDeque;

use wsc_delivery::mailbox::{Copy, Effect, Input, Kind, Letter, Mailbox, Millis, Refusal, Sort};

use crate::world::World;

/// One user's mailbox at work.
#[derive(Default)]
pub(crate) struct Node {
    mailbox: Mailbox,
    effects: VecDeque<Effect>,
    wakes_at: Option<Millis>,
}

impl World {
    /// Whether the store surely has nothing for a user.
    pub(crate) fn nothing_rests(&self, user: usize) -> bool {
        self.store.letters(user).next().is_none()
    }

    /// Somebody sends something to a user.
    pub(crate) fn send(&mut self, user: usize, letter: Letter) {
        let is_here = self.conns.values().any(|conn| conn.user == user);
        if letter.kind == Kind::Reliable || !is_here {
            self.oracle.hand_in(user, &letter, true);
            self.feed(user, Input::Accept(letter));
            return;
        }
        // Plain, to somebody who is here.
        let letter = Letter { expires_at: None, ..letter };
        self.oracle.hand_in(user, &letter, false);
        match &self.nodes[user] {
            Some(node) if node.mailbox.holds_back() => self.feed(user, Input::Pass(letter)),
            _ => {
                let to: Vec<_> = self.conns.values().filter(|c| c.user == user).map(|c| c.session).collect();
                let only = letter.only;
                for conn in to.into_iter().filter(|conn| only.is_none_or(|only| only == *conn)) {
                    let copy = Copy { conn, id: letter.id, body: letter.body.clone(), sort: Sort::Passed };
                    self.transmit(user, &copy);
                }
                self.oracle.passed(letter.id, &self.conns);
            }
        }
    }

    pub(crate) fn feed_if_there(&mut self, user: usize, input: Input) {
        if self.nodes[user].is_some() {
            self.feed(user, input);
        }
    }

    /// Tells a mailbox something, and does all that follows from it.
    pub(crate) fn feed(&mut self, user: usize, input: Input) {
        if self.nodes[user].is_none() {
            self.nodes[user] = Some(Node::default());
            let nothing_rests = self.nothing_rests(user);
            let conns: Vec<_> = self.conns.values().filter(|c| c.user == user).map(|c| c.session).collect();
            for conn in conns {
                self.handle(user, Input::Connected { conn, nothing_rests });
            }
        }
        self.handle(user, input);
        while let Some(effect) = self.nodes[user].as_mut().and_then(|node| node.effects.pop_front()) {
            self.carry_out(user, effect);
        }
        self.after_feed(user);
    }

    fn handle(&mut self, user: usize, input: Input) {
        self.note(|| format!("{user} < {input:?}"));
        let Some(node) = &mut self.nodes[user] else { return };
        let mut fresh = Vec::new();
        node.mailbox.handle(self.now, &self.config, input, &mut fresh);
        node.effects.extend(fresh);
    }

    fn carry_out(&mut self, user: usize, effect: Effect) {
        self.note(|| format!("{user} > {effect:?}"));
        match effect {
            Effect::Persist(letter) => {
                let id = letter.id;
                if !self.append(user, letter) {
                    self.handle(user, Input::NotCommitted { id, refusal: Refusal::Full });
                }
            }
            Effect::Read { after, messages, bytes } => {
                assert!(messages > 0 && messages <= self.config.window_messages.max(1));
                assert!(bytes > 0 && bytes <= self.config.window_bytes.max(1));
                self.oracle.figures.pages += 1;
                self.read(user, after, messages, bytes);
            }
            Effect::Remove { id } => self.remove(user, id),
            Effect::Take { id, verdict } => self.take(user, id, verdict),
            Effect::Transmit(copy) => {
                let (conn, id) = (copy.conn, copy.id);
                let result = self.transmit(user, &copy);
                self.handle(user, Input::Transmitted { conn, id, result });
            }
            Effect::Accepted { id, at } => self.oracle.accepted(user, id, at),
            Effect::Refused { id, .. } => self.oracle.refused(id),
            Effect::Moved { id, to } => self.oracle.moved(user, id, to, &mut self.conns),
            Effect::Settled { letter, was, fate, attempts } => {
                self.oracle.settled(user, &letter, was, fate, attempts, self.now, &mut self.conns);
            }
            Effect::Passed { id } => self.oracle.passed(id, &self.conns),
            Effect::Overflow { conn, id, .. } => self.oracle.overflowed(conn, id),
            Effect::AckTimeout { id, attempt, is_last, .. } => {
                self.oracle.timed_out(id, attempt, is_last, self.now, &self.config, &mut self.conns);
            }
            Effect::AckRetry { id, attempt, .. } => self.oracle.retried(id, attempt, &self.config),
            Effect::AckIgnored { .. } => self.oracle.figures.ignored += 1,
        }
    }

    fn transmit(&mut self, user: usize, copy: &Copy) -> wsc_delivery::mailbox::Transmission {
        self.oracle.transmits(user, copy, self.now, &self.config, &mut self.conns);
        let result = self.transmit_to(copy.conn, copy.id, copy.sort != Sort::Passed);
        self.note(|| format!("{user}   {result:?}"));
        self.oracle.transmitted(copy, result, &mut self.conns);
        result
    }

    fn after_feed(&mut self, user: usize) {
        let Some(node) = &mut self.nodes[user] else { return };
        self.oracle.check_in_flight(user, node.mailbox.in_flight());
        if node.mailbox.is_idle() {
            assert_eq!(node.mailbox.next_wake(), None, "an idle mailbox wants to be woken");
            assert!(!node.mailbox.holds_back(), "an idle mailbox holds something back");
            self.nodes[user] = None;
            return;
        }
        let wake = node.mailbox.next_wake();
        if wake != node.wakes_at {
            node.wakes_at = wake;
            if let Some(at) = wake {
                let delay = at.saturating_sub(self.now);
                self.after(delay, move |world| world.wake(user, at));
            }
        }
        if self.rng.u32(0..16) == 0 {
            self.oracle.check_store(user, &self.store);
        }
    }

    fn wake(&mut self, user: usize, at: Millis) {
        if let Some(node) = self.nodes[user].as_mut().filter(|node| node.wakes_at == Some(at)) {
            node.wakes_at = None;
            self.feed(user, Input::Wake);
        }
    }

    pub(crate) fn check_end(&self) {
        for user in 0..self.nodes.len() {
            self.oracle.check_store(user, &self.store);
            if let Some(node) = &self.nodes[user] {
                panic!("after all that time user {user}'s mailbox is not done: {:?}", node.mailbox);
            }
        }
        self.oracle.check_end();
    }
}
