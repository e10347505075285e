//! Requests that wait for their reply.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{sync::oneshot, time::Instant};
use tokio_tungstenite::tungstenite::Utf8Bytes;

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
    /// Whether it was written, on whatever connection.
    sent: bool,
    /// When it was written to the connection that stands.
    written: Option<Instant>,
    /// How often a connection ended before its reply.
    unanswered: u32,
    /// Kept where it can be sent again without being done twice.
    again: Option<Utf8Bytes>,
}

impl Waiter {
    fn new(reply: oneshot::Sender<Result<Reply, RequestError>>) -> Self {
        Self { reply, sent: false, written: None, unanswered: 0, again: None }
    }
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
        waiting.requests.insert(id, Waiter::new(sender));
        Ok(Ticket { pending: self, id, reply })
    }

    /// Whether somebody waits for this reply.
    pub(crate) fn is_open(&self, id: u64) -> bool {
        self.lock().requests.contains_key(&id)
    }

    /// Notes that the request is being written. `false` where nobody waits for it any more.
    ///
    /// With `again` it is not lost with its connection: [`connection_ended`](Self::connection_ended) gives it back.
    pub(crate) fn sending(&self, id: u64, again: Option<&Utf8Bytes>) -> bool {
        let mut waiting = self.lock();
        let Some(waiter) = waiting.requests.get_mut(&id) else {
            return false;
        };
        waiter.sent = true;
        waiter.written = Some(Instant::now());
        waiter.again = again.cloned();
        true
    }

    /// Whether the request was written, and since when a reply may come on this connection.
    pub(crate) fn progress(&self, id: u64) -> (bool, Option<Instant>) {
        // What is gone has its reply.
        self.lock().requests.get(&id).map_or((true, None), |waiter| (waiter.sent, waiter.written))
    }

    /// Hands over a reply. `false` where nobody waits for it.
    pub(crate) fn resolve(&self, id: u64, reply: Result<Reply, HubError>) -> bool {
        let Some(waiter) = self.lock().requests.remove(&id) else {
            return false;
        };
        let reply = reply.map_err(|error| match waiter.unanswered {
            0 => RequestError::Refused(error),
            _ => RequestError::RepetitionRefused(error),
        });
        waiter.reply.send(reply).is_ok()
    }

    /// The connection ended: what was written has no reply any more. Gives those that can be sent again, in order.
    pub(crate) fn connection_ended(&self) -> Vec<(u64, Utf8Bytes)> {
        let mut again = Vec::new();
        let mut waiting = self.lock();
        let lost: Vec<_> = waiting
            .requests
            .extract_if(|id, waiter| {
                if waiter.written.take().is_none() {
                    return false;
                }
                let Some(frame) = waiter.again.take() else {
                    return true;
                };
                waiter.unanswered += 1;
                again.push((*id, frame));
                false
            })
            .collect();
        drop(waiting);
        for (_, waiter) in lost {
            let _ = waiter.reply.send(Err(RequestError::Disconnected));
        }
        again.sort_unstable_by_key(|(id, _)| *id);
        again
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
        assert!(pending.sending(id, None));
        assert!(matches!(pending.progress(id), (true, Some(_))));
        drop(ticket);
        assert!(!pending.sending(id, None));
        assert!(pending.lock().requests.is_empty());
    }

    #[test]
    fn a_cut_ends_only_what_was_written() {
        let pending = Pending::default();
        let mut written = pending.open().unwrap();
        let mut waiting = pending.open().unwrap();
        pending.sending(written.id, None);
        assert!(pending.connection_ended().is_empty());
        assert!(matches!(written.reply.try_recv(), Ok(Err(RequestError::Disconnected))));
        assert!(waiting.reply.try_recv().is_err() && !pending.progress(waiting.id).0);
        pending.close();
        assert!(matches!(waiting.reply.try_recv(), Ok(Err(RequestError::Closed { sent: false }))));
        assert!(pending.open().is_err());
    }

    #[test]
    fn what_can_be_sent_again_is_given_back_in_order_until_it_is_answered() {
        let pending = Pending::default();
        let mut tickets: Vec<_> = (0..20).map(|_| pending.open().unwrap()).collect();
        let ids: Vec<_> = tickets.iter().map(|ticket| ticket.id).collect();
        for id in ids.iter().rev() {
            pending.sending(*id, Some(&"frame".into()));
        }
        let again: Vec<_> = pending.connection_ended().into_iter().map(|(id, _)| id).collect();
        assert_eq!(again, ids);
        // Not written since: another cut gives nothing back.
        assert!(pending.connection_ended().is_empty());
        assert_eq!(pending.progress(ids[0]), (true, None));
        let error = serde_json::from_str::<HubError>(r#"{"code":3003}"#).unwrap();
        pending.sending(ids[0], Some(&"frame".into()));
        assert!(pending.resolve(ids[0], Err(error)));
        let refused = tickets[0].reply.try_recv().unwrap().unwrap_err();
        assert!(matches!(refused, RequestError::RepetitionRefused(_)) && refused.may_have_been_processed());
        pending.close();
        assert!(matches!(tickets[1].reply.try_recv(), Ok(Err(RequestError::Closed { sent: true }))));
    }
}
