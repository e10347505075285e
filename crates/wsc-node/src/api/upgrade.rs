//! The side door: an upgrade that came as an HTTP request, inside somebody's axum application or on a connection
//! that spoke HTTP before. The listener takes the others itself.

use axum::{Extension, body::Body, extract::Request, response::Response};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::{rt::TokioIo, server::conn::auto};
use tokio::net::TcpStream;
use wsc_protocol::{ErrorCode, ErrorReply};
use wsc_transport::{Admission, Adopted, upgrade_response, wants_upgrade};

use super::{
    access::Via,
    patient::Patient,
    reply::{ErrorBody, Refusal},
};

/// Where clients connect (RFC 6455). See the protocol's description for what is spoken there.
#[utoipa::path(get, path = "/ws", tag = "websocket", responses(
    (status = 101, description = "switching protocols"),
    (status = "default", description = "refused", body = ErrorBody),
))]
pub(crate) async fn ws(Extension(via): Extension<Via>, request: Request) -> Result<Response, Refusal> {
    if !wants_upgrade(&request) {
        return Err(Refusal::invalid("this is where clients connect: ask for an upgrade to WebSocket"));
    }
    let (mut parts, _) = request.into_parts();
    let on_upgrade = parts.extensions.remove::<OnUpgrade>();
    let request = http::Request::from_parts(parts, ());
    if let Err(response) = upgrade_response(&request, None) {
        return Ok(response.map(Body::from));
    }
    let Some(on_upgrade) = on_upgrade else {
        return Err(Refusal::invalid("this connection cannot be upgraded"));
    };
    let Some(hub) = via.hub() else {
        return Err(ErrorReply::new(ErrorCode::Full, "the hub is shutting down").into());
    };
    let (fate, subprotocol) = match via.core.admit(&request, via.peer.as_ref()).await {
        Admission::Accept { ticket, subprotocol } => (Ok(ticket), subprotocol),
        Admission::Close { close, subprotocol } => (Err(close), subprotocol),
        Admission::Refuse(response) => return Ok(response.map(Body::from)),
    };
    let mut response = upgrade_response(&request, subprotocol).map_err(|_| ErrorCode::ServerError)?;
    let fate = fate.map(|ticket| (ticket, hub.inner().transport.agree(&request, &mut response)));
    // A task of its own, and a short one: it hands the bare socket over and keeps nothing of the HTTP connection.
    via.core.tasks.spawn(async move {
        let Ok(upgraded) = on_upgrade.await else { return };
        let (stream, unread) = taken(upgraded);
        let transport = &hub.inner().transport;
        match fate {
            Ok((ticket, extensions)) => transport.adopt(stream, unread, extensions, ticket),
            Err(close) => transport.adopt_and_close(stream, close),
        }
    });
    Ok(response.map(|()| Body::empty()))
}

/// Takes an upgraded connection apart as far as it can be: a TCP socket is worth most.
fn taken(upgraded: Upgraded) -> (Adopted, Vec<u8>) {
    // axum's own server.
    let upgraded = match auto::upgrade::downcast::<TokioIo<TcpStream>>(upgraded) {
        Ok(parts) => return (Adopted::Tcp(parts.io.into_inner()), parts.read_buf.to_vec()),
        Err(upgraded) => upgraded,
    };
    // A bare hyper server.
    let upgraded = match upgraded.downcast::<TokioIo<TcpStream>>() {
        Ok(parts) => return (Adopted::Tcp(parts.io.into_inner()), parts.read_buf.to_vec()),
        Err(upgraded) => upgraded,
    };
    // Our own.
    match upgraded.downcast::<TokioIo<Patient>>() {
        Ok(parts) => (Adopted::Stream(parts.io.into_inner().into_inner()), parts.read_buf.to_vec()),
        // Somebody's TLS, say: it still carries bytes.
        Err(upgraded) => (Adopted::Stream(Box::new(TokioIo::new(upgraded))), Vec::new()),
    }
}
