//! A connection that costs little: no task of its own, no buffer while nothing comes, no library.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use tokio::{
    io::AsyncWriteExt,
    net::{TcpSocket, TcpStream},
};
use wsc_testkit::Frame;

/// A client that answers pings and does nothing else by itself.
#[derive(Debug)]
pub(crate) struct Peer {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// How an attempt to connect was answered.
#[derive(Debug)]
pub(crate) enum Answer {
    Upgraded(Peer),
    Refused { status: u16, retry_after: Option<u64> },
}

/// What the server said.
#[derive(Debug)]
pub(crate) enum Heard {
    Text(String),
    Closed {
        code: u16,
        reason: String,
    },
    /// The stream ended without a close frame.
    Cut,
}

impl Peer {
    /// Connects from this address and asks for an upgrade, with `wsc.v1` or without.
    pub(crate) async fn connect(
        server: SocketAddr,
        source: Ipv4Addr,
        query: &str,
        offers_v1: bool,
    ) -> io::Result<Answer> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((source, 0).into())?;
        let mut stream = socket.connect(server).await?;
        stream.set_nodelay(true)?;
        let offer = if offers_v1 { "Sec-WebSocket-Protocol: wsc.v1\r\n" } else { "" };
        let request = format!(
            "GET /ws?{query} HTTP/1.1\r\nHost: {server}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{offer}\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut peer = Self { stream, buffer: Vec::new() };
        let head = loop {
            if let Some(end) = peer.buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break peer.buffer.drain(..end + 4).collect::<Vec<_>>();
            }
            if !peer.fill().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        match status.ok_or(io::ErrorKind::InvalidData)? {
            101 => Ok(Answer::Upgraded(peer)),
            status => {
                let retry_after = head.lines().find_map(|line| line.strip_prefix("retry-after:"));
                let retry_after = retry_after.and_then(|seconds| seconds.trim().parse().ok());
                peer.reset();
                Ok(Answer::Refused { status, retry_after })
            }
        }
    }

    /// Sends a text.
    pub(crate) async fn send(&mut self, text: &str) -> io::Result<()> {
        self.stream.write_all(&Frame::text(text).encode()).await
    }

    /// What comes next. Safe to cancel, but for the answer to a ping, a few bytes that the kernel takes at once.
    pub(crate) async fn next(&mut self) -> Heard {
        loop {
            match self.take() {
                Some((0x1, payload)) => return Heard::Text(String::from_utf8_lossy(&payload).into_owned()),
                Some((0x8, payload)) => {
                    let code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                    let reason = String::from_utf8_lossy(payload.get(2..).unwrap_or_default()).into_owned();
                    return Heard::Closed { code, reason };
                }
                Some((0x9, payload)) => {
                    let _ = self.stream.write_all(&Frame::pong(payload).encode()).await;
                }
                Some(_) => {}
                None => match self.fill().await {
                    Ok(true) => {}
                    Ok(false) | Err(_) => return Heard::Cut,
                },
            }
        }
    }

    /// Ends the connection at once, and leaves its port free.
    pub(crate) fn reset(self) {
        self.reset_in_the_end();
    }

    /// Makes the end, whenever it comes, one that leaves the port free.
    pub(crate) fn reset_in_the_end(&self) {
        let _ = self.stream.set_zero_linger();
    }

    /// Reads more; false at the end.
    async fn fill(&mut self) -> io::Result<bool> {
        loop {
            self.stream.readable().await?;
            // Not kept while waiting.
            let mut chunk = [0; 4096];
            match self.stream.try_read(&mut chunk) {
                Ok(read) => {
                    self.buffer.extend_from_slice(&chunk[..read]);
                    return Ok(read > 0);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes a whole frame: opcode and payload. Servers neither mask nor, below these sizes, fragment.
    fn take(&mut self) -> Option<(u8, Vec<u8>)> {
        let [first, second, rest @ ..] = &self.buffer[..] else { return None };
        let (at, len) = match second & 0x7f {
            126 => (4, usize::from(u16::from_be_bytes(*rest.first_chunk()?))),
            127 => (10, u64::from_be_bytes(*rest.first_chunk()?) as usize),
            len => (2, usize::from(len)),
        };
        let frame = (first & 0x0f, self.buffer.get(at..at + len)?.to_vec());
        self.buffer.drain(..at + len);
        if self.buffer.is_empty() {
            self.buffer = Vec::new();
        }
        Some(frame)
    }
}
