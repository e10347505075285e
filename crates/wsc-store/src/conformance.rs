//! The checks that every [`InboxStore`] and every [`RecordStore`](crate::RecordStore) must pass.
//!
//! A driver's test calls [`check_all`] or [`check_records`] with a function that opens an empty store. Each check panics, with what it
//! expected, where the store does not keep the contract.

mod records;

use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinSet;
use uuid::Uuid;
use wsc_protocol::Id;

pub use self::records::check_records;
use crate::{
    Admission, Depth, Entry, EntryKey, InboxLimits, InboxStore, Limit, NewEntry, Note, Page, Position, ReadLimit,
    StoreError,
};

/// Runs every check, each on an empty store of its own with the limits that it names.
///
/// Call it in a multi-threaded Tokio runtime: some checks are about calls at the same time.
///
/// # Panics
///
/// Panics where the store does not keep the contract.
pub async fn check_all<F>(open: F)
where
    F: AsyncFn(InboxLimits) -> Arc<dyn InboxStore>,
{
    order_is_that_of_acceptance(&*open(InboxLimits::default()).await).await;
    pages_respect_their_limits(&*open(InboxLimits::default()).await).await;
    nothing_is_stored_twice(&*open(InboxLimits::default()).await).await;
    removal_counts_once(&*open(InboxLimits::default()).await).await;
    users_are_apart(&*open(InboxLimits::default()).await).await;
    single_entries_are_found(&*open(InboxLimits::default()).await).await;
    notes_outlive_their_entries(&*open(InboxLimits { notes: 10, ..InboxLimits::default() }).await).await;
    emptiness_is_never_made_up(&*open(InboxLimits::default()).await).await;
    ends_are_listed(&*open(InboxLimits::default()).await).await;
    bodies_come_back_as_they_were(&*open(InboxLimits::default()).await).await;
    let small = InboxLimits { user_messages: 3, user_bytes: 100, total_bytes: 250, ..InboxLimits::default() };
    limits_refuse_the_new(&*open(small).await).await;
    a_reader_misses_nothing(open(InboxLimits { user_messages: 10_000, ..InboxLimits::default() }).await).await;
    one_of_many_removes(open(InboxLimits::default()).await).await;
    a_closed_store_says_so(&*open(InboxLimits::default()).await).await;
}

async fn order_is_that_of_acceptance(store: &dyn InboxStore) {
    // Ids that sort against the order, so that a store which sorts by them is found out.
    let positions = stored(append(store, "bob", (0..50).rev()).await);
    assert!(positions.is_sorted_by(|a, b| a < b), "positions grow within a call: {positions:?}");
    let later = stored(append(store, "bob", 100..101).await);
    assert!(positions.last() < later.first(), "positions grow from call to call");
    let page = read(store, "bob", None, 100).await;
    assert_eq!(ids(&page), (0..50).rev().chain([100]).collect::<Vec<_>>(), "oldest first");
    assert!(!page.has_more, "all of it was read");
}

async fn pages_respect_their_limits(store: &dyn InboxStore) {
    append(store, "bob", 0..10).await;
    let mut read_ids = Vec::new();
    let mut after = None;
    for expected in [4, 4, 2] {
        let page = read(store, "bob", after, 4).await;
        assert_eq!(page.entries.len(), expected, "a page holds as many as were asked for");
        assert_eq!(page.has_more, expected == 4, "has_more says whether a page follows");
        after = page.entries.last().map(|e| e.position);
        read_ids.extend(ids(&page));
    }
    assert_eq!(read_ids, (0..10).collect::<Vec<_>>(), "pages are complete and do not overlap");
    assert_eq!(read(store, "bob", after, 4).await, Page::default(), "nothing is behind the last one");

    // The entry that a cursor names may be gone.
    remove(store, "bob", 0..5).await;
    let after_removed = read(store, "bob", Some(Position(0)), 100).await;
    assert_eq!(ids(&after_removed), (5..10).collect::<Vec<_>>(), "a cursor need not name an entry");

    let large = |n| NewEntry::new(user("carol"), Uuid::from_u128(n), Bytes::from(vec![0; 100]));
    store.append((0..5).map(large).collect()).await.expect("append");
    for (bytes, expected) in [(0, 1), (99, 1), (199, 1), (200, 2), (450, 4), (500, 5)] {
        let limit = ReadLimit { messages: 100, bytes };
        let page = store.read(&user("carol"), None, limit).await.expect("read");
        assert_eq!(page.entries.len(), expected, "at most {bytes} bytes, at least one entry");
        assert_eq!(page.has_more, expected < 5);
    }
}

