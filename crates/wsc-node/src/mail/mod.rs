//! Mailboxes at work: the real clock, store and connections around the machines of `wsc-delivery`.
//!
//! Each user with something on its way has a [`Slot`]. Whoever has news for it puts them into its list; whoever finds
//! nobody at work on it works the list off, and carries out what the mailbox asks for. So no lock is held while
//! something is written, and the news of one user are taken in order.

mod carry;
mod idempotency;
mod inspect;
mod keeper;
mod outcomes;
mod recent;
mod record;
mod send;
mod timers;
mod watch;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use dashmap::{DashMap, Entry};
use parking_lot::{Mutex, RwLock};
use uuid::Uuid;
use wsc_delivery::mailbox::{Effect, Input, Letter, Mailbox, MailboxConfig, Millis, Verdict};
use wsc_protocol::{ErrorReply, Fate, Id};
use wsc_store::Note;

use crate::{core::Core, ledger::Transit, routing::SendReceipt, session::Session};

use idempotency::{Begun, Idempotency, KeyedSend};
pub(crate) use inspect::PendingCursor;
pub(crate) use keeper::Keeper;
use outcomes::{Memory, Outcomes};
pub use outcomes::{MessageFate, PairFate};
pub(crate) use record::Record;
pub(crate) use send::{Plain, Reliability, RoomSend, Via};
use timers::Timers;
pub(crate) use watch::Watch;

/// Is told what became of a send: once, as soon as that is known.
pub(crate) type Answer = Box<dyn FnOnce(Result<Answered, ErrorReply>) + Send>;

/// The first answer to a send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answered {
    pub(crate) receipt: SendReceipt,
    /// Pairs that were accepted.
    pub(crate) recipients: u64,
}

impl Answered {
    /// The answer to a plain room message.
    fn published((id, recipients): (Uuid, usize)) -> Self {
        Self { receipt: SendReceipt::new(id, Fate::PENDING), recipients: recipients as u64 }
    }

    fn as_duplicate(&self) -> Self {
        Self { receipt: SendReceipt { duplicate: true, ..self.receipt }, ..*self }
    }
}

/// Is told where one letter stands once it is accepted, or why it is not.
type Told = Box<dyn FnOnce(Result<Fate, ErrorReply>) + Send>;

/// All mailboxes of the node.
#[derive(Debug)]
pub(crate) struct Mail {
    /// What outlives connections; `None` where `storage.kind` is `none`.
    keeper: Option<Keeper>,
    slots: DashMap<Id, Arc<Slot>>,
    /// How many slots there are: who sends plain messages looks here first.
    open: AtomicUsize,
    config: RwLock<Arc<MailboxConfig>>,
    timers: Timers,
    clock: Clock,
    pub(crate) outcomes: Outcomes,
    pub(crate) idempotency: Idempotency,
    /// How many messages of each client wait for their receivers.
    stored_by: DashMap<Box<str>, u64>,
    ignored_acks: [AtomicU64; IGNORED_ACKS.len()],
}

/// Why acknowledgements are ignored.
pub(crate) const IGNORED_ACKS: [&str; 3] = ["unknown", "foreign", "late"];

/// Unix milliseconds that never go back, and that a paused clock holds.
#[derive(Debug)]
struct Clock {
    /// What the wall clock showed at `start`.
    unix_ms: u64,
    start: tokio::time::Instant,
}

impl Clock {
    fn now(&self) -> Millis {
        self.unix_ms + self.start.elapsed().as_millis() as u64
    }

    fn instant(&self, at: Millis) -> tokio::time::Instant {
        self.start + std::time::Duration::from_millis(at.saturating_sub(self.unix_ms))
    }
}

/// One user's mailbox and what surrounds it.
#[derive(Debug)]
pub(crate) struct Slot {
    owner: Id,
    /// Whether a plain message has to go through the mailbox so that it overtakes nothing.
    holds_back: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    news: VecDeque<News>,
    /// Away while somebody works on it.
    desk: Option<Box<Desk>>,
    /// Connections that are about to be told of.
    expected: usize,
    /// For what time a timer is set.
    timer: Option<Millis>,
    /// It was empty and has been forgotten; a new one takes its place.
    is_gone: bool,
}

