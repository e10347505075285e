//! When the next request may be made: backoff, `Retry-After`, the circuit breaker and the budget of retries.
//!
//! It is told the time and owns no timer. One request is in flight at a time, so a half-open breaker lets through one
//! probe by itself. Breakers that we looked at take their time from the operating system and keep their state to
//! themselves; this one has to be shown in statistics and tested without waiting.

use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::time::Instant;
use tokio_retry::strategy::ExponentialBackoff;

/// What the breaker of a webhook's URL does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WebhookBreaker {
    /// Requests are made.
    #[default]
    Closed,
    /// No request is made for a while: too many failed in a row.
    Open,
    /// The next request shows whether the receiver is back.
    HalfOpen,
}

impl WebhookBreaker {
    /// `closed`, `open` or `half_open`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// Decides when one URL is asked again.
#[derive(Debug)]
pub(super) struct Pace {
    breaker: Breaker,
    budget: Budget,
    backoff: ExponentialBackoff,
    /// Set while the last request failed.
    not_before: Option<Instant>,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { breaker: Breaker::default(), budget: Budget::full(now), backoff: BACKOFF, not_before: None }
    }

    /// When the next request may be made; a time in the past where it may be made now.
    pub(super) fn next_at(&self, is_retry: bool, now: Instant) -> Instant {
        let budget = if is_retry { self.budget.ready_at(now) } else { now };
        [self.not_before, self.breaker.open_until].into_iter().flatten().fold(budget, Instant::max)
    }

    /// Whether the last request failed.
    pub(super) fn is_waiting(&self) -> bool {
        self.not_before.is_some() || self.breaker.open_until.is_some()
    }

    pub(super) fn breaker(&self, now: Instant) -> WebhookBreaker {
        self.breaker.state(now)
    }

    /// A request is made.
    pub(super) fn begin(&mut self, is_retry: bool, now: Instant) {
        self.budget.spend(is_retry, now);
    }

    /// The receiver is there: it took the batch, or refused it.
    pub(super) fn answered(&mut self) {
        self.breaker = Breaker::default();
        self.proceed();
    }

    /// The request failed. `retry_after` is what the receiver asked for.
    pub(super) fn failed(&mut self, retry_after: Option<Duration>, now: Instant) {
        self.breaker.failed(now);
        let ceiling = self.backoff.next().unwrap_or(LONGEST_BACKOFF);
        let delay = ceiling.mul_f64(fastrand::f64()).max(retry_after.unwrap_or_default());
        self.not_before = Some(now + delay);
    }

    /// The request failed, and its batch is not tried again. `retry_after` holds for the next one.
    pub(super) fn gave_up(&mut self, retry_after: Option<Duration>, now: Instant) {
        self.breaker.failed(now);
        self.proceed();
        self.not_before = retry_after.map(|wish| now + wish);
    }

    /// Another batch is next; the backoff was the last one's. The breaker stays as it is.
    pub(super) fn proceed(&mut self) {
        self.backoff = BACKOFF;
        self.not_before = None;
    }
}

/// How long a header `Retry-After` asks to wait: seconds, or a date. `None` where it can't be read. At most an hour,
/// so that one wrong date does not switch the webhook off.
pub(super) fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    let asked = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        // What does not fit is longer than any limit.
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()
    };
    Some(asked.min(LONGEST_RETRY_AFTER))
}

#[derive(Debug, Default)]
struct Breaker {
    failures: u32,
    open_until: Option<Instant>,
    /// How often it opened since it was last closed.
    opened: u32,
}

impl Breaker {
    fn state(&self, now: Instant) -> WebhookBreaker {
        match self.open_until {
            None => WebhookBreaker::Closed,
            Some(until) if now < until => WebhookBreaker::Open,
            Some(_) => WebhookBreaker::HalfOpen,
        }
    }

    fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FAILURES_TO_OPEN {
            let open_for = OPEN_FOR.saturating_mul(1 << self.opened.min(8)).min(LONGEST_OPEN);
            self.open_until = Some(now + open_for);
            self.opened = self.opened.saturating_add(1);
        }
    }
}

/// How many requests may be retries, over all batches: [`RETRIES_PER_SECOND`], and [`RETRIES_PER_FIRST`] more for each
/// first request. What is not used is kept, up to [`RETRIES_AT_ONCE`].
#[derive(Debug)]
struct Budget {
    tokens: f64,
    at: Instant,
}

impl Budget {
    fn full(now: Instant) -> Self {
        Self { tokens: RETRIES_AT_ONCE, at: now }
    }

    fn tokens(&self, now: Instant) -> f64 {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * RETRIES_PER_SECOND;
        (self.tokens + earned).min(RETRIES_AT_ONCE)
    }

