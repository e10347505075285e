//! The frame layer against tungstenite: the same messages in the same order, the same answers, the same verdict.
//!
//! An input is [`Input`]: a byte that selects the limit, a byte with the number of cuts, two bytes for each, and the
//! client's stream. [`mutate`] knows what frames look like.

use std::io::{self, Read, Write};

use flate2::{Compress, Compression, FlushCompress};
use tungstenite::{
    Error, Message,
    protocol::{Role, WebSocketConfig, WebSocketContext},
};
use wsc_transport::fuzzing::{Heard, Listener};

/// Checks one input.
pub fn check(input: &[u8]) {
    let Some(input) = Input::parse(input) else { return };
    let max = input.max_message_size;
    let ours = listen([input.stream], max, false);
    assert_eq!(listen(input.pieces(), max, false), ours, "the same bytes in pieces");
    agree(&ours, &oracle(input.pieces(), max), &input);
    check_with_deflate(&input, &ours);
    check_packed(&input);
}

/// Where compression was agreed on, whatever does not use it means the same.
fn check_with_deflate(input: &Input<'_>, plain: &[Heard]) {
    let max = input.max_message_size;
    let deflating = listen([input.stream], max, true);
    assert_eq!(listen(input.pieces(), max, true), deflating, "the same bytes in pieces, with compression");
    for heard in &deflating {
        let len = match heard {
            Heard::Text(text) => text.len(),
            Heard::Binary(bytes) => bytes.len(),
            _ => 0,
        };
        assert!(len <= max, "inflated to {len} bytes, more than the {max} allowed");
    }
    let uses_it = frames(input.stream).iter().any(|frame| frame.first & 0x40 != 0);
    if !uses_it {
        assert_eq!(deflating, plain, "nothing is compressed");
    }
}

/// What a client compresses, in as many fragments as there are pieces, is what arrives.
fn check_packed(input: &Input<'_>) {
    let payload = input.stream;
    let text = str::from_utf8(payload);
    let packed = pack(payload);
    let mut stream = Vec::new();
    let fragments = input.cuts.len() - 1;
    let mut rest = &packed[..];
    for at in 0..fragments {
        let is_last = at + 1 == fragments;
        let (fragment, after) =
            rest.split_at(if is_last { rest.len() } else { rest.len().min(input.cuts[at + 1] - input.cuts[at]) });
        rest = after;
        let first = if at == 0 { 0x40 | if text.is_ok() { 1 } else { 2 } } else { 0 };
        Frame::new(first | if is_last { 0x80 } else { 0 }, fragment).write(&mut stream);
    }
    let max = input.max_message_size;
    let expected = match text {
        _ if payload.len() > max => Heard::Violation(1009),
        Ok(text) => Heard::Text(text.to_owned()),
        Err(_) => Heard::Binary(payload.to_vec()),
    };
    assert_eq!(listen([&stream[..]], max, true), [expected]);
}

/// Compresses as RFC 7692 §7.2.1 says.
fn pack(payload: &[u8]) -> Vec<u8> {
    let mut packed = Vec::with_capacity(payload.len() + payload.len() / 8 + 64);
    let mut compress = Compress::new(Compression::fast(), false);
    compress.compress_vec(payload, &mut packed, FlushCompress::Sync).expect("room for all of it");
    assert!(packed.ends_with(&[0, 0, 0xFF, 0xFF]));
    packed.truncate(packed.len() - 4);
    packed
}

