use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::{MemoryInbox, conformance};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_keeps_the_contract() {
    keeps_the_contract(EmbeddedConfig::default()).await;
}

/// Everything goes to the tables as soon as it can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_keeps_the_contract_with_resting_mail() {
    keeps_the_contract(resting()).await;
}

async fn keeps_the_contract(config: EmbeddedConfig) {
    conformance::check_all(async |limits| {
        let config = EmbeddedConfig { limits, ..config.clone() };
        Arc::new(EmbeddedInbox::open_on(&FaultyDisk::new(), config).unwrap().0) as Arc<dyn InboxStore>
    })
    .await;
}

/// What a test does to a store and to the model.
#[derive(Clone, Debug)]
enum Act {
    Append(Vec<(u8, u8, u8)>),
    Remove(Vec<(u8, u8)>),
    Read {
        user: u8,
        messages: usize,
        bytes: u64,
    },
    Expired(u64),
    /// Waits until all that is in the journal has moved.
    Rest,
    Reopen,
    Kill,
    PowerCut(u64),
    /// An append while the disk fails after so many operations, and again when it works.
    Fail(u64, Vec<(u8, u8, u8)>),
}

fn act() -> impl Strategy<Value = Act> {
    let entries = || proptest::collection::vec((0..3_u8, 0..12_u8, 0..40_u8), 1..5);
    prop_oneof![
        6 => entries().prop_map(Act::Append),
        5 => proptest::collection::vec((0..3_u8, 0..12_u8), 1..4).prop_map(Act::Remove),
        3 => (0..3_u8, 0..5_usize, 0..100_u64).prop_map(|(user, messages, bytes)| Act::Read { user, messages, bytes }),
        1 => (0..40_u64).prop_map(Act::Expired),
        2 => Just(Act::Rest),
        1 => Just(Act::Reopen),
        1 => Just(Act::Kill),
        1 => any::<u64>().prop_map(Act::PowerCut),
        2 => (0..20_u64, entries()).prop_map(|(after, entries)| Act::Fail(after, entries)),
    ]
}

fn limits() -> InboxLimits {
    InboxLimits { user_messages: 8, user_bytes: 150, total_bytes: 300, ..InboxLimits::default() }
}

fn entries(entries: &[(u8, u8, u8)]) -> Vec<NewEntry> {
    let entry = |&(user, id, len): &(u8, u8, u8)| {
        let entry = NewEntry::new(name(user), Uuid::from_u128(id.into()), vec![len; len.into()].into());
        if len % 2 == 0 { entry.with_expires_at(len.into()) } else { entry }
    };
    entries.iter().map(entry).collect()
}

fn name(user: u8) -> Id {
    Id::new(["a", "ab", "b"][usize::from(user)]).unwrap()
}

fn keys(keys: &[(u8, u8)]) -> Vec<EntryKey> {
    keys.iter().map(|&(user, id)| EntryKey::new(name(user), Uuid::from_u128(id.into()))).collect()
}

/// All that a store has, without positions, which the model numbers otherwise.
async fn contents(store: &dyn InboxStore) -> Vec<Vec<(u128, Bytes, Option<u64>)>> {
    let mut users = Vec::new();
    for user in 0..3 {
        let user = name(user);
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let page = store.read(&user, after, ReadLimit { messages: 3, bytes: 60 }).await.unwrap();
            after = page.entries.last().map(|entry| entry.position).or(after);
            all.extend(page.entries.into_iter().map(|entry| (entry.id.as_u128(), entry.body, entry.expires_at)));
            if !page.has_more {
                break;
            }
        }
        let bytes = all.iter().map(|(_, body, _)| body.len() as u64).sum();
        assert_eq!(store.depth(&user).await.unwrap(), Depth { messages: all.len() as u64, bytes });
        assert!(all.is_empty() || !store.is_surely_empty(&user));
        users.push(all);
    }
    users
}

async fn expired(store: &dyn InboxStore, now: u64) -> Vec<EntryKey> {
    store.expired(now, 100).await.unwrap()
}

/// Which kind each admission is.
fn kinds(admissions: &[Admission]) -> Vec<Option<crate::Limit>> {
    let kind = |admission: &Admission| match admission {
        Admission::Stored(_) | Admission::Duplicate(_) => None,
        Admission::Full(limit) => Some(*limit),
    };
    admissions.iter().map(kind).collect()
}

