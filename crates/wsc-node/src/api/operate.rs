//! What operators do to a running hub: revoke tokens, read the settings anew, post events again.

use axum::{Extension, response::Response};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};
use wsc_auth::{MAX_TOKEN_ID_LEN, Revocation};
use wsc_events::{DeadLetter, OutboxError};
use wsc_protocol::{ErrorCode, ErrorReply, Id};

use super::{
    access::Via,
    extract::{Json, Params, PathId},
    reply::{self, ErrorBody, Refusal},
};
use crate::{
    dispatch::page,
    encode::now_ms,
    hub::check_id,
    reload::{ReloadError, Reloaded},
};

/// What is revoked: one of the two.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Revoke {
    /// The id of one token.
    jti: Option<String>,
    /// All of a user's tokens that were issued before now, or do not say when.
    user_id: Option<String>,
}

/// What came of it.
#[derive(Serialize, ToSchema)]
pub(crate) struct RevokeReply {
    /// Connections that were closed for it, with 3500.
    closed: usize,
}

/// Revokes a token, or all of a user's so far, for good.
#[utoipa::path(post, path = "/api/tokens/revoke", tag = "admin", request_body = Revoke, responses(
    (status = 200, description = "revoked", body = RevokeReply),
    (status = "default", description = "refused", body = ErrorBody),
))]
pub(crate) async fn revoke_tokens(
    Extension(via): Extension<Via>,
    Json(request): Json<Revoke>,
) -> Result<Response, Refusal> {
    let revocation = match (request.jti, request.user_id) {
        (Some(jti), None) if !jti.is_empty() && jti.len() <= MAX_TOKEN_ID_LEN => Revocation::token(&jti),
        (Some(_), None) => return Err(Refusal::invalid(format!("jti must be 1 to {MAX_TOKEN_ID_LEN} bytes"))),
        (None, Some(user_id)) => {
            check_id("user_id", &user_id)?;
            Revocation::user(Id::generated(user_id), now_ms())
        }
        _ => return Err(Refusal::invalid("exactly one of jti and user_id is needed")),
    };
    let closed = via.core.revoke(revocation).await?;
    Ok(reply::ok(&RevokeReply { closed }))
}

/// Whether to change anything.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ReloadQuery {
    /// Only say what would change; the name alone means `true`.
    dry_run: Option<String>,
}

/// What a reload changed, or would change.
#[derive(Serialize, ToSchema)]
pub(crate) struct ReloadReply {
    /// Keys whose new values apply now.
    applied: Vec<&'static str>,
    /// Keys whose new values wait for the next start.
    pending_restart: Vec<&'static str>,
    dry_run: bool,
}

/// Reads the settings anew and applies what may change while the hub runs.
#[utoipa::path(post, path = "/api/admin/config/reload", tag = "admin", params(ReloadQuery), responses(
    (status = 200, description = "applied whole, or would be", body = ReloadReply),
    (status = 400, description = "refused whole; the message names every problem", body = ErrorBody),
    (status = "default", description = "refused", body = ErrorBody),
))]
pub(crate) async fn reload_config(
    Extension(via): Extension<Via>,
    Params(query): Params<ReloadQuery>,
) -> Result<Response, Refusal> {
    let dry_run = match query.dry_run.as_deref() {
        None | Some("false" | "0") => false,
        Some("" | "true" | "1") => true,
        Some(_) => return Err(Refusal::invalid("dry_run is true or false")),
    };
    let hub = via.hub().ok_or_else(Refusal::draining)?;
    // Who asked may go away; the settings change whole all the same.
    let core = via.core.clone();
    let work = async move {
        let reload = async { if dry_run { hub.check_reload().await } else { hub.reload().await } };
        tokio::select! {
            reloaded = reload => Some(reloaded),
            () = core.stop.cancelled() => None,
        }
    };
    let reloaded = via.core.tasks.spawn(work).await.map_err(|_| ErrorCode::ServerError)?;
    let Reloaded { applied, pending_restart, .. } =
        reloaded.ok_or_else(Refusal::draining)?.map_err(|error| refuse_reload(&error))?;
    Ok(reply::ok(&ReloadReply { applied, pending_restart, dry_run }))
}

