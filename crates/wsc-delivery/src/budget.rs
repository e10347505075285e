//! How many retries there may be in all.

use std::time::{Duration, Instant};

/// Bounds the retries of all messages together.
///
/// A limit per message does not help in an outage: when every send fails, three retries each make four times the
/// load. So retries are paid for: each first attempt earns `ratio` of a retry, which can be spent for five to ten
/// seconds, and `min_per_second` retries come on top, of which one second's worth can be saved up, so that a hub with
/// little traffic can retry too.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryBudget {
    ratio: f64,
    min_per_second: f64,
    /// Earned in the current half of the window, and in the one before.
    earned: [f64; 2],
    half_began: Instant,
    /// What `min_per_second` has given and nobody has spent.
    reserve: f64,
    refilled: Instant,
}

/// What is earned lasts for the rest of its half and the next one.
const HALF_WINDOW: Duration = Duration::from_secs(5);

impl RetryBudget {
    /// A budget that starts at `now` with a full reserve.
    ///
    /// Defaults of the settings: `ratio` 0.2, `min_per_second` 10. A ratio of 0 leaves the reserve alone; with both 0
    /// nothing is ever retried.
    ///
    /// # Errors
    ///
    /// [`InvalidBudget`] where a number is negative, or is none.
    pub fn new(ratio: f64, min_per_second: f64, now: Instant) -> Result<Self, InvalidBudget> {
        for (setting, value) in [("ratio", ratio), ("min_per_second", min_per_second)] {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(InvalidBudget { setting });
            }
        }
        let reserve = Self::most_in_reserve(min_per_second);
        Ok(Self { ratio, min_per_second, earned: [0.0; 2], half_began: now, reserve, refilled: now })
    }

    /// Notes `count` first attempts. Time must not run backwards; where it does, it stands still.
    pub fn on_attempts(&mut self, count: u64, now: Instant) {
        self.advance(now);
        self.earned[0] += count as f64 * self.ratio;
    }

    /// Takes one retry from the budget. False where there is none: the send has failed for good.
    pub fn try_retry(&mut self, now: Instant) -> bool {
        self.advance(now);
        // What is lost first is spent first; a retry may be paid for from all three.
        if self.available() < 1.0 - ROUNDING {
            return false;
        }
        let mut price = 1.0_f64;
        let [current, previous] = &mut self.earned;
        for purse in [previous, current, &mut self.reserve] {
            let part = price.min(*purse);
            *purse -= part;
            price -= part;
        }
        true
    }

    /// How many retries could be taken at once, after the last call.
    pub fn available(&self) -> f64 {
        self.earned[0] + self.earned[1] + self.reserve
    }

    fn advance(&mut self, now: Instant) {
        let refill = now.saturating_duration_since(self.refilled).as_secs_f64() * self.min_per_second;
        self.reserve = (self.reserve + refill).min(Self::most_in_reserve(self.min_per_second));
        self.refilled = self.refilled.max(now);

        let halves = now.saturating_duration_since(self.half_began).as_nanos() / HALF_WINDOW.as_nanos();
        match halves {
            0 => return,
            1 => self.earned = [0.0, self.earned[0]],
            _ => self.earned = [0.0; 2],
        }
        // After a long pause the halves begin anew; where they begin exactly does not matter.
        self.half_began = if halves == 1 { self.half_began + HALF_WINDOW } else { now };
    }

    /// One second's worth; at least one retry, or a small `min_per_second` would never give one.
    fn most_in_reserve(min_per_second: f64) -> f64 {
        if min_per_second > 0.0 { min_per_second.max(1.0) } else { 0.0 }
    }
}

/// Ten times a tenth is a hair less than one.
const ROUNDING: f64 = 1e-9;

