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

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use parking_lot::Mutex;
    use uuid::Uuid;
    use wsc_config::{Settings, StorageKind, UserPolicy};
    use wsc_protocol::UserType;
    use wsc_testkit::Client;
    use wsc_transport::Outbound;

    use super::*;
    use crate::{
        Hub,
        grant::Grant,
        session::{Names, Session},
        users::UserLimit,
    };

    fn come(core: &Arc<Core>, user_id: &Id, outbound: &Outbound) -> Arc<Session> {
        let grant = Grant::open(UserType::Visitor);
        let make = |user| Session::new(Uuid::now_v7(), user, Names::default(), grant, outbound.clone(), false);
        let limit = UserLimit { max: 0, policy: UserPolicy::Refuse };
        core.users.attach(user_id, limit, make, || core.user_came(user_id)).session
    }

    fn go(core: &Arc<Core>, session: &Arc<Session>) {
        let departure = session.id.as_u128() as u64;
        core.users.detach(session, || core.user_went(&session.user().id, departure));
    }

    /// The only device of a user goes at the instant at which the next one comes, again and again.
    fn swap_devices(core: &Arc<Core>, outbound: &Outbound, runtime: &tokio::runtime::Handle, rounds: usize) {
        let alice = Id::new("alice").unwrap();
        let (next, barrier) = (Mutex::new(None), Barrier::new(2));
        let _in_runtime = runtime.enter();
        let mut current = come(core, &alice, outbound);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _in_runtime = runtime.enter();
                for _ in 0..rounds {
                    barrier.wait();
                    *next.lock() = Some(come(core, &alice, outbound));
                    barrier.wait();
                }
            });
            for _ in 0..rounds {
                // What is published must not be dropped.
                while core.events.subscriptions()[0].queued > 500 {
                    std::thread::yield_now();
                }
                barrier.wait();
                go(core, &current);
                barrier.wait();
                current = next.lock().take().unwrap();
            }
        });
        go(core, &current);
    }

    async fn churn(debounce: Duration, rounds: usize) -> Vec<&'static str> {
        let mut settings = Settings::default();
        settings.storage.kind = StorageKind::None;
        settings.presence_debounce = debounce;
        let hub = Hub::builder().settings(settings).start().await.unwrap();
        let address = hub.listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let client = Client::connect(&format!("ws://{address}/ws?user_id=other")).await;
        let outbound = hub.core().users.get("other").unwrap().sessions()[0].outbound.clone();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let watcher = move |event: &Event| match event {
            Event::UserOnline { user_id } | Event::UserOffline { user_id } if user_id.as_str() == "alice" => {
                log.lock().push(event.event_type().as_str());
            }
            _ => {}
        };
        hub.callbacks().register_callback("user.*", watcher).unwrap();
        let runtime = tokio::runtime::Handle::current();
        let core = Arc::clone(hub.core());
        tokio::task::spawn_blocking(move || swap_devices(&core, &outbound, &runtime, rounds)).await.unwrap();
        assert!(hub.core().users.get("alice").is_none());
        // A shutdown would wait for its goodbye.
        client.cut();
        hub.shutdown().await;
        assert!(hub.events().stats().iter().all(|stats| stats.drops == 0), "the test asks too much of the queue");
        std::mem::take(&mut *seen.lock())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn transitions_come_in_turns_however_fast_devices_come_and_go() {
        for (debounce, rounds) in [(Duration::ZERO, 20_000), (Duration::from_millis(1), 2_000)] {
            let seen = churn(debounce, rounds).await;
            assert!(!seen.is_empty() && seen.len() % 2 == 0, "{} with {debounce:?}", seen.len());
            for (at, name) in seen.iter().enumerate() {
                let expected = if at % 2 == 0 { "user.online" } else { "user.offline" };
                assert_eq!(*name, expected, "transition {at} of {} with {debounce:?}", seen.len());
            }
        }
    }
}
