//! The machine from outside: the state table row by row, with exact times.

use bytes::Bytes;
use proptest::prelude::*;
use wsc_protocol::FailureReason;

use super::{Transmission::*, *};

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
    Letter {
        id: id(n),
        kind: Kind::Reliable,
        body: Bytes::from(vec![b'x'; 100]),
        expires_at: None,
        only: None,
        except: None,
    }
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
                        let place = self.store.iter().find(|(_, letter)| letter.id == *id).map(|(place, _)| *place);
                        place.and_then(|place| self.store.remove(&place));
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
fn the_time_runs_from_the_last_hand_over() {
    let mut bench = Bench::new();
    bench.answers.insert(B, Queued);
    bench.connect(A);
    bench.connect(B);
    bench.accept(reliable(1));
    bench.look();
    bench.pass_time(3_000);
    bench.input(Input::Written { conn: B, id: id(1) });
    bench.pass_time(4_999);
    assert!(bench.look().is_empty(), "the second device has its time too");
    bench.pass_time(1);
    assert_eq!(bench.look(), ["timeout 1 #1"]);

    // A copy that is written when the attempt is over postpones the next, and is no attempt.
    bench.pass_time(2_000);
    bench.input(Input::Lost { conn: B, id: id(1) });
    bench.pass_time(5_000);
    assert_eq!(bench.look(), ["retry 1 #2", "A 1 #2", "B 1 #2", "timeout 1 #2"]);
    bench.pass_time(2_000);
    assert_eq!(bench.look(), ["retry 1 #3", "A 1 #3", "B 1 #3"]);
    bench.pass_time(6_000);
    bench.input(Input::Written { conn: B, id: id(1) });
    bench.look();
    bench.pass_time(4_999);
    assert!(bench.look().is_empty());
    bench.pass_time(1);
    assert_eq!(bench.look(), ["retry 1 #4", "A 1 #4", "B 1 #4"]);
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

// Order.

#[test]
fn a_plain_letter_does_not_overtake_one_that_is_being_stored() {
    let mut bench = Bench::new();
    bench.connect(A);
    bench.input(Input::Accept(reliable(1)));
    bench.input(Input::Accept(reliable(2)));
    bench.input(Input::Pass(plain(3)));
    assert!(bench.mailbox.holds_back());
    // The answers come in any order.
    bench.store.insert(2, reliable(2));
    bench.input(Input::Committed { id: id(2), place: Place(2) });
    assert!(bench.look().is_empty());
    bench.store.insert(1, reliable(1));
    bench.input(Input::Committed { id: id(1), place: Place(1) });
    assert_eq!(
        bench.look(),
        ["accepted 1 InFlight", "A 1 #1", "accepted 2 InFlight", "A 2 #1", "A passed 3", "passed 3"]
    );
    assert!(!bench.mailbox.holds_back());
}

#[test]
fn a_passed_letter_without_anybody_has_passed() {
    let mut bench = Bench::new();
    bench.input(Input::Pass(plain(1)));
    assert_eq!(bench.look(), ["passed 1"]);
    assert!(bench.mailbox.is_idle());
}

#[test]
fn what_comes_during_a_replay_comes_behind_it_and_is_live() {
    let mut bench = Bench::resting([reliable(1), reliable(2)]);
    bench.config.window_messages = 1;
    bench.connect(A);
    bench.accept(reliable(3));
    bench.input(Input::Pass(plain(4)));
    bench.accept(reliable(5));
    assert_eq!(bench.look(), ["moved 1 InFlight", "A 1 #1 offline", "accepted 3 Resting", "accepted 5 Resting"]);
    bench.input(Input::Acked { id: id(1) });
    bench.look();
    bench.input(Input::Acked { id: id(2) });
    // Behind what stood in front of it, not behind the whole replay.
    let told = bench.look();
    assert_eq!(told, ["settled 2 acked from InFlight after 1", "moved 3 InFlight", "A 3 #1", "A passed 4", "passed 4"]);
    bench.input(Input::Acked { id: id(3) });
    assert_eq!(bench.look()[1..], ["moved 5 InFlight", "A 5 #1"]);
    bench.input(Input::Acked { id: id(5) });
    assert!(bench.mailbox.is_idle());
}

#[test]
fn replayed_is_offline_and_committed_meanwhile_is_live() {
    let mut bench = Bench::resting([reliable(1)]);
    bench.holds_pages = true;
    bench.connect(A);
    bench.accept(reliable(2));
    bench.holds_pages = false;
    let page = bench.pages.pop_front().unwrap();
    bench.input(page);
    let told = bench.look();
    assert_eq!(told, ["accepted 2 Resting", "moved 1 InFlight", "A 1 #1 offline", "moved 2 InFlight", "A 2 #1"]);
}

// Windows.

#[test]
fn the_window_is_never_exceeded_and_opens_with_acknowledgements() {
    let mut bench = Bench::resting((1..=10).map(reliable));
    bench.config.window_messages = 3;
    bench.connect(A);
    assert_eq!(bench.copies(A), [1, 2, 3]);
    bench.input(Input::Acked { id: id(2) });
    assert_eq!(bench.copies(A), [4]);
    // Not more is read than there is room for.
    assert!(bench.reads.iter().all(|(_, messages, _)| *messages <= 3), "{:?}", bench.reads);
    bench.config.window_messages = 128;
    bench.config.window_bytes = 350;
    bench.input(Input::Nacked { id: id(1) });
    assert_eq!(bench.copies(A), [5]);
}

#[test]
fn one_letter_always_fits_into_the_window() {
    let mut bench = Bench::resting([reliable(1), reliable(2)]);
    bench.config.window_bytes = 1;
    bench.connect(A);
    assert_eq!(bench.copies(A), [1]);
    bench.input(Input::Acked { id: id(1) });
    assert_eq!(bench.copies(A), [2]);
}

#[test]
fn a_live_connection_with_a_full_window_goes_on_from_the_store() {
    let mut bench = Bench::new();
    bench.config.window_messages = 2;
    bench.connect(A);
    for n in 1..=4 {
        bench.accept(reliable(n));
    }
    assert_eq!(bench.copies(A), [1, 2]);
    assert_eq!(bench.mailbox.in_flight(), 2);
    bench.look();
    bench.input(Input::Acked { id: id(1) });
    assert_eq!(bench.look()[1..], ["moved 3 InFlight", "A 3 #1"]);
    bench.input(Input::Acked { id: id(2) });
    bench.input(Input::Acked { id: id(3) });
    bench.input(Input::Acked { id: id(4) });
    assert!(bench.mailbox.is_idle() && bench.store.is_empty());
}

#[test]
fn plain_letters_take_no_place_in_the_window() {
    let mut bench = Bench::resting([reliable(1), plain(2), plain(3), reliable(4)]);
    bench.config.window_messages = 2;
    bench.connect(A);
    assert_eq!(bench.copies(A), [1, 2, 3, 4]);
}

#[test]
fn many_stored_plain_letters_do_not_flood_a_slow_connection() {
    let mut bench = Bench::resting((1..=100).map(plain));
    bench.config.window_messages = 4;
    bench.answers.insert(A, Queued);
    bench.connect(A);
    assert_eq!(bench.copies(A), [1, 2, 3, 4]);
    bench.input(Input::Written { conn: A, id: id(1) });
    assert_eq!(bench.copies(A), [5]);
}

#[test]
fn a_hundred_thousand_resting_letters_pass_through_one_window() {
    let mut bench = Bench::resting((1..=100_000).map(reliable));
    bench.config.window_bytes = u64::MAX;
    bench.connect(A);
    for n in 1..=100_000 {
        assert!(bench.mailbox.in_flight() <= 128);
        bench.input(Input::Acked { id: id(n) });
        bench.told.clear();
        bench.reads.clear();
    }
    assert!(bench.mailbox.is_idle() && bench.store.is_empty());
}

// What is held behind a replay.

#[test]
fn what_is_held_is_bounded_and_overflows_by_name() {
    let mut bench = Bench::resting([plain(1), plain(2)]);
    bench.config.window_messages = 1;
    bench.config.held_bytes = 250;
    bench.answers.insert(A, Queued);
    bench.connect(A);
    bench.look();
    for n in 3..=5 {
        bench.input(Input::Pass(plain(n)));
    }
    assert_eq!(bench.look(), ["overflow 5 100", "passed 5"], "who does not read");
    bench.input(Input::Disconnected { conn: A });
    assert_eq!(bench.look(), ["passed 3", "passed 4", "moved 1 Resting"]);
    assert!(bench.mailbox.is_idle());
}

#[test]
fn who_does_not_acknowledge_gets_what_is_live_when_too_much_is_held() {
    let mut bench = Bench::resting([reliable(1), reliable(2)]);
    bench.config.window_messages = 1;
    bench.config.held_bytes = 250;
    bench.connect(A);
    for n in 3..=4 {
        bench.input(Input::Pass(plain(n)));
    }
    bench.look();
    bench.input(Input::Pass(plain(5)));
    assert_eq!(bench.look(), ["A passed 3", "passed 3", "A passed 4", "passed 4", "A passed 5", "passed 5"]);
    // What it did not get rests, and comes again.
    bench.input(Input::Acked { id: id(1) });
    bench.look();
    bench.pass_time(60_000);
    assert_eq!(bench.copies(A), [2]);
}

#[test]
fn an_empty_hold_takes_one_letter_of_any_size() {
    let mut bench = Bench::resting([reliable(1), reliable(2)]);
    bench.config.window_messages = 1;
    bench.config.held_bytes = 1;
    bench.connect(A);
    bench.input(Input::Pass(plain(3)));
    bench.look();
    bench.input(Input::Acked { id: id(1) });
    bench.input(Input::Acked { id: id(2) });
    let told = bench.look();
    assert!(told.contains(&"A passed 3".to_owned()) && told.contains(&"passed 3".to_owned()), "{told:?}");
}

#[test]
fn who_never_acknowledges_still_gets_live_messages() {
    let mut bench = Bench::resting((1..=5).map(reliable));
    bench.config.window_messages = 2;
    bench.config.ack_max_retries = 0;
    bench.connect(A);
    bench.input(Input::Pass(plain(9)));
    bench.look();
    bench.pass_time(5_000);
    assert_eq!(
        bench.look(),
        ["timeout 1 #1 last", "moved 1 Resting", "A passed 9", "passed 9", "timeout 2 #1 last", "moved 2 Resting"]
    );
    // The rest keeps resting, and is tried again.
    assert!(!bench.mailbox.holds_back() && bench.mailbox.in_flight() == 0);
    bench.pass_time(60_000);
    assert_eq!(bench.copies(A), [1, 2]);
}

// Queues that are full, and copies that get lost.

#[test]
fn a_reliable_letter_that_found_no_room_rests_and_comes_again() {
    let mut bench = Bench::new();
    bench.answers.insert(A, Full);
    bench.connect(A);
    bench.accept(reliable(1));
    assert_eq!(bench.look(), ["accepted 1 InFlight", "A 1 #1", "moved 1 Resting"]);
    bench.pass_time(59_999);
    assert!(bench.look().is_empty(), "not in a tight loop");
    bench.answers.clear();
    bench.pass_time(1);
    assert_eq!(bench.look(), ["moved 1 InFlight", "A 1 #1 offline"]);
}

#[test]
fn a_full_queue_ends_the_replay_and_nothing_more_is_sent() {
    let mut bench = Bench::resting((1..=5).map(reliable));
    bench.answers.insert(A, Full);
    bench.connect(A);
    assert_eq!(bench.look(), ["moved 1 InFlight", "A 1 #1 offline", "moved 1 Resting"]);
    assert!(!bench.mailbox.holds_back());
}

#[test]
fn a_copy_that_left_the_queue_rests_unless_another_is_on_its_way() {
    let mut bench = Bench::new();
    bench.answers.extend([(A, Queued), (B, Queued)]);
    bench.connect(A);
    bench.connect(B);
    bench.accept(reliable(1));
    bench.look();
    bench.input(Input::Lost { conn: A, id: id(1) });
    assert!(bench.look().is_empty());
    bench.input(Input::Lost { conn: B, id: id(1) });
    assert_eq!(bench.look(), ["moved 1 Resting"]);
}

#[test]
fn no_second_copy_is_queued_behind_the_first() {
    let mut bench = Bench::new();
    bench.config.ack_max_retries = 1;
    bench.answers.insert(B, Queued);
    bench.connect(A);
    bench.connect(B);
    bench.accept(reliable(1));
    bench.look();
    bench.pass_time(7_000);
    assert_eq!(bench.look(), ["timeout 1 #1", "retry 1 #2", "A 1 #2"]);
    bench.pass_time(5_000);
    assert_eq!(bench.look(), ["timeout 1 #2 last", "moved 1 Resting"]);
    // Nor after it has rested: the copy that is still queued there is the one.
    bench.pass_time(60_000);
    assert_eq!(bench.look(), ["moved 1 InFlight", "A 1 #1 offline"]);
    bench.input(Input::Written { conn: B, id: id(1) });
    bench.pass_time(7_000);
    assert_eq!(bench.look(), ["timeout 1 #1", "retry 1 #2", "A 1 #2 offline", "B 1 #2 offline"]);
}

// Several devices.

#[test]
fn a_second_device_gets_what_is_in_flight_with_the_same_attempt() {
    let mut bench = Bench::new();
    bench.connect(A);
    bench.accept(reliable(1));
    bench.pass_time(7_000);
    bench.look();
    bench.connect(B);
    assert_eq!(bench.look(), ["B 1 #2 offline"]);
    // The time runs from the last hand-over.
    bench.pass_time(4_999);
    assert!(bench.look().is_empty());
    bench.input(Input::Acked { id: id(1) });
    assert_eq!(bench.look(), ["settled 1 acked from InFlight after 2"]);
    bench.pass_time(100_000);
    assert!(bench.look().is_empty() && bench.mailbox.is_idle());
}

#[test]
fn an_acknowledgement_on_any_device_opens_every_window() {
    let mut bench = Bench::resting([reliable(1), reliable(2)]);
    bench.config.window_messages = 1;
    bench.connect(A);
    bench.connect(B);
    assert_eq!((bench.copies(A), bench.copies(B)), (vec![1], vec![1]));
    bench.input(Input::Acked { id: id(1) });
    assert_eq!((bench.copies(A), bench.copies(B)), (vec![2], vec![2]));
}

#[test]
fn one_device_of_two_goes_and_nothing_rests() {
    let mut bench = Bench::new();
    bench.connect(A);
    bench.connect(B);
    bench.accept(reliable(1));
    bench.look();
    bench.input(Input::Disconnected { conn: A });
    bench.pass_time(7_000);
    assert_eq!(bench.look(), ["timeout 1 #1", "retry 1 #2", "B 1 #2"]);
}

#[test]
fn what_is_for_one_connection_is_everybodys_when_that_is_gone() {
    let mut bench = Bench::new();
    bench.connect(A);
    bench.connect(B);
    bench.accept(Letter { only: Some(A), ..reliable(1) });
    assert_eq!(bench.look(), ["accepted 1 InFlight", "A 1 #1"]);
    bench.input(Input::Disconnected { conn: A });
    assert_eq!(bench.look(), ["B 1 #1"], "it does not wait for a timeout");

    // Also where it had not been sent yet.
    let mut bench = Bench::resting([reliable(1), Letter { only: Some(A), ..reliable(2) }]);
    bench.config.window_messages = 1;
    bench.connect(A);
    bench.connect(B);
    bench.input(Input::Disconnected { conn: A });
    bench.look();
    bench.input(Input::Acked { id: id(1) });
    assert_eq!(bench.copies(B), [2]);
}

#[test]
fn where_a_letter_comes_from_it_never_goes() {
    let mut bench = Bench::new();
    bench.connect(A);
    bench.connect(B);
    bench.accept(Letter { except: Some(A), ..reliable(1) });
    assert_eq!(bench.look(), ["accepted 1 InFlight", "B 1 #1"]);
    bench.input(Input::Written { conn: B, id: id(1) });
    bench.pass_time(7_000);
    assert_eq!(bench.look(), ["timeout 1 #1", "retry 1 #2", "B 1 #2"]);

    // Nor by a replay.
    let mut bench = Bench::resting([Letter { except: Some(A), ..reliable(1) }, reliable(2)]);
    bench.connect(A);
    assert_eq!(bench.copies(A), [2]);
    bench.connect(B);
    assert_eq!(bench.copies(B), [1, 2]);

    // Where nobody else is, it rests for those who come.
    let mut bench = Bench::new();
    bench.connect(A);
    bench.accept(Letter { except: Some(A), ..reliable(1) });
    assert_eq!(bench.look(), ["accepted 1 Resting"]);
}

#[test]
fn gone_is_disconnected() {
    let mut bench = Bench::new();
    bench.answers.insert(A, Gone);
    bench.connect(A);
    bench.accept(reliable(1));
    assert_eq!(bench.look(), ["accepted 1 InFlight", "A 1 #1", "moved 1 Resting"]);
    assert!(bench.mailbox.is_idle());
    bench.input(Input::Disconnected { conn: A });
    assert!(bench.look().is_empty());
}

// Stores that are slow, or fail.

#[test]
fn a_stale_page_brings_nothing_back() {
    for verdict in [true, false] {
        let mut bench = Bench::resting([reliable(1), reliable(2)]);
        bench.holds_pages = true;
        bench.connect(A);
        bench.input(if verdict { Input::Acked { id: id(1) } } else { Input::Nacked { id: id(1) } });
        bench.look();
        bench.holds_pages = false;
        let page = bench.pages.pop_front().unwrap();
        bench.input(page);
        assert_eq!(bench.look(), ["moved 2 InFlight", "A 2 #1 offline"]);
    }
}

#[test]
fn a_page_that_shows_what_is_not_accepted_yet_stops_there() {
    let mut bench = Bench::resting([reliable(1)]);
    bench.input(Input::Accept(reliable(2)));
    bench.store.insert(2, reliable(2));
    bench.connect(A);
    assert_eq!(bench.look(), ["moved 1 InFlight", "A 1 #1 offline"]);
    bench.input(Input::Committed { id: id(2), place: Place(2) });
    assert_eq!(bench.look(), ["accepted 2 Resting", "moved 2 InFlight", "A 2 #1"]);
}

#[test]
fn nobody_acknowledges_what_is_still_in_the_line() {
    let mut bench = Bench::new();
    bench.input(Input::Accept(reliable(1)));
    bench.store.insert(1, reliable(1));
    bench.input(Input::Acked { id: id(1) });
    bench.input(Input::Committed { id: id(1), place: Place(1) });
    assert_eq!(bench.look(), ["ignored 1", "accepted 1 Resting"]);
    assert_eq!(bench.store.len(), 1);
}

#[test]
fn a_page_that_took_too_long_is_read_again() {
    let mut bench = Bench::resting((1..=6_000).map(reliable));
    bench.config.window_messages = 6_000;
    bench.holds_pages = true;
    bench.connect(A);
    for n in 1..=5_999 {
        bench.input(Input::Acked { id: id(n) });
    }
    bench.look();
    bench.holds_pages = false;
    let page = bench.pages.pop_front().unwrap();
    bench.input(page);
    assert_eq!(bench.look(), ["moved 6000 InFlight", "A 6000 #1 offline"]);
    assert_eq!(bench.reads.len(), 2, "the page, and the same again");
}

#[test]
fn a_failed_read_is_repeated_and_the_replay_goes_on() {
    let mut bench = Bench::resting([reliable(1)]);
    bench.holds_pages = true;
    bench.connect(A);
    bench.pages.clear();
    bench.input(Input::ReadFailed { after: None });
    assert!(bench.mailbox.holds_back() && !bench.mailbox.is_idle());
    bench.holds_pages = false;
    bench.pass_time(1_999);
    assert_eq!(bench.reads.len(), 1);
    bench.pass_time(1);
    assert_eq!(bench.look(), ["moved 1 InFlight", "A 1 #1 offline"]);
}

#[test]
fn one_page_is_open_at_a_time() {
    let mut bench = Bench::resting([reliable(1)]);
    bench.holds_pages = true;
    bench.connect(A);
    bench.connect(B);
    assert_eq!(bench.reads.len(), 1);
    let page = bench.pages.pop_front().unwrap();
    bench.input(page);
    assert_eq!(bench.reads.len(), 2);
}

fn any_input() -> impl Strategy<Value = Input> {
    let any_id = (1..6_u64).prop_map(id);
    let any_conn = (0..3_u64).prop_map(|n| Uuid::from_u128(0xA + u128::from(n)));
    let any_letter = (1..6_u64, any::<bool>(), prop::option::of(0..50_u64), prop::option::of(any_conn.clone()))
        .prop_map(|(n, is_plain, expires_at, only)| {
            let kind = if is_plain { Kind::Plain } else { Kind::Reliable };
            Letter { kind, expires_at, only, ..reliable(n) }
        });
    let any_after = prop::option::of((0..8_u64).prop_map(Place));
    let result = prop::sample::select(vec![Written, Queued, Full, Gone]);
    let verdict = prop::sample::select(vec![Verdict::Acked, Verdict::Rejected, Verdict::Expired]);
    prop_oneof![
        any_letter.clone().prop_map(Input::Accept),
        any_letter.clone().prop_map(Input::Pass),
        (any_id.clone(), 0..8_u64).prop_map(|(id, place)| Input::Committed { id, place: Place(place) }),
        any_id.clone().prop_map(|id| Input::NotCommitted { id, refusal: Refusal::Full }),
        (any_conn.clone(), any::<bool>()).prop_map(|(conn, nothing_rests)| Input::Connected { conn, nothing_rests }),
        any_conn.clone().prop_map(|conn| Input::Disconnected { conn }),
        (any_conn.clone(), any_id.clone(), result).prop_map(|(conn, id, result)| Input::Transmitted {
            conn,
            id,
            result
        }),
        (any_conn.clone(), any_id.clone()).prop_map(|(conn, id)| Input::Written { conn, id }),
        (any_conn, any_id.clone()).prop_map(|(conn, id)| Input::Lost { conn, id }),
        any_id.clone().prop_map(|id| Input::Acked { id }),
        any_id.clone().prop_map(|id| Input::Nacked { id }),
        (any_after.clone(), prop::collection::vec((0..8_u64, any_letter.clone()), 0..4), any::<bool>()).prop_map(
            |(after, letters, has_more)| {
                let letters = letters.into_iter().map(|(place, letter)| (Place(place), letter)).collect();
                Input::Page { after, letters, has_more }
            }
        ),
        any_after.prop_map(|after| Input::ReadFailed { after }),
        (any_id, verdict, prop::option::of(any_letter.clone())).prop_map(|(id, verdict, letter)| Input::Taken {
            id,
            verdict,
            letter
        }),
        any_letter.prop_map(|letter| Input::Expired { letter }),
        Just(Input::Wake),
    ]
}

proptest! {
    /// Nothing that it is told makes a mailbox panic, answer differently the second time, settle what it did not
    /// accept, or hold on to anything when all is over.
    #[test]
    fn nonsense_does_no_harm(steps in prop::collection::vec((0..20_u64, any_input()), 0..120), window in 0..3_usize) {
        let config = MailboxConfig {
            ack_timeout: std::time::Duration::from_millis(10),
            ack_retry_interval: std::time::Duration::ZERO,
            retry_interval: std::time::Duration::from_millis(30),
            window_messages: window,
            held_bytes: 150,
            ..MailboxConfig::default()
        };
        let run = || {
            let (mut mailbox, mut all, mut now) = (Mailbox::new(), Vec::new(), 0);
            for (pause, input) in &steps {
                now += pause;
                let mut effects = Vec::new();
                mailbox.handle(now, &config, input.clone(), &mut effects);
                let departures = effects.iter().filter(|effect| match effect {
                    Effect::Accepted { at, .. } => *at == Whereabouts::InFlight,
                    Effect::Moved { to, .. } => *to == Whereabouts::InFlight,
                    _ => false,
                });
                assert!(departures.count() <= mailbox.in_flight() + effects.len());
                all.extend(effects);
            }
            (mailbox, all, now)
        };
        let (mut mailbox, effects, now) = run();
        prop_assert_eq!(&effects, &run().1);

        // Each departure has its return or its end.
        let mut in_flight = 0_i64;
        for effect in &effects {
            match effect {
                Effect::Accepted { at: Whereabouts::InFlight, .. } => in_flight += 1,
                Effect::Moved { to: Whereabouts::InFlight, .. } => in_flight += 1,
                Effect::Moved { to: Whereabouts::Resting, .. } => in_flight -= 1,
                Effect::Settled { was: Whereabouts::InFlight, .. } => in_flight -= 1,
                _ => {}
            }
        }
        prop_assert_eq!(in_flight, mailbox.in_flight() as i64);

        // When everybody has gone, nothing is in memory but what the store has not answered.
        let mut effects = Vec::new();
        for conn in [0xA, 0xB, 0xC] {
            mailbox.handle(now, &config, Input::Disconnected { conn: Uuid::from_u128(conn) }, &mut effects);
        }
        prop_assert_eq!((mailbox.in_flight(), mailbox.next_wake()), (0, None));
    }
}
