//! The clients against a server that is known to be right.

#![allow(clippy::unwrap_used, reason = "everything here is a test")]

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tungstenite::Message;
use tungstenite::protocol::CloseFrame;
use wsc_testkit::{
    Client, Frame, Handshake, Inbound, Launch, RawClient, RawOptions, ServerProcess, TlsIdentity, try_http,
};

/// Greets, answers `ping`, repeats anything else as `echo`, and closes with
/// 4000 when told to `go`.
async fn server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else {
                    return;
                };
                let connected = json!({"message_type": "connected", "data": {"user_id": "u"}});
                let _ = socket.send(Message::text(connected.to_string())).await;
                while let Some(Ok(message)) = socket.next().await {
                    let Message::Text(text) = message else {
                        continue;
                    };
                    let request: Value = serde_json::from_str(&text).unwrap_or_default();
                    let mut reply = json!({"request_id": request["message_id"]});
                    match request["message_type"].as_str() {
                        Some("ping") => reply["message_type"] = json!("pong"),
                        Some("go") => {
                            let frame = CloseFrame {
                                code: 4000.into(),
                                reason: r#"{"reason":"told to","reconnect":true}"#.into(),
                            };
                            let _ = socket.send(Message::Close(Some(frame))).await;
                            continue;
                        }
                        _ => {
                            reply["message_type"] = json!("done");
                            let echo = json!({"message_type": "echo", "data": request["data"]});
                            let _ = socket.send(Message::text(echo.to_string())).await;
                        }
                    }
                    let _ = socket.send(Message::text(reply.to_string())).await;
                }
            });
        }
    });
    addr
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_is_found_behind_other_messages_which_are_kept() {
    let url = format!("ws://{}/ws", server().await);
    let mut client = Client::connect(&url).await;
    assert_eq!(client.user_id(), "u");
    let reply = client.request(json!({"message_type": "x", "data": 1})).await;
    assert_eq!(reply["message_type"], "done");
    let reply = client.request(json!({"message_type": "x", "data": 2})).await;
    assert_eq!(reply["message_type"], "done");
    assert_eq!(client.expect("echo").await["data"], 1);
    let passed = client.barrier().await;
    assert_eq!(passed.len(), 1);
    assert_eq!(passed[0]["data"], 2);
    client.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_close_is_read_with_its_reason() {
    let url = format!("ws://{}/ws", server().await);
    let mut client = Client::connect(&url).await;
    client.send(&json!({"message_type": "go"})).await;
    let (code, reason) = client.expect_close().await;
    assert_eq!(code, 4000);
    assert_eq!(reason["reconnect"], true);
    let client = Client::connect(&url).await;
    client.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_raw_client_upgrades_talks_and_closes() {
    let options = RawOptions { source: Some([127, 0, 0, 9].into()), recv_buffer: Some(4096) };
    let mut client = RawClient::connect_with(server().await, "/ws?x=y", options).await;
    client.expect("connected").await;
    client.send(&Frame::text(r#"{"message_type":"pi"#).more()).await;
    client.send(&Frame::ping("between")).await;
    assert_eq!(client.read_frame().await.payload, b"between");
    client.send(&Frame::continuation(r#"ng","message_id":1}"#)).await;
    assert_eq!(client.expect("pong").await["request_id"], 1);
    client.send(&Frame::close(1000, "bye")).await;
    assert_eq!(client.expect_close().await, 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_that_breaks_the_rules_goes_out_as_it_is() {
    let mut client = RawClient::connect(server().await, "/ws").await;
    client.expect("connected").await;
    client.send(&Frame::text("x").unmasked()).await;
    // This server closes without telling a code.
    client.read_to_end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_connection_is_1006() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/ws", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        drop(tokio_tungstenite::accept_async(stream).await.unwrap());
    });
    let mut client = Client::open(&url, &wsc_testkit::ConnectOptions::default()).await;
    let end = client.recv("the end").await;
    assert_eq!(end, Inbound::Closed(1006, String::new()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_raw_client_speaks_tls() {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};

    let identity = TlsIdentity::new();
    let cert = CertificateDer::from_pem_slice(identity.cert_pem().as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem().as_bytes()).unwrap();
    let provider = rustls::crypto::aws_lc_rs::default_provider().into();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
        let stream = acceptor.accept(stream).await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            let _ = socket.send(message).await;
        }
    });
    let mut client = RawClient::tls(addr, &identity).await;
    let response = client.handshake(&Handshake::new(addr, "/ws")).await;
    assert_eq!(response.status, 101);
    client.send(&Frame::text("x".repeat(50_000))).await;
    assert_eq!(client.read_frame().await.payload.len(), 50_000);
}

/// A stand-in for the server: prints a few lines and waits.
async fn shell(script: &str) -> ServerProcess {
    let launch = Launch {
        args: &["-c", script],
        files: &[("hello.txt", "hello from the file")],
        env: &[("GREETING", "hello from outside")],
    };
    ServerProcess::launch("/bin/sh", &launch).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_address_is_read_from_the_first_such_line() {
    let script = "cat hello.txt; echo; echo \"$GREETING\"; \
                  echo wsc: listening on http://127.0.0.1:4242; \
                  echo wsc: listening on http://127.0.0.1:4343; \
                  exec sleep 60";
    let mut server = shell(script).await;
    assert_eq!(server.addr().port(), 4242);
    assert_eq!(server.ws_url_as("a b"), "ws://127.0.0.1:4242/ws?user_id=a%20b");
    assert!(server.is_running());
    let log = server.log();
    assert!(log.contains("hello from the file"), "{log}");
    assert!(log.contains("hello from outside"), "{log}");
    assert_eq!(server.terminate().await, -15);
    assert!(!server.is_running());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_ends_at_once_is_no_server() {
    let started = tokio::spawn(async { shell("echo no luck; exit 3").await });
    let panic = started.await.unwrap_err().into_panic();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(text.contains("no luck"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_killed_starts_again_where_it_was() {
    let script = "echo start >> starts || exit 2; wc -l < starts; \
                  echo wsc: listening on http://127.0.0.1:$((4241 + $(wc -l < starts))); exec sleep 60";
    let mut server = shell(script).await;
    assert_eq!(server.addr().port(), 4242);
    server.kill().await;
    server.restart().await;
    assert_eq!(server.addr().port(), 4243);
    assert!(server.is_running());
    assert_eq!(server.log().lines().next(), Some("2"));
    server.kill().await;
    assert_eq!(server.try_restart().await, Ok(()));
    server.kill().await;
    std::fs::remove_file(server.dir().join("starts")).unwrap();
    std::fs::create_dir(server.dir().join("starts")).unwrap();
    assert_eq!(server.try_restart().await, Err(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_gone_is_an_answer_too() {
    let addr = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    assert!(try_http("GET", &format!("http://{addr}/"), &[], None).await.is_err());
    assert!(Client::try_connect(&format!("ws://{addr}/ws")).await.is_none());
    // Gone in the middle of the answer, and of the handshake.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n").await;
        }
    });
    assert!(try_http("GET", &format!("http://{addr}/"), &[], None).await.is_err());
    assert!(Client::try_connect(&format!("ws://{addr}/ws")).await.is_none());
}
