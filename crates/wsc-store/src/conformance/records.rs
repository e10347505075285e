//! The checks that every [`RecordStore`] must pass.

use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinSet;

use crate::{RecordBound, RecordChange, RecordStore, StoreError};

/// Runs every check, each on an empty store of its own.
///
/// Call it in a multi-threaded Tokio runtime: some checks are about calls at the same time.
///
/// # Panics
///
/// Panics where the store does not keep the contract.
pub async fn check_records<F>(open: F)
where
    F: AsyncFn() -> Arc<dyn RecordStore>,
{
    values_come_back_as_they_were(&*open().await).await;
    scans_are_in_order_and_complete(&*open().await).await;
    tables_are_apart(&*open().await).await;
    the_last_change_counts(&*open().await).await;
    what_is_out_of_bounds_changes_nothing(&*open().await).await;
    commits_are_whole(open().await).await;
    many_at_a_time_keep_their_order(open().await).await;
    a_closed_store_says_so(&*open().await).await;
}

async fn values_come_back_as_they_were(store: &dyn RecordStore) {
    assert_eq!(get(store, "a", b"k").await, None, "an empty store has nothing");
    let values = [Bytes::new(), Bytes::from_static(b"\0\xff\n"), Bytes::from(vec![7; 300_000])];
    let put = |(n, value): (u8, &Bytes)| RecordChange::put("a", [n], value.clone());
    commit(store, (0..).zip(&values).map(put)).await;
    for (n, value) in (0..).zip(values) {
        assert_eq!(get(store, "a", &[n]).await, Some(value), "byte for byte");
    }
    let largest = Bytes::from(vec![1; RecordBound::VALUE_BYTES]);
    let longest = [0xff; RecordBound::KEY_BYTES];
    commit(store, [RecordChange::put("a", longest, largest.clone())]).await;
    assert_eq!(get(store, "a", &longest).await, Some(largest), "as large as may be");
    commit(store, [RecordChange::remove("a", longest), RecordChange::remove("a", *b"never there")]).await;
    assert_eq!(get(store, "a", &longest).await, None, "removed");
    commit(store, []).await;
}

async fn scans_are_in_order_and_complete(store: &dyn RecordStore) {
    // Keys of which some begin others, with the lowest and the highest bytes.
    let mut keys: Vec<Vec<u8>> =
        vec![vec![], vec![0], vec![0, 0], vec![1, 0xff], b"a".to_vec(), b"ab".to_vec(), vec![0xff], vec![0xff, 0xff]];
    commit(store, keys.iter().rev().map(|key| RecordChange::put("a", &**key, key.clone()))).await;
    assert_eq!(scan(store, "a", None, 100).await, keys, "ordered by bytes");
    for limit in 1..4 {
        let (mut after, mut found) = (None::<Vec<u8>>, Vec::new());
        loop {
            let page = scan(store, "a", after.as_deref(), limit).await;
            assert!(page.len() <= limit, "at most as many as were asked for");
            let Some(last) = page.last() else { break };
            after = Some(last.clone());
            found.extend(page);
        }
        assert_eq!(found, keys, "pages of {limit} are complete and do not overlap");
    }
    assert_eq!(scan(store, "a", None, 0).await, Vec::<Vec<u8>>::new(), "none, when none is asked for");
    commit(store, [RecordChange::remove("a", *b"a"), RecordChange::remove("a", [])]).await;
    keys.retain(|key| key != b"a" && !key.is_empty());
    assert_eq!(scan(store, "a", None, 100).await, keys, "what was removed is not there");
    assert_eq!(scan(store, "a", Some(b"a"), 1).await, [b"ab"], "a cursor need not name a record");
    let behind_all = [0xff; 2 * RecordBound::KEY_BYTES];
    assert_eq!(scan(store, "a", Some(&behind_all), 9).await, Vec::<Vec<u8>>::new(), "nothing is behind the last one");
}

async fn tables_are_apart(store: &dyn RecordStore) {
    // Names and keys that a careless composition would mix up.
    const TABLES: [&str; 6] = ["a", "ab", "b", "a.b", "A", "~~~"];
    for table in TABLES {
        commit(store, [&b"b"[..], b"", b".b", b"\xff"].map(|key| RecordChange::put(table, key, table))).await;
    }
    for table in TABLES {
        let found = store.scan(table, None, 100).await.expect("scan");
        assert_eq!(found.len(), 4, "{table} has its own");
        assert!(found.iter().all(|record| record.value == table), "{table} has its own: {found:?}");
    }
    commit(store, [RecordChange::remove("a", *b"b")]).await;
    assert_eq!(get(store, "ab", b"").await, Some("ab".into()), "another table's");
    assert_eq!(get(store, "a", b"b").await, None);
    assert_eq!(scan(store, "never-used", None, 9).await, Vec::<Vec<u8>>::new());
}

async fn the_last_change_counts(store: &dyn RecordStore) {
    let (put, remove) = (|value| RecordChange::put("a", *b"k", value), || RecordChange::remove("a", *b"k"));
    commit(store, [put("1"), put("2")]).await;
    assert_eq!(get(store, "a", b"k").await, Some("2".into()));
    commit(store, [put("3"), remove()]).await;
    assert_eq!(get(store, "a", b"k").await, None);
    commit(store, [remove(), put("4")]).await;
    assert_eq!(get(store, "a", b"k").await, Some("4".into()));
}

