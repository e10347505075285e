//! Who may ask for what (protocol §5, *Exposure*).

use wsc_auth::{Identity, Permissions, StaticTokens};
use wsc_protocol::Id;
use wsc_testkit::http;

use crate::support::{JSON, TestHub, assert_refused, hub, hub_with};

const KEY: &str = "an-api-key-of-a-back-end";
const KEYS: &str = "http: {api_keys: [an-api-key-of-a-back-end]}";

/// Makes a peer of this machine look like one that came through a proxy: not private any more.
const FORWARDED: (&str, &str) = ("X-Forwarded-For", "203.0.113.9");

const PRIVATE: &[&str] = &[
    "/api/stats",
    "/api/clients",
    "/api/rooms",
    "/metrics",
    "/health/failure-stats",
    "/health/retry-config",
    "/debug/hub/status",
    "/debug/failures",
];

const OPEN: &[&str] = &["/health", "/health/live", "/health/ready", "/openapi.json"];

fn tokens() -> StaticTokens {
    let identity = |user: &str, permissions: &[&str]| {
        Identity::new(Id::new(user).unwrap(), Permissions::parse(permissions).unwrap())
    };
    StaticTokens::new()
        .with("root-token", identity("root", &["admin:system"]))
        .with("alice-token", identity("alice", &["send:message:@bob", "create:room:a-*", "admin:room:a-1"]))
        .with("late-token", identity("late", &["admin:system"]).with_expires_at(1))
}

