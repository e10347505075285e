//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{
    ArgMatches, Args, Command, FromArgMatches, Subcommand, ValueEnum, builder::PossibleValuesParser, error::ErrorKind,
};
use serde::{Serialize, Serializer};

use crate::{message::Limit, scenario};

/// Measures a server that speaks the hub's protocol.
///
/// Without --url every scenario starts a hub of its own, measures it and ends it: `wsc bench fanout` alone is enough.
#[derive(Debug)]
pub struct BenchArgs {
    pub(crate) scenario: Scenario,
}

// What the derived parser makes of the words; what they say together is looked at after it.
/// Measures a server that speaks the hub's protocol.
///
/// Without --url every scenario starts a hub of its own, measures it and ends it: `wsc bench fanout` alone is enough.
#[derive(Args, Debug)]
#[command(after_help = AFTER)]
struct Words {
    #[command(subcommand)]
    scenario: Scenario,
}

impl FromArgMatches for BenchArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Self::checked(Words::from_arg_matches(matches)?)
    }

    fn from_arg_matches_mut(matches: &mut ArgMatches) -> Result<Self, clap::Error> {
        Self::checked(Words::from_arg_matches_mut(matches)?)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for BenchArgs {
    fn augment_args(command: Command) -> Command {
        Words::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Words::augment_args_for_update(command)
    }
}

impl BenchArgs {
    /// Refuses words of which each is right and which make no sense together: wrong usage like any other.
    fn checked(Words { scenario }: Words) -> Result<Self, clap::Error> {
        match scenario.nonsense() {
            Some(why) => Err(clap::Error::raw(ErrorKind::ArgumentConflict, why)),
            None => Ok(Self { scenario }),
        }
    }
}

impl Scenario {
    fn nonsense(&self) -> Option<&'static str> {
        let token = |common: &Common| common.server.token.is_some();
        match self {
            Self::Idle(args) if args.from >= args.connections => Some("--from must be below --connections"),
            Self::Idle(args) if args.common.server.url.is_some() && args.common.server.pid.is_none() => {
                Some("idle reads the memory of the server's process: --url needs --pid")
            }
            Self::Idle(args) if token(&args.common) => Some(ONE_USER),
            Self::Idle(args) => lonely(args.connections, &args.common.clients),
            Self::Direct(args) if token(&args.common) => Some(ONE_USER),
            Self::Direct(args) => lonely(args.connections, &args.common.clients),
            Self::Storm(args) if args.stuck > 0 && token(&args.common) => Some(ONE_USER),
            Self::Compare(args) if args.scenario.contains(&Compared::Direct) => lonely(args.connections, &args.clients),
            _ => None,
        }
    }
}

/// Messages go to the users of other connections in the same process.
fn lonely(connections: usize, clients: &ClientArgs) -> Option<&'static str> {
    if connections < 2 {
        Some("it takes two connections to write to each other")
    } else if clients.processes.is_some_and(|processes| connections < 2 * processes.min(connections)) {
        Some("each client process needs two connections at least: fewer --processes, or more --connections")
    } else {
        None
    }
}

const ONE_USER: &str = "messages go from user to user here, and with --token all connections would be one user's: \
                        switch the server's authentication off";

#[derive(Debug, Subcommand)]
pub(crate) enum Scenario {
    /// What an idle connection costs in memory, and whether it comes back
    ///
    /// Opens connections, each with a user, a client and a device id and in one room, and reads the server's resident
    /// memory on the way: the slope is the cost of one. Then each writes to another user and hears from one,
    /// and the memory is read again; then all go. Needs the server's process id (--pid) where the server is not its own.
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
#[derive(Args, Clone, Debug, Serialize)]
#[command(next_help_heading = "Server")]
pub(crate) struct ServerArgs {
    /// Measure this server, such as ws://127.0.0.1:8080/ws; default: start a hub
    #[arg(long, value_name = "URL", value_parser = url)]
    pub(crate) url: Option<String>,
    /// Show this token when connecting
    #[serde(skip)]
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
#[derive(Args, Clone, Debug, Serialize)]
#[command(next_help_heading = "Clients")]
pub(crate) struct ClientArgs {
    /// Client processes; default: as many as needed for 9,000 connections each
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    pub(crate) processes: Option<usize>,
    /// Connections that are on their way at a time while others are opened
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = at_least_one())]
    pub(crate) pending: usize,
    /// Give up when nothing has happened for this long
    #[serde(serialize_with = "seconds")]
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = some_time)]
    pub(crate) patience: Duration,
}

/// What becomes of the figures.
#[derive(Args, Clone, Debug, Serialize)]
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
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct Common {
    #[serde(flatten)]
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[serde(flatten)]
    #[command(flatten)]
    pub(crate) clients: ClientArgs,
    #[serde(flatten)]
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// What is sent, and for how long.
#[derive(Args, Clone, Debug, Serialize)]
#[command(next_help_heading = "Load")]
pub(crate) struct TimedArgs {
    /// Size of the content, a JSON string, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 128)]
    pub(crate) payload: usize,
    /// Do the same for so long first, uncounted
    #[serde(serialize_with = "seconds")]
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    pub(crate) warmup: Duration,
    /// Send for so long
    #[serde(serialize_with = "seconds")]
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = some_time)]
    pub(crate) duration: Duration,
}

