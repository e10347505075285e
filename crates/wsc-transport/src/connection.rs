//! The receiving half of a connection: one small future that reads, decodes, hands out, and writes what waits.

use std::{
    cell::RefCell,
    io, mem,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use wsc_protocol::{CloseReason, DisconnectReason};

use crate::{
    conn::{Conn, Phase, is_slow},
    decoder::{Decoded, Decoder, Violation},
    outbound::Outbound,
    service::{Handler, Message, Next},
    shared::Shared,
};

/// Any byte stream.
pub trait AsyncStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> AsyncStream for T {}

/// A byte stream that one task owns: TLS, or a connection that somebody else accepted.
pub type Stream = Box<dyn AsyncStream>;

/// One open connection's task. What it costs while idle is this struct, so every rare part is behind a pointer.
pub(crate) struct Connection<H: Handler> {
    conn: Arc<Conn>,
    /// `None` as soon as the layer above has been told the end.
    handler: Option<H>,
    /// Where the bytes come from unless it is `conn.tcp`.
    stream: Option<Stream>,
    decoder: Decoder,
    /// Bytes that were read but not yet decoded; without capacity where there are none.
    unread: Vec<u8>,
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// `unread` may hold whole frames: decode before reading.
    has_more: bool,
    /// The stream took bytes that it has not passed on yet, as TLS does.
    is_unflushed: bool,
    hearing: Hearing,
    /// Its place in the transport's list of connections.
    slot: u32,
}

/// Longest control frame of a client in bytes, head and mask included (RFC 6455 §5.5).
const MAX_CONTROL_FRAME: usize = 131;

/// What the peer's bytes still mean.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hearing {
    /// Frames.
    Frames,
    /// It broke the protocol: they mean nothing any more.
    Noise,
    /// It has said goodbye.
    Goodbye,
}

/// What a turn of reading came to.
enum Turn {
    /// There may be more to do.
    Again,
    /// There is more to do when others have run.
    Yield,
    /// The peer's stream has ended.
    Ended(DisconnectReason),
}

impl<H: Handler> Connection<H> {
    /// Opens a connection: `open` is called before anything is written.
    pub(crate) fn open(
        conn: Arc<Conn>,
        stream: Option<Stream>,
        unread: Vec<u8>,
        open: impl FnOnce(&Outbound) -> H,
    ) -> Self {
        // The handshake's buffer must not stay with a connection that never speaks.
        let unread = if unread.is_empty() { Vec::new() } else { unread };
        let mut connection = Self {
            handler: None,
            stream,
            decoder: Decoder::default(),
            has_more: !unread.is_empty(),
            unread,
            waiting: None,
            is_unflushed: false,
            hearing: Hearing::Frames,
            slot: conn.shared.conns.insert(&conn),
            conn,
        };
        connection.handler = Some(open(&Outbound(Arc::clone(&connection.conn))));
        connection.conn.release();
        connection
    }

    /// One turn: decodes what is there, else reads.
    fn poll_turn(&mut self, cx: &mut Context<'_>, allowance: &mut Allowance) -> Poll<io::Result<Turn>> {
        if self.has_more && !self.unread.is_empty() {
            let mut unread = mem::take(&mut self.unread);
            let (used, turn) = self.decode(&mut unread, allowance);
            self.keep_unread(unread, used);
            return Poll::Ready(Ok(turn));
        }
        self.has_more = false;
        with_scratch(|scratch| {
            let len = ready!(self.poll_read(cx, scratch))?;
            if len == 0 {
                return Poll::Ready(Ok(Turn::Ended(DisconnectReason::ReadError)));
            }
            self.conn.shared.stats.bytes_in.fetch_add(len as u64, Relaxed);
            allowance.bytes = allowance.bytes.saturating_sub(len);
            let fresh = &mut scratch[..len];
            let before = self.unread.len();
            let (used, turn) = if self.unread.is_empty() {
                let (used, turn) = self.decode(fresh, allowance);
                self.unread = fresh[used..].to_vec();
                (used, turn)
            } else {
                let mut unread = mem::take(&mut self.unread);
                unread.extend_from_slice(fresh);
                let (used, turn) = self.decode(&mut unread, allowance);
                self.keep_unread(unread, used);
                (used, turn)
            };
            // Bytes alone are no life: who never ends a frame is as good as silent. A long one on a slow line is heard
            // of from time to time.
            if (used > 0 || self.unread.len() / PROGRESS > before / PROGRESS) && self.waiting.is_none() {
                self.conn.heard();
            }
            Poll::Ready(Ok(turn))
        })
    }

