//! Making members that never read a burden to the server.
//!
//! Not to read is not enough: the kernels of both sides take megabytes for a client that does not read, and until
//! those are full the server does not notice. So what is sent to such a client must stop to go, and that is looked at
//! where it shows: in the server's send queue.

use std::{collections::HashMap, net::SocketAddr, ops::Range, time::Instant};

use anyhow::{Context, bail, ensure};
use procfs::net::{TcpState, tcp, tcp6};

use super::{
    Load, Names,
    inbound::{self, message_type},
    sockets::{Incident, Sockets},
};
use crate::message::Done;

/// Sends messages to users who never read until the server can get rid of no more.
#[derive(Debug)]
pub(crate) struct Filling {
    stuck: Range<usize>,
    sender: usize,
    /// For each of them the message that fills.
    texts: Vec<Vec<u8>>,
    /// For each of them what the server's send queue held, and how many messages ago it grew.
    queues: Vec<(u64, u32)>,
    steps: u64,
    answered: bool,
}

impl Filling {
    pub(crate) fn new(stuck: Range<usize>, sender: usize, names: &Names) -> Self {
        let content = "x".repeat(FILLER);
        let text = |slot| {
            let target = names.user(slot);
            format!(r#"{{"message_type":"direct_message","data":{{"target_id":"{target}","content":"{content}"}}}}"#)
        };
        Self {
            texts: stuck.clone().map(|slot| text(slot).into_bytes()).collect(),
            queues: vec![(0, 0); stuck.len()],
            steps: 0,
            answered: true,
            stuck,
            sender,
        }
    }

    fn blocked(&self) -> usize {
        self.queues.iter().filter(|(_, still)| *still >= STILL).count()
    }

    /// Looks what the last messages have done, and sends the next.
    fn step(&mut self, io: &mut Sockets) -> anyhow::Result<()> {
        for ((held, still), now) in self.queues.iter_mut().zip(queues(io, self.stuck.clone())?) {
            let now = now.context("the server cut a stuck member off before the storm")?;
            *still = if now > 0 && now <= *held { *still + 1 } else { 0 };
            *held = now;
        }
        if self.blocked() == self.queues.len() {
            return Ok(());
        }
        let least = self.queues.iter().map(|(held, _)| *held).min().unwrap_or_default();
        ensure!(
            self.steps < if least == 0 { FIRST } else { STEPS },
            "the stuck member never blocked the server: {} messages of {FILLER} bytes went to it, and its queue there \
             is {least} bytes",
            self.steps
        );
        self.steps += 1;
        for (text, (_, still)) in self.texts.iter().zip(&self.queues) {
            // Not more than it takes to know: the server ends a connection that has too much to get rid of.
            if *still < STILL {
                io.send(self.sender, text)?;
            }
        }
        // Answered when the server is through with the messages before.
        io.send(self.sender, br#"{"message_type":"ping","data":{"ts":1}}"#)?;
        self.answered = false;
        Ok(())
    }
}

impl Load for Filling {
    fn start(&mut self, io: &mut Sockets) -> anyhow::Result<()> {
        ensure!(io.is_there(self.sender), "the connection that writes to those who never read is gone");
        Ok(())
    }

    fn incident(&mut self, _: &mut Sockets, slot: usize, incident: Incident<'_>) -> anyhow::Result<()> {
        match incident {
            Incident::Message(message) if slot == self.sender => match message_type(message).as_deref() {
                Some("pong") => self.answered = true,
                Some(kind) if inbound::is_trouble(kind) => {
                    bail!("the server answered a message with {}", String::from_utf8_lossy(message))
                }
                _ => {}
            },
            Incident::Ended(end) => bail!("a connection ended while those who never read were written to: {end}"),
            _ => {}
        }
        Ok(())
    }

    fn turn(&mut self, io: &mut Sockets) -> anyhow::Result<Option<Instant>> {
        if self.answered && self.blocked() < self.queues.len() {
            self.step(io)?;
        }
        Ok(None)
    }

    fn progress(&self) -> u64 {
        self.steps
    }

    fn stalled(&mut self) -> anyhow::Result<()> {
        bail!("the server does not answer while those who never read are written to")
    }

    fn finished(&mut self) -> Option<Done> {
        (self.blocked() == self.queues.len()).then(|| Done {
            count: self.blocked() as u64,
            held: self.queues.iter().map(|(held, _)| *held).min(),
            ..Done::default()
        })
    }
}

/// What the server's kernel holds for each of these connections, in bytes; `None` where the server has ended it.
pub(crate) fn queues(io: &Sockets, slots: Range<usize>) -> anyhow::Result<Vec<Option<u64>>> {
    // The server's socket has our end as its remote one. A server that listens on IPv6 sees IPv4 in it.
    let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let mut table = HashMap::new();
    for entry in tcp().context("cannot read /proc/net/tcp")?.into_iter().chain(tcp6().unwrap_or_default()) {
        // Without an inode the process has closed it, and only the kernel still tries to get rid of the rest.
        if entry.state == TcpState::Established && entry.inode != 0 {
            table.insert((plain(entry.remote_address), plain(entry.local_address)), u64::from(entry.tx_queue));
        }
    }
    // A server elsewhere has no socket here at all; one of ours is seen from both ends.
    Ok(slots
        .map(|slot| {
            let (ours, server) = io.ends(slot)?;
            table.get(&(plain(ours), plain(server))).copied()
        })
        .collect())
}

/// The content of a message that fills: a server such as the hub takes 64 KiB in all.
const FILLER: usize = 60 << 10;

/// The server is blocked when this many messages went to a client and its send queue did not grow. Few, since they
/// wait in the server, which has a limit for that (1 MiB).
const STILL: u32 = 3;

/// After so many messages something must wait in the server's kernel: the client's takes a few KiB.
const FIRST: u64 = 64;

/// So many messages are more than any kernel takes: 60 MiB.
const STEPS: u64 = 1_024;
