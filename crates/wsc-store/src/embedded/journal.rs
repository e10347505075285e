//! The journal's rows: what one commit changed, as bytes.
//!
//! A row is a header and records. Header and records each carry a checksum, so damage is noticed wherever it came
//! from, and what stands before it is still read. Numbers are little-endian.
//!
//! ```text
//! row     version u8 · records u32 · crc32 of these five bytes
//! record  length of kind and payload u32 · crc32 of kind and payload · kind u8 · payload
//! ```

use bytes::Bytes;
use uuid::Uuid;
use wsc_protocol::Id;

use crate::{Entry, EntryKey, Note, Position};

/// Something that a commit changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record {
    /// An entry was appended.
    Entry(Id, Entry),
    /// An entry that stands in the journal was removed.
    GoneYoung(Position),
    /// An entry that stands in the tables was removed.
    GoneResting(Gone),
    /// A note came with an entry.
    Note(Note),
}

/// A removed entry that the tables still have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gone {
    pub(super) key: EntryKey,
    pub(super) position: Position,
    pub(super) expires_at: Option<u64>,
    /// Length of the body.
    pub(super) len: u64,
}

/// Writes one row.
#[derive(Debug)]
pub(super) struct RowWriter {
    bytes: Vec<u8>,
    records: u32,
    /// Id and body of the record before, where that was an entry: one message for many users has its body once.
    last: Option<(Uuid, Bytes)>,
}

/// Why the rest of a row cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Damage {
    /// How many records are lost; at least this many where the header is lost too.
    pub(super) records: u64,
}

impl RowWriter {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; HEADER], records: 0, last: None }
    }

    /// The size of the row so far.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records == 0
    }

    pub(super) fn entry(&mut self, user: &Id, entry: &Entry) {
        let body = (entry.id, entry.body.clone());
        let is_same = self.last.as_ref() == Some(&body);
        self.record(if is_same { Kind::Again } else { Kind::Entry }, |bytes| {
            bytes.extend_from_slice(&entry.position.0.to_le_bytes());
            put_key(bytes, user, entry.id);
            put_end(bytes, entry.expires_at);
            if !is_same {
                bytes.extend_from_slice(&entry.body);
            }
        });
        self.last = Some(body);
    }

    pub(super) fn gone_young(&mut self, positions: &[Position]) {
        for positions in positions.chunks(POSITIONS_PER_RECORD) {
            self.record(Kind::GoneYoung, |bytes| bytes.extend(positions.iter().flat_map(|p| p.0.to_le_bytes())));
        }
    }

    pub(super) fn gone_resting(&mut self, gone: &Gone) {
        self.record(Kind::GoneResting, |bytes| {
            bytes.extend_from_slice(&gone.position.0.to_le_bytes());
            put_key(bytes, &gone.key.user, gone.key.id);
            put_end(bytes, gone.expires_at);
            bytes.extend_from_slice(&gone.len.to_le_bytes());
        });
    }

    pub(super) fn note(&mut self, note: &Note) {
        self.record(Kind::Note, |bytes| {
            bytes.extend_from_slice(&note.expires_at.to_le_bytes());
            bytes.extend_from_slice(&(note.key.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&note.key);
            bytes.extend_from_slice(&note.value);
        });
    }

    /// The finished row.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.bytes[0] = VERSION;
        self.bytes[1..5].copy_from_slice(&self.records.to_le_bytes());
        let crc = crc32fast::hash(&self.bytes[..5]);
        self.bytes[5..HEADER].copy_from_slice(&crc.to_le_bytes());
        self.bytes
    }

    fn record(&mut self, kind: Kind, payload: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; RECORD_HEADER]);
        self.bytes.push(kind as u8);
        payload(&mut self.bytes);
        let (header, rest) = self.bytes[start..].split_at_mut(RECORD_HEADER);
        header[..4].copy_from_slice(&(rest.len() as u32).to_le_bytes());
        header[4..].copy_from_slice(&crc32fast::hash(rest).to_le_bytes());
        self.records += 1;
        self.last = None;
    }
}

