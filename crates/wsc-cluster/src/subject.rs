//! What can be subscribed to.

use std::{fmt, fmt::Write, str::FromStr};

use wsc_protocol::{Id, MAX_ID_LEN};

/// What a message on the bus is about, and so which nodes want it.
///
/// As text (for brokers) it is `all`, or a kind and one token, such as `user.alice`. Ids may hold dots, blanks and
/// wildcards, and brokers give those a meaning: every byte but letters, digits, `-` and `_` is written as `%` and two
/// hexadecimal digits, so that no id can reach beyond its token, and different subjects never have the same text. An id
/// that would become longer than 180 bytes that way is written as `~` and base64url; no text is longer than 192 bytes,
/// below the 255 of the strictest broker. A driver puts its own prefix in front.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Subject {
    /// Messages to a user, on whatever nodes it has connections.
    User(Id),
    /// Messages to a room, on whatever nodes it has members.
    Room(Id),
    /// Messages to one node.
    Node(Id),
    /// Messages to every node.
    All,
}

impl Subject {
    fn parts(&self) -> (&'static str, Option<&Id>) {
        match self {
            Self::User(id) => ("user", Some(id)),
            Self::Room(id) => ("room", Some(id)),
            Self::Node(id) => ("node", Some(id)),
            Self::All => ("all", None),
        }
    }
}

/// The text for brokers.
impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, id) = self.parts();
        f.write_str(kind)?;
        let Some(id) = id else {
            return Ok(());
        };
        f.write_char('.')?;
        let id = id.as_str().as_bytes();
        let escaped_len: usize = id.iter().map(|&byte| if is_plain(byte) { 1 } else { 3 }).sum();
        if escaped_len <= MAX_ESCAPED_LEN {
            id.iter()
                .try_for_each(|&byte| if is_plain(byte) { f.write_char(byte.into()) } else { write!(f, "%{byte:02X}") })
        } else {
            f.write_char(LONG)?;
            write_base64(f, id)
        }
    }
}

/// Reads what [`Display`](fmt::Display) wrote, and nothing else: a text is the text of one subject or of none.
impl FromStr for Subject {
    type Err = InvalidSubject;

    fn from_str(text: &str) -> Result<Self, InvalidSubject> {
        let subject = match text.split_once('.') {
            None if text == "all" => Self::All,
            Some(("user", token)) => Self::User(decode(token)?),
            Some(("room", token)) => Self::Room(decode(token)?),
            Some(("node", token)) => Self::Node(decode(token)?),
            _ => return Err(InvalidSubject),
        };
        // Escapes that were not needed, small hexadecimal digits, stray bits: one comparison finds them all.
        if subject.to_string() == text { Ok(subject) } else { Err(InvalidSubject) }
    }
}

/// A text that is no subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not the text of a subject")]
pub struct InvalidSubject;

/// Marks a token in base64url; no escaped one begins with it.
const LONG: char = '~';

/// Leaves a broker with a limit of 255 bytes room for a prefix. More than 128, so ids of plain letters are readable.
const MAX_ESCAPED_LEN: usize = 180;

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The bytes that no broker in sight gives a meaning to.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}

fn write_base64(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0_u32, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - group.len()));
        for digit in 0..=group.len() {
            let value = bits >> (18 - 6 * digit) & 63;
            f.write_char(BASE64[value as usize].into())?;
        }
    }
    Ok(())
}

fn decode(token: &str) -> Result<Id, InvalidSubject> {
    let bytes = match token.strip_prefix(LONG) {
        Some(long) => decode_base64(long),
        None => decode_escapes(token),
    };
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    // Not `Id::new`: ids that the hub made itself travel too.
    text.filter(|text| (1..=MAX_ID_LEN).contains(&text.len())).map(Id::generated).ok_or(InvalidSubject)
}