/// What somebody has to tell a mailbox.
enum News {
    Input(Input),
    /// A letter to accept, and what belongs to it.
    Accept(Box<Accept>),
    /// A plain message that must not overtake what came before it.
    Pass(Letter, Arc<Transit>),
    Connected(Arc<Session>),
    /// A connection acknowledged messages, or rejected them for this reason.
    Verdicts {
        ids: Vec<Uuid>,
        verdict: Verdict,
        reason: Option<Box<str>>,
        session: Uuid,
    },
    /// Letters were looked for in the store.
    Taken(Vec<(Uuid, Verdict, Option<Letter>)>),
    /// Look who is connected.
    Look,
}

impl fmt::Debug for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Input(_) => "Input",
            Self::Accept(_) => "Accept",
            Self::Pass(..) => "Pass",
            Self::Connected(_) => "Connected",
            Self::Verdicts { .. } => "Verdicts",
            Self::Taken(_) => "Taken",
            Self::Look => "Look",
        })
    }
}

struct Accept {
    letter: Letter,
    /// What is to be as durable as the letter.
    note: Option<Note>,
    told: Told,
    watch: Option<Watch>,
    /// It counts as accepted and in flight already: it could not be written.
    is_in_flight: bool,
}

/// A mailbox with the things that only its driver knows.
#[derive(Default)]
struct Desk {
    mailbox: Mailbox,
    /// The connections that the mailbox knows of.
    sessions: Vec<Arc<Session>>,
    notes: HashMap<Uuid, Note>,
    /// Senders that wait for their first answer, and what is known for it.
    asked: HashMap<Uuid, (Told, Option<Fate>)>,
    watches: HashMap<Uuid, Watch>,
    passing: HashMap<Uuid, Arc<Transit>>,
    /// Letters that count as accepted and in flight already.
    spilled: HashSet<Uuid>,
    /// Letters that are to be taken out of the store.
    wanted: Vec<(Uuid, Verdict)>,
    /// Whether some are being taken.
    is_taking: bool,
    /// Who acknowledged or rejected, and why, while that is worked on.
    acker: Option<Uuid>,
    nack_reason: Option<Box<str>>,
    effects: VecDeque<Effect>,
    /// Reused for each input.
    fresh: Vec<Effect>,
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").field("mailbox", &self.mailbox).finish_non_exhaustive()
    }
}

impl Slot {
    fn new(owner: Id) -> Self {
        let state = State {
            news: VecDeque::from([News::Look]),
            desk: Some(Box::default()),
            expected: 0,
            timer: None,
            is_gone: false,
        };
        Self { owner, holds_back: AtomicBool::new(true), state: Mutex::new(state) }
    }
}

impl Mail {
    pub(crate) fn new(keeper: Option<Keeper>, config: MailboxConfig, unix_ms: u64) -> Self {
        Self {
            keeper,
            slots: DashMap::new(),
            open: AtomicUsize::new(0),
            config: RwLock::new(Arc::new(config)),
            timers: Timers::default(),
            clock: Clock { unix_ms, start: tokio::time::Instant::now() },
            outcomes: Outcomes::default(),
            idempotency: Idempotency::default(),
            stored_by: DashMap::new(),
            ignored_acks: Default::default(),
        }
    }

    /// From now on mailboxes behave like this.
    pub(crate) fn reconfigure(&self, config: MailboxConfig) {
        *self.config.write() = Arc::new(config);
    }

    /// What outlives connections.
    pub(crate) fn keeper(&self) -> Option<&Keeper> {
        self.keeper.as_ref()
    }

    pub(crate) fn now(&self) -> Millis {
        self.clock.now()
    }

    fn slot(&self, user_id: &str) -> Option<Arc<Slot>> {
        if self.open.load(Relaxed) == 0 {
            return None;
        }
        self.slots.get(user_id).map(|slot| Arc::clone(&slot))
    }

    fn slot_or_new(&self, user_id: &Id) -> Arc<Slot> {
        if let Some(slot) = self.slot(user_id.as_str()) {
            return slot;
        }
        match self.slots.entry(user_id.clone()) {
            Entry::Occupied(entry) => Arc::clone(entry.get()),
            Entry::Vacant(entry) => {
                self.open.fetch_add(1, Relaxed);
                Arc::clone(&entry.insert(Arc::new(Slot::new(user_id.clone()))))
            }
        }
    }

    fn forget(&self, slot: &Arc<Slot>) {
        if self.slots.remove_if(slot.owner.as_str(), |_, current| Arc::ptr_eq(current, slot)).is_some() {
            self.open.fetch_sub(1, Relaxed);
        }
    }

