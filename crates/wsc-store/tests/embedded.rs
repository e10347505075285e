//! The embedded inbox on real files, with real processes.

#![cfg(feature = "embedded")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "everything here is a test, its helpers too")]

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use tokio::task::JoinSet;
use uuid::Uuid;
use wsc_protocol::Id;
use wsc_store::{
    Admission, Durability, EmbeddedConfig, EmbeddedInbox, EntryKey, InboxStore, NewEntry, OpenError, Position,
    ReadLimit,
};

const CHILD: &str = "WSC_STORE_TEST_CHILD";

fn open(path: &Path) -> EmbeddedInbox {
    EmbeddedInbox::open(path, EmbeddedConfig::default()).unwrap().0
}

fn error(path: &Path) -> OpenError {
    EmbeddedInbox::open(path, EmbeddedConfig::default()).unwrap_err()
}

fn user(n: u128) -> Id {
    Id::new(&format!("user-{n}")).unwrap()
}

fn entry(user: &Id, n: u128) -> NewEntry {
    NewEntry::new(user.clone(), Uuid::from_u128(n), n.to_string().into())
}

#[tokio::test]
async fn what_was_stored_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("not").join("there yet");
    let (store, opened) = EmbeddedInbox::open(&path, EmbeddedConfig::default()).unwrap();
    assert_eq!((opened.messages, opened.was_closed, opened.was_repaired), (0, true, false));
    store.append(vec![entry(&user(1), 1), entry(&user(1), 2)]).await.unwrap();
    store.remove(vec![EntryKey::new(user(1), Uuid::from_u128(1))]).await.unwrap();
    store.close().await.unwrap();

    let (store, opened) = EmbeddedInbox::open(&path, EmbeddedConfig::default()).unwrap();
    assert_eq!((opened.messages, opened.bytes, opened.was_closed), (1, 1, true));
    let page = store.read(&user(1), None, ReadLimit::default()).await.unwrap();
    assert_eq!(page.entries[0].body, "2");
}

#[tokio::test]
async fn a_directory_belongs_to_one() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let error = error(directory.path());
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    assert!(error.to_string().contains(directory.path().to_str().unwrap()), "{error}");
    store.close().await.unwrap();
    open(directory.path()).close().await.unwrap();
}

#[tokio::test]
async fn what_is_no_inbox_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("inbox.redb");
    let names_it = |error: &OpenError| assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");

    fs::write(&file, "a letter to grandmother, long enough to be read").unwrap();
    let foreign = error(directory.path());
    assert!(matches!(foreign, OpenError::Foreign { .. }), "{foreign}");
    names_it(&foreign);
    assert!(fs::read(&file).unwrap().starts_with(b"a letter"), "it is as it was");

    fs::write(&file, "").unwrap();
    let empty = error(directory.path());
    assert!(matches!(empty, OpenError::Damaged { .. }), "{empty}");
    names_it(&empty);

    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    let other = error(directory.path());
    assert!(matches!(other, OpenError::Foreign { .. }), "{other}");
    names_it(&other);
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    // Below a file nothing can be made, whoever tries.
    for path in [file.clone(), file.join("below")] {
        let error = error(&path);
        assert!(matches!(error, OpenError::Directory { .. }), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
}

#[test]
fn a_cut_file_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()));
    let file = directory.path().join("inbox.redb");
    let len = fs::metadata(&file).unwrap().len();
    for len in [5, 4096, len / 2] {
        fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(len).unwrap();
        match EmbeddedInbox::open(directory.path(), EmbeddedConfig::default()) {
            Err(error) => assert!(error.to_string().contains(file.to_str().unwrap()), "{error}"),
            Ok((_, opened)) => assert!(opened.was_repaired, "cut to {len}: {opened:?}"),
        }
    }
}

