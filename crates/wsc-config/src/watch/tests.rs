//! The watch against real files: every way in which people and programs replace a file.
//!
//! A test waits for `changed` under a limit, never for a time. Where it says that nothing happens, it waits for a
//! while in vain: longer than the thread takes to notice.

#![cfg(unix)]

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;

/// Nothing here takes so long, on however busy a machine.
const LIMIT: Duration = Duration::from_secs(20);

/// Long enough for a burst to end and be looked at.
const IN_VAIN: Duration = Duration::from_millis(900);

/// No look without a notification: what a test sees was notified.
const NOTIFIED: Pace = Pace {
    quiet: Duration::from_millis(50),
    longest: Duration::from_millis(500),
    poll: Duration::from_secs(3600),
    verify: Duration::from_secs(3600),
};

struct Fixture {
    directory: TempDir,
    watch: Watch,
}

impl Fixture {
    /// Follows `wsc.yaml` in a new directory, as `prepare` made it, and waits for the change that the start is.
    async fn new(file: &str, prepare: impl FnOnce(&Path)) -> Self {
        Self::with(file, NOTIFIED, notice::recommended, prepare).await
    }

    async fn with(file: &str, pace: Pace, make: MakeNotifier, prepare: impl FnOnce(&Path)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        prepare(directory.path());
        let source = Source::File(directory.path().join(file));
        let watch = Watch::start_with(&source, pace, make).unwrap();
        let mut fixture = Self { directory, watch };
        fixture.changed("the start").await;
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Puts a file in place at once: nobody sees half of it.
    fn replace(&self, name: &str, text: &str) {
        self.write("wsc.tmp", text);
        fs::rename(self.path("wsc.tmp"), self.path(name)).unwrap();
    }

    #[track_caller]
    fn changed(&mut self, what: &str) -> impl Future<Output = ()> {
        let what = what.to_owned();
        let caller = std::panic::Location::caller();
        async move {
            let changed = timeout(LIMIT, self.watch.changed()).await;
            assert!(changed.is_ok(), "{what} was not seen ({caller})");
        }
    }

    async fn unchanged(&mut self, what: &str) {
        assert!(timeout(IN_VAIN, self.watch.changed()).await.is_err(), "{what} is no change");
    }
}

fn plain(directory: &Path) {
    fs::write(directory.join("wsc.yaml"), "wsc: {}").unwrap();
}

#[tokio::test]
async fn edits_in_place() {
    let mut fixture = Fixture::new("wsc.yaml", plain).await;
    fixture.write("wsc.yaml", "wsc: {max_retries: 1}");
    fixture.changed("a write").await;
    let path = fixture.path("wsc.yaml");
    let appended = Command::new("sh").arg("-c").arg("echo '# more' >> \"$0\"").arg(&path).status().unwrap();
    assert!(appended.success());
    fixture.changed("a line appended by another program").await;
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(3).unwrap();
    fixture.changed("a cut").await;
}

#[tokio::test]
async fn replacement_by_rename_again_and_again() {
    let mut fixture = Fixture::new("wsc.yaml", plain).await;
    for round in 0..3 {
        fixture.write("wsc.yaml.new", &format!("wsc: {{max_retries: {round}}}"));
        fs::rename(fixture.path("wsc.yaml.new"), fixture.path("wsc.yaml")).unwrap();
        fixture.changed("a rename over the file").await;
        let expression = format!("s/{round}/1{round}/");
        let edited = Command::new("sed").arg("-i").arg(expression).arg(fixture.path("wsc.yaml")).status().unwrap();
        assert!(edited.success());
        fixture.changed("sed -i").await;
        // As vim writes: the old file moves away, a new one is made in its place.
        fs::rename(fixture.path("wsc.yaml"), fixture.path("wsc.yaml~")).unwrap();
        fixture.write("wsc.yaml", &format!("wsc: {{max_retries: 2{round}}}"));
        fs::remove_file(fixture.path("wsc.yaml~")).unwrap();
        fixture.changed("a backup and a new file").await;
    }
}

/// A directory as Kubernetes mounts it: `wsc.yaml` → `..data/wsc.yaml`, `..data` → `..1`.
fn mounted(directory: &Path) {
    fs::create_dir(directory.join("..1")).unwrap();
    fs::write(directory.join("..1/wsc.yaml"), "wsc: {}").unwrap();
    symlink("..1", directory.join("..data")).unwrap();
    symlink("..data/wsc.yaml", directory.join("wsc.yaml")).unwrap();
}

#[tokio::test]
async fn the_symlink_of_a_mounted_directory() {
    let mut fixture = Fixture::new("wsc.yaml", mounted).await;
    for round in 2..5 {
        fs::create_dir(fixture.path(&format!("..{round}"))).unwrap();
        fixture.write(&format!("..{round}/wsc.yaml"), &format!("wsc: {{max_retries: {round}}}"));
        symlink(format!("..{round}"), fixture.path("..data_tmp")).unwrap();
        fs::rename(fixture.path("..data_tmp"), fixture.path("..data")).unwrap();
        fs::remove_dir_all(fixture.path(&format!("..{}", round - 1))).unwrap();
        fixture.changed("a switched symlink").await;
    }
    fixture.write("..4/wsc.yaml", "wsc: {}");
    fixture.changed("an edit behind the switched symlink").await;
}

#[tokio::test]
async fn a_symlink_to_another_directory() {
    let mut fixture = Fixture::new("etc/wsc.yaml", |directory| {
        for name in ["etc", "one", "two"] {
            fs::create_dir(directory.join(name)).unwrap();
            fs::write(directory.join(name).join("real.yaml"), name).unwrap();
        }
        symlink("../one/real.yaml", directory.join("etc/wsc.yaml")).unwrap();
    })
    .await;
    fixture.write("one/real.yaml", "wsc: {max_retries: 1}");
    fixture.changed("an edit of the target").await;
    fixture.write("one/new", "wsc: {max_retries: 2}");
    fs::rename(fixture.path("one/new"), fixture.path("one/real.yaml")).unwrap();
    fixture.changed("a replaced target").await;
    symlink(fixture.path("two/real.yaml"), fixture.path("etc/new")).unwrap();
    fs::rename(fixture.path("etc/new"), fixture.path("etc/wsc.yaml")).unwrap();
    fixture.changed("a symlink to another target").await;
    fixture.replace("two/real.yaml", "wsc: {max_retries: 3}");
    fixture.changed("an edit of the new target").await;
    fixture.write("one/real.yaml", "wsc: {max_retries: 4}");
    fixture.unchanged("an edit of what was the target once").await;
}

#[tokio::test]
async fn a_file_that_is_away_for_a_while() {
    let mut fixture = Fixture::new("wsc.yaml", |_| {}).await;
    fixture.write("wsc.yaml", "wsc: {}");
    fixture.changed("a file that was not there at the start").await;
    fs::remove_file(fixture.path("wsc.yaml")).unwrap();
    fixture.changed("a removal").await;
    fixture.write("wsc.yaml", "wsc: {}");
    fixture.changed("a file that is back").await;
}

#[tokio::test]
async fn a_directory_that_is_removed_and_made_again() {
    let mut fixture = Fixture::new("etc/hub/wsc.yaml", |directory| {
        fs::create_dir_all(directory.join("etc/hub")).unwrap();
        plain(&directory.join("etc/hub"));
    })
    .await;
    for round in 0..3 {
        fs::remove_dir_all(fixture.path("etc")).unwrap();
        fixture.changed("a removed directory").await;
        fs::create_dir_all(fixture.path("etc/hub")).unwrap();
        fixture.write("etc/hub/wsc.yaml", &format!("wsc: {{max_retries: {round}}}"));
        fixture.changed("a directory that is back").await;
        fs::remove_dir_all(fixture.path("etc/hub")).unwrap();
        fs::create_dir(fixture.path("etc/hub")).unwrap();
        fixture.write("etc/hub/wsc.yaml", &format!("wsc: {{max_retries: 1{round}}}"));
        fixture.changed("a directory that was away for a moment").await;
        fixture.write("etc/hub/wsc.yaml", &format!("wsc: {{max_retries: 2{round}}}"));
        fixture.changed("an edit in the new directory").await;
        fs::rename(fixture.path("etc/hub"), fixture.path("etc/old")).unwrap();
        fixture.changed("a renamed directory").await;
        fs::create_dir(fixture.path("etc/next")).unwrap();
        fixture.write("etc/next/wsc.yaml", &format!("wsc: {{max_retries: 3{round}}}"));
        fs::rename(fixture.path("etc/next"), fixture.path("etc/hub")).unwrap();
        fixture.changed("a directory put in its place").await;
    }
}

#[tokio::test]
async fn other_files_come_and_go() {
    let mut fixture = Fixture::new("wsc.yaml", |directory| {
        plain(directory);
        for name in ["key.pem", "cert.pem", "other.pem"] {
            fs::write(directory.join(name), name).unwrap();
        }
    })
    .await;
    let files = ["key.pem", "cert.pem", "missing/secret"].map(|name| fixture.path(name));
    fixture.watch.follow(files.clone()).unwrap();
    fixture.changed("the first follow").await;
    fixture.watch.follow(files).unwrap();
    fixture.unchanged("the same set").await;
    fixture.replace("cert.pem", "renewed");
    fixture.changed("a renewed certificate").await;
    fixture.write("other.pem", "foreign");
    fixture.unchanged("a file that nobody follows").await;
    fs::create_dir(fixture.path("missing")).unwrap();
    fixture.write("missing/secret", "found");
    fixture.changed("a file that appears with its directory").await;
    fixture.watch.follow([fixture.path("other.pem")]).unwrap();
    fixture.changed("another set").await;
    fixture.write("cert.pem", "renewed again");
    fixture.unchanged("a file that is followed no more").await;
    fixture.write("wsc.yaml", "wsc: {max_retries: 1}");
    fixture.changed("the settings file, which is always followed").await;
}

#[tokio::test]
async fn relative_paths_are_taken_from_the_working_directory() {
    let here = std::env::current_dir().unwrap();
    let directory = tempfile::tempdir_in(&here).unwrap();
    let relative = directory.path().strip_prefix(&here).unwrap().join("./x/../wsc.yaml");
    fs::create_dir(directory.path().join("x")).unwrap();
    plain(directory.path());
    let mut watch = Watch::start(&Source::File(relative)).unwrap();
    timeout(LIMIT, watch.changed()).await.unwrap();
    fs::write(directory.path().join("wsc.yaml"), "wsc: {max_retries: 1}").unwrap();
    timeout(LIMIT, watch.changed()).await.expect("an edit is seen");
}

#[tokio::test]
async fn reading_and_touching_are_no_change() {
    let mut fixture = Fixture::new("wsc.yaml", plain).await;
    for _ in 0..100 {
        assert_eq!(fs::read_to_string(fixture.path("wsc.yaml")).unwrap(), "wsc: {}");
    }
    fs::File::open(fixture.path("wsc.yaml")).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    fixture.replace("wsc.yaml", "wsc: {}");
    fixture.unchanged("reading, touching, and the same again").await;
}

#[tokio::test]
async fn defaults_have_no_file() {
    let mut watch = Watch::start(&Source::Defaults).unwrap();
    assert!(timeout(IN_VAIN, watch.changed()).await.is_err());
}

#[tokio::test]
async fn the_last_of_many_quick_edits_is_seen() {
    const EDITS: usize = 200;

    let mut fixture = Fixture::new("wsc.yaml", plain).await;
    let (file, new) = (fixture.path("wsc.yaml"), fixture.path("new"));
    let writer = tokio::task::spawn_blocking(move || {
        for edit in 1..=EDITS {
            if edit % 3 == 0 {
                fs::write(&new, edit.to_string()).unwrap();
                fs::rename(&new, &file).unwrap();
            } else {
                fs::write(&file, edit.to_string()).unwrap();
            }
        }
    });
    let mut rounds = 0;
    while fs::read_to_string(fixture.path("wsc.yaml")).unwrap() != EDITS.to_string() || rounds == 0 {
        fixture.changed("the last edit").await;
        rounds += 1;
    }
    writer.await.unwrap();
    assert!(rounds < EDITS, "a burst is one change, or a few");
}

/// Every number of edits, every moment: whatever was written last is seen, else this test runs into its limit.
#[tokio::test]
async fn nothing_is_lost_between_two_waits() {
    let mut fixture = Fixture::new("wsc.yaml", plain).await;
    for round in 0..20 {
        let edits: Vec<_> = (0..=round % 4).map(|edit| format!("wsc: {{}} # {round}.{edit}")).collect();
        for text in &edits {
            fixture.write("wsc.yaml", text);
        }
        // A wait that is given up takes nothing with it.
        let _ = timeout(Duration::from_millis(7 * (round % 9)), fixture.watch.changed()).await;
        fixture.write("wsc.yaml", &format!("last of {round}"));
        fixture.changed("the last edit of a round").await;
    }
}

/// What the default is, in time: a burst is one change, and one that does not end is seen all the same.
#[tokio::test]
async fn bursts_are_collected_but_not_for_ever() {
    let pace = Pace { longest: Duration::from_millis(400), quiet: Duration::from_millis(300), ..NOTIFIED };
    let mut fixture = Fixture::with("wsc.yaml", pace, notice::recommended, plain).await;
    let stop = Arc::new(AtomicBool::new(false));
    let (file, stopped) = (fixture.path("wsc.yaml"), Arc::clone(&stop));
    let writer = tokio::task::spawn_blocking(move || {
        let mut edits = 0_u64;
        while !stopped.load(Ordering::Relaxed) {
            edits += 1;
            fs::write(&file, edits.to_string()).unwrap();
            // Not to wait for something: this is how fast the burst is.
            thread::sleep(Duration::from_millis(10));
        }
    });
    fixture.changed("a burst that goes on").await;
    fixture.changed("the same burst, later").await;
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
}

/// Fast enough for a test, where nothing is notified.
const POLLED: Pace = Pace { poll: Duration::from_millis(50), ..NOTIFIED };

fn refused(_: notice::Handler) -> notify::Result<Box<dyn notify::Watcher + Send>> {
    Err(notify::Error::io(io::Error::from_raw_os_error(24)))
}

#[tokio::test]
async fn without_notifications_contents_are_compared() {
    let mut fixture = Fixture::with("wsc.yaml", POLLED, refused, mounted).await;
    fixture.unchanged("nothing").await;
    fixture.write("..1/wsc.yaml", "wsc: {max_retries: 1}");
    fixture.changed("an edit").await;
    fs::create_dir(fixture.path("..2")).unwrap();
    fixture.write("..2/wsc.yaml", "wsc: {max_retries: 2}");
    symlink("..2", fixture.path("..data_tmp")).unwrap();
    fs::rename(fixture.path("..data_tmp"), fixture.path("..data")).unwrap();
    fixture.changed("a switched symlink").await;
    fs::remove_file(fixture.path("..2/wsc.yaml")).unwrap();
    fixture.changed("a removal").await;
    fixture.write("..2/wsc.yaml", "wsc: {max_retries: 2}");
    fixture.changed("a file that is back").await;
}

/// Refuses the directories, as inotify does beyond its limit.
#[derive(Debug)]
struct Full;

impl notify::Watcher for Full {
    fn new<F: notify::EventHandler>(_: F, _: notify::Config) -> notify::Result<Self> {
        Ok(Self)
    }

