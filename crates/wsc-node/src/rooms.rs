//! Rooms: named fan-outs with rules about who is in.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use dashmap::{DashMap, Entry};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Notify;
use wsc_auth::Permission;
use wsc_config::Settings;
use wsc_events::ConnectionEvent;
use wsc_protocol::{ErrorCode, ErrorReply, Event, EventType, Id, MessageId};
use wsc_transport::{Fanout, JoinError};

use crate::{
    core::Core,
    encode::{now_ms, reply_frame},
    session::{Seat, Session, SessionRef},
};

/// One room.
#[derive(Debug)]
pub(crate) struct Room {
    pub(crate) id: Id,
    pub(crate) name: Box<str>,
    /// Most members; 0: what the settings say.
    pub(crate) max_clients: u32,
    /// Made by a join: it goes with its last member.
    pub(crate) is_automatic: bool,
    pub(crate) fanout: Fanout<SessionRef>,
    /// Senders of messages that wait for the store, and how many: their plain messages must not overtake those.
    pub(crate) held: Held,
}

/// Senders whose messages are on their way to the store.
#[derive(Debug, Default)]
pub(crate) struct Held {
    count: AtomicUsize,
    senders: Mutex<HashMap<Box<str>, usize>>,
    released: Notify,
}

impl Room {
    /// Most members; 0: no limit.
    fn max_members(&self, settings: &Settings) -> u32 {
        match self.max_clients {
            0 => u32::try_from(settings.rooms.max_clients).unwrap_or(u32::MAX),
            own => own,
        }
    }

    /// A message of this sender is on its way to the store.
    pub(crate) fn hold(&self, sender_id: &str) {
        self.held.count.fetch_add(1, Relaxed);
        *self.held.senders.lock().entry(sender_id.into()).or_default() += 1;
    }

    /// It has an answer.
    pub(crate) fn release(&self, sender_id: &str) {
        let mut senders = self.held.senders.lock();
        if let Some(count) = senders.get_mut(sender_id) {
            *count -= 1;
            if *count == 0 {
                senders.remove(sender_id);
            }
        }
        drop(senders);
        self.held.count.fetch_sub(1, Relaxed);
        self.held.released.notify_waiters();
    }

    /// Whether messages of this sender are on their way to the store.
    pub(crate) fn is_held_for(&self, sender_id: &str) -> bool {
        self.held.count.load(Relaxed) > 0 && self.held.senders.lock().contains_key(sender_id)
    }

    /// Waits until all messages of this sender have an answer.
    pub(crate) async fn released(&self, sender_id: &str) {
        loop {
            let released = self.held.released.notified();
            if !self.is_held_for(sender_id) {
                return;
            }
            released.await;
        }
    }
}

/// All rooms of the node.
#[derive(Debug, Default)]
pub(crate) struct Rooms {
    by_id: DashMap<Id, Arc<Room>>,
}

/// How a room is made.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RoomOptions {
    /// Its display name; default its id.
    pub name: Option<String>,
    /// Most members; 0 and `None`: what the settings say.
    pub max_clients: Option<u32>,
}

impl RoomOptions {
    /// Options with a name and a limit.
    pub fn new(name: Option<String>, max_clients: Option<u32>) -> Self {
        Self { name, max_clients }
    }
}

/// A room as listings show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RoomInfo {
    /// Its id.
    pub id: String,
    /// Its display name.
    pub name: String,
    /// Most members; 0: no limit.
    pub max_clients: u32,
    /// How many connections are in it.
    pub member_count: usize,
}

impl RoomInfo {
    pub(crate) fn new(room: &Room, settings: &Settings) -> Self {
        Self {
            id: room.id.to_string(),
            name: room.name.to_string(),
            max_clients: room.max_members(settings),
            member_count: room.fanout.len(),
        }
    }
}

impl Rooms {
    pub(crate) fn get(&self, room_id: &str) -> Option<Arc<Room>> {
        self.by_id.get(room_id).map(|room| Arc::clone(&room))
    }

    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// All rooms, by id.
    pub(crate) fn list(&self) -> Vec<Arc<Room>> {
        let mut rooms: Vec<_> = self.by_id.iter().map(|entry| Arc::clone(entry.value())).collect();
        rooms.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        rooms
    }

    fn remove(&self, room: &Arc<Room>) -> bool {
        self.by_id.remove_if(room.id.as_str(), |_, now| Arc::ptr_eq(now, room)).is_some()
    }
}

