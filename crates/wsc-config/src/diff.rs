//! What a reload changes.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::check::check;
use crate::error::Problems;
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

/// What a reload comes to.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Reloaded {
    /// The settings that run from now on: the new ones, but for the keys that wait for a restart, which keep their
    /// running values.
    pub settings: Settings,
    /// The keys in which the new settings differ from the running ones: what applied, and what waits.
    pub change: Change,
}

/// Works out what becomes of running settings when new ones are loaded. It changes nothing itself.
///
/// Compared are the *running* settings, so a key that waits for a restart is listed again at every reload until then.
///
/// # Errors
///
/// What is wrong with the settings that would run: each of the two is good by itself, but a live key may need a key that
/// waits for a restart, as `queue.policy: spill` needs a storage. Then nothing can be applied before that restart.
pub fn apply(running: &Settings, new: &Settings) -> Result<Reloaded, Problems> {
    let change = diff(running, new);
    let mut settings = new.clone();
    for key in keys().iter().filter(|key| change.restart.contains(&KeyPath(key.path))) {
        (key.copy)(&mut settings, running);
    }
    check(&settings).map_err(|problems| problems.until_restart(&change.restart))?;
    Ok(Reloaded { settings, change })
}

fn waits_for_restart(key: &Key, old: &Settings, new: &Settings) -> bool {
    match key.reload {
        Reload::Live => false,
        Reload::Restart => true,
        Reload::LiveOnceSet => (key.exposed)(old).is_null() != (key.exposed)(new).is_null(),
    }
}
