//! The inbox in memory.

use std::collections::{BTreeMap, BTreeSet, HashMap, hash_map};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use uuid::Uuid;
use wsc_protocol::Id;

use crate::{
    Admission, Depth, Entry, EntryKey, InboxLimits, InboxStore, NewEntry, Note, Page, Position, ReadLimit, StoreError,
};

/// Keeps inboxes in memory: as durable as the process. For tests, and for hubs whose messages need not survive it.
///
/// Nothing in it waits, so its futures are ready at once.
#[derive(Debug)]
pub struct MemoryInbox {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    users: HashMap<Id, Inbox>,
    /// Entries with an end, by it. The position keeps those of one moment apart and in order.
    ends: BTreeMap<(u64, Position), EntryKey>,
    total: Depth,
    limits: InboxLimits,
    notes: HashMap<Bytes, Note>,
    /// The notes by their end, so that those that end first can go when there are too many.
    note_ends: BTreeSet<(u64, Bytes)>,
    last: u64,
    is_closed: bool,
}

#[derive(Debug, Default)]
struct Inbox {
    entries: BTreeMap<Position, Entry>,
    by_id: HashMap<Uuid, Position>,
    depth: Depth,
}

impl MemoryInbox {
    /// An empty store.
    pub fn new(limits: InboxLimits) -> Self {
        Self { state: Mutex::new(State { limits, ..State::default() }) }
    }

    fn open<T>(&self, act: impl FnOnce(&mut State) -> T) -> Result<T, StoreError> {
        let mut state = self.state.lock();
        if state.is_closed { Err(StoreError::Closed) } else { Ok(act(&mut state)) }
    }
}

impl Default for MemoryInbox {
    fn default() -> Self {
        Self::new(InboxLimits::default())
    }
}

#[async_trait]
impl InboxStore for MemoryInbox {
    async fn append(&self, entries: Vec<NewEntry>) -> Result<Vec<Admission>, StoreError> {
        self.open(|state| entries.into_iter().map(|entry| state.append(entry)).collect())
    }

    async fn read(&self, user: &Id, after: Option<Position>, limit: ReadLimit) -> Result<Page, StoreError> {
        self.open(|state| state.users.get(user).map_or_else(Page::default, |inbox| inbox.read(after, limit)))
    }

    async fn get(&self, key: &EntryKey) -> Result<Option<Entry>, StoreError> {
        self.open(|state| {
            let inbox = state.users.get(&key.user)?;
            inbox.entries.get(inbox.by_id.get(&key.id)?).cloned()
        })
    }

    async fn remove(&self, keys: Vec<EntryKey>) -> Result<Vec<bool>, StoreError> {
        self.open(|state| keys.into_iter().map(|key| state.remove(key)).collect())
    }

    async fn expired(&self, now: u64, limit: usize) -> Result<Vec<EntryKey>, StoreError> {
        self.open(|state| {
            let over = state.ends.range(..=(now, Position(u64::MAX)));
            over.take(limit).map(|(_, key)| key.clone()).collect()
        })
    }

    async fn notes(&self, now: u64) -> Result<Vec<Note>, StoreError> {
        self.open(|state| {
            while state.note_ends.first().is_some_and(|(end, _)| *end <= now)
                && let Some((_, key)) = state.note_ends.pop_first()
            {
                state.notes.remove(&key);
            }
            state.notes.values().cloned().collect()
        })
    }

    fn is_surely_empty(&self, user: &Id) -> bool {
        !self.state.lock().users.contains_key(user)
    }

    async fn depth(&self, user: &Id) -> Result<Depth, StoreError> {
        self.open(|state| state.users.get(user).map_or_else(Depth::default, |inbox| inbox.depth))
    }

    async fn total(&self) -> Result<Depth, StoreError> {
        self.open(|state| state.total)
    }

    fn set_limits(&self, limits: InboxLimits) {
        self.state.lock().limits = limits;
    }

    async fn close(&self) -> Result<(), StoreError> {
        // What is not durable has no reason to stay.
        let limits = self.state.lock().limits;
        *self.state.lock() = State { is_closed: true, limits, ..State::default() };
        Ok(())
    }
}

impl State {
    fn append(&mut self, entry: NewEntry) -> Admission {
        let NewEntry { key, body, expires_at, note } = entry;
        let held = self.users.get(&key.user);
        if let Some(position) = held.and_then(|inbox| inbox.by_id.get(&key.id)) {
            return Admission::Duplicate(*position);
        }
        let len = body.len() as u64;
        let depth = held.map_or_else(Depth::default, |inbox| inbox.depth);
        if let Some(limit) = self.limits.refuses(len, depth, self.total) {
            return Admission::Full(limit);
        }
        if let Some(note) = note {
            self.keep(note);
        }
        self.last += 1;
        let position = Position(self.last);
        self.total.grow(len);
        let inbox = self.users.entry(key.user.clone()).or_default();
        inbox.depth.grow(len);
        inbox.by_id.insert(key.id, position);
        inbox.entries.insert(position, Entry::new(position, key.id, body, expires_at));
        if let Some(end) = expires_at {
            self.ends.insert((end, position), key);
        }
        Admission::Stored(position)
    }

    fn keep(&mut self, note: Note) {
        self.note_ends.insert((note.expires_at, note.key.clone()));
        if let Some(before) = self.notes.insert(note.key.clone(), note)
            && self.notes.get(&before.key).is_some_and(|note| note.expires_at != before.expires_at)
        {
            self.note_ends.remove(&(before.expires_at, before.key));
        }
        while self.notes.len() as u64 > self.limits.notes
            && let Some((_, key)) = self.note_ends.pop_first()
        {
            self.notes.remove(&key);
        }
    }

