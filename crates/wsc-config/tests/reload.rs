//! A reload as an operator sees it, for every key: what was written is what runs, and what changed is what is named.
//!
//! Values are drawn key by key from the public table, in the form in which a dump shows them, so that nothing here
//! relies on how the crate itself reads or writes them. A key of a new type needs a generator here.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Value as Json, json};
use wsc_config::{
    ByteSize, ConfigError, Key, KeyPath, Reload, Secret, Settings, Source, Strictness, apply, current_config, diff,
    format_duration, keys, parse_duration, reload,
};

/// The only key that no good settings can change: clusters are not built yet.
const NOT_BUILT: &str = "cluster.enabled";

/// The restart keys of the documented table. `tls.*` wait only where TLS is switched on or off, `cluster.*` always.
const RESTART: [&str; 13] = [
    "listen",
    "node_id",
    "read_buffer_size",
    "write_buffer_size",
    "storage.kind",
    "storage.path",
    "storage.durability",
    "storage.commit_interval",
    "storage.commit_batch",
    "auth.enabled",
    "auth.allow_insecure",
    "http.internal_listen",
    "debug.events",
];

/// One of them is needed for tokens, and no more than one is allowed.
const TOKEN_KEYS: [&str; 5] =
    ["auth.secret_key", "auth.secret_key_file", "auth.public_key", "auth.public_key_file", "auth.jwks_url"];

/// What a file says, by path.
type Written = BTreeMap<&'static str, Json>;

// --- generators

fn value(key: &'static Key) -> BoxedStrategy<Json> {
    if key.path() == NOT_BUILT {
        return Just(json!(false)).boxed();
    }
    let value = match key.kind().as_str() {
        "duration" => in_range(key, |text| nanos(text) / STEP)
            .prop_map(|steps| json!(format_duration(Duration::from_nanos(steps * STEP))))
            .boxed(),
        "size" => in_range(key, size).prop_map(|bytes| json!(ByteSize::new(bytes).to_string())).boxed(),
        "whole number" => {
            let (least, most) = key.range().expect("numbers have ranges");
            let [least, most] = [least, most].map(|bound| bound.parse::<i64>().unwrap());
            prop_oneof![4 => least..=most, 1 => Just(least), 1 => Just(most)].prop_map(Json::from).boxed()
        }
        "number" => {
            let (least, most) = key.range().expect("numbers have ranges");
            // Thousandths: every one of them reads back from its decimal form.
            let [least, most] = [least, most].map(|bound| (bound.parse::<f64>().unwrap() * 1000.0) as u32);
            prop_oneof![4 => least..=most, 1 => Just(least), 1 => Just(most)]
                .prop_map(|thousandths| json!(f64::from(thousandths) / 1000.0))
                .boxed()
        }
        "true or false" => any::<bool>().prop_map(Json::from).boxed(),
        "text" | "path" => text(key.path()),
        "address" => (1..=u16::MAX).prop_map(|port| json!(format!("127.0.0.1:{port}"))).boxed(),
        "secret text" => secret().prop_map(Json::from).boxed(),
        "list of text" => list(key.path()),
        "list of IP address or range" => some_of(&["10.0.0.0/8", "192.168.0.7", "::1", "fd00::/8", "0.0.0.0/0"]),
        "list of secret text" => proptest::collection::vec(secret(), 0..3).prop_map(Json::from).boxed(),
        "map of names to secret text" => proptest::collection::btree_map("[A-Z][A-Za-z-]{0,9}", secret(), 0..3)
            .prop_map(|map| map.into_iter().collect())
            .boxed(),
        kind => match kind.strip_prefix("one of ") {
            Some(words) => {
                let words: Vec<_> = words.split(", ").map(str::to_owned).collect();
                select(words).prop_map(Json::from).boxed()
            }
            None => panic!("no generator for {kind}, the type of {}", key.path()),
        },
    };
    let optional = shown(&Settings::default(), key.path()).is_null();
    if optional { prop_oneof![Just(Json::Null), value].boxed() } else { value }
}

/// Durations are drawn in microseconds, the shortest that somebody may write.
const STEP: u64 = 1_000;

fn in_range(key: &Key, read: fn(&str) -> u64) -> impl Strategy<Value = u64> + use<> {
    let (least, most) = key.range().expect("durations and sizes have ranges");
    let (least, most) = (read(least), read(most));
    let near = least.saturating_add(1 << 22).min(most);
    prop_oneof![3 => least..=most, 3 => least..=near, 1 => Just(least), 1 => Just(most)]
}

fn text(path: &str) -> BoxedStrategy<Json> {
    let text = match path {
        "callbacks.webhook_url" => "(https?://[a-z]{1,9}(\\.example|:[1-9][0-9]{0,3})/[a-z?=&#]{0,9})?",
        "auth.jwks_url" => "https?://[a-z]{1,9}(\\.example|:[1-9][0-9]{0,3})/[a-z?=&#]{0,9}",
        "node_id" => "[a-zA-Z0-9 ü:#-]{1,20}",
        "storage.path" => "[a-z./ #'\"\\\\-]{1,20}",
        // An empty text stands for "not set" where a key can be that.
        _ => "[^\\p{C}]{1,20}|[0-9]{1,5}|true|null|~|- x|a: b # c",
    };
    text.prop_map(Json::from).boxed()
}

