//! What waits for one connection's socket.

mod gap;
mod lanes;

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use wsc_protocol::{FailureReason, Priority};

use crate::{
    frame::frame_at,
    outbound::{Amount, Settle, Terms},
};

use self::{gap::Gap, lanes::Lanes};

pub(crate) use self::gap::gap_frame;

/// What an entry is, which decides what a full queue may do to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// The answer to the handshake: goes before everything.
    Opening,
    /// A ping or pong: goes before what waits as soon as it may.
    Control,
    /// The close frame: goes behind everything.
    Close,
    /// Says that messages are missing; goes before what waits, and can still grow until it is begun.
    Gap,
    /// A reply or notice: never dropped.
    Must,
    /// Frames of a fan-out; the policy decides.
    Shared,
    /// A message to one user; the policy decides.
    Direct,
    /// A message to one user that somebody keeps until it is acknowledged: it may leave the queue, but is not lost.
    Reliable,
}

impl Class {
    fn is_message(self) -> bool {
        matches!(self, Self::Shared | Self::Direct | Self::Reliable)
    }
}

/// What an entry is, and when its turn comes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) class: Class,
    pub(crate) priority: Priority,
    /// How many frames of a fan-out it is.
    pub(crate) deliveries: u32,
}

impl Kind {
    const OPENING: Self = Self::of(Class::Opening);
    pub(crate) const CONTROL: Self = Self::of(Class::Control);
    pub(crate) const CLOSE: Self = Self::of(Class::Close);
    pub(crate) const MUST: Self = Self::of(Class::Must);
    const GAP: Self = Self::of(Class::Gap);

    const fn of(class: Class) -> Self {
        Self { class, priority: Priority::Normal, deliveries: 0 }
    }

    pub(crate) fn shared(deliveries: u32) -> Self {
        Self { deliveries, ..Self::of(Class::Shared) }
    }

    pub(crate) fn single(terms: Terms) -> Self {
        let class = if terms.is_reliable { Class::Reliable } else { Class::Direct };
        Self { priority: terms.priority, ..Self::of(class) }
    }

    /// How many messages it is.
    fn messages(self) -> u64 {
        match self.class {
            Class::Shared => self.deliveries.into(),
            Class::Direct | Class::Reliable => 1,
            Class::Opening | Class::Control | Class::Close | Class::Gap | Class::Must => 0,
        }
    }
}

/// Bytes on their way: one or more whole frames.
#[derive(Debug)]
pub(crate) struct Entry {
    bytes: Bytes,
    /// How many of the bytes the kernel has taken.
    written: usize,
    kind: Kind,
    /// Since when it waits, in the transport's ticks.
    since: u32,
    /// Its place in the order of coming; 0 for what came before there was a queue.
    arrival: u32,
    /// Who wants to know what became of it.
    settle: Option<Arc<dyn Settle>>,
}

impl Entry {
    pub(crate) fn new(bytes: Bytes, kind: Kind, now: u32) -> Self {
        Self { bytes, written: 0, kind, since: now, arrival: 0, settle: None }
    }

    /// The same with somebody who is told the end.
    pub(crate) fn tracked_by(self, settle: Option<Arc<dyn Settle>>) -> Self {
        Self { settle, ..self }
    }

    fn len(&self) -> usize {
        self.bytes.len() - self.written
    }

    /// Takes the frames off the front that end at or before `len`, and the one that holds it, unless that is all.
    fn split_front(&mut self, len: usize) -> Option<Self> {
        if self.kind.deliveries < 2 || len >= self.len() {
            return None;
        }
        let (whole, at) = frame_at(&self.bytes, len.max(1));
        let deliveries = whole + u32::from(!at.is_empty());
        if at.end >= self.bytes.len() || deliveries >= self.kind.deliveries {
            return None;
        }
        let bytes = self.bytes.split_to(at.end);
        self.kind.deliveries -= deliveries;
        let kind = Kind { deliveries, ..self.kind };
        Some(Self { bytes, written: 0, kind, since: self.since, arrival: self.arrival, settle: None })
    }
}

