//! The client against a hub that does what each test tells it to, over streams in memory and with a paused clock.

#![allow(clippy::unwrap_used, reason = "everything here is a test, its helpers too")]

mod events;
mod hub;
mod inbox;
mod lifetime;
mod reconnect;
mod reliable;
mod requests;
