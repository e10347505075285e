//! Connections that receive and acknowledge, as a process of its own: one thread for all of them.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context, bail};
use clap::Args;
use mio::{Events, Interest, Poll, Token, net};

use crate::{
    process::Companion,
    wire::{self, CLOSE, Frame, PING, PONG, TEXT},
};

#[derive(Args)]
pub(crate) struct ClientArgs {
    address: SocketAddr,
    /// How many users, `u0`, `u1` and so on, each with a connection.
    #[arg(long)]
    connections: usize,
    /// Acknowledges what asks for it, all of a read at once, as `wsc-client` does.
    #[arg(long)]
    ack: bool,
}

/// The other end of [`run`].
#[derive(Debug)]
pub(crate) struct Clients(Companion);

/// What clients have received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) messages: u64,
    /// Copies of what was sent before; not in `messages`.
    pub(crate) again: u64,
}

impl Clients {
    /// Starts them, and waits until all are connected.
    pub(crate) fn start(address: SocketAddr, connections: usize, ack: bool) -> anyhow::Result<Self> {
        let mut arguments = vec!["clients".to_owned(), address.to_string(), format!("--connections={connections}")];
        arguments.extend(ack.then(|| "--ack".to_owned()));
        let mut companion = Companion::start(&arguments)?;
        companion.line().context("the clients did not connect")?;
        Ok(Self(companion))
    }

    pub(crate) fn received(&mut self) -> anyhow::Result<Received> {
        let answer = self.0.ask("received")?;
        let (messages, again) = answer.split_once(' ').context("an answer of two numbers")?;
        Ok(Received { messages: messages.parse()?, again: again.parse()? })
    }

    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        self.0.cpu()
    }
}

#[derive(Default)]
struct Counts {
    messages: AtomicU64,
    again: AtomicU64,
    is_over: AtomicBool,
}

struct Connection {
    stream: net::TcpStream,
    /// The start of a frame whose end has not come.
    partial: Vec<u8>,
    unsent: Vec<u8>,
}

pub(crate) fn run(args: &ClientArgs) -> anyhow::Result<()> {
    let mut poll = Poll::new()?;
    let mut connections = Vec::with_capacity(args.connections);
    for number in 0..args.connections {
        let mut connection = connect(args.address, number)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(&mut connection.stream, Token(number), interest)?;
        connections.push(connection);
    }
    println!("ready");
    let counts = Arc::new(Counts::default());
    let answering = Arc::clone(&counts);
    std::thread::spawn(move || answer(&answering));

    let mut events = Events::with_capacity(1024);
    let mut scratch = vec![0; 256 << 10];
    let mut out = Vec::new();
    while !counts.is_over.load(Relaxed) {
        match poll.poll(&mut events, Some(Duration::from_millis(50))) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            result => result?,
        }
        for event in &events {
            let connection = &mut connections[event.token().0];
            if event.is_writable() {
                connection.flush()?;
            }
            if event.is_readable() {
                connection.receive(&mut scratch, &mut out, args.ack, &counts)?;
            }
        }
    }
    Ok(())
}

/// Answers questions until there are none any more.
fn answer(counts: &Counts) {
    for _ in io::stdin().lines().map_while(Result::ok) {
        println!("{} {}", counts.messages.load(Relaxed), counts.again.load(Relaxed));
    }
    counts.is_over.store(true, Relaxed);
}

fn connect(address: SocketAddr, number: usize) -> anyhow::Result<Connection> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.write_all(wire::upgrade(&format!("user_id=u{number}&client_id=c")).as_bytes())?;
    let partial = wire::read_head(&mut stream)?;
    stream.set_nonblocking(true)?;
    Ok(Connection { stream: net::TcpStream::from_std(stream), partial, unsent: Vec::new() })
}

impl Connection {
    fn receive(&mut self, scratch: &mut [u8], out: &mut Vec<u8>, ack: bool, counts: &Counts) -> anyhow::Result<()> {
        // A loop until nothing is left, as readiness is told once only.
        loop {
            let length = match self.stream.read(scratch) {
                Ok(0) => bail!("the hub closed a connection"),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            let mut partial = std::mem::take(&mut self.partial);
            let rest = if partial.is_empty() {
                let rest = take(&scratch[..length], out, ack, counts)?;
                &scratch[length - rest..length]
            } else {
                partial.extend_from_slice(&scratch[..length]);
                let rest = take(&partial, out, ack, counts)?;
                &partial[partial.len() - rest..]
            };
            self.partial = rest.to_vec();
            self.unsent.append(out);
            self.flush()?;
        }
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(length) => drop(self.unsent.drain(..length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Works off all whole frames; puts the answers into `out`, and returns how many bytes are left.
fn take(mut bytes: &[u8], out: &mut Vec<u8>, ack: bool, counts: &Counts) -> anyhow::Result<usize> {
    let mut ids: Vec<&[u8]> = Vec::new();
    let (mut messages, mut again) = (0, 0);
    while let Some((Frame { opcode, payload }, length)) = wire::parse(bytes) {
        bytes = &bytes[length..];
        match opcode {
            TEXT => {
                let Some(delivery) = wire::delivery(payload) else { continue };
                if delivery.is_again {
                    again += 1;
                } else {
                    messages += 1;
                }
                if delivery.require_ack && ack {
                    ids.push(delivery.id);
                }
            }
            PING => wire::write(out, PONG, |out| out.extend_from_slice(payload)),
            CLOSE => bail!("the hub closed a connection: {}", String::from_utf8_lossy(payload)),
            _ => {}
        }
    }
    for ids in ids.chunks(MOST_IDS) {
        wire::write(out, TEXT, |out| {
            out.extend_from_slice(b"{\"message_type\":\"ack\",\"data\":{\"ids\":[");
            for (n, id) in ids.iter().enumerate() {
                out.extend_from_slice(if n == 0 { b"\"" } else { b",\"" });
                out.extend_from_slice(id);
                out.push(b'"');
            }
            out.extend_from_slice(b"]}}");
        });
    }
    counts.messages.fetch_add(messages, Relaxed);
    counts.again.fetch_add(again, Relaxed);
    Ok(bytes.len())
}

/// What one `ack` may name.
const MOST_IDS: usize = 1_000;