async fn what_is_out_of_bounds_changes_nothing(store: &dyn RecordStore) {
    let long_key = [0; RecordBound::KEY_BYTES + 1];
    let long_value = vec![0; RecordBound::VALUE_BYTES + 1];
    let refused = [
        (RecordChange::put("", *b"k", "v"), RecordBound::Table),
        (RecordChange::put("t\u{e4}ble", *b"k", "v"), RecordBound::Table),
        (RecordChange::put("a table", *b"k", "v"), RecordBound::Table),
        (RecordChange::remove(LONG_NAME, *b"k"), RecordBound::Table),
        (RecordChange::put("a", long_key, "v"), RecordBound::Key),
        (RecordChange::put("a", *b"k", long_value), RecordBound::Value),
    ];
    for (change, bound) in refused {
        let committed = store.commit(vec![RecordChange::put("a", *b"good", "v"), change]).await;
        assert!(matches!(committed, Err(StoreError::OutOfBounds(found)) if found == bound), "{committed:?}");
    }
    assert!(matches!(store.scan("", None, 1).await, Err(StoreError::OutOfBounds(RecordBound::Table))));
    assert!(matches!(store.get(LONG_NAME, b"k").await, Err(StoreError::OutOfBounds(RecordBound::Table))));
    assert!(matches!(store.get("a", &long_key).await, Err(StoreError::OutOfBounds(RecordBound::Key))));
    assert_eq!(scan(store, "a", None, 100).await, Vec::<Vec<u8>>::new(), "all changes of a call or none");
    commit(store, [RecordChange::put(&LONG_NAME[1..], *b"k", "v")]).await;
    assert_eq!(get(store, &LONG_NAME[1..], b"k").await, Some("v".into()), "as long as may be");
}

/// One writer sets two keys to the same value, again and again: no reader sees one without the other.
async fn commits_are_whole(store: Arc<dyn RecordStore>) {
    let writer = Arc::clone(&store);
    let writer = tokio::spawn(async move {
        for n in 0..200_u32 {
            commit(&*writer, [1, 2].map(|key| RecordChange::put("a", [key], n.to_be_bytes().to_vec()))).await;
        }
    });
    loop {
        let is_over = writer.is_finished();
        let found = store.scan("a", None, 10).await.expect("scan");
        let values: Vec<_> = found.iter().map(|record| &record.value).collect();
        assert!(matches!(values[..], [a, b] if a == b) || values.is_empty(), "half a commit: {values:?}");
        if is_over {
            break;
        }
        tokio::task::yield_now().await;
    }
    writer.await.expect("the writer failed");
    assert_eq!(get(&*store, "a", &[2]).await, Some(Bytes::copy_from_slice(&199_u32.to_be_bytes())));
}

/// Many writers, each with a key of its own: what one of them was told is there, and its last value counts.
async fn many_at_a_time_keep_their_order(store: Arc<dyn RecordStore>) {
    let mut writers = JoinSet::new();
    for writer in 0..16_u8 {
        let store = Arc::clone(&store);
        writers.spawn(async move {
            for n in 0..50_u8 {
                commit(&*store, [RecordChange::put("a", [writer], vec![n])]).await;
                assert_eq!(get(&*store, "a", &[writer]).await, Some(vec![n].into()), "a reader sees what is committed");
            }
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer.expect("a writer failed");
    }
    assert_eq!(scan(&*store, "a", None, 100).await.len(), 16);
}

async fn a_closed_store_says_so(store: &dyn RecordStore) {
    commit(store, [RecordChange::put("a", *b"k", "v")]).await;
    store.close().await;
    store.close().await;
    assert!(matches!(store.commit(vec![RecordChange::remove("a", *b"k")]).await, Err(StoreError::Closed)));
    assert!(matches!(store.commit(Vec::new()).await, Err(StoreError::Closed)));
    assert!(matches!(store.scan("a", None, 1).await, Err(StoreError::Closed)));
    assert!(matches!(store.get("a", b"k").await, Err(StoreError::Closed)));
}

async fn commit(store: &dyn RecordStore, changes: impl IntoIterator<Item = RecordChange>) {
    store.commit(changes.into_iter().collect()).await.expect("commit");
}

async fn get(store: &dyn RecordStore, table: &str, key: &[u8]) -> Option<Bytes> {
    store.get(table, key).await.expect("get")
}

/// The keys.
async fn scan(store: &dyn RecordStore, table: &str, after: Option<&[u8]>, limit: usize) -> Vec<Vec<u8>> {
    let found = store.scan(table, after, limit).await.expect("scan");
    found.into_iter().map(|record| record.key.into_vec()).collect()
}

/// One byte longer than a table's name may be.
const LONG_NAME: &str = "a1234567890123456789012345678901234567890123456789012345678901234";
const _: () = assert!(LONG_NAME.len() == RecordBound::TABLE_BYTES + 1);
