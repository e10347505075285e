//! Which handlers there are.

use std::{
    fmt,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::RwLock;
use wsc_protocol::{FailureKind, FailureReason, UserType};

use crate::{
    AnyFailureHandler, ConnectionErrorHandler, FailureWatcher, QueueFullHandler, SendFailureHandler, TimeoutHandler,
    UserOfflineHandler,
};

/// Names one added handler or watcher; ids are not reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HandlerId(u64);

/// The handlers of every kind. They can be added and removed at any time; clones share one registry.
#[derive(Clone, Debug, Default)]
pub struct FailureHandlerRegistry {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    next_id: AtomicU64,
    /// Copied on change: the router works with the list of the moment and holds no lock while handlers run.
    handlers: RwLock<Arc<Handlers>>,
}

#[derive(Clone, Default)]
pub(crate) struct Handlers {
    pub(crate) send_failure: List<dyn SendFailureHandler>,
    pub(crate) queue_full: List<dyn QueueFullHandler>,
    pub(crate) user_offline: List<dyn UserOfflineHandler>,
    pub(crate) connection_error: List<dyn ConnectionErrorHandler>,
    pub(crate) timeout: List<dyn TimeoutHandler>,
    pub(crate) any: List<dyn AnyFailureHandler>,
    pub(crate) watchers: List<dyn FailureWatcher>,
}

impl FailureHandlerRegistry {
    /// No handlers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a general handler.
    pub fn add_send_failure_handler(&self, handler: impl SendFailureHandler) -> HandlerId {
        self.change(|handlers, id| handlers.send_failure.add(id, Arc::new(handler)))
    }

    /// Adds a handler for full queues.
    pub fn add_queue_full_handler(&self, handler: impl QueueFullHandler) -> HandlerId {
        self.change(|handlers, id| handlers.queue_full.add(id, Arc::new(handler)))
    }

    /// Adds a handler for users who are away.
    pub fn add_user_offline_handler(&self, handler: impl UserOfflineHandler) -> HandlerId {
        self.change(|handlers, id| handlers.user_offline.add(id, Arc::new(handler)))
    }

    /// Adds a handler for failed connections.
    pub fn add_connection_error_handler(&self, handler: impl ConnectionErrorHandler) -> HandlerId {
        self.change(|handlers, id| handlers.connection_error.add(id, Arc::new(handler)))
    }

    /// Adds a handler for timeouts.
    pub fn add_timeout_handler(&self, handler: impl TimeoutHandler) -> HandlerId {
        self.change(|handlers, id| handlers.timeout.add(id, Arc::new(handler)))
    }

    /// Adds a handler for every failure. It is called beside the others and takes the place of none.
    pub fn add_any_failure_handler(&self, handler: impl AnyFailureHandler) -> HandlerId {
        self.change(|handlers, id| handlers.any.add(id, Arc::new(handler)))
    }

    /// Adds a watcher, which is told of every failure where it happens.
    pub fn add_failure_watcher(&self, watcher: impl FailureWatcher) -> HandlerId {
        self.change(|handlers, id| handlers.watchers.add(id, Arc::new(watcher)))
    }

    /// Removes a handler of whatever kind, or a watcher. False where it was not, or no longer, there.
    ///
    /// Failures that a worker takes up after this has returned do not reach it; one that was taken up before may.
    pub fn remove(&self, id: HandlerId) -> bool {
        self.take(|handlers| {
            handlers.send_failure.remove(id)
                || handlers.queue_full.remove(id)
                || handlers.user_offline.remove(id)
                || handlers.connection_error.remove(id)
                || handlers.timeout.remove(id)
                || handlers.any.remove(id)
                || handlers.watchers.remove(id)
        })
    }

    /// Removes a general handler. False where it was not there, also for the id of another kind; otherwise as
    /// [`remove`](Self::remove).
    pub fn remove_send_failure_handler(&self, id: HandlerId) -> bool {
        self.take(|handlers| handlers.send_failure.remove(id))
    }

    /// Removes a handler for full queues. False where it was not there, also for the id of another kind; otherwise
    /// as [`remove`](Self::remove).
    pub fn remove_queue_full_handler(&self, id: HandlerId) -> bool {
        self.take(|handlers| handlers.queue_full.remove(id))
    }

    /// Removes a handler for users who are away. False where it was not there, also for the id of another kind;
    /// otherwise as [`remove`](Self::remove).
    pub fn remove_user_offline_handler(&self, id: HandlerId) -> bool {
        self.take(|handlers| handlers.user_offline.remove(id))
    }

    /// Removes a handler for failed connections. False where it was not there, also for the id of another kind;
    /// otherwise as [`remove`](Self::remove).
    pub fn remove_connection_error_handler(&self, id: HandlerId) -> bool {
        self.take(|handlers| handlers.connection_error.remove(id))
    }

    /// Removes a handler for timeouts. False where it was not there, also for the id of another kind; otherwise as
    /// [`remove`](Self::remove).
    pub fn remove_timeout_handler(&self, id: HandlerId) -> bool {
        self.take(|handlers| handlers.timeout.remove(id))
    }

    /// Removes a handler for every failure. False where it was not there, also for the id of another kind; otherwise
    /// as [`remove`](Self::remove).
    pub fn remove_any_failure_handler(&self, id: HandlerId) -> bool {
        self.take(|handlers| handlers.any.remove(id))
    }

    /// Removes a watcher. False where it was not there, also for the id of a handler. A call that has begun may go on.
    pub fn remove_failure_watcher(&self, id: HandlerId) -> bool {
        self.take(|handlers| handlers.watchers.remove(id))
    }

    /// How many handlers a type has. A [`FailureKind`] names the type that is there for it;
    /// [`FailureKind::Other`] the general one.
    pub fn count(&self, handler_type: impl Into<HandlerType>) -> usize {
        self.current().count(handler_type.into())
    }

    pub(crate) fn current(&self) -> Arc<Handlers> {
        Arc::clone(&self.shared.handlers.read())
    }

    fn change(&self, add: impl FnOnce(&mut Handlers, HandlerId)) -> HandlerId {
        let id = HandlerId(self.shared.next_id.fetch_add(1, Ordering::Relaxed));
        let mut current = self.shared.handlers.write();
        add(Arc::make_mut(&mut current), id);
        id
    }

    fn take(&self, remove: impl FnOnce(&mut Handlers) -> bool) -> bool {
        let mut current = self.shared.handlers.write();
        let mut handlers = Handlers::clone(&current);
        let removed = remove(&mut handlers);
        if removed {
            *current = Arc::new(handlers);
        }
        removed
    }
}

/// Which of the six handler traits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each is the trait of its name")]
#[non_exhaustive]
#[repr(u8)]
pub enum HandlerType {
    SendFailure,
    QueueFull,
    UserOffline,
    ConnectionError,
    Timeout,
    AnyFailure,
}

impl HandlerType {
    /// Every type, in declaration order: `ALL[t as usize] == t`.
    pub const ALL: [Self; 6] =
        [Self::SendFailure, Self::QueueFull, Self::UserOffline, Self::ConnectionError, Self::Timeout, Self::AnyFailure];

    /// The name in metrics (`handler_type`).
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SendFailure => "send_failure",
            Self::QueueFull => "queue_full",
            Self::UserOffline => "user_offline",
            Self::ConnectionError => "connection_error",
            Self::Timeout => "timeout",
            Self::AnyFailure => "any_failure",
        }
    }
}

