//! Test support of the hub: real servers as child processes, and clients that
//! can be as polite or as rude as a test needs them.
//!
//! * [`ServerProcess`] starts the `wsc` binary on a free loopback port and
//!   waits until it listens.
//! * [`Client`] speaks the JSON protocol and remembers every frame it saw.
//! * [`RawClient`] and [`Frame`] speak bytes: handshakes by hand, frames that
//!   no library would send, tiny receive buffers.
//! * [`http`] is one HTTP/1.1 request ([`try_http`] where the server may be gone), and [`Metrics`] reads what a scrape
//!   answered.
//! * [`TokenKey`] mints tokens, good ones and forged ones, and [`KeySetServer`] is the identity provider that publishes
//!   its keys.
//! * [`WebhookReceiver`] is what webhooks are posted to: it answers as it is told, or is away.
//!
//! It knows nothing of the hub's crates: what a test asserts is what goes over
//! the socket. Every wait ends after [`WAIT`] with a panic that shows what was
//! seen until then; nothing here sleeps.
//!
//! ```no_run
//! # async fn example() {
//! use serde_json::json;
//! use wsc_testkit::{Client, ServerProcess};
//!
//! let server = ServerProcess::start("target/debug/wsc", "wsc: {listen: '127.0.0.1:0'}").await;
//! let mut alice = Client::connect(&server.ws_url_as("alice")).await;
//! let reply = alice.request(json!({"message_type": "join_room", "data": {"room_id": "r1"}})).await;
//! assert_eq!(reply["message_type"], "room_joined");
//! # }
//! ```

#![allow(clippy::print_stdout, reason = "a failing test shows what the server printed")]

mod client;
mod frame;
mod http;
mod key_set;
mod metrics;
mod raw;
mod server;
mod tls;
mod token;
mod wait;
mod webhook;

pub use client::{Client, ConnectOptions, Inbound};
pub use frame::{Frame, LengthForm, RawFrame};
pub use http::{HttpResponse, encode, http, query, try_http};
pub use key_set::KeySetServer;
pub use metrics::{Ledger, Metrics, Sample};
pub use raw::{Handshake, RawClient, RawOptions};
pub use server::{Launch, ServerProcess};
pub use tls::TlsIdentity;
pub use token::{TokenKey, claims, unix_now};
pub use wait::{WAIT, eventually, within};
pub use webhook::{Answer, Post, WebhookReceiver};
