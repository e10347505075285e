//! The worker processes, seen from the coordinating process.

use std::{ops::Range, process::Stdio, time::Duration};

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, Command as Process},
    sync::mpsc,
};

use crate::{
    Program,
    cpus::Group,
    latency::Latency,
    message::{
        Command, Done, Ending, Endpoint, Event, Exchange, ExchangeKind, Fanout, Limit, Open, Pace, Rooms, Sender,
    },
    progress::Progress,
};

/// Some worker processes that share the connections of one run.
#[derive(Debug)]
pub(crate) struct Fleet {
    workers: Vec<Worker>,
    events: mpsc::Receiver<(usize, anyhow::Result<Event>)>,
    progress: Progress,
}

/// What makes workers what they are.
#[derive(Debug)]
pub(crate) struct Crew<'a> {
    pub(crate) program: &'a Program,
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) cpus: &'a Group,
    pub(crate) run: &'a str,
    pub(crate) patience: Duration,
    /// How many workers of other fleets there are in the same run.
    pub(crate) others: usize,
    /// How much less important than others they are to the scheduler, 0 to 19.
    pub(crate) nice: i32,
    pub(crate) progress: Progress,
}

#[derive(Debug)]
struct Worker {
    /// Killed when it is dropped.
    _process: Child,
    stdin: ChildStdin,
    /// How many slots of its table are taken.
    slots: usize,
}

/// Some connections of a fleet: for each worker its slots.
#[derive(Clone, Debug)]
pub(crate) struct Crowd(Vec<Range<usize>>);

/// What a fleet did in one go.
#[derive(Debug)]
pub(crate) struct Together {
    pub(crate) count: u64,
    pub(crate) deliveries: u64,
    pub(crate) missing: u64,
    pub(crate) retries: u64,
    /// Of the slowest.
    pub(crate) elapsed: Duration,
    pub(crate) latency: Latency,
    pub(crate) uncorrected: Latency,
    pub(crate) lag: Latency,
    pub(crate) unsent: u64,
    pub(crate) held: Option<u64>,
}

impl Fleet {
    /// Starts the processes.
    pub(crate) async fn start(crew: &Crew<'_>, processes: usize) -> anyhow::Result<Self> {
        let (told, events) = mpsc::channel(1024);
        let mut workers = Vec::with_capacity(processes);
        for index in 0..processes {
            let mut command = Process::new(&crew.program.executable);
            command.args(&crew.program.worker);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
            let mut process = crew.cpus.start(|| command.spawn()).context("cannot start a worker process")?;
            let mut stdin = process.stdin.take().context("no stdin")?;
            let mut lines = BufReader::new(process.stdout.take().context("no stdout")?).lines();
            let told = told.clone();
            // Ends with the worker, which ends with its stdin.
            tokio::spawn(async move {
                loop {
                    let event = match lines.next_line().await {
                        Ok(Some(line)) => serde_json::from_str(&line).map_err(anyhow::Error::from),
                        Ok(None) => Err(anyhow::anyhow!("worker process {index} died")),
                        Err(e) => Err(e.into()),
                    };
                    let over = event.is_err();
                    if told.send((index, event)).await.is_err() || over {
                        return;
                    }
                }
            });
            let begin = Command::Begin {
                endpoint: crew.endpoint.clone(),
                run: crew.run.to_owned(),
                first: (crew.others + index) as u64 * NUMBERS,
                patience: crew.patience,
                nice: crew.nice,
            };
            send(&mut stdin, &begin).await?;
            workers.push(Worker { _process: process, stdin, slots: 0 });
        }
        Ok(Self { workers, events, progress: crew.progress.clone() })
    }

    /// Opens connections, shared evenly among the workers.
    pub(crate) async fn open(&mut self, what: &str, count: usize, how: &Opened) -> anyhow::Result<(Crowd, Together)> {
        let parts = how.workers.unwrap_or(usize::MAX).min(self.workers.len());
        let take = |(worker, share): (&mut Worker, usize)| {
            worker.slots += share;
            worker.slots - share..worker.slots
        };
        let crowd = Crowd(self.workers.iter_mut().zip(shares(count, parts)).map(take).collect());
        let together = self.reopen(what, &crowd, how).await?;
        Ok((crowd, together))
    }

    /// Opens connections that there were before.
    pub(crate) async fn reopen(&mut self, what: &str, crowd: &Crowd, how: &Opened) -> anyhow::Result<Together> {
        self.progress.stage(what, Some(crowd.len() as u64));
        let processes = crowd.0.len().max(1);
        self.all(crowd, |slots| {
            Command::Open(Open {
                slots,
                rooms: how.rooms.clone(),
                pending: how.pending.div_ceil(processes),
                retry: how.retry,
                stuck: how.stuck,
            })
        })
        .await
    }

