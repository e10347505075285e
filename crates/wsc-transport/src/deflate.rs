//! Compression of messages: permessage-deflate (RFC 7692), without context takeover in either direction.
//!
//! Each message is compressed by itself. So one compression serves every receiver that agreed to it, and a connection
//! holds no window between two messages: compressor and decompressor belong to the thread.

use std::{cell::RefCell, str};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use http::{HeaderMap, HeaderValue, header};
use tungstenite::Message;
use wsc_protocol::CloseCode;

use crate::{
    decoder::Violation,
    frame::{Header, OP_BINARY, OP_TEXT, RSV1, data_frame},
};

/// Answers the first offer of `permessage-deflate` that can be accepted (RFC 7692 §5.1, §7.1).
pub(crate) fn negotiate(headers: &HeaderMap) -> Option<HeaderValue> {
    let offers = headers.get_all(header::SEC_WEBSOCKET_EXTENSIONS).iter().filter_map(|value| value.to_str().ok());
    let answer = offers.flat_map(|value| value.split(',')).find_map(answer)?;
    Some(HeaderValue::from_static(answer))
}

/// The answer to one offer; `None` declines it.
fn answer(offer: &str) -> Option<&'static str> {
    let mut parts = offer.split(';').map(str::trim);
    if !parts.next()?.eq_ignore_ascii_case("permessage-deflate") {
        return None;
    }
    let mut seen: Vec<&str> = Vec::new();
    let mut names_server_window = false;
    for part in parts {
        let (name, value) = match part.split_once('=') {
            Some((name, value)) => (name.trim_end(), Some(unquoted(value.trim_start())?)),
            None => (part, None),
        };
        if seen.contains(&name) {
            return None;
        }
        seen.push(name);
        match (name, value) {
            ("server_no_context_takeover" | "client_no_context_takeover", None) => {}
            // Only a hint: what the client sends is inflated with the largest window anyway.
            ("client_max_window_bits", None) => {}
            ("client_max_window_bits", Some(bits)) if is_window(bits) => {}
            // One compression serves all, with the largest window.
            ("server_max_window_bits", Some("15")) => names_server_window = true,
            _ => return None,
        }
    }
    Some(if names_server_window {
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=15"
    } else {
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
    })
}

/// The value of a parameter, which may stand in quotes.
fn unquoted(value: &str) -> Option<&str> {
    match value.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"'),
        None => Some(value),
    }
}

/// 8 to 15, in decimal without leading zeros (RFC 7692 §7.1.2).
fn is_window(bits: &str) -> bool {
    matches!(bits, "8" | "9" | "10" | "11" | "12" | "13" | "14" | "15")
}

/// Compresses an unmasked data frame of ours; `None` where its payload is shorter than `threshold` or would not
/// become smaller.
pub(crate) fn pack(frame: &[u8], threshold: usize) -> Option<Vec<u8>> {
    let header = Header::parse(frame)?;
    let payload = &frame[header.len..];
    if payload.len() < threshold {
        return None;
    }
    // Taken, and put back only where all went well: one that kept bytes back would mix them into the next message, and
    // that of zlib-rs 0.6.8 even panics in the end.
    let mut compress = COMPRESS.take().unwrap_or_else(|| Compress::new(LEVEL, false));
    compress.reset();
    // Room for the worst case, nine bits a literal.
    let mut packed = Vec::with_capacity(payload.len() + payload.len() / 8 + 64);
    compress.compress_vec(payload, &mut packed, FlushCompress::Sync).ok()?;
    if compress.total_in() != payload.len() as u64 || packed.len() == packed.capacity() {
        return None;
    }
    COMPRESS.set(Some(compress));
    // RFC 7692 §7.2.1: the empty block that ends a flush is left out.
    packed.truncate(packed.strip_suffix(TAIL)?.len());
    (packed.len() < payload.len()).then(|| data_frame(header.opcode | RSV1, &packed))
}

/// Longest payload that can be the compressed form of `max` bytes: what does not shrink may grow a little.
pub(crate) fn max_packed_len(max: usize) -> usize {
    max.saturating_add(max / 8).saturating_add(64)
}

/// Inflates a message's payload, at most to `max` bytes.
pub(crate) fn unpack(opcode: u8, payload: &[u8], max: usize) -> Result<Message, Violation> {
    let mut decompress = DECOMPRESS.take().unwrap_or_else(|| Decompress::new(false));
    decompress.reset(false);
    let bytes = inflate(&mut decompress, payload, max);
    DECOMPRESS.set(Some(decompress));
    let bytes = bytes?;
    if opcode == OP_BINARY {
        return Ok(Message::binary(bytes));
    }
    debug_assert_eq!(opcode, OP_TEXT, "only data frames are compressed");
    String::from_utf8(bytes).map(Message::text).map_err(|_| Violation::not_utf8())
}

