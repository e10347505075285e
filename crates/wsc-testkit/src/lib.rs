//! wsc-testkit
