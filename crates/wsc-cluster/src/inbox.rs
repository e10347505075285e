//! Where a node's messages from the bus wait for it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::mpsc;

use crate::Message;

/// Makes a bounded inbox for at most `capacity` waiting messages (at least 1), of one subject or of many.
///
/// A node with thousands of users gives all their subjects one inbox, or a few, so that a subject costs it no queue
/// and no task.
pub fn inbox(capacity: usize) -> (Inbox, InboxReceiver) {
    let (sender, receiver) = mpsc::channel(capacity.max(1));
    let missed = Arc::default();
    (Inbox { sender, missed: Arc::clone(&missed) }, InboxReceiver { receiver, missed })
}

/// The bus's end of an inbox: drivers put messages in. Clones fill the same one.
#[derive(Clone, Debug)]
pub struct Inbox {
    sender: mpsc::Sender<Message>,
    missed: Arc<AtomicU64>,
}

impl Inbox {
    /// Puts a message in. False where it does not fit, which is counted, or where nobody reads any more. Never waits.
    pub fn offer(&self, message: Message) -> bool {
        let offered = self.sender.try_send(message);
        if let Err(mpsc::error::TrySendError::Full(_)) = offered {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
        offered.is_ok()
    }
}

/// The node's end of an inbox.
#[derive(Debug)]
pub struct InboxReceiver {
    receiver: mpsc::Receiver<Message>,
    missed: Arc<AtomicU64>,
}

impl InboxReceiver {
    /// The next message; `None` once nothing can come any more: every interest has ended and every [`Inbox`] is gone.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost where the future is dropped.
    pub async fn recv(&mut self) -> Option<Message> {
        self.receiver.recv().await
    }

    /// The next message, where one waits.
    pub fn try_recv(&mut self) -> Option<Message> {
        self.receiver.try_recv().ok()
    }

    /// How many messages did not fit so far.
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }
}
