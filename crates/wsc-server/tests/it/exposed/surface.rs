//! Web pages, proxies and names that reach the hub though nobody meant them to.

use serde_json::json;
use wsc_testkit::{Client, ConnectOptions, ServerProcess, http};

use super::{API_KEY, admin, enter, guarded, routes::ROUTES, token};
use crate::support::{assert_refused, hub, upgrade};

/// What a request from a page of another origin looks like.
const FOREIGN_PAGES: &[&[(&str, &str)]] = &[
    &[("Origin", "http://evil.example")],
    &[("Origin", "https://127.0.0.1.evil.example")],
    &[("Origin", "http://127.0.0.1:1")],
    &[("Origin", "http://localhost")],
    &[("Origin", "null")],
    &[("Origin", "file://")],
    &[("Origin", "chrome-extension://abcdefghijklmnop")],
    &[("Origin", "")],
    &[("Origin", "http://evil.example"), ("Sec-Fetch-Site", "same-origin")],
    &[("Sec-Fetch-Site", "cross-site")],
    &[("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "no-cors"), ("Sec-Fetch-Dest", "image")],
];

/// What proxies add.
const FORWARDED: &[(&str, &str)] = &[
    ("X-Forwarded-For", "127.0.0.1"),
    ("X-Forwarded-For", ""),
    ("X-Forwarded-Host", "localhost"),
    ("X-Forwarded-Proto", "http"),
    ("X-Real-IP", "127.0.0.1"),
    ("Forwarded", "for=127.0.0.1;host=localhost"),
    ("Via", "1.1 proxy"),
];

/// Names that a foreign DNS server may have pointed at this machine.
const REBOUND: &[&str] = &[
    "evil.example",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "evil.example:80",
    "localhost.",
    "0.0.0.0",
    "[::]",
    "10.0.0.1",
    "evil.example@localhost",
    "localhost@evil.example",
    "",
];

async fn status(server: &ServerProcess, at: usize, headers: &[(&str, &str)]) -> u16 {
    let route = &ROUTES[at];
    let mut all = vec![("Content-Type", "application/json")];
    all.extend(headers);
    let answer = server.http(route.method, route.path, &all, route.body()).await;
    let allowed = answer.headers.iter().filter(|(name, _)| name.starts_with("access-control-")).count();
    assert_eq!(allowed, 0, "{} {}: CORS headers in {answer:?}", route.method, route.path);
    answer.status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_page_reaches_no_route_while_authentication_is_off() {
    let server = hub("").await;
    for (at, route) in ROUTES.iter().enumerate() {
        for page in FOREIGN_PAGES {
            assert_eq!(status(&server, at, page).await, 403, "{} {} with {page:?}", route.method, route.path);
        }
    }
    for page in FOREIGN_PAGES {
        let response = upgrade(&server, "/ws", |h| page.iter().fold(h, |h, (name, value)| h.add(name, value))).await;
        assert_refused(&response, 403, 2001);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_page_reaches_no_route_even_with_a_token() {
    let server = guarded("", "").await;
    let bearer = format!("Bearer {}", admin());
    for (at, route) in ROUTES.iter().enumerate() {
        for page in FOREIGN_PAGES {
            let mut headers = page.to_vec();
            headers.push(("Authorization", &bearer));
            assert_eq!(status(&server, at, &headers).await, 403, "{} {} with {page:?}", route.method, route.path);
        }
    }
    let target = format!("/ws?token={}", token("alice", &[]));
    for page in FOREIGN_PAGES {
        for protocol in ["wsc.v1", "other"] {
            let response = upgrade(&server, &target, |h| {
                page.iter().fold(h, |h, (name, value)| h.add(name, value)).add("Sec-WebSocket-Protocol", protocol)
            })
            .await;
            assert_refused(&response, 403, 2001);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_allowed_origin_is_that_origin_and_no_other() {
    let server = hub("auth: {allowed_origins: [\"https://app.example\"]}").await;
    let open = async |origin: &str| upgrade(&server, "/ws", |h| h.add("Origin", origin)).await.status;
    assert_eq!(open("https://app.example").await, 101);
    assert_eq!(open(&server.http_url()).await, 101, "its own page");
    for other in [
        "http://app.example",
        "https://app.example:8443",
        "https://app.example.evil.example",
        "https://xapp.example",
        "https://evil.example/https://app.example",
        "https://app.example@evil.example",
        "https://sub.app.example",
        "https://app.example, https://evil.example",
        "null",
        "*",
    ] {
        assert_eq!(open(other).await, 403, "{other}");
    }
    let two = upgrade(&server, "/ws", |h| h.add("Origin", "https://app.example").add("Origin", "http://evil.example"));
    assert_eq!(two.await.status, 403);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebound_name_reaches_no_route() {
    let server = hub("").await;
    for host in REBOUND {
        for (at, route) in ROUTES.iter().enumerate() {
            let got = status(&server, at, &[("Host", host)]).await;
            assert!(matches!(got, 400 | 403), "{} {} at {host:?}: {got}", route.method, route.path);
        }
        let response = upgrade(&server, "/ws", |h| h.set("Host", host)).await;
        assert!(matches!(response.status, 400 | 403), "/ws at {host:?}: {response:?}");
    }
    // A page of that name would call itself same origin; that helps it no more.
    let headers = [("Host", "evil.example"), ("Origin", "http://evil.example"), ("Sec-Fetch-Site", "same-origin")];
    for (at, route) in ROUTES.iter().enumerate() {
        assert_eq!(status(&server, at, &headers).await, 403, "{}", route.path);
    }
    for good in ["localhost", "LOCALHOST:1", "127.0.0.1", "127.1.2.3:80", "[::1]"] {
        assert_eq!(upgrade(&server, "/ws", |h| h.set("Host", good)).await.status, 101, "{good}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_local_proxy_opens_nothing_while_authentication_is_off() {
    let server = hub("").await;
    for (at, route) in ROUTES.iter().enumerate() {
        for header in FORWARDED {
            let got = status(&server, at, &[*header]).await;
            // The demo page is for this machine as well, and is not missed elsewhere.
            let expected = if route.path == "/" {
                404
            } else if route.is_public() {
                200
            } else {
                403
            };
            assert_eq!(got, expected, "{} {} with {header:?}", route.method, route.path);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_is_welcome_while_authentication_is_on() {
    let server = guarded("", "").await;
    let bearer = format!("Bearer {}", admin());
    for header in FORWARDED {
        let headers = [*header, ("Authorization", bearer.as_str())];
        for (at, route) in ROUTES.iter().enumerate() {
            let got = status(&server, at, &headers).await;
            assert!(!matches!(got, 401 | 403), "{} {} with {header:?}: {got}", route.method, route.path);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn allow_insecure_opens_the_socket_and_not_the_operators_pages() {
    let settings = "wsc: {listen: \"0.0.0.0:0\", auth: {allow_insecure: true}}\n";
    let server = ServerProcess::start(crate::support::BIN, settings).await;
    let local = format!("http://127.0.0.1:{}", server.addr().port());
    for route in ROUTES {
        let headers = [("Content-Type", "application/json")];
        let answer = http(route.method, &format!("{local}{}", route.path), &headers, route.body()).await;
        if route.path == "/" {
            // The page is for loopback, where `demo_page` is not set.
            assert!(matches!(answer.status, 200 | 403 | 404), "{answer:?}");
        } else if route.is_public() {
            assert_eq!(answer.status, 200, "{} {}: {answer:?}", route.method, route.path);
        } else {
            assert_eq!(answer.status, 403, "{} {}: {answer:?}", route.method, route.path);
        }
    }
    let url = format!("ws://127.0.0.1:{}/ws?user_id=alice", server.addr().port());
    let options = ConnectOptions { headers: &[("Host", "hub.example")], ..ConnectOptions::default() };
    let mut alice = Client::connect_with(&url, &options).await;
    alice.join("r1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_loopback_without_authentication_it_does_not_start() {
    for keys in ["listen: \"0.0.0.0:0\"", "listen: \"[::]:0\"", "http: {internal_listen: \"0.0.0.0:0\"}"] {
        let settings = format!("wsc: {{{keys}}}\n");
        let launch = wsc_testkit::Launch {
            args: &["serve", "--config", "settings.yaml"],
            files: &[("settings.yaml", &settings)],
            env: &[],
        };
        let output = launch.run(crate::support::BIN).await;
        assert_eq!(output.status.code(), Some(2), "{keys}: {output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("allow_insecure"), "{said}");
    }
}

/// A free loopback address. It may be taken by somebody else before the server takes it.
fn free_address() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operators_address_alone_serves_the_operators_pages() {
    for is_guarded in [false, true] {
        let internal = free_address();
        let keys = format!("http: {{internal_listen: \"{internal}\", api_keys: [{API_KEY}]}}");
        let server = if is_guarded { guarded("", &keys).await } else { hub(&keys).await };
        let headers = [("Content-Type", "application/json"), ("X-API-Key", API_KEY)];
        for route in ROUTES {
            let outside = server.http(route.method, route.path, &headers, route.body()).await;
            let inside = http(route.method, &format!("http://{internal}{}", route.path), &headers, route.body()).await;
            let what = format!("{} {} (guarded: {is_guarded})", route.method, route.path);
            if route.is_internal() {
                assert!(matches!(outside.status, 403 | 404), "{what}: {outside:?}");
                assert!(!matches!(inside.status, 401 | 403), "{what} inside: {inside:?}");
                assert!(inside.status != 404 || route.path.contains("none"), "{what} inside: {inside:?}");
            } else if route.path == "/" || route.path.starts_with("/api/") || route.path == "/openapi.json" {
                assert!(!matches!(outside.status, 401 | 403), "{what}: {outside:?}");
            }
            for page in [("Origin", "http://evil.example"), ("Sec-Fetch-Site", "cross-site")] {
                let url = format!("http://{internal}{}", route.path);
                let answer = http(route.method, &url, &[page, headers[0], headers[1]], route.body()).await;
                assert_eq!(answer.status, 403, "{what} inside with {page:?}");
            }
            if !is_guarded && route.is_internal() {
                for header in [("Host", "evil.example"), ("X-Forwarded-For", "127.0.0.1")] {
                    let url = format!("http://{internal}{}", route.path);
                    let answer = http(route.method, &url, &[header, headers[0]], route.body()).await;
                    assert_eq!(answer.status, 403, "{what} inside with {header:?}");
                }
            }
        }
        // No socket for clients there.
        let mut raw = wsc_testkit::RawClient::tcp(internal).await;
        let response = raw.handshake(&wsc_testkit::Handshake::new(internal, "/ws")).await;
        assert_ne!(response.status, 101, "{response:?}");
        let spelt = [
            "/metrics/",
            "//metrics",
            "/./metrics",
            "/%6detrics",
            "/METRICS",
            "/debug/../metrics",
            "/metrics%2f",
            "/metrics;x",
        ];
        for path in spelt {
            let answer = server.http("GET", path, &headers, None).await;
            assert!(matches!(answer.status, 400 | 401 | 403 | 404), "{path}: {answer:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preflight_allows_nothing_even_with_a_token() {
    let server = guarded("allowed_origins: [\"https://app.example\"]", "").await;
    for origin in ["http://evil.example", "https://app.example"] {
        for route in ROUTES {
            let headers = [
                ("Origin", origin),
                ("Access-Control-Request-Method", route.method),
                ("Access-Control-Request-Headers", "authorization"),
            ];
            let answer = server.http("OPTIONS", route.path, &headers, None).await;
            assert!(answer.status >= 400, "{} from {origin}: {answer:?}", route.path);
            assert_eq!(answer.header("access-control-allow-origin"), None, "{answer:?}");
        }
    }
    enter(&server, "alice").await.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_neither_cached_nor_sniffed() {
    let server = hub("").await;
    for route in ROUTES {
        let headers = [("Content-Type", "application/json")];
        let answer = server.http(route.method, route.path, &headers, route.body()).await;
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{}: {answer:?}", route.path);
        if route.path.starts_with("/api") || route.path.starts_with("/debug") {
            assert_eq!(answer.header("cache-control"), Some("no-store"), "{}: {answer:?}", route.path);
        }
        assert_eq!(answer.header("server"), None, "{}: it says what it is", route.path);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_of_others_stays_text() {
    let server = hub("").await;
    let script = "<script>alert(1)</script>";
    let _alice = Client::connect(&server.ws_url_as(script)).await;
    server.post("/api/rooms", &json!({"id": script, "name": script})).await;
    for path in ["/api/clients", "/api/rooms", "/api/%3Cscript%3Ealert(1)%3C/script%3E", "/api/users/%3Cscript%3E"] {
        let answer = server.get(path).await;
        assert!(answer.header("content-type").is_some_and(|kind| kind.starts_with("application/json")), "{answer:?}");
    }
}
