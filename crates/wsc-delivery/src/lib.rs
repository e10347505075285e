//! wsc-delivery
