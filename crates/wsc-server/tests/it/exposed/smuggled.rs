//! Requests that say one thing to a proxy and another to the hub, and text that wants to be something else.

use serde_json::json;
use wsc_testkit::{Client, Handshake, RawClient, ServerProcess, eventually};

use crate::support::{client_count, hub, rooms};

/// Sends these bytes on one connection, says that nothing more will come, and
/// gives all that is answered.
async fn exchange(server: &ServerProcess, bytes: &[u8]) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(server.addr()).await.unwrap();
    // What is answered early may be answered before all is taken.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let _ = wsc_testkit::within("the end of the connection", stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn statuses(answer: &str) -> Vec<&str> {
    answer
        .match_indices("HTTP/1.1 ")
        .filter_map(|(at, mark)| answer.get(at + mark.len()..at + mark.len() + 3))
        .collect()
}

/// A request that makes a room: what is smuggled.
fn inner(room: &str) -> String {
    let body = json!({"id": room}).to_string();
    let length = body.len();
    format!(
        "POST /api/rooms HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_two_readings_of_where_a_request_ends() {
    let server = hub("").await;
    let inner = inner("smuggled");
    let length = inner.len();
    let outer = "POST /api/broadcast HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    for (what, request) in [
        (
            "both lengths",
            format!("{outer}Content-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}", 5 + length),
        ),
        (
            "both, the other way round",
            format!("{outer}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{inner}"),
        ),
        ("two lengths", format!("{outer}Content-Length: 0\r\nContent-Length: {length}\r\n\r\n{inner}")),
        ("a list of lengths", format!("{outer}Content-Length: 0, {length}\r\n\r\n{inner}")),
        ("a length with a sign", format!("{outer}Content-Length: +0\r\n\r\n{inner}")),
        ("a negative length", format!("{outer}Content-Length: -1\r\n\r\n{inner}")),
        ("a length in hex", format!("{outer}Content-Length: 0x0\r\n\r\n{inner}")),
        ("a length beyond all numbers", format!("{outer}Content-Length: 99999999999999999999\r\n\r\n{inner}")),
        ("a space before the colon", format!("{outer}Content-Length : {length}\r\n\r\n{inner}")),
        ("a folded header", format!("{outer}X-A: b\r\n Content-Length: {length}\r\n\r\n{inner}")),
        ("chunked and identity", format!("{outer}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{inner}")),
        ("identity", format!("{outer}Transfer-Encoding: identity\r\n\r\n{inner}")),
        ("xchunked", format!("{outer}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{inner}")),
        ("chunked by an odd letter", format!("{outer}Transfer-Encoding: chun\u{212a}ed\r\n\r\n0\r\n\r\n{inner}")),
        ("a chunk with a sign", format!("{outer}Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n{inner}")),
        (
            "a chunk that overflows",
            format!("{outer}Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n\r\n{inner}"),
        ),
        ("a header without a name", format!("{outer}: chunked\r\n\r\n{inner}")),
        ("a zero in a name", format!("{outer}Content-\0Length: 0\r\n\r\n{inner}")),
        (
            "version 1.0 with chunks",
            format!(
                "POST /api/broadcast HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}"
            ),
        ),
    ] {
        let answer = exchange(&server, request.as_bytes()).await;
        let statuses = statuses(&answer);
        assert!(statuses.len() <= 1, "{what}: two answers: {answer}");
        assert!(statuses.iter().all(|status| status.starts_with('4')), "{what}: {answer}");
        assert!(rooms(&server).await.is_empty(), "{what}: the inner request was carried out: {answer}");
    }
    // What is one after the other, cleanly, is two requests.
    let clean = format!("GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n{inner}");
    let answer = exchange(&server, clean.as_bytes()).await;
    assert_eq!(statuses(&answer), ["200", "201"], "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_an_upgrade_there_is_no_http() {
    let server = hub("").await;
    let inner = inner("smuggled");
    let head = String::from_utf8(Handshake::new(server.addr(), "/ws").encode()).unwrap();
    let head = head.trim_end();
    for extra in [
        String::new(),
        format!("Content-Length: {}\r\n", inner.len()),
        "Transfer-Encoding: chunked\r\n".to_owned(),
        "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n".to_owned(),
        // Refused: then it is no socket, and what follows is no request of a proxy's client either.
        "Sec-WebSocket-Version: 7\r\n".to_owned(),
        "Sec-WebSocket-Key: x\r\n".to_owned(),
        "Host: evil.example\r\n".to_owned(),
    ] {
        let answer = exchange(&server, format!("{head}\r\n{extra}\r\n{inner}").as_bytes()).await;
        assert!(statuses(&answer).len() <= 1, "{extra:?}: {answer}");
        assert!(rooms(&server).await.is_empty(), "{extra:?}: {answer}");
    }
    for (method, version) in [("POST", "HTTP/1.1"), ("GET", "HTTP/1.0"), ("CONNECT", "HTTP/1.1")] {
        let request = Handshake::new(server.addr(), "/ws").method(method).version(version).encode();
        let answer = exchange(&server, &request).await;
        assert!(!answer.contains("101"), "{method} {version}: {answer}");
    }
    eventually("no connection is left", async || (client_count(&server).await == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_has_one_host() {
    let server = hub("").await;
    for (what, head) in [
        ("two hosts", "GET /api/stats HTTP/1.1\r\nHost: localhost\r\nHost: evil.example"),
        ("two hosts, turned", "GET /api/stats HTTP/1.1\r\nHost: evil.example\r\nHost: localhost"),
        ("no host", "GET /api/stats HTTP/1.1\r\nAccept: */*"),
        ("a list", "GET /api/stats HTTP/1.1\r\nHost: localhost, evil.example"),
        ("an absolute target of another host", "GET http://evil.example/api/stats HTTP/1.1\r\nHost: evil.example"),
        ("a user in the host", "GET /api/stats HTTP/1.1\r\nHost: localhost@evil.example"),
        ("a fragment in the host", "GET /api/stats HTTP/1.1\r\nHost: evil.example#localhost"),
        ("a path in the host", "GET /api/stats HTTP/1.1\r\nHost: localhost/evil.example"),
    ] {
        let answer = exchange(&server, format!("{head}\r\nConnection: close\r\n\r\n").as_bytes()).await;
        assert!(matches!(statuses(&answer)[..], ["400" | "403"]), "{what}: {answer}");
        let ws = String::from_utf8(Handshake::new(server.addr(), "/ws").without("Host").encode()).unwrap();
        let (_, rest) = ws.split_once("\r\n").unwrap();
        let head = head.replace("/api/stats", "/ws");
        let answer = exchange(&server, format!("{head}\r\n{rest}").as_bytes()).await;
        assert!(matches!(statuses(&answer)[..], ["400" | "403"]), "{what}, socket: {answer}");
    }
    // An absolute target is the host (RFC 9112, 3.2.2): what the header says does not help.
    let turned = "GET http://evil.example/api/stats HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answer = exchange(&server, turned.as_bytes()).await;
    assert!(matches!(statuses(&answer)[..], ["400" | "403"]), "{answer}");
    let own = "GET http://localhost/api/stats HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answer = exchange(&server, own.as_bytes()).await;
    assert_eq!(statuses(&answer), ["200"], "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_in_paths_are_one_part_of_the_path() {
    let server = hub("").await;
    let ids =
        ["a/b", "../x", "..", ".", "a?b", "a#b", "a%2Fb", "a;b", "a\\b", " ", "a b", "%", "é", "a&b=c", "a\"b", "<a>"];
    for id in ids {
        let answer = server.post("/api/rooms", &json!({"id": id})).await;
        assert_eq!(answer.status, 201, "{id:?}: {answer:?}");
        let path = format!("/api/rooms/{}/members", wsc_testkit::encode(id).replace('.', "%2E"));
        assert_eq!(server.get(&path).await.status, 200, "{id:?}");
    }
    assert_eq!(rooms(&server).await.len(), ids.len());
    for id in ids {
        let path = format!("/api/rooms/{}", wsc_testkit::encode(id).replace('.', "%2E"));
        assert!((200..300).contains(&server.delete(&path).await.status), "{id:?}");
    }
    assert!(rooms(&server).await.is_empty());
    server.post("/api/rooms", &json!({"id": "r1"})).await;
    for bad in ["r1%00", "%00", "r1%0d%0aX-Evil:1", "%ff", "%c0%ae", "%ed%a0%80", "r1%", "r1%zz", "r1%2", "%0a", ""] {
        let answer = server.delete(&format!("/api/rooms/{bad}")).await;
        assert!(matches!(answer.status, 400 | 404 | 405), "{bad:?}: {answer:?}");
        assert!(answer.header("x-evil").is_none(), "{bad:?}: {answer:?}");
    }
    for raw in ["r1 x", "r1\tx", "r\u{e9}1", "r1\u{7f}", "r1\0"] {
        let answer = exchange(
            &server,
            format!("DELETE /api/rooms/{raw} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes(),
        )
        .await;
        assert!(!answer.contains("HTTP/1.1 2"), "{raw:?}: {answer}");
    }
    assert_eq!(rooms(&server).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn line_breaks_make_no_headers_and_no_log_lines() {
    let server = hub("log: {level: debug}").await;
    let evil = "r1\r\nX-Evil: 1\r\n\r\nevil";
    let answer = server.post("/api/rooms", &json!({"id": evil})).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    for target in ["/ws?user_id=a%0d%0aX-Evil:%201", "/ws?client_id=a%0aWARN%20evil", "/ws?device_id=a%0d%0ab"] {
        let response = crate::support::upgrade(&server, target, |h| h).await;
        assert_eq!(response.status, 400, "{target}: {response:?}");
        assert_eq!(response.header("x-evil"), None);
    }
    // Words of a stranger that do come in are quoted where they are logged.
    let mut client = Client::connect(&server.ws_url_as("alice")).await;
    client.request(json!({"message_type": "x\nFAKE LOG LINE", "data": {}})).await;
    client.send_close(4000, "bye\nFAKE LOG LINE").await;
    client.read_to_end().await;
    let headers = [("User-Agent", "x\u{1b}[31mFAKE"), ("X-Request-Id", "FAKE LOG LINE")];
    server.http("GET", "/nope%0aFAKE%20LOG%20LINE", &headers, None).await;
    eventually("the connection is gone", async || (client_count(&server).await == 0).then_some(())).await;
    let log = server.log();
    assert!(!log.lines().any(|line| line.starts_with("FAKE")), "{log}");
    assert!(!log.contains('\u{1b}'), "control characters in {log:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn huge_heads_are_refused_and_cost_nobody_else() {
    let server = hub("").await;
    let mut alice = Client::connect(&server.ws_url_as("alice")).await;
    let long = "x".repeat(200_000);
    for head in [
        format!("GET /api/stats HTTP/1.1\r\nHost: localhost\r\nX-Long: {long}\r\n\r\n"),
        format!("GET /{long} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        format!("GET /ws?user_id={long} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        format!("GET /api/stats HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "X-Many: 1\r\n".repeat(20_000)),
        format!("{long} / HTTP/1.1\r\n\r\n"),
        format!(
            "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nCookie: {long}\r\n\r\n"
        ),
    ] {
        let answer = exchange(&server, head.as_bytes()).await;
        // A reset instead of an answer is a refusal, too.
        assert!(statuses(&answer).iter().all(|status| status.starts_with('4')), "{answer}");
        alice.expect_quiet().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_of_something_else_is_none() {
    let server = hub("").await;
    for (name, value) in
        [("Upgrade", "h2c"), ("Upgrade", "websocket, h2c"), ("Upgrade", "TLS/1.0"), ("Connection", "close, Upgrade")]
    {
        for target in ["/ws", "/api/stats", "/"] {
            let mut raw = RawClient::tcp(server.addr()).await;
            let response = raw.handshake(&Handshake::new(server.addr(), target).set(name, value)).await;
            if target != "/ws" || value == "h2c" || value == "TLS/1.0" {
                assert_ne!(response.status, 101, "{name}: {value} at {target}: {response:?}");
            }
        }
    }
    // The preface of HTTP/2 finds nobody.
    let answer = exchange(&server, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    assert!(!answer.contains("200"), "{answer:?}");
}
