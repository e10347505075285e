//! The one task of a client: connects, serves the connection, connects again.

use std::{convert::Infallible, sync::Arc, time::Duration};

use tokio::{
    select,
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_util::sync::CancellationToken;
use wsc_protocol::ErrorCode;

use crate::{
    Cause, Connected, Delivery, Event,
    backoff::Schedule,
    cause::Verdict,
    connect::Connector,
    liveness::{Alarm, Liveness},
    outbox::{Command, Outbox},
    pending::Pending,
    queue::EventSender,
    rooms::Rooms,
    seen::{Seen, Sighting},
    settlements::Settlements,
    socket::{Socket, Step},
    wire::{self, Inbound},
};

/// How things stand.
#[derive(Clone, Debug)]
pub(crate) enum Status {
    /// No connection at the moment.
    Connecting,
    Connected(Arc<Connected>),
    /// No connection any more.
    Closed(Cause),
}

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
    pub(crate) max_request_size: usize,
}

/// The task's state. However the task ends, dropping this tells everybody who waits.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) connector: Connector,
    pub(crate) options: Options,
    pub(crate) schedule: Schedule,
    pub(crate) outbox: Outbox,
    pub(crate) events: EventSender,
    pub(crate) settlements: Arc<Settlements>,
    pub(crate) pending: Arc<Pending>,
    pub(crate) status: watch::Sender<Status>,
    /// Cancelled by `close`, and when the last handle is dropped.
    pub(crate) stop: CancellationToken,
    pub(crate) rooms: Rooms,
    pub(crate) seen: Seen,
    /// Why the client ends, as soon as it is known.
    pub(crate) cause: Cause,
}

