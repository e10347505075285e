//! The HTTP API of a hub in this process.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod access;
mod bodies;
mod embed;
mod lifecycle;
mod listings;
mod openapi;
mod support;
