//! Signatures of the Standard Webhooks specification.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use standardwebhooks::Webhook;

/// Signs with every secret, so that a receiver verifies with the old one or the new one while keys are changed.
pub(super) struct Signer {
    keys: Vec<Webhook>,
}

impl Signer {
    /// Reads secrets: `whsec_` and base64, or any other text, whose bytes are the key.
    ///
    /// # Errors
    ///
    /// The position of the first secret that is none, and what is wrong with it.
    pub(super) fn new(secrets: &[SecretString]) -> Result<Self, (usize, &'static str)> {
        let keys = secrets.iter().enumerate().map(|(at, secret)| key(secret.expose_secret()).map_err(|why| (at, why)));
        Ok(Self { keys: keys.collect::<Result<_, _>>()? })
    }

    /// The value of `webhook-signature`, one signature for each secret; `None` where there are no secrets.
    pub(super) fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> Option<String> {
        // It fails for bodies that are not UTF-8, which JSON is.
        let signatures: Vec<_> = self.keys.iter().filter_map(|key| key.sign(id, timestamp, body).ok()).collect();
        (!signatures.is_empty()).then(|| signatures.join(" "))
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("keys", &self.keys.len()).finish()
    }
}

fn key(secret: &str) -> Result<Webhook, &'static str> {
    let key = if secret.starts_with(PREFIX) {
        if secret.len() - PREFIX.len() < SHORTEST_BASE64 {
            return Err("is too short: at least 16 bytes are needed");
        }
        Webhook::new(secret)
    } else {
        if secret.is_empty() {
            return Err("is empty");
        }
        Webhook::from_bytes(secret.as_bytes().to_vec())
    };
    key.map_err(|_| "is no base64 after `whsec_`")
}

const PREFIX: &str = "whsec_";

/// Base64 text of 16 bytes, padding included.
const SHORTEST_BASE64: usize = 24;

#[cfg(test)]
mod tests {
    use super::*;

    /// The test vector that the specification's own libraries use.
    const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    const ID: &str = "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk";
    const BODY: &[u8] = br#"{"email":"test@example.com","username":"test_user"}"#;
    const SIGNATURE: &str = "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=";

    fn sign(secrets: &[&str]) -> Option<String> {
        let secrets: Vec<_> = secrets.iter().map(|&s| SecretString::from(s)).collect();
        Signer::new(&secrets).unwrap().sign(ID, 1_649_367_553, BODY)
    }

    #[test]
    fn the_standards_test_vector_holds() {
        assert_eq!(sign(&[SECRET]).as_deref(), Some(SIGNATURE));
    }

    #[test]
    fn there_is_one_signature_for_each_secret() {
        let other = sign(&["an old secret of sixteen"]).unwrap();
        assert!(other.starts_with("v1,") && other != SIGNATURE);
        assert_eq!(sign(&[SECRET, "an old secret of sixteen"]), Some(format!("{SIGNATURE} {other}")));
        assert_eq!(sign(&[]), None);
    }

    #[test]
    fn what_is_no_secret_is_named_by_its_place() {
        for bad in ["whsec_", "whsec_AAAA", "whsec_!!!!!!!!!!!!!!!!!!!!!!!!!!", ""] {
            let secrets = [SecretString::from(SECRET), SecretString::from(bad)];
            let (at, _) = Signer::new(&secrets).unwrap_err();
            assert_eq!(at, 1, "{bad:?}");
        }
    }
}