/// A connection's backlog. It exists only while there is one.
///
/// What is begun, or goes before everything, stands in `front`; the rest waits in a lane for each priority until a
/// write takes it along. What a write took along in vain goes back: who comes later may be more urgent.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// One frame that is begun, then control frames; while somebody writes also what is being written.
    front: VecDeque<Entry>,
    lanes: Lanes,
    /// The close frame, behind everything.
    last: Option<Entry>,
    /// Unwritten bytes of all entries.
    bytes: usize,
    /// How many entries at the front are being written this moment and must stay where they are.
    in_flight: usize,
    /// Messages that were dropped, to be told before the next frame is begun.
    front_gap: Option<Gap>,
    /// What the marker in `front` tells that is not begun.
    telling: Option<Gap>,
    /// Messages that were not taken, to be told before the next one that is.
    back_gap: Option<Gap>,
    /// Why nothing but what is begun is written any more.
    cut: Option<FailureReason>,
    /// What was lost in gaps since there is a backlog.
    lost: Amount,
    arrivals: u32,
}

/// Deliveries that ended, to be counted outside the lock.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    pub(crate) sent: u32,
    pub(crate) queue_full: u32,
    pub(crate) conn_closed: u32,
    /// Change of the queue's size in bytes.
    pub(crate) bytes: i64,
    pub(crate) told: Vec<(Arc<dyn Settle>, Result<(), FailureReason>)>,
}

/// What waits in a queue, for who asks.
#[derive(Debug, Default)]
pub(crate) struct Census {
    /// By priority, the most urgent first.
    pub(crate) lanes: [Amount; 3],
    /// When the oldest of it came.
    pub(crate) oldest: Option<u32>,
    pub(crate) lost: Amount,
}

impl Queue {
    /// A queue whose first bytes stay first: no pong may pass the answer to the handshake, and no overflow take it
    /// away.
    pub(crate) fn opening_with(bytes: Bytes, now: u32, settled: &mut Settled) -> Self {
        let mut queue = Self::default();
        let entry = Entry::new(bytes, Kind::OPENING, now);
        queue.grow(entry.len(), settled);
        queue.front.push_back(entry);
        queue
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there is nothing to write.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0 && self.front_gap.is_none() && self.back_gap.is_none()
    }

    /// How many messages wait.
    pub(crate) fn messages(&self) -> u64 {
        self.entries().map(|e| e.kind.messages()).sum()
    }

    pub(crate) fn census(&self) -> Census {
        let mut census = Census { lost: self.lost, ..Census::default() };
        for entry in self.entries() {
            let lane = &mut census.lanes[lanes::index(entry.kind.priority)];
            lane.bytes += entry.len() as u64;
            lane.messages += entry.kind.messages();
            let is_older = |oldest: u32| (entry.since.wrapping_sub(oldest) as i32) < 0;
            if census.oldest.is_none_or(is_older) {
                census.oldest = Some(entry.since);
            }
        }
        census
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.front.iter().chain(self.lanes.entries()).chain(&self.last)
    }

    pub(crate) fn push(&mut self, mut entry: Entry, settled: &mut Settled) {
        if entry.kind.class.is_message() {
            self.tell_back_gap(&entry, settled);
        }
        self.grow(entry.len(), settled);
        if entry.kind.class == Class::Control {
            // The newest of a kind is enough: who does not read must not make us hoard pongs (RFC 6455 §5.5.3).
            let start = self.fixed_front();
            let first = entry.bytes.first().copied();
            let same = |e: &Entry| e.kind.class == Class::Control && e.bytes.first().copied() == first;
            if let Some(at) = (start..self.front.len()).find(|&i| same(&self.front[i]))
                && let Some(older) = self.front.remove(at)
            {
                self.shrink(older.len(), settled);
            }
            self.front.insert(start, entry);
        } else {
            entry.arrival = self.next_arrival();
            self.lanes.push(entry);
        }
    }

    /// Adds the close frame.
    pub(crate) fn push_last(&mut self, entry: Entry, settled: &mut Settled) {
        self.grow(entry.len(), settled);
        self.last = Some(entry);
    }

    /// Puts in the rest of what an inline write could not finish, before all that came since.
    pub(crate) fn push_rest(&mut self, mut entry: Entry, written: usize, settled: &mut Settled) {
        entry.written = written;
        self.grow(entry.len(), settled);
        self.front.push_front(entry);
        self.tidy_front(settled);
    }

