//! TLS on the listener.

use wsc_testkit::{Frame, Handshake, Launch, RawClient, ServerProcess, TlsIdentity, within};

use crate::support::{BIN, settings};

/// A server that speaks TLS with this identity, and nothing else.
pub(crate) async fn hub_with_tls(identity: &TlsIdentity) -> ServerProcess {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_hub_speaks_behind_tls() {
    let identity = TlsIdentity::new();
    let server = hub_with_tls(&identity).await;
    let mut client = RawClient::tls(server.addr(), &identity).await;
    let response = client.handshake(&Handshake::new(server.addr(), "/ws?user_id=alice")).await;
    assert_eq!(response.status, 101, "{response:?}");
    client.expect("connected").await;
    // Larger than one TLS record, in both directions.
    let large = "x".repeat(60_000);
    let join = r#"{"message_type":"join_room","data":{"room_id":"r1"}}"#;
    let mut other = RawClient::tls(server.addr(), &identity).await;
    other.handshake(&Handshake::new(server.addr(), "/ws?user_id=bob")).await;
    other.expect("connected").await;
    for client in [&mut client, &mut other] {
        client.send(&Frame::text(join)).await;
        client.expect("room_joined").await;
    }
    let say = format!(r#"{{"message_type":"room_message","data":{{"room_id":"r1","content":"{large}"}}}}"#);
    for _ in 0..20 {
        client.send(&Frame::text(say.clone())).await;
        let delivery = other.expect("room_message").await;
        assert_eq!(delivery["data"]["content"], large.as_str());
    }
    client.send(&Frame::ping("hi")).await;
    assert_eq!(client.read_frame().await.payload, b"hi");
    client.send(&Frame::close(1000, "")).await;
    assert_eq!(client.expect_close().await, 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_are_served_behind_tls_too() {
    let identity = TlsIdentity::new();
    let server = hub_with_tls(&identity).await;
    let mut client = RawClient::tls(server.addr(), &identity).await;
    let request = "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    client.send_bytes(request.as_bytes()).await;
    assert_eq!(client.read_http_response().await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_speak_tls_is_turned_away() {
    let identity = TlsIdentity::new();
    let server = hub_with_tls(&identity).await;
    let mut plain = RawClient::tcp(server.addr()).await;
    plain.send_bytes(&Handshake::new(server.addr(), "/ws").encode()).await;
    plain.trickle(b"", std::time::Duration::ZERO).await;
    within("a TLS connection after it", RawClient::tls(server.addr(), &identity)).await;
}

#[tokio::test]
async fn a_missing_certificate_is_told_at_the_start() {
    let config = settings("tls: {cert: missing.pem, key: missing.key}");
    let launch =
        Launch { args: &["serve", "--config", "settings.yaml"], files: &[("settings.yaml", &config)], env: &[] };
    let output = launch.run(BIN).await;
    let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(matches!(output.status.code(), Some(1 | 2)), "{text}");
    assert!(text.contains("missing."), "{text}");
}
