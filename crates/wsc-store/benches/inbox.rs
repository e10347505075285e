//! What the embedded inbox costs, beside raw inserts into the database that it is built on.
//!
//! `cargo bench -p wsc-store --features embedded`. Medians of three runs, each in a directory of its own under the
//! system's temporary one, or under `BENCH_DIR`: name a directory on the disk that matters. With an argument, only the
//! measurements whose name contains it are made.

#![expect(clippy::print_stdout, reason = "it is a program that prints a table")]
#![expect(clippy::unwrap_used, reason = "a measurement that fails ends the program")]

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use redb::{Builder, TableDefinition};
use tokio::{runtime::Runtime, task::JoinSet};
use uuid::Uuid;
use wsc_protocol::Id;
use wsc_store::{EmbeddedConfig, EmbeddedInbox, EntryKey, InboxLimits, InboxStore, NewEntry, ReadLimit};

const RUN: Duration = Duration::from_secs(4);
const USERS: u64 = 1000;
const BODY: usize = 200;
const DEEP: u128 = 100_000;

fn main() {
    // Cargo adds an argument of its own.
    let only = std::env::args().skip(1).find(|arg| !arg.starts_with("--")).unwrap_or_default();
    let runs = [
        ("raw inserts, batches of 100", raw as fn(&Path) -> f64),
        ("raw inserts, batches of 1000", raw_1000),
        ("append, one call each", append_single),
        ("append, calls of 100", append_hundreds),
        ("append and remove", append_and_remove),
        ("append, rest, remove", append_rest_and_remove),
        ("read 100,000 young in pages of 128", replay_young),
        ("read 100,000 resting in pages of 128", replay_resting),
        ("open with 100,000 young (ms)", open_young),
        ("open with 100,000 resting (ms)", open_resting),
    ];
    let mut raw_rate = None;
    for (name, run) in runs {
        if !name.contains(&only) && !name.starts_with("raw inserts, batches of 100") {
            continue;
        }
        let mut results: Vec<_> = (0..3)
            .map(|_| {
                let directory = Directory::new();
                run(&directory.0)
            })
            .collect();
        results.sort_by(f64::total_cmp);
        let median = results[1];
        let raw = *raw_rate.get_or_insert(median);
        let ratio = if name.contains("(ms)") { String::new() } else { format!("{:.2} x raw", median / raw) };
        println!("{name:40} {median:>12.0}   {ratio:12} {results:.0?}");
    }
}

/// Messages per second.
fn rate(messages: u64, started: Instant) -> f64 {
    messages as f64 / started.elapsed().as_secs_f64()
}

fn raw(directory: &Path) -> f64 {
    raw_inserts(directory, 100)
}

fn raw_1000(directory: &Path) -> f64 {
    raw_inserts(directory, 1000)
}

fn raw_inserts(directory: &Path, batch: u64) -> f64 {
    const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("raw");
    let database = Builder::new().create(directory.join("raw.redb")).unwrap();
    let started = Instant::now();
    let mut n = 0_u64;
    while started.elapsed() < RUN {
        let mut txn = database.begin_write().unwrap();
        txn.set_quick_repair(true);
        {
            let mut table = txn.open_table(TABLE).unwrap();
            for _ in 0..batch {
                let mut key = [0; 16];
                key[..8].copy_from_slice(&(n % USERS).to_be_bytes());
                key[8..].copy_from_slice(&n.to_be_bytes());
                table.insert(&key[..], &[7; BODY][..]).unwrap();
                n += 1;
            }
        }
        txn.commit().unwrap();
    }
    rate(n, started)
}

fn append_single(directory: &Path) -> f64 {
    // Many callers at a time, as a hub has.
    in_flight(directory, EmbeddedConfig::default(), 16, 1, false)
}

fn append_hundreds(directory: &Path) -> f64 {
    in_flight(directory, EmbeddedConfig::default(), 1, 100, false)
}

fn append_and_remove(directory: &Path) -> f64 {
    in_flight(directory, EmbeddedConfig::default(), 128, 1, true)
}

/// Everything goes through the tables: what acknowledgements that come late cost.
fn append_rest_and_remove(directory: &Path) -> f64 {
    let mut config = EmbeddedConfig::default();
    config.rest_after = Duration::ZERO;
    in_flight(directory, config, 128, 1, true)
}

