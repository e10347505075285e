//! Checks of settings that are typed already: ranges again, and what depends on several keys.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use secrecy::ExposeSecret;

use crate::error::{Problem, ProblemKind, Problems};
use crate::load::wrong_key;
use crate::schema::keys;
use crate::settings::Settings;
use crate::values::{BusType, QueuePolicy, RedisMode, StorageKind};

/// Checks settings that a program built itself, as whole as loading does.
///
/// It looks at values only: whether named files exist and ports are free shows at the start.
///
/// # Errors
///
/// Everything that is wrong with them.
pub fn check(settings: &Settings) -> Result<(), Problems> {
    let mut problems = Vec::new();
    let mut failed = BTreeSet::new();
    for key in keys() {
        for wrong in (key.check)(settings, key.range) {
            failed.insert(key.path);
            problems.push(wrong_key(key, wrong));
        }
    }
    problems.extend(conflicts(settings, &failed));
    Problems::none_of(problems)
}

/// Shortest HMAC key that is not weaker than the hash that it goes into.
const SHORTEST_SECRET_KEY: usize = 32;

/// Checks what depends on several keys, and what this version does not have yet. A rule that needs a
/// key in `failed` is skipped: its value is wrong in itself, and a second message would mislead.
pub(crate) fn conflicts(settings: &Settings, failed: &BTreeSet<&'static str>) -> Vec<Problem> {
    let mut rules = Rules { failed, problems: not_built_yet(settings) };
    delivery(settings, &mut rules);
    exposure(settings, &mut rules);
    auth(settings, &mut rules);
    cluster(settings, &mut rules);
    rules.problems
}

struct Rules<'a> {
    failed: &'a BTreeSet<&'static str>,
    problems: Vec<Problem>,
}

impl Rules<'_> {
    /// Reports a problem of the first key unless `good`, or unless one of the keys is wrong anyway.
    fn expect(&mut self, good: bool, keys: &[&str], message: impl FnOnce() -> String) {
        if good || keys.iter().any(|key| self.failed.contains(key)) {
            return;
        }
        self.problems.push(Problem::new(keys[0], ProblemKind::Conflict, message()));
    }
}

fn delivery(settings: &Settings, rules: &mut Rules<'_>) {
    rules.expect(settings.base_delay <= settings.max_delay, &["base_delay", "max_delay"], || {
        "is longer than max_delay".to_owned()
    });
    rules.expect(
        settings.queue.max_bytes <= settings.queue.total_bytes,
        &["queue.max_bytes", "queue.total_bytes"],
        || "is larger than queue.total_bytes, which is for all connections together".to_owned(),
    );
    rules.expect(
        settings.storage.inbox_max_bytes <= settings.storage.max_bytes,
        &["storage.inbox_max_bytes", "storage.max_bytes"],
        || "is larger than storage.max_bytes, which is for all inboxes together".to_owned(),
    );
    rules.expect(
        settings.queue.policy != QueuePolicy::Spill || settings.storage.kind != StorageKind::None,
        &["queue.policy", "storage.kind"],
        || "\"spill\" needs the inbox: storage.kind is \"none\"".to_owned(),
    );
    rules.expect(settings.drain.delay < settings.drain.deadline, &["drain.delay", "drain.deadline"], || {
        "is not shorter than drain.deadline, no connection would be drained".to_owned()
    });
    rules.expect(
        !settings.callbacks.enable_webhooks || !settings.callbacks.webhook_url.is_empty(),
        &["callbacks.webhook_url", "callbacks.enable_webhooks"],
        || "is needed while callbacks.enable_webhooks is true".to_owned(),
    );
}

fn exposure(settings: &Settings, rules: &mut Rules<'_>) {
    let tls = &settings.tls;
    rules.expect(tls.key.is_none() || tls.cert.is_some(), &["tls.cert", "tls.key"], || {
        "is missing, tls.key is set: both or none".to_owned()
    });
    rules.expect(tls.cert.is_none() || tls.key.is_some(), &["tls.key", "tls.cert"], || {
        "is missing, tls.cert is set: both or none".to_owned()
    });

    let internal = settings.http.internal_listen;
    let guarded = settings.auth.enabled || settings.auth.allow_insecure;
    let listeners = [("listen", Some(settings.listen)), ("http.internal_listen", internal)];
    for (key, address) in listeners {
        let Some(address) = address else { continue };
        rules.expect(
            guarded || address.ip().to_canonical().is_loopback(),
            &[key, "auth.enabled", "auth.allow_insecure"],
            || {
                format!(
                    "{address} can be reached from other machines while authentication is off; \
                     listen on {}, or switch auth.enabled on, or write auth.allow_insecure: true",
                    loopback_like(address)
                )
            },
        );
    }
    rules.expect(
        internal != Some(settings.listen) || settings.listen.port() == 0,
        &["http.internal_listen", "listen"],
        || "is the same address as listen".to_owned(),
    );
}