async fn guarded(keys: &str) -> TestHub {
    hub_with(keys, |builder| builder.authenticator(tokens())).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_authentication_private_pages_are_for_this_machine() {
    let hub = hub("").await;
    for path in PRIVATE {
        assert_eq!(hub.get(path).await.status, 200, "{path}");
        assert_refused(&hub.http("GET", path, &[FORWARDED], None).await, 403, 2001);
        // What nobody checks cannot be wrong.
        let answer = hub.http("GET", path, &[("Authorization", "Bearer whatever")], None).await;
        assert_eq!(answer.status, 200, "{path}");
    }
    for path in OPEN {
        assert_eq!(hub.http("GET", path, &[FORWARDED], None).await.status, 200, "{path}");
    }
    for path in PRIVATE.iter().chain(OPEN).chain(&["/", "/nope", "/ws"]) {
        for header in [("Origin", "http://evil.example"), ("Sec-Fetch-Site", "cross-site"), ("Host", "evil.example")] {
            assert_refused(&hub.http("GET", path, &[header], None).await, 403, 2001);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_key_opens_everything_to_whoever_has_it() {
    let hub = hub(KEYS).await;
    let bearer = format!("Bearer {KEY}");
    for path in PRIVATE {
        for key in [("X-API-Key", KEY), ("Authorization", bearer.as_str())] {
            assert_eq!(hub.http("GET", path, &[FORWARDED, key], None).await.status, 200, "{path}");
        }
        for key in [("X-API-Key", "an-api-key-of-a-back-enD"), ("Authorization", "Bearer x"), ("Authorization", "x")] {
            assert_refused(&hub.http("GET", path, &[FORWARDED, key], None).await, 401, 2003);
            assert_refused(&hub.http("GET", path, &[key], None).await, 401, 2003);
        }
        // Without one the machine's own programs need none.
        assert_eq!(hub.get(path).await.status, 200, "{path}");
    }
    // A key is no licence for a foreign page.
    let headers = [("X-API-Key", KEY), ("Origin", "http://evil.example")];
    assert_refused(&hub.http("GET", "/api/stats", &headers, None).await, 403, 2001);
    // Strangers see the least, with a wrong key too.
    for (headers, fields) in
        [(vec![FORWARDED], 1), (vec![FORWARDED, ("X-API-Key", "wrong")], 1), (vec![FORWARDED, ("X-API-Key", KEY)], 5)]
    {
        let health = hub.http("GET", "/health", &headers, None).await;
        assert_eq!(health.status, 200);
        assert_eq!(health.json().as_object().unwrap().len(), fields, "{health:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_authentication_private_pages_need_a_permission() {
    let hub = guarded(KEYS).await;
    for path in PRIVATE {
        assert_refused(&hub.get(path).await, 401, 2000);
        let with = async |token: &str| {
            let value = format!("Bearer {token}");
            hub.http("GET", path, &[FORWARDED, ("Authorization", &value)], None).await
        };
        assert_eq!(with("root-token").await.status, 200, "{path}");
        assert_eq!(with(KEY).await.status, 200, "{path}");
        assert_refused(&with("alice-token").await, 403, 2001);
        assert_refused(&with("late-token").await, 401, 2002);
        assert_refused(&with("no-token").await, 401, 2003);
        // A token is no API key.
        assert_refused(&hub.http("GET", path, &[("X-API-Key", "root-token")], None).await, 401, 2003);
    }
    for path in OPEN {
        assert_eq!(hub.get(path).await.status, 200, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_opens_what_its_permissions_say() {
    let hub = guarded("").await;
    let alice = [JSON, ("Authorization", "Bearer alice-token")];
    let ask = async |method: &str, path: &str, body: &str| hub.http(method, path, &alice, Some(body)).await;
    let made = |answer: &wsc_testkit::HttpResponse| assert_eq!(answer.status, 201, "{answer:?}");

    made(&ask("POST", "/api/rooms", r#"{"id":"a-1"}"#).await);
    made(&ask("POST", "/api/rooms", r#"{"id":"a-2"}"#).await);
    assert_refused(&ask("POST", "/api/rooms", r#"{"id":"b-1"}"#).await, 403, 2001);

    assert_eq!(ask("GET", "/api/rooms/a-1/members", "").await.status, 200);
    assert_eq!(ask("GET", "/api/rooms/%61-1/members", "").await.status, 200);
    assert_eq!(ask("POST", "/api/rooms/a-1/messages", r#"{"content":1}"#).await.status, 202);
    let alias = |room| format!(r#"{{"room_id":"{room}","message":1}}"#);
    assert_eq!(ask("POST", "/api/broadcast/room", &alias("a-1")).await.status, 202);
    assert_refused(&ask("POST", "/api/broadcast/room", &alias("a-2")).await, 403, 2001);
    assert_refused(&ask("GET", "/api/rooms/a-2/members", "").await, 403, 2001);
    assert_refused(&ask("DELETE", "/api/rooms/a-2", "").await, 403, 2001);
    assert_refused(&ask("GET", "/api/rooms", "").await, 403, 2001);

    assert_refused(&ask("POST", "/api/users/carol/messages", r#"{"content":1}"#).await, 403, 2001);
    assert_refused(&ask("POST", "/api/broadcast", r#"{"content":1}"#).await, 403, 2001);
    assert_refused(&ask("POST", "/api/users/bob/disconnect", "").await, 403, 2001);
    // Without the permission nobody is told what is wrong with the body.
    assert_refused(&ask("POST", "/api/broadcast", "oops").await, 403, 2001);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_sends_as_its_own_user() {
    let hub = hub_with("", |builder| {
        let bob = Identity::new(Id::new("bob").unwrap(), Permissions::none());
        builder.authenticator(tokens().with("bob-token", bob))
    })
    .await;
    let mut bob = wsc_testkit::Client::connect(&format!("ws://{}/ws?token=bob-token", hub.addr)).await;
    let alice = [JSON, ("Authorization", "Bearer alice-token")];
    let path = "/api/users/bob/messages";
    let answer = hub.http("POST", path, &alice, Some(r#"{"content":"hi","priority":"low"}"#)).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    assert_eq!(bob.expect("user_message").await["data"]["sender_id"], "alice");
    for body in [
        r#"{"content":1,"sender_id":"alice"}"#,
        r#"{"content":1,"message_type":"order"}"#,
        r#"{"content":1,"priority":"high"}"#,
    ] {
        assert_refused(&hub.http("POST", path, &alice, Some(body)).await, 403, 2001);
    }
    let root = [JSON, ("Authorization", "Bearer root-token")];
    let body = r#"{"content":1,"sender_id":"shop","message_type":"order","priority":"high"}"#;
    assert_eq!(hub.http("POST", path, &root, Some(body)).await.status, 202);
    assert_eq!(bob.expect("order").await["data"]["sender_id"], "shop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_have_a_door_of_their_own() {
    let hub = hub("http: {internal_listen: \"127.0.0.1:0\"}").await;
    let internal = hub.hub.listen_internal("127.0.0.1:0".parse().unwrap()).unwrap();
    let operators =
        ["/metrics", "/health/failure-stats", "/health/retry-config", "/debug/hub/status", "/debug/failures"];
    for path in operators {
        assert_eq!(hub.get(path).await.status, 404, "{path}");
        let url = format!("http://{internal}{path}");
        assert_eq!(http("GET", &url, &[], None).await.status, 200, "{path}");
        assert_eq!(http("GET", &url, &[FORWARDED], None).await.status, 403, "{path}");
    }
    for path in ["/api/stats", "/", "/ws", "/openapi.json"] {
        assert_eq!(http("GET", &format!("http://{internal}{path}"), &[], None).await.status, 404, "{path}");
    }
    for path in ["/health", "/health/live", "/health/ready"] {
        assert_eq!(hub.get(path).await.status, 200, "{path}");
        assert_eq!(http("GET", &format!("http://{internal}{path}"), &[], None).await.status, 200, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_is_shown_as_the_settings_say() {
    for (demo_page, local, distant) in [("auto", 200, 404), ("on", 200, 200), ("off", 404, 404)] {
        let hub = hub(&format!("http: {{demo_page: \"{demo_page}\"}}")).await;
        assert_eq!(hub.get("/").await.status, local, "{demo_page}");
        assert_eq!(hub.http("GET", "/", &[FORWARDED], None).await.status, distant, "{demo_page}");
    }
    let hub = guarded("").await;
    let page = hub.get("/").await;
    assert_eq!(page.status, 200);
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'") && policy.ends_with("frame-ancestors 'none'"), "{policy}");
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(page.header("referrer-policy"), Some("no-referrer"));
    assert_eq!(page.header("cache-control"), Some("no-cache"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_masked() {
    let hub = hub(KEYS).await;
    let status = hub.get("/debug/hub/status").await;
    assert!(!status.text().contains(KEY), "{status:?}");
    assert!(status.json()["current_config"]["http"]["api_keys"].is_array(), "{status:?}");
}
