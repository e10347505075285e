//! Reading what a client sends.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{self, Visitor},
};
use serde_json::value::RawValue;

use crate::{ErrorCode, Priority};

/// Longest textual `message_id` in bytes.
pub const MAX_MESSAGE_ID_LEN: usize = 128;

/// Deepest nesting of objects and arrays in one frame, the envelope being the first level.
pub const MAX_NESTING: usize = 64;

/// One request as it came off the wire, borrowed from the frame (protocol §2).
///
/// Only the borders of `data` are found; its bytes stay as they were sent.
#[derive(Debug)]
pub struct Envelope<'a> {
    /// Routes the message.
    pub message_type: Cow<'a, str>,
    /// Correlates the reply; `None` where it is absent, `0`, `""` or `null`.
    pub message_id: Option<MessageId<'a>>,
    /// The payload; `None` where it is absent or `null`.
    pub data: Option<&'a RawValue>,
    /// Whether the receiver must acknowledge.
    pub require_ack: bool,
    /// Whether the sender wants to be told the final outcome.
    pub receipt: bool,
    /// Makes a repeated send harmless.
    pub idempotency_key: Option<Cow<'a, str>>,
    /// Queue class asked for.
    pub priority: Priority,
}

impl<'a> Envelope<'a> {
    /// Reads one frame: a JSON object in UTF-8 with at least a `message_type`. Unknown fields are ignored.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] says what to answer, and whether the frame counts as *bad* (protocol §2, *Errors*).
    pub fn decode(frame: &'a [u8]) -> Result<Self, DecodeError> {
        let text = std::str::from_utf8(frame).map_err(|_| DecodeError::bad("the frame is not UTF-8"))?;
        Self::decode_str(text)
    }

    /// [`decode`](Self::decode) for a frame that is known to be UTF-8.
    ///
    /// # Errors
    ///
    /// As [`decode`](Self::decode).
    pub fn decode_str(text: &'a str) -> Result<Self, DecodeError> {
        // serde would take an array for a struct.
        if !text.trim_start_matches(JSON_WHITESPACE).starts_with('{') {
            return Err(DecodeError::bad("the frame is not a JSON object"));
        }
        let wire: Wire<'a> = serde_json::from_str(text).map_err(|e| DecodeError::bad(e.to_string()))?;
        check_text(text)?;

        let message_id = wire.message_id.map(MessageId::parse).transpose()?.flatten();
        let priority = match wire.priority.as_ref().map(|p| &*p.0) {
            None | Some("normal") => Priority::Normal,
            Some("low") => Priority::Low,
            Some(_) => {
                return Err(DecodeError::refused("priority must be \"normal\" or \"low\"", message_id.as_ref()));
            }
        };
        let Some(Text(message_type)) = wire.message_type else {
            return Err(DecodeError::refused("message_type is missing", message_id.as_ref()));
        };
        Ok(Self {
            message_type,
            message_id,
            data: wire.data.filter(|d| d.get() != "null"),
            require_ack: wire.require_ack.unwrap_or(false),
            receipt: wire.receipt.unwrap_or(false),
            idempotency_key: wire.idempotency_key.map(|k| k.0),
            priority,
        })
    }
}

/// The `message_id` of a request, kept as the JSON that it was so that the reply has the same type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageId<'a>(Cow<'a, str>);

impl<'a> MessageId<'a> {
    /// Reads the raw JSON of the field; `Ok(None)` where it counts as absent.
    fn parse(raw: &'a RawValue) -> Result<Option<Self>, DecodeError> {
        let json = raw.get();
        match json.as_bytes() {
            b"0" | b"-0" | b"\"\"" | b"null" => Ok(None),
            [b'"', ..] => {
                let text: Text<'_> = serde_json::from_str(json).map_err(|_| DecodeError::message_id())?;
                if text.0.len() > MAX_MESSAGE_ID_LEN {
                    Err(DecodeError::message_id())
                } else {
                    Ok(Some(Self(json.into())))
                }
            }
            [b'-' | b'0'..=b'9', rest @ ..]
                if rest.iter().all(u8::is_ascii_digit) && json.len() <= MAX_MESSAGE_ID_LEN =>
            {
                Ok(Some(Self(json.into())))
            }
            _ => Err(DecodeError::message_id()),
        }
    }

    /// The id as JSON, ready to be written into a reply.
    pub fn as_json(&self) -> &str {
        &self.0
    }

