//! The rooms of this client, and how it comes back to them after a reconnection. No clock, no task.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use serde_json::value::RawValue;
use tokio::time::Instant;
use wsc_protocol::ErrorCode;

use crate::{
    HubError,
    event::RoomNotice,
    wire::{Outgoing, room},
};

/// The rooms that this client joined, and those that it still has to join again.
#[derive(Debug, Default)]
pub(crate) struct Rooms {
    joined: BTreeSet<String>,
    /// Not asked for yet on this connection.
    waiting: VecDeque<Rejoin>,
    /// Asked for, by the id of the request.
    asked: HashMap<u64, Rejoin>,
    /// Refused for the moment: nothing is asked for before this.
    not_before: Option<Instant>,
}

#[derive(Debug)]
struct Rejoin {
    room_id: String,
    tries: u32,
}

impl Rooms {
    /// A new connection stands, which is in no room yet.
    pub(crate) fn connected(&mut self, rejoin: bool) {
        self.asked.clear();
        self.waiting.clear();
        self.not_before = None;
        if rejoin {
            let rooms = self.joined.iter().cloned();
            self.waiting.extend(rooms.map(|room_id| Rejoin { room_id, tries: 0 }));
        } else {
            self.joined.clear();
        }
    }

    /// The next request to join again, where one is due.
    pub(crate) fn next_request(&mut self, now: Instant, id: impl FnOnce() -> u64) -> Option<String> {
        if self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        let rejoin = loop {
            let rejoin = self.waiting.pop_front()?;
            // Left meanwhile?
            if self.joined.contains(&rejoin.room_id) {
                break rejoin;
            }
        };
        let id = id();
        let data = RoomId { room_id: &rejoin.room_id };
        let data = serde_json::value::to_raw_value(&data).ok()?;
        let frame =
            Outgoing { message_type: "join_room", message_id: Some(id), data: Some(&data), ..Outgoing::default() };
        let frame = serde_json::to_string(&frame).ok()?;
        self.asked.insert(id, rejoin);
        Some(frame)
    }

    /// When the next request is due, where one waits for its time.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.not_before.filter(|_| !self.waiting.is_empty())
    }

    /// Takes the reply to one of these requests; `None` where the id belongs to none of them. The notice, if any, is
    /// for the application.
    pub(crate) fn answered(&mut self, id: u64, error: Option<HubError>, now: Instant) -> Option<Option<RoomNotice>> {
        let Rejoin { room_id, tries } = self.asked.remove(&id)?;
        let Some(error) = error.filter(|error| !error.is(ErrorCode::AlreadyInRoom)) else {
            return Some(Some(RoomNotice::Rejoined { room_id }));
        };
        if error.temporary && tries < MAX_TRIES {
            let pause = error.retry_after().unwrap_or(PAUSE).clamp(PAUSE, LONGEST_PAUSE);
            self.not_before = Some(now + pause);
            self.waiting.push_back(Rejoin { room_id, tries: tries + 1 });
            return Some(None);
        }
        self.joined.remove(&room_id);
        Some(Some(RoomNotice::RejoinFailed { room_id, error }))
    }

    /// Learns from a reply to a request of the application.
    pub(crate) fn replied(&mut self, message_type: &str, data: &RawValue) {
        let joined = match message_type {
            "room_joined" => true,
            "room_left" | "room_deleted" => false,
            _ => return,
        };
        if let Ok(data) = room(data) {
            if joined {
                self.joined.insert(data.room_id);
            } else {
                self.gone(&data.room_id);
            }
        }
    }

    /// Learns from what happened without a request.
    pub(crate) fn noticed(&mut self, notice: &RoomNotice) {
        if let RoomNotice::Removed { room_id, .. } | RoomNotice::Deleted { room_id } = notice {
            self.gone(room_id);
        }
    }

    fn gone(&mut self, room_id: &str) {
        self.joined.remove(room_id);
    }
}

#[derive(serde::Serialize)]
struct RoomId<'a> {
    room_id: &'a str,
}

