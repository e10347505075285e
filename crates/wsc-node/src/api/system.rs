//! Health, statistics, metrics.

use std::time::Duration;

use axum::{
    Extension,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;
use wsc_protocol::FailureKind;
use wsc_store::{Depth, StoreError};

use super::{
    access::{Caller, Via},
    reply::{self, ErrorBody},
};
use crate::{core::Core, encode::now_ms, metrics::whole};

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
    (status = 200, description = "it does", body = Health),
    (status = 503, description = "degraded", body = Health),
))]
pub(crate) async fn health(Extension(via): Extension<Via>, caller: Option<Extension<Caller>>) -> Response {
    let core = &via.core;
    let is_accepting = via.hub().is_some_and(|hub| hub.inner().transport.is_accepting());
    let is_storing = core.mail.keeper().map(|keeper| keeper.is_healthy() && core.records.is_healthy());
    let checks_tokens = core.authenticator.as_ref().map(|authenticator| authenticator.is_ready());
    let more = caller.filter(|Extension(caller)| caller.is_admin()).map(|_| HealthDetails {
        version: env!("CARGO_PKG_VERSION"),
        node_id: core.node_id.clone(),
        uptime_seconds: uptime_seconds(core),
        checks: json!({
            "tokens": match checks_tokens {
                None => "off",
                Some(true) => "ok",
                Some(false) => "no keys",
            },
            "transport": if is_accepting { "ok" } else { "stopped" },
            "storage": match is_storing {
                None => "none",
                Some(true) => "ok",
                Some(false) => "failing",
            },
        }),
    });
    let (status, text) = if is_accepting && is_storing != Some(false) && checks_tokens != Some(false) {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "degraded")
    };
    reply::json(status, &Health { status: text, more })
}

/// Whether the process answers at all.
#[utoipa::path(get, path = "/health/live", tag = "system", responses((status = 200, description = "it does")))]
pub(crate) async fn live() -> Response {
    reply::ok(&json!({ "status": "ok" }))
}

/// Whether newcomers are welcome.
#[utoipa::path(get, path = "/health/ready", tag = "system", responses(
    (status = 200, description = "they are"),
    (status = 503, description = "draining"),
))]
pub(crate) async fn ready(Extension(via): Extension<Via>) -> Response {
    if via.core.leaving.is_cancelled() {
        return reply::json(StatusCode::SERVICE_UNAVAILABLE, &json!({ "status": "draining" }));
    }
    if via.core.authenticator.as_ref().is_some_and(|authenticator| !authenticator.is_ready()) {
        return reply::json(StatusCode::SERVICE_UNAVAILABLE, &json!({ "status": "no keys to check tokens with" }));
    }
    reply::ok(&json!({ "status": "ok" }))
}

/// What Prometheus reads.
#[utoipa::path(get, path = "/metrics", tag = "system", responses(
    (status = 200, description = "metrics", content_type = "text/plain", body = String),
    (status = "default", description = "refused", body = ErrorBody),
))]
pub(crate) async fn metrics(Extension(via): Extension<Via>) -> Response {
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], via.core.metrics.render(&via.core)).into_response()
}

/// How many messages failed, by kind.
#[derive(Serialize, ToSchema)]
pub(crate) struct FailureCounts {
    total_failures: u64,
    queue_full_count: u64,
    offline_count: u64,
    timeout_count: u64,
    conn_error_count: u64,
    uptime_seconds: u64,
}

impl FailureCounts {
    pub(super) fn of(core: &Core) -> Self {
        let totals = core.failure_totals();
        Self {
            total_failures: totals.total(),
            queue_full_count: totals.of_kind(FailureKind::QueueFull),
            offline_count: totals.of_kind(FailureKind::UserOffline),
            timeout_count: totals.of_kind(FailureKind::Timeout),
            conn_error_count: totals.of_kind(FailureKind::ConnectionError),
            uptime_seconds: uptime_seconds(core),
        }
    }
}

/// Counts failures since the start.
#[utoipa::path(get, path = "/health/failure-stats", tag = "system", responses(
    (status = 200, description = "the counts", body = FailureCounts),
    (status = "default", description = "refused", body = ErrorBody),
))]
pub(crate) async fn failure_stats(Extension(via): Extension<Via>) -> Response {
    reply::ok(&FailureCounts::of(&via.core))
}

