//! wsc-transport
