//! Whether the hub still lives. No clock, no task: times are arguments.

use std::time::Duration;

use tokio::time::Instant;

/// Watches for silence: after `patience` without a frame the hub is pinged, after `answer` more it counts as dead.
#[derive(Debug)]
pub(crate) struct Liveness {
    patience: Duration,
    answer: Duration,
    deadline: Instant,
    pinged: bool,
}

/// What to do when the deadline has passed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Alarm {
    Ping,
    Dead,
}

impl Liveness {
    pub(crate) fn new(patience: Duration, answer: Duration, now: Instant) -> Self {
        Self { patience, answer, deadline: now + patience, pinged: false }
    }

    /// Something came: any frame is a sign of life.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.deadline = now + self.patience;
        self.pinged = false;
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The deadline has passed.
    pub(crate) fn expired(&mut self, now: Instant) -> Alarm {
        if self.pinged {
            return Alarm::Dead;
        }
        self.pinged = true;
        self.deadline = now + self.answer;
        Alarm::Ping
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_asked_about_and_then_believed() {
        let start = Instant::now();
        let seconds = |s| Duration::from_secs(s);
        let mut liveness = Liveness::new(seconds(30), seconds(10), start);
        assert_eq!(liveness.deadline(), start + seconds(30));
        assert_eq!(liveness.expired(start + seconds(30)), Alarm::Ping);
        assert_eq!(liveness.deadline(), start + seconds(40));
        liveness.heard(start + seconds(35));
        assert_eq!(liveness.deadline(), start + seconds(65));
        assert_eq!(liveness.expired(start + seconds(65)), Alarm::Ping);
        assert_eq!(liveness.expired(start + seconds(75)), Alarm::Dead);
    }
}
