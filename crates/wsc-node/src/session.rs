//! One open connection as the node knows it.

use std::{
    fmt, mem,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed},
    },
};

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use uuid::Uuid;
use wsc_protocol::{ClientId, ClientInfo, Priority, UserType};
use wsc_transport::{Encoded, Member, Outbound, Sent, Settle, Slot, Terms};

use crate::{admission::ANONYMOUS, grant::Grant, rooms::Room, users::User};

/// One open connection. There are many of these: every byte counts.
pub(crate) struct Session {
    /// Hub-wide unique id (UUIDv7); its time is that of the connection.
    pub(crate) id: Uuid,
    /// Whose it is. It changes once at most: when somebody without a name gives one.
    user: ArcSwap<User>,
    /// Without a client id of its own the connection goes by the session's id, which costs nothing to keep.
    pub(crate) names: Names,
    /// What it may do, until when.
    grant: ArcSwap<Grant>,
    pub(crate) outbound: Outbound,
    /// Whether it selected the subprotocol `wsc.v1`.
    pub(crate) speaks_v1: bool,
    /// Whether it was told that its token has run out.
    is_told_of_expiry: AtomicBool,
    /// Held by whoever decides anew whose it is and what it may do.
    pub(crate) renewing: Mutex<()>,
    /// Bad frames in a row.
    bad_frames: AtomicU8,
    /// Its place in the fan-out of all connections like it.
    pub(crate) everyone_slot: AtomicU32,
    pub(crate) joined: Mutex<Joined>,
}

/// The rooms of a connection. Most are in one: it needs no list of its own.
#[derive(Debug, Default)]
pub(crate) enum Joined {
    #[default]
    None,
    One(Seat),
    Many(Vec<Seat>),
    /// The connection is gone: it can join no more.
    Gone,
}

/// A place in a room.
#[derive(Clone, Debug)]
pub(crate) struct Seat {
    pub(crate) room: Arc<Room>,
    pub(crate) slot: Slot,
}

impl Joined {
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self, Self::Gone)
    }

    fn seats(&self) -> &[Seat] {
        match self {
            Self::None | Self::Gone => &[],
            Self::One(seat) => std::slice::from_ref(seat),
            Self::Many(seats) => seats,
        }
    }

    /// How many rooms the connection is in. A seat in a deleted room stays until the last of its members was told.
    pub(crate) fn len(&self) -> usize {
        self.seats().iter().filter(|seat| !seat.room.fanout.is_closed()).count()
    }

    /// The seat in the room of this id.
    pub(crate) fn find(&self, room_id: &str) -> Option<&Seat> {
        self.seats().iter().find(|seat| seat.room.id.as_str() == room_id && !seat.room.fanout.is_closed())
    }

    /// As [`find`](Self::find), or the seat in a room of this id that was deleted.
    pub(crate) fn find_any(&self, room_id: &str) -> Option<&Seat> {
        self.seats().iter().find(|seat| seat.room.id.as_str() == room_id)
    }

    /// Takes the seat in a deleted room of this id, where there is one.
    pub(crate) fn take_deleted(&mut self, room_id: &str) -> Option<Seat> {
        let is_deleted = |seat: &&Seat| seat.room.id.as_str() == room_id && seat.room.fanout.is_closed();
        let room = Arc::clone(&self.seats().iter().find(is_deleted)?.room);
        self.remove(&room)
    }

    /// Forgets seats in rooms that are over.
    pub(crate) fn tidy(&mut self) {
        let is_over = |seat: &&Seat| seat.room.fanout.is_closed() && seat.room.fanout.is_empty();
        while let Some(room) = self.seats().iter().find(is_over).map(|seat| Arc::clone(&seat.room)) {
            self.remove(&room);
        }
    }

    /// Adds a seat, unless the connection is gone.
    pub(crate) fn add(&mut self, seat: Seat) {
        *self = match mem::take(self) {
            Self::None => Self::One(seat),
            Self::One(first) => Self::Many(vec![first, seat]),
            Self::Many(mut seats) => {
                seats.push(seat);
                Self::Many(seats)
            }
            Self::Gone => Self::Gone,
        };
    }

    /// Takes the seat in this very room, not in a newer one of the same id.
    pub(crate) fn remove(&mut self, room: &Arc<Room>) -> Option<Seat> {
        let at = self.seats().iter().position(|s| Arc::ptr_eq(&s.room, room))?;
        match mem::take(self) {
            Self::One(seat) => Some(seat),
            Self::Many(mut seats) => {
                let seat = seats.swap_remove(at);
                *self = Self::Many(seats);
                Some(seat)
            }
            other @ (Self::None | Self::Gone) => {
                *self = other;
                None
            }
        }
    }

    /// Takes all seats; nothing can be added afterwards.
    pub(crate) fn take_all(&mut self) -> Vec<Seat> {
        match mem::replace(self, Self::Gone) {
            Self::One(seat) => vec![seat],
            Self::Many(seats) => seats,
            Self::None | Self::Gone => Vec::new(),
        }
    }

    pub(crate) fn room_ids(&self) -> Vec<String> {
        let open = self.seats().iter().filter(|seat| !seat.room.fanout.is_closed());
        open.map(|seat| seat.room.id.to_string()).collect()
    }
}

