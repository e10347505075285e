//! The handlers: five, one for each kind of failure, and one that sees all of them.
//!
//! They are called by the router's workers, several at a time, in no promised order. A call that outlasts
//! [`timeout`](crate::FailureRouterConfig::timeout) is dropped at its next await point, a panic is caught; both are
//! counted. A handler must not block its thread.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use wsc_protocol::{ClientId, FailureReason, HubMessage, Id, UserType};

use crate::{FailureEvent, QueueType, TimeoutType};

/// The general handler: for failures of no special kind, and for those of a kind that has no handler of its own.
#[async_trait]
pub trait SendFailureHandler: Send + Sync + 'static {
    /// A message did not reach `recipient`.
    ///
    /// # Cancel safety
    ///
    /// Dropped when the time limit is over.
    async fn handle_send_failure(&self, message: &Arc<HubMessage>, recipient: &Id, reason: FailureReason, error: &str);
}

/// For full queues, buffers and inboxes.
#[async_trait]
pub trait QueueFullHandler: Send + Sync + 'static {
    /// There was no room for a message to `recipient`.
    ///
    /// # Cancel safety
    ///
    /// Dropped when the time limit is over.
    async fn handle_queue_full(&self, message: &Arc<HubMessage>, recipient: &Id, queue_type: QueueType, error: &str);
}

/// For users who are away.
#[async_trait]
pub trait UserOfflineHandler: Send + Sync + 'static {
    /// The user had no connection, and the message was not stored for it.
    ///
    /// # Cancel safety
    ///
    /// Dropped when the time limit is over.
    async fn handle_user_offline(&self, message: &Arc<HubMessage>, user_id: &Id, error: &str);
}

/// For connections that failed or were gone.
#[async_trait]
pub trait ConnectionErrorHandler: Send + Sync + 'static {
    /// A connection of `recipient` failed; `client_id` names it where it is known.
    ///
    /// # Cancel safety
    ///
    /// Dropped when the time limit is over.
    async fn handle_connection_error(
        &self,
        message: &Arc<HubMessage>,
        recipient: &Id,
        client_id: Option<&ClientId>,
        error: &str,
    );
}

/// For what took too long.
#[async_trait]
pub trait TimeoutHandler: Send + Sync + 'static {
    /// Something was waited for in vain, for `duration`.
    ///
    /// # Cancel safety
    ///
    /// Dropped when the time limit is over.
    async fn handle_timeout(
        &self,
        message: &Arc<HubMessage>,
        recipient: &Id,
        timeout_type: TimeoutType,
        duration: Duration,
        error: &str,
    );
}

/// For every failure, whatever its kind, with all that is known of it.
///
/// Unlike the five it takes nobody's place: whether one is there changes nothing about which others are called. So it
/// is what the built-in handlers are.
#[async_trait]
pub trait AnyFailureHandler: Send + Sync + 'static {
    /// A message did not arrive.
    ///
    /// # Cancel safety
    ///
    /// Dropped when the time limit is over.
    async fn handle_failure(&self, failure: &FailureEvent);
}

/// Takes note of failures where they happen: at once and of all, also of those that the pool has no room for and of
/// those that are only [counted](crate::FailureRouter::count).
///
/// It runs on the path that messages take, so it must do no more than count. Work is for handlers.
pub trait FailureWatcher: Send + Sync + 'static {
    /// `times` messages failed for this reason, to recipients of this type, where it is known. A panic is caught.
    fn on_failures(&self, reason: FailureReason, user_type: Option<UserType>, times: u64);
}

impl<T: FailureWatcher + ?Sized> FailureWatcher for Arc<T> {
    fn on_failures(&self, reason: FailureReason, user_type: Option<UserType>, times: u64) {
        (**self).on_failures(reason, user_type, times);
    }
}

/// One handler may be added for several kinds, shared.
macro_rules! shared_handlers {
    ($($name:ident :: $method:ident ( $($arg:ident : $type:ty),* );)*) => {$(
        #[async_trait]
        impl<T: $name + ?Sized> $name for Arc<T> {
            async fn $method(&self, $($arg: $type),*) {
                (**self).$method($($arg),*).await;
            }
        }
    )*};
}

shared_handlers! {
    SendFailureHandler::handle_send_failure(m: &Arc<HubMessage>, recipient: &Id, reason: FailureReason, error: &str);
    QueueFullHandler::handle_queue_full(m: &Arc<HubMessage>, recipient: &Id, queue: QueueType, error: &str);
    UserOfflineHandler::handle_user_offline(m: &Arc<HubMessage>, user_id: &Id, error: &str);
    ConnectionErrorHandler::handle_connection_error(m: &Arc<HubMessage>, recipient: &Id, client_id: Option<&ClientId>, error: &str);
    AnyFailureHandler::handle_failure(failure: &FailureEvent);
    TimeoutHandler::handle_timeout(m: &Arc<HubMessage>, recipient: &Id, timeout: TimeoutType, duration: Duration, error: &str);
}
