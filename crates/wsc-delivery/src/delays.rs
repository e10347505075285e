//! How long to wait before each retry.

use std::{iter::FusedIterator, time::Duration};

use crate::{RetryPolicy, rng::SplitMix64};

/// The delays before the retries of one message, as many as there are retries.
///
/// Delay number n is base × factorⁿ, at most `max_delay`, and then moved up or down by at most the jitter's share of
/// it. It is an iterator so that it can be asked one by one, or handed to whatever drives retries.
#[derive(Clone, Debug, PartialEq)]
pub struct Delays {
    left: u32,
    /// Before jitter, in seconds; never more than `max`.
    next: f64,
    max: f64,
    factor: f64,
    jitter: f64,
    rng: SplitMix64,
}

impl Delays {
    pub(crate) fn new(policy: &RetryPolicy, seed: u64) -> Self {
        let config = policy.config();
        Self {
            left: config.max_retries,
            next: config.base_delay.as_secs_f64(),
            max: config.max_delay.as_secs_f64(),
            factor: config.backoff_factor,
            jitter: config.jitter,
            rng: SplitMix64::new(seed),
        }
    }
}

impl Iterator for Delays {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.left = self.left.checked_sub(1)?;
        let plain = self.next;
        // The product of two finite numbers may be infinite; the cap takes care of that, and 0 stays 0.
        self.next = (plain * self.factor).min(self.max);
        let jittered = plain * (1.0 + self.jitter * self.rng.next_signed_unit());
        // Only delays beyond what a Duration holds fail here, and those are as good as never.
        Some(Duration::try_from_secs_f64(jittered).unwrap_or(Duration::MAX))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        (left, Some(left))
    }
}

impl ExactSizeIterator for Delays {}
impl FusedIterator for Delays {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::{RetryConfig, RetryPolicy};

    use super::*;

    fn policy(change: impl FnOnce(&mut RetryConfig)) -> RetryPolicy {
        let mut config = RetryConfig::default();
        change(&mut config);
        RetryPolicy::new(config).unwrap()
    }

    #[test]
    fn delays_grow_to_their_cap() {
        let plain = policy(|c| {
            c.max_retries = 8;
            c.jitter = 0.0;
        });
        let ms: Vec<_> = plain.delays(1).map(|d| d.as_millis()).collect();
        assert_eq!(ms, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }

    #[test]
    fn no_retries_means_no_delay() {
        assert_eq!(policy(|c| c.max_retries = 0).delays(1).next(), None);
    }

    #[test]
    fn seeds_spread_the_retries_of_many() {
        let first = |seed| policy(|_| {}).delays(seed).next();
        assert!((0..100).any(|seed| first(seed) != first(0)));
    }

    #[test]
    fn extreme_settings_stay_finite() {
        let extreme = policy(|c| {
            c.max_retries = 2000;
            c.backoff_factor = 1e300;
            c.max_delay = Duration::MAX;
            c.jitter = 1.0;
        });
        assert_eq!(extreme.delays(3).count(), 2000);
        let zero = policy(|c| {
            c.base_delay = Duration::ZERO;
            c.backoff_factor = 1e300;
        });
        assert!(zero.delays(3).all(|d| d.is_zero()));
    }

    proptest! {
        #[test]
        fn every_delay_is_within_its_share(
            retries in 0..40_u32, base in 0..10_000_u64, spread in 0..100_000_u64,
            factor in 1.0..10.0_f64, jitter in 0.0..=1.0_f64, seed: u64,
        ) {
            let policy = policy(|c| {
                c.max_retries = retries;
                c.base_delay = Duration::from_millis(base);
                c.max_delay = Duration::from_millis(base + spread);
                c.backoff_factor = factor;
                c.jitter = jitter;
            });
            let delays = policy.delays(seed);
            prop_assert_eq!(delays.len(), retries as usize);
            let delays: Vec<_> = delays.collect();
            prop_assert_eq!(delays.len(), retries as usize);
            prop_assert_eq!(&delays, &policy.delays(seed).collect::<Vec<_>>());

            for (n, delay) in delays.iter().enumerate() {
                let plain = (base as f64 / 1e3 * factor.powi(n as i32)).min((base + spread) as f64 / 1e3);
                let (low, high) = (plain * (1.0 - jitter), plain * (1.0 + jitter));
                let slack = plain * 1e-9 + 1e-8;
                let seconds = delay.as_secs_f64();
                prop_assert!(low - slack <= seconds && seconds <= high + slack, "{n}: {low} {seconds} {high}");
            }
        }
    }
}
