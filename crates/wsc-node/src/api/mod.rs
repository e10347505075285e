//! The HTTP API (protocol §5).

#![expect(unused_qualifications, reason = "the macro that describes routes writes them")]

mod access;
mod clients;
mod debug;
mod extract;
mod messages;
mod openapi;
mod operate;
mod page;
mod patient;
mod reply;
mod rooms;
mod routes;
mod serve;
mod system;
mod upgrade;

pub(crate) use reply::error_response;
pub(crate) use routes::router;
pub(crate) use serve::{serve, serve_internal};
