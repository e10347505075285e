//! From bytes to messages.
//!
//! Nearly everything a client sends is one whole, unfragmented, masked data frame: it is unmasked where it lies and
//! handed out borrowed. What is left (fragments, pings, closes, everything that is wrong) goes frame by frame to
//! tungstenite's [`WebSocketContext`], which lives only as long as it is needed, so an idle connection has none.

use std::io::{self, Read, Write};

use tungstenite::{
    Error, Message,
    protocol::{Role, WebSocketConfig, WebSocketContext},
};
use wsc_protocol::CloseCode;

use crate::{
    deflate,
    frame::{Header, MAX_HEADER_LEN, OP_BINARY, OP_CLOSE, OP_CONTINUATION, OP_PONG, OP_TEXT, RSV1, unmask},
};

/// What the front of the input held.
#[derive(Debug)]
pub(crate) enum Decoded<'b> {
    /// No whole frame yet.
    Incomplete,
    /// A frame that needs no answer: a pong, a fragment.
    Nothing,
    /// A whole text message.
    Text(&'b str),
    /// A whole binary message.
    Binary(&'b [u8]),
    /// A message that came in fragments, or compressed.
    Assembled(Message),
    /// A ping; the frame that answers it.
    Ping(Vec<u8>),
    /// A close; the frame that answers it. The peer sends nothing more.
    Close(Vec<u8>),
    /// The peer broke the protocol.
    Violation(Violation),
}

/// Why a connection must be closed, seen from RFC 6455.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) code: CloseCode,
    pub(crate) reason: String,
}

impl Violation {
    pub(crate) fn too_big(limit: usize) -> Self {
        Self { code: CloseCode::TOO_BIG, reason: format!("message is larger than {limit} bytes") }
    }

    pub(crate) fn not_utf8() -> Self {
        Self { code: CloseCode::INVALID_PAYLOAD, reason: "text is not UTF-8".to_owned() }
    }
}

/// The state between two reads: nothing, unless a message is in fragments.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    assembly: Option<Box<Assembly>>,
}

