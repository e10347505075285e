//! A stream whose peer has to read.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};
use wsc_transport::Stream;

/// Fails when its peer takes no byte for too long: who asks and does not read the answers has no place for ever.
pub(crate) struct Patient {
    stream: Stream,
    patience: Duration,
    /// There while the peer takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    pub(crate) fn new(stream: Stream, patience: Duration) -> Self {
        Self { stream, patience, stalled: None }
    }

    pub(crate) fn into_inner(self) -> Stream {
        self.stream
    }

    /// Passes on what the stream says, but not that it is not ready for too long.
    fn watch<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stalled = None;
            return polled;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Patient {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watch(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.watch(cx, polled)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, duplex},
        time::Instant,
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_reads_slowly_is_borne_and_one_that_does_not_read_is_not() {
        let (ours, mut theirs) = duplex(4);
        let mut stream = Patient::new(Box::new(ours), Duration::from_secs(1));
        let begun = Instant::now();
        let writing = tokio::spawn(async move {
            stream.write_all(b"twelve bytes").await.unwrap();
            (stream.write_all(b"and more").await.unwrap_err().kind(), begun.elapsed())
        });
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(900)).await;
            theirs.read_exact(&mut [0; 4]).await.unwrap();
        }
        let (kind, after) = writing.await.unwrap();
        assert_eq!(kind, io::ErrorKind::TimedOut);
        // Twice it waited and was relieved; the third time nobody came.
        assert!(after >= Duration::from_millis(2800), "{after:?}");
    }
}
