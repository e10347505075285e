//! Reading requests: bodies, queries and ids, with refusals that say what is wrong.

use axum::{
    extract::{FromRequest, FromRequestParts, Query, RawPathParams, Request},
    http::request::Parts,
};
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body as _;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::value::RawValue;
use wsc_config::Settings;
use wsc_protocol::{ErrorCode, ErrorReply, Id, check_text};

use super::{access::Via, reply::Refusal};
use crate::{core::Core, hub::check_id, limits::HttpState};

/// A JSON object in the body.
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refusal> {
        let via = via(request.extensions())?;
        let (settings, state) = (via.core.settings(), via.state.clone());
        if !is_json(request.headers()) {
            let message = "the body must be application/json";
            return Err(Refusal::with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE, ErrorCode::InvalidFormat, message));
        }
        let waiting = state.as_ref().map(HttpState::wait);
        let body = read(request, &settings).await?;
        drop(waiting);
        parse(&body).map(Json)
    }
}

/// A JSON object in the body, or its default where there is no body.
pub(crate) struct OptionalJson<T>(pub(crate) T);

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for OptionalJson<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        if request.body().is_end_stream() {
            return Ok(Self(T::default()));
        }
        Json::from_request(request, state).await.map(|Json(value)| Self(value))
    }
}

fn via(extensions: &http::Extensions) -> Result<&Via, Refusal> {
    extensions.get::<Via>().ok_or_else(|| ErrorCode::ServerError.into())
}

/// Whether the body claims to be JSON, in whatever charset: JSON is UTF-8.
fn is_json(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .and_then(|kind| kind.split(';').next())
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

async fn read(request: Request, settings: &Settings) -> Result<Vec<u8>, Refusal> {
    let max = settings.http.max_body_size;
    let too_large = || {
        let details = serde_json::json!({ "limit": max.as_u64() });
        ErrorReply::new(ErrorCode::TooLarge, format!("the body is larger than {max}")).with_details(details)
    };
    if request.body().size_hint().lower() > max.as_u64() {
        return Err(too_large().into());
    }
    let body = Limited::new(request.into_body(), max.as_usize()).collect();
    match tokio::time::timeout(settings.http.read_timeout, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes().into()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large().into()),
        Ok(Err(_)) => Err(Refusal::invalid("the body ends early")),
        Err(_) => {
            let message = "the body took too long";
            Err(Refusal::with_status(StatusCode::REQUEST_TIMEOUT, ErrorCode::Timeout, message))
        }
    }
}

/// Reads a JSON object under the rules that frames obey too.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    let text = std::str::from_utf8(body)
        .map_err(|e| Refusal::invalid(format!("the body is not UTF-8 from byte {} on", e.valid_up_to())))?;
    // serde would take an array for a struct.
    if text.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('[') {
        return Err(Refusal::invalid("the body must be a JSON object, not an array, at line 1 column 1"));
    }
    let value = serde_json::from_str(text).map_err(|e| Refusal::invalid(e.to_string()))?;
    check_text(text).map_err(|e| Refusal::invalid(e.message))?;
    Ok(value)
}

/// Reads a field whose `null` is a value, not an absence.
pub(crate) fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

/// The query, deserialised.
pub(crate) struct Params<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let query = Query::from_request_parts(parts, state).await;
        query.map(|Query(value)| Self(value)).map_err(|rejection| Refusal::invalid(rejection.body_text()))
    }
}

/// The id `{id}` in the path, decoded and checked.
pub(crate) struct PathId(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for PathId {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let id = segment(parts, state, "id").await?;
        check_id("id", &id)?;
        Ok(Self(id))
    }
}

/// The id of a user in the path: `{user}`.
pub(crate) struct PathUser(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for PathUser {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let id = segment(parts, state, "user").await?;
        check_user(&via(&parts.extensions)?.core, "user_id", &id)?;
        Ok(Self(id))
    }
}

/// Checks the id of a user. A reserved one is that of a user without a name, who has it as long as it is here.
pub(crate) fn check_user(core: &Core, field: &str, id: &str) -> Result<(), ErrorReply> {
    if Id::check(id).is_err() && core.users.get(id).is_some() {
        return Ok(());
    }
    check_id(field, id)
}

async fn segment<S: Send + Sync>(parts: &mut Parts, state: &S, name: &str) -> Result<String, Refusal> {
    let params = RawPathParams::from_request_parts(parts, state)
        .await
        .map_err(|rejection| Refusal::invalid(rejection.body_text()))?;
    let found = params.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_owned());
    found.ok_or_else(|| ErrorCode::ServerError.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        #[serde(default, deserialize_with = "present")]
        content: Option<Box<RawValue>>,
    }

    fn refusal(body: &[u8]) -> String {
        format!("{:?}", parse::<Body>(body).unwrap_err())
    }

    #[test]
    fn content_is_kept_as_it_came() {
        for json in ["1.0e5", "{\"b\":1, \"a\":\"\\u00fc\"}", "null", "[ 1 ,2]"] {
            let body: Body = parse(format!(" {{\"content\": {json} }}").as_bytes()).unwrap();
            assert_eq!(body.content.unwrap().get(), json);
        }
        assert!(parse::<Body>(b"{}").unwrap().content.is_none());
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert!(refusal(b"{\"colour\":1}").contains("unknown field `colour`"));
        assert!(refusal(b"{\"content\":1,\n  oops}").contains("line 2 column 3"));
        assert!(refusal(b"[1]").contains("line 1 column 1"));
        assert!(refusal(b"null").contains("line 1 column 4"));
        assert!(refusal(b"").contains("line 1 column 0"));
        assert!(refusal(b"{\"content\":\"\\ud800\"}").contains("surrogate"));
        assert!(refusal(b"{\"content\":\"\xff\"}").contains("UTF-8 from byte 12"));
        assert!(refusal(b"{\"content\":1}{}").contains("trailing"));
        let nested = |depth: usize| format!("{{\"content\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse::<Body>(nested(63).as_bytes()).is_ok());
        assert!(refusal(nested(64).as_bytes()).contains("nesting"));
    }
}
