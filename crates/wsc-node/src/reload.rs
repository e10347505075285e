//! Other settings while the hub runs: read, checked whole, applied or refused whole (settings.md, *Reload*).

use std::{
    fmt, fs,
    hash::{BuildHasher, RandomState},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::Release},
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use wsc_config::{ConfigError, KeyPath, Problems, Settings};
use wsc_delivery::{RetryBudget, RetryPolicy};
use wsc_protocol::{Event, EventType};
use wsc_transport::{TlsConfig, TlsError};

use crate::{
    core::Core,
    hub::{Hub, HubInner},
    limits::Gcra,
    settings,
};

/// A part of a program that follows the hub's settings: what checks tokens, what writes the log.
#[async_trait]
pub trait Reloadable: Send + Sync + 'static {
    /// Gets ready whatever the new settings ask of this part, and changes nothing: files are read, keys parsed. What it
    /// returns makes the change, and is called once every other part is ready too; `None` where nothing changes.
    ///
    /// # Errors
    ///
    /// What is wrong, for the log; the settings are refused as a whole then.
    ///
    /// # Cancel safety
    ///
    /// The future may be dropped, and what it returned may never be called.
    async fn prepare(&self, new: &Settings) -> Result<Option<Apply>, String>;
}

/// Makes a change that was prepared. It must be quick and cannot fail.
pub type Apply = Box<dyn FnOnce() + Send>;

/// Reads the settings anew.
pub(crate) type LoadSettings = Arc<dyn Fn() -> Result<Settings, ConfigError> + Send + Sync>;

/// What a reload changed, or would change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reloaded {
    /// Keys whose new values apply now. A file whose content changed has its key here, such as `tls.cert`.
    pub applied: Vec<&'static str>,
    /// Keys whose new values wait for the next start.
    pub pending_restart: Vec<&'static str>,
    /// Nothing is different from before.
    pub is_unchanged: bool,
}

/// Settings that were refused; the running ones stay as they are.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReloadError {
    /// The hub was not told where settings come from, see [`HubBuilder::settings_source`](crate::HubBuilder::settings_source).
    #[error("this hub has no source of settings")]
    NoSource,
    /// They cannot be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// They are wrong; every problem is named.
    #[error(transparent)]
    Settings(#[from] Problems),
    /// The certificate or its key cannot be used.
    #[error("tls: {0}")]
    Tls(#[from] TlsError),
    /// Some part of the hub cannot work with them.
    #[error("{0}")]
    Part(String),
}

/// What a hub knows about its settings beside themselves.
#[derive(Default)]
pub(crate) struct Reloading {
    pub(crate) source: Option<LoadSettings>,
    pub(crate) parts: Vec<Arc<dyn Reloadable>>,
    /// What was applied last. One reload at a time.
    pub(crate) last: tokio::sync::Mutex<Last>,
    /// So that a digest of a key says nothing about it outside of this process.
    hasher: RandomState,
    pending_restart: Mutex<Vec<&'static str>>,
    /// The settings that were read last, also where they were refused.
    seen: Mutex<Option<Settings>>,
}

/// Reads a key or a certificate. What is no regular file, or too long to be either, was named by mistake: reading it
/// might never end.
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("is no regular file"));
    }
    let mut content = Vec::new();
    fs::File::open(path)?.take(MAX_FILE_LEN).read_to_end(&mut content)?;
    Ok(content)
}

/// Far more than a certificate chain has, in bytes.
const MAX_FILE_LEN: u64 = 4 << 20;

/// How long reading settings, keys and certificates may take. A disk that does not answer must not hold up the next
/// reload, or the end.
const READ_PATIENCE: Duration = Duration::from_secs(10);

/// Reads files on a thread that may block.
async fn read<T: Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> Result<T, ReloadError> {
    match tokio::time::timeout(READ_PATIENCE, tokio::task::spawn_blocking(read)).await {
        Ok(Ok(read)) => Ok(read),
        Ok(Err(_)) => Err(ReloadError::Part("reading the settings panicked".to_owned())),
        Err(_) => Err(ReloadError::Part("reading the settings and the files that they name takes too long".to_owned())),
    }
}

/// The settings as they were read last, also what waits for a restart, and what the files held that they name.
#[derive(Default)]
pub(crate) struct Last {
    pub(crate) settings: Settings,
    pub(crate) files: FileDigests,
}

/// Of each of [`FILES`]; `None` where it is not set or cannot be read.
pub(crate) type FileDigests = [Option<u64>; FILES.len()];

type PathOf = fn(&Settings) -> &Option<PathBuf>;

