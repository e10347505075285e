//! wsc-protocol
