//! What docs/ops ships, held against the real server and the real programs.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "everything here is a test, its helpers too")]

#[cfg(feature = "otlp")]
#[allow(dead_code, reason = "the unit tests of the exporter use it too")]
mod collector;
