//! Ranges of IP addresses.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{ParseError, quoted};

/// One IP address or a range of them: `10.0.0.7`, `10.0.0.0/8`, `fd00::/8`.
///
/// An IPv4 address that arrives mapped into IPv6 (`::ffff:10.0.0.7`) is looked up as IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IpRange {
    address: IpAddr,
    prefix: u8,
}

impl IpRange {
    /// Returns whether the address lies in the range.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let shift = 32 - u32::from(self.prefix);
                (own.to_bits() ^ other.to_bits()).checked_shr(shift).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let shift = 128 - u32::from(self.prefix);
                (own.to_bits() ^ other.to_bits()).checked_shr(shift).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl fmt::Display for IpRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, prefix } = self;
        if *prefix == width(*address) { write!(f, "{address}") } else { write!(f, "{address}/{prefix}") }
    }
}

impl FromStr for IpRange {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = || {
            ParseError(format!(
                "expected an IP address or range such as \"10.0.0.7\" or \"10.0.0.0/8\", found {}",
                quoted(text)
            ))
        };
        let (address, prefix) = match text.trim().split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text.trim(), None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let prefix = match prefix {
            Some(prefix) => prefix.parse().map_err(|_| wrong())?,
            None => width(address),
        };
        if prefix > width(address) {
            return Err(wrong());
        }
        Ok(Self { address, prefix })
    }
}

impl Serialize for IpRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for IpRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Bits of an address of this family.
const fn width(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> IpRange {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn contains_what_it_names() {
        assert!(range("10.0.0.0/8").contains(ip("10.200.1.1")));
        assert!(!range("10.0.0.0/8").contains(ip("11.0.0.1")));
        assert!(range("10.0.0.0/8").contains(ip("::ffff:10.1.1.1")));
        assert!(range("192.168.0.7").contains(ip("192.168.0.7")));
        assert!(!range("192.168.0.7").contains(ip("192.168.0.8")));
        assert!(range("0.0.0.0/0").contains(ip("1.2.3.4")));
        assert!(!range("0.0.0.0/0").contains(ip("::1")));
        assert!(range("fd00::/8").contains(ip("fd12::1")));
        assert!(!range("fd00::/8").contains(ip("fe80::1")));
        assert!(range("::/0").contains(ip("fe80::1")));
    }

    #[test]
    fn shows_what_was_written_and_refuses_the_rest() {
        for text in ["10.0.0.0/8", "192.168.0.7", "fd00::/8", "::1", "0.0.0.0/0"] {
            assert_eq!(range(text).to_string(), text);
        }
        for text in ["", "10.0.0.0/33", "10.0.0", "localhost", "::1/129", "1.1.1.1/", "1.1.1.1/x"] {
            assert!(text.parse::<IpRange>().is_err(), "{text}");
        }
    }
}
