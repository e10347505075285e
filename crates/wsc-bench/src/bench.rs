//! Running a scenario as often as wanted, and showing what came of it.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail, ensure};
use rustix::process::{Resource, getrlimit, setrlimit};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    args::{BenchArgs, Common, OutputArgs, Scenario},
    cpus::Cpus,
    fleet::{Crew, Fleet},
    progress::Progress,
    report::{self, Outcome, Report, Sink},
    scenario,
    server::{Server, Subject},
    worker,
};

/// How this program starts itself again.
#[derive(Clone, Debug)]
pub struct Program {
    /// The executable.
    pub executable: PathBuf,
    /// Its arguments to be a worker: those that lead to [`BenchArgs`], and `worker`.
    pub worker: Vec<String>,
    /// Its arguments to be a hub; `None` where it cannot be one.
    pub serve: Option<Vec<String>>,
}

/// Does what the command line asks for.
///
/// # Errors
///
/// What keeps it from measuring; messages that were lost.
pub fn run(args: &BenchArgs, program: &Program) -> anyhow::Result<()> {
    if matches!(args.scenario, Scenario::Worker) {
        return worker::run();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // An interrupted run must not leave its server behind: children are killed where their handles are dropped.
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            result = perform(&args.scenario, program) => result,
            _ = terminate.recv() => bail!("ended by a signal"),
            _ = hangup.recv() => bail!("the terminal has gone"),
            _ = interrupt.recv() => bail!("interrupted"),
        }
    })
}

async fn perform(scenario: &Scenario, program: &Program) -> anyhow::Result<()> {
    match scenario {
        Scenario::Idle(args) => {
            let bench = Bench::new(&args.common, program)?;
            let report = report("idle", args, scenario::idle::title(args))?;
            bench.repeat(report, &args.common.output, async |_| scenario::idle::measure(&bench, args).await).await
        }
        Scenario::Fanout(args) => {
            let bench = Bench::new(&args.common, program)?;
            let report = report("fanout", args, scenario::fanout::title(args))?;
            bench.repeat(report, &args.common.output, async |_| scenario::fanout::measure(&bench, args).await).await
        }
        Scenario::Direct(args) => {
            let bench = Bench::new(&args.common, program)?;
            let report = report("direct", args, scenario::direct::title(args))?;
            bench.repeat(report, &args.common.output, async |_| scenario::direct::measure(&bench, args).await).await
        }
        Scenario::Churn(args) => {
            let bench = Bench::new(&args.common, program)?;
            let report = report("churn", args, scenario::churn::title(args))?;
            bench.repeat(report, &args.common.output, async |_| scenario::churn::measure(&bench, args).await).await
        }
        Scenario::Storm(args) => {
            let bench = Bench::new(&args.common, program)?;
            let report = report("storm", args, scenario::storm::title(args))?;
            bench
                .repeat(report, &args.common.output, async |run| scenario::storm::measure(&bench, args, run).await)
                .await
        }
        Scenario::Avalanche(args) => {
            let bench = Bench::new(&args.common, program)?;
            let report = report("avalanche", args, scenario::avalanche::title(args))?;
            bench.repeat(report, &args.common.output, async |_| scenario::avalanche::measure(&bench, args).await).await
        }
        Scenario::Compare(args) => scenario::compare::run(args, program).await,
        Scenario::Worker => worker::run(),
    }
}

/// A report without runs.
fn report(scenario: &'static str, arguments: &impl Serialize, title: String) -> anyhow::Result<Report> {
    Ok(Report { scenario, arguments: serde_json::to_value(arguments)?, title, ..Report::default() })
}

/// What all runs of a scenario share.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) program: Program,
    pub(crate) subject: Subject,
    pub(crate) common: Common,
    pub(crate) cpus: Cpus,
    pub(crate) progress: Progress,
    descriptors: u64,
}

impl Bench {
    /// Measures the server that the command line names.
    pub(crate) fn new(common: &Common, program: &Program) -> anyhow::Result<Self> {
        Self::of(Subject::chosen(&common.server, program)?, common, program, Progress::new(common.output.quiet))
    }

    /// Measures this server.
    pub(crate) fn of(subject: Subject, common: &Common, program: &Program, progress: Progress) -> anyhow::Result<Self> {
        let cpus = match &subject {
            // Nobody knows which CPUs somebody else's server uses.
            Subject::Foreign { .. } => Cpus::unpinned(),
            Subject::Child { .. } if common.server.no_pin => Cpus::unpinned(),
            Subject::Child { .. } => Cpus::share(common.server.server_threads)?,
        };
        Ok(Self {
            program: program.clone(),
            subject,
            common: common.clone(),
            cpus,
            progress,
            descriptors: raise_descriptor_limit()?,
        })
    }

    /// Lets this process share the clients' CPUs: what it does must not be what the server waits for.
    pub(crate) fn join_clients(&self) -> anyhow::Result<()> {
        self.cpus.clients.join()
    }