/// Each user has so many calls under way at any moment. They append entries and, where told to, remove them once
/// that is answered.
fn in_flight(directory: &Path, mut config: EmbeddedConfig, each: usize, batch: u128, removes: bool) -> f64 {
    let runtime = Runtime::new().unwrap();
    config.limits = unlimited();
    let store = Arc::new(EmbeddedInbox::open(directory, config).unwrap().0);
    let (ended, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let messages = runtime.block_on(async {
        let mut tasks = JoinSet::new();
        for user in 0..USERS {
            let user = Id::new(&format!("user-{user}")).unwrap();
            for _ in 0..each {
                let (store, user, ended, count) =
                    (Arc::clone(&store), user.clone(), Arc::clone(&ended), Arc::clone(&count));
                tasks.spawn(async move {
                    while !ended.load(Ordering::Relaxed) {
                        let ids: Vec<_> = (0..batch).map(|_| Uuid::now_v7()).collect();
                        let entries = ids.iter().map(|id| entry(&user, *id)).collect();
                        store.append(entries).await.unwrap();
                        if removes {
                            let keys = ids.iter().map(|id| EntryKey::new(user.clone(), *id)).collect();
                            assert!(store.remove(keys).await.unwrap().into_iter().all(|removed| removed));
                        }
                        count.fetch_add(batch as u64, Ordering::Relaxed);
                    }
                });
            }
        }
        tokio::time::sleep(RUN).await;
        ended.store(true, Ordering::Relaxed);
        let messages = count.load(Ordering::Relaxed);
        tasks.join_all().await;
        messages
    });
    let rate = messages as f64 / RUN.as_secs_f64();
    runtime.block_on(store.close()).unwrap();
    rate
}

fn replay_young(directory: &Path) -> f64 {
    let mut config = EmbeddedConfig::default();
    config.rest_after = Duration::from_secs(600);
    replay(directory, config)
}

fn replay_resting(directory: &Path) -> f64 {
    let mut config = EmbeddedConfig::default();
    config.rest_after = Duration::ZERO;
    replay(directory, config)
}

fn replay(directory: &Path, config: EmbeddedConfig) -> f64 {
    let runtime = Runtime::new().unwrap();
    fill(&runtime, directory, config.clone());
    let store = EmbeddedInbox::open(directory, config).unwrap().0;
    let user = Id::new("deep").unwrap();
    let started = Instant::now();
    let (mut read, mut after) = (0, None);
    runtime.block_on(async {
        loop {
            let page = store.read(&user, after, ReadLimit::default()).await.unwrap();
            read += page.entries.len() as u64;
            after = page.entries.last().map(|entry| entry.position);
            if !page.has_more {
                break;
            }
        }
    });
    assert_eq!(u128::from(read), DEEP);
    let rate = rate(read, started);
    runtime.block_on(store.close()).unwrap();
    rate
}

fn open_young(directory: &Path) -> f64 {
    let mut config = EmbeddedConfig::default();
    config.rest_after = Duration::from_secs(600);
    open(directory, config)
}

fn open_resting(directory: &Path) -> f64 {
    let mut config = EmbeddedConfig::default();
    config.rest_after = Duration::ZERO;
    open(directory, config)
}

fn open(directory: &Path, config: EmbeddedConfig) -> f64 {
    let runtime = Runtime::new().unwrap();
    fill(&runtime, directory, config.clone());
    let (store, opened) = EmbeddedInbox::open(directory, config).unwrap();
    assert_eq!(u128::from(opened.messages), DEEP);
    runtime.block_on(store.close()).unwrap();
    opened.took.as_secs_f64() * 1000.0
}

/// Stores 100,000 entries for one user, and closes.
fn fill(runtime: &Runtime, directory: &Path, mut config: EmbeddedConfig) {
    config.limits = unlimited();
    let store = EmbeddedInbox::open(directory, config).unwrap().0;
    let user = Id::new("deep").unwrap();
    runtime.block_on(async {
        for _ in 0..DEEP / 1000 {
            store.append((0..1000).map(|_| entry(&user, Uuid::now_v7())).collect()).await.unwrap();
        }
        store.close().await.unwrap();
    });
}

fn entry(user: &Id, id: Uuid) -> NewEntry {
    NewEntry::new(user.clone(), id, Bytes::from_static(&[7; BODY])).with_expires_at(4_000_000_000_000)
}

fn unlimited() -> InboxLimits {
    let mut limits = InboxLimits::default();
    (limits.user_messages, limits.user_bytes, limits.total_bytes) = (u64::MAX, u64::MAX, u64::MAX);
    limits
}

/// A directory for one run.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let parent = std::env::var_os("BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let path = parent.join(format!("wsc-store-bench-{}", Uuid::now_v7()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
