//! As much WebSocket as a client needs that costs next to nothing.

use std::io::{self, Read};

use anyhow::ensure;

/// A frame of the server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) opcode: u8,
    pub(crate) payload: &'a [u8],
}

pub(crate) const TEXT: u8 = 1;
pub(crate) const CLOSE: u8 = 8;
pub(crate) const PING: u8 = 9;
pub(crate) const PONG: u8 = 10;

/// The first frame of `bytes` and its length; `None` until it is whole.
pub(crate) fn parse(bytes: &[u8]) -> Option<(Frame<'_>, usize)> {
    let (header, length) = match *bytes.get(1)? {
        126 => (4, u64::from(u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?))),
        127 => (10, u64::from_be_bytes(*bytes.get(2..)?.first_chunk()?)),
        short => (2, u64::from(short)),
    };
    let end = header + usize::try_from(length).ok()?;
    Some((Frame { opcode: bytes[0] & 0x0f, payload: bytes.get(header..end)? }, end))
}

/// Appends a masked frame. The mask protects from nothing here, but the server's unmasking is not spared its work.
pub(crate) fn write(out: &mut Vec<u8>, opcode: u8, payload: impl FnOnce(&mut Vec<u8>)) {
    const MASK: [u8; 4] = [0x5a, 0xa5, 0x3c, 0xc3];
    let start = out.len();
    // The longest header; moved up where a shorter one will do.
    out.extend_from_slice(&[0; 14]);
    let body = out.len();
    payload(out);
    let length = out.len() - body;
    for (byte, mask) in out[body..].iter_mut().zip(MASK.iter().cycle()) {
        *byte ^= mask;
    }
    let mut header = vec![0x80 | opcode];
    match length {
        0..126 => header.push(0x80 | length as u8),
        126..=0xffff => {
            header.push(0x80 | 126);
            header.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            header.push(0x80 | 127);
            header.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    header.extend_from_slice(&MASK);
    out.splice(start..body, header);
}

/// The request that upgrades.
pub(crate) fn upgrade(query: &str) -> String {
    format!(
        "GET /ws?{query} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// Reads until the answer's head is there, and returns what came behind it.
pub(crate) fn read_head(stream: &mut impl Read) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = find(&bytes, b"\r\n\r\n") {
            ensure!(bytes.starts_with(b"HTTP/1.1 101"), "refused: {}", String::from_utf8_lossy(&bytes));
            return Ok(bytes.split_off(end + 4));
        }
        let mut buffer = [0; 4096];
        let length = stream.read(&mut buffer)?;
        ensure!(length > 0, io::Error::from(io::ErrorKind::UnexpectedEof));
        bytes.extend_from_slice(&buffer[..length]);
    }
}

/// Where `needle` begins.
pub(crate) fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}

/// What a client has to know of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delivery<'a> {
    pub(crate) id: &'a [u8],
    pub(crate) require_ack: bool,
    /// It was sent before.
    pub(crate) is_again: bool,
}

/// Looks at the two ends of a delivery only, where the hub writes what is looked for.
pub(crate) fn delivery(text: &[u8]) -> Option<Delivery<'_>> {
    let id = text.strip_prefix(b"{\"id\":\"")?.get(..ID)?;
    let tail = &text[text.len().saturating_sub(TAIL).max(ID)..];
    let require_ack = find(tail, b"\"require_ack\":true").is_some();
    Some(Delivery { id, require_ack, is_again: find(tail, b"\"attempt\":").is_some() })
}

/// A message id as text.
pub(crate) const ID: usize = 36;

/// Timestamp, `require_ack`, `attempt`, `source`, `priority`.
const TAIL: usize = 120;