/// A child appends and says what was stored. It is killed while it does; all that it said must be there.
#[test]
fn a_kill_loses_nothing_that_was_reported() {
    for (round, durability) in [Durability::Fsync, Durability::Os, Durability::Fsync].into_iter().enumerate() {
        let directory = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_child_that_is_killed", "--nocapture", "--test-threads=1"])
            .env(CHILD, directory.path())
            .env("WSC_STORE_TEST_OS", (durability == Durability::Os).to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut reported = HashMap::new();
        let mut removed = HashSet::new();
        let enough = [300, 2000, 5000][round];
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for line in lines.by_ref() {
            take_report(&line.unwrap(), &mut reported, &mut removed);
            if reported.len() >= enough {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it still wrote counts as well, but for a line that is cut.
        let rest: Vec<_> = lines.map_while(Result::ok).collect();
        for line in rest.iter().take(rest.len().saturating_sub(1)) {
            take_report(line, &mut reported, &mut removed);
        }
        assert!(reported.len() >= enough, "the child ended early, after {}", reported.len());

        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (store, opened) = EmbeddedInbox::open(directory.path(), EmbeddedConfig::default()).unwrap();
        assert!(!opened.was_closed && opened.dropped == 0, "{opened:?}");
        for (n, position) in &reported {
            let key = EntryKey::new(user(n % 7), Uuid::from_u128(*n));
            match runtime.block_on(store.get(&key)).unwrap() {
                Some(entry) => assert_eq!((entry.position, entry.body), (*position, Bytes::from(n.to_string()))),
                None => assert!(removed.contains(n), "{n} was reported as stored and is gone"),
            }
        }
        let highest = reported.values().max().unwrap();
        let admitted = runtime.block_on(store.append(vec![entry(&user(0), u128::MAX)])).unwrap();
        assert!(matches!(admitted[..], [Admission::Stored(position)] if position > *highest));
        runtime.block_on(store.close()).unwrap();
    }
}

fn take_report(line: &str, reported: &mut HashMap<u128, Position>, removed: &mut HashSet<u128>) {
    let mut words = line.split_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some("stored"), Some(n), Some(position)) => {
            reported.insert(n.parse().unwrap(), Position(position.parse().unwrap()));
        }
        // Said before it is done, so that it counts however far it got.
        (Some("removing"), Some(n), None) => {
            removed.insert(n.parse().unwrap());
        }
        _ => {}
    }
}

/// No test: what [`a_kill_loses_nothing_that_was_reported`] starts and kills.
#[test]
fn the_child_that_is_killed() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let mut config = EmbeddedConfig::default();
    config.rest_after = Duration::from_millis(20);
    config.limits.user_messages = u64::MAX;
    if std::env::var("WSC_STORE_TEST_OS").is_ok_and(|os| os == "true") {
        config.durability = Durability::Os;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = Arc::new(EmbeddedInbox::open(path.as_ref(), config).unwrap().0);
        let mut tasks = JoinSet::new();
        for task in 0..16 {
            let store = Arc::clone(&store);
            tasks.spawn(async move {
                // Bounded, in case nobody kills it.
                for n in (0..100_000).map(|n| n * 16 + task) {
                    let user = user(n % 7);
                    let admitted = store.append(vec![entry(&user, n)]).await.unwrap();
                    let Admission::Stored(position) = admitted[0] else { panic!("{admitted:?}") };
                    say(&format!("stored {n} {}", position.0));
                    if n % 3 == 0 {
                        say(&format!("removing {n}"));
                        store.remove(vec![EntryKey::new(user, Uuid::from_u128(n))]).await.unwrap();
                    }
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

/// Writers, readers and removers at a time, while all moves to the tables: nobody misses an entry, sees one that is
/// removed, or is told twice that it removed one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_a_time_agree() {
    const WRITERS: u128 = 4;
    const EACH: u128 = 300;
    let directory = tempfile::tempdir().unwrap();
    let mut config = EmbeddedConfig::default();
    config.rest_after = Duration::from_millis(5);
    config.limits.user_messages = u64::MAX;
    let store = Arc::new(EmbeddedInbox::open(directory.path(), config.clone()).unwrap().0);
    let bob = user(1);

    let mut tasks = JoinSet::new();
    for writer in 0..WRITERS {
        let (store, bob) = (Arc::clone(&store), bob.clone());
        tasks.spawn(async move {
            for n in 0..EACH {
                let admitted = store.append(vec![entry(&bob, writer * EACH + n)]).await.unwrap();
                assert!(matches!(admitted[..], [Admission::Stored(_)]));
            }
            0
        });
    }
    for _ in 0..2 {
        let (store, bob) = (Arc::clone(&store), bob.clone());
        tasks.spawn(async move {
            // Every second entry of each page; both removers try the same ones.
            let (mut after, mut seen, mut removed) = (None, 0, 0);
            while seen < WRITERS * EACH / 2 {
                let page = store.read(&bob, after, ReadLimit { messages: 17, bytes: u64::MAX }).await.unwrap();
                assert!(page.entries.iter().all(|e| e.body == e.id.as_u128().to_string()));
                after = page.entries.last().map(|e| e.position).or(after);
                let even = page.entries.iter().filter(|e| e.id.as_u128() % 2 == 0);
                let keys: Vec<_> = even.map(|e| EntryKey::new(bob.clone(), e.id)).collect();
                seen += page.entries.iter().filter(|e| e.id.as_u128() % 2 == 1).count() as u128;
                removed += store.remove(keys.clone()).await.unwrap().into_iter().filter(|&there| there).count();
                for key in &keys {
                    assert_eq!(store.get(key).await.unwrap(), None, "it was removed before");
                }
                tokio::task::yield_now().await;
            }
            removed
        });
    }
    let removed: usize = tasks.join_all().await.into_iter().sum();
    let left = store.depth(&bob).await.unwrap().messages;
    assert_eq!(removed as u64 + left, (WRITERS * EACH) as u64, "each was removed once, or is there");
    let all = ReadLimit { messages: usize::MAX, bytes: u64::MAX };
    let before = store.read(&bob, None, all).await.unwrap();
    assert_eq!(before.entries.len() as u64, left);
    assert!(before.entries.is_sorted_by(|a, b| a.position < b.position));
    store.close().await.unwrap();

    let (store, opened) = EmbeddedInbox::open(directory.path(), config).unwrap();
    assert_eq!((opened.messages, opened.was_closed), (left, true));
    assert_eq!(store.read(&bob, None, all).await.unwrap(), before);
    store.close().await.unwrap();
}

/// Many entries of one user come page by page, from the journal and from the tables.
#[tokio::test]
async fn a_deep_inbox_is_read_page_by_page() {
    const DEEP: u128 = 20_000;
    let directory = tempfile::tempdir().unwrap();
    let mut config = EmbeddedConfig::default();
    (config.limits.user_messages, config.journal_entries) = (u64::MAX, 3000);
    let store = EmbeddedInbox::open(directory.path(), config).unwrap().0;
    for first in (0..DEEP).step_by(1000) {
        store.append((first..first + 1000).map(|n| entry(&user(1), n)).collect()).await.unwrap();
    }
    let (mut after, mut next) = (None, 0);
    loop {
        let page = store.read(&user(1), after, ReadLimit::default()).await.unwrap();
        assert!(page.entries.len() <= 128);
        for entry in &page.entries {
            assert_eq!((entry.id.as_u128(), &entry.body), (next, &Bytes::from(next.to_string())));
            next += 1;
        }
        after = page.entries.last().map(|entry| entry.position);
        if !page.has_more {
            break;
        }
    }
    assert_eq!(next, DEEP);
    store.close().await.unwrap();
}
