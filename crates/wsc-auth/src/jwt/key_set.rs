//! Keys that an identity provider publishes and exchanges.

use std::{
    fmt,
    ops::Deref,
    sync::{Arc, OnceLock},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{
    Algorithm,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    runtime::Handle,
    sync::watch,
    task::AbortHandle,
    time::{Instant, sleep, timeout},
};

use super::{
    JwtError, TokenProblem,
    key::VerifyingKey,
    key_source::{FetchError, FetchedKeySet, KeySetSource, chain, parse_url, shown},
};

/// How often the set is fetched, unless the provider wants it sooner.
const REFRESH_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// How soon a provider may want it.
const SHORTEST_REFRESH_INTERVAL: Duration = Duration::from_secs(30);

/// When it is tried again after it failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// How often tokens with an unknown key id may make the set be fetched, all tokens together. Such an id costs nothing
/// to invent.
const UNKNOWN_KEY_INTERVAL: Duration = Duration::from_secs(10);

/// How long a key that was taken out of the set is accepted: as long as tokens signed with it may be under way.
const GRACE: Duration = Duration::from_secs(10 * 60);

/// Time that a fetch may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Keys in a set; those behind are ignored. As many that were taken out are remembered.
const MAX_KEYS: usize = 100;

/// A key set that keeps itself fresh from [`start`](Self::start) until it is dropped.
///
/// The keys are behind one pointer: a token whose key is known never waits, and no lock is held while a fetch runs.
/// Only the task fetches. Who needs a fetch marks [`Progress`], and all who need it meanwhile wait for the same one.
pub(super) struct KeySet {
    /// As the settings write it: what tells one set from another.
    url: String,
    shared: Arc<Shared>,
    runtime: Handle,
    task: OnceLock<AbortHandle>,
}

struct Shared {
    source: Box<dyn KeySetSource>,
    /// Where it is, as logs may show it.
    shown: String,
    /// `None` until the set was fetched once.
    keys: ArcSwapOption<Vec<Known>>,
    progress: watch::Sender<Progress>,
}

/// Where the fetching stands.
struct Progress {
    /// A fetch runs, or is about to.
    is_fetching: bool,
    /// How many have ended.
    ended: u64,
    /// The last one failed.
    has_failed: bool,
    /// When a token with an unknown key id asked for one the last time.
    asked_at: Option<Instant>,
}

/// A key of the set, or one that was in it until lately.
#[derive(Clone)]
struct Known {
    key: Arc<PublishedKey>,
    /// When it was found to be missing.
    gone_at: Option<Instant>,
}

/// A key of a set that tokens can be checked with.
pub(super) struct PublishedKey {
    id: Option<String>,
    key: VerifyingKey,
    /// Tells whether it is still the same.
    parameters: AlgorithmParameters,
}

/// What the known keys say to a token.
enum Found {
    /// Keys that it may be signed with.
    Keys(Vec<Arc<PublishedKey>>),
    /// None, and a newer set would not help.
    Nothing,
    /// None, but a newer set might have one.
    Unknown,
}

impl KeySet {
    /// A set that is not fetched yet.
    pub(super) fn new(url: String, source: impl KeySetSource) -> Result<Self, JwtError> {
        let runtime = Handle::try_current().map_err(|_| JwtError::NoRuntime)?;
        // The first fetch is about to run: who comes before it has ended waits for it.
        let progress = Progress { is_fetching: true, ended: 0, has_failed: false, asked_at: None };
        let shared = Shared {
            source: Box::new(source),
            shown: parse_url(&url).map(|url| shown(&url))?,
            keys: ArcSwapOption::empty(),
            progress: watch::Sender::new(progress),
        };
        Ok(Self { url, shared: Arc::new(shared), runtime, task: OnceLock::new() })
    }

    /// Begins to keep it fresh, if that has not begun.
    pub(super) fn start(&self) {
        self.task.get_or_init(|| {
            let shared = Arc::clone(&self.shared);
            self.runtime.spawn(async move { shared.keep_fresh().await }).abort_handle()
        });
    }

    /// Begins to keep it fresh, waits for the first fetch to end, and says whether there are keys.
    pub(super) async fn fetched(&self) -> bool {
        self.start();
        let mut progress = self.shared.progress.subscribe();
        // It fails where nobody fetches any more.
        let _ = progress.wait_for(|progress| progress.ended > 0).await;
        self.has_keys()
    }

    /// Whether it was ever fetched.
    pub(super) fn has_keys(&self) -> bool {
        self.shared.keys.load().is_some()
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// The keys that a token with this key id and algorithm may be signed with.
    ///
    /// # Cancel safety
    ///
    /// A fetch that it waits for goes on without it.
    pub(super) async fn keys_for(
        &self,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<Vec<Arc<PublishedKey>>, TokenProblem> {
        if !matches!(algorithm, Algorithm::RS256 | Algorithm::ES256 | Algorithm::EdDSA) {
            return Err(TokenProblem::Algorithm);
        }
        if let Found::Unknown = self.shared.find(id, algorithm) {
            self.shared.refresh().await;
        }
        match self.shared.find(id, algorithm) {
            Found::Keys(keys) => Ok(keys),
            // The provider might have told us: let the client come back when it can be asked.
            Found::Unknown if self.shared.is_stale() => Err(TokenProblem::Unavailable),
            Found::Unknown | Found::Nothing => Err(TokenProblem::UnknownKey),
        }
    }
}

impl Drop for KeySet {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

/// Says how many keys it has.
impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.shared.keys.load();
        f.debug_struct("KeySet").field("keys", &keys.as_ref().map(|keys| keys.len())).finish_non_exhaustive()
    }
}

impl Deref for PublishedKey {
    type Target = VerifyingKey;

    fn deref(&self) -> &VerifyingKey {
        &self.key
    }
}

impl Shared {
    fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Found {
        let keys = self.keys.load();
        let Some(keys) = keys.as_ref() else { return Found::Unknown };
        let accepted = || keys.iter().filter(|known| known.gone_at.is_none_or(|at| at.elapsed() < GRACE));
        let fitting = || accepted().filter(|known| known.key.algorithms.contains(&algorithm));
        let found: Vec<_> = match id {
            Some(id) if accepted().all(|known| known.key.id.as_deref() != Some(id)) => return Found::Unknown,
            Some(id) => fitting().filter(|known| known.key.id.as_deref() == Some(id)).collect(),
            // Whose it is has to be plain. Until lately it may have been the predecessor's.
            None if fitting().filter(|known| known.gone_at.is_none()).count() != 1 => return Found::Nothing,
            None => fitting().collect(),
        };
        if found.is_empty() {
            return Found::Nothing;
        }
        Found::Keys(found.into_iter().map(|known| Arc::clone(&known.key)).collect())
    }

    /// Whether what is known may be less than what the provider would say.
    fn is_stale(&self) -> bool {
        self.keys.load().is_none() || self.progress.borrow().has_failed
    }

    /// Waits for a fetch: the one under way, or a new one unless there was one lately; then not at all.
    async fn refresh(&self) {
        let mut progress = self.progress.subscribe();
        let mut ended = None;
        self.progress.send_if_modified(|progress| {
            let lately = progress.asked_at.is_some_and(|at| at.elapsed() < UNKNOWN_KEY_INTERVAL);
            let begins = !progress.is_fetching && !lately;
            if begins {
                progress.is_fetching = true;
                progress.asked_at = Some(Instant::now());
            }
            ended = progress.is_fetching.then_some(progress.ended);
            begins
        });
        let Some(ended) = ended else { return };
        // It has a time limit of its own; this one is for a task that is no more.
        let limit = FETCH_TIMEOUT + Duration::from_secs(1);
        let _ = timeout(limit, progress.wait_for(|progress| progress.ended > ended)).await;
    }

    /// Fetches now, when it is time, and when it is asked to.
    async fn keep_fresh(&self) {
        let mut asked = self.progress.subscribe();
        loop {
            let outcome = self.fetch().await;
            let pause = match &outcome {
                Ok(max_age) => refresh_interval(*max_age, fastrand::f64()),
                Err(error) => {
                    let error = chain(error);
                    tracing::warn!(
                        url = self.shown,
                        error,
                        "cannot fetch the key set; the keys that are known stay in use"
                    );
                    RETRY_INTERVAL
                }
            };
            self.progress.send_modify(|progress| {
                progress.is_fetching = false;
                progress.ended += 1;
                progress.has_failed = outcome.is_err();
            });
            tokio::select! {
                () = sleep(pause) => self.progress.send_modify(|progress| progress.is_fetching = true),
                _ = asked.wait_for(|progress| progress.is_fetching) => {}
            }
        }
    }

    /// Fetches the set once; gives how long it may be kept.
    async fn fetch(&self) -> Result<Option<Duration>, FetchError> {
        let fetched = timeout(FETCH_TIMEOUT, self.source.fetch()).await.unwrap_or(Err(FetchError::Timeout))?;
        let FetchedKeySet { body, max_age } = fetched;
        let published = read(&body)?;
        if published.is_empty() {
            // Where there never were keys, somebody is just putting the set together. Where there were, it ends them.
            if self.keys.load().is_none() {
                return Err(FetchError::NoKeys);
            }
            tracing::warn!(url = self.shown, "the key set has no key that tokens can be checked with any more");
        }
        let before = self.keys.load();
        let before = before.as_ref().map_or(&[][..], |keys| keys);
        let keys = merge(before, published, Instant::now());
        if keys.iter().map(|known| known.gone_at.is_some()).ne(before.iter().map(|known| known.gone_at.is_some())) {
            let gone = keys.iter().filter(|known| known.gone_at.is_some()).count();
            tracing::info!(url = self.shown, keys = keys.len() - gone, gone, "the key set has changed");
        }
        self.keys.store(Some(Arc::new(keys)));
        Ok(max_age)
    }
}

/// When to fetch again; `random` in 0 … 1 spreads it, so that nodes started together do not ask together.
fn refresh_interval(max_age: Option<Duration>, random: f64) -> Duration {
    let wanted = max_age.unwrap_or(REFRESH_INTERVAL).min(REFRESH_INTERVAL);
    wanted.mul_f64(1.0 - 0.1 * random).max(SHORTEST_REFRESH_INTERVAL)
}

/// The keys that are published now, and behind them those that were until lately.
fn merge(before: &[Known], published: Vec<PublishedKey>, now: Instant) -> Vec<Known> {
    let is_published = |key: &PublishedKey| published.iter().any(|p| p.id == key.id && p.parameters == key.parameters);
    let mut gone: Vec<_> = before
        .iter()
        .filter(|known| !is_published(&known.key))
        .map(|known| Known { key: Arc::clone(&known.key), gone_at: known.gone_at.or(Some(now)) })
        .filter(|known| known.gone_at.is_some_and(|at| now - at < GRACE))
        .collect();
    gone.sort_by_key(|known| std::cmp::Reverse(known.gone_at));
    gone.truncate(MAX_KEYS);
    let published = published.into_iter().map(|key| Known { key: Arc::new(key), gone_at: None });
    published.chain(gone).collect()
}

/// The keys in a set that can be used. The others are somebody else's: a set may hold keys for encryption, of kinds that
/// are still to come, or broken ones.
fn read(body: &[u8]) -> Result<Vec<PublishedKey>, FetchError> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<Value>,
    }

    let set: Set = serde_json::from_slice(body).map_err(FetchError::NoKeySet)?;
    Ok(set.keys.into_iter().filter_map(published_key).take(MAX_KEYS).collect())
}

