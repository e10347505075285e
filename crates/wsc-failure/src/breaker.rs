//! A circuit breaker: who fails all the time is left alone for a while.
//!
//! It is our own because three things have to hold for sinks that those we looked at do not give together: its state
//! can be read, a call that is dropped at a time limit counts as a failure, and while it is half open no more than a
//! few calls try their luck at a time.

use std::{fmt, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

/// When a breaker opens, and for how long.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BreakerConfig {
    /// How many of the last calls are looked at. Default 20, within 1 and 64. More forgives longer bursts.
    pub window: u32,
    /// How many calls there must be before any judgement. Default 5, at most the window.
    pub min_calls: u32,
    /// The share of failed calls that opens it. Default 0.5; 1.0 opens it only when all failed.
    pub failure_rate: f64,
    /// How long it stays open. Default 1 second; doubled each time it opens again without having closed.
    pub open_for: Duration,
    /// How long it stays open at most. Default 1 minute.
    pub max_open: Duration,
    /// While half open: how many calls may try at a time, and how many have to succeed before it closes. Default 1,
    /// at least 1.
    pub probes: u32,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            window: 20,
            min_calls: 5,
            failure_rate: 0.5,
            open_for: Duration::from_secs(1),
            max_open: Duration::from_secs(60),
            probes: 1,
        }
    }
}

/// What a breaker does with the next call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BreakerState {
    /// It is made.
    Closed,
    /// It is refused.
    Open,
    /// It is made to see whether the other side is back, unless others try already.
    HalfOpen,
}

impl BreakerState {
    /// `closed`, `open` or `half_open`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

impl fmt::Display for BreakerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a call gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BreakerError<E> {
    /// It was not made.
    #[error("the circuit breaker is open")]
    Open,
    /// It was made and failed.
    #[error("{0}")]
    Failed(E),
}

/// Guards calls to something that may be down. Clones share one state.
///
/// ```
/// use wsc_failure::{Breaker, BreakerError, BreakerState};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let breaker = Breaker::new(Default::default());
/// for _ in 0..5 {
///     let _ = breaker.call(async { Err::<(), _>("connection refused") }).await;
/// }
/// assert_eq!(breaker.state(), BreakerState::Open);
/// let refused = breaker.call(async { Ok::<_, &str>(()) }).await;
/// assert_eq!(refused, Err(BreakerError::Open));
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Breaker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: BreakerConfig,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    phase: Phase,
    /// Goes up with every change of phase: a call counts only in the phase that it began in.
    generation: u64,
    /// How often it opened since it was last closed.
    reopened: u32,
    opened_total: u64,
    refused_total: u64,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// The last results, newest in the lowest bit; a set bit is a failure.
    Closed {
        results: u64,
        len: u32,
    },
    Open {
        until: Instant,
    },
    HalfOpen {
        running: u32,
        succeeded: u32,
    },
}

impl Breaker {
    /// A closed breaker.
    pub fn new(config: BreakerConfig) -> Self {
        let inner = Inner { phase: Phase::CLOSED, generation: 0, reopened: 0, opened_total: 0, refused_total: 0 };
        Self { shared: Arc::new(Shared { config, inner: Mutex::new(inner) }) }
    }

    /// Awaits `call` unless the breaker is open, and notes whether it came back with `Ok`.
    ///
    /// # Errors
    ///
    /// [`BreakerError::Open`] where it was not made, else the call's own error.
    ///
    /// # Cancel safety
    ///
    /// A call that is dropped before it comes back counts as failed: that is what becomes of one that hangs.
    pub async fn call<T, E>(&self, call: impl Future<Output = Result<T, E>>) -> Result<T, BreakerError<E>> {
        let permit = self.try_acquire().ok_or(BreakerError::Open)?;
        match call.await {
            Ok(value) => {
                permit.succeeded();
                Ok(value)
            }
            Err(error) => {
                permit.failed();
                Err(BreakerError::Failed(error))
            }
        }
    }

