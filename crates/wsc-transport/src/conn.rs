//! The state that a connection's handles share with its task: who may write, what waits, how far its life has come.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::{io::AsyncWrite, net::TcpStream};
use wsc_protocol::{CloseCode, CloseReason, DisconnectReason, FailureReason};

use crate::{
    budget,
    config::QueuePolicy,
    connection::Stream,
    frame::{self, Encoded, close_frame},
    handshake::Extensions,
    outbound::{OutboundState, Sent, Settle},
    queue::{Census, Class, Entry, Kind, Queue, Settled, gap_frame},
    shared::Shared,
    stats::count,
};

/// How far a connection's life has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Messages flow.
    Open,
    /// The close frame is on its way; nothing is taken any more.
    Closing,
    /// The close frame is written; the peer may answer it.
    Lingering,
    /// Over.
    Dead,
}

/// What a connection's handles and its task share.
pub(crate) struct Conn {
    pub(crate) shared: Arc<Shared>,
    /// Where any thread may write; `None` where the stream belongs to the task (TLS, foreign streams).
    pub(crate) tcp: Option<TcpStream>,
    /// When the peer was last heard of, in [`Shared::now`] ticks.
    pub(crate) last_read: AtomicU32,
    /// When it was last pinged, but for the lowest bit: that says whether messages may be compressed. In a field of
    /// its own this bit would cost every connection eight bytes.
    last_ping: AtomicU32,
    state: Mutex<State>,
}

struct State {
    /// The backlog; while it exists the task is responsible for writing.
    queue: Option<Box<Queue>>,
    waker: Option<Waker>,
    /// Since when nothing moved: the backlog, or in later phases the farewell. In ticks.
    since: u32,
    /// Somebody is writing to the socket without the lock; everybody else queues.
    writing: bool,
    phase: Phase,
    cause: Option<DisconnectReason>,
}

impl State {
    fn queued(&self) -> (usize, u64) {
        self.queue.as_ref().map_or((0, 0), |q| (q.bytes(), q.messages()))
    }
}

/// A frame in the form that its owner has it in.
#[derive(Clone, Copy)]
pub(crate) enum Payload<'p> {
    Borrowed(&'p [u8]),
    Shared(&'p Bytes),
}

impl Payload<'_> {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }

    fn to_bytes(self) -> Bytes {
        match self {
            Self::Borrowed(bytes) => Bytes::copy_from_slice(bytes),
            Self::Shared(bytes) => bytes.clone(),
        }
    }
}

pub(crate) type Track<'t> = &'t mut dyn FnMut() -> Option<Arc<dyn Settle>>;

impl Conn {
    /// A connection whose writers all wait until [`release`](Self::release), with the first bytes to write.
    pub(crate) fn held(
        shared: Arc<Shared>,
        tcp: Option<TcpStream>,
        first: Vec<u8>,
        extensions: Extensions,
    ) -> Arc<Self> {
        let now = shared.now();
        let mut settled = Settled::default();
        let queue =
            if first.is_empty() { Queue::default() } else { Queue::opening_with(first.into(), now, &mut settled) };
        let state = State {
            queue: Some(Box::new(queue)),
            waker: None,
            since: now,
            writing: true,
            phase: Phase::Open,
            cause: None,
        };
        shared.settle(settled);
        Arc::new(Self {
            shared,
            tcp,
            last_read: AtomicU32::new(now),
            last_ping: AtomicU32::new(now & !1 | u32::from(extensions.deflate)),
            state: Mutex::new(state),
        })
    }

    /// Lets writers write.
    pub(crate) fn release(&self) {
        self.state.lock().writing = false;
    }

    /// Whether messages may be compressed in both directions.
    pub(crate) fn deflates(&self) -> bool {
        self.last_ping.load(Relaxed) & 1 == 1
    }

    /// The form in which this peer gets a frame.
    pub(crate) fn form_of<'p>(&self, frame: &'p Encoded<'_>) -> Payload<'p> {
        let threshold = self.shared.limits.compression_threshold();
        match self.deflates().then(|| frame.packed(threshold)).flatten() {
            Some(packed) => Payload::Borrowed(packed),
            None => Payload::Borrowed(frame.plain()),
        }
    }

