//! The command line, the settings file, the end.

use std::net::TcpListener;
use std::process::Output;

use serde_json::json;
use wsc_testkit::{Client, Launch, ServerProcess};

use crate::support::{BIN, assert_closed, hub, settings};

/// Runs `wsc` with these arguments, `settings.yaml` being this text.
async fn wsc(args: &[&str], config: &str) -> Output {
    let launch = Launch { args, files: &[("settings.yaml", config)], env: &[] };
    launch.run(BIN).await
}

/// What it printed, both streams.
fn printed(output: &Output) -> String {
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    text
}

/// Checks this file, expects a refusal, gives what was printed.
async fn refused(config: &str) -> String {
    let output = wsc(&["check-config", "settings.yaml"], config).await;
    let text = printed(&output);
    assert_eq!(output.status.code(), Some(2), "{config}\n{text}");
    assert!(!text.contains("panicked"), "{text}");
    text
}

/// Starts a server whose settings are this file, and gives `connected.data`.
async fn started(launch: &Launch<'_>) -> serde_json::Value {
    let server = ServerProcess::launch(BIN, launch).await;
    let client = Client::connect(&server.ws_url()).await;
    client.connected()["data"].clone()
}

#[tokio::test]
async fn the_version_is_told() {
    let output = wsc(&["version"], "").await;
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains(env!("CARGO_PKG_VERSION")), "{text}");
}

#[tokio::test]
async fn wrong_usage_ends_with_2() {
    for args in [["frobnicate"].as_slice(), &["serve", "--nope"], &["check-config"]] {
        let output = wsc(args, "").await;
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
}

#[tokio::test]
async fn a_good_file_passes_the_check() {
    for config in ["", "wsc: {}", "wsc:\n  ping_interval: 10s\n  queue:\n    max_bytes: 2MiB\n"] {
        let output = wsc(&["check-config", "settings.yaml"], config).await;
        assert_eq!(output.status.code(), Some(0), "{config:?}: {}", printed(&output));
    }
}

#[tokio::test]
async fn toml_and_json_are_read_as_well() {
    for (name, good, bad) in [
        ("s.toml", "[wsc]\nping_interval = \"10s\"\n", "[wsc]\nnope = 1\n"),
        ("s.json", r#"{"wsc":{"ping_interval":"10s"}}"#, r#"{"wsc":{"nope":1}}"#),
        ("s.yml", "wsc: {ping_interval: 10s}", "wsc: {nope: 1}"),
    ] {
        for (config, code) in [(good, 0), (bad, 2)] {
            let launch = Launch { args: &["check-config", name], files: &[(name, config)], env: &[] };
            let output = launch.run(BIN).await;
            let text = printed(&output);
            assert_eq!(output.status.code(), Some(code), "{config}: {text}");
        }
    }
}

#[tokio::test]
async fn an_unknown_key_is_named_with_its_nearest_relative() {
    let text = refused("wsc: {max_conections: 5}").await;
    assert!(text.contains("wsc.max_conections"), "{text}");
    assert!(text.contains("max_connections"), "{text}");
    let text = refused("wsc: {queue: {max_byte: 5}}").await;
    assert!(text.contains("wsc.queue.max_byte"), "{text}");
    assert!(text.contains("max_bytes"), "{text}");
}

#[tokio::test]
async fn other_sections_are_refused() {
    let text = refused("wsc: {}\nhub: {port: 1}\n").await;
    assert!(text.contains("hub"), "{text}");
}

#[tokio::test]
async fn bad_values_are_named() {
    for (config, key) in [
        ("wsc: {ping_interval: soon}", "ping_interval"),
        ("wsc: {ping_interval: 0s}", "ping_interval"),
        ("wsc: {ping_interval: -1s}", "ping_interval"),
        ("wsc: {max_message_size: much}", "max_message_size"),
        ("wsc: {max_connections: -1}", "max_connections"),
        ("wsc: {max_connections: many}", "max_connections"),
        ("wsc: {queue: {policy: pray}}", "policy"),
        ("wsc: {queue: 5}", "queue"),
        ("wsc: {listen: nowhere}", "listen"),
        ("wsc: {listen: \"127.0.0.1:99999\"}", "listen"),
        ("wsc: {rooms: {auto_create: 7}}", "auto_create"),
        ("wsc: {log: {level: loud}}", "level"),
        ("wsc: {backoff_factor: 0.5}", "backoff_factor"),
        ("wsc: {jitter: 2.0}", "jitter"),
        ("wsc: {retryable_errors: [ack_timeout]}", "retryable_errors"),
        ("wsc: {non_retryable_errors: [ack_timeout]}", "non_retryable_errors"),
        ("wsc: {storage: {kind: papyrus}}", "storage.kind"),
    ] {
        let text = refused(config).await;
        assert!(text.contains(key), "{config}: {text}");
    }
}

#[tokio::test]
async fn what_is_no_file_or_no_yaml_is_refused() {
    refused("wsc: [unclosed").await;
    refused("wsc: 5").await;
    refused("just words").await;
    let output = wsc(&["check-config", "missing.yaml"], "").await;
    assert_eq!(output.status.code(), Some(2), "{}", printed(&output));
    assert!(printed(&output).contains("missing.yaml"));
    let output = wsc(&["serve", "--config", "missing.yaml"], "").await;
    assert_eq!(output.status.code(), Some(2), "{}", printed(&output));
}

#[tokio::test]
async fn a_server_does_not_start_with_bad_settings() {
    let args = ["serve", "--config", "settings.yaml"];
    let output = wsc(&args, "wsc: {max_conections: 5}").await;
    assert_eq!(output.status.code(), Some(2));
    assert!(printed(&output).contains("max_connections"));
}

#[tokio::test]
async fn the_default_settings_are_commented_and_load_back() {
    let output = wsc(&["default-config"], "").await;
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains('#'), "{text}");
    for key in ["max_connections", "ping_interval", "user_policy", "allowed_hosts"] {
        assert!(text.contains(key), "no {key} in:\n{text}");
    }
    let output = wsc(&["check-config", "settings.yaml"], &text).await;
    assert_eq!(output.status.code(), Some(0), "{}", printed(&output));

    let data = started(&Launch {
        args: &["serve", "--config", "settings.yaml"],
        files: &[("settings.yaml", &text)],
        env: &[("WSC__LISTEN", "127.0.0.1:0")],
    })
    .await;
    assert_eq!(data["ping_interval_ms"], 25_000);
}

#[tokio::test]
async fn the_environment_lies_over_the_file() {
    let data = started(&Launch {
        args: &["serve", "--config", "settings.yaml"],
        files: &[("settings.yaml", &settings("ping_interval: 5s, node_id: file"))],
        env: &[("WSC__PING_INTERVAL", "7s")],
    })
    .await;
    assert_eq!(data["ping_interval_ms"], 7_000);
    assert_eq!(data["node_id"], "file");
}

#[tokio::test]
async fn a_profile_lies_over_the_plain_section() {
    let config = format!(
        "{}prod: {{wsc: {{ping_interval: 9s}}}}\ntest: {{wsc: {{ping_interval: 3s}}}}\n",
        settings("ping_interval: 5s, node_id: plain")
    );
    let files = [("settings.yaml", config.as_str())];
    let data = started(&Launch {
        args: &["serve", "--config", "settings.yaml", "--profile", "prod"],
        files: &files,
        env: &[],
    })
    .await;
    assert_eq!(data["ping_interval_ms"], 9_000);
    assert_eq!(data["node_id"], "plain");
    let data = started(&Launch { args: &["serve", "--config", "settings.yaml"], files: &files, env: &[] }).await;
    assert_eq!(data["ping_interval_ms"], 5_000);
    let args = ["serve", "--config", "settings.yaml", "--profile", "nope"];
    let output = wsc(&args, &config).await;
    assert_eq!(output.status.code(), Some(2), "{}", printed(&output));
}

#[tokio::test]
async fn a_file_in_the_directory_is_found() {
    let config = settings("ping_interval: 4s");
    for args in [["serve"].as_slice(), &[]] {
        let data = started(&Launch { args, files: &[("wsc.yaml", &config)], env: &[] }).await;
        assert_eq!(data["ping_interval_ms"], 4_000);
    }
}

#[tokio::test]
async fn a_taken_port_ends_with_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let config = format!("wsc: {{listen: \"{addr}\"}}");
    let output = wsc(&["serve", "--config", "settings.yaml"], &config).await;
    let text = printed(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(&addr.port().to_string()), "{text}");

    // Also when it is taken by another hub.
    let server = hub("").await;
    let config = format!("wsc: {{listen: \"{}\"}}", server.addr());
    let output = wsc(&["serve", "--config", "settings.yaml"], &config).await;
    assert_eq!(output.status.code(), Some(1), "{}", printed(&output));
}

