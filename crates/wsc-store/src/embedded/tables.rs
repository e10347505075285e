//! The tables of the file, and what is read from and written to those for resting mail.

use std::ops::RangeInclusive;

use bytes::Bytes;
use redb::{ReadTransaction, ReadableTable, Table, TableDefinition, WriteTransaction};
use uuid::Uuid;
use wsc_protocol::Id;

use super::{
    failure::Failure,
    journal::{Gone, Input, put_end, put_key},
};
use crate::{Depth, Entry, EntryKey, Position};

/// Single figures: the format, how the store ended, what the next numbers are.
pub(super) const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");
/// Sequence number → row, one or more for each commit, oldest first.
pub(super) const JOURNAL: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("journal");
/// Sequence number → row of notes whose entries have left the journal.
pub(super) const NOTES: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("notes");
/// User → messages, bytes and highest id of what rests.
pub(super) const USERS: TableDefinition<'static, &str, (u64, u64, u128)> = TableDefinition::new("users");
/// User and position → entry.
const INBOX: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("inbox");
/// User and id → position, end and length.
const IDS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("ids");
/// End and position → user and id.
const ENDS: TableDefinition<'static, (u64, u64), &[u8]> = TableDefinition::new("ends");

/// Keys of [`META`].
pub(super) mod meta {
    pub(in super::super) const FORMAT: &str = "format";
    /// 1 after an orderly close.
    pub(in super::super) const CLOSED: &str = "closed";
    /// The highest position that was ever given.
    pub(in super::super) const POSITION: &str = "position";
    /// The highest sequence number that ever left the journal.
    pub(in super::super) const SEQUENCE: &str = "sequence";
}

