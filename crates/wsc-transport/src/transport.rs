//! The transport as a whole: what it owns, and how it ends.

use std::{
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, OnceLock, Weak},
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Request, Response};
use parking_lot::RwLock;
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wsc_protocol::CloseReason;

use crate::{
    budget::shed,
    config::TransportConfig,
    connection::{Connection, Stream, abort_all},
    drain::{Drain, Farewell, Pace},
    fanout::{Fanout, Fanouts, Member},
    flusher::Flushers,
    handshake::{Extensions, Handshake, PendingHandshakes, Transfer, Turns, farewell, handshake, open},
    service::{FanoutReport, Peer, Service},
    shared::Shared,
    stats::{TransportStats, count},
    tls::TlsConfig,
};

/// Accepts connections, keeps them, and writes to them. A cheap handle; all handles are one transport.
pub struct Transport<S: Service>(Arc<Inner<S>>);

pub(crate) struct Inner<S> {
    pub(crate) service: Arc<S>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) pending: PendingHandshakes,
    pub(crate) turns: Turns,
    /// Where upgrades are expected, such as `/ws`.
    pub(crate) path: String,
    /// No new connections.
    pub(crate) stop: CancellationToken,
    /// No connections at all; those of the hub's own are aborted one by one, they keep no token.
    pub(crate) abort: CancellationToken,
    fanouts: Fanouts,
    tls: RwLock<Option<TlsConfig>>,
    /// Listeners and connections. The two below end after them.
    tasks: TaskTracker,
    /// Flushers, and who looks after deadlines and memory.
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
        keepers.spawn(shed(Arc::clone(&shared), keepers_stop.clone()));
        Self(Arc::new(Inner {
            service,
            shared,
            pending: PendingHandshakes::default(),
            turns: Turns::default(),
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

    /// Accepts connections from `listener` in a task of its own, as long as [`is_accepting`](Self::is_accepting).
    pub fn listen(&self, listener: TcpListener) {
        let transport = self.clone();
        self.0.tasks.spawn(async move { transport.accept_all(listener).await });
    }

    /// From now on new connections speak TLS with this certificate. Open ones stay as they are, and handshakes that have
    /// begun end as they began.
    pub fn set_tls(&self, tls: &TlsConfig) {
        *self.0.tls.write() = Some(tls.clone());
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
        let shared = &self.0.shared;
        let patience = || shared.limits.ping_interval() + shared.limits.pong_timeout();
        let before = patience();
        shared.limits.set(config);
        if patience() < before {
            // Who was silent for longer than is allowed now was not asked as often, either.
            let mut start = 0;
            while let Some(conns) = shared.conns.slice(start, SWEEP_SLICE) {
                start += SWEEP_SLICE;
                conns.iter().for_each(|conn| conn.pardon());
            }
        }
        // There may be too much for a budget that has become smaller.
        shared.budget.note(shared.stats.queue_bytes(), config.queue_total_bytes);
    }

    /// What the transport counts.
    pub fn stats(&self) -> &TransportStats {
        &self.0.shared.stats
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.0.shared.conns.len()
    }

    /// Whether so much waits in all queues that newcomers should be refused: from 7/8 of
    /// [`queue_total_bytes`](TransportConfig::queue_total_bytes) on, until it is less than 3/4.
    pub fn is_pressed(&self) -> bool {
        let shared = &self.0.shared;
        // What was noted last need not have been the latest.
        shared.budget.note(shared.stats.queue_bytes(), shared.limits.queue_total_bytes());
        shared.budget.is_pressed()
    }

    /// Whether it still accepts connections: until a [`shutdown`](Self::shutdown) begins, or until a
    /// [`drain`](Self::drain) has parted with everybody.
    pub fn is_accepting(&self) -> bool {
        !self.0.stop.is_cancelled()
    }

    /// Parts with every connection at the plan's rate, each after what waits in its queue, for which it gets as long
    /// as the write timeout. Who is not done at the plan's deadline is cut off. When it returns every task has ended.
    ///
    /// Listeners stay open until all connections are closed, so that requests are still answered: whether newcomers are
    /// refused meanwhile is up to [`Service::admit`]. Those who come in all the same are closed too.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the connections that were not closed yet open, and the transport accepting; a second
    /// `drain` or a [`shutdown`](Self::shutdown) goes on.
    pub async fn drain(&self, plan: Drain) {
        let shared = &*self.0.shared;
        let deadline = Instant::now() + plan.deadline.min(A_YEAR);
        let write_timeout = Duration::from_millis(shared.limits.write_timeout().into());
        let pace = Pace::new(&plan, self.connections(), write_timeout);
        let spread = plan.spread.unwrap_or_else(|| pace.spread());
        tracing::info!(?pace, deadline = ?plan.deadline, "draining");
        let farewell = Farewell { close: plan.close, spread: Some(spread) };
        // Who is left at the deadline is cut off below.
        let _ = timeout_at(deadline, farewell.bid_in_turn(shared, &pace)).await;
        self.finish(&farewell, deadline).await;
    }

    /// Stops accepting, closes every connection with `close` after what waits in its queue, and waits for them; who
    /// is not done after `deadline` is cut off. When it returns every task has ended. See [`drain`](Self::drain) for
    /// a gentler way.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the transport closing; calling it again goes on.
    pub async fn shutdown(&self, close: &CloseReason, deadline: Duration) {
        let farewell = Farewell { close: close.clone(), spread: None };
        self.finish(&farewell, Instant::now() + deadline.min(A_YEAR)).await;
    }

    /// Ends everything by `deadline`.
    async fn finish(&self, farewell: &Farewell, deadline: Instant) {
        let inner = &*self.0;
        inner.stop.cancel();
        inner.tasks.close();
        let goodbyes = async {
            // A handshake may have slipped through: everybody is asked until nobody is left.
            loop {
                farewell.bid_all(&inner.shared);
                tokio::select! {
                    () = inner.tasks.wait() => return,
                    () = tokio::time::sleep(FAREWELL_INTERVAL) => {}
                }
            }
        };
        if timeout_at(deadline, goodbyes).await.is_err() {
            tracing::warn!(connections = self.connections(), "cutting off who has not gone by the deadline");
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
        let mut is_failing = false;
        for accepts in 1_u64.. {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.0.stop.cancelled() => return,
            };
            match accepted {
                Ok((socket, remote)) => {
                    if std::mem::take(&mut is_failing) {
                        tracing::info!("connections are accepted again");
                    }
                    self.take(socket, remote);
                }
                // Who gave up before its turn came hurts nobody else.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(e) => {
                    count(&self.0.shared.stats.accepts_failed);
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::warn!(error = %e, "cannot accept connections");
                    }
                    // Out of descriptors, mostly: trying again at once would only burn the processor. They wait in the
                    // kernel.
                    tokio::select! {
                        () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                        () = self.0.stop.cancelled() => return,
                    }
                }
            }
            if accepts.is_multiple_of(ACCEPTS_PER_TURN) {
                // Others run, and then those who were let in last. So no more are let in than can be dealt with: the
                // rest wait in the kernel, where they cost nothing and are not cut as the oldest.
                tokio::task::yield_now().await;
                self.0.turns.pass().await;
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

/// How often the end looks for connections that opened meanwhile.
const FAREWELL_INTERVAL: Duration = Duration::from_millis(100);

/// As good as no deadline, and yet a moment that clocks can name.
const A_YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// So many are let in before others run.
const ACCEPTS_PER_TURN: u64 = 16;

/// How long to wait after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
