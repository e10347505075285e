//! Health, statistics, metrics.

use axum::{Extension, response::Response};
use http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{
    access::{Caller, Via},
    reply,
};
use crate::encode::now_ms;

/// How the hub is.
#[derive(Serialize, ToSchema)]
pub(crate) struct Health {
    /// `ok` or `degraded`.
    #[schema(value_type = String)]
    status: &'static str,
    /// The rest is for those who may see more.
    #[serde(flatten)]
    more: Option<HealthDetails>,
}

#[derive(Serialize, ToSchema)]
pub(crate) struct HealthDetails {
    #[schema(value_type = String)]
    version: &'static str,
    node_id: String,
    uptime_seconds: u64,
    /// Each part and whether it works.
    checks: Value,
}

/// Whether the hub works.
#[utoipa::path(get, path = "/health", tag = "system", responses(
    (status = 200, body = Health),
    (status = 503, description = "degraded", body = Health),
))]
pub(crate) async fn health(Extension(via): Extension<Via>, caller: Option<Extension<Caller>>) -> Response {
    let core = &via.core;
    let is_accepting = via.hub().is_some_and(|hub| hub.inner().transport.is_accepting());
    let more = caller.is_some().then(|| HealthDetails {
        version: env!("CARGO_PKG_VERSION"),
        node_id: core.node_id.clone(),
        uptime_seconds: now_ms().saturating_sub(core.started_at) / 1000,
        checks: json!({ "transport": if is_accepting { "ok" } else { "stopped" } }),
    });
    let (status, text) =
        if is_accepting { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "degraded") };
    reply::json(status, &Health { status: text, more })
}
