//! What a token says, and how it becomes an identity.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, de};
use serde_json::Value;
use wsc_protocol::{Id, UserType};

use super::TokenProblem;
use crate::{Identity, MAX_TOKEN_ID_LEN, Permissions};

/// The claims that the hub reads (protocol §6). Others are ignored; one of these twice, or of another type, makes the
/// token invalid. Issuer and audience are checked before.
#[derive(Deserialize)]
pub(super) struct Claims {
    user_id: Option<Value>,
    sub: Option<Value>,
    username: Option<String>,
    user_type: Option<String>,
    permissions: Option<Vec<String>>,
    jti: Option<String>,
    exp: Option<NumericDate>,
    nbf: Option<NumericDate>,
    iat: Option<NumericDate>,
}

impl Claims {
    /// The identity of a token whose signature is good, at this moment (Unix milliseconds).
    pub(super) fn into_identity(self, now_ms: u64, leeway: Duration) -> Result<Identity, TokenProblem> {
        let user_id = self.user_id.or(self.sub).and_then(id).ok_or(TokenProblem::UserId)?;
        let user_type = match self.user_type {
            Some(name) => name.parse().map_err(|_| TokenProblem::UserType)?,
            None => UserType::default(),
        };
        let token_id = self.jti.filter(|id| !id.is_empty());
        if token_id.as_ref().is_some_and(|id| id.len() > MAX_TOKEN_ID_LEN) {
            return Err(TokenProblem::TokenId);
        }
        let exp = self.exp.ok_or(TokenProblem::NoExpiry)?;
        let leeway_ms = u64::try_from(leeway.as_millis()).unwrap_or(u64::MAX);
        if self.nbf.is_some_and(|begin| begin.0 > now_ms.saturating_add(leeway_ms)) {
            return Err(TokenProblem::NotYet);
        }
        // Last: a client that renews a token which was never good would come back for ever.
        if now_ms >= exp.0.saturating_add(leeway_ms) {
            return Err(TokenProblem::Expired);
        }
        let mut identity = Identity::new(user_id, Permissions::parse_known(self.permissions.unwrap_or_default()))
            .with_user_type(user_type)
            .with_expires_at(exp.0 / 1000);
        identity.username = self.username.map(Into::into);
        identity.token_id = token_id.map(Into::into);
        if let Some(issued) = self.iat {
            identity = identity.with_issued_at_ms(issued.0);
        }
        Ok(identity)
    }
}

/// A user id, as text or as an integer. No float: whether 7.0 is the user 7 is not for the hub to guess.
fn id(value: Value) -> Option<Id> {
    let text = match value {
        Value::String(text) => text,
        Value::Number(number) if number.is_u64() || number.is_i64() => number.to_string(),
        _ => return None,
    };
    Id::new(&text).ok()
}

/// A moment in Unix milliseconds; in a token in seconds, possibly with a fraction (RFC 7519 §2).
#[derive(Clone, Copy)]
struct NumericDate(u64);

/// The end of the year 9999. Nothing good lies beyond, and whoever adds to such a moment need not fear an overflow.
const LAST: u64 = 253_402_300_799_999;

impl<'de> Deserialize<'de> for NumericDate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Seconds)
    }
}

struct Seconds;

impl de::Visitor<'_> for Seconds {
    type Value = NumericDate;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number of seconds")
    }

    fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<NumericDate, E> {
        Ok(NumericDate(seconds.saturating_mul(1000).min(LAST)))
    }

    fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<NumericDate, E> {
        self.visit_u64(u64::try_from(seconds).unwrap_or(0))
    }

    fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<NumericDate, E> {
        // The conversion saturates, at zero for what is negative.
        Ok(NumericDate(((seconds * 1000.0) as u64).min(LAST)))
    }
}