fn loopback_like(address: SocketAddr) -> SocketAddr {
    let host = if address.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() };
    SocketAddr::new(host, address.port())
}

fn auth(settings: &Settings, rules: &mut Rules<'_>) {
    let auth = &settings.auth;
    let sources = [
        ("auth.secret_key", auth.secret_key.is_some()),
        ("auth.secret_key_file", auth.secret_key_file.is_some()),
        ("auth.public_key", auth.public_key.is_some()),
        ("auth.public_key_file", auth.public_key_file.is_some()),
        ("auth.jwks_url", auth.jwks_url.is_some()),
    ];
    let names = sources.map(|(name, _)| name);
    let set: Vec<_> = sources.iter().filter(|(_, set)| *set).map(|(name, _)| *name).collect();
    if set.is_empty() {
        let mut keys = vec!["auth.enabled"];
        keys.extend(names);
        rules.expect(!auth.enabled, &keys, || {
            format!("needs a key to check tokens with: set one of {}", names.join(", "))
        });
    }
    if let [first, others @ ..] = set.as_slice() {
        rules.expect(others.is_empty(), &[*first], || {
            format!(
                "{} set too, only one of them can be used",
                match others {
                    [other] => format!("{other} is"),
                    _ => format!("{} are", others.join(", ")),
                }
            )
        });
    }
    if let Some(secret) = &auth.secret_key {
        let length = secret.expose_secret().len();
        rules.expect(!auth.enabled || length >= SHORTEST_SECRET_KEY, &["auth.secret_key", "auth.enabled"], || {
            format!("has {length} bytes, at least {SHORTEST_SECRET_KEY} are needed")
        });
    }
}

fn cluster(settings: &Settings, rules: &mut Rules<'_>) {
    let cluster = &settings.cluster;
    rules.expect(
        !cluster.enabled || cluster.bus_type != BusType::Noop,
        &["cluster.bus_type", "cluster.enabled"],
        || "\"noop\" links no nodes, choose nats or redis while cluster.enabled is true".to_owned(),
    );
    let nats = &cluster.nats;
    rules.expect(
        nats.username.is_some() == nats.password.is_some(),
        &["cluster.nats.username", "cluster.nats.password"],
        || "goes together with cluster.nats.password: both or none".to_owned(),
    );
    rules.expect(
        nats.token.is_none() || nats.username.is_none(),
        &["cluster.nats.token", "cluster.nats.username"],
        || "cannot be used together with cluster.nats.username".to_owned(),
    );
    let redis = &cluster.redis;
    rules.expect(
        redis.mode != RedisMode::Sentinel || !redis.master_name.is_empty(),
        &["cluster.redis.master_name", "cluster.redis.mode"],
        || "is needed for cluster.redis.mode: sentinel".to_owned(),
    );
    rules.expect(redis.min_conn <= redis.pool_size, &["cluster.redis.min_conn", "cluster.redis.pool_size"], || {
        "is larger than cluster.redis.pool_size".to_owned()
    });
    let used = |bus| cluster.enabled && cluster.bus_type == bus;
    rules.expect(!used(BusType::Nats) || !nats.urls.is_empty(), &["cluster.nats.urls", "cluster.bus_type"], || {
        "is empty, bus_type: nats needs at least one server".to_owned()
    });
    rules.expect(
        !used(BusType::Redis) || !redis.addrs.is_empty(),
        &["cluster.redis.addrs", "cluster.bus_type"],
        || "is empty, bus_type: redis needs at least one server".to_owned(),
    );
}

/// Refuses what the schema knows and this version cannot do, rather than to accept it and do nothing.
/// What is built takes its line out here; everything else about it is in place.
fn not_built_yet(settings: &Settings) -> Vec<Problem> {
    let lines = [(
        settings.cluster.enabled,
        "cluster.enabled",
        "cannot be switched on: clustering is not built yet in this version",
    )];
    lines
        .into_iter()
        .filter(|(used, _, _)| *used)
        .map(|(_, key, message)| Problem::new(key, ProblemKind::NotBuilt, message))
        .collect()
}
