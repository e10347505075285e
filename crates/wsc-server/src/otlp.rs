//! Spans of traced messages, for an OpenTelemetry collector: OTLP over HTTP with protobuf bodies.
//!
//! The hub's spans have their ids already, so they go to the exporter as they are; there is no tracer. Batches, their size
//! and their rhythm are [`BatchSpanProcessor`]'s, which works on a thread of its own.

use std::{
    env,
    error::Error,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use opentelemetry::{
    InstrumentationScope, KeyValue,
    trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceState},
};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter as OtlpExporter};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    resource::{EnvResourceDetector, TelemetryResourceDetector},
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanEvents, SpanExporter, SpanLinks, SpanProcessor as _,
    },
};
use tokio::runtime::Handle;
use tokio_util::{context::TokioContext, sync::CancellationToken};
use wsc_hub::events::{Span, SpanSink};

/// Exports finished spans to the collector that the environment names.
///
/// Only spans of traces that the caller records are exported. At most `OTEL_BSP_MAX_QUEUE_SIZE` of them wait; those that
/// find no room are dropped and counted, as are those that the collector does not take. Taking a span never blocks.
pub(crate) struct OtlpSpans {
    batches: Arc<BatchSpanProcessor>,
    scope: InstrumentationScope,
    shared: Arc<Shared>,
    max_waiting: usize,
}

/// What became of the spans so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SpanCounts {
    /// The collector has them.
    pub(crate) exported: u64,
    /// They found no room, or came after the end.
    pub(crate) dropped: u64,
    /// The collector did not take them, or not in time.
    pub(crate) failed: u64,
}

impl OtlpSpans {
    /// An exporter as the standard variables say: `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`,
    /// with their `…_HEADERS` and `…_TIMEOUT`, `OTEL_SERVICE_NAME` (default `wsc-hub`), `OTEL_RESOURCE_ATTRIBUTES`, and
    /// `OTEL_BSP_…` for queue and batches. `instance` becomes `service.instance.id`.
    ///
    /// `None` where no endpoint is set, or where `OTEL_SDK_DISABLED=true` or `OTEL_TRACES_EXPORTER=none` say so.
    ///
    /// # Errors
    ///
    /// An endpoint that is no URL, or a protocol or compression that this exporter does not have.
    ///
    /// # Panics
    ///
    /// Outside of a multi-threaded tokio runtime: its threads do the exporter's IO.
    pub(crate) fn from_env(instance: &str) -> Result<Option<Arc<Self>>, ExporterBuildError> {
        let is_set = |name| env::var(name).is_ok_and(|value| !value.trim().is_empty());
        let says = |name, word: &str| env::var(name).is_ok_and(|value| value.trim().eq_ignore_ascii_case(word));
        let has_endpoint = is_set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") || is_set("OTEL_EXPORTER_OTLP_ENDPOINT");
        if !has_endpoint || says("OTEL_SDK_DISABLED", "true") || says("OTEL_TRACES_EXPORTER", "none") {
            return Ok(None);
        }
        let exporter = OtlpExporter::builder().with_http().build()?;
        let max_waiting = env::var("OTEL_BSP_MAX_QUEUE_SIZE").ok().and_then(|text| text.trim().parse().ok());
        Ok(Some(Arc::new(Self::over(exporter, &resource(instance), max_waiting.unwrap_or(MAX_WAITING)))))
    }

    /// Over this exporter, with at most so many spans waiting.
    fn over(exporter: impl SpanExporter + 'static, resource: &Resource, max_waiting: usize) -> Self {
        let max_waiting = max_waiting.max(1);
        let shared = Arc::new(Shared::default());
        let exporter = Counted { inner: exporter, runtime: Handle::current(), shared: Arc::clone(&shared) };
        let config = BatchConfigBuilder::default().with_max_queue_size(max_waiting).build();
        let mut batches = BatchSpanProcessor::new(exporter, config);
        batches.set_resource(resource);
        let scope = InstrumentationScope::builder("wsc-hub").with_version(env!("CARGO_PKG_VERSION")).build();
        Self { batches: Arc::new(batches), scope, shared, max_waiting }
    }

