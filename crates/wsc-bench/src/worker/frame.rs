//! WebSocket frames, as far as a client of a load tool needs them.

use std::fmt;

/// What a frame is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

/// A frame from the server, borrowed from what was read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Frame<'a> {
    pub(crate) last: bool,
    pub(crate) opcode: Opcode,
    pub(crate) payload: &'a [u8],
}

/// The server sent what is no frame for a client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct NoFrame(&'static str);

impl fmt::Display for NoFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for NoFrame {}

/// Reads the first frame of `bytes`, from the header alone: the payload is not looked at.
///
/// Returns the frame and how many bytes it takes; `None` until it is whole.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, NoFrame> {
    let &[first, second, ..] = bytes else { return Ok(None) };
    if first & 0x70 != 0 {
        return Err(NoFrame("a frame with a reserved bit, though no extension was offered"));
    }
    if second & 0x80 != 0 {
        return Err(NoFrame("a masked frame from a server"));
    }
    let opcode = match first & 0x0f {
        0x0 => Opcode::Continuation,
        0x1 => Opcode::Text,
        0x2 => Opcode::Binary,
        0x8 => Opcode::Close,
        0x9 => Opcode::Ping,
        0xa => Opcode::Pong,
        _ => return Err(NoFrame("a frame of an unknown kind")),
    };
    let (header, length) = match second & 0x7f {
        126 => {
            let Some(&length) = bytes.get(2..).and_then(|rest| rest.first_chunk()) else {
                return Ok(None);
            };
            (4, u64::from(u16::from_be_bytes(length)))
        }
        127 => {
            let Some(&length) = bytes.get(2..).and_then(|rest| rest.first_chunk()) else {
                return Ok(None);
            };
            (10, u64::from_be_bytes(length))
        }
        short => (2, u64::from(short)),
    };
    if length > LONGEST {
        return Err(NoFrame("a frame of more than 64 MiB"));
    }
    let end = header + length as usize;
    let frame = |payload| (Frame { last: first & 0x80 != 0, opcode, payload }, end);
    Ok(bytes.get(header..end).map(frame))
}

/// Appends a whole, masked frame.
pub(crate) fn write(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    out.push(
        0x80 | match opcode {
            Opcode::Continuation => 0x0,
            Opcode::Text => 0x1,
            Opcode::Binary => 0x2,
            Opcode::Close => 0x8,
            Opcode::Ping => 0x9,
            Opcode::Pong => 0xa,
        },
    );
    match payload.len() {
        length @ 0..126 => out.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&MASK);
    let start = out.len();
    out.extend_from_slice(payload);
    for (byte, mask) in out[start..].iter_mut().zip(MASK.iter().cycle()) {
        *byte ^= mask;
    }
}

/// The mask of every frame. It protects caches from scripts, and there are neither here; it is not zero, so that the
/// server's unmasking is not spared its work.
const MASK: [u8; 4] = [0x5a, 0xa5, 0x3c, 0xc3];

/// No server has a reason to send more; a larger figure means that the stream is out of step.
const LONGEST: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn server_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x80 | opcode];
        match payload.len() {
            n @ 0..126 => bytes.push(n as u8),
            n @ 126..=0xffff => {
                bytes.push(126);
                bytes.extend((n as u16).to_be_bytes());
            }
            n => {
                bytes.push(127);
                bytes.extend((n as u64).to_be_bytes());
            }
        }
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn a_frame_is_whole_only_with_its_last_byte() {
        for size in [0, 1, 125, 126, 127, 65_535, 65_536] {
            let bytes = server_frame(1, &vec![b'x'; size]);
            for cut in [0, 1, 2, 3, 9, bytes.len() / 2, bytes.len() - 1] {
                if cut < bytes.len() {
                    assert_eq!(parse(&bytes[..cut]).unwrap(), None, "{cut} of {size}");
                }
            }
            let (frame, end) = parse(&bytes).unwrap().unwrap();
            assert_eq!((frame.opcode, frame.last, frame.payload.len(), end), (Opcode::Text, true, size, bytes.len()));
        }
    }

    #[test]
    fn what_no_server_may_send_is_refused() {
        for bytes in [[0xc1, 0], [0x81, 0x80], [0x83, 0], [0x8b, 0]] {
            assert!(parse(&bytes).is_err(), "{bytes:02x?}");
        }
        assert!(parse(&[0x81, 127, 0xff, 0, 0, 0, 0, 0, 0, 0]).is_err());
    }

    #[test]
    fn frames_are_written_masked() {
        for size in [0, 5, 125, 126, 65_535, 65_536] {
            let payload = vec![7; size];
            let mut out = Vec::new();
            write(&mut out, Opcode::Text, &payload);
            assert_eq!(out[0], 0x81);
            assert_eq!(out[1] & 0x80, 0x80);
            assert_eq!(out.len(), size + 4 + server_frame(1, &payload).len() - size);
            let body: Vec<u8> = out[out.len() - size..].iter().zip(MASK.iter().cycle()).map(|(b, m)| b ^ m).collect();
            assert_eq!(body, payload);
        }
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_frames(
            sizes in prop::collection::vec(0_usize..300, 1..12),
            cuts in prop::collection::vec(1_usize..90, 1..60),
        ) {
            let stream: Vec<u8> = sizes.iter().flat_map(|&size| server_frame(2, &vec![size as u8; size])).collect();
            let (mut held, mut seen, mut fed) = (Vec::new(), Vec::new(), 0);
            for cut in cuts.into_iter().chain([stream.len()]) {
                let end = (fed + cut).min(stream.len());
                held.extend_from_slice(&stream[fed..end]);
                fed = end;
                while let Some((frame, end)) = parse(&held).unwrap() {
                    seen.push(frame.payload.len());
                    held.drain(..end);
                }
            }
            prop_assert_eq!(seen, sizes);
            prop_assert!(held.is_empty());
        }
    }
}