async fn nothing_is_stored_twice(store: &dyn InboxStore) {
    let first = stored(append(store, "bob", 0..3).await);
    let again = append(store, "bob", 1..4).await;
    assert_eq!(again[..2], [Admission::Duplicate(first[1]), Admission::Duplicate(first[2])], "the place it has");
    assert!(matches!(again[2], Admission::Stored(_)), "the one that was new");
    let within = append(store, "carol", [7, 7]).await;
    assert!(matches!(within[..], [Admission::Stored(a), Admission::Duplicate(b)] if a == b), "also within one call");
    assert_eq!(depth(store, "bob").await.messages, 4);
    assert_eq!(depth(store, "carol").await.messages, 1);
}

async fn removal_counts_once(store: &dyn InboxStore) {
    append(store, "bob", 0..4).await;
    assert_eq!(remove(store, "bob", [1, 9, 1, 3]).await, [true, false, false, true], "each is told what it did");
    assert_eq!(remove(store, "carol", [0]).await, [false], "only the user's own entry counts");
    assert_eq!(ids(&read(store, "bob", None, 10).await), [0, 2]);
    // What was removed may come again, as a new entry at the end.
    append(store, "bob", [1]).await;
    assert_eq!(ids(&read(store, "bob", None, 10).await), [0, 2, 1]);
    remove(store, "bob", 0..4).await;
    assert_eq!(depth(store, "bob").await, Depth::default(), "nothing is left");
    assert_eq!(total(store).await, Depth::default(), "of anybody");
}

async fn users_are_apart(store: &dyn InboxStore) {
    // Ids that a careless key would mix up.
    let names = ["a", "a:b", "a:", "a%3Ab", "a\u{e4}", "A", "a b", "a/b", "a."];
    let entries = names.iter().map(|name| NewEntry::new(user(name), Uuid::from_u128(1), Bytes::from_static(b"same")));
    let admitted = store.append(entries.collect()).await.expect("append");
    assert!(admitted.iter().all(|a| matches!(a, Admission::Stored(_))), "one message, many recipients: {admitted:?}");
    assert_eq!(total(store).await, Depth { messages: 9, bytes: 36 });
    for name in names {
        assert_eq!(ids(&read(store, name, None, 10).await), [1], "{name:?} has its own");
        assert_eq!(remove(store, name, [1]).await, [true], "{name:?} removes its own");
    }
    assert_eq!(total(store).await, Depth::default());
}

async fn single_entries_are_found(store: &dyn InboxStore) {
    let position = stored(append(store, "bob", [1, 2]).await)[1];
    let get = async |name: &str, id| store.get(&key(name, id)).await.expect("get");
    let expected = Entry::new(position, Uuid::from_u128(2), Bytes::from_static(b"body"), None);
    assert_eq!(get("bob", 2).await, Some(expected));
    assert_eq!(get("bob", 3).await, None, "never stored");
    assert_eq!(get("carol", 2).await, None, "another user's");
    remove(store, "bob", [2]).await;
    assert_eq!(get("bob", 2).await, None, "removed");
    assert!(get("bob", 1).await.is_some(), "not removed");
}

/// Needs a limit of ten notes.
async fn notes_outlive_their_entries(store: &dyn InboxStore) {
    let noted = |id, note_key: &[u8], value: &'static [u8], expires_at| {
        let note = Note { key: Bytes::copy_from_slice(note_key), value: Bytes::from_static(value), expires_at };
        NewEntry::new(user("bob"), Uuid::from_u128(id), Bytes::new()).with_note(note)
    };
    let notes = async |now| {
        let mut notes = store.notes(now).await.expect("notes");
        notes.sort_by(|a, b| a.key.cmp(&b.key));
        notes.into_iter().map(|note| (note.key.to_vec(), note.value.to_vec(), note.expires_at)).collect::<Vec<_>>()
    };
    let entries = vec![noted(1, b"a", b"1", 100), noted(2, b"b", b"2", 200), noted(3, b"a", b"3", 300)];
    store.append(entries).await.expect("append");
    let (a, b) = ((b"a".to_vec(), b"3".to_vec(), 300), (b"b".to_vec(), b"2".to_vec(), 200));
    assert_eq!(notes(0).await, [a.clone(), b.clone()], "the later one under a key counts");
    remove(store, "bob", 1..4).await;
    assert_eq!(notes(199).await, [a.clone(), b], "they stay when their entries go");
    assert_eq!(notes(200).await, std::slice::from_ref(&a), "until they are over");

    append(store, "bob", [4]).await;
    store.append(vec![noted(4, b"c", b"4", 400)]).await.expect("append");
    assert_eq!(notes(200).await, [a], "a duplicate brings none");

    for id in 10..40 {
        let key = id.to_string();
        store.append(vec![noted(id, key.as_bytes(), b"", 1000 + id as u64)]).await.expect("append");
    }
    let kept = notes(0).await;
    assert!(kept.len() <= 10, "no more than may be: {}", kept.len());
    assert!(kept.iter().any(|(_, _, end)| *end == 1039), "the one that ends last is kept");
}

