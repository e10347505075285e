//! Programs in other languages that receive webhooks and live through restarts.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use wsc_testkit::{Launch, ServerProcess, within};

use super::connect;
use crate::support::{BIN, hub, settings};

/// A program that says line by line what it sees.
struct Foreign {
    _child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Foreign {
    fn start(interpreter: &Path, script: &str, argument: &str) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/operated/foreign").join(script);
        let mut command = Command::new(interpreter);
        command.arg(script).arg(argument).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { _child: child, lines }
    }

    async fn line(&mut self) -> String {
        let line = within("a line of the foreign program", self.lines.next_line()).await.unwrap();
        line.expect("the foreign program has ended")
    }

    /// Takes lines until this one comes.
    async fn expect(&mut self, wanted: &str) {
        loop {
            let line = self.line().await;
            assert_ne!(line, "refused", "instead of {wanted}");
            if line == wanted {
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Node.js"]
async fn a_receiver_in_node_verifies_what_it_gets() {
    let secret = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    let mut node = Foreign::start(Path::new("node"), "receiver.mjs", secret);
    let port = node.line().await;
    let callbacks = |secret: &str| {
        format!(
            "callbacks: {{enable_webhooks: true, webhook_url: \"http://127.0.0.1:{port}/\", batch_interval: 10ms, \
             allow_private_addresses: true, signing_secrets: [\"{secret}\"]}}"
        )
    };
    let server = hub(&callbacks(secret)).await;
    node.expect("hub.started -").await;
    connect(&server, "ällice").await.close().await;
    node.expect("client.connected ällice").await;
    node.expect("client.disconnected ällice").await;
    // It would notice.
    super::reconfigure(&server, &callbacks("whsec_bm90IHRoZSBzYW1lIHNlY3JldCBhdCBhbGwhISEh")).await;
    connect(&server, "bob").await.close().await;
    while node.line().await != "refused" {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Python's websockets: run .ci/setup first"]
async fn a_client_in_python_comes_back_and_misses_nothing() {
    let tools = std::env::var_os("WSC_CI_TOOLS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/ci-tools"), PathBuf::from);
    // The same address for every hub that follows.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = free.local_addr().unwrap();
    drop(free);
    let file = settings("").replace("127.0.0.1:0", &addr.to_string());
    let launch = Launch { args: &["serve", "--config", "settings.yaml"], files: &[("settings.yaml", &file)], env: &[] };
    let mut server = ServerProcess::launch(BIN, &launch).await;
    let url = server.ws_url_as("python");
    let mut python = Foreign::start(&tools.join("venv/bin/python"), "stay.py", &url);
    assert_eq!(python.line().await, "connected");
    for n in 0..3 {
        let send = async |server: &ServerProcess, content: String| {
            let body = json!({"content": content, "require_ack": true});
            assert_eq!(server.post("/api/users/python/messages", &body).await.status, 202);
        };
        send(&server, format!("before {n}")).await;
        assert_eq!(python.line().await, format!("content \"before {n}\""));
        server.signal_terminate();
        assert_eq!(python.line().await, "closed 3001 True True");
        assert_eq!(server.wait().await, 0);
        server.restart().await;
        // It is here, or stored until the client is.
        send(&server, format!("after {n}")).await;
        assert_eq!(python.line().await, "connected");
        assert_eq!(python.line().await, format!("content \"after {n}\""));
    }
}
