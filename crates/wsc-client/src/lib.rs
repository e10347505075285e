//! A client of the hub.
//!
//! Being built.
