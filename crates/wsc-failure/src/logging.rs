//! One log line for each failure.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use wsc_protocol::{ClientId, FailureKind, FailureReason, HubMessage, Id};

use crate::{
    AnyFailureHandler, ConnectionErrorHandler, FailureEvent, FailureHandlerRegistry, HandlerId, QueueFullHandler,
    QueueType, SendFailureHandler, TimeoutHandler, TimeoutType, UserOfflineHandler,
};

/// Writes every failure to the log, at level `warn`, with the fields `type`, `message_id`, `user_id` and `error`.
/// Payloads are never logged.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoggingHandler;

impl LoggingHandler {
    /// Adds it for every failure: each is logged once, and which other handlers are called stays as it is.
    pub fn add_to(registry: &FailureHandlerRegistry) -> HandlerId {
        registry.add_any_failure_handler(Self)
    }
}

#[async_trait]
impl AnyFailureHandler for LoggingHandler {
    async fn handle_failure(&self, failure: &FailureEvent) {
        let FailureEvent { message, recipient, reason, error, .. } = failure;
        match (reason.kind(), QueueType::of(*reason), TimeoutType::of(*reason)) {
            (FailureKind::QueueFull, Some(queue), _) => self.handle_queue_full(message, recipient, queue, error).await,
            (FailureKind::Timeout, _, Some(timeout)) => {
                self.handle_timeout(message, recipient, timeout, failure.duration, error).await;
            }
            (FailureKind::UserOffline, ..) => self.handle_user_offline(message, recipient, error).await,
            (FailureKind::ConnectionError, ..) => {
                self.handle_connection_error(message, recipient, failure.client_id.as_ref(), error).await;
            }
            _ => self.handle_send_failure(message, recipient, *reason, error).await,
        }
    }
}

#[async_trait]
impl SendFailureHandler for LoggingHandler {
    async fn handle_send_failure(&self, message: &Arc<HubMessage>, recipient: &Id, reason: FailureReason, error: &str) {
        tracing::warn!(
            r#type = reason.as_str(), message_id = %message.id, user_id = %recipient, error, "a message did not arrive"
        );
    }
}

#[async_trait]
impl QueueFullHandler for LoggingHandler {
    async fn handle_queue_full(&self, message: &Arc<HubMessage>, recipient: &Id, queue_type: QueueType, error: &str) {
        tracing::warn!(
            r#type = FailureKind::QueueFull.as_str(), message_id = %message.id, user_id = %recipient,
            queue_type = queue_type.as_str(), error, "a queue was full"
        );
    }
}

#[async_trait]
impl UserOfflineHandler for LoggingHandler {
    async fn handle_user_offline(&self, message: &Arc<HubMessage>, user_id: &Id, error: &str) {
        // Nothing is wrong where somebody is away, and any client can write to the absent all day.
        tracing::debug!(
            r#type = FailureKind::UserOffline.as_str(), message_id = %message.id, %user_id, error, "the user was away"
        );
    }
}

#[async_trait]
impl ConnectionErrorHandler for LoggingHandler {
    async fn handle_connection_error(
        &self,
        message: &Arc<HubMessage>,
        recipient: &Id,
        client_id: Option<&ClientId>,
        error: &str,
    ) {
        tracing::warn!(
            r#type = FailureKind::ConnectionError.as_str(), message_id = %message.id, user_id = %recipient,
            client_id = client_id.map(tracing::field::display), error, "a connection failed"
        );
    }
}

#[async_trait]
impl TimeoutHandler for LoggingHandler {
    async fn handle_timeout(
        &self,
        message: &Arc<HubMessage>,
        recipient: &Id,
        timeout_type: TimeoutType,
        duration: Duration,
        error: &str,
    ) {
        tracing::warn!(
            r#type = timeout_type.as_str(), message_id = %message.id, user_id = %recipient,
            duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX), error, "a send took too long"
        );
    }
}