/// Compares what we heard with what tungstenite did.
fn agree(ours: &[Heard], theirs: &[Heard], input: &Input<'_>) {
    if ours == theirs {
        return;
    }
    // We condemn a frame as soon as its header is there; tungstenite waits for the payload. Give it one.
    let filler = vec![0; input.max_message_size.max(125) + 16];
    let theirs = oracle([input.stream, &filler], input.max_message_size);
    let (Some((Heard::Violation(our_code), ours)), Some((Heard::Violation(their_code), theirs))) =
        (ours.split_last(), theirs.split_last())
    else {
        panic!("ours {ours:?}\ntheirs {theirs:?}\n{input:?}");
    };
    assert_eq!(ours, theirs, "{input:?}");
    let frames = frames(input.stream);
    let condemned = frames.iter().find(|frame| frame.has_bad_header(input.max_message_size));
    let (opcode, announced) = condemned.map_or((0, 0), |frame| (frame.first & 0x0F, frame.announced));
    let is_excused = match (our_code, their_code) {
        // A control frame beyond the limit of all frames: to us it breaks the protocol before it is too big.
        (1002, 1009) => opcode >= 8,
        // A frame beyond the limit that breaks the protocol too: to us it is too big first. So it is to tungstenite,
        // unless it does not know the opcode, or lets the frame pass that a control frame might be.
        (1009, 1002) => announced > input.max_message_size as u64 && (matches!(opcode, 3..=7) || announced <= 125),
        (ours, theirs) => ours == theirs,
    };
    assert!(is_excused, "ours {our_code}, theirs {their_code}\n{input:?}");
}

fn listen<'p>(pieces: impl IntoIterator<Item = &'p [u8]>, max: usize, deflate: bool) -> Vec<Heard> {
    let mut listener = Listener::new(max, deflate);
    pieces.into_iter().flat_map(|piece| listener.hear(piece)).collect()
}

/// What tungstenite makes of the stream, with our limits.
fn oracle<'p>(pieces: impl IntoIterator<Item = &'p [u8]>, max: usize) -> Vec<Heard> {
    let config = WebSocketConfig::default()
        .read_buffer_size(4096)
        .max_message_size(Some(max))
        // Control frames of 125 bytes are in order whatever the limit of messages is.
        .max_frame_size(Some(max.max(125)));
    let mut context = WebSocketContext::new(Role::Server, Some(config));
    let mut wire = Wire { pieces: pieces.into_iter().collect(), output: Vec::new() };
    wire.pieces.reverse();
    let mut heard = Vec::new();
    loop {
        match context.read(&mut wire) {
            Ok(Message::Text(text)) => heard.push(Heard::Text(text.to_string())),
            Ok(Message::Binary(bytes)) => heard.push(Heard::Binary(bytes.to_vec())),
            Ok(Message::Ping(_)) => {
                context.flush(&mut wire).expect("a pong can be written");
                heard.push(Heard::Ping(std::mem::take(&mut wire.output)));
            }
            Ok(Message::Pong(_)) => {}
            Ok(Message::Close(_)) => {
                // It ends with "connection closed" once the answer is written.
                let _ = context.flush(&mut wire);
                heard.push(Heard::Close(wire.output));
                return heard;
            }
            Ok(Message::Frame(_)) => unreachable!("read() returns no raw frames"),
            Err(Error::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => return heard,
            Err(e) => {
                heard.push(Heard::Violation(match e {
                    Error::Capacity(_) => 1009,
                    Error::Utf8(_) => 1007,
                    _ => 1002,
                }));
                return heard;
            }
        }
    }
}

/// A stream that comes in pieces, the last one first; behind them there is nothing yet.
struct Wire<'p> {
    pieces: Vec<&'p [u8]>,
    output: Vec<u8>,
}

impl Read for Wire<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.pieces.last().is_some_and(|piece| piece.is_empty()) {
            self.pieces.pop();
        }
        match self.pieces.last_mut() {
            Some(piece) => piece.read(buffer),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A client's stream, the limit that it meets and the reads that it is cut into.
#[derive(Debug)]
struct Input<'i> {
    max_message_size: usize,
    cuts: Vec<usize>,
    stream: &'i [u8],
}

/// What the first byte selects: less than a control frame takes, a frame's border, a few frames, more than inputs have.
const LIMITS: [usize; 4] = [20, 125, 600, 70_000];