fn list(path: &str) -> BoxedStrategy<Json> {
    match path {
        "retryable_errors" => some_of(&["queue_full", "timeout", "conn_error", "temporary"]),
        "non_retryable_errors" => some_of(&["user_offline", "rejected", "unknown"]),
        "callbacks.event_filters" => some_of(&["client.*", "*", "message.sent", "hub.started"]),
        "auth.anonymous_permissions" => some_of(&["join:room", "join:room:a-*", "send:message:@user", "read:message"]),
        "auth.allowed_origins" => some_of(&["https://app.example.com", "http://localhost:3000"]),
        "http.allowed_hosts" => some_of(&["hub.example.com", "hub", "hub:8080"]),
        "cluster.nats.urls" => some_of(&["nats://one.example:4222", "tls://two.example"]),
        "cluster.redis.addrs" => some_of(&["one.example:6379", "[::1]:6379"]),
        path => panic!("no generator for {path}, a list of text"),
    }
}

fn some_of(items: &'static [&'static str]) -> BoxedStrategy<Json> {
    subsequence(items, 0..=items.len()).prop_shuffle().prop_map(Json::from).boxed()
}

/// Long enough for every key that is secret.
fn secret() -> impl Strategy<Value = String> {
    "[ -~ü]{32,48}".prop_filter("a beginning with a meaning", |text| !text.starts_with("whsec_"))
}

fn written() -> impl Strategy<Value = Written> {
    let values: Vec<_> = keys().iter().map(|key| value(key).prop_map(|value| (key.path(), value))).collect();
    (values, any::<prop::sample::Index>()).prop_map(|(values, choice)| {
        let mut written = values.into_iter().collect();
        reconcile(&mut written, choice);
        written
    })
}

/// Changes as little as it takes for the keys to go together.
fn reconcile(written: &mut Written, choice: prop::sample::Index) {
    let present = |written: &Written, path: &str| !matches!(&written[path], Json::Null);
    let on = |written: &Written, path: &str| written[path] == json!(true);
    for (small, large, read) in [
        ("base_delay", "max_delay", nanos as fn(&str) -> u64),
        ("queue.max_bytes", "queue.total_bytes", size),
        ("storage.inbox_max_bytes", "storage.max_bytes", size),
    ] {
        let [least, found] = [small, large].map(|path| read(written[path].as_str().unwrap()));
        if found < least {
            let least = written[small].clone();
            written.insert(large, least);
        }
    }
    let [delay, deadline] = ["drain.delay", "drain.deadline"].map(|path| nanos(written[path].as_str().unwrap()));
    if deadline <= delay {
        written.insert("drain.deadline", json!(format_duration(Duration::from_nanos(delay + STEP))));
    }
    if written["queue.policy"] == "spill" && written["storage.kind"] == "none" {
        written.insert("storage.kind", json!("memory"));
    }
    if on(written, "callbacks.enable_webhooks") && written["callbacks.webhook_url"] == "" {
        written.insert("callbacks.webhook_url", json!("https://hook.example/"));
    }
    for (one, other) in [("tls.cert", "tls.key"), ("cluster.nats.username", "cluster.nats.password")] {
        if !present(written, one) || !present(written, other) {
            written.insert(one, Json::Null);
            written.insert(other, Json::Null);
        }
    }
    if present(written, "cluster.nats.username") {
        written.insert("cluster.nats.token", Json::Null);
    }
    if written["cluster.redis.min_conn"].as_u64() > written["cluster.redis.pool_size"].as_u64() {
        let most = written["cluster.redis.min_conn"].clone();
        written.insert("cluster.redis.pool_size", most);
    }
    if written["http.internal_listen"] == written["listen"] {
        written.insert("http.internal_listen", Json::Null);
    }
    let set: Vec<_> = TOKEN_KEYS.into_iter().filter(|path| present(written, path)).collect();
    match set.len() {
        0 => {
            written.insert("auth.enabled", json!(false));
        }
        count => {
            let kept = choice.index(count);
            for (at, path) in set.into_iter().enumerate() {
                if at != kept {
                    written.insert(path, Json::Null);
                }
            }
        }
    }
}

fn nanos(text: &str) -> u64 {
    u64::try_from(parse_duration(text).unwrap().as_nanos()).unwrap()
}

fn size(text: &str) -> u64 {
    text.parse::<ByteSize>().unwrap().as_u64()
}

// --- the world around a reload

/// Writes a file of these keys, loads it as a reload does.
fn try_reload(written: &Written) -> Result<Settings, ConfigError> {
    let mut section = json!({});
    for (path, value) in written {
        let place = path.split('.').fold(&mut section, |map, name| &mut map[name]);
        *place = value.clone();
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("wsc.json");
    std::fs::write(&path, json!({ "wsc": section }).to_string()).unwrap();
    reload(&Source::File(path), None, Strictness::Strict, [])
}

fn reloaded(written: &Written) -> Settings {
    try_reload(written).unwrap_or_else(|error| panic!("{error}\n{written:?}"))
}

fn shown(settings: &Settings, path: &str) -> Json {
    at(&current_config(settings), path).clone()
}

fn at<'a>(dump: &'a Json, path: &str) -> &'a Json {
    path.split('.').fold(dump, |map, name| &map[name])
}

