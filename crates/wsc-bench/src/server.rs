//! The server that is measured.

use std::{
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::{Program, args::ServerArgs, cpus::Group, message::Endpoint, usage::Watched};

/// Which server.
#[derive(Clone, Debug)]
pub(crate) enum Subject {
    /// One that somebody else runs.
    Foreign { url: String, pid: Option<u32> },
    /// A child process that serves on a loopback port of its choice and says on which.
    Child { name: String, program: PathBuf, args: Vec<String>, environment: Vec<(String, String)> },
}

/// A server that is being measured.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) endpoint: Endpoint,
    watched: Option<Watched>,
    /// Why the process that is watched may be another than the server's.
    doubt: Option<String>,
    /// Killed when it is dropped.
    child: Option<Child>,
    subject: Subject,
    cpus: Group,
}

/// The setting of where the inbox is.
const STORAGE_KIND: &str = "WSC__STORAGE__KIND";

impl Subject {
    /// The server that the command line names: somebody's, or a hub of our own.
    pub(crate) fn chosen(args: &ServerArgs, program: &Program) -> anyhow::Result<Self> {
        match &args.url {
            Some(url) => Ok(Self::Foreign { url: url.clone(), pid: args.pid }),
            None => Self::hub(args, program),
        }
    }

    /// A hub with default settings, which this executable can be too. But its inbox is in memory: a file would stay
    /// behind, and may be in use by another hub.
    pub(crate) fn hub(args: &ServerArgs, program: &Program) -> anyhow::Result<Self> {
        let Some(serve) = &program.serve else {
            bail!("this program is no hub: name the server with --url, or use `wsc bench`");
        };
        let mut environment = vec![
            ("TOKIO_WORKER_THREADS".into(), args.server_threads.to_string()),
            ("WSC__LOG__LEVEL".into(), "error".into()),
        ];
        if std::env::var_os(STORAGE_KIND).is_none() {
            environment.push((STORAGE_KIND.into(), "memory".into()));
        }
        Ok(Self::Child { name: "wsc".into(), program: program.executable.clone(), args: serve.clone(), environment })
    }
}

impl Server {
    /// Starts the server, or finds the one that runs.
    pub(crate) async fn start(subject: &Subject, token: Option<&str>, cpus: &Group) -> anyhow::Result<Self> {
        match subject {
            Subject::Foreign { url, pid } => {
                let mut endpoint = parse(url)?;
                endpoint.token = token.map(str::to_owned);
                let watched = pid.map(Watched::new).transpose()?;
                let doubt = match &watched {
                    Some(watched) => watched.ensure_listens(endpoint.address)?,
                    None => None,
                };
                let cpus = Group::default();
                Ok(Self { endpoint, watched, doubt, child: None, subject: subject.clone(), cpus })
            }
            Subject::Child { .. } => {
                let (child, address) = spawn(subject, cpus, "127.0.0.1:0").await?;
                let watched = child.id().map(Watched::new).transpose()?;
                let endpoint = Endpoint {
                    address,
                    host: address.to_string(),
                    path: "/ws".into(),
                    token: token.map(str::to_owned),
                };
                let cpus = cpus.clone();
                Ok(Self { endpoint, watched, doubt: None, child: Some(child), subject: subject.clone(), cpus })
            }
        }
    }

    /// Kills the server and starts it again on the same port, where it is ours; returns when it accepted again.
    pub(crate) async fn restart(&mut self) -> anyhow::Result<Option<Instant>> {
        let Some(child) = &mut self.child else { return Ok(None) };
        child.kill().await?;
        let (child, _) = spawn(&self.subject, &self.cpus, &self.endpoint.address.to_string()).await?;
        let ready = Instant::now();
        self.watched = child.id().map(Watched::new).transpose()?;
        self.child = Some(child);
        Ok(Some(ready))
    }

    /// Ends the server, where it is ours.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// The process, where it is known.
    pub(crate) fn watched(&self) -> Option<&Watched> {
        self.watched.as_ref()
    }

    /// CPU time of the process so far, where it is known.
    pub(crate) fn cpu(&self) -> anyhow::Result<Option<Duration>> {
        self.watched.as_ref().map(Watched::cpu).transpose()
    }

