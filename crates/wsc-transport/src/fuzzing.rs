//! The decoder by itself, for the fuzz targets: what a client's bytes mean, in whatever pieces they come.
//!
//! It is built with `--cfg fuzzing` only, and no part of the crate's interface.

use tungstenite::Message;

use crate::decoder::{Decoded, Decoder};

/// What a connection makes of a client's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A text message.
    Text(String),
    /// A binary message.
    Binary(Vec<u8>),
    /// A ping; the frame that answers it.
    Ping(Vec<u8>),
    /// A close; the frame that answers it. Nothing follows.
    Close(Vec<u8>),
    /// The peer broke the protocol: the close code. Nothing follows.
    Violation(u16),
}

/// Listens to one client, as a connection does.
#[derive(Debug)]
pub struct Listener {
    decoder: Decoder,
    unread: Vec<u8>,
    max_message_size: usize,
    deflate: bool,
    is_over: bool,
}

impl Listener {
    /// Begins behind the handshake, where `deflate` says whether permessage-deflate was agreed on.
    pub fn new(max_message_size: usize, deflate: bool) -> Self {
        Self { decoder: Decoder::default(), unread: Vec::new(), max_message_size, deflate, is_over: false }
    }

    /// Takes what one read gave; returns what is whole by now.
    pub fn hear(&mut self, bytes: &[u8]) -> Vec<Heard> {
        self.unread.extend_from_slice(bytes);
        let mut heard = Vec::new();
        let mut used = 0;
        while !self.is_over {
            let (len, decoded) = self.decoder.decode(&mut self.unread[used..], self.max_message_size, self.deflate);
            used += len;
            heard.push(match decoded {
                Decoded::Incomplete => break,
                Decoded::Nothing => continue,
                Decoded::Text(text) => Heard::Text(text.to_owned()),
                Decoded::Assembled(Message::Text(text)) => Heard::Text(text.to_string()),
                Decoded::Binary(bytes) => Heard::Binary(bytes.to_vec()),
                Decoded::Assembled(message) => Heard::Binary(message.into_data().to_vec()),
                Decoded::Ping(reply) => Heard::Ping(reply),
                Decoded::Close(reply) => Heard::Close(reply),
                Decoded::Violation(violation) => Heard::Violation(violation.code.0),
            });
            self.is_over = matches!(heard.last(), Some(Heard::Close(_) | Heard::Violation(_)));
        }
        self.unread.drain(..used);
        heard
    }
}
