//! What the store knows without asking the file.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    time::Instant,
};

use uuid::Uuid;
use wsc_protocol::Id;

use super::journal::Gone;
use crate::{Admission, Depth, Entry, EntryKey, InboxLimits, NewEntry, Note, Page, Position, ReadLimit};

/// The young entries whole, of resting mail only how much there is, for each user.
///
/// Young entries are those that stand in the journal. All of them have higher positions than all that rest, since the
/// journal is emptied from its front, by whole rows.
#[derive(Debug, Default)]
pub(super) struct Index {
    users: HashMap<Id, User>,
    /// The young entry at position `rested + 1 + index`; `None` where it was removed.
    young: VecDeque<Option<Young>>,
    by_key: HashMap<EntryKey, Position>,
    /// Young entries with an end.
    ends: BTreeSet<(u64, Position)>,
    /// The journal.
    rows: VecDeque<Row>,
    journal_bytes: usize,
    /// The highest position that left the journal.
    rested: u64,
    /// Resting entries that are removed, while the tables may still have them.
    removed: HashSet<Position>,
    /// Those of `removed` that the tables no longer have. A reader may still look at older tables, so they stay for
    /// one more generation.
    removed_before: Vec<Position>,
    /// How often entries moved.
    generation: u64,
    total: Depth,
    pub(super) limits: InboxLimits,
    pub(super) pending: Pending,
}

#[derive(Debug, Default)]
struct User {
    /// What readers see.
    depth: Depth,
    /// What the tables have.
    rest: Depth,
    /// How many of those are not removed.
    resting: u64,
    /// No resting entry has a higher id. Ids grow with time, so a new message rarely needs to be looked for.
    max_id: Uuid,
    young: BTreeSet<Position>,
}

#[derive(Debug)]
struct Young {
    user: Id,
    entry: Entry,
}

/// A row of the journal.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) sequence: u64,
    /// The highest position in it or in a row before it.
    pub(super) last: Position,
    pub(super) bytes: usize,
    /// When it was written.
    pub(super) at: Instant,
    pub(super) gone: Vec<Gone>,
    pub(super) notes: Vec<Note>,
}

/// Removals that no commit has taken yet.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) young: Vec<Position>,
    pub(super) resting: Vec<Gone>,
}

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        self.young.is_empty() && self.resting.is_empty()
    }

    /// Puts back what could not be committed, in front.
    pub(super) fn put_back(&mut self, mut earlier: Self) {
        earlier.young.append(&mut self.young);
        earlier.resting.append(&mut self.resting);
        *self = earlier;
    }
}

/// How a batch of entries was taken.
#[derive(Debug, Default)]
pub(super) struct Admitted {
    pub(super) admissions: Vec<Admission>,
    pub(super) entries: Vec<(Id, Entry)>,
    pub(super) notes: Vec<Note>,
    by_key: HashMap<EntryKey, Position>,
    users: HashMap<Id, Depth>,
    total: Depth,
}

/// What leaves the journal for the tables in one transaction.
#[derive(Debug)]
pub(super) struct Batch {
    /// How many rows.
    rows: usize,
    pub(super) last_sequence: u64,
    pub(super) last: Position,
    pub(super) moved: Vec<(Id, Entry)>,
    pub(super) gone: Vec<Gone>,
    pub(super) notes: Vec<Note>,
    /// What these users have in the tables afterwards, with the highest id.
    pub(super) users: HashMap<Id, (Depth, Uuid)>,
}

/// When an entry ends, and which.
pub(super) type End = (u64, Position, EntryKey);

/// Where a key's entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Young(Position),
    /// Only the tables know.
    MayRest,
    Nowhere,
}

impl Index {
    pub(super) fn new(limits: InboxLimits, rested: Position) -> Self {
        Self { limits, rested: rested.0, ..Self::default() }
    }

    // Reading.

    pub(super) fn is_empty(&self, user: &Id) -> bool {
        self.users.get(user).is_none_or(|user| user.depth.messages == 0)
    }

    pub(super) fn depth(&self, user: &Id) -> Depth {
        self.users.get(user).map_or_else(Depth::default, |user| user.depth)
    }

