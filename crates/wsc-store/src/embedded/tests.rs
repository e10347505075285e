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
    Read { user: u8, messages: usize, bytes: u64 },
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

fn runtime() -> tokio::runtime::Runtime {
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
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// The store does what the one in memory does, whatever moves to the tables meanwhile, and whatever happens to it.
    #[test]
    fn it_behaves_like_the_one_in_memory(rests in any::<bool>(), acts in proptest::collection::vec(act(), 0..40)) {
        runtime().block_on(run(rests, acts))?;
    }
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

/// Waits until a store works whose disk works again.
async fn recover(store: &EmbeddedInbox) {
    let probe = NewEntry::new(probe().user, probe().id, Bytes::new());
    while store.append(vec![probe.clone()]).await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    store.remove(vec![probe.key]).await.unwrap();
}

fn probe() -> EntryKey {
    EntryKey::new(Id::new("probe").unwrap(), Uuid::nil())
}

fn resting() -> EmbeddedConfig {
    EmbeddedConfig { rest_after: Duration::ZERO, ..EmbeddedConfig::default() }
}
