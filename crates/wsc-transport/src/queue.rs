//! What waits for one connection's socket.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use wsc_protocol::{FailureReason, encode};

use crate::{
    frame::{border_after, frame_at, text_frame},
    outbound::Settle,
};

/// What an entry is, which decides what a full queue may do to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// A ping or pong; passes the queue at the next border between frames.
    Control,
    /// A reply, a notice, the close frame: never dropped.
    Must,
    /// Messages; the policy decides.
    Plain,
}

/// Bytes on their way: one or more whole frames.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) bytes: Bytes,
    /// How many of the bytes the kernel has taken.
    pub(crate) written: usize,
    pub(crate) class: Class,
    /// How many deliveries the frames are.
    pub(crate) deliveries: u32,
    /// Who wants to know what became of it.
    pub(crate) settle: Option<Arc<dyn Settle>>,
}

impl Entry {
    fn len(&self) -> usize {
        self.bytes.len() - self.written
    }
}

/// A connection's backlog. It exists only while there is one.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    entries: VecDeque<Entry>,
    /// Unwritten bytes of all entries.
    bytes: usize,
    /// How many entries at the front are being written this moment and must stay where they are.
    in_flight: usize,
    /// Messages that were dropped behind what is fixed at the front, to be told before the next one is written.
    front_gap: Option<Gap>,
    /// Messages that were not taken, to be told before the next one that is.
    back_gap: Option<Gap>,
}

/// Messages that this connection will not get.
#[derive(Debug)]
struct Gap {
    dropped: u64,
    bytes: u64,
    /// Unix milliseconds.
    since: u64,
}

impl Gap {
    fn widen(gap: &mut Option<Self>, entry_bytes: usize, deliveries: u32) {
        let gap = gap.get_or_insert_with(|| Self { dropped: 0, bytes: 0, since: unix_ms() });
        // A message of its own is no delivery of a fan-out, but it is one message.
        gap.dropped += u64::from(deliveries.max(1));
        gap.bytes += entry_bytes as u64;
    }

    fn into_entry(self) -> Entry {
        let mut buffer = Vec::new();
        let frame = text_frame(&mut buffer, |out| encode::gap(out, self.dropped, self.bytes, self.since, unix_ms()));
        Entry { bytes: Bytes::copy_from_slice(frame), written: 0, class: Class::Must, deliveries: 0, settle: None }
    }
}

/// A gap that begins and ends now.
pub(crate) fn gap_frame(dropped: u64, bytes: u64) -> Bytes {
    Gap { dropped, bytes, since: unix_ms() }.into_entry().bytes
}

fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| d.as_millis() as u64)
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

impl Queue {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many deliveries wait.
    pub(crate) fn deliveries(&self) -> u64 {
        self.entries.iter().map(|e| u64::from(e.deliveries)).sum()
    }

    pub(crate) fn push(&mut self, entry: Entry, settled: &mut Settled) {
        if entry.class == Class::Plain {
            self.tell_back_gap(settled);
        }
        self.bytes += entry.len();
        settled.bytes += entry.len() as i64;
        match entry.class {
            Class::Control => {
                self.split_head(settled);
                // The newest of a kind is enough: who does not read must not make us hoard pongs (RFC 6455 §5.5.3).
                let start = self.fixed_front();
                let first = entry.bytes.first().copied();
                let same = |e: &Entry| e.class == Class::Control && e.bytes.first().copied() == first;
                if let Some(at) = (start..self.entries.len()).find(|&i| same(&self.entries[i])) {
                    self.remove(at, settled);
                }
                self.entries.insert(start, entry);
            }
            Class::Must | Class::Plain => self.entries.push_back(entry),
        }
    }

    /// Keeps the first entry where it is, as if it were being written, until something is.
    pub(crate) fn pin_front(&mut self) {
        self.in_flight = self.entries.len().min(1);
    }