    /// The id as plain text: the digits, or the unescaped string. What an `ack` frame names.
    pub fn to_text(&self) -> String {
        serde_json::from_str::<String>(&self.0).unwrap_or_else(|_| self.0.clone().into_owned())
    }

    /// The same id, independent of the frame.
    pub fn into_owned(self) -> MessageId<'static> {
        MessageId(Cow::Owned(self.0.into_owned()))
    }
}

/// A frame that is no request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DecodeError {
    /// What to answer with.
    pub code: ErrorCode,
    /// What is wrong, for people.
    pub message: String,
    /// Whether it counts towards the ten bad frames in a row that end a connection.
    pub is_bad_frame: bool,
    /// The request's id where it could be read.
    pub message_id: Option<MessageId<'static>>,
}

impl DecodeError {
    /// A frame that is not JSON, not an object, or holds a field of the wrong type.
    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self { code: ErrorCode::InvalidFormat, message: message.into(), is_bad_frame: true, message_id: None }
    }

    /// A well-formed frame that asks for something that cannot be.
    pub(crate) fn refused(message: impl Into<String>, message_id: Option<&MessageId<'_>>) -> Self {
        Self {
            code: ErrorCode::InvalidFormat,
            message: message.into(),
            is_bad_frame: false,
            message_id: message_id.cloned().map(MessageId::into_owned),
        }
    }

    fn message_id() -> Self {
        let code = ErrorCode::InvalidMessageId;
        Self { code, message: code.default_message().into(), is_bad_frame: false, message_id: None }
    }
}

/// The envelope as serde sees it.
#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(borrow, default)]
    message_type: Option<Text<'a>>,
    #[serde(borrow, default)]
    message_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    require_ack: Option<bool>,
    #[serde(default)]
    receipt: Option<bool>,
    #[serde(borrow, default)]
    idempotency_key: Option<Text<'a>>,
    #[serde(borrow, default)]
    priority: Option<Text<'a>>,
}

/// A string that borrows from the input unless it holds an escape. (`Option<Cow<str>>` never borrows.)
#[derive(Debug)]
pub(crate) struct Text<'a>(pub(crate) Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E: de::Error>(self, v: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(v)))
            }

            fn visit_str<E: de::Error>(self, v: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(v.into())))
            }
        }

        deserializer.deserialize_str(TextVisitor)
    }
}

/// Checks what serde_json lets pass in the parts that it only skips: nesting deeper than [`MAX_NESTING`], and escapes
/// that are no Unicode text. `text` is valid JSON.
///
/// # Errors
///
/// [`DecodeError`] with code 1001 says which of the two it is.
///
/// # Panics
///
/// May panic where the text is no valid JSON.
pub fn check_text(text: &str) -> Result<(), DecodeError> {
    let bytes = text.as_bytes();
    // Nearly every frame is done here; both loops run over many bytes at a time.
    let openings = bytes.iter().filter(|b| matches!(b, b'{' | b'[')).count();
    if openings <= MAX_NESTING && !bytes.contains(&b'\\') {
        return Ok(());
    }
    let mut depth = 0_usize;
    let mut in_string = false;
    let mut rest = bytes;
    while let [byte, tail @ ..] = rest {
        rest = tail;
        match byte {
            b'"' => in_string = !in_string,
            b'\\' => {
                rest = match tail {
                    [b'u', hex @ ..] => check_unicode_escape(hex)?,
                    [_, after @ ..] => after,
                    [] => &[],
                }
            }
            b'{' | b'[' if !in_string => {
                depth += 1;
                if depth > MAX_NESTING {
                    return Err(DecodeError::bad(format!("nesting is deeper than {MAX_NESTING}")));
                }
            }
            b'}' | b']' if !in_string => depth -= 1,
            _ => {}
        }
    }
    Ok(())
}

/// Checks the escape whose four digits `after_u` starts with; returns what follows it.
fn check_unicode_escape(after_u: &[u8]) -> Result<&[u8], DecodeError> {
    let lone = || DecodeError::bad("an escape is no Unicode text (lone surrogate)");
    let (unit, rest) = hex4(after_u).ok_or_else(lone)?;
    match unit {
        0xD800..=0xDBFF => match rest {
            [b'\\', b'u', low @ ..] => match hex4(low) {
                Some((0xDC00..=0xDFFF, rest)) => Ok(rest),
                _ => Err(lone()),
            },
            _ => Err(lone()),
        },
        0xDC00..=0xDFFF => Err(lone()),
        _ => Ok(rest),
    }
}