    pub(super) fn total(&self) -> Depth {
        self.total
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether what a reader found in tables of this generation can still be compared with what was removed.
    pub(super) fn knows(&self, generation: u64) -> bool {
        self.generation - generation <= 1
    }

    /// The highest position that rests.
    pub(super) fn rested(&self) -> Position {
        Position(self.rested)
    }

    pub(super) fn has_resting(&self, user: &Id, after: Option<Position>) -> bool {
        after.is_none_or(|after| after.0 < self.rested) && self.users.get(user).is_some_and(|user| user.resting > 0)
    }

    pub(super) fn is_removed(&self, position: Position) -> bool {
        self.removed.contains(&position)
    }

    pub(super) fn place(&self, key: &EntryKey) -> Place {
        match self.by_key.get(key) {
            Some(&position) => Place::Young(position),
            None if self.users.get(&key.user).is_some_and(|user| user.resting > 0 && key.id <= user.max_id) => {
                Place::MayRest
            }
            None => Place::Nowhere,
        }
    }

    pub(super) fn young(&self, position: Position) -> Option<&Entry> {
        self.slot(position).and_then(|index| self.young[index].as_ref()).map(|young| &young.entry)
    }

    /// A page of a user's young entries.
    pub(super) fn page(&self, user: &Id, after: Option<Position>, limit: ReadLimit) -> Page {
        let first = after.map_or(Position(0), |Position(p)| Position(p.saturating_add(1)));
        let mut page = PageBuilder::new(limit);
        if let Some(user) = self.users.get(user) {
            for &position in user.young.range(first..) {
                let Some(entry) = self.young(position) else { continue };
                if !page.push(entry) {
                    break;
                }
            }
        }
        page.finish()
    }

    /// Young entries that end at `now` or before.
    pub(super) fn ended(&self, now: u64, limit: usize) -> Vec<End> {
        let over = self.ends.range(..=(now, Position(u64::MAX)));
        let key = |&(end, position): &(u64, Position)| {
            let young = self.slot(position).and_then(|index| self.young[index].as_ref())?;
            Some((end, position, EntryKey::new(young.user.clone(), young.entry.id)))
        };
        over.filter_map(key).take(limit).collect()
    }

    /// The notes that stand in the journal, oldest first.
    pub(super) fn notes(&self) -> impl Iterator<Item = &Note> {
        self.rows.iter().flat_map(|row| &row.notes)
    }

    /// How many removed entries the tables may still have.
    pub(super) fn removed(&self) -> usize {
        self.removed.len() - self.removed_before.len()
    }

    pub(super) fn journal_bytes(&self) -> usize {
        self.journal_bytes
    }

    /// How many young entries there are.
    pub(super) fn young_count(&self) -> usize {
        self.by_key.len()
    }

    /// When the oldest row was written.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.rows.front().map(|row| row.at)
    }

    // Appending. Only the writer does: what it admitted is put in unchanged once it is committed.

    /// Decides which entries are taken, and gives them positions. Changes nothing. `resting` are the places of those
    /// whose [`Place`] only the tables knew.
    pub(super) fn admit(
        &self,
        admitted: &mut Admitted,
        entries: Vec<NewEntry>,
        next: &mut Position,
        resting: &HashMap<EntryKey, Position>,
    ) {
        for entry in entries {
            let admission = self.admit_one(admitted, entry, next, resting);
            admitted.admissions.push(admission);
        }
    }

    fn admit_one(
        &self,
        admitted: &mut Admitted,
        entry: NewEntry,
        next: &mut Position,
        resting: &HashMap<EntryKey, Position>,
    ) -> Admission {
        let NewEntry { key, body, expires_at, note } = entry;
        let there = self.by_key.get(&key).or_else(|| admitted.by_key.get(&key));
        let there = there.or_else(|| resting.get(&key).filter(|position| !self.removed.contains(position)));
        if let Some(&position) = there {
            return Admission::Duplicate(position);
        }
        let len = body.len() as u64;
        let added = admitted.users.entry(key.user.clone()).or_default();
        let user = self.depth(&key.user).plus(*added);
        if let Some(limit) = self.limits.refuses(len, user, self.total.plus(admitted.total)) {
            return Admission::Full(limit);
        }
        added.grow(len);
        admitted.total.grow(len);
        let position = *next;
        next.0 += 1;
        admitted.by_key.insert(key.clone(), position);
        admitted.entries.push((key.user, Entry::new(position, key.id, body, expires_at)));
        admitted.notes.extend(note);
        Admission::Stored(position)
    }