    /// Keeps what is left of `unread` after `used` bytes; an idle connection keeps no buffer.
    fn keep_unread(&mut self, unread: Vec<u8>, used: usize) {
        self.unread = match used {
            // A frame that is not complete grows in place.
            0 => unread,
            // A copy, where little may be left of much: the rest may wait for long.
            used => unread[used..].to_vec(),
        };
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        if let Some(stream) = &mut self.stream {
            let mut buffer = ReadBuf::new(buffer);
            ready!(Pin::new(stream).poll_read(cx, &mut buffer))?;
            return Poll::Ready(Ok(buffer.filled().len()));
        }
        let Some(tcp) = &self.conn.tcp else { return Poll::Ready(Ok(0)) };
        loop {
            ready!(tcp.poll_read_ready(cx))?;
            // A read that leaves room in the buffer has emptied the socket. Saying "would block" within `try_io`
            // clears the readiness without the extra read that would only find that out.
            let mut len = 0;
            let result = tcp.try_io(Interest::READABLE, || {
                len = tcp.try_read(buffer)?;
                if len > 0 && len < buffer.len() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match result {
                Ok(()) => return Poll::Ready(Ok(len)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if len > 0 {
                        return Poll::Ready(Ok(len));
                    }
                }
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }

    /// Hands out the messages that `input` starts with. Returns how many bytes are done with.
    fn decode(&mut self, input: &mut [u8], allowance: &mut Allowance) -> (usize, Turn) {
        let max_message_size = self.conn.shared.limits.max_message_size();
        let deflate = self.conn.deflates();
        let mut used = 0;
        while self.hearing == Hearing::Frames {
            if allowance.frames == 0 || allowance.inflated == 0 {
                self.has_more = true;
                break;
            }
            let (len, decoded) = self.decoder.decode(&mut input[used..], max_message_size, deflate);
            used += len;
            if len <= MAX_CONTROL_FRAME
                && matches!(decoded, Decoded::Nothing | Decoded::Ping(_))
                && let Some(handler) = &self.handler
            {
                handler.small_frame(len);
            }
            let next = match decoded {
                Decoded::Incomplete => {
                    self.has_more = false;
                    break;
                }
                Decoded::Nothing => Next::Read,
                Decoded::Text(text) => self.hand_out(Message::Text(text)),
                Decoded::Binary(bytes) => self.hand_out(Message::Binary(bytes)),
                Decoded::Assembled(message) => {
                    if deflate {
                        allowance.inflated = allowance.inflated.saturating_sub(message.len());
                    }
                    match message {
                        tungstenite::Message::Text(text) => self.hand_out(Message::Text(&text)),
                        other => self.hand_out(Message::Binary(&other.into_data())),
                    }
                }
                Decoded::Ping(pong) => {
                    self.conn.send_control(&pong);
                    Next::Read
                }
                Decoded::Close(reply) => {
                    self.hearing = Hearing::Goodbye;
                    self.conn.answer_close(reply);
                    Next::Read
                }
                Decoded::Violation(Violation { code, reason }) => {
                    self.hearing = Hearing::Noise;
                    let close = CloseReason::new(code, reason);
                    Outbound(Arc::clone(&self.conn)).close(&close, DisconnectReason::ProtocolError);
                    Next::Read
                }
            };
            allowance.frames -= 1;
            if let Next::Wait(future) = next {
                self.waiting = Some(future);
                self.has_more = true;
                self.conn.stop_listening();
                return (used, Turn::Again);
            }
        }
        if self.hearing != Hearing::Frames {
            self.has_more = false;
            return (input.len(), Turn::Again);
        }
        (used, if self.has_more { Turn::Yield } else { Turn::Again })
    }

    fn hand_out(&self, message: Message<'_>) -> Next {
        self.conn.shared.stats.messages_in.fetch_add(1, Relaxed);
        // What arrives behind a close of ours is not acted on any more.
        match &self.handler {
            Some(handler) if self.conn.cause().is_none() => handler.message(message),
            _ => Next::Read,
        }
    }

    /// Whoever broke the protocol learns at once that nothing more comes (RFC 6455 §7.1.7). Reading goes on for a
    /// moment: to close on bytes that nobody read would take the close frame from the peer again.
    fn shut_write_half(&mut self, cx: &mut Context<'_>) {
        if let Some(stream) = &mut self.stream {
            let _ = Pin::new(stream).poll_shutdown(cx);
        }
        if let Some(tcp) = &self.conn.tcp {
            let _ = socket2::SockRef::from(tcp).shutdown(std::net::Shutdown::Write);
        }
    }

    fn tell_end(&mut self, cause: DisconnectReason) {
        self.waiting = None;
        if let Some(handler) = self.handler.take() {
            handler.closed(cause);
        }
    }

    /// Drives the connection as far as it goes; `Ready` is its end.
    fn poll_drive(&mut self, cx: &mut Context<'_>) -> Poll<DisconnectReason> {
        let mut allowance = Allowance::default();
        while allowance.take_turn() {
            let (phase, has_backlog) = self.conn.attend(cx);
            if phase != Phase::Open {
                let cause = self.conn.cause().unwrap_or(DisconnectReason::ReadError);
                self.tell_end(cause);
            }
            if phase == Phase::Dead {
                return Poll::Ready(DisconnectReason::WriteError);
            }
            let flushed = if has_backlog || self.is_unflushed {
                let flush = self.conn.poll_flush(cx, self.stream.as_mut());
                self.is_unflushed = flush.is_pending() && self.stream.is_some();
                match flush {
                    Poll::Ready(Ok(())) => true,
                    Poll::Ready(Err(_)) => return Poll::Ready(DisconnectReason::WriteError),
                    Poll::Pending => false,
                }
            } else {
                true
            };
            if flushed && phase >= Phase::Closing {
                if self.hearing == Hearing::Goodbye {
                    return Poll::Ready(DisconnectReason::ClientRequest);
                }
                if self.conn.linger() && self.hearing == Hearing::Noise {
                    self.shut_write_half(cx);
                }
            }
            if !flushed && phase == Phase::Closing && self.conn.cause().is_some_and(is_slow) {
                // Who takes nothing is not listened to either: what it sends waits in its own kernel.
                return Poll::Pending;
            }
            if let Some(waiting) = &mut self.waiting {
                ready!(waiting.as_mut().poll(cx));
                self.waiting = None;
                self.conn.heard();
            }
            match ready!(self.poll_turn(cx, &mut allowance)) {
                Ok(Turn::Again) => {}
                Ok(Turn::Yield) => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Ok(Turn::Ended(cause)) => return Poll::Ready(cause),
                Err(_) => return Poll::Ready(DisconnectReason::ReadError),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<H: Handler> Future for Connection<H> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let cause = ready!(self.poll_drive(cx));
        self.conn.end(cause);
        if let Some(stream) = &mut self.stream {
            // TLS says goodbye too, so that the peer can tell an end from a cut. A peer that takes no bytes now has to
            // do without.
            let _ = Pin::new(stream).poll_shutdown(cx);
        }
        Poll::Ready(())
    }
}

impl<H: Handler> Unpin for Connection<H> {}

impl<H: Handler> Drop for Connection<H> {
    /// Exactly one end, whether the task ran to it, panicked or was aborted.
    fn drop(&mut self) {
        let cause = self.conn.end(DisconnectReason::ServerShutdown);
        self.conn.shared.conns.remove(self.slot);
        if let Some(tcp) = &self.conn.tcp {
            // Handles may outlive the connection for a moment; the peer should not have to wait for them.
            let _ = socket2::SockRef::from(tcp).shutdown(std::net::Shutdown::Both);
        }
        // It may be the handler's panic that brought us here; a second one from a handler in pieces must not end the
        // process.
        let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.tell_end(cause)));
        if told.is_err() {
            tracing::error!("a handler panicked at the end of its connection");
        }
    }
}

/// Lends the thread's read buffer. It is taken, not borrowed, so that a handler may do what it likes meanwhile.
fn with_scratch<R>(read: impl FnOnce(&mut [u8]) -> R) -> R {
    thread_local! {
        static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    let mut scratch = SCRATCH.with(|s| mem::take(&mut *s.borrow_mut()));
    if scratch.is_empty() {
        scratch = vec![0; SCRATCH_SIZE];
    }
    let result = read(&mut scratch);
    SCRATCH.with(|s| *s.borrow_mut() = scratch);
    result
}

/// One for each thread, so that an idle connection needs none.
const SCRATCH_SIZE: usize = 64 << 10;

/// What a connection may still do before it lets others run: a stream may always have more.
struct Allowance {
    turns: usize,
    /// Messages, mostly.
    frames: usize,
    /// To be read.
    bytes: usize,
    /// Counted apart: few bytes on the wire may be many messages, each as large as one can be.
    inflated: usize,
}

impl Default for Allowance {
    fn default() -> Self {
        Self { turns: 64, frames: 64, bytes: 64 << 10, inflated: 256 << 10 }
    }
}

impl Allowance {
    /// Begins another read or wait. Returns false where others have to run first.
    fn take_turn(&mut self) -> bool {
        if self.turns == 0 || self.frames == 0 || self.bytes == 0 || self.inflated == 0 {
            return false;
        }
        self.turns -= 1;
        true
    }
}

/// So many bytes of a frame that is not complete yet are a sign of life.
const PROGRESS: usize = 16 << 10;

/// Ends every connection at once.
pub(crate) fn abort_all(shared: &Shared) {
    let mut start = 0;
    while let Some(conns) = shared.conns.slice(start, 256) {
        start += 256;
        for conn in conns {
            conn.abort(DisconnectReason::ServerShutdown);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Idle(#[expect(dead_code, reason = "takes the place of a real handler's pointers")] [usize; 4]);

    impl Handler for Idle {
        fn message(&self, _: Message<'_>) -> Next {
            Next::Read
        }

        fn closed(self, _: DisconnectReason) {}
    }

    /// What an idle connection costs is its state: growth here is paid a hundred thousand times. The runtime adds
    /// about 112 bytes to the future and allocates it in blocks of 128.
    #[test]
    fn an_idle_connection_stays_small() {
        assert!(size_of::<Connection<Idle>>() <= 128, "{}", size_of::<Connection<Idle>>());
        assert!(size_of::<Conn>() + 16 <= 112, "{}", size_of::<Conn>());
    }
}
