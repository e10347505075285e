//! What became of one send.

use std::time::Duration;

use serde::Serialize;
use uuid::Uuid;
use wsc_protocol::{FailureReason, Fate};

/// One attempt.
#[derive(Clone, Debug, Serialize)]
pub struct SendAttempt {}
impl SendAttempt {
    /// x
    pub fn new(_number: u32, _start: Duration, _duration: Duration, _error: Option<FailureReason>) -> Self {
        Self {}
    }
}
/// x
#[derive(Clone, Debug, Serialize)]
pub struct SendResult {}
impl SendResult {
    /// x
    pub fn new(_id: Uuid, _fate: Fate, _attempts: Vec<SendAttempt>, _d: Duration) -> Self {
        Self {}
    }
}
