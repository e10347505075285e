//! What a sender learns when a send is over.

use std::time::Duration;

use serde::{Serialize, Serializer};
use uuid::Uuid;
use wsc_protocol::{FailureReason, Fate, Outcome};

/// Everything about one send to one recipient, when it is final or rests. Durations are milliseconds in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SendResult {
    /// The message's id.
    pub id: Uuid,
    /// Whether it arrived as far as was asked for: `sent` or `acked`, or it rests in the inbox and will be sent.
    pub success: bool,
    /// What became of it, and why where it failed.
    #[serde(flatten)]
    pub fate: Fate,
    /// Every attempt, in order. None where it was stored and its user has not come.
    pub attempts: Vec<SendAttempt>,
    /// Attempts after the first.
    pub total_retries: u32,
    /// From the acceptance to the end.
    #[serde(rename = "total_time_ms", serialize_with = "millis")]
    pub total_time: Duration,
    /// The error of the last attempt, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub final_error: Option<FailureReason>,
}

/// One attempt at a send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SendAttempt {
    /// From 1.
    pub number: u32,
    /// When it began, counted from the acceptance.
    #[serde(rename = "start_ms", serialize_with = "millis")]
    pub start: Duration,
    /// How long it took: until it was written, acknowledged, or in vain.
    #[serde(rename = "duration_ms", serialize_with = "millis")]
    pub duration: Duration,
    /// Why it was in vain; `None`: it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<FailureReason>,
}

impl SendResult {
    /// The result of a send that came to this fate after these attempts.
    ///
    /// ```
    /// use std::time::Duration;
    /// use uuid::Uuid;
    /// use wsc_delivery::{SendAttempt, SendResult};
    /// use wsc_protocol::{FailureReason, Fate};
    ///
    /// let ms = Duration::from_millis;
    /// let late = SendAttempt::new(1, ms(2), ms(5_000), Some(FailureReason::AckTimeout));
    /// let good = SendAttempt::new(2, ms(7_002), ms(40), None);
    /// let result = SendResult::new(Uuid::from_u128(1), Fate::ACKED, vec![late, good], ms(7_042));
    /// assert!(result.success);
    /// assert_eq!((result.total_retries, result.final_error), (1, None));
    /// ```
    pub fn new(id: Uuid, fate: Fate, attempts: Vec<SendAttempt>, total_time: Duration) -> Self {
        let success = matches!(fate.outcome, Outcome::Sent | Outcome::Acked | Outcome::Stored);
        let total_retries = u32::try_from(attempts.len().saturating_sub(1)).unwrap_or(u32::MAX);
        let final_error = fate.reason.or_else(|| attempts.last().and_then(|attempt| attempt.error));
        Self { id, success, fate, attempts, total_retries, total_time, final_error }
    }
}

impl SendAttempt {
    /// An attempt, and why it was in vain, if it was.
    pub fn new(number: u32, start: Duration, duration: Duration, error: Option<FailureReason>) -> Self {
        Self { number, start, duration, error }
    }
}

fn millis<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_as_an_api_answer_does() {
        let attempt =
            SendAttempt::new(1, Duration::from_millis(7), Duration::from_secs(5), Some(FailureReason::AckTimeout));
        let failed = Fate::failed(FailureReason::AckTimeout);
        let result = SendResult::new(Uuid::nil(), failed, vec![attempt], Duration::from_millis(5_001));
        assert_eq!(
            serde_json::to_value(&result).unwrap(),
            serde_json::json!({
                "id": Uuid::nil(), "success": false, "outcome": "failed", "reason": "ack_timeout",
                "attempts": [{"number": 1, "start_ms": 7, "duration_ms": 5000, "error": "ack_timeout"}],
                "total_retries": 0, "total_time_ms": 5001, "final_error": "ack_timeout",
            })
        );
    }

    #[test]
    fn what_rests_is_no_failure() {
        let result = SendResult::new(Uuid::nil(), Fate::STORED, Vec::new(), Duration::ZERO);
        assert!(result.success && result.attempts.is_empty() && result.final_error.is_none());
        assert_eq!(result.total_retries, 0);
        assert!(!SendResult::new(Uuid::nil(), Fate::EXPIRED, Vec::new(), Duration::ZERO).success);
    }
}
