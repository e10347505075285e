//! What nobody gets to read: keys, passwords, tokens.

use serde_json::{Value, json};
use wsc_testkit::{Client, ConnectOptions, Launch, ServerProcess, TokenKey, claims};

use super::{SECRET, TALK, admin, authenticate, call, connect, direct, enter, routes::ROUTES, token, token_with};
use crate::support::{BIN, upgrade};

/// Every secret that settings can hold, each a text that is nowhere else.
const API: &str = "apikey-4f1c2a9be77d";
const HEADER: &str = "header-90be4471c3aa";
const SIGNING: &str = "whsec_c2lnbmluZy03MWQ5YzI4ZTU0YjA=";
const NATS: &str = "natspw-66a1f0d2c983";
const REDIS: &str = "redispw-3be8d7405f1c";

fn settings(level: &str) -> String {
    format!(
        "wsc: {{listen: \"127.0.0.1:0\", log: {{level: {level}}}, auth: {{enabled: true, secret_key: \"{SECRET}\"}}, \
         http: {{api_keys: [{API}]}}, \
         callbacks: {{webhook_url: \"http://127.0.0.1:9/hook\", headers: {{X-Key: {HEADER}}}, signing_secrets: [\"{SIGNING}\"]}}, \
         cluster: {{nats: {{username: u, password: {NATS}}}, redis: {{password: {REDIS}}}}}}}\n"
    )
}

async fn start(level: &str) -> ServerProcess {
    let settings = settings(level);
    let launch =
        Launch { args: &["serve", "--config", "settings.yaml"], files: &[("settings.yaml", &settings)], env: &[] };
    ServerProcess::launch(BIN, &launch).await
}

