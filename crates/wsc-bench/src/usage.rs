//! What a process uses, as Linux tells it.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, ensure};
use nix::{time::ClockId, unistd::Pid};
use procfs::{
    net::{TcpState, tcp, tcp6},
    process::{FDTarget, Process},
};

/// A process that is watched from outside.
#[derive(Debug)]
pub(crate) struct Watched {
    process: Process,
    clock: Option<ClockId>,
}

/// What a process holds at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holdings {
    /// `VmRSS`, in bytes.
    pub(crate) resident: u64,
    pub(crate) descriptors: usize,
    pub(crate) threads: u64,
}

impl Watched {
    /// # Errors
    ///
    /// There is no such process, or it belongs to somebody else.
    pub(crate) fn new(pid: u32) -> anyhow::Result<Self> {
        let process = Process::new(pid as i32).with_context(|| format!("cannot look at process {pid}"))?;
        // The process' own CPU clock counts nanoseconds and includes threads that have ended.
        let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid as i32)).ok().filter(|clock| clock.now().is_ok());
        Ok(Self { process, clock })
    }

    /// Whether the process is the one that serves at an address: whether it has a socket that listens there.
    ///
    /// `Ok` with a doubt where the process does not let itself be looked at.
    ///
    /// # Errors
    ///
    /// It is another process.
    pub(crate) fn ensure_listens(&self, address: SocketAddr) -> anyhow::Result<Option<String>> {
        let pid = self.pid();
        let entries = tcp().context("cannot read /proc/net/tcp")?.into_iter().chain(tcp6().unwrap_or_default());
        let here = |ip: IpAddr| ip.is_unspecified() || ip.to_canonical() == address.ip().to_canonical();
        let listening: Vec<u64> = entries
            .filter(|entry| entry.state == TcpState::Listen)
            .filter(|entry| entry.local_address.port() == address.port() && here(entry.local_address.ip()))
            .map(|entry| entry.inode)
            .collect();
        ensure!(!listening.is_empty(), "--pid {pid}: nothing on this machine listens at {address}");
        let Ok(mut descriptors) = self.process.fd() else {
            return Ok(Some(format!("process {pid} may not be looked into: that it serves {address} was not checked")));
        };
        ensure!(
            descriptors
                .any(|fd| matches!(fd.map(|fd| fd.target), Ok(FDTarget::Socket(inode)) if listening.contains(&inode))),
            "--pid {pid}: that process does not listen at {address}, its figures would not be the server's"
        );
        Ok(None)
    }

    /// CPU time of all its threads so far, in user space and in the kernel.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        if let Some(clock) = self.clock {
            return Ok(clock.now().context("the server has gone")?.into());
        }
        let stat = self.process.stat().context("the server has gone")?;
        Ok(Duration::from_secs_f64((stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64))
    }

    /// How fine [`cpu`](Self::cpu) is.
    pub(crate) fn cpu_source(&self) -> &'static str {
        if self.clock.is_some() { "its CPU clock (ns)" } else { "utime + stime (ticks)" }
    }

    pub(crate) fn holdings(&self) -> anyhow::Result<Holdings> {
        let status = self.process.status().context("the server has gone")?;
        let resident = status.vmrss.context("no VmRSS: is that process a kernel thread?")? * 1024;
        let descriptors = self.process.fd_count().context("cannot count the server's file descriptors")?;
        Ok(Holdings { resident, descriptors, threads: status.threads })
    }

    /// How many file descriptors it may open.
    pub(crate) fn descriptor_limit(&self) -> Option<u64> {
        match self.process.limits().ok()?.max_open_files.soft_limit {
            procfs::process::LimitValue::Value(limit) => Some(limit),
            procfs::process::LimitValue::Unlimited => None,
        }
    }

    /// The CPUs that it may run on, such as `0-3`.
    pub(crate) fn cpus(&self) -> String {
        let Ok(status) = self.process.status() else { return "?".into() };
        let ranges = status.cpus_allowed_list.unwrap_or_default();
        let text = ranges.iter().map(|&(from, to)| if from == to { from.to_string() } else { format!("{from}-{to}") });
        text.collect::<Vec<_>>().join(",")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid as u32
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn work_shows_on_the_clock_and_holdings_are_there() {
        let me = Watched::new(std::process::id()).unwrap();
        let before = me.cpu().unwrap();
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(50) {
            std::hint::spin_loop();
        }
        let used = me.cpu().unwrap() - before;
        assert!(used >= Duration::from_millis(5), "{used:?}");
        let holdings = me.holdings().unwrap();
        assert!(holdings.resident > 100_000 && holdings.descriptors >= 3 && holdings.threads >= 1, "{holdings:?}");
        assert!(Watched::new(u32::MAX / 2).is_err());
    }

    #[test]
    fn a_process_that_does_not_listen_there_is_told_from_the_server() {
        let me = Watched::new(std::process::id()).unwrap();
        for listen in ["127.0.0.1:0", "0.0.0.0:0"] {
            let listener = std::net::TcpListener::bind(listen).unwrap();
            let address = SocketAddr::new([127, 0, 0, 1].into(), listener.local_addr().unwrap().port());
            assert_eq!(me.ensure_listens(address).unwrap(), None);
            let mut other = std::process::Command::new("sleep").arg("60").spawn().unwrap();
            let wrong = Watched::new(other.id()).unwrap().ensure_listens(address);
            other.kill().unwrap();
            other.wait().unwrap();
            assert!(wrong.unwrap_err().to_string().contains("does not listen"));
            drop(listener);
            assert!(me.ensure_listens(address).unwrap_err().to_string().contains("nothing on this machine"));
        }
    }
}
