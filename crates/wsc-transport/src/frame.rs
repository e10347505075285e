//! Frames of RFC 6455 §5.2: reading headers, unmasking, writing.

use std::{cell::OnceCell, ops::Range};

use bytes::Bytes;
use wsc_protocol::CloseReason;

use crate::deflate;

pub(crate) const OP_CONTINUATION: u8 = 0x0;
pub(crate) const OP_TEXT: u8 = 0x1;
pub(crate) const OP_BINARY: u8 = 0x2;
pub(crate) const OP_CLOSE: u8 = 0x8;
pub(crate) const OP_PONG: u8 = 0xA;

/// The reserved bit that says "compressed" (RFC 7692 §6).
pub(crate) const RSV1: u8 = 0x40;

/// The heartbeat: a ping without payload, the same bytes for everybody.
pub(crate) const PING: Bytes = Bytes::from_static(&[0x89, 0x00]);

/// Two bytes, eight of length, four of mask.
pub(crate) const MAX_HEADER_LEN: usize = 14;

/// A frame's header as it stands on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) is_final: bool,
    /// The three reserved bits, `0` where no extension uses them.
    pub(crate) reserved: u8,
    pub(crate) opcode: u8,
    pub(crate) mask: Option<[u8; 4]>,
    /// Length of the header itself.
    pub(crate) len: usize,
    pub(crate) payload_len: u64,
}

impl Header {
    /// Reads the header that `bytes` starts with; `None` where it is not complete.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let (&[first, second], rest) = bytes.split_first_chunk()?;
        let (payload_len, rest) = match second & 0x7F {
            126 => {
                let (length, rest) = rest.split_first_chunk()?;
                (u16::from_be_bytes(*length).into(), rest)
            }
            127 => {
                let (length, rest) = rest.split_first_chunk()?;
                (u64::from_be_bytes(*length), rest)
            }
            length => (length.into(), rest),
        };
        let (mask, rest) = if second & 0x80 == 0 {
            (None, rest)
        } else {
            let (mask, rest) = rest.split_first_chunk()?;
            (Some(*mask), rest)
        };
        Some(Self {
            is_final: first & 0x80 != 0,
            reserved: first & 0x70,
            opcode: first & 0x0F,
            mask,
            len: bytes.len() - rest.len(),
            payload_len,
        })
    }
}

/// Undoes the masking of RFC 6455 §5.3, eight bytes at a time.
pub(crate) fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, tail) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in tail.iter_mut().zip(mask.into_iter().cycle()) {
        *byte ^= mask;
    }
}

/// Where the header of an unmasked frame of this length ends, and its bytes right-aligned in ten.
fn header_of(opcode: u8, payload_len: usize) -> ([u8; MAX_SERVER_HEADER_LEN], usize) {
    let mut header = [0; MAX_SERVER_HEADER_LEN];
    let first = 0x80 | opcode;
    let len = match payload_len {
        0..=125 => {
            header[8..].copy_from_slice(&[first, payload_len as u8]);
            2
        }
        126..=0xFFFF => {
            header[6..8].copy_from_slice(&[first, 126]);
            header[8..].copy_from_slice(&(payload_len as u16).to_be_bytes());
            4
        }
        _ => {
            header[..2].copy_from_slice(&[first, 127]);
            header[2..].copy_from_slice(&(payload_len as u64).to_be_bytes());
            10
        }
    };
    (header, len)
}

/// A server's header has no mask.
const MAX_SERVER_HEADER_LEN: usize = 10;

/// Encodes one text frame: `write` appends the payload, the header is put before it without moving it.
///
/// The buffer is cleared first; its capacity can be used again and again.
///
/// ```
/// let mut buffer = Vec::new();
/// let frame = wsc_transport::text_frame(&mut buffer, |payload| payload.extend_from_slice(b"hi"));
/// assert_eq!(frame, b"\x81\x02hi");
/// ```
pub fn text_frame(buffer: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) -> &[u8] {
    buffer.clear();
    buffer.extend_from_slice(&[0; MAX_SERVER_HEADER_LEN]);
    write(buffer);
    let (header, len) = header_of(OP_TEXT, buffer.len() - MAX_SERVER_HEADER_LEN);
    let start = MAX_SERVER_HEADER_LEN - len;
    buffer[start..MAX_SERVER_HEADER_LEN].copy_from_slice(&header[start..]);
    &buffer[start..]
}

