//! Close codes and reasons (protocol §2, *Close codes*).

use crate::encode::JsonWriter;

/// The number in a close frame. It tells a client what to do next, see [`CloseCode::reconnect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CloseCode(pub u16);

#[expect(missing_docs, reason = "RFC 6455 §7.4.1 names the first group, the protocol page the second")]
impl CloseCode {
    pub const NORMAL: Self = Self(1000);
    pub const GOING_AWAY: Self = Self(1001);
    pub const PROTOCOL_ERROR: Self = Self(1002);
    pub const UNSUPPORTED: Self = Self(1003);
    pub const INVALID_PAYLOAD: Self = Self(1007);
    pub const POLICY: Self = Self(1008);
    pub const TOO_BIG: Self = Self(1009);
    pub const INTERNAL_ERROR: Self = Self(1011);

    pub const SHUTTING_DOWN: Self = Self(3001);
    pub const SERVER_ERROR: Self = Self(3004);
    pub const TOKEN_EXPIRED: Self = Self(3005);
    pub const SLOW_CONSUMER: Self = Self(3008);
    pub const WRITE_TIMEOUT: Self = Self(3009);
    pub const NO_PONG: Self = Self(3012);
    pub const RATE_LIMIT: Self = Self(3013);
    pub const INVALID_TOKEN: Self = Self(3500);
    pub const REPLACED: Self = Self(3502);
    pub const KICKED: Self = Self(3503);
    pub const TOO_MANY_CONNECTIONS: Self = Self(3504);
    pub const TOO_MANY_CONNECTIONS_OF_USER: Self = Self(3505);
    pub const PERMISSION_WITHDRAWN: Self = Self(3507);
    pub const BAD_FRAMES: Self = Self(3509);
}

impl CloseCode {
    /// Whether a client that sees this code should come back: 1000–2999 yes (with backoff) except 1009,
    /// 3000–3499 and 4000–4499 yes, everything else no.
    pub fn reconnect(self) -> bool {
        match self.0 {
            1009 => false,
            1000..=3499 | 4000..=4499 => true,
            _ => false,
        }
    }
}

/// What a close frame carries: the code and a short JSON text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseReason {
    /// The number.
    pub code: CloseCode,
    /// Why, for people. Shortened where the frame would not take it.
    pub reason: String,
    /// How long a client should wait before it comes back, in milliseconds.
    pub retry_after_ms: Option<u64>,
}

impl CloseReason {
    /// A reason without a waiting time.
    pub fn new(code: CloseCode, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), retry_after_ms: None }
    }

    /// The payload's text: `{"reason","reconnect","retry_after_ms"?}`, at most 123 bytes because a control
    /// frame carries no more than 125 with its code (RFC 6455 §5.5).
    pub fn to_json(&self) -> String {
        let mut reason = self.reason.as_str();
        loop {
            let mut json = Vec::with_capacity(MAX_REASON_LEN);
            let mut writer = JsonWriter::new(&mut json);
            writer.raw("{\"reason\":").string(reason).raw(",\"reconnect\":");
            writer.raw(if self.code.reconnect() { "true" } else { "false" });
            if let Some(ms) = self.retry_after_ms {
                writer.raw(",\"retry_after_ms\":").number(ms);
            }
            writer.raw("}");
            if json.len() <= MAX_REASON_LEN {
                return String::from_utf8(json).unwrap_or_default();
            }
            // Escapes make one character up to six bytes: drop characters until the text fits.
            let mut chars = reason.chars();
            chars.next_back();
            reason = chars.as_str();
        }
    }
}

/// A close payload has 125 bytes, two of them the code.
const MAX_REASON_LEN: usize = 123;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_fits_into_a_control_frame() {
        for reason in ["bye", &"x".repeat(500), &"\u{1}".repeat(200), &"ä\"".repeat(99)] {
            let close = CloseReason { code: CloseCode::KICKED, reason: reason.into(), retry_after_ms: Some(30_000) };
            let json = close.to_json();
            assert!(json.len() <= MAX_REASON_LEN);
            let value: serde_json::Value = serde_json::from_str(&json).unwrap();
            assert_eq!(value["reconnect"], false);
            assert!(reason.starts_with(value["reason"].as_str().unwrap()));
        }
    }

    #[test]
    fn codes_tell_whether_to_come_back() {
        for code in [1000, 1001, 1006, 1011, 3001, 3005, 3012, 4000, 4499] {
            assert!(CloseCode(code).reconnect(), "{code}");
        }
        for code in [1009, 3500, 3502, 3999, 4500, 4999] {
            assert!(!CloseCode(code).reconnect(), "{code}");
        }
    }
}
