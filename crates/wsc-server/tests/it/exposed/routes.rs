//! What each permission opens over HTTP, and what it does not.

use serde_json::{Value, json};
use wsc_testkit::HttpResponse;

use super::{admin, call, call_ok, connect, enter, expect_authorized, guarded, permissions::ALL, token};
use crate::support::{assert_refused, hub};

/// A route, a body that it takes, and the permission that opens it.
pub(super) struct Route {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    pub(super) body: Option<&'static str>,
    needs: Needs,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// Nothing, not even a token.
    Nothing,
    /// To be somebody.
    Somebody,
    This(&'static str),
}

use Needs::{Nothing, Somebody, This};

const fn route(method: &'static str, path: &'static str, body: Option<&'static str>, needs: Needs) -> Route {
    Route { method, path, body, needs }
}

/// Every route of the contract, with ids of nobody and nothing.
pub(super) const ROUTES: &[Route] = &[
    route("GET", "/", None, Nothing),
    route("GET", "/openapi.json", None, Nothing),
    route("GET", "/health", None, Nothing),
    route("GET", "/health/live", None, Nothing),
    route("GET", "/health/ready", None, Nothing),
    route("GET", "/health/failure-stats", None, This("admin:system")),
    route("GET", "/health/retry-config", None, This("admin:system")),
    route("GET", "/metrics", None, This("admin:system")),
    route("GET", "/api/stats", None, This("admin:system")),
    route("GET", "/api/clients", None, This("admin:system")),
    route("GET", "/api/clients/nobody", None, This("admin:system")),
    route("POST", "/api/clients/nobody/trace", None, This("admin:system")),
    route("DELETE", "/api/clients/nobody", None, This("admin:system")),
    route("POST", "/api/users/nobody/disconnect", None, This("admin:system")),
    route("GET", "/api/users/nobody", None, This("admin:system")),
    route("POST", "/api/users/nobody/messages", Some(r#"{"content":1}"#), This("send:message")),
    route("POST", "/api/messages/batch", Some(r#"{"messages":[]}"#), This("admin:system")),
    route("GET", "/api/messages/0192", None, Somebody),
    route("POST", "/api/broadcast", Some(r#"{"content":1}"#), This("admin:system")),
    route("GET", "/api/rooms", None, This("admin:room")),
    route("POST", "/api/rooms", Some(r#"{"id":"made-over-http"}"#), This("create:room")),
    route("DELETE", "/api/rooms/none", None, This("admin:room")),
    route("GET", "/api/rooms/none/members", None, This("admin:room")),
    route("POST", "/api/rooms/none/members/nobody", None, This("admin:room")),
    route("DELETE", "/api/rooms/none/members/nobody", None, This("admin:room")),
    route("POST", "/api/rooms/none/messages", Some(r#"{"content":1}"#), This("admin:room")),
    route("POST", "/api/broadcast/room", Some(r#"{"room_id":"none","content":1}"#), This("admin:room")),
    route("GET", "/debug/hub/status", None, This("admin:system")),
    route("GET", "/debug/failures", None, This("admin:system")),
    route("GET", "/debug/callbacks", None, This("admin:system")),
    route("GET", "/debug/ack/stats", None, This("admin:system")),
    route("GET", "/debug/ack/pending", None, This("admin:system")),
    route("POST", "/debug/ack/retry", None, This("admin:system")),
    route("POST", "/api/tokens/revoke", Some(r#"{"jti":"nobody's"}"#), This("admin:system")),
    route("POST", "/api/admin/config/reload?dry_run=true", None, This("admin:system")),
    route("GET", "/api/webhooks/dead", None, This("admin:system")),
    route("POST", "/api/webhooks/dead/none/replay", None, This("admin:system")),
];

impl Route {
    /// Whether everybody may ask.
    pub(super) fn is_public(&self) -> bool {
        self.needs == Nothing
    }

    /// Whether only `http.internal_listen` serves it, where that is set.
    pub(super) fn is_internal(&self) -> bool {
        self.path == "/metrics"
            || self.path.starts_with("/debug/")
            || self.path.starts_with("/api/admin/")
            || matches!(self.path, "/health/failure-stats" | "/health/retry-config")
    }

    pub(super) fn body(&self) -> Option<&'static [u8]> {
        self.body.map(str::as_bytes)
    }
}

async fn ask(server: &wsc_testkit::ServerProcess, route: &Route, token: &str) -> HttpResponse {
    let body: Option<Value> = route.body.map(|text| serde_json::from_str(text).unwrap());
    call(server, route.method, route.path, token, body.as_ref()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_of_routes_is_whole() {
    let server = hub("").await;
    let described = server.get("/openapi.json").await.json();
    let mut missing = Vec::new();
    for (path, methods) in described["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys().map(|name| name.to_uppercase()) {
            let is_known = path == "/ws" || ROUTES.iter().any(|route| route.method == method && fits(path, route.path));
            if !is_known && ["GET", "POST", "PUT", "PATCH", "DELETE"].contains(&method.as_str()) {
                missing.push(format!("{method} {path}"));
            }
        }
    }
    assert!(missing.is_empty(), "nobody checks who may ask for {missing:?}");
}

/// Whether a described path, with its parameters in braces, is the one of a route.
fn fits(described: &str, path: &str) -> bool {
    let path = path.split('?').next().unwrap_or_default();
    let (described, path): (Vec<&str>, Vec<&str>) = (described.split('/').collect(), path.split('/').collect());
    described.len() == path.len() && described.iter().zip(&path).all(|(a, b)| a.starts_with('{') || a == b)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_permission_opens_its_routes_and_no_other() {
    let server = guarded("", "").await;
    for held in ALL {
        let token = token("alice", &[held]);
        for route in ROUTES {
            let answer = ask(&server, route, &token).await;
            let is_open = match route.needs {
                Nothing | Somebody => true,
                This(needed) => held == needed || held == "admin:system",
            };
            let what = format!("{} {} with {held}: {answer:?}", route.method, route.path);
            assert!(answer.status != 401 && answer.status < 500, "{what}");
            if is_open && route.needs != Somebody {
                assert_ne!(answer.status, 403, "{what}");
            } else if !is_open {
                assert_eq!(answer.status, 403, "{what}");
                assert_eq!(answer.error_code(), 2001, "{what}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_credentials_only_the_public_pages_are_open() {
    let server = guarded("allow_anonymous: true, anonymous_permissions: [\"admin:room\", \"send:message\"]", "").await;
    for route in ROUTES {
        let headers = [("Content-Type", "application/json")];
        let answer = server.http(route.method, route.path, &headers, route.body()).await;
        let what = format!("{} {}: {answer:?}", route.method, route.path);
        if route.is_public() {
            assert_eq!(answer.status, 200, "{what}");
        } else {
            assert_eq!(answer.status, 401, "{what}");
            assert_eq!(answer.error_code(), 2000, "{what}");
            assert!(answer.body.len() < 300, "{what}");
        }
    }
    // Nor for other methods and paths below.
    for path in ["/api", "/api/", "/api/nope", "/debug", "/debug/", "/debug/pprof", "/api/admin/x", "/metrics/x"] {
        for method in ["GET", "POST", "PUT", "PATCH", "OPTIONS", "HEAD", "TRACE"] {
            let answer = server.http(method, path, &[], None).await;
            assert!(matches!(answer.status, 401 | 403 | 404 | 405), "{method} {path}: {answer:?}");
        }
    }
    // Health tells strangers the least.
    assert_eq!(server.get("/health").await.json(), json!({"status": "ok"}));
    let known = call_ok(&server, "GET", "/health", &admin(), None).await;
    assert!(known["version"].is_string() && known["uptime_seconds"].is_number(), "{known}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn room_permissions_go_by_the_room() {
    let server = guarded("", "").await;
    for id in ["mine", "yours", "a/b", "mine-2"] {
        call_ok(&server, "POST", "/api/rooms", &admin(), Some(&json!({"id": id}))).await;
    }
    let held = token("alice", &["admin:room:mine", "create:room:mine-*", "admin:room:a/b"]);
    let message = json!({"content": 1});
    for (method, path, body, status) in [
        ("GET", "/api/rooms/mine/members", None, 200),
        ("GET", "/api/rooms/%6dine/members", None, 200),
        ("GET", "/api/rooms/a%2Fb/members", None, 200),
        ("GET", "/api/rooms/yours/members", None, 403),
        ("GET", "/api/rooms/no-such-room/members", None, 403),
        ("GET", "/api/rooms/mine-2/members", None, 403),
        ("GET", "/api/rooms/mine%00/members", None, 403),
        ("GET", "/api/rooms/MINE/members", None, 403),
        ("POST", "/api/rooms/mine/messages", Some(&message), 202),
        ("POST", "/api/rooms/yours/messages", Some(&message), 403),
        ("POST", "/api/rooms/yours/members/alice", None, 403),
        ("DELETE", "/api/rooms/yours/members/bob", None, 403),
        ("DELETE", "/api/rooms/yours", None, 403),
        ("GET", "/api/rooms", None, 403),
    ] {
        let answer = call(&server, method, path, &held, body).await;
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
    }
    let to = |room: &str| json!({"room_id": room, "content": 1});
    assert_eq!(call(&server, "POST", "/api/broadcast/room", &held, Some(&to("mine"))).await.status, 202);
    assert_refused(&call(&server, "POST", "/api/broadcast/room", &held, Some(&to("yours"))).await, 403, 2001);
    let make = |room: &str| json!({"id": room});
    assert_eq!(call(&server, "POST", "/api/rooms", &held, Some(&make("mine-3"))).await.status, 201);
    assert_refused(&call(&server, "POST", "/api/rooms", &held, Some(&make("yours-3"))).await, 403, 2001);
    assert_refused(&call(&server, "POST", "/api/rooms", &held, Some(&make("mine"))).await, 403, 2001);
    // The path counts, not what a path seems to lead to.
    for path in ["/api/rooms/mine/../yours", "/api/rooms/mine/..%2Fyours", "/api/rooms//yours", "/api//rooms/yours"] {
        let answer = call(&server, "DELETE", path, &held, None).await;
        assert!((400..500).contains(&answer.status), "{path}: {answer:?}");
    }
    let rooms = call_ok(&server, "GET", "/api/rooms", &admin(), None).await;
    let ids: Vec<&str> = rooms.as_array().unwrap().iter().filter_map(|room| room["id"].as_str()).collect();
    assert!(["mine", "yours", "a/b", "mine-2"].iter().all(|id| ids.contains(id)), "{ids:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sends_over_http_is_who_the_token_says() {
    let server = guarded("", "").await;
    let mut bob = enter(&server, "bob").await;
    let alice = token("alice", &["send:message:@bob"]);
    let path = "/api/users/bob/messages";
    let sent = call_ok(&server, "POST", path, &alice, Some(&json!({"content": 1}))).await;
    let delivery = bob.expect("user_message").await;
    assert_eq!(delivery["data"]["sender_id"], "alice", "{delivery}");
    assert_refused(
        &call(&server, "POST", "/api/users/carol/messages", &alice, Some(&json!({"content": 1}))).await,
        403,
        2001,
    );
    for extra in [json!({"sender_id": "system"}), json!({"message_type": "notice"}), json!({"priority": "high"})] {
        let mut body = json!({"content": 1});
        for (name, value) in extra.as_object().unwrap() {
            body[name] = value.clone();
        }
        assert_refused(&call(&server, "POST", path, &alice, Some(&body)).await, 403, 2001);
        // An operator may.
        call_ok(&server, "POST", path, &admin(), Some(&body)).await;
        bob.recv("what the operator sent").await;
    }
    for name in
        ["room_message", "connected", "error", "accepted", "gap", "kick_out", "force_offline", "wsc.x", "room_left"]
    {
        let body = json!({"content": 1, "message_type": name});
        let answer = call(&server, "POST", path, &admin(), Some(&body)).await;
        assert_eq!(answer.status, 400, "{name}: {answer:?}");
    }
    bob.expect_quiet().await;

    // The fate of a message is the sender's to know, and an operator's.
    let path = format!("/api/messages/{}", sent["id"].as_str().unwrap());
    assert_eq!(call(&server, "GET", &path, &alice, None).await.status, 200);
    assert_eq!(call(&server, "GET", &path, &admin(), None).await.status, 200);
    for other in [token("bob", &["send:message"]), token("eve", ALL.split_last().unwrap().1)] {
        let answer = call(&server, "GET", &path, &other, None).await;
        assert!(matches!(answer.status, 403 | 404), "{answer:?}");
    }
    expect_authorized(&server, &token("eve", &[])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_of_an_operator_is_an_ordinary_one() {
    let server = guarded("", "").await;
    let mut root = connect(&server, &admin()).await;
    root.join("r1").await;
    let mut alice = enter(&server, "alice").await;
    alice.join("r1").await;
    let text = json!({"message_type": "room_message", "sender": "alice", "data": {"room_id": "r1", "content": 1, "sender_id": "alice"}});
    root.request_ok(text, "accepted").await;
    assert_eq!(alice.expect("room_message").await["data"]["sender_id"], "root-of-tests");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_header_and_no_spelling_leads_around_the_guard() {
    let server = guarded("", "").await;
    for (name, value) in [
        ("X-HTTP-Method-Override", "GET"),
        ("X-Original-URL", "/health"),
        ("X-Rewrite-URL", "/health"),
        ("X-Forwarded-Prefix", "/health"),
        ("X-API-Key", ""),
        ("Authorization", ""),
        ("Authorization", "Bearer"),
        ("Authorization", "Bearer "),
        ("Authorization", "Bearer undefined"),
        ("Cookie", "token=x"),
        ("X-User-ID", "root"),
        ("X-Real-IP", "127.0.0.1"),
        ("X-Forwarded-For", "127.0.0.1"),
    ] {
        for path in ["/api/stats", "/metrics", "/debug/hub/status", "/health/failure-stats"] {
            for method in ["GET", "HEAD"] {
                let answer = server.http(method, path, &[(name, value)], None).await;
                assert_eq!(answer.status, 401, "{method} {path} with {name}: {value:?}");
            }
        }
    }
    // A bad token first is not made good by a good one behind it, nor the other way round.
    let (good, bad) = (format!("Bearer {}", admin()), "Bearer x");
    for pair in [[good.as_str(), bad], [bad, good.as_str()]] {
        let headers = pair.map(|value| ("Authorization", value));
        let answer = server.http("GET", "/api/stats", &headers, None).await;
        let expected: &[u16] = if pair[0] == bad { &[400, 401] } else { &[200, 400, 401] };
        assert!(expected.contains(&answer.status), "{pair:?}: {answer:?}");
    }
    for path in [
        "/api/stats/",
        "//api/stats",
        "/api//stats",
        "/./api/stats",
        "/x/../api/stats",
        "/API/stats",
        "/api/stats%20",
        "/api%2fstats",
        "/%61pi/stats",
        "/api/stats;a=b",
        "/api/stats%00",
        "/health/../api/stats",
        "/health/%2e%2e/api/stats",
        "/metrics/",
        "/%6detrics",
        "/debug%2fhub%2fstatus",
        "/debug/hub/status?x=/health",
    ] {
        let answer = server.get(path).await;
        assert!(matches!(answer.status, 400 | 401 | 404), "{path}: {answer:?}");
        assert!(!answer.text().contains("client_count"), "{path}: {answer:?}");
    }
}
