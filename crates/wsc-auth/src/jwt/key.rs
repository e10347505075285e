//! Keys that are fit to check tokens with.

use std::fmt;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, crypto::aws_lc::DEFAULT_PROVIDER};
use secrecy::{ExposeSecret, SecretString};

use super::JwtError;

/// Shortest shared key in bytes: as long as the shortest of the hashes (RFC 7518 §3.2).
pub(crate) const SHORTEST_SECRET: usize = 32;

/// A key, and the algorithms that tokens checked with it may use. That a token names one of another family (such as
/// HS256, with a public key for the secret) gets it nowhere.
#[derive(Clone)]
pub(crate) struct VerifyingKey {
    pub(crate) key: DecodingKey,
    pub(crate) algorithms: &'static [Algorithm],
}

impl VerifyingKey {
    pub(crate) fn from_secret(secret: &SecretString) -> Result<Self, JwtError> {
        let secret = checked_secret(secret)?;
        Ok(Self { key: DecodingKey::from_secret(secret), algorithms: SHARED })
    }

    pub(crate) fn from_public_pem(text: &str) -> Result<Self, JwtError> {
        match one_section(text)? {
            "PUBLIC KEY" | "RSA PUBLIC KEY" => {}
            "CERTIFICATE" => return Err(JwtError::Certificate),
            label if label.ends_with("PRIVATE KEY") => return Err(JwtError::PrivateKey),
            _ => return Err(JwtError::UnreadablePem),
        }
        let pem = text.as_bytes();
        // Each of them reads keys of its own kind only.
        let key = DecodingKey::from_rsa_pem(pem)
            .or_else(|_| DecodingKey::from_ec_pem(pem))
            .or_else(|_| DecodingKey::from_ed_pem(pem))
            .map_err(|_| JwtError::UnreadablePem)?;
        let bytes = key.try_get_as_bytes().map_err(|_| JwtError::UnreadablePem)?;
        match key.family() {
            AlgorithmFamily::Rsa => {
                let components = DEFAULT_PROVIDER.key_utils.rsa_pub_components_from_public_key;
                let (n, e) = components(bytes).map_err(|_| JwtError::DamagedRsa)?;
                Self::from_rsa(&n, &e)
            }
            AlgorithmFamily::Ec => Self::from_p256(bytes),
            AlgorithmFamily::Ed => Self::from_ed25519(bytes),
            AlgorithmFamily::Hmac => Err(JwtError::UnreadablePem),
        }
    }

    /// An RSA key from its modulus and exponent, most significant byte first.
    pub(crate) fn from_rsa(n: &[u8], e: &[u8]) -> Result<Self, JwtError> {
        // Some write them with the zero byte that DER puts before a high bit.
        let (n, e) = (without_zeros(n), without_zeros(e));
        let bits = n.first().map_or(0, |first| n.len() * 8 - first.leading_zeros() as usize);
        if !(2048..=8192).contains(&bits) {
            return Err(JwtError::RsaSize { bits });
        }
        // The library reads any exponent. With 1 everything is its own signature; even ones are none.
        let is_odd = |number: &[u8]| number.last().is_some_and(|last| last % 2 == 1);
        if !is_odd(n) || !is_odd(e) || e == [1] || e.len() > LONGEST_EXPONENT {
            return Err(JwtError::DamagedRsa);
        }
        RsaPublicKeyComponents { n, e }
            .to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256)
            .map_err(|_| JwtError::DamagedRsa)?;
        Ok(Self { key: DecodingKey::from_rsa_raw_components(n, e), algorithms: &[Algorithm::RS256] })
    }

    /// An EC key from its point on P-256 (SEC 1 §2.3.3).
    pub(crate) fn from_p256(point: &[u8]) -> Result<Self, JwtError> {
        // Read, not only measured: other curves have points of the same length.
        ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).map_err(|_| JwtError::NotP256)?;
        Ok(Self { key: DecodingKey::from_ec_der(point), algorithms: &[Algorithm::ES256] })
    }

    /// An Ed25519 key from its 32 bytes.
    pub(crate) fn from_ed25519(bytes: &[u8]) -> Result<Self, JwtError> {
        ParsedPublicKey::new(&ED25519, bytes).map_err(|_| JwtError::DamagedEd25519)?;
        Ok(Self { key: DecodingKey::from_ed_der(bytes), algorithms: &[Algorithm::EdDSA] })
    }
}

/// Says what it is for.
impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifyingKey").field("algorithms", &self.algorithms).finish_non_exhaustive()
    }
}

/// The bytes of a shared key that is good enough, to check as to sign.
pub(crate) fn checked_secret(secret: &SecretString) -> Result<&[u8], JwtError> {
    let secret = secret.expose_secret();
    if secret.contains(PEM_BEGIN) {
        return Err(JwtError::SecretIsPem);
    }
    if secret.len() < SHORTEST_SECRET {
        return Err(JwtError::SecretTooShort { len: secret.len() });
    }
    Ok(secret.as_bytes())
}

/// The label of a PEM text's only section.
pub(crate) fn one_section(text: &str) -> Result<&str, JwtError> {
    let mut sections = text.split(PEM_BEGIN).skip(1);
    let first = sections.next().ok_or(JwtError::UnreadablePem)?;
    let more = sections.count();
    if more > 0 {
        return Err(JwtError::SeveralKeys { count: more + 1 });
    }
    first.split_once("-----").map(|(label, _)| label).ok_or(JwtError::UnreadablePem)
}

fn without_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|&&byte| byte == 0).count();
    &number[zeros..]
}

/// Longest public exponent of an RSA key in bytes. Everybody uses 65537; a long one costs time at each token.
const LONGEST_EXPONENT: usize = 4;

const PEM_BEGIN: &str = "-----BEGIN ";

const SHARED: &[Algorithm] = &[Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
