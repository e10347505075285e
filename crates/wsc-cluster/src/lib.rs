//! wsc-cluster