/// How failed sends are tried again.
#[derive(Serialize, ToSchema)]
pub(crate) struct RetryConfig {
    max_retries: u64,
    /// Milliseconds.
    base_delay: u64,
    backoff_factor: f64,
    retryable_errors: Vec<String>,
    non_retryable_errors: Vec<String>,
}

/// Shows how failed sends are tried again.
#[utoipa::path(get, path = "/health/retry-config", tag = "system", responses(
    (status = 200, description = "the settings", body = RetryConfig),
    (status = "default", description = "refused", body = ErrorBody),
))]
pub(crate) async fn retry_config(Extension(via): Extension<Via>) -> Response {
    let settings = via.core.settings();
    reply::ok(&RetryConfig {
        max_retries: settings.max_retries.into(),
        base_delay: u64::try_from(settings.base_delay.as_millis()).unwrap_or(u64::MAX),
        backoff_factor: settings.backoff_factor,
        retryable_errors: settings.retryable_errors.clone(),
        non_retryable_errors: settings.non_retryable_errors.clone(),
    })
}

/// What there is and what became of all messages.
#[derive(Serialize, ToSchema)]
pub(crate) struct Stats {
    client_count: usize,
    /// The same as `client_count`.
    clients: usize,
    room_count: usize,
    /// The same as `room_count`.
    rooms: usize,
    user_count: usize,
    cluster_mode: bool,
    node_id: String,
    /// Unix seconds.
    timestamp: u64,
    messages: MessageTotals,
}

/// Pairs of a message and a recipient since the start. Those accepted are either in flight or one of the others.
#[derive(Serialize, ToSchema)]
pub(crate) struct MessageTotals {
    accepted: u64,
    /// Found in the store at the start.
    recovered: u64,
    in_flight: u64,
    stored: u64,
    sent: u64,
    acked: u64,
    failed: u64,
    expired: u64,
    rejected: u64,
}

/// Counts connections, rooms, users and messages.
#[utoipa::path(get, path = "/api/stats", tag = "system", responses(
    (status = 200, description = "the counts", body = Stats),
    (status = "default", description = "refused", body = ErrorBody),
))]
pub(crate) async fn stats(Extension(via): Extension<Via>) -> Response {
    let core = &via.core;
    let (clients, rooms) = (core.users.connections(), core.rooms.len());
    let tally = core.fanouts.stats().ledger().snapshot();
    reply::ok(&Stats {
        client_count: clients,
        clients,
        room_count: rooms,
        rooms,
        user_count: core.users.len(),
        cluster_mode: false,
        node_id: core.node_id.clone(),
        timestamp: now_ms() / 1000,
        messages: MessageTotals {
            accepted: whole(tally.accepted),
            recovered: whole(tally.recovered),
            in_flight: whole(tally.in_flight),
            sent: whole(tally.sent),
            failed: whole(tally.failed()),
            stored: whole(tally.stored),
            acked: whole(tally.acked),
            expired: whole(tally.expired),
            rejected: whole(tally.rejected),
        },
    })
}

/// The inbox.
#[derive(Serialize, ToSchema)]
pub(crate) struct StorageStatus {
    /// Whether it takes messages, as far as is known.
    healthy: bool,
    /// What rests in it; absent where it does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    depth: Option<InboxDepth>,
}

/// How much rests.
#[derive(Serialize, ToSchema)]
pub(crate) struct InboxDepth {
    messages: u64,
    bytes: u64,
}

impl StorageStatus {
    pub(super) async fn of(core: &Core) -> Option<Self> {
        let keeper = core.mail.keeper()?;
        Some(Self { healthy: keeper.is_healthy(), depth: InboxDepth::read(keeper.store().total()).await })
    }
}

impl InboxDepth {
    /// What the store answers; `None` where it fails, or does not answer for a while.
    pub(super) async fn read(answer: impl Future<Output = Result<Depth, StoreError>>) -> Option<Self> {
        let Depth { messages, bytes } = tokio::time::timeout(STORE_PATIENCE, answer).await.ok()?.ok()?;
        Some(Self { messages, bytes })
    }
}

/// How long an answer waits for the store.
const STORE_PATIENCE: Duration = Duration::from_secs(1);

fn uptime_seconds(core: &Core) -> u64 {
    now_ms().saturating_sub(core.started_at) / 1000
}