impl<'i> Input<'i> {
    fn parse(input: &'i [u8]) -> Option<Self> {
        let (&[limit, count], rest) = input.split_first_chunk()?;
        let (cuts, stream) = rest.split_at_checked(2 * usize::from(count % 8))?;
        let (pairs, _) = cuts.as_chunks::<2>();
        let mut cuts: Vec<_> =
            pairs.iter().map(|pair| usize::from(u16::from_le_bytes(*pair)) % (stream.len() + 1)).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        Some(Self { max_message_size: LIMITS[usize::from(limit) % LIMITS.len()], cuts, stream })
    }

    fn pieces(&self) -> impl Iterator<Item = &'i [u8]> {
        let stream = self.stream;
        self.cuts.windows(2).map(move |cut| &stream[cut[0]..cut[1]])
    }
}

/// One frame of a client's stream, as far as it is there.
#[derive(Clone, Debug)]
struct Frame {
    first: u8,
    mask: Option<[u8; 4]>,
    /// 0, 2 or 8 bytes of length behind the first seven bits; shorter ones are not always used where they would do.
    length_bytes: usize,
    payload: Vec<u8>,
    /// The length that the header tells: more than the payload's in a stream's last frame only.
    announced: u64,
}

/// The frames of a stream, as the decoder does not know them; what is no whole header is left out.
fn frames(mut stream: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while let Some((frame, rest)) = frame(stream) {
        frames.push(frame);
        stream = rest;
    }
    frames
}

