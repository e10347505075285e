//! What can be wrong with a token.

use jsonwebtoken::errors::{Error, ErrorKind};

use crate::AuthError;

/// Why a token is not accepted, as far as the operator may know: a client learns the [`AuthError`] only. Nothing of the
/// token is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenProblem {
    /// It is empty.
    #[error("there is no token")]
    Missing,
    /// It is longer than [`MAX_TOKEN_LEN`](crate::MAX_TOKEN_LEN).
    #[error("the token is longer than {} bytes", super::MAX_TOKEN_LEN)]
    TooLong,
    /// It is no signed token in compact form, or its header cannot be read. A token without signature (`none`) is none.
    #[error("it is no signed token")]
    Malformed,
    /// Its header asks for extensions (`crit`).
    #[error("its header asks for extensions that are not supported (crit)")]
    CriticalHeader,
    /// Its algorithm does not belong to the key.
    #[error("its algorithm (alg) does not belong to the key")]
    Algorithm,
    /// The key set has no such key, or the token names none and there are several.
    #[error("the key set has no such key (kid)")]
    UnknownKey,
    /// It was not signed with the key, or was changed since.
    #[error("its signature does not fit the key")]
    Signature,
    /// A claim is of the wrong type, or there twice.
    #[error("its claims cannot be read")]
    Claims,
    /// It does not name the issuer that is asked for.
    #[error("its issuer (iss) is missing or another one")]
    Issuer,
    /// It does not name the audience that is asked for.
    #[error("its audience (aud) is missing or another one")]
    Audience,
    /// It says of nobody whom it is for, or of somebody who cannot be a user.
    #[error("its user id (user_id, else sub) is missing or not allowed")]
    UserId,
    /// There is no such kind of user.
    #[error("its user type (user_type) is unknown")]
    UserType,
    /// Its own id is longer than [`MAX_TOKEN_ID_LEN`](crate::MAX_TOKEN_ID_LEN).
    #[error("its own id (jti) is longer than {} bytes", crate::MAX_TOKEN_ID_LEN)]
    TokenId,
    /// It would never run out.
    #[error("it does not say when it runs out (exp)")]
    NoExpiry,
    /// It is not valid yet.
    #[error("it is not valid yet (nbf)")]
    NotYet,
    /// It has run out; all else is in order.
    #[error("it has run out (exp)")]
    Expired,
    /// The key set cannot be fetched, and the keys that are known do not have this token's.
    #[error("the key set cannot be fetched")]
    Unavailable,
}

impl From<TokenProblem> for AuthError {
    fn from(problem: TokenProblem) -> Self {
        match problem {
            TokenProblem::Missing => Self::Missing,
            TokenProblem::Expired => Self::Expired,
            TokenProblem::Unavailable => Self::Unavailable,
            _ => Self::Invalid,
        }
    }
}

impl From<Error> for TokenProblem {
    fn from(error: Error) -> Self {
        match error.kind() {
            ErrorKind::InvalidSignature => Self::Signature,
            ErrorKind::InvalidAlgorithm => Self::Algorithm,
            ErrorKind::InvalidIssuer => Self::Issuer,
            ErrorKind::InvalidAudience => Self::Audience,
            ErrorKind::MissingRequiredClaim(claim) if claim == "iss" => Self::Issuer,
            ErrorKind::MissingRequiredClaim(claim) if claim == "aud" => Self::Audience,
            ErrorKind::Json(_) => Self::Claims,
            _ => Self::Malformed,
        }
    }
}
