//! Waiting for changes of the settings file and of the files that it names.
//!
//! Notifications of the operating system say *when* to look; what counts is what is found there. So a lost or
//! surplus notification costs time at most, and reading a followed file is no change. A look happens after each burst
//! of notifications, and every [`Pace::verify`] even without one, for what they do not tell: a directory further up
//! that was renamed, a file system mounted over another.

mod contents;
mod notice;
mod trail;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{fmt, io, thread};

use tokio::sync::Notify;

use contents::Contents;
use notice::{MakeNotifier, Notices};

use crate::source::Source;

/// Follows the settings file and the files that settings name, and says when one of them may have changed.
///
/// It sees edits in place, replacement by rename, symlinks that are switched over (as in a directory that Kubernetes
/// mounts), files that are away for a while and directories that are removed and made again. Where the operating
/// system cannot notify (its limits, a network file system), it compares the files' contents every 2 seconds and logs
/// a warning.
///
/// It works in a thread of its own, which ends soon after the watch is dropped. It needs no runtime but for waiting.
///
/// ```no_run
/// use wsc_config::{Source, Strictness, Watch, environment, reload, watched_files};
///
/// # async fn follow() -> Result<(), Box<dyn std::error::Error>> {
/// let source = Source::locate(None);
/// let mut watch = Watch::start(&source)?;
/// loop {
///     watch.changed().await;
///     match reload(&source, None, Strictness::Strict, environment()) {
///         Ok(settings) => watch.follow(watched_files(&settings))?, // and compare, and apply
///         Err(error) => eprintln!("keeping the running settings: {error}"),
///     }
/// }
/// # }
/// ```
pub struct Watch {
    shared: Arc<Shared>,
    wake: SyncSender<()>,
}

/// Why files cannot be followed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// A path is relative, and the working directory is not known.
    #[error("{}: cannot be made absolute: {source}", path.display())]
    RelativePath {
        /// The path.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The thread that watches could not be started.
    #[error("no thread to watch files with: {source}")]
    Thread {
        /// What the operating system said.
        source: io::Error,
    },
}

impl Watch {
    /// Starts to follow the file of a source; [`Source::Defaults`] has none.
    ///
    /// A relative path is taken from the working directory of this moment. The file need not exist.
    ///
    /// # Errors
    ///
    /// A relative path without a working directory, or no thread to watch with. Notifications that the operating
    /// system refuses are no error: see [`Watch`].
    pub fn start(source: &Source) -> Result<Self, WatchError> {
        Self::start_with(source, Pace::default(), notice::recommended)
    }

    fn start_with(source: &Source, pace: Pace, make_notifier: MakeNotifier) -> Result<Self, WatchError> {
        let settings_file = match source {
            Source::File(path) => Some(absolute(path)?),
            Source::Defaults => None,
        };
        let shared = Arc::new(Shared {
            settings_file,
            others: Mutex::new(BTreeSet::new()),
            changed: Notify::new(),
            stopped: AtomicBool::new(false),
        });
        // One place is enough: a signal that waits already says the same.
        let (wake, woken) = sync_channel(1);
        let mut watcher = Watcher {
            shared: Arc::clone(&shared),
            woken,
            notices: Notices::new(make_notifier, wake.clone()),
            known: BTreeMap::new(),
            pace,
        };
        thread::Builder::new()
            .name("wsc-config-watch".to_owned())
            .spawn(move || watcher.run())
            .map_err(|source| WatchError::Thread { source })?;
        Ok(Self { shared, wake })
    }

    /// Replaces the set of files that are followed besides the settings file; see
    /// [`watched_files`](crate::watched_files).
    ///
    /// Relative paths are taken from the working directory of this moment. A file that is new to the set counts as
    /// changed: what somebody read of it earlier may be old already.
    ///
    /// # Errors
    ///
    /// A relative path without a working directory; the set stays as it was.
    pub fn follow(&mut self, files: impl IntoIterator<Item = PathBuf>) -> Result<(), WatchError> {
        let files = files.into_iter().map(|path| absolute(&path)).collect::<Result<_, _>>()?;
        *self.shared.others() = files;
        let _ = self.wake.try_send(());
        Ok(())
    }

