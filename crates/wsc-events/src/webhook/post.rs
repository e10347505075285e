//! From the outbox to the receiver.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::{HeaderMap, HeaderValue};
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use wsc_protocol::TraceContext;

use super::{
    WebhookHooks, WebhookOutcome,
    client::{WebhookAnswer, WebhookClient, WebhookError, WebhookRequest},
    collect::STORE_RETRY,
    config::Target,
    entry::{About, id_text},
    outbox::{Head, Outbox, Tries},
    pace::{Pace, retry_after},
};
use crate::Span;

/// Posts one batch after the other, the oldest first, each until its fate is known.
pub(super) struct Poster {
    pub(super) outbox: Arc<Outbox>,
    pub(super) client: Arc<dyn WebhookClient>,
    pub(super) target: watch::Receiver<Option<Arc<Target>>>,
    pub(super) hooks: Arc<WebhookHooks>,
    pub(super) pace: Arc<Mutex<Pace>>,
    pub(super) stop: CancellationToken,
    /// Cancelled when nothing more comes into the outbox.
    pub(super) collected: CancellationToken,
}

/// What the receiver made of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It has it.
    Taken,
    /// It is away, or wants to be left alone: the batch waits.
    Away,
    /// It is there and failed on the batch: that may be the batch's fault, so it is tried a few times.
    Failed,
    /// It does not want it.
    Refused,
}

