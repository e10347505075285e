//! The rooms of this client, and how it comes back to them after a reconnection. No clock, no task.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;
use wsc_protocol::ErrorCode;

use crate::{
    HubError,
    event::RoomNotice,
    reply::Reply,
    wire::{Outgoing, room},
};

/// The rooms that this client joined, and those that it still has to join again.
///
/// A few requests at a time are on their way. When the hub says that this is too fast, or does not answer, they go one
/// by one and with a pause between them, for as long as the connection stands.
#[derive(Debug)]
pub(crate) struct Rooms {
    joined: BTreeSet<String>,
    /// Not asked for yet on this connection, or to be asked for again.
    waiting: VecDeque<Rejoin>,
    /// Asked for, by the id of the request.
    asked: HashMap<u64, Asked>,
    /// Requests of the application to leave a room, by their id.
    leaving: HashMap<u64, String>,
    /// Refused for the moment: nothing is asked for before this.
    not_before: Option<Instant>,
    /// The pause between two requests, once the hub could not keep up.
    pace: Option<Duration>,
    random: fastrand::Rng,
}

#[derive(Debug)]
struct Rejoin {
    room_id: String,
    tries: u32,
}

#[derive(Debug)]
struct Asked {
    rejoin: Rejoin,
    /// No answer comes after this.
    deadline: Instant,
}

impl Rooms {
    pub(crate) fn new(random: fastrand::Rng) -> Self {
        Self {
            joined: BTreeSet::new(),
            waiting: VecDeque::new(),
            asked: HashMap::new(),
            leaving: HashMap::new(),
            not_before: None,
            pace: None,
            random,
        }
    }

    /// A new connection stands, which is in no room yet.
    pub(crate) fn connected(&mut self, rejoin: bool) {
        self.asked.clear();
        self.waiting.clear();
        self.not_before = None;
        self.pace = None;
        // Whoever was about to leave a room has left it with the connection.
        for room_id in std::mem::take(&mut self.leaving).into_values() {
            self.joined.remove(&room_id);
        }
        if rejoin {
            let rooms = self.joined.iter().cloned();
            self.waiting.extend(rooms.map(|room_id| Rejoin { room_id, tries: 0 }));
        } else {
            self.joined.clear();
        }
    }

    /// Whether requests of the application have to wait: rooms are still to be asked for, and the hub keeps up.
    pub(crate) fn go_first(&self) -> bool {
        !self.waiting.is_empty() && self.pace.is_none()
    }

    /// The next request to join again, where one is due.
    pub(crate) fn next_request(&mut self, now: Instant, id: impl FnOnce() -> u64) -> Option<String> {
        if self.asked.len() >= self.window() || self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        let rejoin = self.waiting.pop_front()?;
        let id = id();
        let data = RoomId { room_id: &rejoin.room_id };
        let data = serde_json::value::to_raw_value(&data).ok()?;
        let frame =
            Outgoing { message_type: "join_room", message_id: Some(id), data: Some(&data), ..Outgoing::default() };
        let frame = serde_json::to_string(&frame).ok()?;
        self.asked.insert(id, Asked { rejoin, deadline: now + self.patience() });
        self.not_before = self.pace.map(|pace| now + pace);
        Some(frame)
    }

    fn window(&self) -> usize {
        if self.pace.is_some() { 1 } else { WINDOW }
    }

    fn patience(&self) -> Duration {
        self.pace.map_or(PATIENCE, |pace| (4 * pace).max(PATIENCE / 5))
    }

    /// When to look again for a [request](Self::next_request), or for one that has [no answer](Self::expire).
    pub(crate) fn due(&self) -> Option<Instant> {
        let can_ask = !self.waiting.is_empty() && self.asked.len() < self.window();
        let request = self.not_before.filter(|_| can_ask);
        let deadline = self.asked.values().map(|asked| asked.deadline).min();
        request.into_iter().chain(deadline).min()
    }

    /// Gives up waiting for answers that do not come: these rooms are asked for again.
    pub(crate) fn expire(&mut self, now: Instant) {
        let late = self.asked.extract_if(|_, asked| asked.deadline <= now);
        let waiting = self.waiting.len();
        self.waiting.extend(late.map(|(_, asked)| asked.rejoin));
        if self.waiting.len() > waiting {
            self.slow_down(None, now);
        }
    }

    /// Nothing was read for a while: what was asked has its time anew.
    pub(crate) fn reads_again(&mut self, now: Instant) {
        let deadline = now + self.patience();
        for asked in self.asked.values_mut() {
            asked.deadline = deadline;
        }
    }

    /// The hub refused something because it came too fast, and says when to go on. It need not say what it refused:
    /// requests that are on their way may be among it, and then have no answer.
    pub(crate) fn too_fast(&mut self, retry_after: Option<Duration>, now: Instant) {
        self.slow_down(retry_after, now);
        let last = self.not_before.map_or(now, |at| at.max(now + GRACE));
        for asked in self.asked.values_mut() {
            asked.deadline = asked.deadline.min(last);
        }
    }

