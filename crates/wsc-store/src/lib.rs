//! wsc-store