pub(super) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn rest(store: &EmbeddedInbox) {
    loop {
        let moved = store.shared.moved.notified();
        if store.shared.state.lock().index.oldest().is_none() {
            break;
        }
        moved.await;
    }
}

/// Makes the model what the store turned out to have.
async fn adopt(store: &dyn InboxStore) -> MemoryInbox {
    let model = MemoryInbox::new(InboxLimits::default());
    let mut found = Vec::new();
    for user in 0..3 {
        let page = store.read(&name(user), None, ReadLimit { messages: usize::MAX, bytes: u64::MAX }).await.unwrap();
        found.extend(page.entries.into_iter().map(|entry| (name(user), entry)));
    }
    found.sort_by_key(|(_, entry)| entry.position);
    for (user, entry) in found {
        let mut new = NewEntry::new(user, entry.id, entry.body);
        new.expires_at = entry.expires_at;
        model.append(vec![new]).await.unwrap();
    }
    model.set_limits(limits());
    model
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(40), ..ProptestConfig::default() })]

    /// The store does what the one in memory does, whatever moves to the tables meanwhile, and whatever happens to it.
    #[test]
    fn it_behaves_like_the_one_in_memory(rests in any::<bool>(), acts in proptest::collection::vec(act(), 0..40)) {
        runtime().block_on(run(rests, acts))?;
    }
}

/// As many as the environment asks for, else so many.
pub(super) fn cases(most: u32) -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(most)
}

async fn run(rests: bool, acts: Vec<Act>) -> Result<(), TestCaseError> {
    let rest_after = if rests { Duration::ZERO } else { Duration::from_millis(1) };
    let config =
        EmbeddedConfig { limits: limits(), rest_after, commit_interval: Duration::ZERO, ..EmbeddedConfig::default() };
    let mut disk = FaultyDisk::new();
    let mut store = EmbeddedInbox::open_on(&disk, config.clone()).unwrap().0;
    let mut model = MemoryInbox::new(limits());
    let mut highest = Position(0);
    for act in acts {
        match act {
            Act::Append(new) => {
                let admissions = store.append(entries(&new)).await.unwrap();
                prop_assert_eq!(kinds(&admissions), kinds(&model.append(entries(&new)).await.unwrap()));
                for admission in admissions {
                    if let Admission::Stored(position) = admission {
                        prop_assert!(position > highest, "positions grow");
                        highest = position;
                    }
                }
            }
            Act::Remove(named) => {
                let removed = store.remove(keys(&named)).await.unwrap();
                prop_assert_eq!(removed, model.remove(keys(&named)).await.unwrap());
            }
            Act::Read { user, messages, bytes } => {
                let limit = ReadLimit { messages, bytes };
                let page = store.read(&name(user), None, limit).await.unwrap();
                let expected = model.read(&name(user), None, limit).await.unwrap();
                let ids = |page: &Page| page.entries.iter().map(|entry| entry.id).collect::<Vec<_>>();
                prop_assert_eq!((ids(&page), page.has_more), (ids(&expected), expected.has_more));
            }
            Act::Expired(now) => prop_assert_eq!(expired(&store, now).await, expired(&model, now).await),
            Act::Rest => rest(&store).await,
            Act::Reopen => {
                store.close().await.unwrap();
                let opened;
                (store, opened) = EmbeddedInbox::open_on(&disk, config.clone()).unwrap();
                let total = model.total().await.unwrap();
                prop_assert!(opened.was_closed && !opened.was_repaired);
                prop_assert_eq!((opened.messages, opened.bytes, opened.dropped), (total.messages, total.bytes, 0));
            }
            Act::Kill | Act::PowerCut(_) => {
                // What was removed last may be there again, so the model follows the store then.
                let before = contents(&model).await;
                disk = match act {
                    Act::PowerCut(seed) => disk.after_power_cut(seed),
                    _ => disk.after_kill(),
                };
                let opened;
                (store, opened) = EmbeddedInbox::open_on(&disk, config.clone()).unwrap();
                prop_assert!(!opened.was_closed && opened.dropped == 0);
                for (before, after) in before.iter().zip(contents(&store).await) {
                    for entry in before {
                        prop_assert!(after.contains(entry), "{entry:?} was accepted and is gone");
                    }
                }
                store.remove(vec![probe()]).await.unwrap();
                model = adopt(&store).await;
            }
            Act::Fail(after, new) => {
                disk.fail_after(after);
                match store.append(entries(&new)).await {
                    Ok(admissions) => {
                        prop_assert_eq!(kinds(&admissions), kinds(&model.append(entries(&new)).await.unwrap()));
                        for admission in admissions {
                            if let Admission::Stored(position) = admission {
                                prop_assert!(position > highest, "positions grow");
                                highest = position;
                            }
                        }
                    }
                    Err(error) => prop_assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}"),
                }
                disk.set_failing(false);
                recover(&store).await;
            }
        }
        prop_assert_eq!(contents(&store).await, contents(&model).await);
        prop_assert_eq!(store.total().await.unwrap(), model.total().await.unwrap());
        let found: HashSet<_> = expired(&store, u64::MAX).await.into_iter().collect();
        prop_assert_eq!(found, expired(&model, u64::MAX).await.into_iter().collect());
    }
    Ok(())
}

