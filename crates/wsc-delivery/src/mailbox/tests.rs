//! The machine from outside: the state table row by row, with exact times.

use std::time::Duration;

use bytes::Bytes;
use wsc_protocol::{FailureReason, Fate};

use super::{Transmission::*, Whereabouts::*, *};

/// A mailbox with a store that answers at once, unless it is held up, and connections that say what they are told to.
struct Bench {
    mailbox: Mailbox,
    config: MailboxConfig,
    now: Millis,
    store: BTreeMap<u64, Letter>,
    /// How connections answer; those not named write at once.
    answers: BTreeMap<Uuid, Transmission>,
    /// Whether pages are held up, and those that are, as they were when they were asked for.
    holds_pages: bool,
    pages: VecDeque<Input>,
    /// What was done since the last look, without what concerns the store.
    told: Vec<Effect>,
    /// What was asked of the store.
    reads: Vec<(Option<Place>, usize, u64)>,
}

const A: Uuid = Uuid::from_u128(0xA);
const B: Uuid = Uuid::from_u128(0xB);

fn id(n: u64) -> Uuid {
    Uuid::from_u128(n.into())
}

fn reliable(n: u64) -> Letter {
    Letter { id: id(n), kind: Kind::Reliable, body: Bytes::from(vec![b'x'; 100]), expires_at: None, only: None }
}

fn plain(n: u64) -> Letter {
    Letter { kind: Kind::Plain, ..reliable(n) }
}

impl Bench {
    fn new() -> Self {
        Self {
            mailbox: Mailbox::new(),
            config: MailboxConfig::default(),
            now: 1_000_000,
            store: BTreeMap::new(),
            answers: BTreeMap::new(),
            holds_pages: false,
            pages: VecDeque::new(),
            told: Vec::new(),
            reads: Vec::new(),
        }
    }

    /// Letters that rest, and a mailbox that does not know them.
    fn resting(letters: impl IntoIterator<Item = Letter>) -> Self {
        let mut bench = Self::new();
        bench.store = letters.into_iter().zip(1..).map(|(letter, place)| (place, letter)).collect();
        bench
    }

    fn input(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        let mut effects = VecDeque::new();
        loop {
            let mut fresh = Vec::new();
            match inputs.pop_front() {
                Some(input) => self.mailbox.handle(self.now, &self.config, input, &mut fresh),
                None => break,
            }
            effects.extend(fresh);
            while let Some(effect) = effects.pop_front() {
                match &effect {
                    Effect::Transmit(copy) => {
                        let (conn, id) = (copy.conn, copy.id);
                        let result = self.answers.get(&conn).copied().unwrap_or(Written);
                        let mut fresh = Vec::new();
                        let input = Input::Transmitted { conn, id, result };
                        self.mailbox.handle(self.now, &self.config, input, &mut fresh);
                        effects.extend(fresh);
                    }
                    Effect::Remove { id } => {
                        self.store.retain(|_, letter| letter.id != *id);
                        continue;
                    }
                    Effect::Take { id, verdict } => {
                        let (id, verdict) = (*id, *verdict);
                        let place = self.store.iter().find(|(_, letter)| letter.id == id).map(|(place, _)| *place);
                        let letter = place.and_then(|place| self.store.remove(&place));
                        inputs.push_back(Input::Taken { id, verdict, letter });
                        continue;
                    }
                    Effect::Read { after, messages, bytes } => {
                        self.reads.push((*after, *messages, *bytes));
                        let page = self.read(*after, *messages, *bytes);
                        match self.holds_pages {
                            true => self.pages.push_back(page),
                            false => inputs.push_back(page),
                        }
                        continue;
                    }
                    Effect::Persist(_) => continue,
                    _ => {}
                }
                self.told.push(effect);
            }
        }
    }

    fn read(&self, after: Option<Place>, messages: usize, bytes: u64) -> Input {
        let mut letters = Vec::new();
        let mut sum = 0;
        let mut rest = self.store.range(after.map_or(0, |place| place.0 + 1)..).peekable();
        while let Some((place, letter)) = rest.peek() {
            let len = letter.body.len() as u64;
            if letters.len() >= messages || !letters.is_empty() && sum + len > bytes {
                break;
            }
            sum += len;
            letters.push((Place(**place), (*letter).clone()));
            rest.next();
        }
        let has_more = rest.peek().is_some();
        Input::Page { after, letters, has_more }
    }