    /// Runs a scenario as often as wanted, `measure` with the number of the run from 1, and shows the figures.
    async fn repeat(
        &self,
        mut report: Report,
        output: &OutputArgs,
        measure: impl AsyncFn(usize) -> anyhow::Result<Outcome>,
    ) -> anyhow::Result<()> {
        let mut json = output.json.as_deref().map(Sink::open).transpose()?;
        let mut plot = output.plot.as_deref().map(Sink::open).transpose()?;
        self.join_clients()?;
        let mut failed = None;
        for run in 1..=output.repeat {
            if output.repeat > 1 {
                self.progress.prefix(format!("run {run} of {}: ", output.repeat));
            }
            match measure(run).await {
                Ok(outcome) => report.runs.push(outcome),
                // What was measured until then is worth as much as before.
                Err(error) => {
                    report.failed = Some(format!("{error:#}"));
                    failed = Some(match output.repeat {
                        1 => error,
                        repeat => error.context(format!("run {run} of {repeat}")),
                    });
                    break;
                }
            }
        }
        self.progress.finish();
        if !report.runs.is_empty() {
            show(&report.table(), output.json.as_deref())?;
        }
        if let Some(sink) = &mut json {
            sink.write_json(&report.json())?;
        }
        if let Some(sink) = &mut plot
            && !report.runs.is_empty()
        {
            sink.write(&crate::plot::report(&report)?)?;
        }
        if let Some(error) = failed {
            return Err(error);
        }
        ensure!(report.lost() == 0, "{} messages were lost", report.lost());
        match report.faults().next() {
            None => Ok(()),
            Some(fault) => bail!("{fault}"),
        }
    }

    /// Starts the server, or finds it.
    pub(crate) async fn server(&self) -> anyhow::Result<Server> {
        self.progress.stage("starting the server", None);
        Server::start(&self.subject, self.common.server.token.as_deref(), &self.cpus.server).await
    }

    /// Starts worker processes for so many connections.
    pub(crate) async fn fleet(&self, server: &Server, connections: usize) -> anyhow::Result<Fleet> {
        self.fleet_beside(server, &run_name(), connections, 0, 0).await
    }

    /// Starts worker processes for so many connections of a run in which there are others already, as important as
    /// `nice` says.
    pub(crate) async fn fleet_beside(
        &self,
        server: &Server,
        run: &str,
        connections: usize,
        others: usize,
        nice: i32,
    ) -> anyhow::Result<Fleet> {
        let processes = match self.common.clients.processes {
            Some(processes) => processes.min(connections),
            None => connections.div_ceil(PER_PROCESS),
        };
        let each = connections.div_ceil(processes) as u64 + BESIDE;
        if each > self.descriptors {
            bail!(
                "a client process would need {each} file descriptors and may open {}: use more with --processes",
                self.descriptors
            );
        }
        let crew = Crew {
            program: &self.program,
            endpoint: &server.endpoint,
            cpus: &self.cpus.clients,
            run,
            patience: self.common.clients.patience,
            others,
            nice,
            progress: self.progress.clone(),
        };
        Fleet::start(&crew, processes).await
    }

    /// What the method lines of all scenarios begin with.
    pub(crate) fn method(&self, server: &Server, processes: usize) -> Vec<String> {
        let mut lines = vec![
            format!("server: {}", server.describe()),
            format!("clients: {processes} process{}, on {}", if processes == 1 { "" } else { "es" }, self.cpus.clients),
        ];
        lines.extend(server.doubt().map(|doubt| format!("note: {doubt}")));
        lines
    }

    /// Waits, and says why.
    pub(crate) async fn settle(&self, why: &str, time: Duration) {
        self.progress.stage(why, None);
        tokio::time::sleep(time).await;
    }
}

/// Shows a table: on the standard output, unless that is for JSON.
pub(crate) fn show(table: &str, json: Option<&std::path::Path>) -> anyhow::Result<()> {
    if json.is_some_and(|path| path == std::path::Path::new("-")) {
        eprint!("{table}");
        Ok(())
    } else {
        report::say(table)
    }
}

/// A name that runs do not share, always equally long.
pub(crate) fn run_name() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{:08x}", (now.as_micros() as u64 ^ (u64::from(std::process::id()) << 20)) & 0xffff_ffff)
}

/// Raises the limit of open files as far as it goes; children inherit it.
fn raise_descriptor_limit() -> anyhow::Result<u64> {
    let mut limits = getrlimit(Resource::Nofile);
    limits.current = limits.maximum;
    setrlimit(Resource::Nofile, limits).context("cannot raise the limit of file descriptors")?;
    Ok(limits.maximum.unwrap_or(u64::MAX))
}

/// A client process holds so many connections, unless it is told otherwise.
const PER_PROCESS: usize = 9_000;

/// Descriptors of a worker that are no connections.
const BESIDE: u64 = 64;