/// Settings that name files whose content counts.
const FILES: [(&str, PathOf); 4] = [
    ("auth.secret_key_file", |settings| &settings.auth.secret_key_file),
    ("auth.public_key_file", |settings| &settings.auth.public_key_file),
    ("tls.cert", |settings| &settings.tls.cert),
    ("tls.key", |settings| &settings.tls.key),
];

impl Reloading {
    /// Looks into the files that these settings name.
    pub(crate) fn digest_files(&self, settings: &Settings) -> FileDigests {
        FILES.map(|(_, path)| {
            let content = read_bounded(path(settings).as_ref()?).ok()?;
            Some(self.hasher.hash_one(content))
        })
    }

    /// The files that the running settings name, and those that the settings name that were read last, which may have
    /// been refused for want of one.
    pub(crate) fn named_files(&self, running: &Settings) -> Vec<PathBuf> {
        let mut files = wsc_config::watched_files(running);
        files.extend(self.seen.lock().iter().flat_map(wsc_config::watched_files));
        files.sort();
        files.dedup();
        files
    }

    /// Keys whose new values wait for the next start.
    pub(crate) fn pending_restart(&self) -> Vec<&'static str> {
        self.pending_restart.lock().clone()
    }
}

impl fmt::Debug for Reloading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloading").field("pending_restart", &self.pending_restart).finish_non_exhaustive()
    }
}

/// Everything that new settings ask for, ready to be switched to.
struct Prepared {
    running: Settings,
    reloaded: Reloaded,
    retries: (RetryPolicy, RetryBudget),
    files: FileDigests,
    tls: Option<TlsConfig>,
    parts: Vec<Apply>,
}

impl Hub {
    /// Reads the settings anew from their [source](crate::HubBuilder::settings_source) and applies what may change
    /// while the hub runs.
    ///
    /// What came of it is logged, counted, and told by the events `config.changed` and `config.rejected`. Settings that
    /// are as they were do nothing.
    ///
    /// # Errors
    ///
    /// [`ReloadError`]: the settings were refused as a whole, and the running ones stay.
    ///
    /// # Cancel safety
    ///
    /// They are applied whole or not at all.
    pub async fn reload(&self) -> Result<Reloaded, ReloadError> {
        let result = match self.load().await {
            Ok(new) => self.switch_to(new, false).await,
            Err(error) => Err(error),
        };
        self.core().tell_reload(&result);
        result
    }

    /// As [`reload`](Self::reload), but nothing is changed: says what would be.
    ///
    /// # Errors
    ///
    /// As [`reload`](Self::reload).
    ///
    /// # Cancel safety
    ///
    /// There is no effect.
    pub async fn check_reload(&self) -> Result<Reloaded, ReloadError> {
        let new = self.load().await?;
        self.switch_to(new, true).await
    }

    /// Applies these settings as [`reload`](Self::reload) does those of the source.
    ///
    /// # Errors
    ///
    /// As [`reload`](Self::reload).
    ///
    /// # Cancel safety
    ///
    /// As [`reload`](Self::reload).
    pub async fn apply_settings(&self, new: Settings) -> Result<Reloaded, ReloadError> {
        let result = self.switch_to(new, false).await;
        self.core().tell_reload(&result);
        result
    }

    async fn load(&self) -> Result<Settings, ReloadError> {
        let reloading = &self.core().reloading;
        let source = reloading.source.clone().ok_or(ReloadError::NoSource)?;
        let loaded = read(move || source()).await??;
        *reloading.seen.lock() = Some(loaded.clone());
        Ok(loaded)
    }

    async fn switch_to(&self, new: Settings, is_dry_run: bool) -> Result<Reloaded, ReloadError> {
        let core = self.core();
        let mut last = core.reloading.last.lock().await;
        let prepared = core.prepare(new.clone(), &last).await?;
        let reloaded = prepared.reloaded.clone();
        if is_dry_run || reloaded.is_unchanged {
            return Ok(reloaded);
        }
        *last = Last { settings: new, files: prepared.files };
        self.inner().switch(prepared);
        Ok(reloaded)
    }
}

