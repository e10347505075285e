//! The transport as a whole: what it owns, and how it ends.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, OnceLock, Weak},
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Request, Response};
use parking_lot::RwLock;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wsc_protocol::{CloseReason, DisconnectReason};

use crate::{
    config::TransportConfig,
    connection::{Connection, Stream, abort_all, close_all},
    fanout::{Fanout, Fanouts, Member},
    flusher::Flushers,
    handshake::{Extensions, Handshake, PendingHandshakes, Transfer, farewell, handshake, open},
    service::{FanoutReport, Peer, Service},
    shared::Shared,
    stats::TransportStats,
    tls::TlsConfig,
};

/// Accepts connections, keeps them, and writes to them. A cheap handle; all handles are one transport.
pub struct Transport<S: Service>(Arc<Inner<S>>);

pub(crate) struct Inner<S> {
    pub(crate) service: Arc<S>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) pending: PendingHandshakes,
    /// Where upgrades are expected, such as `/ws`.
    pub(crate) path: String,
    /// No new connections.
    pub(crate) stop: CancellationToken,
    /// No connections at all; those of the hub's own are aborted one by one, they keep no token.
    pub(crate) abort: CancellationToken,
    fanouts: Fanouts,
    tls: RwLock<Option<TlsAcceptor>>,
    /// Listeners and connections. The two below end after them.
    tasks: TaskTracker,
    /// Sweep and flushers.
    keepers: TaskTracker,
    keepers_stop: CancellationToken,
}

impl<S: Service> Clone for Transport<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: Service> Transport<S> {
    /// Starts a transport that hands upgrades on `path` to the service that `make` returns. It listens nowhere yet.
    ///
    /// # Panics
    ///
    /// Panics outside of a tokio runtime.
    pub fn start(path: &str, config: &TransportConfig, make: impl FnOnce(&Fanouts) -> Arc<S>) -> Self {
        let shared = Arc::new(Shared::new(config));
        let keepers = TaskTracker::new();
        let keepers_stop = CancellationToken::new();
        // Weak: the service keeps fan-outs, which keep this.
        let reporter: Arc<OnceLock<Weak<S>>> = Arc::default();
        let listener = Arc::clone(&reporter);
        let report: Arc<dyn Fn(FanoutReport) + Send + Sync> = Arc::new(move |report| {
            let Some(service) = listener.get().and_then(Weak::upgrade) else { return };
            // A flusher serves many fan-outs; none of them may stop for a panic here.
            if catch_unwind(AssertUnwindSafe(|| service.flushed(report))).is_err() {
                tracing::error!("the service panicked over a report");
            }
        });
        let flushers = Arc::new(Flushers::spawn(&report, &keepers, &keepers_stop));
        let fanouts = Fanouts { flushers, shared: Arc::clone(&shared) };
        let service = make(&fanouts);
        reporter.get_or_init(|| Arc::downgrade(&service));
        keepers.spawn(sweep(Arc::clone(&shared), keepers_stop.clone()));
        Self(Arc::new(Inner {
            service,
            shared,
            pending: PendingHandshakes::default(),
            path: path.to_owned(),
            stop: CancellationToken::new(),
            abort: CancellationToken::new(),
            fanouts,
            tls: RwLock::new(None),
            tasks: TaskTracker::new(),
            keepers,
            keepers_stop,
        }))
    }

    /// Accepts connections from `listener` in a task of its own until [`shutdown`](Self::shutdown).
    pub fn listen(&self, listener: TcpListener) {
        let transport = self.clone();
        self.0.tasks.spawn(async move { transport.accept_all(listener).await });
    }

    /// From now on new connections speak TLS with this certificate. Open ones stay as they are.
    pub fn set_tls(&self, tls: &TlsConfig) {
        *self.0.tls.write() = Some(tls.acceptor());
    }

    /// Agrees on what an upgrade request offers beyond RFC 6455 and says so in the response to it, which is about to
    /// be sent. For connections that are [adopted](Self::adopt) afterwards.
    pub fn agree<B>(&self, request: &Request<B>, response: &mut Response<()>) -> Extensions {
        Extensions::agree(&self.0.shared.limits, request, response)
    }

    /// Takes over a connection that somebody else accepted and upgraded, and serves it in a task of its own.
    /// `unread` is what has been read behind the request's head. After a [`shutdown`](Self::shutdown) it is dropped.
    pub fn adopt(&self, stream: Adopted, unread: Vec<u8>, extensions: Extensions, ticket: S::Ticket) {
        if self.0.abort.is_cancelled() {
            return;
        }
        let connection = open(&self.0, stream.into(), Vec::new(), unread, extensions, ticket);
        self.spawn(Task::Open(connection));
    }