    /// Pauses, for at least as long as the hub says, and goes on more slowly.
    fn slow_down(&mut self, retry_after: Option<Duration>, now: Instant) {
        let pause = retry_after.unwrap_or(PAUSE).min(LONGEST_PAUSE);
        let jitter = u64::try_from(pause.as_nanos() / 2).unwrap_or(u64::MAX);
        let at = now + pause + Duration::from_nanos(self.random.u64(0..=jitter));
        self.not_before = self.not_before.max(Some(at));
        let slower = self.pace.map_or(pause, |pace| pace * 2);
        self.pace = Some(slower.clamp(FASTEST_PACE, SLOWEST_PACE));
    }

    /// Takes the reply to one of these requests; `None` where the id belongs to none of them. The notice, if any, is
    /// for the application.
    pub(crate) fn answered(&mut self, id: u64, error: Option<HubError>, now: Instant) -> Option<Option<RoomNotice>> {
        let Rejoin { room_id, tries } = self.asked.remove(&id)?.rejoin;
        let Some(error) = error.filter(|error| !error.is(ErrorCode::AlreadyInRoom)) else {
            return Some(Some(RoomNotice::Rejoined { room_id }));
        };
        if error.is(ErrorCode::RateLimited) {
            // That is no word about this room.
            self.waiting.push_front(Rejoin { room_id, tries });
            self.too_fast(error.retry_after(), now);
            return Some(None);
        }
        if error.temporary && tries < MAX_TRIES {
            self.waiting.push_back(Rejoin { room_id, tries: tries + 1 });
            self.slow_down(error.retry_after(), now);
            return Some(None);
        }
        self.joined.remove(&room_id);
        Some(Some(RoomNotice::RejoinFailed { room_id, error }))
    }

    /// The application's request to leave a room is being written.
    pub(crate) fn leaving(&mut self, id: u64, room_id: String) {
        self.leaving.insert(id, room_id);
    }

    /// Learns from the reply to a request of the application.
    pub(crate) fn replied(&mut self, id: u64, reply: &Result<Reply, HubError>, now: Instant) {
        let left = self.leaving.remove(&id);
        match reply {
            Ok(reply) => match &*reply.message_type {
                "room_joined" => {
                    if let Ok(data) = room(&reply.data) {
                        // Asked to leave before, and to join behind that.
                        self.leaving.retain(|leave, room_id| *leave > id || *room_id != data.room_id);
                        self.joined.insert(data.room_id);
                    }
                }
                "room_left" | "room_deleted" => {
                    if let Ok(data) = room(&reply.data) {
                        self.gone(&data.room_id);
                    }
                }
                _ => {}
            },
            Err(error) if error.is(ErrorCode::RateLimited) => self.too_fast(error.retry_after(), now),
            // Not to be in it is what was wanted.
            Err(error) if error.is(ErrorCode::RoomNotFound) || error.is(ErrorCode::NotInRoom) => {
                if let Some(room_id) = left {
                    self.gone(&room_id);
                }
            }
            Err(_) => {}
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
        self.waiting.retain(|rejoin| rejoin.room_id != room_id);
        self.asked.retain(|_, asked| asked.rejoin.room_id != room_id);
    }
}

#[derive(serde::Serialize)]
struct RoomId<'a> {
    room_id: &'a str,
}

/// Requests on their way at a time: enough that many rooms take few round trips, and less than any sensible limit
/// allows at once.
const WINDOW: usize = 8;

/// Tries for each room after a refusal that may pass, other than of the rate.
const MAX_TRIES: u32 = 10;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long answers may still be on their way after the hub said that something was too fast.
const GRACE: Duration = Duration::from_millis(250);

/// The wait after a refusal where the hub says nothing.
const PAUSE: Duration = Duration::from_millis(200);

/// A hub that asks for more than a day has made a mistake, and the clock must not overflow because of it.
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 60 * 60);

