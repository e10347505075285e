//! One log line for each failure.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use wsc_protocol::{ClientId, FailureKind, FailureReason, HubMessage, Id};

use crate::{
    AnyFailureHandler, ConnectionErrorHandler, FailureEvent, FailureHandlerRegistry, HandlerId, QueueFullHandler,
    QueueType, SendFailureHandler, TimeoutHandler, TimeoutType, UserOfflineHandler,
};

/// Writes every failure to the log, at level `warn`. Payloads are never logged.
///
/// The fields are `type`, `message_id`, `user_id`, `error`, `timestamp` (when it failed, Unix milliseconds) and
/// `retry_count`; beside them `queue_type`, `client_id` and `duration_ms`, where they mean something. As a handler of one kind
/// it is not told when a message failed and how often it was tried again, so these two fields are missing then.
///
/// A user who is away is no fault of anybody's and is logged at level `debug`.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoggingHandler;

impl LoggingHandler {
    /// Adds it for every failure: each is logged once, and which other handlers are called stays as it is.
    pub fn add_to(registry: &FailureHandlerRegistry) -> HandlerId {
        registry.add_any_failure_handler(Self)
    }
}

#[async_trait]
impl AnyFailureHandler for LoggingHandler {
    async fn handle_failure(&self, failure: &FailureEvent) {
        let reason = failure.reason;
        let line = Line {
            message: &failure.message,
            recipient: &failure.recipient,
            error: &failure.error,
            timestamp: Some(failure.timestamp),
            retry_count: Some(failure.retries),
        };
        match (reason.kind(), QueueType::of(reason), TimeoutType::of(reason)) {
            (FailureKind::QueueFull, Some(queue), _) => line.queue_full(queue),
            (FailureKind::Timeout, _, Some(timeout)) => line.timeout(timeout, failure.duration),
            (FailureKind::UserOffline, ..) => line.user_offline(),
            (FailureKind::ConnectionError, ..) => line.connection_error(failure.client_id.as_ref()),
            _ => line.send_failure(reason),
        }
    }
}

#[async_trait]
impl SendFailureHandler for LoggingHandler {
    async fn handle_send_failure(&self, message: &Arc<HubMessage>, recipient: &Id, reason: FailureReason, error: &str) {
        Line::new(message, recipient, error).send_failure(reason);
    }
}

#[async_trait]
impl QueueFullHandler for LoggingHandler {
    async fn handle_queue_full(&self, message: &Arc<HubMessage>, recipient: &Id, queue_type: QueueType, error: &str) {
        Line::new(message, recipient, error).queue_full(queue_type);
    }
}

#[async_trait]
impl UserOfflineHandler for LoggingHandler {
    async fn handle_user_offline(&self, message: &Arc<HubMessage>, user_id: &Id, error: &str) {
        Line::new(message, user_id, error).user_offline();
    }
}

#[async_trait]
impl ConnectionErrorHandler for LoggingHandler {
    async fn handle_connection_error(
        &self,
        message: &Arc<HubMessage>,
        recipient: &Id,
        client_id: Option<&ClientId>,
        error: &str,
    ) {
        Line::new(message, recipient, error).connection_error(client_id);
    }
}

#[async_trait]
impl TimeoutHandler for LoggingHandler {
    async fn handle_timeout(
        &self,
        message: &Arc<HubMessage>,
        recipient: &Id,
        timeout_type: TimeoutType,
        duration: Duration,
        error: &str,
    ) {
        Line::new(message, recipient, error).timeout(timeout_type, duration);
    }
}

/// What every line says.
struct Line<'a> {
    message: &'a HubMessage,
    recipient: &'a Id,
    error: &'a str,
    timestamp: Option<u64>,
    retry_count: Option<u32>,
}

/// Writes one line with the fields that all of them have. The names of fields and the level must be known when this is compiled,
/// so it cannot be a function.
macro_rules! log {
    ($level:ident, $line:expr, $type:expr, $text:literal $(, $name:ident = $value:expr)*) => {{
        let Line { message, recipient, error, timestamp, retry_count } = $line;
        tracing::$level!(
            r#type = $type, message_id = %message.id, user_id = %recipient, error, timestamp, retry_count,
            $($name = $value,)* $text
        );
    }};
}

impl<'a> Line<'a> {
    fn new(message: &'a HubMessage, recipient: &'a Id, error: &'a str) -> Self {
        Self { message, recipient, error, timestamp: None, retry_count: None }
    }

    fn send_failure(&self, reason: FailureReason) {
        log!(warn, self, reason.as_str(), "a message did not arrive");
    }

    fn queue_full(&self, queue: QueueType) {
        log!(warn, self, FailureKind::QueueFull.as_str(), "a queue was full", queue_type = queue.as_str());
    }

    fn user_offline(&self) {
        // Nothing is wrong where somebody is away, and any client can write to the absent all day.
        log!(debug, self, FailureKind::UserOffline.as_str(), "the user was away");
    }