#[tokio::test]
async fn beyond_loopback_it_asks_for_authentication_or_a_confession() {
    let config = "wsc: {listen: \"0.0.0.0:0\"}";
    let output = wsc(&["serve", "--config", "settings.yaml"], config).await;
    let text = printed(&output);
    assert!(matches!(output.status.code(), Some(1 | 2)), "{text}");
    assert!(text.contains("allow_insecure"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_closes_the_connections_and_ends_with_0() {
    let mut server = hub("").await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(Client::connect(&server.ws_url()).await);
    }
    server.signal_terminate();
    for client in &mut clients {
        let closed = client.expect_close().await;
        assert_closed(&closed, 3001);
        assert!(closed.1["retry_after_ms"].is_u64(), "{closed:?}");
    }
    assert_eq!(server.wait().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_accepted_before_the_signal_still_arrives() {
    let mut server = hub("").await;
    let mut alice = Client::connect(&server.ws_url_as("alice")).await;
    let mut bob = Client::connect(&server.ws_url_as("bob")).await;
    alice.join("r1").await;
    bob.join("r1").await;
    for n in 0..50 {
        alice.say("r1", json!(n)).await;
    }
    server.signal_terminate();
    let (frames, code) = bob.read_to_end().await;
    assert_eq!(code, 3001);
    assert_eq!(frames.len(), 50, "{frames:?}");
    assert_eq!(server.wait().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_without_connections_ends_at_once() {
    let mut server = hub("").await;
    assert!(server.is_running());
    assert_eq!(server.terminate().await, 0);
}