    /// Permission for one call; `None` while the breaker is open. The permit wants to hear how the call went.
    pub fn try_acquire(&self) -> Option<Permit> {
        let mut inner = self.shared.inner.lock();
        if let Phase::Open { until } = inner.phase
            && Instant::now() >= until
        {
            inner.enter(Phase::HalfOpen { running: 0, succeeded: 0 });
        }
        let probes = self.shared.config.probes.max(1);
        let is_permitted = match &mut inner.phase {
            Phase::Closed { .. } => true,
            Phase::HalfOpen { running, .. } if *running < probes => {
                *running += 1;
                true
            }
            Phase::Open { .. } | Phase::HalfOpen { .. } => false,
        };
        if !is_permitted {
            inner.refused_total += 1;
            return None;
        }
        Some(Permit { shared: Arc::clone(&self.shared), generation: inner.generation, is_settled: false })
    }

    /// What would become of a call now.
    pub fn state(&self) -> BreakerState {
        match self.shared.inner.lock().phase {
            Phase::Closed { .. } => BreakerState::Closed,
            Phase::Open { until } if Instant::now() < until => BreakerState::Open,
            Phase::Open { .. } | Phase::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// How often it opened.
    pub fn times_opened(&self) -> u64 {
        self.shared.inner.lock().opened_total
    }

    /// How many calls it refused.
    pub fn calls_refused(&self) -> u64 {
        self.shared.inner.lock().refused_total
    }
}

impl Default for Breaker {
    fn default() -> Self {
        Self::new(BreakerConfig::default())
    }
}

/// Permission for one call. Dropping it says that the call failed.
#[derive(Debug)]
#[must_use = "dropping it counts as a failed call"]
pub struct Permit {
    shared: Arc<Shared>,
    generation: u64,
    is_settled: bool,
}

impl Permit {
    /// The call came back well.
    pub fn succeeded(mut self) {
        self.settle(true);
    }

    /// The call failed.
    pub fn failed(mut self) {
        self.settle(false);
    }

    fn settle(&mut self, is_success: bool) {
        self.is_settled = true;
        let mut inner = self.shared.inner.lock();
        if inner.generation == self.generation {
            inner.note(is_success, &self.shared.config);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.is_settled {
            self.settle(false);
        }
    }
}

impl Inner {
    fn note(&mut self, is_success: bool, config: &BreakerConfig) {
        match &mut self.phase {
            Phase::Closed { results, len } => {
                let window = config.window.clamp(1, 64);
                *results = (*results << 1 | u64::from(!is_success)) & (u64::MAX >> (64 - window));
                *len = (*len + 1).min(window);
                let (failures, calls) = (results.count_ones(), *len);
                // Only a failure opens it: a success that pushes another one out of the window is no bad news.
                if !is_success
                    && calls >= config.min_calls.min(window)
                    && f64::from(failures) >= config.failure_rate * f64::from(calls)
                {
                    self.open(config);
                }
            }
            Phase::HalfOpen { running, succeeded } if is_success => {
                *running -= 1;
                *succeeded += 1;
                if *succeeded >= config.probes.max(1) {
                    self.reopened = 0;
                    self.enter(Phase::CLOSED);
                }
            }
            Phase::HalfOpen { .. } => self.open(config),
            // No call begins in this phase, so none counts in it.
            Phase::Open { .. } => {}
        }
    }

    fn open(&mut self, config: &BreakerConfig) {
        let doubled = config.open_for.saturating_mul(1 << self.reopened.min(20));
        self.reopened = self.reopened.saturating_add(1);
        self.opened_total += 1;
        self.enter(Phase::Open { until: Instant::now() + doubled.min(config.max_open) });
    }

    fn enter(&mut self, phase: Phase) {
        self.generation += 1;
        self.phase = phase;
    }
}

impl Phase {
    const CLOSED: Self = Self::Closed { results: 0, len: 0 };
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    fn breaker(change: impl FnOnce(&mut BreakerConfig)) -> Breaker {
        let mut config = BreakerConfig::default();
        change(&mut config);
        Breaker::new(config)
    }

    async fn call(breaker: &Breaker, is_success: bool) -> Result<(), BreakerError<&'static str>> {
        breaker.call(async { if is_success { Ok(()) } else { Err("down") } }).await
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_waits_tries_and_closes() {
        let breaker = breaker(|_| {});
        for _ in 0..4 {
            assert_eq!(call(&breaker, false).await, Err(BreakerError::Failed("down")));
            assert_eq!(breaker.state(), BreakerState::Closed);
        }
        assert!(call(&breaker, false).await.is_err());
        assert_eq!(breaker.state(), BreakerState::Open);
        assert_eq!(call(&breaker, true).await, Err(BreakerError::Open));

        advance(Duration::from_millis(999)).await;
        assert_eq!(call(&breaker, true).await, Err(BreakerError::Open));
        advance(Duration::from_millis(1)).await;
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        assert_eq!(call(&breaker, true).await, Ok(()));
        assert_eq!(breaker.state(), BreakerState::Closed);
        assert_eq!((breaker.times_opened(), breaker.calls_refused()), (1, 2));

        // It begins with an empty window: one failure is no reason.
        assert_eq!(call(&breaker, false).await, Err(BreakerError::Failed("down")));
        assert_eq!(breaker.state(), BreakerState::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn each_probe_in_vain_doubles_the_wait_up_to_its_limit() {
        let breaker = breaker(|config| config.max_open = Duration::from_secs(5));
        for _ in 0..5 {
            let _ = call(&breaker, false).await;
        }
        for seconds in [1, 2, 4, 5, 5] {
            advance(Duration::from_secs(seconds) - Duration::from_millis(1)).await;
            assert_eq!(breaker.state(), BreakerState::Open, "{seconds}");
            advance(Duration::from_millis(1)).await;
            assert_eq!(call(&breaker, false).await, Err(BreakerError::Failed("down")));
        }
        advance(Duration::from_secs(5)).await;
        assert_eq!(call(&breaker, true).await, Ok(()));
        // Closed once, it begins again with the short wait.
        for _ in 0..5 {
            let _ = call(&breaker, false).await;
        }
        advance(Duration::from_secs(1)).await;
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
    }

    #[tokio::test]
    async fn the_share_of_the_last_calls_decides() {
        let breaker = breaker(|config| {
            config.window = 10;
            config.min_calls = 10;
        });
        // Four of ten at any time: never enough.
        for n in 0..200 {
            let _ = call(&breaker, n % 5 > 1).await;
            assert_eq!(breaker.state(), BreakerState::Closed, "{n}");
        }
        for _ in 0..3 {
            let _ = call(&breaker, false).await;
        }
        assert_eq!(breaker.state(), BreakerState::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_hangs_has_failed() {
        let breaker = breaker(|config| config.min_calls = 1);
        let hang = breaker.call(std::future::pending::<Result<(), &str>>());
        assert!(timeout(Duration::from_secs(1), hang).await.is_err());
        assert_eq!(breaker.state(), BreakerState::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn only_as_many_try_as_may_and_late_ones_change_nothing() {
        let breaker = breaker(|config| config.probes = 2);
        let early = breaker.try_acquire().unwrap();
        for _ in 0..5 {
            let _ = call(&breaker, false).await;
        }
        advance(Duration::from_secs(1)).await;
        let (first, second) = (breaker.try_acquire().unwrap(), breaker.try_acquire().unwrap());
        assert!(breaker.try_acquire().is_none());
        // It began before the breaker opened.
        early.failed();
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        first.succeeded();
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        second.succeeded();
        assert_eq!(breaker.state(), BreakerState::Closed);
    }
}
