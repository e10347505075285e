//! HTTP on a connection: hyper with timeouts, ended by a shutdown.

use std::{convert::Infallible, pin::pin, sync::Arc};

use axum::body::Body;
use http::Request;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;
use tower::Service;
use wsc_transport::{Peer, Stream};

use super::{
    access::{Surface, Via},
    patient::Patient,
    routes::routes,
};
use crate::{core::Core, limits::HttpState};

/// Serves one connection that speaks HTTP, until it ends or the hub has drained.
pub(crate) async fn serve(core: &Arc<Core>, stream: Stream, peer: Peer, state: &Arc<HttpState>) {
    serve_until(core, stream, peer, Surface::Public, state, &core.drained).await;
}

/// Serves the operators' listener. It goes on while the hub drains: that is when its pages are looked at.
pub(crate) async fn serve_internal(core: Arc<Core>, listener: TcpListener, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(MAX_INTERNAL_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let (socket, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                tracing::warn!(error = %e, "cannot accept a connection on the internal address");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(local) = socket.local_addr() else { continue };
        let peer = Peer { remote, local, is_tls: false };
        let (core, stop) = (Arc::clone(&core), stop.clone());
        core.tasks.clone().spawn(async move {
            serve_until(&core, Box::new(socket), peer, Surface::Internal, &Arc::default(), &stop).await;
            drop(place);
        });
    }
}

async fn serve_until(
    core: &Arc<Core>,
    stream: Stream,
    peer: Peer,
    surface: Surface,
    state: &Arc<HttpState>,
    stop: &CancellationToken,
) {
    let service = service_fn(|mut request: Request<Incoming>| {
        let via = Via { core: Arc::clone(core), hub: None, peer: Some(peer), surface };
        request.extensions_mut().insert(via);
        let mut router = routes().clone();
        let working = state.work();
        async move {
            let _working = working;
            // A router is always ready.
            let response = router.call(request.map(Body::new)).await;
            response.map_err(|never: Infallible| match never {})
        }
    });
    let settings = core.settings();
    let stream = Patient::new(stream, settings.write_timeout);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(settings.http.read_timeout)
        .max_buf_size(MAX_BUFFER_LEN)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            // Whoever has not sent a whole request by then holds nobody up.
            match tokio::time::timeout(LAST_REQUEST, connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(peer = %peer.remote, %error, "an HTTP connection ended");
    }
}

/// The longest request head, and what a connection buffers; as much as the handshake reads.
const MAX_BUFFER_LEN: usize = 16 << 10;

/// Operators and their scrapers are few.
const MAX_INTERNAL_CONNECTIONS: usize = 256;

/// How long a request may go on that is under way when the hub stops.
const LAST_REQUEST: std::time::Duration = std::time::Duration::from_secs(1);

/// How long to wait after a failed accept.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);
