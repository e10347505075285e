//! wsc-failure
