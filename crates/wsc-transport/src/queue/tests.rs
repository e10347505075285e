use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;
use crate::frame::{Header, text_frame};

const PRIORITIES: [Priority; 3] = [Priority::High, Priority::Normal, Priority::Low];

fn frame(payload_len: usize) -> Vec<u8> {
    text_frame(&mut Vec::new(), |out| out.extend(vec![b'x'; payload_len])).to_vec()
}

fn entry(kind: Kind, payload_len: usize) -> Entry {
    Entry::new(frame(payload_len).repeat(kind.deliveries.max(1) as usize).into(), kind, 0)
}

fn shared(deliveries: u32, payload_len: usize) -> Entry {
    entry(Kind::shared(deliveries), payload_len)
}

fn pong() -> Entry {
    Entry::new(Bytes::from_static(&[0x8A, 0]), Kind::CONTROL, 0)
}

fn bye() -> Entry {
    Entry::new(Bytes::from_static(b"\x88\x03bye"), Kind::CLOSE, 0)
}

/// A queue with what it has settled, written by hand.
#[derive(Default)]
struct Bench {
    queue: Queue,
    settled: Settled,
}

impl Bench {
    fn push(&mut self, entry: Entry) {
        self.queue.push(entry, &mut self.settled);
    }

    fn offer(&mut self, max_slices: usize) -> Vec<Bytes> {
        self.queue.take_slices(max_slices, 0, &mut self.settled)
    }

    fn lens(&mut self) -> Vec<usize> {
        self.offer(16).iter().map(Bytes::len).collect()
    }

    /// Offers, and takes at most `len` bytes; returns them.
    fn write(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = self.offer(32).concat();
        bytes.truncate(len);
        self.queue.wrote(bytes.len(), &mut self.settled);
        bytes
    }

    /// Writes everything, at most `len` bytes at a time.
    fn drain(&mut self, len: usize) -> Vec<u8> {
        let mut wire = Vec::new();
        while !self.queue.is_empty() {
            wire.extend(self.write(len));
        }
        wire
    }
}

/// The payloads of whole frames, back to back.
fn payloads(mut wire: &[u8]) -> Vec<String> {
    let mut payloads = Vec::new();
    while let Some(header) = Header::parse(wire) {
        let end = header.len + header.payload_len as usize;
        payloads.push(String::from_utf8_lossy(&wire[header.len..end]).into_owned());
        wire = &wire[end..];
    }
    assert!(wire.is_empty(), "half a frame");
    payloads
}

#[test]
fn a_pong_passes_at_a_border_and_only_the_newest_stays() {
    let mut bench = Bench::default();
    bench.push(shared(1, 10));
    bench.write(3);
    bench.push(shared(1, 20));
    bench.push(pong());
    bench.push(pong());
    assert_eq!(bench.lens(), [9, 2, 22]);
}

#[test]
fn a_pong_passes_joined_frames_too() {
    let mut bench = Bench::default();
    bench.push(shared(4, 8));
    bench.write(13);
    bench.push(pong());
    assert_eq!(bench.lens(), [7, 2, 20]);
    bench.queue.wrote(9, &mut bench.settled);
    assert_eq!((bench.settled.sent, bench.queue.messages()), (2, 2));
    // At a border exactly nothing is begun.
    bench.write(10);
    bench.push(pong());
    assert_eq!(bench.lens(), [2, 10]);
    bench.queue.wrote(12, &mut bench.settled);
    assert_eq!((bench.settled.sent, bench.settled.bytes), (4, 0));
}

#[test]
fn joined_frames_make_as_much_room_as_is_needed() {
    let mut bench = Bench::default();
    bench.push(shared(10, 8));
    bench.write(1);
    bench.queue.make_room(25, false, &mut bench.settled);
    assert_eq!((bench.queue.bytes(), bench.queue.messages(), bench.settled.queue_full), (69, 7, 3));
    // The frame that is begun stays whatever is asked.
    bench.queue.make_room(1_000, false, &mut bench.settled);
    assert_eq!((bench.queue.bytes(), bench.queue.messages(), bench.settled.queue_full), (9, 1, 9));
}

