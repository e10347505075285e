//! A worker: one process and one thread with thousands of connections, told what to do by the coordinating process.
//!
//! What it is told is a [`Command`] on a line of its standard input; each becomes a [`Load`] that the event loop drives.

mod close;
mod exchange;
mod fanout;
mod fill;
mod frame;
mod http;
mod inbound;
mod open;
mod sockets;
mod source;

use std::{
    io::{self, BufRead, Write},
    os::fd::AsRawFd,
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::Context;
use mio::{Events, Interest, Poll, Token, Waker, unix::SourceFd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use self::sockets::{Incident, Patience, Sockets};
use crate::message::{Command, Done, Event};

/// Works until the coordinating process closes the standard input.
///
/// # Errors
///
/// What makes a worker of no use. What goes wrong in a run is told to the coordinating process.
pub(crate) fn run() -> anyhow::Result<()> {
    let poll = Poll::new()?;
    let (told, commands) = mpsc::channel();
    let waker = Waker::new(poll.registry(), COMMAND)?;
    std::thread::Builder::new().name("commands".into()).spawn(move || {
        for line in io::stdin().lock().lines() {
            let command = line.map_err(anyhow::Error::from).and_then(|line| Ok(serde_json::from_str(&line)?));
            if told.send(command).is_err() || waker.wake().is_err() {
                return;
            }
        }
        drop(told);
        let _ = waker.wake();
    })?;

    let Ok(first) = commands.recv() else { return Ok(()) };
    let Command::Begin { endpoint, run, first, patience, nice } = first? else {
        anyhow::bail!("told to work before to begin")
    };
    if nice > 0 {
        rustix::process::nice(nice)?;
    }
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    poll.registry().register(&mut SourceFd(&timer.as_raw_fd()), TIMER, Interest::READABLE)?;
    let sockets = Sockets::new(poll.registry().try_clone()?, endpoint);
    let names = Names { run, first };
    let mut worker = Worker { poll, timer, sockets, commands, names, patience };
    loop {
        let mut idling = Idling::default();
        if worker.drive(&mut idling)?.is_none() {
            return Ok(());
        }
        for command in idling.commands {
            match worker.perform(command) {
                Ok(Some(done)) => tell(&Event::Done(done))?,
                Ok(None) => return Ok(()),
                Err(error) => {
                    tell(&Event::Failed(format!("{error:#}")))?;
                    return Ok(());
                }
            }
        }
    }
}

/// Something that is done with the connections until it is finished.
trait Load {
    /// Begins.
    fn start(&mut self, io: &mut Sockets) -> anyhow::Result<()>;

    /// Something happened on a connection. An error ends the run.
    fn incident(&mut self, io: &mut Sockets, slot: usize, incident: Incident<'_>) -> anyhow::Result<()>;

    /// All that had happened is handled; also called ten times a second. Returns when to call at the latest.
    fn turn(&mut self, io: &mut Sockets) -> anyhow::Result<Option<Instant>>;

    /// The coordinating process has something to say.
    fn told(&mut self, command: Command) -> anyhow::Result<()> {
        anyhow::bail!("told in the middle of something: {command:?}")
    }

    /// A figure that grows as long as all is well.
    fn progress(&self) -> u64;

    /// Nothing happened for too long: an error, or `Ok` where the load ends with what it has.
    fn stalled(&mut self) -> anyhow::Result<()>;

    /// What came of it, once it is finished.
    fn finished(&mut self) -> Option<Done>;
}

struct Worker {
    poll: Poll,
    timer: std::os::fd::OwnedFd,
    sockets: Sockets,
    commands: mpsc::Receiver<anyhow::Result<Command>>,
    names: Names,
    patience: Duration,
}

impl Worker {
    /// Does what a command asks for; `None` where the coordinating process has gone.
    fn perform(&mut self, command: Command) -> anyhow::Result<Option<Done>> {
        tell(&Event::Started)?;
        match command {
            Command::Open(open) => self.drive(&mut open::Opening::new(open, self.names.clone())),
            Command::OpenHttp { count } => {
                for _ in 0..count {
                    let slot = self.sockets.len();
                    self.sockets.connect_http(slot, slot as u64)?;
                }
                Ok(Some(Done { count: count as u64, ..Done::default() }))
            }
            Command::Exchange(exchange) => self.drive(&mut exchange::Exchanging::new(exchange, &self.names)),
            Command::Fanout(fanout) => self.drive(&mut fanout::FanningOut::new(fanout, &self.names)),
            Command::Fill { stuck, sender } => self.drive(&mut fill::Filling::new(stuck, sender, &self.names)),
            Command::Look { stuck } => {
                let queues = fill::queues(&self.sockets, stuck)?;
                let there = || queues.iter().flatten().copied();
                Ok(Some(Done { count: there().count() as u64, held: there().min(), ..Done::default() }))
            }
            Command::Close { slots, how } => self.drive(&mut close::Closing::new(slots, Some(how))),
            Command::AwaitEnd { slots } => self.drive(&mut close::Closing::new(slots, None)),
            Command::Begin { .. } | Command::Arrived { .. } | Command::Stop { .. } => {
                anyhow::bail!("told out of turn: {command:?}")
            }
        }
    }

    fn drive(&mut self, load: &mut dyn Load) -> anyhow::Result<Option<Done>> {
        let Self { poll, timer, sockets, commands, patience, .. } = self;
        let mut events = Events::with_capacity(1024);
        let mut patience = Patience::new(*patience);
        let mut told = Instant::now();
        let mut progress = 0;
        load.start(sockets)?;
        loop {
            let due = load.turn(sockets)?;
            if let Some(done) = load.finished() {
                return Ok(Some(done));
            }
            if patience.is_over(load.progress()) {
                load.stalled()?;
            }
            if told.elapsed() > TELL && load.progress() != progress {
                told = Instant::now();
                progress = load.progress();
                tell(&Event::Progress(progress))?;
            }
            let wait = match due.map(|due| due.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => Duration::ZERO,
                // The timer is exact, where the waiting itself knows milliseconds only.
                Some(wait) if wait < TURN => {
                    arm(timer, wait)?;
                    TURN
                }
                _ => TURN,
            };
            match poll.poll(&mut events, Some(wait)) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
            }
            for event in &events {
                match event.token() {
                    TIMER => {
                        let mut expired = [0; 8];
                        let _ = rustix::io::read(&*timer, &mut expired);
                    }
                    COMMAND => loop {
                        match commands.try_recv() {
                            Ok(command) => load.told(command?)?,
                            Err(mpsc::TryRecvError::Empty) => break,
                            Err(mpsc::TryRecvError::Disconnected) => return Ok(None),
                        }
                    },
                    _ => sockets.ready(event, &mut |io, slot, incident| load.incident(io, slot, incident))?,
                }
            }
        }
    }
}

/// What a worker does between two commands: it stays a good client, that is it answers pings.
#[derive(Default)]
struct Idling {
    commands: Vec<Command>,
}

impl Load for Idling {
    fn start(&mut self, _: &mut Sockets) -> anyhow::Result<()> {
        Ok(())
    }

    fn incident(&mut self, _: &mut Sockets, _: usize, _: Incident<'_>) -> anyhow::Result<()> {
        // Whoever needs a connection that has ended will notice.
        Ok(())
    }

    fn turn(&mut self, _: &mut Sockets) -> anyhow::Result<Option<Instant>> {
        Ok(None)
    }

    fn told(&mut self, command: Command) -> anyhow::Result<()> {
        self.commands.push(command);
        Ok(())
    }

    fn progress(&self) -> u64 {
        0
    }

    fn stalled(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    fn finished(&mut self) -> Option<Done> {
        (!self.commands.is_empty()).then(Done::default)
    }
}

/// Tells the coordinating process something.
fn tell(event: &Event) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line).and_then(|()| out.flush()).context("the coordinating process has gone")
}

fn arm(timer: &std::os::fd::OwnedFd, after: Duration) -> anyhow::Result<()> {
    let once = Itimerspec {
        it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
        it_value: Timespec { tv_sec: after.as_secs() as i64, tv_nsec: i64::from(after.subsec_nanos()) },
    };
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &once)?;
    Ok(())
}

/// What connections and rooms are called: all names of a kind are equally long, so that what is sent is too.
#[derive(Clone, Debug)]
struct Names {
    run: String,
    first: u64,
}

impl Names {
    /// The number of a connection, which no other connection of the run has.
    fn number(&self, slot: usize) -> u64 {
        self.first + slot as u64
    }

    fn user(&self, slot: usize) -> String {
        format!("bench-{}-{:08}", self.run, self.number(slot))
    }

    fn room(&self, room: u64) -> String {
        format!("bench-{}-room-{room:06}", self.run)
    }
}

const COMMAND: Token = Token(usize::MAX - 1);
const TIMER: Token = Token(usize::MAX - 2);

/// How long the loop waits at most before it looks around.
const TURN: Duration = Duration::from_millis(100);

/// How often progress is told.
const TELL: Duration = Duration::from_millis(250);