/// What is sent, and for how long or how many of it.
#[derive(Args, Clone, Debug, Serialize)]
#[command(next_help_heading = "Load")]
pub(crate) struct LoadArgs {
    #[serde(flatten)]
    #[command(flatten)]
    pub(crate) timed: TimedArgs,
    /// Send so many messages, however long it takes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "duration")]
    pub(crate) count: Option<u64>,
}

impl LoadArgs {
    pub(crate) fn limit(&self) -> Limit {
        self.count.map_or(Limit::Time(self.timed.duration), Limit::Count)
    }
}

#[derive(Args, Debug, Serialize)]
pub(crate) struct IdleArgs {
    /// Connections at the upper end of the slope
    #[arg(long, value_name = "N", default_value_t = 15_000, value_parser = at_least_one())]
    pub(crate) connections: usize,
    /// Connections at the lower end of the slope
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = at_least_one())]
    pub(crate) from: usize,
    /// Size of the message that each sends to another user once, and gets once, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 2_048)]
    pub(crate) payload: usize,
    /// How long the server is left alone before its memory is read
    #[serde(serialize_with = "seconds")]
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = duration)]
    pub(crate) settle: Duration,
    /// Then open and close them all so many times, and look what stays
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) cycles: usize,
    #[serde(flatten)]
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug, Serialize)]
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
    #[serde(flatten)]
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    #[serde(flatten)]
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug, Serialize)]
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
    #[serde(flatten)]
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    #[serde(flatten)]
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug, Serialize)]
pub(crate) struct ChurnArgs {
    /// Connections that are made in all
    #[arg(long, visible_alias = "connections", value_name = "N", default_value_t = 20_000, value_parser = at_least_one())]
    pub(crate) count: usize,
    /// Connections that are kept until so many are open, and then closed
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = at_least_one())]
    pub(crate) batch: usize,
    /// Stop after so long, with the batch that is then complete
    #[serde(serialize_with = "seconds")]
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = some_time)]
    pub(crate) duration: Duration,
    #[serde(flatten)]
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug, Serialize)]
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
    #[serde(flatten)]
    #[command(flatten)]
    pub(crate) load: TimedArgs,
    #[serde(flatten)]
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug, Serialize)]
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
    #[serde(flatten)]
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Debug, Serialize)]
pub(crate) struct CompareArgs {
    /// What is measured
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "fanout,direct,churn")]
    pub(crate) scenario: Vec<Compared>,
    /// Beside whom the hub is measured
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        value_parser = PossibleValuesParser::new(scenario::compare::names()),
        default_values_t = scenario::compare::names().map(str::to_owned)
    )]
    pub(crate) target: Vec<String>,
    /// The program that is those others; default: wsc-bench-targets beside this one
    #[arg(long, value_name = "FILE")]
    pub(crate) targets: Option<PathBuf>,
    /// Members of the room, and users who write to each other
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = at_least_one())]
    pub(crate) connections: usize,
    /// Messages in flight of a fan-out; each is measured
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,16", value_parser = at_least_one())]
    pub(crate) in_flight: Vec<usize>,
    /// Connections that churn makes
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = at_least_one())]
    pub(crate) handshakes: usize,
    /// Rounds
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = at_least_one())]
    pub(crate) repeat: usize,
    #[serde(flatten)]
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    /// Let the system choose CPUs; default: servers and clients keep apart
    #[arg(long, help_heading = "Server")]
    pub(crate) no_pin: bool,
    #[serde(flatten)]
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

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
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
                // The others have one thread by design.
                server_threads: 1,
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

/// A time in which something can happen.
fn some_time(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("nothing happens in no time".into()),
        time => Ok(time),
    }
}

fn url(text: &str) -> Result<String, String> {
    if text.starts_with("wss://") {
        return Err("the load tool speaks no TLS; measure the server without it, or behind what ends TLS".into());
    }
    match text.strip_prefix("ws://") {
        Some(host) if !host.is_empty() => Ok(text.into()),
        _ => Err("a server's address is like ws://127.0.0.1:8080/ws".into()),
    }
}

fn seconds<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(time.as_secs_f64())
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

Exit code 0: measured. 1: it could not be measured, messages were lost, or the clients could not keep a fixed rate. 2: \
wrong usage.";

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
            "fanout --count 0",
            "fanout --duration 0s",
            "fanout --in-flight 0",
            "fanout --url http://127.0.0.1/",
            "fanout --url wss://127.0.0.1/",
            "storm --count 5",
            "storm --token t",
            "churn --duration 0s",
            "idle --from 5 --connections 5",
            "idle --url ws://127.0.0.1/",
            "idle --token t",
            "direct --connections 1",
            "direct --connections 3 --processes 2",
            "direct --token t",
            "compare --in-flight 0",
            "compare --in-flight 1,0",
            "compare --count 0",
            "compare --server-threads 2",
            "compare --target nobody",
            "",
        ] {
            let words = std::iter::once("bench").chain(wrong.split_whitespace());
            let error = Cli::try_parse_from(words).err().unwrap_or_else(|| panic!("{wrong}"));
            assert!(wrong.is_empty() || error.exit_code() == 2, "{wrong}: {error}");
        }
        let right = Cli::try_parse_from(["bench", "compare", "--scenario", "churn,direct", "--in-flight", "1,4"]);
        let Scenario::Compare(args) = right.unwrap().bench.scenario else { panic!() };
        assert_eq!((args.scenario, args.in_flight), (vec![Compared::Churn, Compared::Direct], vec![1, 4]));
    }
}
