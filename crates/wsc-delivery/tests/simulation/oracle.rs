//! Knows what must be true, from what it sees from outside.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;
use wsc_delivery::mailbox::{Copy, Kind, Letter, MailboxConfig, Millis, Sort, Transmission, Whereabouts};
use wsc_protocol::{FailureReason, Fate, Outcome};

use crate::{client::Conn, store::Store};

type Conns = BTreeMap<Uuid, Conn>;

#[derive(Default)]
pub(crate) struct Oracle {
    facts: BTreeMap<Uuid, Fact>,
    /// What the store has given up and the mailbox has not heard of.
    pub(crate) taken: BTreeSet<Uuid>,
    moments: u64,
    /// How many letters have been handed in.
    pub(crate) handed_in: u64,
    /// What the node's ledger says in this run.
    ledger: Ledger,
    pub(crate) figures: Figures,
}

#[derive(Debug, Default)]
struct Ledger {
    accepted: u64,
    recovered: u64,
    finals: u64,
    resting: u64,
    in_flight: u64,
}

/// What is known of one letter.
#[derive(Debug)]
struct Fact {
    user: usize,
    /// Its position among all that was handed in.
    position: u64,
    letter: Letter,
    state: State,
    /// The attempt of this stay on line.
    attempt: u32,
    /// When it was accepted; 0 where that was in an earlier run of the node.
    accepted_at: u64,
    /// When the kernel had the last copy in this stay.
    written_at: Option<Millis>,
    is_received: bool,
    is_acked: bool,
    is_rejected: bool,
    /// Connections behind whose replay it did not fit.
    overflowed: BTreeSet<Uuid>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    InLine,
    Passing,
    Passed,
    Refused,
    Resting,
    InFlight,
    Final(Outcome),
    /// A crash took it before it was accepted.
    Gone,
}

