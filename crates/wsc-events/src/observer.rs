//! Who is told.

use std::sync::Arc;

use async_trait::async_trait;
use wsc_protocol::Event;

/// Watches events. It runs on a task of its own, one event after the other, never on the publisher's.
#[async_trait]
pub trait EventObserver: Send + Sync + 'static {
    /// Takes note of one event.
    ///
    /// While it runs, later events wait in the observer's bounded queue. A panic is caught and counted, and the next
    /// event is delivered. It must not block its thread: long work awaits, or goes to a thread of its own.
    ///
    /// # Cancel safety
    ///
    /// The future is dropped where [`shutdown`](crate::EventBus::shutdown) has waited long enough.
    async fn on_event(&self, event: &Event);
}

#[async_trait]
impl<T: EventObserver + ?Sized> EventObserver for Arc<T> {
    async fn on_event(&self, event: &Event) {
        (**self).on_event(event).await;
    }
}

#[async_trait]
impl<T: EventObserver + ?Sized> EventObserver for Box<T> {
    async fn on_event(&self, event: &Event) {
        (**self).on_event(event).await;
    }
}

/// Erased once, where it is kept: what a subscriber's task calls.
pub(crate) enum Observer {
    Async(Box<dyn EventObserver>),
    Sync(Box<dyn FnMut(&Event) + Send>),
}

impl Observer {
    pub(crate) async fn call(&mut self, event: &Event) {
        match self {
            Self::Async(observer) => observer.on_event(event).await,
            Self::Sync(observer) => observer(event),
        }
    }
}
