//! Programs that push: to users, in batches, to everybody.

use std::sync::Arc;

use axum::{Extension, response::Response};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};
use utoipa::ToSchema;
use uuid::Uuid;
use wsc_protocol::{ErrorCode, ErrorReply, Priority, UserType};

use super::{
    access::{Caller, Via},
    extract::{Json, PathUser, check_user, present},
    reply::{self, ErrorBody, Refusal},
};
use crate::{
    builder::is_reserved,
    core::Core,
    hub::check_id,
    routing::{Direct, SendOptions, SendReceipt},
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
            /// Needs the inbox.
            require_ack: Option<bool>,
            /// Needs the inbox.
            ttl_ms: Option<u64>,
            /// Needs the inbox.
            idempotency_key: Option<String>,
            /// Needs the inbox.
            wait: Option<String>,
        }

        impl $name {
            /// Everything but who it is for and what it says.
            pub(crate) fn wishes(&mut self) -> $crate::api::messages::Wishes {
                $crate::api::messages::Wishes {
                    sender_id: self.sender_id.take(),
                    message_type: self.message_type.take(),
                    priority: self.priority.unwrap_or_default(),
                    needs_inbox: [
                        ("require_ack", self.require_ack == Some(true)),
                        ("ttl_ms", self.ttl_ms.is_some()),
                        ("idempotency_key", self.idempotency_key.is_some()),
                        ("wait", self.wait.is_some()),
                    ],
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
    pub(super) needs_inbox: [(&'static str, bool); 4],
}

impl Wishes {
    /// What the caller may wish for, in the form that sending takes.
    pub(crate) fn granted(self, caller: &Caller, is_for_room: bool) -> Result<SendOptions, Refusal> {
        // Nothing could be promised to survive, so nothing is.
        if let Some((field, _)) = self.needs_inbox.iter().find(|(_, is_wished)| *is_wished) {
            return Err(Refusal::invalid(format!("{field} needs the inbox, which is off")));
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
        let options = SendOptions::default().sender(sender_id).priority(self.priority);
        Ok(match self.message_type {
            Some(message_type) => options.message_type(message_type),
            None => options,
        })
    }
}

fn send(core: &Arc<Core>, user_id: &str, content: &RawValue, options: &SendOptions) -> Result<SendReceipt, ErrorReply> {
    core.send_direct(&Direct {
        message_type: options.message_type.as_deref().unwrap_or("user_message"),
        sender_id: options.sender_id.as_deref().unwrap_or(crate::routing::SYSTEM),
        content,
        priority: options.priority,
        target: user_id,
        target_client: None,
        from: None,
    })
}

/// An accepted message to a user.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what `SendReceipt` is written as")]
pub(crate) struct Receipt {
    /// The message's id.
    id: String,
    /// `sent`, `pending` or `failed`.
    outcome: String,
    /// Why it failed.
    reason: Option<String>,
}

/// Sends to every connection of a user.
#[utoipa::path(post, path = "/api/users/{user}/messages", tag = "messages",
    params(("user" = String, Path, description = "User id")), request_body = Push, responses(
        (status = 202, description = "accepted, and where it stands", body = Receipt),
        (status = "default", description = "refused", body = ErrorBody),
    ))]
pub(crate) async fn send_to_user(
    Extension(via): Extension<Via>,
    Extension(caller): Extension<Caller>,
    PathUser(user_id): PathUser,
    Json(mut push): Json<Push>,
) -> Result<Response, Refusal> {
    let options = push.wishes().granted(&caller, false)?;
    let receipt = send(&via.core, &user_id, &push.content, &options)?;
    Ok(reply::json(StatusCode::ACCEPTED, &receipt))
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
    let one = |mut item: BatchItem| -> Result<SendReceipt, Refusal> {
        check_user(&via.core, "user_id", &item.user_id)?;
        let options = item.wishes().granted(&caller, false)?;
        Ok(send(&via.core, &item.user_id, &item.content, &options)?)
    };
    let mut results = Vec::with_capacity(batch.messages.len());
    for item in batch.messages {
        results.push(match one(item) {
            Ok(receipt) => BatchResult::Accepted(receipt),
            Err(refusal) => BatchResult::Refused { error: refusal.into_error() },
        });
        // A thousand messages to users with many devices take a while: others want their turn.
        if results.len() % BATCH_SLICE == 0 {
            tokio::task::yield_now().await;
        }
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
    pub(crate) recipients: usize,
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
            Ok(reply::ok(&Published { status: Some("broadcast initiated"), id, recipients }))
        }
        (None, Some(content)) => {
            let (id, recipients) = via.core.broadcast(&content, user_type, &SendOptions::default())?;
            Ok(reply::json(StatusCode::ACCEPTED, &Published { status: None, id, recipients }))
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
