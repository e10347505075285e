//! A hub in this process: its HTTP API, and what its messages come to.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod access;
mod bodies;
mod embed;
mod failures;
mod lifecycle;
mod listings;
mod openapi;
mod operators;
mod presence;
mod retries;
mod support;
