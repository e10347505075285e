//! What acknowledged and stored messages cost: `cargo bench -p wsc-server --bench reliable -- --help`.
//!
//! The hub is embedded, as in a program of one's own, with its inbox on a real disk. Clients and HTTP callers are other
//! processes, so that what they need is neither in the hub's memory nor in its CPU time. Each measurement is a process
//! of its own: none finds memory, pages or a file that an earlier one left.
//!
//! The floor is measured in the same round, on the same disk: inserts into the database that the inbox is built on, with
//! nothing around them.

#![expect(clippy::print_stdout, reason = "it is a program that prints a table")]

mod clients;
mod instructions;
mod node;
mod pending;
mod process;
mod pushers;
mod raw;
mod replay;
mod report;
mod throughput;
mod wire;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    clients::ClientArgs,
    process::{Figures, run_part},
    pushers::PusherArgs,
    report::Report,
};

/// The same allocator as in the `wsc` command.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Measures acknowledged and stored messages.
#[derive(Parser)]
struct Cli {
    /// What to measure; all but `instructions` where nothing is named.
    scenarios: Vec<Scenario>,
    #[command(flatten)]
    sizes: Sizes,
    /// How often each is measured; tables show the median, the least and the most.
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// Writes the figures as JSON to standard output, and nothing else.
    #[arg(long)]
    json: bool,
    /// Fails where a figure is worse than the project promises.
    #[arg(long)]
    check: bool,
    /// With `instructions`: the `wsc` binary that is measured.
    #[arg(long)]
    wsc: Option<PathBuf>,
    /// With `instructions`: the `wsc` binary that it is compared with.
    #[arg(long)]
    base: Option<PathBuf>,
    #[command(subcommand)]
    part: Option<Part>,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// How much of everything.
#[derive(Args, Clone, Debug)]
struct Sizes {
    /// Users, each with one connection, in the scenarios about throughput.
    #[arg(long, global = true, default_value_t = 1_000)]
    users: usize,
    /// Messages in each scenario about throughput; a fifth of it for single requests over HTTP.
    #[arg(long, global = true, default_value_t = 300_000)]
    messages: u64,
    /// Sends that wait for their answer at a time; over HTTP, messages in requests that wait.
    #[arg(long, global = true, default_value_t = 1_000)]
    in_flight: usize,
    /// Bytes of a message's content, as JSON.
    #[arg(long, global = true, default_value_t = 200)]
    content: usize,
    /// Messages that wait for an acknowledgement in `pending-memory`, 100 for each user.
    #[arg(long, global = true, default_value_t = 1_000_000)]
    pending: u64,
    /// Messages that one user has not seen in `replay`.
    #[arg(long, global = true, default_value_t = 100_000)]
    stored: u64,
    /// Where the files are, in directories of their own that are removed again: a directory on the disk that matters.
    #[arg(long, global = true, default_value_os_t = std::env::temp_dir())]
    directory: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// Inserts into the database below the inbox: 16 byte keys, batches of 100, each synced.
    Raw,
    /// From the hub's API to the acknowledgement, and out of the inbox.
    Durable,
    /// The same from batches over HTTP.
    DurableHttp,
    /// The same from single requests over HTTP.
    DurableHttpSingle,
    /// The same sends without acknowledgement and inbox.
    Plain,
    /// Without both, from batches over HTTP.
    PlainHttp,
    /// Memory for each message that waits for its acknowledgement.
    PendingMemory,
    /// A user comes back to many stored messages.
    Replay,
    /// Instructions for each delivery of a plain room message, of two `wsc` binaries under callgrind.
    Instructions,
}

impl Scenario {
    const ALL: [Self; 8] = [
        Self::Raw,
        Self::Durable,
        Self::DurableHttp,
        Self::DurableHttpSingle,
        Self::Plain,
        Self::PlainHttp,
        Self::PendingMemory,
        Self::Replay,
    ];

    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// What this program runs as a process of its own.
#[derive(Subcommand)]
enum Part {
    /// One measurement; its figures are JSON on standard output.
    #[command(hide = true)]
    Measure { scenario: Scenario },
    /// The first half of `replay`: leaves a file with stored messages.
    #[command(hide = true)]
    Fill { path: PathBuf },
    /// The second half.
    #[command(hide = true)]
    ReplayFrom { path: PathBuf },
    /// Connections that receive.
    #[command(hide = true)]
    Clients(ClientArgs),
    /// Connections that post.
    #[command(hide = true)]
    Pushers(PusherArgs),
}

fn main() -> anyhow::Result<()> {
    process::raise_descriptor_limit();
    let cli = Cli::parse();
    match cli.part {
        None => coordinate(&cli),
        Some(Part::Measure { scenario }) => measure(scenario, &cli.sizes)?.print(),
        Some(Part::Fill { path }) => replay::fill(&path, &cli.sizes)?.print(),
        Some(Part::ReplayFrom { path }) => replay::replay(&path, &cli.sizes)?.print(),
        Some(Part::Clients(args)) => clients::run(&args),
        Some(Part::Pushers(args)) => pushers::run(&args),
    }
}

fn measure(scenario: Scenario, sizes: &Sizes) -> anyhow::Result<Figures> {
    match scenario {
        Scenario::Raw => raw::measure(sizes),
        Scenario::Durable => throughput::embedded(sizes, true),
        Scenario::DurableHttp => throughput::over_http(sizes, true, 100),
        Scenario::DurableHttpSingle => throughput::over_http(sizes, true, 1),
        Scenario::Plain => throughput::embedded(sizes, false),
        Scenario::PlainHttp => throughput::over_http(sizes, false, 100),
        Scenario::PendingMemory => pending::measure(sizes),
        Scenario::Replay => replay::measure(sizes),
        Scenario::Instructions => anyhow::bail!("instructions are counted from outside"),
    }
}

fn coordinate(cli: &Cli) -> anyhow::Result<()> {
    let mut scenarios = match cli.scenarios.is_empty() {
        true => Scenario::ALL.to_vec(),
        false => cli.scenarios.clone(),
    };
    // What it is compared with is measured in the same round.
    let is_compared = |scenario: &Scenario| report::floor(*scenario).is_some();
    if scenarios.iter().any(is_compared) && !scenarios.contains(&Scenario::Raw) {
        scenarios.insert(0, Scenario::Raw);
    }
    let mut report = Report::default();
    for round in 1..=cli.repeat {
        for &scenario in &scenarios {
            if !cli.json {
                eprintln!("round {round} of {}: {}", cli.repeat, scenario.name());
            }
            let figures = match scenario {
                Scenario::Instructions => {
                    let wsc = cli.wsc.as_deref().context("instructions need --wsc")?;
                    instructions::measure(&cli.sizes, wsc, cli.base.as_deref())?
                }
                _ => run_part(&["measure", &scenario.name()], &cli.sizes)
                    .with_context(|| format!("{} failed", scenario.name()))?,
            };
            report.add(scenario, figures);
        }
        report.end_round();
    }
    if cli.json {
        println!("{}", report.json(&cli.sizes));
    } else {
        report.print();
    }
    if cli.check { report.check() } else { Ok(()) }
}
