//! All that a data directory keeps, on real files, with real processes.

#![cfg(feature = "embedded")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "everything here is a test, its helpers too")]

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use tokio::task::JoinSet;
use uuid::Uuid;
use wsc_protocol::Id;
use wsc_store::{
    Durability, EmbeddedConfig, EmbeddedInbox, EmbeddedStore, InboxStore, NewEntry, OpenError, RecordChange,
    RecordStore, open_embedded,
};

const CHILD: &str = "WSC_STORE_TEST_RECORDS_CHILD";

fn open(path: &Path) -> EmbeddedStore {
    open_embedded(path, EmbeddedConfig::default()).unwrap()
}

fn error(path: &Path) -> OpenError {
    open_embedded(path, EmbeddedConfig::default()).unwrap_err()
}

async fn close(store: &EmbeddedStore) {
    store.inbox.close().await.unwrap();
    store.records.close().await;
}

#[tokio::test]
async fn a_directory_keeps_both() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("not").join("there yet");
    let store = open(&path);
    assert_eq!((store.opened.messages, store.opened.records, store.opened.was_closed), (0, 0, true));
    let bob = Id::new("bob").unwrap();
    store.inbox.append(vec![NewEntry::new(bob, Uuid::from_u128(1), "hi".into())]).await.unwrap();
    let put = |key: u8| RecordChange::put("webhooks", [key], "event");
    store.records.commit(vec![put(1), put(2)]).await.unwrap();
    close(&store).await;

    let store = open(&path);
    assert_eq!((store.opened.messages, store.opened.records, store.opened.was_closed), (1, 2, true));
    assert!(!store.opened.was_repaired);
    assert_eq!(store.records.get("webhooks", &[2]).await.unwrap().unwrap(), "event");
    close(&store).await;

    // Who wants the inbox alone has it.
    let (inbox, opened) = EmbeddedInbox::open(&path, EmbeddedConfig::default()).unwrap();
    assert_eq!((opened.messages, opened.records), (1, 0));
    inbox.close().await.unwrap();
}

/// A directory from before there were records gets their file.
#[tokio::test]
async fn a_directory_with_an_inbox_only_is_fine() {
    let directory = tempfile::tempdir().unwrap();
    EmbeddedInbox::open(directory.path(), EmbeddedConfig::default()).unwrap().0.close().await.unwrap();
    assert!(!directory.path().join("records.redb").exists());
    let store = open(directory.path());
    assert!(store.opened.was_closed && !store.opened.was_repaired);
    store.records.commit(vec![RecordChange::put("a", *b"k", "v")]).await.unwrap();
    close(&store).await;
    assert_eq!(open(directory.path()).opened.records, 1);
}

#[tokio::test]
async fn a_directory_is_taken_until_both_are_closed() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let is_taken = || {
        let error = error(directory.path());
        assert!(matches!(error, OpenError::InUse { .. }), "{error}");
        assert!(error.to_string().contains(directory.path().to_str().unwrap()), "{error}");
    };
    is_taken();
    store.inbox.close().await.unwrap();
    is_taken();
    store.records.commit(vec![RecordChange::put("a", *b"k", "v")]).await.unwrap();
    store.records.close().await;
    let store = open(directory.path());
    store.records.close().await;
    is_taken();
    store.inbox.close().await.unwrap();
    close(&open(directory.path())).await;
}

#[tokio::test]
async fn a_damaged_records_file_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    store.records.commit(vec![RecordChange::put("a", *b"k", vec![7; 100_000])]).await.unwrap();
    close(&store).await;
    let file = directory.path().join("records.redb");
    let whole = fs::read(&file).unwrap();
    let refused = |content: &[u8]| {
        fs::write(&file, content).unwrap();
        let error = error(directory.path());
        assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
        // A sentence of ours, and not what the database code said when it gave up.
        assert!(!error.to_string().contains("panicked"), "{error}");
        error
    };
    assert!(matches!(refused(b"a letter to grandmother, long enough to be read"), OpenError::Foreign { .. }));
    assert!(matches!(refused(b""), OpenError::Damaged { .. }));
    assert!(matches!(refused(&whole[..5]), OpenError::Damaged { .. }));
    // Each page of the value, one bit each.
    let value = whole.windows(64).position(|bytes| bytes == [7; 64]).unwrap();
    for at in (value..value + 90_000).step_by(9000) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        assert!(matches!(refused(&damaged), OpenError::Damaged { .. }));
        assert_eq!(fs::read(&file).unwrap().len(), damaged.len(), "it is left as it is");
    }
    // The refusals held nothing back: with the copy in its place, all is there.
    fs::write(&file, &whole).unwrap();
    let store = open(directory.path());
    assert_eq!((store.opened.records, store.opened.was_repaired, store.opened.was_closed), (1, false, true));
    close(&store).await;
}