impl Driver {
    /// Runs until the client is closed for good; `first` is a connection that stands already.
    pub(crate) async fn run(mut self, first: Option<(Socket, Connected)>) {
        let mut reconnected = false;
        let mut standing = first;
        self.cause = loop {
            let attempt = match standing.take() {
                Some(connection) => Ok(connection),
                None => {
                    let attempt = self.connector.connect();
                    select! {
                        () = self.stop.cancelled() => break Cause::Requested,
                        attempt = attempt => attempt,
                        // Neither a full queue of events nor the application's commands wait for a connection.
                        never = wait(&mut self.events, &mut self.outbox, &self.pending) => match never {},
                    }
                }
            };
            let cause = match attempt {
                Ok((socket, connected)) => {
                    let since = Instant::now();
                    let cause = self.serve(socket, Connected { reconnected, ..connected }).await;
                    reconnected = true;
                    self.schedule.connection_ended(since.elapsed());
                    cause
                }
                Err(cause) => cause,
            };
            let Verdict::Retry { at_least } = cause.verdict(self.connector.token.can_renew()) else {
                break cause;
            };
            self.outbox.put_back(self.pending.connection_ended());
            let retry_in = self.schedule.next_delay(at_least);
            tracing::debug!(%cause, ?retry_in, "not connected");
            self.status.send_replace(Status::Connecting);
            let next = Instant::now() + retry_in;
            self.events.send(Event::Disconnected { cause, retry_in, failures: self.schedule.failures() }, 0);
            select! {
                () = self.stop.cancelled() => break Cause::Requested,
                () = sleep_until(next) => {}
                never = wait(&mut self.events, &mut self.outbox, &self.pending) => match never {},
            }
        };
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
        // client after them. Writing goes on. Where it cannot, nothing more comes than the kernel has already, and
        // behind that the end: this is read whatever waits.
        self.events.send(Event::Connected(connected), 0);
        let cause = loop {
            let reading = match socket.is_broken() {
                true => !self.events.is_overfull(),
                false => !self.events.is_waiting() && !self.settlements.is_full(),
            };
            if reading {
                self.rooms.expire(Instant::now());
            }
            if socket.can_write()
                && let Some(frame) = self.own_frame()
            {
                socket.write(Message::text(frame));
            }
            let can_write = socket.can_write();
            let settle_at = self.settlements.due(self.seen.held()).filter(|_| can_write);
            let rejoin_at = self.rooms.due().filter(|_| can_write && reading);
            let rooms_first = reading && self.rooms.go_first();
            let broken = socket.is_broken();
            let command = async {
                match broken {
                    true => match self.outbox.collect(&self.pending).await {},
                    false => self.outbox.next().await,
                }
            };
            select! {
                () = self.stop.cancelled() => {
                    self.say_goodbye(socket).await;
                    return Cause::Requested;
                }
                () = self.events.handed_over(), if self.events.is_waiting() => {
                    // Nobody listened meanwhile: the silence was not the hub's.
                    liveness.heard(Instant::now());
                    self.rooms.reads_again(Instant::now());
                }
                step = socket.step(reading) => match step {
                    Step::Written => {}
                    Step::Alive => liveness.heard(Instant::now()),
                    Step::Text(text) => {
                        liveness.heard(Instant::now());
                        if let Some(event) = self.take_frame(&text) {
                            self.events.send(event, text.len());
                        }
                    }
                    Step::Ended(cause) => break cause,
                },
                command = command, if broken || (can_write && !rooms_first) => {
                    if let Some(frame) = self.frame_of(command) {
                        socket.write(Message::Text(frame));
                    }
                }
                () = self.settlements.more(), if can_write => {}
                () = sleep_until(settle_at.unwrap_or_else(Instant::now)), if settle_at.is_some() => {}
                () = sleep_until(rejoin_at.unwrap_or_else(Instant::now)), if rejoin_at.is_some() => {}
                () = sleep_until(liveness.deadline()), if !self.events.is_waiting() => {
                    match liveness.expired(Instant::now()) {
                        Alarm::Ping if can_write => socket.write(Message::Ping("".into())),
                        // Not even the frame before was taken.
                        Alarm::Ping => {}
                        Alarm::Dead => break Cause::Silent,
                    }
                }
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
        let now = Instant::now();
        let is_due = self.settlements.due(self.seen.held()).is_some_and(|due| due <= now);
        if is_due { self.settlement(now) } else { None }
    }

    /// A frame about deliveries.
    fn settlement(&mut self, now: Instant) -> Option<String> {
        let (ids, settlement) = self.settlements.take(self.options.max_request_size)?;
        for id in &ids {
            self.seen.settle(id, &settlement, now);
        }
        wire::settle(&ids, &settlement).ok()
    }

    /// The frame of a command, unless nobody waits for it any more.
    fn frame_of(&mut self, command: Command) -> Option<Utf8Bytes> {
        match command {
            Command::Request { id, frame, leaves, repeatable } => {
                let again = repeatable.then_some(&frame);
                self.pending.sending(id, again).then(|| {
                    if let Some(room_id) = leaves {
                        self.rooms.leaving(id, room_id);
                    }
                    frame
                })
            }
            Command::Send { frame } => Some(frame),
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
                self.rooms.replied(id, &reply, Instant::now());
                if !self.pending.resolve(id, reply) {
                    tracing::debug!(id, "a reply came for which nobody waits any more");
                }
                None
            }
            Ok(Inbound::Event(Event::Delivery(delivery))) => match self.note(&delivery) {
                Sighting::First => Some(Event::Delivery(delivery)),
                Sighting::Again => None,
                Sighting::Settled(settlement) => {
                    // The hub missed what was said about it.
                    if delivery.require_ack {
                        self.settlements.repeat(delivery.id, settlement);
                    }
                    None
                }
            },
            Ok(Inbound::Event(event)) => {
                match &event {
                    Event::Room(notice) => self.rooms.noticed(notice),
                    // It may be about a request to join a room again: the hub need not say.
                    Event::Error(error) if error.is(ErrorCode::RateLimited) => {
                        self.rooms.too_fast(error.retry_after(), Instant::now());
                    }
                    _ => {}
                }
                Some(event)
            }
            Ok(Inbound::Connected(_)) => {
                tracing::warn!("a second `connected` frame is ignored");
                None
            }
            Err(error) => {
                // The error itself would show what is in the frame.
                tracing::warn!(kind = ?error.classify(), column = error.column(), "a frame from the hub cannot be read");
                Some(Event::Unreadable { len: text.len() })
            }
        }
    }

    fn note(&mut self, delivery: &Delivery) -> Sighting {
        self.seen.note(&delivery.id, delivery.require_ack, Instant::now())
    }

    /// Sends what was commanded before, then the close frame, and waits for the hub's.
    async fn say_goodbye(&mut self, mut socket: Socket) {
        self.outbox.close();
        self.settlements.close();
        let limit = self.options.close_timeout;
        let goodbye = async {
            while self.written(&mut socket).await
                && let Some(frame) = self.last_frame()
            {
                socket.write(Message::Text(frame));
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
    fn last_frame(&mut self) -> Option<Utf8Bytes> {
        if let Some(frame) = self.settlement(Instant::now()) {
            return Some(frame.into());
        }
        while let Some(command) = self.outbox.take() {
            if let Some(frame) = self.frame_of(command) {
                return Some(frame);
            }
        }
        None
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let cause = self.cause.clone();
        tracing::debug!(%cause, "closed");
        self.settlements.close();
        self.pending.close();
        self.events.send_last(Event::Closed { cause: cause.clone() });
        self.status.send_replace(Status::Closed(cause));
    }
}

/// What goes on while there is no connection.
async fn wait(events: &mut EventSender, outbox: &mut Outbox, pending: &Pending) -> Infallible {
    let hand_over = async {
        loop {
            events.handed_over().await;
        }
    };
    select! {
        never = hand_over => never,
        never = outbox.collect(pending) => never,
    }
}
