//! The connections of one worker.
//!
//! A client must be cheap: it shares the machine with the server that it measures. So one thread serves thousands of
//! sockets; there is one buffer to read into, and a connection keeps bytes of its own only between two parts of a frame.

use std::{
    fmt, io,
    io::{Read, Write},
    net::{Shutdown, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::Context;
use mio::{Interest, Registry, Token, event::Event, net::TcpStream};
use socket2::{Domain, Protocol, Socket as RawSocket, Type};

use super::{
    frame::{self, Opcode},
    http, source,
};
use crate::message::Endpoint;

/// A table of connections; a place in it is a *slot*.
#[derive(Debug)]
pub(crate) struct Sockets {
    registry: Registry,
    endpoint: Endpoint,
    authorization: Option<String>,
    table: Vec<Option<Socket>>,
    /// What is read, between reads empty.
    scratch: Vec<u8>,
    /// What is written, between writes empty.
    out: Vec<u8>,
}

/// What happened on a connection.
#[derive(Debug)]
pub(crate) enum Incident<'a> {
    /// The server accepted the upgrade.
    Upgraded,
    /// A whole text or binary message.
    Message(&'a [u8]),
    /// The answer to a request to the HTTP API.
    Answered { status: u16, body: &'a [u8] },
    /// The connection is no more.
    Ended(End),
}

/// Why a connection ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The server closed it, with a code and a reason where it gave them.
    Closed { code: Option<u16>, reason: String },
    /// The server answered the upgrade with something else.
    Refused { status: u16, body: String },
    /// It could not be made, or broke.
    Broken(anyhow::Error),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { code: Some(code), reason } => write!(f, "the server closed it with {code} {reason}"),
            Self::Closed { code: None, .. } => f.write_str("the server closed it without a close frame"),
            Self::Refused { status, body } => write!(f, "the server refused the upgrade with {status} {body}"),
            Self::Broken(error) => write!(f, "{error:#}"),
        }
    }
}

#[derive(Debug)]
struct Socket {
    stream: TcpStream,
    phase: Phase,
    /// The start of a frame, or of a head, whose end has not come.
    partial: Vec<u8>,
    /// The frames so far of a message in several.
    fragments: Vec<u8>,
    /// What the kernel did not take yet.
    unsent: Vec<u8>,
    /// Whether the close frame was sent.
    closing: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    Upgrading,
    /// Speaks frames.
    Open,
    /// Speaks HTTP.
    Http,
}

impl Sockets {
    pub(crate) fn new(registry: Registry, endpoint: Endpoint) -> Self {
        let authorization = endpoint.token.as_ref().map(|token| format!("Bearer {token}"));
        Self { registry, endpoint, authorization, table: Vec::new(), scratch: Vec::new(), out: Vec::new() }
    }

    /// How many slots there are.
    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there is a connection in this slot.
    pub(crate) fn is_there(&self, slot: usize) -> bool {
        self.table.get(slot).is_some_and(Option::is_some)
    }

    /// Our end and the server's of a connection.
    pub(crate) fn ends(&self, slot: usize) -> Option<(SocketAddr, SocketAddr)> {
        let stream = &self.table.get(slot)?.as_ref()?.stream;
        Some((stream.local_addr().ok()?, self.endpoint.address))
    }

    /// Begins to connect; [`Incident::Upgraded`] or [`Incident::Ended`] follows.
    ///
    /// `query` is what only this connection has in its address.
    pub(crate) fn connect(&mut self, slot: usize, number: u64, query: &str, small_buffer: bool) -> anyhow::Result<()> {
        let joint = if self.endpoint.path.contains('?') { '&' } else { '?' };
        let target = format!("{}{joint}{query}", self.endpoint.path);
        let mut request = Vec::with_capacity(512);
        http::upgrade(&mut request, &self.endpoint.host, &target, self.authorization.as_deref());
        self.start(slot, number, Phase::Upgrading, request, small_buffer)
    }

    /// Begins to connect to the HTTP API.
    pub(crate) fn connect_http(&mut self, slot: usize, number: u64) -> anyhow::Result<()> {
        self.start(slot, number, Phase::Http, Vec::new(), false)
    }

    fn start(
        &mut self,
        slot: usize,
        number: u64,
        phase: Phase,
        request: Vec<u8>,
        small_buffer: bool,
    ) -> anyhow::Result<()> {
        let address = self.endpoint.address;
        let mut stream =
            connect(address, number, small_buffer).with_context(|| format!("cannot connect to {address}"))?;
        self.registry.register(&mut stream, Token(slot), Interest::READABLE | Interest::WRITABLE)?;
        if self.table.len() <= slot {
            self.table.resize_with(slot + 1, || None);
        }
        self.table[slot] =
            Some(Socket { stream, phase, partial: Vec::new(), fragments: Vec::new(), unsent: request, closing: false });
        Ok(())
    }

    /// Sends a text message.
    pub(crate) fn send(&mut self, slot: usize, text: &[u8]) -> anyhow::Result<()> {
        self.send_repeatedly(slot, text, 1)
    }

