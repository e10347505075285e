//! What an operator sees of running settings: what a reload changes, and a dump without secrets.

use std::time::Duration;

use serde_json::json;
use wsc_config::{
    ByteSize, KeyPath, LogLevel, QueuePolicy, Reload, Secret, Settings, StorageKind, apply, current_config, diff, keys,
    watched_files,
};

fn names(paths: &[KeyPath]) -> Vec<&str> {
    paths.iter().map(|path| path.as_str()).collect()
}

#[test]
fn equal_settings_change_nothing() {
    assert!(diff(&Settings::default(), &Settings::default()).is_empty());
}

#[test]
fn changed_keys_are_live_or_wait_for_a_restart() {
    let old = Settings::default();
    let mut new = old.clone();
    new.queue.policy = QueuePolicy::DropOldest;
    new.ack_timeout = Duration::from_secs(9);
    new.log.level = LogLevel::Debug;
    new.read_buffer_size = ByteSize::new(8192);
    new.listen.set_port(1);
    new.auth.secret_key = Some(Secret::new("x".repeat(32)));
    let change = diff(&old, &new);
    assert_eq!(names(&change.live), ["ack_timeout", "queue.policy", "auth.secret_key", "log.level"]);
    assert_eq!(names(&change.restart), ["listen", "read_buffer_size"]);
}

#[test]
fn tls_files_are_live_but_tls_itself_is_not() {
    let off = Settings::default();
    let mut on = off.clone();
    on.tls.cert = Some("a.pem".into());
    on.tls.key = Some("b.pem".into());
    assert_eq!(names(&diff(&off, &on).restart), ["tls.cert", "tls.key"]);
    assert_eq!(names(&diff(&on, &off).restart), ["tls.cert", "tls.key"]);
    let mut other = on.clone();
    other.tls.cert = Some("c.pem".into());
    assert_eq!(names(&diff(&on, &other).live), ["tls.cert"]);
}

#[test]
fn what_waits_for_a_restart_keeps_its_running_value() {
    let running = Settings::default();
    let mut new = running.clone();
    new.listen.set_port(1);
    new.ack_timeout = Duration::from_secs(9);
    new.tls.cert = Some("a.pem".into());
    new.tls.key = Some("b.pem".into());
    let reloaded = apply(&running, &new).unwrap();
    assert_eq!(names(&reloaded.change.live), ["ack_timeout"]);
    assert_eq!(names(&reloaded.change.restart), ["listen", "tls.cert", "tls.key"]);
    let mut expected = running.clone();
    expected.ack_timeout = Duration::from_secs(9);
    assert_eq!(reloaded.settings, expected);

    let again = apply(&reloaded.settings, &new).unwrap();
    assert!(again.change.live.is_empty());
    assert_eq!(again.change.restart, reloaded.change.restart, "it waits until the restart");
    let back = apply(&reloaded.settings, &expected).unwrap();
    assert!(back.change.is_empty(), "or until it is taken back");
}

#[test]
fn a_live_key_cannot_run_ahead_of_what_it_needs() {
    let mut running = Settings::default();
    running.storage.kind = StorageKind::None;
    let mut new = running.clone();
    new.storage.kind = StorageKind::Memory;
    new.queue.policy = QueuePolicy::Spill;
    assert_eq!(
        apply(&running, &new).unwrap_err().to_string(),
        "wsc.queue.policy: \"spill\" needs the inbox: storage.kind is \"none\" (as it runs: a change of storage.kind \
         waits for a restart)"
    );
    assert!(apply(&new, &new).unwrap().change.is_empty());
}

#[test]
fn files_that_settings_name_are_listed() {
    let mut settings = Settings::default();
    assert!(watched_files(&settings).is_empty());
    settings.auth.secret_key_file = Some("secret".into());
    settings.auth.public_key_file = Some("public.pem".into());
    settings.tls.cert = Some("cert.pem".into());
    settings.tls.key = Some("key.pem".into());
    let mut files = watched_files(&settings);
    files.sort();
    assert_eq!(files, ["cert.pem", "key.pem", "public.pem", "secret"].map(std::path::PathBuf::from));
}

