//! From a token to an identity.

use std::{
    collections::HashSet,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use jsonwebtoken::{Validation, decode, decode_header};

use super::{JwtConfig, JwtError, JwtKey, MAX_TOKEN_LEN, TokenProblem, claims::Claims, key::VerifyingKey};
#[cfg(feature = "jwks")]
use super::{key_set::KeySet, key_source::HttpSource};
use crate::{AuthError, Authenticator, Identity};

/// Accepts signed tokens (JWT), with a key or a key set that can be exchanged while it is in use.
///
/// A token is accepted when its signature was made with the key, by an algorithm that belongs to this kind of key; when
/// it names the issuer and the audience that are asked for, has an `exp` that lies ahead and no `nbf` that does, and
/// says which user it is for.
///
/// A key set is fetched by a background task that ends when nothing uses the set any more: the authenticator is dropped,
/// or told to use other keys.
pub struct JwtAuthenticator {
    current: ArcSwap<Verifier>,
}

/// Settings that were checked and can be [applied](JwtAuthenticator::apply).
pub struct PreparedKeys(Arc<Verifier>);

impl PreparedKeys {
    /// Waits until there are keys: those of a key set that is not known yet are fetched, which takes as long as one
    /// fetch does at most. Without this, whoever shows a token has to wait for them, and may be refused.
    ///
    /// # Errors
    ///
    /// [`JwtError::KeySetUnavailable`] where the fetch fails.
    ///
    /// # Cancel safety
    ///
    /// The fetch ends with these prepared keys.
    pub async fn fetched(&self) -> Result<(), JwtError> {
        match &self.0.keys {
            #[cfg(feature = "jwks")]
            Keys::Set(set) if !set.fetched().await => Err(JwtError::KeySetUnavailable),
            _ => Ok(()),
        }
    }
}

impl JwtAuthenticator {
    /// Accepts what `config` describes. A key set begins to be fetched; until it has been, tokens are answered with
    /// [`AuthError::Unavailable`].
    ///
    /// # Errors
    ///
    /// [`JwtError`] when the key cannot be used.
    pub fn new(config: JwtConfig) -> Result<Self, JwtError> {
        let verifier = Verifier::new(config, None)?;
        verifier.start();
        Ok(Self { current: ArcSwap::from_pointee(verifier) })
    }

    /// Checks new settings without applying them. Nothing is fetched for it; see [`PreparedKeys::fetched`].
    ///
    /// # Errors
    ///
    /// [`JwtError`] when the key cannot be used; what is in use is untouched.
    pub fn prepare(&self, config: JwtConfig) -> Result<PreparedKeys, JwtError> {
        Verifier::new(config, Some(&self.current.load())).map(|verifier| PreparedKeys(Arc::new(verifier)))
    }

    /// Checks tokens with these settings from now on. A key set with the same URL keeps the keys that it has.
    pub fn apply(&self, prepared: PreparedKeys) {
        prepared.0.start();
        self.current.store(prepared.0);
    }

    /// The identity that `token` speaks for, or what is wrong with it in more detail than
    /// [`authenticate`](Authenticator::authenticate) tells a client.
    ///
    /// # Errors
    ///
    /// [`TokenProblem`] for a token that is not accepted.
    ///
    /// # Cancel safety
    ///
    /// Nothing is half done when the future is dropped; a fetch of the key set that it waits for goes on.
    pub async fn check(&self, token: &str) -> Result<Identity, TokenProblem> {
        let verifier = self.current.load_full();
        verifier.identity(token, unix_ms).await
    }
}

#[async_trait]
impl Authenticator for JwtAuthenticator {
    async fn authenticate(&self, token: &str) -> Result<Identity, AuthError> {
        Ok(self.check(token).await?)
    }

    fn is_ready(&self) -> bool {
        match &self.current.load().keys {
            #[cfg(feature = "jwks")]
            Keys::Set(set) => set.has_keys(),
            Keys::One(_) => true,
        }
    }
}

/// Says which kind of key is in use.
impl fmt::Debug for JwtAuthenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("JwtAuthenticator").field(&self.current.load().keys).finish()
    }
}

/// Says which kind of key it is.
impl fmt::Debug for PreparedKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PreparedKeys").field(&self.0.keys).finish()
    }
}

/// Keys, and what tokens must say besides being signed with them.
pub(super) struct Verifier {
    keys: Keys,
    /// What the library checks: the signature, and issuer and audience where they are set. The algorithms come from the
    /// key that is used, and time is [`Claims`]' affair.
    validation: Validation,
    leeway: Duration,
}