    /// Puts back the rest of what an inline write could not finish.
    pub(crate) fn push_rest(&mut self, entry: Entry, settled: &mut Settled) {
        self.bytes += entry.len();
        settled.bytes += entry.len() as i64;
        self.entries.push_front(entry);
    }

    /// Drops the oldest messages that are not begun until `len` more bytes fit into `max`, as far as there are any.
    pub(crate) fn make_room(&mut self, len: usize, max: usize, settled: &mut Settled) {
        self.split_head(settled);
        let mut at = self.fixed_front();
        while self.bytes + len > max && at < self.entries.len() {
            if self.entries[at].class == Class::Plain {
                let entry = &self.entries[at];
                Gap::widen(&mut self.front_gap, entry.len(), entry.deliveries);
                self.fail(at, FailureReason::QueueFull, settled);
            } else {
                at += 1;
            }
        }
    }

    /// Takes note of a message that is not taken.
    pub(crate) fn refuse(&mut self, len: usize, deliveries: u32) {
        Gap::widen(&mut self.back_gap, len, deliveries);
    }

    fn tell_back_gap(&mut self, settled: &mut Settled) {
        if let Some(gap) = self.back_gap.take() {
            self.push(gap.into_entry(), settled);
        }
    }

    /// Drops everything that is not begun, but for the class that is never dropped where `keep_must`; what is begun
    /// ends with the frame that the peer has seen the start of.
    pub(crate) fn cut(&mut self, reason: FailureReason, keep_must: bool, settled: &mut Settled) {
        (self.front_gap, self.back_gap) = (None, None);
        self.split_head(settled);
        let mut at = self.fixed_front();
        while at < self.entries.len() {
            if keep_must && self.entries[at].class == Class::Must {
                at += 1;
            } else {
                self.fail(at, reason, settled);
            }
        }
    }

    /// Makes the border behind the frame that is begun one between entries, where it is within joined frames.
    fn split_head(&mut self, settled: &mut Settled) {
        if self.in_flight > 0 {
            return;
        }
        // Only deliveries are joined.
        let Some(head) = self.entries.front_mut().filter(|e| e.written > 0 && e.deliveries > 0) else { return };
        let (whole, begun) = frame_at(&head.bytes, head.written);
        if begun == (0..head.bytes.len()) {
            return;
        }
        let sent = whole.min(head.deliveries);
        settled.sent += sent;
        head.deliveries -= sent;
        let rest = head.bytes.slice(begun.end..);
        head.written -= begun.start;
        if begun.is_empty() {
            head.bytes = rest;
            return;
        }
        head.bytes = head.bytes.slice(begun);
        if !rest.is_empty() {
            let deliveries = head.deliveries.saturating_sub(1);
            head.deliveries -= deliveries;
            let rest = Entry { bytes: rest, written: 0, class: head.class, deliveries, settle: None };
            self.entries.insert(1, rest);
        }
    }

    /// Ends everything with the connection. Whole frames that were written count as sent.
    pub(crate) fn end(mut self, settled: &mut Settled) {
        self.in_flight = 0;
        settled.bytes -= self.bytes as i64;
        for entry in self.entries {
            let (whole, _) = border_after(&entry.bytes, entry.written);
            let sent = whole.min(entry.deliveries);
            settled.sent += sent;
            settled.conn_closed += entry.deliveries - sent;
            if let Some(settle) = entry.settle {
                settled.told.push((settle, Err(FailureReason::ConnClosed)));
            }
        }
    }

    /// The next bytes to write, at most `max_slices` pieces; they stay where they are until [`wrote`](Self::wrote).
    pub(crate) fn take_slices(&mut self, max_slices: usize, settled: &mut Settled) -> Vec<Bytes> {
        if let Some(gap) = self.front_gap.take() {
            let entry = gap.into_entry();
            self.bytes += entry.len();
            settled.bytes += entry.len() as i64;
            self.entries.insert(self.fixed_front(), entry);
        }
        self.in_flight = self.entries.len().min(max_slices);
        self.entries.iter().take(self.in_flight).map(|e| e.bytes.slice(e.written..)).collect()
    }