    /// Waits until a followed file may have changed.
    ///
    /// Changes are collected until there was none for 200 ms, for 2 s at most. It may resolve without a change, and
    /// does so soon after the start, since what was read before the watch began may be old: the caller reads and
    /// compares. It never misses the last change: one that comes after it resolved makes it resolve again.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a change that came meanwhile makes the next call resolve at once.
    pub async fn changed(&mut self) {
        self.shared.changed.notified().await;
    }
}

impl Drop for Watch {
    /// Tells the thread to end. It is not waited for: it may be reading from a file system that hangs.
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        let _ = self.wake.try_send(());
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("settings_file", &self.shared.settings_file)
            .field("others", &*self.shared.others())
            .finish_non_exhaustive()
    }
}

fn absolute(path: &Path) -> Result<PathBuf, WatchError> {
    std::path::absolute(path).map_err(|source| WatchError::RelativePath { path: path.to_owned(), source })
}

/// What the handle and the thread have in common.
struct Shared {
    settings_file: Option<PathBuf>,
    others: Mutex<BTreeSet<PathBuf>>,
    /// Holds one permit at most: several changes are one for somebody who reads everything anew.
    changed: Notify,
    stopped: AtomicBool,
}

impl Shared {
    fn others(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn files(&self) -> BTreeSet<PathBuf> {
        self.settings_file.iter().chain(&*self.others()).cloned().collect()
    }
}

/// How soon and how often the thread looks.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// A burst of notifications is over when none came for so long.
    quiet: Duration,
    /// A burst is looked at after this time even if it goes on.
    longest: Duration,
    /// Time between two looks while notifications do not work.
    poll: Duration,
    /// Time between two looks while they do.
    verify: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            quiet: Duration::from_millis(200),
            longest: Duration::from_secs(2),
            poll: Duration::from_secs(2),
            verify: Duration::from_secs(30),
        }
    }
}

/// The thread's own.
struct Watcher {
    shared: Arc<Shared>,
    woken: Receiver<()>,
    notices: Notices,
    /// What was found at the last look.
    known: BTreeMap<PathBuf, Contents>,
    pace: Pace,
}

/// Why the thread stopped waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Woken {
    /// Something happened, or the set of files is another one.
    Notified,
    /// Nothing did.
    InTime,
    /// The watch was dropped.
    Stopped,
}

impl Watcher {
    fn run(&mut self) {
        let mut woken = Woken::Notified;
        while woken != Woken::Stopped {
            let files = self.shared.files();
            // First the notifications, then the look: what changes after the look is notified.
            self.notices.arm(&files, woken == Woken::Notified);
            if self.look(&files) {
                self.shared.changed.notify_one();
            }
            woken = self.wait(files.is_empty());
        }
    }

    /// Reads the files; returns whether one is not what it was.
    fn look(&mut self, files: &BTreeSet<PathBuf>) -> bool {
        let found = files.iter().map(|path| (path.clone(), Contents::of(path))).collect();
        let known = std::mem::replace(&mut self.known, found);
        self.known.iter().any(|(path, contents)| known.get(path) != Some(contents))
    }

    /// Waits for the next time to look, and lets a burst of notifications go by.
    fn wait(&self, for_nothing: bool) -> Woken {
        let pause = match (for_nothing, self.notices.work()) {
            (true, _) => Duration::MAX,
            (false, true) => self.pace.verify,
            (false, false) => self.pace.poll,
        };
        let woken = match self.woken.recv_timeout(pause) {
            Ok(()) => Woken::Notified,
            Err(_) => Woken::InTime,
        };
        let end = Instant::now() + self.pace.longest;
        while woken == Woken::Notified && !self.stopped() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || self.woken.recv_timeout(left.min(self.pace.quiet)).is_err() {
                break;
            }
        }
        if self.stopped() { Woken::Stopped } else { woken }
    }

    fn stopped(&self) -> bool {
        self.shared.stopped.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests;