    /// Opens a connection to the HTTP API in the first worker; returns its slot.
    pub(crate) async fn open_http(&mut self) -> anyhow::Result<usize> {
        let slot = self.workers[0].slots;
        self.workers[0].slots += 1;
        self.send(0, &Command::OpenHttp { count: 1 }).await?;
        self.wait(&mut [true]).await?;
        Ok(slot)
    }

    /// Lets connections exchange messages, one to one.
    pub(crate) async fn exchange(
        &mut self,
        what: &str,
        crowd: &Crowd,
        kind: ExchangeKind,
        pace: Pace,
        limit: Limit,
        payload: usize,
    ) -> anyhow::Result<Together> {
        self.progress.stage(what, limit.count());
        let all = crowd.len() as u64;
        let mut begun = 0;
        self.all(crowd, |slots| {
            let part = slots.len() as f64 / all as f64;
            let before = begun;
            begun += slots.len() as u64;
            let pace = match pace {
                Pace::Rate { per_second } => Pace::Rate { per_second: per_second * part },
                closed @ Pace::Closed { .. } => closed,
            };
            let limit = match limit {
                Limit::Count(count) => {
                    // Parts that add up, however they divide.
                    let until =
                        |connections: u64| (u128::from(count) * u128::from(connections) / u128::from(all)) as u64;
                    Limit::Count(until(begun) - until(before))
                }
                time @ Limit::Time(_) => time,
            };
            Command::Exchange(Exchange { slots, kind, pace, limit, payload })
        })
        .await
    }

    /// Sends to many, and waits until all have it.
    pub(crate) async fn fan_out(&mut self, what: &str, spec: &FanOut<'_>) -> anyhow::Result<Together> {
        let deliveries = spec.limit.count().map(|messages| messages * spec.members.len() as u64);
        self.progress.stage(what, deliveries);
        let mut progress = vec![0; self.workers.len()];
        let listeners: Vec<_> =
            spec.members.0.iter().enumerate().filter(|(_, slots)| !slots.is_empty()).map(|(n, _)| n).collect();
        let mut waiting = vec![true; self.workers.len()];
        // The sender comes last, so that all are listening when it begins.
        for worker in (0..self.workers.len()).rev() {
            let sender = (worker == 0).then(|| Sender {
                slot: spec.sender,
                listeners: listeners.clone(),
                limit: spec.limit,
                payload: spec.payload,
            });
            let members = spec.members.0.get(worker).map_or(0..0, Range::clone);
            let fanout = Fanout { worker, broadcast: spec.broadcast, members, sender, in_flight: spec.in_flight };
            self.send(worker, &Command::Fanout(fanout)).await?;
            while !matches!(self.next().await?, (_, Event::Started)) {}
        }
        let mut together = Together::new();
        while waiting.contains(&true) {
            match self.next().await? {
                (worker, Event::Arrived(messages)) if waiting[0] => {
                    self.send(0, &Command::Arrived { worker, messages }).await?;
                }
                (worker, Event::Done(done)) => {
                    waiting[worker] = false;
                    if worker == 0 {
                        for listener in 1..self.workers.len() {
                            self.send(listener, &Command::Stop { messages: done.count }).await?;
                        }
                    }
                    together.add(&done);
                }
                (worker, Event::Progress(figure)) => {
                    progress[worker] = figure;
                    self.progress.at(progress.iter().sum());
                }
                _ => {}
            }
        }
        // Counted in pairs of a message and a member: the sender only knows how many messages are not through.
        together.missing = (together.count * spec.members.len() as u64).saturating_sub(together.deliveries);
        Ok(together)
    }

    /// Ends connections.
    pub(crate) async fn close(&mut self, crowd: &Crowd, how: Ending) -> anyhow::Result<Together> {
        self.progress.stage("closing", Some(crowd.len() as u64));
        self.all(crowd, |slots| Command::Close { slots, how }).await
    }

    /// Waits until the server has ended connections.
    pub(crate) async fn await_end(&mut self, crowd: &Crowd) -> anyhow::Result<Together> {
        self.progress.stage("waiting for the end", Some(crowd.len() as u64));
        self.all(crowd, |slots| Command::AwaitEnd { slots }).await
    }

    /// Writes to those who never read, from a connection of the first worker, until the server can get rid of no more.
    pub(crate) async fn fill(&mut self, stuck: &Crowd, sender: usize) -> anyhow::Result<Together> {
        self.progress.stage("filling the sockets of those who never read", Some(stuck.len() as u64));
        self.all(stuck, |stuck| Command::Fill { stuck, sender }).await
    }

    /// Counts those who never read that the server still has.
    pub(crate) async fn look(&mut self, stuck: &Crowd) -> anyhow::Result<Together> {
        self.all(stuck, |stuck| Command::Look { stuck }).await
    }

    /// How many processes there are.
    pub(crate) fn processes(&self) -> usize {
        self.workers.len()
    }

