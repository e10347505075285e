//! Values out of a closed set.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{ParseError, quoted};

/// Declares an enum whose variants are words of the settings file.
macro_rules! choice {
    (
        $(#[$meta:meta])*
        pub enum $name:ident { $( $(#[$vmeta:meta])* $variant:ident = $word:literal, )+ }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name { $( $(#[$vmeta])* $variant, )+ }

        impl $name {
            /// All values, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$( Self::$variant, )+];

            /// Returns the word that stands for it in a settings file.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $word, )+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = ParseError;

            fn from_str(text: &str) -> Result<Self, ParseError> {
                match text {
                    $( $word => Ok(Self::$variant), )+
                    _ => Err(ParseError(format!(
                        "expected {}, found {}",
                        one_of(&[$( $word, )+]),
                        quoted(text)
                    ))),
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// Writes `one of a, b, c`.
pub(crate) fn one_of(words: &[&str]) -> String {
    format!("one of {}", words.join(", "))
}

choice! {
    /// What happens when a connection's outbound queue is full (`queue.policy`).
    pub enum QueuePolicy {
        /// The connection is closed with 3008, all that was unsent fails.
        Disconnect = "disconnect",
        /// The oldest unsent message is dropped and a gap is announced.
        DropOldest = "drop_oldest",
        /// The new message is retried, then dropped, and a gap is announced.
        DropNewest = "drop_newest",
        /// User-addressed messages go to the inbox, others as with `drop_oldest`.
        Spill = "spill",
    }
}

choice! {
    /// What happens to one connection too many of a user (`limits.user_policy`).
    pub enum UserPolicy {
        /// The user's oldest connection makes room (close 3505).
        KickOldest = "kick_oldest",
        /// The new connection is refused.
        Refuse = "refuse",
    }
}

choice! {
    /// Where messages are kept (`storage.kind` and the storage of failure handlers).
    pub enum StorageKind {
        /// A database file of this node.
        Embedded = "embedded",
        /// This process's memory: lost at a restart.
        Memory = "memory",
        /// Nowhere: there is no inbox, and `require_ack` is refused.
        None = "none",
    }
}

choice! {
    /// When a commit counts as done (`storage.durability`).
    pub enum Durability {
        /// Written through to the disk: survives a power cut.
        Fsync = "fsync",
        /// Handed to the operating system: survives a crash of the process, not of the machine.
        Os = "os",
    }
}

choice! {
    /// When the demo page at `/` is served (`http.demo_page`).
    pub enum DemoPage {
        /// Only while the hub listens on a loopback address.
        Auto = "auto",
        /// Always.
        On = "on",
        /// Never.
        Off = "off",
    }
}

choice! {
    /// What links the nodes of a cluster (`cluster.bus_type`).
    pub enum BusType {
        /// Nothing: one node alone.
        Noop = "noop",
        /// NATS.
        Nats = "nats",
        /// Redis publish/subscribe.
        Redis = "redis",
    }
}

choice! {
    /// How the Redis servers stand to each other (`cluster.redis.mode`).
    pub enum RedisMode {
        /// One server.
        Single = "single",
        /// A primary that sentinels name.
        Sentinel = "sentinel",
        /// Redis Cluster.
        Cluster = "cluster",
    }
}

choice! {
    /// The least important log line that is still written (`log.level`).
    pub enum LogLevel {
        /// No lines at all.
        Off = "off",
        /// Failures that need somebody.
        Error = "error",
        /// What may become a failure.
        Warn = "warn",
        /// Start, stop, reloads, and other rare facts.
        Info = "info",
        /// Each connection's life.
        Debug = "debug",
        /// Each message's way.
        Trace = "trace",
    }
}

choice! {
    /// The form of the log lines (`log.format`).
    pub enum LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object per line.
        Json = "json",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_its_words() {
        for policy in QueuePolicy::ALL {
            assert_eq!(policy.as_str().parse(), Ok(*policy));
        }
        assert_eq!(
            "drop".parse::<QueuePolicy>().unwrap_err().to_string(),
            "expected one of disconnect, drop_oldest, drop_newest, spill, found \"drop\""
        );
    }
}
