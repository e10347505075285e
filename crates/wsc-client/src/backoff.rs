//! How long to wait before the next attempt to connect. No clock, no task: times are arguments.

use std::time::Duration;

/// How attempts to connect are spread out: *full jitter*.
///
/// Before the attempt after `n` failures in a row the client waits a random time between zero and
/// `min(cap, base · 2ⁿ)`. Thousands of clients that were cut at the same moment therefore come back one by one, and
/// none of them hammers a hub that stays away.
///
/// Where the hub says how long to wait, that time is added: it is never undercut, and clients that were told the same
/// time still do not come together.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Backoff {
    /// The longest wait after the first failure. Default 500 ms. Raising it spreads a crowd wider and makes a
    /// single client slower to return.
    pub base: Duration,
    /// The longest wait after any number of failures. Default 30 s.
    pub cap: Duration,
    /// How long a connection has to stand before its end counts as a first failure again. Default 10 s. Without it
    /// a hub that accepts and closes at once would be asked without pause.
    pub stable_after: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { base: Duration::from_millis(500), cap: Duration::from_secs(30), stable_after: Duration::from_secs(10) }
    }
}

impl Backoff {
    /// The default with another [`base`](Self::base) and [`cap`](Self::cap).
    pub fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, ..Self::default() }
    }

    /// The longest wait after `failures` failures in a row.
    fn ceiling(&self, failures: u32) -> Duration {
        let factor = 2_u32.checked_pow(failures).unwrap_or(u32::MAX);
        self.base.saturating_mul(factor).min(self.cap)
    }
}

/// Where one client stands in its [`Backoff`].
#[derive(Debug)]
pub(crate) struct Schedule {
    backoff: Backoff,
    failures: u32,
    random: fastrand::Rng,
}

impl Schedule {
    pub(crate) fn new(backoff: Backoff, random: fastrand::Rng) -> Self {
        Self { backoff, failures: 0, random }
    }

    /// A connection ended that had stood for so long.
    pub(crate) fn connection_ended(&mut self, stood: Duration) {
        if stood >= self.backoff.stable_after {
            self.failures = 0;
        }
    }

    /// How long to wait now, at least `at_least`; counts as one more failure.
    pub(crate) fn next_delay(&mut self, at_least: Duration) -> Duration {
        let ceiling = self.backoff.ceiling(self.failures);
        self.failures = self.failures.saturating_add(1);
        let nanos = u64::try_from(ceiling.as_nanos()).unwrap_or(u64::MAX);
        let jitter = Duration::from_nanos(self.random.u64(0..=nanos));
        at_least.min(LONGEST_WAIT).saturating_add(jitter)
    }

    /// Failures in a row so far.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }
}

/// A hub that asks for more than a day has made a mistake, and the clock must not overflow because of it.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn schedule(base: u64, cap: u64, seed: u64) -> Schedule {
        let backoff = Backoff::new(Duration::from_millis(base), Duration::from_millis(cap));
        Schedule::new(backoff, fastrand::Rng::with_seed(seed))
    }

    proptest! {
        #[test]
        fn a_wait_is_between_what_the_hub_asks_and_the_ceiling_above_it(
            base in 0_u64..5_000, cap in 0_u64..60_000, seed: u64, asked in 0_u64..100_000,
        ) {
            let mut schedule = schedule(base, cap, seed);
            for failures in 0..70 {
                let delay = schedule.next_delay(Duration::from_millis(asked));
                let ceiling = base.saturating_mul(1_u64.checked_shl(failures).unwrap_or(u64::MAX)).min(cap);
                prop_assert!(delay >= Duration::from_millis(asked));
                prop_assert!(delay <= Duration::from_millis(asked + ceiling), "{delay:?} after {failures}");
            }
        }

        #[test]
        fn only_a_stable_connection_starts_over(stood in 0_u64..20_000) {
            let mut schedule = schedule(100, 10_000, 1);
            for _ in 0..5 {
                schedule.next_delay(Duration::ZERO);
            }
            schedule.connection_ended(Duration::from_millis(stood));
            prop_assert_eq!(schedule.failures(), if stood >= 10_000 { 0 } else { 5 });
        }
    }

    #[test]
    fn the_whole_range_is_used() {
        // Full jitter: not only the upper half, and not only around the middle.
        let delays: Vec<_> =
            (0..1000).map(|seed| schedule(1_000, 1_000, seed).next_delay(Duration::ZERO).as_millis()).collect();
        assert!(delays.iter().filter(|ms| **ms < 100).count() > 50);
        assert!(delays.iter().filter(|ms| **ms > 900).count() > 50);
    }

    #[test]
    fn an_absurd_wish_does_not_overflow_the_clock() {
        let delay = schedule(1, 1, 1).next_delay(Duration::MAX);
        assert!(delay <= LONGEST_WAIT + Duration::from_millis(1));
    }
}
