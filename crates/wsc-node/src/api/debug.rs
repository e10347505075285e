//! The hub from the inside, for those who look for faults.

use axum::{Extension, response::Response};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;
use wsc_delivery::mailbox::{InFlight, Kind};
use wsc_events::DebugInfo;
use wsc_failure::{FailureRecord, HandlerType};
use wsc_protocol::{ErrorCode, FailureReason, Id};

use super::{
    access::Via,
    extract::{OptionalJson, Params, check_user},
    reply::{self, ErrorBody, Refusal},
    system::{FailureCounts, StorageStatus},
};
use crate::{
    core::Core,
    dispatch::page,
    mail::{PendingCursor, Record},
    metrics::whole,
};

/// The hub from the inside.
#[derive(Serialize, ToSchema)]
pub(crate) struct HubStatus {
    active_connections: usize,
    total_connections: u64,
    failure_stats: FailureCounts,
    retry_stats: RetryStats,
    callback_stats: CallbackStats,
    /// The running settings; secrets are masked.
    current_config: Value,
    handler_status: HandlerStatus,
    /// The inbox; absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    storage: Option<StorageStatus>,
    /// Settings that were changed and wait for a restart.
    pending_restart: Vec<&'static str>,
}

/// Messages that found no room and were tried again.
#[derive(Serialize, ToSchema)]
pub(crate) struct RetryStats {
    attempts: u64,
    /// Attempts that helped.
    successes: u64,
}

/// Callbacks and observers; `/debug/callbacks` tells more.
#[derive(Serialize, ToSchema)]
pub(crate) struct CallbackStats {
    registered: usize,
    executions: u64,
    errors: u64,
    /// Events that a callback was not told of.
    drops: u64,
}

/// Who handles failures.
#[derive(Serialize, ToSchema)]
pub(crate) struct HandlerStatus {
    /// One entry for each type of handler.
    handlers: Vec<HandlerInfo>,
    /// Handlers that run at a time, at most.
    workers: usize,
    /// Failures that wait for a handler.
    queued: usize,
    /// Failures for which a handler was there that had no time.
    not_handled: u64,
}

/// The handlers of one type.
#[derive(Serialize, ToSchema)]
pub(crate) struct HandlerInfo {
    #[schema(value_type = String)]
    handler_type: &'static str,
    registered: usize,
    calls: u64,
    panics: u64,
    timeouts: u64,
    /// All calls together, in milliseconds.
    total_duration_ms: f64,
}

impl HandlerStatus {
    fn of(core: &Core) -> Self {
        let (stats, registry) = (core.failures.stats(), core.failures.registry());
        let info = |handler_type: HandlerType| {
            let calls = stats.handler(handler_type);
            HandlerInfo {
                handler_type: handler_type.as_str(),
                registered: registry.count(handler_type),
                calls: calls.calls,
                panics: calls.panics,
                timeouts: calls.timeouts,
                total_duration_ms: calls.duration.as_secs_f64() * 1e3,
            }
        };
        Self {
            handlers: HandlerType::ALL.into_iter().map(info).collect(),
            workers: core.failures.config().workers,
            queued: stats.queued(),
            not_handled: stats.not_handled(),
        }
    }
}

impl CallbackStats {
    fn of(core: &Core) -> Self {
        let mut all = Self { registered: core.events.subscriptions().len(), executions: 0, errors: 0, drops: 0 };
        for event in core.events.stats() {
            all.executions += event.executions;
            all.errors += event.errors;
            all.drops += event.drops;
        }
        all
    }
}

/// Shows the hub from the inside.
#[utoipa::path(get, path = "/debug/hub/status", tag = "debug", responses(
    (status = 200, description = "the hub", body = HubStatus),
    (status = "default", description = "refused", body = ErrorBody),
))]
pub(crate) async fn hub_status(Extension(via): Extension<Via>) -> Response {
    let core = &via.core;
    let (attempts, successes) = core.retries.counts();
    reply::ok(&HubStatus {
        active_connections: core.users.connections(),
        total_connections: core.users.connections_total(),
        failure_stats: FailureCounts::of(core),
        retry_stats: RetryStats { attempts, successes },
        callback_stats: CallbackStats::of(core),
        current_config: wsc_config::current_config(&core.settings()),
        handler_status: HandlerStatus::of(core),
        storage: StorageStatus::of(core).await,
        pending_restart: core.reloading.pending_restart(),
    })
}

