//! Tokens made by hand, so that bad ones can be made as well.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

/// A key that signs tokens.
///
/// It signs what it is told to, header included: a library that makes tokens
/// would refuse to make most of those that a hub has to refuse.
pub struct TokenKey {
    algorithm: &'static str,
    material: Material,
}

enum Material {
    Secret(Box<hmac::Key>),
    Rsa(Box<RsaKeyPair>),
    Ec(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl TokenKey {
    /// A shared secret; `algorithm` is `HS256`, `HS384` or `HS512`.
    ///
    /// # Panics
    ///
    /// For another algorithm.
    pub fn secret(algorithm: &'static str, secret: impl AsRef<[u8]>) -> Self {
        let hash = match algorithm {
            "HS256" => hmac::HMAC_SHA256,
            "HS384" => hmac::HMAC_SHA384,
            "HS512" => hmac::HMAC_SHA512,
            other => panic!("{other} takes no secret"),
        };
        Self { algorithm, material: Material::Secret(Box::new(hmac::Key::new(hash, secret.as_ref()))) }
    }

    /// A new RSA key of 2048 bits, for `RS256`.
    ///
    /// # Panics
    ///
    /// When there is no randomness; likewise for the other kinds.
    pub fn rsa() -> Self {
        let key = RsaKeyPair::generate(KeySize::Rsa2048).expect("an RSA key");
        Self { algorithm: "RS256", material: Material::Rsa(Box::new(key)) }
    }

    /// A new key on the curve P-256, for `ES256`.
    pub fn ec() -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a P-256 key");
        Self { algorithm: "ES256", material: Material::Ec(key) }
    }

    /// A new Ed25519 key, for `EdDSA`.
    pub fn ed25519() -> Self {
        let key = Ed25519KeyPair::generate().expect("an Ed25519 key");
        Self { algorithm: "EdDSA", material: Material::Ed25519(key) }
    }

    /// The algorithm, as the header of a token names it.
    pub const fn algorithm(&self) -> &'static str {
        self.algorithm
    }

    /// The public key as PEM (`BEGIN PUBLIC KEY`).
    ///
    /// # Panics
    ///
    /// For a secret, which has none.
    pub fn public_pem(&self) -> String {
        let der: Result<PublicKeyX509Der<'_>, _> = match &self.material {
            Material::Secret(_) => panic!("a secret has no public key"),
            Material::Rsa(key) => key.public_key().as_der(),
            Material::Ec(key) => key.public_key().as_der(),
            Material::Ed25519(key) => key.public_key().as_der(),
        };
        pem("PUBLIC KEY", der.expect("a public key").as_ref())
    }

    /// The private key as PEM (`BEGIN PRIVATE KEY`).
    ///
    /// # Panics
    ///
    /// For a secret.
    pub fn private_pem(&self) -> String {
        let der: Vec<u8> = match &self.material {
            Material::Secret(_) => panic!("a secret is no PEM"),
            Material::Rsa(key) => AsDer::<Pkcs8V1Der<'_>>::as_der(&**key).expect("a private key").as_ref().to_vec(),
            Material::Ec(key) => key.to_pkcs8v1().expect("a private key").as_ref().to_vec(),
            Material::Ed25519(key) => AsDer::<Pkcs8V1Der<'_>>::as_der(key).expect("a private key").as_ref().to_vec(),
        };
        pem("PRIVATE KEY", &der)
    }

    /// The public key as an entry of a key set.
    ///
    /// # Panics
    ///
    /// For a secret.
    pub fn jwk(&self, kid: &str) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let mut jwk = match &self.material {
            Material::Secret(_) => panic!("a secret has no public key"),
            Material::Rsa(key) => {
                let key = key.public_key();
                let n = text(key.modulus().big_endian_without_leading_zero());
                json!({"kty": "RSA", "n": n, "e": text(key.exponent().big_endian_without_leading_zero())})
            }
            Material::Ec(key) => {
                // Uncompressed: one byte that says so, then both coordinates.
                let (x, y) = key.public_key().as_ref()[1..].split_at(32);
                json!({"kty": "EC", "crv": "P-256", "x": text(x), "y": text(y)})
            }
            Material::Ed25519(key) => json!({"kty": "OKP", "crv": "Ed25519", "x": text(key.public_key().as_ref())}),
        };
        jwk["kid"] = json!(kid);
        jwk["alg"] = json!(self.algorithm);
        jwk["use"] = json!("sig");
        jwk
    }

    /// A token with these claims.
    pub fn token(&self, claims: &Value) -> String {
        self.token_with(&json!({"alg": self.algorithm, "typ": "JWT"}), claims)
    }

    /// A token with these claims that names its key.
    pub fn token_of_key(&self, kid: &str, claims: &Value) -> String {
        self.token_with(&json!({"alg": self.algorithm, "typ": "JWT", "kid": kid}), claims)
    }

    /// A token with this header, whatever it says.
    pub fn token_with(&self, header: &Value, claims: &Value) -> String {
        self.token_of(&header.to_string(), &claims.to_string())
    }

    /// A token of these texts, byte for byte.
    pub fn token_of(&self, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = self.sign(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        match &self.material {
            Material::Secret(key) => hmac::sign(key, bytes).as_ref().to_vec(),
            Material::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), bytes, &mut signature).expect("a signature");
                signature
            }
            Material::Ec(key) => key.sign(&SystemRandom::new(), bytes).expect("a signature").as_ref().to_vec(),
            Material::Ed25519(key) => key.sign(bytes).as_ref().to_vec(),
        }
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenKey").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

