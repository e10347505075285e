//! A data directory with something wrong: an error that says what, or a start that says what it dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::json;
use tempfile::TempDir;
use wsc_testkit::{Launch, ServerProcess, eventually};

use super::{connect, reliable, tell_with_outcome, text};
use crate::support::{BIN, assert_on_its_way, hub, settings};

const SERVE: &[&str] = &["serve", "--config", "settings.yaml"];

/// Runs a server in this directory that should end by itself.
async fn refused(dir: &Path, keys: &str) -> String {
    let launch = Launch { args: SERVE, files: &[("settings.yaml", &settings(keys))], env: &[] };
    said(&launch.run_in(dir, BIN).await)
}

/// What it said when it ended with 1, which must be clear words.
#[track_caller]
fn said(output: &Output) -> String {
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(!text.contains("panicked at") && !text.contains("RUST_BACKTRACE"), "{text}");
    text
}

/// The files in the server's data directory.
fn data_files(server: &ServerProcess) -> Vec<PathBuf> {
    let entries = fs::read_dir(server.dir().join("data")).expect("a data directory");
    entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect()
}

/// The largest file there: the one with the messages.
fn inbox_file(server: &ServerProcess) -> PathBuf {
    data_files(server).into_iter().max_by_key(|path| path.metadata().unwrap().len()).expect("a file")
}

/// A server that was ended with so many messages for Bob in its inbox; their ids.
async fn ended_with(count: u32, is_killed: bool) -> (ServerProcess, Vec<String>) {
    let mut server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let mut ids = Vec::new();
    for n in 0..count {
        let content = json!({"n": n, "filler": "x".repeat(500)});
        ids.push(tell_with_outcome(&mut alice, "bob", content, "stored").await);
    }
    if is_killed {
        server.kill().await;
    } else {
        assert_eq!(server.terminate().await, 0);
    }
    (server, ids)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_cannot_be_made_is_named() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("occupied"), "a file").unwrap();
    for path in ["occupied", "occupied/below"] {
        let text = refused(dir.path(), &format!("storage: {{path: {path}}}")).await;
        assert!(text.contains(path), "{text}");
    }
    assert_eq!(fs::read_to_string(dir.path().join("occupied")).unwrap(), "a file");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_directory_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let dir = TempDir::new().unwrap();
    let data = dir.path().join("frozen");
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o555)).unwrap();
    fs::write(dir.path().join("settings.yaml"), settings("storage: {path: frozen}")).unwrap();
    let output = without_privileges(dir.path()).await;
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
    let text = said(&output);
    assert!(text.contains("frozen"), "{text}");
    assert!(text.to_lowercase().contains("denied") || text.contains("read-only"), "{text}");
}

