//! The hub's routes inside somebody else's axum application, and upgrades on connections that spoke HTTP before.

use std::net::SocketAddr;

use axum::{Router, routing::get};
use serde_json::json;
use tokio::{net::TcpListener, task::JoinHandle};
use wsc_auth::StaticTokens;
use wsc_node::Hub;
use wsc_testkit::{Client, ConnectOptions, Handshake, RawClient, http};

use crate::support::{JSON, assert_refused, hub, hub_with, settings};

struct App {
    hub: Hub,
    addr: SocketAddr,
    server: JoinHandle<()>,
}

impl Drop for App {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn app(hub: Hub, router: Router, tells_peers: bool) -> App {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        if tells_peers {
            axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>()).await.unwrap();
        } else {
            axum::serve(listener, router).await.unwrap();
        }
    });
    App { hub, addr, server }
}

async fn started(keys: &str) -> Hub {
    Hub::builder().settings(settings(keys)).start().await.unwrap()
}

impl App {
    async fn get(&self, path: &str) -> wsc_testkit::HttpResponse {
        http("GET", &format!("http://{}{path}", self.addr), &[], None).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_application_serves_clients_and_the_api() {
    let hub = started("").await;
    let router = Router::new().route("/hello", get(async || "hello")).merge(hub.router());
    let app = app(hub, router, true).await;
    assert_eq!(app.get("/hello").await.text(), "hello");
    assert_eq!(app.get("/health").await.json()["status"], "ok");

    let options = ConnectOptions { subprotocols: &["wsc.v1"], ..ConnectOptions::default() };
    let mut alice = Client::connect_with(&format!("ws://{}/ws?user_id=alice", app.addr), &options).await;
    assert_eq!(alice.subprotocol(), Some("wsc.v1"));
    let mut bob = Client::connect(&format!("ws://{}/ws?user_id=bob", app.addr)).await;
    alice.join("r1").await;
    bob.join("r1").await;
    assert_eq!(alice.say("r1", json!("hi")).await["data"]["recipients"], 1);
    assert_eq!(bob.expect("room_message").await["data"]["content"], "hi");
    assert_eq!(app.get("/api/stats").await.json()["client_count"], 2);
    assert_eq!(app.get("/").await.status, 200);

    // Paths that are not ours are the application's.
    assert_eq!(app.get("/nope").await.text(), "");
    alice.close().await;
    app.hub.shutdown().await;
    assert_eq!(bob.expect_close().await.0, 3001);
    assert_eq!(app.get("/hello").await.text(), "hello");
    assert_eq!(app.get("/health").await.status, 503);
    assert_eq!(app.get("/health/ready").await.status, 503);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compression_is_agreed_on_at_the_side_door_too() {
    let hub = started("compression: {enabled: true, threshold: 0}").await;
    let router = hub.router();
    let app = app(hub, router, true).await;
    let mut client = RawClient::tcp(app.addr).await;
    let offer = Handshake::new(app.addr, "/ws").add("Sec-WebSocket-Extensions", "permessage-deflate");
    let response = client.handshake(&offer).await;
    let answer = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
    assert_eq!(response.header("sec-websocket-extensions"), Some(answer));
    // The opening is JSON of more than a hundred bytes: it shrinks.
    assert_eq!(client.read_frame().await.rsv, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_may_be_mounted_below_a_path() {
    let hub = started("").await;
    let router = Router::new().route("/", get(async || "home")).nest("/hub", hub.router());
    let app = app(hub, router, true).await;
    assert_eq!(app.get("/").await.text(), "home");
    assert_eq!(app.get("/hub/api/stats").await.status, 200);
    let url = format!("http://{}/hub/api/rooms", app.addr);
    assert_eq!(http("POST", &url, &[JSON], Some(br#"{"id":"r1"}"#)).await.status, 201);
    assert_eq!(app.get("/hub/api/rooms/r1/members").await.json()["total"], 0);
    let mut alice = Client::connect(&format!("ws://{}/hub/ws?user_id=alice", app.addr)).await;
    alice.join("r1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_may_keep_its_own_page() {
    let hub = started("http: {demo_page: \"off\"}").await;
    let router = Router::new().route("/", get(async || "home")).merge(hub.router());
    let app = app(hub, router, true).await;
    assert_eq!(app.get("/").await.text(), "home");
    assert_eq!(app.get("/health").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_say_who_asks_gets_no_private_pages() {
    let hub = started("").await;
    let router = hub.router();
    let app = app(hub, router, false).await;
    assert_refused(&app.get("/api/stats").await, 403, 2001);
    assert_eq!(app.get("/health").await.json(), json!({"status": "ok"}));
    Client::connect(&format!("ws://{}/ws", app.addr)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_at_the_side_door_are_those_of_the_front_door() {
    let hub = Hub::builder().authenticator(StaticTokens::new()).start().await.unwrap();
    let router = hub.router();
    let app = app(hub, router, true).await;
    let url = format!("ws://{}/ws", app.addr);

    // Who offers our subprotocol is told in a close frame, the others by the status.
    let options = ConnectOptions { subprotocols: &["wsc.v1"], ..ConnectOptions::default() };
    let mut client = Client::open(&url, &options).await;
    assert_eq!(client.expect_close().await.0, 3500);
    let refused = async |change: fn(Handshake) -> Handshake| {
        let handshake = change(Handshake::new(app.addr, "/ws"));
        RawClient::tcp(app.addr).await.handshake(&handshake).await
    };
    assert_refused(&refused(|handshake| handshake).await, 401, 2000);
    assert_refused(&refused(|handshake| handshake.set("Origin", "http://evil.example")).await, 403, 2001);
    let old = refused(|handshake| handshake.set("Sec-WebSocket-Version", "8")).await;
    assert!(matches!(old.status, 400 | 426), "{old:?}");
    assert_refused(&app.get("/ws").await, 400, 1001);
    app.hub.shutdown().await;
    assert_eq!(refused(|handshake| handshake).await.status, 503);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_spoke_http_may_be_upgraded() {
    let hub = hub("").await;
    let mut client = RawClient::tcp(hub.addr).await;
    for _ in 0..2 {
        client.send_bytes(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        assert_eq!(client.read_http_response().await.status, 200);
    }
    let answer = client.handshake(&Handshake::new(hub.addr, "/ws?user_id=alice")).await;
    assert_eq!(answer.status, 101, "{answer:?}");
    assert_eq!(client.expect("connected").await["data"]["user_id"], "alice");
    hub.hub.send_to_user("alice", "hi").await.unwrap();
    assert_eq!(client.expect("user_message").await["data"]["content"], "hi");
    client.send(&wsc_testkit::Frame::text(r#"{"message_type":"ping"}"#)).await;
    client.expect("pong").await;
    assert_eq!(hub.hub.disconnect_user("alice", "bye", false), 1);
    assert_eq!(client.expect_close().await, 3503);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_follow_the_request_at_once_are_read() {
    let hub = hub_with("", |builder| builder).await;
    let mut client = RawClient::tcp(hub.addr).await;
    client.send_bytes(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    client.read_http_response().await;
    let mut bytes = Handshake::new(hub.addr, "/ws?user_id=alice").encode();
    bytes.extend(wsc_testkit::Frame::text(r#"{"message_type":"ping","message_id":7}"#).encode());
    client.send_bytes(&bytes).await;
    assert_eq!(client.read_http_response().await.status, 101);
    client.expect("connected").await;
    assert_eq!(client.expect("pong").await["request_id"], 7);
}
