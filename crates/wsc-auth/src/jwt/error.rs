//! What can be wrong with a key, and with a token that is to be made.

use std::error::Error;

/// Why a key cannot be used, or a token cannot be made. The text names the problem, never the key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JwtError {
    /// A shared key that could be guessed.
    #[error("the shared key has {len} bytes, at least {} are needed", super::key::SHORTEST_SECRET)]
    SecretTooShort {
        /// Its length in bytes.
        len: usize,
    },
    /// A PEM text in the place of a shared key. With a public key in it anybody could sign.
    #[error("the shared key is a PEM text; a public key is not secret and cannot be a shared key")]
    SecretIsPem,
    /// The text is not PEM, or what is in it is damaged.
    #[error("it is no PEM text with one key of the kind RSA, EC P-256 or Ed25519")]
    UnreadablePem,
    /// Several keys; which one counts would be a guess.
    #[error("it holds {count} PEM sections, one key is expected")]
    SeveralKeys {
        /// How many sections it has.
        count: usize,
    },
    /// A private key in the place of a public one.
    #[error("it is a private key; the hub needs the public one (openssl pkey -in private.pem -pubout)")]
    PrivateKey,
    /// A certificate in the place of a public key.
    #[error("it is a certificate; take the public key out of it (openssl x509 -in cert.pem -pubkey -noout)")]
    Certificate,
    /// A public key in the place of a private one.
    #[error("it is a public key; only the private one can sign")]
    PublicKey,
    /// A private key in a format other than PKCS#8, or one with a password.
    #[error("the private key is in no plain PKCS#8 format; convert it (openssl pkcs8 -topk8 -nocrypt -in old.pem)")]
    NotPkcs8,
    /// An RSA key that could be broken, or one too long to be used.
    #[error("the RSA key has {bits} bits, 2048 to 8192 are allowed")]
    RsaSize {
        /// The length of its modulus in bits.
        bits: usize,
    },
    /// An elliptic curve other than P-256, or a point that is not on it.
    #[error("the EC key is not of the curve P-256")]
    NotP256,
    /// An RSA key whose numbers cannot be those of a key, or a private one that is too short to be read at all.
    #[error("the RSA key is damaged, or has less than 2048 bits")]
    DamagedRsa,
    /// An Ed25519 key that is not one.
    #[error("the Ed25519 key is damaged")]
    DamagedEd25519,
    /// The address of a key set cannot be used.
    #[error("the key set's URL is not an http or https URL")]
    KeySetUrl,
    /// The key set could not be fetched.
    #[error("the key set cannot be fetched")]
    KeySetUnavailable,
    /// This build cannot fetch key sets: the cargo feature `jwks` is off.
    #[error("key sets are not built into this program (cargo feature jwks)")]
    NoKeySets,
    /// A key set is fetched by a task, and there is no tokio runtime to run it.
    #[error("a key set needs a tokio runtime")]
    NoRuntime,
    /// The HTTP client for a key set cannot be made.
    #[error("no HTTP client for the key set: {0}")]
    HttpClient(#[source] Box<dyn Error + Send + Sync>),
    /// The token would be longer than any that is accepted.
    #[error("the token has {len} bytes, at most {} are accepted", super::MAX_TOKEN_LEN)]
    TokenTooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// The token's own id would be longer than any that is accepted.
    #[error("the token's id has {len} bytes, at most {} are accepted", crate::MAX_TOKEN_ID_LEN)]
    TokenIdTooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// The key does not sign.
    #[error("the token cannot be signed")]
    Signing,
}
