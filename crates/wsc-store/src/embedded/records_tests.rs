use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use proptest::prelude::*;

use super::{
    EmbeddedConfig, EmbeddedInbox, EmbeddedRecords, FaultyDisk, OpenError, disk::Disk, records, tables, writer,
};
use crate::{InboxStore, RecordChange, RecordStore, StoreError, conformance};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_keeps_the_contract() {
    conformance::check_records(async || {
        Arc::new(EmbeddedRecords::open_on(&FaultyDisk::new()).unwrap()) as Arc<dyn RecordStore>
    })
    .await;
}

/// What a test does to a store and to the model.
#[derive(Clone, Debug)]
enum Act {
    Commit(Vec<(u8, u8, Option<u16>)>),
    Reopen,
    Kill,
    PowerCut(u64),
    /// A commit while the disk fails after so many operations, and again when it works.
    Fail(u64, Vec<(u8, u8, Option<u16>)>),
}

fn act() -> impl Strategy<Value = Act> {
    let changes = || proptest::collection::vec((0..3_u8, 0..8_u8, proptest::option::of(0..6000_u16)), 1..5);
    prop_oneof![
        6 => changes().prop_map(Act::Commit),
        1 => Just(Act::Reopen),
        1 => Just(Act::Kill),
        1 => any::<u64>().prop_map(Act::PowerCut),
        2 => (0..20_u64, changes()).prop_map(|(after, changes)| Act::Fail(after, changes)),
    ]
}

const TABLES: [&str; 3] = ["a", "ab", "b"];

type Model = BTreeMap<(&'static str, Vec<u8>), Bytes>;

fn changes(changes: &[(u8, u8, Option<u16>)]) -> Vec<RecordChange> {
    let change = |&(table, key, len): &(u8, u8, Option<u16>)| {
        let table = TABLES[usize::from(table)];
        match len {
            Some(len) => RecordChange::put(table, [key], vec![key; len.into()]),
            None => RecordChange::remove(table, [key]),
        }
    };
    changes.iter().map(change).collect()
}

fn apply(model: &mut Model, changes: Vec<RecordChange>) {
    for change in changes {
        let key = (change.table, change.key.into_vec());
        match change.value {
            Some(value) => model.insert(key, value),
            None => model.remove(&key),
        };
    }
}

async fn contents(store: &EmbeddedRecords) -> Model {
    let mut found = Model::new();
    for table in TABLES {
        let mut after = None;
        loop {
            let page = store.scan(table, after.as_deref(), 3).await.unwrap();
            let Some(last) = page.last() else { break };
            after = Some(last.key.clone());
            found.extend(page.into_iter().map(|record| ((table, record.key.into_vec()), record.value)));
        }
    }
    found
}

/// Waits until a store has noticed that its disk works. It tries by itself; until then it fails at once.
async fn recover(store: &EmbeddedRecords) {
    while store.commit(vec![RecordChange::remove("probe", [])]).await.is_err() {
        tokio::task::yield_now().await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: super::tests::cases(40), ..ProptestConfig::default() })]

    /// Whatever happens to it, the store has what was committed, each commit whole.
    #[test]
    fn it_behaves_like_a_map(acts in proptest::collection::vec(act(), 0..40)) {
        super::tests::runtime().block_on(run(acts))?;
    }
}

async fn run(acts: Vec<Act>) -> Result<(), TestCaseError> {
    let mut disk = FaultyDisk::new();
    let mut store = EmbeddedRecords::open_on(&disk).unwrap();
    let mut model = Model::new();
    for act in acts {
        match act {
            Act::Commit(new) => {
                store.commit(changes(&new)).await.unwrap();
                apply(&mut model, changes(&new));
            }
            Act::Reopen => {
                store.close().await;
                store = EmbeddedRecords::open_on(&disk).unwrap();
            }
            Act::Kill | Act::PowerCut(_) => {
                disk = match act {
                    Act::PowerCut(seed) => disk.after_power_cut(seed),
                    _ => disk.after_kill(),
                };
                store = EmbeddedRecords::open_on(&disk).unwrap();
            }
            Act::Fail(after, new) => {
                disk.fail_after(after);
                let committed = store.commit(changes(&new)).await;
                disk.set_failing(false);
                recover(&store).await;
                let mut with = model.clone();
                apply(&mut with, changes(&new));
                match committed {
                    Ok(()) => model = with,
                    Err(error) => {
                        prop_assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
                        // It may be there all the same, but as a whole.
                        if contents(&store).await == with {
                            model = with;
                        }
                    }
                }
            }
        }
        prop_assert_eq!(contents(&store).await, model.clone());
    }
    Ok(())
}