impl Poster {
    pub(super) async fn run(mut self) {
        let mut current: Option<Arc<Target>> = None;
        loop {
            let target = self.target.borrow_and_update().clone();
            self.turn_to(target.as_ref(), current.as_ref());
            current = target;
            let next = match &current {
                Some(_) if !self.outbox.is_empty() => {
                    let is_retry = self.outbox.was_tried().await;
                    Some(self.pace.lock().next_at(is_retry, Instant::now()))
                }
                _ => None,
            };
            let time_is_over = async {
                match next {
                    Some(next) => sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                changed = self.target.changed() => {
                    if changed.is_err() {
                        break;
                    }
                }
                () = time_is_over => {
                    if let Some(target) = &current {
                        self.post_head(target).await;
                    }
                }
                () = self.outbox.news.notified() => {}
            }
        }
        if let Some(target) = current {
            self.flush(&target).await;
        }
    }

    /// What the settings are now. Whoever changed them wants to see what comes of it: what was waited for is not waited
    /// for any more.
    fn turn_to(&self, target: Option<&Arc<Target>>, before: Option<&Arc<Target>>) {
        let (Some(target), Some(before)) = (target, before) else { return };
        if Arc::ptr_eq(target, before) {
            return;
        }
        let mut pace = self.pace.lock();
        if target.url == before.url && target.config.allow_private_addresses == before.config.allow_private_addresses {
            pace.proceed();
        } else {
            *pace = Pace::new(Instant::now());
        }
    }

    /// Posts what is there, unless the receiver is known to be away; the first failure ends it.
    async fn flush(&self, target: &Target) {
        if self.pace.lock().is_waiting() {
            return;
        }
        self.collected.cancelled().await;
        while !self.outbox.is_empty() && self.post_head(target).await {}
    }

    /// Posts the oldest batch once. True where its fate is known now.
    async fn post_head(&self, target: &Target) -> bool {
        let head = match self.outbox.head().await {
            Ok(Some(head)) => head,
            Ok(None) => return false,
            Err(error) => {
                tracing::error!(%error, "a webhook batch can't be read for now");
                self.stop.run_until_cancelled(sleep(STORE_RETRY)).await;
                return false;
            }
        };
        if u128::from(head.age_ms) > target.config.max_age.as_millis() {
            let last = &head.tries.error;
            let error = if last.is_empty() { TOO_OLD.to_owned() } else { format!("{TOO_OLD}; before that: {last}") };
            let tries = Tries { error, ..head.tries.clone() };
            return self.give_up(&head, tries).await;
        }

        self.pace.lock().begin(head.tries.attempts > 0, Instant::now());
        let spans = Spans::begin(&head.entry.about, &self.hooks);
        let request = request(&head, target, spans.header());
        let started = Instant::now();
        // A client has its own limit, and says what took so long. This one is for clients that do not keep to it.
        let result = timeout(target.config.timeout + GRACE, self.client.post(request)).await;
        let result = result.unwrap_or(Err(WebhookError::Timeout));
        let latency = started.elapsed();
        (self.hooks.on_request)(WebhookOutcome { status: label(&result), latency });
        let verdict = Verdict::of(&result);
        let error = (verdict != Verdict::Taken).then(|| error_text(&result));
        spans.end(&head.entry.about, &result, error.as_deref(), &self.hooks);

        let mut tries = head.tries.clone();
        tries.attempts = tries.attempts.saturating_add(1);
        tries.failed += u32::from(verdict == Verdict::Failed);
        tries.status = result.as_ref().ok().map(|answer| answer.status);
        tries.error = error.unwrap_or_default();
        log(&head, target, &tries, &result, latency);

        let now = Instant::now();
        let wish = result.ok().and_then(|answer| answer.retry_after);
        let wish = wish.and_then(|text| retry_after(&text, SystemTime::now()));
        match verdict {
            Verdict::Taken => {
                self.pace.lock().answered();
                self.until_stored(|| self.outbox.remove(head.key)).await
            }
            Verdict::Refused => {
                self.pace.lock().answered();
                self.give_up(&head, tries).await
            }
            Verdict::Failed if tries.failed > target.config.retries => {
                self.pace.lock().gave_up(wish, now);
                self.give_up(&head, tries).await
            }
            Verdict::Away | Verdict::Failed => {
                self.pace.lock().failed(wish, now);
                self.outbox.put_back(head.key, tries).await;
                false
            }
        }
    }

    async fn give_up(&self, head: &Head, tries: Tries) -> bool {
        let About { id, events, .. } = &head.entry.about;
        tracing::error!(
            batch = id_text(*id),
            events,
            attempts = tries.attempts,
            error = tries.error,
            "a webhook batch was given up and is a dead letter"
        );
        self.until_stored(|| self.outbox.bury(head.key, &head.entry, &tries)).await
    }

    /// Does something to the store until it works: the batch must not be posted again only because its store was busy.
    /// False where the shutdown came first; then it is posted again after the next start, with the same id.
    async fn until_stored<F: Future<Output = Result<(), super::OutboxError>>>(&self, change: impl Fn() -> F) -> bool {
        loop {
            let Err(error) = change().await else { return true };
            tracing::error!(%error, "the fate of a webhook batch can't be kept for now");
            if self.stop.run_until_cancelled(sleep(STORE_RETRY)).await.is_none() {
                return change().await.is_ok();
            }
        }
    }
}

impl Verdict {
    fn of(result: &Result<WebhookAnswer, WebhookError>) -> Self {
        match result.as_ref().map(|answer| answer.status) {
            Ok(200..=299) => Self::Taken,
            // Request timeout, too early, too many requests, unavailable.
            Err(_) | Ok(408 | 425 | 429 | 503) => Self::Away,
            Ok(500..=599) => Self::Failed,
            // Redirects too: they are not followed.
            Ok(_) => Self::Refused,
        }
    }
}

/// The spans of one request, one for each trace that it is part of.
struct Spans {
    start: SystemTime,
    /// What caused it, and the id of the span.
    traces: Vec<(TraceContext, u64)>,
    is_recorded: bool,
}

impl Spans {
    fn begin(about: &About, hooks: &WebhookHooks) -> Self {
        let traces = about.traces().map(|trace| (trace, fastrand::u64(1..))).collect();
        Self { start: SystemTime::now(), traces, is_recorded: hooks.spans.is_some() }
    }

