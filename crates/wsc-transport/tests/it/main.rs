//! The transport from outside: real sockets, and streams in memory where the socket does not matter.

#![allow(clippy::unwrap_used, reason = "helpers of tests too say what they expect by panicking")]

mod attack;
mod budget;
mod compression;
mod drain;
mod echo;
mod ending;
mod fanout;
mod flood;
mod handshake;
mod order;
mod overflow;
mod priorities;
mod resources;
mod slow;
mod split;
mod support;
mod waiting;