    fn connection_error(&self, client_id: Option<&ClientId>) {
        let client_id = client_id.map(tracing::field::display);
        log!(warn, self, FailureKind::ConnectionError.as_str(), "a connection failed", client_id = client_id);
    }

    fn timeout(&self, timeout: TimeoutType, duration: Duration) {
        let duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        log!(warn, self, timeout.as_str(), "a send took too long", duration_ms = duration_ms);
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fmt, sync::Mutex};

    use serde_json::value::RawValue;
    use tracing::{
        Event, Level, Metadata, Subscriber,
        field::{Field, Visit},
        span::{Attributes, Id as SpanId, Record},
    };
    use wsc_protocol::UserType;

    use super::*;

    /// Keeps the fields of every event.
    #[derive(Default)]
    struct Lines(Mutex<Vec<(Level, BTreeMap<String, String>)>>);

    struct Fields(BTreeMap<String, String>);

    impl Visit for Fields {
        fn record_str(&mut self, field: &Field, value: &str) {
            self.0.insert(field.name().to_owned(), value.to_owned());
        }

        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            self.0.insert(field.name().to_owned(), format!("{value:?}"));
        }
    }

    impl Subscriber for Lines {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &Attributes<'_>) -> SpanId {
            SpanId::from_u64(1)
        }

        fn record(&self, _: &SpanId, _: &Record<'_>) {}

        fn record_follows_from(&self, _: &SpanId, _: &SpanId) {}

        fn event(&self, event: &Event<'_>) {
            let mut fields = Fields(BTreeMap::new());
            event.record(&mut fields);
            self.0.lock().unwrap().push((*event.metadata().level(), fields.0));
        }

        fn enter(&self, _: &SpanId) {}

        fn exit(&self, _: &SpanId) {}
    }

    fn failure(reason: FailureReason) -> FailureEvent {
        let message = HubMessage::new(uuid::Uuid::from_u128(7), "user_message", "system", RawValue::NULL, 1_000);
        FailureEvent::new(Arc::new(message), Id::new("bob").unwrap(), reason, "no luck")
            .with_client(ClientId::given("phone").unwrap(), UserType::Agent)
            .after(3, Duration::from_millis(250))
            .with_timestamp(1_763_600_000_000)
    }

    #[tokio::test]
    async fn every_failure_is_one_line_with_all_that_is_known() {
        let lines = Arc::new(Lines::default());
        for reason in FailureReason::ALL {
            let dispatch = tracing::Dispatch::from(Arc::clone(&lines) as Arc<dyn Subscriber + Send + Sync>);
            let _guard = tracing::dispatcher::set_default(&dispatch);
            LoggingHandler.handle_failure(&failure(reason)).await;
        }
        let lines = lines.0.lock().unwrap();
        assert_eq!(lines.len(), FailureReason::ALL.len());
        for ((level, fields), reason) in lines.iter().zip(FailureReason::ALL) {
            let is_offline = reason == FailureReason::UserOffline;
            assert_eq!(*level, if is_offline { Level::DEBUG } else { Level::WARN }, "{reason}");
            let field = |name: &str| fields.get(name).map(String::as_str);
            assert_eq!(field("message_id"), Some("00000000-0000-0000-0000-000000000007"), "{reason}");
            assert_eq!(field("user_id"), Some("bob"), "{reason}");
            assert_eq!(field("error"), Some("no luck"), "{reason}");
            assert_eq!(field("timestamp"), Some("1763600000000"), "{reason}");
            assert_eq!(field("retry_count"), Some("3"), "{reason}");
            let named_by_kind = matches!(reason.kind(), FailureKind::QueueFull | FailureKind::ConnectionError);
            let name = if named_by_kind { reason.kind().as_str() } else { reason.as_str() };
            assert_eq!(field("type"), Some(name), "{reason}");
            assert_eq!(field("queue_type"), QueueType::of(reason).map(QueueType::as_str), "{reason}");
            let is_connection = reason.kind() == FailureKind::ConnectionError;
            assert_eq!(field("client_id"), is_connection.then_some("phone"), "{reason}");
            assert_eq!(field("duration_ms"), TimeoutType::of(reason).map(|_| "250"), "{reason}");
        }
    }

    #[tokio::test]
    async fn a_handler_of_one_kind_says_nothing_that_it_does_not_know() {
        let lines = Arc::new(Lines::default());
        let dispatch = tracing::Dispatch::from(Arc::clone(&lines) as Arc<dyn Subscriber + Send + Sync>);
        let _guard = tracing::dispatcher::set_default(&dispatch);
        let FailureEvent { message, recipient, .. } = failure(FailureReason::QueueFull);
        LoggingHandler.handle_queue_full(&message, &recipient, QueueType::Room, "no luck").await;
        let lines = lines.0.lock().unwrap();
        let [(_, fields)] = lines.as_slice() else { panic!("one line") };
        assert_eq!(fields["queue_type"], "room");
        assert!(!fields.contains_key("timestamp") && !fields.contains_key("retry_count"), "{fields:?}");
    }
}