    /// Shows entries to readers.
    pub(super) fn insert(&mut self, entries: Vec<(Id, Entry)>) {
        for (user, entry) in entries {
            let len = entry.body.len() as u64;
            let position = entry.position;
            self.total.grow(len);
            match self.users.get_mut(&user) {
                Some(known) => known.add(position, len),
                None => self.users.entry(user.clone()).or_default().add(position, len),
            }
            if let Some(end) = entry.expires_at {
                self.ends.insert((end, position));
            }
            self.by_key.insert(EntryKey::new(user.clone(), entry.id), position);
            // Positions have no gaps, but for a journal that lost some to damage.
            let index = (position.0 - self.rested - 1) as usize;
            self.young.resize_with(index, || None);
            self.young.push_back(Some(Young { user, entry }));
        }
    }

    /// Adds a row of the journal whose entries are in.
    pub(super) fn push_row(&mut self, row: Row) {
        self.journal_bytes += row.bytes;
        self.rows.push_back(row);
    }

    /// Adds what a user has in the tables, when they are opened.
    pub(super) fn load_user(&mut self, user: Id, rest: Depth, max_id: Uuid) {
        self.total = self.total.plus(rest);
        self.users.insert(user, User { depth: rest, rest, resting: rest.messages, max_id, young: BTreeSet::new() });
    }

    // Removing.

    /// Hides a young entry from readers; false where there is none.
    pub(super) fn remove_young(&mut self, position: Position) -> bool {
        let Some(Young { user, entry }) = self.slot(position).and_then(|index| self.young[index].take()) else {
            return false;
        };
        let len = entry.body.len() as u64;
        if let Some(end) = entry.expires_at {
            self.ends.remove(&(end, position));
        }
        self.total.shrink(len);
        if let Some(known) = self.users.get_mut(&user) {
            known.young.remove(&position);
            known.depth.shrink(len);
            if known.is_gone() {
                self.users.remove(&user);
            }
        }
        self.by_key.remove(&EntryKey::new(user, entry.id));
        true
    }

    /// Hides a resting entry from readers; false where it is hidden already.
    pub(super) fn remove_resting(&mut self, gone: &Gone) -> bool {
        let Some(user) = self.users.get_mut(&gone.key.user) else { return false };
        if gone.position.0 > self.rested || !self.removed.insert(gone.position) {
            return false;
        }
        user.resting -= 1;
        user.depth.shrink(gone.len);
        self.total.shrink(gone.len);
        true
    }

    // Moving, in two steps: what moves is written to the tables between them.

    /// Rows to move: from the oldest on, while `is_due` says so, at most about `entries` live ones.
    pub(super) fn batch(&self, entries: usize, is_due: impl Fn(&Row) -> bool) -> Option<Batch> {
        let mut batch = Batch {
            rows: 0,
            last_sequence: 0,
            last: Position(self.rested),
            moved: Vec::new(),
            gone: Vec::new(),
            notes: Vec::new(),
            users: HashMap::new(),
        };
        let mut first = 0;
        for row in self.rows.iter().take(ROWS_AT_ONCE) {
            if batch.moved.len() + batch.gone.len() >= entries || !is_due(row) {
                break;
            }
            let end = (row.last.0.saturating_sub(self.rested) as usize).min(self.young.len());
            let live = self.young.range(first..end.max(first)).flatten();
            batch.moved.extend(live.map(|young| (young.user.clone(), young.entry.clone())));
            first = end.max(first);
            batch.gone.extend(row.gone.iter().cloned());
            batch.notes.extend(row.notes.iter().cloned());
            batch.rows += 1;
            batch.last_sequence = row.sequence;
            batch.last = row.last;
        }
        let rest = |user: &Id| self.users.get(user).map_or_else(Default::default, |user| (user.rest, user.max_id));
        for gone in &batch.gone {
            let user = &gone.key.user;
            let (depth, _) = batch.users.entry(user.clone()).or_insert_with(|| rest(user));
            depth.shrink(gone.len);
        }
        for (user, entry) in &batch.moved {
            let (depth, max_id) = batch.users.entry(user.clone()).or_insert_with(|| rest(user));
            depth.grow(entry.body.len() as u64);
            *max_id = entry.id.max(*max_id);
        }
        (batch.rows > 0).then_some(batch)
    }

