//! Programs that push: to users, in batches, to everybody.

use std::time::Duration;

use axum::{Extension, response::Response};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};
use utoipa::ToSchema;
use uuid::Uuid;
use wsc_protocol::{ErrorCode, ErrorReply, Fate, Priority, UserType};

use super::{
    access::{Caller, Via},
    extract::{Json, PathId, PathUser, check_user, present},
    reply::{self, ErrorBody, Refusal},
};
use crate::{
    builder::is_reserved,
    core::Core,
    hub::{check_id, oneshot_answer},
    mail::Watch,
    routing::{SendOptions, SendReceipt},
};

/// Makes the body of a push: what all have in common, after some fields of its own.
macro_rules! push_body {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $field:ident: $kind:ty,)* }) => {
        $(#[$about])*
        #[derive(Deserialize, ToSchema)]
        #[serde(deny_unknown_fields)]
        pub(crate) struct $name {
            $($(#[$doc])* pub(crate) $field: $kind,)*
            /// User id shown as the sender; default `system`. Needs `admin:system`.
            sender_id: Option<String>,
            /// Type of the message, none of the protocol's own. Needs `admin:system`.
            message_type: Option<String>,
            /// `high`, `normal` or `low`; `high` needs `admin:system`. Messages to rooms are always `normal`.
            #[schema(value_type = Option<String>)]
            priority: Option<Priority>,
            /// Whether the receiver must acknowledge it. It is stored first, and sent again until it is settled.
            require_ack: Option<bool>,
            /// How long it may wait for its receiver, in milliseconds; default and most: `storage.message_ttl`.
            ttl_ms: Option<u64>,
            /// Makes a repeated send harmless: the same key gets the first answer again.
            idempotency_key: Option<String>,
            /// `ack`: answer when the message is final or rests, with all that happened to it.
            wait: Option<String>,
        }

        impl $name {
            /// Everything but who it is for and what it says.
            pub(crate) fn wishes(&mut self) -> $crate::api::messages::Wishes {
                $crate::api::messages::Wishes {
                    sender_id: self.sender_id.take(),
                    message_type: self.message_type.take(),
                    priority: self.priority.unwrap_or_default(),
                    require_ack: self.require_ack.unwrap_or_default(),
                    ttl_ms: self.ttl_ms,
                    idempotency_key: self.idempotency_key.take(),
                    wait: self.wait.take(),
                }
            }
        }
    };
}
pub(crate) use push_body;

push_body! {
    /// A message to a user or a room.
    Push {
        /// Any JSON; it arrives byte for byte.
        #[schema(value_type = Value)]
        content: Box<RawValue>,
    }
}

push_body! {
    /// One message of a batch.
    BatchItem {
        /// Whom it is for.
        user_id: String,
        /// Any JSON; it arrives byte for byte.
        #[schema(value_type = Value)]
        content: Box<RawValue>,
    }
}

/// How a push wants to be sent.
pub(crate) struct Wishes {
    pub(super) sender_id: Option<String>,
    pub(super) message_type: Option<String>,
    pub(super) priority: Priority,
    pub(super) require_ack: bool,
    pub(super) ttl_ms: Option<u64>,
    pub(super) idempotency_key: Option<String>,
    pub(super) wait: Option<String>,
}

impl Wishes {
    /// What the caller may wish for, in the form that sending takes.
    pub(crate) fn granted(self, core: &Core, caller: &Caller, is_for_room: bool) -> Result<SendOptions, Refusal> {
        if self.ttl_ms == Some(0) {
            return Err(Refusal::invalid("ttl_ms must be at least 1"));
        }
        if let Some(message_type) = &self.message_type {
            caller.require_admin("message_type")?;
            if is_reserved(message_type) {
                let message = format!("message_type {message_type:?} belongs to the protocol");
                return Err(Refusal::invalid(message));
            }
            check_id("message_type", message_type)?;
        }
        if let Some(sender_id) = &self.sender_id {
            caller.require_admin("sender_id")?;
            check_id("sender_id", sender_id)?;
        }
        if is_for_room && self.priority != Priority::Normal {
            return Err(Refusal::invalid("messages to a room are always of normal priority"));
        }
        if self.priority == Priority::High {
            caller.require_admin("high priority")?;
        }
        let sender_id = self.sender_id.unwrap_or_else(|| caller.sender_id().to_owned());
        if self.require_ack && !caller.is_admin() && !core.settings().limits.client_require_ack {
            return Err(Refusal::forbidden("clients may not ask for acknowledgements here"));
        }
        let mut options = SendOptions::default().sender(sender_id).priority(self.priority);
        options.message_type = self.message_type;
        options.require_ack = self.require_ack;
        options.ttl = self.ttl_ms.map(Duration::from_millis);
        options.idempotency_key = self.idempotency_key;
        options.trace = caller.trace;
        Ok(options)
    }

    /// Whether the caller wants to wait for the end.
    pub(crate) fn waits(&self) -> Result<bool, Refusal> {
        match self.wait.as_deref() {
            None => Ok(false),
            Some("ack") => Ok(true),
            Some(_) => Err(Refusal::invalid("wait can only be \"ack\"")),
        }
    }
}

/// An accepted message to a user.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what `SendReceipt` is written as")]
pub(crate) struct Receipt {
    /// The message's id.
    id: String,
    /// `sent`, `pending`, `stored` or `failed`.
    outcome: String,
    /// Why it failed.
    reason: Option<String>,
    /// Whether this answers a repetition, for which nothing was sent.
    duplicate: Option<bool>,
}

/// Sends to every connection of a user.
#[utoipa::path(post, path = "/api/users/{user}/messages", tag = "messages",
    params(("user" = String, Path, description = "User id")), request_body = Push, responses(
        (status = 200, description = "with `wait`: the end, and every attempt"),
        (status = 202, description = "accepted, and where it stands", body = Receipt),
        (status = "default", description = "refused", body = ErrorBody),
    ))]
