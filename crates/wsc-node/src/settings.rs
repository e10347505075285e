//! The one place where the user's settings become the layers' configurations.

use std::time::Instant;

use wsc_config::{QueuePolicy as Policy, RetryBudgetSettings, Settings, StorageKind};
use wsc_delivery::{RetryBudget, RetryConfig, RetryPolicy, RetryRules, mailbox::MailboxConfig};
use wsc_events::{EventBusConfig, EventRingConfig};
use wsc_failure::{AlertConfig, FailureRouterConfig};
use wsc_store::InboxLimits;
use wsc_transport::{QueuePolicy, TransportConfig};

/// `has_inbox`: what finds a full queue has a place to go.
pub(crate) fn transport(settings: &Settings, has_inbox: bool) -> TransportConfig {
    let mut config = TransportConfig::default();
    config.max_message_size = settings.max_message_size.as_usize();
    config.handshake_timeout = settings.handshake_timeout;
    config.pending_handshakes = usize::try_from(settings.limits.pending_handshakes).unwrap_or(usize::MAX);
    config.write_timeout = settings.write_timeout;
    config.ping_interval = settings.ping_interval;
    config.pong_timeout = settings.pong_timeout;
    config.queue_max_bytes = settings.queue.max_bytes.as_usize();
    config.queue_total_bytes = settings.queue.total_bytes.as_usize();
    config.queue_policy = match settings.queue.policy {
        Policy::DropOldest => QueuePolicy::DropOldest,
        Policy::DropNewest => QueuePolicy::DropNewest,
        Policy::Spill if has_inbox && settings.failure_handlers.fallback_storage != StorageKind::None => {
            QueuePolicy::Spill
        }
        Policy::Spill => QueuePolicy::DropOldest,
        _ => QueuePolicy::Disconnect,
    };
    config.fanout_max_bytes = settings.rooms.max_pending_bytes.as_usize();
    config.compression_threshold = settings.compression.enabled.then(|| settings.compression.threshold.as_usize());
    config
}

pub(crate) fn failures(settings: &Settings) -> FailureRouterConfig {
    let mut config = FailureRouterConfig::default();
    config.workers = settings.failure_handlers.workers as usize;
    config.queue = usize::try_from(settings.failure_handlers.queue).unwrap_or(usize::MAX);
    config.timeout = settings.failure_handlers.timeout;
    config
}

/// What raises alerts; `None` where nothing does.
pub(crate) fn alerts(settings: &Settings) -> Option<AlertConfig> {
    let failure_handlers = &settings.failure_handlers;
    failure_handlers.enable_alert.then(|| {
        let mut config = AlertConfig::default();
        config.threshold = failure_handlers.alert_threshold;
        config.window = failure_handlers.alert_window;
        config
    })
}

/// The retry policy with its budget, which starts to count now.
pub(crate) fn retry_policy(settings: &Settings) -> Result<(RetryPolicy, RetryBudget), String> {
    let mut config = RetryConfig::default();
    config.max_retries = settings.max_retries;
    config.base_delay = settings.base_delay;
    config.max_delay = settings.max_delay;
    config.backoff_factor = settings.backoff_factor;
    config.jitter = settings.jitter;
    config.rules =
        RetryRules::parse(&settings.retryable_errors, &settings.non_retryable_errors).map_err(|e| e.to_string())?;
    let policy = RetryPolicy::new(config).map_err(|e| e.to_string())?;
    let RetryBudgetSettings { ratio, min_per_second, .. } = settings.retry_budget;
    let budget = RetryBudget::new(ratio, min_per_second.into(), Instant::now()).map_err(|e| e.to_string())?;
    Ok((policy, budget))
}

/// How mailboxes behave.
pub(crate) fn mailbox(settings: &Settings) -> MailboxConfig {
    let mut config = MailboxConfig::default();
    config.ack_timeout = settings.ack_timeout;
    config.ack_max_retries = settings.ack_max_retries;
    config.ack_retry_interval = settings.ack_retry_interval;
    config.enable_offline_ack = settings.enable_offline_ack;
    config.window_messages = settings.inbox.window_messages as usize;
    // A replay that filled the connection's queue would have to stop until `inbox.retry_interval` is over.
    let queue_share = settings.queue.max_bytes.as_u64() / 4;
    config.window_bytes = settings.inbox.window_bytes.as_u64().min(queue_share).max(1);
    config.retry_interval = settings.inbox.retry_interval;
    config.held_bytes = settings.queue.max_bytes.as_usize();
    config
}

/// How much inboxes hold.
pub fn inbox_limits(settings: &Settings) -> InboxLimits {
    let mut limits = InboxLimits::default();
    limits.user_messages = settings.storage.inbox_max_messages;
    limits.user_bytes = settings.storage.inbox_max_bytes.as_u64();
    limits.total_bytes = settings.storage.max_bytes.as_u64();
    limits.notes = settings.idempotency.max_keys;
    limits
}

pub(crate) fn events(_settings: &Settings) -> EventBusConfig {
    EventBusConfig::default()
}

pub(crate) fn ring(settings: &Settings) -> EventRingConfig {
    let mut config = EventRingConfig::default();
    config.entries = usize::try_from(settings.debug.events).unwrap_or(usize::MAX);
    config
}
