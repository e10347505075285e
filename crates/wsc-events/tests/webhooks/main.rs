//! Webhooks, from events on a bus to requests at a receiver.

#![cfg(feature = "webhook-client")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test, also in a helper")]

mod client;
mod fates;
mod order;
mod outbox;
mod support;