fn inflate(decompress: &mut Decompress, payload: &[u8], max: usize) -> Result<Vec<u8>, Violation> {
    let corrupt = || Violation { code: CloseCode::INVALID_PAYLOAD, reason: "cannot be inflated".to_owned() };
    // What is reserved depends on what has arrived, not on what it claims to become.
    let mut bytes = Vec::with_capacity(payload.len().saturating_mul(4).clamp(64, max.saturating_add(1).max(64)));
    let mut final_blocks = 0;
    for mut input in [payload, TAIL] {
        loop {
            if bytes.len() == bytes.capacity() {
                bytes.reserve(bytes.len());
            }
            let (consumed, len) = (decompress.total_in(), bytes.len());
            let status = decompress.decompress_vec(input, &mut bytes, FlushDecompress::Sync).map_err(|_| corrupt())?;
            let consumed = (decompress.total_in() - consumed) as usize;
            input = &input[consumed..];
            if bytes.len() > max {
                return Err(Violation::too_big(max));
            }
            match status {
                // A final block inside of a message is allowed (RFC 7692 §7.2.3.5), but each costs a fresh start.
                Status::StreamEnd => {
                    final_blocks += 1;
                    if final_blocks > MAX_FINAL_BLOCKS {
                        return Err(corrupt());
                    }
                    decompress.reset(false);
                    if input.is_empty() {
                        break;
                    }
                }
                _ if input.is_empty() && bytes.len() < bytes.capacity() => break,
                _ if consumed == 0 && bytes.len() == len && len < bytes.capacity() => return Err(corrupt()),
                _ => {}
            }
        }
    }
    // A stream that was cut off stands within a block now, and takes the next one for the rest of it.
    let len = bytes.len();
    bytes.reserve(1);
    match decompress.decompress_vec(EMPTY_FINAL_BLOCK, &mut bytes, FlushDecompress::Sync) {
        Ok(Status::StreamEnd) if bytes.len() == len => Ok(bytes),
        _ => Err(corrupt()),
    }
}

thread_local! {
    /// A few hundred kilobytes, on threads that ever compress.
    static COMPRESS: RefCell<Option<Compress>> = const { RefCell::new(None) };
    static DECOMPRESS: RefCell<Option<Decompress>> = const { RefCell::new(None) };
}

/// What each end leaves out of its messages, and puts back (RFC 7692 §7.2).
const TAIL: &[u8] = &[0x00, 0x00, 0xFF, 0xFF];

const EMPTY_FINAL_BLOCK: &[u8] = &[0x03, 0x00];

/// JSON shrinks to about the same size at every level; the first takes a fraction of the time.
const LEVEL: Compression = Compression::fast();

