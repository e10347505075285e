//! A hub with the settings that are shipped, run as the pages say.

use std::{fs, net::SocketAddr, path::Path, process::Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use wsc_testkit::{Client, HttpResponse, Launch, Metrics, ServerProcess, eventually, http, query};

use crate::{
    metrics::expressions,
    support::{BIN, adapted, docs, free_address},
};

const KEY: &str = "0123456789abcdef0123456789abcdef";
const KEYS: [(&str, &str); 1] = [("WSC__HTTP__API_KEYS", KEY)];

/// The hub of the compose file, on ports of this machine and in a directory of its own.
struct Deployed {
    server: ServerProcess,
    internal: SocketAddr,
}

impl Deployed {
    async fn start() -> Self {
        let internal = free_address().await;
        let settings = adapted(
            "ops/docker/hub/wsc.yaml",
            &[
                ("0.0.0.0:8080", "127.0.0.1:0"),
                ("0.0.0.0:8081", &internal.to_string()),
                ("/run/secrets/jwt_key", "jwt_key"),
                ("/var/lib/wsc/data", "data"),
            ],
        );
        let launch = Launch {
            args: &["serve", "--config", "settings.yaml"],
            files: &[("settings.yaml", &settings), ("jwt_key", "fedcba9876543210fedcba9876543210")],
            env: &KEYS,
        };
        let server = ServerProcess::launch(BIN, &launch).await;
        let headers = [("Content-Type", "application/json"), ("X-API-Key", KEY)];
        let made = server.http("POST", "/api/rooms", &headers, Some(br#"{"id":"lobby"}"#)).await;
        assert_eq!(made.status, 201, "{made:?}");
        Self { server, internal }
    }

    /// Asks at the internal port, with the key or without.
    async fn internal(&self, method: &str, path: &str, key: Option<&str>) -> HttpResponse {
        let bearer = key.map(|key| format!("Bearer {key}"));
        let headers: Vec<_> = bearer.iter().map(|bearer| ("Authorization", bearer.as_str())).collect();
        http(method, &format!("http://{}{path}", self.internal), &headers, None).await
    }

    async fn metrics(&self) -> Metrics {
        let response = self.internal("GET", "/metrics", Some(KEY)).await;
        assert_eq!(response.status, 200, "{response:?}");
        Metrics::parse(response.text())
    }

    /// A token as the page makes one.
    async fn token(&self, user: &str) -> String {
        let args = [
            "gen-token",
            "--config",
            "settings.yaml",
            "--user",
            user,
            "--ttl",
            "15m",
            "-p",
            "join:room",
            "-p",
            "send:message",
        ];
        let output = Launch { args: &args, files: &[], env: &KEYS }.run_in(self.server.dir(), BIN).await;
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    async fn connect(&self, user: &str) -> Client {
        let token = self.token(user).await;
        Client::connect(&format!("{}{}", self.server.ws_url(), query(&[("token", &token)]))).await
    }

    /// Changes the settings file, as an editor would.
    fn edit(&self, from: &str, to: &str) {
        let path = self.server.dir().join("settings.yaml");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(&path, text.replace(from, to)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_get_in_nowhere_and_people_with_tokens_talk() {
    let hub = Deployed::start().await;
    for path in ["/metrics", "/debug/hub/status", "/health/failure-stats", "/api/stats", "/api/clients"] {
        let status = hub.server.get(path).await.status;
        assert!(matches!(status, 401 | 403 | 404), "{path}: {status}");
    }
    for path in ["/metrics", "/debug/hub/status", "/health/failure-stats"] {
        // At the public port, not even with the key.
        let with_key = hub.server.http("GET", path, &[("X-API-Key", KEY)], None).await.status;
        assert!(matches!(with_key, 403 | 404), "{path}: {with_key}");
        assert_eq!(hub.internal("GET", path, None).await.status, 401, "{path}");
        assert_eq!(hub.internal("GET", path, Some("guessed-0123456789abcdef")).await.status, 401, "{path}");
        assert_eq!(hub.internal("GET", path, Some(KEY)).await.status, 200, "{path}");
    }
    for probe in ["/health/live", "/health/ready"] {
        assert_eq!(hub.server.get(probe).await.status, 200, "{probe}");
    }
    let nobody = hub.server.get("/ws").await;
    assert_ne!(nobody.status, 101);

    let (mut alice, mut bob) = (hub.connect("alice").await, hub.connect("bob").await);
    for client in [&mut alice, &mut bob] {
        client.join("lobby").await;
    }
    alice.say("lobby", json!("hello")).await;
    assert_eq!(bob.expect("room_message").await["data"]["content"], "hello");
    alice.request_error(json!({"message_type": "create_room", "data": {"room_id": "mine"}}), 2001).await;

    let body = br#"{"user_id":"alice"}"#;
    let headers = [("Content-Type", "application/json"), ("X-API-Key", KEY)];
    let revoked = hub.server.http("POST", "/api/tokens/revoke", &headers, Some(body)).await;
    assert_eq!((revoked.status, &revoked.json()["closed"]), (200, &json!(1)), "{revoked:?}");
    assert_eq!(alice.expect_close().await.0, 3500);
    bob.expect_quiet().await;
    assert!(!hub.server.log().contains(KEY));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_change_while_people_talk_and_mistakes_change_nothing() {
    let hub = Deployed::start().await;
    let mut alice = hub.connect("alice").await;
    let told = hub.internal("POST", "/api/admin/config/reload?dry_run=true", Some(KEY)).await;
    assert_eq!(told.json(), json!({"applied": [], "pending_restart": [], "dry_run": true}), "{told:?}");

    // The signal of `systemctl reload`.
    hub.edit("user_connections: 20", "user_connections: 21");
    let pid = i32::try_from(hub.server.pid()).ok().and_then(Pid::from_raw).unwrap();
    kill_process(pid, Signal::HUP).unwrap();
    eventually("the new settings are taken", async || {
        let status = hub.internal("GET", "/debug/hub/status", Some(KEY)).await.json();
        (status["current_config"]["limits"]["user_connections"] == 21).then_some(())
    })
    .await;
    assert_eq!(hub.metrics().await.sum("wsc_config_last_reload_successful", &[]), 1.0);

    hub.edit("user_connections: 21", "user_connectionz: 22");
    eventually("the mistake is noticed", async || {
        (hub.metrics().await.sum("wsc_config_last_reload_successful", &[]) == 0.0).then_some(())
    })
    .await;
    let refused = hub.internal("POST", "/api/admin/config/reload", Some(KEY)).await;
    assert_eq!(refused.status, 400, "{refused:?}");
    assert!(refused.text().contains("user_connectionz"), "{refused:?}");
    let status = hub.internal("GET", "/debug/hub/status", Some(KEY)).await.json();
    assert_eq!(status["current_config"]["limits"]["user_connections"], 21);
    alice.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_says_so_first_and_ends_in_order() {
    let mut hub = Deployed::start().await;
    let (mut alice, mut bob) = (hub.connect("alice").await, hub.connect("bob").await);
    hub.server.signal_terminate();
    eventually("it is not ready any more", async || {
        (hub.server.get("/health/ready").await.status == 503).then_some(())
    })
    .await;
    // For the delay (2 s) nothing else changes: people talk, and it is alive.
    assert_eq!(hub.server.get("/health/live").await.status, 200);
    for client in [&mut alice, &mut bob] {
        client.join("lobby").await;
    }
    alice.say("lobby", json!("still here")).await;
    assert_eq!(bob.expect("room_message").await["data"]["content"], "still here");
    for mut client in [alice, bob] {
        let (code, reason) = client.expect_close().await;
        assert_eq!((code, &reason["reconnect"]), (3001, &json!(true)), "{reason}");
        assert!(reason["retry_after_ms"].is_u64(), "{reason}");
    }
    assert_eq!(hub.server.wait().await, 0);
}

/// Prometheus with the settings that are shipped, in a directory of its own.
struct Prometheus {
    addr: SocketAddr,
    _child: Child,
}

impl Prometheus {
    async fn start(dir: &Path, hub: &Deployed) -> Self {
        let addr = free_address().await;
        let path = dir.to_str().unwrap();
        let config = adapted(
            "ops/docker/prometheus.yaml",
            &[
                ("hub:8081", &hub.internal.to_string()),
                ("/run/secrets/api_key", &format!("{path}/api_key")),
                // Soon enough for a test.
                ("15s", "1s"),
            ],
        );
        fs::write(dir.join("prometheus.yaml"), config).unwrap();
        fs::write(dir.join("api_key"), KEY).unwrap();
        fs::copy(docs("ops/alerts.yaml"), dir.join("alerts.yaml")).unwrap();
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={path}/prometheus.yaml"))
            .arg(format!("--storage.tsdb.path={path}/tsdb"))
            .arg(format!("--web.listen-address={addr}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.join("output")).unwrap())
            .kill_on_drop(true);
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Self { addr, _child: child }
    }

    async fn get(&self, path: &str) -> Option<Value> {
        let url = format!("http://{}{path}", self.addr);
        let response = wsc_testkit::try_http("GET", &url, &[], None).await.ok()?;
        // Not ready yet.
        if response.status == 503 {
            return None;
        }
        assert_eq!(response.status, 200, "{path}: {}", response.text());
        Some(response.json()["data"].clone())
    }

    /// The samples of an expression now.
    async fn query(&self, expression: &str) -> Option<Vec<Value>> {
        let data = self.get(&format!("/api/v1/query{}", query(&[("query", expression)]))).await?;
        data["result"].as_array().cloned()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs prometheus"]
async fn prometheus_scrapes_with_the_key_and_understands_every_rule_and_panel() {
    let hub = Deployed::start().await;
    let mut alice = hub.connect("alice").await;
    alice.join("lobby").await;
    let dir = tempfile::tempdir().unwrap();
    let prometheus = Prometheus::start(dir.path(), &hub).await;
    eventually("a scrape with a client in it, and rules that were worked out", async || {
        let connections = prometheus.query("wsc_connections{job=\"wsc-hub\"}").await?;
        let unaccounted = prometheus.query("wsc:messages_unaccounted").await?;
        (connections.first()?["value"][1] == "1" && unaccounted.first()?["value"][1] == "0").then_some(())
    })
    .await;
    let rules = prometheus.get("/api/v1/rules").await.unwrap();
    for rule in rules["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap()) {
        assert_ne!(rule["health"], "err", "{rule}");
        assert_ne!(rule["state"], "firing", "{rule}");
    }
    // Panels are Grafana's: its variables stand for everything here. A panel without a function is never empty.
    for (place, expression) in expressions() {
        let plain = expression.replace("$__rate_interval", "1m").replace("$job", ".*").replace("$instance", ".*");
        let found = prometheus.query(&plain).await.unwrap();
        assert!(plain.contains('[') || place.starts_with("rule") || !found.is_empty(), "{place}: {plain}");
    }
}
