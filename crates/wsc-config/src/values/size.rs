//! Sizes in bytes as people write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{ParseError, quoted};

/// A number of bytes, written as `64KiB`, `1MiB`, `4GiB`, `10MB` or a bare number.
///
/// `KiB`, `MiB`, `GiB`, `TiB` count by 1024, `KB`, `MB`, `GB`, `TB` by 1000; the case does not matter.
/// [`Display`](fmt::Display) picks the largest unit that leaves no remainder, so what it writes reads
/// back to the same size.
///
/// ```
/// use wsc_config::ByteSize;
///
/// let size: ByteSize = "64KiB".parse()?;
/// assert_eq!(size.as_u64(), 65_536);
/// assert_eq!(size.to_string(), "64KiB");
/// # Ok::<(), wsc_config::ParseError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

impl ByteSize {
    /// Makes a size of so many bytes.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Returns the number of bytes.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Returns the number of bytes for use with buffers, at most [`usize::MAX`].
    #[must_use]
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0;
        for (name, size) in UNITS {
            if bytes >= size && bytes.is_multiple_of(size) {
                return write!(f, "{}{name}", bytes / size);
            }
        }
        write!(f, "{bytes}B")
    }
}

impl FromStr for ByteSize {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = || ParseError(format!("{EXPECTED}, found {}", quoted(text)));
        let trimmed = text.trim();
        if trimmed.is_empty() {
            return Err(ParseError(format!("{EXPECTED}, found no text")));
        }
        let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = trimmed.split_at(digits);
        let unit = unit.trim();
        let size = if unit.is_empty() || unit.eq_ignore_ascii_case("b") {
            1
        } else {
            UNITS.iter().find(|(name, _)| unit.eq_ignore_ascii_case(name)).map(|(_, size)| *size).ok_or_else(wrong)?
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        number.checked_mul(size).map(Self).ok_or_else(wrong)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Bytes(u64),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Bytes(bytes) => Ok(Self(bytes)),
            Form::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

pub(crate) const EXPECTED: &str = "expected a size such as \"64KiB\", \"10MB\" or a number of bytes";

/// Largest first, and at equal rank the binary one, which is the usual one here.
const UNITS: [(&str, u64); 8] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1_000),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, bytes) in [
            ("64KiB", 65_536),
            ("1MiB", 1_048_576),
            ("4GiB", 4_294_967_296),
            ("10MB", 10_000_000),
            ("1 kb", 1_000),
            ("512", 512),
            ("512B", 512),
            ("0", 0),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn refuses_the_rest() {
        for text in ["64K", "1.5MiB", "-1", "KiB", "99999999TiB", "many"] {
            assert_eq!(
                text.parse::<ByteSize>().unwrap_err().to_string(),
                format!("expected a size such as \"64KiB\", \"10MB\" or a number of bytes, found \"{text}\"")
            );
        }
    }

    #[test]
    fn is_text_or_a_number_in_serde() {
        assert_eq!(serde_json::from_str::<Vec<ByteSize>>(r#"["1KiB", 7]"#).unwrap(), [ByteSize(1024), ByteSize(7)]);
        assert_eq!(serde_json::to_string(&ByteSize(2048)).unwrap(), "\"2KiB\"");
    }

    proptest::proptest! {
        #[test]
        fn round_trips(bytes: u64) {
            let size = ByteSize(bytes);
            proptest::prop_assert_eq!(size.to_string().parse(), Ok(size));
        }

        #[test]
        fn round_trips_round_figures(count in 0..1_000_000_u64, unit in 0..UNITS.len()) {
            let size = ByteSize(count * UNITS[unit].1);
            proptest::prop_assert_eq!(size.to_string().parse(), Ok(size));
        }

        #[test]
        fn never_panics(text in ".*") {
            let _ = text.parse::<ByteSize>();
        }
    }
}