/// The pause between two requests to a hub that could not keep up, which doubles when it still cannot.
const FASTEST_PACE: Duration = Duration::from_millis(20);
const SLOWEST_PACE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn rooms() -> Rooms {
        Rooms::new(fastrand::Rng::with_seed(1))
    }

    fn error(code: u16, temporary: bool) -> HubError {
        let json = format!(r#"{{"code":{code},"message":"x","temporary":{temporary}}}"#);
        serde_json::from_str(&json).unwrap()
    }

    fn reply(rooms: &mut Rooms, message_type: &str, room_id: &str) {
        let data = serde_json::value::to_raw_value(&RoomId { room_id }).unwrap();
        rooms.replied(0, &Ok(Reply { message_type: message_type.to_owned(), data }), Instant::now());
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
        let mut rooms = rooms();
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
        let mut rooms = rooms();
        reply(&mut rooms, "room_joined", "a");
        rooms.connected(true);
        let mut id = 0;
        let mut now = start;
        for _ in 0..MAX_TRIES {
            assert_eq!(ask(&mut rooms, now, &mut id), ["a"]);
            assert_eq!(rooms.answered(id, Some(error(1003, true)), now), Some(None));
            assert!(ask(&mut rooms, now, &mut id).is_empty());
            now = rooms.due().unwrap();
        }
        ask(&mut rooms, now, &mut id);
        let given_up = rooms.answered(id, Some(error(1003, true)), now);
        assert!(matches!(given_up, Some(Some(RoomNotice::RejoinFailed { .. }))));
        rooms.connected(true);
        assert!(ask(&mut rooms, now, &mut id).is_empty());
    }

    #[test]
    fn a_final_refusal_is_told_and_being_in_is_no_refusal() {
        let now = Instant::now();
        let mut rooms = rooms();
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

    fn many(n: usize) -> Rooms {
        let mut rooms = rooms();
        for n in 0..n {
            reply(&mut rooms, "room_joined", &format!("r{n:03}"));
        }
        rooms.connected(true);
        rooms
    }

    #[test]
    fn a_few_are_asked_for_at_a_time_and_the_application_waits_for_them() {
        let now = Instant::now();
        let mut rooms = many(20);
        let mut id = 0;
        assert_eq!(ask(&mut rooms, now, &mut id).len(), WINDOW);
        assert!(rooms.go_first());
        for answered in 1..=20 {
            assert!(matches!(rooms.answered(answered, None, now), Some(Some(RoomNotice::Rejoined { .. }))));
            ask(&mut rooms, now, &mut id);
        }
        assert!(!rooms.go_first() && rooms.due().is_none() && id == 20);
    }

    #[test]
    fn whatever_the_hub_admits_in_the_end_every_room_is_joined() {
        // One request every 250 ms passes, and only one refusal in a second is told, without saying what it refused.
        let mut rooms = many(40);
        let (mut now, mut id) = (Instant::now(), 0);
        let (mut passes_at, mut told_at, mut joined, mut refused) = (now, None, 0, 0);
        for _ in 0..10_000 {
            rooms.expire(now);
            let before = id;
            ask(&mut rooms, now, &mut id);
            for asked in before + 1..=id {
                if now >= passes_at {
                    passes_at = now + Duration::from_millis(250);
                    rooms.answered(asked, None, now);
                    joined += 1;
                    continue;
                }
                refused += 1;
                if told_at.is_none_or(|at| now >= at + Duration::from_secs(1)) {
                    told_at = Some(now);
                    rooms.too_fast(Some(passes_at - now), now);
                }
            }
            match rooms.due() {
                Some(due) => now = now.max(due),
                None => break,
            }
        }
        assert!(joined == 40 && refused < 40, "{joined} joined, {refused} refused");
    }

    #[test]
    fn a_pause_is_never_shorter_than_the_hub_says_and_not_the_same_for_all() {
        let now = Instant::now();
        let asked = Duration::from_secs(60);
        let pauses: BTreeSet<Duration> = (0..100)
            .map(|seed| {
                let mut rooms = Rooms::new(fastrand::Rng::with_seed(seed));
                reply(&mut rooms, "room_joined", "a");
                rooms.connected(true);
                rooms.too_fast(Some(asked), now);
                rooms.due().unwrap() - now
            })
            .collect();
        assert!(pauses.iter().all(|pause| (asked..=asked * 3 / 2).contains(pause)), "{pauses:?}");
        assert!(pauses.len() > 50);
        let mut rooms = many(1);
        rooms.too_fast(Some(Duration::MAX), now);
        assert!(rooms.due().is_some());
    }

    #[test]
    fn who_leaves_is_not_brought_back() {
        let now = Instant::now();
        for code in [3000, 3003] {
            let mut rooms = many(1);
            rooms.leaving(7, "r000".into());
            rooms.replied(7, &Err(error(code, false)), now);
            assert!(ask(&mut rooms, now, &mut 0).is_empty(), "{code}");
        }
        // Who comes back after leaving is in, even if the answer to the leave was lost.
        let mut rooms = many(1);
        rooms.leaving(7, "r000".into());
        let data = serde_json::value::to_raw_value(&RoomId { room_id: "r000" }).unwrap();
        rooms.replied(8, &Ok(Reply { message_type: "room_joined".to_owned(), data }), now);
        rooms.connected(true);
        assert_eq!(ask(&mut rooms, now, &mut 0), ["r000"]);
        // A cut before the answer leaves every room.
        let mut rooms = many(2);
        rooms.leaving(7, "r000".into());
        rooms.connected(true);
        assert_eq!(ask(&mut rooms, now, &mut 0), ["r001"]);
    }
}
