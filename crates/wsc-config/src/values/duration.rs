//! Durations as people write them.

use std::time::Duration;

use super::{ParseError, quoted};

/// Reads a duration with its unit: `100ms`, `24h`, `1m 30s`.
///
/// Units are `ns`, `us`, `ms`, `s`, `m`, `h`, `d`, `w` and their long names.
///
/// # Errors
///
/// A text without a number or unit, a unit that is not known, or a duration too long to hold. A bare
/// number is refused, since seconds and milliseconds are both a fair guess.
pub fn parse_duration(text: &str) -> Result<Duration, ParseError> {
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return Err(ParseError(format!("{EXPECTED}, found no text")));
    }
    if trimmed.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bare_number(trimmed));
    }
    humantime::parse_duration(trimmed).map_err(|_| ParseError(format!("{EXPECTED}, found {}", quoted(text))))
}

/// Refuses a number that says no unit.
pub(crate) fn bare_number(number: &str) -> ParseError {
    ParseError(format!("{EXPECTED}, found the number {number}: it has no unit, write \"{number}s\" or \"{number}ms\""))
}

/// Writes a duration in its largest unit that leaves no remainder: `25s`, `100ms`, `7d`.
///
/// [`parse_duration`] reads every such text back to the same duration.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    const UNITS: [(u128, &str); 7] = [
        (86_400_000_000_000, "d"),
        (3_600_000_000_000, "h"),
        (60_000_000_000, "m"),
        (1_000_000_000, "s"),
        (1_000_000, "ms"),
        (1_000, "us"),
        (1, "ns"),
    ];
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    for (size, unit) in UNITS {
        let count = nanos / size;
        // humantime reads the count as a u64; beyond that only the two-part form below is left.
        if nanos.is_multiple_of(size) && u64::try_from(count).is_ok() {
            return format!("{count}{unit}");
        }
    }
    format!("{}s {}ns", duration.as_secs(), duration.subsec_nanos())
}

pub(crate) const EXPECTED: &str = "expected a duration such as \"100ms\" or \"24h\"";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, millis) in [
            ("100ms", 100),
            ("24h", 86_400_000),
            ("7d", 604_800_000),
            ("1m 30s", 90_000),
            ("5m", 300_000),
            (" 2 s ", 2_000),
            ("0s", 0),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)));
        }
    }

    #[test]
    fn refuses_a_bare_number_and_says_why() {
        assert_eq!(
            parse_duration("30").unwrap_err().to_string(),
            "expected a duration such as \"100ms\" or \"24h\", found the number 30: it has no \
             unit, write \"30s\" or \"30ms\""
        );
        assert_eq!(
            parse_duration("soon").unwrap_err().to_string(),
            "expected a duration such as \"100ms\" or \"24h\", found \"soon\""
        );
        assert_eq!(
            parse_duration("").unwrap_err().to_string(),
            "expected a duration such as \"100ms\" or \"24h\", found no text"
        );
    }

    #[test]
    fn shows_one_unit() {
        assert_eq!(format_duration(Duration::from_secs(25)), "25s");
        assert_eq!(format_duration(Duration::from_millis(1500)), "1500ms");
        assert_eq!(format_duration(Duration::from_secs(300)), "5m");
        assert_eq!(format_duration(Duration::from_secs(86_400)), "1d");
        assert_eq!(format_duration(Duration::ZERO), "0s");
    }

    proptest::proptest! {
        #[test]
        fn round_trips(secs in 0..u64::MAX / 2, nanos in 0..1_000_000_000_u32) {
            let duration = Duration::new(secs, nanos);
            proptest::prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn never_panics(text in ".*") {
            let _ = parse_duration(&text);
        }
    }
}
