//! A connected WebSocket that reads and writes at the same time.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Sink, Stream};
use tokio::time::timeout;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

use crate::{
    Cause,
    connect::{BoxStream, closing, lost},
};

/// One connection. At most one frame waits to be written; who has another one waits for [`Step::Written`].
///
/// Reading goes on while writing is stuck: two sides that both wait to write would wait for ever.
pub(crate) struct Socket {
    ws: WebSocketStream<BoxStream>,
    next: Option<Message>,
    unflushed: bool,
    /// Writing failed. What the hub had to say about it may still be readable.
    broken: bool,
}

/// What a connection did.
pub(crate) enum Step {
    /// A text frame came, or a binary one with text in it.
    Text(tungstenite::Utf8Bytes),
    /// A frame came that only shows that the hub lives.
    Alive,
    /// The frame that was waiting has been taken.
    Written,
    /// The end.
    Ended(Cause),
}

impl Socket {
    pub(crate) fn new(ws: WebSocketStream<BoxStream>) -> Self {
        Self { ws, next: None, unflushed: false, broken: false }
    }

    /// Whether [`write`](Self::write) may be called.
    pub(crate) fn can_write(&self) -> bool {
        self.next.is_none() && !self.broken
    }

    /// Whether nothing can be written any more. What the hub had sent before can still be read.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Writes this frame with the next steps.
    pub(crate) fn write(&mut self, message: Message) {
        debug_assert!(self.can_write(), "one frame at a time");
        self.next = Some(message);
    }

    /// Writes what waits, and reads where `read` allows it, until something can be told.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: what is half written or half read stays in the socket.
    pub(crate) async fn step(&mut self, read: bool) -> Step {
        poll_fn(|cx| self.poll_step(cx, read)).await
    }

    fn poll_step(&mut self, cx: &mut Context<'_>, read: bool) -> Poll<Step> {
        let had_one = self.next.is_some();
        if !self.broken && self.poll_write(cx).is_err() {
            self.broken = true;
            self.next = None;
        }
        if read && let Poll::Ready(step) = self.poll_read(cx) {
            return Poll::Ready(step);
        }
        if had_one && self.next.is_none() {
            return Poll::Ready(Step::Written);
        }
        Poll::Pending
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> tungstenite::Result<()> {
        let mut ws = Pin::new(&mut self.ws);
        if self.next.is_some()
            && let Poll::Ready(ready) = ws.as_mut().poll_ready(cx)
        {
            ready?;
            if let Some(message) = self.next.take() {
                ws.as_mut().start_send(message)?;
                self.unflushed = true;
            }
        }
        if self.unflushed
            && let Poll::Ready(flushed) = ws.poll_flush(cx)
        {
            flushed?;
            self.unflushed = false;
        }
        Ok(())
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        let message = match Pin::new(&mut self.ws).poll_next(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(message) => message,
        };
        Poll::Ready(match message {
            Some(Ok(Message::Text(text))) => Step::Text(text),
            Some(Ok(Message::Binary(bytes))) => match tungstenite::Utf8Bytes::try_from(bytes) {
                Ok(text) => Step::Text(text),
                Err(_) => Step::Ended(Cause::Protocol("a binary frame that is not UTF-8".to_owned())),
            },
            Some(Ok(Message::Ping(_))) => {
                // The pong is made and waits; this sends it also while nothing is read.
                self.unflushed = true;
                Step::Alive
            }
            Some(Ok(Message::Pong(_) | Message::Frame(_))) => Step::Alive,
            Some(Ok(Message::Close(frame))) => Step::Ended(Cause::Closed(closing(frame.as_ref()))),
            Some(Err(error)) => Step::Ended(lost(error)),
            None => Step::Ended(lost(tungstenite::Error::ConnectionClosed)),
        })
    }

    /// Says goodbye with the next steps.
    pub(crate) fn write_close(&mut self) {
        self.write(Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() })));
    }

    /// Hands over the answer to the close frame that was read, so that the hub need not wait for its time limit.
    pub(crate) async fn finish(&mut self) {
        let _ = timeout(FAREWELL, poll_fn(|cx| Pin::new(&mut self.ws).poll_flush(cx))).await;
    }
}

/// The answer to a close frame is a handful of bytes: what takes longer is not going to arrive.
const FAREWELL: Duration = Duration::from_millis(500);