    /// What became of the spans so far.
    pub(crate) fn counts(&self) -> SpanCounts {
        self.shared.counts()
    }

    /// Hands everything that waits to the collector, for at most [`FLUSH_TIME`]; what it has not taken then is given up.
    /// Says in the log what was lost. Spans that come later are dropped.
    ///
    /// # Cancel safety
    ///
    /// Where this is not waited for to the end, the flush goes on without a time limit of its own.
    pub(crate) async fn shutdown(&self) {
        self.shared.is_closed.store(true, Relaxed);
        let batches = Arc::clone(&self.batches);
        // The processor waits for its thread, which a thread of the runtime must not do.
        let mut flushed = tokio::task::spawn_blocking(move || batches.shutdown_with_timeout(FLUSH_TIME * 2));
        if tokio::time::timeout(FLUSH_TIME, &mut flushed).await.is_err() {
            self.shared.given_up.cancel();
            let _ = flushed.await;
        }
        // Those that came while the queue was being closed.
        self.shared.dropped.fetch_add(self.shared.waiting.swap(0, Relaxed) as u64, Relaxed);
        let SpanCounts { exported, dropped, failed } = self.counts();
        if dropped + failed > 0 {
            tracing::warn!(exported, dropped, failed, "not all spans reached the collector");
        }
    }

    fn data(&self, span: Span) -> SpanData {
        let Span { name, context, parent_id, start, end, attributes, error, .. } = span;
        let (trace_id, span_id) = (context.trace_id.into(), context.span_id.into());
        let (span_kind, parent_span_is_remote) = match name {
            "wsc.request" => (SpanKind::Server, true),
            "wsc.deliver" => (SpanKind::Producer, false),
            "wsc.webhook" => (SpanKind::Client, false),
            _ => (SpanKind::Internal, false),
        };
        SpanData {
            span_context: SpanContext::new(trace_id, span_id, TraceFlags::SAMPLED, false, TraceState::NONE),
            parent_span_id: SpanId::from(parent_id),
            parent_span_is_remote,
            span_kind,
            name: name.into(),
            start_time: start,
            end_time: end,
            attributes: attributes.into_iter().map(|(name, value)| KeyValue::new(name, value)).collect(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: error.map_or(Status::Unset, Status::error),
            instrumentation_scope: self.scope.clone(),
        }
    }
}

impl SpanSink for OtlpSpans {
    fn finished(&self, span: Span) {
        if !span.context.is_sampled {
            return;
        }
        // The processor drops what finds no room too, but keeps the number to itself. This bound is never above its own,
        // since a span is taken out of its queue before it is taken off here.
        let has_room = !self.shared.is_closed.load(Relaxed)
            && self
                .shared
                .waiting
                .fetch_update(Relaxed, Relaxed, |waiting| (waiting < self.max_waiting).then_some(waiting + 1))
                .is_ok();
        if has_room {
            self.batches.on_end(self.data(span));
        } else {
            self.shared.dropped.fetch_add(1, Relaxed);
        }
    }
}

impl fmt::Debug for OtlpSpans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OtlpSpans").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

/// What those who bring spans and the thread that exports them both know.
#[derive(Debug, Default)]
struct Shared {
    waiting: AtomicUsize,
    exported: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
    is_closed: AtomicBool,
    /// The last batch was not taken.
    is_failing: AtomicBool,
    /// There is no more time for the collector.
    given_up: CancellationToken,
}

impl Shared {
    fn counts(&self) -> SpanCounts {
        SpanCounts {
            exported: self.exported.load(Relaxed),
            dropped: self.dropped.load(Relaxed),
            failed: self.failed.load(Relaxed),
        }
    }

