//! What a reload changes.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::schema::{Key, Reload, keys};
use crate::settings::Settings;

/// The dotted path of a key below `wsc`, such as `queue.policy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyPath(&'static str);

impl KeyPath {
    /// Returns the path as text.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Serialize for KeyPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0)
    }
}

/// The keys that differ between two settings, in the order of the documentation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    /// Keys whose new value applies at once.
    pub live: Vec<KeyPath>,
    /// Keys whose new value waits for the next start.
    pub restart: Vec<KeyPath>,
}

impl Change {
    /// Returns whether nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live.is_empty() && self.restart.is_empty()
    }
}

/// Compares running settings with new ones.
#[must_use]
pub fn diff(old: &Settings, new: &Settings) -> Change {
    let mut change = Change::default();
    for key in keys().iter().filter(|key| !(key.same)(old, new)) {
        let path = KeyPath(key.path);
        if waits_for_restart(key, old, new) {
            change.restart.push(path);
        } else {
            change.live.push(path);
        }
    }
    change
}

/// What runs after a reload: the running settings with the new values of keys that take effect at once. Also says which
/// those are, and which wait for the next start.
#[must_use]
pub fn apply_live(running: &Settings, new: &Settings) -> (Settings, Change) {
    let change = diff(running, new);
    let mut next = running.clone();
    for key in keys().iter().filter(|key| change.live.contains(&KeyPath(key.path))) {
        (key.copy)(&mut next, new);
    }
    (next, change)
}

fn waits_for_restart(key: &Key, old: &Settings, new: &Settings) -> bool {
    match key.reload {
        Reload::Live => false,
        Reload::Restart => true,
        Reload::LiveOnceSet => (key.exposed)(old).is_null() != (key.exposed)(new).is_null(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_reload_takes_the_live_values_and_leaves_the_others() {
        let running = Settings::default();
        let mut new = running.clone();
        new.ack_timeout = Duration::from_secs(7);
        new.listen.set_port(1);
        new.auth.issuer = "elsewhere".to_owned();
        let (next, change) = apply_live(&running, &new);
        let paths = |keys: &[KeyPath]| keys.iter().map(|key| key.as_str()).collect::<Vec<_>>();
        assert_eq!(paths(&change.live), ["ack_timeout", "auth.issuer"]);
        assert_eq!(paths(&change.restart), ["listen"]);
        assert_eq!((next.ack_timeout, next.listen), (new.ack_timeout, running.listen));
        assert_eq!(next.auth.issuer, "elsewhere");
        assert_eq!(apply_live(&next, &new), (next, Change { live: Vec::new(), ..change }));
    }
}
