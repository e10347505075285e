//! Counting instructions with `perf stat`, where there is one and it may.

use std::{process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

/// A `perf stat` that counts.
#[derive(Debug)]
pub(crate) struct Perf(Child);

impl Perf {
    /// Begins to count the instructions of a process; `Err` says why not.
    pub(crate) async fn start(pid: u32) -> Result<Self, String> {
        // A probe of itself first: what the machine or its policy does not allow shows at once.
        let probe = Command::new("perf")
            .args(["stat", "-x", ",", "-e", EVENT, "true"])
            .stdin(Stdio::null())
            .output()
            .await
            .map_err(|e| format!("perf cannot be run ({e})"))?;
        parse(&String::from_utf8_lossy(&probe.stderr))?;
        let child = Command::new("perf")
            .args(["stat", "-x", ",", "-e", EVENT, "-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| format!("perf cannot be run ({e})"))?;
        // It does not say when it has attached. The server idles meanwhile, so early is not wrong, only late is.
        tokio::time::sleep(ATTACH).await;
        Ok(Self(child))
    }

    /// Ends the counting; returns how many there were.
    pub(crate) async fn stop(self) -> Result<f64, String> {
        if let Some(pid) = self.0.id().and_then(|pid| Pid::from_raw(pid as i32)) {
            let _ = kill_process(pid, Signal::INT);
        }
        let output = self.0.wait_with_output().await.map_err(|e| e.to_string())?;
        parse(&String::from_utf8_lossy(&output.stderr))
    }
}

/// Reads the count out of `perf stat -x ,`.
fn parse(text: &str) -> Result<f64, String> {
    let line = text.lines().find(|line| line.contains("instructions"));
    let Some(count) = line.and_then(|line| line.split(',').next()) else {
        return Err(format!("perf stat says: {}", text.lines().next().unwrap_or("nothing").trim()));
    };
    count.parse().map_err(|_| format!("perf stat says instructions are {count}"))
}

const EVENT: &str = "instructions";
const ATTACH: Duration = Duration::from_millis(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_refusals_are_read() {
        assert_eq!(parse("1234567,,instructions,1000,100.00,,\n"), Ok(1_234_567.0));
        assert!(parse("<not supported>,,instructions,0,100.00,,\n").unwrap_err().contains("<not supported>"));
        assert!(parse("Access to performance monitoring is limited\n").unwrap_err().contains("limited"));
        assert!(parse("").is_err());
    }
}
