//! One message for many connections.
//!
//! Publishers append an encoded frame to the fan-out's pending buffer. A flusher takes all that is pending, and
//! gives it to the members in slices, one write each: the more is published meanwhile, the more frames a write
//! carries. One slow or large fan-out never holds up the others, see [`flusher`](crate::flusher).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::{
    config::QueuePolicy,
    flusher::{Flush, Flusher, Flushers},
    frame::Encoded,
    ledger::Tally,
    outbound::{Outbound, Sent},
    service::FanoutReport,
    shared::Shared,
    stats::TransportStats,
};

/// Who can be a member: something that stands for a connection and is cheap to clone.
pub trait Member: Clone + Send + Sync + 'static {
    /// The connection's sending half.
    fn outbound(&self) -> &Outbound;
}

impl Member for Outbound {
    fn outbound(&self) -> &Outbound {
        self
    }
}

/// A place in a [`Fanout`]. It is taken again after its member has left.
pub type Slot = u32;

/// A set of connections that get the same messages in the same order. A cheap handle.
#[derive(Debug)]
pub struct Fanout<M: Member>(Arc<Inner<M>>);

impl<M: Member> Clone for Fanout<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// Makes the fan-outs of one transport. A cheap handle.
#[derive(Clone, Debug)]
pub struct Fanouts {
    pub(crate) flushers: Arc<Flushers>,
    pub(crate) shared: Arc<Shared>,
}

impl Fanouts {
    /// A new fan-out without members.
    pub fn fanout<M: Member>(&self) -> Fanout<M> {
        Fanout::new(self.flushers.next(), Arc::clone(&self.shared))
    }

    /// What the transport counts.
    pub fn stats(&self) -> &TransportStats {
        &self.shared.stats
    }

    /// What full queues do at this moment.
    pub fn queue_policy(&self) -> QueuePolicy {
        self.shared.limits.queue_policy()
    }
}

/// Why a frame was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// More is pending than [`TransportConfig::fanout_max_bytes`](crate::TransportConfig::fanout_max_bytes).
    #[error("too much is pending")]
    Full,
    /// The fan-out is closed.
    #[error("closed")]
    Closed,
}

/// Why a member was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// There are as many members as allowed.
    #[error("full")]
    Full,
    /// The fan-out is closed.
    #[error("closed")]
    Closed,
}

impl<M: Member> Fanout<M> {
    fn new(flusher: Flusher, shared: Arc<Shared>) -> Self {
        Self(Arc::new(Inner {
            flusher,
            shared,
            state: Mutex::new(State {
                seats: Vec::new(),
                free: Vec::new(),
                len: 0,
                pending: Pending::default(),
                next_seq: 0,
                scheduled: false,
                closed: false,
            }),
            departures: AtomicU64::new(0),
            unpackers: AtomicUsize::new(0),
            round: Mutex::new(None),
        }))
    }

    /// Adds a member. It gets what is published from now on.
    ///
    /// Call it within [`Outbound::send_with`] of the member, so that the reply about it comes first.
    ///
    /// # Errors
    ///
    /// [`JoinError::Full`] where there are `max` members already.
    pub fn join(&self, member: M, max: Option<usize>) -> Result<Slot, JoinError> {
        let mut state = self.0.state.lock();
        if state.closed {
            return Err(JoinError::Closed);
        }
        if max.is_some_and(|max| state.len >= max) {
            return Err(JoinError::Full);
        }
        if unpacks(&member) {
            self.0.unpackers.fetch_add(1, Ordering::Relaxed);
        }
        let seat = Some(Seat { member, joined_at: state.next_seq });
        state.len += 1;
        match state.free.pop() {
            Some(slot) => {
                state.seats[slot as usize] = seat;
                Ok(slot)
            }
            None => {
                state.seats.push(seat);
                Ok(state.seats.len() as Slot - 1)
            }
        }
    }

