//! Messages of distributed traces: the hub joins traces that callers began, and begins none.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::SystemTime,
};

use parking_lot::Mutex;
use uuid::Uuid;
use wsc_events::{Span, SpanSink, WebhookHooks};
use wsc_protocol::{Event, Fate, TraceContext};

use crate::metrics::WebhookRequests;

/// Which messages belong to a trace, as long as something may happen to them. A message without a trace costs one load.
pub(crate) struct Traced {
    sink: Option<Arc<dyn SpanSink>>,
    count: AtomicUsize,
    messages: Mutex<Messages>,
}

#[derive(Default)]
struct Messages {
    by_id: HashMap<Uuid, TracedMessage>,
    /// Oldest first.
    order: VecDeque<Uuid>,
}

/// One message.
#[derive(Clone, Copy)]
struct TracedMessage {
    context: TraceContext,
    accepted_at: SystemTime,
}

impl Traced {
    pub(crate) fn new(sink: Option<Arc<dyn SpanSink>>) -> Self {
        Self { sink, count: AtomicUsize::new(0), messages: Mutex::default() }
    }

    /// This message was caused by the span in `context`. The oldest one is forgotten where there are too many.
    pub(crate) fn begin(&self, id: Uuid, context: Option<TraceContext>) {
        let Some(context) = context else { return };
        let mut messages = self.messages.lock();
        if messages.order.len() >= MOST_MESSAGES
            && let Some(oldest) = messages.order.pop_front()
        {
            messages.by_id.remove(&oldest);
        }
        messages.by_id.insert(id, TracedMessage { context, accepted_at: SystemTime::now() });
        messages.order.push_back(id);
        self.count.store(messages.by_id.len(), Relaxed);
    }

    /// Whether any message belongs to a trace.
    pub(crate) fn is_active(&self) -> bool {
        self.count.load(Relaxed) > 0
    }

    fn get(&self, id: Uuid) -> Option<TracedMessage> {
        if !self.is_active() {
            return None;
        }
        self.messages.lock().by_id.get(&id).copied()
    }

    /// What became of a message to one recipient.
    pub(crate) fn ended(&self, id: Uuid, fate: Fate) {
        let Some(sink) = &self.sink else { return };
        let Some(TracedMessage { context, accepted_at }) = self.get(id) else { return };
        let span = Span::new("wsc.deliver", context, new_span_id(), accepted_at)
            .with("wsc.message_id", id.to_string())
            .with("wsc.outcome", fate.outcome.as_str());
        sink.finished(match fate.reason {
            Some(reason) => span.failed(reason.as_str()),
            None => span,
        });
    }

    /// An HTTP request of a trace is answered. `context` is its own.
    pub(crate) fn answered(
        &self,
        caller: TraceContext,
        context: TraceContext,
        begun_at: SystemTime,
        method: &str,
        status: http::StatusCode,
    ) {
        let Some(sink) = &self.sink else { return };
        let span = Span::new("wsc.request", caller, context.span_id, begun_at)
            .with("http.request.method", method)
            .with("http.response.status_code", status.as_str());
        sink.finished(if status.is_server_error() { span.failed(status.as_str()) } else { span });
    }

    /// What webhooks need to know.
    pub(crate) fn webhook_hooks(self: &Arc<Self>, on_request: WebhookRequests) -> WebhookHooks {
        let traced = Arc::clone(self);
        let trace_of = move |event: &Event| Some(traced.get(event.message_id()?)?.context);
        WebhookHooks { on_request, trace_of: Box::new(trace_of), spans: self.sink.clone() }
    }
}

impl std::fmt::Debug for Traced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Traced").field("messages", &self.count).finish_non_exhaustive()
    }
}

/// An id for a span of ours.
pub(crate) fn new_span_id() -> u64 {
    // The random half of the id; its fixed bits keep it from being zero.
    Uuid::now_v7().as_u64_pair().1
}

/// Messages of traces that are remembered.
const MOST_MESSAGES: usize = 10_000;