    pub(crate) fn submit(
        &self,
        payload: Payload<'_>,
        kind: Kind,
        track: Option<Track<'_>>,
        allowed: impl FnOnce() -> bool,
    ) -> Option<Sent> {
        let mut settled = Settled::default();
        let mut state = self.state.lock();
        if !allowed() {
            return None;
        }
        if state.phase != Phase::Open {
            drop(state);
            return Some(Sent::Closed);
        }
        if let Some(tcp) = &self.tcp
            && !state.writing
            && state.queue.is_none()
        {
            state.writing = true;
            // No lock is held over a write: who comes now joins the queue.
            let result = MutexGuard::unlocked(&mut state, || write_once(tcp, payload.as_slice()));
            state.writing = false;
            match result {
                Ok(written) if written == payload.as_slice().len() => {
                    let waker = state.queue.is_some().then(|| state.waker.clone()).flatten();
                    drop(state);
                    let stats = &self.shared.stats;
                    stats.bytes_out.fetch_add(written as u64, Relaxed);
                    wake(waker);
                    return Some(Sent::Written);
                }
                Ok(written) => {
                    self.shared.stats.bytes_out.fetch_add(written as u64, Relaxed);
                    if state.phase == Phase::Dead {
                        // It ended meanwhile: nobody is left who would write or settle the rest.
                        return Some(Sent::Closed);
                    }
                    let entry = self.entry(payload.to_bytes(), kind).tracked_by(track.and_then(|t| t()));
                    self.queue_of(&mut state).push_rest(entry, written, &mut settled);
                    return Some(self.finish_queued(state, settled, true));
                }
                Err(_) => {
                    self.die(state, DisconnectReason::WriteError);
                    return Some(Sent::Closed);
                }
            }
        }
        let len = payload.as_slice().len();
        if !self.admit(&mut state, kind, len, &mut settled) {
            // Where the policy closed the connection its task has a farewell to write.
            let waker = if state.phase == Phase::Open { None } else { state.waker.clone() };
            drop(state);
            self.shared.settle(settled);
            wake(waker);
            return Some(Sent::Dropped);
        }
        let is_new = state.queue.is_none();
        let entry = self.entry(payload.to_bytes(), kind).tracked_by(track.and_then(|t| t()));
        self.queue_of(&mut state).push(entry, &mut settled);
        // While somebody writes it is up to them to wake the task afterwards.
        let wake_task = is_new && !state.writing;
        Some(self.finish_queued(state, settled, wake_task))
    }

    pub(crate) fn submit_with(&self, make: impl FnOnce() -> Option<Vec<u8>>) -> Sent {
        let mut settled = Settled::default();
        let mut state = self.state.lock();
        let Some(frame) = make() else { return Sent::Dropped };
        if state.phase != Phase::Open {
            return Sent::Closed;
        }
        if !self.admit(&mut state, Kind::MUST, frame.len(), &mut settled) {
            let waker = state.waker.clone();
            drop(state);
            self.shared.settle(settled);
            wake(waker);
            return Sent::Dropped;
        }
        let entry = self.entry(frame.into(), Kind::MUST);
        self.queue_of(&mut state).push(entry, &mut settled);
        drop(state);
        self.shared.settle(settled);
        self.flush_here();
        Sent::Queued
    }

    fn entry(&self, bytes: Bytes, kind: Kind) -> Entry {
        Entry::new(bytes, kind, self.shared.now())
    }

