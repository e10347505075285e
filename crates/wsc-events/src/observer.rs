//! Who is told.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use serde::Serialize;
use wsc_protocol::Event;

/// An event and when it was published.
///
/// As JSON it is `{"timestamp":…,"type":"ack.received","data":{…}}`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Published {
    /// When, in Unix milliseconds.
    pub timestamp: u64,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

impl Published {
    /// An event that was published at this time, in Unix milliseconds.
    pub fn new(timestamp: u64, event: Event) -> Self {
        Self { timestamp, event }
    }
}

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

    /// Takes note of one event and of when it was published; the bus calls this one, and it calls
    /// [`on_event`](Self::on_event). Override it where the time matters: an event may have waited.
    ///
    /// # Cancel safety
    ///
    /// As [`on_event`](Self::on_event).
    async fn on_published(&self, published: &Published) {
        self.on_event(&published.event).await;
    }
}

#[async_trait]
impl<T: EventObserver + ?Sized> EventObserver for Arc<T> {
    async fn on_event(&self, event: &Event) {
        (**self).on_event(event).await;
    }

    async fn on_published(&self, published: &Published) {
        (**self).on_published(published).await;
    }
}

#[async_trait]
impl<T: EventObserver + ?Sized> EventObserver for Box<T> {
    async fn on_event(&self, event: &Event) {
        (**self).on_event(event).await;
    }

    async fn on_published(&self, published: &Published) {
        (**self).on_published(published).await;
    }
}

/// Erased once, where it is kept: what a subscriber's task calls. Errors are text for the log.
pub(crate) enum Observer {
    Async(Box<dyn EventObserver>),
    Sync(Box<SyncCallback>),
    Callback(Box<AsyncCallback>),
}

type SyncCallback = dyn FnMut(&Event) -> Result<(), String> + Send;
type AsyncCallback = dyn FnMut(Arc<Published>) -> BoxFuture<'static, Result<(), String>> + Send;

impl Observer {
    pub(crate) async fn call(&mut self, published: &Arc<Published>) -> Result<(), String> {
        match self {
            Self::Async(observer) => {
                observer.on_published(published).await;
                Ok(())
            }
            Self::Sync(observer) => observer(&published.event),
            Self::Callback(observer) => observer(Arc::clone(published)).await,
        }
    }
}
