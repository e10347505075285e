//! The HTTP API: its rules, health, statistics, connections.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use wsc_testkit::{Client, ConnectOptions, RawClient, ServerProcess, encode};

use crate::support::{assert_closed, assert_refused, entries, expect_clients, hub, is_uuid_v7};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hub_is_healthy_alive_and_ready() {
    let server = hub("").await;
    let health = server.get("/health").await;
    assert_eq!(health.status, 200);
    assert_eq!(health.json()["status"], "ok");
    for path in ["/health/live", "/health/ready"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_paths_and_methods_are_told_apart() {
    let server = hub("").await;
    for path in ["/nope", "/api/nope", "/api", "/api/clients/x/y/z", "/ws/"] {
        assert_eq!(server.get(path).await.status, 404, "{path}");
    }
    for (method, path) in
        [("PUT", "/api/rooms"), ("DELETE", "/api/stats"), ("GET", "/api/broadcast"), ("POST", "/health")]
    {
        let answer = server.http(method, path, &[], None).await;
        assert_eq!(answer.status, 405, "{method} {path}");
    }
    server.get("/api/nope").await.error_code();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_json_is_taken() {
    let server = hub("").await;
    let body = br#"{"content":1}"#.as_slice();
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx"] {
        let headers = [("Content-Type", kind)];
        let answer = server.http("POST", "/api/broadcast", &headers, Some(body)).await;
        assert_eq!(answer.status, 415, "{kind}: {answer:?}");
        answer.error_code();
    }
    let answer = server.http("POST", "/api/broadcast", &[], Some(body)).await;
    assert_eq!(answer.status, 415, "no type: {answer:?}");
    let headers = [("Content-Type", "application/json; charset=utf-8")];
    let answer = server.http("POST", "/api/broadcast", &headers, Some(body)).await;
    assert!((200..300).contains(&answer.status), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_json_is_refused_with_its_position() {
    let server = hub("").await;
    for body in ["{\"content\":1,\n  oops}", "{\"content\":", "[]", "null", ""] {
        let answer = server.post_text("/api/broadcast", body).await;
        assert_refused(&answer, 400, 1001);
    }
    let answer = server.post_text("/api/broadcast", "{\"content\":1,\n  oops}").await;
    let message = answer.json()["error"]["message"].to_string();
    // The second line, the third column.
    assert!(message.contains('2') && message.contains('3'), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_fields_are_named() {
    let server = hub("").await;
    let _alice = Client::connect(&server.ws_url_as("alice")).await;
    for (path, body) in [
        ("/api/broadcast", json!({"content": 1, "colour": "red"})),
        ("/api/users/alice/messages", json!({"content": 1, "colour": "red"})),
        ("/api/rooms", json!({"id": "r1", "colour": "red"})),
    ] {
        let answer = server.post(path, &body).await;
        assert_refused(&answer, 400, 1001);
        let message = answer.json()["error"]["message"].to_string();
        assert!(message.contains("colour"), "{path}: {message}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_large_a_body_is_refused() {
    let server = hub("http: {max_body_size: 1KiB}").await;
    let body = |size: usize| {
        let empty = r#"{"content":""}"#;
        let filler = "x".repeat(size - empty.len());
        format!(r#"{{"content":"{filler}"}}"#)
    };
    let answer = server.post_text("/api/broadcast", &body(1_024)).await;
    assert!((200..300).contains(&answer.status), "{answer:?}");
    let answer = server.post_text("/api/broadcast", &body(1_025)).await;
    assert_eq!(answer.status, 413, "{answer:?}");
    answer.error_code();

    // Without a length it is the same.
    let text = body(2_000);
    let chunked = format!("{:x}\r\n{text}\r\n0\r\n\r\n", text.len());
    let headers = [("Content-Type", "application/json"), ("Transfer-Encoding", "chunked")];
    let answer = server.http("POST", "/api/broadcast", &headers, Some(chunked.as_bytes())).await;
    assert_eq!(answer.status, 413, "{answer:?}");
    // And a length that is only claimed is not waited for.
    let headers = [("Content-Type", "application/json"), ("Content-Length", "99999999999")];
    let answer = server.http("POST", "/api/broadcast", &headers, Some(b"{")).await;
    assert_eq!(answer.status, 413, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let server = hub("http: {read_timeout: 300ms}").await;
    let mut client = RawClient::tcp(server.addr()).await;
    let head = "POST /api/broadcast HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    client.send_bytes(head.as_bytes()).await;
    client.send_bytes(b"Content-Length: 100\r\n\r\n{\"content\":").await;
    // An answer first, or only the end: but the end comes.
    client.trickle(b"", Duration::ZERO).await;
    assert_eq!(server.get("/health").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statistics_count_what_is_there() {
    let server = hub("node_id: n1").await;
    let mut alice = Client::connect(&server.ws_url_as("alice")).await;
    let _second = Client::connect(&server.ws_url_as("alice")).await;
    alice.join("r1").await;
    let answer = server.get("/api/stats").await;
    assert_eq!(answer.status, 200);
    let stats = answer.json();
    for (name, value) in [
        ("client_count", json!(2)),
        ("clients", json!(2)),
        ("room_count", json!(1)),
        ("rooms", json!(1)),
        ("user_count", json!(1)),
        ("cluster_mode", json!(false)),
        ("node_id", json!("n1")),
    ] {
        assert_eq!(stats[name], value, "{name} in {stats}");
    }
    // Seconds, as GoHub had it.
    let time = stats["timestamp"].as_i64().unwrap();
    assert!((1_500_000_000..10_000_000_000).contains(&time), "{stats}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_listed_in_pages() {
    let server = hub("").await;
    let mut clients = Vec::new();
    for at in 0..5 {
        clients.push(Client::connect(&server.ws_url_as(&format!("u{at}"))).await);
    }
    let expected: BTreeSet<String> = clients.iter().map(|c| c.session().to_owned()).collect();

    let all = server.get("/api/clients").await.json();
    assert_eq!(all["total_clients"], 5, "{all}");
    assert!(all["timestamp"].as_i64().unwrap() < 10_000_000_000, "{all}");
    assert_eq!(entries(&all, "clients").len(), 5);

    let mut seen = BTreeSet::new();
    let mut path = "/api/clients?limit=2".to_owned();
    for pages in 1.. {
        let answer = server.get(&path).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let page = answer.json();
        assert_eq!(page["total"], 5, "{page}");
        let list = entries(&page, "clients");
        assert!(list.len() <= 2, "{page}");
        for entry in list {
            let session = entry["session"].as_str().unwrap().to_owned();
            assert!(seen.insert(session), "twice: {page}");
        }
        let Some(cursor) = page["next_cursor"].as_str() else {
            assert_eq!(pages, 3);
            break;
        };
        path = format!("/api/clients?limit=2&cursor={}", encode(cursor));
    }
    assert_eq!(seen, expected);

    let answer = server.get("/api/clients?limit=many").await;
    assert_eq!(answer.status, 400, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_can_be_filtered() {
    let server = hub("").await;
    let mut clients = Vec::new();
    for (user, kind) in [("alice", "agent"), ("alice", "vip"), ("bob", "agent")] {
        let options = ConnectOptions { query: &[("user_id", user), ("user_type", kind)], ..ConnectOptions::default() };
        clients.push(Client::connect_with(&server.ws_url(), &options).await);
    }
    for (filter, count) in [
        ("user_id=alice", 2),
        ("user_type=agent", 2),
        ("user_id=alice&user_type=agent", 1),
        ("user_id=nobody", 0),
        ("user_type=bot", 0),
    ] {
        let answer = server.get(&format!("/api/clients?{filter}")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(entries(&answer.json(), "clients").len(), count, "{filter}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_is_found_by_session_and_by_client_id() {
    let server = hub("").await;
    let alice = Client::connect(&server.ws_url_for("alice", "phone")).await;
    let bob = Client::connect(&server.ws_url_for("bob", "my/own phone?")).await;
    for path in [format!("/api/clients/{}", alice.session()), "/api/clients/phone".to_owned()] {
        let answer = server.get(&path).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        let entry = answer.json();
        assert_eq!(entry["session"], alice.session(), "{entry}");
        assert_eq!(entry["user_id"], "alice", "{entry}");
        assert_eq!(entry["client_id"], "phone", "{entry}");
    }
    let path = format!("/api/clients/{}", encode("my/own phone?"));
    assert_eq!(server.get(&path).await.json()["session"], bob.session());
    let answer = server.get("/api/clients/nobody").await;
    assert_eq!(answer.status, 404, "{answer:?}");
    answer.error_code();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ambiguous_client_id_is_answered_with_the_candidates() {
    let server = hub("").await;
    let mut alice = Client::connect(&server.ws_url_for("alice", "phone")).await;
    let mut bob = Client::connect(&server.ws_url_for("bob", "phone")).await;
    for method in ["GET", "DELETE"] {
        let answer = server.http(method, "/api/clients/phone", &[], None).await;
        assert_eq!(answer.status, 409, "{answer:?}");
        answer.error_code();
        let text = answer.text();
        assert!(text.contains(alice.session()), "{text}");
        assert!(text.contains(bob.session()), "{text}");
    }
    alice.expect_quiet().await;
    bob.expect_quiet().await;
}

/// Kicks the only connection of alice in this way and gives its notice.
async fn kicked(server: &ServerProcess, query: &str, body: Option<&Value>) -> Value {
    let mut client = Client::connect(&server.ws_url_as("alice")).await;
    let path = format!("/api/clients/{}{query}", client.session());
    let text = body.map(Value::to_string);
    let headers = [("Content-Type", "application/json")];
    let headers = if body.is_some() { headers.as_slice() } else { &[] };
    let body = text.as_deref().map(str::as_bytes);
    let answer = server.http("DELETE", &path, headers, body).await;
    assert!((200..300).contains(&answer.status), "{answer:?}");
    let notice = client.expect("kick_out").await;
    let closed = client.expect_close().await;
    assert_closed(&closed, 3503);
    expect_clients(server, 0).await;
    notice
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_kicked_with_a_notice_and_a_reason() {
    let server = hub("").await;
    let notice = kicked(&server, "?reason=bad%20manners", None).await;
    assert_eq!(notice["data"]["reason"], "bad manners", "{notice}");
    let time = notice["data"]["kicked_at"].as_i64().unwrap();
    assert!((1_500_000_000..10_000_000_000).contains(&time), "{notice}");

    let body = json!({"reason": "spam", "notify": true});
    let notice = kicked(&server, "", Some(&body)).await;
    assert_eq!(notice["data"]["reason"], "spam", "{notice}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_can_be_kicked_without_a_notice() {
    let server = hub("").await;
    let mut client = Client::connect(&server.ws_url_as("alice")).await;
    let path = format!("/api/clients/{}?notify=false", client.session());
    let answer = server.delete(&path).await;
    assert!((200..300).contains(&answer.status), "{answer:?}");
    assert_closed(&client.expect_close().await, 3503);
    assert_eq!(server.delete(&path).await.status, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_reason_fits_into_the_close_frame() {
    let server = hub("").await;
    let mut client = Client::connect(&server.ws_url_as("alice")).await;
    let reason = "ü\"".repeat(500);
    let body = json!({"reason": reason});
    let answer = server.post("/api/users/alice/disconnect", &body).await;
    assert!((200..300).contains(&answer.status), "{answer:?}");
    client.expect("kick_out").await;
    // The helper checks the length and that it is still JSON.
    assert_closed(&client.expect_close().await, 3503);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_devices_of_a_user_are_disconnected() {
    let server = hub("").await;
    let mut devices =
        [Client::connect(&server.ws_url_as("alice")).await, Client::connect(&server.ws_url_as("alice")).await];
    let mut bob = Client::connect(&server.ws_url_as("bob")).await;
    let answer = server.post("/api/users/alice/disconnect", &json!({"reason": "bye"})).await;
    assert!((200..300).contains(&answer.status), "{answer:?}");
    for device in &mut devices {
        let notice = device.expect("kick_out").await;
        assert_eq!(notice["data"]["reason"], "bye");
        assert_closed(&device.expect_close().await, 3503);
    }
    bob.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_is_described_with_the_devices() {
    let server = hub("").await;
    let phone = Client::connect(&server.ws_url_for("alice", "phone")).await;
    let _laptop = Client::connect(&server.ws_url_for("alice", "laptop")).await;
    let answer = server.get("/api/users/alice").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let user = answer.json();
    assert_eq!(user["online"], true, "{user}");
    assert_eq!(user["devices"].as_array().map(Vec::len), Some(2), "{user}");
    assert!(is_uuid_v7(phone.session()));
    assert!(user["devices"].to_string().contains(phone.session()), "{user}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_describes_itself() {
    let server = hub("").await;
    let answer = server.get("/openapi.json").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let document = answer.json();
    assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.")), "{document}");
    let described: BTreeSet<String> =
        document["paths"].as_object().unwrap().keys().map(|path| braces_alike(path)).collect();
    for (path, method) in [
        ("/health", "get"),
        ("/health/live", "get"),
        ("/health/ready", "get"),
        ("/metrics", "get"),
        ("/api/stats", "get"),
        ("/api/clients", "get"),
        ("/api/clients/{}", "get"),
        ("/api/clients/{}", "delete"),
        ("/api/users/{}", "get"),
        ("/api/users/{}/disconnect", "post"),
        ("/api/users/{}/messages", "post"),
        ("/api/messages/batch", "post"),
        ("/api/broadcast", "post"),
        ("/api/broadcast/room", "post"),
        ("/api/rooms", "get"),
        ("/api/rooms", "post"),
        ("/api/rooms/{}", "delete"),
        ("/api/rooms/{}/members", "get"),
        ("/api/rooms/{}/members/{}", "post"),
        ("/api/rooms/{}/members/{}", "delete"),
        ("/api/rooms/{}/messages", "post"),
    ] {
        assert!(described.contains(path), "{path} is not described");
        let operations =
            document["paths"].as_object().unwrap().iter().find(|(key, _)| braces_alike(key) == path).unwrap().1;
        assert!(operations[method].is_object(), "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_described_is_served() {
    let server = hub("").await;
    let document = server.get("/openapi.json").await.json();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            if !matches!(method.as_str(), "get" | "post" | "put" | "delete" | "patch") {
                continue;
            }
            if path == "/ws" {
                continue;
            }
            let concrete = braces_alike(path).replace("{}", "x");
            let answer = server.http(&method.to_uppercase(), &concrete, &[], None).await;
            // A missing room or message is 404 as well, but says so with a code of its own.
            let served = match answer.status {
                405 => false,
                404 => answer.error_code() != 1001,
                _ => true,
            };
            assert!(served, "{method} {concrete}: {answer:?}");
        }
    }
}

/// `/a/{b}` becomes `/a/{}`: how a parameter is called is free.
fn braces_alike(path: &str) -> String {
    let parts = path.split('/').map(|part| if part.starts_with('{') { "{}" } else { part });
    parts.collect::<Vec<_>>().join("/")
}