    /// Removes a member; nothing published is written to it after this returns, nor the notice of a
    /// [`close`](Self::close), if called within [`Outbound::send_with`] of that member.
    ///
    /// Returns whether it was a member until now. Of a closed fan-out it is one until it has the notice: true says that
    /// the notice did not reach it and never will, so that the caller may give it in its own words.
    pub fn leave(&self, slot: Slot) -> bool {
        let mut state = self.0.state.lock();
        let left = state.vacate(slot);
        if let Some(seat) = &left {
            if unpacks(&seat.member) {
                self.0.unpackers.fetch_sub(1, Ordering::Relaxed);
            }
            self.0.departures.fetch_add(1, Ordering::Release);
            if state.len == 0 {
                state.seats = Vec::new();
                state.free = Vec::new();
            } else {
                state.free.push(slot);
            }
        }
        drop(state);
        // A member's destructor may run here, outside the lock.
        left.is_some()
    }

    /// Appends one encoded frame for every member but the one in `except`. Returns how many members it is for.
    ///
    /// # Errors
    ///
    /// [`PublishError::Full`] where too much is pending, [`PublishError::Closed`] after [`close`](Self::close).
    pub fn publish(&self, frame: &Encoded<'_>, except: Option<Slot>) -> Result<usize, PublishError> {
        // Who joins meanwhile gets the plain frame, as it may.
        let packed = match self.0.unpackers.load(Ordering::Relaxed) {
            0 => None,
            _ => {
                // What is refused need not be compressed.
                self.check(&self.0.state.lock(), frame.plain())?;
                frame.packed(self.0.shared.limits.compression_threshold())
            }
        };
        let mut state = self.0.state.lock();
        // Who is excepted may have left meanwhile.
        let is_seated = |slot: Slot| state.seats.get(slot as usize).is_some_and(Option::is_some);
        let recipients = state.len - usize::from(except.is_some_and(is_seated));
        self.append(&mut state, frame.plain(), packed, except, recipients)?;
        let schedule = recipients > 0 && !std::mem::replace(&mut state.scheduled, true);
        drop(state);
        if schedule {
            self.schedule();
        }
        Ok(recipients)
    }

    /// Appends a last frame, a notice for every member but the one in `except`; then nothing is taken any more, and
    /// each member is let go as it gets the notice, which is never dropped. Returns the members, or `None` where it was
    /// closed before.
    ///
    /// Until a member is let go it may still get what was published before. Who lets it in elsewhere under the same name
    /// meanwhile makes it [`leave`](Self::leave) first.
    pub fn close(&self, frame: &[u8], except: Option<Slot>) -> Option<Vec<M>> {
        let mut state = self.0.state.lock();
        if std::mem::replace(&mut state.closed, true) {
            return None;
        }
        let members: Vec<M> = state.seats.iter().flatten().map(|s| s.member.clone()).collect();
        state.pending.notice = Some(Notice { frame: Bytes::copy_from_slice(frame), except });
        let schedule = state.len > 0 && !std::mem::replace(&mut state.scheduled, true);
        drop(state);
        if schedule {
            self.schedule();
        }
        Some(members)
    }

    /// Closes it if it has no member. Returns whether it is closed now.
    pub fn close_if_empty(&self) -> bool {
        let mut state = self.0.state.lock();
        if state.len == 0 {
            state.closed = true;
        }
        state.closed
    }

    /// Whether it takes nothing more: neither members nor messages.
    pub fn is_closed(&self) -> bool {
        self.0.state.lock().closed
    }

    /// How many members there are.
    pub fn len(&self) -> usize {
        self.0.state.lock().len
    }

    /// Whether there is no member.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// At most `limit` members from slot `start` on, and the slot to go on from.
    pub fn members(&self, start: Slot, limit: usize) -> (Vec<M>, Option<Slot>) {
        let state = self.0.state.lock();
        let mut members = Vec::new();
        for (slot, seat) in state.seats.iter().enumerate().skip(start as usize) {
            let Some(seat) = seat else { continue };
            if members.len() == limit {
                return (members, Some(slot as Slot));
            }
            members.push(seat.member.clone());
        }
        (members, None)
    }

    /// Whether a frame would be taken.
    fn check(&self, state: &State<M>, frame: &[u8]) -> Result<(), PublishError> {
        if state.closed {
            return Err(PublishError::Closed);
        }
        let waiting = state.pending.plain.bytes.len();
        if waiting > 0 && waiting + frame.len() > self.0.shared.limits.fanout_max_bytes() {
            return Err(PublishError::Full);
        }
        Ok(())
    }