#[test]
fn a_cut_records_file_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()));
    let file = directory.path().join("records.redb");
    let len = fs::metadata(&file).unwrap().len();
    for len in [5, 4096, len / 2] {
        fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(len).unwrap();
        match open_embedded(directory.path(), EmbeddedConfig::default()) {
            Err(error) => assert!(error.to_string().contains(file.to_str().unwrap()), "{error}"),
            Ok(store) => assert!(store.opened.was_repaired, "cut to {len}: {:?}", store.opened),
        }
    }
}

/// A child commits and says what is committed. It is killed while it does; all that it said must be there.
#[test]
fn a_kill_loses_nothing_that_was_reported() {
    for (durability, enough) in [(Durability::Fsync, 200), (Durability::Os, 3000), (Durability::Fsync, 1500)] {
        let directory = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_child_that_is_killed", "--nocapture", "--test-threads=1"])
            .env(CHILD, directory.path())
            .env("WSC_STORE_TEST_OS", (durability == Durability::Os).to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Key → how often it was written.
        let mut reported: HashMap<u8, u32> = HashMap::new();
        let mut take = |line: &str| {
            let mut words = line.split_whitespace();
            if let (Some("wrote"), Some(key), Some(n)) = (words.next(), words.next(), words.next()) {
                reported.insert(key.parse().unwrap(), n.parse().unwrap());
            }
        };
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        for line in lines.by_ref() {
            take(&line.unwrap());
            seen += 1;
            if seen >= enough {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it still wrote counts as well, but for a line that is cut.
        let rest: Vec<_> = lines.map_while(Result::ok).collect();
        rest.iter().take(rest.len().saturating_sub(1)).for_each(|line| take(line));
        assert!(seen >= enough, "the child ended early, after {seen}");

        let runtime = tokio::runtime::Runtime::new().unwrap();
        let store = open(directory.path());
        assert!(!store.opened.was_closed, "{:?}", store.opened);
        for (key, n) in reported {
            let both = ["a", "b"].map(|table| runtime.block_on(store.records.get(table, &[key])).unwrap().unwrap());
            assert_eq!(both[0], both[1], "both tables, or none");
            let found = u32::from_be_bytes(both[0][..4].try_into().unwrap());
            // One whose line was cut or left out, and one that was not yet told.
            assert!((n..=n + 2).contains(&found), "{key} was written {n} times, and has {found}");
        }
        runtime.block_on(close(&store));
    }
}

/// No test: what [`a_kill_loses_nothing_that_was_reported`] starts and kills.
#[test]
fn the_child_that_is_killed() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let mut config = EmbeddedConfig::default();
    if std::env::var("WSC_STORE_TEST_OS").is_ok_and(|os| os == "true") {
        config.durability = Durability::Os;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = Arc::new(open_embedded(path.as_ref(), config).unwrap());
        let mut tasks = JoinSet::new();
        for key in 0..16_u8 {
            let store = Arc::clone(&store);
            tasks.spawn(async move {
                // Bounded, in case nobody kills it.
                for n in 1..100_000_u32 {
                    let mut value = n.to_be_bytes().to_vec();
                    value.resize(4 + n as usize % 5000, key);
                    let changes = ["a", "b"].map(|table| RecordChange::put(table, [key], value.clone()));
                    store.records.commit(changes.into()).await.unwrap();
                    say(&format!("wrote {key} {n}"));
                }
            });
        }
        tasks.join_all().await;
    });
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // In one piece; nobody listens after the end of the test.
    let _ = out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush());
}