#[test]
fn room_is_made_by_the_oldest_whatever_its_priority() {
    let mut bench = Bench::default();
    for priority in [Priority::Low, Priority::High, Priority::Normal] {
        let settle = Arc::<Told>::default();
        bench.push(entry(Kind::single(Terms::plain(priority)), 8).tracked_by(Some(settle)));
    }
    bench.push(entry(Kind::MUST, 8));
    let left = |queue: &Queue| queue.census().lanes.map(|lane| lane.messages);
    bench.queue.make_room(10, false, &mut bench.settled);
    assert_eq!(left(&bench.queue), [1, 1, 0]);
    bench.queue.make_room(10, false, &mut bench.settled);
    assert_eq!(left(&bench.queue), [0, 1, 0]);
    bench.queue.make_room(1_000, false, &mut bench.settled);
    assert_eq!(left(&bench.queue), [0, 0, 0]);
    assert_eq!((bench.queue.bytes(), bench.settled.told.len()), (10, 3));
}

#[test]
fn what_somebody_keeps_leaves_no_gap() {
    let tracked = || Some(Arc::<Told>::default() as Arc<dyn Settle>);
    let plain = || entry(Kind::single(Terms::plain(Priority::Normal)), 8);
    let reliable = || entry(Kind::single(Terms::reliable(Priority::Normal)), 8);
    for (entry, spills, gap) in [
        (plain().tracked_by(tracked()), false, true),
        (plain().tracked_by(tracked()), true, false),
        (plain(), true, true),
        (reliable().tracked_by(tracked()), false, false),
        (reliable().tracked_by(tracked()), true, false),
        // Nobody would ever know.
        (reliable(), false, true),
        (shared(1, 8), true, true),
    ] {
        let mut bench = Bench::default();
        let said = format!("{entry:?} {spills}");
        bench.push(entry);
        bench.queue.make_room(1, spills, &mut bench.settled);
        assert_eq!(bench.queue.front_gap.is_some(), gap, "{said}");
        assert_eq!(bench.queue.census().lost.messages, u64::from(gap), "{said}");
    }
}

#[test]
fn a_gap_grows_until_its_marker_is_begun() {
    let mut bench = Bench::default();
    for _ in 0..6 {
        bench.push(shared(1, 8));
    }
    bench.queue.make_room(20, false, &mut bench.settled);
    // The kernel takes nothing.
    bench.write(0);
    bench.queue.make_room(10, false, &mut bench.settled);
    bench.write(1);
    // It takes a byte of the marker: what is dropped now is told by another.
    bench.queue.make_room(10, false, &mut bench.settled);
    let mut wire = bench.drain(7);
    wire.insert(0, 0x81);
    let payloads = payloads(&wire);
    assert_eq!(payloads.len(), 4);
    assert!(payloads[0].contains("\"dropped\":3,\"bytes\":30,"), "{payloads:?}");
    assert!(payloads[1].contains("\"dropped\":1,\"bytes\":10,"), "{payloads:?}");
    assert_eq!(bench.settled.bytes, 0);
}

#[test]
fn a_cut_ends_with_the_frame_that_is_begun() {
    let mut bench = Bench::default();
    bench.push(shared(3, 8));
    bench.push(shared(1, 8));
    bench.write(13);
    bench.queue.cut(FailureReason::QueueFull, &mut bench.settled);
    // Of three joined frames the first is written and the second begun.
    assert_eq!((bench.queue.bytes(), bench.queue.messages()), (7, 1));
    assert_eq!((bench.settled.sent, bench.settled.queue_full), (1, 2));
    assert_eq!(bench.write(100).len(), 7);
    assert_eq!(bench.settled.sent, 2);
    assert!(bench.queue.is_empty());
}