    /// Accepts a letter and commits it at once.
    fn accept(&mut self, letter: Letter) {
        let id = letter.id;
        self.input(Input::Accept(letter.clone()));
        self.commit(letter, id);
    }

    fn commit(&mut self, letter: Letter, id: Uuid) {
        let place = self.store.last_key_value().map_or(0, |(place, _)| *place).max(self.places()) + 1;
        self.store.insert(place, letter);
        self.input(Input::Committed { id, place: Place(place) });
    }

    fn places(&self) -> u64 {
        self.mailbox.last_place.map_or(0, |place| place.0)
    }

    fn connect(&mut self, conn: Uuid) {
        let nothing_rests = self.store.is_empty();
        self.input(Input::Connected { conn, nothing_rests });
    }

    /// Lets the time pass, and wakes the mailbox whenever it wants to be.
    fn pass_time(&mut self, ms: u64) {
        let end = self.now + ms;
        while let Some(at) = self.mailbox.next_wake().filter(|at| *at <= end) {
            assert!(at >= self.now, "it is woken for nothing");
            self.now = at;
            self.input(Input::Wake);
        }
        self.now = end;
    }

    /// What was done since the last look, in short.
    fn look(&mut self) -> Vec<String> {
        self.told.drain(..).map(|effect| short(&effect)).collect()
    }

    /// The letters of copies since the last look, per connection.
    fn copies(&mut self, of: Uuid) -> Vec<u64> {
        let mut copies = Vec::new();
        self.told.retain(|effect| match effect {
            Effect::Transmit(copy) if copy.conn == of => {
                copies.push(copy.id.as_u128() as u64);
                false
            }
            _ => true,
        });
        copies
    }
}

fn short(effect: &Effect) -> String {
    let n = |id: &Uuid| id.as_u128();
    match effect {
        Effect::Transmit(copy) => {
            let conn = if copy.conn == A { "A" } else { "B" };
            let source = |is_replay: bool| if is_replay { " offline" } else { "" };
            match copy.sort {
                Sort::Passed => format!("{conn} passed {}", n(&copy.id)),
                Sort::Plain { is_replay } => format!("{conn} plain {}{}", n(&copy.id), source(is_replay)),
                Sort::Reliable { is_replay, attempt } => {
                    format!("{conn} {} #{attempt}{}", n(&copy.id), source(is_replay))
                }
            }
        }
        Effect::Accepted { id, at } => format!("accepted {} {at:?}", n(id)),
        Effect::Refused { id, refusal } => format!("refused {} {refusal:?}", n(id)),
        Effect::Moved { id, to } => format!("moved {} {to:?}", n(id)),
        Effect::Settled { letter, was, fate, attempts } => {
            let outcome = fate.reason.map_or(fate.outcome.as_str(), FailureReason::as_str);
            format!("settled {} {outcome} from {was:?} after {attempts}", n(&letter.id))
        }
        Effect::Passed { id } => format!("passed {}", n(id)),
        Effect::Overflow { id, bytes, .. } => format!("overflow {} {bytes}", n(id)),
        Effect::AckTimeout { id, attempt, is_last, .. } => {
            format!("timeout {} #{attempt}{}", n(id), if *is_last { " last" } else { "" })
        }
        Effect::AckRetry { id, attempt, .. } => format!("retry {} #{attempt}", n(id)),
        Effect::AckIgnored { id } => format!("ignored {}", n(id)),
        other => format!("{other:?}"),
    }
}

// The table of protocol §3, row by row.