impl From<FailureKind> for HandlerType {
    fn from(kind: FailureKind) -> Self {
        match kind {
            FailureKind::QueueFull => Self::QueueFull,
            FailureKind::UserOffline => Self::UserOffline,
            FailureKind::ConnectionError => Self::ConnectionError,
            FailureKind::Timeout => Self::Timeout,
            FailureKind::Other => Self::SendFailure,
        }
    }
}

impl fmt::Display for HandlerType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Handlers {
    fn count(&self, handler_type: HandlerType) -> usize {
        match handler_type {
            HandlerType::SendFailure => self.send_failure.len(),
            HandlerType::QueueFull => self.queue_full.len(),
            HandlerType::UserOffline => self.user_offline.len(),
            HandlerType::ConnectionError => self.connection_error.len(),
            HandlerType::Timeout => self.timeout.len(),
            HandlerType::AnyFailure => self.any.len(),
        }
    }

    /// Which of the five types is called for a failure of this kind: its own, else the general one, else none.
    pub(crate) fn responsible(&self, kind: FailureKind) -> Option<HandlerType> {
        [kind.into(), HandlerType::SendFailure].into_iter().find(|&t| self.count(t) > 0)
    }

    /// Tells the watchers.
    pub(crate) fn watch(&self, reason: FailureReason, user_type: Option<UserType>, times: u64) {
        for watcher in self.watchers.iter() {
            let told = AssertUnwindSafe(|| watcher.on_failures(reason, user_type, times));
            if std::panic::catch_unwind(told).is_err() {
                tracing::error!("a watcher of failures panicked");
            }
        }
    }

    /// Whether anybody is called for a failure of this kind.
    pub(crate) fn is_handled(&self, kind: FailureKind) -> bool {
        self.count(HandlerType::AnyFailure) > 0 || self.responsible(kind).is_some()
    }
}

impl fmt::Debug for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(HandlerType::ALL.map(|t| (t, self.count(t)))).finish()
    }
}

/// Handlers of one kind, in the order in which they were added.
pub(crate) struct List<T: ?Sized>(Vec<(HandlerId, Arc<T>)>);

impl<T: ?Sized> List<T> {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(_, handler)| &**handler)
    }

    fn add(&mut self, id: HandlerId, handler: Arc<T>) {
        self.0.push((id, handler));
    }

    fn remove(&mut self, id: HandlerId) -> bool {
        let before = self.0.len();
        self.0.retain(|(known, _)| *known != id);
        self.0.len() < before
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

impl<T: ?Sized> Default for List<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: ?Sized> Clone for List<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}