    fn next_arrival(&mut self) -> u32 {
        self.arrivals = self.arrivals.wrapping_add(1);
        self.arrivals
    }

    /// Drops the oldest messages that are not begun until the queue is shorter by `excess` bytes, as far as there are
    /// any. What somebody keeps leaves no gap: reliable messages, and with `spills` all that are tracked.
    pub(crate) fn make_room(&mut self, excess: usize, spills: bool, settled: &mut Settled) {
        let target = self.bytes.saturating_sub(excess);
        let mut search = lanes::Search::default();
        while self.bytes > target {
            let Some(entry) = self.lanes.take_oldest(&mut search, self.bytes - target) else { return };
            let is_kept = match entry.kind.class {
                Class::Reliable => true,
                Class::Direct => spills,
                _ => false,
            };
            if !(is_kept && entry.settle.is_some()) {
                Gap::widen(&mut self.front_gap, entry.len(), entry.kind.deliveries);
                self.note_lost(entry.len(), entry.kind.deliveries);
            }
            self.fail(entry, FailureReason::QueueFull, settled);
        }
    }

    /// Takes note of a message that is not taken.
    pub(crate) fn refuse(&mut self, len: usize, deliveries: u32) {
        if self.cut.is_some() {
            // The farewell says it.
            return;
        }
        Gap::widen(&mut self.back_gap, len, deliveries);
        self.note_lost(len, deliveries);
    }

    fn note_lost(&mut self, len: usize, deliveries: u32) {
        self.lost.bytes += len as u64;
        self.lost.messages += u64::from(deliveries.max(1));
    }

    /// Says what was not taken right before `next`, in the same lane.
    fn tell_back_gap(&mut self, next: &Entry, settled: &mut Settled) {
        if let Some(gap) = self.back_gap.take() {
            let kind = Kind { priority: next.kind.priority, ..Kind::MUST };
            let mut entry = Entry::new(gap.to_frame(), kind, next.since);
            entry.arrival = self.next_arrival();
            self.grow(entry.len(), settled);
            self.lanes.push(entry);
        }
    }

    /// Drops everything but the frame that the peer has seen the start of.
    pub(crate) fn cut(&mut self, reason: FailureReason, settled: &mut Settled) {
        self.cut = Some(reason);
        (self.front_gap, self.back_gap) = (None, None);
        for entry in self.front.split_off(self.fixed_front()) {
            self.fail(entry, reason, settled);
        }
        for entry in self.lanes.take_all() {
            self.fail(entry, reason, settled);
        }
    }

    /// Ends everything with the connection. Whole frames that were written count as sent.
    pub(crate) fn end(mut self, settled: &mut Settled) {
        settled.bytes -= self.bytes as i64;
        let lanes = self.lanes.take_all();
        for entry in self.front.into_iter().chain(lanes).chain(self.last) {
            let deliveries = entry.kind.deliveries;
            let sent = frame_at(&entry.bytes, entry.written).0.min(deliveries);
            settled.sent += sent;
            settled.conn_closed += deliveries - sent;
            if let Some(settle) = entry.settle {
                settled.told.push((settle, Err(FailureReason::ConnClosed)));
            }
        }
    }

    /// The next bytes to write, at most `max_slices` pieces; they stay where they are until [`wrote`](Self::wrote).
    pub(crate) fn take_slices(&mut self, max_slices: usize, now: u32, settled: &mut Settled) -> Vec<Bytes> {
        if let Some(gap) = self.front_gap.take() {
            let entry = Entry::new(gap.to_frame(), Kind::GAP, now);
            self.grow(entry.len(), settled);
            self.front.insert(self.fixed_front(), entry);
            self.telling = Some(gap);
        }
        let mut offered: usize = self.front.iter().map(Entry::len).sum();
        while self.front.len() < max_slices && offered < OFFER {
            let Some(entry) = self.next(OFFER - offered, now, settled) else { break };
            offered += entry.len();
            self.front.push_back(entry);
        }
        self.in_flight = self.front.len().min(max_slices);
        self.front.iter().take(self.in_flight).map(|e| e.bytes.slice(e.written..)).collect()
    }

