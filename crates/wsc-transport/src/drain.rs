//! Parting with everybody, no faster than whoever takes them over can bear.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use wsc_protocol::{CloseCode, CloseReason, DisconnectReason};

use crate::{conn::Conn, shared::Shared};

/// How a transport parts with its connections, see [`Transport::drain`](crate::Transport::drain).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drain {
    /// Connections that are closed per second, evenly; 0 closes all at once. Default 1000. Where that would take
    /// longer than `deadline` allows the rate is raised.
    pub rate: u32,
    /// After so long whoever is still there is cut off; default 30 s. A tenth of it, or the write timeout where that
    /// is shorter, is kept for the queues of those who are closed last.
    pub deadline: Duration,
    /// What the close frames say; default 3001. Its `retry_after_ms` is set for each connection, see `spread`.
    pub close: CloseReason,
    /// Each client is asked to stay away for a random time up to this, so that not all come back at once. Default
    /// `None`: as long as closing all of them takes, and a second at least.
    pub spread: Option<Duration>,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            rate: 1000,
            deadline: Duration::from_secs(30),
            close: CloseReason::new(CloseCode::SHUTTING_DOWN, "shutting down"),
            spread: None,
        }
    }
}

/// What clients are told.
#[derive(Debug)]
pub(crate) struct Farewell {
    pub(crate) close: CloseReason,
    /// How long each is asked to stay away at most; `None` where `close` says what it says.
    pub(crate) spread: Option<Duration>,
}

impl Farewell {
    /// Closes every connection at this pace, also those that open meanwhile, and returns when all are gone. Who does
    /// not go stays: the deadline is for the caller to keep.
    pub(crate) async fn bid_in_turn(&self, shared: &Shared, pace: &Pace) {
        let begin = Instant::now();
        let (mut closed, mut slot) = (0, 0);
        // Whether anybody was closed since the last time at the first slot.
        let mut found_any = false;
        while shared.conns.len() > 0 {
            let due = pace.due(begin.elapsed());
            let mut all_know = false;
            while closed < due && !all_know {
                let count = SLICE.min(due - closed);
                let Some(conns) = shared.conns.slice(slot, count) else {
                    slot = 0;
                    all_know = !std::mem::take(&mut found_any);
                    continue;
                };
                slot += count;
                let bidden = conns.iter().filter(|conn| self.bid(conn)).count();
                closed += bidden;
                found_any |= bidden > 0;
                tokio::task::yield_now().await;
            }
            let now = Instant::now();
            let pause = if all_know { ROUND_INTERVAL } else { MIN_PAUSE };
            tokio::select! {
                () = shared.conns.emptied() => {}
                () = sleep_until((now + pause).max(begin + pace.when(closed + 1))) => {}
            }
        }
    }

    /// Closes everybody at once.
    pub(crate) fn bid_all(&self, shared: &Shared) {
        let mut slot = 0;
        while let Some(conns) = shared.conns.slice(slot, SLICE) {
            slot += SLICE;
            for conn in conns {
                self.bid(&conn);
            }
        }
    }

    /// Closes one connection. Returns false where it is closed or closing already.
    fn bid(&self, conn: &Conn) -> bool {
        // Looked at first: most of those who are met again are on their way.
        conn.is_open() && conn.close(&self.reason(), DisconnectReason::ServerShutdown)
    }

    fn reason(&self) -> CloseReason {
        let mut close = self.close.clone();
        if let Some(spread) = self.spread {
            close.retry_after_ms = Some(fastrand::u64(0..=spread.as_millis() as u64));
        }
        close
    }
}

/// How fast a drain goes.
#[derive(Debug, PartialEq)]
pub(crate) struct Pace {
    connections: usize,
    /// Per second; infinite for all at once.
    rate: f64,
}

impl Pace {
    /// The plan's, for so many connections. The rate is raised where the deadline asks for it.
    pub(crate) fn new(plan: &Drain, connections: usize, write_timeout: Duration) -> Self {
        if plan.rate == 0 {
            return Self { connections, rate: f64::INFINITY };
        }
        let wanted = f64::from(plan.rate);
        let for_flushing = write_timeout.min(plan.deadline / 10);
        let needed = connections as f64 / (plan.deadline - for_flushing).as_secs_f64();
        if connections > 0 && needed > wanted {
            tracing::warn!(
                connections,
                deadline = ?plan.deadline,
                set_rate = plan.rate,
                rate = needed.ceil(),
                "the drain's deadline is too short for its rate: connections are closed faster"
            );
            return Self { connections, rate: needed };
        }
        Self { connections, rate: wanted }
    }

    /// How many connections are closed by then.
    fn due(&self, elapsed: Duration) -> usize {
        if self.rate.is_infinite() {
            return usize::MAX;
        }
        // Rounded up: the first one at once.
        (elapsed.as_secs_f64() * self.rate).ceil().max(1.0) as usize
    }

    /// When it is the `n`th one's turn.
    fn when(&self, n: usize) -> Duration {
        Duration::try_from_secs_f64(n.saturating_sub(1) as f64 / self.rate).unwrap_or(Duration::ZERO)
    }

    /// How long closing all of them takes, and a second at least.
    pub(crate) fn spread(&self) -> Duration {
        self.when(self.connections.saturating_add(1)).max(Duration::from_secs(1))
    }
}

/// Connections that are closed before others run.
const SLICE: usize = 64;

/// The shortest time between two handfuls: fine enough to be even, and coarse enough to cost nothing.
const MIN_PAUSE: Duration = Duration::from_millis(10);

/// How often connections are looked for that opened meanwhile.
const ROUND_INTERVAL: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(rate: u32, deadline_s: u64, connections: usize) -> Pace {
        let plan = Drain { rate, deadline: Duration::from_secs(deadline_s), ..Drain::default() };
        Pace::new(&plan, connections, Duration::from_secs(10))
    }

    #[test]
    fn connections_are_due_evenly_from_the_first_moment_on() {
        let pace = pace(1000, 30, 15_000);
        for (ms, due) in [(0, 1), (1, 1), (2, 2), (10, 10), (500, 500), (15_000, 15_000)] {
            assert_eq!(pace.due(Duration::from_millis(ms)), due, "after {ms} ms");
        }
        assert_eq!(pace.when(1), Duration::ZERO);
        assert_eq!(pace.when(501), Duration::from_millis(500));
        assert_eq!(pace.spread(), Duration::from_secs(15));
    }

    #[test]
    fn a_rate_that_is_too_low_for_the_deadline_is_raised() {
        // A tenth of the deadline is for flushing.
        assert_eq!(pace(1000, 30, 27_000).rate, 1000.0);
        assert_eq!(pace(1000, 30, 54_000).rate, 2000.0);
        assert_eq!(pace(1000, 30, 54_000).spread(), Duration::from_secs(27));
        // No deadline at all leaves no time.
        assert_eq!(pace(1000, 0, 5).rate, f64::INFINITY);
        assert_eq!(pace(1, 0, 0).rate, 1.0);
    }

    #[test]
    fn all_at_once_is_at_once() {
        let pace = pace(0, 30, 100_000);
        assert_eq!(pace.due(Duration::ZERO), usize::MAX);
        assert_eq!(pace.when(7), Duration::ZERO);
        assert_eq!(pace.spread(), Duration::from_secs(1));
    }
}
