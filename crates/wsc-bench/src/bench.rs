//! Running a scenario as often as wanted, and showing what came of it.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    args::{BenchArgs, Common, OutputArgs, Scenario},
    cpus::Cpus,
    fleet::{Crew, Fleet},
    plot,
    progress::Progress,
    report::{self, Outcome, Report},
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
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            result = perform(&args.scenario, program) => result,
            _ = terminate.recv() => bail!("ended by a signal"),
            _ = interrupt.recv() => bail!("interrupted"),
        }
    })
}

async fn perform(scenario: &Scenario, program: &Program) -> anyhow::Result<()> {
    match scenario {
        Scenario::Idle(args) => {
            let bench = Bench::new(&args.common, program)?;
            let title = scenario::idle::title(args);
            bench.repeat(title, &args.common.output, async || scenario::idle::measure(&bench, args).await).await
        }
        Scenario::Fanout(args) => {
            let bench = Bench::new(&args.common, program)?;
            let title = scenario::fanout::title(args);
            bench.repeat(title, &args.common.output, async || scenario::fanout::measure(&bench, args).await).await
        }
        Scenario::Direct(args) => {
            let bench = Bench::new(&args.common, program)?;
            let title = scenario::direct::title(args);
            bench.repeat(title, &args.common.output, async || scenario::direct::measure(&bench, args).await).await
        }
        Scenario::Churn(args) => {
            let bench = Bench::new(&args.common, program)?;
            let title = scenario::churn::title(args);
            bench.repeat(title, &args.common.output, async || scenario::churn::measure(&bench, args).await).await
        }
        Scenario::Storm(args) => {
            let bench = Bench::new(&args.common, program)?;
            let title = scenario::storm::title(args);
            bench.repeat(title, &args.common.output, async || scenario::storm::measure(&bench, args).await).await
        }
        Scenario::Avalanche(args) => {
            let bench = Bench::new(&args.common, program)?;
            let title = scenario::avalanche::title(args);
            bench.repeat(title, &args.common.output, async || scenario::avalanche::measure(&bench, args).await).await
        }
        Scenario::Compare(args) => scenario::compare::run(args, program).await,
        Scenario::Worker => worker::run(),
    }
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

    /// Runs a scenario as often as wanted and shows the figures.
    async fn repeat(
        &self,
        title: String,
        output: &OutputArgs,
        measure: impl AsyncFn() -> anyhow::Result<Outcome>,
    ) -> anyhow::Result<()> {
        let mut runs = Vec::with_capacity(output.repeat);
        for run in 1..=output.repeat {
            if output.repeat > 1 {
                self.progress.prefix(format!("run {run} of {}: ", output.repeat));
            }
            runs.push(measure().await.inspect_err(|_| self.progress.finish())?);
        }
        self.progress.finish();
        let report = Report { title, runs };
        show(&report.table(), output.json.as_deref())?;
        if let Some(path) = &output.json {
            report::write_json(path, &report.json())?;
        }
        if let Some(path) = &output.plot {
            plot::report(path, &report)?;
        }
        match report.lost() {
            0 => Ok(()),
            lost => bail!("{lost} messages were lost"),
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
        vec![
            format!("server: {}", server.describe()),
            format!("clients: {processes} process{}, on {}", if processes == 1 { "" } else { "es" }, self.cpus.clients),
        ]
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
