//! The one task of a client: connects, serves the connection, connects again.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    select,
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use crate::{
    Cause, Connected, Event,
    backoff::Schedule,
    cause::Verdict,
    connect::Connector,
    liveness::{Alarm, Liveness},
    pending::Pending,
    queue::EventSender,
    rooms::Rooms,
    seen::{Seen, Sighting},
    socket::{Socket, Step},
    wire::{self, Inbound, MAX_SETTLED, Settlement},
};

/// Something to be sent.
#[derive(Debug)]
pub(crate) enum Command {
    /// A request whose reply somebody waits for.
    Request { id: u64, frame: String },
    /// A frame without a reply.
    Send { frame: String },
    /// Messages were settled by the application.
    Settle { ids: Vec<String>, settlement: Settlement, frame: String },
}

/// How things stand.
#[derive(Clone, Debug)]
pub(crate) enum Status {
    /// No connection at the moment.
    Connecting,
    Connected(Arc<Connected>),
    /// No connection any more.
    Closed(Cause),
}

/// What the client says about deliveries by itself: that the application took them, or once more what it said before.
#[derive(Debug, Default)]
pub(crate) struct Settlements {
    waiting: Mutex<VecDeque<(String, Settlement)>>,
    more: Notify,
}

impl Settlements {
    pub(crate) fn push(&self, id: String, settlement: Settlement) {
        self.lock().push_back((id, settlement));
        self.more.notify_one();
    }

    /// The next ones that go into one frame.
    fn take(&self) -> Option<(Vec<String>, Settlement)> {
        let mut waiting = self.lock();
        let (id, settlement) = waiting.pop_front()?;
        let mut ids = vec![id];
        while ids.len() < MAX_SETTLED
            && let Some((id, _)) = waiting.pop_front_if(|(_, next)| *next == settlement)
        {
            ids.push(id);
        }
        Some((ids, settlement))
    }

    /// A hub that sends and does not read gets no further.
    fn is_full(&self) -> bool {
        self.lock().len() >= MAX_WAITING
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(String, Settlement)>> {
        // Nothing panics while it holds the lock, and a half-done change cannot be.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Settlements that wait to be written before reading stops.
const MAX_WAITING: usize = 10 * MAX_SETTLED;

/// What the hub is taken to do where it does not say how often it pings: its default.
const DEFAULT_PING_INTERVAL: Duration = Duration::from_secs(25);

/// More would be no watch at all.
const LONGEST_PING_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// What the task is told beyond the connector.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) close_timeout: Duration,
    pub(crate) silence_margin: Duration,
    pub(crate) pong_timeout: Duration,
    pub(crate) rejoin: bool,
}

/// The task's state.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) connector: Connector,
    pub(crate) options: Options,
    pub(crate) schedule: Schedule,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) events: EventSender,
    pub(crate) settlements: Arc<Settlements>,
    pub(crate) pending: Arc<Pending>,
    pub(crate) status: watch::Sender<Status>,
    /// Cancelled by `close`, and when the last handle is dropped.
    pub(crate) stop: CancellationToken,
    pub(crate) rooms: Rooms,
    pub(crate) seen: Seen,
}

