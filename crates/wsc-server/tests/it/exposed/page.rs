//! A page of another origin, in a real browser.

use std::{env, path::Path, process::Stdio, time::Duration};

use tokio::{process::Command, time::timeout};

use super::{TALK, guarded, token};
use crate::support::hub;

/// Longer than the script gives itself.
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test]
#[ignore = "needs Chromium and npm's playwright-core: run .ci/setup first"]
async fn a_foreign_page_gets_nothing_from_a_hub_on_this_machine() {
    let server = hub("").await;
    passes(&server.http_url(), "").await;
    let server = guarded("", "").await;
    passes(&server.http_url(), &token("alice", TALK)).await;
}

async fn passes(url: &str, token: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tools = env::var_os("WSC_CI_TOOLS").map_or_else(|| root.join("../../target/ci-tools"), Into::into);
    let run = Command::new("node")
        .arg(root.join("tests/clients/foreign.mjs"))
        .arg(url)
        .env("WSC_CI_TOOLS", tools)
        .env("WSC_TOKEN", token)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(PATIENCE, run).await.expect("the script ends").expect("node runs: .ci/setup first");
    assert!(
        output.status.success(),
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
