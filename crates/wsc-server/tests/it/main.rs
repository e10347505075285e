//! The server from outside: the real binary, real sockets, the contract.
//!
//! Every test starts a server of its own with the settings it needs.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "everything here is a test, its helpers too")]

mod cli;
mod client;
mod delivery;
mod exposed;
mod exposure;
mod frames;
mod handshake;
mod heartbeat;
mod http;
mod http_push;
mod http_rooms;
mod identity;
mod interop;
mod json;
mod limits;
mod metrics;
mod operated;
mod reliable;
mod requests;
mod rooms;
mod slow;
mod support;
mod tls;