    fn append(
        &self,
        state: &mut State<M>,
        frame: &[u8],
        packed: Option<&[u8]>,
        except: Option<Slot>,
        recipients: usize,
    ) -> Result<(), PublishError> {
        self.check(state, frame)?;
        if recipients > 0 {
            let pairs = recipients as i64;
            self.0.shared.stats.ledger.note(|tally| {
                tally.accepted += pairs;
                tally.in_flight += pairs;
            });
            state.pending.push(frame, packed, except, recipients as u64);
            state.next_seq += 1;
        }
        Ok(())
    }

    fn schedule(&self) {
        let flush: Arc<dyn Flush> = Arc::clone(&self.0) as Arc<dyn Flush>;
        self.0.flusher.schedule(flush);
    }
}

#[derive(Debug)]
struct Inner<M: Member> {
    flusher: Flusher,
    shared: Arc<Shared>,
    state: Mutex<State<M>>,
    /// Counts members that left: while it stands still, a copied slice of the members is true.
    departures: AtomicU64,
    /// How many members agreed to compression.
    unpackers: AtomicUsize,
    /// The round in progress; only the flusher touches it.
    round: Mutex<Option<Round>>,
}

#[derive(Debug)]
struct State<M> {
    seats: Vec<Option<Seat<M>>>,
    free: Vec<Slot>,
    len: usize,
    pending: Pending,
    /// Position of the next frame in this fan-out's stream.
    next_seq: u64,
    /// Whether a flusher knows that something is pending.
    scheduled: bool,
    closed: bool,
}

impl<M> State<M> {
    /// Takes a member off its seat.
    fn vacate(&mut self, slot: Slot) -> Option<Seat<M>> {
        let seat = self.seats.get_mut(slot as usize)?.take()?;
        self.len -= 1;
        Some(seat)
    }
}

#[derive(Clone, Debug)]
struct Seat<M> {
    member: M,
    /// Position in the stream from which on the member gets everything.
    joined_at: u64,
}

/// Some of the members at one moment.
struct Slice<M> {
    seats: Vec<(Slot, Seat<M>)>,
    /// Departures until then: while the count stands, the seats are taken.
    departures: u64,
}

fn unpacks<M: Member>(member: &M) -> bool {
    member.outbound().0.deflates()
}

/// Whole frames, back to back.
#[derive(Clone, Debug, Default)]
struct Frames {
    bytes: Vec<u8>,
    /// Where each frame ends.
    ends: Vec<u32>,
}

impl Frames {
    fn push(&mut self, frame: &[u8]) {
        self.bytes.extend_from_slice(frame);
        self.ends.push(self.bytes.len() as u32);
    }
}

/// Frames that wait for the next round.
#[derive(Debug, Default)]
struct Pending {
    plain: Frames,
    /// The same messages for members that agreed to compression; `None` where there is nothing compressed in it.
    packed: Option<Frames>,
    /// Which frame is not for whom.
    excluded: Vec<(Slot, u32)>,
    /// How many deliveries all frames are.
    deliveries: u64,
    /// What is said at the end.
    notice: Option<Notice>,
}

/// The last word of a closing fan-out, which is no delivery.
#[derive(Debug)]
struct Notice {
    frame: Bytes,
    except: Option<Slot>,
}

impl Pending {
    fn push(&mut self, frame: &[u8], packed: Option<&[u8]>, except: Option<Slot>, recipients: u64) {
        if packed.is_some() && self.packed.is_none() {
            self.packed = Some(self.plain.clone());
        }
        if let Some(frames) = &mut self.packed {
            frames.push(packed.unwrap_or(frame));
        }
        if let Some(slot) = except {
            self.excluded.push((slot, self.plain.ends.len() as u32));
        }
        self.plain.push(frame);
        self.deliveries += recipients;
    }

    fn is_empty(&self) -> bool {
        self.plain.ends.is_empty() && self.notice.is_none()
    }
}

/// Frames that members share.
#[derive(Debug)]
struct Joined {
    bytes: Bytes,
    ends: Vec<u32>,
}

