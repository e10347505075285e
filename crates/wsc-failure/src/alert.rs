//! Says once that too much fails.

use std::{fmt, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;
use wsc_protocol::{FailureKind, FailureReason, UserType};

use crate::FailureWatcher;

/// When an [`AlertHandler`] raises an alert.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AlertConfig {
    /// How many failures of one kind are too many. Default 100, at least 1.
    pub threshold: u64,
    /// Within which time, and how long it is quiet about that kind afterwards. Default 1 minute.
    pub window: Duration,
}

impl Default for AlertConfig {
    fn default() -> Self {
        Self { threshold: 100, window: Duration::from_secs(60) }
    }
}

/// Too many failures of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FailureAlert {
    /// The kind.
    pub kind: FailureKind,
    /// The reason of the last one.
    pub reason: FailureReason,
    /// How many there were within the window.
    pub count: u64,
    /// How many are too many.
    pub threshold: u64,
    /// The window.
    pub window: Duration,
    /// How many there were since the last alert about this kind, this one's included.
    pub since_last: u64,
}

/// Who is alerted. Functions are sinks too.
pub trait AlertSink: Send + Sync + 'static {
    /// Passes the alert on. It is called where the failure happened, so it must not block: what takes time belongs
    /// behind a channel. A panic is caught.
    fn alert(&self, alert: &FailureAlert);
}

impl<F: Fn(&FailureAlert) + Send + Sync + 'static> AlertSink for F {
    fn alert(&self, alert: &FailureAlert) {
        self(alert);
    }
}

/// Raises an alert when [`threshold`](AlertConfig::threshold) failures of one kind fall within
/// [`window`](AlertConfig::window): one line in the log at level `error`, and a call of the sink. Then it is quiet
/// about that kind for a window; when things are as bad after it, the next failure raises the next alert.
///
/// It is a [watcher](FailureWatcher), so that it hears of all failures just when there are too many for the pool. Clones
/// share one state, whose size does not depend on how much fails. Time is kept in sixtieths of the window, so a
/// failure is forgotten up to a sixtieth too early, and never too late.
#[derive(Clone)]
pub struct AlertHandler {
    shared: Arc<Shared>,
}

struct Shared {
    sink: Box<dyn AlertSink>,
    state: Mutex<State>,
}

struct State {
    config: AlertConfig,
    started: Instant,
    kinds: [Watch; FailureKind::ALL.len()],
}

impl AlertHandler {
    /// Alerts `sink`.
    pub fn new(config: AlertConfig, sink: impl AlertSink) -> Self {
        let state = State { config, started: Instant::now(), kinds: Default::default() };
        Self { shared: Arc::new(Shared { sink: Box::new(sink), state: Mutex::new(state) }) }
    }

    /// Alerts nobody but the log.
    pub fn to_log(config: AlertConfig) -> Self {
        Self::new(config, |_: &FailureAlert| {})
    }

    /// Lets other limits apply from now on. With another window counting begins anew.
    pub fn reconfigure(&self, config: AlertConfig) {
        let mut state = self.shared.state.lock();
        if state.config.window != config.window {
            state.started = Instant::now();
            state.kinds = Default::default();
        }
        state.config = config;
    }

    fn count(&self, reason: FailureReason, times: u64) {
        let alert = self.shared.state.lock().count(reason, times, Instant::now());
        // The lock is gone: a sink may come back and fail something itself.
        if let Some(alert) = alert {
            self.raise(&alert);
        }
    }

    fn raise(&self, alert: &FailureAlert) {
        let FailureAlert { kind, reason, count, threshold, since_last, .. } = alert;
        tracing::error!(
            kind = kind.as_str(),
            reason = reason.as_str(),
            count,
            threshold,
            since_last,
            window_ms = u64::try_from(alert.window.as_millis()).unwrap_or(u64::MAX),
            "too many messages fail"
        );
        let sink = AssertUnwindSafe(|| self.shared.sink.alert(alert));
        if std::panic::catch_unwind(sink).is_err() {
            tracing::error!("the sink of failure alerts panicked");
        }
    }
}

impl FailureWatcher for AlertHandler {
    fn on_failures(&self, reason: FailureReason, _: Option<UserType>, times: u64) {
        self.count(reason, times);
    }
}

impl fmt::Debug for AlertHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlertHandler").field("config", &self.shared.state.lock().config).finish_non_exhaustive()
    }
}

impl State {
    fn count(&mut self, reason: FailureReason, times: u64, now: Instant) -> Option<FailureAlert> {
        let AlertConfig { threshold, window } = self.config;
        let slot_nanos = (window.as_nanos() / SLOTS as u128).max(1);
        let slot =
            u64::try_from(now.saturating_duration_since(self.started).as_nanos() / slot_nanos).unwrap_or(u64::MAX);
        let kind = reason.kind();
        let watch = &mut self.kinds[kind as usize];
        watch.add(slot, times);
        if watch.count < threshold.max(1) || watch.quiet_until.is_some_and(|until| now < until) {
            return None;
        }
        watch.quiet_until = now.checked_add(window);
        let since_last = std::mem::take(&mut watch.since_last);
        Some(FailureAlert { kind, reason, count: watch.count, threshold, window, since_last })
    }
}