/// One unmasked, final frame.
pub(crate) fn data_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let (header, len) = header_of(opcode, payload.len());
    [&header[MAX_SERVER_HEADER_LEN - len..], payload].concat()
}

/// One encoded message on its way to receivers of which some agreed to compression: for all of them it is
/// compressed at most once.
#[derive(Debug)]
pub struct Encoded<'f> {
    plain: &'f [u8],
    packed: OnceCell<Option<Vec<u8>>>,
}

impl<'f> Encoded<'f> {
    /// `bytes` is one whole, unmasked data frame, as [`text_frame`] makes it.
    pub fn new(bytes: &'f [u8]) -> Self {
        Self { plain: bytes, packed: OnceCell::new() }
    }

    /// The frame as it was encoded.
    pub fn plain(&self) -> &'f [u8] {
        self.plain
    }

    /// The frame with its payload compressed; `None` where that is shorter than `threshold` or does not shrink.
    pub(crate) fn packed(&self, threshold: usize) -> Option<&[u8]> {
        self.packed.get_or_init(|| deflate::pack(self.plain, threshold)).as_deref()
    }
}

/// A close frame with the code and the reason's JSON (protocol §2, *Close codes*).
pub(crate) fn close_frame(close: &CloseReason) -> Bytes {
    let json = close.to_json();
    let mut frame = Vec::with_capacity(4 + json.len());
    frame.extend_from_slice(&[0x80 | OP_CLOSE, (2 + json.len()) as u8]);
    frame.extend_from_slice(&close.code.0.to_be_bytes());
    frame.extend_from_slice(json.as_bytes());
    frame.into()
}

/// How many of the whole frames in `frames` end at or before `offset`, and where the frame that holds `offset` lies;
/// the range is empty where `offset` is a border. `frames` are unmasked frames of ours, back to back.
pub(crate) fn frame_at(frames: &[u8], offset: usize) -> (u32, Range<usize>) {
    let mut whole = 0;
    let mut start = 0;
    while start < offset {
        let Some(header) = Header::parse(&frames[start..]) else { return (whole, start..frames.len()) };
        let end = start + header.len + header.payload_len as usize;
        if end > offset {
            return (whole, start..end.min(frames.len()));
        }
        start = end;
        whole += 1;
    }
    (whole, start..start)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tungstenite::protocol::frame::{
        Frame,
        coding::{Data, OpCode},
    };

    use super::*;

    proptest! {
        #[test]
        fn frames_are_what_tungstenite_writes(len in prop_oneof![0_usize..200, 65_400_usize..65_700]) {
            let payload = vec![b'x'; len];
            let mut expected = Vec::new();
            Frame::message(payload.clone(), OpCode::Data(Data::Text), true).format(&mut expected).unwrap();
            let mut buffer = Vec::new();
            prop_assert_eq!(text_frame(&mut buffer, |out| out.extend_from_slice(&payload)), expected);
        }

        #[test]
        fn unmasking_is_exclusive_or(payload in proptest::collection::vec(any::<u8>(), 0..70), mask: [u8; 4]) {
            let mut actual = payload.clone();
            unmask(&mut actual, mask);
            let expected: Vec<u8> = payload.iter().enumerate().map(|(i, b)| b ^ mask[i % 4]).collect();
            prop_assert_eq!(actual, expected);
        }

        #[test]
        fn headers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            if let Some(header) = Header::parse(&bytes) {
                prop_assert!(header.len <= bytes.len() && header.len <= MAX_HEADER_LEN);
            }
        }
    }

    #[test]
    fn borders_are_found_in_joined_frames() {
        let mut joined = Vec::new();
        let mut buffer = Vec::new();
        for len in [3, 200, 0] {
            joined.extend_from_slice(text_frame(&mut buffer, |out| out.extend(vec![b'x'; len])));
        }
        assert_eq!(joined.len(), 5 + 204 + 2);
        assert_eq!(frame_at(&joined, 0), (0, 0..0));
        assert_eq!(frame_at(&joined, 1), (0, 0..5));
        assert_eq!(frame_at(&joined, 5), (1, 5..5));
        assert_eq!(frame_at(&joined, 6), (1, 5..209));
        assert_eq!(frame_at(&joined, 211), (3, 211..211));
    }
}
