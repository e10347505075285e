//! Histograms of latencies, in nanoseconds.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Latencies from 1 µs to an hour, with three significant digits.
#[derive(Clone, Debug)]
pub(crate) struct Latency(Histogram<u64>);

/// A [`Latency`] on its way between processes, and in the JSON report: pairs of nanoseconds and how often.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Recorded(Vec<(u64, u64)>);

impl Latency {
    pub(crate) fn new() -> Self {
        // The bounds are constants that hdrhistogram takes.
        Self(Histogram::new_with_bounds(1_000, 3_600_000_000_000, 3).expect("valid bounds"))
    }

    pub(crate) fn record(&mut self, latency: Duration) {
        self.0.saturating_record(latency.as_nanos().min(u128::from(u64::MAX)) as u64);
    }

    pub(crate) fn add(&mut self, recorded: &Recorded) {
        for &(value, count) in &recorded.0 {
            self.0.saturating_record_n(value, count);
        }
    }

    pub(crate) fn recorded(&self) -> Recorded {
        Recorded(self.0.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency that `percent` of all do not exceed, in milliseconds.
    pub(crate) fn percentile(&self, percent: f64) -> f64 {
        self.0.value_at_percentile(percent) as f64 / 1e6
    }

    pub(crate) fn max(&self) -> f64 {
        self.0.max() as f64 / 1e6
    }
}

/// When the messages of a fixed rate are to be sent.
///
/// Latency counts from these instants, however late a message was really sent: a stall of the server that keeps the
/// client from sending is the latency of all that should have been sent meanwhile (otherwise it would be one slow
/// message: coordinated omission).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    start: Instant,
    per_second: f64,
}

impl Schedule {
    pub(crate) fn new(start: Instant, per_second: f64) -> Self {
        Self { start, per_second }
    }

    /// When message `number`, from zero, is to be sent.
    pub(crate) fn at(&self, number: u64) -> Instant {
        self.start + Duration::from_secs_f64(number as f64 / self.per_second)
    }

    /// How many messages are to be sent within this time.
    pub(crate) fn due_within(&self, time: Duration) -> u64 {
        (time.as_secs_f64() * self.per_second).ceil() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_survive_the_way_between_processes() {
        let mut here = Latency::new();
        for micros in [1_u64, 50, 50, 999, 1_000_000] {
            here.record(Duration::from_micros(micros));
        }
        let line = serde_json::to_string(&here.recorded()).unwrap();
        let mut there = Latency::new();
        there.add(&serde_json::from_str(&line).unwrap());
        there.add(&here.recorded());
        assert_eq!(there.count(), 10);
        assert_eq!(there.recorded().0.iter().map(|(_, n)| n).sum::<u64>(), 10);
        for percent in [10.0, 50.0, 90.0, 100.0] {
            assert_eq!(there.percentile(percent), here.percentile(percent));
        }
        assert!((here.percentile(50.0) - 0.05).abs() < 0.001);
    }

    #[test]
    fn a_stall_counts_for_all_that_should_have_been_sent() {
        let start = Instant::now();
        let schedule = Schedule::new(start, 1_000.0);
        let (mut corrected, mut uncorrected) = (Latency::new(), Latency::new());
        // A server that answers within 100 µs, but stands still during the whole second second; the client notices and
        // sends what is due when it is over.
        let stall = start + Duration::from_secs(1)..start + Duration::from_secs(2);
        for number in 0..3_000 {
            let intended = schedule.at(number);
            let sent = if stall.contains(&intended) { stall.end } else { intended };
            let arrived = sent + Duration::from_micros(100);
            corrected.record(arrived - intended);
            uncorrected.record(arrived - sent);
        }
        assert!(uncorrected.percentile(99.0) < 0.2, "{}", uncorrected.percentile(99.0));
        // A third of the messages waited between 0 and 1,000 ms.
        assert!((corrected.percentile(100.0 - 100.0 / 6.0) - 500.0).abs() < 5.0);
        assert!(corrected.percentile(60.0) < 0.2);
    }

    #[test]
    fn a_schedule_does_not_drift() {
        let start = Instant::now();
        let schedule = Schedule::new(start, 3.0);
        assert_eq!(schedule.at(0), start);
        assert_eq!(schedule.at(3_000_000), start + Duration::from_secs(1_000_000));
        assert_eq!(schedule.due_within(Duration::from_millis(1_500)), 5, "at 0, 1/3, 2/3, 1 and 4/3");
    }
}
