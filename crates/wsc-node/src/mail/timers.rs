//! When mailboxes want to be woken: one timer for each, however many letters it has.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use wsc_delivery::mailbox::Millis;

use super::{Clock, Slot};

#[derive(Debug, Default)]
pub(super) struct Timers {
    /// By time, then by the slot's address, which is its own as long as it is in here.
    set: Mutex<BTreeMap<(Millis, usize), Weak<Slot>>>,
    changed: Notify,
}

fn key(slot: &Arc<Slot>, at: Millis) -> (Millis, usize) {
    (at, Arc::as_ptr(slot) as usize)
}

impl Timers {
    /// Sets the timer of a slot, of which `current` is where it stands. One that goes off early does no harm, and a
    /// mailbox in steady use would otherwise move its timer with every letter.
    pub(super) fn set(&self, slot: &Arc<Slot>, current: &mut Option<Millis>, wanted: Option<Millis>) {
        let Some(wanted) = wanted else { return };
        if current.is_some_and(|current| current <= wanted) {
            return;
        }
        let mut set = self.set.lock();
        if let Some(current) = current.replace(wanted) {
            set.remove(&key(slot, current));
        }
        let is_next = set.first_key_value().is_none_or(|((first, _), _)| wanted < *first);
        set.insert(key(slot, wanted), Arc::downgrade(slot));
        drop(set);
        if is_next {
            self.changed.notify_one();
        }
    }

    pub(super) fn unset(&self, slot: &Arc<Slot>, current: Option<Millis>) {
        if let Some(current) = current {
            self.set.lock().remove(&key(slot, current));
        }
    }

    /// Waits for the next timers, and takes those that are due; `None` at the end.
    pub(super) async fn due(&self, clock: &Clock, stop: &CancellationToken) -> Option<Vec<Arc<Slot>>> {
        loop {
            let changed = self.changed.notified();
            let next = {
                let mut set = self.set.lock();
                let later = set.split_off(&(clock.now() + 1, 0));
                let due = std::mem::replace(&mut *set, later);
                if !due.is_empty() {
                    return Some(due.into_values().filter_map(|slot| slot.upgrade()).collect());
                }
                set.first_key_value().map(|((at, _), _)| clock.instant(*at))
            };
            let sleep = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep => {}
                () = changed => {}
                () = stop.cancelled() => return None,
            }
        }
    }
}