/// Runs the server in this directory; for root, without the right to ignore permissions.
async fn without_privileges(dir: &Path) -> Output {
    let is_bound = fs::write(dir.join("frozen/probe"), "x").is_err();
    if is_bound {
        return Launch { args: SERVE, ..Launch::default() }.run_in(dir, BIN).await;
    }
    fs::remove_file(dir.join("frozen/probe")).unwrap();
    let mut args = vec!["--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all", BIN];
    args.extend(SERVE);
    Launch { args: &args, ..Launch::default() }.run_in(dir, "setpriv").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_in_use_by_another_server_is_named() {
    let server = hub("storage: {path: shared}").await;
    let mut alice = connect(&server, "alice").await;
    let id = tell_with_outcome(&mut alice, "bob", json!(1), "stored").await;
    // From elsewhere, by another name.
    let dir = TempDir::new().unwrap();
    let path = server.dir().join("shared");
    let text = refused(dir.path(), &format!("storage: {{path: \"{}\"}}", path.display())).await;
    assert!(text.contains(&path.display().to_string()), "{text}");
    assert!(text.contains("use") || text.contains("lock") || text.contains("open"), "{text}");
    // The first is not disturbed.
    let mut bob = connect(&server, "bob").await;
    assert_eq!(bob.expect_reliable("direct_message").await["id"], id.as_str());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_is_free_again_after_its_server() {
    for is_killed in [false, true] {
        let (mut server, ids) = ended_with(2, is_killed).await;
        server.restart().await;
        let mut bob = connect(&server, "bob").await;
        for id in &ids {
            assert_eq!(bob.expect_reliable("direct_message").await["id"], id.as_str());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_file_is_not_overwritten() {
    let (server, _) = ended_with(1, false).await;
    let file = inbox_file(&server);
    for content in ["not a database", &"x".repeat(100_000)] {
        fs::write(&file, content).unwrap();
        let text = refused(server.dir(), "").await;
        assert!(text.contains("data"), "{text}");
        assert_eq!(fs::read_to_string(&file).unwrap(), content);
    }
    // A directory in its place.
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    let text = refused(server.dir(), "").await;
    assert!(text.contains("data"), "{text}");
}

/// Starts the server on a damaged file. It either refuses, in clear words,
/// or serves: then what Bob does not get any more was said in the log.
async fn damaged(mut server: ServerProcess, ids: &[String], what: &str) -> &'static str {
    if let Err(code) = server.try_restart().await {
        let text = server.log();
        assert_eq!(code, 1, "{what}: {text}");
        assert!(!text.contains("panicked at"), "{what}: {text}");
        assert!(text.contains("data"), "{what}: {text}");
        return "refused";
    }
    server.metrics().await.ledger().check();
    let mut bob = connect(&server, "bob").await;
    let mut got = Vec::new();
    let left = eventually("Bob has what there is", async || {
        for frame in bob.barrier().await {
            let id = text(&frame["id"]);
            assert!(ids.contains(&id), "{what}: {frame}");
            let filler = frame["data"]["content"]["filler"].as_str();
            assert_eq!(filler.map(str::len), Some(500), "{what}: {frame}");
            bob.ack(&[&id]).await;
            got.push(id);
        }
        let ledger = server.metrics().await.ledger();
        ledger.check();
        (ledger.here() == 0.0).then_some(ids.len() - got.len())
    })
    .await;
    assert!(got.is_sorted(), "{what}: out of order");
    let log = server.log();
    assert!(!log.contains("panicked at"), "{what}: {log}");
    if left > 0 {
        assert!(log.contains("WARN") || log.contains("ERROR"), "{what}: {left} are lost and nobody says so:\n{log}");
        return "served, and said what is lost";
    }
    // And it goes on working.
    let mut alice = connect(&server, "alice").await;
    alice.request_ok(reliable("carol", &json!(1)), "accepted").await;
    "served all"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncated_file_is_no_silent_loss() {
    for is_killed in [true, false] {
        for share in [0, 1, 25, 50, 75, 99] {
            let (server, ids) = ended_with(100, is_killed).await;
            let file = inbox_file(&server);
            let length = file.metadata().unwrap().len();
            let keep = length * share / 100;
            fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(keep).unwrap();
            let what = format!("{keep} of {length} bytes, killed: {is_killed}");
            let end = damaged(server, &ids, &what).await;
            println!("{what}: {end}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_is_no_silent_loss() {
    for is_killed in [true, false] {
        let (server, ids) = ended_with(100, is_killed).await;
        let bytes = fs::read(inbox_file(&server)).unwrap();
        drop(server);
        // Spread over the file, and the head, where the file says what it is.
        let places = [8, 64, 200, 320, 4_096, 5_000];
        let spread = (1..8).map(|n| bytes.len() * n / 8 + 17 * n);
        for at in places.into_iter().chain(spread).filter(|&at| at < bytes.len()) {
            let mut server = hub("").await;
            server.kill().await;
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            let file = inbox_file(&server);
            fs::write(&file, &flipped).unwrap();
            let what = format!("bit at {at} of {} bytes, killed: {is_killed}", bytes.len());
            let end = damaged(server, &ids, &what).await;
            println!("{what}: {end}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_what_is_new_and_loses_nothing() {
    // The limit of this shell for the size of files stands for a full disk; without the signal, a write fails.
    let script = format!("trap '' XFSZ; ulimit -f 4096; exec '{BIN}' serve --config settings.yaml");
    let keys = "storage: {inbox_max_messages: 1000000, inbox_max_bytes: 1GiB}, limits: {stored_per_sender: 1000000}";
    let launch = Launch { args: &["-c", &script], files: &[("settings.yaml", &settings(keys))], env: &[] };
    let mut server = ServerProcess::launch("/bin/sh", &launch).await;
    let mut alice = connect(&server, "alice").await;
    let mut accepted = Vec::new();
    let refusal = loop {
        let reply = alice.request(reliable("bob", &json!("x".repeat(30_000)))).await;
        if reply["message_type"] != "accepted" {
            break reply;
        }
        assert_eq!(reply["data"]["outcome"], "stored", "{reply}");
        accepted.push(text(&reply["data"]["id"]));
        assert!(accepted.len() < 2_000, "60 MB fit into a file of 4 MiB");
    };
    assert_eq!(refusal["message_type"], "error", "{refusal}");
    assert!(matches!(refusal["data"]["code"].as_i64(), Some(1003 | 4003)), "{refusal}");
    assert_eq!(refusal["data"]["temporary"], true, "{refusal}");
    println!("{} messages of 30 kB before the disk was full: {refusal}", accepted.len());
    let body = json!({"content": "x".repeat(30_000), "require_ack": true});
    let answer = server.post("/api/users/bob/messages", &body).await;
    assert!(matches!(answer.status, 500 | 503), "{answer:?}");
    answer.error_code();
    // Whatever needs no disk goes on.
    let mut carol = connect(&server, "carol").await;
    assert_on_its_way(&alice.tell("carol", json!("plain")).await["data"]);
    carol.expect("direct_message").await;
    server.metrics().await.ledger().check();
    let log = server.log();
    assert!(log.contains("WARN") || log.contains("ERROR"), "nobody says that the disk is full:\n{log}");
    assert!(!log.contains("panicked at"), "{log}");

    // With room again, everything that was accepted is there.
    server.kill().await;
    let moved = TempDir::new().unwrap();
    for file in data_files(&server) {
        fs::copy(&file, moved.path().join(file.file_name().unwrap())).unwrap();
    }
    let path = moved.path().display();
    let keys = keys.replace("storage: {", &format!("storage: {{path: \"{path}\", "));
    let again = hub(&keys).await;
    let mut bob = connect(&again, "bob").await;
    for id in &accepted {
        let delivery = bob.expect_reliable("direct_message").await;
        assert_eq!(delivery["id"], id.as_str());
        bob.ack(&[id]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_impossible_data_directory_is_told_before_the_port_is_taken() {
    let dir = TempDir::new().unwrap();
    let text = refused(dir.path(), "storage: {path: /dev/null/data}").await;
    assert!(text.contains("/dev/null/data"), "{text}");
    assert!(!text.contains("listening"), "{text}");
}
