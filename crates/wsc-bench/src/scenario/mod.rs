//! What is done in which order, and which figures come of it.

pub(crate) mod avalanche;
pub(crate) mod churn;
pub(crate) mod compare;
pub(crate) mod direct;
pub(crate) mod fanout;
pub(crate) mod idle;
pub(crate) mod storm;

use std::time::Duration;

use crate::{
    fleet::Together,
    report::{Outcome, readable},
    server::Server,
};

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
fn cpu_figure(outcome: &mut Outcome, (key, label): Name, used: Option<Duration>, count: u64) {
    if let Some(used) = used
        && count > 0
    {
        outcome.figure(key, label, "µs", used.as_secs_f64() * 1e6 / count as f64);
    }
}

/// Notes how late the clients were with a fixed rate, and whether that makes the run worthless.
fn late_figures(outcome: &mut Outcome, key: &str, whose: &str, run: &Together) {
    if !run.lag.is_empty() {
        let label = format!("{whose}clients late at p99");
        outcome.figure(format!("{key}clients_late_p99_ms"), label, "ms", run.lag.percentile(99.0));
    }
    if run.is_late() {
        outcome.faults.push(format!(
            "{whose}the clients could not keep this rate: they were {} ms late at p90, and {} messages were not sent; \
             lower --rate, or use more --processes",
            readable(run.lag.percentile(90.0)),
            readable(run.unsent as f64)
        ));
    }
}

/// A rate, where time has passed.
fn per_second(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(1e-9)
}

/// Key and label of a figure.
type Name = (&'static str, &'static str);

// What `compare` looks up.
const CPU_PER_DELIVERY: Name = ("server_cpu_per_delivery_us", "server CPU per delivery");
const CPU_PER_MESSAGE: Name = ("server_cpu_per_message_us", "server CPU per message");
const CPU_PER_HANDSHAKE: Name = ("server_cpu_per_handshake_us", "server CPU per handshake");