#[test]
fn a_cut_during_a_write_fails_what_the_kernel_did_not_begin() {
    let mut bench = Bench::default();
    for _ in 0..4 {
        bench.push(shared(1, 8));
    }
    bench.offer(16);
    bench.queue.cut(FailureReason::QueueFull, &mut bench.settled);
    bench.queue.push_last(bye(), &mut bench.settled);
    bench.queue.wrote(13, &mut bench.settled);
    assert_eq!((bench.settled.sent, bench.settled.queue_full), (1, 2));
    assert_eq!(bench.lens(), [7, 5]);
}

#[test]
fn the_last_word_comes_last() {
    let mut bench = Bench::default();
    for priority in [Priority::Low, Priority::Normal] {
        bench.push(entry(Kind::single(Terms::plain(priority)), 8));
    }
    bench.queue.refuse(100, 1);
    bench.queue.push_last(bye(), &mut bench.settled);
    let payloads = payloads(&bench.drain(3));
    assert_eq!(payloads.len(), 4);
    assert!(payloads.iter().any(|p| p.contains("\"dropped\":1,\"bytes\":100,")), "{payloads:?}");
    assert_eq!(payloads[3], "bye");
}

#[test]
fn the_urgent_go_behind_the_frame_that_is_begun() {
    let mut bench = Bench::default();
    bench.push(shared(1_000, 8));
    bench.push(entry(Kind::single(Terms::plain(Priority::Low)), 8));
    bench.write(5_003);
    bench.push(entry(Kind::single(Terms::plain(Priority::High)), 20));
    assert_eq!(&bench.lens()[..2], [7, 22]);
}

#[test]
fn bytes_are_shared_out_by_weight() {
    // Of different sizes, so that it is bytes and not messages that count.
    let sizes = [3_000, 40, 700];
    let mut bench = Bench::default();
    for (n, priority) in PRIORITIES.into_iter().enumerate() {
        for _ in 0..2_000_000 / sizes[n] {
            bench.push(entry(Kind::single(Terms::plain(priority)), sizes[n]));
        }
    }
    let full = bench.queue.census().lanes.map(|lane| lane.bytes);
    let mut written = 0;
    for _ in 0..100 {
        written += bench.write(13_000).len() as u64;
        let left = bench.queue.census().lanes;
        let fair = [8, 4, 1].map(|weight| written * weight / 13);
        for n in 0..3 {
            // At every moment, but for the frame at hand.
            assert!((full[n] - left[n].bytes).abs_diff(fair[n]) < 9_000, "{n}: {fair:?} {full:?} {left:?}");
        }
    }
}

#[test]
fn idleness_earns_nothing() {
    let mut bench = Bench::default();
    let of = |priority| entry(Kind::single(Terms::plain(priority)), 998 - 4);
    for _ in 0..2_000 {
        bench.push(of(Priority::Low));
    }
    for _ in 0..1_000 {
        bench.write(998);
    }
    // Nobody else had anything to say until now; now the low one does not wait for a million bytes of others.
    for _ in 0..500 {
        bench.push(of(Priority::High));
        bench.push(of(Priority::Normal));
    }
    let low = bench.queue.census().lanes[2].messages;
    for _ in 0..130 {
        bench.write(998);
    }
    let served = low - bench.queue.census().lanes[2].messages;
    assert!((9..=11).contains(&served), "{served}");
}