    /// Whether a frame may join the queue. Where it may not, the policy has been applied.
    fn admit(&self, state: &mut State, kind: Kind, len: usize, settled: &mut Settled) -> bool {
        let Some(queue) = state.queue.as_mut().filter(|q| q.bytes() > 0 && kind.class != Class::Control) else {
            return true;
        };
        let excess = self.excess(queue, len, settled);
        if excess == 0 {
            return true;
        }
        let stats = &self.shared.stats;
        let policy = self.shared.limits.queue_policy();
        let counter = match (kind.class, policy) {
            // Somebody keeps it.
            (Class::Reliable, _) | (Class::Direct, QueuePolicy::Spill) => {
                count(&stats.slow_spill);
                return false;
            }
            (_, QueuePolicy::Spill) => &stats.slow_spill,
            (_, QueuePolicy::DropOldest) => &stats.slow_drop_oldest,
            (Class::Shared | Class::Direct, QueuePolicy::DropNewest) => &stats.slow_drop_newest,
            _ => &stats.slow_disconnect,
        };
        if matches!(policy, QueuePolicy::DropOldest | QueuePolicy::Spill) {
            // Also for a reply: what is never dropped fits where messages can make room for it.
            queue.make_room(excess, policy == QueuePolicy::Spill, settled);
            if queue.bytes() == 0 || self.excess(queue, len, settled) == 0 {
                count(counter);
                return true;
            }
        }
        if kind.class == Class::Must || policy == QueuePolicy::Disconnect {
            count(&stats.slow_disconnect);
            let close = CloseReason::new(CloseCode::SLOW_CONSUMER, "slow consumer");
            self.cut_off(state, &close, DisconnectReason::SlowConsumer, settled);
            return false;
        }
        count(counter);
        // Whoever sends a single message may try it again; it says itself when it gives up.
        if kind.class == Class::Shared {
            queue.refuse(len, kind.deliveries);
        }
        false
    }

    /// By how many bytes `len` more are too many, for this queue or for all together.
    fn excess(&self, queue: &Queue, len: usize, settled: &Settled) -> usize {
        let limits = &self.shared.limits;
        let own = (queue.bytes() + len).saturating_sub(limits.queue_max_bytes());
        // What this step has changed so far is not in the sum yet.
        let all = usize::try_from(self.shared.stats.queue_bytes() + settled.bytes).unwrap_or(0);
        own.max((all + len).saturating_sub(budget::backstop(limits.queue_total_bytes())))
    }

    /// Drops the backlog for the sake of all others, and closes the connection unless it is closing already.
    pub(crate) fn shed(&self) {
        let mut settled = Settled::default();
        let mut state = self.state.lock();
        match state.phase {
            Phase::Open => {
                count(&self.shared.stats.slow_shed);
                let close = CloseReason::new(CloseCode::SLOW_CONSUMER, "slow consumer, and memory is short");
                self.cut_off(&mut state, &close, DisconnectReason::SlowConsumer, &mut settled);
            }
            // It would be written still; the close frame alone will do.
            _ => {
                if let Some(queue) = &mut state.queue {
                    queue.cut(FailureReason::QueueFull, &mut settled);
                }
            }
        }
        let waker = state.waker.clone();
        drop(state);
        self.shared.settle(settled);
        wake(waker);
    }

    /// Drops the backlog and says farewell, for a peer that does not keep up.
    fn cut_off(&self, state: &mut State, close: &CloseReason, cause: DisconnectReason, settled: &mut Settled) {
        self.queue_of(state).cut(FailureReason::QueueFull, settled);
        self.say_farewell(state, close, cause, settled);
    }

    fn say_farewell(&self, state: &mut State, close: &CloseReason, cause: DisconnectReason, settled: &mut Settled) {
        self.say_last(state, close_frame(close), cause, settled);
    }

    fn say_last(&self, state: &mut State, frame: Bytes, cause: DisconnectReason, settled: &mut Settled) {
        let entry = self.entry(frame, Kind::CLOSE);
        self.queue_of(state).push_last(entry, settled);
        state.phase = Phase::Closing;
        state.cause.get_or_insert(cause);
        state.since = self.shared.now();
    }

    pub(crate) fn close(&self, close: &CloseReason, cause: DisconnectReason) -> bool {
        let mut settled = Settled::default();
        let mut state = self.state.lock();
        if state.phase != Phase::Open {
            return false;
        }
        self.say_farewell(&mut state, close, cause, &mut settled);
        let waker = state.waker.clone();
        drop(state);
        self.shared.settle(settled);
        wake(waker);
        true
    }

    /// Answers the peer's close frame, or sends a control frame, with bytes that are framed already.
    pub(crate) fn send_control(&self, frame: &[u8]) {
        self.submit(Payload::Borrowed(frame), Kind::CONTROL, None, always);
    }

    /// The peer said goodbye: answers with `reply` after what waits, and takes nothing more.
    pub(crate) fn answer_close(&self, reply: Vec<u8>) {
        let mut settled = Settled::default();
        let mut state = self.state.lock();
        if state.phase != Phase::Open {
            return;
        }
        self.say_last(&mut state, reply.into(), DisconnectReason::ClientRequest, &mut settled);
        drop(state);
        self.shared.settle(settled);
    }