    fn ready_at(&self, now: Instant) -> Instant {
        let missing = 1.0 - self.tokens(now);
        // Rounded up: a little too early, and the caller would ask again at once.
        if missing <= 0.0 {
            now
        } else {
            now + Duration::from_millis((missing / RETRIES_PER_SECOND * 1e3).ceil() as u64)
        }
    }

    fn spend(&mut self, is_retry: bool, now: Instant) {
        let change = if is_retry { -1.0 } else { RETRIES_PER_FIRST };
        self.tokens = (self.tokens(now) + change).clamp(0.0, RETRIES_AT_ONCE);
        self.at = now;
    }
}

const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

/// 1, 2, 4 … 60 seconds; each delay is a random part of that, so that receivers that served many hubs are not met by
/// all of them at once.
const BACKOFF: ExponentialBackoff = ExponentialBackoff::from_millis(2).factor(500).max_delay(LONGEST_BACKOFF);

const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);

const FAILURES_TO_OPEN: u32 = 5;
/// Doubled each time that it opens again without having closed.
const OPEN_FOR: Duration = Duration::from_secs(5);
const LONGEST_OPEN: Duration = Duration::from_secs(60);

const RETRIES_PER_SECOND: f64 = 1.0;
const RETRIES_PER_FIRST: f64 = 0.2;
const RETRIES_AT_ONCE: f64 = 10.0;

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn five_failures_open_the_breaker_and_a_failed_probe_opens_it_for_longer() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        for _ in 0..4 {
            pace.failed(None, start);
            assert_eq!(pace.breaker(start), WebhookBreaker::Closed);
        }
        pace.failed(None, start);
        let mut now = start;
        for open_for in [5, 10, 20, 40, 60, 60, 60] {
            assert_eq!(pace.breaker(now + SECOND * open_for - SECOND / 100), WebhookBreaker::Open);
            assert_eq!(pace.breaker(now + SECOND * open_for), WebhookBreaker::HalfOpen);
            assert!(pace.next_at(true, now) >= now + SECOND * open_for);
            now += SECOND * open_for;
            pace.failed(None, now);
        }
        pace.answered();
        assert_eq!(pace.breaker(now), WebhookBreaker::Closed);
        // It needs five again.
        pace.failed(None, now);
        assert_eq!(pace.breaker(now), WebhookBreaker::Closed);
    }

    #[test]
    fn delays_are_random_below_a_ceiling_that_grows() {
        for _ in 0..50 {
            let now = Instant::now();
            let mut pace = Pace::new(now);
            for ceiling in [1, 2, 4, 8] {
                pace.failed(None, now);
                assert!(pace.not_before.unwrap() - now <= SECOND * ceiling);
            }
        }
        let longest = (0..200).map(|_| {
            let mut pace = Pace::new(Instant::now());
            let now = pace.budget.at;
            (0..20).for_each(|_| pace.failed(None, now));
            pace.not_before.unwrap() - now
        });
        let (least, most) = longest.fold((SECOND * 99, Duration::ZERO), |(l, m), d| (l.min(d), m.max(d)));
        assert!(most <= SECOND * 60 && most > SECOND * 30 && least < SECOND * 30, "{least:?} {most:?}");
    }

    #[test]
    fn a_receivers_wish_is_the_least_that_is_waited() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        pace.failed(Some(SECOND * 90), now);
        assert_eq!(pace.next_at(true, now), now + SECOND * 90);
        // Also for another batch.
        assert_eq!(pace.next_at(false, now), now + SECOND * 90);
    }

    #[test]
    fn retries_have_a_budget() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let (mut now, mut retries) = (start, 0);
        while now < start + SECOND * 100 {
            pace.begin(false, now);
            // Each batch fails once and is tried again as soon as that is allowed, whatever the backoff says.
            now = pace.next_at(true, now);
            pace.begin(true, now);
            retries += 1;
        }
        // Ten at once, one each second, and a fifth of as many first requests.
        assert!((110..=140).contains(&retries), "{retries}");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = UNIX_EPOCH + Duration::from_secs(1_445_412_420);
        assert_eq!(retry_after("120", now), Some(SECOND * 120));
        assert_eq!(retry_after(" 0 ", now), Some(Duration::ZERO));
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:28:00 GMT", now), Some(SECOND * 60));
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:20:00 GMT", now), Some(Duration::ZERO));
        for far in ["99999999999999999999999", "86400", "Wed, 21 Oct 2099 07:28:00 GMT"] {
            assert_eq!(retry_after(far, now), Some(SECOND * 3600), "{far}");
        }
        for bad in ["", "soon", "-1", "1.5", "+3"] {
            assert_eq!(retry_after(bad, now), None, "{bad}");
        }
    }
}
