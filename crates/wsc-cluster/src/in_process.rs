//! The bus between nodes of one process.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::RwLock;

use crate::{Bus, BusError, Inbox, Interest, Message, Reach, Subject};

/// What the nodes of one process have in common. Clones are the same network.
#[derive(Clone, Debug, Default)]
pub struct InProcessNetwork {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    interests: RwLock<HashMap<Subject, Vec<Entry>>>,
    next_node: AtomicU64,
    next_entry: AtomicU64,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    node: u64,
    inbox: Inbox,
}

impl InProcessNetwork {
    /// A network without nodes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets a node join under a name that the others see as [`Message::from`].
    pub fn join(&self, name: &str) -> InProcessBus {
        InProcessBus {
            network: Arc::clone(&self.shared),
            node: self.shared.next_node.fetch_add(1, Ordering::Relaxed),
            name: name.into(),
            is_closed: AtomicBool::new(false),
        }
    }
}

/// One node's handle on an [`InProcessNetwork`]. When it is dropped, the node has left.
///
/// Nothing in it waits, so its futures are ready at once.
#[derive(Debug)]
pub struct InProcessBus {
    network: Arc<Shared>,
    node: u64,
    name: Arc<str>,
    is_closed: AtomicBool,
}

impl InProcessBus {
    /// A bus without other nodes, for a hub of one.
    pub fn alone() -> Self {
        InProcessNetwork::new().join("alone")
    }

    fn leave(&self) {
        // Inside the lock, so that no `attach` slips in behind.
        let mut interests = self.network.interests.write();
        self.is_closed.store(true, Ordering::Relaxed);
        interests.retain(|_, entries| {
            entries.retain(|entry| entry.node != self.node);
            !entries.is_empty()
        });
    }

    fn check_open(&self) -> Result<(), BusError> {
        if self.is_closed.load(Ordering::Relaxed) { Err(BusError::Closed) } else { Ok(()) }
    }
}

#[async_trait]
impl Bus for InProcessBus {
    async fn publish(&self, subject: &Subject, payload: Bytes) -> Result<Reach, BusError> {
        self.check_open()?;
        let mut reach = Reach::NONE;
        let interests = self.network.interests.read();
        let Some(entries) = interests.get(subject) else {
            return Ok(reach);
        };
        for entry in entries.iter().filter(|entry| entry.node != self.node) {
            let message = Message { subject: subject.clone(), from: Arc::clone(&self.name), payload: payload.clone() };
            if entry.inbox.offer(message) {
                reach.taken += 1;
            } else {
                reach.missed += 1;
            }
        }
        Ok(reach)
    }

    async fn attach(&self, subject: Subject, inbox: &Inbox) -> Result<Interest, BusError> {
        let id = self.network.next_entry.fetch_add(1, Ordering::Relaxed);
        let mut interests = self.network.interests.write();
        self.check_open()?;
        let entry = Entry { id, node: self.node, inbox: inbox.clone() };
        interests.entry(subject.clone()).or_default().push(entry);
        drop(interests);
        // Weak, so that interests which outlive the network do not keep it.
        let (network, ended) = (Arc::downgrade(&self.network), subject.clone());
        Ok(Interest::new(subject, move || {
            if let Some(network) = network.upgrade() {
                network.end(&ended, id);
            }
        }))
    }

    async fn close(&self) {
        self.leave();
    }
}

impl Drop for InProcessBus {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Shared {
    fn end(&self, subject: &Subject, id: u64) {
        let mut interests = self.interests.write();
        if let Some(entries) = interests.get_mut(subject) {
            entries.retain(|entry| entry.id != id);
            // Users and rooms come and go; an empty list must not stay behind for each of them.
            if entries.is_empty() {
                interests.remove(subject);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use wsc_protocol::Id;

    use super::*;
    use crate::inbox;

    #[tokio::test]
    async fn nothing_stays_behind_for_subjects_that_are_gone() {
        let network = InProcessNetwork::new();
        let (a, b) = (network.join("a"), network.join("b"));
        let (shared, _messages) = inbox(1);
        let mut interests = Vec::new();
        for n in 0..100 {
            let subject = Subject::User(Id::generated(n.to_string()));
            interests.push(a.attach(subject.clone(), &shared).await.unwrap());
            interests.push(b.attach(subject, &shared).await.unwrap());
        }
        assert_eq!(network.shared.interests.read().len(), 100);
        interests.truncate(100);
        assert_eq!(network.shared.interests.read().len(), 50);
        b.close().await;
        drop(a);
        assert!(network.shared.interests.read().is_empty());
        drop(interests);
        assert!(network.shared.interests.read().is_empty());
    }
}