fn hex4(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (digits, rest) = bytes.split_at_checked(4)?;
    let unit = u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    Some((unit, rest))
}

/// RFC 8259 §2.
const JSON_WHITESPACE: [char; 4] = [' ', '\t', '\n', '\r'];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(text: &str) -> Result<Envelope<'_>, DecodeError> {
        Envelope::decode(text.as_bytes())
    }

    #[test]
    fn what_is_no_object_is_a_bad_frame() {
        for text in [
            "",
            "null",
            "[]",
            "[\"ping\"]",
            "1",
            "\"x\"",
            "{",
            "{}}",
            "ping",
            "{\"a\":1,}",
            "{\"message_type\":\"a\"} x",
        ] {
            assert!(decode(text).unwrap_err().is_bad_frame, "{text:?}");
        }
        assert!(Envelope::decode(b"{\"message_type\":\"\xff\"}").unwrap_err().is_bad_frame);
    }

    #[test]
    fn a_field_of_the_wrong_type_is_a_bad_frame() {
        for text in [
            r#"{"message_type":1}"#,
            r#"{"message_type":["ping"]}"#,
            r#"{"message_type":"ping","require_ack":"yes"}"#,
            r#"{"message_type":"ping","priority":1}"#,
        ] {
            let error = decode(text).unwrap_err();
            assert!(error.is_bad_frame && error.code == ErrorCode::InvalidFormat, "{text}");
        }
        // Missing is not wrong.
        assert!(!decode("{}").unwrap_err().is_bad_frame);
        assert!(!decode(r#"{"message_type":null}"#).unwrap_err().is_bad_frame);
    }

    #[test]
    fn message_ids_keep_their_type() {
        let id = |json: &str| {
            decode(&format!(r#"{{"message_type":"ping","message_id":{json}}}"#))
                .map(|e| e.message_id.map(|m| m.as_json().to_owned()))
                .map_err(|e| e.code)
        };
        for absent in ["0", "-0", "\"\"", "null"] {
            assert_eq!(id(absent), Ok(None), "{absent}");
        }
        for kept in ["1", "-7", "18446744073709551616", "\"a\"", r#""\u0041\"""#] {
            assert_eq!(id(kept), Ok(Some(kept.into())), "{kept}");
        }
        for wrong in ["1.5", "1e3", "true", "{}", "[1]", &format!("\"{}\"", "x".repeat(129))] {
            assert_eq!(id(wrong), Err(ErrorCode::InvalidMessageId), "{wrong}");
        }
    }

    #[test]
    fn surrogates_come_in_pairs() {
        let content = |json: &str| decode(&format!(r#"{{"message_type":"x","data":{{"content":{json}}}}}"#)).is_ok();
        for good in [r#""\ud83d\ude00""#, r#""\\ud800""#, r#""\u0041\n""#, r#""\\\\""#] {
            assert!(content(good), "{good}");
        }
        for bad in [r#""\ud800""#, r#""\ude00""#, r#""\ud83dx""#, r#""\ud83d\u0041""#, r#"{"\udfff":1}"#] {
            assert!(!content(bad), "{bad}");
        }
    }

    #[test]
    fn nesting_ends_at_its_limit() {
        let nested = |levels: usize| {
            let text = format!(r#"{{"message_type":"x","data":{}{}}}"#, "[".repeat(levels), "]".repeat(levels));
            decode(&text).is_ok()
        };
        assert!(nested(MAX_NESTING - 1));
        assert!(!nested(MAX_NESTING));
        assert!(!nested(50_000));
        // Brackets in strings do not count.
        assert!(decode(&format!(r#"{{"message_type":"x","data":"{}"}}"#, "[".repeat(1000))).is_ok());
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Envelope::decode(&bytes);
        }

        #[test]
        fn payload_is_kept_byte_for_byte(content in "[ -~]{0,40}", number in "-?[1-9][0-9]{0,8}(\\.[0-9]{1,4})?([eE][+-]?[0-9]{1,2})?") {
            let string = serde_json::to_string(&content).unwrap();
            let data = format!("{{\"b\" :{string},\"a\":{number}}}");
            let frame = format!("{{\"data\":{data},\"message_type\":\"x\"}}");
            prop_assert_eq!(decode(&frame).unwrap().data.unwrap().get(), data);
        }
    }
}
