//! Making tokens.

use std::{fmt, str::FromStr};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair};
use jsonwebtoken::{Algorithm, EncodingKey, Header, crypto::aws_lc::DEFAULT_PROVIDER};
use secrecy::SecretString;
use serde::Serialize;
use wsc_protocol::{Id, UserType};

use super::{
    JwtError, MAX_TOKEN_LEN,
    key::{VerifyingKey, checked_secret, one_section},
};
use crate::MAX_TOKEN_ID_LEN;

/// What a token is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenClaims {
    /// The user that the token speaks for.
    pub user_id: Id,
    /// A name for people.
    pub username: Option<String>,
    /// What kind of user it is.
    pub user_type: UserType,
    /// What the user may do, as [`Permissions::parse`](crate::Permissions::parse) reads it.
    pub permissions: Vec<String>,
    /// Who issues the token (`iss`).
    pub issuer: Option<String>,
    /// Whom the token is for (`aud`).
    pub audience: Option<String>,
    /// When it is made, in Unix seconds.
    pub issued_at: u64,
    /// When it runs out, in Unix seconds.
    pub expires_at: u64,
    /// The token's own id (`jti`), by which it can be revoked.
    pub token_id: Option<String>,
}

impl TokenClaims {
    /// A visitor without permissions, from one moment to another (Unix seconds).
    pub fn new(user_id: Id, issued_at: u64, expires_at: u64) -> Self {
        Self {
            user_id,
            username: None,
            user_type: UserType::default(),
            permissions: Vec::new(),
            issuer: None,
            audience: None,
            issued_at,
            expires_at,
            token_id: None,
        }
    }
}

/// Signs tokens.
///
/// ```
/// use wsc_auth::{Authenticator, HmacAlgorithm, JwtAuthenticator, JwtConfig, JwtKey, TokenClaims, TokenIssuer};
/// use wsc_protocol::Id;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let secret: wsc_auth::SecretString = "a shared key of 32 bytes at least".into();
/// let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
///
/// let issuer = TokenIssuer::from_secret(&secret, HmacAlgorithm::Hs256)?;
/// let token = issuer.issue(&TokenClaims::new(Id::new("alice")?, now, now + 3600))?;
///
/// let hub = JwtAuthenticator::new(JwtConfig::new(JwtKey::Secret(secret)))?;
/// assert_eq!(hub.authenticate(&token).await?.user_id.as_str(), "alice");
/// # Ok(()) }
/// ```
pub struct TokenIssuer {
    key: EncodingKey,
    header: Header,
}

impl TokenIssuer {
    /// Signs with a key that issuer and hub share.
    ///
    /// # Errors
    ///
    /// [`JwtError`] for a key that could be guessed.
    pub fn from_secret(secret: &SecretString, algorithm: HmacAlgorithm) -> Result<Self, JwtError> {
        let key = EncodingKey::from_secret(checked_secret(secret)?);
        Ok(Self { key, header: Header::new(algorithm.into()) })
    }