    fn next(&mut self, len: usize, now: u32, settled: &mut Settled) -> Option<Entry> {
        if let Some(entry) = self.lanes.pop(len) {
            return Some(entry);
        }
        // Nothing may follow for long: who has caught up learns at once what it missed.
        if let Some(gap) = self.back_gap.take() {
            let entry = Entry::new(gap.to_frame(), Kind::MUST, now);
            self.grow(entry.len(), settled);
            return Some(entry);
        }
        self.last.take()
    }

    /// Takes account of `len` written bytes and ends what they finish.
    pub(crate) fn wrote(&mut self, mut len: usize, settled: &mut Settled) {
        self.in_flight = 0;
        self.shrink(len, settled);
        while let Some(head) = self.front.front_mut() {
            if head.len() > len {
                head.written += len;
                break;
            }
            len -= head.len();
            if let Some(done) = self.front.pop_front() {
                settled.sent += done.kind.deliveries;
                if let Some(settle) = done.settle {
                    settled.told.push((settle, Ok(())));
                }
            }
        }
        self.tidy_front(settled);
    }

    /// Leaves at the front only the frame that is begun, and what goes before everything.
    fn tidy_front(&mut self, settled: &mut Settled) {
        let told = self.telling.take();
        for at in (self.fixed_front()..self.front.len()).rev() {
            let class = self.front[at].kind.class;
            if class == Class::Control {
                continue;
            }
            let Some(entry) = self.front.remove(at) else { continue };
            match class {
                Class::Gap => {
                    // What was dropped meanwhile is told in the same breath.
                    self.shrink(entry.len(), settled);
                    if self.cut.is_none() {
                        Gap::join(&mut self.front_gap, told);
                    }
                }
                Class::Close => self.last = Some(entry),
                _ => self.put_back(entry, settled),
            }
        }
        let Some(mut head) = self.front.pop_front_if(|e| e.written > 0 && e.kind.deliveries > 1) else { return };
        let (whole, begun) = frame_at(&head.bytes, head.written);
        let sent = whole.min(head.kind.deliveries);
        settled.sent += sent;
        let is_begun = u32::from(!begun.is_empty());
        let rest = head.bytes.split_off(begun.end);
        if !rest.is_empty() {
            let kind = Kind { deliveries: head.kind.deliveries.saturating_sub(sent + is_begun), ..head.kind };
            let rest = Entry { bytes: rest, written: 0, kind, settle: None, ..head };
            self.put_back(rest, settled);
        }
        if !begun.is_empty() {
            head.written -= begun.start;
            head.bytes = head.bytes.slice(begun);
            head.kind.deliveries = is_begun;
            self.front.push_front(head);
        }
    }

    fn put_back(&mut self, entry: Entry, settled: &mut Settled) {
        match self.cut {
            Some(reason) => self.fail(entry, reason, settled),
            None => self.lanes.put_back(entry),
        }
    }

    /// How many entries at the front must stay: being written, begun, or always the first.
    fn fixed_front(&self) -> usize {
        let stays = self.front.front().is_some_and(|e| e.written > 0 || e.kind.class == Class::Opening);
        self.in_flight.max(usize::from(stays))
    }

    /// Ends an entry that was taken out.
    fn fail(&mut self, entry: Entry, reason: FailureReason, settled: &mut Settled) {
        self.shrink(entry.len(), settled);
        match reason {
            FailureReason::QueueFull => settled.queue_full += entry.kind.deliveries,
            _ => settled.conn_closed += entry.kind.deliveries,
        }
        if let Some(settle) = entry.settle {
            settled.told.push((settle, Err(reason)));
        }
    }

    fn grow(&mut self, len: usize, settled: &mut Settled) {
        self.bytes += len;
        settled.bytes += len as i64;
    }

    fn shrink(&mut self, len: usize, settled: &mut Settled) {
        self.bytes -= len;
        settled.bytes -= len as i64;
    }
}

/// About how many bytes are offered to the kernel at once: enough to make the call cheap, and little enough to keep
/// what is urgent from waiting behind a large batch.
const OFFER: usize = 64 << 10;

#[cfg(test)]
mod tests;
