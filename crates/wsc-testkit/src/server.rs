//! The `wsc` binary as a child process.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::http::{HttpResponse, http, query};
use crate::metrics::Metrics;
use crate::wait::within;

/// A running server, killed when this value is dropped.
///
/// It runs in a temporary directory of its own, where its data directory
/// `./data` is too, without any `WSC__…` variable of the environment. What it
/// printed is shown when the test panics.
pub struct ServerProcess {
    child: Child,
    addr: SocketAddr,
    log: Log,
    /// How it was started, to start it again.
    start: Start,
    // Holds the settings file and everything the server writes beside it.
    dir: TempDir,
}

/// What a process is started with.
#[derive(Debug, Clone, Copy, Default)]
pub struct Launch<'a> {
    /// The arguments.
    pub args: &'a [&'a str],
    /// Files in the directory it runs in: name and content.
    pub files: &'a [(&'a str, &'a str)],
    /// Variables of the environment. Those of the test that start with
    /// `WSC__` are not handed on.
    pub env: &'a [(&'a str, &'a str)],
}

impl Launch<'_> {
    /// Runs `bin` in a temporary directory until it ends by itself.
    ///
    /// # Panics
    ///
    /// When it cannot be started or does not end in time.
    pub async fn run(&self, bin: impl AsRef<Path>) -> Output {
        let dir = TempDir::new().expect("a temporary directory");
        self.run_in(dir.path(), bin).await
    }

    /// Runs `bin` in this directory until it ends by itself.
    ///
    /// # Panics
    ///
    /// As [`Launch::run`].
    pub async fn run_in(&self, dir: &Path, bin: impl AsRef<Path>) -> Output {
        self.write_files(dir);
        let mut command = Start::of(bin, self).command(dir);
        let output = within(&format!("the end of {command:?}"), command.output()).await;
        output.unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"))
    }

    fn write_files(&self, dir: &Path) {
        for (name, content) in self.files {
            std::fs::write(dir.join(name), content).expect("the file can be written");
        }
    }
}

/// A [`Launch`] without its files, to keep.
#[derive(Debug)]
struct Start {
    bin: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
}

impl Start {
    fn of(bin: impl AsRef<Path>, launch: &Launch<'_>) -> Self {
        let env = launch.env.iter().map(|&(key, value)| (key.to_owned(), value.to_owned()));
        Self {
            bin: bin.as_ref().to_owned(),
            args: launch.args.iter().map(|&arg| arg.to_owned()).collect(),
            env: env.collect(),
        }
    }

    fn command(&self, dir: &Path) -> Command {
        let mut command = Command::new(&self.bin);
        command
            .args(&self.args)
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        for (key, _) in std::env::vars_os() {
            if key.to_string_lossy().starts_with("WSC__") {
                command.env_remove(key);
            }
        }
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        command
    }

    /// Starts the process in this directory and waits until it listens, or ends: then the address is missing.
    async fn started(&self, dir: &Path) -> (Child, Option<SocketAddr>, Log) {
        let mut command = self.command(dir);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));

        let log = Log::default();
        let (found, mut listening) = watch::channel(None);
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let stderr = child.stderr.take().expect("stderr is a pipe");
        let printed = tokio::spawn(collect(stdout, Arc::clone(&log), Some(found)));
        let complained = tokio::spawn(collect(stderr, Arc::clone(&log), None));

        let started = async {
            // An error means that stdout ended: the process is gone.
            let found = listening.wait_for(Option::is_some).await;
            found.ok().and_then(|addr| *addr)
        };
        let Ok(addr) = tokio::time::timeout(crate::WAIT, started).await else {
            let _ = child.start_kill();
            panic!("the server neither listens nor ends: {self:#?}\noutput:\n{}", text(&log));
        };
        if addr.is_none() {
            // The log is to be whole.
            let _ = within("the end of what the server says", async { tokio::join!(printed, complained) }).await;
        }
        (child, addr, log)
    }

    /// Starts the process in this directory and waits until it listens.
    async fn listening(&self, dir: &Path) -> (Child, SocketAddr, Log) {
        let (mut child, addr, log) = self.started(dir).await;
        let Some(addr) = addr else {
            let status = child.wait().await;
            panic!("the server does not listen ({status:?}): {self:#?}\noutput:\n{}", text(&log));
        };
        (child, addr, log)
    }
}

type Log = Arc<Mutex<Vec<String>>>;

/// The line by which the server says where it listens starts with one of these.
const LISTENING: [&str; 2] = ["wsc: listening on http://", "wsc: listening on https://"];

impl ServerProcess {
    /// Starts `bin` with these settings and waits until it listens.
    ///
    /// The settings should say `listen: 127.0.0.1:0`; the port that the system
    /// chose is read from what the server prints.
    ///
    /// # Panics
    ///
    /// When the process ends, or does not listen in time; with its output.
    pub async fn start(bin: impl AsRef<Path>, config_yaml: &str) -> Self {
        let launch = Launch {
            args: &["serve", "--config", "settings.yaml"],
            files: &[("settings.yaml", config_yaml)],
            env: &[],
        };
        Self::launch(bin, &launch).await
    }

    /// Starts `bin` with any arguments, files and variables, and waits until
    /// it listens.
    ///
    /// # Panics
    ///
    /// As [`ServerProcess::start`].
    pub async fn launch(bin: impl AsRef<Path>, launch: &Launch<'_>) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        launch.write_files(dir.path());
        let start = Start::of(bin, launch);
        let (child, addr, log) = start.listening(dir.path()).await;
        Self { child, addr, log, start, dir }
    }