#[test]
fn restart_keys_are_the_documented_ones() {
    let restart: Vec<_> = keys()
        .iter()
        .filter(|key| key.reload() != Reload::Live && !key.path().starts_with("cluster."))
        .map(|key| key.path())
        .collect();
    assert_eq!(
        restart,
        [
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
            "tls.cert",
            "tls.key",
            "http.internal_listen",
            "debug.events",
        ]
    );
}

#[test]
fn the_dump_is_in_the_users_form() {
    let dump = current_config(&Settings::default());
    assert_eq!(dump["ping_interval"], json!("25s"));
    assert_eq!(dump["max_message_size"], json!("64KiB"));
    assert_eq!(dump["storage"]["message_ttl"], json!("7d"));
    assert_eq!(dump["backoff_factor"], json!(2.0));
    assert_eq!(dump["max_connections"], json!(100_000));
    assert_eq!(dump["auth"]["secret_key"], json!(null));
    assert_eq!(dump["cluster"]["nats"]["urls"], json!(["nats://localhost:4222"]));
    assert_eq!(dump["tls"], json!({"cert": null, "key": null}));
}

#[test]
fn the_dump_masks_secrets_but_lets_them_be_compared() {
    let mut settings = Settings::default();
    settings.auth.secret_key = Some(Secret::new("hunter2"));
    settings.http.api_keys = vec![Secret::new("hunter2"), Secret::new("hunter3")];
    settings.callbacks.headers.insert("Authorization".to_owned(), Secret::new("hunter2"));
    settings.callbacks.signing_secrets = vec![Secret::new("hunter2")];
    settings.cluster.nats.password = Some(Secret::new("hunter2"));
    settings.cluster.redis.password = Some(Secret::new("hunter2"));
    let dump = current_config(&settings);
    assert!(!dump.to_string().contains("hunter"));
    assert!(!format!("{settings:?}").contains("hunter"));

    let shown = format!("*** {}", Secret::new("hunter2").fingerprint());
    assert_eq!(dump["auth"]["secret_key"], json!(shown));
    assert_eq!(dump["http"]["api_keys"][0], json!(shown));
    assert_ne!(dump["http"]["api_keys"][1], json!(shown));
    assert_eq!(dump["callbacks"]["headers"]["Authorization"], json!(shown));
    assert_eq!(dump["callbacks"]["signing_secrets"], json!([shown]));
    assert_eq!(dump["cluster"]["nats"]["password"], json!(shown));
    assert_eq!(dump["cluster"]["redis"]["password"], json!(shown));
}

