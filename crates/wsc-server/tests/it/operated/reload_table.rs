//! Every live key that there is: written to the file, it is what the running hub shows.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use wsc_testkit::{Launch, ServerProcess};

use super::{at, reconfigure, reload, reloads, replace, status};
use crate::support::{BIN, hub, settings};

/// What a running hub shows of a secret instead of it.
const MASKED: &str = "***";

/// The key, another value than its default as it is written, and as it is shown; [`MASKED`] for a secret.
fn changes() -> Vec<(&'static str, &'static str, Value)> {
    vec![
        ("max_connections", "5000", json!(5000)),
        ("max_message_size", "32KiB", json!("32KiB")),
        ("handshake_timeout", "9s", json!("9s")),
        ("write_timeout", "9s", json!("9s")),
        ("ping_interval", "20s", json!("20s")),
        ("pong_timeout", "9s", json!("9s")),
        ("presence_debounce", "2s", json!("2s")),
        ("max_retries", "4", json!(4)),
        ("base_delay", "90ms", json!("90ms")),
        ("max_delay", "6s", json!("6s")),
        ("backoff_factor", "1.5", json!(1.5)),
        ("jitter", "0.2", json!(0.2)),
        ("retryable_errors", "[timeout]", json!(["timeout"])),
        ("non_retryable_errors", "[rejected]", json!(["rejected"])),
        ("retry_budget.ratio", "0.3", json!(0.3)),
        ("retry_budget.min_per_second", "11", json!(11)),
        ("ack_timeout", "6s", json!("6s")),
        ("ack_max_retries", "4", json!(4)),
        ("ack_retry_interval", "3s", json!("3s")),
        ("enable_offline_ack", "false", json!(false)),
        ("inbox.window_messages", "64", json!(64)),
        ("inbox.window_bytes", "128KiB", json!("128KiB")),
        ("inbox.retry_interval", "30s", json!("30s")),
        ("storage.inbox_max_messages", "900", json!(900)),
        ("storage.inbox_max_bytes", "8MiB", json!("8MiB")),
        ("storage.max_bytes", "2GiB", json!("2GiB")),
        ("storage.message_ttl", "6d", json!("6d")),
        ("outcomes.retention", "2h", json!("2h")),
        ("outcomes.max", "50000", json!(50000)),
        ("idempotency.window", "6m", json!("6m")),
        ("idempotency.max_keys", "50000", json!(50000)),
        ("queue.max_bytes", "2MiB", json!("2MiB")),
        ("queue.policy", "spill", json!("spill")),
        ("queue.total_bytes", "512MiB", json!("512MiB")),
        ("rooms.auto_create", "false", json!(false)),
        ("rooms.max_clients", "7", json!(7)),
        ("rooms.max_rooms", "50000", json!(50000)),
        ("rooms.max_pending_bytes", "2MiB", json!("2MiB")),
        ("rooms.max_reliable_recipients", "500", json!(500)),
        ("limits.user_connections", "6", json!(6)),
        ("limits.user_policy", "refuse", json!("refuse")),
        ("limits.ip_connections", "800", json!(800)),
        ("limits.messages_per_second", "600", json!(600)),
        ("limits.bytes_per_second", "6000000", json!(6_000_000)),
        ("limits.burst", "70", json!(70)),
        ("limits.handshakes_per_second", "900", json!(900)),
        ("limits.pending_handshakes", "2048", json!(2048)),
        ("limits.rooms_per_connection", "50", json!(50)),
        ("limits.stored_per_sender", "500", json!(500)),
        ("limits.client_require_ack", "false", json!(false)),
        ("trusted_proxies", "[10.0.0.0/8]", json!(["10.0.0.0/8"])),
        ("failure_handlers.enable_logging", "false", json!(false)),
        ("failure_handlers.enable_metrics", "false", json!(false)),
        ("failure_handlers.enable_alert", "true", json!(true)),
        ("failure_handlers.alert_threshold", "50", json!(50)),
        ("failure_handlers.alert_window", "2m", json!("2m")),
        ("failure_handlers.fallback_storage", "none", json!("none")),
        ("failure_handlers.offline_storage", "none", json!("none")),
        ("failure_handlers.workers", "3", json!(3)),
        ("failure_handlers.queue", "500", json!(500)),
        ("failure_handlers.timeout", "4s", json!("4s")),
        ("callbacks.enable_webhooks", "true", json!(true)),
        ("callbacks.webhook_url", "\"http://127.0.0.1:1/hook\"", json!("http://127.0.0.1:1/hook")),
        ("callbacks.webhook_timeout", "4s", json!("4s")),
        ("callbacks.webhook_retries", "2", json!(2)),
        ("callbacks.event_filters", "[\"hub.*\"]", json!(["hub.*"])),
        ("callbacks.headers", "{X-Tenant: acme}", json!(MASKED)),
        ("callbacks.signing_secrets", "[0123456789abcdef0123]", json!(MASKED)),
        ("callbacks.allow_private_addresses", "true", json!(true)),
        ("callbacks.batch_max", "10", json!(10)),
        ("callbacks.batch_interval", "20ms", json!("20ms")),
        ("auth.secret_key", "0123456789abcdef0123456789abcdef", json!(MASKED)),
        ("auth.secret_key_file", "./secret.key", json!("./secret.key")),
        ("auth.public_key", "\"-----BEGIN PUBLIC KEY-----\\nAAAA\\n-----END PUBLIC KEY-----\"", Value::Null),
        ("auth.public_key_file", "./public.pem", json!("./public.pem")),
        ("auth.jwks_url", "\"http://127.0.0.1:1/keys\"", json!("http://127.0.0.1:1/keys")),
        ("auth.issuer", "elsewhere", json!("elsewhere")),
        ("auth.audience", "wsc", json!("wsc")),
        ("auth.leeway", "5s", json!("5s")),
        ("auth.expiry_grace", "20s", json!("20s")),
        ("auth.allow_anonymous", "true", json!(true)),
        ("auth.anonymous_permissions", "[\"join:room\"]", json!(["join:room"])),
        ("auth.allowed_origins", "[\"https://app.example\"]", json!(["https://app.example"])),
        ("http.max_body_size", "2MiB", json!("2MiB")),
        ("http.read_timeout", "9s", json!("9s")),
        ("http.wait_timeout", "20s", json!("20s")),
        ("http.max_waiting", "5000", json!(5000)),
        ("http.allowed_hosts", "[hub.example]", json!(["hub.example"])),
        ("http.api_keys", "[0123456789abcdef0123]", json!(MASKED)),
        ("http.demo_page", "off", json!("off")),
        ("compression.enabled", "true", json!(true)),
        ("compression.threshold", "2KiB", json!("2KiB")),
        ("drain.rate", "900", json!(900)),
        ("drain.delay", "1s", json!("1s")),
        ("drain.deadline", "20s", json!("20s")),
        ("log.level", "warn", json!("warn")),
        ("log.format", "json", json!("json")),
    ]
}