/// How many failures.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct FailureQuery {
    /// Entries at most, 1 to 1,000; default 100.
    limit: Option<u32>,
}

/// Failures that are still remembered.
#[derive(Serialize, ToSchema)]
pub(crate) struct Failures {
    failures: Vec<Failure>,
}

/// One message that did not reach one recipient.
#[derive(Serialize, ToSchema)]
pub(crate) struct Failure {
    #[schema(value_type = String)]
    id: Uuid,
    message_type: String,
    sender_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    room_id: Option<String>,
    user_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_id: Option<String>,
    #[schema(value_type = String)]
    reason: FailureReason,
    /// For people.
    error: String,
    retries: u32,
    /// Milliseconds from acceptance to failure.
    duration_ms: u64,
    /// When it failed, Unix milliseconds.
    timestamp: u64,
}

impl From<FailureRecord> for Failure {
    fn from(record: FailureRecord) -> Self {
        Self {
            id: record.message_id,
            message_type: record.message_type,
            sender_id: record.sender_id,
            room_id: record.room_id,
            user_id: record.recipient.to_string(),
            client_id: record.client_id.map(|client_id| client_id.to_string()),
            reason: record.reason,
            error: record.error.into_owned(),
            retries: record.retries,
            duration_ms: u64::try_from(record.duration.as_millis()).unwrap_or(u64::MAX),
            timestamp: record.timestamp,
        }
    }
}

/// Lists the newest failures, newest first.
#[utoipa::path(get, path = "/debug/failures", tag = "debug", params(FailureQuery), responses(
    (status = 200, description = "failures", body = Failures),
    (status = "default", description = "refused", body = ErrorBody),
))]
pub(crate) async fn failures(
    Extension(via): Extension<Via>,
    Params(query): Params<FailureQuery>,
) -> Result<Response, Refusal> {
    let (_, limit) = page(None, query.limit)?;
    let failures = via.core.failures.recent(limit).into_iter().map(Failure::from).collect();
    Ok(reply::ok(&Failures { failures }))
}

/// Lists callbacks and what became of the events that they were to be told of.
#[utoipa::path(get, path = "/debug/callbacks", tag = "debug", responses(
    (status = 200, description = "`registered`, `callbacks` and `events`", body = Object),
    (status = "default", description = "refused", body = ErrorBody),
))]
pub(crate) async fn callbacks(Extension(via): Extension<Via>) -> Response {
    reply::ok(&DebugInfo::of(&via.core.events))
}

/// Acknowledgements, and what waits for them.
#[derive(Serialize, ToSchema)]
pub(crate) struct AckStats {
    /// Messages in flight from mailboxes: on their way to a receiver, or waiting for its acknowledgement.
    pending: usize,
    /// Messages resting in the inbox.
    stored: u64,
    acked: u64,
    rejected: u64,
    expired: u64,
    /// Messages whose attempts were used up without an acknowledgement, whether they rest since then or have failed.
    timed_out: u64,
    /// Acknowledgements that did not come in time.
    timeouts: u64,
    /// Messages sent again for that.
    retries: u64,
    /// Acknowledgements that meant nothing, by reason.
    ignored: Value,
    /// Users with a mailbox in memory.
    users: usize,
    /// Idempotency keys that are remembered.
    idempotency_keys: usize,
    /// Messages whose fate is remembered.
    outcomes: usize,
}

/// Counts acknowledgements and what waits for them.
#[utoipa::path(get, path = "/debug/ack/stats", tag = "debug", responses(
    (status = 200, description = "the counts", body = AckStats),
    (status = "default", description = "refused", body = ErrorBody),
))]
pub(crate) async fn ack_stats(Extension(via): Extension<Via>) -> Response {
    let core = &via.core;
    let tally = core.fanouts.stats().ledger().snapshot();
    let (timeouts, retries) = core.metrics.late_acks();
    reply::ok(&AckStats {
        pending: core.mail.in_flight().await,
        stored: whole(tally.stored),
        acked: whole(tally.acked),
        rejected: whole(tally.rejected),
        expired: whole(tally.expired),
        timed_out: core.failure_totals().of_reason(FailureReason::AckTimeout),
        timeouts,
        retries,
        ignored: core.mail.ignored_acks().collect(),
        users: core.mail.users(),
        idempotency_keys: core.mail.idempotency.len(),
        outcomes: core.mail.outcomes.len(),
    })
}