    /// Takes account of `len` written bytes and ends what they finish.
    pub(crate) fn wrote(&mut self, mut len: usize, settled: &mut Settled) {
        self.in_flight = 0;
        self.bytes -= len;
        settled.bytes -= len as i64;
        while let Some(head) = self.entries.front_mut() {
            if head.len() > len {
                head.written += len;
                return;
            }
            len -= head.len();
            if let Some(done) = self.entries.pop_front() {
                settled.sent += done.deliveries;
                if let Some(settle) = done.settle {
                    settled.told.push((settle, Ok(())));
                }
            }
        }
        // Nothing may follow for long: who has caught up learns at once what it missed.
        self.tell_back_gap(settled);
    }

    /// How many entries at the front must stay: being written, or begun.
    fn fixed_front(&self) -> usize {
        let begun = self.entries.front().is_some_and(|e| e.written > 0);
        self.in_flight.max(usize::from(begun))
    }

    fn fail(&mut self, at: usize, reason: FailureReason, settled: &mut Settled) {
        if let Some(entry) = self.remove(at, settled) {
            match reason {
                FailureReason::QueueFull => settled.queue_full += entry.deliveries,
                _ => settled.conn_closed += entry.deliveries,
            }
            if let Some(settle) = entry.settle {
                settled.told.push((settle, Err(reason)));
            }
        }
    }

