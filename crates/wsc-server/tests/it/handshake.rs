//! The upgrade itself: who may connect, and how a refusal looks.

use std::time::Duration;

use serde_json::json;
use wsc_testkit::{Client, ConnectOptions, Frame, Handshake, RawClient, eventually};

use crate::support::{assert_closed, assert_refused, expect_clients, hub, upgrade};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_subprotocol_is_selected_when_offered() {
    let server = hub("").await;
    let options = ConnectOptions { subprotocols: &["graphql-ws", "wsc.v1"], ..ConnectOptions::default() };
    let client = Client::connect_with(&server.ws_url(), &options).await;
    assert_eq!(client.subprotocol(), Some("wsc.v1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_without_the_subprotocol_speaks_the_same() {
    let server = hub("").await;
    for protocol in [None, Some("graphql-ws")] {
        let mut client = RawClient::tcp(server.addr()).await;
        let mut handshake = Handshake::new(server.addr(), "/ws");
        if let Some(protocol) = protocol {
            handshake = handshake.add("Sec-WebSocket-Protocol", protocol);
        }
        let response = client.handshake(&handshake).await;
        assert_eq!(response.status, 101, "{response:?}");
        assert_eq!(response.header("sec-websocket-protocol"), None);
        client.expect("connected").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_behind_the_request_in_the_same_packet_are_read() {
    let server = hub("").await;
    let mut client = RawClient::tcp(server.addr()).await;
    let mut bytes = Handshake::new(server.addr(), "/ws").encode();
    bytes.extend(Frame::text(r#"{"message_type":"ping","message_id":1}"#).encode());
    client.send_bytes(&bytes).await;
    assert_eq!(client.read_http_response().await.status, 101);
    client.expect("connected").await;
    assert_eq!(client.expect("pong").await["request_id"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compression_is_agreed_on_where_both_want_it() {
    const NAME: &str = "sec-websocket-extensions";
    let offer =
        |handshake: Handshake| handshake.add("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits");
    let server = hub("compression: {enabled: true}").await;
    let response = upgrade(&server, "/ws", offer).await;
    let answer = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
    assert_eq!((response.status, response.header(NAME)), (101, Some(answer)));
    assert_eq!(upgrade(&server, "/ws", |handshake| handshake).await.header(NAME), None);
    // Off is the default.
    let response = upgrade(&hub("").await, "/ws", offer).await;
    assert_eq!((response.status, response.header(NAME)), (101, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn header_names_and_tokens_are_compared_without_case() {
    let server = hub("").await;
    let response = upgrade(&server, "/ws", |handshake| {
        handshake
            .without("Upgrade")
            .without("Connection")
            .add("upgrade", "WebSocket")
            .add("CONNECTION", "keep-alive, upgrade")
    })
    .await;
    assert_eq!(response.status, 101, "{response:?}");
    // A list may be spread over lines (RFC 9110 §5.3), and may name more than we speak.
    let response = upgrade(&server, "/ws", |handshake| {
        handshake.set("Upgrade", "h2c, websocket").set("Connection", "keep-alive").add("Connection", "Upgrade")
    })
    .await;
    assert_eq!(response.status, 101, "{response:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_websocket_handshake_is_refused() {
    type Change = fn(Handshake) -> Handshake;
    let changes: [(&str, Change); 12] = [
        ("no Upgrade", |h| h.without("Upgrade")),
        ("other Upgrade", |h| h.set("Upgrade", "h2c")),
        ("no Connection", |h| h.without("Connection")),
        ("other Connection", |h| h.set("Connection", "keep-alive")),
        ("no key", |h| h.without("Sec-WebSocket-Key")),
        ("short key", |h| h.set("Sec-WebSocket-Key", "c2hvcnQ=")),
        ("two keys", |h| h.add("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")),
        ("no Host", |h| h.without("Host")),
        ("two versions", |h| h.add("Sec-WebSocket-Version", "13")),
        ("no version", |h| h.without("Sec-WebSocket-Version")),
        ("other version", |h| h.set("Sec-WebSocket-Version", "8")),
        ("POST", |h| h.method("POST").add("Content-Length", "0")),
    ];
    let server = hub("").await;
    for (name, change) in changes {
        let response = upgrade(&server, "/ws", change).await;
        assert!(matches!(response.status, 400 | 405 | 426), "{name}: {response:?}");
        response.error_code();
    }
    Client::connect(&server.ws_url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_version_learns_the_right_one() {
    let server = hub("").await;
    let response = upgrade(&server, "/ws", |h| h.set("Sec-WebSocket-Version", "8")).await;
    assert!(matches!(response.status, 400 | 426), "{response:?}");
    if response.status == 426 {
        assert_eq!(response.header("sec-websocket-version"), Some("13"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_elsewhere_is_no_connection() {
    let server = hub("").await;
    for path in ["/", "/wsx", "/ws/more", "/api/stats"] {
        let response = upgrade(&server, path, |h| h).await;
        assert_ne!(response.status, 101, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_loopback_the_host_must_be_a_loopback_name() {
    let server = hub("").await;
    let port = server.addr().port();
    for host in
        [format!("localhost:{port}"), format!("127.0.0.1:{port}"), format!("[::1]:{port}"), "localhost".to_owned()]
    {
        let response = upgrade(&server, "/ws", |h| h.set("Host", &host)).await;
        assert_eq!(response.status, 101, "{host}: {response:?}");
    }
    for host in [
        "evil.example".to_owned(),
        format!("evil.example:{port}"),
        format!("localhost.evil.example:{port}"),
        format!("127.0.0.1.evil.example:{port}"),
        format!("192.168.1.1:{port}"),
    ] {
        let response = upgrade(&server, "/ws", |h| h.set("Host", &host)).await;
        assert_eq!(response.status, 403, "{host}: {response:?}");
        response.error_code();
    }
    let response = upgrade(&server, "/ws", |h| h.without("Host")).await;
    assert!(matches!(response.status, 400 | 403), "{response:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_allowed_host_may_be_used() {
    let server = hub("http: {allowed_hosts: [hub.example]}").await;
    let response = upgrade(&server, "/ws", |h| h.set("Host", "hub.example")).await;
    assert_eq!(response.status, 101, "{response:?}");
    let response = upgrade(&server, "/ws", |h| h.set("Host", "evil.example")).await;
    assert_eq!(response.status, 403, "{response:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_another_origin_is_refused() {
    let server = hub("").await;
    let own = server.http_url();
    let response = upgrade(&server, "/ws", |h| h.add("Origin", &own)).await;
    assert_eq!(response.status, 101, "{response:?}");
    for origin in ["null", "http://evil.example", "http://127.0.0.1:1", "http://127.0.0.1", "file://", "nonsense"] {
        for protocol in ["wsc.v1", "none"] {
            let response =
                upgrade(&server, "/ws", |h| h.add("Origin", origin).add("Sec-WebSocket-Protocol", protocol)).await;
            assert_eq!(response.status, 403, "{origin}: {response:?}");
            response.error_code();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_allowed_origin_may_connect() {
    let server = hub("auth: {allowed_origins: [\"https://app.example\"]}").await;
    let response = upgrade(&server, "/ws", |h| h.add("Origin", "https://app.example")).await;
    assert_eq!(response.status, 101, "{response:?}");
    for origin in ["http://app.example", "https://app.example.evil.example"] {
        let response = upgrade(&server, "/ws", |h| h.add("Origin", origin)).await;
        assert_eq!(response.status, 403, "{origin}: {response:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cross_site_request_is_refused() {
    let server = hub("").await;
    let response = upgrade(&server, "/ws", |h| h.add("Sec-Fetch-Site", "cross-site")).await;
    assert_eq!(response.status, 403, "{response:?}");
    let response = upgrade(&server, "/ws", |h| h.add("Sec-Fetch-Site", "same-origin")).await;
    assert_eq!(response.status, 101, "{response:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_too_many_is_told_in_the_way_it_can_read() {
    let server = hub("max_connections: 1").await;
    let first = Client::connect(&server.ws_url()).await;

    let response = upgrade(&server, "/ws", |h| h).await;
    assert_eq!(response.status, 503, "{response:?}");
    response.error_code();

    let options = ConnectOptions { subprotocols: &["wsc.v1"], ..ConnectOptions::default() };
    let mut second = Client::open(&server.ws_url(), &options).await;
    assert_eq!(second.subprotocol(), Some("wsc.v1"));
    assert_closed(&second.expect_close().await, 3504);

    first.close().await;
    eventually("a place is free again", async || (upgrade(&server, "/ws", |h| h).await.status == 101).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_handshake_is_cut() {
    let server = hub("handshake_timeout: 300ms").await;
    let mut silent = RawClient::tcp(server.addr()).await;
    let mut slow = RawClient::tcp(server.addr()).await;
    let mut endless = Handshake::new(server.addr(), "/ws").encode();
    endless.truncate(endless.len() - 2);
    endless.extend(b"X-Filler: ");
    endless.extend([b'x'; 4000]);
    let whole = endless.len();
    let sent = slow.trickle(&endless, Duration::from_millis(10)).await;
    assert!(sent < whole, "all {sent} bytes were taken");
    silent.trickle(b"", Duration::ZERO).await;
    Client::connect(&server.ws_url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_half_open_connections_keep_nobody_out() {
    let server = hub("limits: {pending_handshakes: 16}").await;
    let mut half_open = Vec::new();
    for _ in 0..200 {
        let mut client = RawClient::tcp(server.addr()).await;
        client.try_send_bytes(b"GET /ws HTTP/1.1\r\nHost: ").await;
        half_open.push(client);
        if half_open.len() % 50 == 0 {
            Client::connect(&server.ws_url()).await.close().await;
        }
    }
    // The oldest is cut first, long before the handshake timeout.
    half_open[0].trickle(b"", Duration::ZERO).await;
    assert_eq!(server.get("/health").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_in_place_of_a_request_hurts_nobody() {
    let server = hub("").await;
    let long = [b"GET /ws HTTP/1.1\r\nX: ".as_slice(), &[b'x'; 300_000]].concat();
    let cases: [&[u8]; 6] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nno colon here\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &long,
    ];
    for case in cases {
        let mut client = RawClient::tcp(server.addr()).await;
        client.try_send_bytes(case).await;
        // Answered with a refusal or not at all, but over.
        client.trickle(b"", Duration::ZERO).await;
    }
    let mut client = Client::connect(&server.ws_url()).await;
    client.expect_quiet().await;
    expect_clients(&server, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_names_the_parameter_problem_in_json() {
    let server = hub("").await;
    let response = upgrade(&server, "/ws?user_id=__root", |h| h).await;
    assert_refused(&response, 400, 1001);
    assert!(response.header("content-type").is_some_and(|kind| kind.starts_with("application/json")), "{response:?}");
    assert!(response.json()["error"]["message"] != json!(""));
}