/// Reads a row and hands out its records, up to the first that is damaged.
pub(super) fn read_row(row: &[u8], mut take: impl FnMut(Record)) -> Result<(), Damage> {
    let mut input = Input(row);
    let records = header(&mut input).ok_or(Damage { records: 1 })?;
    let mut last = None;
    for read in 0..records {
        record(&mut input, &mut last, &mut take).ok_or_else(|| Damage { records: u64::from(records - read) })?;
    }
    // Something behind the last record would be a record that the header lost count of.
    if input.0.is_empty() { Ok(()) } else { Err(Damage { records: 1 }) }
}

fn header(input: &mut Input<'_>) -> Option<u32> {
    let header = input.take(5)?;
    if input.u32()? != crc32fast::hash(header) || header[0] != VERSION {
        return None;
    }
    Input(&header[1..]).u32()
}

fn record(input: &mut Input<'_>, last: &mut Option<(Uuid, Bytes)>, take: &mut impl FnMut(Record)) -> Option<()> {
    let (len, crc) = (input.u32()?, input.u32()?);
    let record = input.take(len as usize)?;
    if crc32fast::hash(record) != crc {
        return None;
    }
    let (&kind, payload) = record.split_first()?;
    let mut payload = Input(payload);
    let before = last.take();
    match kind {
        kind if kind == Kind::Entry as u8 || kind == Kind::Again as u8 => {
            let position = Position(payload.u64()?);
            let (user, id) = payload.key()?;
            let expires_at = payload.end()?;
            let body = if kind == Kind::Entry as u8 {
                Bytes::copy_from_slice(payload.0)
            } else {
                before.filter(|(same, _)| *same == id)?.1
            };
            *last = Some((id, body.clone()));
            take(Record::Entry(user, Entry::new(position, id, body, expires_at)));
        }
        kind if kind == Kind::GoneYoung as u8 => {
            while !payload.0.is_empty() {
                take(Record::GoneYoung(Position(payload.u64()?)));
            }
        }
        kind if kind == Kind::GoneResting as u8 => {
            let position = Position(payload.u64()?);
            let (user, id) = payload.key()?;
            let (expires_at, len) = (payload.end()?, payload.u64()?);
            take(Record::GoneResting(Gone { key: EntryKey::new(user, id), position, expires_at, len }));
        }
        kind if kind == Kind::Note as u8 => {
            let expires_at = payload.u64()?;
            let key_len = payload.u32()? as usize;
            let key = Bytes::copy_from_slice(payload.take(key_len)?);
            take(Record::Note(Note { key, value: Bytes::copy_from_slice(payload.0), expires_at }));
        }
        _ => return None,
    }
    Some(())
}

/// What is left to read.
pub(super) struct Input<'a>(pub(super) &'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn end(&mut self) -> Option<Option<u64>> {
        match self.array()? {
            [0] => Some(None),
            [1] => self.u64().map(Some),
            [_] => None,
        }
    }

    pub(super) fn key(&mut self) -> Option<(Id, Uuid)> {
        let len = u16::from_le_bytes(self.array()?);
        let user = str::from_utf8(self.take(usize::from(len))?).ok()?;
        // It was checked when it came in, or made by the hub.
        Some((Id::generated(user), Uuid::from_bytes(self.array()?)))
    }
}

pub(super) fn put_key(bytes: &mut Vec<u8>, user: &Id, id: Uuid) {
    let user = user.as_str().as_bytes();
    bytes.extend_from_slice(&(user.len() as u16).to_le_bytes());
    bytes.extend_from_slice(user);
    bytes.extend_from_slice(id.as_bytes());
}

pub(super) fn put_end(bytes: &mut Vec<u8>, expires_at: Option<u64>) {
    match expires_at {
        None => bytes.push(0),
        Some(end) => {
            bytes.push(1);
            bytes.extend_from_slice(&end.to_le_bytes());
        }
    }
}

