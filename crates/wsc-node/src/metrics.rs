//! What the node measures, for Prometheus. A room, user or client id is never a label.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use futures_util::FutureExt;
use metrics::{Counter, Gauge, Histogram, SharedString, Unit};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use parking_lot::Mutex;
use wsc_events::{ObserverRun, WebhookOutcome};
use wsc_failure::{HandlerCall, HandlerType};
use wsc_protocol::{DisconnectReason, EventType, FailureKind, Outcome};
use wsc_transport::FanoutReport;

use crate::{core::Core, failures::FailureTotals};

/// The metrics of one hub. They are its own: two hubs in one process do not mix.
pub(crate) struct Metrics {
    recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
    instruments: Instruments,
    ack_timeouts: AtomicU64,
    ack_retries: AtomicU64,
    measures_failures: Arc<AtomicBool>,
    /// Whether the settings that were read last were refused.
    is_rejected: AtomicBool,
    /// The process as a whole.
    process: metrics_process::Collector,
    /// Held by whoever brings the figures up to date and writes them down: two at a time would mix their moments.
    scrape: Mutex<()>,
}

/// Takes down requests to a webhook.
pub(crate) type WebhookRequests = Box<dyn Fn(WebhookOutcome) + Send + Sync>;

/// What is counted where it happens. Everything is registered at the start: what has not happened yet is 0, not
/// missing.
struct Instruments {
    /// By reason.
    disconnections: Vec<Counter>,
    fanout_duration: Histogram,
    fanout_frames: Counter,
    ack_latency: Histogram,
    /// By kind.
    alerts: Vec<Counter>,
    handler_calls: Vec<Histogram>,
    callbacks: Vec<Callbacks>,
    webhook_latency: Histogram,
    tokens_revoked: Counter,
    /// By result.
    reloads: Vec<(&'static str, Counter)>,
}

/// The callbacks of one event type.
#[derive(Clone)]
struct Callbacks {
    executions: Counter,
    errors: Counter,
    duration: Histogram,
}

impl Instruments {
    /// To be called with the recorder at hand.
    fn register() -> Self {
        use metrics::{counter, histogram};
        let handler_calls = HandlerType::ALL
            .map(|handler| histogram!("wsc_failure_handler_duration_seconds", "handler_type" => handler.as_str()));
        let callbacks = EventType::ALL.iter().map(|event| Callbacks {
            executions: counter!("wsc_callback_executions_total", "event_type" => event.as_str()),
            errors: counter!("wsc_callback_errors_total", "event_type" => event.as_str()),
            duration: histogram!("wsc_callback_duration_seconds", "event_type" => event.as_str()),
        });
        Self {
            disconnections: DisconnectReason::ALL
                .map(|reason| counter!("wsc_disconnections_total", "reason" => reason.as_str()))
                .into(),
            fanout_duration: histogram!("wsc_fanout_duration_seconds"),
            fanout_frames: counter!("wsc_fanout_frames_total"),
            ack_latency: histogram!("wsc_ack_latency_seconds"),
            alerts: FailureKind::ALL.map(|kind| counter!("wsc_failure_alerts_total", "type" => kind.as_str())).into(),
            handler_calls: handler_calls.into(),
            callbacks: callbacks.collect(),
            webhook_latency: histogram!("wsc_webhook_latency_seconds"),
            tokens_revoked: counter!("wsc_tokens_revoked_total"),
            reloads: ["applied", "rejected", "unchanged"]
                .map(|result| (result, counter!("wsc_config_reloads_total", "result" => result)))
                .into(),
        }
    }
}

impl Metrics {
    pub(crate) fn new() -> Result<Self, BuildError> {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Full("wsc_fanout_duration_seconds".to_owned()), FANOUT_BUCKETS)?
            .set_buckets_for_metric(Matcher::Full("wsc_ack_latency_seconds".to_owned()), ACK_BUCKETS)?
            .set_buckets_for_metric(Matcher::Full("wsc_failure_handler_duration_seconds".to_owned()), RUN_BUCKETS)?
            .set_buckets_for_metric(Matcher::Full("wsc_callback_duration_seconds".to_owned()), RUN_BUCKETS)?
            .set_buckets_for_metric(Matcher::Full("wsc_webhook_latency_seconds".to_owned()), WEBHOOK_BUCKETS)?
            .build_recorder();
        let recorder = Arc::new(recorder);
        let handle = recorder.handle();
        let instruments = metrics::with_local_recorder(&*recorder, || {
            describe();
            Instruments::register()
        });
        let (ack_timeouts, ack_retries) = (AtomicU64::new(0), AtomicU64::new(0));
        let measures_failures = Arc::new(AtomicBool::new(true));
        let process = metrics_process::Collector::default();
        metrics::with_local_recorder(&*recorder, || process.describe());
        Ok(Self {
            recorder,
            handle,
            instruments,
            ack_timeouts,
            ack_retries,
            measures_failures,
            is_rejected: AtomicBool::new(false),
            process,
            scrape: Mutex::new(()),
        })
    }