    /// Signs with a private key (PEM): RS256 with an RSA key of 2048 bits or more, ES256 with an EC key on P-256, EdDSA
    /// with an Ed25519 key. Other than RSA keys must be in PKCS#8 (`BEGIN PRIVATE KEY`).
    ///
    /// # Errors
    ///
    /// [`JwtError`] says what is wrong with the key.
    pub fn from_private_pem(text: &str) -> Result<Self, JwtError> {
        match one_section(text)? {
            "PRIVATE KEY" | "RSA PRIVATE KEY" => {}
            "EC PRIVATE KEY" | "ENCRYPTED PRIVATE KEY" => return Err(JwtError::NotPkcs8),
            label if label.ends_with("PUBLIC KEY") => return Err(JwtError::PublicKey),
            _ => return Err(JwtError::UnreadablePem),
        }
        let pem = text.as_bytes();
        let (key, algorithm) = if let Ok(key) = EncodingKey::from_rsa_pem(pem) {
            let components = DEFAULT_PROVIDER.key_utils.rsa_pub_components_from_private_key;
            // The library refuses keys that are too short here already, without saying so.
            let (n, e) = components(key.as_bytes()).map_err(|_| JwtError::DamagedRsa)?;
            VerifyingKey::from_rsa(&n, &e)?;
            (key, Algorithm::RS256)
        } else if let Ok(key) = EncodingKey::from_ec_pem(pem) {
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.as_bytes())
                .map_err(|_| JwtError::NotP256)?;
            (key, Algorithm::ES256)
        } else {
            let key = EncodingKey::from_ed_pem(pem).map_err(|_| JwtError::UnreadablePem)?;
            Ed25519KeyPair::from_pkcs8(key.as_bytes()).map_err(|_| JwtError::DamagedEd25519)?;
            (key, Algorithm::EdDSA)
        };
        Ok(Self { key, header: Header::new(algorithm) })
    }

    /// Names the key in each token (`kid`), for hubs that look it up in a key set.
    #[must_use]
    pub fn with_key_id(mut self, key_id: &str) -> Self {
        self.header.kid = Some(key_id.to_owned());
        self
    }

    /// Makes a token.
    ///
    /// # Errors
    ///
    /// [`JwtError`] when it would be longer than any that is accepted, or cannot be signed.
    pub fn issue(&self, claims: &TokenClaims) -> Result<String, JwtError> {
        if let Some(len) = claims.token_id.as_ref().map(String::len).filter(|&len| len > MAX_TOKEN_ID_LEN) {
            return Err(JwtError::TokenIdTooLong { len });
        }
        let written = Written {
            user_id: claims.user_id.as_str(),
            username: claims.username.as_deref(),
            user_type: claims.user_type.as_str(),
            permissions: &claims.permissions,
            iss: claims.issuer.as_deref(),
            aud: claims.audience.as_deref(),
            iat: claims.issued_at,
            exp: claims.expires_at,
            jti: claims.token_id.as_deref(),
        };
        let token = jsonwebtoken::encode(&self.header, &written, &self.key).map_err(|_| JwtError::Signing)?;
        if token.len() > MAX_TOKEN_LEN {
            return Err(JwtError::TokenTooLong { len: token.len() });
        }
        Ok(token)
    }
}

/// Says with which algorithm it signs; never the key.
impl fmt::Debug for TokenIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenIssuer").field("algorithm", &self.header.alg).finish_non_exhaustive()
    }
}

/// The claims under their names in a token.
#[derive(Serialize)]
struct Written<'a> {
    user_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<&'a str>,
    user_type: &'static str,
    permissions: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
    iat: u64,
    exp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    jti: Option<&'a str>,
}

/// How a shared key signs. A hub with that key accepts all three.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum HmacAlgorithm {
    /// HMAC with SHA-256.
    #[default]
    Hs256,
    /// HMAC with SHA-384.
    Hs384,
    /// HMAC with SHA-512.
    Hs512,
}

impl HmacAlgorithm {
    /// The name in a token's header.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Hs384 => "HS384",
            Self::Hs512 => "HS512",
        }
    }
}

impl FromStr for HmacAlgorithm {
    type Err = UnknownAlgorithm;

    fn from_str(text: &str) -> Result<Self, UnknownAlgorithm> {
        [Self::Hs256, Self::Hs384, Self::Hs512].into_iter().find(|a| a.as_str() == text).ok_or(UnknownAlgorithm)
    }
}

/// The text names no [`HmacAlgorithm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is none of HS256, HS384, HS512")]
pub struct UnknownAlgorithm;

impl From<HmacAlgorithm> for Algorithm {
    fn from(algorithm: HmacAlgorithm) -> Self {
        match algorithm {
            HmacAlgorithm::Hs256 => Self::HS256,
            HmacAlgorithm::Hs384 => Self::HS384,
            HmacAlgorithm::Hs512 => Self::HS512,
        }
    }
}
