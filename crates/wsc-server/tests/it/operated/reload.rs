//! The ways by which new settings come, and those that wait for a restart.

use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;
use wsc_testkit::{Client, Launch, ServerProcess, TlsIdentity, WebhookReceiver, eventually, http};

use super::{
    callbacks, connect, expect_running, hub_with_webhooks, reconfigure, reload, reloads, replace, rewrite, running,
    send_signal, status,
};
use crate::support::{BIN, hub, settings};

/// A client that is there before and after: a reload must not touch it.
async fn witness(server: &ServerProcess) -> Client {
    let mut witness = connect(server, "witness").await;
    witness.join("r1").await;
    witness
}

async fn expect_untouched(mut witness: Client) {
    witness.expect_quiet().await;
    let members = json!({"message_type": "room_members", "data": {"room_id": "r1"}});
    assert_eq!(witness.request_ok(members, "room_members").await["data"]["total"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edit_in_place_is_noticed() {
    let server = hub("ack_timeout: 7s").await;
    let witness = witness(&server).await;
    std::fs::write(server.dir().join("settings.yaml"), settings("ack_timeout: 8s")).unwrap();
    expect_running(&server, "ack_timeout", &json!("8s")).await;
    std::fs::write(server.dir().join("settings.yaml"), settings("ack_timeout: 9s")).unwrap();
    expect_running(&server, "ack_timeout", &json!("9s")).await;
    expect_untouched(witness).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_renamed_over_it_is_noticed_again_and_again() {
    let server = hub("ack_timeout: 7s").await;
    let witness = witness(&server).await;
    for seconds in [8, 9, 10] {
        rewrite(&server, &format!("ack_timeout: {seconds}s"));
        expect_running(&server, "ack_timeout", &json!(format!("{seconds}s"))).await;
    }
    expect_untouched(witness).await;
}

/// What Kubernetes does with a mounted ConfigMap: the file is a link into `..data`, which is a link to a directory that
/// is replaced.
fn mount(volume: &Path, version: u32, text: &str) {
    let name = format!("..v{version}");
    std::fs::create_dir(volume.join(&name)).unwrap();
    std::fs::write(volume.join(&name).join("settings.yaml"), text).unwrap();
    symlink(&name, volume.join("..data_tmp")).unwrap();
    std::fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    if version == 1 {
        symlink("..data/settings.yaml", volume.join("settings.yaml")).unwrap();
    } else {
        std::fs::remove_dir_all(volume.join(format!("..v{}", version - 1))).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mounted_directory_that_is_swapped_is_noticed_again_and_again() {
    let volume = TempDir::new().unwrap();
    mount(volume.path(), 1, &settings("ack_timeout: 7s"));
    let path = volume.path().join("settings.yaml");
    let launch = Launch { args: &["serve", "--config", path.to_str().unwrap()], ..Launch::default() };
    let server = ServerProcess::launch(BIN, &launch).await;
    let witness = witness(&server).await;
    for version in 2..=4 {
        mount(volume.path(), version, &settings(&format!("ack_timeout: {version}s")));
        expect_running(&server, "ack_timeout", &json!(format!("{version}s"))).await;
    }
    expect_untouched(witness).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_has_the_settings_read_again() {
    let server = hub("").await;
    send_signal(&server, Signal::HUP);
    // Unchanged settings show that it was the signal, not the change of a file, that was heard.
    eventually("the signal is heard", async || (reloads(&server, "unchanged").await >= 1.0).then_some(())).await;
    rewrite(&server, "ack_timeout: 8s");
    send_signal(&server, Signal::HUP);
    expect_running(&server, "ack_timeout", &json!("8s")).await;
}

/// Changes `ack_timeout` again and again until the API is quicker than the hub's own look at the file; gives the value
/// and what the API says.
async fn told_first(server: &ServerProcess, query: &str, keys: &str) -> (String, Value) {
    for seconds in 10.. {
        let value = format!("{seconds}s");
        rewrite(server, &format!("ack_timeout: {value}, {keys}"));
        let answer = server.http("POST", &format!("/api/admin/config/reload{query}"), &[], Some(b"")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let said = answer.json();
        if said["applied"] != json!([]) {
            return (value, said);
        }
    }
    unreachable!()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_says_what_applies_and_what_waits() {
    let server = hub("").await;
    let (value, said) = told_first(&server, "", "node_id: other").await;
    assert_eq!(said, json!({"applied": ["ack_timeout"], "pending_restart": ["node_id"], "dry_run": false}));
    assert_eq!(running(&server, "ack_timeout").await, value);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_says_what_would_apply() {
    let server = hub("").await;
    for query in ["?dry_run", "?dry_run=true"] {
        let (_, said) = told_first(&server, query, "storage: {path: ./other}").await;
        assert_eq!(said, json!({"applied": ["ack_timeout"], "pending_restart": ["storage.path"], "dry_run": true}));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_says_what_is_wrong() {
    let server = hub("ack_timeout: 7s").await;
    for query in ["?dry_run", "?dry_run=true"] {
        rewrite(&server, "ack_timeout: 0s");
        let wrong = server.http("POST", &format!("/api/admin/config/reload{query}"), &[], Some(b"")).await;
        assert_eq!((wrong.status, wrong.error_code()), (400, 1001), "{wrong:?}");
        assert!(wrong.text().contains("ack_timeout"), "{wrong:?}");
    }
    assert_eq!(reloads(&server, "applied").await, 0.0);
    assert_eq!(running(&server, "ack_timeout").await, "7s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_file_has_nothing_to_reload() {
    let launch = Launch { args: &["serve"], env: &[("WSC__LISTEN", "127.0.0.1:0")], ..Launch::default() };
    let server = ServerProcess::launch(BIN, &launch).await;
    let answer = reload(&server).await;
    assert!(matches!(answer.status, 200 | 400), "{answer:?}");
    let mut client = connect(&server, "alice").await;
    client.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unchanged_content_is_not_worth_a_line() {
    let server = hub("ack_timeout: 7s").await;
    // The connections of this test are no news either at this level.
    let before = server.log();
    rewrite(&server, "ack_timeout: 7s");
    send_signal(&server, Signal::HUP);
    eventually("it is read again", async || (reloads(&server, "unchanged").await >= 1.0).then_some(())).await;
    // Other words for the same settings.
    replace(&server.dir().join("settings.yaml"), "wsc:\n  listen: 127.0.0.1:0 # any\n  ack_timeout: 7000ms\n");
    let said = reload(&server).await.json();
    assert_eq!((&said["applied"], &said["pending_restart"]), (&json!([]), &json!([])), "{said}");
    assert_eq!(reloads(&server, "applied").await, 0.0);
    // What is logged is seen in order: nothing came before this.
    rewrite(&server, "not_a_key: 1");
    let after = eventually("the refusal is logged", async || {
        reloads(&server, "rejected").await;
        let log = server.log();
        log.contains("not_a_key").then_some(log)
    })
    .await;
    let news: Vec<&str> = after.lines().skip(before.lines().count()).collect();
    assert!(news[0].contains("not_a_key") || !news[0].contains("ack_timeout"), "{news:#?}");
    assert!(news.iter().all(|line| !line.to_lowercase().contains("unchanged")), "{news:#?}");
    assert!(!news.iter().any(|line| line.contains("applied")), "{news:#?}");
}

/// Keys that apply at a restart only: the key, another value in YAML.
const RESTART: &[(&str, &str, &str)] = &[
    ("listen", "listen", "\"127.0.0.1:1\""),
    ("node_id", "node_id", "other"),
    ("read_buffer_size", "read_buffer_size", "8KiB"),
    ("write_buffer_size", "write_buffer_size", "8KiB"),
    ("storage.kind", "storage", "{kind: memory}"),
    ("storage.path", "storage", "{path: ./elsewhere}"),
    ("storage.durability", "storage", "{durability: os}"),
    ("storage.commit_interval", "storage", "{commit_interval: 5ms}"),
    ("storage.commit_batch", "storage", "{commit_batch: 7}"),
    ("auth.allow_insecure", "auth", "{allow_insecure: true}"),
    ("http.internal_listen", "http", "{internal_listen: \"127.0.0.1:0\"}"),
    ("debug.events", "debug", "{events: 17}"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_needs_a_restart_waits_for_it_and_says_so() {
    let server = hub("").await;
    let witness = witness(&server).await;
    for &(path, name, value) in RESTART {
        let before = running(&server, path).await;
        let text = if name == "listen" {
            format!("wsc: {{listen: {value}}}\n")
        } else {
            settings(&format!("{name}: {value}"))
        };
        replace(&server.dir().join("settings.yaml"), &text);
        let answer = reload(&server).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        let status = status(&server).await;
        assert_eq!(status["pending_restart"], json!([path]), "{path}");
        assert_eq!(running(&server, path).await, before, "{path} applies already");
    }
    // Back to what runs: nothing waits any more.
    let said = reconfigure(&server, "").await;
    assert_eq!(said["pending_restart"], json!([]), "{said}");
    assert_eq!(status(&server).await["pending_restart"], json!([]));
    expect_untouched(witness).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waited_for_a_restart_applies_after_it() {
    let mut server = hub("node_id: first").await;
    reconfigure(&server, "node_id: second").await;
    assert_eq!(server.get("/health").await.json()["node_id"], "first");
    assert_eq!(connect(&server, "alice").await.connected()["data"]["node_id"], "first");
    assert_eq!(server.terminate().await, 0);
    server.restart().await;
    assert_eq!(server.get("/health").await.json()["node_id"], "second");
    assert_eq!(status(&server).await["pending_restart"], json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_environment_still_wins_after_a_reload() {
    let launch = Launch {
        args: &["serve", "--config", "settings.yaml"],
        files: &[("settings.yaml", &settings("ack_timeout: 7s, max_retries: 1"))],
        env: &[("WSC__ACK_TIMEOUT", "11s")],
    };
    let server = ServerProcess::launch(BIN, &launch).await;
    assert_eq!(running(&server, "ack_timeout").await, "11s");
    reconfigure(&server, "ack_timeout: 8s, max_retries: 2").await;
    assert_eq!(running(&server, "ack_timeout").await, "11s");
    assert_eq!(running(&server, "max_retries").await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_profile_is_kept() {
    let file = |plain: &str, prod: &str| {
        format!(
            "wsc: {{listen: \"127.0.0.1:0\", ack_timeout: {plain}}}\nprod: {{wsc: {{ack_timeout: {prod}}}}}\n\
             dev: {{wsc: {{ack_timeout: 1h}}}}\n"
        )
    };
    let launch = Launch {
        args: &["serve", "--config", "settings.yaml", "--profile", "prod"],
        files: &[("settings.yaml", &file("7s", "8s"))],
        env: &[],
    };
    let server = ServerProcess::launch(BIN, &launch).await;
    assert_eq!(running(&server, "ack_timeout").await, "8s");
    let path = server.dir().join("settings.yaml");
    replace(&path, &file("9s", "8s"));
    assert_eq!(reload(&server).await.status, 200);
    assert_eq!(running(&server, "ack_timeout").await, "8s");
    replace(&path, &file("9s", "10s"));
    expect_running(&server, "ack_timeout", &json!("10s")).await;
    // Without its profile the file is no file for this hub.
    replace(&path, &settings("ack_timeout: 9s"));
    let answer = reload(&server).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    assert!(answer.text().contains("prod"), "{answer:?}");
    assert_eq!(running(&server, "ack_timeout").await, "10s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_an_event_that_names_keys_and_no_values() {
    let receiver = WebhookReceiver::start().await;
    let server = hub_with_webhooks(&receiver, "", "").await;
    reconfigure(&server, &format!("{}, ack_timeout: 1234ms, node_id: other", callbacks(&receiver, ""))).await;
    let event = receiver.event("config.changed", |event| event["type"] == "config.changed").await;
    assert_eq!(event["data"], json!({"applied": ["ack_timeout"], "pending_restart": ["node_id"]}));
    assert_eq!(reloads(&server, "applied").await, 1.0);
    assert_eq!(reloads(&server, "rejected").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_comes_back_is_read_again() {
    let server = hub("ack_timeout: 7s").await;
    let path = server.dir().join("settings.yaml");
    std::fs::remove_file(&path).unwrap();
    // An editor may do that for a moment; the hub keeps what it has.
    let answer = reload(&server).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    assert_eq!(running(&server, "ack_timeout").await, "7s");
    std::fs::write(&path, settings("ack_timeout: 8s")).unwrap();
    expect_running(&server, "ack_timeout", &json!("8s")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writes_in_a_row_end_with_the_last() {
    let server = hub("ack_timeout: 7s").await;
    let path = server.dir().join("settings.yaml");
    for n in 0..200 {
        std::fs::write(&path, settings(&format!("ack_timeout: {}ms", 1000 + n))).unwrap();
    }
    expect_running(&server, "ack_timeout", &json!("1199ms")).await;
    let metrics = server.metrics().await;
    let read = |result: &str| metrics.sum("wsc_config_reloads_total", &[("result", result)]);
    assert!(read("applied") + read("rejected") < 100.0, "they are not collected: {}", read("applied"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_ask_at_once_end_with_what_the_file_says() {
    let server = hub("ack_timeout: 7s").await;
    let url = format!("{}/api/admin/config/reload", server.http_url());
    let mut asking = JoinSet::new();
    for n in 0..60 {
        rewrite(&server, &format!("ack_timeout: {}ms, max_retries: {n}", 1000 + n));
        let url = url.clone();
        asking.spawn(async move { http("POST", &url, &[], Some(b"")).await.status });
        if n % 10 == 0 {
            send_signal(&server, Signal::HUP);
        }
    }
    while let Some(status) = asking.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
    expect_running(&server, "ack_timeout", &json!("1059ms")).await;
    // Whole, whichever was the last.
    assert_eq!(running(&server, "max_retries").await, 59);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn switching_tls_on_waits_for_a_restart() {
    let server = hub("").await;
    let identity = TlsIdentity::new();
    std::fs::write(server.dir().join("cert.pem"), identity.cert_pem()).unwrap();
    std::fs::write(server.dir().join("key.pem"), identity.key_pem()).unwrap();
    reconfigure(&server, "tls: {cert: cert.pem, key: key.pem}").await;
    assert_eq!(status(&server).await["pending_restart"], json!(["tls.cert", "tls.key"]));
    connect(&server, "alice").await.expect_quiet().await;
}
