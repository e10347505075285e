//! The transport from outside: real sockets, and streams in memory where the socket does not matter.

mod echo;
mod ending;
mod fanout;
mod handshake;
mod order;
mod resources;
mod slow;
mod support;
mod waiting;
