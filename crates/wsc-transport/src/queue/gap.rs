//! Saying that messages are missing (protocol §4, *Slow consumers*).

use bytes::Bytes;
use wsc_protocol::encode;

use crate::frame::text_frame;

/// Messages that this connection will not get.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gap {
    dropped: u64,
    bytes: u64,
    /// Unix milliseconds.
    since: u64,
}

impl Gap {
    pub(super) fn widen(gap: &mut Option<Self>, entry_bytes: usize, deliveries: u32) {
        let gap = gap.get_or_insert_with(|| Self { dropped: 0, bytes: 0, since: unix_ms() });
        // A message of its own is no delivery of a fan-out, but it is one message.
        gap.dropped += u64::from(deliveries.max(1));
        gap.bytes += entry_bytes as u64;
    }

    /// Adds an older gap that nobody was told of.
    pub(super) fn join(gap: &mut Option<Self>, older: Option<Self>) {
        let Some(older) = older else { return };
        *gap = Some(match *gap {
            Some(newer) => {
                Self { dropped: older.dropped + newer.dropped, bytes: older.bytes + newer.bytes, since: older.since }
            }
            None => older,
        });
    }

    pub(super) fn to_frame(self) -> Bytes {
        let mut buffer = Vec::new();
        let frame = text_frame(&mut buffer, |out| encode::gap(out, self.dropped, self.bytes, self.since, unix_ms()));
        Bytes::copy_from_slice(frame)
    }
}

/// A gap that begins and ends now.
pub(crate) fn gap_frame(dropped: u64, bytes: u64) -> Bytes {
    Gap { dropped, bytes, since: unix_ms() }.to_frame()
}

fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| d.as_millis() as u64)
}
