//! Where handlers hand failed messages to.

use std::{error::Error, sync::Arc};

use async_trait::async_trait;
use wsc_protocol::{FailureReason, HubMessage, Id};

use crate::FailureEvent;

/// Why a sink did not take something; whatever the sink has to say.
pub type SinkError = Box<dyn Error + Send + Sync>;

/// Takes failed messages one at a time: an inbox, an archive, another channel to the user.
#[async_trait]
pub trait FailureSink: Send + Sync + 'static {
    /// Keeps a message that did not reach `recipient`.
    ///
    /// # Errors
    ///
    /// The message was not kept.
    ///
    /// # Cancel safety
    ///
    /// Dropped when the router's time limit is over, which counts as an error.
    async fn store(&self, message: &Arc<HubMessage>, recipient: &Id, reason: FailureReason) -> Result<(), SinkError>;
}

/// Takes failures in batches.
#[async_trait]
pub trait BatchSink: Send + Sync + 'static {
    /// Takes a batch, oldest failure first. There is only one call at a time.
    ///
    /// # Errors
    ///
    /// The batch was not taken; it is not offered again.
    ///
    /// # Cancel safety
    ///
    /// Dropped when the time limit is over, which counts as an error.
    async fn take(&self, batch: Vec<FailureEvent>) -> Result<(), SinkError>;
}