/// Asserts that none of the secrets is in the text.
#[track_caller]
fn assert_clean(what: &str, text: &str, secrets: &[String]) {
    for secret in secrets {
        if let Some(at) = text.find(secret.as_str()) {
            let from = text[..at].rfind('\n').map_or(0, |line| line + 1);
            let to = text[at..].find('\n').map_or(text.len(), |end| at + end);
            panic!("{what} shows {secret:?}: {}", &text[from..to]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_answers_nor_logs_hold_a_secret() {
    let mut server = start("trace").await;
    let (root, alice) = (admin(), token("alice", TALK));
    let forged = TokenKey::secret("HS256", "x".repeat(40)).token(&claims("mallory", json!({})));
    let old = token_with("alice", json!({"exp": wsc_testkit::unix_now() - 5}));
    let mut secrets: Vec<String> = [SECRET, API, HEADER, SIGNING, NATS, REDIS].map(str::to_owned).into();
    secrets.extend([&root, &alice, &forged, &old].map(Clone::clone));
    // A token is its signature: its other parts alone open nothing, but are nobody's business either.
    secrets.extend([&root, &alice, &forged].map(|token| token.rsplit_once('.').unwrap().1.to_owned()));
    let wrong_key = "wrongkey-88d1e0fa62b4";
    secrets.push(wrong_key.to_owned());

    let mut seen = String::new();
    let mut keep = |answer: &wsc_testkit::HttpResponse| {
        seen.push_str(&format!("{:?}\n{}\n", answer.headers, String::from_utf8_lossy(&answer.body)));
    };
    // All routes, by all ways of asking.
    for route in ROUTES {
        let body: Option<Value> = route.body.map(|text| serde_json::from_str(text).unwrap());
        for bearer in [&root, &alice, &forged, &old, &API.to_owned(), &wrong_key.to_owned()] {
            keep(&call(&server, route.method, route.path, bearer, body.as_ref()).await);
        }
        keep(&server.http(route.method, route.path, &[("X-API-Key", wrong_key)], route.body()).await);
        let path = format!("{}{}token={root}", route.path, if route.path.contains('?') { '&' } else { '?' });
        keep(&server.http(route.method, &path, &[], route.body()).await);
    }
    // Sockets: good, bad, renewed, revoked, refused.
    let mut client = connect(&server, &alice).await;
    client.request(authenticate(&forged)).await;
    client.request(authenticate(&alice)).await;
    client.send_text(format!("{{\"message_type\":\"authenticate\",\"data\":{{\"token\":\"{forged}\"")).await;
    client.barrier().await;
    client.request(json!({"message_type": "authenticate", "data": {"token": [forged]}})).await;
    for bad in [&forged, &old] {
        keep(&upgrade(&server, &format!("/ws?token={bad}"), |h| h).await);
        keep(&upgrade(&server, "/ws", |h| h.add("Authorization", &format!("Bearer {bad}"))).await);
        let url = super::ws_url(&server, bad);
        let mut refused = Client::open(&url, &ConnectOptions { subprotocols: &["wsc.v1"], ..Default::default() }).await;
        refused.expect_close().await;
    }
    keep(&upgrade(&server, &format!("/ws?token={alice}&user_id=%00"), |h| h).await);
    keep(&upgrade(&server, &format!("/ws?token={alice}&client_id=__x"), |h| h).await);
    keep(&upgrade(&server, &format!("/ws?token={alice}"), |h| h.set("Host", "evil.example")).await);
    keep(&upgrade(&server, &format!("/ws?token={alice}"), |h| h.add("Origin", "http://evil.example")).await);
    keep(&server.get(&format!("/nope/{alice}")).await);
    client.request(direct("bob", &json!(1))).await;
    let trace = format!("/api/clients/{}/trace", client.session());
    keep(&call(&server, "POST", &trace, &root, None).await);
    keep(&call(&server, "GET", &format!("/api/clients/{}", client.session()), &root, None).await);
    for frame in client.seen() {
        seen_frame(frame, &secrets);
    }
    // Settings that are wrong, and name themselves.
    let file = server.dir().join("settings.yaml");
    for broken in [
        settings("trace").replace("api_keys", "api_kyes"),
        settings("trace").replace("api_keys: [", "api_keys: [short, "),
        settings("trace").replace("secret_key: \"", "secret_key: \"x\", secret_key_file: \""),
        settings("trace").replace("headers: {X-Key: ", "headers: [X-Key, ").replace("}, signing", "], signing"),
        settings("trace").replace("}}}\n", "\n"),
    ] {
        std::fs::write(&file, broken).unwrap();
        keep(&call(&server, "POST", "/api/admin/config/reload", &root, None).await);
    }
    std::fs::write(&file, settings("debug")).unwrap();
    keep(&call(&server, "POST", "/api/admin/config/reload", &root, None).await);
    let status = call(&server, "GET", "/debug/hub/status", &root, None).await;
    keep(&status);
    let config = status.json()["current_config"].to_string();
    assert!(config.contains("secret_key") && config.contains("api_keys"), "it is there, masked: {config}");
    server.terminate().await;
    // Both had much to say.
    assert!(seen.contains("client_count") && seen.contains("invalid token"), "{seen}");
    assert!(server.log().contains("alice") && server.log().contains("TRACE"), "{}", server.log());
    assert_clean("an answer", &seen, &secrets);
    assert_clean("the log", &server.log(), &secrets);
}

/// What a client was told holds no secret but what it sent itself.
fn seen_frame(frame: &wsc_testkit::Inbound, secrets: &[String]) {
    if let wsc_testkit::Inbound::Text(text) = frame {
        assert_clean("a frame", text, secrets);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_start_says_no_secret_either() {
    let good = settings("info");
    let secrets: Vec<String> = [SECRET, API, HEADER, SIGNING, NATS, REDIS].map(str::to_owned).into();
    for broken in [
        good.replace("api_keys: [", "api_keys: [short, "),
        good.replace("secret_key: \"", "secret_kye: \""),
        good.replace("127.0.0.1:0", "nowhere"),
        good.replace("password: ", "passwrod: "),
        good.replace("headers: {X-Key: ", "headers: {\"X Key\": "),
        good.replace("headers: {X-Key: ", "headers: [X-Key, ").replace("}, signing", "], signing"),
        good.replace("api_keys: [apikey-4f1c2a9be77d]", "api_keys: {a: apikey-4f1c2a9be77d}"),
        good.replace("}}}\n", "\n"),
    ] {
        assert_ne!(broken, good);
        for args in [&["serve", "--config", "settings.yaml"][..], &["check-config", "settings.yaml"]] {
            let launch = Launch { args, files: &[("settings.yaml", &broken)], env: &[] };
            let output = launch.run(BIN).await;
            assert_ne!(output.status.code(), Some(0), "{broken}");
            let said =
                format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(!said.is_empty());
            assert_clean("the complaint", &said, &secrets);
        }
    }
    // Nor where they come by the environment.
    let launch = Launch {
        args: &["serve"],
        files: &[],
        env: &[
            ("WSC__HTTP__API_KEYS", "short-77ae"),
            ("WSC__AUTH__SECRET_KEY", "tiny-52bd"),
            ("WSC__AUTH__ENABLED", "true"),
            ("WSC__LISTEN", "127.0.0.1:0"),
        ],
    };
    let output = launch.run(BIN).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_clean("the complaint", &said, &["short-77ae".to_owned(), "tiny-52bd".to_owned()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_shows_no_secret() {
    let settings = settings("info");
    let server = start("info").await;
    let cmdline = std::fs::read_to_string(format!("/proc/{}/cmdline", server.pid())).unwrap();
    let secrets: Vec<String> = [SECRET, API].map(str::to_owned).into();
    assert_clean("the process list", &cmdline, &secrets);
    let launch = Launch {
        args: &["gen-token", "-u", "alice", "--config", "settings.yaml"],
        files: &[("settings.yaml", &settings)],
        env: &[],
    };
    let output = launch.run(BIN).await;
    assert!(output.status.success(), "{output:?}");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_clean("gen-token", &said, &secrets);
    enter(&server, "alice").await.expect_quiet().await;
}
