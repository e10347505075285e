//! A message as mailboxes and the inbox keep it: one buffer, shared by all who hold it.
//!
//! Version 1: version, flags, timestamp (8 bytes, little endian), then the lengths (one byte each) and the texts of
//! type, sender and room, then the sessions that flags speak of (16 bytes each), then the content. Stores outlive versions of this program: what changes gets a new number.

use bytes::Bytes;
use serde_json::value::RawValue;
use uuid::Uuid;
use wsc_delivery::mailbox::Kind;
use wsc_protocol::{HubMessage, MessageInfo, Priority, encode::Delivery};

/// What there is to know of a message but for its id and its recipient.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record<'r> {
    pub(crate) kind: Kind,
    /// Whether the sender is told the final outcome.
    pub(crate) wants_receipt: bool,
    /// Whether a connection sent it: the sender's id is that of a user.
    pub(crate) is_from_client: bool,
    pub(crate) priority: Priority,
    /// Time of acceptance, Unix milliseconds.
    pub(crate) timestamp: u64,
    pub(crate) message_type: &'r str,
    pub(crate) sender_id: &'r str,
    pub(crate) room_id: Option<&'r str>,
    /// Session of the only connection that gets it, while that is there.
    pub(crate) only: Option<Uuid>,
    /// Session of the connection that it comes from, which gets no copy.
    pub(crate) except: Option<Uuid>,
    pub(crate) content: &'r RawValue,
}

const VERSION: u8 = 1;
const RELIABLE: u8 = 1;
const RECEIPT: u8 = 2;
const FROM_CLIENT: u8 = 4;
const HIGH: u8 = 8;
const LOW: u8 = 16;
const ONLY: u8 = 32;
const EXCEPT: u8 = 64;

impl<'r> Record<'r> {
    pub(crate) fn encode(&self) -> Bytes {
        let texts = [self.message_type, self.sender_id, self.room_id.unwrap_or_default()];
        let content = self.content.get();
        let sessions = 16 * (usize::from(self.only.is_some()) + usize::from(self.except.is_some()));
        let mut out =
            Vec::with_capacity(HEAD + 3 + sessions + texts.iter().map(|t| t.len()).sum::<usize>() + content.len());
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let flags = flag(self.kind == Kind::Reliable, RELIABLE)
            | flag(self.wants_receipt, RECEIPT)
            | flag(self.is_from_client, FROM_CLIENT)
            | flag(self.priority == Priority::High, HIGH)
            | flag(self.priority == Priority::Low, LOW)
            | flag(self.only.is_some(), ONLY)
            | flag(self.except.is_some(), EXCEPT);
        out.extend([VERSION, flags]);
        out.extend(self.timestamp.to_le_bytes());
        for text in texts {
            // Ids and types have at most 128 bytes.
            out.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
            out.extend_from_slice(&text.as_bytes()[..text.len().min(u8::MAX.into())]);
        }
        for session in [self.only, self.except].iter().flatten() {
            out.extend(session.as_bytes());
        }
        out.extend_from_slice(content.as_bytes());
        Bytes::from(out)
    }

    /// Reads a record; `None` where it is none of this version.
    pub(crate) fn decode(bytes: &'r [u8]) -> Option<Self> {
        let (&[version, flags], rest) = bytes.split_first_chunk()?;
        if version != VERSION {
            return None;
        }
        let (timestamp, mut rest) = rest.split_first_chunk()?;
        let mut text = || {
            let (&len, more) = rest.split_first()?;
            let (text, more) = more.split_at_checked(len.into())?;
            rest = more;
            std::str::from_utf8(text).ok()
        };
        let (message_type, sender_id, room_id) = (text()?, text()?, text()?);
        let mut session = |flag| {
            if flags & flag == 0 {
                return Some(None);
            }
            let (bytes, more) = rest.split_first_chunk()?;
            rest = more;
            Some(Some(Uuid::from_bytes(*bytes)))
        };
        let (only, except) = (session(ONLY)?, session(EXCEPT)?);
        Some(Self {
            kind: if flags & RELIABLE == 0 { Kind::Plain } else { Kind::Reliable },
            wants_receipt: flags & RECEIPT != 0,
            is_from_client: flags & FROM_CLIENT != 0,
            priority: match (flags & HIGH, flags & LOW) {
                (0, 0) => Priority::Normal,
                (0, _) => Priority::Low,
                _ => Priority::High,
            },
            timestamp: u64::from_le_bytes(*timestamp),
            message_type,
            sender_id,
            room_id: Some(room_id).filter(|id| !id.is_empty()),
            only,
            except,
            content: serde_json::from_slice(rest).ok()?,
        })
    }

    /// How it looks on the wire; the marks of one transmission are the caller's to add.
    pub(crate) fn delivery(&self, id: Uuid) -> Delivery<'r> {
        Delivery {
            room_id: self.room_id,
            priority: self.priority,
            ..Delivery::new(id, self.message_type, self.sender_id, self.content, self.timestamp)
        }
    }

    /// How handlers see it.
    pub(crate) fn message(&self, id: Uuid) -> HubMessage {
        let mut message = HubMessage::new(id, self.message_type, self.sender_id, self.content, self.timestamp);
        message.room_id = self.room_id.map(str::to_owned);
        message.require_ack = self.kind == Kind::Reliable;
        message.priority = self.priority;
        message
    }

    /// How observers see it.
    pub(crate) fn info(&self, id: Uuid, user_id: &str) -> MessageInfo {
        MessageInfo {
            id,
            message_type: self.message_type.to_owned(),
            sender_id: self.sender_id.to_owned(),
            room_id: self.room_id.map(str::to_owned),
            user_id: Some(user_id.to_owned()),
        }
    }
}

/// Version, flags and time.
const HEAD: usize = 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_kept_comes_back(
            flags in 0..32_u8, priority in 0..3_usize, timestamp: u64, message_type in ".{1,30}",
            sender_id in ".{1,30}", room_id in proptest::option::of(".{1,30}"), text in ".{0,50}",
        ) {
            let content = serde_json::value::to_raw_value(&text).unwrap();
            let record = Record {
                kind: if flags & 1 == 0 { Kind::Plain } else { Kind::Reliable },
                wants_receipt: flags & 2 != 0,
                is_from_client: flags & 4 != 0,
                priority: [Priority::High, Priority::Normal, Priority::Low][priority],
                timestamp,
                message_type: &message_type,
                sender_id: &sender_id,
                room_id: room_id.as_deref(),
                only: (flags & 8 != 0).then(|| Uuid::from_u128(7)),
                except: (flags & 16 != 0).then(|| Uuid::from_u128(8)),
                content: &content,
            };
            let bytes = record.encode();
            prop_assert_eq!(format!("{:?}", Record::decode(&bytes).unwrap()), format!("{record:?}"));
            for len in 0..bytes.len() {
                // A part of one is none, or has a shorter number as its content; it never panics.
                let _ = Record::decode(&bytes[..len]);
            }
        }

        #[test]
        fn nonsense_is_no_record(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = Record::decode(&bytes);
        }
    }
}
