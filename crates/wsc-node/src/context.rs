//! Message types that the embedding program adds.

use std::{collections::HashMap, fmt, marker::PhantomData, panic::AssertUnwindSafe, sync::Arc};

use async_trait::async_trait;
use futures_util::FutureExt;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use uuid::Uuid;
use wsc_auth::Permissions;
use wsc_protocol::{ErrorCode, ErrorReply, Id, UserType};

use crate::{grant::Grant, hub::Hub, session::Session, users::User};

/// Answers requests of one message type.
///
/// Requests of one connection are handled one after the other, those of different connections at the same time. A
/// panic is caught and answered with 1003. The future is dropped when the connection closes: what must not be cut
/// short belongs into a task of its own.
#[async_trait]
pub trait MessageHandler: Send + Sync + 'static {
    /// Handles one request; the returned JSON is the `data` of the reply, which has the request's type. `None` sends
    /// no reply.
    ///
    /// # Errors
    ///
    /// An [`ErrorReply`] is sent as it is.
    async fn handle(&self, context: Context, data: Option<Box<RawValue>>) -> Result<Option<Box<RawValue>>, ErrorReply>;
}

/// Who asks, and the hub that was asked.
#[derive(Clone)]
pub struct Context {
    hub: Hub,
    session: Arc<Session>,
    /// Who it was, and what it might do, when it asked.
    user: Arc<User>,
    grant: Arc<Grant>,
    message_type: Arc<str>,
}

impl Context {
    pub(crate) fn new(hub: Hub, session: Arc<Session>, message_type: Arc<str>) -> Self {
        let (user, grant) = (Arc::clone(&session.user()), Arc::clone(&session.grant()));
        Self { hub, session, user, grant, message_type }
    }

    /// The hub.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// The asking user.
    pub fn user_id(&self) -> &Id {
        &self.user.id
    }

    /// The asking user's type.
    pub fn user_type(&self) -> UserType {
        self.grant.user_type
    }

    /// The connection's name within its user.
    pub fn client_id(&self) -> String {
        self.session.client_id().to_string()
    }

    /// The connection's hub-wide id.
    pub fn session(&self) -> Uuid {
        self.session.id
    }

    /// What the connection may do.
    pub fn permissions(&self) -> &Permissions {
        &self.grant.permissions
    }

    /// The rooms that the connection is in.
    pub fn rooms(&self) -> Vec<String> {
        self.session.joined.lock().room_ids()
    }

    /// The type of the request.
    pub fn message_type(&self) -> &str {
        &self.message_type
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("session", &self.session)
            .field("message_type", &self.message_type)
            .finish_non_exhaustive()
    }
}

/// What a handler answers: the `data` of the reply, or nothing.
type Answer = Result<Option<Box<RawValue>>, ErrorReply>;

/// The handlers of all custom types.
pub(crate) type Handlers = HashMap<Arc<str>, Arc<dyn MessageHandler>>;

/// A typed async function as a handler.
struct Typed<F, T>(F, PhantomData<fn(T)>);

/// Makes a handler of a function from deserialised data to a serialisable reply.
pub(crate) fn typed<F, T, R, Fut>(handler: F) -> Arc<dyn MessageHandler>
where
    F: Fn(Context, T) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, ErrorReply>> + Send + 'static,
    T: DeserializeOwned + Send + 'static,
    R: Serialize + Send + 'static,
{
    Arc::new(Typed(handler, PhantomData))
}

#[async_trait]
impl<F, T, R, Fut> MessageHandler for Typed<F, T>
where
    F: Fn(Context, T) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, ErrorReply>> + Send + 'static,
    T: DeserializeOwned + Send + 'static,
    R: Serialize + Send + 'static,
{
    async fn handle(&self, context: Context, data: Option<Box<RawValue>>) -> Result<Option<Box<RawValue>>, ErrorReply> {
        let json = data.as_deref().map_or("null", RawValue::get);
        let data: T =
            serde_json::from_str(json).map_err(|e| ErrorReply::new(ErrorCode::InvalidFormat, format!("data: {e}")))?;
        let reply = (self.0)(context, data).await?;
        let reply = serde_json::value::to_raw_value(&reply)
            .map_err(|e| ErrorReply::new(ErrorCode::ServerError, format!("the reply is no JSON: {e}")))?;
        Ok(Some(reply))
    }
}

/// Runs a handler; a panic becomes 1003.
pub(crate) async fn guarded(handler: Arc<dyn MessageHandler>, context: Context, data: Option<Box<RawValue>>) -> Answer {
    let message_type = Arc::clone(&context.message_type);
    // The handler's state is its own business; ours is not touched by a panic in it.
    let result = AssertUnwindSafe(async { handler.handle(context, data).await }).catch_unwind().await;
    result.unwrap_or_else(|_| {
        tracing::error!(%message_type, "a message handler panicked");
        Err(ErrorReply::new(ErrorCode::ServerError, "the handler failed"))
    })
}
