//! The demo page and the API's description.

use std::sync::LazyLock;

use axum::{
    Extension,
    body::Body,
    extract::Request,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, header};
use wsc_config::DemoPage;

use super::{access::Via, openapi, reply::Refusal};

/// A page to try the hub with.
#[utoipa::path(get, path = "/", tag = "system", responses(
    (status = 200, description = "the page", content_type = "text/html", body = String),
    (status = 404, description = "not shown here, see `http.demo_page`"),
))]
pub(crate) async fn demo_page(Extension(via): Extension<Via>, request: Request) -> Result<Response, Refusal> {
    let is_shown = match via.core.settings().http.demo_page {
        DemoPage::On => true,
        DemoPage::Off => false,
        _ => via.is_private(request.headers(), request.uri()),
    };
    if !is_shown {
        return Err(Refusal::no_such_path());
    }
    let headers: [(HeaderName, HeaderValue); 4] = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, POLICY.clone()),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    Ok((headers, Body::from(PAGE)).into_response())
}

/// This description.
#[utoipa::path(get, path = "/openapi.json", tag = "system", responses(
    (status = 200, description = "OpenAPI 3.1", body = Object),
))]
pub(crate) async fn openapi_json() -> Response {
    let headers = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    (headers, Body::from(openapi::document())).into_response()
}

const PAGE: &str = include_str!("../../assets/index.html");

/// The page's own policy, as a header and with what only a header can say.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let own = PAGE
        .split_once("<meta http-equiv=\"Content-Security-Policy\" content=\"")
        .and_then(|(_, rest)| rest.split_once('"'))
        .map_or("default-src 'none'", |(own, _)| own);
    HeaderValue::try_from(format!("{own}; frame-ancestors 'none'"))
        .unwrap_or(HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"))
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_is_the_pages_own() {
        let policy = POLICY.to_str().unwrap();
        assert!(policy.contains("script-src 'sha256-"), "{policy}");
        assert!(policy.ends_with("; frame-ancestors 'none'"), "{policy}");
    }
}
