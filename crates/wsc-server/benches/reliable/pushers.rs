//! Connections that post messages, as a process of its own: one thread for all of them, each waits for its answer.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use clap::Args;
use mio::{Events, Interest, Poll, Token, net};

use crate::{node::content, process::Companion, wire::find};

#[derive(Args)]
pub(crate) struct PusherArgs {
    address: SocketAddr,
    #[command(flatten)]
    load: Load,
}

/// What to post.
#[derive(Args, Clone, Debug)]
pub(crate) struct Load {
    #[arg(long)]
    pub(crate) connections: usize,
    /// Messages in a request; 1 goes to the user's own address.
    #[arg(long)]
    pub(crate) batch: usize,
    #[arg(long = "total")]
    pub(crate) messages: u64,
    #[arg(long = "receivers")]
    pub(crate) users: usize,
    #[arg(long = "bytes")]
    pub(crate) content: usize,
    #[arg(long)]
    pub(crate) require_ack: bool,
}

/// The other end of [`run`].
#[derive(Debug)]
pub(crate) struct Pushers(Companion);

impl Pushers {
    pub(crate) fn start(address: SocketAddr, load: &Load) -> anyhow::Result<Self> {
        let mut arguments = vec![
            "pushers".to_owned(),
            address.to_string(),
            format!("--connections={}", load.connections),
            format!("--batch={}", load.batch),
            format!("--total={}", load.messages),
            format!("--receivers={}", load.users),
            format!("--bytes={}", load.content),
        ];
        arguments.extend(load.require_ack.then(|| "--require-ack".to_owned()));
        Ok(Self(Companion::start(&arguments)?))
    }

    /// Waits until everything is answered.
    pub(crate) fn finish(&mut self) -> anyhow::Result<()> {
        self.0.line().map(drop)
    }

    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        self.0.cpu()
    }
}

struct Connection {
    stream: net::TcpStream,
    /// What came of an answer.
    answer: Vec<u8>,
    unsent: Vec<u8>,
}

/// Writes requests, one behind the other, over all users in turn.
struct Source {
    load: Load,
    content: String,
    next: u64,
}

impl Source {
    /// Appends the next request; false where all have been made.
    fn request(&mut self, out: &mut Vec<u8>) -> bool {
        let count = (self.load.batch as u64).min(self.load.messages - self.next);
        if count == 0 {
            return false;
        }
        let (users, content) = (self.load.users as u64, &self.content);
        let tail = if self.load.require_ack { ",\"require_ack\":true}" } else { "}" };
        let user = |n: u64| n % users;
        let (path, body) = if self.load.batch == 1 {
            (format!("/api/users/u{}/messages", user(self.next)), format!("{{\"content\":{content}{tail}"))
        } else {
            let message = |n| format!("{{\"user_id\":\"u{}\",\"content\":{content}{tail}", user(n));
            let messages: Vec<_> = (self.next..self.next + count).map(message).collect();
            ("/api/messages/batch".to_owned(), format!("{{\"messages\":[{}]}}", messages.join(",")))
        };
        self.next += count;
        out.extend_from_slice(
            format!(
                "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
            .as_bytes(),
        );
        true
    }
}

pub(crate) fn run(args: &PusherArgs) -> anyhow::Result<()> {
    let mut source = Source { load: args.load.clone(), content: content(args.load.content)?.get().to_owned(), next: 0 };
    let mut poll = Poll::new()?;
    let mut connections = Vec::new();
    for number in 0..args.load.connections {
        let stream = TcpStream::connect(args.address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut stream = net::TcpStream::from_std(stream);
        poll.registry().register(&mut stream, Token(number), Interest::READABLE | Interest::WRITABLE)?;
        connections.push(Connection { stream, answer: Vec::new(), unsent: Vec::new() });
    }
    let mut waiting = 0;
    for connection in &mut connections {
        if source.request(&mut connection.unsent) {
            waiting += 1;
            connection.flush()?;
        }
    }
    let mut events = Events::with_capacity(1024);
    let mut scratch = vec![0; 64 << 10];
    while waiting > 0 {
        match poll.poll(&mut events, Some(Duration::from_secs(60))) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            result => result?,
        }
        ensure!(!events.is_empty(), "the hub has not answered for a minute");
        for event in &events {
            let connection = &mut connections[event.token().0];
            if event.is_writable() {
                connection.flush()?;
            }
            if event.is_readable() {
                while connection.answered(&mut scratch)? {
                    if !source.request(&mut connection.unsent) {
                        waiting -= 1;
                        break;
                    }
                    connection.flush()?;
                }
            }
        }
    }
    println!("done");
    // Until the other end has read what it wants to know about this process.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

impl Connection {
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

    /// Reads on; true where an answer is whole.
    fn answered(&mut self, scratch: &mut [u8]) -> anyhow::Result<bool> {
        loop {
            if let Some(head) = find(&self.answer, b"\r\n\r\n") {
                let length = content_length(&self.answer[..head])?;
                if self.answer.len() >= head + 4 + length {
                    self.check(head)?;
                    self.answer.clear();
                    return Ok(true);
                }
            }
            match self.stream.read(scratch) {
                Ok(0) => bail!("the hub closed a connection"),
                Ok(length) => self.answer.extend_from_slice(&scratch[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn check(&self, head: usize) -> anyhow::Result<()> {
        let is_good = self.answer.starts_with(b"HTTP/1.1 20") && find(&self.answer[head..], b"\"error\"").is_none();
        ensure!(is_good, "refused: {}", String::from_utf8_lossy(&self.answer));
        Ok(())
    }
}

fn content_length(head: &[u8]) -> anyhow::Result<usize> {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")).context("no Content-Length")?;
    Ok(length.trim().parse()?)
}
