//! Who may ask what over HTTP, while authentication is off.

use wsc_testkit::{Client, ServerProcess, http};

use crate::support::hub;

/// What answers only to a program on the same machine.
const INTERNAL: &[&str] =
    &["/api/stats", "/api/clients", "/api/rooms", "/metrics", "/health/failure-stats", "/health/retry-config"];

async fn status(server: &ServerProcess, path: &str, headers: &[(&str, &str)]) -> u16 {
    server.http("GET", path, headers, None).await.status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_local_program_may_ask() {
    let server = hub("").await;
    let port = server.addr().port();
    for path in INTERNAL {
        assert_eq!(status(&server, path, &[]).await, 200, "{path}");
        for host in ["localhost", "127.0.0.1", "[::1]"] {
            for host in [host.to_owned(), format!("{host}:{port}")] {
                let got = status(&server, path, &[("Host", &host)]).await;
                assert_eq!(got, 200, "{path} at {host}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_proxy_the_internal_pages_are_closed() {
    let server = hub("").await;
    for header in [
        ("X-Forwarded-For", "127.0.0.1"),
        ("X-Forwarded-For", "203.0.113.9"),
        ("Forwarded", "for=127.0.0.1"),
        ("X-Forwarded-Host", "localhost"),
        ("X-Forwarded-Proto", "https"),
        ("X-Real-IP", "127.0.0.1"),
    ] {
        for path in INTERNAL {
            let got = status(&server, path, &[header]).await;
            assert_eq!(got, 403, "{path} with {header:?}");
        }
        assert_eq!(status(&server, "/health", &[header]).await, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_a_foreign_name_the_internal_pages_are_closed() {
    let server = hub("").await;
    let port = server.addr().port();
    let evil = format!("evil.example:{port}");
    for host in ["evil.example", evil.as_str(), "localhost.evil.example", ""] {
        for path in INTERNAL {
            let got = status(&server, path, &[("Host", host)]).await;
            assert!(matches!(got, 400 | 403), "{path} at {host:?}: {got}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_allowed_name_opens_them() {
    let server = hub("http: {allowed_hosts: [hub.example]}").await;
    for path in INTERNAL {
        let got = status(&server, path, &[("Host", "hub.example")]).await;
        assert_eq!(got, 200, "{path}");
        let got = status(&server, path, &[("Host", "evil.example")]).await;
        assert_eq!(got, 403, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_another_origin_gets_nothing() {
    let server = hub("").await;
    let own = server.http_url();
    for path in INTERNAL.iter().chain(&["/health", "/", "/openapi.json"]) {
        for header in [
            ("Origin", "http://evil.example"),
            ("Origin", "null"),
            ("Origin", "http://127.0.0.1:1"),
            ("Sec-Fetch-Site", "cross-site"),
        ] {
            let answer = server.http("GET", path, &[header], None).await;
            assert_eq!(answer.status, 403, "{path} with {header:?}");
            assert_eq!(answer.header("access-control-allow-origin"), None);
        }
        let answer = server.http("GET", path, &[("Origin", &own)], None).await;
        assert_eq!(answer.status, 200, "{path} of the same origin");
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_page_cannot_change_anything() {
    let server = hub("").await;
    let mut client = Client::connect(&server.ws_url_as("alice")).await;
    for header in [
        ("Origin", "http://evil.example"),
        ("Origin", "null"),
        ("Sec-Fetch-Site", "cross-site"),
        ("X-Forwarded-For", "127.0.0.1"),
        ("Host", "evil.example"),
    ] {
        let headers = [("Content-Type", "application/json"), header];
        let body = br#"{"content":"spam"}"#.as_slice();
        for path in ["/api/broadcast", "/api/users/alice/messages", "/api/rooms"] {
            let answer = server.http("POST", path, &headers, Some(body)).await;
            assert_eq!(answer.status, 403, "{path} with {header:?}");
            answer.error_code();
        }
        let path = format!("/api/clients/{}", client.session());
        let answer = server.http("DELETE", &path, &[header], None).await;
        assert_eq!(answer.status, 403, "{path} with {header:?}");
    }
    client.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preflight_allows_nothing() {
    let server = hub("").await;
    let headers = [
        ("Origin", "http://evil.example"),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "content-type"),
    ];
    let answer = server.http("OPTIONS", "/api/broadcast", &headers, None).await;
    assert_eq!(answer.status, 403, "{answer:?}");
    assert_eq!(answer.header("access-control-allow-origin"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_tells_strangers_the_least() {
    let server = hub("").await;
    let local = server.get("/health").await.json();
    assert_eq!(local["status"], "ok");
    assert!(local["version"].is_string(), "{local}");
    assert!(local["node_id"].is_string(), "{local}");
    assert!(local["uptime_seconds"].is_number(), "{local}");
    let headers = [("X-Forwarded-For", "203.0.113.9")];
    let distant = server.http("GET", "/health", &headers, None).await;
    assert_eq!(distant.json(), serde_json::json!({"status": "ok"}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_page_is_served_on_loopback() {
    let server = hub("").await;
    let page = server.get("/").await;
    assert_eq!(page.status, 200);
    assert!(page.header("content-type").is_some_and(|kind| kind.starts_with("text/html")), "{:?}", page.headers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_internal_address_alone_serves_the_internal_pages() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let internal = free.local_addr().unwrap();
    drop(free);
    let server = hub(&format!("http: {{internal_listen: \"{internal}\"}}")).await;
    for path in ["/metrics", "/health/failure-stats", "/health/retry-config"] {
        let got = status(&server, path, &[]).await;
        assert!(matches!(got, 403 | 404), "{path}: {got}");
        let url = format!("http://{internal}{path}");
        assert_eq!(http("GET", &url, &[], None).await.status, 200, "{path}");
    }
    // What concerns users stays where it was.
    assert_eq!(status(&server, "/api/stats", &[]).await, 200);
    assert_eq!(status(&server, "/health", &[]).await, 200);
}
