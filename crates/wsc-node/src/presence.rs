//! Users come and go: one transition however many devices they have, and none for a quick reconnect.
//!
//! Both are called with the user's place in the table locked, so that for one user they are taken in the order in which
//! they happened. What is published is published under a lock too: `user.online` and `user.offline` of one user come
//! in turns, and the last of them is true.

use std::{sync::Arc, time::Duration};

use dashmap::DashMap;
use wsc_protocol::{Event, EventType, Id};

use crate::core::Core;

/// Users whose last connection went a moment ago, until it is certain that they stay away.
#[derive(Debug, Default)]
pub(crate) struct Presence {
    /// Which departure it was.
    leaving: DashMap<Id, u64>,
}

impl Core {
    fn watches_presence(&self) -> bool {
        self.events.wants(EventType::UserOnline) || self.events.wants(EventType::UserOffline)
    }

    /// A user has a first connection. Must not look into the table of users.
    pub(crate) fn user_came(&self, user_id: &Id) {
        // Whoever was never said to be away need not be said to be back.
        if self.presence.leaving.remove(user_id.as_str()).is_none() {
            self.events.publish_with(EventType::UserOnline, || Event::UserOnline { user_id: user_id.clone() });
        }
    }

    /// A user's last connection is gone. `departure` tells this one from later ones. Must not look into the table of
    /// users.
    pub(crate) fn user_went(self: &Arc<Self>, user_id: &Id, departure: u64) {
        if !self.watches_presence() {
            return;
        }
        let debounce = self.settings().presence_debounce;
        if debounce == Duration::ZERO {
            self.publish_offline(user_id);
            return;
        }
        self.presence.leaving.insert(user_id.clone(), departure);
        let core = Arc::clone(self);
        let user_id = user_id.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(debounce) => {}
                // Nobody is left who could come back: all are gone for good.
                () = core.stop.cancelled() => {}
            }
            core.presence.leaving.remove_if(user_id.as_str(), |_, last| {
                let stayed_away = *last == departure;
                if stayed_away {
                    // Here, with the entry locked: who comes back now waits, and is told of afterwards.
                    core.publish_offline(&user_id);
                }
                stayed_away
            });
        });
    }

    fn publish_offline(&self, user_id: &Id) {
        self.events.publish_with(EventType::UserOffline, || Event::UserOffline { user_id: user_id.clone() });
    }
}
