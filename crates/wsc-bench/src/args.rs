//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};

use crate::message::Limit;

/// Measures a server that speaks the hub's protocol.
///
/// Without --url every scenario starts a hub of its own, measures it and ends it: `wsc bench fanout` alone is enough.
#[derive(Args, Debug)]
#[command(after_help = AFTER)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub(crate) scenario: Scenario,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Scenario {
    /// What an idle connection costs in memory, and whether it comes back
    ///
    /// Opens connections, each with a user, a client and a device id and in one room, and reads the server's resident
    /// memory on the way: the slope is the cost of one. Then each sends a message and gets an answer, and the memory is
    /// read again; then all go. Needs the server's process id (--pid) where the server is not its own.
    Idle(IdleArgs),
    /// How fast and how cheaply one message reaches many
    ///
    /// One sender, many members of a room. So many messages are in flight: the next is sent when all members have the
    /// oldest. With --in-flight 1 they really go one at a time.
    Fanout(FanoutArgs),
    /// How fast and how cheaply messages go from user to user
    ///
    /// Closed loop: each connection sends its next message when one has arrived. With --rate: so many messages each
    /// second, whatever happens; latency then counts from when a message was to be sent, so that a stall is not hidden.
    Direct(DirectArgs),
    /// How fast and how cheaply connections are made
    ///
    /// Opens connections, waits for the 101 and for no more, keeps them until a batch is complete, and closes the batch.
    Churn(ChurnArgs),
    /// What a busy room does to bystanders, and a stuck member to the others
    ///
    /// Some connections send `ping` at a fixed rate: first alone, then while a room is stormed. Then members that never
    /// read join the room.
    Storm(StormArgs),
    /// How soon all are back after all were cut at once
    ///
    /// Everybody connects, registers and joins a room. Then a server of its own is killed and started again on the same
    /// port; with --url all clients reset their connections. Everybody comes back at once.
    Avalanche(AvalancheArgs),
    /// The hub beside other servers, one after the other, round by round
    ///
    /// Needs `wsc-bench-targets` (cargo build --release -p wsc-bench-targets) beside this program. Ratios are taken
    /// within a round, so that what else the machine does hits both sides.
    Compare(CompareArgs),
    /// Does the work of one client process
    #[command(hide = true)]
    Worker,
}

/// Which server is measured.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Server")]
pub(crate) struct ServerArgs {
    /// Measure this server, such as ws://127.0.0.1:8080/ws; default: start a hub
    #[arg(long, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// Show this token when connecting
    #[arg(long, value_name = "TOKEN")]
    pub(crate) token: Option<String>,
    /// The process id of the server at --url, for its CPU time and memory
    #[arg(long, value_name = "PID", requires = "url")]
    pub(crate) pid: Option<u32>,
    /// Worker threads of a server that is started
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one())]
    pub(crate) server_threads: usize,
    /// Let the system choose CPUs; default: the server that is started and the clients keep apart
    #[arg(long)]
    pub(crate) no_pin: bool,
}

/// How the clients behave.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Clients")]
pub(crate) struct ClientArgs {
    /// Client processes; default: as many as needed for 9,000 connections each
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    pub(crate) processes: Option<usize>,
    /// Connections that are on their way at a time while others are opened
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = at_least_one())]
    pub(crate) pending: usize,
    /// Give up when nothing has happened for this long
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub(crate) patience: Duration,
}

/// What becomes of the figures.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputArgs {
    /// Do it all so many times, each time from the start, and show the median and the ends
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one())]
    pub(crate) repeat: usize,
    /// Write all figures of all runs, with histograms, as JSON; - for the standard output
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Draw latency percentiles, or bars, as SVG
    #[arg(long, value_name = "FILE")]
    pub(crate) plot: Option<PathBuf>,
    /// No progress on the terminal
    #[arg(long)]
    pub(crate) quiet: bool,
}

/// What every scenario has.
#[derive(Args, Clone, Debug)]
pub(crate) struct Common {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(flatten)]
    pub(crate) clients: ClientArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// What is sent, and for how long.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Load")]
pub(crate) struct LoadArgs {
    /// Size of the content, a JSON string, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 128)]
    pub(crate) payload: usize,
    /// Do the same for so long first, uncounted
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    pub(crate) warmup: Duration,
    /// Send for so long
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration, conflicts_with = "count")]
    pub(crate) duration: Duration,
    /// Send so many messages, however long it takes
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
}

impl LoadArgs {
    pub(crate) fn limit(&self) -> Limit {
        self.count.map_or(Limit::Time(self.duration), Limit::Count)
    }
}

#[derive(Args, Debug)]
pub(crate) struct IdleArgs {
    /// Connections at the upper end of the slope
    #[arg(long, value_name = "N", default_value_t = 15_000, value_parser = at_least_one())]
    pub(crate) connections: usize,
    /// Connections at the lower end of the slope
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = at_least_one())]
    pub(crate) from: usize,
    /// Size of the message that each sends once, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 2_048)]
    pub(crate) payload: usize,
    /// How long the server is left alone before its memory is read
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = duration)]
    pub(crate) settle: Duration,
    /// Then open and close them all so many times, and look what stays
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) cycles: usize,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug)]
pub(crate) struct FanoutArgs {
    /// Members of the room, beside the sender
    #[arg(long, visible_alias = "members", value_name = "N", default_value_t = 1_000, value_parser = at_least_one())]
    pub(crate) connections: usize,
    /// Messages in flight
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one())]
    pub(crate) in_flight: usize,
    /// Send to everybody through POST /api/broadcast instead of to a room
    #[arg(long)]
    pub(crate) broadcast: bool,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug)]