#[test]
fn reliable_with_a_connection_is_pending_until_it_is_acknowledged() {
    let mut bench = Bench::new();
    bench.connect(A);
    bench.input(Input::Accept(reliable(1)));
    assert!(bench.look().is_empty(), "nothing before the commit");
    bench.commit(reliable(1), id(1));
    assert_eq!(bench.look(), ["accepted 1 InFlight", "A 1 #1"]);
    assert_eq!(bench.mailbox.in_flight(), 1);
    bench.input(Input::Acked { id: id(1) });
    assert_eq!(bench.look(), ["settled 1 acked from InFlight after 1"]);
    assert!(bench.store.is_empty() && bench.mailbox.is_idle() && bench.mailbox.next_wake().is_none());
}

#[test]
fn reliable_without_a_connection_rests_and_comes_when_the_user_does() {
    let mut bench = Bench::new();
    bench.accept(reliable(1));
    assert_eq!(bench.look(), ["accepted 1 Resting"]);
    assert!(bench.mailbox.is_idle());
    bench.connect(A);
    assert_eq!(bench.look(), ["moved 1 InFlight", "A 1 #1 offline"]);
    bench.input(Input::Nacked { id: id(1) });
    assert_eq!(bench.look(), ["settled 1 rejected from InFlight after 1"]);
}

#[test]
fn where_it_goes_is_looked_up_after_the_commit() {
    let mut bench = Bench::new();
    bench.connect(A);
    bench.input(Input::Accept(reliable(1)));
    bench.input(Input::Disconnected { conn: A });
    bench.commit(reliable(1), id(1));
    assert_eq!(bench.look(), ["accepted 1 Resting"]);
}

#[test]
fn a_stored_plain_letter_is_sent_when_written() {
    let mut bench = Bench::resting([plain(1)]);
    bench.answers.insert(A, Queued);
    bench.connect(A);
    assert_eq!(bench.look(), ["moved 1 InFlight", "A plain 1 offline"]);
    bench.input(Input::Acked { id: id(1) });
    assert_eq!(bench.look(), ["ignored 1"]);
    bench.input(Input::Written { conn: A, id: id(1) });
    assert_eq!(bench.look(), ["settled 1 sent from InFlight after 1"]);
    assert!(bench.store.is_empty());
}

#[test]
fn a_stored_plain_letter_that_nobody_takes_rests_again() {
    for result in [Full, Gone] {
        let mut bench = Bench::resting([plain(1)]);
        bench.answers.insert(A, result);
        bench.connect(A);
        assert_eq!(bench.look(), ["moved 1 InFlight", "A plain 1 offline", "moved 1 Resting"]);
        assert_eq!(bench.store.len(), 1);
    }
}

#[test]
fn attempts_and_deadlines_are_exact() {
    let mut bench = Bench::new();
    bench.connect(A);
    bench.accept(reliable(1));
    bench.look();
    for attempt in 1..=3 {
        bench.pass_time(4_999);
        assert!(bench.look().is_empty());
        bench.pass_time(1);
        assert_eq!(bench.look(), [format!("timeout 1 #{attempt}")]);
        bench.pass_time(1_999);
        assert!(bench.look().is_empty());
        bench.pass_time(1);
        assert_eq!(bench.look(), [format!("retry 1 #{}", attempt + 1), format!("A 1 #{}", attempt + 1)]);
    }
    bench.pass_time(5_000);
    assert_eq!(bench.look(), ["timeout 1 #4 last", "moved 1 Resting"]);
    assert_eq!(bench.mailbox.in_flight(), 0);
    // It rests for a minute, and starts anew.
    bench.pass_time(59_999);
    assert!(bench.look().is_empty());
    bench.pass_time(1);
    assert_eq!(bench.look(), ["moved 1 InFlight", "A 1 #1 offline"]);
}

#[test]
fn without_offline_ack_it_fails_when_the_attempts_are_used_up() {
    let mut bench = Bench::new();
    bench.config.enable_offline_ack = false;
    bench.config.ack_max_retries = 0;
    bench.connect(A);
    bench.accept(reliable(1));
    bench.pass_time(5_000);
    let told = bench.look();
    assert_eq!(told[2..], ["timeout 1 #1 last", "settled 1 ack_timeout from InFlight after 1"]);
    assert!(bench.store.is_empty());
}