    pub(crate) fn disconnected(&self, reason: DisconnectReason) {
        if let Some(counter) = self.instruments.disconnections.get(reason as usize) {
            counter.increment(1);
        }
    }

    pub(crate) fn handshake_failed(&self, reason: &'static str) {
        metrics::with_local_recorder(&*self.recorder, || {
            metrics::counter!("wsc_handshake_failures_total", "reason" => reason).increment(1);
        });
    }

    pub(crate) fn fanout(&self, report: FanoutReport) {
        self.instruments.fanout_duration.record(report.duration);
        self.instruments.fanout_frames.increment(report.frames.into());
    }

    /// A message was acknowledged, so long after it was accepted.
    pub(crate) fn ack_latency(&self, milliseconds: u64) {
        self.instruments.ack_latency.record(milliseconds as f64 / 1000.0);
    }

    /// An acknowledgement did not come in time.
    pub(crate) fn ack_timed_out(&self) {
        self.ack_timeouts.fetch_add(1, Relaxed);
    }

    /// A message was sent again for want of an acknowledgement.
    pub(crate) fn ack_retried(&self) {
        self.ack_retries.fetch_add(1, Relaxed);
    }

    /// How often no acknowledgement came in time, and how often a message was sent again for that.
    pub(crate) fn late_acks(&self) -> (u64, u64) {
        (self.ack_timeouts.load(Relaxed), self.ack_retries.load(Relaxed))
    }

    /// Too much failed.
    pub(crate) fn alerted(&self, kind: FailureKind) {
        if let Some(counter) = self.instruments.alerts.get(kind as usize) {
            counter.increment(1);
        }
    }

    /// Switches on or off what `failure_handlers.enable_metrics` is about.
    pub(crate) fn measure_failures(&self, is_wanted: bool) {
        self.measures_failures.store(is_wanted, Relaxed);
    }

    /// Takes down every call of a failure handler, where that is wanted.
    pub(crate) fn handler_calls(&self) -> impl Fn(HandlerCall) + Send + Sync + use<> {
        let durations = self.instruments.handler_calls.clone();
        let is_wanted = Arc::clone(&self.measures_failures);
        move |call| {
            if let Some(duration) = durations.get(call.handler_type as usize).filter(|_| is_wanted.load(Relaxed)) {
                duration.record(call.duration);
            }
        }
    }

    /// Takes down every run of a callback.
    pub(crate) fn callback_runs(&self) -> impl Fn(ObserverRun) + Send + Sync + use<> {
        let callbacks = self.instruments.callbacks.clone();
        move |run| {
            let Some(callbacks) = callbacks.get(run.event_type as usize) else { return };
            callbacks.executions.increment(1);
            callbacks.errors.increment(run.is_error.into());
            callbacks.duration.record(run.duration);
        }
    }

    /// Takes down every request to a webhook.
    pub(crate) fn webhook_requests(&self) -> WebhookRequests {
        let (recorder, latency) = (Arc::clone(&self.recorder), self.instruments.webhook_latency.clone());
        Box::new(move |outcome| {
            latency.record(outcome.latency);
            metrics::with_local_recorder(&*recorder, || {
                metrics::counter!("wsc_webhook_requests_total", "status" => outcome.status).increment(1);
            });
        })
    }

