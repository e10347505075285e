//! A hub of one's own on a free port.

use std::net::SocketAddr;

use serde_json::Value;
use wsc_config::{Format, Settings, Strictness, load_str};
use wsc_node::{Hub, HubBuilder};
use wsc_testkit::{Client, HttpResponse, http};

/// A running hub and where it listens.
pub(crate) struct TestHub {
    pub(crate) hub: Hub,
    pub(crate) addr: SocketAddr,
}

/// A hub with these settings (in YAML's flow form, below `wsc`).
pub(crate) async fn hub(keys: &str) -> TestHub {
    hub_with(keys, |builder| builder).await
}

/// A hub that is changed before it starts.
pub(crate) async fn hub_with(keys: &str, change: impl FnOnce(HubBuilder) -> HubBuilder) -> TestHub {
    let hub = change(Hub::builder().settings(settings(keys))).start().await.unwrap();
    let addr = hub.listen("127.0.0.1:0".parse().unwrap()).unwrap();
    TestHub { hub, addr }
}

/// Settings with these keys, and the inbox in memory unless they speak of storage.
pub(crate) fn settings(keys: &str) -> Settings {
    let storage = if keys.contains("storage:") { "" } else { "storage: {kind: memory}, " };
    load_str(Format::Yaml, &format!("wsc: {{{storage}{keys}}}"), None, Strictness::Strict, []).unwrap()
}

pub(crate) const JSON: (&str, &str) = ("Content-Type", "application/json");

impl TestHub {
    pub(crate) async fn http(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&str>,
    ) -> HttpResponse {
        http(method, &self.url(path), headers, body.map(str::as_bytes)).await
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    pub(crate) async fn get(&self, path: &str) -> HttpResponse {
        self.http("GET", path, &[], None).await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> HttpResponse {
        self.http("POST", path, &[JSON], Some(body)).await
    }

    pub(crate) async fn post_json(&self, path: &str, body: &Value) -> HttpResponse {
        self.post(path, &body.to_string()).await
    }

    pub(crate) async fn connect(&self, user_id: &str) -> Client {
        Client::connect(&format!("ws://{}/ws?user_id={user_id}", self.addr)).await
    }
}

/// Asserts status and code of a refusal.
#[track_caller]
pub(crate) fn assert_refused(answer: &HttpResponse, status: u16, code: i64) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.error_code(), code, "{answer:?}");
}
