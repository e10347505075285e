//! What happened to a message of a distributed trace, for whoever collects traces.

use std::time::SystemTime;

use wsc_protocol::TraceContext;

/// One finished step of a traced message: the HTTP request that brought it, its delivery to one recipient, the webhook
/// that reported it.
///
/// The hub joins traces that callers began (header `traceparent`) and begins none: a message without a context costs
/// nothing.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Span {
    /// What was done: `wsc.request`, `wsc.deliver`, `wsc.webhook`.
    pub name: &'static str,
    /// Its trace, its own id, and whether the trace is recorded.
    pub context: TraceContext,
    /// The span that caused it.
    pub parent_id: u64,
    /// When it began.
    pub start: SystemTime,
    /// When it was over.
    pub end: SystemTime,
    /// Facts about it, such as `("wsc.outcome", "acked")`.
    pub attributes: Vec<(&'static str, String)>,
    /// What went wrong; `None` where nothing did.
    pub error: Option<String>,
}

impl Span {
    /// A span that was caused by `parent` and is over now.
    pub fn new(name: &'static str, parent: TraceContext, span_id: u64, start: SystemTime) -> Self {
        Self {
            name,
            context: parent.child(span_id),
            parent_id: parent.span_id,
            start,
            end: SystemTime::now(),
            attributes: Vec::new(),
            error: None,
        }
    }

    /// Adds a fact.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.attributes.push((name, value.into()));
        self
    }

    /// Marks it as failed.
    #[must_use]
    pub fn failed(mut self, error: impl Into<String>) -> Self {
        self.error = Some(error.into());
        self
    }
}

/// Takes finished spans. It is called on the hub's own tasks: it must be quick and must not block.
pub trait SpanSink: Send + Sync + 'static {
    /// Takes one span.
    fn finished(&self, span: Span);
}