#[test]
fn the_time_runs_from_the_hand_over_not_from_the_queue() {
    let mut bench = Bench::new();
    bench.answers.insert(A, Queued);
    bench.connect(A);
    bench.accept(reliable(1));
    bench.look();
    bench.pass_time(3_600_000);
    assert!(bench.look().is_empty());
    bench.input(Input::Written { conn: A, id: id(1) });
    bench.pass_time(4_999);
    assert!(bench.look().is_empty());
    bench.pass_time(1);
    assert_eq!(bench.look(), ["timeout 1 #1"]);
}

#[test]
fn when_the_last_connection_goes_letters_rest_and_attempts_start_again() {
    let mut bench = Bench::new();
    bench.connect(A);
    bench.accept(reliable(1));
    bench.pass_time(7_000);
    bench.look();
    bench.input(Input::Disconnected { conn: A });
    assert_eq!(bench.look(), ["moved 1 Resting"]);
    assert!(bench.mailbox.is_idle());
    bench.connect(B);
    assert_eq!(bench.look(), ["moved 1 InFlight", "B 1 #1 offline"]);
}

#[test]
fn time_to_live_is_looked_at_before_a_transmission_and_when_an_attempt_ends() {
    let mut bench = Bench::new();
    bench.connect(A);
    let letter = Letter { expires_at: Some(bench.now + 1_000), ..reliable(1) };
    bench.accept(letter.clone());
    bench.look();
    bench.pass_time(3_000);
    bench.input(Input::Expired { letter: letter.clone() });
    assert!(bench.look().is_empty(), "an acknowledgement may still come in time");
    bench.pass_time(2_000);
    assert_eq!(bench.look(), ["timeout 1 #1", "settled 1 expired from InFlight after 1"]);

    // Before the first transmission, from the line and from the store.
    let letter = Letter { expires_at: Some(bench.now), ..reliable(2) };
    bench.accept(letter.clone());
    assert_eq!(bench.look(), ["accepted 2 Resting", "settled 2 expired from Resting after 0"]);
    let mut bench = Bench::resting([letter]);
    bench.now += 10_000;
    bench.connect(A);
    assert_eq!(bench.look(), ["settled 2 expired from Resting after 0"]);
    assert!(bench.mailbox.is_idle());

    // Before a resend.
    bench.accept(Letter { expires_at: Some(bench.now + 6_000), ..reliable(3) });
    bench.pass_time(7_000);
    let told = bench.look();
    assert_eq!(told[2..], ["timeout 3 #1", "settled 3 expired from InFlight after 1"]);

    // When the last connection goes.
    bench.accept(Letter { expires_at: Some(bench.now + 1_000), ..reliable(4) });
    bench.pass_time(1_000);
    bench.look();
    bench.input(Input::Disconnected { conn: A });
    assert_eq!(bench.look(), ["settled 4 expired from InFlight after 1"]);
}

#[test]
fn what_expires_while_it_rests_is_settled_once() {
    let letter = Letter { expires_at: Some(5), ..reliable(1) };
    let mut bench = Bench::resting([letter.clone()]);
    bench.input(Input::Expired { letter: letter.clone() });
    assert_eq!(bench.look(), ["settled 1 expired from Resting after 0"]);
    // The list was made before.
    bench.input(Input::Expired { letter });
    bench.input(Input::Acked { id: id(1) });
    assert_eq!(bench.look(), ["ignored 1"]);
}

#[test]
fn what_rests_is_acknowledged_once() {
    let mut bench = Bench::resting([reliable(1)]);
    bench.input(Input::Acked { id: id(1) });
    bench.input(Input::Nacked { id: id(1) });
    assert_eq!(bench.look(), ["settled 1 acked from Resting after 0", "ignored 1"]);
}

#[test]
fn the_store_refuses() {
    let mut bench = Bench::new();
    bench.connect(A);
    bench.input(Input::Accept(reliable(1)));
    bench.input(Input::Acked { id: id(1) });
    bench.input(Input::NotCommitted { id: id(1), refusal: Refusal::Full });
    assert_eq!(bench.look(), ["ignored 1", "refused 1 Full"]);
    assert!(bench.mailbox.is_idle());
}