    /// Sends the same text message so many times, all in one write.
    pub(crate) fn send_repeatedly(&mut self, slot: usize, text: &[u8], times: usize) -> anyhow::Result<()> {
        let mut out = std::mem::take(&mut self.out);
        for _ in 0..times {
            frame::write(&mut out, Opcode::Text, text);
        }
        let result = self.write(slot, &out);
        out.clear();
        self.out = out;
        result
    }

    /// Posts JSON to the HTTP API.
    pub(crate) fn post(&mut self, slot: usize, path: &str, body: &[u8]) -> anyhow::Result<()> {
        let mut out = std::mem::take(&mut self.out);
        http::post(&mut out, &self.endpoint.host, path, self.authorization.as_deref(), body);
        let result = self.write(slot, &out);
        out.clear();
        self.out = out;
        result
    }

    fn write(&mut self, slot: usize, bytes: &[u8]) -> anyhow::Result<()> {
        let socket = self.table.get_mut(slot).and_then(Option::as_mut).context("wrote to a connection that is gone")?;
        // A connection that broke is noticed by reading: that is where it ends, once.
        let _ = socket.write(bytes);
        Ok(())
    }

    /// Says goodbye: a close frame, and the end of the stream. [`Incident::Ended`] follows.
    pub(crate) fn close(&mut self, slot: usize) {
        if let Some(socket) = self.table.get_mut(slot).and_then(Option::as_mut)
            && !socket.closing
        {
            socket.closing = true;
            let mut goodbye = Vec::with_capacity(8);
            frame::write(&mut goodbye, Opcode::Close, &1000_u16.to_be_bytes());
            let _ = socket.write(&goodbye);
            if socket.unsent.is_empty() {
                let _ = socket.stream.shutdown(Shutdown::Write);
            }
        }
    }

    /// Ends a connection with a TCP reset, at once and without an incident.
    pub(crate) fn reset(&mut self, slot: usize) {
        if let Some(socket) = self.table.get_mut(slot).and_then(Option::take) {
            let _ = socket2::SockRef::from(&socket.stream).set_linger(Some(Duration::ZERO));
        }
    }

    /// Reads no more from a connection, and hears no more of it.
    pub(crate) fn ignore(&mut self, slot: usize) {
        if let Some(socket) = self.table.get_mut(slot).and_then(Option::as_mut) {
            let _ = self.registry.deregister(&mut socket.stream);
        }
    }