impl Decoder {
    /// Decodes the frame that `input` starts with, where `deflate` says whether messages may be compressed. Returns
    /// how many bytes it took and what it held.
    pub(crate) fn decode<'b>(
        &mut self,
        input: &'b mut [u8],
        max_message_size: usize,
        deflate: bool,
    ) -> (usize, Decoded<'b>) {
        let Some(header) = Header::parse(input) else { return (0, Decoded::Incomplete) };
        let is_packed = deflate && header.reserved == RSV1 && matches!(header.opcode, OP_TEXT | OP_BINARY);
        let continues_packed =
            || header.opcode == OP_CONTINUATION && self.assembly.as_ref().is_some_and(|a| a.packed.is_some());
        let max_len = match is_packed || continues_packed() {
            true => deflate::max_packed_len(max_message_size),
            false => max_message_size,
        };
        // Judged by the announced length alone, before a byte of the payload is kept.
        if header.payload_len > max_len as u64 && header.opcode < OP_CLOSE {
            return (0, Decoded::Violation(Violation::too_big(max_message_size)));
        }
        let malformed = header.mask.is_none()
            || (header.reserved != 0 && !is_packed)
            || (header.opcode >= OP_CLOSE && (header.payload_len > 125 || !header.is_final))
            || !matches!(header.opcode, OP_CONTINUATION..=OP_BINARY | OP_CLOSE..=OP_PONG);
        if malformed {
            // The header is enough to condemn it; the payload may never come.
            let (head, _) = input.split_at(header.len.min(input.len()));
            return (head.len(), self.assembly(max_len).condemn(head, &header));
        }
        let total = header.len + header.payload_len as usize;
        if input.len() < total {
            return (0, Decoded::Incomplete);
        }
        let is_plain = header.is_final && self.assembly.is_none();
        match (header.opcode, header.mask) {
            (opcode, Some(mask)) if is_plain && is_packed => {
                let payload = &mut input[header.len..total];
                unmask(payload, mask);
                (total, unpacked(opcode, payload, max_message_size))
            }
            (OP_TEXT, Some(mask)) if is_plain => {
                let payload = &mut input[header.len..total];
                unmask(payload, mask);
                let decoded = match std::str::from_utf8(payload) {
                    Ok(text) => Decoded::Text(text),
                    Err(_) => Decoded::Violation(Violation::not_utf8()),
                };
                (total, decoded)
            }
            (OP_BINARY, Some(mask)) if is_plain => {
                let payload = &mut input[header.len..total];
                unmask(payload, mask);
                (total, Decoded::Binary(payload))
            }
            (OP_PONG, _) => (total, Decoded::Nothing),
            (opcode, _) => {
                if is_packed {
                    // tungstenite knows no compression: to it these are fragments of any bytes.
                    input[0] = input[0] & 0x80 | OP_BINARY;
                }
                let assembly = self.assembly(max_len);
                let mut decoded = assembly.feed(&input[..total]);
                if let (Decoded::Assembled(message), Some(opcode)) = (&decoded, assembly.packed) {
                    decoded = unpacked(opcode, &message.clone().into_data(), max_message_size);
                }
                let in_fragments = match opcode {
                    OP_TEXT | OP_BINARY | OP_CONTINUATION => !header.is_final,
                    _ => assembly.in_fragments,
                };
                if in_fragments {
                    assembly.in_fragments = true;
                    if opcode < OP_CLOSE {
                        // Each counts as a byte at least: empty ones would otherwise come for ever.
                        assembly.weight += header.payload_len.max(1) as usize;
                        if assembly.weight > max_len {
                            decoded = Decoded::Violation(Violation::too_big(max_message_size));
                        }
                    }
                    if is_packed {
                        assembly.packed = Some(opcode);
                    }
                } else {
                    self.assembly = None;
                }
                (total, decoded)
            }
        }
    }

    fn assembly(&mut self, max_message_size: usize) -> &mut Assembly {
        self.assembly.get_or_insert_with(|| Box::new(Assembly::new(max_message_size)))
    }
}

/// tungstenite's context between the bytes of one frame and the bytes that it answers.
#[derive(Debug)]
struct Assembly {
    context: WebSocketContext,
    in_fragments: bool,
    /// What the fragments so far come to.
    weight: usize,
    /// What the message's first frame was, where it is compressed.
    packed: Option<u8>,
}

impl Assembly {
    fn new(max_message_size: usize) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_SIZE)
            .max_message_size(Some(max_message_size))
            .max_frame_size(Some(max_message_size.max(125)));
        Self {
            context: WebSocketContext::new(Role::Server, Some(config)),
            in_fragments: false,
            weight: 0,
            packed: None,
        }
    }

    /// Gives the context one whole frame.
    fn feed<'b>(&mut self, frame: &[u8]) -> Decoded<'b> {
        let mut io = FrameIo { input: frame, output: Vec::new() };
        let message = match self.context.read(&mut io) {
            Ok(message) => message,
            Err(Error::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => return Decoded::Nothing,
            Err(e) => return Decoded::Violation(violation(&e)),
        };
        match message {
            Message::Ping(_) | Message::Close(_) => {
                // It answers at the next flush; after a close that ends with "connection closed".
                let is_close = message.is_close();
                match self.context.flush(&mut io) {
                    Ok(()) | Err(Error::ConnectionClosed) if is_close => Decoded::Close(io.output),
                    Ok(()) => Decoded::Ping(io.output),
                    Err(e) => Decoded::Violation(violation(&e)),
                }
            }
            Message::Pong(_) | Message::Frame(_) => Decoded::Nothing,
            message => Decoded::Assembled(message),
        }
    }

    /// Lets the context say what is wrong with a frame whose header is bad.
    fn condemn<'b>(&mut self, head: &[u8], header: &Header) -> Decoded<'b> {
        // The payload's length decides nothing here; an empty one lets the context judge at once.
        let mut frame = [0; MAX_HEADER_LEN];
        frame[..2].copy_from_slice(&head[..2]);
        let control_too_big = header.opcode >= OP_CLOSE && header.payload_len > 125;
        frame[1] &= 0x80;
        let len = if header.mask.is_some() { 6 } else { 2 };
        match self.feed(&frame[..len]) {
            Decoded::Violation(violation) => Decoded::Violation(violation),
            _ => {
                let reason = if control_too_big { "control frame is too big" } else { "malformed frame" };
                Decoded::Violation(Violation { code: CloseCode::PROTOCOL_ERROR, reason: reason.into() })
            }
        }
    }
}

