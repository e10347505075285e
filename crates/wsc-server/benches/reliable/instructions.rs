//! Instructions for each delivery of a plain message, counted by callgrind around the `wsc` command: the one figure that
//! neighbours on the machine cannot change. The kernel's are not in it.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    Sizes,
    process::Figures,
    wire::{self, TEXT},
};

/// What is sent.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    /// To the room of all, or else by one user to the next.
    is_to_room: bool,
    /// Messages that are sent before all of them are awaited.
    in_flight: usize,
    /// Rounds of the short run, and of the long one: so far apart that the start, which is never quite the same, is
    /// small beside the difference.
    rounds: [usize; 2],
}

const CASES: [Case; 3] = [
    Case { name: "fanout", is_to_room: true, in_flight: 1, rounds: [100, 2_100] },
    Case { name: "fanout_16", is_to_room: true, in_flight: 16, rounds: [20, 1_020] },
    Case { name: "direct", is_to_room: false, in_flight: 1, rounds: [1_000, 21_000] },
];

/// Members of the room.
const MEMBERS: usize = 200;

/// Bytes of a message's content, as in `wsc bench fanout`.
const CONTENT: usize = 128;

/// Counts in one binary, or in two to compare them.
pub(crate) fn measure(sizes: &Sizes, wsc: &Path, base: Option<&Path>) -> anyhow::Result<Figures> {
    let mut figures = Figures::default();
    for case in CASES {
        let now = per_delivery(sizes, wsc, case)?;
        figures = figures.with(case.name, now);
        if let Some(base) = base {
            let before = per_delivery(sizes, base, case)?;
            figures = figures.with(&format!("{}_base", case.name), before);
            figures = figures.with(&format!("{}_times_base", case.name), now / before);
        }
    }
    Ok(figures)
}

/// From two runs of different length: what is not for a delivery is in both.
fn per_delivery(sizes: &Sizes, wsc: &Path, case: Case) -> anyhow::Result<f64> {
    let [short, long] = case.rounds.map(|rounds| run(sizes, wsc, case, rounds));
    let ((short, fewer), (long, more)) = (short?, long?);
    Ok((long - short) / (more - fewer) as f64)
}

/// Instructions, and deliveries.
fn run(sizes: &Sizes, wsc: &Path, case: Case, rounds: usize) -> anyhow::Result<(f64, usize)> {
    let directory = tempfile::tempdir_in(&sizes.directory)?;
    let counts = directory.path().join("counts");
    let mut server = Server::start(wsc, directory.path(), &counts)?;
    let deliveries = drive(server.address, case, rounds)?;
    server.stop()?;
    let text = fs::read_to_string(&counts).context("callgrind has left no counts")?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals:")).context("no totals in callgrind's file")?;
    Ok((total.trim().parse()?, deliveries))
}

fn drive(address: SocketAddr, case: Case, rounds: usize) -> anyhow::Result<usize> {
    let mut members =
        (0..MEMBERS).map(|number| Member::connect(address, number)).collect::<anyhow::Result<Vec<_>>>()?;
    let content = "x".repeat(CONTENT);
    if !case.is_to_room {
        let [sender, receiver, ..] = members.as_mut_slice() else { bail!("no two members") };
        let message = format!(
            "{{\"message_type\":\"direct_message\",\"data\":{{\"target_id\":\"u1\",\"content\":\"{content}\"}}}}"
        );
        for _ in 0..rounds {
            sender.send(&message, case.in_flight)?;
            receiver.receive(case.in_flight)?;
        }
        return Ok(rounds * case.in_flight);
    }
    for member in &mut members {
        member.send("{\"message_type\":\"join_room\",\"data\":{\"room_id\":\"r\"}}", 1)?;
        member.receive(1)?;
    }
    let message =
        format!("{{\"message_type\":\"room_message\",\"data\":{{\"room_id\":\"r\",\"content\":\"{content}\"}}}}");
    let [sender, receivers @ ..] = members.as_mut_slice() else { bail!("no members") };
    for _ in 0..rounds {
        sender.send(&message, case.in_flight)?;
        for receiver in &mut *receivers {
            receiver.receive(case.in_flight)?;
        }
    }
    Ok(rounds * case.in_flight * receivers.len())
}

struct Member {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Member {
    fn connect(address: SocketAddr, number: usize) -> anyhow::Result<Self> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(wire::upgrade(&format!("user_id=u{number}&client_id=c")).as_bytes())?;
        let unread = wire::read_head(&mut stream)?;
        let mut member = Self { stream, unread };
        // It says `connected`.
        member.receive(1)?;
        Ok(member)
    }

    /// Sends the same message so many times, in one write.
    fn send(&mut self, text: &str, times: usize) -> anyhow::Result<()> {
        let mut out = Vec::new();
        for _ in 0..times {
            wire::write(&mut out, TEXT, |out| out.extend_from_slice(text.as_bytes()));
        }
        Ok(self.stream.write_all(&out)?)
    }

    fn receive(&mut self, messages: usize) -> anyhow::Result<()> {
        let mut left = messages;
        while left > 0 {
            if let Some((frame, length)) = wire::parse(&self.unread) {
                left -= usize::from(frame.opcode == TEXT);
                self.unread.drain(..length);
                continue;
            }
            let mut buffer = [0; 8192];
            let length = self.stream.read(&mut buffer).context("the server under callgrind does not answer")?;
            ensure!(length > 0, "the server closed a connection");
            self.unread.extend_from_slice(&buffer[..length]);
        }
        Ok(())
    }
}

/// A server under callgrind, with one thread for its tasks.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn start(wsc: &Path, directory: &Path, counts: &Path) -> anyhow::Result<Self> {
        let mut child = Command::new("valgrind")
            .args(["--tool=callgrind", "--quiet"])
            .arg(format!("--callgrind-out-file={}", counts.display()))
            .arg(wsc.canonicalize().with_context(|| format!("no {}", wsc.display()))?)
            .arg("serve")
            .current_dir(directory)
            .env("WSC__LISTEN", "127.0.0.1:0")
            // No pings while it is counted.
            .env("WSC__PING_INTERVAL", "10m")
            .env("TOKIO_WORKER_THREADS", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start valgrind")?;
        let mut stdout = BufReader::new(child.stdout.take().context("no standard output")?);
        let mut line = String::new();
        let address = loop {
            line.clear();
            ensure!(stdout.read_line(&mut line)? > 0, "the server under callgrind ended at once");
            if let Some((_, address)) = line.trim().split_once("listening on http://") {
                break address.parse()?;
            }
        };
        // What it says later is read by nobody, and must not stop it.
        std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        Ok(Self { child, address })
    }

    /// Lets it end in order, so that callgrind writes what it has.
    fn stop(&mut self) -> anyhow::Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("a process id")?;
        kill_process(pid, Signal::TERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the server under callgrind ended with {status}");
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const PATIENCE: Duration = Duration::from_secs(60);
