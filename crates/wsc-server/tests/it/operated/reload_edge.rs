//! New settings about connections, limits, HTTP, TLS and the log do what they say.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use wsc_testkit::{
    Client, Frame, Handshake, Inbound, Launch, RawClient, ServerProcess, TlsIdentity, eventually, within,
};

use super::{connect, reconfigure, replace};
use crate::support::{BIN, assert_closed, expect_clients, hub, settings, upgrade};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_size_of_a_message_counts_for_the_next_frame() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let large = json!({"message_type": "ping", "filler": "x".repeat(2000)});
    alice.request_ok(large.clone(), "pong").await;
    reconfigure(&server, "max_message_size: 1KiB").await;
    alice.request_ok(json!({"message_type": "ping"}), "pong").await;
    alice.send(&large).await;
    assert_eq!(alice.expect_close().await.0, 1009);
    reconfigure(&server, "max_message_size: 128KiB").await;
    let mut bob = connect(&server, "bob").await;
    bob.request_ok(json!({"message_type": "ping", "filler": "x".repeat(100_000)}), "pong").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fewer_connections_are_allowed_to_newcomers_only() {
    let server = hub("").await;
    let mut old = Vec::new();
    for user in ["alice", "bob", "carol"] {
        old.push(connect(&server, user).await);
    }
    reconfigure(&server, "max_connections: 1").await;
    let refused = upgrade(&server, "/ws?user_id=dave", |h| h).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    for client in &mut old {
        client.expect_quiet().await;
    }
    old.truncate(0);
    expect_clients(&server, 0).await;
    let _one = connect(&server, "dave").await;
    assert_eq!(upgrade(&server, "/ws?user_id=erin", |h| h).await.status, 503);
    reconfigure(&server, "max_connections: 2").await;
    connect(&server, "erin").await.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_many_connections_a_user_and_an_address_may_have() {
    let server = hub("").await;
    let mut first = connect(&server, "alice").await;
    let mut second = connect(&server, "alice").await;
    reconfigure(&server, "limits: {user_connections: 2, user_policy: refuse}").await;
    for client in [&mut first, &mut second] {
        client.expect_quiet().await;
    }
    let refused = upgrade(&server, "/ws?user_id=alice", |h| h).await;
    assert!((400..600).contains(&refused.status), "{refused:?}");
    reconfigure(&server, "limits: {user_connections: 2, user_policy: kick_oldest}").await;
    let mut third = connect(&server, "alice").await;
    first.expect("force_offline").await;
    assert_closed(&first.expect_close().await, 3505);
    reconfigure(&server, "limits: {ip_connections: 1}").await;
    for client in [&mut second, &mut third] {
        client.expect_quiet().await;
    }
    let mut fourth = connect(&server, "dave").await;
    let refused = upgrade(&server, "/ws?user_id=bob", |h| h).await;
    assert!((400..600).contains(&refused.status), "{refused:?}");
    fourth.expect_quiet().await;
    // A proxy that is trusted speaks for others.
    reconfigure(&server, "limits: {ip_connections: 1}, trusted_proxies: [127.0.0.0/8]").await;
    for n in 1..=3 {
        let address = format!("203.0.113.{n}");
        let through = upgrade(&server, "/ws?user_id=bob", |h| h.add("X-Forwarded-For", &address)).await;
        assert_eq!(through.status, 101, "{through:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rates_of_open_connections() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let ping = json!({"message_type": "ping"});
    for _ in 0..50 {
        alice.request_ok(ping.clone(), "pong").await;
    }
    reconfigure(&server, "limits: {messages_per_second: 1, burst: 2}").await;
    let refused = eventually("the rate applies", async || {
        let answer = alice.request(ping.clone()).await;
        (answer["message_type"] == "error").then_some(answer)
    })
    .await;
    assert_eq!(refused["data"]["code"], 1005, "{refused}");
    reconfigure(&server, "limits: {bytes_per_second: 1000}").await;
    let mut bob = connect(&server, "bob").await;
    let large = json!({"message_type": "ping", "filler": "x".repeat(1900)});
    bob.request_ok(large.clone(), "pong").await;
    let answer = bob.request(large).await;
    assert_eq!(answer["data"]["code"], 1005, "{answer}");
    reconfigure(&server, "").await;
    for _ in 0..50 {
        alice.request_ok(ping.clone(), "pong").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_fast_and_how_long_one_may_shake_hands() {
    let server = hub("handshake_timeout: 10m").await;
    reconfigure(&server, "handshake_timeout: 100ms").await;
    let mut slow = RawClient::tcp(server.addr()).await;
    slow.send_bytes(b"GET /ws HTTP/1.1\r\n").await;
    slow.trickle(b"", Duration::ZERO).await;
    reconfigure(&server, "limits: {handshakes_per_second: 1}").await;
    let mut refused = None;
    for _ in 0..20 {
        let answer = upgrade(&server, "/ws", |h| h).await;
        if answer.status != 101 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("twenty at once are more than one in a second");
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    reconfigure(&server, "").await;
    for _ in 0..20 {
        assert_eq!(upgrade(&server, "/ws", |h| h).await.status, 101);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_http_api() {
    let server = hub("http: {wait_timeout: 10m}").await;
    let post = async |size: usize| server.post("/api/broadcast", &json!({"content": "x".repeat(size)})).await.status;
    assert_eq!(post(2000).await / 100, 2);
    reconfigure(&server, "http: {max_body_size: 1KiB}").await;
    assert_eq!(post(2000).await, 413);
    assert_eq!(post(500).await / 100, 2);

    let health = async |headers: &[(&str, &str)]| server.http("GET", "/api/stats", headers, None).await.status;
    assert_eq!(health(&[("Host", "hub.example")]).await, 403);
    reconfigure(&server, "http: {allowed_hosts: [hub.example]}").await;
    assert_eq!(health(&[("Host", "hub.example")]).await, 200);

    let outside = |key: &'static str| [("X-Forwarded-For", "203.0.113.9"), ("X-API-Key", key)];
    assert_ne!(health(&outside("0123456789abcdef0123")).await, 200);
    reconfigure(&server, "http: {api_keys: [0123456789abcdef0123]}").await;
    assert_eq!(health(&outside("0123456789abcdef0123")).await, 200);
    reconfigure(&server, "http: {api_keys: [0123456789abcdef9999]}").await;
    assert_ne!(health(&outside("0123456789abcdef0123")).await, 200, "the old key still opens");
    assert_eq!(health(&outside("0123456789abcdef9999")).await, 200);

    assert_eq!(server.get("/").await.status, 200);
    reconfigure(&server, "http: {demo_page: off}").await;
    assert_eq!(server.get("/").await.status, 404);

    reconfigure(&server, "http: {wait_timeout: 100ms}").await;
    let _bob = connect(&server, "bob").await;
    let body = json!({"content": 1, "require_ack": true, "wait": "ack"});
    let answer = server.post("/api/users/bob/messages", &body).await;
    assert_eq!((answer.status, &answer.json()["outcome"]), (202, &json!("pending")));

    reconfigure(&server, "http: {read_timeout: 100ms}").await;
    let mut client = RawClient::tcp(server.addr()).await;
    client.send_bytes(b"POST /api/broadcast HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{").await;
    client.trickle(b"", Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compression_of_new_connections() {
    let server = hub("").await;
    let agreed = async || {
        let answer = upgrade(&server, "/ws", |h| h.add("Sec-WebSocket-Extensions", "permessage-deflate")).await;
        assert_eq!(answer.status, 101, "{answer:?}");
        answer.header("sec-websocket-extensions").is_some_and(|value| value.contains("permessage-deflate"))
    };
    assert!(!agreed().await);
    let mut old = connect(&server, "old").await;
    reconfigure(&server, "compression: {enabled: true, threshold: 0}").await;
    assert!(agreed().await);
    old.expect_quiet().await;
    reconfigure(&server, "").await;
    assert!(!agreed().await);
}

async fn hub_with_tls(identity: &TlsIdentity) -> ServerProcess {
    let launch = Launch {
        args: &["serve", "--config", "settings.yaml"],
        files: &[
            ("settings.yaml", &settings("tls: {cert: cert.pem, key: key.pem}")),
            ("cert.pem", identity.cert_pem()),
            ("key.pem", identity.key_pem()),
        ],
        env: &[],
    };
    ServerProcess::launch(BIN, &launch).await
}

/// Whether a hub on this port shows the certificate of this identity.
async fn shows(server: &ServerProcess, identity: &Arc<TlsIdentity>) -> bool {
    let (addr, identity) = (server.addr(), Arc::clone(identity));
    // It panics over a certificate that it does not know.
    tokio::spawn(async move { RawClient::tls(addr, &identity).await }).await.is_ok()
}

async fn tls_client(server: &ServerProcess, identity: &TlsIdentity, user: &str) -> RawClient {
    let mut client = RawClient::tls(server.addr(), identity).await;
    let answer = client.handshake(&Handshake::new(server.addr(), &format!("/ws?user_id={user}"))).await;
    assert_eq!(answer.status, 101, "{answer:?}");
    client.expect("connected").await;
    client
}

async fn expect_pong(client: &mut RawClient) {
    client.send(&Frame::text(r#"{"message_type":"ping"}"#)).await;
    client.expect("pong").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_is_shown_to_those_that_come() {
    let (first, second) = (Arc::new(TlsIdentity::new()), Arc::new(TlsIdentity::new()));
    let server = hub_with_tls(&first).await;
    let mut old = tls_client(&server, &first, "old").await;
    // The files alone change, as certbot does it; the settings file stays as it is.
    replace(&server.dir().join("key.pem"), second.key_pem());
    replace(&server.dir().join("cert.pem"), second.cert_pem());
    within("the new certificate is shown", async { while !shows(&server, &second).await {} }).await;
    let mut new = tls_client(&server, &second, "new").await;
    assert!(!shows(&server, &first).await, "the old certificate is still shown");
    expect_pong(&mut old).await;
    expect_pong(&mut new).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn presence_is_told_as_soon_as_it_says() {
    let receiver = wsc_testkit::WebhookReceiver::start().await;
    let keys = super::callbacks(&receiver, "");
    let server = hub(&format!("{keys}, presence_debounce: 10m")).await;
    connect(&server, "alice").await.close().await;
    reconfigure(&server, &format!("{keys}, presence_debounce: 50ms")).await;
    connect(&server, "bob").await.close().await;
    receiver.event("bob is away", |event| super::is_about(event, "user.offline", "bob")).await;
    let events = receiver.events();
    assert!(!events.iter().any(|event| super::is_about(event, "user.offline", "alice")), "{receiver}");
}

/// Nobody is disconnected by any of it: one client lives through a reload of everything that concerns it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_connection_lives_through_all_of_it() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = Client::connect(&server.ws_url_as("bob")).await;
    for client in [&mut alice, &mut bob] {
        client.join("r1").await;
    }
    let steps = [
        "ping_interval: 30s, pong_timeout: 5s",
        "queue: {max_bytes: 64KiB, policy: drop_oldest}",
        "limits: {messages_per_second: 1000}",
        "limits: {user_connections: 1, ip_connections: 1}",
        "max_connections: 1",
        "compression: {enabled: true}",
        "rooms: {auto_create: false, max_clients: 1, max_rooms: 1}",
        "auth: {allowed_origins: [\"https://app.example\"]}",
        "handshake_timeout: 10ms, write_timeout: 10s",
        "",
    ];
    for (n, keys) in steps.into_iter().enumerate() {
        reconfigure(&server, keys).await;
        alice.say("r1", json!(n)).await;
        assert_eq!(bob.expect("room_message").await["data"]["content"], n, "after {keys}");
    }
    assert!(alice.seen().iter().all(|frame| !matches!(frame, Inbound::Closed(..))));
}