#[derive(Debug)]
enum Keys {
    One(VerifyingKey),
    #[cfg(feature = "jwks")]
    Set(Arc<KeySet>),
}

impl Verifier {
    /// Takes over the key set of `current` if it is the one that `config` asks for.
    #[cfg_attr(not(feature = "jwks"), expect(unused_variables, reason = "only a key set is worth keeping"))]
    pub(super) fn new(config: JwtConfig, current: Option<&Self>) -> Result<Self, JwtError> {
        let keys = match config.key {
            JwtKey::Secret(secret) => Keys::One(VerifyingKey::from_secret(&secret)?),
            JwtKey::PublicPem(pem) => Keys::One(VerifyingKey::from_public_pem(&pem)?),
            #[cfg(not(feature = "jwks"))]
            JwtKey::KeySet { .. } => return Err(JwtError::NoKeySets),
            #[cfg(feature = "jwks")]
            JwtKey::KeySet { url } => match current.map(|current| &current.keys) {
                Some(Keys::Set(set)) if set.url() == url => Keys::Set(Arc::clone(set)),
                _ => Keys::Set(Arc::new(KeySet::new(url.clone(), HttpSource::new(&url)?)?)),
            },
        };
        Ok(Self::with_keys(keys, config.issuer, config.audience, config.leeway))
    }

    /// Uses a key set, wherever it comes from.
    #[cfg(all(test, feature = "jwks"))]
    pub(super) fn with_key_set(set: Arc<KeySet>) -> Self {
        Self::with_keys(Keys::Set(set), None, None, Duration::ZERO)
    }

    fn with_keys(keys: Keys, issuer: Option<String>, audience: Option<String>, leeway: Duration) -> Self {
        // A claim that is checked must be there.
        let required = [("iss", issuer.is_some()), ("aud", audience.is_some())].into_iter();
        let validation = Validation {
            required_spec_claims: required.filter(|(_, is_set)| *is_set).map(|(name, _)| name.to_owned()).collect(),
            validate_exp: false,
            validate_nbf: false,
            validate_aud: audience.is_some(),
            iss: issuer.map(|issuer| HashSet::from([issuer])),
            aud: audience.map(|audience| HashSet::from([audience])),
            ..Validation::default()
        };
        Self { keys, validation, leeway }
    }

    /// Begins to fetch what has to be fetched.
    fn start(&self) {
        #[cfg(feature = "jwks")]
        if let Keys::Set(set) = &self.keys {
            set.start();
        }
    }

    #[cfg_attr(not(feature = "jwks"), expect(clippy::unused_async, reason = "only a key set is waited for"))]
    pub(super) async fn identity(&self, token: &str, now_ms: fn() -> u64) -> Result<Identity, TokenProblem> {
        if token.is_empty() {
            return Err(TokenProblem::Missing);
        }
        if token.len() > MAX_TOKEN_LEN {
            return Err(TokenProblem::TooLong);
        }
        let header = decode_header(token).map_err(|_| TokenProblem::Malformed)?;
        // It names extensions that must be understood, and none is.
        if header.crit.is_some() {
            return Err(TokenProblem::CriticalHeader);
        }
        match &self.keys {
            Keys::One(key) => self.read(token, key, now_ms()),
            #[cfg(feature = "jwks")]
            Keys::Set(set) => {
                let keys = set.keys_for(header.kid.as_deref(), header.alg).await?;
                // One as a rule; while keys are exchanged also what was there under the same name.
                let now_ms = now_ms();
                let mut answers = keys.iter().map(|key| self.read(token, key, now_ms));
                answers.find(|answer| *answer != Err(TokenProblem::Signature)).unwrap_or(Err(TokenProblem::Signature))
            }
        }
    }

    fn read(&self, token: &str, key: &VerifyingKey, now_ms: u64) -> Result<Identity, TokenProblem> {
        let mut validation = self.validation.clone();
        validation.algorithms = key.algorithms.to_vec();
        // The signature is checked before a claim is read.
        let token = decode::<Claims>(token, &key.key, &validation)?;
        token.claims.into_identity(now_ms, self.leeway)
    }
}

/// Unix time in milliseconds. A clock before 1970 is no reason to let an expired token pass.
fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.ok().and_then(|since| u64::try_from(since.as_millis()).ok()).unwrap_or(u64::MAX)
}
