//! What the API says about itself.

use std::sync::LazyLock;

use utoipa::{
    Modify, OpenApi,
    openapi::{
        OpenApi as Document,
        security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use super::routes::described;

/// Everything but the paths, which the routes bring along.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "wsc-hub",
        description = "Push to users, rooms and everybody; look after connections and rooms. Errors are \
            `{\"error\":{\"code\",\"message\"}}`. Ids in paths are percent-encoded."
    ),
    security((), ("bearer" = []), ("api_key" = [])),
    modifiers(&Credentials)
)]
pub(crate) struct Frame;

struct Credentials;

impl Modify for Credentials {
    fn modify(&self, document: &mut Document) {
        let components = document.components.get_or_insert_default();
        let bearer = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("A user's token, or an API key (`http.api_keys`)"))
            .build();
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
        let key = ApiKeyValue::with_description("X-API-Key", "One of `http.api_keys`");
        components.add_security_scheme("api_key", SecurityScheme::ApiKey(ApiKey::Header(key)));
    }
}

/// The document as JSON.
pub(crate) fn document() -> &'static str {
    static DOCUMENT: LazyLock<String> =
        LazyLock::new(|| described().into_openapi().to_json().unwrap_or_else(|_| "{}".to_owned()));
    &DOCUMENT
}
