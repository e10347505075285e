//! wsc-auth
