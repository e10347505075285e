//! Failure handlers and callbacks under the names of go-wsc.

use wsc_events::{CallbackManager, DebugInfo};
use wsc_failure::{
    ConnectionErrorHandler, FailureHandlerRegistry, HandlerId, QueueFullHandler, SendFailureHandler, TimeoutHandler,
    UserOfflineHandler,
};

use crate::hub::Hub;

/// Failure handlers. Each is [`FailureHandlerRegistry`]'s method of that name on [`Hub::failure_handlers`].
impl Hub {
    /// Where failure handlers register.
    pub fn failure_handlers(&self) -> &FailureHandlerRegistry {
        self.core().failures.registry()
    }

    /// Adds a general handler.
    pub fn add_send_failure_handler(&self, handler: impl SendFailureHandler) -> HandlerId {
        self.failure_handlers().add_send_failure_handler(handler)
    }

    /// Adds a handler for full queues.
    pub fn add_queue_full_handler(&self, handler: impl QueueFullHandler) -> HandlerId {
        self.failure_handlers().add_queue_full_handler(handler)
    }

    /// Adds a handler for users who are away.
    pub fn add_user_offline_handler(&self, handler: impl UserOfflineHandler) -> HandlerId {
        self.failure_handlers().add_user_offline_handler(handler)
    }

    /// Adds a handler for failed connections.
    pub fn add_connection_error_handler(&self, handler: impl ConnectionErrorHandler) -> HandlerId {
        self.failure_handlers().add_connection_error_handler(handler)
    }

    /// Adds a handler for timeouts.
    pub fn add_timeout_handler(&self, handler: impl TimeoutHandler) -> HandlerId {
        self.failure_handlers().add_timeout_handler(handler)
    }

    /// Removes a general handler. False where it was not there.
    pub fn remove_send_failure_handler(&self, id: HandlerId) -> bool {
        self.failure_handlers().remove_send_failure_handler(id)
    }

    /// Removes a handler for full queues. False where it was not there.
    pub fn remove_queue_full_handler(&self, id: HandlerId) -> bool {
        self.failure_handlers().remove_queue_full_handler(id)
    }

    /// Removes a handler for users who are away. False where it was not there.
    pub fn remove_user_offline_handler(&self, id: HandlerId) -> bool {
        self.failure_handlers().remove_user_offline_handler(id)
    }

    /// Removes a handler for failed connections. False where it was not there.
    pub fn remove_connection_error_handler(&self, id: HandlerId) -> bool {
        self.failure_handlers().remove_connection_error_handler(id)
    }

    /// Removes a handler for timeouts. False where it was not there.
    pub fn remove_timeout_handler(&self, id: HandlerId) -> bool {
        self.failure_handlers().remove_timeout_handler(id)
    }
}

/// Callbacks.
impl Hub {
    /// The hub's events under the names of go-wsc: `register_callback`, `trigger_callback`, `unregister_callback`. It
    /// is the bus of [`events`](Self::events), seen from another side.
    pub fn callbacks(&self) -> CallbackManager {
        CallbackManager::new(self.events().clone())
    }

    /// Which callbacks there are, and what became of the events that they were to be told of.
    pub fn debug_info(&self) -> DebugInfo {
        DebugInfo::of(self.events())
    }
}