async fn emptiness_is_never_made_up(store: &dyn InboxStore) {
    append(store, "bob", [1]).await;
    assert!(!store.is_surely_empty(&user("bob")), "there is something");
    remove(store, "bob", [1]).await;
    append(store, "bob", [2]).await;
    assert!(!store.is_surely_empty(&user("bob")), "there is something again");
}

async fn ends_are_listed(store: &dyn InboxStore) {
    let entry =
        |name: &str, n, end: u64| NewEntry::new(user(name), Uuid::from_u128(n), Bytes::new()).with_expires_at(end);
    let endless = NewEntry::new(user("bob"), Uuid::from_u128(9), Bytes::new());
    let entries = vec![entry("bob", 1, 300), entry("carol", 2, 100), endless, entry("bob", 3, 200)];
    store.append(entries).await.expect("append");
    let expired = async |now, limit| {
        let keys = store.expired(now, limit).await.expect("expired");
        keys.into_iter().map(|key| key.id.as_u128()).collect::<Vec<_>>()
    };
    assert_eq!(expired(99, 10).await, [0; 0], "not before the end");
    assert_eq!(expired(200, 10).await, [2, 3], "at the end, those that ended first in front");
    assert_eq!(expired(1000, 2).await, [2, 3], "at most as many as were asked for");
    assert_eq!(expired(1000, 10).await, [2, 3, 1], "listing removes nothing");
    assert_eq!(remove(store, "carol", [2]).await, [true]);
    assert_eq!(expired(u64::MAX, 10).await, [3, 1], "what was removed is not listed");
    let page = read(store, "bob", None, 10).await;
    assert_eq!(page.entries.iter().map(|e| e.expires_at).collect::<Vec<_>>(), [Some(300), None, Some(200)]);
}

async fn bodies_come_back_as_they_were(store: &dyn InboxStore) {
    let bodies = [Bytes::new(), Bytes::from_static(b"\0\xff\n"), Bytes::from(vec![7; 300_000])];
    let entry = |(n, body): (u128, &Bytes)| NewEntry::new(user("bob"), Uuid::from_u128(n), body.clone());
    store.append((0..).zip(&bodies).map(entry).collect()).await.expect("append");
    let page = store.read(&user("bob"), None, ReadLimit { messages: 10, bytes: u64::MAX }).await.expect("read");
    assert!(page.entries.iter().map(|e| &e.body).eq(&bodies), "byte for byte");
    assert_eq!(depth(store, "bob").await, Depth { messages: 3, bytes: 300_003 });
}

async fn limits_refuse_the_new(store: &dyn InboxStore) {
    let entry = |name: &str, n, len| NewEntry::new(user(name), Uuid::from_u128(n), Bytes::from(vec![0; len]));
    let admitted =
        store.append(vec![entry("bob", 1, 90), entry("bob", 2, 11), entry("bob", 3, 10)]).await.expect("append");
    assert!(
        matches!(admitted[..], [Admission::Stored(_), Admission::Full(Limit::UserBytes), Admission::Stored(_)]),
        "the one that does not fit is refused, the next is considered: {admitted:?}"
    );
    let admitted =
        store.append(vec![entry("bob", 4, 0), entry("bob", 5, 0), entry("bob", 3, 10)]).await.expect("append");
    assert!(
        matches!(admitted[..], [Admission::Stored(_), Admission::Full(Limit::UserMessages), Admission::Duplicate(_)]),
        "what is there already is a duplicate, also in a full inbox: {admitted:?}"
    );
    let admitted =
        store.append(vec![entry("carol", 1, 100), entry("dave", 1, 51), entry("dave", 2, 50)]).await.expect("append");
    assert!(
        matches!(admitted[..], [Admission::Stored(_), Admission::Full(Limit::TotalBytes), Admission::Stored(_)]),
        "all users together have a limit: {admitted:?}"
    );
    assert_eq!(ids(&read(store, "bob", None, 10).await), [1, 3, 4], "nothing that was accepted made room");

    assert_eq!(remove(store, "bob", [1]).await, [true]);
    assert!(matches!(append(store, "bob", [6]).await[..], [Admission::Stored(_)]), "what is removed makes room");

    store.set_limits(InboxLimits { user_messages: 1, ..InboxLimits::default() });
    assert_eq!(depth(store, "bob").await.messages, 3, "lower limits remove nothing");
    assert_eq!(append(store, "bob", [7]).await, [Admission::Full(Limit::UserMessages)]);
    store.set_limits(InboxLimits::default());
    assert!(matches!(append(store, "bob", [7]).await[..], [Admission::Stored(_)]), "higher limits count at once");
}