/// What must stand beside a key for the whole to be valid.
fn beside(path: &str) -> &'static [(&'static str, &'static str)] {
    const URL: (&str, &str) = ("callbacks.webhook_url", "\"http://127.0.0.1:1/hook\"");
    match path {
        "callbacks.enable_webhooks" => &[URL, ("callbacks.allow_private_addresses", "true")],
        _ => &[],
    }
}

/// A settings file with these dotted keys, in YAML's block form.
fn file(keys: &[(&str, &str)]) -> String {
    let mut text = String::from("wsc:\n  listen: 127.0.0.1:0\n");
    let mut sections: Vec<&str> = keys.iter().filter_map(|(path, _)| Some(path.split_once('.')?.0)).collect();
    sections.dedup();
    for (path, value) in keys.iter().filter(|(path, _)| !path.contains('.')) {
        text += &format!("  {path}: {value}\n");
    }
    for section in sections {
        text += &format!("  {section}:\n");
        let own = keys.iter().filter_map(|(path, value)| Some((path.strip_prefix(section)?.strip_prefix('.')?, value)));
        for (name, value) in own {
            text += &format!("    {name}: {value}\n");
        }
    }
    text
}

#[track_caller]
fn assert_shown(path: &str, shown: &Value, want: &Value, secret: &str) {
    if *want == json!(MASKED) {
        let text = shown.to_string();
        assert!(text.contains(MASKED) && !text.contains(secret.trim_matches(['[', ']'])), "{path}: {text}");
    } else if !want.is_null() {
        assert_eq!(shown, want, "{path}");
    }
}

