//! The HTTP API (protocol §5).

use std::sync::Arc;

use http::{HeaderValue, Response, StatusCode, header};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use wsc_protocol::{ErrorReply, encode::JsonWriter};
use wsc_transport::{Peer, Stream};

use crate::{core::Core, hub::Hub};

/// The body of every refusal: `{"error":{"code","message","details"?}}`.
pub(crate) fn error_response(error: &ErrorReply) -> Response<Vec<u8>> {
    let mut body = Vec::new();
    JsonWriter::new(&mut body).raw("{\"error\":").value(error).raw("}");
    let mut response = Response::new(body);
    *response.status_mut() =
        StatusCode::from_u16(error.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// All routes.
pub(crate) fn router(_core: Arc<Core>, _hub: Option<Hub>) -> axum::Router {
    axum::Router::new()
}

/// Serves one connection that speaks HTTP.
pub(crate) async fn serve(_core: &Arc<Core>, _stream: Stream, _peer: Peer) {}

/// Serves the operators' listener.
pub(crate) async fn serve_internal(_core: Arc<Core>, _listener: TcpListener, _stop: CancellationToken) {}
