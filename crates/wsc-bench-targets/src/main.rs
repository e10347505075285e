//! Other servers.
//!
//! Being built.

fn main() {}