/// What a dump shows of a written value.
fn masked(key: &Key, value: &Json) -> Json {
    match value {
        Json::String(text) if key.is_secret() => json!(format!("*** {}", Secret::new(text.as_str()).fingerprint())),
        Json::Array(items) => items.iter().map(|item| masked(key, item)).collect(),
        Json::Object(map) => map.iter().map(|(name, item)| (name.clone(), masked(key, item))).collect(),
        value => value.clone(),
    }
}

fn names(paths: &[KeyPath]) -> Vec<&str> {
    paths.iter().map(|path| path.as_str()).collect()
}

/// The two lists that the documented table promises for a change from one file to another.
fn promised(old: &Written, new: &Written) -> (Vec<&'static str>, Vec<&'static str>) {
    let changed = keys().iter().map(Key::path).filter(|path| old[path] != new[path]);
    changed.partition(|path| {
        let tls = path.starts_with("tls.") && (old[path].is_null() || new[path].is_null());
        !(tls || RESTART.contains(path) || path.starts_with("cluster."))
    })
}

// --- properties

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_dump_gives_back_what_was_written(written in written()) {
        let dump = current_config(&reloaded(&written));
        for key in keys() {
            prop_assert_eq!(at(&dump, key.path()), &masked(key, &written[key.path()]), "{}", key.path());
        }
    }

    /// Any keys change together: all live ones run, and no other does.
    #[test]
    fn exactly_the_changed_keys_are_named_and_the_live_ones_run(
        old in written(),
        new in written(),
        choice: prop::sample::Index,
        kept in proptest::collection::vec(any::<bool>(), keys().len()),
    ) {
        let mut mixed = new;
        for (key, kept) in keys().iter().zip(kept) {
            if kept {
                mixed.insert(key.path(), old[key.path()].clone());
            }
        }
        reconcile(&mut mixed, choice);
        let (running, loaded) = (reloaded(&old), reloaded(&mixed));
        let (live, restart) = promised(&old, &mixed);
        let change = diff(&running, &loaded);
        prop_assert_eq!(names(&change.live), live.clone());
        prop_assert_eq!(names(&change.restart), restart);

        match apply(&running, &loaded) {
            Ok(reloaded) => {
                prop_assert_eq!(&reloaded.change, &change);
                let dump = current_config(&reloaded.settings);
                for key in keys() {
                    let now = if live.contains(&key.path()) { &mixed } else { &old };
                    prop_assert_eq!(at(&dump, key.path()), &masked(key, &now[key.path()]), "{}", key.path());
                }
            }
            // A live key may need one that waits.
            Err(problems) => for problem in &problems {
                let expected = match problem.path().as_str() {
                    "wsc.queue.policy" => mixed["queue.policy"] == "spill" && old["storage.kind"] == "none",
                    "wsc.auth.enabled" => {
                        old["auth.enabled"] == true && TOKEN_KEYS.iter().all(|path| mixed[path].is_null())
                    }
                    _ => false,
                };
                prop_assert!(expected, "{}", problem);
                prop_assert!(problem.message().ends_with("waits for a restart)"), "{}", problem);
            },
        }
    }
}

/// Each live key alone, on top of the least that some keys need.
#[test]
fn every_live_key_alone_is_seen() {
    let base = Written::from([("callbacks.webhook_url", json!("https://hook.example/"))]);
    let running = reloaded(&base);
    for key in keys().iter().filter(|key| key.reload() == Reload::Live) {
        let mut runner = TestRunner::deterministic();
        let strategy = value(key);
        let loaded = (0..100).find_map(|_| {
            let drawn = strategy.new_tree(&mut runner).unwrap().current();
            let mut written = base.clone();
            written.insert(key.path(), drawn.clone());
            let loaded = try_reload(&written).ok()?;
            (loaded != running).then_some((loaded, drawn))
        });
        let (loaded, drawn) = loaded.unwrap_or_else(|| panic!("{} cannot be changed", key.path()));
        let change = diff(&running, &loaded);
        assert_eq!((names(&change.live), names(&change.restart)), (vec![key.path()], vec![]));
        assert_eq!(shown(&apply(&running, &loaded).unwrap().settings, key.path()), masked(key, &drawn));
    }
}

#[test]
fn every_key_is_drawn() {
    let mut runner = TestRunner::deterministic();
    let strategy = written();
    let drawn: Vec<_> = (0..100).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect();
    for key in keys().iter().filter(|key| key.path() != NOT_BUILT) {
        let values: std::collections::BTreeSet<_> =
            drawn.iter().map(|written| written[key.path()].to_string()).collect();
        assert!(values.len() > 1, "{} is never changed", key.path());
    }
}
