//! Telling what the server sent, as cheaply as can be.

use std::borrow::Cow;

use serde::Deserialize;

/// Recognises the messages of one type among all that arrive.
///
/// Deliveries of one run are equally long and begin alike. Once one has been read, the next is known by its length
/// and its first bytes; anything else is read.
#[derive(Debug)]
pub(crate) struct Recognition {
    message_type: &'static str,
    known: Option<(usize, [u8; START])>,
}

/// What a message is.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Recognised {
    /// One of those that are waited for.
    Expected,
    /// One that does not matter here.
    Other,
    /// One that says that something went wrong; the text says what.
    Trouble(String),
}

impl Recognition {
    pub(crate) fn of(message_type: &'static str) -> Self {
        Self { message_type, known: None }
    }

    pub(crate) fn look(&mut self, message: &[u8]) -> Recognised {
        let start = message.first_chunk::<START>();
        if let (Some((length, known)), Some(start)) = (&self.known, start)
            && *length == message.len()
            && known == start
        {
            return Recognised::Expected;
        }
        let found = message_type(message);
        if found.as_deref() == Some(self.message_type) {
            self.known = start.map(|start| (message.len(), *start));
            return Recognised::Expected;
        }
        match found.as_deref() {
            Some(kind) if !is_trouble(kind) => Recognised::Other,
            _ => Recognised::Trouble(String::from_utf8_lossy(message).into_owned()),
        }
    }
}

/// Whether a message of this type says that something went wrong.
pub(crate) fn is_trouble(message_type: &str) -> bool {
    matches!(message_type, "error" | "gap" | "kick_out" | "force_offline")
}

/// The type of a message, where it is one of the protocol.
pub(crate) fn message_type(message: &[u8]) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Typed<'a> {
        #[serde(borrow)]
        message_type: Cow<'a, str>,
    }
    serde_json::from_slice::<Typed<'_>>(message).ok().map(|typed| typed.message_type)
}

const START: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_known_by_its_looks_and_the_rest_is_read() {
        let delivery = br#"{"id":"1","message_type":"room_message","data":{}}"#;
        let mut rooms = Recognition::of("room_message");
        assert_eq!(rooms.look(delivery), Recognised::Expected);
        assert_eq!(rooms.look(delivery), Recognised::Expected);
        assert_eq!(rooms.look(br#"{"message_type":"pong","data":{}}"#), Recognised::Other);
        let longer = br#"{"id":"1234","message_type":"room_message","data":{}}"#;
        assert_eq!(rooms.look(longer), Recognised::Expected);
        let gap = br#"{"message_type":"gap","data":{"dropped":3}}"#;
        assert_eq!(rooms.look(gap), Recognised::Trouble(String::from_utf8_lossy(gap).into_owned()));
        assert!(matches!(rooms.look(b"hello"), Recognised::Trouble(_)));
    }
}