impl Driver {
    /// Runs until the client is closed for good; `first` is a connection that stands already.
    pub(crate) async fn run(mut self, first: Option<(Socket, Connected)>) {
        let mut reconnected = false;
        let mut standing = first;
        let cause = loop {
            let attempt = match standing.take() {
                Some(connection) => Ok(connection),
                None => {
                    select! {
                        () = self.stop.cancelled() => break Cause::Requested,
                        attempt = self.connector.connect() => attempt,
                    }
                }
            };
            let cause = match attempt {
                Ok((socket, connected)) => {
                    let since = Instant::now();
                    let cause = self.serve(socket, Connected { reconnected, ..connected }).await;
                    reconnected = true;
                    self.schedule.connection_ended(since.elapsed());
                    self.pending.connection_ended();
                    cause
                }
                Err(cause) => cause,
            };
            let Verdict::Retry { at_least } = cause.verdict(self.connector.token.can_renew()) else {
                break cause;
            };
            let retry_in = self.schedule.next_delay(at_least);
            tracing::debug!(%cause, ?retry_in, "not connected");
            self.status.send_replace(Status::Connecting);
            let next = Instant::now() + retry_in;
            let failures = self.schedule.failures();
            select! {
                () = self.stop.cancelled() => break Cause::Requested,
                () = self.emit(Event::Disconnected { cause, retry_in, failures }) => {}
            }
            select! {
                () = self.stop.cancelled() => break Cause::Requested,
                () = sleep_until(next) => {}
            }
        };
        tracing::debug!(%cause, "closed");
        self.pending.close();
        self.events.send_last(Event::Closed { cause: cause.clone() });
        self.status.send_replace(Status::Closed(cause));
    }

    async fn emit(&self, event: Event) {
        let room = self.events.room(0).await;
        self.events.send(event, room);
    }

    /// Serves one connection to its end.
    async fn serve(&mut self, mut socket: Socket, connected: Connected) -> Cause {
        tracing::debug!(session = connected.session, reconnected = connected.reconnected, "connected");
        let interval = connected.ping_interval_ms.map_or(DEFAULT_PING_INTERVAL, Duration::from_millis);
        let patience = interval.min(LONGEST_PING_INTERVAL) + self.options.silence_margin;
        let mut liveness = Liveness::new(patience, self.options.pong_timeout, Instant::now());
        self.rooms.connected(self.options.rejoin);
        self.status.send_replace(Status::Connected(Arc::new(connected.clone())));

        // While an event waits for room nothing is read: the kernel's buffers fill, and the hub's queue for this
        // client after them. Writing goes on. Since the end of a connection is read, too, no event waits at its end.
        let mut held = Some((Event::Connected(connected), 0));
        let mut commands_open = true;
        let cause = loop {
            if socket.can_write()
                && let Some(frame) = self.own_frame()
            {
                socket.write(Message::text(frame));
            }
            let can_write = socket.can_write();
            let reading = held.is_none() && !self.settlements.is_full();
            let rejoin_at = self.rooms.due();
            select! {
                () = self.stop.cancelled() => {
                    self.say_goodbye(socket).await;
                    return Cause::Requested;
                }
                room = self.events.room(held.as_ref().map_or(0, |(_, bytes)| *bytes)), if held.is_some() => {
                    if let Some((event, _)) = held.take() {
                        self.events.send(event, room);
                    }
                    // Nobody listened meanwhile: the silence was not the hub's.
                    liveness.heard(Instant::now());
                }
                step = socket.step(reading) => match step {
                    Step::Written => {}
                    Step::Alive => liveness.heard(Instant::now()),
                    Step::Text(text) => {
                        liveness.heard(Instant::now());
                        held = self.take_frame(&text).map(|event| (event, text.len()));
                    }
                    Step::Ended(cause) => break cause,
                },
                command = self.commands.recv(), if can_write && commands_open => match command {
                    Some(command) => {
                        if let Some(frame) = self.frame_of(command) {
                            socket.write(Message::text(frame));
                        }
                    }
                    None => commands_open = false,
                },
                () = self.settlements.more.notified(), if can_write => {}
                () = sleep_until(rejoin_at.unwrap_or_else(Instant::now)), if can_write && rejoin_at.is_some() => {}
                () = sleep_until(liveness.deadline()), if held.is_none() => match liveness.expired(Instant::now()) {
                    Alarm::Ping if can_write => socket.write(Message::Ping("".into())),
                    // Not even the frame before was taken.
                    Alarm::Ping => {}
                    Alarm::Dead => break Cause::Silent,
                },
            }
        };
        if matches!(cause, Cause::Closed(_)) {
            socket.finish().await;
        }
        cause
    }

