//! A hub's end of webhooks, and a receiver that answers as the test tells it to.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use serde_json::Value;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use wsc_events::{
    EventBus, MemoryOutbox, OutboxChange, OutboxError, OutboxStore, Shelf, WebhookAnswer, WebhookClient, WebhookConfig,
    WebhookError, WebhookHooks, WebhookRequest, Webhooks,
};
use wsc_protocol::{Event, Id};

pub(crate) const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
pub(crate) const URL: &str = "https://example.com/hook";
pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// One hub after the other, on one store.
pub(crate) struct Site {
    pub(crate) bus: EventBus,
    pub(crate) webhooks: Webhooks,
    pub(crate) calls: Calls,
    pub(crate) store: Arc<Store>,
}

impl Site {
    pub(crate) async fn start(config: WebhookConfig) -> Self {
        Self::on(Arc::default(), Some(config), WebhookHooks::default()).await
    }

    pub(crate) async fn on(store: Arc<Store>, config: Option<WebhookConfig>, hooks: WebhookHooks) -> Self {
        let bus = EventBus::default();
        let (client, calls) = script();
        let kept: Arc<dyn OutboxStore> = Arc::<Store>::clone(&store);
        let webhooks = Webhooks::start("hub-1", config, kept, Arc::new(client), &bus, hooks).await.unwrap();
        Self { bus, webhooks, calls, store }
    }

    /// Another hub on the same store, after this one was shut down.
    pub(crate) async fn restart(self, config: WebhookConfig) -> Self {
        self.stop(Duration::ZERO).await;
        Self::on(self.store, Some(config), WebhookHooks::default()).await
    }

    pub(crate) async fn stop(&self, patience: Duration) {
        self.bus.shutdown().await;
        self.webhooks.shutdown(patience).await;
    }

    /// `user.online` of each of these.
    pub(crate) fn online(&self, users: impl IntoIterator<Item = usize>) {
        for user in users {
            self.bus.publish(Event::UserOnline { user_id: Id::new(&format!("u{user}")).unwrap() });
        }
    }

    /// Publishes these and waits until they are in the outbox, each in a batch of its own.
    pub(crate) async fn keep(&self, users: impl IntoIterator<Item = usize>) {
        for user in users {
            let before = self.store.commits.load(SeqCst);
            self.online([user]);
            until(|| self.store.commits.load(SeqCst) > before).await;
        }
    }
}

/// A webhook whose batches hold one event each and do not wait for more.
pub(crate) fn single() -> WebhookConfig {
    let mut config = WebhookConfig::new(URL);
    config.signing_secrets = vec![SECRET.into()];
    config.batch_max = 1;
    config.batch_interval = Duration::ZERO;
    config
}

/// Waits until something holds that other tasks bring about. With a paused clock this takes no time.
pub(crate) async fn until(holds: impl Fn() -> bool) {
    for _ in 0..100_000 {
        if holds() {
            return;
        }
        // The paused clock goes on only while everybody waits: so the others get their turn first.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("it never came to hold");
}

/// One request, to be answered.
pub(crate) struct Call {
    pub(crate) request: WebhookRequest,
    pub(crate) at: Instant,
    answer: oneshot::Sender<Result<WebhookAnswer, WebhookError>>,
}

impl Call {
    pub(crate) fn answer(self, status: u16) {
        self.answer.send(Ok(WebhookAnswer::new(status))).ok();
    }

    pub(crate) fn retry_after(self, status: u16, retry_after: &str) {
        let mut answer = WebhookAnswer::new(status);
        answer.retry_after = Some(retry_after.to_owned());
        self.answer.send(Ok(answer)).ok();
    }

    pub(crate) fn fail(self, error: WebhookError) {
        self.answer.send(Err(error)).ok();
    }

    pub(crate) fn body(&self) -> Value {
        serde_json::from_slice(&self.request.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.request.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn id(&self) -> String {
        self.header("webhook-id").to_owned()
    }

    /// The numbers of the users that it tells about.
    pub(crate) fn users(&self) -> Vec<usize> {
        let body = self.body();
        let events = body["events"].as_array().unwrap();
        events.iter().map(|event| event["data"]["user_id"].as_str().unwrap()[1..].parse().unwrap()).collect()
    }
}

pub(crate) struct Calls(mpsc::UnboundedReceiver<Call>);

impl Calls {
    pub(crate) async fn next(&mut self) -> Call {
        self.0.recv().await.unwrap()
    }

    /// The next request, if it comes within this time.
    pub(crate) async fn within(&mut self, time: Duration) -> Option<Call> {
        tokio::time::timeout(time, self.0.recv()).await.ok().flatten()
    }
}

pub(crate) struct Scripted {
    calls: mpsc::UnboundedSender<Call>,
    in_flight: AtomicUsize,
}

pub(crate) fn script() -> (Scripted, Calls) {
    let (calls, receiver) = mpsc::unbounded_channel();
    (Scripted { calls, in_flight: AtomicUsize::new(0) }, Calls(receiver))
}

#[async_trait]
impl WebhookClient for Scripted {
    async fn post(&self, request: WebhookRequest) -> Result<WebhookAnswer, WebhookError> {
        struct Leave<'a>(&'a AtomicUsize);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, SeqCst);
            }
        }
        assert_eq!(self.in_flight.fetch_add(1, SeqCst), 0, "one request at a time");
        let _leave = Leave(&self.in_flight);
        let (answer, answered) = oneshot::channel();
        let call = Call { request, at: Instant::now(), answer };
        self.calls.send(call).map_err(|_| WebhookError::Connect("nobody listens".to_owned()))?;
        // A call that is dropped without an answer breaks the connection.
        answered.await.unwrap_or_else(|_| Err(WebhookError::Broken("the connection broke".to_owned())))
    }
}

/// A store in memory that can fail, and that counts.
#[derive(Default)]
pub(crate) struct Store {
    memory: MemoryOutbox,
    pub(crate) is_down: AtomicBool,
    pub(crate) commits: AtomicUsize,
    pub(crate) failures: AtomicUsize,
    pub(crate) longest_page: AtomicUsize,
}

impl Store {
    fn check(&self) -> Result<(), OutboxError> {
        if self.is_down.load(SeqCst) {
            self.failures.fetch_add(1, SeqCst);
            return Err(OutboxError::new("the disk is full"));
        }
        Ok(())
    }

    pub(crate) async fn len(&self, shelf: Shelf) -> usize {
        self.memory.scan(shelf, None, usize::MAX).await.unwrap().len()
    }
}

#[async_trait]
impl OutboxStore for Store {
    async fn commit(&self, changes: Vec<OutboxChange>) -> Result<(), OutboxError> {
        self.check()?;
        // As a real one: others run meanwhile.
        tokio::task::yield_now().await;
        self.memory.commit(changes).await?;
        self.commits.fetch_add(1, SeqCst);
        Ok(())
    }

    async fn scan(&self, shelf: Shelf, after: Option<u64>, limit: usize) -> Result<Vec<(u64, Vec<u8>)>, OutboxError> {
        self.check()?;
        self.longest_page.fetch_max(limit, SeqCst);
        tokio::task::yield_now().await;
        self.memory.scan(shelf, after, limit).await
    }
}