pub(crate) async fn send_to_user(
    Extension(via): Extension<Via>,
    Extension(caller): Extension<Caller>,
    PathUser(user_id): PathUser,
    Json(mut push): Json<Push>,
) -> Result<Response, Refusal> {
    let core = &via.core;
    let wishes = push.wishes();
    let waits = wishes.waits()?;
    let options = wishes.granted(&via.core, &caller, false)?;
    // A place for each that waits, so that they cannot use up the server.
    let _place = match waits {
        true => Some(core.waiting_place().ok_or_else(|| {
            Refusal::from(ErrorReply::new(ErrorCode::Full, "too many requests wait for acknowledgements"))
        })?),
        false => None,
    };
    let (watch, result) = if waits { Some(Watch::new()).unzip() } else { (None, None) };
    let (answer, answered) = oneshot_answer();
    core.push(&user_id, &push.content, &options, caller.via(), watch, answer);
    let receipt = answered.await?.receipt;
    let Some(result) = result else { return Ok(reply::json(StatusCode::ACCEPTED, &receipt)) };
    match tokio::time::timeout(core.settings().http.wait_timeout, result).await {
        Ok(Ok(result)) => Ok(reply::ok(&result)),
        // A repetition, whose first request waits: where the message stands now.
        Ok(Err(_)) => {
            let known = core.message_fate(receipt.id).and_then(|fate| fate.recipients.into_iter().next());
            let fate = known.map_or(receipt.fate, |pair| Fate { outcome: pair.outcome, reason: pair.reason });
            let status = if fate == Fate::PENDING { StatusCode::ACCEPTED } else { StatusCode::OK };
            Ok(reply::json(status, &SendReceipt { fate, ..receipt }))
        }
        Err(_) => Ok(reply::json(StatusCode::ACCEPTED, &receipt)),
    }
}

/// Shows what became of a message for each recipient.
#[utoipa::path(get, path = "/api/messages/{id}", tag = "messages",
    params(("id" = String, Path, description = "Message id")), responses(
        (status = 200, description = "its fates", body = Fates),
        (status = 404, description = "not known, or not any more", body = ErrorBody),
        (status = "default", description = "refused", body = ErrorBody),
    ))]
pub(crate) async fn show_message(
    Extension(via): Extension<Via>,
    Extension(caller): Extension<Caller>,
    PathId(id): PathId,
) -> Result<Response, Refusal> {
    let fate = Uuid::try_parse(&id).ok().and_then(|id| via.core.message_fate(id));
    match fate.filter(|fate| caller.is_admin() || caller.is_user(&fate.sender_id)) {
        Some(fate) => Ok(reply::ok(&fate)),
        None => Err(Refusal::with_status(StatusCode::NOT_FOUND, ErrorCode::InvalidMessageId, "no such message")),
    }
}

/// What became of a message.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what `MessageFate` is written as")]
pub(crate) struct Fates {
    /// The message's id.
    id: String,
    recipients: Vec<PairFateDoc>,
}

/// What became of a message for one recipient.
#[derive(ToSchema)]
#[schema(as = PairFate)]
#[expect(dead_code, reason = "it describes what `PairFate` is written as")]
pub(crate) struct PairFateDoc {
    user_id: String,
    /// `pending`, `stored`, `sent`, `acked`, `failed`, `expired` or `rejected`.
    outcome: String,
    /// Why it failed.
    reason: Option<String>,
    /// How often it was transmitted.
    attempts: u32,
}

/// Messages to users.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Batch {
    /// At most 1,000.
    messages: Vec<BatchItem>,
}

