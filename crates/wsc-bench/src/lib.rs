//! The load tool.
//!
//! Being built.
