//! The pages that show a hub from the inside.

use serde_json::{Value, json};
use wsc_testkit::{Client, HttpResponse, ServerProcess, eventually, http};

use super::{QUICK, connect, expect_outcome, tell_with_outcome};
use crate::support::{assert_refused, hub};

/// Pages about messages and their fates, and how they are asked for.
const PAGES: &[(&str, &str)] = &[
    ("GET", "/debug/hub/status"),
    ("GET", "/debug/failures"),
    ("GET", "/debug/callbacks"),
    ("GET", "/debug/ack/stats"),
    ("GET", "/debug/ack/pending"),
    ("POST", "/debug/ack/retry"),
    ("GET", "/health/failure-stats"),
    ("GET", "/health/retry-config"),
];

/// The API's share: about a user, a connection, a message.
const API: &[(&str, &str)] = &[
    ("GET", "/api/users/alice"),
    ("GET", "/api/clients/phone"),
    ("POST", "/api/clients/phone/trace"),
    ("GET", "/api/messages/01890000-0000-7000-8000-000000000000"),
];

async fn get(server: &ServerProcess, path: &str) -> Value {
    let answer = server.get(path).await;
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    answer.json()
}

#[track_caller]
fn assert_has(value: &Value, fields: &[&str]) {
    for field in fields {
        assert!(value.get(field).is_some(), "no {field} in {value}");
    }
}