    /// Takes down the result of an export, and says in the log when it begins to fail and when it ends.
    fn note(&self, spans: u64, result: &OTelSdkResult) {
        let counter = if result.is_ok() { &self.exported } else { &self.failed };
        counter.fetch_add(spans, Relaxed);
        let was_failing = self.is_failing.swap(result.is_err(), Relaxed);
        match result {
            Err(error) if !was_failing => {
                tracing::warn!(error = error as &dyn Error, spans, "the collector does not take spans");
            }
            Err(error) => tracing::debug!(error = error as &dyn Error, spans, "the collector does not take spans"),
            Ok(()) if was_failing => tracing::info!("the collector takes spans again"),
            Ok(()) => {}
        }
    }
}

/// Counts what an exporter does, and lends it the runtime: the processor's thread has none, and the HTTP client needs one.
#[derive(Debug)]
struct Counted<E> {
    inner: E,
    runtime: Handle,
    shared: Arc<Shared>,
}

impl<E: SpanExporter> SpanExporter for Counted<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        self.shared.waiting.fetch_sub(spans, Relaxed);
        let export = TokioContext::new(self.inner.export(batch), self.runtime.clone());
        let in_time = self.shared.given_up.run_until_cancelled(export).await;
        let result = in_time.unwrap_or(Err(OTelSdkError::Timeout(FLUSH_TIME)));
        self.shared.note(spans as u64, &result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// Who exports: as the environment says, with names for what it does not say.
fn resource(instance: &str) -> Resource {
    let resource = Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_service_name("wsc-hub")
        .with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", instance.to_owned()),
        ])
        .with_detector(Box::new(EnvResourceDetector::new()));
    match env::var("OTEL_SERVICE_NAME") {
        Ok(name) if !name.trim().is_empty() => resource.with_service_name(name),
        _ => resource,
    }
    .build()
}

/// How many spans wait at most, where `OTEL_BSP_MAX_QUEUE_SIZE` does not say: the standard's default.
const MAX_WAITING: usize = 2048;

/// How long [`OtlpSpans::shutdown`] waits for the collector: enough for a collector that works, and short beside
/// `drain.deadline`.
const FLUSH_TIME: Duration = Duration::from_secs(3);

#[cfg(test)]
#[path = "../tests/ops/collector.rs"]
mod collector;

#[cfg(test)]
mod tests {
    use std::time::{Instant, SystemTime};

    use opentelemetry_otlp::WithExportConfig;
    use opentelemetry_proto::tonic::trace::v1::{span, status};
    use tokio::sync::{Semaphore, mpsc};
    use wsc_hub::protocol::TraceContext;
    use wsc_testkit::{eventually, within};

    use super::{
        collector::{Collector, attribute},
        *,
    };

    const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;

    fn span(name: &'static str, id: u64, is_sampled: bool) -> Span {
        let parent = TraceContext::new(TRACE, 0x00f0_67aa_0ba9_02b7, is_sampled).unwrap();
        Span::new(name, parent, id, SystemTime::now())
    }

    /// As [`OtlpSpans::from_env`], with the endpoint given.
    fn over_http(url: &str) -> OtlpSpans {
        let exporter = OtlpExporter::builder().with_http().with_endpoint(format!("{url}/v1/traces")).build().unwrap();
        OtlpSpans::over(exporter, &resource("node-7"), MAX_WAITING)
    }

    /// An exporter that says what it got, and takes as many batches as it has permits.
    #[derive(Debug)]
    struct Gate {
        permits: Arc<Semaphore>,
        batches: mpsc::UnboundedSender<usize>,
    }