/// A setting of the budget that is negative or no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("retry_budget.{setting} must be a number from 0 up")]
pub struct InvalidBudget {
    setting: &'static str,
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "an Instant has no other beginning; the tests count from it")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(n: f64) -> Duration {
        Duration::from_secs_f64(n)
    }

    fn granted(budget: &mut RetryBudget, wanted: u64, now: Instant) -> u64 {
        (0..wanted).filter(|_| budget.try_retry(now)).count() as u64
    }

    #[test]
    fn an_outage_is_not_multiplied() {
        let start = Instant::now();
        let mut budget = RetryBudget::new(0.2, 10.0, start).unwrap();
        // A minute in which 1,000 sends a second all fail and each wants three retries.
        let mut retries = 0;
        for tick in 0..60 {
            let now = start + seconds(tick.into());
            budget.on_attempts(1000, now);
            retries += granted(&mut budget, 3000, now);
        }
        assert_eq!(retries, 60 * (200 + 10));
    }

    #[test]
    fn little_traffic_can_retry_too() {
        let start = Instant::now();
        let mut budget = RetryBudget::new(0.2, 10.0, start).unwrap();
        assert_eq!(granted(&mut budget, 100, start), 10);
        assert_eq!(granted(&mut budget, 100, start + seconds(0.3)), 3);
        // Saved up for one second, not longer.
        assert_eq!(granted(&mut budget, 100, start + seconds(3600.0)), 10);

        let mut slow = RetryBudget::new(0.0, 0.1, start).unwrap();
        assert_eq!(granted(&mut slow, 5, start), 1);
        assert_eq!(granted(&mut slow, 5, start + seconds(9.0)), 0);
        assert_eq!(granted(&mut slow, 5, start + seconds(10.0)), 1);
    }

    #[test]
    fn what_was_earned_in_good_times_is_not_kept_for_bad_ones() {
        let start = Instant::now();
        let mut budget = RetryBudget::new(0.2, 0.0, start).unwrap();
        budget.on_attempts(1_000_000, start);
        let mut fresh = budget.clone();
        assert_eq!(granted(&mut fresh, 300_000, start + seconds(5.0)), 200_000);
        assert_eq!(granted(&mut budget, 300_000, start + seconds(10.0)), 0);
    }

    #[test]
    fn nothing_is_granted_from_nothing() {
        let start = Instant::now();
        let mut budget = RetryBudget::new(0.0, 0.0, start).unwrap();
        budget.on_attempts(1000, start);
        assert!(!budget.try_retry(start + seconds(100.0)));
        for bad in [-0.1, f64::NAN, f64::INFINITY] {
            assert!(RetryBudget::new(bad, 1.0, start).is_err() && RetryBudget::new(1.0, bad, start).is_err());
        }
    }

    #[test]
    fn a_clock_that_runs_backwards_gives_nothing_away() {
        let start = Instant::now() + seconds(100.0);
        let mut budget = RetryBudget::new(0.0, 10.0, start).unwrap();
        assert_eq!(granted(&mut budget, 100, start), 10);
        for _ in 0..100 {
            assert!(!budget.try_retry(start - seconds(50.0)));
            assert!(!budget.try_retry(start));
        }
    }

    proptest! {
        #[test]
        fn retries_never_exceed_what_was_paid_for(
            ratio in 0.0..2.0_f64, min_per_second in 0.0..50.0_f64,
            steps in proptest::collection::vec((0..4000_u64, 0..200_u64, 0..400_u64), 1..60),
        ) {
            let start = Instant::now();
            let mut budget = RetryBudget::new(ratio, min_per_second, start).unwrap();
            let mut now = start;
            // (time, first attempts, granted) of each step, to check every stretch of time, not only the whole.
            let mut history: Vec<(Instant, f64, f64)> = Vec::new();
            for (pause_ms, attempts, wanted) in steps {
                now += Duration::from_millis(pause_ms);
                budget.on_attempts(attempts, now);
                let granted = granted(&mut budget, wanted, now);
                history.push((now, attempts as f64, granted as f64));

                let mut spent = 0.0;
                for &(from, _, granted) in history.iter().rev() {
                    spent += granted;
                    // A stretch lives on its own attempts, those of at most ten seconds before it, and the reserve.
                    let earned: f64 = history.iter().filter(|h| h.0 + seconds(10.0) >= from).map(|h| h.1 * ratio).sum();
                    let length = now.duration_since(from).as_secs_f64();
                    let reserve = RetryBudget::most_in_reserve(min_per_second) + length * min_per_second;
                    prop_assert!(spent <= earned + reserve + 1e-3, "{spent} > {earned} + {reserve}");
                }
            }
        }

        #[test]
        fn the_reserve_is_always_there(
            min_per_second in 1.0..50.0_f64, pauses in proptest::collection::vec(1.0..3.0_f64, 1..50),
        ) {
            let start = Instant::now();
            let mut budget = RetryBudget::new(0.0, min_per_second, start).unwrap();
            let mut now = start;
            for pause in pauses {
                // Whoever asks no more often than the reserve fills is never refused.
                now += seconds(pause / min_per_second);
                prop_assert!(budget.try_retry(now));
            }
        }
    }
}