fn frame(stream: &[u8]) -> Option<(Frame, &[u8])> {
    let (&[first, second], rest) = stream.split_first_chunk()?;
    let length_bytes = match second & 0x7F {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let (length, rest) = rest.split_at_checked(length_bytes)?;
    let announced = match length_bytes {
        0 => u64::from(second & 0x7F),
        _ => length.iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
    };
    let (mask, rest) = if second & 0x80 == 0 {
        (None, rest)
    } else {
        let (mask, rest) = rest.split_first_chunk()?;
        (Some(*mask), rest)
    };
    let (payload, rest) = rest.split_at(rest.len().min(usize::try_from(announced).unwrap_or(usize::MAX)));
    let mut payload = payload.to_vec();
    xor(&mut payload, mask);
    Some((Frame { first, mask, length_bytes, payload, announced }, rest))
}

fn xor(payload: &mut [u8], mask: Option<[u8; 4]>) {
    let mask = mask.unwrap_or_default();
    payload.iter_mut().zip(mask.into_iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
}

impl Frame {
    fn new(first: u8, payload: &[u8]) -> Self {
        Self { first, mask: Some([0x37, 0xFA, 0x21, 0x3D]), length_bytes: 0, payload: payload.to_vec(), announced: 0 }
    }

    /// Whether the header alone is enough to end a connection without extensions.
    fn has_bad_header(&self, max: usize) -> bool {
        let is_control = self.first & 0x08 != 0;
        let longest = if is_control { 125 } else { max as u64 };
        self.mask.is_none()
            || self.first & 0x70 != 0
            || !matches!(self.first & 0x0F, 0..=2 | 8..=10)
            || (is_control && self.first & 0x80 == 0)
            || self.announced > longest
    }

    /// Writes the frame with the length that its payload has, in no fewer bytes than it had.
    fn write(&self, out: &mut Vec<u8>) {
        let len = self.payload.len();
        let length_bytes = match len {
            0..=125 => self.length_bytes,
            126..=0xFFFF => self.length_bytes.max(2),
            _ => 8,
        };
        let seven = match length_bytes {
            0 => len as u8,
            2 => 126,
            _ => 127,
        };
        out.extend_from_slice(&[self.first, seven | if self.mask.is_some() { 0x80 } else { 0 }]);
        out.extend_from_slice(&(len as u64).to_be_bytes()[8 - length_bytes..]);
        out.extend_from_slice(&self.mask.unwrap_or_default()[..if self.mask.is_some() { 4 } else { 0 }]);
        let start = out.len();
        out.extend_from_slice(&self.payload);
        xor(&mut out[start..], self.mask);
    }
}

/// Changes an input of `size` bytes in place, as one who knows frames would; returns the new size.
///
/// `bytes` is the fuzzer's own mutation of the first so many bytes of a buffer; it returns their new number.
pub fn mutate(data: &mut [u8], size: usize, seed: u32, bytes: impl Fn(&mut [u8], usize) -> usize) -> usize {
    let mut rng = fastrand::Rng::with_seed(seed.into());
    let Some(input) = Input::parse(&data[..size]).filter(|_| rng.u8(..4) > 0) else {
        return bytes(data, size);
    };
    let mut frames = frames(input.stream);
    let head = size - input.stream.len();
    for _ in 0..=rng.u8(..3) {
        mutate_frames(&mut frames, &mut rng, &bytes);
    }
    let mut out = data[..head].to_vec();
    if rng.u8(..4) == 0 {
        // Other cuts, or another limit.
        let at = rng.usize(..head);
        out[at] = if at == 1 { out[1] } else { rng.u8(..) };
    }
    frames.iter().for_each(|frame| frame.write(&mut out));
    if rng.u8(..8) == 0 {
        out.truncate(out.len() - rng.usize(..16).min(out.len() - head));
    }
    let len = out.len().min(data.len());
    data[..len].copy_from_slice(&out[..len]);
    len
}

fn mutate_frames(frames: &mut Vec<Frame>, rng: &mut fastrand::Rng, bytes: &impl Fn(&mut [u8], usize) -> usize) {
    let Some(at) = (!frames.is_empty()).then(|| rng.usize(..frames.len())) else {
        frames.push(any_frame(rng));
        return;
    };
    match rng.u8(..12) {
        0..=2 => frames.insert(rng.usize(..=frames.len()), any_frame(rng)),
        3 => {
            frames.remove(at);
        }
        4 => frames.insert(at, frames[at].clone()),
        5 => {
            let other = rng.usize(..frames.len());
            frames.swap(at, other);
        }
        6 => frames[at].first = FIRST_BYTES[rng.usize(..FIRST_BYTES.len())],
        7 => frames[at].mask = (rng.u8(..8) > 0).then(|| rng.u32(..).to_le_bytes()),
        8 => frames[at].length_bytes = [0, 2, 8][rng.usize(..3)],
        9 => {
            // In two fragments.
            let frame = &mut frames[at];
            let rest = frame.payload.split_off(rng.usize(..=frame.payload.len()));
            let rest = Frame { first: frame.first & 0x80, payload: rest, ..frame.clone() };
            frame.first &= 0x7F;
            frames.insert(at + 1, rest);
        }
        _ => {
            let payload = &mut frames[at].payload;
            let len = payload.len();
            payload.resize(len + 64, 0);
            let len = bytes(payload, len);
            payload.truncate(len);
        }
    }
}

/// Whole messages, fragments, controls; now and then with a reserved bit, an unknown opcode or compression.
const FIRST_BYTES: [u8; 16] =
    [0x81, 0x82, 0x01, 0x02, 0x00, 0x80, 0x88, 0x89, 0x8A, 0x81, 0x80, 0xC1, 0x41, 0xC2, 0x08, 0x83];

fn any_frame(rng: &mut fastrand::Rng) -> Frame {
    const TEXT: &str = "aäß€😀\u{7FF}\u{FFFF}\u{10FFFF}";
    let first = FIRST_BYTES[rng.usize(..FIRST_BYTES.len())];
    let payload = match rng.u8(..6) {
        0 => Vec::new(),
        // A code point may be cut.
        1 | 2 => TEXT.as_bytes()[rng.usize(..8)..][..rng.usize(..14)].to_vec(),
        3 => vec![b'x'; [124, 125, 126, 127, 599, 600, 601][rng.usize(..7)]],
        4 => {
            let code = [999, 1000, 1001, 1004, 1005, 1006, 1011, 1015, 3000, 4999, 5000][rng.usize(..11)];
            [&u16::to_be_bytes(code)[..], &TEXT.as_bytes()[..rng.usize(..10)]].concat()
        }
        _ => (0..rng.usize(..12)).map(|_| rng.u8(..)).collect(),
    };
    Frame::new(first, &payload)
}
