//! From events to batches in the outbox.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use wsc_protocol::{Event, TraceContext};

use super::{
    WebhookHooks,
    config::WebhookConfig,
    entry::{About, Entry, id_text},
    outbox::Outbox,
};
use crate::{EventObserver, Published};

/// Collects events into batches, in memory. It waits for nobody: what does not fit is dropped.
pub(super) struct Collector {
    state: Mutex<State>,
    /// Told when a batch was begun or finished.
    changed: Notify,
    dropped: AtomicU64,
    hooks: Arc<WebhookHooks>,
}

struct State {
    limits: Limits,
    finished: VecDeque<Batch>,
    open: Option<Batch>,
    /// Of all events that are not committed yet.
    bytes: usize,
    scratch: Vec<u8>,
    /// When it was last said that events are dropped.
    told: Option<Instant>,
    /// How many were dropped since then.
    untold: u64,
}

#[derive(Clone, Copy)]
struct Limits {
    batch_max: usize,
    interval: Duration,
    bytes: usize,
}

impl From<&WebhookConfig> for Limits {
    fn from(config: &WebhookConfig) -> Self {
        Self { batch_max: config.batch_max.max(1), interval: config.batch_interval, bytes: config.pending_bytes }
    }
}

/// Events that go into one request.
pub(super) struct Batch {
    since: Instant,
    /// JSON values with commas between them.
    events: Vec<u8>,
    count: u32,
    types: Vec<&'static str>,
    traces: Vec<TraceContext>,
}

/// One event in the body of a request.
#[derive(Serialize)]
struct Item<'a> {
    id: Uuid,
    #[serde(flatten)]
    published: &'a Published,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<TraceContext>,
}

impl Collector {
    pub(super) fn new(config: Option<&WebhookConfig>, hooks: Arc<WebhookHooks>) -> Self {
        let default = WebhookConfig::new("");
        let state = State {
            limits: config.unwrap_or(&default).into(),
            finished: VecDeque::new(),
            open: None,
            bytes: 0,
            scratch: Vec::new(),
            told: None,
            untold: 0,
        };
        Self { state: Mutex::new(state), changed: Notify::new(), dropped: AtomicU64::new(0), hooks }
    }

    pub(super) fn configure(&self, config: &WebhookConfig) {
        self.state.lock().limits = config.into();
        self.changed.notify_one();
    }

    /// Events that had no room, or could not be committed before the end.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    fn collect(&self, published: &Published) {
        let traceparent = (self.hooks.trace_of)(&published.event);
        let mut state = self.state.lock();
        let mut json = std::mem::take(&mut state.scratch);
        json.clear();
        let item = Item { id: Uuid::now_v7(), published, traceparent };
        // Events are plain data with text keys: they always become JSON.
        if serde_json::to_writer(&mut json, &item).is_ok() {
            if state.bytes + json.len() > state.limits.bytes {
                self.drop_events(1, &mut state);
            } else if state.add(&json, published.event.event_type().as_str(), traceparent) {
                self.changed.notify_one();
            }
        }
        state.scratch = json;
    }

    /// Comes back when there is something to commit; true when `stop` was cancelled.
    ///
    /// # Cancel safety
    ///
    /// It only waits.
    async fn due(&self, stop: &CancellationToken) -> bool {
        loop {
            let due = {
                let state = self.state.lock();
                if !state.finished.is_empty() {
                    return stop.is_cancelled();
                }
                state.open.as_ref().map(|batch| batch.since + state.limits.interval)
            };
            let time_is_over = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return true,
                () = time_is_over => return false,
                () = self.changed.notified() => {}
            }
        }
    }

    /// The batches that are finished, of all where this is the end.
    fn take(&self, is_end: bool) -> Vec<Batch> {
        let mut state = self.state.lock();
        let interval = state.limits.interval;
        if let Some(batch) = state.open.take_if(|batch| is_end || batch.since.elapsed() >= interval) {
            state.finished.push_back(batch);
        }
        state.finished.drain(..).collect()
    }

    /// Says that batches are out of memory.
    fn release(&self, bytes: usize) {
        self.state.lock().bytes -= bytes;
    }

    fn drop_events(&self, count: u64, state: &mut State) {
        self.dropped.fetch_add(count, Relaxed);
        state.untold += count;
        if state.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            let dropped = std::mem::take(&mut state.untold);
            state.told = Some(Instant::now());
            tracing::error!(dropped, "webhook events had no room in memory and were dropped");
        }
    }
}