fn decode_escapes(token: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(token.len());
    let mut rest = token.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || char::from(rest.next()?).to_digit(16);
            let (high, low) = (digit()?, digit()?);
            bytes.push(u8::try_from(high << 4 | low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    Some(bytes)
}

fn decode_base64(token: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(token.len());
    for group in token.as_bytes().chunks(4) {
        let mut bits = 0_u32;
        for digit in group {
            bits = bits << 6 | u32::try_from(BASE64.iter().position(|known| known == digit)?).ok()?;
        }
        bits <<= 6 * (4 - group.len());
        bytes.extend_from_slice(bits.to_be_bytes().get(1..group.len())?);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn user(id: &str) -> Subject {
        Subject::User(Id::generated(id))
    }

    #[test]
    fn common_ids_are_readable() {
        assert_eq!(user("alice").to_string(), "user.alice");
        assert_eq!(Subject::Room(Id::generated("support-7_x")).to_string(), "room.support-7_x");
        assert_eq!(user("alice@example.org").to_string(), "user.alice%40example%2Eorg");
        assert_eq!(Subject::All.to_string(), "all");
    }

    #[test]
    fn no_id_reaches_beyond_its_token() {
        for id in
            ["alice.>", "*", ">", "a b", "a.b.c", "room.r1", "#", "~x", "%41", "[a]?", "{tag}", "a/+/b", "\\", "ä"]
        {
            let text = user(id).to_string();
            let token = text.strip_prefix("user.").unwrap();
            assert!(token.bytes().all(|b| is_plain(b) || b == b'%'), "{text}");
            assert_eq!(text.parse(), Ok(user(id)));
        }
    }

    #[test]
    fn the_longest_ids_fit() {
        for id in ["x".repeat(128), ".".repeat(128), "ä".repeat(64), "语".repeat(42), ".".repeat(60), ".".repeat(61)]
        {
            for subject in [user(&id), Subject::Room(Id::generated(&*id)), Subject::Node(Id::generated(&*id))] {
                let text = subject.to_string();
                assert!(text.len() <= 192, "{}", text.len());
                assert_eq!(text.parse(), Ok(subject));
            }
        }
        assert!(user(&"x".repeat(128)).to_string().ends_with("xxx"));
    }

    #[test]
    fn other_texts_are_no_subjects() {
        for text in [
            "",
            "user",
            "user.",
            "user.a.b",
            "user.*",
            "user.>",
            "user.%41",
            "user.%2e",
            "user.%2",
            "user.%",
            "user.ä",
            "user.~",
            "user.~YWxpY2U",
            "all.",
            "all.x",
            "All",
            "users.a",
            "room.%FF",
            "user.%2+1",
        ] {
            assert_eq!(text.parse::<Subject>(), Err(InvalidSubject), "{text:?}");
        }
    }

    fn subject() -> impl Strategy<Value = Subject> {
        // Few letters, so that near collisions are common; and anything at all, up to the longest.
        let id = prop_oneof!["[a.%~2E*> ]{1,5}", "\\PC{1,128}", "[ä.]{60,64}"]
            .prop_filter("at most 128 bytes", |id| id.len() <= MAX_ID_LEN)
            .prop_map(Id::generated);
        (0..3_u8, id).prop_map(|(kind, id)| match kind {
            0 => Subject::User(id),
            1 => Subject::Room(id),
            _ => Subject::Node(id),
        })
    }

    proptest! {
        #[test]
        fn a_text_comes_back_as_its_subject(subject in subject()) {
            let text = subject.to_string();
            prop_assert!(text.len() <= 192);
            prop_assert_eq!(text.bytes().filter(|&b| b == b'.').count(), 1);
            prop_assert!(text.bytes().all(|b| is_plain(b) || b".%~".contains(&b)));
            prop_assert_eq!(text.parse(), Ok(subject));
        }

        #[test]
        fn different_subjects_have_different_texts(subjects in proptest::collection::vec(subject(), 2..40)) {
            let mut texts: HashMap<String, Subject> = HashMap::new();
            for subject in subjects {
                let known = texts.entry(subject.to_string()).or_insert_with(|| subject.clone());
                prop_assert_eq!(&*known, &subject);
            }
        }

        #[test]
        fn what_is_read_is_written_the_same(text in prop_oneof!["user\\.[a%~2E4A-]{0,8}", "user\\.~[A-Za-z_-]{0,180}", any::<String>()]) {
            if let Ok(subject) = text.parse::<Subject>() {
                prop_assert_eq!(subject.to_string(), text);
            }
        }
    }
}