    /// A token, or all of a user's, were revoked.
    pub(crate) fn token_revoked(&self) {
        self.instruments.tokens_revoked.increment(1);
    }

    /// What came of a reload.
    pub(crate) fn reloaded(&self, result: &'static str) {
        self.is_rejected.store(result == "rejected", Relaxed);
        if let Some((_, counter)) = self.instruments.reloads.iter().find(|(name, _)| *name == result) {
            counter.increment(1);
        }
    }

    /// Moves samples from buffers into histograms; without it they grow until somebody scrapes.
    pub(crate) fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// The text that Prometheus reads.
    pub(crate) fn render(&self, core: &Core) -> String {
        let _alone = self.scrape.lock();
        metrics::with_local_recorder(&*self.recorder, || collect(core));
        self.handle.render()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// Brings gauges and totals that are counted elsewhere up to date.
fn collect(core: &Core) {
    let stats = core.fanouts.stats();
    set(&metrics::gauge!("wsc_connections"), core.users.connections() as u64);
    set(&metrics::gauge!("wsc_users"), core.users.len() as u64);
    set(&metrics::gauge!("wsc_rooms"), core.rooms.len() as u64);
    metrics::counter!("wsc_connections_total").absolute(core.users.connections_total());
    metrics::counter!("wsc_messages_received_total").absolute(stats.messages_in());
    metrics::counter!("wsc_bytes_total", "direction" => "in").absolute(stats.bytes_in());
    metrics::counter!("wsc_bytes_total", "direction" => "out").absolute(stats.bytes_out());
    // One moment for all of them: the sum holds at every scrape.
    let tally = stats.ledger().snapshot();
    metrics::counter!("wsc_deliveries_total").absolute(whole(tally.copies));
    let queue_bytes = u64::try_from(stats.queue_bytes()).unwrap_or(0);
    set(&metrics::gauge!("wsc_queue_bytes"), queue_bytes);
    for (policy, times) in stats.slow_consumers() {
        metrics::counter!("wsc_slow_consumers_total", "policy" => policy).absolute(times);
    }
    let shed = stats.slow_consumers().into_iter().find(|(policy, _)| *policy == "shed");
    metrics::counter!("wsc_shed_connections_total").absolute(shed.map_or(0, |(_, times)| times));
    for (reason, times) in stats.handshake_failures() {
        metrics::counter!("wsc_handshake_failures_total", "reason" => reason).absolute(times);
    }
    metrics::counter!("wsc_messages_accepted_total").absolute(whole(tally.accepted));
    metrics::counter!("wsc_messages_recovered_total").absolute(whole(tally.recovered));
    metrics::counter!("wsc_messages_released_total").absolute(whole(tally.released));
    for (outcome, times) in [
        (Outcome::Acked, whole(tally.acked)),
        (Outcome::Sent, whole(tally.sent)),
        (Outcome::Failed, whole(tally.failed())),
        (Outcome::Expired, whole(tally.expired)),
        (Outcome::Rejected, whole(tally.rejected)),
    ] {
        metrics::counter!("wsc_messages_total", "outcome" => outcome.as_str()).absolute(times);
    }
    set(&metrics::gauge!("wsc_messages_stored"), whole(tally.stored));
    set(&metrics::gauge!("wsc_messages_in_flight"), whole(tally.in_flight));
    for (reason, times) in core.mail.ignored_acks() {
        metrics::counter!("wsc_acks_ignored_total", "reason" => reason).absolute(times);
    }
    let (timeouts, retries) = core.metrics.late_acks();
    metrics::counter!("wsc_ack_timeouts_total").absolute(timeouts);
    metrics::counter!("wsc_ack_retries_total").absolute(retries);
    if let Some(webhooks) = &core.webhooks.0 {
        let stats = webhooks.stats();
        set(&metrics::gauge!("wsc_webhook_waiting_batches"), stats.waiting);
        set(&metrics::gauge!("wsc_webhook_dead"), stats.dead);
        metrics::counter!("wsc_webhook_events_dropped_total").absolute(stats.events_dropped);
    }
    collect_bounds(core);
    let (attempts, successes) = core.retries.counts();
    metrics::counter!("wsc_retry_attempts_total").absolute(attempts);
    metrics::counter!("wsc_retry_success_total").absolute(successes);
    if core.settings().failure_handlers.enable_metrics {
        collect_failures(&core.failed.totals(&tally), &core.node_id);
    }
}

/// How the node stands to its limits and its surroundings, for alerts.
fn collect_bounds(core: &Core) {
    let settings = core.settings();
    metrics::gauge!("wsc_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    set(&metrics::gauge!("wsc_draining"), core.leaving.is_cancelled().into());
    set(&metrics::gauge!("wsc_connections_limit"), settings.max_connections);
    set(&metrics::gauge!("wsc_queue_bytes_limit"), settings.queue.total_bytes.as_u64());
    let is_applied = !core.metrics.is_rejected.load(Relaxed);
    set(&metrics::gauge!("wsc_config_last_reload_successful"), is_applied.into());
    if let Some(keeper) = core.mail.keeper() {
        set(&metrics::gauge!("wsc_storage_up"), (keeper.is_healthy() && core.records.is_healthy()).into());
        set(&metrics::gauge!("wsc_storage_bytes_limit"), settings.storage.max_bytes.as_u64());
        // Stores on this machine know it at once; a scrape waits for no other.
        if let Some(Ok(depth)) = keeper.store().total().now_or_never() {
            set(&metrics::gauge!("wsc_storage_bytes"), depth.bytes);
        }
    }
    metrics::counter!("wsc_failures_dropped_total").absolute(core.failures.stats().not_handled());
    let dropped = core.events.stats().iter().map(|event| event.drops).sum();
    metrics::counter!("wsc_events_dropped_total").absolute(dropped);
    core.metrics.process.collect();
}

/// Three families that divide the same failures in three ways, see [`FailureTotals`].
fn collect_failures(failures: &FailureTotals, hub_id: &str) {
    let hub_id = SharedString::from(hub_id.to_owned());
    for (user_type, times) in failures.by_user_type() {
        let counter =
            metrics::counter!("wsc_total_failures_total", "hub_id" => hub_id.clone(), "client_type" => user_type);
        counter.absolute(times);
    }
    for kind in FailureKind::ALL {
        let counter =
            metrics::counter!("wsc_failures_by_type_total", "type" => kind.as_str(), "hub_id" => hub_id.clone());
        counter.absolute(failures.of_kind(kind));
    }
    for (reason, times) in failures.by_reason() {
        metrics::counter!("wsc_failures_by_reason_total", "reason" => reason.as_str()).absolute(times);
    }
}

/// A count of the ledger's; none of its sums is ever below zero.
pub(crate) fn whole(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

fn set(gauge: &Gauge, value: u64) {
    gauge.set(value as f64);
}

fn describe() {
    use metrics::{describe_counter, describe_gauge, describe_histogram};
    describe_gauge!("wsc_connections", "Open connections.");
    describe_gauge!("wsc_users", "Users with at least one connection.");
    describe_gauge!("wsc_rooms", "Rooms.");
    describe_counter!("wsc_connections_total", "Connections opened.");
    describe_counter!("wsc_disconnections_total", "Connections ended, by reason.");
    describe_counter!("wsc_handshake_failures_total", "Connections that were not opened, by reason.");
    describe_counter!("wsc_messages_received_total", "Messages read from clients.");
    describe_counter!("wsc_messages_accepted_total", "Pairs of a message and a recipient that were accepted.");
    describe_counter!("wsc_messages_recovered_total", "Pairs found in the store at the start or taken over.");
    describe_counter!("wsc_messages_released_total", "Pairs handed to another node.");
    describe_counter!("wsc_messages_total", "Pairs that reached a final state, by outcome.");
    describe_gauge!("wsc_messages_stored", "Pairs resting in the inbox.");
    describe_gauge!("wsc_messages_in_flight", "Pairs in flight.");
    describe_counter!("wsc_deliveries_total", "Copies of messages that the kernel took.");
    describe_counter!("wsc_bytes_total", Unit::Bytes, "Bytes read and written on open connections.");
    describe_gauge!("wsc_queue_bytes", Unit::Bytes, "Bytes that wait in outbound queues.");
    describe_counter!("wsc_slow_consumers_total", "Times a full queue was met, by what was done about it.");
    describe_histogram!("wsc_fanout_duration_seconds", Unit::Seconds, "Time of one fan-out round, all members.");
    describe_counter!("wsc_fanout_frames_total", "Frames that went through fan-out rounds.");
    describe_histogram!("wsc_ack_latency_seconds", Unit::Seconds, "From acceptance to acknowledgement.");
    describe_counter!("wsc_acks_ignored_total", "Acknowledgements that meant nothing, by reason.");
    describe_counter!("wsc_retry_attempts_total", "Times a message that found no room was tried again.");
    describe_counter!("wsc_retry_success_total", "Times that helped.");
    describe_counter!("wsc_ack_timeouts_total", "Acknowledgements that did not come in time.");
    describe_counter!("wsc_ack_retries_total", "Messages sent again for want of an acknowledgement.");
    describe_counter!("wsc_total_failures_total", "Failures, by the type of the receiver.");
    describe_counter!("wsc_failures_by_type_total", "Failures, by kind.");
    describe_counter!("wsc_failures_by_reason_total", "Failures, by reason.");
    describe_counter!("wsc_failure_alerts_total", "Times that too much failed, by kind.");
    describe_histogram!(
        "wsc_failure_handler_duration_seconds",
        Unit::Seconds,
        "Time that one failure handler took for one failure."
    );
    describe_counter!("wsc_webhook_requests_total", "Requests to webhooks, by the answer's status.");
    describe_histogram!("wsc_webhook_latency_seconds", Unit::Seconds, "Time of one request to a webhook.");
    describe_gauge!("wsc_webhook_waiting_batches", "Batches of events that wait to be posted.");
    describe_gauge!("wsc_webhook_dead", "Batches of events that were given up and are kept.");
    describe_counter!("wsc_webhook_events_dropped_total", "Events that found no room on their way to a webhook.");
    describe_gauge!("wsc_build_info", "1, with the version.");
    describe_gauge!("wsc_draining", "1 while the hub shuts down.");
    describe_gauge!("wsc_connections_limit", "Most connections (max_connections).");
    describe_gauge!("wsc_queue_bytes_limit", Unit::Bytes, "Most bytes in outbound queues (queue.total_bytes).");
    describe_gauge!("wsc_storage_up", "1 while the store takes messages.");
    describe_gauge!("wsc_storage_bytes", Unit::Bytes, "Bytes of the messages that rest in the store.");
    describe_gauge!("wsc_storage_bytes_limit", Unit::Bytes, "Most bytes in the store (storage.max_bytes).");
    describe_gauge!("wsc_config_last_reload_successful", "0 while the settings that were read last are refused.");
    describe_counter!("wsc_failures_dropped_total", "Failures for which no handler had time.");
    describe_counter!("wsc_events_dropped_total", "Events that an observer was not told of.");
    describe_counter!("wsc_shed_connections_total", "Connections that were closed because all queues were too large.");
    describe_counter!("wsc_tokens_revoked_total", "Revocations of a token or of all of a user's.");
    describe_counter!("wsc_config_reloads_total", "Times the settings were read again, by what came of it.");
    describe_counter!("wsc_callback_executions_total", "Runs of callbacks.");
    describe_counter!("wsc_callback_errors_total", "Runs of callbacks that panicked or came back with an error.");
    describe_histogram!("wsc_callback_duration_seconds", Unit::Seconds, "Time that one run of a callback took.");
}

/// From a client next door to one that was away for a week, in seconds.
const ACK_BUCKETS: &[f64] = &[
    0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 600.0, 3600.0, 86_400.0,
    604_800.0,
];

/// From a counter to a handler at its time limit, in seconds.
const RUN_BUCKETS: &[f64] = &[0.000_01, 0.000_1, 0.001, 0.01, 0.1, 1.0, 5.0];

/// From a receiver next door to the longest time limit, in seconds.
const WEBHOOK_BUCKETS: &[f64] =
    &[0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// From one small room to the largest with a slow kernel, in seconds.
const FANOUT_BUCKETS: &[f64] =
    &[0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];