    /// Fails early where the server cannot hold so many connections.
    pub(crate) fn ensure_room_for(&self, connections: usize) -> anyhow::Result<()> {
        // What a server needs beside its connections.
        const BESIDE: u64 = 64;
        if let Some(limit) = self.watched.as_ref().and_then(Watched::descriptor_limit)
            && limit < connections as u64 + BESIDE
        {
            bail!("the server may open {limit} files, too few for {connections} connections: raise its `ulimit -n`");
        }
        Ok(())
    }

    /// Why its figures may be those of another process.
    pub(crate) fn doubt(&self) -> Option<&str> {
        self.doubt.as_deref()
    }

    /// What is measured, for the reader of the figures.
    pub(crate) fn describe(&self) -> String {
        let name = match &self.subject {
            Subject::Foreign { url, .. } => url.clone(),
            Subject::Child { name, .. } => format!("{name} on {}", self.endpoint.address),
        };
        match &self.watched {
            Some(watched) => {
                format!("{name}, pid {}, on CPU {}, time from {}", watched.pid(), watched.cpus(), watched.cpu_source())
            }
            None => format!("{name}, without --pid: nothing about its CPU time and memory"),
        }
    }
}

async fn spawn(subject: &Subject, cpus: &Group, listen: &str) -> anyhow::Result<(Child, SocketAddr)> {
    let Subject::Child { name, program, args, environment } = subject else { bail!("not ours to start") };
    let mut command = Command::new(program);
    command.args(args.iter().map(|arg| arg.replace(LISTEN, listen)));
    command.envs(environment.iter().map(|(key, value)| (key, value)));
    // Settings that lie about in this directory are not meant.
    command.env("WSC__LISTEN", listen).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child =
        cpus.start(|| command.spawn()).with_context(|| format!("cannot start {name} ({})", program.display()))?;
    let stdout = child.stdout.take().context("no stdout")?;
    let mut lines = BufReader::new(stdout).lines();
    let found = timeout(START, async {
        while let Some(line) = lines.next_line().await? {
            if let Some((_, address)) = line.split_once("listening on ") {
                return Ok(address.trim_start_matches("http://").trim().parse::<SocketAddr>()?);
            }
        }
        bail!("{name} ended without saying where it listens")
    });
    let address = found.await.with_context(|| format!("{name} did not say where it listens within {START:?}"))??;
    // The rest is read and thrown away, so that the server never waits for a full pipe; this ends with the server.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Ok((child, address))
}

/// Reads `ws://HOST[:PORT][/PATH]`.
fn parse(url: &str) -> anyhow::Result<Endpoint> {
    if url.starts_with("wss://") {
        bail!("{url}: the load tool speaks no TLS; measure the hub without it, or behind what ends TLS");
    }
    let rest = url.strip_prefix("ws://").with_context(|| format!("{url} is no address like ws://127.0.0.1:8080/ws"))?;
    let (host, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let path = match path {
        "" => "/ws".to_owned(),
        query if query.starts_with('?') => format!("/ws{query}"),
        path => path.to_owned(),
    };
    let with_port = if host.rsplit(']').next().is_some_and(|end| end.contains(':')) {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    let address = with_port
        .to_socket_addrs()
        .with_context(|| format!("cannot find {host}"))?
        .min_by_key(SocketAddr::is_ipv6)
        .with_context(|| format!("{host} has no address"))?;
    Ok(Endpoint { address, host: host.to_owned(), path, token: None })
}

/// Stands for the address in a child's arguments.
pub(crate) const LISTEN: &str = "{listen}";

/// How long a server may take to start.
const START: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        for (url, address, host, path) in [
            ("ws://127.0.0.1:8080/ws", "127.0.0.1:8080", "127.0.0.1:8080", "/ws"),
            ("ws://127.0.0.1:9", "127.0.0.1:9", "127.0.0.1:9", "/ws"),
            ("ws://127.0.0.1", "127.0.0.1:80", "127.0.0.1", "/ws"),
            ("ws://[::1]:8/chat?a=b", "[::1]:8", "[::1]:8", "/chat?a=b"),
            ("ws://127.0.0.1:1?a=b", "127.0.0.1:1", "127.0.0.1:1", "/ws?a=b"),
        ] {
            let endpoint = parse(url).unwrap();
            assert_eq!(
                (endpoint.address.to_string().as_str(), endpoint.host.as_str(), endpoint.path.as_str()),
                (address, host, path),
                "{url}"
            );
        }
        for wrong in ["http://127.0.0.1/", "127.0.0.1:80", "wss://127.0.0.1", "ws://127.0.0.1:99999"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