/// The failures of one kind within the window.
struct Watch {
    /// How many in each of the last slots; the one of slot number `n` stands at `n % SLOTS`.
    slots: [u64; SLOTS],
    newest: u64,
    /// The sum over `slots`.
    count: u64,
    since_last: u64,
    quiet_until: Option<Instant>,
}

impl Watch {
    fn add(&mut self, slot: u64, times: u64) {
        // What has gone out of the window since the last failure: at most all of it.
        for old in (self.newest..slot).take(SLOTS) {
            let index = Self::index(old + 1);
            self.count -= std::mem::take(&mut self.slots[index]);
        }
        self.newest = self.newest.max(slot);
        // Bounded by the sum, so that the sum cannot overflow.
        let times = times.min(u64::MAX - self.count);
        self.slots[Self::index(self.newest)] += times;
        self.count += times;
        self.since_last = self.since_last.saturating_add(times);
    }

    fn index(slot: u64) -> usize {
        // The remainder is below 60, whatever the width.
        (slot % SLOTS as u64) as usize
    }
}

impl Default for Watch {
    fn default() -> Self {
        Self { slots: [0; SLOTS], newest: 0, count: 0, since_last: 0, quiet_until: None }
    }
}

/// Into how many parts a window is divided: fine enough for people, and a kind stays within 600 bytes.
const SLOTS: usize = 60;

#[cfg(test)]
mod tests {
    use tokio::{sync::mpsc, time::advance};

    use super::*;

    fn handler(threshold: u64, window: Duration) -> (AlertHandler, mpsc::UnboundedReceiver<FailureAlert>) {
        let (sender, alerts) = mpsc::unbounded_channel();
        let sink = move |alert: &FailureAlert| sender.send(alert.clone()).unwrap();
        (AlertHandler::new(AlertConfig { threshold, window }, sink), alerts)
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn the_last_of_too_many_raises_one_alert() {
        let (handler, mut alerts) = handler(100, MINUTE);
        for _ in 0..99 {
            handler.count(FailureReason::QueueFull, 1);
            // Another kind has its own count.
            handler.count(FailureReason::Timeout, 1);
        }
        assert!(alerts.try_recv().is_err());
        handler.count(FailureReason::BroadcastFull, 1);
        let alert = alerts.try_recv().unwrap();
        assert_eq!(
            (alert.kind, alert.reason, alert.count, alert.since_last),
            (FailureKind::QueueFull, FailureReason::BroadcastFull, 100, 100)
        );
        handler.count(FailureReason::QueueFull, 1_000_000);
        assert!(alerts.try_recv().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_lies_apart_is_not_added_up() {
        let (handler, mut alerts) = handler(100, MINUTE);
        // 99 in any minute, for two hours.
        for _ in 0..120 {
            handler.count(FailureReason::QueueFull, 99);
            advance(MINUTE).await;
        }
        assert!(alerts.try_recv().is_err());
        handler.count(FailureReason::QueueFull, 99);
        advance(Duration::from_secs(58)).await;
        handler.count(FailureReason::QueueFull, 1);
        assert_eq!(alerts.try_recv().unwrap().count, 100);
    }

    #[tokio::test(start_paused = true)]
    async fn while_it_stays_bad_there_is_one_alert_a_window() {
        let (handler, mut alerts) = handler(10, MINUTE);
        let mut raised = Vec::new();
        for second in 0..300 {
            handler.count(FailureReason::UserOffline, 1);
            if let Ok(alert) = alerts.try_recv() {
                raised.push((second, alert.since_last));
            }
            advance(Duration::from_secs(1)).await;
        }
        assert_eq!(raised, [(9, 10), (69, 60), (129, 60), (189, 60), (249, 60)]);
    }

    #[tokio::test(start_paused = true)]
    async fn it_can_be_changed_while_it_counts() {
        let (handler, mut alerts) = handler(100, MINUTE);
        handler.count(FailureReason::Unknown, 50);
        handler.reconfigure(AlertConfig { threshold: 51, window: MINUTE });
        handler.count(FailureReason::Unknown, 1);
        assert_eq!(alerts.try_recv().unwrap().count, 51);
        handler.reconfigure(AlertConfig { threshold: 51, window: Duration::from_secs(1) });
        handler.count(FailureReason::Unknown, 50);
        assert!(alerts.try_recv().is_err());
        handler.count(FailureReason::Unknown, 1);
        assert_eq!(alerts.try_recv().unwrap().window.as_secs(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn odd_limits_and_a_broken_sink_do_no_harm() {
        let handler = AlertHandler::new(AlertConfig { threshold: 0, window: Duration::ZERO }, |_: &FailureAlert| {
            panic!("no alarm today")
        });
        handler.count(FailureReason::Unknown, u64::MAX);
        handler.count(FailureReason::Unknown, u64::MAX);
        advance(Duration::from_secs(1_000_000_000)).await;
        handler.count(FailureReason::Unknown, 1);
        let never = AlertHandler::to_log(AlertConfig { threshold: 1, window: Duration::MAX });
        never.count(FailureReason::Unknown, 1);
    }
}