    /// Gives each worker with a part in the crowd a command, and waits until all are done.
    async fn all(
        &mut self,
        crowd: &Crowd,
        mut command: impl FnMut(Range<usize>) -> Command,
    ) -> anyhow::Result<Together> {
        let mut waiting = vec![false; self.workers.len()];
        for (worker, slots) in crowd.0.iter().enumerate() {
            if !slots.is_empty() {
                self.send(worker, &command(slots.clone())).await?;
                waiting[worker] = true;
            }
        }
        self.wait(&mut waiting).await
    }

    async fn wait(&mut self, waiting: &mut [bool]) -> anyhow::Result<Together> {
        let mut together = Together::new();
        let mut progress = vec![0; self.workers.len()];
        while waiting.contains(&true) {
            match self.next().await? {
                (worker, Event::Done(done)) => {
                    waiting[worker] = false;
                    progress[worker] = done.count;
                    together.add(&done);
                }
                (worker, Event::Progress(figure)) => progress[worker] = figure,
                _ => {}
            }
            self.progress.at(progress.iter().sum());
        }
        Ok(together)
    }

    async fn next(&mut self) -> anyhow::Result<(usize, Event)> {
        let (worker, event) = self.events.recv().await.context("there are no workers")?;
        match event? {
            Event::Failed(why) => bail!(why),
            event => Ok((worker, event)),
        }
    }

    async fn send(&mut self, worker: usize, command: &Command) -> anyhow::Result<()> {
        send(&mut self.workers[worker].stdin, command).await.with_context(|| format!("worker process {worker} died"))
    }
}

async fn send(stdin: &mut ChildStdin, command: &Command) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(command)?;
    line.push(b'\n');
    stdin.write_all(&line).await?;
    Ok(())
}

/// How connections are opened.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    pub(crate) rooms: Rooms,
    /// At most so many on their way at a time.
    pub(crate) pending: usize,
    pub(crate) retry: bool,
    pub(crate) stuck: bool,
    /// Use only the first so many workers.
    pub(crate) workers: Option<usize>,
}

impl Opened {
    pub(crate) fn new(rooms: Rooms, pending: usize) -> Self {
        Self { rooms, pending, retry: false, stuck: false, workers: None }
    }
}

/// A fan-out.
#[derive(Debug)]
pub(crate) struct FanOut<'a> {
    pub(crate) members: &'a Crowd,
    /// The slot of the sender in the first worker.
    pub(crate) sender: usize,
    pub(crate) broadcast: bool,
    pub(crate) in_flight: usize,
    pub(crate) limit: Limit,
    pub(crate) payload: usize,
}

impl Crowd {
    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(ExactSizeIterator::len).sum()
    }

    /// The slot of the first connection in the first worker.
    pub(crate) fn first_slot(&self) -> usize {
        self.0.first().map_or(0, |slots| slots.start)
    }

    /// These and others that were opened next.
    pub(crate) fn and(&self, next: &Self) -> Self {
        Self(self.0.iter().zip(&next.0).map(|(these, next)| these.start..next.end).collect())
    }
}

impl Together {
    fn new() -> Self {
        Self {
            count: 0,
            deliveries: 0,
            missing: 0,
            retries: 0,
            elapsed: Duration::ZERO,
            latency: Latency::new(),
            uncorrected: Latency::new(),
            lag: Latency::new(),
            unsent: 0,
            held: None,
        }
    }

    /// Whether the clients themselves were too late with a fixed rate for its latencies to say anything of the server.
    ///
    /// One in ten, since a neighbour that takes the CPU for a moment is not what this is about.
    pub(crate) fn is_late(&self) -> bool {
        const LATE_MS: f64 = 25.0;
        self.unsent > 0 || self.lag.percentile(90.0) > LATE_MS
    }

    fn add(&mut self, done: &Done) {
        self.count += done.count;
        self.deliveries += done.deliveries;
        self.missing += done.missing;
        self.retries += done.retries;
        self.elapsed = self.elapsed.max(done.elapsed);
        self.latency.add(&done.latency);
        self.uncorrected.add(&done.uncorrected);
        self.lag.add(&done.lag);
        self.unsent += done.unsent;
        self.held = self.held.into_iter().chain(done.held).min();
    }
}

/// Divides `count` into as equal parts as can be.
fn shares(count: usize, parts: usize) -> impl Iterator<Item = usize> {
    (0..parts).map(move |part| count / parts + usize::from(part < count % parts))
}

/// Each worker has so many numbers for its connections: more than it can have connections.
const NUMBERS: u64 = 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_differ_by_one_at_most_and_add_up() {
        for (count, parts, expected) in
            [(10, 3, vec![4, 3, 3]), (2, 3, vec![1, 1, 0]), (9, 1, vec![9]), (0, 2, vec![0, 0])]
        {
            assert_eq!(shares(count, parts).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn crowds_join_where_they_follow_each_other() {
        let few = Crowd(vec![0..3, 0..2]);
        let more = Crowd(vec![3..7, 2..6]);
        assert_eq!(few.and(&more).0, [0..7, 0..6]);
        assert_eq!(few.and(&more).len(), 13);
    }
}