    /// A frame that the client sends by itself.
    fn own_frame(&mut self) -> Option<String> {
        if let Some(frame) = self.rooms.next_request(Instant::now(), || self.pending.next_id()) {
            return Some(frame);
        }
        let (ids, settlement) = self.settlements.take()?;
        for id in &ids {
            self.seen.settle(id, &settlement);
        }
        wire::settle(&ids, &settlement).ok()
    }

    /// The frame of a command, unless nobody waits for it any more.
    fn frame_of(&mut self, command: Command) -> Option<String> {
        match command {
            Command::Request { id, frame } => self.pending.sending(id).then_some(frame),
            Command::Send { frame } => Some(frame),
            Command::Settle { ids, settlement, frame } => {
                for id in &ids {
                    self.seen.settle(id, &settlement);
                }
                Some(frame)
            }
        }
    }

    /// Takes what came; gives what the application is to know of it.
    fn take_frame(&mut self, text: &str) -> Option<Event> {
        match wire::decode(text) {
            Ok(Inbound::Reply { id, reply }) => {
                let error = reply.as_ref().err().cloned();
                if let Some(notice) = self.rooms.answered(id, error, Instant::now()) {
                    return notice.map(Event::Room);
                }
                if let Ok(reply) = &reply {
                    self.rooms.replied(&reply.message_type, &reply.data);
                }
                if !self.pending.resolve(id, reply) {
                    tracing::debug!(id, "a reply came for which nobody waits any more");
                }
                None
            }
            Ok(Inbound::Event(Event::Delivery(delivery))) => match self.seen.note(&delivery.id) {
                Sighting::First => Some(Event::Delivery(delivery)),
                Sighting::Again => None,
                Sighting::Settled(settlement) => {
                    // The hub missed what was said about it.
                    if delivery.require_ack {
                        self.settlements.push(delivery.id, settlement);
                    }
                    None
                }
            },
            Ok(Inbound::Event(event)) => {
                if let Event::Room(notice) = &event {
                    self.rooms.noticed(notice);
                }
                Some(event)
            }
            Ok(Inbound::Connected(_)) => {
                tracing::warn!("a second `connected` frame is ignored");
                None
            }
            Err(error) => {
                tracing::warn!(%error, "a frame from the hub cannot be read");
                None
            }
        }
    }

    /// Sends what was commanded before, then the close frame, and waits for the hub's.
    async fn say_goodbye(&mut self, mut socket: Socket) {
        self.commands.close();
        let limit = self.options.close_timeout;
        let goodbye = async {
            while self.written(&mut socket).await
                && let Some(frame) = self.last_frame()
            {
                socket.write(Message::text(frame));
            }
            if !socket.can_write() {
                return;
            }
            socket.write_close();
            // Replies that are on their way still find their requests.
            while self.stepped(&mut socket).await {}
            socket.finish().await;
        };
        if timeout(limit, goodbye).await.is_err() {
            tracing::debug!("the hub did not say goodbye in time");
        }
    }

    /// Waits until the next frame may be written; `false` at the end of the connection.
    async fn written(&mut self, socket: &mut Socket) -> bool {
        while !socket.can_write() {
            if !self.stepped(socket).await {
                return false;
            }
        }
        true
    }

    /// One step of a connection whose events nobody wants any more; `false` at its end.
    async fn stepped(&mut self, socket: &mut Socket) -> bool {
        match socket.step(true).await {
            Step::Text(text) => {
                self.take_frame(&text);
                true
            }
            Step::Alive | Step::Written => true,
            Step::Ended(_) => false,
        }
    }

    /// What is still to be sent before the close frame.
    fn last_frame(&mut self) -> Option<String> {
        while let Ok(command) = self.commands.try_recv() {
            if let Some(frame) = self.frame_of(command) {
                return Some(frame);
            }
        }
        self.settlements.take().and_then(|(ids, settlement)| wire::settle(&ids, &settlement).ok())
    }
}
