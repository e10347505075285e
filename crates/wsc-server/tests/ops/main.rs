//! What docs/ops ships, held against the real server and the real programs.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "everything here is a test, its helpers too")]

#[cfg(feature = "otlp")]
mod collector;
mod deployed;
mod deployment;
mod logs;
mod metrics;
mod proxies;
mod settings;
mod support;
#[cfg(feature = "otlp")]
mod traces;
