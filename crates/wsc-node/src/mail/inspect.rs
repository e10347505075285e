//! What operators may look at, and have tried again.

use std::sync::Arc;

use uuid::Uuid;
use wsc_delivery::mailbox::{InFlight, Input, Mailbox};
use wsc_protocol::Id;

use super::{Mail, News, Slot};
use crate::core::Core;

/// Where a list of letters in flight goes on: behind this letter of this user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PendingCursor {
    user_id: String,
    id: Uuid,
}

impl PendingCursor {
    /// Reads what [`Display`](std::fmt::Display) wrote.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (id, user_id) = text.split_once('.')?;
        Some(Self { id: Uuid::try_parse(id).ok()?, user_id: user_id.to_owned() })
    }
}

impl std::fmt::Display for PendingCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.id.simple(), self.user_id)
    }
}

impl Mail {
    /// How many messages a user has not acknowledged.
    pub(crate) async fn unacked(&self, user_id: &str) -> usize {
        match self.slot(user_id) {
            Some(slot) => slot.look(Mailbox::unacked).await.unwrap_or(0),
            None => 0,
        }
    }

    /// How many letters of all users are in flight.
    pub(crate) async fn in_flight(&self) -> usize {
        // Whoever holds a slot's state may want the map: never both the other way round.
        let slots: Vec<_> = self.slots.iter().map(|slot| Arc::clone(&slot)).collect();
        let mut sum = 0;
        for slot in slots {
            sum += slot.look(Mailbox::in_flight).await.unwrap_or(0);
        }
        sum
    }

    /// How many users have something on its way.
    pub(crate) fn users(&self) -> usize {
        self.slots.len()
    }

    /// Letters in flight, at most `limit`, and where the list goes on: by user, then by id. What comes or goes
    /// meanwhile moves nothing else.
    pub(crate) async fn pending(
        &self,
        after: Option<&PendingCursor>,
        limit: usize,
    ) -> (Vec<(Id, InFlight)>, Option<PendingCursor>) {
        let is_ahead = |slot: &Arc<Slot>| after.is_none_or(|after| slot.owner.as_str() >= after.user_id.as_str());
        let mut slots: Vec<_> = self.slots.iter().map(|slot| Arc::clone(&slot)).filter(is_ahead).collect();
        slots.sort_unstable_by(|a, b| a.owner.cmp(&b.owner));
        let mut pending = Vec::new();
        for slot in slots {
            let passed = after.filter(|after| after.user_id == slot.owner.as_str()).map(|after| after.id);
            let flights = slot.look(|mailbox| mailbox.flights().collect::<Vec<_>>()).await.unwrap_or_default();
            let ahead = flights.into_iter().filter(|flight| passed.is_none_or(|passed| flight.id > passed));
            let mut ahead: Vec<_> = ahead.map(|flight| (slot.owner.clone(), flight)).collect();
            ahead.sort_unstable_by_key(|(_, flight)| flight.id);
            pending.extend(ahead);
            if pending.len() > limit {
                pending.truncate(limit);
                let last = pending.last().map(|(user_id, flight)| (user_id.to_string(), flight.id));
                return (pending, last.map(|(user_id, id)| PendingCursor { user_id, id }));
            }
        }
        (pending, None)
    }
}

impl Slot {
    /// Looks into the mailbox as soon as nobody works on it; `None` where that takes too long, or it is gone.
    async fn look<R>(&self, look: impl Fn(&Mailbox) -> R) -> Option<R> {
        for _ in 0..MOST_LOOKS {
            {
                let state = self.state.lock();
                if let Some(desk) = &state.desk {
                    return Some(look(&desk.mailbox));
                }
                if state.is_gone {
                    return None;
                }
            }
            tokio::task::yield_now().await;
        }
        None
    }
}

impl Core {
    /// Has what rests for users who are here tried at once: for one, or for all of whom that is known. Returns for how
    /// many.
    pub(crate) fn retry_resting(self: &Arc<Self>, user_id: Option<&Id>) -> usize {
        let is_here = |user_id: &Id| self.users.get(user_id.as_str()).is_some();
        let owners: Vec<Id> = match user_id {
            Some(user_id) => vec![user_id.clone()],
            // Where something rests for somebody who is here there is a mailbox that waits to try it again.
            None => self.mail.slots.iter().map(|slot| slot.owner.clone()).collect(),
        };
        let here: Vec<_> = owners.into_iter().filter(is_here).collect();
        for owner in &here {
            self.mail(owner, News::Input(Input::Retry));
        }
        here.len()
    }
}

/// How often a mailbox is looked at that others work on.
const MOST_LOOKS: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        for user_id in ["alice", "a.b/ü", "."] {
            let cursor = PendingCursor { user_id: user_id.to_owned(), id: Uuid::from_u128(7) };
            assert_eq!(PendingCursor::parse(&cursor.to_string()), Some(cursor));
        }
        for wrong in ["", "alice", "x.alice"] {
            assert_eq!(PendingCursor::parse(wrong), None, "{wrong}");
        }
    }
}
