//! This program as several processes, and what the system knows about one.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::Sizes;

/// What one measurement found, by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures(pub(crate) BTreeMap<String, f64>);

impl Figures {
    pub(crate) fn with(mut self, name: &str, value: f64) -> Self {
        self.0.insert(name.to_owned(), value);
        self
    }

    /// As the process that asked for it reads them.
    pub(crate) fn print(&self) -> anyhow::Result<()> {
        println!("{}", serde_json::to_string(&self.0)?);
        Ok(())
    }
}

impl Sizes {
    /// As arguments for another process.
    fn arguments(&self) -> Vec<String> {
        let mut arguments: Vec<_> = [
            ("users", self.users as u64),
            ("messages", self.messages),
            ("in-flight", self.in_flight as u64),
            ("content", self.content as u64),
            ("pending", self.pending),
            ("stored", self.stored),
        ]
        .into_iter()
        .map(|(name, value)| format!("--{name}={value}"))
        .collect();
        arguments.push(format!("--directory={}", self.directory.display()));
        arguments
    }
}

/// Runs a part of this program that ends by itself, and returns its figures.
pub(crate) fn run_part(part: &[&str], sizes: &Sizes) -> anyhow::Result<Figures> {
    let output = Command::new(std::env::current_exe()?)
        .args(part)
        .args(sizes.arguments())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "the process ended with {}", output.status);
    Ok(Figures(serde_json::from_slice(&output.stdout).context("its figures cannot be read")?))
}

/// A part of this program that answers lines with lines, until it is dropped.
#[derive(Debug)]
pub(crate) struct Companion {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Companion {
    pub(crate) fn start(arguments: &[String]) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().context("a child without standard output")?);
        Ok(Self { child, stdin, stdout })
    }

    /// Waits for its next line.
    pub(crate) fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        ensure!(self.stdout.read_line(&mut line)? > 0, "a companion process ended too early");
        Ok(line.trim_end().to_owned())
    }

    /// Says something and waits for the answer.
    pub(crate) fn ask(&mut self, question: &str) -> anyhow::Result<String> {
        let stdin = self.stdin.as_mut().context("it was told to end")?;
        writeln!(stdin, "{question}")?;
        stdin.flush()?;
        self.line()
    }

    /// CPU time so far.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        cpu_of(&self.child.id().to_string())
    }
}

impl Drop for Companion {
    /// The end of its input is the end of the companion.
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.child.wait();
    }
}

/// Ten thousand connections need more than the usual limit.
pub(crate) fn raise_descriptor_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.map_or(MOST_DESCRIPTORS, |most| most.min(MOST_DESCRIPTORS));
    if current.is_some_and(|now| now < wanted) {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
    }
}

const MOST_DESCRIPTORS: u64 = 20_000;

/// CPU time of this process so far, user and kernel, in steps of 10 ms.
pub(crate) fn cpu() -> anyhow::Result<Duration> {
    cpu_of("self")
}

fn cpu_of(process: &str) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The command's name may hold anything; it ends with the last parenthesis.
    let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}

/// Resident memory of this process, in bytes.
pub(crate) fn resident() -> anyhow::Result<u64> {
    status_field("VmRSS:")
}

/// The most resident memory since [`forget_peak`], in bytes.
pub(crate) fn peak() -> anyhow::Result<u64> {
    status_field("VmHWM:")
}

/// Lets [`peak`] begin anew.
pub(crate) fn forget_peak() -> anyhow::Result<()> {
    fs::write("/proc/self/clear_refs", "5").context("cannot reset the peak of resident memory")
}

fn status_field(name: &str) -> anyhow::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let Some(line) = status.lines().find_map(|line| line.strip_prefix(name)) else { bail!("no {name} in status") };
    let kibibytes: u64 = line.split_whitespace().next().context("an empty field")?.parse()?;
    Ok(kibibytes << 10)
}
