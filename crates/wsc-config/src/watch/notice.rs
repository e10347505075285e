//! Notifications of the operating system, or the knowledge that they do not work here.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;

use notify::{ErrorKind, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

use super::trail::Trail;

/// Called by the operating system's notifications, in a thread of theirs.
pub(super) type Handler = Box<dyn FnMut(notify::Result<Event>) + Send>;

/// Makes a source of notifications.
pub(super) type MakeNotifier = fn(Handler) -> notify::Result<Box<dyn notify::Watcher + Send>>;

/// Notifications as this operating system has them.
pub(super) fn recommended(handler: Handler) -> notify::Result<Box<dyn notify::Watcher + Send>> {
    Ok(Box::new(RecommendedWatcher::new(handler, notify::Config::default())?))
}

/// Wakes the thread when an entry on the way to a followed file changes.
pub(super) struct Notices {
    make: MakeNotifier,
    wake: SyncSender<()>,
    armed: Option<Armed>,
    /// Why notifications do not work, as it was logged last.
    complaint: Option<String>,
}

struct Armed {
    /// Notifies as long as it lives.
    _notifier: Box<dyn notify::Watcher + Send>,
    trail: Trail,
}

impl Notices {
    pub(super) fn new(make: MakeNotifier, wake: SyncSender<()>) -> Self {
        Self { make, wake, armed: None, complaint: None }
    }

    /// Returns whether everything that was armed for is notified.
    pub(super) fn work(&self) -> bool {
        self.complaint.is_none()
    }

    /// Takes care that changes on the way to these files wake the thread, as that way is now.
    ///
    /// `anew`: something happened to what is armed. A notifier loses a directory that is removed or replaced, and the
    /// next directory of that path may even have the same numbers; a new notifier has no such past.
    pub(super) fn arm(&mut self, files: &BTreeSet<PathBuf>, anew: bool) {
        /// The way may change while it is armed; what changes after it was armed wakes the thread.
        const TRIES: usize = 3;

        if anew {
            self.armed = None;
        }
        for _ in 0..TRIES {
            let trail = Trail::of(files);
            match &self.armed {
                Some(armed) if armed.trail == trail => break,
                None if trail.directories.is_empty() => break,
                _ => {}
            }
            // The old notifier goes first: it may hold the last that the system has to give.
            self.armed = None;
            match self.arm_for(trail) {
                Ok((armed, trouble)) => {
                    self.armed = Some(armed);
                    self.complain(trouble);
                }
                Err(error) => return self.complain(Some(error.to_string())),
            }
        }
    }

    /// Makes a notifier for a trail. Where it works for a part of the directories only, it says what is wrong.
    fn arm_for(&self, trail: Trail) -> notify::Result<(Armed, Option<String>)> {
        let wake = self.wake.clone();
        let names = trail.names.clone();
        let mut notifier = (self.make)(Box::new(move |event| {
            if is_relevant(&event, &names) {
                let _ = wake.try_send(());
            }
        }))?;
        let mut trouble = None;
        for directory in trail.directories.keys() {
            match notifier.watch(directory, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    if let Some(kind) = remote_kind(directory) {
                        trouble.get_or_insert_with(|| format!("{} is on {kind}", directory.display()));
                    }
                }
                // It went away just now, which makes another trail.
                Err(error) if matches!(error.kind, ErrorKind::PathNotFound) => {}
                Err(error) => {
                    trouble.get_or_insert_with(|| error.to_string());
                }
            }
        }
        Ok((Armed { _notifier: notifier, trail }, trouble))
    }

    /// Remembers what is wrong and logs it once.
    fn complain(&mut self, trouble: Option<String>) {
        if self.complaint == trouble {
            return;
        }
        match &trouble {
            Some(reason) => {
                tracing::warn!(reason, "changes of files are not notified here, their contents are compared instead");
            }
            None => tracing::info!("changes of files are notified again"),
        }
        self.complaint = trouble;
    }
}

impl fmt::Debug for Notices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let trail = self.armed.as_ref().map(|armed| &armed.trail);
        f.debug_struct("Notices").field("trail", &trail).field("complaint", &self.complaint).finish_non_exhaustive()
    }
}

/// Returns whether an event can mean that a followed file changed. Opening and reading one cannot; and what else
/// happens in the same directories, say to a log file, must not keep the thread busy.
///
/// Names are compared, not paths: a directory that is mounted twice is notified under one of its paths only.
fn is_relevant(event: &notify::Result<Event>, names: &BTreeSet<OsString>) -> bool {
    let Ok(event) = event else { return true };
    if event.need_rescan() {
        return true;
    }
    let named = |path: &PathBuf| path.file_name().is_none_or(|name| names.contains(name));
    !matches!(event.kind, EventKind::Access(_)) && (event.paths.is_empty() || event.paths.iter().any(named))
}

/// Names the sort of file system that others change without this machine's kernel knowing.
#[cfg(target_os = "linux")]
fn remote_kind(directory: &Path) -> Option<&'static str> {
    /// Magic numbers of statfs(2).
    const REMOTE: [(u32, &str); 9] = [
        (0x6969, "NFS"),
        (0x517b, "SMB"),
        (0xff53_4d42, "SMB"),
        (0xfe53_4d42, "SMB"),
        (0x6573_5546, "FUSE"),
        (0x0102_1997, "9P"),
        (0x00c3_6400, "Ceph"),
        (0x5346_414f, "AFS"),
        (0x7375_7245, "Coda"),
    ];
    let magic = rustix::fs::statfs(directory).ok()?.f_type;
    // The numbers have 32 bits; the type's width and sign depend on the machine.
    REMOTE.iter().find(|(number, _)| i128::from(magic) & 0xffff_ffff == i128::from(*number)).map(|(_, name)| *name)
}

#[cfg(not(target_os = "linux"))]
fn remote_kind(_: &Path) -> Option<&'static str> {
    None
}

#[cfg(test)]
mod tests {
    use notify::event::{AccessKind, AccessMode, DataChange, Flag, ModifyKind};

    use super::*;

    fn event(kind: EventKind, path: &str) -> notify::Result<Event> {
        Ok(Event::new(kind).add_path(path.into()))
    }

    #[test]
    fn reading_and_foreign_files_are_not_relevant() {
        let names = ["etc", "wsc.yaml", "..data"].map(OsString::from).into();
        let modified = EventKind::Modify(ModifyKind::Data(DataChange::Any));
        for access in [AccessKind::Read, AccessKind::Open(AccessMode::Any), AccessKind::Close(AccessMode::Read)] {
            assert!(!is_relevant(&event(EventKind::Access(access), "/etc/wsc.yaml"), &names), "{access:?}");
        }
        assert!(is_relevant(&event(modified, "/etc/wsc.yaml"), &names));
        assert!(is_relevant(&event(modified, "/etc/..data"), &names));
        assert!(is_relevant(&event(modified, "/etc"), &names));
        assert!(!is_relevant(&event(modified, "/etc/wsc.log"), &names));
    }

    #[test]
    fn what_was_lost_is_relevant() {
        let names = BTreeSet::new();
        assert!(is_relevant(&Ok(Event::new(EventKind::Other).set_flag(Flag::Rescan)), &names));
        assert!(is_relevant(&Err(notify::Error::generic("lost")), &names));
    }
}
