//! The HTTP API (protocol §5).

mod access;
mod extract;
mod reply;
mod routes;
mod serve;
mod system;

pub(crate) use reply::error_response;
pub(crate) use routes::router;
pub(crate) use serve::{serve, serve_internal};
