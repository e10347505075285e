//! A batch as it is kept.

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use wsc_protocol::TraceContext;

/// One batch: what is posted, and what is known about it. The body never changes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) about: About,
    pub(super) body: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct About {
    /// Of the batch; as text it is `msg_` and the hexadecimal digits.
    pub(super) id: Uuid,
    /// When it was made, in Unix milliseconds.
    pub(super) created_ms: u64,
    /// When it was put into the queue, the last time.
    pub(super) queued_ms: u64,
    /// How many events are in it.
    pub(super) events: u32,
    /// The first event types in it, each once.
    pub(super) types: Vec<String>,
    /// The first traces that its events belong to, each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) traces: Vec<String>,
    /// Set in dead letters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) end: Option<End>,
}

/// How a batch came to be given up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct End {
    pub(super) at_ms: u64,
    pub(super) attempts: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) status: Option<u16>,
    pub(super) error: String,
}

impl Entry {
    pub(super) fn encode(&self) -> Vec<u8> {
        // Plain data with text keys always becomes JSON.
        let about = serde_json::to_vec(&self.about).unwrap_or_default();
        let mut bytes = Vec::with_capacity(HEADER + about.len() + self.body.len());
        bytes.push(VERSION);
        bytes.extend((about.len() as u32).to_le_bytes());
        bytes.extend(about);
        bytes.extend(&self.body);
        bytes
    }

    /// `None` where the bytes are damaged, or of a later version.
    pub(super) fn decode(mut bytes: Vec<u8>) -> Option<Self> {
        let (about, end) = read(&bytes)?;
        let body = bytes.split_off(end);
        Some(Self { about, body })
    }
}

impl About {
    /// Reads what is known about a batch, without its body.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        read(bytes).map(|(about, _)| about)
    }

    pub(super) fn traces(&self) -> impl Iterator<Item = TraceContext> {
        self.traces.iter().filter_map(|text| text.parse().ok())
    }
}

/// The text of a batch's id: `webhook-id` of its requests.
pub(super) fn id_text(id: Uuid) -> String {
    format!("{ID_PREFIX}{}", id.simple())
}

pub(super) fn id_of(text: &str) -> Option<Uuid> {
    Uuid::try_parse(text.strip_prefix(ID_PREFIX)?).ok()
}

/// What is known about the batch, and where the body begins.
fn read(bytes: &[u8]) -> Option<(About, usize)> {
    let (&version, rest) = bytes.split_first()?;
    let (length, rest) = rest.split_first_chunk()?;
    let length = u32::from_le_bytes(*length) as usize;
    let about = rest.get(..length)?;
    if version != VERSION {
        return None;
    }
    Some((serde_json::from_slice(about).ok()?, HEADER + length))
}

const ID_PREFIX: &str = "msg_";
const VERSION: u8 = 1;
/// The version and the length of what is known.
const HEADER: usize = 5;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(body: Vec<u8>) -> Entry {
        let about = About {
            id: Uuid::from_u128(7),
            created_ms: 1,
            queued_ms: 2,
            events: 3,
            types: vec!["hub.started".to_owned()],
            traces: vec!["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned()],
            end: Some(End { at_ms: 9, attempts: 4, status: Some(500), error: "it broke".to_owned() }),
        };
        Entry { about, body }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(body: Vec<u8>) {
            let entry = entry(body);
            let bytes = entry.encode();
            prop_assert_eq!(About::decode(&bytes), Some(entry.about.clone()));
            prop_assert_eq!(Entry::decode(bytes), Some(entry));
        }

        #[test]
        fn damage_does_no_harm(bytes: Vec<u8>, cut in 0_usize..400) {
            let _ = Entry::decode(bytes);
            let mut whole = entry(Vec::new()).encode();
            prop_assume!(cut < whole.len());
            whole.truncate(cut);
            prop_assert_eq!(Entry::decode(whole), None);
        }
    }

    #[test]
    fn ids_are_text() {
        let id = Uuid::from_u128(0x0123_4567_89ab_cdef);
        assert_eq!(id_text(id), "msg_00000000000000000123456789abcdef");
        assert_eq!(id_of(&id_text(id)), Some(id));
        assert_eq!(id_of("00000000000000000123456789abcdef"), None);
        assert_eq!(id_of("msg_1"), None);
    }
}