/// What became of each message of a batch, in its order.
#[derive(Serialize, ToSchema)]
pub(crate) struct BatchResults {
    #[schema(value_type = Vec<BatchResultDoc>)]
    results: Vec<BatchResult>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum BatchResult {
    Accepted(SendReceipt),
    Refused { error: ErrorReply },
}

/// A receipt or an error.
#[derive(ToSchema)]
#[schema(as = BatchResult)]
#[expect(dead_code, reason = "it describes what `BatchResult` is written as")]
pub(crate) enum BatchResultDoc {
    #[schema(title = "Accepted")]
    Accepted(Receipt),
    #[schema(title = "Refused")]
    Refused(ErrorBody),
}

/// Sends up to 1,000 messages to users; one that is refused does not stop the others.
#[utoipa::path(post, path = "/api/messages/batch", tag = "messages", request_body = Batch, responses(
    (status = 200, description = "what became of each", body = BatchResults),
    (status = "default", description = "refused as a whole", body = ErrorBody),
))]
pub(crate) async fn send_batch(
    Extension(via): Extension<Via>,
    Extension(caller): Extension<Caller>,
    Json(batch): Json<Batch>,
) -> Result<Response, Refusal> {
    if batch.messages.len() > MAX_BATCH {
        let message = format!("a batch has at most {MAX_BATCH} messages");
        return Err(Refusal::from(ErrorReply::new(ErrorCode::TooLarge, message)).details(json!({ "limit": MAX_BATCH })));
    }
    // All are sent before the first answer is waited for: what is durable shares its commits.
    let mut answers = Vec::with_capacity(batch.messages.len());
    for mut item in batch.messages {
        let sent = check_user(&via.core, "user_id", &item.user_id).map_err(Refusal::from).and_then(|()| {
            let wishes = item.wishes();
            if wishes.waits()? {
                return Err(Refusal::invalid("a batch does not wait"));
            }
            let options = wishes.granted(&via.core, &caller, false)?;
            let (answer, answered) = oneshot_answer();
            via.core.push(&item.user_id, &item.content, &options, caller.via(), None, answer);
            Ok(answered)
        });
        answers.push(sent);
        // A thousand messages to users with many devices take a while: others want their turn.
        if answers.len() % BATCH_SLICE == 0 {
            tokio::task::yield_now().await;
        }
    }
    let mut results = Vec::with_capacity(answers.len());
    for answer in answers {
        let result = match answer {
            Ok(answered) => answered.await.map_err(Refusal::from),
            Err(refusal) => Err(refusal),
        };
        results.push(match result {
            Ok(answered) => BatchResult::Accepted(answered.receipt),
            Err(refusal) => BatchResult::Refused { error: refusal.into_error() },
        });
    }
    Ok(reply::ok(&BatchResults { results }))
}

/// A broadcast: either `message` or `content`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Broadcast {
    /// Text: sent as it is to connections without `wsc.v1`, as the content of a `broadcast` to the others.
    message: Option<String>,
    /// Any JSON: the content of a `broadcast` to everybody.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<Value>)]
    content: Option<Box<RawValue>>,
    /// With `content`: only to users of this type.
    #[schema(value_type = Option<String>)]
    user_type: Option<UserType>,
}

/// An accepted message to many.
#[derive(Serialize, ToSchema)]
pub(crate) struct Published {
    /// `broadcast initiated`, where the request had GoHub's form.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub(crate) status: Option<&'static str>,
    /// The message's id.
    #[schema(value_type = String)]
    pub(crate) id: Uuid,
    /// How many connections it goes to.
    pub(crate) recipients: u64,
    /// Whether this answers a repetition, for which nothing was sent.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) duplicate: bool,
}

/// Sends to every connection.
#[utoipa::path(post, path = "/api/broadcast", tag = "messages", request_body = Broadcast, responses(
    (status = 200, description = "accepted, asked for with `message`", body = Published),
    (status = 202, description = "accepted, asked for with `content`", body = Published),
    (status = "default", description = "refused", body = ErrorBody),
))]
pub(crate) async fn broadcast(
    Extension(via): Extension<Via>,
    Json(broadcast): Json<Broadcast>,
) -> Result<Response, Refusal> {
    let Broadcast { message, content, user_type } = broadcast;
    match (message, content) {
        (Some(text), None) if !text.is_empty() => {
            if user_type.is_some() {
                return Err(Refusal::invalid("user_type goes with content only"));
            }
            let (id, recipients) = via.core.broadcast_text(&text)?;
            Ok(reply::ok(&Published {
                status: Some("broadcast initiated"),
                id,
                recipients: recipients as u64,
                duplicate: false,
            }))
        }
        (None, Some(content)) => {
            let (id, recipients) = via.core.broadcast(&content, user_type, &SendOptions::default())?;
            Ok(reply::json(
                StatusCode::ACCEPTED,
                &Published { status: None, id, recipients: recipients as u64, duplicate: false },
            ))
        }
        (Some(_), None) => Err(Refusal::invalid("message is empty")),
        (None, None) => Err(Refusal::invalid("either message or content is missing")),
        (Some(_), Some(_)) => Err(Refusal::invalid("message and content cannot go together")),
    }
}

/// Most messages of a batch.
const MAX_BATCH: usize = 1_000;

/// Messages of a batch that are sent at a time.
const BATCH_SLICE: usize = 64;