/// The claims of a good token for this user: issued by `wsc` now, for an hour.
/// The fields of `changes` are laid over them; `null` takes one out.
///
/// # Panics
///
/// When `changes` is no object.
pub fn claims(user_id: &str, changes: Value) -> Value {
    let now = unix_now();
    let mut claims = json!({"user_id": user_id, "iss": "wsc", "iat": now, "exp": now + 3600});
    let Value::Object(changes) = changes else { panic!("no object: {changes}") };
    for (name, value) in changes {
        claims[name] = value;
    }
    if let Some(claims) = claims.as_object_mut() {
        claims.retain(|_, value| !value.is_null());
    }
    claims
}

/// The time in whole seconds, as claims have it.
///
/// # Panics
///
/// When the clock stands before 1970.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_secs()
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};

    use super::*;

    /// The example of RFC 7515, A.1, down to the byte.
    #[test]
    fn the_example_of_the_rfc_comes_out() {
        let secret = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
        let key = TokenKey::secret("HS256", URL_SAFE_NO_PAD.decode(secret).unwrap());
        let token = key.token_of(
            "{\"typ\":\"JWT\",\r\n \"alg\":\"HS256\"}",
            "{\"iss\":\"joe\",\r\n \"exp\":1300819380,\r\n \"http://example.com/is_root\":true}",
        );
        assert!(token.ends_with(".dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"), "{token}");
    }

    #[test]
    fn public_keys_check_what_private_ones_signed() {
        for key in [TokenKey::rsa(), TokenKey::ec(), TokenKey::ed25519()] {
            let token = key.token(&claims("alice", json!({})));
            let (signed, signature) = token.rsplit_once('.').unwrap();
            let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
            let verified = match &key.material {
                Material::Secret(_) => unreachable!(),
                Material::Rsa(key) => UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.public_key().as_ref())
                    .verify(signed.as_bytes(), &signature),
                Material::Ec(key) => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.public_key().as_ref())
                    .verify(signed.as_bytes(), &signature),
                Material::Ed25519(key) => {
                    UnparsedPublicKey::new(&ED25519, key.public_key().as_ref()).verify(signed.as_bytes(), &signature)
                }
            };
            assert!(verified.is_ok(), "{key:?}");
            assert!(key.public_pem().contains("BEGIN PUBLIC KEY"));
            assert!(key.private_pem().contains("BEGIN PRIVATE KEY"));
        }
    }

    #[test]
    fn changes_lie_over_good_claims() {
        let made = claims("alice", json!({"exp": null, "permissions": ["join:room"]}));
        assert_eq!(made.get("exp"), None);
        assert_eq!(made["permissions"], json!(["join:room"]));
        assert_eq!(made["user_id"], "alice");
    }
}