macro_rules! figures {
    ($($name:ident)*) => {
        /// What happened, to see that all of it does.
        #[derive(Debug, Default)]
        pub(crate) struct Figures {
            $(pub(crate) $name: u64,)*
        }

        impl Figures {
            pub(crate) fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }

            pub(crate) fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

figures! {
    accepted acked rejected expired failed sent rested recovered refused passed overflows timeouts exhausted
    resends copies full lost gone ignored pages connections disconnections crashes store_failures
}

impl Oracle {
    fn fact(&mut self, id: Uuid) -> &mut Fact {
        self.facts.get_mut(&id).unwrap_or_else(|| panic!("{id} is nobody's letter"))
    }

    /// Counts what comes before what.
    pub(crate) fn moment(&mut self) -> u64 {
        self.moments += 1;
        self.moments
    }

    pub(crate) fn hand_in(&mut self, user: usize, letter: &Letter, is_stored: bool) {
        self.handed_in += 1;
        let fact = Fact {
            user,
            position: self.handed_in,
            letter: letter.clone(),
            state: if is_stored { State::InLine } else { State::Passing },
            attempt: 0,
            accepted_at: 0,
            written_at: None,
            is_received: false,
            is_acked: false,
            is_rejected: false,
            overflowed: BTreeSet::new(),
        };
        assert!(self.facts.insert(letter.id, fact).is_none());
    }

    pub(crate) fn accepted(&mut self, user: usize, id: Uuid, at: Whereabouts) {
        let moment = self.moment();
        let fact = self.fact(id);
        assert_eq!((fact.user, fact.state), (user, State::InLine), "{id} is accepted");
        fact.accepted_at = moment;
        fact.state = State::Resting;
        self.ledger.accepted += 1;
        self.ledger.resting += 1;
        self.figures.accepted += 1;
        if at == Whereabouts::InFlight {
            self.depart(id);
        }
    }

    fn depart(&mut self, id: Uuid) {
        let fact = self.fact(id);
        assert_eq!(fact.state, State::Resting, "{id} departs");
        (fact.state, fact.attempt, fact.written_at) = (State::InFlight, 1, None);
        self.ledger.resting -= 1;
        self.ledger.in_flight += 1;
    }

    pub(crate) fn refused(&mut self, id: Uuid) {
        let fact = self.fact(id);
        assert_eq!(fact.state, State::InLine, "{id} is refused");
        fact.state = State::Refused;
        self.figures.refused += 1;
    }

    pub(crate) fn moved(&mut self, user: usize, id: Uuid, to: Whereabouts, conns: &mut Conns) {
        if to == Whereabouts::InFlight {
            return self.depart(id);
        }
        let fact = self.fact(id);
        assert_eq!((fact.user, fact.state), (user, State::InFlight), "{id} goes to rest");
        fact.state = State::Resting;
        self.ledger.in_flight -= 1;
        self.ledger.resting += 1;
        self.figures.rested += 1;
        off_the_connections(id, conns);
    }

    #[expect(clippy::too_many_arguments, reason = "all that an end is made of")]
    pub(crate) fn settled(
        &mut self,
        user: usize,
        letter: &Letter,
        was: Whereabouts,
        fate: Fate,
        attempts: u32,
        now: Millis,
        conns: &mut Conns,
    ) {
        let id = letter.id;
        let fact = self.fact(id);
        let expected = match was {
            Whereabouts::InFlight => State::InFlight,
            Whereabouts::Resting => State::Resting,
        };
        assert_eq!((fact.user, fact.state), (user, expected), "{id} ends as {fate:?}");
        assert_eq!(*letter, fact.letter, "the letter is not what it was");
        assert_eq!(attempts, if was == Whereabouts::InFlight { fact.attempt } else { 0 }, "attempts at {id}");
        let is_right = match fate.outcome {
            Outcome::Acked => fact.is_acked && fact.is_received,
            Outcome::Rejected => fact.is_rejected && fact.is_received,
            Outcome::Expired => letter.expires_at.is_some_and(|at| at <= now),
            Outcome::Sent => letter.kind == Kind::Plain && fact.written_at.is_some(),
            Outcome::Failed => letter.kind == Kind::Reliable && fate.reason == Some(FailureReason::AckTimeout),
            Outcome::Pending | Outcome::Stored => false,
        };
        assert!(is_right, "{id} ends as {fate:?}, but: {fact:?}");
        fact.state = State::Final(fate.outcome);
        match was {
            Whereabouts::InFlight => self.ledger.in_flight -= 1,
            Whereabouts::Resting => self.ledger.resting -= 1,
        }
        self.ledger.finals += 1;
        match fate.outcome {
            Outcome::Acked => self.figures.acked += 1,
            Outcome::Rejected => self.figures.rejected += 1,
            Outcome::Expired => self.figures.expired += 1,
            Outcome::Sent => self.figures.sent += 1,
            _ => self.figures.failed += 1,
        }
        off_the_connections(id, conns);
    }

    pub(crate) fn passed(&mut self, id: Uuid, conns: &Conns) {
        self.figures.passed += 1;
        let fact = self.fact(id);
        assert_eq!(fact.state, State::Passing, "{id} has passed");
        fact.state = State::Passed;
        // One that was for a connection which went while it was held has gone with it.
        let only = fact.letter.only;
        for conn in conns.values() {
            let is_meant = conn.user == fact.user && conn.since < fact.position && !conn.is_dead;
            if is_meant && only.is_none_or(|only| only == conn.session) {
                let was_offered = conn.seen.contains(&id) || fact.overflowed.contains(&conn.session);
                assert!(was_offered, "{id} has passed without {}", conn.session);
            }
        }
    }

    pub(crate) fn overflowed(&mut self, conn: Uuid, id: Uuid) {
        self.figures.overflows += 1;
        let fact = self.fact(id);
        assert_eq!(fact.state, State::Passing, "{id} does not fit");
        assert!(fact.overflowed.insert(conn), "{id} does not fit twice");
    }

    /// What must be true of a copy before it is sent.
    pub(crate) fn transmits(
        &mut self,
        user: usize,
        copy: &Copy,
        now: Millis,
        config: &MailboxConfig,
        conns: &mut Conns,
    ) {
        self.figures.copies += 1;
        let id = copy.id;
        if copy.sort == Sort::Passed {
            self.may_break_off(user, copy, config, conns);
        }
        let fact = self.facts.get_mut(&id).unwrap_or_else(|| panic!("{id} is nobody's letter"));
        assert_eq!(fact.user, user, "{id} goes to a stranger");
        assert_eq!(copy.body, fact.letter.body);
        // The mailbox may have seen that the connection is dead before the node was told so.
        let owner = fact.letter.only.filter(|only| conns.get(only).is_some_and(|conn| !conn.is_dead));
        let Some(conn) = conns.get_mut(&copy.conn) else { return };
        assert_eq!(conn.user, user, "{id} goes to a stranger's connection");
        if conn.is_dead {
            // It will not take it. It may be told so twice, by mailboxes that do not know of each other.
            return;
        }
        assert!(!conn.queue.contains(&(id, true)), "a second copy of {id} is queued on {}", copy.conn);
        assert!(owner.is_none_or(|owner| owner == copy.conn), "{id} is for {owner:?}, not for {}", copy.conn);
        let (kind, is_replay) = match copy.sort {
            Sort::Passed => (None, None),
            Sort::Plain { is_replay } => (Some(Kind::Plain), Some(is_replay)),
            Sort::Reliable { is_replay, attempt } => {
                assert_eq!(attempt, fact.attempt, "the attempt at {id}");
                assert!(attempt <= config.ack_max_retries + 1, "{id} is sent too often");
                let last = conn.attempts.insert(id, attempt);
                assert!(last.is_none_or(|last| last < attempt), "attempt {attempt} at {id} twice on {}", copy.conn);
                (Some(Kind::Reliable), Some(is_replay))
            }
        };
        match kind {
            None => assert_eq!(fact.state, State::Passing, "{id} is passed"),
            Some(kind) => {
                // A plain letter's other copies may go out when it is settled by the first.
                let is_sent = kind == Kind::Plain && fact.state == State::Final(Outcome::Sent);
                assert!(fact.state == State::InFlight || is_sent, "{id} is sent while it is {:?}", fact.state);
                assert_eq!(kind, fact.letter.kind);
                assert!(fact.letter.expires_at.is_none_or(|at| at > now), "{id} is sent after its time");
            }
        }
        if kind == Some(Kind::Reliable) && !conn.unacked.contains_key(&id) {
            let len = fact.letter.body.len() as u64;
            let (count, sum) = (conn.unacked.len() + 1, conn.unacked.values().sum::<u64>() + len);
            let fits = count <= config.window_messages && sum <= config.window_bytes;
            assert!(count == 1 || fits, "the window of {} is exceeded: {count} messages, {sum} bytes", copy.conn);
            conn.unacked.insert(id, len);
        }
        if is_replay == Some(false) {
            assert!(fact.accepted_at > conn.moment, "{id} is a replay on {}", copy.conn);
        }
        let is_first = conn.seen.insert(id);
        if is_first && fact.letter.only.is_none() && fact.position > conn.unordered_to {
            assert!(fact.position > conn.newest, "{id} comes late on {}", copy.conn);
            conn.newest = fact.position;
            // What was handed in before the connection was there is a replay, what came later is live.
            let is_late = conn.unordered_to == 0 && fact.position > conn.since;
            assert!(!is_late || is_replay != Some(true), "{id} is live on {}", copy.conn);
        }
    }

    /// Where too much is held for a connection that does not acknowledge, its replay ends: what is live comes first, and
    /// what rests comes later.
    fn may_break_off(&self, user: usize, copy: &Copy, config: &MailboxConfig, conns: &mut Conns) {
        let (Some(fact), Some(conn)) = (self.facts.get(&copy.id), conns.get_mut(&copy.conn)) else { return };
        let is_left_out = |other: &&Fact| {
            let is_before = other.position < fact.position;
            let is_waiting = matches!(other.state, State::InFlight | State::Resting);
            other.user == user && is_before && is_waiting && !conn.seen.contains(&other.letter.id)
        };
        let unacked = conn.unacked.values().sum::<u64>();
        let is_full = conn.unacked.len() >= config.window_messages || unacked >= config.window_bytes;
        let stands_still = self.facts.values().filter(is_left_out).any(|other| {
            let is_too_large = unacked + other.letter.body.len() as u64 > config.window_bytes;
            is_full || other.letter.kind == Kind::Reliable && unacked > 0 && is_too_large
        });
        if stands_still {
            conn.unordered_to = self.handed_in;
        }
    }

    pub(crate) fn transmitted(&mut self, copy: &Copy, result: Transmission, conns: &mut Conns) {
        match result {
            Transmission::Full => {
                self.figures.full += 1;
                if copy.sort != Sort::Passed {
                    self.lost_copy(copy.conn, copy.id, conns);
                }
            }
            Transmission::Gone => self.figures.gone += 1,
            Transmission::Written | Transmission::Queued => {}
        }
    }

    fn lost_copy(&self, conn: Uuid, id: Uuid, conns: &mut Conns) {
        let position = self.handed_in;
        if let Some(conn) = conns.get_mut(&conn) {
            conn.attempts.remove(&id);
            if !conn.written.contains(&id) {
                conn.unacked.remove(&id);
            }
            conn.unordered_to = position;
        }
    }

    /// A copy leaves a queue unsent.
    pub(crate) fn lost(&mut self, conn: Uuid, id: Uuid, conns: &mut Conns) {
        self.figures.lost += 1;
        self.lost_copy(conn, id, conns);
    }

    pub(crate) fn written(&mut self, conn: Uuid, id: Uuid, now: Millis, conns: &mut Conns) {
        // A copy of an earlier stay on line may still come out of a queue, and count for this one.
        if let Some(conn) = conns.get_mut(&conn)
            && conn.attempts.contains_key(&id)
        {
            conn.written.insert(id);
        }
        let fact = self.fact(id);
        fact.written_at = Some(now);
    }

    pub(crate) fn timed_out(
        &mut self,
        id: Uuid,
        attempt: u32,
        is_last: bool,
        now: Millis,
        config: &MailboxConfig,
        conns: &mut Conns,
    ) {
        self.figures.timeouts += 1;
        let position = self.handed_in;
        let fact = self.fact(id);
        assert_eq!((fact.state, fact.attempt), (State::InFlight, attempt), "{id} times out");
        assert!(fact.written_at.is_some(), "{id} times out and was never written");
        assert_eq!(is_last, attempt > config.ack_max_retries);
        let _ = now;
        if is_last {
            self.figures.exhausted += 1;
            for conn in conns.values_mut().filter(|conn| conn.unacked.contains_key(&id)) {
                conn.unordered_to = position;
            }
        }
    }

    pub(crate) fn retried(&mut self, id: Uuid, attempt: u32, config: &MailboxConfig) {
        self.figures.resends += 1;
        let fact = self.fact(id);
        assert_eq!((fact.state, fact.attempt + 1), (State::InFlight, attempt), "{id} is sent again");
        assert!(attempt <= config.ack_max_retries + 1, "{id} is sent again too often");
        fact.attempt = attempt;
    }

    /// A client has a message. Whether it must acknowledge it.
    pub(crate) fn received(&mut self, user: usize, id: Uuid) -> bool {
        let fact = self.fact(id);
        assert_eq!(fact.user, user);
        fact.is_received = true;
        fact.letter.kind == Kind::Reliable
    }

    pub(crate) fn answered(&mut self, id: Uuid, is_ack: bool) {
        let fact = self.fact(id);
        assert!(fact.is_received);
        fact.is_acked |= is_ack;
        fact.is_rejected |= !is_ack;
    }

    /// The store was not able to look for a letter, which may have been left out of replays meanwhile.
    pub(crate) fn not_taken(&self, user: usize, conns: &mut Conns) {
        for conn in conns.values_mut().filter(|conn| conn.user == user) {
            conn.unordered_to = self.handed_in;
        }
    }

    pub(crate) fn check_in_flight(&self, user: usize, count: usize) {
        let known = self.facts.values().filter(|f| f.user == user && f.state == State::InFlight).count();
        assert_eq!(count, known, "letters in flight to user {user}");
        let Ledger { accepted, recovered, finals, resting, in_flight } = self.ledger;
        assert_eq!(accepted + recovered, finals + resting + in_flight, "the sum: {:?}", self.ledger);
    }

    /// Whether all that is durable is in the store.
    pub(crate) fn check_store(&self, user: usize, store: &Store) {
        for (id, fact) in self.facts.iter().filter(|(_, fact)| fact.user == user) {
            if matches!(fact.state, State::Resting | State::InFlight) {
                assert!(store.has(user, *id) || self.taken.contains(id), "{id} is lost: {fact:?}");
            }
        }
    }

    /// The node is gone; another finds what the store has.
    pub(crate) fn crashed(&mut self, users: usize, store: &Store) {
        self.figures.crashes += 1;
        self.ledger = Ledger::default();
        for user in 0..users {
            self.check_store(user, store);
            for (_, letter) in store.letters(user) {
                let fact = self.fact(letter.id);
                (fact.state, fact.accepted_at) = (State::Resting, 0);
                self.ledger.recovered += 1;
                self.ledger.resting += 1;
                self.figures.recovered += 1;
            }
        }
        for (id, fact) in &mut self.facts {
            match fact.state {
                State::InLine | State::Passing if !store.has(fact.user, *id) => fact.state = State::Gone,
                // The store had done it, and nobody was told any more.
                State::Resting | State::InFlight if !store.has(fact.user, *id) => fact.state = State::Gone,
                _ => {}
            }
        }
        self.taken.clear();
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.facts.values().all(|fact| !matches!(fact.state, State::InLine | State::Resting | State::InFlight))
    }

    pub(crate) fn check_end(&self) {
        for (id, fact) in &self.facts {
            let is_over = matches!(fact.state, State::Final(_) | State::Refused | State::Passed | State::Gone);
            assert!(is_over, "{id} has no fate: {fact:?}");
        }
        assert_eq!((self.ledger.resting, self.ledger.in_flight), (0, 0));
    }
}

fn off_the_connections(id: Uuid, conns: &mut Conns) {
    for conn in conns.values_mut() {
        conn.unacked.remove(&id);
        conn.attempts.remove(&id);
        conn.written.remove(&id);
    }
}