    /// What the receiver's spans are caused by: this one's span, or what caused it where nobody keeps that.
    fn header(&self) -> Option<TraceContext> {
        let &(trace, span_id) = self.traces.first()?;
        Some(if self.is_recorded && trace.is_sampled { trace.child(span_id) } else { trace })
    }

    fn end(
        self,
        about: &About,
        result: &Result<WebhookAnswer, WebhookError>,
        error: Option<&str>,
        hooks: &WebhookHooks,
    ) {
        let Some(sink) = &hooks.spans else { return };
        for (trace, span_id) in self.traces.into_iter().filter(|(trace, _)| trace.is_sampled) {
            let mut span = Span::new("wsc.webhook", trace, span_id, self.start)
                .with("wsc.webhook.id", id_text(about.id))
                .with("wsc.webhook.events", about.events.to_string());
            if let Ok(answer) = result {
                span = span.with("http.response.status_code", answer.status.to_string());
            }
            sink.finished(match error {
                Some(error) => span.failed(error),
                None => span,
            });
        }
    }
}

fn request(head: &Head, target: &Target, trace: Option<TraceContext>) -> WebhookRequest {
    let Head { entry, .. } = head;
    let id = id_text(entry.about.id);
    // Of this attempt, so that a receiver that refuses old requests takes one that had to wait.
    let timestamp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut headers = target.headers.clone();
    let signature = target.signer.sign(&id, timestamp.cast_signed(), &entry.body);
    let set = |headers: &mut HeaderMap, name: &'static str, value: Option<String>| {
        // All are letters, digits and a few signs.
        if let Some(Ok(value)) = value.map(HeaderValue::try_from) {
            headers.insert(name, value);
        }
    };
    set(&mut headers, "webhook-id", Some(id));
    set(&mut headers, "webhook-timestamp", Some(timestamp.to_string()));
    set(&mut headers, "webhook-signature", signature);
    set(&mut headers, "traceparent", trace.map(|trace| trace.to_string()));
    WebhookRequest {
        url: target.url.clone(),
        headers,
        body: entry.body.clone(),
        timeout: target.config.timeout,
        allow_private_addresses: target.config.allow_private_addresses,
    }
}

fn label(result: &Result<WebhookAnswer, WebhookError>) -> Cow<'static, str> {
    match result {
        Ok(answer) => answer.status.to_string().into(),
        Err(error) => error.as_str().into(),
    }
}

/// What went wrong, for people. What the receiver wrote is shortened, and can't break a line of a log.
fn error_text(result: &Result<WebhookAnswer, WebhookError>) -> String {
    let text = match result {
        Ok(WebhookAnswer { status, body, .. }) if body.trim().is_empty() => format!("status {status}"),
        Ok(WebhookAnswer { status, body, .. }) => format!("status {status}: {}", body.trim()),
        Err(error) => error.to_string(),
    };
    text.chars().take(LONGEST_ERROR).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// With the fields of go-wsc's callback records (event, duration in milliseconds, error).
fn log(head: &Head, target: &Target, tries: &Tries, result: &Result<WebhookAnswer, WebhookError>, latency: Duration) {
    let About { id, events, types, .. } = &head.entry.about;
    let (event, batch, host) = (types.first().map(String::as_str), id_text(*id), target.host());
    let duration = latency.as_secs_f64() * 1e3;
    let Tries { attempts, error, .. } = tries;
    match result {
        Ok(_) if error.is_empty() => tracing::debug!(event, duration, batch, events, attempts, host, "webhook posted"),
        // Somebody's mistake, or somebody's attack.
        Err(WebhookError::RefusedAddress(_)) => {
            tracing::error!(event, duration, error, batch, events, attempts, host, "webhook not posted");
        }
        _ => tracing::warn!(event, duration, error, batch, events, attempts, host, "webhook failed"),
    }
}

/// What a client gets on top of the time that it was given.
const GRACE: Duration = Duration::from_secs(1);

const TOO_OLD: &str = "the receiver was away for too long";

/// Characters.
const LONGEST_ERROR: usize = 300;