    fn remove(&mut self, key: EntryKey) -> bool {
        let hash_map::Entry::Occupied(mut user) = self.users.entry(key.user) else {
            return false;
        };
        let inbox = user.get_mut();
        let Some(entry) = inbox.by_id.remove(&key.id).and_then(|position| inbox.entries.remove(&position)) else {
            return false;
        };
        let len = entry.body.len() as u64;
        inbox.depth.shrink(len);
        self.total.shrink(len);
        // Users come and go; an empty inbox must not stay behind for each of them.
        if inbox.entries.is_empty() {
            user.remove();
        }
        if let Some(end) = entry.expires_at {
            self.ends.remove(&(end, entry.position));
        }
        true
    }
}

impl Inbox {
    fn read(&self, after: Option<Position>, limit: ReadLimit) -> Page {
        let first = after.map_or(Position(0), |Position(p)| Position(p.saturating_add(1)));
        let mut page = Page::default();
        let mut bytes = 0_u64;
        for entry in self.entries.range(first..).map(|(_, entry)| entry) {
            bytes = bytes.saturating_add(entry.body.len() as u64);
            let is_full = page.entries.len() >= limit.messages || bytes > limit.bytes;
            if is_full && !page.entries.is_empty() {
                page.has_more = true;
                break;
            }
            page.entries.push(entry.clone());
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::conformance;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn it_keeps_the_contract() {
        conformance::check_all(async |limits| Arc::new(MemoryInbox::new(limits)) as Arc<dyn InboxStore>).await;
    }

    #[tokio::test]
    async fn nothing_stays_behind_for_users_who_are_gone() {
        let store = MemoryInbox::default();
        for n in 0..100_u128 {
            let key = EntryKey::new(Id::new(&format!("user-{n}")).unwrap(), Uuid::from_u128(n));
            let entry = NewEntry::new(key.user.clone(), key.id, Bytes::from_static(b"x")).with_expires_at(5);
            store.append(vec![entry]).await.unwrap();
            store.remove(vec![key]).await.unwrap();
        }
        let state = store.state.lock();
        assert!(state.users.is_empty() && state.ends.is_empty());
        assert_eq!(state.total, Depth::default());
    }

    /// What a test does to the store and, the plain way, to a list.
    #[derive(Clone, Debug)]
    enum Act {
        Append { user: u8, id: u128, len: usize },
        Remove { user: u8, id: u128 },
        Read { user: u8, messages: usize, bytes: u64 },
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            (0..3_u8, 0..12_u128, 0..40_usize).prop_map(|(user, id, len)| Act::Append { user, id, len }),
            (0..3_u8, 0..12_u128).prop_map(|(user, id)| Act::Remove { user, id }),
            (0..3_u8, 0..5_usize, 0..100_u64).prop_map(|(user, messages, bytes)| Act::Read { user, messages, bytes }),
        ]
    }

    proptest! {
        #[test]
        fn it_behaves_like_a_list(acts in proptest::collection::vec(act(), 0..120)) {
            let limits = InboxLimits { user_messages: 6, user_bytes: 100, total_bytes: 200, ..InboxLimits::default() };
            let store = MemoryInbox::new(limits);
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let user_id = |n: u8| Id::new(&n.to_string()).unwrap();
            // (user, id, length), in order of acceptance.
            let mut list: Vec<(u8, u128, usize)> = Vec::new();
            for act in acts {
                match act {
                    Act::Append { user, id, len } => {
                        let entry = NewEntry::new(user_id(user), Uuid::from_u128(id), vec![0; len].into());
                        let admission = runtime.block_on(store.append(vec![entry])).unwrap()[0];
                        let own: Vec<_> = list.iter().filter(|e| e.0 == user).collect();
                        let fits = own.len() < 6
                            && own.iter().map(|e| e.2).sum::<usize>() + len <= 100
                            && list.iter().map(|e| e.2).sum::<usize>() + len <= 200;
                        if own.iter().any(|e| e.1 == id) {
                            prop_assert!(matches!(admission, Admission::Duplicate(_)));
                        } else if fits {
                            prop_assert!(matches!(admission, Admission::Stored(_)));
                            list.push((user, id, len));
                        } else {
                            prop_assert!(matches!(admission, Admission::Full(_)));
                        }
                    }
                    Act::Remove { user, id } => {
                        let key = EntryKey::new(user_id(user), Uuid::from_u128(id));
                        let removed = runtime.block_on(store.remove(vec![key])).unwrap()[0];
                        let before = list.len();
                        list.retain(|e| (e.0, e.1) != (user, id));
                        prop_assert_eq!(removed, list.len() < before);
                    }
                    Act::Read { user, messages, bytes } => {
                        let limit = ReadLimit { messages, bytes };
                        let (mut after, mut ids, mut pages) = (None, Vec::new(), 0);
                        loop {
                            let page = runtime.block_on(store.read(&user_id(user), after, limit)).unwrap();
                            after = page.entries.last().map(|e| e.position);
                            ids.extend(page.entries.iter().map(|e| e.id.as_u128()));
                            pages += 1;
                            if !page.has_more { break; }
                        }
                        let expected: Vec<_> = list.iter().filter(|e| e.0 == user).map(|e| e.1).collect();
                        prop_assert!(pages <= expected.len().max(1));
                        prop_assert_eq!(ids, expected);
                    }
                }
                let total = runtime.block_on(store.total()).unwrap();
                let bytes: usize = list.iter().map(|e| e.2).sum();
                prop_assert_eq!(total, Depth { messages: list.len() as u64, bytes: bytes as u64 });
            }
        }
    }
}
