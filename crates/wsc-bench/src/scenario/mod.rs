//! What is done in which order, and which figures come of it.

pub(crate) mod avalanche;
pub(crate) mod churn;
pub(crate) mod compare;
pub(crate) mod direct;
pub(crate) mod fanout;
pub(crate) mod idle;
pub(crate) mod storm;

use std::time::Duration;

use crate::{report::Outcome, server::Server};

/// CPU time of the server while something is done.
struct CpuMeter(Option<Duration>);

impl CpuMeter {
    fn start(server: &Server) -> anyhow::Result<Self> {
        Ok(Self(server.cpu()?))
    }

    /// What was used since, where it is known.
    fn used(&self, server: &Server) -> anyhow::Result<Option<Duration>> {
        Ok(server.cpu()?.zip(self.0).map(|(now, before)| now.saturating_sub(before)))
    }
}

/// Notes the CPU time for each of so many, in microseconds.
fn cpu_figure(outcome: &mut Outcome, name: &str, used: Option<Duration>, count: u64) {
    if let Some(used) = used
        && count > 0
    {
        outcome.figure(name, "µs", used.as_secs_f64() * 1e6 / count as f64);
    }
}

/// A rate, where time has passed.
fn per_second(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(1e-9)
}

/// A figure that `compare` looks up.
pub(crate) const CPU_PER_DELIVERY: &str = "server CPU per delivery";
pub(crate) const CPU_PER_MESSAGE: &str = "server CPU per message";
pub(crate) const CPU_PER_HANDSHAKE: &str = "server CPU per handshake";