async fn ask(server: &ServerProcess, (method, path): (&str, &str), headers: &[(&str, &str)]) -> HttpResponse {
    let mut all = vec![("Content-Type", "application/json")];
    all.extend_from_slice(headers);
    let body = (method == "POST").then_some(b"{}".as_slice());
    server.http(method, path, &all, body).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pages_are_for_this_machine_only() {
    let server = hub("").await;
    let _alice = Client::connect(&server.ws_url_for("alice", "phone")).await;
    for page in PAGES.iter().chain(API) {
        let answer = ask(&server, *page, &[]).await;
        let is_unknown_message = page.1.starts_with("/api/messages/");
        assert!(
            matches!(answer.status, 200..=204) || is_unknown_message && answer.status == 404,
            "{page:?}: {answer:?}"
        );
        for header in [
            ("X-Forwarded-For", "127.0.0.1"),
            ("Forwarded", "for=127.0.0.1"),
            ("Host", "evil.example"),
            ("Origin", "http://evil.example"),
            ("Sec-Fetch-Site", "cross-site"),
        ] {
            let answer = ask(&server, *page, &[header]).await;
            assert_eq!(answer.status, 403, "{page:?} with {header:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_back_end_with_a_key_may_see_them_from_anywhere() {
    let server = hub("http: {api_keys: [0123456789abcdef0123]}").await;
    let _alice = Client::connect(&server.ws_url_for("alice", "phone")).await;
    let proxied = ("X-Forwarded-For", "203.0.113.9");
    for page in PAGES.iter().chain(API) {
        for key in [("X-API-Key", "0123456789abcdef0123"), ("Authorization", "Bearer 0123456789abcdef0123")] {
            let answer = ask(&server, *page, &[proxied, key]).await;
            assert!(!matches!(answer.status, 401 | 403), "{page:?}: {answer:?}");
        }
        let answer = ask(&server, *page, &[proxied, ("X-API-Key", "0123456789abcdef0124")]).await;
        assert!(matches!(answer.status, 401 | 403), "{page:?}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operators_listener_has_the_pages_for_itself() {
    let server = hub("http: {internal_listen: \"127.0.0.1:0\"}").await;
    let line = "wsc: metrics and debug pages on ";
    let url = eventually("the address is printed", async || {
        server.get("/health/live").await;
        server.log().lines().find_map(|text| text.strip_prefix(line).map(str::to_owned))
    })
    .await;
    for &(method, path) in PAGES {
        let answer = ask(&server, (method, path), &[]).await;
        assert_eq!(answer.status, 404, "{path} in public");
        let body = (method == "POST").then_some(b"{}".as_slice());
        let answer = http(method, &format!("{url}{path}"), &[("Content-Type", "application/json")], body).await;
        assert!((200..300).contains(&answer.status), "{path}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hub_shows_its_status() {
    let server = hub(&format!("{QUICK}, enable_offline_ack: false")).await;
    let mut alice = connect(&server, "alice").await;
    let _bob = connect(&server, "bob").await;
    let id = tell_with_outcome(&mut alice, "bob", json!(1), "pending").await;
    expect_outcome(&server, &id, "bob", "failed").await;
    let status = get(&server, "/debug/hub/status").await;
    assert_has(
        &status,
        &[
            "active_connections",
            "total_connections",
            "failure_stats",
            "retry_stats",
            "callback_stats",
            "current_config",
            "handler_status",
            "pending_restart",
        ],
    );
    assert_eq!((&status["active_connections"], &status["total_connections"]), (&json!(2), &json!(2)));
    assert_eq!(status["failure_stats"]["timeout_count"], 1, "{status}");
    assert_eq!(status["pending_restart"], json!([]));
    let config = status["current_config"].to_string();
    assert!(config.contains("ack_timeout") && config.contains("200ms"), "{config}");

    let stats = get(&server, "/health/failure-stats").await;
    assert_has(
        &stats,
        &["total_failures", "queue_full_count", "offline_count", "timeout_count", "conn_error_count", "uptime_seconds"],
    );
    assert_eq!((&stats["total_failures"], &stats["timeout_count"]), (&json!(1), &json!(1)), "{stats}");
    let retry = get(&server, "/health/retry-config").await;
    assert_has(&retry, &["max_retries", "base_delay", "backoff_factor", "retryable_errors", "non_retryable_errors"]);
    assert_eq!(retry["max_retries"], 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_are_listed_newest_first() {
    let server = hub("storage: {inbox_max_messages: 1}").await;
    let mut alice = connect(&server, "alice").await;
    for user in ["bob", "carol"] {
        alice.request_ok(super::reliable(user, &json!(1)), "accepted").await;
        alice.request_error(super::reliable(user, &json!(2)), 4003).await;
    }
    let listed = eventually("both are listed", async || {
        let listed = get(&server, "/debug/failures").await["failures"].clone();
        (listed.as_array().map(Vec::len) == Some(2)).then_some(listed)
    })
    .await;
    for (at, user) in [(0, "carol"), (1, "bob")] {
        assert_eq!((&listed[at]["user_id"], &listed[at]["reason"]), (&json!(user), &json!("pending_full")), "{listed}");
        assert_eq!(listed[at]["sender_id"], "alice");
    }
    let one = get(&server, "/debug/failures?limit=1").await["failures"].clone();
    assert_eq!((one.as_array().map(Vec::len), &one[0]["user_id"]), (Some(1), &json!("carol")));
    assert_refused(&server.get("/debug/failures?limit=x").await, 400, 1001);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_an_ack_can_be_seen() {
    let server = hub("ack_timeout: 60s").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    let acked = tell_with_outcome(&mut alice, "bob", json!(1), "pending").await;
    let id = tell_with_outcome(&mut alice, "bob", json!("secret words"), "pending").await;
    for _ in 0..2 {
        bob.expect_reliable("direct_message").await;
    }
    bob.ack(&[&acked]).await;
    expect_outcome(&server, &acked, "bob", "acked").await;
    let pending = get(&server, "/debug/ack/pending").await;
    let shown = pending.to_string();
    assert!(shown.contains(&id) && shown.contains("bob"), "{shown}");
    assert!(!shown.contains(&acked), "{shown}");
    assert!(!shown.contains("secret words"), "contents are nobody's business: {shown}");
    let stats = get(&server, "/debug/ack/stats").await;
    assert!(stats.is_object(), "{stats}");

    assert_eq!(server.get("/debug/ack/retry").await.status, 405);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_rests_can_be_sent_again_at_once() {
    let server =
        hub("ack_timeout: 100ms, ack_retry_interval: 1ms, ack_max_retries: 0, inbox: {retry_interval: 1h}").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = connect(&server, "bob").await;
    let id = tell_with_outcome(&mut alice, "bob", json!(1), "pending").await;
    tell_with_outcome(&mut alice, "away", json!(1), "stored").await;
    bob.expect_reliable("direct_message").await;
    expect_outcome(&server, &id, "bob", "stored").await;
    let answer = ask(&server, ("POST", "/debug/ack/retry"), &[]).await;
    assert!((200..300).contains(&answer.status), "{answer:?}");
    let again = bob.expect_reliable("direct_message").await;
    assert_eq!((&again["id"], &again["source"]), (&json!(id), &json!("offline")), "{again}");
    bob.ack(&[&id]).await;
    expect_outcome(&server, &id, "bob", "acked").await;
    bob.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_explained_and_can_be_traced() {
    let server = hub("").await;
    let mut alice = connect(&server, "alice").await;
    let mut bob = Client::connect(&server.ws_url_for("bob", "phone")).await;
    let id = tell_with_outcome(&mut alice, "bob", json!("secret words"), "pending").await;
    bob.expect_reliable("direct_message").await;
    let entry = get(&server, "/api/clients/phone").await;
    assert_eq!((&entry["user_id"], &entry["session"]), (&json!("bob"), &json!(bob.session())));
    assert_has(&entry, &["queue_bytes", "unacked", "events"]);
    assert_eq!(entry["unacked"], 1, "{entry}");
    assert!(entry["events"].as_array().is_some_and(|events| !events.is_empty()), "{entry}");

    let path = format!("/api/clients/{}/trace", bob.session());
    let answer = ask(&server, ("POST", &path), &[]).await;
    assert!((200..300).contains(&answer.status), "{answer:?}");
    bob.ack(&[&id]).await;
    expect_outcome(&server, &id, "bob", "acked").await;
    bob.send_text("no JSON").await;
    bob.expect_error(1001).await;
    let entry = get(&server, "/api/clients/phone").await;
    assert_eq!(entry["unacked"], 0, "{entry}");
    let events = entry["events"].to_string();
    assert!(events.contains("ack"), "{events}");
    assert!(!entry.to_string().contains("secret words"), "{entry}");

    assert_refused(&server.get("/api/clients/nobody").await, 404, 4000);
    let answer = ask(&server, ("POST", "/api/clients/nobody/trace"), &[]).await;
    assert_refused(&answer, 404, 4000);
    let _other = Client::connect(&server.ws_url_for("carol", "phone")).await;
    for page in [("GET", "/api/clients/phone"), ("POST", "/api/clients/phone/trace")] {
        let answer = ask(&server, page, &[]).await;
        assert_eq!(answer.status, 409, "{answer:?}");
        assert!(answer.text().contains(bob.session()), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callbacks_have_their_page() {
    let server = hub("").await;
    let page = get(&server, "/debug/callbacks").await;
    assert!(page.is_object(), "{page}");
    let page = get(&server, "/debug/hub/status").await;
    assert!(!page["callback_stats"].is_null(), "{page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_masked_and_paths_are_described() {
    let server = hub("http: {api_keys: [0123456789abcdef0123]}").await;
    let key = [("X-API-Key", "0123456789abcdef0123")];
    let status = server.http("GET", "/debug/hub/status", &key, None).await;
    assert_eq!(status.status, 200, "{status:?}");
    assert!(!status.text().contains("0123456789abcdef0123"), "{status:?}");
    let description = server.get("/openapi.json").await.json();
    let paths = description["paths"].as_object().unwrap();
    for path in ["/api/messages/{", "/debug/ack/stats", "/debug/ack/pending", "/debug/ack/retry", "/debug/callbacks"] {
        assert!(paths.keys().any(|have| have.starts_with(path)), "no {path} in {:?}", paths.keys());
    }
    assert!(paths.keys().any(|path| path.ends_with("/trace")), "{:?}", paths.keys());
}
