//! What the API answers, and how it refuses.

use axum::{
    body::Body,
    response::{IntoResponse, Response as AxumResponse},
};
use http::{HeaderValue, Response, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;
use wsc_protocol::{ErrorCode, ErrorReply, encode::JsonWriter};

/// The body of every refusal: `{"error":{"code","message","details"?}}`.
pub(crate) fn error_response(error: &ErrorReply) -> Response<Vec<u8>> {
    let status = StatusCode::from_u16(error.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    error_body(status, error)
}

fn error_body(status: StatusCode, error: &ErrorReply) -> Response<Vec<u8>> {
    let mut body = Vec::new();
    JsonWriter::new(&mut body).raw("{\"error\":").value(error).raw("}");
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

/// A refused request. The status is the code's own unless it says more.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: Option<StatusCode>,
    error: ErrorReply,
}

impl Refusal {
    /// A refusal with another status than its code has.
    pub(crate) fn with_status(status: StatusCode, code: ErrorCode, message: impl Into<String>) -> Self {
        Self { status: Some(status), error: ErrorReply::new(code, message) }
    }

    /// 400: what was sent makes no sense.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        ErrorReply::new(ErrorCode::InvalidFormat, message).into()
    }

    /// 403.
    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        ErrorReply::new(ErrorCode::Forbidden, message).into()
    }

    /// 503: newcomers and new messages belong elsewhere.
    pub(crate) fn draining() -> Self {
        ErrorReply::new(ErrorCode::Full, "the hub is shutting down").into()
    }

    /// 404 of a path that is not there at all.
    pub(crate) fn no_such_path() -> Self {
        Self::with_status(StatusCode::NOT_FOUND, ErrorCode::InvalidFormat, "there is nothing at this path")
    }

    /// What goes into the body.
    pub(crate) fn into_error(self) -> ErrorReply {
        self.error
    }

    pub(crate) fn details(mut self, details: serde_json::Value) -> Self {
        self.error.details = Some(details);
        self
    }
}

impl From<ErrorReply> for Refusal {
    fn from(error: ErrorReply) -> Self {
        Self { status: None, error }
    }
}

impl From<ErrorCode> for Refusal {
    fn from(code: ErrorCode) -> Self {
        ErrorReply::from(code).into()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> AxumResponse {
        let response = match self.status {
            Some(status) => error_body(status, &self.error),
            None => error_response(&self.error),
        };
        let mut response = response.map(Body::from);
        if response.status() == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if response.status() == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// A refusal.
#[derive(ToSchema)]
#[schema(as = Error)]
#[expect(dead_code, reason = "it describes what `error_response` writes")]
pub(crate) struct ErrorBody {
    #[schema(inline)]
    error: ErrorObject,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "it describes what `error_response` writes")]
pub(crate) struct ErrorObject {
    /// One of the protocol's error codes.
    code: u16,
    /// What went wrong, for people.
    message: String,
    /// More for programs.
    details: Option<serde_json::Value>,
}

/// JSON with a status.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> AxumResponse {
    let mut body = Vec::with_capacity(256);
    JsonWriter::new(&mut body).value(value);
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

/// JSON with status 200.
pub(crate) fn ok(value: &impl Serialize) -> AxumResponse {
    json(StatusCode::OK, value)
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");
