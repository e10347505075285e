//! What became of a message for one recipient (protocol §4).

use serde::{Deserialize, Serialize};

use crate::FailureReason;

/// Where a message stands for one recipient. The first two move, the others are final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Outcome {
    /// In flight.
    Pending,
    /// Resting in the inbox.
    Stored,
    /// Handed to this host's kernel on at least one connection.
    Sent,
    /// Acknowledged by the receiver.
    Acked,
    /// Did not arrive, see [`Fate::reason`].
    Failed,
    /// Its time to live passed.
    Expired,
    /// Refused by the receiver.
    Rejected,
}

impl Outcome {
    /// The name in replies and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Stored => "stored",
            Self::Sent => "sent",
            Self::Acked => "acked",
            Self::Failed => "failed",
            Self::Expired => "expired",
            Self::Rejected => "rejected",
        }
    }

    /// Whether nothing can change it any more.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Pending | Self::Stored)
    }
}

/// An outcome with the reason of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Fate {
    /// Where the message stands.
    pub outcome: Outcome,
    /// Why, when it [failed](Outcome::Failed).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<FailureReason>,
}

impl Fate {
    /// In flight.
    pub const PENDING: Self = Self { outcome: Outcome::Pending, reason: None };
    /// Resting in the inbox.
    pub const STORED: Self = Self { outcome: Outcome::Stored, reason: None };
    /// Acknowledged by the receiver.
    pub const ACKED: Self = Self { outcome: Outcome::Acked, reason: None };
    /// Its time to live passed.
    pub const EXPIRED: Self = Self { outcome: Outcome::Expired, reason: None };
    /// Refused by the receiver.
    pub const REJECTED: Self = Self { outcome: Outcome::Rejected, reason: None };
    /// Handed to the kernel.
    pub const SENT: Self = Self { outcome: Outcome::Sent, reason: None };

    /// A failure and its reason.
    pub fn failed(reason: FailureReason) -> Self {
        Self { outcome: Outcome::Failed, reason: Some(reason) }
    }
}