    /// The mailbox that a plain message to this user has to go through, if there is one.
    pub(crate) fn holding_back(&self, user_id: &str) -> bool {
        self.slot(user_id).is_some_and(|slot| slot.holds_back.load(Relaxed))
    }

    /// Acknowledgements that meant nothing, by reason.
    pub(crate) fn ignored_acks(&self) -> impl Iterator<Item = (&'static str, u64)> {
        IGNORED_ACKS.into_iter().zip(self.ignored_acks.iter().map(|count| count.load(Relaxed)))
    }

    fn ignore_ack(&self, reason: &str) {
        if let Some(at) = IGNORED_ACKS.iter().position(|r| *r == reason) {
            self.ignored_acks[at].fetch_add(1, Relaxed);
        }
    }
}

impl Core {
    /// Tells the mailbox of a user something; makes the mailbox where there is none.
    fn mail(self: &Arc<Self>, user_id: &Id, news: News) {
        let mut news = Some(news);
        while let Some(fresh) = news.take() {
            let slot = self.mail.slot_or_new(user_id);
            news = self.feed(&slot, fresh).err();
        }
    }

    /// Tells a mailbox something.
    ///
    /// # Errors
    ///
    /// The news come back where the mailbox has been forgotten meanwhile.
    #[expect(clippy::result_large_err, reason = "the news come back as they were, which is rare")]
    fn feed(self: &Arc<Self>, slot: &Arc<Slot>, news: News) -> Result<(), News> {
        let mut state = slot.state.lock();
        if state.is_gone {
            return Err(news);
        }
        // Whoever sends next from here must not overtake this.
        slot.holds_back.store(true, Relaxed);
        state.news.push_back(news);
        let Some(desk) = state.desk.take() else { return Ok(()) };
        drop(state);
        self.work(slot, desk);
        Ok(())
    }

    /// Works off what a mailbox has been told. Others may tell it more meanwhile: after so much the rest is for a task,
    /// so that nobody who only has news, such as a connection or the keeper, works for others for long.
    fn work(self: &Arc<Self>, slot: &Arc<Slot>, desk: Box<Desk>) {
        let Some(mut desk) = self.work_some(slot, desk) else { return };
        let (core, slot) = (Arc::clone(self), Arc::clone(slot));
        self.tasks.spawn(async move {
            loop {
                tokio::task::yield_now().await;
                match core.work_some(&slot, desk) {
                    Some(unfinished) => desk = unfinished,
                    None => return,
                }
            }
        });
    }

    /// Works off a part; the desk comes back where there is more.
    fn work_some(self: &Arc<Self>, slot: &Arc<Slot>, mut desk: Box<Desk>) -> Option<Box<Desk>> {
        let batch = {
            let mut state = slot.state.lock();
            let part = state.news.len().min(NEWS_AT_ONCE);
            state.news.drain(..part).collect::<Vec<_>>()
        };
        for news in batch {
            self.take_news(slot, &mut desk, news);
        }
        self.tell(&mut desk);
        let mut state = slot.state.lock();
        if !state.news.is_empty() {
            return Some(desk);
        }
        let is_needed = state.expected > 0 || !desk.mailbox.is_idle() || desk.is_looking();
        slot.holds_back.store(state.expected > 0 || desk.mailbox.holds_back(), Relaxed);
        if is_needed {
            self.mail.timers.set(slot, &mut state.timer, desk.mailbox.next_wake());
            state.desk = Some(desk);
            return None;
        }
        state.is_gone = true;
        self.mail.timers.unset(slot, state.timer.take());
        // Others look into the map first and into the slot then.
        drop(state);
        self.mail.forget(slot);
        None
    }

    /// Tells senders what is known by now.
    fn tell(&self, desk: &mut Desk) {
        if desk.asked.is_empty() {
            return;
        }
        let known: Vec<Uuid> = desk.asked.iter().filter(|(_, (_, fate))| fate.is_some()).map(|(id, _)| *id).collect();
        for id in known {
            if let Some((told, Some(fate))) = desk.asked.remove(&id) {
                told(Ok(fate));
            }
        }
    }

    /// A connection is about to be there: until it is, nothing may overtake what rests for it.
    pub(crate) fn expect_session(self: &Arc<Self>, user_id: &Id) -> bool {
        let Some(keeper) = self.mail.keeper() else { return false };
        loop {
            let slot = match self.mail.slot(user_id.as_str()) {
                Some(slot) => slot,
                None if keeper.store().is_surely_empty(user_id) || !has_inbox(user_id.as_str()) => return false,
                None => self.mail.slot_or_new(user_id),
            };
            let mut state = slot.state.lock();
            if !state.is_gone {
                slot.holds_back.store(true, Relaxed);
                state.expected += 1;
                return true;
            }
        }
    }

