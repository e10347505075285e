//! Users come and go: one transition however many devices they have, and none for a quick reconnect.

use std::{sync::Arc, time::Duration};

use dashmap::DashMap;
use wsc_protocol::{Event, EventType, Id};

use crate::core::Core;

/// Users whose last connection went a moment ago, until it is certain that they stay away.
#[derive(Debug, Default)]
pub(crate) struct Presence {
    leaving: DashMap<Id, u64>,
}

impl Core {
    fn watches_presence(&self) -> bool {
        self.events.wants(EventType::UserOnline) || self.events.wants(EventType::UserOffline)
    }

    /// A user has a first connection.
    pub(crate) fn user_came(&self, user_id: &Id) {
        if !self.watches_presence() || self.presence.leaving.remove(user_id.as_str()).is_some() {
            return;
        }
        self.events.publish_with(EventType::UserOnline, || Event::UserOnline { user_id: user_id.clone() });
    }

    /// A user's last connection is gone. `session` tells this departure from later ones.
    pub(crate) fn user_went(self: &Arc<Self>, user_id: &Id, departure: u64) {
        if !self.watches_presence() {
            return;
        }
        let debounce = self.settings().presence_debounce;
        if debounce == Duration::ZERO {
            self.events.publish_with(EventType::UserOffline, || Event::UserOffline { user_id: user_id.clone() });
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
            let stayed_away = core.presence.leaving.remove_if(user_id.as_str(), |_, last| *last == departure);
            if stayed_away.is_some() {
                core.events.publish_with(EventType::UserOffline, || Event::UserOffline { user_id });
            }
        });
    }
}