    /// Starts a server that has ended again, in the directory with all that
    /// the one before left there, and waits until it listens.
    ///
    /// With `listen: 127.0.0.1:0` it has another port than before. The log
    /// begins anew.
    ///
    /// # Panics
    ///
    /// When it still runs; else as [`ServerProcess::start`].
    pub async fn restart(&mut self) {
        assert!(!self.is_running(), "the server still runs");
        (self.child, self.addr, self.log) = self.start.listening(self.dir.path()).await;
    }

    /// As [`ServerProcess::restart`], for a server that may refuse to start.
    ///
    /// # Errors
    ///
    /// The result of its end, as of [`ServerProcess::terminate`]; what it said
    /// is in the log.
    ///
    /// # Panics
    ///
    /// When it still runs, or neither listens nor ends in time.
    pub async fn try_restart(&mut self) -> Result<(), i32> {
        assert!(!self.is_running(), "the server still runs");
        let (child, addr, log) = self.start.started(self.dir.path()).await;
        (self.child, self.log) = (child, log);
        match addr {
            Some(addr) => self.addr = addr,
            None => return Err(self.wait().await),
        }
        Ok(())
    }

    /// The address it listens on.
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The process id.
    ///
    /// # Panics
    ///
    /// When the process has ended.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("the server still runs")
    }

    /// The directory that the server runs in; the settings are in
    /// `settings.yaml`.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// `http://address:port`, without a slash at the end.
    pub fn http_url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// `ws://address:port/ws`.
    pub fn ws_url(&self) -> String {
        format!("ws://{}/ws", self.addr)
    }

    /// The WebSocket URL for this user, with a generated client id.
    pub fn ws_url_as(&self, user_id: &str) -> String {
        format!("{}{}", self.ws_url(), query(&[("user_id", user_id)]))
    }

    /// The WebSocket URL for this user and this client id.
    pub fn ws_url_for(&self, user_id: &str, client_id: &str) -> String {
        let query = query(&[("user_id", user_id), ("client_id", client_id)]);
        format!("{}{query}", self.ws_url())
    }

    /// Sends a request to this server; `path` starts with a slash.
    pub async fn http(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&[u8]>) -> HttpResponse {
        let url = format!("{}{path}", self.http_url());
        http(method, &url, headers, body).await
    }

    /// `GET path`.
    pub async fn get(&self, path: &str) -> HttpResponse {
        self.http("GET", path, &[], None).await
    }

    /// `DELETE path`.
    pub async fn delete(&self, path: &str) -> HttpResponse {
        self.http("DELETE", path, &[], None).await
    }

    /// `POST path` with a JSON body.
    pub async fn post(&self, path: &str, body: &Value) -> HttpResponse {
        self.post_text(path, &body.to_string()).await
    }

    /// `POST path` with this text as `application/json`, byte for byte.
    pub async fn post_text(&self, path: &str, body: &str) -> HttpResponse {
        let headers = [("Content-Type", "application/json")];
        self.http("POST", path, &headers, Some(body.as_bytes())).await
    }

    /// Scrapes `/metrics`.
    ///
    /// # Panics
    ///
    /// When the answer is not 200.
    pub async fn metrics(&self) -> Metrics {
        let response = self.get("/metrics").await;
        assert_eq!(response.status, 200, "{response:?}");
        Metrics::parse(response.text())
    }

    /// Everything the server printed so far, both streams.
    pub fn log(&self) -> String {
        text(&self.log)
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends this process the signal to terminate, without waiting.
    pub fn signal_terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Terminates the server and waits for it; gives its exit code, or minus
    /// the number of the signal that ended it.
    ///
    /// # Panics
    ///
    /// When it does not end in time.
    pub async fn terminate(&mut self) -> i32 {
        self.signal_terminate();
        self.wait().await
    }

    /// Kills the server, which has no time to say goodbye, and waits until it
    /// is gone and its port is free.
    ///
    /// # Panics
    ///
    /// As [`ServerProcess::terminate`].
    pub async fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait().await;
    }

    /// Stops the process where it is: its sockets stay, nobody answers.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets a process that was stopped go on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok());
        let pid = pid.and_then(Pid::from_raw).expect("the server still runs");
        kill_process(pid, signal).expect("the server can be signalled");
    }

    /// Waits for the server to end by itself; result as of
    /// [`ServerProcess::terminate`].
    ///
    /// # Panics
    ///
    /// When it does not end in time.
    pub async fn wait(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let status = within("the end of the server", self.child.wait()).await;
        let status = status.expect("the child can be waited for");
        status.code().unwrap_or_else(|| -status.signal().unwrap_or_default())
    }
}

impl fmt::Debug for ServerProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerProcess").field("addr", &self.addr).field("pid", &self.child.id()).finish_non_exhaustive()
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.start_kill();
        if std::thread::panicking() {
            println!("--- output of the server on {}", self.addr);
            println!("{}", text(&self.log));
            println!("--- end of output");
        }
    }
}

/// Keeps every line, and tells `found` the first address that is announced.
async fn collect<R>(stream: R, log: Log, found: Option<watch::Sender<Option<SocketAddr>>>)
where
    R: AsyncRead + Unpin,
{
    let mut lines = BufReader::new(stream).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(found) = &found
            && let Some(addr) = LISTENING.iter().find_map(|start| line.strip_prefix(start))
            && let Ok(addr) = addr.trim().parse()
        {
            found.send_if_modified(|first| first.is_none() && first.replace(addr).is_none());
        }
        log.lock().expect("no panic while logging").push(line);
    }
}

fn text(log: &Log) -> String {
    match log.lock() {
        Ok(lines) => lines.join("\n"),
        Err(_) => String::new(),
    }
}