/// The disk may stop in the middle of a commit too: cut at every operation, with what is not synced there or not.
#[tokio::test]
async fn a_power_cut_in_a_commit_leaves_all_of_it_or_nothing() {
    let put = |value: u8| (0..20_u8).map(move |key| RecordChange::put("a", [key], vec![value; 1000])).collect();
    for works_for in 0..60 {
        let disk = FaultyDisk::new();
        let store = EmbeddedRecords::open_on(&disk).unwrap();
        store.commit(put(1)).await.unwrap();
        disk.fail_after(works_for);
        let committed = store.commit(put(2)).await.is_ok();
        for seed in 0..8 {
            let cut = disk.after_power_cut(seed);
            let found = contents(&EmbeddedRecords::open_on(&cut).unwrap()).await;
            assert_eq!(found.len(), 20, "after {works_for} operations");
            let value = found.values().next().unwrap()[0];
            assert!(
                found.values().all(|found| *found == vec![value; 1000]),
                "half of it, after {works_for} operations"
            );
            assert!(value == 2 || !committed, "what was committed is gone, after {works_for} operations");
        }
        if committed {
            return;
        }
    }
    panic!("a commit takes more operations than expected");
}

#[tokio::test]
async fn callers_share_commits() {
    let disk = FaultyDisk::new();
    let store = EmbeddedRecords::open_on(&disk).unwrap();
    let before = disk.syncs();
    let commits = (0..500_u16).map(|n| store.commit(vec![RecordChange::put("a", n.to_be_bytes(), "v")]));
    for committed in super::tests::futures_join(commits.collect()).await {
        committed.unwrap();
    }
    let syncs = disk.syncs() - before;
    assert!(syncs <= 40, "{syncs} syncs for 500 calls at a time");
    assert_eq!(store.scan("a", None, usize::MAX).await.unwrap().len(), 500);
}

/// A full disk refuses what is new; what is there can be read, and the store works again by itself.
#[tokio::test]
async fn a_full_disk_refuses_and_loses_nothing() {
    let disk = FaultyDisk::new();
    let store = EmbeddedRecords::open_on(&disk).unwrap();
    let put = |n: u8| vec![RecordChange::put("a", [n], vec![n; 100_000])];
    store.commit(put(0)).await.unwrap();
    disk.set_capacity(Some(disk.size()));
    let mut stored = 1;
    let error = loop {
        match store.commit(put(stored)).await {
            Ok(()) => stored += 1,
            Err(error) => break error,
        }
    };
    let told = std::error::Error::source(&error).map(ToString::to_string);
    assert!(told.as_ref().is_some_and(|told| told.contains("no storage space")), "{error}: {told:?}");
    disk.set_capacity(None);
    recover(&store).await;
    assert_eq!(contents(&store).await.len(), usize::from(stored));
    store.commit(put(stored)).await.unwrap();
    store.close().await;
    let store = EmbeddedRecords::open_on(&disk).unwrap();
    assert_eq!(contents(&store).await.len(), usize::from(stored) + 1);
}

/// What waits when the store closes is committed.
#[tokio::test]
async fn closing_commits_what_came_before() {
    let disk = FaultyDisk::new();
    let store = EmbeddedRecords::open_on(&disk).unwrap();
    let mut commits: Vec<_> =
        (0..50_u8).map(|n| Box::pin(store.commit(vec![RecordChange::put("a", [n], "v")]))).collect();
    // Each is polled once, which queues it.
    std::future::poll_fn(|cx| {
        for commit in &mut commits {
            let _ = commit.as_mut().poll(cx);
        }
        std::task::Poll::Ready(())
    })
    .await;
    drop(commits);
    store.close().await;
    assert_eq!(contents(&EmbeddedRecords::open_on(&disk).unwrap()).await.len(), 50);
}