#[async_trait]
impl EventObserver for Collector {
    async fn on_event(&self, _: &Event) {}

    async fn on_published(&self, published: &Published) {
        self.collect(published);
    }
}

impl State {
    /// Adds an event. True where a batch was begun or finished.
    fn add(&mut self, json: &[u8], event_type: &'static str, trace: Option<TraceContext>) -> bool {
        if let Some(batch) = self.open.take_if(|batch| batch.events.len() + json.len() >= MOST_BODY) {
            self.finished.push_back(batch);
        }
        let is_first = self.open.is_none();
        let batch = self.open.get_or_insert_with(|| Batch {
            since: Instant::now(),
            events: Vec::new(),
            count: 0,
            types: Vec::new(),
            traces: Vec::new(),
        });
        if !is_first {
            batch.events.push(b',');
            self.bytes += 1;
        }
        batch.events.extend(json);
        self.bytes += json.len();
        batch.count += 1;
        if batch.types.len() < MOST_TYPES && !batch.types.contains(&event_type) {
            batch.types.push(event_type);
        }
        batch.traces.extend(trace.filter(|trace| batch.traces.len() < MOST_TRACES && !batch.traces.contains(trace)));
        let is_full = batch.count as usize >= self.limits.batch_max;
        if is_full {
            self.finished.extend(self.open.take());
        }
        is_first || is_full
    }
}

/// Moves batches from the collector's memory to the outbox, as many at a time as there are.
pub(super) struct Committer {
    pub(super) node_id: Arc<str>,
    pub(super) collector: Arc<Collector>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) stop: CancellationToken,
    /// Cancelled at the end, when nothing more comes into the outbox.
    pub(super) done: CancellationToken,
}

impl Committer {
    pub(super) async fn run(self) {
        loop {
            let is_end = self.collector.due(&self.stop).await;
            let batches = self.collector.take(is_end);
            if !batches.is_empty() {
                self.commit(batches).await;
            } else if is_end {
                self.done.cancel();
                return;
            }
        }
    }

    async fn commit(&self, batches: Vec<Batch>) {
        let bytes = batches.iter().map(|batch| batch.events.len()).sum();
        let events: u64 = batches.iter().map(|batch| u64::from(batch.count)).sum();
        let entries: Vec<_> = batches.into_iter().map(|batch| self.entry(batch)).collect();
        loop {
            let Err(error) = self.outbox.append(&entries).await else { break };
            if self.stop.is_cancelled() {
                tracing::error!(%error, dropped = events, "webhook events could not be kept and are lost");
                self.collector.dropped.fetch_add(events, Relaxed);
                break;
            }
            tracing::error!(%error, events, "webhook events can't be kept for now");
            // Once more at the end, which does not wait.
            self.stop.run_until_cancelled(sleep(STORE_RETRY)).await;
        }
        self.collector.release(bytes);
    }

    fn entry(&self, batch: Batch) -> Entry {
        let id = Uuid::now_v7();
        // A node's id may hold whatever JSON has to escape.
        let node_id = serde_json::Value::from(&*self.node_id);
        let mut body = format!(r#"{{"id":"{}","node_id":{node_id},"events":["#, id_text(id)).into_bytes();
        body.extend(batch.events);
        body.extend(b"]}");
        let now_ms = self.outbox.now_ms();
        let about = About {
            id,
            created_ms: now_ms,
            queued_ms: now_ms,
            events: batch.count,
            types: batch.types.into_iter().map(str::to_owned).collect(),
            traces: batch.traces.iter().map(TraceContext::to_string).collect(),
            end: None,
        };
        Entry { about, body }
    }
}

/// Bytes of events in one request, because receivers limit their bodies: often to one MiB.
const MOST_BODY: usize = 1_000_000;
/// Event types of a batch that are named in its dead letter.
const MOST_TYPES: usize = 8;
/// Traces of a batch that learn of its request.
const MOST_TRACES: usize = 16;
const TELL_EVERY: Duration = Duration::from_secs(60);
/// How long is waited before the store is tried again.
pub(super) const STORE_RETRY: Duration = Duration::from_secs(2);