    /// What was in the journal is in the tables now.
    pub(super) fn moved(&mut self, batch: Batch) {
        self.generation += 1;
        for position in self.removed_before.drain(..) {
            self.removed.remove(&position);
        }
        self.removed_before.extend(batch.gone.iter().map(|gone| gone.position));
        for row in self.rows.drain(..batch.rows) {
            self.journal_bytes -= row.bytes;
        }
        for (user, entry) in batch.moved {
            let (position, len) = (entry.position, entry.body.len() as u64);
            let live = self.slot(position).and_then(|index| self.young[index].take());
            let known = self.users.entry(user.clone()).or_default();
            if live.is_some() {
                known.young.remove(&position);
                known.resting += 1;
                if let Some(end) = entry.expires_at {
                    self.ends.remove(&(end, position));
                }
                self.by_key.remove(&EntryKey::new(user, entry.id));
            } else {
                // It was removed while it moved: as a young one, which the tables do not understand.
                self.removed.insert(position);
                let key = EntryKey::new(user, entry.id);
                self.pending.resting.push(Gone { key, position, expires_at: entry.expires_at, len });
            }
        }
        for (id, (rest, max_id)) in batch.users {
            let user = self.users.entry(id.clone()).or_default();
            (user.rest, user.max_id) = (rest, max_id);
            if user.is_gone() {
                self.users.remove(&id);
            }
        }
        let slots = (batch.last.0.saturating_sub(self.rested) as usize).min(self.young.len());
        self.young.drain(..slots);
        self.rested = self.rested.max(batch.last.0);
    }

    /// Where in `young` a position is.
    fn slot(&self, position: Position) -> Option<usize> {
        let index = position.0.checked_sub(self.rested + 1)? as usize;
        (index < self.young.len()).then_some(index)
    }
}

impl User {
    fn add(&mut self, position: Position, len: u64) {
        self.depth.grow(len);
        self.young.insert(position);
    }

    /// Whether nothing is left to know about this user.
    fn is_gone(&self) -> bool {
        self.depth.messages == 0 && self.rest.messages == 0
    }
}

/// Fills a page until its limit.
#[derive(Debug)]
pub(super) struct PageBuilder {
    page: Page,
    bytes: u64,
    limit: ReadLimit,
}

impl PageBuilder {
    pub(super) fn new(limit: ReadLimit) -> Self {
        Self { page: Page::default(), bytes: 0, limit }
    }

    /// Adds an entry; false where it does not fit, and the page is full.
    pub(super) fn push(&mut self, entry: &Entry) -> bool {
        self.bytes = self.bytes.saturating_add(entry.body.len() as u64);
        let is_full = self.page.entries.len() >= self.limit.messages || self.bytes > self.limit.bytes;
        if is_full && !self.page.entries.is_empty() {
            self.page.has_more = true;
            return false;
        }
        self.page.entries.push(entry.clone());
        true
    }

    /// Adds the page behind this one.
    pub(super) fn append(&mut self, page: &Page) {
        if page.entries.iter().all(|entry| self.push(entry)) {
            self.page.has_more |= page.has_more;
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.page.has_more
    }

    pub(super) fn finish(self) -> Page {
        self.page
    }
}

/// Rows that leave the journal in one transaction, at most.
const ROWS_AT_ONCE: usize = 4096;
