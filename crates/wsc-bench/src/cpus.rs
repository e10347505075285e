//! Who runs on which CPU.

use std::fmt;

use anyhow::Context;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The CPUs of server and clients: disjoint where there are two or more, so that neither takes the other's time.
#[derive(Clone, Debug)]
pub(crate) struct Cpus {
    pub(crate) server: Group,
    pub(crate) clients: Group,
}

/// Some CPUs; none means all.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Group(Vec<usize>);

impl Cpus {
    /// Gives the server as many as it has threads, and the clients the others, at least one.
    pub(crate) fn share(server_threads: usize) -> anyhow::Result<Self> {
        let set = sched_getaffinity(None)?;
        let all: Vec<_> = (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect();
        Ok(Self::split(&all, server_threads))
    }

    fn split(all: &[usize], server_threads: usize) -> Self {
        if all.len() < 2 {
            return Self::unpinned();
        }
        let (server, clients) = all.split_at(server_threads.clamp(1, all.len() - 1));
        Self { server: Group(server.to_vec()), clients: Group(clients.to_vec()) }
    }

    /// Everybody runs anywhere.
    pub(crate) fn unpinned() -> Self {
        Self { server: Group::default(), clients: Group::default() }
    }
}

impl Group {
    /// Calls `spawn`, which starts a process, so that the process runs on these CPUs only.
    ///
    /// A child inherits them from the thread that starts it: later would be too late for the threads that it starts
    /// itself.
    pub(crate) fn start<T>(&self, spawn: impl FnOnce() -> std::io::Result<T>) -> anyhow::Result<T> {
        if self.0.is_empty() {
            return Ok(spawn()?);
        }
        let before = sched_getaffinity(None)?;
        sched_setaffinity(None, &self.set()).context("cannot pin a process to a CPU; try --no-pin")?;
        let result = spawn();
        sched_setaffinity(None, &before)?;
        Ok(result?)
    }
}

impl Group {
    /// Lets the calling thread, and what it starts from now on, run on these CPUs only.
    pub(crate) fn join(&self) -> anyhow::Result<()> {
        if !self.0.is_empty() {
            sched_setaffinity(None, &self.set()).context("cannot pin a process to a CPU; try --no-pin")?;
        }
        Ok(())
    }

    fn set(&self) -> CpuSet {
        let mut set = CpuSet::new();
        for &cpu in &self.0 {
            set.set(cpu);
        }
        set
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [] => f.write_str("any CPU"),
            [one] => write!(f, "CPU {one}"),
            several => {
                let text: Vec<_> = several.iter().map(ToString::to_string).collect();
                write!(f, "CPUs {}", text.join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_always_keep_a_cpu() {
        for (all, threads, server, clients) in [
            (vec![0], 1, vec![], vec![]),
            (vec![0, 1], 1, vec![0], vec![1]),
            (vec![0, 1], 4, vec![0], vec![1]),
            (vec![2, 3, 6, 7], 2, vec![2, 3], vec![6, 7]),
        ] {
            let cpus = Cpus::split(&all, threads);
            assert_eq!((cpus.server.0, cpus.clients.0), (server, clients), "{all:?}");
        }
    }

    #[test]
    fn a_child_inherits_them_and_the_parent_keeps_its_own() {
        let before = sched_getaffinity(None).unwrap();
        let one = (0..CpuSet::MAX_CPU).rfind(|&cpu| before.is_set(cpu)).unwrap();
        let child =
            Group(vec![one]).start(|| std::process::Command::new("cat").arg("/proc/self/status").output()).unwrap();
        let status = String::from_utf8(child.stdout).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
        assert_eq!(line.trim(), one.to_string());
        assert_eq!(sched_getaffinity(None).unwrap(), before);
    }
}