/// What a client calls itself and its device, in one allocation: an idle connection should be small. Ids hold no
/// control characters, so NUL parts them.
#[derive(Default)]
pub(crate) struct Names(Box<str>);

impl Names {
    pub(crate) fn new(client_id: Option<&str>, device_id: Option<&str>) -> Self {
        match (client_id, device_id) {
            (None, None) => Self::default(),
            (client_id, device_id) => {
                Self(format!("{}\0{}", client_id.unwrap_or_default(), device_id.unwrap_or_default()).into())
            }
        }
    }

    /// The client id that was given.
    pub(crate) fn client_id(&self) -> Option<&str> {
        self.0.split_once('\0').map(|(client_id, _)| client_id).filter(|id| !id.is_empty())
    }

    /// The device id that was given.
    pub(crate) fn device_id(&self) -> Option<&str> {
        self.0.split_once('\0').map(|(_, device_id)| device_id).filter(|id| !id.is_empty())
    }
}

impl Session {
    pub(crate) fn new(
        id: Uuid,
        user: Arc<User>,
        names: Names,
        grant: Arc<Grant>,
        outbound: Outbound,
        speaks_v1: bool,
    ) -> Self {
        Self {
            id,
            user: ArcSwap::new(user),
            names,
            grant: ArcSwap::new(grant),
            outbound,
            speaks_v1,
            is_told_of_expiry: AtomicBool::new(false),
            renewing: Mutex::new(()),
            bad_frames: AtomicU8::new(0),
            everyone_slot: AtomicU32::new(u32::MAX),
            joined: Mutex::default(),
        }
    }

    /// Whose it is.
    pub(crate) fn user(&self) -> Guard<Arc<User>> {
        self.user.load()
    }

    /// What it may do, until when.
    pub(crate) fn grant(&self) -> Guard<Arc<Grant>> {
        self.grant.load()
    }

    pub(crate) fn user_type(&self) -> UserType {
        self.grant.load().user_type
    }

    /// Whether it came without a token to a hub that knows tokens.
    pub(crate) fn is_anonymous(&self) -> bool {
        self.grant().token.is_none() && self.user().id.as_str().starts_with(ANONYMOUS)
    }

    /// From now on it is this user's. Only the task that reads from it may call this.
    pub(crate) fn become_user(&self, user: Arc<User>) {
        self.user.store(user);
    }

    /// From now on it may do this, until then.
    pub(crate) fn renew(&self, grant: Arc<Grant>) {
        self.grant.store(grant);
        self.is_told_of_expiry.store(false, Relaxed);
    }

    /// Whether it has not been told of its token's end before; from now on it counts as told.
    pub(crate) fn is_first_told_of_expiry(&self) -> bool {
        !self.is_told_of_expiry.swap(true, Relaxed)
    }

    pub(crate) fn client_id(&self) -> ClientId {
        match self.names.client_id() {
            Some(given) => ClientId::Given(given.into()),
            None => ClientId::Generated(self.id),
        }
    }

    /// Whether the connection goes by this name within its user.
    pub(crate) fn is_client(&self, client_id: &str) -> bool {
        match self.names.client_id() {
            Some(given) => *given == *client_id,
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
            user_id: self.user().id.clone(),
            client_id: self.client_id(),
            session: self.id,
            user_type: self.user_type(),
            device_id: self.names.device_id().map(str::to_owned),
        }
    }

    /// Offers one message; `track` is asked for somebody to tell the end where it has to wait. What is reliable is
    /// never dropped: it comes back where it does not fit.
    pub(crate) fn offer(
        &self,
        frame: &Encoded<'_>,
        priority: Priority,
        is_reliable: bool,
        track: &mut dyn FnMut() -> Option<Arc<dyn Settle>>,
    ) -> Sent {
        let terms = if is_reliable { Terms::reliable(priority) } else { Terms::plain(priority) };
        self.outbound.deliver_on(terms, frame, track)
    }

    /// In how many rooms it is.
    pub(crate) fn count_rooms(&self) -> u32 {
        u32::try_from(self.joined.lock().len()).unwrap_or(u32::MAX)
    }

    /// Bad frames in a row, so far.
    pub(crate) fn bad_frames(&self) -> u8 {
        self.bad_frames.load(Relaxed)
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
            .field("user_id", &self.user().id)
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
        assert!(size_of::<Session>() + 16 <= 112, "{}", size_of::<Session>());
        assert!(size_of::<User>() + 16 <= 64, "{}", size_of::<User>());
    }

    #[test]
    fn names_are_kept_apart() {
        for (client_id, device_id) in [(None, None), (Some("c"), None), (None, Some("d")), (Some("c"), Some("d"))] {
            let names = Names::new(client_id, device_id);
            assert_eq!((names.client_id(), names.device_id()), (client_id, device_id));
        }
    }
}
