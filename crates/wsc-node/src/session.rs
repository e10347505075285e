//! One open connection as the node knows it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;
use uuid::Uuid;
use wsc_auth::Permissions;
use wsc_protocol::{ClientId, ClientInfo, UserType};
use wsc_transport::{Member, Outbound, Slot};

use crate::{rooms::Room, users::User};

/// One open connection. There are many of these: every byte counts.
pub(crate) struct Session {
    /// Hub-wide unique id (UUIDv7); its time is that of the connection.
    pub(crate) id: Uuid,
    pub(crate) user: Arc<User>,
    /// The client's name for itself. Without one it goes by the session's id, which costs nothing to keep.
    pub(crate) given_client_id: Option<Box<str>>,
    pub(crate) device_id: Option<Box<str>>,
    pub(crate) permissions: Permissions,
    pub(crate) outbound: Outbound,
    pub(crate) user_type: UserType,
    /// Whether it selected the subprotocol `wsc.v1`.
    pub(crate) speaks_v1: bool,
    /// Bad frames in a row.
    pub(crate) bad_frames: AtomicU8,
    pub(crate) joined: Mutex<Joined>,
}

/// The rooms of a connection. `None` once it is gone: then it can join no more.
#[derive(Debug)]
pub(crate) struct Joined(Option<Vec<Seat>>);

/// A place in a room.
#[derive(Clone, Debug)]
pub(crate) struct Seat {
    pub(crate) room: Arc<Room>,
    pub(crate) slot: Slot,
}

impl Default for Joined {
    fn default() -> Self {
        Self(Some(Vec::new()))
    }
}

impl Joined {
    pub(crate) fn is_gone(&self) -> bool {
        self.0.is_none()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, Vec::len)
    }

    pub(crate) fn find(&self, room_id: &str) -> Option<&Seat> {
        self.0.as_ref()?.iter().find(|s| s.room.id.as_str() == room_id)
    }

    pub(crate) fn add(&mut self, seat: Seat) {
        if let Some(seats) = &mut self.0 {
            // Most connections are in one room: no spare places.
            seats.reserve_exact(1);
            seats.push(seat);
        }
    }

    /// Takes the seat in this very room, not in a newer one of the same id.
    pub(crate) fn remove(&mut self, room: &Arc<Room>) -> Option<Seat> {
        let seats = self.0.as_mut()?;
        let at = seats.iter().position(|s| Arc::ptr_eq(&s.room, room))?;
        Some(seats.swap_remove(at))
    }

    /// Takes all seats; nothing can be added afterwards.
    pub(crate) fn take_all(&mut self) -> Vec<Seat> {
        self.0.take().unwrap_or_default()
    }

    pub(crate) fn room_ids(&self) -> Vec<String> {
        self.0.iter().flatten().map(|s| s.room.id.to_string()).collect()
    }
}

impl Session {
    pub(crate) fn client_id(&self) -> ClientId {
        match &self.given_client_id {
            Some(given) => ClientId::Given(given.clone()),
            None => ClientId::Generated(self.id),
        }
    }

    /// Whether the connection goes by this name within its user.
    pub(crate) fn is_client(&self, client_id: &str) -> bool {
        match &self.given_client_id {
            Some(given) => **given == *client_id,
            None => ClientId::Generated(self.id).matches(client_id),
        }
    }

    /// Unix milliseconds.
    pub(crate) fn connected_at(&self) -> u64 {
        self.id.get_timestamp().map_or(0, |time| {
            let (seconds, nanos) = time.to_unix();
            seconds * 1000 + u64::from(nanos / 1_000_000)
        })
    }

    pub(crate) fn info(&self) -> ClientInfo {
        ClientInfo {
            user_id: self.user.id.clone(),
            client_id: self.client_id(),
            session: self.id,
            user_type: self.user_type,
            device_id: self.device_id.as_deref().map(str::to_owned),
        }
    }

    /// Counts one more bad frame in a row.
    pub(crate) fn count_bad_frame(&self) -> u8 {
        self.bad_frames.fetch_add(1, Relaxed).saturating_add(1)
    }

    pub(crate) fn count_good_frame(&self) {
        if self.bad_frames.load(Relaxed) != 0 {
            self.bad_frames.store(0, Relaxed);
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("id", &self.id)
            .field("user_id", &self.user.id)
            .field("client_id", &self.client_id())
            .finish_non_exhaustive()
    }
}

/// A member of rooms and of the node's own fan-outs.
#[derive(Clone, Debug)]
pub(crate) struct SessionRef(pub(crate) Arc<Session>);

impl Member for SessionRef {
    fn outbound(&self) -> &Outbound {
        &self.0.outbound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an idle connection costs: growth here is paid a hundred thousand times.
    #[test]
    fn a_session_stays_small() {
        assert!(size_of::<Session>() + 16 <= 128, "{}", size_of::<Session>());
        assert!(size_of::<User>() + 16 <= 64, "{}", size_of::<User>());
    }
}