/// Which part of a list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct PartQuery {
    /// Entries at most, 1 to 1,000; default 100.
    limit: Option<u32>,
    /// Where the last part ended.
    cursor: Option<String>,
}

/// Messages in flight from mailboxes.
#[derive(Serialize, ToSchema)]
pub(crate) struct PendingMessages {
    pending: Vec<PendingMessage>,
    /// How many there are.
    total: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// One message in flight to one user.
#[derive(Serialize, ToSchema)]
pub(crate) struct PendingMessage {
    #[schema(value_type = String)]
    id: Uuid,
    user_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sender_id: Option<String>,
    require_ack: bool,
    /// Which transmission of this stay on line it is, from 1.
    attempt: u32,
    /// `transmission` (a connection must take it), `ack`, or `next_attempt` (no acknowledgement came in time).
    #[schema(value_type = String)]
    waits_for: &'static str,
    /// In how many milliseconds that is over; absent where no time runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    due_in_ms: Option<u64>,
    /// Milliseconds since it was accepted.
    age_ms: u64,
    /// With how many connections it is or was.
    connections: usize,
}

impl PendingMessage {
    fn new(user_id: &Id, flight: &InFlight, now: u64) -> Self {
        let record = Record::decode(&flight.body);
        Self {
            id: flight.id,
            user_id: user_id.to_string(),
            message_type: record.as_ref().map(|record| record.message_type.to_owned()),
            sender_id: record.as_ref().map(|record| record.sender_id.to_owned()),
            require_ack: flight.kind == Kind::Reliable,
            attempt: flight.attempt,
            waits_for: flight.waits_for.as_str(),
            due_in_ms: flight.due.map(|due| due.saturating_sub(now)),
            age_ms: record.map_or(0, |record| now.saturating_sub(record.timestamp)),
            connections: flight.connections,
        }
    }
}

/// Lists messages in flight from mailboxes, by user and by id.
#[utoipa::path(get, path = "/debug/ack/pending", tag = "debug", params(PartQuery), responses(
    (status = 200, description = "messages", body = PendingMessages),
    (status = "default", description = "refused", body = ErrorBody),
))]
pub(crate) async fn ack_pending(
    Extension(via): Extension<Via>,
    Params(query): Params<PartQuery>,
) -> Result<Response, Refusal> {
    let (_, limit) = page(None, query.limit)?;
    let after = match query.cursor.as_deref() {
        None | Some("") => None,
        Some(cursor) => {
            Some(PendingCursor::parse(cursor).ok_or_else(|| Refusal::invalid("cursor is not one of ours"))?)
        }
    };
    let mail = &via.core.mail;
    let (pending, next_cursor) = mail.pending(after.as_ref(), limit).await;
    let now = mail.now();
    Ok(reply::ok(&PendingMessages {
        pending: pending.iter().map(|(user_id, flight)| PendingMessage::new(user_id, flight, now)).collect(),
        total: mail.in_flight().await,
        next_cursor: next_cursor.map(|cursor| cursor.to_string()),
    }))
}

/// For whom.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AckRetry {
    /// Only what rests for this user; default everybody.
    user_id: Option<String>,
}

/// What is tried.
#[derive(Serialize, ToSchema)]
pub(crate) struct AckRetried {
    /// Users who are here and whose mailboxes look at once for what rests.
    users: usize,
}

/// Has messages that rest for users who are here sent at once, not when `inbox.retry_interval` has passed.
#[utoipa::path(post, path = "/debug/ack/retry", tag = "debug", request_body(content = Option<AckRetry>), responses(
    (status = 202, description = "they are being tried", body = AckRetried),
    (status = "default", description = "refused; 4001 where the named user is away", body = ErrorBody),
))]
pub(crate) async fn ack_retry(
    Extension(via): Extension<Via>,
    OptionalJson(body): OptionalJson<AckRetry>,
) -> Result<Response, Refusal> {
    let user_id = match body.user_id {
        Some(user_id) => {
            check_user(&via.core, "user_id", &user_id)?;
            Some(Id::generated(user_id))
        }
        None => None,
    };
    let users = via.core.retry_resting(user_id.as_ref());
    if users == 0 && user_id.is_some() {
        return Err(ErrorCode::UserOffline.into());
    }
    Ok(reply::json(StatusCode::ACCEPTED, &AckRetried { users }))
}
