//! Clients that nobody here wrote: Python's `websockets`, npm's `ws`, and Chromium on the demo page.
//!
//! The scripts lie in `tests/clients` and can be run by hand against any hub on loopback. Here each gets a server of
//! its own. `.ci/setup` installs what they need; a missing tool is a failure, never a silent pass.

use std::{
    env,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{process::Command, time::timeout};

use crate::support::hub;

/// Longer than any script gives itself, so that a slow one can still say where it was.
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test]
#[ignore = "needs Python's websockets: run .ci/setup first"]
async fn python_websockets_can_talk() {
    let python = tool(tools().join("venv/bin/python"));
    passes(&python, "chat.py", "").await;
    passes(&python, "chat.py", COMPRESSED).await;
}

#[tokio::test]
#[ignore = "needs npm's ws: run .ci/setup first"]
async fn npm_ws_can_talk() {
    tool(tools().join("node/node_modules/ws/package.json"));
    passes(Path::new("node"), "chat.mjs", "").await;
    passes(Path::new("node"), "chat.mjs", COMPRESSED).await;
}

#[tokio::test]
#[ignore = "needs Chromium and npm's playwright-core: run .ci/setup first"]
async fn the_demo_page_works_in_chromium() {
    tool(tools().join("node/node_modules/playwright-core/package.json"));
    tool(env::var_os("CHROMIUM").map_or_else(|| PathBuf::from("/usr/bin/chromium"), PathBuf::from));
    passes(Path::new("node"), "browser.mjs", "").await;
    passes(Path::new("node"), "browser.mjs", COMPRESSED).await;
}

/// Whatever can be compressed is: all of these clients offer it, as browsers do.
const COMPRESSED: &str = "compression: {enabled: true, threshold: 0}";

/// Runs the script against a fresh server with these settings; what it printed is what a failure shows.
async fn passes(interpreter: &Path, script: &str, keys: &str) {
    let server = hub(keys).await;
    let clients = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
    let run = Command::new(interpreter)
        .arg(clients.join(script))
        .arg(server.http_url())
        .args((!keys.is_empty()).then_some("compressed"))
        .env("WSC_CI_TOOLS", tools())
        // No __pycache__ in the source tree.
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(PATIENCE, run)
        .await
        .unwrap_or_else(|_| panic!("{script} is not done after {PATIENCE:?}"))
        .unwrap_or_else(|error| panic!("cannot run {}: {error}; run .ci/setup first", interpreter.display()));
    assert!(
        output.status.success(),
        "{script}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
}

/// Where `.ci/setup` puts what the scripts import.
fn tools() -> PathBuf {
    env::var_os("WSC_CI_TOOLS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/ci-tools"), PathBuf::from)
}

/// Gives the path back when something is there.
#[track_caller]
fn tool(path: PathBuf) -> PathBuf {
    assert!(path.exists(), "{} is missing: run .ci/setup first", path.display());
    path
}