fn unpacked<'b>(opcode: u8, payload: &[u8], max_message_size: usize) -> Decoded<'b> {
    match deflate::unpack(opcode, payload, max_message_size) {
        Ok(message) => Decoded::Assembled(message),
        Err(violation) => Decoded::Violation(violation),
    }
}

/// Which close code an error of tungstenite's stands for.
fn violation(error: &Error) -> Violation {
    let (code, reason) = match error {
        Error::Capacity(e) => (CloseCode::TOO_BIG, e.to_string()),
        Error::Utf8(_) => return Violation::not_utf8(),
        Error::Protocol(e) => (CloseCode::PROTOCOL_ERROR, e.to_string()),
        e => (CloseCode::PROTOCOL_ERROR, e.to_string()),
    };
    Violation { code, reason }
}

/// One frame in, the answers out; never blocks but at the frame's end.
struct FrameIo<'f> {
    input: &'f [u8],
    output: Vec<u8>,
}

impl Read for FrameIo<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.input.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.input.read(buffer)
    }
}

impl Write for FrameIo<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The context is made for a ping too: small enough for that, large enough for a fragment.
const READ_BUFFER_SIZE: usize = 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A client's frame.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [1, 2, 3, 4];
        let mut bytes = vec![first];
        match payload.len() {
            len @ 0..=125 => bytes.push(0x80 | len as u8),
            len @ 126..=0xFFFF => {
                bytes.push(0x80 | 126);
                bytes.extend_from_slice(&(len as u16).to_be_bytes());
            }
            len => {
                bytes.push(0x80 | 127);
                bytes.extend_from_slice(&(len as u64).to_be_bytes());
            }
        }
        bytes.extend_from_slice(&mask);
        let start = bytes.len();
        bytes.extend_from_slice(payload);
        unmask(&mut bytes[start..], mask);
        bytes
    }

    /// Everything that a stream of bytes holds, as text, when it arrives in these pieces.
    fn decode_in_pieces<'p>(pieces: impl IntoIterator<Item = &'p [u8]>, max: usize, deflate: bool) -> Vec<String> {
        let mut decoder = Decoder::default();
        let mut buffer: Vec<u8> = Vec::new();
        let mut seen = Vec::new();
        for piece in pieces {
            buffer.extend_from_slice(piece);
            loop {
                let (used, decoded) = decoder.decode(&mut buffer, max, deflate);
                let done = match decoded {
                    Decoded::Incomplete => true,
                    Decoded::Nothing => false,
                    Decoded::Text(text) => {
                        seen.push(format!("text {text}"));
                        false
                    }
                    Decoded::Binary(bytes) => {
                        seen.push(format!("binary {bytes:?}"));
                        false
                    }
                    Decoded::Assembled(Message::Text(text)) => {
                        seen.push(format!("text {text}"));
                        false
                    }
                    Decoded::Assembled(other) => {
                        seen.push(format!("binary {:?}", &other.into_data()[..]));
                        false
                    }
                    Decoded::Ping(reply) => {
                        seen.push(format!("ping {reply:?}"));
                        false
                    }
                    Decoded::Close(reply) => {
                        seen.push(format!("close {reply:?}"));
                        return seen;
                    }
                    Decoded::Violation(violation) => {
                        seen.push(format!("violation {}", violation.code.0));
                        return seen;
                    }
                };
                if done {
                    break;
                }
                buffer.drain(..used);
            }
        }
        assert!(decoder.assembly.is_none() || decoder.assembly.as_ref().is_some_and(|a| a.in_fragments));
        seen
    }

    fn decode(bytes: &[u8]) -> Vec<String> {
        decode_in_pieces([bytes], 1000, false)
    }

    #[test]
    fn whole_frames_are_messages() {
        assert_eq!(decode(&[frame(0x81, b"hi"), frame(0x82, &[1])].concat()), ["text hi", "binary [1]"]);
        assert_eq!(decode(&frame(0x81, b"")), ["text "]);
    }

    #[test]
    fn fragments_are_joined_and_pings_between_them_answered() {
        let bytes =
            [frame(0x01, b"a"), frame(0x89, b"p"), frame(0x00, b"b"), frame(0x80, b"c"), frame(0x81, b"d")].concat();
        assert_eq!(decode(&bytes), ["ping [138, 1, 112]", "text abc", "text d"]);
        // A code point may be cut by a fragment's border.
        assert_eq!(decode(&[frame(0x01, &[0xC3]), frame(0x80, &[0xA4])].concat()), ["text ä"]);
    }

    #[test]
    fn closes_are_answered_in_kind() {
        assert_eq!(decode(&frame(0x88, &[0x03, 0xE8])), ["close [136, 2, 3, 232]"]);
        assert_eq!(decode(&frame(0x88, &[])), ["close [136, 0]"]);
        // 1005 must not stand in a frame (RFC 6455 §7.4.1).
        assert_eq!(decode(&frame(0x88, &[0x03, 0xED]))[0][..15], *"close [136, 20,");
    }

    #[test]
    fn violations_have_their_code() {
        let mut unmasked = frame(0x81, b"hi");
        unmasked[1] = 2;
        let oversized = [0x82, 0x80 | 126, 0x04, 0x00, 0, 0, 0, 0];
        for (bytes, code) in [
            (unmasked, 1002),
            (frame(0xC1, b"x"), 1002),
            (frame(0xF1, b"x"), 1002),
            (frame(0x83, b"x"), 1002),
            (frame(0x8B, b"x"), 1002),
            (frame(0x09, b"x"), 1002),
            (frame(0x89, &[0; 126]), 1002),
            (frame(0x80, b"x"), 1002),
            ([frame(0x01, b"x"), frame(0x81, b"x")].concat(), 1002),
            (frame(0x88, &[1]), 1002),
            (frame(0x81, &[0xFF]), 1007),
            ([frame(0x01, &[0xC3]), frame(0x80, b"x")].concat(), 1007),
            (frame(0x88, &[0x03, 0xE8, 0xFF]), 1007),
            (oversized.to_vec(), 1009),
            ([frame(0x02, &[0; 600]), frame(0x80, &[0; 600])].concat(), 1009),
        ] {
            assert_eq!(decode(&bytes), [format!("violation {code}")], "{bytes:?}");
        }
    }

    #[test]
    fn a_bad_header_is_enough() {
        // Nothing of the payload is there, and the length is absurd.
        let bytes = [0x89, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1, 2, 3, 4];
        assert_eq!(decode(&bytes), ["violation 1002"]);
        let bytes = [0x82, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1, 2, 3, 4];
        assert_eq!(decode(&bytes), ["violation 1009"]);
    }

    fn any_frame() -> impl Strategy<Value = Vec<u8>> {
        let first = prop_oneof![
            4 => prop::sample::select(vec![0x81_u8, 0x82, 0x01, 0x02, 0x00, 0x80, 0x89, 0x8A, 0xC1, 0x41]),
            1 => any::<u8>(),
        ];
        (first, prop::collection::vec(prop_oneof![Just(b'a'), any::<u8>()], 0..140)).prop_map(|(f, p)| frame(f, &p))
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_messages(
            frames in prop::collection::vec(any_frame(), 0..12),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
            deflate: bool,
        ) {
            let stream = frames.concat();
            let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(stream.len() + 1)).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|w| &stream[w[0]..w[1]]);
            prop_assert_eq!(decode_in_pieces(pieces, 100, deflate), decode_in_pieces([&stream[..]], 100, deflate));
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            decode(&bytes);
        }
    }
}