    /// A connection is there; `was_expected` is what [`expect_session`](Self::expect_session) said of it.
    pub(crate) fn mail_connected(self: &Arc<Self>, session: &Arc<Session>, was_expected: bool) {
        let user = Arc::clone(&session.user());
        let user_id = &user.id;
        let told = match self.mail.slot(user_id.as_str()) {
            Some(slot) => {
                if was_expected {
                    slot.state.lock().expected -= 1;
                }
                self.feed(&slot, News::Connected(Arc::clone(session))).is_ok()
            }
            None => false,
        };
        // What was stored while nobody saw the connection yet would rest until somebody makes a mailbox.
        let rests = |keeper: &Keeper| has_inbox(user_id.as_str()) && !keeper.store().is_surely_empty(user_id);
        if !told && self.mail.keeper().is_some_and(rests) {
            self.mail(user_id, News::Connected(Arc::clone(session)));
        }
    }

    /// A connection is gone.
    pub(crate) fn mail_disconnected(self: &Arc<Self>, session: &Session) {
        if let Some(slot) = self.mail.slot(session.user().id.as_str()) {
            let _ = self.feed(&slot, News::Input(Input::Disconnected { conn: session.id }));
        }
    }

    /// A connection acknowledged messages of its user's, or rejected them.
    pub(crate) fn mail_verdict(
        self: &Arc<Self>,
        session: &Session,
        ids: &[Uuid],
        verdict: Verdict,
        reason: Option<Box<str>>,
    ) {
        let user = Arc::clone(&session.user());
        let user_id = &user.id;
        let Some(keeper) = self.mail.keeper() else {
            ids.iter().for_each(|_| self.mail.ignore_ack("unknown"));
            return;
        };
        let mut known = Vec::with_capacity(ids.len());
        for &id in ids {
            let is_nothing = || self.mail.slot(user_id.as_str()).is_none() && keeper.store().is_surely_empty(user_id);
            if id.is_nil() || is_nothing() {
                self.mail.ignore_ack(self.mail.outcomes.ignored_ack(id, user_id));
                continue;
            }
            known.push(id);
        }
        if !known.is_empty() {
            let verdicts = News::Verdicts { ids: known, verdict, reason, session: session.id };
            self.mail(user_id, verdicts);
        }
    }

    /// Whether so much waits to be told to a user's mailbox that its connections should not be listened to.
    pub(crate) fn mail_is_busy(&self, user_id: &Id) -> bool {
        self.mail.slot(user_id.as_str()).is_some_and(|slot| slot.state.lock().news.len() > MOST_NEWS)
    }

    /// Wakes mailboxes when their time comes.
    pub(crate) async fn run_mail_timers(self: Arc<Self>) {
        let stop = self.stop.clone();
        while let Some(due) = self.mail.timers.due(&self.mail.clock, &stop).await {
            for slot in due {
                slot.state.lock().timer = None;
                let _ = self.feed(&slot, News::Input(Input::Wake));
            }
        }
    }
}

/// News that whoever brings some works off at once.
const NEWS_AT_ONCE: usize = 128;

/// News of one user from which on its connections are not listened to until they are fewer.
const MOST_NEWS: usize = 256;

/// Whether there may be an inbox for a user of this id: those that the hub made up do not come back.
pub(crate) fn has_inbox(user_id: &str) -> bool {
    let is_made_up = || {
        let is_ours = |id: Uuid| id.get_version_num() == MADE_UP_VERSION && id.as_bytes().ends_with(MADE_UP_END);
        Uuid::try_parse(user_id).is_ok_and(is_ours)
    };
    !user_id.starts_with("anon:") && !is_made_up()
}

/// An id for a user that gave none. RFC 9562 §5.8 leaves version 8 to us: it tells these ids from everybody else's.
pub(crate) fn made_up_user_id() -> Uuid {
    let mut bytes = Uuid::now_v7().into_bytes();
    bytes[14..].copy_from_slice(MADE_UP_END);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

const MADE_UP_VERSION: usize = 8;

/// How they end, so that other people's ids of this version are not taken for ours.
const MADE_UP_END: &[u8; 2] = b"wh";
