//! wsc-events