/// Counts what it was told; by its address it can be told from others.
#[derive(Debug, Default)]
struct Told(#[expect(dead_code, reason = "takes up an address")] Mutex<u32>);

impl Settle for Told {
    fn settle(&self, _: Result<(), FailureReason>) {}
}

#[derive(Clone, Debug)]
enum Op {
    Control,
    Must(usize),
    Shared(usize, u32),
    Single(usize, u8, bool),
    /// An inline write's rest; only where there is no queue.
    Rest(usize, u32, usize),
    /// A write of so many bytes, during which the next operations happen where it says so.
    Begin,
    Wrote(usize),
    MakeRoom(usize, bool),
    Refuse(usize, u32),
    Cut,
    Last,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => Just(Op::Control),
        3 => (0..300_usize).prop_map(Op::Must),
        6 => (0..300_usize, 1..6_u32).prop_map(|(l, d)| Op::Shared(l, d)),
        1 => (20_000..40_000_usize, 1..6_u32).prop_map(|(l, d)| Op::Shared(l, d)),
        8 => (0..300_usize, 0..3_u8, any::<bool>()).prop_map(|(l, p, r)| Op::Single(l, p, r)),
        1 => (0..300_usize, 1..6_u32, 0..900_usize).prop_map(|(l, d, w)| Op::Rest(l, d, w)),
        6 => Just(Op::Begin),
        8 => prop_oneof![3 => 0..900_usize, 1 => 0..100_000_usize].prop_map(Op::Wrote),
        3 => (0..900_usize, any::<bool>()).prop_map(|(e, s)| Op::MakeRoom(e, s)),
        1 => (0..300_usize, 1..4_u32).prop_map(|(l, d)| Op::Refuse(l, d)),
    ]
}

/// What a run must come to, kept beside it.
#[derive(Default)]
struct Model {
    bench: Bench,
    wire: Vec<u8>,
    offered: Option<Vec<u8>>,
    /// Deliveries that were taken.
    deliveries: u32,
    /// Messages of one user that were taken, by the address of who tracks them.
    tracked: HashMap<usize, Arc<Told>>,
    next: u32,
    refused: u64,
    is_closing: bool,
    is_cut: bool,
}

impl Model {
    /// A frame that says its lane and its number.
    fn frame(&mut self, lane: usize, len: usize) -> Vec<u8> {
        let n = self.next;
        self.next += 1;
        let text = format!("{lane} {n} {}", "x".repeat(len));
        text_frame(&mut Vec::new(), |out| out.extend_from_slice(text.as_bytes())).to_vec()
    }

    fn joined(&mut self, len: usize, deliveries: u32) -> Entry {
        self.deliveries += deliveries;
        let bytes: Vec<u8> = (0..deliveries).flat_map(|_| self.frame(1, len)).collect();
        Entry::new(bytes.into(), Kind::shared(deliveries), 0)
    }

    fn apply(&mut self, op: &Op) {
        let Self { bench, .. } = self;
        match *op {
            Op::Begin => {
                if self.offered.is_none() && !bench.queue.is_empty() {
                    self.offered = Some(bench.offer(8).concat());
                }
            }
            Op::Wrote(len) => {
                if self.offered.is_none() && bench.queue.is_empty() {
                    return;
                }
                let mut bytes = self.offered.take().unwrap_or_else(|| bench.offer(8).concat());
                bytes.truncate(len);
                bench.queue.wrote(bytes.len(), &mut bench.settled);
                self.wire.extend(bytes);
            }
            Op::MakeRoom(excess, spills) => bench.queue.make_room(excess, spills, &mut bench.settled),
            Op::Cut => {
                bench.queue.cut(FailureReason::QueueFull, &mut bench.settled);
                self.is_cut = true;
                self.is_closing = true;
            }
            Op::Last => {
                let entry = bye();
                bench.queue.push_last(entry, &mut bench.settled);
                self.is_closing = true;
            }
            // Whoever is closing takes nothing more.
            _ if self.is_closing => {}
            Op::Control => bench.push(pong()),
            Op::Must(len) => {
                let frame = self.frame(1, len);
                self.bench.push(Entry::new(frame.into(), Kind::MUST, 0));
            }
            Op::Shared(len, deliveries) => {
                let entry = self.joined(len, deliveries);
                self.bench.push(entry);
            }
            Op::Rest(len, deliveries, written) => {
                if self.bench.queue.is_empty() && self.offered.is_none() {
                    // Such a queue is given up; the next one is new.
                    self.bench.queue = Queue::default();
                    let entry = self.joined(len, deliveries);
                    let written = written.min(entry.len() - 1);
                    self.wire.extend_from_slice(&entry.bytes[..written]);
                    self.bench.queue.push_rest(entry, written, &mut self.bench.settled);
                }
            }
            Op::Single(len, priority, is_reliable) => {
                let frame = self.frame(priority.into(), len);
                let terms = Terms { priority: PRIORITIES[usize::from(priority)], is_reliable };
                let told = Arc::<Told>::default();
                self.tracked.insert(Arc::as_ptr(&told) as usize, Arc::clone(&told));
                self.bench.push(Entry::new(frame.into(), Kind::single(terms), 0).tracked_by(Some(told)));
            }
            Op::Refuse(len, deliveries) => {
                if bench.queue.bytes() > 0 {
                    bench.queue.refuse(len, deliveries);
                    self.refused += u64::from(deliveries);
                }
            }
        }
    }
}

