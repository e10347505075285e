//! A disk in memory that fails on demand.

use std::{io, sync::Arc};

use parking_lot::Mutex;
use redb::StorageBackend;

/// A disk that fails, fills up and forgets what was not synced, when a test says so.
///
/// Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct FaultyDisk(Arc<Mutex<Disk>>);

#[derive(Debug, Default)]
struct Disk {
    /// What reads see.
    data: Vec<u8>,
    /// What a power cut leaves for certain.
    synced: Vec<u8>,
    /// What was done since the last sync.
    unsynced: Vec<Change>,
    syncs: u64,
    fails: bool,
    /// How many changes and syncs still work.
    works_for: Option<u64>,
    capacity: Option<u64>,
}

#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Len(u64),
}

impl FaultyDisk {
    /// An empty disk on which all works.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes everything fail from now on, or work again.
    pub fn set_failing(&self, fails: bool) {
        let mut disk = self.0.lock();
        disk.fails = fails;
        disk.works_for = None;
    }

    /// Lets this many more writes and syncs work; what comes after fails.
    pub fn fail_after(&self, operations: u64) {
        self.0.lock().works_for = Some(operations);
    }

    /// Limits the size to so many bytes; `None`: no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.0.lock().capacity = bytes;
    }

    /// How many bytes it holds.
    pub fn size(&self) -> u64 {
        self.0.lock().data.len() as u64
    }

    /// How often it was synced.
    pub fn syncs(&self) -> u64 {
        self.0.lock().syncs
    }

    /// The disk as a power cut at this moment leaves it. Of what was not synced some is there, in any order, and some is
    /// not; `seed` decides. This disk stays as it is.
    #[must_use]
    pub fn after_power_cut(&self, seed: u64) -> Self {
        let disk = self.0.lock();
        let mut data = disk.synced.clone();
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for change in &disk.unsynced {
            for part in change.sectors() {
                // xorshift64: the next bit decides.
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                if random & 0x100 == 0 {
                    part.apply(&mut data);
                }
            }
        }
        Self::holding(data)
    }

    /// The disk as the end of the process at this moment leaves it: with all that was written.
    #[must_use]
    pub fn after_kill(&self) -> Self {
        Self::holding(self.0.lock().data.clone())
    }

    /// Changes what is on it, as a defect would.
    pub fn damage(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let disk = &mut *self.0.lock();
        change(&mut disk.data);
        disk.synced.clone_from(&disk.data);
        disk.unsynced.clear();
    }

    fn holding(data: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(Disk { synced: data.clone(), data, ..Disk::default() })))
    }
}

impl Disk {
    fn check(&mut self, is_change: bool) -> io::Result<()> {
        if is_change && let Some(left) = &mut self.works_for {
            match left.checked_sub(1) {
                Some(less) => *left = less,
                None => self.fails = true,
            }
        }
        if self.fails { Err(io::Error::other("the disk fails, as it was told to")) } else { Ok(()) }
    }

    fn change(&mut self, change: Change) -> io::Result<()> {
        self.check(true)?;
        let end = match &change {
            Change::Write(offset, data) => offset + data.len() as u64,
            Change::Len(len) => *len,
        };
        if self.capacity.is_some_and(|capacity| end > capacity) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        change.apply(&mut self.data);
        self.unsynced.push(change);
        Ok(())
    }
}

impl Change {
    /// Its parts of which each is written whole or not at all.
    fn sectors(&self) -> Vec<Self> {
        match self {
            Self::Len(_) => vec![self.clone()],
            Self::Write(offset, data) => {
                let sectors = data.chunks(512).enumerate();
                sectors.map(|(n, sector)| Self::Write(offset + 512 * n as u64, sector.to_vec())).collect()
            }
        }
    }

    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Self::Len(len) => to.resize(*len as usize, 0),
            Self::Write(offset, data) => {
                let (start, end) = (*offset as usize, *offset as usize + data.len());
                if to.len() < end {
                    to.resize(end, 0);
                }
                to[start..end].copy_from_slice(data);
            }
        }
    }
}

impl StorageBackend for FaultyDisk {
    fn len(&self) -> io::Result<u64> {
        let mut disk = self.0.lock();
        disk.check(false)?;
        Ok(disk.data.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.check(false)?;
        let data = disk.data.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(data.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.lock().change(Change::Len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.0.lock();
        if let Err(error) = disk.check(true) {
            // As systems do: what was written is taken for safe from now on, though it is not. Lengths are kept.
            disk.unsynced.retain(|change| matches!(change, Change::Len(_)));
            return Err(error);
        }
        disk.syncs += 1;
        for change in std::mem::take(&mut disk.unsynced) {
            change.apply(&mut disk.synced);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.lock().change(Change::Write(offset, data.to_vec()))
    }
}
