//! Every path there is.

use std::{
    any::Any,
    sync::{Arc, LazyLock},
};

use axum::{
    Router,
    extract::Request,
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use http::StatusCode;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};
use wsc_config::DemoPage;
use wsc_protocol::ErrorCode;

use super::{
    access::{Surface, Via, guard},
    clients, debug, messages,
    openapi::Frame,
    operate, page,
    reply::Refusal,
    rooms, system, upgrade,
};
use crate::{core::Core, hub::Hub};

/// All routes, for the hub's own listeners. Requests bring their [`Via`] along.
pub(crate) fn routes() -> &'static Router {
    static ROUTES: LazyLock<Router> = LazyLock::new(|| {
        let (router, _) = described().split_for_parts();
        router
            .method_not_allowed_fallback(async || wrong_method())
            .fallback(async || Refusal::no_such_path())
            .layer(middleware::from_fn(guard))
            .layer(CatchPanicLayer::custom(answer_panic))
    });
    &ROUTES
}

/// All routes, to be mounted elsewhere: paths that are not ours are none of our business there.
pub(crate) fn router(core: Arc<Core>, hub: Option<Hub>) -> Router {
    // An application with a page of its own at `/` switches ours off: two would not fit into one router.
    let has_page = core.settings().http.demo_page != DemoPage::Off;
    let (router, _) = if has_page { described() } else { described_without_page() }.split_for_parts();
    router
        .method_not_allowed_fallback(async || wrong_method())
        .route_layer(middleware::from_fn(guard))
        .route_layer(middleware::from_fn(move |mut request: Request, next: Next| {
            let peer = Via::foreign_peer(&request);
            let via = Via { core: Arc::clone(&core), hub: hub.clone(), peer, surface: Surface::Public, state: None };
            request.extensions_mut().insert(via);
            next.run(request)
        }))
        .route_layer(CatchPanicLayer::custom(answer_panic))
}

/// The routes with their description.
pub(crate) fn described() -> OpenApiRouter {
    OpenApiRouter::with_openapi(Frame::openapi()).routes(routes!(page::demo_page)).merge(described_without_page())
}

fn described_without_page() -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(upgrade::ws))
        .routes(routes!(system::health))
        .routes(routes!(system::live))
        .routes(routes!(system::ready))
        .routes(routes!(system::metrics))
        .routes(routes!(system::failure_stats))
        .routes(routes!(system::retry_config))
        .routes(routes!(system::stats))
        .routes(routes!(debug::hub_status))
        .routes(routes!(debug::failures))
        .routes(routes!(debug::callbacks))
        .routes(routes!(debug::ack_stats))
        .routes(routes!(debug::ack_pending))
        .routes(routes!(debug::ack_retry))
        .routes(routes!(operate::revoke_tokens))
        .routes(routes!(operate::reload_config))
        .routes(routes!(operate::list_dead_webhooks))
        .routes(routes!(operate::replay_dead_webhook))
        .routes(routes!(page::openapi_json))
        .routes(routes!(clients::list_clients))
        .routes(routes!(clients::show_client, clients::kick_client))
        .routes(routes!(clients::trace_client))
        .routes(routes!(clients::show_user))
        .routes(routes!(clients::disconnect_user))
        .routes(routes!(messages::send_to_user))
        .routes(routes!(messages::send_batch))
        .routes(routes!(messages::show_message))
        .routes(routes!(messages::broadcast))
        .routes(routes!(rooms::list_rooms, rooms::create_room))
        .routes(routes!(rooms::delete_room))
        .routes(routes!(rooms::list_members))
        .routes(routes!(rooms::add_member, rooms::remove_member))
        .routes(routes!(rooms::send_to_room))
        .routes(routes!(rooms::broadcast_to_room))
}

fn wrong_method() -> Refusal {
    let message = "this path does not take this method";
    Refusal::with_status(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::InvalidFormat, message)
}

#[expect(clippy::needless_pass_by_value, reason = "the layer wants this signature")]
fn answer_panic(panic: Box<dyn Any + Send>) -> Response {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(panic = text.unwrap_or("?"), "a request handler panicked");
    Refusal::from(ErrorCode::ServerError).into_response()
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, routing::get};
    use tower::ServiceExt;

    use super::*;

    async fn broken() -> String {
        panic!("broken")
    }

    #[tokio::test]
    async fn a_panic_is_an_answer() {
        let router = Router::new().route("/", get(broken)).layer(CatchPanicLayer::custom(answer_panic));
        for _ in 0..2 {
            let response = router.clone().oneshot(Request::new(Body::empty())).await.unwrap();
            assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
            let body = axum::body::to_bytes(response.into_body(), 1024).await.unwrap();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["error"]["code"], 1003);
        }
    }
}