impl Core {
    async fn prepare(&self, new: Settings, last: &Last) -> Result<Prepared, ReloadError> {
        let is_same_text = new == last.settings;
        let (mut running, mut new) = ((*self.settings()).clone(), new);
        // What the program has made of its settings at the start is not for a file to change.
        let allow_insecure = running.auth.allow_insecure;
        let changes_insecure = new.auth.allow_insecure != allow_insecure;
        // The program brings its own authentication: strangers cannot get in.
        let is_guarded = allow_insecure || self.authenticator.is_some();
        (running.auth.allow_insecure, new.auth.allow_insecure) = (is_guarded, is_guarded || new.auth.allow_insecure);
        wsc_config::check(&new)?;
        let wsc_config::Reloaded { settings: mut running, change, .. } = wsc_config::apply(&running, &new)?;
        running.auth.allow_insecure = allow_insecure;
        let retries = settings::retry_policy(&running).map_err(ReloadError::Part)?;
        self.webhooks.check(&running).map_err(ReloadError::Part)?;
        let names = |keys: Vec<KeyPath>| keys.into_iter().map(KeyPath::as_str).collect::<Vec<_>>();
        let (mut applied, mut pending_restart) = (names(change.live), names(change.restart));
        if changes_insecure && !pending_restart.contains(&"auth.allow_insecure") {
            pending_restart.push("auth.allow_insecure");
        }
        let (reloading, settings) = (Arc::clone(&self.reloading), running.clone());
        let files = read(move || reloading.digest_files(&settings)).await?;
        let changed = FILES.iter().zip(files.iter().zip(&last.files)).filter(|(_, (new, old))| new != old);
        for ((name, _), _) in changed {
            if !applied.contains(name) {
                applied.push(name);
            }
        }
        let mut tls = None;
        if let Some((cert, key)) = running.tls.cert.as_ref().zip(running.tls.key.as_ref())
            && applied.iter().any(|name| name.starts_with("tls."))
        {
            let (cert, key) = (cert.clone(), key.clone());
            tls = Some(read(move || TlsConfig::from_files(&cert, &key)).await??);
        }
        let mut parts = Vec::new();
        for part in &self.reloading.parts {
            parts.extend(part.prepare(&running).await.map_err(ReloadError::Part)?);
        }
        let is_unchanged = is_same_text && applied.is_empty() && parts.is_empty();
        let reloaded = Reloaded { applied, pending_restart, is_unchanged };
        Ok(Prepared { running, reloaded, retries, files, tls, parts })
    }

    /// Says what came of a reload.
    fn tell_reload(&self, result: &Result<Reloaded, ReloadError>) {
        match result {
            Ok(Reloaded { is_unchanged: true, .. }) => self.metrics.reloaded("unchanged"),
            Ok(Reloaded { applied, pending_restart, .. }) => {
                self.metrics.reloaded("applied");
                let names = |keys: &[&str]| keys.iter().map(|&key| key.to_owned()).collect::<Vec<_>>();
                let (applied, pending_restart) = (names(applied), names(pending_restart));
                tracing::info!(?applied, ?pending_restart, "the settings have changed");
                self.events
                    .publish_with(EventType::ConfigChanged, || Event::ConfigChanged { applied, pending_restart });
            }
            Err(error) => {
                self.metrics.reloaded("rejected");
                tracing::error!(%error, "the new settings are refused, the running ones stay");
                self.events
                    .publish_with(EventType::ConfigRejected, || Event::ConfigRejected { error: error.to_string() });
            }
        }
    }
}

impl HubInner {
    /// From now on the hub runs on these settings.
    fn switch(&self, prepared: Prepared) {
        let Prepared { running, reloaded, retries: (policy, budget), files: _, tls, parts } = prepared;
        let core = &self.core;
        let old = core.settings();
        core.settings.send_replace(Arc::new(running.clone()));
        *core.reloading.pending_restart.lock() = reloaded.pending_restart;
        self.transport.reconfigure(&settings::transport(&running, core.mail.keeper().is_some()));
        core.mail.reconfigure(settings::mailbox(&running));
        if let Some(keeper) = core.mail.keeper() {
            keeper.store().set_limits(settings::inbox_limits(&running));
        }
        core.retries.reconfigure(policy, budget);
        core.failures.reconfigure(settings::failures(&running));
        if old.auth.expiry_grace != running.auth.expiry_grace || old.auth.leeway != running.auth.leeway {
            core.expiries.look_again();
        }
        core.log_failures(running.failure_handlers.enable_logging);
        core.metrics.measure_failures(running.failure_handlers.enable_metrics);
        core.webhooks.reconfigure(&running);
        if old.limits.handshakes_per_second != running.limits.handshakes_per_second {
            let rate = running.limits.handshakes_per_second;
            *core.handshakes.lock() = Gcra::new(rate, rate);
        }
        let rates = |s: &Settings| (s.limits.messages_per_second, s.limits.bytes_per_second, s.limits.burst);
        if rates(&old) != rates(&running) {
            core.rates_generation.fetch_add(1, Release);
        }
        if let Some(tls) = tls {
            self.transport.set_tls(&tls);
        }
        parts.into_iter().for_each(|apply| apply());
        let anonymous = |s: &Settings| (s.auth.allow_anonymous, s.auth.anonymous_permissions.clone());
        if anonymous(&old) != anonymous(&running) {
            core.users.all_sessions().iter().for_each(|session| core.renew_anonymous(session));
        }
    }
}
