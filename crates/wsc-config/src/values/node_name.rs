//! The name of a node.

use std::fmt;

use super::{ParseError, quoted};

/// The name of this node: 1–128 bytes of text without control characters.
///
/// An empty text stands for the host's name, which is also the default.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeName(String);

impl NodeName {
    /// Takes a name as it was written; an empty one becomes the host's name.
    ///
    /// # Errors
    ///
    /// A name of more than 128 bytes or with control characters.
    pub fn new(name: &str) -> Result<Self, ParseError> {
        if name.is_empty() {
            return Ok(Self::of_host());
        }
        if is_valid(name) {
            Ok(Self(name.to_owned()))
        } else {
            Err(ParseError(format!(
                "expected 1 to 128 bytes of text without control characters, found {}",
                quoted(name)
            )))
        }
    }

    /// Takes the host's name, or `node` where the host has none that serves.
    #[must_use]
    pub fn of_host() -> Self {
        let name = host_name().filter(|name| is_valid(name));
        Self(name.unwrap_or_else(|| "node".to_owned()))
    }

    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_valid(name: &str) -> bool {
    (1..=128).contains(&name.len()) && !name.chars().any(char::is_control)
}

#[cfg(unix)]
fn host_name() -> Option<String> {
    let uname = rustix::system::uname();
    uname.nodename().to_str().ok().map(str::to_owned)
}

#[cfg(not(unix))]
fn host_name() -> Option<String> {
    std::env::var("COMPUTERNAME").ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_to_the_host() {
        assert_eq!(NodeName::new("").unwrap(), NodeName::of_host());
        assert!(is_valid(NodeName::of_host().as_str()));
    }

    #[test]
    fn refuses_what_cannot_be_an_id() {
        assert!(NodeName::new(&"x".repeat(129)).is_err());
        assert!(NodeName::new("a\nb").is_err());
        assert_eq!(NodeName::new("node-1").unwrap().as_str(), "node-1");
    }
}