    fn remove(&mut self, at: usize, settled: &mut Settled) -> Option<Entry> {
        let entry = self.entries.remove(at)?;
        self.bytes -= entry.len();
        settled.bytes -= entry.len() as i64;
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame::text_frame;

    fn entry(class: Class, payload_len: usize, deliveries: u32) -> Entry {
        let mut bytes = Vec::new();
        let mut buffer = Vec::new();
        for _ in 0..deliveries.max(1) {
            bytes.extend_from_slice(text_frame(&mut buffer, |out| out.extend(vec![b'x'; payload_len])));
        }
        Entry { bytes: bytes.into(), written: 0, class, deliveries, settle: None }
    }

    fn pong() -> Entry {
        Entry { bytes: Bytes::from_static(&[0x8A, 0]), written: 0, class: Class::Control, deliveries: 0, settle: None }
    }

    #[test]
    fn a_pong_passes_at_a_border_and_only_the_newest_stays() {
        let mut queue = Queue::default();
        let mut settled = Settled::default();
        queue.push(entry(Class::Plain, 10, 1), &mut settled);
        queue.take_slices(16, &mut settled);
        queue.wrote(3, &mut settled);
        queue.push(entry(Class::Plain, 20, 1), &mut settled);
        queue.push(pong(), &mut settled);
        queue.push(pong(), &mut settled);
        let lens: Vec<usize> = queue.take_slices(16, &mut settled).iter().map(Bytes::len).collect();
        assert_eq!(lens, [9, 2, 22]);
    }

    #[test]
    fn a_pong_passes_joined_frames_too() {
        let mut queue = Queue::default();
        let mut settled = Settled::default();
        queue.push(entry(Class::Plain, 8, 4), &mut settled);
        queue.take_slices(1, &mut settled);
        queue.wrote(13, &mut settled);
        queue.push(pong(), &mut settled);
        let lens: Vec<usize> = queue.take_slices(16, &mut settled).iter().map(Bytes::len).collect();
        assert_eq!(lens, [7, 2, 20]);
        queue.wrote(9, &mut settled);
        assert_eq!((settled.sent, queue.deliveries()), (2, 2));
        // At a border exactly nothing is begun.
        queue.take_slices(1, &mut settled);
        queue.wrote(10, &mut settled);
        queue.push(pong(), &mut settled);
        let lens: Vec<usize> = queue.take_slices(16, &mut settled).iter().map(Bytes::len).collect();
        assert_eq!(lens, [2, 10]);
        queue.wrote(12, &mut settled);
        assert_eq!((settled.sent, settled.bytes), (4, 0));
    }

    #[test]
    fn joined_frames_that_are_not_begun_make_room_too() {
        let mut queue = Queue::default();
        let mut settled = Settled::default();
        queue.push(entry(Class::Plain, 8, 10), &mut settled);
        queue.take_slices(1, &mut settled);
        queue.wrote(1, &mut settled);
        queue.make_room(10, 20, &mut settled);
        assert_eq!((queue.bytes(), queue.deliveries(), settled.queue_full), (9, 1, 9));
    }

    #[test]
    fn room_is_made_from_the_oldest_that_is_not_begun() {
        let mut queue = Queue::default();
        let mut settled = Settled::default();
        for deliveries in [1, 2, 3] {
            queue.push(entry(Class::Plain, 8, deliveries), &mut settled);
        }
        queue.push(entry(Class::Must, 8, 0), &mut settled);
        queue.take_slices(1, &mut settled);
        queue.wrote(1, &mut settled);
        queue.make_room(10, 60, &mut settled);
        assert_eq!(settled.queue_full, 2);
        assert_eq!(queue.deliveries(), 4);
        queue.make_room(10, 0, &mut settled);
        assert_eq!(queue.deliveries(), 1);
        assert_eq!(queue.bytes(), 9 + 10);
    }

    #[test]
    fn a_cut_ends_with_the_frame_that_is_begun() {
        let mut queue = Queue::default();
        let mut settled = Settled::default();
        queue.push(entry(Class::Plain, 8, 3), &mut settled);
        queue.push(entry(Class::Plain, 8, 1), &mut settled);
        queue.take_slices(1, &mut settled);
        queue.wrote(13, &mut settled);
        queue.cut(FailureReason::QueueFull, false, &mut settled);
        // Of three joined frames the first is written and the second begun.
        assert_eq!((queue.bytes(), queue.deliveries()), (7, 1));
        assert_eq!((settled.sent, settled.queue_full), (1, 2));
        queue.take_slices(1, &mut settled);
        queue.wrote(7, &mut settled);
        assert_eq!(settled.sent, 2);
        assert!(queue.is_empty());
    }

    #[derive(Clone, Debug)]
    enum Op {
        Push(u8, usize, u32),
        Write(usize),
        MakeRoom(usize),
        Cut,
    }

    proptest! {
        #[test]
        fn every_delivery_and_byte_is_accounted_for(
            ops in prop::collection::vec(
                prop_oneof![
                    (0..3_u8, 0..300_usize, 1..4_u32).prop_map(|(c, l, d)| Op::Push(c, l, d)),
                    (0..900_usize).prop_map(Op::Write),
                    (0..900_usize).prop_map(Op::MakeRoom),
                    Just(Op::Cut),
                ],
                0..40,
            )
        ) {
            let mut queue = Queue::default();
            let mut settled = Settled::default();
            let mut taken = 0;
            for op in ops {
                match op {
                    Op::Push(0, ..) => queue.push(pong(), &mut settled),
                    Op::Push(1, len, _) => queue.push(entry(Class::Must, len, 0), &mut settled),
                    Op::Push(_, len, deliveries) => {
                        taken += deliveries;
                        queue.push(entry(Class::Plain, len, deliveries), &mut settled);
                    }
                    Op::Write(len) => {
                        let offered: usize = queue.take_slices(4, &mut settled).iter().map(Bytes::len).sum();
                        queue.wrote(len.min(offered), &mut settled);
                    }
                    Op::MakeRoom(max) => queue.make_room(0, max, &mut settled),
                    Op::Cut => queue.cut(FailureReason::QueueFull, true, &mut settled),
                }
                prop_assert_eq!(settled.bytes, queue.bytes() as i64);
            }
            queue.end(&mut settled);
            prop_assert_eq!(settled.bytes, 0);
            prop_assert_eq!(settled.sent + settled.queue_full + settled.conn_closed, taken);
        }
    }
}