impl Core {
    /// Makes a room that stays until it is deleted.
    pub(crate) fn create_room(&self, room_id: &str, options: RoomOptions) -> Result<Arc<Room>, ErrorReply> {
        let (room, is_new) = self.room_or_new(room_id, options, false)?;
        if is_new { Ok(room) } else { Err(ErrorCode::RoomAlreadyExists.into()) }
    }

    /// Finds a room or makes one. Returns whether it is new.
    fn room_or_new(
        &self,
        room_id: &str,
        options: RoomOptions,
        is_automatic: bool,
    ) -> Result<(Arc<Room>, bool), ErrorReply> {
        if let Some(room) = self.rooms.get(room_id) {
            return Ok((room, false));
        }
        if options.name.as_ref().is_some_and(|name| name.len() > MAX_NAME_LEN) {
            let message = format!("name has more than the {MAX_NAME_LEN} bytes allowed");
            return Err(ErrorReply::new(ErrorCode::InvalidFormat, message));
        }
        let settings = self.settings();
        if self.rooms.len() as u64 >= settings.rooms.max_rooms {
            let details = serde_json::json!({ "limit": settings.rooms.max_rooms });
            return Err(
                ErrorReply::new(ErrorCode::TooManyRooms, "the hub has no place for another room").with_details(details)
            );
        }
        let id = Id::generated(room_id);
        let room = match self.rooms.by_id.entry(id.clone()) {
            Entry::Occupied(entry) => return Ok((Arc::clone(entry.get()), false)),
            Entry::Vacant(entry) => {
                let room = Arc::new(Room {
                    name: options.name.map_or_else(|| room_id.into(), String::into_boxed_str),
                    max_clients: options.max_clients.unwrap_or_default(),
                    is_automatic,
                    fanout: self.fanouts.fanout(),
                    held: Held::default(),
                    id: id.clone(),
                });
                entry.insert(Arc::clone(&room));
                room
            }
        };
        self.events.publish_with(EventType::RoomCreated, || Event::RoomCreated { room_id: id });
        Ok((room, true))
    }

    /// Deletes a room and tells its members, but for the connection that asked for it.
    pub(crate) fn delete_room(&self, room_id: &str, asked_by: Option<&Session>) -> Result<(), ErrorReply> {
        let room = self.rooms.get(room_id).ok_or(ErrorCode::RoomNotFound)?;
        if !self.rooms.remove(&room) {
            return Err(ErrorCode::RoomNotFound.into());
        }
        let notice = reply_frame("room_deleted", None, now_ms(), |json| {
            json.raw("{\"room_id\":").string(room_id).raw("}");
        });
        let own_slot = asked_by.and_then(|session| session.joined.lock().find(room_id).map(|seat| seat.slot));
        // Members keep their seats until they have the notice: one that joins a new room of this id before that has to
        // leave this one first.
        room.fanout.close(&notice, own_slot);
        self.events.publish_with(EventType::RoomDeleted, || Event::RoomDeleted { room_id: room.id.clone() });
        Ok(())
    }

