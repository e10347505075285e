//! What takes minutes: many thousand clients, the real binary, figures. `.ci/long` runs it.
//!
//! ```sh
//! cargo test --release -p wsc-server --test long -- --ignored --nocapture --test-threads=1
//! ```
//!
//! One test at a time: each wants the machine to itself. `WSC_LONG_PERCENT` makes all crowds smaller, to try a change;
//! `WSC_LONG_SERVER` names another server binary than the one built with it;
//! `WSC_LONG_CONTROL` sends crowds to a second server, and shows what the machine alone does to the figures.
//!
//! A process has 20,000 descriptors, so the crowds are in children, which are this test binary again (`child.rs`).

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "everything here is a test, its helpers too")]

mod attempts;
mod child;
mod drain;
mod fleet;
mod pace;
mod peer;
mod storm;
mod support;