/// Tries for each room after a refusal that may pass.
const MAX_TRIES: u32 = 10;

/// The wait after such a refusal where the hub says nothing, and the shortest.
const PAUSE: Duration = Duration::from_millis(200);

/// The longest wait: the application would rather know.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: u16, temporary: bool) -> HubError {
        let json = format!(r#"{{"code":{code},"message":"x","temporary":{temporary}}}"#);
        serde_json::from_str(&json).unwrap()
    }

    fn reply(rooms: &mut Rooms, message_type: &str, room_id: &str) {
        let data = serde_json::value::to_raw_value(&RoomId { room_id }).unwrap();
        rooms.replied(message_type, &data);
    }

    /// Asks for everything that is due; gives the rooms, in order.
    fn ask(rooms: &mut Rooms, now: Instant, last_id: &mut u64) -> Vec<String> {
        let mut asked = Vec::new();
        while let Some(frame) = rooms.next_request(now, || {
            *last_id += 1;
            *last_id
        }) {
            let frame: serde_json::Value = serde_json::from_str(&frame).unwrap();
            assert_eq!(frame["message_type"], "join_room");
            asked.push(frame["data"]["room_id"].as_str().unwrap().to_owned());
        }
        asked
    }

    #[test]
    fn what_was_joined_and_not_left_is_joined_again() {
        let now = Instant::now();
        let mut rooms = Rooms::default();
        for room in ["a", "b", "c", "d"] {
            reply(&mut rooms, "room_joined", room);
        }
        reply(&mut rooms, "room_left", "b");
        rooms.noticed(&RoomNotice::Removed { room_id: "c".into(), reason: String::new() });
        rooms.noticed(&RoomNotice::Added { room_id: "e".into() });
        rooms.connected(true);
        let mut id = 0;
        assert_eq!(ask(&mut rooms, now, &mut id), ["a", "d"]);
        assert_eq!(rooms.answered(1, None, now), Some(Some(RoomNotice::Rejoined { room_id: "a".into() })));
        assert_eq!(rooms.answered(7, None, now), None);
        // Without the option a new connection starts with no room.
        rooms.connected(false);
        rooms.connected(true);
        assert_eq!(ask(&mut rooms, now, &mut id), Vec::<String>::new());
    }

    #[test]
    fn a_refusal_that_may_pass_is_tried_again_after_a_pause() {
        let start = Instant::now();
        let mut rooms = Rooms::default();
        reply(&mut rooms, "room_joined", "a");
        rooms.connected(true);
        let mut id = 0;
        let mut now = start;
        for _ in 0..MAX_TRIES {
            assert_eq!(ask(&mut rooms, now, &mut id), ["a"]);
            assert_eq!(rooms.answered(id, Some(error(1005, true)), now), Some(None));
            assert!(ask(&mut rooms, now, &mut id).is_empty());
            now = rooms.due().unwrap();
        }
        ask(&mut rooms, now, &mut id);
        let given_up = rooms.answered(id, Some(error(1005, true)), now);
        assert!(matches!(given_up, Some(Some(RoomNotice::RejoinFailed { .. }))));
        rooms.connected(true);
        assert!(ask(&mut rooms, now, &mut id).is_empty());
    }

    #[test]
    fn a_final_refusal_is_told_and_being_in_is_no_refusal() {
        let now = Instant::now();
        let mut rooms = Rooms::default();
        reply(&mut rooms, "room_joined", "a");
        reply(&mut rooms, "room_joined", "b");
        rooms.connected(true);
        let mut id = 0;
        ask(&mut rooms, now, &mut id);
        assert!(matches!(
            rooms.answered(1, Some(error(3002, false)), now),
            Some(Some(RoomNotice::RejoinFailed { error, .. })) if error.code == 3002
        ));
        assert!(matches!(rooms.answered(2, Some(error(3004, false)), now), Some(Some(RoomNotice::Rejoined { .. }))));
    }
}
