//! From settings to a hub: everything that they ask for, opened and put together.

#[cfg(feature = "jwt")]
use std::hash::{BuildHasher, RandomState};
#[cfg(any(feature = "jwt", feature = "webhook"))]
use std::sync::Arc;

#[cfg(feature = "jwt")]
use parking_lot::Mutex;
use wsc_config::Settings;
use wsc_node::{Hub, HubBuilder};

use crate::storage::{Found, StorageError, open_storage};

/// A builder with all that the settings ask for.
#[derive(Debug)]
#[non_exhaustive]
pub struct Assembled {
    /// The builder; add handlers, then start it.
    pub builder: HubBuilder,
    /// What was found in the data directory.
    pub found: Found,
}

/// Opens the storage of `storage.*`, checks tokens as `auth.*` says, posts events as `callbacks.*` says, and follows
/// those when they are reloaded. What the `wsc` command does; a program that wants something else in one place gives the
/// builder its own afterwards.
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use wsc_hub::{assemble, config};
///
/// let source = config::Source::locate(None);
/// let settings = config::load(&source, None, config::Strictness::Lenient, config::environment())?;
/// let hub = assemble(settings.clone())?.builder.start().await?;
/// hub.listen(settings.listen)?;
/// # Ok(()) }
/// ```
///
/// # Errors
///
/// [`AssembleError`] names the path or the setting.
///
/// # Panics
///
/// Panics outside of a tokio runtime where `auth.jwks_url` is set.
pub fn assemble(settings: Settings) -> Result<Assembled, AssembleError> {
    let storage = open_storage(&settings)?;
    let mut builder = Hub::builder().records(storage.records);
    if let Some(inbox) = storage.inbox {
        builder = builder.inbox(inbox);
    }
    #[cfg(feature = "jwt")]
    if settings.auth.enabled {
        let config = crate::keys::jwt_config(&settings.auth)?;
        if let Some(config) = config {
            let tokens = Arc::new(JwtPart::new(&settings, config)?);
            builder = builder.authenticator(Arc::clone(&tokens.authenticator)).reloadable(tokens);
        }
    }
    #[cfg(feature = "webhook")]
    {
        builder = builder.webhook_client(Arc::new(wsc_events::HttpWebhookClient::new()));
    }
    Ok(Assembled { builder: builder.settings(settings), found: storage.found })
}

/// A hub that cannot be put together as its settings ask.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AssembleError {
    /// The storage cannot be opened.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A key file cannot be read.
    #[cfg(feature = "jwt")]
    #[error(transparent)]
    KeyFile(#[from] crate::KeyError),
    /// A key cannot be used.
    #[cfg(feature = "jwt")]
    #[error("auth: {0}")]
    Key(#[from] wsc_auth::JwtError),
}

/// What checks tokens, and follows `auth.*`.
#[cfg(feature = "jwt")]
struct JwtPart {
    authenticator: Arc<wsc_auth::JwtAuthenticator>,
    hasher: RandomState,
    /// Of the settings and keys that it works with: a reload that changes none of them changes nothing.
    digest: Arc<Mutex<u64>>,
}

#[cfg(feature = "jwt")]
impl JwtPart {
    fn new(settings: &Settings, config: wsc_auth::JwtConfig) -> Result<Self, wsc_auth::JwtError> {
        let hasher = RandomState::new();
        let digest = Arc::new(Mutex::new(digest(&hasher, settings, &config)));
        Ok(Self { authenticator: Arc::new(wsc_auth::JwtAuthenticator::new(config)?), hasher, digest })
    }
}

/// The hasher is this process' own: a digest says nothing about a key elsewhere.
#[cfg(feature = "jwt")]
fn digest(hasher: &RandomState, settings: &Settings, config: &wsc_auth::JwtConfig) -> u64 {
    use secrecy::ExposeSecret;
    use wsc_auth::JwtKey;

    let key = match &config.key {
        JwtKey::Secret(secret) => (0, secret.expose_secret()),
        JwtKey::PublicPem(pem) => (1, pem.as_str()),
        JwtKey::KeySet { url } => (2, url.as_str()),
        _ => (3, ""),
    };
    let auth = &settings.auth;
    hasher.hash_one((key, &auth.issuer, &auth.audience, auth.leeway))
}

#[cfg(feature = "jwt")]
#[async_trait::async_trait]
impl wsc_node::Reloadable for JwtPart {
    async fn prepare(&self, new: &Settings) -> Result<Option<wsc_node::Apply>, String> {
        let auth = new.auth.clone();
        let config = tokio::task::spawn_blocking(move || crate::keys::jwt_config(&auth)).await;
        let config = config.map_err(|_| "auth: reading the key panicked")?.map_err(|e| e.to_string())?;
        let config = config.ok_or("auth: there is no key to check tokens with")?;
        let fresh = digest(&self.hasher, new, &config);
        if fresh == *self.digest.lock() {
            return Ok(None);
        }
        let prepared = self.authenticator.prepare(config).map_err(|e| format!("auth: {e}"))?;
        let (authenticator, digest) = (Arc::clone(&self.authenticator), Arc::clone(&self.digest));
        Ok(Some(Box::new(move || {
            authenticator.apply(prepared);
            *digest.lock() = fresh;
        })))
    }
}