proptest! {
    /// Whatever happens in whatever order: bytes add up, every delivery ends once, everybody who tracks a message is
    /// told once, what is written is whole and in order within its lane, and gaps tell of everything that is missing.
    #[test]
    fn everything_is_accounted_for(
        ops in prop::collection::vec(op(), 0..60),
        ending in prop_oneof![Just(None), Just(Some(Op::Cut)), Just(Some(Op::Last))],
        is_drained: bool,
        step in 1..3_000_usize,
    ) {
        let mut model = Model::default();
        for op in ops.iter().chain(&ending) {
            model.apply(op);
            prop_assert_eq!(model.bench.settled.bytes, model.bench.queue.bytes() as i64);
            let waiting: usize = model.bench.queue.entries().map(Entry::len).sum();
            prop_assert_eq!(waiting, model.bench.queue.bytes());
        }
        if model.is_cut {
            model.apply(&Op::Last);
        }
        if is_drained {
            while model.offered.is_some() || !model.bench.queue.is_empty() {
                // A long backlog in longer steps: each offer is copied.
                model.apply(&Op::Wrote(step.max(model.bench.queue.bytes() / 50)));
            }
        }
        let Model { bench: Bench { queue, mut settled }, wire, deliveries, tracked, is_closing, is_cut, .. } = model;
        queue.end(&mut settled);
        prop_assert_eq!(settled.bytes, 0);
        prop_assert_eq!(settled.sent + settled.queue_full + settled.conn_closed, deliveries);
        let told: Vec<usize> = settled.told.iter().map(|(s, _)| Arc::as_ptr(s).cast::<()>() as usize).collect();
        prop_assert_eq!(told.len(), tracked.len());
        prop_assert_eq!(told.into_iter().collect::<HashSet<_>>(), tracked.keys().copied().collect::<HashSet<_>>());
        if is_drained {
            let texts = payloads(&wire);
            let mut last = [None; 3];
            let mut shared_seen = 0;
            for text in &texts {
                let mut words = text.split(' ');
                let (Some(lane), Some(n)) = (words.next(), words.next()) else { continue };
                let (Ok(lane), Ok(n)) = (lane.parse::<usize>(), n.parse::<u32>()) else { continue };
                prop_assert!(last[lane] < Some(n), "{} after {:?}", n, last[lane]);
                last[lane] = Some(n);
                shared_seen += 1;
            }
            prop_assert!(shared_seen >= settled.sent);
            prop_assert_eq!(settled.conn_closed, 0);
            if is_closing {
                prop_assert_eq!(texts.last().map(String::as_str), Some("bye"));
            }
            // Nobody keeps frames of a fan-out: all that are not sent are in a gap, unless the farewell says it.
            let told: u64 = texts.iter().filter_map(|t| t.split_once("\"dropped\":")?.1.split(',').next()?.parse::<u64>().ok()).sum();
            if !is_cut {
                prop_assert!(told >= u64::from(settled.queue_full) + model.refused, "{told} of {} and {}", settled.queue_full, model.refused);
            }
        }
    }
}