    impl SpanExporter for Gate {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            let _ = self.batches.send(batch.len());
            self.permits.acquire().await.map_err(|e| OTelSdkError::InternalFailure(e.to_string()))?.forget();
            Ok(())
        }
    }

    fn gate() -> (Gate, Arc<Semaphore>, mpsc::UnboundedReceiver<usize>) {
        let permits = Arc::new(Semaphore::new(0));
        let (sender, batches) = mpsc::unbounded_channel();
        (Gate { permits: Arc::clone(&permits), batches: sender }, permits, batches)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_collector_gets_the_spans_with_their_own_ids() {
        let mut collector = Collector::start("200 OK").await;
        let spans = over_http(collector.url());
        spans.finished(span("wsc.request", 1, true).with("wsc.outcome", "acked"));
        spans.finished(span("wsc.deliver", 2, false));
        spans.finished(span("wsc.webhook", u64::MAX, true).failed("503 from the receiver"));
        spans.shutdown().await;

        let request = collector.next().await;
        assert!(request.head.starts_with("post /v1/traces "), "{}", request.head);
        assert!(request.head.contains("content-type: application/x-protobuf"), "{}", request.head);
        assert_eq!(request.resource("service.name").as_deref(), Some("wsc-hub"));
        assert_eq!(request.resource("service.instance.id").as_deref(), Some("node-7"));
        let [first, second] = request.spans().collect::<Vec<_>>()[..] else { panic!("two of them are recorded") };
        assert_eq!(first.trace_id, TRACE.to_be_bytes());
        assert_eq!(first.span_id, 1u64.to_be_bytes());
        assert_eq!(first.parent_span_id, 0x00f0_67aa_0ba9_02b7u64.to_be_bytes());
        assert_eq!((first.name.as_str(), first.kind), ("wsc.request", span::SpanKind::Server as i32));
        assert_eq!(attribute(first, "wsc.outcome").as_deref(), Some("acked"));
        assert!(first.start_time_unix_nano > 0 && first.end_time_unix_nano >= first.start_time_unix_nano);
        assert_eq!(second.span_id, u64::MAX.to_be_bytes());
        let status = second.status.as_ref().expect("a status");
        assert_eq!((status.code, status.message.as_str()), (status::StatusCode::Error as i32, "503 from the receiver"));
        assert_eq!(spans.counts(), SpanCounts { exported: 2, dropped: 0, failed: 0 });
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn spans_that_the_collector_refuses_are_counted() {
        let mut collector = Collector::start("400 Bad Request").await;
        let spans = over_http(collector.url());
        spans.finished(span("wsc.request", 1, true));
        spans.shutdown().await;
        assert_eq!(collector.next().await.spans().count(), 1);
        assert_eq!(spans.counts(), SpanCounts { exported: 0, dropped: 0, failed: 1 });
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn spans_that_find_no_room_are_dropped_and_counted_and_nobody_waits() {
        let (gate, permits, mut batches) = gate();
        let spans = OtlpSpans::over(gate, &resource("node-7"), 10);
        // The exporter has ten and is stuck; ten wait behind them.
        (0..10).for_each(|n| spans.finished(span("wsc.deliver", n, true)));
        assert_eq!(within("the first batch", batches.recv()).await, Some(10));
        (0..1000).for_each(|n| spans.finished(span("wsc.deliver", n, true)));
        assert_eq!(spans.counts(), SpanCounts { exported: 0, dropped: 990, failed: 0 });

        permits.add_permits(100);
        eventually("the rest is exported", async || {
            tokio::task::yield_now().await;
            (spans.counts().exported == 20).then_some(())
        })
        .await;
        spans.shutdown().await;
        spans.finished(span("wsc.deliver", 1, true));
        assert_eq!(spans.counts(), SpanCounts { exported: 20, dropped: 991, failed: 0 });
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_collector_that_hangs_does_not_hold_up_the_end() {
        let (gate, _permits, _batches) = gate();
        let spans = OtlpSpans::over(gate, &resource("node-7"), MAX_WAITING);
        (0..1000).for_each(|n| spans.finished(span("wsc.deliver", n, true)));
        let begun = Instant::now();
        within("the end", spans.shutdown()).await;
        assert!(begun.elapsed() < FLUSH_TIME * 2, "{:?}", begun.elapsed());
        assert_eq!(spans.counts(), SpanCounts { exported: 0, dropped: 0, failed: 1000 });
    }
}
