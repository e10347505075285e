//! Events on their way to the application, bounded in bytes.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::Event;

/// The sending end.
#[derive(Debug)]
pub(crate) struct EventSender {
    queue: mpsc::UnboundedSender<Queued>,
    room: Arc<Semaphore>,
    limit: u32,
}

/// The receiving end.
#[derive(Debug)]
pub(crate) struct EventReceiver {
    queue: mpsc::UnboundedReceiver<Queued>,
}

/// An event, and the room that it takes until the application has it.
#[derive(Debug)]
struct Queued {
    event: Event,
    _room: Option<OwnedSemaphorePermit>,
}

/// Room for one event.
#[derive(Debug)]
pub(crate) struct Room(OwnedSemaphorePermit);

/// A queue for events of `limit` bytes in all.
pub(crate) fn queue(limit: u32) -> (EventSender, EventReceiver) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(limit as usize));
    (EventSender { queue: sender, room, limit }, EventReceiver { queue: receiver })
}

impl EventSender {
    /// Waits until so many bytes have room. One event that is larger than everything takes everything.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the room is taken with the result or not at all.
    pub(crate) async fn room(&self, bytes: usize) -> Room {
        let bytes = u32::try_from(bytes.saturating_add(OVERHEAD)).unwrap_or(u32::MAX).min(self.limit);
        // The semaphore is never closed.
        let permit = Arc::clone(&self.room).acquire_many_owned(bytes).await;
        Room(permit.unwrap_or_else(|_| unreachable!("nobody closes the semaphore")))
    }

    /// Hands over an event. Where the application has dropped its end, the event goes nowhere.
    pub(crate) fn send(&self, event: Event, room: Room) {
        let _ = self.queue.send(Queued { event, _room: Some(room.0) });
    }

    /// Hands over the last event, which needs no room.
    pub(crate) fn send_last(&self, event: Event) {
        let _ = self.queue.send(Queued { event, _room: None });
    }
}

impl EventReceiver {
    /// # Cancel safety
    ///
    /// Cancel safe: an event is taken with the result or not at all.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        self.queue.recv().await.map(|queued| queued.event)
    }
}

/// What an event costs beyond its text, about.
const OVERHEAD: usize = 256;

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn event() -> Event {
        Event::KickOut { reason: String::new() }
    }

    #[tokio::test]
    async fn there_is_room_again_when_the_application_has_taken_an_event() {
        let (sender, mut receiver) = queue(1000);
        sender.send(event(), sender.room(500).await);
        assert!(sender.room(500).now_or_never().is_none());
        receiver.next().await.unwrap();
        sender.send(event(), sender.room(500).await);
    }

    #[tokio::test]
    async fn one_event_always_fits_into_an_empty_queue() {
        let (sender, mut receiver) = queue(1000);
        sender.send(event(), sender.room(usize::MAX).await);
        assert!(sender.room(0).now_or_never().is_none());
        sender.send_last(event());
        assert!(receiver.next().await.is_some() && receiver.next().await.is_some());
    }

    #[tokio::test]
    async fn who_wants_no_events_stops_nobody() {
        let (sender, receiver) = queue(1000);
        sender.send(event(), sender.room(900).await);
        drop(receiver);
        for _ in 0..10 {
            sender.send(event(), sender.room(900).await);
        }
    }
}
