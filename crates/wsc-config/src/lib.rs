//! wsc-config
