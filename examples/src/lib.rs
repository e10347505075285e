//! What the examples share: the self-test mode in which the checks run them, and a short way to a delivery.

use wsc_client::{Delivery, Event, Events};

/// What an example can fail with.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Whether the example should try itself and end, instead of running until Ctrl-C.
pub fn is_self_test() -> bool {
    std::env::args().any(|arg| arg == "--self-test")
}

/// Passes over everything that is no message.
///
/// # Errors
///
/// Where the client is closed for good before one comes.
pub async fn next_delivery(events: &mut Events) -> Result<Delivery, Error> {
    while let Some(event) = events.next().await {
        match event {
            Event::Delivery(delivery) => return Ok(delivery),
            Event::Closed { cause } => return Err(cause.into()),
            _ => {}
        }
    }
    Err("the client was closed before".into())
}
