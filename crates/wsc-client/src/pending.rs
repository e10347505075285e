//! Requests that wait for their reply.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::oneshot;

use crate::{HubError, RequestError, reply::Reply};

/// The requests of one client that wait for a reply, by their `message_id`.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    last_id: AtomicU64,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    requests: HashMap<u64, Waiter>,
    closed: bool,
}

#[derive(Debug)]
struct Waiter {
    reply: oneshot::Sender<Result<Reply, RequestError>>,
    sent: bool,
}

/// A request that waits; forgotten when dropped.
#[derive(Debug)]
pub(crate) struct Ticket<'p> {
    pending: &'p Pending,
    pub(crate) id: u64,
    pub(crate) reply: oneshot::Receiver<Result<Reply, RequestError>>,
}

impl Pending {
    /// An id that no request of this client had.
    pub(crate) fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Waits for the reply to a new request.
    ///
    /// # Errors
    ///
    /// After [`close`](Self::close).
    pub(crate) fn open(&self) -> Result<Ticket<'_>, RequestError> {
        let id = self.next_id();
        let (sender, reply) = oneshot::channel();
        let mut waiting = self.lock();
        if waiting.closed {
            return Err(RequestError::Closed { sent: false });
        }
        waiting.requests.insert(id, Waiter { reply: sender, sent: false });
        Ok(Ticket { pending: self, id, reply })
    }

    /// Whether somebody waits for this reply.
    pub(crate) fn is_open(&self, id: u64) -> bool {
        self.lock().requests.contains_key(&id)
    }

    /// Notes that the request is being written. `false` where nobody waits for it any more.
    pub(crate) fn sending(&self, id: u64) -> bool {
        self.lock().requests.get_mut(&id).map(|waiter| waiter.sent = true).is_some()
    }

    /// Hands over a reply. `false` where nobody waits for it.
    pub(crate) fn resolve(&self, id: u64, reply: Result<Reply, HubError>) -> bool {
        let waiter = self.lock().requests.remove(&id);
        waiter.is_some_and(|waiter| waiter.reply.send(reply.map_err(RequestError::Refused)).is_ok())
    }

    /// The connection ended: what was written has no reply any more.
    pub(crate) fn connection_ended(&self) {
        let lost: Vec<_> = self.lock().requests.extract_if(|_, waiter| waiter.sent).collect();
        for (_, waiter) in lost {
            let _ = waiter.reply.send(Err(RequestError::Disconnected));
        }
    }

    /// The client is closed: nothing has a reply any more, now or later.
    pub(crate) fn close(&self) {
        let mut waiting = self.lock();
        waiting.closed = true;
        let lost = std::mem::take(&mut waiting.requests);
        drop(waiting);
        for waiter in lost.into_values() {
            let _ = waiter.reply.send(Err(RequestError::Closed { sent: waiter.sent }));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics while it holds the lock, and a half-done change cannot be.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket<'_> {
    /// Whether the request was written.
    pub(crate) fn sent(&self) -> bool {
        self.pending.lock().requests.get(&self.id).is_none_or(|waiter| waiter.sent)
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.pending.lock().requests.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gave_up_is_forgotten() {
        let pending = Pending::default();
        let ticket = pending.open().unwrap();
        let id = ticket.id;
        assert!(pending.sending(id));
        assert!(ticket.sent());
        drop(ticket);
        assert!(!pending.sending(id));
        assert!(pending.lock().requests.is_empty());
    }

    #[test]
    fn a_cut_ends_only_what_was_written() {
        let pending = Pending::default();
        let mut written = pending.open().unwrap();
        let mut waiting = pending.open().unwrap();
        pending.sending(written.id);
        pending.connection_ended();
        assert!(matches!(written.reply.try_recv(), Ok(Err(RequestError::Disconnected))));
        assert!(waiting.reply.try_recv().is_err() && !waiting.sent());
        pending.close();
        assert!(matches!(waiting.reply.try_recv(), Ok(Err(RequestError::Closed { sent: false }))));
        assert!(pending.open().is_err());
    }
}