impl From<Frames> for Joined {
    fn from(frames: Frames) -> Self {
        Self { bytes: frames.bytes.into(), ends: frames.ends }
    }
}

impl Joined {
    fn start_of(&self, frame: usize) -> usize {
        if frame == 0 { 0 } else { self.ends[frame - 1] as usize }
    }

    /// The frames from `first` on without those in `but`, which are in order.
    fn without(&self, first: usize, but: &[usize]) -> Bytes {
        let mut at = self.start_of(first);
        if but.is_empty() {
            return self.bytes.slice(at..);
        }
        let mut share = Vec::with_capacity(self.bytes.len() - at);
        for &frame in but {
            share.extend_from_slice(&self.bytes[at..self.start_of(frame)]);
            at = self.ends[frame] as usize;
        }
        share.extend_from_slice(&self.bytes[at..]);
        share.into()
    }
}

/// All that was pending at one moment, on its way to the members.
#[derive(Debug)]
struct Round {
    plain: Joined,
    packed: Option<Joined>,
    /// Sorted by slot.
    excluded: Vec<(Slot, u32)>,
    notice: Option<Notice>,
    first_seq: u64,
    next_slot: usize,
    /// Deliveries that nobody has got yet.
    open_deliveries: u64,
    members: u64,
    started: Instant,
}

impl Round {
    fn new(pending: Pending, next_seq: u64) -> Self {
        let Pending { plain, packed, mut excluded, deliveries, notice } = pending;
        excluded.sort_unstable();
        Self {
            first_seq: next_seq - plain.ends.len() as u64,
            plain: plain.into(),
            packed: packed.map(Joined::from),
            excluded,
            notice,
            next_slot: 0,
            open_deliveries: deliveries,
            members: 0,
            started: Instant::now(),
        }
    }

    fn frames(&self) -> usize {
        self.plain.ends.len()
    }

    /// The frames for one member and how many deliveries they are.
    fn share<M: Member>(&self, slot: Slot, seat: &Seat<M>) -> Option<(Bytes, u32)> {
        let first = seat.joined_at.saturating_sub(self.first_seq) as usize;
        let from = self.excluded.partition_point(|&(s, f)| (s, f) < (slot, first as u32));
        let own = self.excluded[from..].iter().take_while(|&&(s, _)| s == slot).map(|&(_, f)| f as usize);
        let own: Vec<usize> = own.collect();
        let frames = self.frames().saturating_sub(first + own.len());
        if frames == 0 {
            return None;
        }
        let joined = match &self.packed {
            Some(packed) if unpacks(&seat.member) => packed,
            _ => &self.plain,
        };
        Some((joined.without(first, &own), frames as u32))
    }
}

impl<M: Member> Inner<M> {
    /// Copies a slice of the members that the round concerns; `None` behind the last.
    fn slice(&self, round: &Round, max: usize) -> Option<Slice<M>> {
        let state = self.state.lock();
        let start = round.next_slot;
        if start >= state.seats.len() {
            return None;
        }
        let end = state.seats.len().min(start + max);
        let seats = state.seats[start..end].iter().enumerate();
        let seats = seats.filter_map(|(i, seat)| Some(((start + i) as Slot, seat.clone()?))).collect();
        Some(Slice { seats, departures: self.departures.load(Ordering::Acquire) })
    }

    /// Whether a copied seat is still taken by the same member since the same time.
    fn is_seated(&self, slot: Slot, seat: &Seat<M>) -> bool {
        let state = self.state.lock();
        state
            .seats
            .get(slot as usize)
            .and_then(Option::as_ref)
            .is_some_and(|now| now.joined_at == seat.joined_at && now.member.outbound().is_same(seat.member.outbound()))
    }

    /// Lets a member go. Returns whether it was one.
    fn let_go(&self, slot: Slot) -> bool {
        let seat = self.state.lock().vacate(slot);
        seat.is_some()
    }

