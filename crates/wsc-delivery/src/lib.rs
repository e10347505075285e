//! What becomes of messages that must arrive, and whether a failed send is tried again, when, and how often in all.
//!
//! A [`Mailbox`](mailbox::Mailbox) is the whole of what one user has coming, as a machine without a clock, a store or
//! a socket: it is told what happened and says what is to be done. A [`SendResult`] is what a sender learns at the end.
//!
//! A [`RetryPolicy`] gives the [`Delays`] between the attempts at one message, and its [`RetryRules`] say from the
//! reason of a failure whether another attempt makes sense (protocol §4). A [`RetryBudget`] bounds the retries of all
//! messages together, so that they cannot multiply an outage.
//!
//! It deliberately does not know sockets, stores, tasks or clocks: the time is an argument, randomness is a seed, and
//! waiting is the caller's business. The same seed gives the same delays.
//!
//! ```
//! use wsc_delivery::{RetryPolicy, Retry};
//! use wsc_protocol::FailureReason;
//!
//! let policy = RetryPolicy::default();
//! assert_eq!(policy.classify(FailureReason::QueueFull, "no room"), Retry::Yes);
//! assert_eq!(policy.classify(FailureReason::Permission, "may not"), Retry::No);
//!
//! let delays: Vec<_> = policy.delays(7).map(|d| d.as_millis()).collect();
//! assert_eq!(delays.len(), 3); // max_retries: after the last attempt there is nothing to wait for
//! assert!((90..=110).contains(&delays[0]) && (180..=220).contains(&delays[1]));
//! ```
//!
//! # Cargo features
//!
//! None.

mod budget;
mod delays;
pub mod mailbox;
mod policy;
mod result;
mod rng;
mod rules;

pub use budget::{InvalidBudget, RetryBudget};
pub use delays::Delays;
pub use policy::{InvalidPolicy, RetryConfig, RetryPolicy};
pub use result::{SendAttempt, SendResult};
pub use rules::{InvalidRules, Retry, RetryRules};