#[test]
fn defaults_are_those_of_the_contract() {
    let table = [
        ("listen", "127.0.0.1:8080"),
        ("max_connections", "100000"),
        ("max_message_size", "64KiB"),
        ("read_buffer_size", "4KiB"),
        ("write_buffer_size", "4KiB"),
        ("handshake_timeout", "10s"),
        ("write_timeout", "10s"),
        ("ping_interval", "25s"),
        ("pong_timeout", "10s"),
        ("presence_debounce", "3s"),
        ("max_retries", "3"),
        ("base_delay", "100ms"),
        ("max_delay", "5s"),
        ("backoff_factor", "2.0"),
        ("jitter", "0.1"),
        ("retry_budget.ratio", "0.2"),
        ("retry_budget.min_per_second", "10"),
        ("ack_timeout", "5s"),
        ("ack_max_retries", "3"),
        ("ack_retry_interval", "2s"),
        ("enable_offline_ack", "true"),
        ("inbox.window_messages", "128"),
        ("inbox.window_bytes", "256KiB"),
        ("inbox.retry_interval", "60s"),
        ("storage.kind", "embedded"),
        ("storage.path", "./data"),
        ("storage.durability", "fsync"),
        ("storage.commit_interval", "2ms"),
        ("storage.commit_batch", "1000"),
        ("storage.inbox_max_messages", "1000"),
        ("storage.inbox_max_bytes", "16MiB"),
        ("storage.max_bytes", "4GiB"),
        ("storage.message_ttl", "7d"),
        ("outcomes.retention", "1h"),
        ("outcomes.max", "100000"),
        ("idempotency.window", "5m"),
        ("idempotency.max_keys", "100000"),
        ("queue.max_bytes", "1MiB"),
        ("queue.policy", "disconnect"),
        ("queue.total_bytes", "1GiB"),
        ("rooms.auto_create", "true"),
        ("rooms.max_clients", "0"),
        ("rooms.max_rooms", "100000"),
        ("rooms.max_pending_bytes", "4MiB"),
        ("rooms.max_reliable_recipients", "1000"),
        ("limits.user_connections", "0"),
        ("limits.user_policy", "kick_oldest"),
        ("limits.ip_connections", "0"),
        ("limits.messages_per_second", "0"),
        ("limits.bytes_per_second", "0"),
        ("limits.burst", ""),
        ("limits.handshakes_per_second", "0"),
        ("limits.pending_handshakes", "4096"),
        ("limits.rooms_per_connection", "100"),
        ("limits.stored_per_sender", "1000"),
        ("limits.client_require_ack", "true"),
        ("trusted_proxies", ""),
        ("failure_handlers.enable_logging", "true"),
        ("failure_handlers.enable_metrics", "true"),
        ("failure_handlers.enable_alert", "false"),
        ("failure_handlers.alert_threshold", "100"),
        ("failure_handlers.alert_window", "1m"),
        ("failure_handlers.fallback_storage", "embedded"),
        ("failure_handlers.offline_storage", "embedded"),
        ("failure_handlers.workers", "4"),
        ("failure_handlers.queue", "1000"),
        ("failure_handlers.timeout", "5s"),
        ("callbacks.enable_webhooks", "false"),
        ("callbacks.webhook_url", ""),
        ("callbacks.webhook_timeout", "5s"),
        ("callbacks.webhook_retries", "3"),
        ("callbacks.batch_max", "100"),
        ("callbacks.batch_interval", "50ms"),
        ("auth.enabled", "false"),
        ("auth.allow_insecure", "false"),
        ("auth.issuer", "wsc"),
        ("auth.leeway", "0s"),
        ("auth.expiry_grace", "25s"),
        ("auth.allow_anonymous", "false"),
        ("http.max_body_size", "1MiB"),
        ("http.read_timeout", "10s"),
        ("http.wait_timeout", "30s"),
        ("http.max_waiting", "10000"),
        ("http.demo_page", "auto"),
        ("http.internal_listen", ""),
        ("compression.enabled", "false"),
        ("compression.threshold", "1KiB"),
        ("cluster.enabled", "false"),
        ("cluster.bus_type", "noop"),
        ("drain.rate", "1000"),
        ("drain.delay", "0s"),
        ("drain.deadline", "30s"),
        ("log.level", "info"),
        ("log.format", "text"),
        ("debug.events", "65536"),
    ];
    for (path, default) in table {
        let key = keys().iter().find(|key| key.path() == path).unwrap_or_else(|| panic!("no key {path}"));
        assert_eq!(key.default_text(), default, "{path}");
    }
}

#[test]
fn a_burst_is_twice_the_rate_unless_it_is_set() {
    let mut limits = Settings::default().limits;
    assert_eq!((limits.message_burst(), limits.byte_burst()), (0, 0));
    limits.messages_per_second = 10;
    limits.bytes_per_second = 1000;
    assert_eq!((limits.message_burst(), limits.byte_burst()), (20, 2000));
    limits.burst = Some(15);
    assert_eq!(limits.message_burst(), 15);
}