const MAX_FINAL_BLOCKS: usize = 16;

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

    use proptest::prelude::*;

    use super::*;

    fn agreed(offers: &[&'static str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for offer in offers {
            headers.append(header::SEC_WEBSOCKET_EXTENSIONS, HeaderValue::from_static(offer));
        }
        negotiate(&headers).map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn what_browsers_offer_is_accepted() {
        const ANSWER: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        for offer in [
            "permessage-deflate",
            "permessage-deflate; client_max_window_bits",
            "Permessage-Deflate ; client_max_window_bits = \"10\"; server_no_context_takeover",
            "x-webkit-deflate-frame, permessage-deflate",
            "permessage-deflate; server_max_window_bits=10, permessage-deflate",
        ] {
            assert_eq!(agreed(&[offer]).as_deref(), Some(ANSWER), "{offer}");
        }
        assert_eq!(agreed(&["foo", "permessage-deflate"]).as_deref(), Some(ANSWER));
        let with_window = format!("{ANSWER}; server_max_window_bits=15");
        assert_eq!(agreed(&["permessage-deflate; server_max_window_bits=15"]), Some(with_window));
    }

    #[test]
    fn what_cannot_be_kept_is_declined() {
        for offer in [
            "permessage-bzip2",
            "permessage-deflate; server_max_window_bits=9",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; client_max_window_bits=16",
            "permessage-deflate; client_max_window_bits=08",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; client_max_window_bits; client_max_window_bits",
            "permessage-deflate; turbo",
            "permessage-deflate; client_max_window_bits=\"10",
            "permessage-deflate;",
        ] {
            assert_eq!(agreed(&[offer]), None, "{offer}");
        }
        assert_eq!(agreed(&[]), None);
    }

    /// The examples of RFC 7692 §7.2.3.
    #[test]
    fn the_rfcs_examples_are_read() {
        for payload in [
            &[0xF2, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00][..],
            &[0x00, 0x05, 0x00, 0xFA, 0xFF, 0x48, 0x65, 0x6C, 0x6C, 0x6F, 0x00],
            &[0xF3, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00, 0x00],
            &[0xF2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xFF, 0xFF, 0xCA, 0xC9, 0xC9, 0x07, 0x00],
        ] {
            assert_eq!(unpack(OP_TEXT, payload, 100), Ok(Message::text("Hello")), "{payload:?}");
        }
        assert_eq!(unpack(OP_BINARY, &[0x00], 100), Ok(Message::binary(Vec::new())));
    }

    #[test]
    fn what_was_cut_off_is_no_message() {
        let hello = [0xF2, 0x48, 0xCD, 0xC9, 0xC9, 0x07, 0x00];
        for len in 0..hello.len() - 1 {
            let message = unpack(OP_BINARY, &hello[..len], 100);
            assert!(message.is_err(), "{len}: {message:?}");
        }
        // A stored block of ten bytes of which six are there.
        let stored = [0x00, 0x0A, 0x00, 0xF5, 0xFF, b'a', b'b', b'c', b'd', b'e', b'f'];
        assert_eq!(unpack(OP_TEXT, &stored, 100).unwrap_err().code, CloseCode::INVALID_PAYLOAD);
    }

    #[test]
    fn a_bomb_is_cut_at_the_limit() {
        let frame = data_frame(OP_BINARY, &vec![0; 16 << 20]);
        let bomb = pack(&frame, 0).unwrap();
        assert!(bomb.len() < 200_000, "{}", bomb.len());
        let payload = &bomb[Header::parse(&bomb).unwrap().len..];
        assert_eq!(unpack(OP_BINARY, payload, 64 << 10), Err(Violation::too_big(64 << 10)));
        assert!(unpack(OP_BINARY, payload, 16 << 20).is_ok());
        // Each final block makes the decompressor start afresh: work without a byte of output.
        assert_eq!(unpack(OP_BINARY, &[0x03, 0x00].repeat(30_000), 64 << 10).unwrap_err().code.0, 1007);
    }

    /// Bytes in which RFC 1951 finds nothing: the digits of hashes.
    fn noise(len: usize) -> Vec<u8> {
        let hashes = (0_u64..).map(|n| BuildHasherDefault::<DefaultHasher>::new().hash_one(n));
        hashes.flat_map(u64::to_ne_bytes).take(len).collect()
    }

    #[test]
    fn what_does_not_shrink_stays_as_it_is() {
        assert_eq!(pack(&data_frame(OP_BINARY, &noise(2000)), 0), None);
        assert_eq!(pack(&data_frame(OP_TEXT, b""), 0), None);
        let text = data_frame(OP_TEXT, &[b'a'; 1024]);
        assert!(pack(&text, 1024).is_some());
        assert_eq!(pack(&text, 1025), None);
    }

    /// Whoever sends noise must not wear the thread's compressor out.
    #[test]
    fn noise_leaves_nothing_behind() {
        let frames = [data_frame(OP_TEXT, &noise(64)), data_frame(OP_BINARY, &noise(4096))];
        for frame in frames.iter().cycle().take(4000) {
            assert_eq!(pack(frame, 0), None);
        }
        assert!(pack(&data_frame(OP_TEXT, &[b'a'; 1024]), 0).is_some());
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(
            text in prop_oneof!["[a-c]{0,400}", "\\PC{0,400}", Just("x".repeat(70_000))],
        ) {
            let frame = data_frame(OP_TEXT, text.as_bytes());
            if let Some(packed) = pack(&frame, 0) {
                prop_assert!(packed.len() < frame.len());
                let header = Header::parse(&packed).unwrap();
                prop_assert_eq!((header.reserved, header.opcode, header.is_final), (RSV1, OP_TEXT, true));
                prop_assert_eq!(unpack(OP_TEXT, &packed[header.len..], text.len()), Ok(Message::text(text)));
            }
        }

        #[test]
        fn garbage_ends_within_the_limit(payload in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(message) = unpack(OP_BINARY, &payload, 1000) {
                prop_assert!(message.len() <= 1000);
            }
        }
    }
}
