//! The description and the routes agree.

use serde_json::Value;
use wsc_testkit::HttpResponse;

use crate::support::{TestHub, hub};

const METHODS: &[&str] = &["get", "put", "post", "delete", "patch"];

/// A concrete path: parameters are filled in.
fn concrete(path: &str) -> String {
    let parts = path.split('/').map(|part| if part.starts_with('{') { "x" } else { part });
    parts.collect::<Vec<_>>().join("/")
}

async fn ask(hub: &TestHub, method: &str, path: &str) -> HttpResponse {
    hub.http(&method.to_uppercase(), &concrete(path), &[], None).await
}

/// Something is there, though it may be missing the room or user asked for.
fn is_served(answer: &HttpResponse) -> bool {
    match answer.status {
        405 => false,
        404 => answer.error_code() != 1001,
        _ => true,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_described_is_served_and_nothing_else() {
    let hub = hub("").await;
    let document = hub.get("/openapi.json").await.json();
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() > 20, "{paths:?}");
    for (path, operations) in paths {
        for method in METHODS {
            let answer = ask(&hub, method, path).await;
            let is_described = operations[*method].is_object();
            assert_eq!(is_served(&answer), is_described, "{method} {path}: {answer:?}");
            if !is_described {
                assert_eq!(answer.status, 405, "{method} {path}");
                assert_eq!(answer.error_code(), 1001);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_later_is_not_there() {
    let hub = hub("").await;
    for path in ["/api/admin/system/notice", "/api/admin/websocket/stats", "/api", "/api/", "/ws/", "/health/"] {
        for method in METHODS {
            let answer = ask(&hub, method, path).await;
            assert_eq!(answer.status, 404, "{method} {path}");
            assert_eq!(answer.error_code(), 1001);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_description_is_whole() {
    let hub = hub("").await;
    let document = hub.get("/openapi.json").await.json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    assert_eq!(document["info"]["title"], "wsc-hub");
    assert!(document["components"]["securitySchemes"]["api_key"].is_object(), "{document}");
    let mut references = Vec::new();
    collect_references(&document, &mut references);
    assert!(references.len() > 20);
    for reference in references {
        let pointer = reference.trim_start_matches('#');
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
    let mut ids: Vec<_> = document["paths"]
        .as_object()
        .unwrap()
        .values()
        .flat_map(|operations| operations.as_object().unwrap().values())
        .map(|operation| operation["operationId"].as_str().unwrap())
        .collect();
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all, "operation ids are unique");
}

fn collect_references(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            into.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
            map.values().for_each(|value| collect_references(value, into));
        }
        Value::Array(list) => list.iter().for_each(|value| collect_references(value, into)),
        _ => {}
    }
}
