//! Settings that are wrong leave the hub as it is, whole.

use serde_json::{Value, json};
use wsc_testkit::{
    Handshake, Launch, RawClient, ServerProcess, TlsIdentity, TokenKey, WebhookReceiver, claims, eventually,
};

use super::{callbacks, connect, hub_with_webhooks, reconfigure, reload, reloads, replace, rewrite, running, status};
use crate::support::{BIN, hub, settings};

/// A file that is refused, and a word of what is said about it.
const WRONG: &[(&str, &str)] = &[
    ("wsc: {listen: \"127.0.0.1:0\", ack_timeout: 9s, not_a_key: 1}\n", "not_a_key"),
    ("wsc: {listen: \"127.0.0.1:0\", ack_timeout: 9s, queue: {policy: drop_all}}\n", "queue.policy"),
    ("wsc: {listen: \"127.0.0.1:0\", ack_timeout: 9s, max_retries: 101}\n", "max_retries"),
    ("wsc: {listen: \"127.0.0.1:0\", ack_timeout: 9s\n", "settings.yaml"),
    ("wsc: {listen: \"127.0.0.1:0\", ack_timeout: 9s}\nother: 1\n", "other"),
    ("wsc: {listen: \"0.0.0.0:1\", ack_timeout: 9s}\n", "listen"),
    ("wsc: {listen: \"127.0.0.1:0\", ack_timeout: 9s, callbacks: {enable_webhooks: true}}\n", "webhook_url"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_wrong_in_one_place_changes_nothing_at_all() {
    let server = hub("ack_timeout: 7s").await;
    let before = status(&server).await["current_config"].clone();
    for (n, (file, word)) in (1..).zip(WRONG) {
        replace(&server.dir().join("settings.yaml"), file);
        let answer = reload(&server).await;
        assert_eq!((answer.status, answer.error_code()), (400, 1001), "{file}: {answer:?}");
        assert!(answer.text().contains(word), "{word} in {answer:?}");
        let status = status(&server).await;
        assert_eq!(status["current_config"], before, "{file}");
        assert_eq!(status["pending_restart"], json!([]), "{file}");
        assert!(reloads(&server, "rejected").await >= f64::from(n), "{file} is not counted");
    }
    assert_eq!(reloads(&server, "applied").await, 0.0);
    // Not spoiled for good.
    reconfigure(&server, "ack_timeout: 9s").await;
    assert_eq!(running(&server, "ack_timeout").await, "9s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_that_is_wrong_is_said_at_once() {
    let server = hub("").await;
    rewrite(&server, "not_a_key: 1, max_retries: 101, queue: {policy: drop_all}");
    let answer = reload(&server).await;
    for word in ["not_a_key", "max_retries", "queue.policy"] {
        assert!(answer.text().contains(word), "{word} in {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_logged_and_an_event() {
    let receiver = WebhookReceiver::start().await;
    let server = hub_with_webhooks(&receiver, "", "ack_timeout: 7s").await;
    // Nobody asks: the change of the file alone is enough.
    rewrite(&server, &format!("{}, ack_timeout: 8s, qeue: {{policy: spill}}", callbacks(&receiver, "")));
    let event = receiver.event("config.rejected", |event| event["type"] == "config.rejected").await;
    let error = event["data"]["error"].as_str().unwrap();
    assert!(error.contains("qeue") && error.contains("queue"), "{event}");
    let line = eventually("it is logged", async || {
        reloads(&server, "rejected").await;
        server.log().lines().find(|line| line.contains("qeue")).map(str::to_owned)
    })
    .await;
    assert!(line.contains("WARN") || line.contains("ERROR"), "{line}");
    assert!(reloads(&server, "rejected").await >= 1.0);
    assert_eq!(running(&server, "ack_timeout").await, "7s");
    assert!(receiver.events().iter().all(|event| event["type"] != "config.changed"), "{receiver}");
}

/// A hub with TLS and tokens whose key is in a file.
async fn guarded(identity: &TlsIdentity) -> ServerProcess {
    let launch = Launch {
        args: &["serve", "--config", "settings.yaml"],
        files: &[
            ("settings.yaml", &settings(GUARDED)),
            ("cert.pem", identity.cert_pem()),
            ("key.pem", identity.key_pem()),
            ("secret.key", SECRET),
        ],
        env: &[],
    };
    ServerProcess::launch(BIN, &launch).await
}

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const GUARDED: &str = "auth: {enabled: true, secret_key_file: secret.key}, tls: {cert: cert.pem, key: key.pem}";

fn token(user: &str, secret: &str) -> String {
    TokenKey::secret("HS256", secret).token(&claims(user, json!({"permissions": ["admin:system"]})))
}

/// Speaks TLS with the hub, trusting this identity alone; gives the status and the body of its answer to a request.
async fn ask(server: &ServerProcess, identity: &TlsIdentity, method: &str, path: &str, token: &str) -> (u16, Value) {
    let mut client = RawClient::tls(server.addr(), identity).await;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Length: 0\r\n\
         Connection: close\r\n\r\n"
    );
    client.send_bytes(request.as_bytes()).await;
    let answer = client.read_http_response().await;
    (answer.status, serde_json::from_slice(&answer.body).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_certificate_or_key_file_has_the_whole_file_refused() {
    let identity = TlsIdentity::new();
    let server = guarded(&identity).await;
    let admin = token("root", SECRET);
    let path = |name: &str| server.dir().join(name);
    let other = TlsIdentity::new();
    let wrong: [(&str, Option<&str>); 7] = [
        ("cert.pem", Some("no certificate")),
        ("cert.pem", None),
        // Its certificate is another one.
        ("key.pem", Some(other.key_pem())),
        ("key.pem", Some("")),
        ("key.pem", None),
        ("secret.key", Some("short")),
        ("secret.key", None),
    ];
    for (n, (name, content)) in wrong.into_iter().enumerate() {
        let whole = std::fs::read_to_string(path(name)).unwrap();
        match content {
            Some(content) => replace(&path(name), content),
            None => std::fs::remove_file(path(name)).unwrap(),
        }
        // Valid by itself, and other than what runs.
        rewrite(&server, &format!("{GUARDED}, ack_timeout: {n}1s"));
        let (status, body) = ask(&server, &identity, "POST", "/api/admin/config/reload", &admin).await;
        assert_eq!(status, 400, "{name} with {content:?}: {body}");
        assert!(body.to_string().contains(name), "{name} in {body}");
        let (status, body) = ask(&server, &identity, "GET", "/debug/hub/status", &admin).await;
        assert_eq!(status, 200, "{body}");
        assert_eq!(body["current_config"]["ack_timeout"], "5s", "{name} with {content:?}");
        // Settings first: together with a whole file the new ones would be good.
        rewrite(&server, GUARDED);
        replace(&path(name), &whole);
        // What was there still serves.
        let mut client = RawClient::tls(server.addr(), &identity).await;
        let target = format!("/ws?token={}", token("alice", SECRET));
        let answer = client.handshake(&Handshake::new(server.addr(), &target)).await;
        assert_eq!(answer.status, 101, "{answer:?}");
        client.expect("connected").await;
    }
    rewrite(&server, &format!("{GUARDED}, ack_timeout: 61s"));
    let (status, body) = ask(&server, &identity, "POST", "/api/admin/config/reload", &admin).await;
    assert_eq!(status, 200, "{body}");
    let (_, body) = ask(&server, &identity, "GET", "/debug/hub/status", &admin).await;
    assert_eq!(body["current_config"]["ack_timeout"], "61s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_notice_nothing_of_a_refusal() {
    let server = hub("rooms: {auto_create: true}").await;
    let mut alice = connect(&server, "alice").await;
    alice.join("r1").await;
    for (file, _) in WRONG {
        replace(&server.dir().join("settings.yaml"), file);
        assert_eq!(reload(&server).await.status, 400);
    }
    let mut bob = connect(&server, "bob").await;
    bob.join("r1").await;
    bob.say("r1", json!("still here")).await;
    assert_eq!(alice.expect("room_message").await["data"]["content"], "still here");
}
