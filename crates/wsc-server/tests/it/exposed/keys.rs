//! Where the keys come from: settings, files, an identity provider.

use std::time::{Duration, Instant};

use serde_json::json;
use wsc_testkit::{Client, KeySetServer, Launch, ServerProcess, TokenKey, claims};

use super::{BAD_TOKEN, SECRET, authenticate, connect, expect_refusal, ws_url};
use crate::support::{BIN, hub, settings, upgrade};

/// A server with these settings and these files beside them.
async fn hub_with_files(keys: &str, files: &[(&str, &str)]) -> ServerProcess {
    let settings = settings(keys);
    let mut all = vec![("settings.yaml", settings.as_str())];
    all.extend(files);
    ServerProcess::launch(BIN, &Launch { args: &["serve", "--config", "settings.yaml"], files: &all, env: &[] }).await
}

fn alice() -> serde_json::Value {
    claims("alice", json!({"permissions": ["join:room"]}))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_may_lie_in_a_file() {
    for ending in ["", "\n", "\r\n"] {
        let content = format!("{SECRET}{ending}");
        let keys = "auth: {enabled: true, secret_key_file: hub.secret}";
        let server = hub_with_files(keys, &[("hub.secret", &content)]).await;
        assert_eq!(connect(&server, &TokenKey::secret("HS256", SECRET).token(&alice())).await.user_id(), "alice");
        let forged = TokenKey::secret("HS256", "hub.secret").token(&alice());
        expect_refusal(&server, Some(&forged), BAD_TOKEN).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_public_key_may_stand_in_the_settings_or_in_a_file() {
    for key in [TokenKey::rsa(), TokenKey::ec(), TokenKey::ed25519()] {
        let pem = key.public_pem();
        let token = key.token(&alice());
        let server = hub(&format!("auth: {{enabled: true, public_key: {}}}", json!(pem))).await;
        assert_eq!(connect(&server, &token).await.user_id(), "alice", "{key:?}");
        let keys = "auth: {enabled: true, public_key_file: hub.pem}";
        let server = hub_with_files(keys, &[("hub.pem", &pem)]).await;
        assert_eq!(connect(&server, &token).await.user_id(), "alice", "{key:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_fit_key_the_server_does_not_start() {
    let private = TokenKey::ec().private_pem();
    for (keys, files) in [
        ("auth: {enabled: true}", vec![]),
        ("auth: {enabled: true, secret_key: too-short-for-an-hmac-key}", vec![]),
        ("auth: {enabled: true, secret_key_file: missing}", vec![]),
        ("auth: {enabled: true, secret_key_file: short}", vec![("short", "too-short-for-an-hmac-key")]),
        ("auth: {enabled: true, public_key: no-pem}", vec![]),
        ("auth: {enabled: true, public_key_file: missing}", vec![]),
        (
            "auth: {enabled: true, public_key_file: broken}",
            vec![("broken", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")],
        ),
        ("auth: {enabled: true, public_key_file: private}", vec![("private", private.as_str())]),
    ] {
        let settings = settings(keys);
        let mut all = vec![("settings.yaml", settings.as_str())];
        all.extend(&files);
        let launch = Launch { args: &["serve", "--config", "settings.yaml"], files: &all, env: &[] };
        let output = launch.run(BIN).await;
        assert!(matches!(output.status.code(), Some(1 | 2)), "{keys}: {output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("auth."), "{keys}: it does not name the setting: {said}");
        for content in files.iter().map(|(_, content)| *content).chain(["too-short-for-an-hmac-key"]) {
            let line = content.lines().find(|line| !line.starts_with('-')).unwrap_or(content);
            assert!(!said.contains(line), "{keys}: it shows the key: {said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_provider_publishes_keys() {
    let (rsa, ec, ed) = (TokenKey::rsa(), TokenKey::ec(), TokenKey::ed25519());
    let provider = KeySetServer::start(&[rsa.jwk("r"), ec.jwk("e"), ed.jwk("d")]).await;
    let server = hub(&format!("auth: {{enabled: true, jwks_url: \"{}\"}}", provider.url())).await;
    for (kid, key) in [("r", &rsa), ("e", &ec), ("d", &ed)] {
        let token = key.token_of_key(kid, &alice());
        assert_eq!(enter_when_ready(&server, &token).await.user_id(), "alice", "{key:?}");
    }
    // The right name on the wrong key, and a key under another's name.
    let stranger = TokenKey::rsa();
    expect_refusal(&server, Some(&stranger.token_of_key("r", &alice())), BAD_TOKEN).await;
    expect_refusal(&server, Some(&ec.token_of_key("r", &alice())), BAD_TOKEN).await;
    // A published key is public, so it is no secret.
    for text in [rsa.public_pem(), rsa.jwk("r").to_string(), rsa.jwk("r")["n"].as_str().unwrap().to_owned()] {
        let forged = TokenKey::secret("HS256", text);
        expect_refusal(&server, Some(&forged.token_of_key("r", &alice())), BAD_TOKEN).await;
    }
}

/// The first fetch of the key set runs beside the start.
async fn enter_when_ready(server: &ServerProcess, token: &str) -> Client {
    wsc_testkit::eventually("the keys are loaded", async || {
        let response = upgrade(server, &format!("/ws?token={token}"), |h| h).await;
        (response.status == 101).then_some(())
    })
    .await;
    Client::connect(&ws_url(server, token)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_rotated_without_a_restart() {
    let (old, new) = (TokenKey::ec(), TokenKey::ec());
    let provider = KeySetServer::start(&[old.jwk("2024")]).await;
    let server = hub(&format!("auth: {{enabled: true, jwks_url: \"{}\"}}", provider.url())).await;
    let old_token = old.token_of_key("2024", &alice());
    let mut client = enter_when_ready(&server, &old_token).await;

    provider.publish(&[new.jwk("2025")]);
    let new_token = new.token_of_key("2025", &alice());
    // Asked for an unknown key it fetches the set again, but not more often than every ten seconds.
    let start = Instant::now();
    loop {
        let response = upgrade(&server, &format!("/ws?token={new_token}"), |h| h).await;
        if response.status == 101 {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(25), "the new key is not taken: {response:?}");
    }
    // Tokens that were signed with the old key are good for a while longer, and so are their bearers.
    assert_eq!(connect(&server, &old_token).await.user_id(), "alice");
    client.request_ok(authenticate(&new_token), "authenticated").await;
    client.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_keys_do_not_hammer_the_provider() {
    let key = TokenKey::ec();
    let provider = KeySetServer::start(&[key.jwk("k")]).await;
    let server = hub(&format!("auth: {{enabled: true, jwks_url: \"{}\"}}", provider.url())).await;
    let good = key.token_of_key("k", &alice());
    let mut client = enter_when_ready(&server, &good).await;
    let start = Instant::now();
    let before = provider.requests();
    for n in 0..200 {
        let token = key.token_of_key(&format!("k{n}"), &alice());
        let response = upgrade(&server, &format!("/ws?token={token}"), |h| h).await;
        assert_eq!(response.status, 401, "{response:?}");
        if n % 50 == 0 {
            client.expect_quiet().await;
        }
    }
    let asked = provider.requests() - before;
    let allowed = 1 + start.elapsed().as_secs() / 10;
    assert!(asked <= allowed, "asked {asked} times in {:?}", start.elapsed());
    assert_eq!(connect(&server, &good).await.user_id(), "alice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_fails_shuts_nobody_out() {
    let key = TokenKey::ec();
    let provider = KeySetServer::start(&[key.jwk("k")]).await;
    let server = hub(&format!("auth: {{enabled: true, jwks_url: \"{}\"}}", provider.url())).await;
    let good = key.token_of_key("k", &alice());
    enter_when_ready(&server, &good).await;
    provider.fail();
    // An unknown key makes it ask, in vain; the known one stays good.
    let unknown = key.token_of_key("other", &alice());
    upgrade(&server, &format!("/ws?token={unknown}"), |h| h).await;
    assert_eq!(connect(&server, &good).await.user_id(), "alice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_was_never_there_is_no_reason_not_to_start() {
    let key = TokenKey::ec();
    let provider = KeySetServer::start(&[]).await;
    provider.fail();
    let keys =
        format!("http: {{api_keys: [{}]}}, auth: {{enabled: true, jwks_url: \"{}\"}}", super::API_KEY, provider.url());
    let server = hub(&keys).await;
    assert_eq!(server.get("/health/live").await.status, 200);
    let answer = server.http("GET", "/api/stats", &[("X-API-Key", super::API_KEY)], None).await;
    assert_eq!(answer.status, 200, "back ends do not need it: {answer:?}");
    let token = key.token_of_key("k", &alice());
    let response = upgrade(&server, &format!("/ws?token={token}"), |h| h).await;
    assert!(matches!(response.status, 401 | 500 | 503), "{response:?}");
    // It may come back: a client is told to try again, not to give up.
    let options = wsc_testkit::ConnectOptions { subprotocols: &["wsc.v1"], ..Default::default() };
    let mut client = Client::open(&ws_url(&server, &token), &options).await;
    let (code, reason) = client.expect_close().await;
    assert_eq!((code, &reason["reconnect"]), (3004, &json!(true)), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_set_with_secrets_in_it_is_not_believed() {
    let key = TokenKey::ec();
    let secret = "c2VjcmV0LXRoYXQtZXZlcnlib2R5LWNhbi1yZWFkLWluLXRoZS1zZXQ";
    let oct = json!({"kty": "oct", "kid": "o", "alg": "HS256", "k": secret});
    let encryption = {
        let mut jwk = TokenKey::rsa().jwk("enc");
        jwk["use"] = json!("enc");
        jwk
    };
    let rsa_for_encryption = TokenKey::rsa();
    let mut sealed = rsa_for_encryption.jwk("sealed");
    sealed["use"] = json!("enc");
    let unknown = json!({"kty": "XYZ", "kid": "u"});
    let provider = KeySetServer::start(&[oct, encryption, sealed, unknown, key.jwk("k")]).await;
    let server = hub(&format!("auth: {{enabled: true, jwks_url: \"{}\"}}", provider.url())).await;
    enter_when_ready(&server, &key.token_of_key("k", &alice())).await;
    for signer in [secret, "secret-that-everybody-can-read-in-the-set"] {
        let token = TokenKey::secret("HS256", signer).token_of_key("o", &alice());
        expect_refusal(&server, Some(&token), BAD_TOKEN).await;
    }
    let token = rsa_for_encryption.token_of_key("sealed", &alice());
    expect_refusal(&server, Some(&token), BAD_TOKEN).await;
}
