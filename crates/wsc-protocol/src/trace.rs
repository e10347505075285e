//! Which distributed trace something belongs to (W3C Trace Context, Level 1).

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer};

/// The header `traceparent` of W3C Trace Context: a trace and the span of it that caused what carries this.
///
/// As text it is `00-<trace id>-<span id>-<flags>`. Versions above 00 are read as far as 00 goes, and written as 00.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct TraceContext {
    /// The whole trace; never all zero.
    pub trace_id: u128,
    /// The span within it; never zero.
    pub span_id: u64,
    /// Whether the caller records the trace.
    pub is_sampled: bool,
}

impl TraceContext {
    /// A context; `None` where one of the ids is zero, which means *none* in the standard.
    pub fn new(trace_id: u128, span_id: u64, is_sampled: bool) -> Option<Self> {
        (trace_id != 0 && span_id != 0).then_some(Self { trace_id, span_id, is_sampled })
    }

    /// The context that something caused by the span `span_id` of this trace carries; this one where it is zero.
    #[must_use]
    pub fn child(self, span_id: u64) -> Self {
        Self { span_id: if span_id == 0 { self.span_id } else { span_id }, ..self }
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, u8::from(self.is_sampled))
    }
}

impl FromStr for TraceContext {
    type Err = InvalidTraceContext;

    fn from_str(text: &str) -> Result<Self, InvalidTraceContext> {
        let mut parts = text.trim().split('-');
        let mut hex = |len: usize| {
            let part = parts.next().filter(|part| part.len() == len).ok_or(InvalidTraceContext)?;
            // Upper case is not allowed, and from_str_radix would take a sign.
            let is_hex = part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            if is_hex {
                u128::from_str_radix(part, 16).map_err(|_| InvalidTraceContext)
            } else {
                Err(InvalidTraceContext)
            }
        };
        let (version, trace_id, span_id, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
        let has_more = parts.next().is_some();
        if version == 0xff || (version == 0 && has_more) {
            return Err(InvalidTraceContext);
        }
        Self::new(trace_id, span_id as u64, flags & 1 != 0).ok_or(InvalidTraceContext)
    }
}

impl Serialize for TraceContext {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The text is no `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no traceparent of W3C Trace Context")]
pub struct InvalidTraceContext;

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn reads_what_it_writes() {
        let context: TraceContext = GOOD.parse().unwrap();
        assert!(context.is_sampled);
        assert_eq!(context.to_string(), GOOD);
        assert_eq!(context.child(7).to_string(), "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000007-01");
        let later = GOOD.replacen("00", "cc", 1) + "-more";
        assert_eq!(later.parse::<TraceContext>().unwrap().to_string(), GOOD);
    }

    #[test]
    fn refuses_what_the_standard_refuses() {
        for bad in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
        ] {
            assert_eq!(bad.parse::<TraceContext>(), Err(InvalidTraceContext), "{bad}");
        }
    }
}