/// Waits until a store has noticed that its disk works. It tries by itself.
async fn works(store: &EmbeddedInbox) {
    loop {
        let told = store.shared.moved.notified();
        if !store.shared.state.lock().is_failing {
            break;
        }
        told.await;
    }
}

/// The same, until it has committed something too.
async fn recover(store: &EmbeddedInbox) {
    let probe = NewEntry::new(probe().user, probe().id, Bytes::new());
    works(store).await;
    store.append(vec![probe.clone()]).await.unwrap();
    store.remove(vec![probe.key]).await.unwrap();
}

fn probe() -> EntryKey {
    EntryKey::new(Id::new("probe").unwrap(), Uuid::nil())
}

fn resting() -> EmbeddedConfig {
    EmbeddedConfig { rest_after: Duration::ZERO, ..EmbeddedConfig::default() }
}

#[tokio::test]
async fn a_full_disk_refuses_and_loses_nothing() {
    let disk = FaultyDisk::new();
    let store = EmbeddedInbox::open_on(&disk, EmbeddedConfig::default()).unwrap().0;
    let large = |n| NewEntry::new(name(0), Uuid::from_u128(n), vec![7; 100_000].into());
    store.append(vec![large(0)]).await.unwrap();
    disk.set_capacity(Some(disk.size()));
    let mut stored = 1;
    let error = loop {
        match store.append(vec![large(stored)]).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
    };
    let told = std::error::Error::source(&error).map(ToString::to_string);
    assert!(told.as_ref().is_some_and(|told| told.contains("no storage space")), "{error}: {told:?}");
    assert_eq!(store.depth(&name(0)).await.unwrap().messages, stored as u64, "what failed is not there");

    assert_eq!(store.remove(vec![EntryKey::new(name(0), Uuid::from_u128(0))]).await.unwrap(), [true], "though full");
    assert_eq!(store.depth(&name(0)).await.unwrap().messages, stored as u64 - 1);

    disk.set_capacity(None);
    recover(&store).await;
    store.append(vec![large(1000)]).await.unwrap();
    store.close().await.unwrap();
    let (store, opened) = EmbeddedInbox::open_on(&disk, EmbeddedConfig::default()).unwrap();
    assert_eq!(opened.messages, stored as u64, "all but the removed one, and the last");
    let page = store.read(&name(0), None, ReadLimit { messages: 9999, bytes: u64::MAX }).await.unwrap();
    assert!(page.entries.iter().map(|entry| entry.id.as_u128()).eq((1..stored).chain([1000])));
}

/// A commit whose last sync fails is in the file. It was reported as failed, so it must not come back.
#[tokio::test]
async fn what_failed_does_not_come_back() {
    for works_for in 0..40 {
        let disk = FaultyDisk::new();
        let store = EmbeddedInbox::open_on(&disk, EmbeddedConfig::default()).unwrap().0;
        store.append(entries(&[(0, 1, 1)])).await.unwrap();
        disk.fail_after(works_for);
        // More than one row of the journal: the next commit must not just happen to take the place of all of them.
        let large = |n| NewEntry::new(name(0), Uuid::from_u128(n), vec![7; 50_000].into());
        let failed = store.append((2..5).map(large).collect()).await.is_err();
        disk.set_failing(false);
        recover(&store).await;
        let expected = if failed { 1 } else { 4 };
        assert_eq!(store.depth(&name(0)).await.unwrap().messages, expected, "after {works_for} operations");
        store.close().await.unwrap();
        let opened = EmbeddedInbox::open_on(&disk, EmbeddedConfig::default()).unwrap().1;
        assert_eq!(opened.messages, expected, "after {works_for} operations, and a restart");
        if !failed {
            return;
        }
    }
    panic!("a commit takes more operations than expected");
}

