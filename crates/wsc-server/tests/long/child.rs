//! Crowds in processes of their own: the test binary, run again, does what its parent asks for.
//!
//! The parent writes one request as a line of JSON, the child answers with one line; what the test harness prints beside
//! it has no `@` in front.

use std::{
    io::stdin,
    process::{Command as StdCommand, Stdio},
    thread,
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child as Process, ChildStdin, ChildStdout, Command},
    sync::mpsc,
};

use crate::{fleet, storm};

/// A child, killed when this value is dropped.
#[derive(Debug)]
pub(crate) struct Child {
    process: Process,
    requests: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

/// What a child is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Role {
    /// Clients that stay: [`fleet::run`].
    Fleet,
    /// Attempts to connect: [`storm::run`].
    Storm,
}

impl Child {
    pub(crate) fn start(role: Role) -> Self {
        let mut command = StdCommand::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "child::the_child", "--nocapture", "--test-threads=1"])
            .env(ROLE, format!("{role:?}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = Command::from(command).kill_on_drop(true).spawn().unwrap();
        let requests = process.stdin.take().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, requests, answers }
    }

    /// Asks the child for something, and waits for it.
    ///
    /// # Panics
    ///
    /// Where it takes longer than so long, or the child is gone.
    pub(crate) async fn ask<T: DeserializeOwned>(&mut self, request: &impl Serialize, limit: Duration) -> T {
        let line = format!("{}\n", serde_json::to_string(request).unwrap());
        self.requests.write_all(line.as_bytes()).await.unwrap();
        let answer = async {
            loop {
                let line = self.answers.next_line().await.unwrap();
                let line = line.unwrap_or_else(|| {
                    panic!("the child ended before it answered {request}", request = line_of(request))
                });
                if let Some(answer) = line.strip_prefix('@') {
                    return serde_json::from_str(answer).unwrap();
                }
            }
        };
        let answer = tokio::time::timeout(limit, answer).await;
        answer.unwrap_or_else(|_| panic!("no answer after {limit:?} to {}", line_of(request)))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id().expect("the child still runs")
    }
}

fn line_of(request: &impl Serialize) -> String {
    serde_json::to_string(request).unwrap_or_default()
}

/// No test: what [`Child::start`] starts.
#[test]
fn the_child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    // The harness has begun a line.
    println!();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        match role.as_str() {
            "Fleet" => fleet::run(Requests::new()).await,
            "Storm" => storm::run(Requests::new()).await,
            other => panic!("there is no role {other}"),
        }
    });
}

/// What the parent asks for, in the child.
#[derive(Debug)]
pub(crate) struct Requests(mpsc::UnboundedReceiver<String>);

impl Requests {
    fn new() -> Self {
        let (lines, requests) = mpsc::unbounded_channel();
        // It ends with the parent, or with this process.
        thread::spawn(move || stdin().lines().map_while(Result::ok).try_for_each(|line| lines.send(line)));
        Self(requests)
    }

    /// The next request; `None` once the parent is gone.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Option<T> {
        let line = self.0.recv().await?;
        Some(serde_json::from_str(&line).unwrap())
    }
}

/// Answers the request that was read last.
pub(crate) fn answer(answer: &impl Serialize) {
    println!("@{}", serde_json::to_string(answer).unwrap());
}

/// For requests that have nothing to say back.
pub(crate) fn done() {
    answer(&Value::Null);
}

const ROLE: &str = "WSC_LONG_CHILD";