/// A flipped bit anywhere is noticed: the store does not open, or says that it was repaired, or nothing is wrong.
#[tokio::test]
async fn no_flipped_bit_changes_records_in_silence() {
    let disk = FaultyDisk::new();
    let store = EmbeddedRecords::open_on(&disk).unwrap();
    for n in 0..40_u8 {
        store.commit(vec![RecordChange::put(TABLES[usize::from(n % 3)], [n], vec![n; 3000])]).await.unwrap();
    }
    let before = contents(&store).await;
    store.close().await;
    let (mut refused, mut repaired) = (0, 0);
    for seed in 0..300 {
        let disk = disk.after_kill();
        let mut random = fastrand::Rng::with_seed(seed);
        disk.damage(|data| {
            // The file is mostly empty; what is not is what matters.
            let at = std::iter::repeat_with(|| random.usize(..data.len())).find(|&at| data[at] != 0).unwrap();
            data[at] ^= 1 << random.u8(..8);
        });
        let loaded = records::load(&Disk::faulty(disk.clone()));
        match loaded {
            Err(error) => {
                assert!(error.to_string().contains("faulty disk"), "names the path: {error}");
                refused += 1;
            }
            Ok(loaded) => {
                let told = loaded.was_repaired;
                let store = EmbeddedRecords::start(Disk::faulty(disk), loaded, None).unwrap();
                assert!(contents(&store).await == before || told, "seed {seed}");
                repaired += u64::from(told);
            }
        }
    }
    assert!(refused + repaired > 50, "{refused} refused, {repaired} repaired: the damage did not hit");
}

/// Damage that comes while the store is open reaches nobody as a value.
#[tokio::test]
async fn a_record_that_is_damaged_later_is_an_error() {
    let disk = FaultyDisk::new();
    let store = EmbeddedRecords::open_on(&disk).unwrap();
    let put = |n: u8| RecordChange::put("a", [n], vec![n; 2 << 20]);
    // More than the cache holds.
    store.commit((1..9).map(put).collect()).await.unwrap();
    disk.damage(|data| data.chunks_mut(4096).for_each(|page| page[2048..2052].fill(0xaa)));
    let mut errors = 0;
    for n in 1..9 {
        match store.get("a", &[n]).await {
            Ok(value) => assert_eq!(value, Some(vec![n; 2 << 20].into()), "from the cache, or an error"),
            Err(error) => {
                assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
                errors += 1;
            }
        }
    }
    assert!(errors > 0, "all came from the cache");
}

#[tokio::test]
async fn a_cut_file_is_refused() {
    let disk = FaultyDisk::new();
    let store = EmbeddedRecords::open_on(&disk).unwrap();
    store.commit(vec![RecordChange::put("a", *b"k", "v")]).await.unwrap();
    store.close().await;
    let len = disk.size() as usize;
    for len in [1, 100, 4096, len / 4, len / 2, len - 4096, len - 1] {
        let disk = disk.after_kill();
        disk.damage(|data| data.truncate(len));
        match records::load(&Disk::faulty(disk)) {
            Err(error) => assert!(matches!(error, OpenError::Damaged { .. } | OpenError::Foreign { .. }), "{error}"),
            Ok(loaded) => assert_eq!((loaded.records, loaded.was_repaired), (1, true), "cut to {len}"),
        }
    }
}

#[tokio::test]
async fn other_files_are_refused() {
    let disk = FaultyDisk::new();
    EmbeddedInbox::open_on(&disk, EmbeddedConfig::default()).unwrap().0.close().await.unwrap();
    let error = EmbeddedRecords::open_on(&disk).unwrap_err();
    assert!(matches!(error, OpenError::Foreign { .. }), "an inbox: {error}");

    let disk = FaultyDisk::new();
    EmbeddedRecords::open_on(&disk).unwrap().close().await;
    let error = EmbeddedInbox::open_on(&disk, EmbeddedConfig::default()).unwrap_err();
    assert!(matches!(error, OpenError::Foreign { .. }), "records: {error}");

    let database = Disk::faulty(disk.clone()).open(1 << 20).unwrap();
    let txn = writer::begin_write(&database).unwrap();
    txn.open_table(tables::META).unwrap().insert(records::FORMAT_KEY, 7).unwrap();
    txn.commit().unwrap();
    drop(database);
    let error = EmbeddedRecords::open_on(&disk).unwrap_err();
    assert!(matches!(error, OpenError::NewerFormat { found: 7, known: 1, .. }), "{error}");
}