pub(crate) struct DirectArgs {
    /// Connections, each a user; each writes to one other
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = at_least_one())]
    pub(crate) connections: usize,
    /// Messages in flight of each connection
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one(), conflicts_with = "rate")]
    pub(crate) in_flight: usize,
    /// Send so many messages each second in all, instead of a closed loop
    #[arg(long, value_name = "N", value_parser = rate)]
    pub(crate) rate: Option<f64>,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug)]
pub(crate) struct ChurnArgs {
    /// Connections that are made in all
    #[arg(long, visible_alias = "connections", value_name = "N", default_value_t = 20_000, value_parser = at_least_one())]
    pub(crate) count: usize,
    /// Connections that are kept until so many are open, and then closed
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = at_least_one())]
    pub(crate) batch: usize,
    /// Stop after so long, with the batch that is then complete
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub(crate) duration: Duration,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug)]
pub(crate) struct StormArgs {
    /// Members of the stormed room, beside the sender
    #[arg(long, visible_alias = "connections", value_name = "N", default_value_t = 5_000, value_parser = at_least_one())]
    pub(crate) members: usize,
    /// Messages in flight to the room
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = at_least_one())]
    pub(crate) in_flight: usize,
    /// Connections that send `ping` and wait for `pong`
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = at_least_one())]
    pub(crate) bystanders: usize,
    /// Pings each second of all of them
    #[arg(long, value_name = "N", default_value_t = 2_000.0, value_parser = rate)]
    pub(crate) rate: f64,
    /// Members that never read, in a second storm; 0 for none
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) stuck: usize,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug)]
pub(crate) struct AvalancheArgs {
    /// Connections
    #[arg(long, value_name = "N", default_value_t = 15_000, value_parser = at_least_one())]
    pub(crate) connections: usize,
    /// Rooms that they are spread over
    #[arg(long, value_name = "N", default_value_t = 150, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rooms: u64,
    /// Connections that come back at a time; default: all
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    pub(crate) at_once: Option<usize>,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug)]
pub(crate) struct CompareArgs {
    /// What is measured
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "fanout,direct,churn")]
    pub(crate) scenario: Vec<Compared>,
    /// Beside whom the hub is measured
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        default_value = "write-loop,accept-loop,tokio-tungstenite,axum-broadcast"
    )]
    pub(crate) target: Vec<String>,
    /// The program that is those others; default: wsc-bench-targets beside this one
    #[arg(long, value_name = "FILE")]
    pub(crate) targets: Option<PathBuf>,
    /// Members of the room, and users who write to each other
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = at_least_one())]
    pub(crate) connections: usize,
    /// Messages in flight of a fan-out; each is measured
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,16")]
    pub(crate) in_flight: Vec<usize>,
    /// Connections that churn makes
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = at_least_one())]
    pub(crate) handshakes: usize,
    /// Rounds
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = at_least_one())]
    pub(crate) repeat: usize,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    /// Worker threads of each server
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one(), help_heading = "Server")]
    pub(crate) server_threads: usize,
    /// Let the system choose CPUs; default: servers and clients keep apart
    #[arg(long, help_heading = "Server")]
    pub(crate) no_pin: bool,
    #[command(flatten)]
    pub(crate) clients: ClientArgs,
    /// Write all figures of all rounds as JSON; - for the standard output
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) json: Option<PathBuf>,
    /// Draw the ratios as bars, as SVG
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) plot: Option<PathBuf>,
    /// No progress on the terminal
    #[arg(long, help_heading = "Output")]
    pub(crate) quiet: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Compared {
    Fanout,
    Direct,
    Churn,
}

impl CompareArgs {
    /// The same, as one scenario takes it.
    pub(crate) fn common(&self) -> Common {
        Common {
            server: ServerArgs {
                url: None,
                token: None,
                pid: None,
                server_threads: self.server_threads,
                no_pin: self.no_pin,
            },
            clients: self.clients.clone(),
            output: OutputArgs {
                repeat: self.repeat,
                json: self.json.clone(),
                plot: self.plot.clone(),
                quiet: self.quiet,
            },
        }
    }
}

fn at_least_one() -> impl clap::builder::TypedValueParser<Value = usize> {
    use clap::builder::TypedValueParser;
    clap::value_parser!(u64).range(1..=10_000_000).map(|value| value as usize)
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|e| format!("{e}; a time is written like 500ms, 10s or 2m"))
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if rate > 0.0 && rate <= 10_000_000.0 => Ok(rate),
        _ => Err("a rate is a number of messages a second above 0".into()),
    }
}

const AFTER: &str = "\
Clients are processes of their own, connect from 127.0.0.2 and following where the server is on loopback, and do nothing \
but count. What the server needs is read from outside: CPU time and memory of its process. CPU time for each message is \
the figure to trust on a machine that does other things too; messages per second move with the neighbours.

Exit code 0: measured. 1: it could not be measured, or messages were lost. 2: wrong usage.";

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        bench: BenchArgs,
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        for wrong in [
            "fanout --connections 0",
            "fanout --duration 5",
            "fanout --count 5 --duration 5s",
            "idle --pid 5",
            "direct --rate 0",
            "direct --rate 5 --in-flight 2",
            "compare --scenario idle",
            "",
        ] {
            let words = std::iter::once("bench").chain(wrong.split_whitespace());
            assert!(Cli::try_parse_from(words).is_err(), "{wrong}");
        }
        let right = Cli::try_parse_from(["bench", "compare", "--scenario", "churn,direct", "--in-flight", "1,4"]);
        let Scenario::Compare(args) = right.unwrap().bench.scenario else { panic!() };
        assert_eq!((args.scenario, args.in_flight), (vec![Compared::Churn, Compared::Direct], vec![1, 4]));
    }
}