    fn queue_of<'s>(&self, state: &'s mut State) -> &'s mut Queue {
        let since = &mut state.since;
        state.queue.get_or_insert_with(|| {
            *since = self.shared.now();
            Box::default()
        })
    }

    fn finish_queued(&self, state: MutexGuard<'_, State>, settled: Settled, wake_task: bool) -> Sent {
        let waker = if wake_task { state.waker.clone() } else { None };
        drop(state);
        self.shared.settle(settled);
        wake(waker);
        Sent::Queued
    }

    /// Ends the connection without a farewell.
    fn die(&self, mut state: MutexGuard<'_, State>, cause: DisconnectReason) {
        state.phase = Phase::Dead;
        state.cause.get_or_insert(cause);
        let waker = state.waker.clone();
        drop(state);
        wake(waker);
    }

    /// Ends the connection at once, from outside of its task.
    pub(crate) fn abort(&self, cause: DisconnectReason) {
        self.die(self.state.lock(), cause);
    }

    /// Writes what waits, on the caller's thread, as far as the kernel takes it; the task does the rest.
    fn flush_here(&self) {
        match &self.tcp {
            Some(tcp) => {
                match self.flush_once(|slices| tcp.try_write_vectored(slices)) {
                    // Who writes now sees the queue afterwards and wakes the task.
                    Ok(Flush::Done | Flush::Busy) => {}
                    Ok(Flush::Progress | Flush::Blocked) | Err(_) => self.wake_task(),
                }
            }
            None => self.wake_task(),
        }
    }

    fn wake_task(&self) {
        let waker = self.state.lock().waker.clone();
        wake(waker);
    }

    /// One write of what waits.
    fn flush_once(&self, write: impl FnOnce(&[io::IoSlice<'_>]) -> io::Result<usize>) -> io::Result<Flush> {
        let mut settled = Settled::default();
        let mut state = self.state.lock();
        if state.writing {
            return Ok(Flush::Busy);
        }
        let Some(queue) = state.queue.as_mut().filter(|q| !q.is_empty()) else {
            state.queue = None;
            return Ok(Flush::Done);
        };
        let bytes = queue.take_slices(MAX_SLICES, self.shared.now(), &mut settled);
        state.writing = true;
        let result = MutexGuard::unlocked(&mut state, || {
            let slices: Vec<io::IoSlice<'_>> = bytes.iter().map(|b| io::IoSlice::new(b)).collect();
            match write(&slices) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(0),
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                other => other,
            }
        });
        state.writing = false;
        let written = result.as_ref().copied().unwrap_or(0);
        let mut flush = Flush::Blocked;
        if let Some(queue) = state.queue.as_mut() {
            queue.wrote(written, &mut settled);
            if queue.is_empty() {
                state.queue = None;
                // The task may have found us writing the farewell: it goes on when it is written, so it must be told.
                flush = if state.phase == Phase::Open { Flush::Done } else { Flush::Progress };
            } else if written > 0 {
                flush = Flush::Progress;
            }
        }
        if written > 0 && state.phase == Phase::Open {
            state.since = self.shared.now();
        }
        drop(state);
        self.shared.stats.bytes_out.fetch_add(written as u64, Relaxed);
        self.shared.settle(settled);
        result.map(|_| flush)
    }

    /// What is written first when somebody writes.
    #[cfg(test)]
    pub(crate) fn first_queued(&self) -> Option<Bytes> {
        let slices = self.state.lock().queue.as_mut()?.take_slices(1, 0, &mut Settled::default());
        slices.into_iter().next()
    }

    /// See [`Outbound::tell_gap`](crate::Outbound::tell_gap).
    pub(crate) fn tell_gap(&self, bytes: usize) {
        let mut state = self.state.lock();
        match &mut state.queue {
            Some(queue) => queue.refuse(bytes, 1),
            None => {
                drop(state);
                self.submit(Payload::Borrowed(&gap_frame(1, bytes as u64)), Kind::MUST, None, always);
            }
        }
    }

    /// Bytes and messages that wait; `None` while somebody holds the state.
    pub(crate) fn try_queued(&self) -> Option<(usize, u64)> {
        self.state.try_lock().map(|state| state.queued())
    }

    /// Bytes that wait.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.state.lock().queue.as_ref().map_or(0, |queue| queue.bytes())
    }

    /// Bytes and messages that wait.
    pub(crate) fn queued(&self) -> (usize, u64) {
        self.state.lock().queued()
    }

    /// How things stand, in full.
    pub(crate) fn state(&self) -> OutboundState {
        let now = self.shared.now();
        let state = self.state.lock();
        let Census { lanes: [high, normal, low], oldest, lost } =
            state.queue.as_ref().map_or_else(Census::default, |q| q.census());
        OutboundState {
            is_open: state.phase == Phase::Open,
            high,
            normal,
            low,
            oldest_ms: oldest.map_or(0, |since| elapsed(since, now)),
            stalled_ms: if state.queue.is_some() { elapsed(state.since, now) } else { 0 },
            silent_ms: elapsed(self.last_read.load(Relaxed), now),
            is_compressed: self.deflates(),
            lost,
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.state.lock().phase == Phase::Open
    }

    /// Milliseconds since the peer was last heard of.
    pub(crate) fn silent_for_ms(&self) -> u32 {
        elapsed(self.last_read.load(Relaxed), self.shared.now())
    }

    // ---- what only the connection's task calls ----

    /// Notes whom to wake, and says how things stand.
    pub(crate) fn attend(&self, cx: &Context<'_>) -> (Phase, bool) {
        let mut state = self.state.lock();
        match &mut state.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        (state.phase, state.queue.is_some())
    }

    /// Writes until nothing waits.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>, stream: Option<&mut Stream>) -> Poll<io::Result<()>> {
        if let Some(stream) = stream {
            return self.poll_flush_stream(cx, stream);
        }
        let Some(tcp) = &self.tcp else { return Poll::Ready(Ok(())) };
        for _ in 0..WRITES_PER_POLL {
            ready!(tcp.poll_write_ready(cx))?;
            match self.flush_once(|slices| tcp.try_write_vectored(slices))? {
                Flush::Done => return Poll::Ready(Ok(())),
                // Who writes now sees the queue afterwards and wakes us.
                Flush::Busy => return Poll::Pending,
                Flush::Blocked | Flush::Progress => {}
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_flush_stream(&self, cx: &mut Context<'_>, stream: &mut Stream) -> Poll<io::Result<()>> {
        for _ in 0..WRITES_PER_POLL {
            let flush = self.flush_once(|slices| match Pin::new(&mut *stream).poll_write_vectored(cx, slices) {
                Poll::Ready(result) => result,
                Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
            })?;
            match flush {
                Flush::Done => return Pin::new(stream).poll_flush(cx),
                Flush::Blocked | Flush::Busy => return Poll::Pending,
                Flush::Progress => {}
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// The farewell is written: waits for the peer's. Returns whether the wait begins now.
    pub(crate) fn linger(&self) -> bool {
        let mut state = self.state.lock();
        let begins = state.phase == Phase::Closing && state.queue.is_none();
        if begins {
            state.phase = Phase::Lingering;
            state.since = self.shared.now();
        }
        begins
    }

    /// Ends everything; returns the cause.
    pub(crate) fn end(&self, fallback: DisconnectReason) -> DisconnectReason {
        let mut settled = Settled::default();
        let mut state = self.state.lock();
        state.phase = Phase::Dead;
        state.waker = None;
        let queue = state.queue.take();
        let cause = *state.cause.get_or_insert(fallback);
        drop(state);
        if let Some(queue) = queue {
            queue.end(&mut settled);
        }
        self.shared.settle(settled);
        cause
    }

    /// The peer was heard of.
    pub(crate) fn heard(&self) {
        self.last_read.store(self.shared.now(), Relaxed);
    }

    /// What it has been silent so far does not count.
    pub(crate) fn pardon(&self) {
        let (heard, now) = (self.last_read.load(Relaxed), self.shared.now());
        if elapsed(heard, now) > 0 {
            // Where it is heard of at this moment, that is just as good.
            let _ = self.last_read.compare_exchange(heard, now, Relaxed, Relaxed);
        }
    }

    /// Nobody reads for a while: the peer cannot be called silent until [`heard`](Self::heard).
    pub(crate) fn stop_listening(&self) {
        self.last_read.store(self.shared.now().wrapping_add(FAR_FUTURE), Relaxed);
    }

    /// Why it ends, where that is known.
    pub(crate) fn cause(&self) -> Option<DisconnectReason> {
        self.state.lock().cause
    }

    /// Looks after heartbeat and deadlines; called by the sweep every now and then.
    pub(crate) fn sweep(&self, now: u32) {
        let limits = &self.shared.limits;
        let mut settled = Settled::default();
        let mut state = self.state.lock();
        let stalled_for = elapsed(state.since, now);
        match state.phase {
            Phase::Open => {
                let is_stalled = state.queue.is_some() && stalled_for >= limits.write_timeout();
                let silent_for = elapsed(self.last_read.load(Relaxed), now);
                let farewell = if is_stalled {
                    Some((CloseCode::WRITE_TIMEOUT, "write timeout", DisconnectReason::WriteTimeout))
                } else if silent_for >= limits.ping_interval() + limits.pong_timeout() {
                    Some((CloseCode::NO_PONG, "no pong", DisconnectReason::HeartbeatTimeout))
                } else {
                    None
                };
                if let Some((code, reason, cause)) = farewell {
                    self.cut_off(&mut state, &CloseReason::new(code, reason), cause, &mut settled);
                    let waker = state.waker.clone();
                    drop(state);
                    self.shared.settle(settled);
                    wake(waker);
                    return;
                }
                drop(state);
                if elapsed(self.last_ping.load(Relaxed), now) >= limits.ping_interval() {
                    self.last_ping.store(now & !1 | u32::from(self.deflates()), Relaxed);
                    self.submit(Payload::Shared(&frame::PING), Kind::CONTROL, None, always);
                }
            }
            Phase::Closing => {
                // Who was cut off for not reading has had its time: the farewell gets a moment, not another timeout.
                let is_slow = state.cause.is_some_and(is_slow);
                let patience = if is_slow { LINGER_MS.min(limits.write_timeout()) } else { limits.write_timeout() };
                if stalled_for >= patience {
                    self.die(state, DisconnectReason::WriteTimeout);
                }
            }
            Phase::Lingering if stalled_for >= LINGER_MS.min(limits.write_timeout()) => {
                self.die(state, DisconnectReason::ClientRequest);
            }
            Phase::Lingering | Phase::Dead => {}
        }
    }
}

/// Whether a connection is closed because its peer does not read.
pub(crate) fn is_slow(cause: DisconnectReason) -> bool {
    matches!(cause, DisconnectReason::SlowConsumer | DisconnectReason::WriteTimeout)
}

enum Flush {
    /// Nothing waits.
    Done,
    /// The kernel took some.
    Progress,
    /// The kernel took nothing.
    Blocked,
    /// Somebody else is writing.
    Busy,
}

fn write_once(tcp: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    // Without a look at tokio's readiness, which is a cache miss for each member of a fan-out. Where the socket turns
    // out to be full the connection's task looks.
    #[cfg(target_os = "linux")]
    let result = rustix::net::send(tcp, bytes, rustix::net::SendFlags::NOSIGNAL).map_err(io::Error::from);
    #[cfg(not(target_os = "linux"))]
    let result = tcp.try_write(bytes);
    match result {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(0),
        other => other,
    }
}

/// Ticks from `then` to `now`, which may be a little older: other threads are ahead of a sweep's clock.
fn elapsed(then: u32, now: u32) -> u32 {
    (now.wrapping_sub(then) as i32).max(0) as u32
}

/// What every frame that is not for a fan-out's member is allowed by.
pub(crate) fn always() -> bool {
    true
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// As many pieces as one `writev` takes.
const MAX_SLICES: usize = 32;

/// After so many writes a connection turns to reading: who feeds its queue as fast as the peer empties it must not
/// keep it from hearing the peer.
const WRITES_PER_POLL: usize = 8;

/// Twelve days of ticks, which still compare as later.
const FAR_FUTURE: u32 = u32::MAX / 4;

/// How long a peer may take to answer our close frame, and one that does not read to take it.
const LINGER_MS: u32 = 2_000;

#[cfg(test)]
mod tests;
