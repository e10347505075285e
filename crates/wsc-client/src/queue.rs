//! Events on their way to the application, bounded in bytes.

use std::{collections::VecDeque, future::pending, sync::Arc};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::Event;

/// The sending end.
#[derive(Debug)]
pub(crate) struct EventSender {
    queue: mpsc::UnboundedSender<Queued>,
    room: Arc<Semaphore>,
    limit: u32,
    /// Events for which there is no room yet, with the room that they need, in order.
    waiting: VecDeque<(Event, u32)>,
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

/// A queue for events of `limit` bytes in all.
pub(crate) fn queue(limit: u32) -> (EventSender, EventReceiver) {
    let (queue, receiver) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(limit as usize));
    (EventSender { queue, room, limit, waiting: VecDeque::new() }, EventReceiver { queue: receiver })
}

impl EventSender {
    /// Hands over an event of so many bytes, or keeps it until there is room. Who gets more than a handful of events
    /// from elsewhere stops that while [`is_waiting`](Self::is_waiting).
    ///
    /// Where the application has dropped its end, the event goes nowhere.
    pub(crate) fn send(&mut self, event: Event, bytes: usize) {
        if matches!(event, Event::Disconnected { .. }) {
            self.forget_what_nobody_saw();
        }
        // One event that is larger than everything takes everything.
        let room = u32::try_from(bytes.saturating_add(OVERHEAD)).unwrap_or(u32::MAX).min(self.limit);
        self.waiting.push_back((event, room));
        while let Some((_, room)) = self.waiting.front()
            && let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(*room)
        {
            self.hand_over(room);
        }
    }

    /// A client that comes and goes while its application sleeps must not fill the memory: of attempts and
    /// connections that told nothing in between only the last is told.
    fn forget_what_nobody_saw(&mut self) {
        let told =
            self.waiting.iter().rposition(|(event, _)| !is_about_the_connection(event)).map_or(0, |last| last + 1);
        if let Some(first) =
            self.waiting.iter().skip(told).position(|(event, _)| matches!(event, Event::Disconnected { .. }))
        {
            self.waiting.truncate(told + first);
        }
    }

    /// Whether events wait for room.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether so much waits that nothing more may come, whatever the reason.
    pub(crate) fn is_overfull(&self) -> bool {
        let waiting: u64 = self.waiting.iter().map(|(_, room)| u64::from(*room)).sum();
        waiting > MAX_WAITING
    }

    /// Waits until one of the events that wait has been handed over; for ever where none waits.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: an event is handed over with the result or waits on.
    pub(crate) async fn handed_over(&mut self) {
        let Some((_, room)) = self.waiting.front() else {
            return pending().await;
        };
        match Arc::clone(&self.room).acquire_many_owned(*room).await {
            Ok(room) => self.hand_over(room),
            Err(_) => unreachable!("nobody closes the semaphore"),
        }
    }

    fn hand_over(&mut self, room: OwnedSemaphorePermit) {
        if let Some((event, _)) = self.waiting.pop_front() {
            let _ = self.queue.send(Queued { event, _room: Some(room) });
        }
    }

    /// Hands over what waits and the last event, which need no room.
    pub(crate) fn send_last(&mut self, last: Event) {
        for event in self.waiting.drain(..).map(|(event, _)| event).chain([last]) {
            let _ = self.queue.send(Queued { event, _room: None });
        }
    }
}

fn is_about_the_connection(event: &Event) -> bool {
    matches!(event, Event::Connected(_) | Event::Disconnected { .. })
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

/// Bytes that wait for room at most: what the kernel may hold of a connection that is broken already.
const MAX_WAITING: u64 = 16 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;
    use crate::Cause;

    fn event() -> Event {
        Event::KickOut { reason: String::new() }
    }

    fn disconnected(failures: u32) -> Event {
        Event::Disconnected { cause: Cause::Timeout, retry_in: Duration::ZERO, failures }
    }

    #[tokio::test]
    async fn there_is_room_again_when_the_application_has_taken_an_event() {
        let (mut sender, mut receiver) = queue(1000);
        sender.send(event(), 500);
        assert!(!sender.is_waiting());
        sender.send(event(), 500);
        assert!(sender.is_waiting() && sender.handed_over().now_or_never().is_none());
        receiver.next().await.unwrap();
        sender.handed_over().await;
        assert!(!sender.is_waiting() && receiver.next().await.is_some());
    }

    #[tokio::test]
    async fn one_event_always_fits_into_an_empty_queue() {
        let (mut sender, mut receiver) = queue(1000);
        sender.send(event(), usize::MAX);
        assert!(!sender.is_waiting());
        sender.send(event(), 0);
        assert!(sender.is_waiting());
        sender.send_last(event());
        for _ in 0..3 {
            receiver.next().await.unwrap();
        }
        assert!(receiver.next().now_or_never().is_none());
    }

    #[tokio::test]
    async fn who_wants_no_events_stops_nobody() {
        let (mut sender, receiver) = queue(1000);
        sender.send(event(), 900);
        drop(receiver);
        sender.send(event(), 900);
        for _ in 0..10 {
            sender.send(event(), 900);
        }
        while sender.is_waiting() {
            sender.handed_over().now_or_never().unwrap();
        }
    }

    #[tokio::test]
    async fn coming_and_going_while_nobody_listens_is_told_once() {
        let (mut sender, mut receiver) = queue(1);
        sender.send(event(), 0);
        sender.send(event(), 0);
        for failures in 1..1000 {
            sender.send(disconnected(failures), 0);
        }
        assert_eq!(sender.waiting.len(), 2);
        sender.send_last(event());
        receiver.next().await.unwrap();
        receiver.next().await.unwrap();
        assert!(matches!(receiver.next().await, Some(Event::Disconnected { failures: 999, .. })));
    }
}