#[derive(Clone, Copy)]
#[repr(u8)]
enum Kind {
    Entry = 1,
    /// An entry with the body of the record before.
    Again = 2,
    GoneYoung = 3,
    GoneResting = 4,
    Note = 5,
}

/// Format of a row.
const VERSION: u8 = 1;
const HEADER: usize = 9;
const RECORD_HEADER: usize = 8;
/// A damaged record loses this many removals at most, and their messages come once more.
const POSITIONS_PER_RECORD: usize = 512;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record() -> impl Strategy<Value = Record> {
        let user = || prop_oneof![Just("bob"), Just("a"), Just("\u{e4}\u{20ac}")].prop_map(Id::generated);
        let bytes = || proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
        let entry = (user(), 0..4_u128, any::<u64>(), bytes(), any::<Option<u64>>()).prop_map(
            |(user, id, position, body, end)| {
                Record::Entry(user, Entry::new(Position(position), Uuid::from_u128(id), body, end))
            },
        );
        let gone = (user(), any::<u128>(), any::<u64>(), any::<Option<u64>>(), any::<u64>()).prop_map(
            |(user, id, position, expires_at, len)| {
                let key = EntryKey::new(user, Uuid::from_u128(id));
                Record::GoneResting(Gone { key, position: Position(position), expires_at, len })
            },
        );
        let note = (bytes(), bytes(), any::<u64>())
            .prop_map(|(key, value, expires_at)| Record::Note(Note { key, value, expires_at }));
        prop_oneof![entry, gone, note, any::<u64>().prop_map(|p| Record::GoneYoung(Position(p)))]
    }

    fn write(records: &[Record]) -> Vec<u8> {
        let mut row = RowWriter::new();
        for record in records {
            match record {
                Record::Entry(user, entry) => row.entry(user, entry),
                Record::GoneYoung(position) => row.gone_young(&[*position]),
                Record::GoneResting(gone) => row.gone_resting(gone),
                Record::Note(note) => row.note(note),
            }
        }
        row.finish()
    }

    fn read(row: &[u8]) -> (Vec<Record>, Result<(), Damage>) {
        let mut records = Vec::new();
        let result = read_row(row, |record| records.push(record));
        (records, result)
    }

    proptest! {
        #[test]
        fn a_row_comes_back_as_it_was(records in proptest::collection::vec(record(), 0..20)) {
            prop_assert_eq!(read(&write(&records)), (records, Ok(())));
        }

        /// What is before the damage is read, nothing that was not written is, and what is lost is counted.
        #[test]
        fn no_damage_goes_unnoticed(
            records in proptest::collection::vec(record(), 1..20), at in any::<prop::sample::Index>(), bit in 0..8_u8,
        ) {
            let mut row = write(&records);
            let at = at.index(row.len());
            row[at] ^= 1 << bit;
            let (read, result) = read(&row);
            prop_assert!(records.starts_with(&read));
            let lost = result.expect_err("one bit is wrong").records;
            prop_assert!(lost >= 1 && (at < HEADER || read.len() as u64 + lost == records.len() as u64));
        }

        #[test]
        fn a_cut_row_is_noticed(records in proptest::collection::vec(record(), 1..20), at in any::<prop::sample::Index>()) {
            let row = write(&records);
            let (read, result) = read(&row[..at.index(row.len())]);
            prop_assert!(records.starts_with(&read) && result.is_err());
        }
    }

    #[test]
    fn a_body_for_many_is_written_once() {
        let body = Bytes::from(vec![7; 10_000]);
        let mut row = RowWriter::new();
        for n in 0..100 {
            row.entry(&Id::generated(format!("user-{n}")), &Entry::new(Position(n), Uuid::nil(), body.clone(), None));
        }
        let row = row.finish();
        assert!(row.len() < 16_000, "{} bytes", row.len());
        let (records, result) = read(&row);
        assert_eq!((records.len(), result), (100, Ok(())));
        assert!(records.iter().all(|record| matches!(record, Record::Entry(_, entry) if entry.body == body)));
    }
}
