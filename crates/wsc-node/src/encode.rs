//! Frames written into a buffer that each thread keeps.

use std::{cell::RefCell, mem};

use wsc_protocol::{
    ErrorReply, MessageId,
    encode::{self, JsonWriter},
};
use wsc_transport::text_frame;

/// Encodes one text frame and lends it to `send`.
pub(crate) fn with_frame<R>(write: impl FnOnce(&mut Vec<u8>), send: impl FnOnce(&[u8]) -> R) -> R {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    // Taken, not borrowed: what `send` calls may encode something too.
    let mut buffer = BUFFER.with(|b| mem::take(&mut *b.borrow_mut()));
    let result = send(text_frame(&mut buffer, write));
    if buffer.capacity() <= KEPT_CAPACITY {
        BUFFER.with(|b| *b.borrow_mut() = buffer);
    }
    result
}

/// A reply or notice in a buffer of its own.
pub(crate) fn reply_frame(
    message_type: &str,
    request_id: Option<&MessageId<'_>>,
    timestamp: u64,
    data: impl FnOnce(&mut JsonWriter<'_>),
) -> Vec<u8> {
    with_frame(|out| encode::reply(out, message_type, request_id, timestamp, data), <[u8]>::to_vec)
}

/// An `error` reply in a buffer of its own.
pub(crate) fn error_frame(error: &ErrorReply, request_id: Option<&MessageId<'_>>, timestamp: u64) -> Vec<u8> {
    with_frame(|out| encode::error(out, error, request_id, timestamp), <[u8]>::to_vec)
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| d.as_millis() as u64)
}

/// A buffer that grew beyond this for one large message is given back.
const KEPT_CAPACITY: usize = 256 << 10;
