//! The load tool of wsc-hub: what `wsc bench` runs.
//!
//! It measures a server that speaks the hub's protocol, from outside: worker processes hold the connections and count,
//! `/proc` says what the server's process used, and nothing of either server or hub is linked in. So the figures of two
//! servers can be compared, and what the tool costs is not in them.
//!
//! One process coordinates ([`run`]). It starts the server where it is to be its own, and as many workers as the
//! connections need; they speak JSON lines. A worker is this executable again, one thread and an event loop, see
//! `worker`. A scenario (`scenario`) is what is done in which order, and which figures come of it.
//!
//! It is a command and not a library: [`BenchArgs`] is plugged into a command line, [`run`] does what it says. Linux only.

mod args;
mod bench;
mod cpus;
mod fleet;
mod latency;
mod message;
mod perf;
mod plot;
mod progress;
mod report;
mod scenario;
mod server;
mod statistics;
mod usage;
mod worker;

pub use args::BenchArgs;
pub use bench::{Program, run};
