//! wsc-node