fn refuse_reload(error: &ReloadError) -> Refusal {
    Refusal::invalid(error.to_string())
}

/// Which letters.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct DeadQuery {
    /// Entries at most, 1 to 1,000; default 100.
    limit: Option<u32>,
    /// Where the last page ended: its `next_cursor`.
    cursor: Option<String>,
}

/// Batches of events that were given up.
#[derive(Serialize, ToSchema)]
pub(crate) struct DeadWebhooks {
    dead: Vec<DeadWebhook>,
    total: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// One batch of events that was given up. Its id is the header `webhook-id` of every request that it made.
#[derive(Serialize, ToSchema)]
pub(crate) struct DeadWebhook {
    id: String,
    /// When its first event happened, Unix milliseconds.
    created_ms: u64,
    attempts: u32,
    /// Why the last attempt failed.
    error: String,
    /// How many events.
    events: u32,
    /// Their types, as far as there is room.
    types: Vec<String>,
}

impl From<DeadLetter> for DeadWebhook {
    fn from(letter: DeadLetter) -> Self {
        Self {
            id: letter.id,
            created_ms: letter.created_ms,
            attempts: letter.attempts,
            error: letter.last_error,
            events: letter.events,
            types: letter.event_types,
        }
    }
}

/// Lists batches of events that were given up, oldest first.
#[utoipa::path(get, path = "/api/webhooks/dead", tag = "admin", params(DeadQuery), responses(
    (status = 200, description = "the batches", body = DeadWebhooks),
    (status = "default", description = "refused", body = ErrorBody),
))]
pub(crate) async fn list_dead_webhooks(
    Extension(via): Extension<Via>,
    Params(query): Params<DeadQuery>,
) -> Result<Response, Refusal> {
    let (_, limit) = page(None, query.limit)?;
    let Some(webhooks) = &via.core.webhooks.0 else {
        return Ok(reply::ok(&DeadWebhooks { dead: Vec::new(), total: 0, next_cursor: None }));
    };
    let letters = webhooks.dead(query.cursor.as_deref(), limit).await.map_err(|error| match error {
        OutboxError::Cursor => ErrorReply::new(ErrorCode::InvalidFormat, "cursor is not one of ours"),
        error => {
            tracing::error!(%error, "the dead letters cannot be read");
            ErrorReply::new(ErrorCode::ServerError, "the store does not work")
        }
    })?;
    let dead = letters.letters.into_iter().map(DeadWebhook::from).collect();
    Ok(reply::ok(&DeadWebhooks { dead, total: letters.total, next_cursor: letters.next }))
}

/// Has a batch of events posted again, behind those that wait.
#[utoipa::path(post, path = "/api/webhooks/dead/{id}/replay", tag = "admin",
    params(("id" = String, Path, description = "the batch")),
    responses(
        (status = 202, description = "it waits to be posted"),
        (status = 404, description = "there is no such batch", body = ErrorBody),
        (status = "default", description = "refused", body = ErrorBody),
    ),
)]
pub(crate) async fn replay_dead_webhook(
    Extension(via): Extension<Via>,
    PathId(id): PathId,
) -> Result<Response, Refusal> {
    let no_such = || {
        let message = "there is no such batch";
        Refusal::with_status(StatusCode::NOT_FOUND, ErrorCode::InvalidMessageId, message)
    };
    let webhooks = via.core.webhooks.0.as_ref().ok_or_else(no_such)?;
    let is_there = webhooks.replay(&id).await.map_err(|error| {
        tracing::error!(%error, "a dead letter cannot be posted again");
        ErrorReply::new(ErrorCode::ServerError, "the store does not work")
    })?;
    if !is_there {
        return Err(no_such());
    }
    Ok(reply::json(StatusCode::ACCEPTED, &json!({ "status": "replayed" })))
}