    fn finish(&self, round: &Round) {
        // Who left after the message was accepted did not get it.
        let lost = round.open_deliveries;
        self.shared.stats.ledger.note(|tally| {
            tally.in_flight -= lost as i64;
            tally.conn_closed += lost as i64;
        });
        self.flusher.report(FanoutReport {
            frames: (round.frames() + usize::from(round.notice.is_some())) as u32,
            members: round.members,
            duration: round.started.elapsed(),
        });
    }
}

impl<M: Member> Flush for Inner<M> {
    fn flush(&self, budget: usize) -> (usize, bool) {
        let mut current = self.round.lock();
        let round = match &mut *current {
            Some(round) => round,
            none => {
                let mut state = self.state.lock();
                let pending = std::mem::take(&mut state.pending);
                if pending.is_empty() {
                    state.scheduled = false;
                    return (0, false);
                }
                let next_seq = state.next_seq;
                drop(state);
                none.insert(Round::new(pending, next_seq))
            }
        };
        let Some(Slice { seats, departures }) = self.slice(round, budget) else {
            self.finish(round);
            *current = None;
            let mut state = self.state.lock();
            if state.pending.is_empty() {
                state.scheduled = false;
                if state.closed {
                    let seats = std::mem::take(&mut state.seats);
                    state.len = 0;
                    drop(state);
                    drop(seats);
                }
                return (1, false);
            }
            return (1, true);
        };
        round.next_slot += budget;
        let served = seats.len();
        // The slice's pairs enter the ledger together.
        let mut slice = Tally::default();
        for (slot, seat) in seats {
            let outbound = seat.member.outbound();
            if let Some((frames, deliveries)) = round.share(slot, &seat) {
                let is_member = || self.departures.load(Ordering::Acquire) == departures || self.is_seated(slot, &seat);
                let Some(sent) = outbound.deliver_shared_if(&frames, deliveries, is_member) else { continue };
                let pairs = i64::from(deliveries);
                round.open_deliveries -= u64::from(deliveries);
                round.members += 1;
                match sent {
                    Sent::Written => slice.sent += pairs,
                    // Its queue enters it when it ends.
                    Sent::Queued => {}
                    Sent::Dropped => slice.queue_full += pairs,
                    Sent::Closed => slice.conn_closed += pairs,
                }
            }
            match &round.notice {
                Some(notice) if notice.except != Some(slot) => {
                    // In the step that settles the order: who leaves is let go either there or here.
                    outbound.notify_if(&notice.frame, || self.let_go(slot));
                }
                Some(_) => {
                    self.let_go(slot);
                }
                None => {}
            }
        }
        self.shared.stats.ledger.note(|tally| {
            tally.in_flight -= slice.sent + slice.failed();
            tally.sent += slice.sent;
            tally.copies += slice.sent;
            tally.queue_full += slice.queue_full;
            tally.conn_closed += slice.conn_closed;
        });
        (served.max(1), true)
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::{sync::CancellationToken, task::TaskTracker};

    use super::*;
    use crate::{config::TransportConfig, conn::Conn, handshake::Extensions};

    /// One broadcast is encoded once: whoever has to wait for it holds a reference to the same bytes.
    #[tokio::test]
    async fn members_share_one_encoding() {
        let shared = Arc::new(Shared::new(&TransportConfig::default()));
        let report: Arc<dyn Fn(FanoutReport) + Send + Sync> = Arc::new(|_| {});
        let stop = CancellationToken::new();
        let flushers = Flushers::spawn(&report, &TaskTracker::new(), &stop);
        let fanout = Fanout::new(flushers.next(), Arc::clone(&shared));
        let members: Vec<_> = (0..10_000)
            .map(|_| Outbound(Conn::held(Arc::clone(&shared), None, Vec::new(), Extensions::default())))
            .collect();
        for member in &members {
            fanout.join(member.clone(), None).unwrap();
        }
        assert_eq!(fanout.publish(&Encoded::new(b"\x81\x02hi"), None), Ok(10_000));
        while fanout.0.flush(64).1 {}
        let first = members[0].0.first_queued().unwrap();
        assert_eq!(&first[..], b"\x81\x02hi");
        assert!(members.iter().all(|m| m.0.first_queued().is_some_and(|b| b.as_ptr() == first.as_ptr())));
        stop.cancel();
    }
}
