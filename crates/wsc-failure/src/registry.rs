//! Which handlers there are.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::RwLock;
use wsc_protocol::FailureKind;

use crate::{ConnectionErrorHandler, QueueFullHandler, SendFailureHandler, TimeoutHandler, UserOfflineHandler};

/// Names one added handler; ids are not reused.
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

    /// Removes a handler of any kind. False where it was not, or no longer, there.
    ///
    /// Failures that a worker takes up after this has returned do not reach it; one that was taken up before may.
    pub fn remove(&self, id: HandlerId) -> bool {
        let mut current = self.shared.handlers.write();
        let mut handlers = Handlers::clone(&current);
        let removed = handlers.send_failure.remove(id)
            || handlers.queue_full.remove(id)
            || handlers.user_offline.remove(id)
            || handlers.connection_error.remove(id)
            || handlers.timeout.remove(id);
        if removed {
            *current = Arc::new(handlers);
        }
        removed
    }

    /// How many handlers a kind has; [`FailureKind::Other`] counts the general ones.
    pub fn count(&self, kind: FailureKind) -> usize {
        self.current().count(kind)
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
}

impl Handlers {
    fn count(&self, kind: FailureKind) -> usize {
        match kind {
            FailureKind::QueueFull => self.queue_full.len(),
            FailureKind::UserOffline => self.user_offline.len(),
            FailureKind::ConnectionError => self.connection_error.len(),
            FailureKind::Timeout => self.timeout.len(),
            FailureKind::Other => self.send_failure.len(),
        }
    }

    /// Which handlers are called for a failure of this kind: its own, else the general ones, else none.
    pub(crate) fn responsible(&self, kind: FailureKind) -> Option<FailureKind> {
        [kind, FailureKind::Other].into_iter().find(|&k| self.count(k) > 0)
    }
}

impl fmt::Debug for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(FailureKind::ALL.map(|kind| (kind, self.count(kind)))).finish()
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