#[tokio::test]
async fn positions_are_not_used_again_when_nothing_is_left() {
    let disk = FaultyDisk::new();
    let mut highest = Position(0);
    for n in 0..5 {
        let store = EmbeddedInbox::open_on(&disk, resting()).unwrap().0;
        let admitted = store.append(entries(&[(0, n, 1)])).await.unwrap();
        let Admission::Stored(position) = admitted[0] else { panic!("{admitted:?}") };
        assert!(position > highest, "{position:?} after {highest:?}");
        highest = position;
        store.remove(keys(&[(0, n)])).await.unwrap();
        rest(&store).await;
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn notes_survive_when_their_entries_leave_the_journal() {
    let disk = FaultyDisk::new();
    let note = Note { key: Bytes::from_static(b"k"), value: Bytes::from_static(b"v"), expires_at: 1000 };
    let store = EmbeddedInbox::open_on(&disk, resting()).unwrap().0;
    store.append(vec![entries(&[(0, 1, 1)]).remove(0).with_note(note.clone())]).await.unwrap();
    assert_eq!(store.notes(0).await.unwrap(), std::slice::from_ref(&note));
    store.remove(keys(&[(0, 1)])).await.unwrap();
    rest(&store).await;
    assert_eq!(store.notes(0).await.unwrap(), std::slice::from_ref(&note));
    store.close().await.unwrap();
    let (store, opened) = EmbeddedInbox::open_on(&disk, resting()).unwrap();
    assert_eq!((opened.notes, store.notes(0).await.unwrap()), (1, vec![note]));
}

/// Many commits, whose entries are removed: the file stays as it is.
#[tokio::test]
async fn what_is_removed_makes_room_in_the_file() {
    let disk = FaultyDisk::new();
    let store = EmbeddedInbox::open_on(&disk, resting()).unwrap().0;
    let mut grown = 0;
    for round in 0..200 {
        let new: Vec<_> = (0..20).map(|n| NewEntry::new(name(0), Uuid::from_u128(n), vec![1; 5000].into())).collect();
        let named = new.iter().map(|entry| entry.key.clone()).collect();
        store.append(new).await.unwrap();
        store.remove(named).await.unwrap();
        if round == 50 {
            grown = disk.size();
        }
    }
    // How much grows together depends on how the commits fell; without reuse it would be four times as much.
    assert!(disk.size() <= 2 * grown, "{} bytes after 50 rounds, {} after 200", grown, disk.size());
}

#[tokio::test]
async fn callers_share_commits() {
    let disk = FaultyDisk::new();
    let store = EmbeddedInbox::open_on(&disk, EmbeddedConfig::default()).unwrap().0;
    let before = disk.syncs();
    let new = |n| vec![NewEntry::new(name(0), Uuid::from_u128(n), Bytes::new())];
    // Two that come together: the first is committed at once, or with the second.
    let appends: Vec<_> = (0..500).map(|n| store.append(new(n))).collect();
    for admitted in futures_join(appends).await {
        assert!(matches!(admitted.unwrap()[..], [Admission::Stored(_)]));
    }
    let syncs = disk.syncs() - before;
    assert!(syncs <= 40, "{syncs} syncs for 500 calls at a time");
}

pub(super) async fn futures_join<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        for (future, output) in futures.iter_mut().zip(&mut outputs) {
            if output.is_none()
                && let std::task::Poll::Ready(ready) = future.as_mut().poll(cx)
            {
                *output = Some(ready);
            }
        }
        if outputs.iter().all(Option::is_some) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    outputs.into_iter().flatten().collect()
}

#[tokio::test]
async fn a_newer_format_is_refused_by_its_number() {
    let disk = FaultyDisk::new();
    EmbeddedInbox::open_on(&disk, EmbeddedConfig::default()).unwrap().0.close().await.unwrap();
    let database = Disk::faulty(disk.clone()).open(1 << 20).unwrap();
    let txn = writer::begin_write(&database).unwrap();
    txn.open_table(tables::META).unwrap().insert(tables::meta::FORMAT, 7).unwrap();
    txn.commit().unwrap();
    drop(database);
    let error = EmbeddedInbox::open_on(&disk, EmbeddedConfig::default()).unwrap_err();
    assert!(matches!(error, OpenError::NewerFormat { found: 7, known: 1, .. }), "{error}");
}

/// A flipped bit anywhere is noticed: the store does not open, or says what is lost, or nothing is.
#[tokio::test]
async fn no_flipped_bit_loses_mail_in_silence() {
    let disk = FaultyDisk::new();
    let store = EmbeddedInbox::open_on(&disk, resting()).unwrap().0;
    let large = |ids: std::ops::Range<u128>| {
        ids.map(|n| NewEntry::new(name((n % 3) as u8), Uuid::from_u128(n), vec![7; 3000].into())).collect()
    };
    store.append(large(0..40)).await.unwrap();
    rest(&store).await;
    store.close().await.unwrap();
    // Some at rest, some in the journal.
    let store = EmbeddedInbox::open_on(&disk, EmbeddedConfig::default()).unwrap().0;
    store.append(large(40..60)).await.unwrap();
    let before = contents(&store).await;
    store.close().await.unwrap();
    let (mut refused, mut repaired) = (0, 0);
    for seed in 0..300 {
        let disk = disk.after_kill();
        let mut random = fastrand::Rng::with_seed(seed);
        disk.damage(|data| {
            // The file is mostly empty; what is not is what matters.
            let at = std::iter::repeat_with(|| random.usize(..data.len())).find(|&at| data[at] != 0).unwrap();
            data[at] ^= 1 << random.u8(..8);
        });
        match EmbeddedInbox::open_on(&disk, EmbeddedConfig::default()) {
            Err(error) => {
                assert!(error.to_string().contains("faulty disk"), "names the path: {error}");
                refused += 1;
            }
            Ok((store, opened)) => {
                let after = contents(&store).await;
                let told = opened.dropped > 0 || opened.was_repaired || store.lost() > 0;
                assert!(after == before || told, "seed {seed}: {opened:?}\n{before:?}\n{after:?}");
                repaired += u64::from(told);
            }
        }
    }
    assert!(refused + repaired > 50, "{refused} refused, {repaired} repaired: the damage did not hit");
}

#[tokio::test]
async fn a_cut_file_is_refused() {
    let disk = FaultyDisk::new();
    let store = EmbeddedInbox::open_on(&disk, EmbeddedConfig::default()).unwrap().0;
    store.append(entries(&[(0, 1, 30), (1, 1, 31)])).await.unwrap();
    store.close().await.unwrap();
    let len = disk.size() as usize;
    for len in [1, 100, 4096, len / 4, len / 2, len - 4096, len - 1] {
        let disk = disk.after_kill();
        disk.damage(|data| data.truncate(len));
        match EmbeddedInbox::open_on(&disk, EmbeddedConfig::default()) {
            Err(error) => assert!(matches!(error, OpenError::Damaged { .. } | OpenError::Foreign { .. }), "{error}"),
            Ok((_, opened)) => assert_eq!((opened.messages, opened.was_repaired), (2, true), "cut to {len}"),
        }
    }
}

/// A removal that comes while the disk fails takes effect at once, and on the disk once that works.
#[tokio::test]
async fn removals_outlast_a_failing_disk() {
    let disk = FaultyDisk::new();
    let store = EmbeddedInbox::open_on(&disk, EmbeddedConfig::default()).unwrap().0;
    store.append(entries(&[(0, 1, 1), (0, 2, 2)])).await.unwrap();
    disk.set_failing(true);
    assert!(store.append(entries(&[(0, 3, 3)])).await.is_err());
    assert_eq!(store.remove(keys(&[(0, 1)])).await.unwrap(), [true]);
    assert_eq!(store.depth(&name(0)).await.unwrap().messages, 1);
    assert!(store.append(entries(&[(0, 3, 3)])).await.is_err());
    disk.set_failing(false);
    // Nobody appends: the store tries by itself.
    works(&store).await;
    recover(&store).await;
    let killed = EmbeddedInbox::open_on(&disk.after_kill(), EmbeddedConfig::default()).unwrap().0;
    assert_eq!(contents(&killed).await[0].iter().map(|(id, ..)| *id).collect::<Vec<_>>(), [2]);
    store.close().await.unwrap();
    assert_eq!(EmbeddedInbox::open_on(&disk, EmbeddedConfig::default()).unwrap().1.messages, 1);
}