/// The live keys that `wsc default-config` documents; `tls.*` are live once they are set, and have a test of their own.
async fn documented() -> BTreeSet<String> {
    let launch = Launch { args: &["default-config"], ..Launch::default() };
    let output = launch.run(BIN).await;
    let text = String::from_utf8(output.stdout).unwrap();
    let mut keys = BTreeSet::new();
    let mut sections: Vec<&str> = Vec::new();
    let mut last = "";
    for line in text.lines() {
        let depth = (line.len() - line.trim_start().len()) / 2;
        let line = line.trim();
        let (name, rest) = line.trim_start_matches("# ").split_once(':').unwrap_or_default();
        let is_name =
            !name.is_empty() && name.chars().all(|char| char.is_ascii_lowercase() || "_0123456789".contains(char));
        if last.ends_with("; live") || last == "# live" {
            let path: Vec<&str> = sections[1..depth].iter().copied().chain([name]).collect();
            keys.insert(path.join("."));
        } else if is_name && rest.is_empty() && !line.starts_with('#') {
            sections.truncate(depth);
            sections.push(name);
        }
        last = line;
    }
    keys
}

async fn hub_with_files() -> ServerProcess {
    let server = hub("").await;
    std::fs::write(server.dir().join("secret.key"), "0123456789abcdef0123456789abcdef").unwrap();
    std::fs::write(server.dir().join("public.pem"), wsc_testkit::TokenKey::ec().public_pem()).unwrap();
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_table_names_every_live_key() {
    let have: BTreeSet<String> = changes().into_iter().map(|(path, ..)| path.to_owned()).collect();
    assert_eq!(have, documented().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_live_key_applies_by_itself_and_goes_back() {
    let server = hub_with_files().await;
    let path_of_file = server.dir().join("settings.yaml");
    let defaults = status(&server).await["current_config"].clone();
    let public = format!("\"{}\"", wsc_testkit::TokenKey::ec().public_pem().replace('\n', "\\n"));
    for (path, value, want) in changes() {
        let value = if path == "auth.public_key" { public.as_str() } else { value };
        let mut keys = vec![(path, value)];
        keys.extend(beside(path));
        replace(&path_of_file, &file(&keys));
        let answer = reload(&server).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        let status = status(&server).await;
        assert_eq!(status["pending_restart"], json!([]), "{path}");
        let shown = at(&status["current_config"], path);
        assert_ne!(shown, at(&defaults, path), "{path}");
        assert_shown(path, shown, &want, value);
        // Nothing else moved.
        let mut rest = status["current_config"].clone();
        for (path, _) in &keys {
            let place = path.split('.').fold(&mut rest, |map, name| &mut map[name]);
            *place = at(&defaults, path).clone();
        }
        assert_eq!(rest, defaults, "{path} is not alone");
    }
    reconfigure(&server, "").await;
    assert_eq!(status(&server).await["current_config"], defaults);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_of_them_apply_at_once() {
    let server = hub_with_files().await;
    // One source of keys for tokens.
    let others = ["auth.secret_key_file", "auth.public_key", "auth.public_key_file", "auth.jwks_url"];
    let changes: Vec<_> = changes().into_iter().filter(|(path, ..)| !others.contains(path)).collect();
    let keys: Vec<(&str, &str)> = changes.iter().map(|(path, value, _)| (*path, *value)).collect();
    replace(&server.dir().join("settings.yaml"), &file(&keys));
    let answer = reload(&server).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    // From now on a key is needed.
    let headers = [("X-API-Key", "0123456789abcdef0123")];
    let status = server.http("GET", "/debug/hub/status", &headers, None).await.json();
    for (path, value, want) in &changes {
        assert_shown(path, at(&status["current_config"], path), want, value);
    }
    let said = answer.json();
    assert_eq!(said["pending_restart"], json!([]), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commented_defaults_are_no_change() {
    let server = hub("").await;
    let launch = Launch { args: &["default-config"], ..Launch::default() };
    let text = String::from_utf8(launch.run(BIN).await.stdout).unwrap();
    let text = text.replace("listen: 127.0.0.1:8080", "listen: 127.0.0.1:0");
    assert_ne!(text, settings(""));
    replace(&server.dir().join("settings.yaml"), &text);
    let said = reload(&server).await.json();
    assert_eq!((&said["applied"], &said["pending_restart"]), (&json!([]), &json!([])), "{said}");
    assert_eq!(reloads(&server, "applied").await, 0.0);
}