    fn watch(&mut self, _: &Path, _: notify::RecursiveMode) -> notify::Result<()> {
        Err(notify::Error::new(notify::ErrorKind::MaxFilesWatch))
    }

    fn unwatch(&mut self, _: &Path) -> notify::Result<()> {
        Ok(())
    }

    fn kind() -> notify::WatcherKind {
        notify::WatcherKind::NullWatcher
    }
}

#[tokio::test]
async fn beyond_the_limit_of_watches_contents_are_compared() {
    let mut fixture = Fixture::with("wsc.yaml", POLLED, |_| Ok(Box::new(Full)), plain).await;
    fixture.write("wsc.yaml", "wsc: {max_retries: 1}");
    fixture.changed("an edit").await;
}

/// Accepts everything and notifies nothing, as inotify does for what another machine changes.
#[tokio::test]
async fn what_is_not_notified_is_found_by_the_regular_look() {
    let pace = Pace { verify: Duration::from_millis(50), ..NOTIFIED };
    let silent: MakeNotifier = |_| Ok(Box::new(notify::NullWatcher));
    let mut fixture = Fixture::with("etc/hub/wsc.yaml", pace, silent, |directory| {
        fs::create_dir_all(directory.join("etc/hub")).unwrap();
        plain(&directory.join("etc/hub"));
    })
    .await;
    fs::rename(fixture.path("etc"), fixture.path("old")).unwrap();
    fs::create_dir_all(fixture.path("etc/hub")).unwrap();
    fixture.write("etc/hub/wsc.yaml", "wsc: {max_retries: 1}");
    fixture.changed("another directory further up").await;
}

#[tokio::test]
async fn pipes_are_not_read() {
    let mut fixture = Fixture::new("wsc.yaml", |directory| {
        plain(directory);
        assert!(Command::new("mkfifo").arg(directory.join("pipe")).status().unwrap().success());
    })
    .await;
    fixture.watch.follow([fixture.path("pipe")]).unwrap();
    fixture.changed("the first follow, which a pipe would block").await;
    fixture.write("wsc.yaml", "wsc: {max_retries: 1}");
    fixture.changed("an edit").await;
}

#[test]
fn loops_of_symlinks_end() {
    let directory = tempfile::tempdir().unwrap();
    symlink("b", directory.path().join("a")).unwrap();
    symlink("a", directory.path().join("b")).unwrap();
    let file = directory.path().join("a/wsc.yaml");
    let trail = trail::Trail::of([&file]);
    let real = directory.path().canonicalize().unwrap();
    assert_eq!(trail.directories.keys().collect::<Vec<_>>(), [&real]);
}

#[tokio::test]
async fn the_thread_ends_with_the_watch() {
    let fixture = Fixture::new("wsc.yaml", plain).await;
    let shared = Arc::downgrade(&fixture.watch.shared);
    drop(fixture);
    let ended = async {
        while shared.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, ended).await.expect("the thread lets go");
}