fn published_key(json: Value) -> Option<PublishedKey> {
    let jwk: Jwk = serde_json::from_value(json).ok()?;
    let common = jwk.common;
    let is_for_signatures = common.public_key_use.is_none_or(|usage| usage == PublicKeyUse::Signature)
        && common.key_operations.is_none_or(|operations| operations.contains(&KeyOperations::Verify));
    if !is_for_signatures {
        return None;
    }
    let (key, algorithm) = match &jwk.algorithm {
        AlgorithmParameters::RSA(rsa) => {
            (VerifyingKey::from_rsa(&base64url(&rsa.n)?, &base64url(&rsa.e)?).ok()?, KeyAlgorithm::RS256)
        }
        AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => {
            let (x, y) = (base64url(&ec.x)?, base64url(&ec.y)?);
            if (x.len(), y.len()) != (32, 32) {
                return None;
            }
            (VerifyingKey::from_p256(&[&[4], &x[..], &y[..]].concat()).ok()?, KeyAlgorithm::ES256)
        }
        AlgorithmParameters::OctetKeyPair(okp) if okp.curve == EllipticCurve::Ed25519 => {
            (VerifyingKey::from_ed25519(&base64url(&okp.x)?).ok()?, KeyAlgorithm::EdDSA)
        }
        // Shared keys above all: what is published is no secret.
        _ => return None,
    };
    let is_for_algorithm = common.key_algorithm.is_none_or(|wanted| wanted == algorithm);
    is_for_algorithm.then_some(PublishedKey { id: common.key_id, key, parameters: jwk.algorithm })
}

fn base64url(text: &str) -> Option<Vec<u8>> {
    BASE64_URL_SAFE_NO_PAD.decode(text).ok()
}

#[cfg(test)]
mod tests;