    /// Puts a connection into a room and tells it so: as the answer to its request, or as a notice where somebody
    /// else did it. What refuses is returned, not sent.
    pub(crate) fn join(
        &self,
        session: &Arc<Session>,
        room_id: &str,
        request_id: Option<&MessageId<'_>>,
        by_request: bool,
    ) -> Result<(), ErrorReply> {
        loop {
            let room = match self.rooms.get(room_id) {
                Some(room) => room,
                None => self.room_for_join(session, room_id, by_request)?,
            };
            let settings = self.settings();
            let max_rooms = settings.limits.rooms_per_connection;
            let mut result = Ok(());
            let mut is_stale = false;
            let deleted = || {
                reply_frame("room_deleted", None, now_ms(), |json| {
                    json.raw("{\"room_id\":").string(room_id).raw("}");
                })
            };
            session.outbound.send_with(|| {
                let mut joined = session.joined.lock();
                if joined.is_gone() {
                    result = Err(ErrorReply::from(ErrorCode::ClientNotFound));
                    return None;
                }
                // Again, and here: whoever takes the permission away looks at the rooms afterwards.
                if by_request && !session.grant().permissions.allows_room(Permission::JoinRoom, room_id) {
                    result = Err(ErrorReply::new(ErrorCode::Forbidden, "you may not join this room"));
                    return None;
                }
                if joined.find(room_id).is_some_and(|seat| Arc::ptr_eq(&seat.room, &room)) {
                    result = Err(ErrorCode::AlreadyInRoom.into());
                    return None;
                }
                if max_rooms > 0 && joined.len() as u64 >= max_rooms {
                    let details = serde_json::json!({ "limit": max_rooms });
                    result = Err(ErrorReply::from(ErrorCode::TooManyRooms).with_details(details));
                    return None;
                }
                joined.tidy();
                // What the old room of this name still has for the connection must not come after the answer.
                let mut frames = match joined.take_deleted(room_id) {
                    Some(old) if old.room.fanout.leave(old.slot) => deleted(),
                    _ => Vec::new(),
                };
                let unsent = |frames: Vec<u8>| Some(frames).filter(|frames| !frames.is_empty());
                let max = Some(room.max_members(&settings) as usize).filter(|&max| max > 0);
                match room.fanout.join(SessionRef(Arc::clone(session)), max) {
                    Ok(slot) => joined.add(Seat { room: Arc::clone(&room), slot }),
                    Err(JoinError::Full) => {
                        result = Err(ErrorCode::RoomFull.into());
                        return unsent(frames);
                    }
                    Err(JoinError::Closed) => {
                        is_stale = true;
                        return unsent(frames);
                    }
                }
                let status = if by_request { "joined" } else { "added" };
                frames.extend(reply_frame("room_joined", request_id, now_ms(), |json| {
                    json.raw("{\"room_id\":").string(room_id).raw(",\"status\":").string(status).raw("}");
                }));
                Some(frames)
            });
            if is_stale {
                // It was closed between the look-up and the join; whoever closes it removes it, and so may we.
                self.rooms.remove(&room);
                continue;
            }
            if result.is_ok() {
                self.trace(session.id, ConnectionEvent::Joined { rooms: session.count_rooms() });
                self.events.publish_with(EventType::RoomJoined, || Event::RoomJoined {
                    room_id: room.id.clone(),
                    client: session.info(),
                });
            } else if room.is_automatic {
                // It may have been made for this very join.
                self.drop_if_empty(&room);
            }
            return result;
        }
    }

    fn room_for_join(&self, session: &Session, room_id: &str, by_request: bool) -> Result<Arc<Room>, ErrorReply> {
        let may_create = by_request
            && self.settings().rooms.auto_create
            && session.grant().permissions.allows_room(Permission::CreateRoom, room_id);
        if !may_create {
            return Err(ErrorCode::RoomNotFound.into());
        }
        self.room_or_new(room_id, RoomOptions::default(), true).map(|(room, _)| room)
    }

    /// Takes a connection out of a room and tells it so; `reason` is set where it did not ask for that.
    pub(crate) fn leave(
        &self,
        session: &Arc<Session>,
        room_id: &str,
        request_id: Option<&MessageId<'_>>,
        reason: Option<&str>,
    ) -> Result<(), ErrorReply> {
        let mut left = None;
        session.outbound.send_with(|| {
            let mut joined = session.joined.lock();
            joined.tidy();
            let room = Arc::clone(&joined.find(room_id)?.room);
            let seat = joined.remove(&room)?;
            drop(joined);
            seat.room.fanout.leave(seat.slot);
            left = Some(seat.room);
            Some(reply_frame("room_left", request_id, now_ms(), |json| {
                json.raw("{\"room_id\":").string(room_id);
                match reason {
                    None => json.raw(",\"status\":\"left\"}"),
                    Some(reason) => json.raw(",\"status\":\"removed\",\"reason\":").string(reason).raw("}"),
                };
            }))
        });
        match left {
            Some(room) => {
                self.trace(session.id, ConnectionEvent::Left { rooms: session.count_rooms() });
                self.left(&room, session);
                Ok(())
            }
            None if self.rooms.get(room_id).is_none() => Err(ErrorCode::RoomNotFound.into()),
            None => Err(ErrorCode::NotInRoom.into()),
        }
    }

    /// A connection is gone: so are its seats.
    pub(crate) fn leave_all(&self, session: &Arc<Session>) {
        let seats = session.joined.lock().take_all();
        for seat in seats {
            let is_deleted = seat.room.fanout.is_closed();
            seat.room.fanout.leave(seat.slot);
            if !is_deleted {
                self.left(&seat.room, session);
            }
        }
    }

    fn left(&self, room: &Arc<Room>, session: &Session) {
        self.events
            .publish_with(EventType::RoomLeft, || Event::RoomLeft { room_id: room.id.clone(), client: session.info() });
        if room.is_automatic {
            self.drop_if_empty(room);
        }
    }

    fn drop_if_empty(&self, room: &Arc<Room>) {
        if room.fanout.close_if_empty() && self.rooms.remove(room) {
            self.events.publish_with(EventType::RoomDeleted, || Event::RoomDeleted { room_id: room.id.clone() });
        }
    }
}

/// Longest display name of a room in bytes.
const MAX_NAME_LEN: usize = 256;