    /// Does what a readiness event says there is to do, and hands what happened to `handle`.
    pub(crate) fn ready(
        &mut self,
        event: &Event,
        handle: &mut dyn FnMut(&mut Self, usize, Incident<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let slot = event.token().0;
        let Some(socket) = self.table.get_mut(slot).and_then(Option::as_mut) else { return Ok(()) };
        // On an error there is nothing to write, and writing would take the error that reading is to find, behind what
        // the server said last.
        if event.is_writable() && !event.is_error() && !socket.unsent.is_empty() {
            let unsent = std::mem::take(&mut socket.unsent);
            // An error here shows when reading.
            let _ = socket.write(&unsent);
            if socket.closing && socket.unsent.is_empty() {
                let _ = socket.stream.shutdown(Shutdown::Write);
            }
        }
        if !(event.is_readable() || event.is_read_closed() || event.is_error()) {
            return Ok(());
        }
        // The scratch buffer leaves while it is lent to handlers, which may write meanwhile.
        let mut scratch = std::mem::take(&mut self.scratch);
        let result = self.read(slot, event.is_read_closed() || event.is_error(), &mut scratch, handle);
        self.scratch = scratch;
        result
    }

    fn read(
        &mut self,
        slot: usize,
        closing: bool,
        scratch: &mut Vec<u8>,
        handle: &mut dyn FnMut(&mut Self, usize, Incident<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        loop {
            let Some(socket) = self.table.get_mut(slot).and_then(Option::as_mut) else { return Ok(()) };
            let held = socket.partial.len();
            if scratch.len() < held + READ {
                scratch.resize(held + READ, 0);
            }
            scratch[..held].copy_from_slice(&socket.partial);
            let room = scratch.len() - held;
            let read = match socket.stream.read(&mut scratch[held..]) {
                Ok(0) => return self.end(slot, End::Closed { code: None, reason: String::new() }, handle),
                Ok(read) => read,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return self.end(slot, End::Broken(e.into()), handle),
            };
            let filled = held + read;
            let used = match self.consume(slot, &scratch[..filled], handle)? {
                Ok(used) => used,
                Err(end) => return self.end(slot, end, handle),
            };
            let Some(socket) = self.table.get_mut(slot).and_then(Option::as_mut) else { return Ok(()) };
            // Freed and not only emptied: most connections hold nothing most of the time.
            socket.partial = scratch[used..filled].to_vec();
            // A read that did not fill the buffer took all there was. What comes later is a new event, but the end of
            // the stream may have come already, with this one.
            if read < room && !closing {
                return Ok(());
            }
        }
    }

    /// Takes whole heads and frames off `bytes`; returns how many bytes they were.
    fn consume(
        &mut self,
        slot: usize,
        bytes: &[u8],
        handle: &mut dyn FnMut(&mut Self, usize, Incident<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<Result<usize, End>> {
        let mut used = 0;
        loop {
            let Some(socket) = self.table.get_mut(slot).and_then(Option::as_mut) else { return Ok(Ok(used)) };
            let rest = &bytes[used..];
            if rest.is_empty() {
                return Ok(Ok(used));
            }
            match socket.phase {
                Phase::Upgrading | Phase::Http => {
                    let head = match http::head(rest) {
                        Ok(Some(head)) => head,
                        Ok(None) => return Ok(Ok(used)),
                        Err(e) => return Ok(Err(End::Broken(e))),
                    };
                    if socket.phase == Phase::Upgrading && head.upgrades {
                        socket.phase = Phase::Open;
                        used += head.length;
                        handle(self, slot, Incident::Upgraded)?;
                        continue;
                    }
                    if socket.phase == Phase::Upgrading {
                        let body = String::from_utf8_lossy(&rest[head.length..]).into_owned();
                        return Ok(Err(End::Refused { status: head.status, body }));
                    }
                    let Some(length) = head.body else {
                        return Ok(Err(End::Broken(anyhow::anyhow!("an HTTP answer without Content-Length"))));
                    };
                    let Some(body) = rest.get(head.length..head.length + length) else { return Ok(Ok(used)) };
                    used += head.length + length;
                    handle(self, slot, Incident::Answered { status: head.status, body })?;
                }
                Phase::Open => {
                    let (frame, end) = match frame::parse(rest) {
                        Ok(Some(frame)) => frame,
                        Ok(None) => return Ok(Ok(used)),
                        Err(e) => return Ok(Err(End::Broken(e.into()))),
                    };
                    used += end;
                    match frame.opcode {
                        Opcode::Text | Opcode::Binary if frame.last => {
                            handle(self, slot, Incident::Message(frame.payload))?;
                        }
                        Opcode::Text | Opcode::Binary | Opcode::Continuation => {
                            socket.fragments.extend_from_slice(frame.payload);
                            if frame.last {
                                let message = std::mem::take(&mut socket.fragments);
                                handle(self, slot, Incident::Message(&message))?;
                            }
                        }
                        Opcode::Ping => {
                            let mut pong = Vec::with_capacity(6 + frame.payload.len());
                            frame::write(&mut pong, Opcode::Pong, frame.payload);
                            let _ = socket.write(&pong);
                        }
                        Opcode::Pong => {}
                        Opcode::Close => {
                            let code = frame.payload.first_chunk().map(|&code| u16::from_be_bytes(code));
                            let reason = frame.payload.get(2..).unwrap_or_default();
                            let reason = String::from_utf8_lossy(reason).into_owned();
                            return Ok(Err(End::Closed { code, reason }));
                        }
                    }
                }
            }
        }
    }

    fn end(
        &mut self,
        slot: usize,
        end: End,
        handle: &mut dyn FnMut(&mut Self, usize, Incident<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.table[slot] = None;
        handle(self, slot, Incident::Ended(end))
    }
}

impl Socket {
    /// Writes what the kernel takes and keeps the rest for when it takes more.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !self.unsent.is_empty() {
            self.unsent.extend_from_slice(bytes);
            return Ok(());
        }
        let mut written = 0;
        while written < bytes.len() {
            match self.stream.write(&bytes[written..]) {
                Ok(count) => written += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected) => {
                    self.unsent = bytes[written..].to_vec();
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// A socket on its way to the server.
fn connect(server: SocketAddr, number: u64, small_buffer: bool) -> anyhow::Result<TcpStream> {
    let socket = RawSocket::new(Domain::for_address(server), Type::STREAM.nonblocking(), Some(Protocol::TCP))
        .context("no socket: is the limit of file descriptors (ulimit -n) too low?")?;
    socket.set_tcp_nodelay(true)?;
    if small_buffer {
        // Before connecting, since the window is agreed on there; the kernel makes it somewhat larger.
        socket.set_recv_buffer_size(SMALL_BUFFER)?;
    }
    if let Some(source) = source::address(server.ip(), number) {
        socket.bind(&SocketAddr::new(source, 0).into()).with_context(|| format!("cannot bind to {source}"))?;
    }
    match socket.connect(&server.into()) {
        Ok(()) => {}
        // EINPROGRESS has no stable name in the standard library.
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
        Err(e) => return Err(e.into()),
    }
    Ok(TcpStream::from_std(socket.into()))
}

/// How much is read at a time: some hundred joined frames.
const READ: usize = 64 << 10;

const SMALL_BUFFER: usize = 2 << 10;

/// A point in time that moves with what happens: a run in which nothing happens is broken.
#[derive(Debug)]
pub(crate) struct Patience {
    last: Instant,
    seen: u64,
    limit: Duration,
}

impl Patience {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { last: Instant::now(), seen: 0, limit }
    }

    /// Whether the figure has stood still for too long.
    pub(crate) fn is_over(&mut self, figure: u64) -> bool {
        if figure != self.seen {
            self.seen = figure;
            self.last = Instant::now();
        }
        self.last.elapsed() > self.limit
    }
}
