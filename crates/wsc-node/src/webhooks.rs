//! Webhooks: what the settings ask for, and an outbox in the hub's own store.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use async_trait::async_trait;
use bytes::Bytes;
use secrecy::{ExposeSecret, SecretString};
use wsc_config::{Secret, Settings};
use wsc_events::{OutboxChange, OutboxError, OutboxStore, Shelf, WebhookConfig, Webhooks};
use wsc_store::{Record, RecordChange, RecordStore, StoreError};

/// What posts events; nothing does where the program brought no client.
pub(crate) struct WebhookSink(pub(crate) Option<Webhooks>);

impl WebhookSink {
    /// Whether these settings would work.
    pub(crate) fn check(&self, settings: &Settings) -> Result<(), String> {
        let Some(config) = config(settings)? else { return Ok(()) };
        if self.0.is_none() {
            return Err(NO_CLIENT.to_owned());
        }
        Webhooks::check(&config).map_err(|e| format!("callbacks: {e}"))
    }

    /// From now on events are posted as these settings ask, which were [checked](Self::check).
    pub(crate) fn reconfigure(&self, settings: &Settings) {
        if let Some(webhooks) = &self.0 {
            webhooks.reconfigure(config(settings).ok().flatten());
        }
    }
}

/// Where and how events are posted; `None` where they are not.
///
/// # Errors
///
/// The settings name an event that does not exist.
pub(crate) fn config(settings: &Settings) -> Result<Option<WebhookConfig>, String> {
    let callbacks = &settings.callbacks;
    if !callbacks.enable_webhooks {
        return Ok(None);
    }
    let text = |secret: &Secret| SecretString::from(secret.expose_secret());
    let mut config = WebhookConfig::new(&callbacks.webhook_url);
    config.filter = WebhookConfig::filter_of(&callbacks.event_filters).map_err(|e| e.to_string())?;
    config.timeout = callbacks.webhook_timeout;
    config.retries = callbacks.webhook_retries;
    config.headers = callbacks.headers.iter().map(|(name, value)| (name.clone(), text(value))).collect();
    config.signing_secrets = callbacks.signing_secrets.iter().map(text).collect();
    config.allow_private_addresses = callbacks.allow_private_addresses;
    config.batch_max = callbacks.batch_max as usize;
    config.batch_interval = callbacks.batch_interval;
    Ok(Some(config))
}

/// Why webhooks cannot be switched on.
pub(crate) const NO_CLIENT: &str =
    "callbacks.enable_webhooks: this program has no client for webhooks (feature `webhook` of wsc-hub)";

/// The store of small things, and whether it took what it was given last.
pub(crate) struct WatchedRecords {
    store: Arc<dyn RecordStore>,
    is_failing: AtomicBool,
}

impl WatchedRecords {
    pub(crate) fn new(store: Arc<dyn RecordStore>) -> Self {
        Self { store, is_failing: AtomicBool::new(false) }
    }

    /// Whether it takes what it is given, as far as is known.
    pub(crate) fn is_healthy(&self) -> bool {
        !self.is_failing.load(Relaxed)
    }
}

#[async_trait]
impl RecordStore for WatchedRecords {
    async fn commit(&self, changes: Vec<RecordChange>) -> Result<(), StoreError> {
        let committed = self.store.commit(changes).await;
        self.is_failing.store(committed.is_err(), Relaxed);
        committed
    }

    async fn scan(&self, table: &str, after: Option<&[u8]>, limit: usize) -> Result<Vec<Record>, StoreError> {
        self.store.scan(table, after, limit).await
    }

    async fn get(&self, table: &str, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.store.get(table, key).await
    }

    async fn close(&self) {
        self.store.close().await;
    }
}

/// The outbox, in the hub's own store.
pub(crate) struct RecordOutbox(pub(crate) Arc<WatchedRecords>);

#[async_trait]
impl OutboxStore for RecordOutbox {
    async fn commit(&self, changes: Vec<OutboxChange>) -> Result<(), OutboxError> {
        let changes = changes.into_iter().map(|OutboxChange { shelf, key, value }| match value {
            Some(value) => RecordChange::put(table(shelf), key.to_be_bytes(), value),
            None => RecordChange::remove(table(shelf), key.to_be_bytes()),
        });
        self.0.commit(changes.collect()).await.map_err(OutboxError::new)
    }

    async fn scan(&self, shelf: Shelf, after: Option<u64>, limit: usize) -> Result<Vec<(u64, Vec<u8>)>, OutboxError> {
        let after = after.map(u64::to_be_bytes);
        let records = self.0.scan(table(shelf), after.as_ref().map(|key| &key[..]), limit).await;
        let records = records.map_err(OutboxError::new)?;
        // A key of another length is none of ours.
        let entry = |record: Record| Some((u64::from_be_bytes((*record.key).try_into().ok()?), record.value.into()));
        Ok(records.into_iter().filter_map(entry).collect())
    }
}

fn table(shelf: Shelf) -> &'static str {
    match shelf {
        Shelf::Waiting => "webhooks",
        Shelf::Dead => "webhooks_dead",
    }
}
