//! wsc-hub