/// The tables for resting mail, to be changed.
pub(super) struct Resting<'txn> {
    inbox: Table<'txn, &'static [u8], &'static [u8]>,
    ids: Table<'txn, &'static [u8], &'static [u8]>,
    ends: Table<'txn, (u64, u64), &'static [u8]>,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl<'txn> Resting<'txn> {
    pub(super) fn open(txn: &'txn WriteTransaction) -> Result<Self, Failure> {
        Ok(Self {
            inbox: txn.open_table(INBOX)?,
            ids: txn.open_table(IDS)?,
            ends: txn.open_table(ENDS)?,
            key: Vec::new(),
            value: Vec::new(),
        })
    }

    pub(super) fn insert(&mut self, user: &Id, entry: &Entry) -> Result<(), Failure> {
        self.value.clear();
        self.value.extend_from_slice(&[0; CRC]);
        self.value.extend_from_slice(entry.id.as_bytes());
        put_end(&mut self.value, entry.expires_at);
        self.value.extend_from_slice(&entry.body);
        // The key is in the sum, so an entry cannot turn up in the wrong place either.
        inbox_key(&mut self.key, user, entry.position);
        let crc = checksum(&self.key, &self.value[CRC..]);
        self.value[..CRC].copy_from_slice(&crc.to_le_bytes());
        self.inbox.insert(&*self.key, &*self.value)?;

        self.value.clear();
        self.value.extend_from_slice(&entry.position.0.to_le_bytes());
        put_end(&mut self.value, entry.expires_at);
        self.value.extend_from_slice(&(entry.body.len() as u64).to_le_bytes());
        self.key.clear();
        put_key(&mut self.key, user, entry.id);
        self.ids.insert(&*self.key, &*self.value)?;
        if let Some(end) = entry.expires_at {
            self.ends.insert((end, entry.position.0), &*self.key)?;
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, gone: &Gone) -> Result<(), Failure> {
        inbox_key(&mut self.key, &gone.key.user, gone.position);
        self.inbox.remove(&*self.key)?;
        self.key.clear();
        put_key(&mut self.key, &gone.key.user, gone.key.id);
        self.ids.remove(&*self.key)?;
        if let Some(end) = gone.expires_at {
            self.ends.remove((end, gone.position.0))?;
        }
        Ok(())
    }
}

/// The resting mail as it was at one moment.
pub(super) struct Snapshot(ReadTransaction);

/// One row of the inbox table.
pub(super) enum Read {
    Entry(Entry),
    /// It is there, and cannot be read.
    Damaged(Position),
}

impl Read {
    pub(super) fn position(&self) -> Position {
        match self {
            Self::Entry(entry) => entry.position,
            Self::Damaged(position) => *position,
        }
    }
}

impl Snapshot {
    pub(super) fn new(txn: ReadTransaction) -> Self {
        Self(txn)
    }

    /// Hands out the entries of a user at these positions, oldest first, until it is told to stop.
    pub(super) fn scan(
        &self,
        user: &Id,
        positions: RangeInclusive<u64>,
        mut take: impl FnMut(Read) -> bool,
    ) -> Result<(), Failure> {
        let table = self.0.open_table(INBOX)?;
        let (mut first, mut last) = (Vec::new(), Vec::new());
        inbox_key(&mut first, user, Position(*positions.start()));
        inbox_key(&mut last, user, Position(*positions.end()));
        for row in table.range(&*first..=&*last)? {
            let (key, value) = row?;
            if !take(decode(key.value(), value.value())) {
                break;
            }
        }
        Ok(())
    }

    /// The entry at one place.
    pub(super) fn at(&self, user: &Id, position: Position) -> Result<Option<Read>, Failure> {
        let mut found = None;
        self.scan(user, position.0..=position.0, |read| {
            found = Some(read);
            false
        })?;
        Ok(found)
    }

    /// What is known about the entries of these keys, in this order.
    pub(super) fn find<'a>(&self, keys: impl Iterator<Item = &'a EntryKey>) -> Result<Vec<Option<Gone>>, Failure> {
        let table = self.0.open_table(IDS)?;
        let mut bytes = Vec::new();
        keys.map(|key| {
            bytes.clear();
            put_key(&mut bytes, &key.user, key.id);
            let Some(value) = table.get(&*bytes)? else { return Ok(None) };
            place(&bytes, value.value()).ok_or(Failure::Damaged("an id's place")).map(Some)
        })
        .collect()
    }

    /// What is known about the entry at one place of a user, the slow way: by looking at all of the user's.
    pub(super) fn find_position(&self, user: &Id, position: Position) -> Result<Option<Gone>, Failure> {
        let (mut first, mut last) = (Vec::new(), Vec::new());
        put_key(&mut first, user, Uuid::nil());
        put_key(&mut last, user, Uuid::max());
        for row in self.0.open_table(IDS)?.range(&*first..=&*last)? {
            let (key, value) = row?;
            let gone = place(key.value(), value.value()).ok_or(Failure::Damaged("an id's place"))?;
            if gone.position == position {
                return Ok(Some(gone));
            }
        }
        Ok(None)
    }

    /// Hands out what ends at `now` or before, in order, from behind `after`, until it is told to stop.
    pub(super) fn ends(
        &self,
        after: Option<(u64, Position)>,
        now: u64,
        mut take: impl FnMut(u64, Position, EntryKey) -> bool,
    ) -> Result<(), Failure> {
        use std::ops::Bound;
        let table = self.0.open_table(ENDS)?;
        let first = after.map_or(Bound::Unbounded, |(end, position)| Bound::Excluded((end, position.0)));
        for row in table.range::<(u64, u64)>((first, Bound::Included((now, u64::MAX))))? {
            let (key, value) = row?;
            let (end, position) = key.value();
            let (user, id) = Input(value.value()).key().ok_or(Failure::Damaged("an end"))?;
            if !take(end, Position(position), EntryKey::new(user, id)) {
                break;
            }
        }
        Ok(())
    }

    /// Hands out the rows of notes, oldest first.
    pub(super) fn notes(&self, mut take: impl FnMut(u64, &[u8])) -> Result<(), Failure> {
        for row in self.0.open_table(NOTES)?.iter()? {
            let (sequence, row) = row?;
            take(sequence.value(), row.value());
        }
        Ok(())
    }

    /// Hands out the rows of the journal, oldest first.
    pub(super) fn journal(&self, mut take: impl FnMut(u64, &[u8])) -> Result<(), Failure> {
        for row in self.0.open_table(JOURNAL)?.iter()? {
            let (sequence, row) = row?;
            take(sequence.value(), row.value());
        }
        Ok(())
    }

    /// Hands out what each user has at rest, with the highest id.
    pub(super) fn users(&self, mut take: impl FnMut(Id, Depth, Uuid)) -> Result<(), Failure> {
        for row in self.0.open_table(USERS)?.iter()? {
            let (user, depth) = row?;
            let (messages, bytes, max_id) = depth.value();
            take(Id::generated(user.value()), Depth { messages, bytes }, Uuid::from_u128(max_id));
        }
        Ok(())
    }

    /// One of the single figures; 0 where it was never written.
    pub(super) fn meta(&self, key: &str) -> Result<u64, Failure> {
        Ok(self.0.open_table(META)?.get(key)?.map_or(0, |value| value.value()))
    }
}

/// Reads a row of the table of ids.
fn place(key: &[u8], value: &[u8]) -> Option<Gone> {
    let (user, id) = Input(key).key()?;
    let mut value = Input(value);
    let position = Position(value.u64()?);
    Some(Gone { key: EntryKey::new(user, id), position, expires_at: value.end()?, len: value.u64()? })
}

fn decode(key: &[u8], value: &[u8]) -> Read {
    let position = Position(key.last_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes)));
    let entry = || {
        let mut input = Input(value);
        if input.u32()? != checksum(key, input.0) {
            return None;
        }
        let id = Uuid::from_bytes(input.array()?);
        let expires_at = input.end()?;
        Some(Entry::new(position, id, Bytes::copy_from_slice(input.0), expires_at))
    };
    entry().map_or(Read::Damaged(position), Read::Entry)
}

/// The length in front keeps users apart whose names begin alike; big-endian positions sort as they count.
fn inbox_key(key: &mut Vec<u8>, user: &Id, position: Position) {
    let user = user.as_str().as_bytes();
    key.clear();
    key.extend_from_slice(&(user.len() as u16).to_be_bytes());
    key.extend_from_slice(user);
    key.extend_from_slice(&position.0.to_be_bytes());
}

pub(super) fn checksum(key: &[u8], value: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(key);
    crc.update(value);
    crc.finalize()
}

const CRC: usize = 4;