/// Four writers append while one reads page after page: it sees every entry, once, in the order of positions.
async fn a_reader_misses_nothing(store: Arc<dyn InboxStore>) {
    const WRITERS: u128 = 4;
    const EACH: u128 = 250;
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let store = Arc::clone(&store);
        writers.spawn(async move {
            for n in 0..EACH {
                stored(append(&*store, "bob", [writer * EACH + n]).await);
            }
        });
    }
    let mut seen: Vec<Entry> = Vec::new();
    while seen.len() < (WRITERS * EACH) as usize {
        let finished = writers.is_empty();
        let page = read(&*store, "bob", seen.last().map(|e| e.position), 7).await;
        assert!(
            !(finished && page.entries.is_empty()),
            "{} entries never came",
            (WRITERS * EACH) as usize - seen.len()
        );
        seen.extend(page.entries);
        while let Some(writer) = writers.try_join_next() {
            writer.expect("a writer failed");
        }
        tokio::task::yield_now().await;
    }
    assert!(seen.is_sorted_by(|a, b| a.position < b.position), "in the order of positions");
    for writer in 0..WRITERS {
        let own = seen.iter().map(|e| e.id.as_u128()).filter(|n| n / EACH == writer);
        assert!(own.eq(writer * EACH..(writer + 1) * EACH), "each writer's entries in its order, once");
    }
}

/// Of many that remove one entry at a time, exactly one is told that it did.
async fn one_of_many_removes(store: Arc<dyn InboxStore>) {
    append(&*store, "bob", 0..20).await;
    let mut removers = JoinSet::new();
    for _ in 0..8 {
        let store = Arc::clone(&store);
        removers.spawn(async move { remove(&*store, "bob", 0..20).await.into_iter().filter(|&there| there).count() });
    }
    assert_eq!(removers.join_all().await.into_iter().sum::<usize>(), 20, "each entry is removed once");
    assert_eq!(total(&*store).await, Depth::default());
}

async fn a_closed_store_says_so(store: &dyn InboxStore) {
    append(store, "bob", [1]).await;
    store.close().await.expect("close");
    store.close().await.expect("closing twice is fine");
    let entry = NewEntry::new(user("bob"), Uuid::from_u128(2), Bytes::new());
    assert!(matches!(store.append(vec![entry]).await, Err(StoreError::Closed)));
    assert!(matches!(store.read(&user("bob"), None, ReadLimit::default()).await, Err(StoreError::Closed)));
    assert!(matches!(
        store.remove(vec![EntryKey::new(user("bob"), Uuid::from_u128(1))]).await,
        Err(StoreError::Closed)
    ));
    assert!(matches!(store.expired(0, 1).await, Err(StoreError::Closed)));
    assert!(matches!(store.get(&key("bob", 1)).await, Err(StoreError::Closed)));
    assert!(matches!(store.notes(0).await, Err(StoreError::Closed)));
    assert!(matches!(store.depth(&user("bob")).await, Err(StoreError::Closed)));
    assert!(matches!(store.total().await, Err(StoreError::Closed)));
}

fn key(name: &str, id: u128) -> EntryKey {
    EntryKey::new(user(name), Uuid::from_u128(id))
}

fn user(name: &str) -> Id {
    Id::new(name).expect("a valid id")
}

async fn append(store: &dyn InboxStore, name: &str, ids: impl IntoIterator<Item = u128>) -> Vec<Admission> {
    let entry = |n| NewEntry::new(user(name), Uuid::from_u128(n), Bytes::from_static(b"body"));
    store.append(ids.into_iter().map(entry).collect()).await.expect("append")
}

fn stored(admissions: Vec<Admission>) -> Vec<Position> {
    let position = |admission| match admission {
        Admission::Stored(position) => position,
        other => panic!("expected to be stored: {other:?}"),
    };
    admissions.into_iter().map(position).collect()
}

async fn read(store: &dyn InboxStore, name: &str, after: Option<Position>, messages: usize) -> Page {
    store.read(&user(name), after, ReadLimit { messages, bytes: u64::MAX }).await.expect("read")
}

async fn remove(store: &dyn InboxStore, name: &str, ids: impl IntoIterator<Item = u128>) -> Vec<bool> {
    let keys = ids.into_iter().map(|n| EntryKey::new(user(name), Uuid::from_u128(n))).collect();
    store.remove(keys).await.expect("remove")
}

async fn depth(store: &dyn InboxStore, name: &str) -> Depth {
    store.depth(&user(name)).await.expect("depth")
}

async fn total(store: &dyn InboxStore) -> Depth {
    store.total().await.expect("total")
}

fn ids(page: &Page) -> Vec<u128> {
    page.entries.iter().map(|e| e.id.as_u128()).collect()
}