    /// Ends a connection that somebody else accepted and upgraded with `close`, in a task of its own: the other half
    /// of [`Admission::Close`](crate::Admission::Close). The peer gets as long as a handshake to take it.
    pub fn adopt_and_close(&self, stream: Adopted, close: CloseReason) {
        let stream = Transfer::from(stream).into_stream();
        let timeout = self.0.shared.limits.handshake_timeout();
        let stop = self.0.stop.clone();
        self.0.tasks.spawn(async move {
            tokio::select! {
                biased;
                // Whether the peer read it is its own business.
                _ = tokio::time::timeout(timeout, farewell(stream, Vec::new(), Some(close))) => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// A new fan-out without members.
    pub fn fanout<M: Member>(&self) -> Fanout<M> {
        self.0.fanouts.fanout()
    }

    /// Applies other settings to everything that happens from now on.
    pub fn reconfigure(&self, config: &TransportConfig) {
        self.0.shared.limits.set(config);
    }

    /// What the transport counts.
    pub fn stats(&self) -> &TransportStats {
        &self.0.shared.stats
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.0.shared.conns.len()
    }

    /// Whether it still accepts connections.
    pub fn is_accepting(&self) -> bool {
        !self.0.stop.is_cancelled()
    }

    /// Stops accepting, closes every connection with `close` after what waits in its queue, and waits for them; who
    /// is not done after `deadline` is cut off. When it returns every task has ended.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the transport closing; calling it again goes on.
    pub async fn shutdown(&self, close: &CloseReason, deadline: Duration) {
        let inner = &*self.0;
        inner.stop.cancel();
        inner.tasks.close();
        let farewell = async {
            // A handshake may have slipped through: everybody is asked until nobody is left.
            loop {
                close_all(&inner.shared, close, DisconnectReason::ServerShutdown);
                tokio::select! {
                    () = inner.tasks.wait() => return,
                    () = tokio::time::sleep(FAREWELL_INTERVAL) => {}
                }
            }
        };
        if tokio::time::timeout(deadline, farewell).await.is_err() {
            inner.abort.cancel();
            // Here too somebody may just be opening.
            loop {
                abort_all(&inner.shared);
                tokio::select! {
                    () = inner.tasks.wait() => break,
                    () = tokio::time::sleep(FAREWELL_INTERVAL) => {}
                }
            }
        }
        inner.abort.cancel();
        inner.keepers_stop.cancel();
        inner.keepers.close();
        inner.keepers.wait().await;
    }

    async fn accept_all(&self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.0.stop.cancelled() => return,
            };
            match accepted {
                Ok((socket, remote)) => self.take(socket, remote),
                Err(e) => {
                    // Out of descriptors, mostly: trying again at once would only burn the processor.
                    tracing::warn!(error = %e, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn take(&self, socket: TcpStream, remote: std::net::SocketAddr) {
        let Ok(local) = socket.local_addr() else { return };
        let tls = self.0.tls.read().clone();
        let peer = Peer { remote, local, is_tls: tls.is_some() };
        self.spawn(Task::Handshake(Box::pin(handshake(Arc::clone(&self.0), socket, tls, peer))));
    }

    fn spawn(&self, task: Task<S>) {
        self.0.tasks.spawn(task);
    }
}

impl<S: Service> fmt::Debug for Transport<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").field("connections", &self.connections()).finish_non_exhaustive()
    }
}

/// A stream that somebody else accepted.
pub enum Adopted {
    /// Plain TCP: any thread may write to it.
    Tcp(TcpStream),
    /// Anything else: its task writes.
    Stream(Stream),
}

impl From<Adopted> for Transfer {
    fn from(stream: Adopted) -> Self {
        match stream {
            Adopted::Tcp(tcp) => {
                // It was a courtesy to small messages; without it they are only slower.
                let _ = tcp.set_nodelay(true);
                Self::Tcp(tcp)
            }
            Adopted::Stream(stream) => Self::Stream(stream),
        }
    }
}

impl fmt::Debug for Adopted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp(_) => "Tcp(..)",
            Self::Stream(_) => "Stream(..)",
        })
    }
}

/// A connection's task from accept to end. The handshake is boxed because a task is as large as its largest state.
enum Task<S: Service> {
    Handshake(Handshake<S::Handler>),
    Open(Connection<S::Handler>),
}

impl<S: Service> Future for Task<S> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Self::Handshake(handshake) = &mut *self {
            match ready!(handshake.as_mut().poll(cx)) {
                Some(connection) => self.set(Self::Open(*connection)),
                None => return Poll::Ready(()),
            }
        }
        match &mut *self {
            Self::Open(connection) => Pin::new(connection).poll(cx),
            Self::Handshake(_) => Poll::Ready(()),
        }
    }
}

/// Looks after heartbeats and deadlines of all connections, some at a time.
async fn sweep(shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        let limits = &shared.limits;
        let shortest = limits.ping_interval().min(limits.pong_timeout()).min(limits.write_timeout());
        let pause = Duration::from_millis((shortest / 4).into()).clamp(MIN_SWEEP_INTERVAL, MAX_SWEEP_INTERVAL);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
        let mut start = 0;
        while let Some(conns) = shared.conns.slice(start, SWEEP_SLICE) {
            start += SWEEP_SLICE;
            let now = shared.now();
            for conn in conns {
                conn.sweep(now);
            }
            tokio::task::yield_now().await;
        }
    }
}

/// Connections that one slice of a sweep looks at.
const SWEEP_SLICE: usize = 256;

/// A sweep is four times finer than the shortest timeout within these bounds, which also bound its error.
const MIN_SWEEP_INTERVAL: Duration = Duration::from_millis(10);
const MAX_SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// How often a shutdown looks for connections that opened meanwhile.
const FAREWELL_INTERVAL: Duration = Duration::from_millis(100);

/// How long to wait after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
