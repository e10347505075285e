//! How a typed value is read from a tree, shown and compared with its range.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use secrecy::ExposeSecret;
use serde_json::Value as Json;

use crate::error::ProblemKind;
use crate::node::{Node, Value};
use crate::values::{
    BusType, ByteSize, DemoPage, Durability, IpRange, LogFormat, LogLevel, NodeName, ParseError, QueuePolicy,
    RedisMode, Secret, StorageKind, UserPolicy, bare_number, format_duration, one_of, parse_duration, quoted,
};

/// The least and the largest allowed value, as text.
pub(crate) type Range = Option<(&'static str, &'static str)>;

/// What is wrong with one value of a key.
#[derive(Debug)]
pub(crate) struct Wrong {
    /// Where inside the value: `[2]`, `.X-Token`, or nothing.
    pub(crate) at: String,
    pub(crate) kind: ProblemKind,
    pub(crate) message: String,
}

impl Wrong {
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self { at: String::new(), kind: ProblemKind::Invalid, message: message.into() }
    }

    /// A value outside of its range.
    pub(crate) fn out_of_range(shown: &str, range: Range) -> Self {
        let allowed = match range {
            Some((least, most)) => format!("allowed is {least} to {most}"),
            None => "it is too large or below 0".to_owned(),
        };
        Self {
            at: String::new(),
            kind: ProblemKind::OutOfRange,
            message: format!("{shown} is out of range, {allowed}"),
        }
    }

    fn below(mut self, at: &str) -> Self {
        self.at.insert_str(0, at);
        self
    }
}

impl From<ParseError> for Wrong {
    fn from(error: ParseError) -> Self {
        Self::invalid(error.0)
    }
}

/// A type that a key of the settings can have.
pub(crate) trait Field: Sized + PartialEq {
    /// Whether values must never be shown.
    const SECRET: bool = false;

    /// Names the type for the documentation.
    fn kind() -> String;

    /// Reads the text form: defaults, bounds of ranges and environment variables.
    fn from_text(text: &str) -> Result<Self, Wrong>;

    /// Reads a value of a file or of the environment; reports everything that is wrong with it.
    fn from_node(node: &Node, range: Range) -> Result<Self, Vec<Wrong>> {
        let _ = range;
        let read = match &node.value {
            Value::Text(text) | Value::Variable(text) => Self::from_text(text),
            _ => Err(expected_text(node, Self::SECRET)),
        };
        read.map_err(|wrong| vec![wrong])
    }

    /// Writes the value in the user's form, secrets included.
    fn to_json(&self) -> Json;

    /// Writes the value in the user's form, secrets masked.
    fn masked(&self) -> Json {
        self.to_json()
    }

    /// Returns whether the value lies in the range.
    fn within(&self, least: &str, most: &str) -> bool {
        let _ = (least, most);
        true
    }
}

fn expected_text(node: &Node, secret: bool) -> Wrong {
    let hint = match node.value {
        Value::Bool(_) | Value::Int(_) | Value::Float(_) => "; put it in quotes",
        _ => "",
    };
    Wrong::invalid(format!("expected text, found {}{hint}", node.describe(secret)))
}

fn between<T: Field + PartialOrd>(value: &T, least: &str, most: &str) -> bool {
    match (T::from_text(least), T::from_text(most)) {
        (Ok(least), Ok(most)) => *value >= least && *value <= most,
        _ => false,
    }
}

impl Field for Duration {
    fn kind() -> String {
        "duration".to_owned()
    }

    fn from_text(text: &str) -> Result<Self, Wrong> {
        Ok(parse_duration(text)?)
    }

    fn from_node(node: &Node, _: Range) -> Result<Self, Vec<Wrong>> {
        let read = match &node.value {
            Value::Text(text) | Value::Variable(text) => Self::from_text(text),
            Value::Int(number) => Err(bare_number(&number.to_string()).into()),
            Value::Float(number) => Err(bare_number(&number.to_string()).into()),
            _ => Err(Wrong::invalid(format!("{}, found {}", crate::values::DURATION_EXPECTED, node.describe(false)))),
        };
        read.map_err(|wrong| vec![wrong])
    }

    fn to_json(&self) -> Json {
        format_duration(*self).into()
    }

    fn within(&self, least: &str, most: &str) -> bool {
        between(self, least, most)
    }
}

impl Field for ByteSize {
    fn kind() -> String {
        "size".to_owned()
    }

    fn from_text(text: &str) -> Result<Self, Wrong> {
        Ok(text.parse()?)
    }

    fn from_node(node: &Node, range: Range) -> Result<Self, Vec<Wrong>> {
        let read = match &node.value {
            Value::Text(text) | Value::Variable(text) => Self::from_text(text),
            Value::Int(bytes) => {
                u64::try_from(*bytes).map(Self::new).map_err(|_| Wrong::out_of_range(&bytes.to_string(), range))
            }
            _ => Err(Wrong::invalid(format!("{}, found {}", crate::values::SIZE_EXPECTED, node.describe(false)))),
        };
        read.map_err(|wrong| vec![wrong])
    }

    fn to_json(&self) -> Json {
        self.to_string().into()
    }

    fn within(&self, least: &str, most: &str) -> bool {
        between(self, least, most)
    }
}

/// Whole numbers differ only in their width and sign.
macro_rules! whole_number {
    ($($ty:ty),*) => { $(
        impl Field for $ty {
            fn kind() -> String {
                "whole number".to_owned()
            }

            fn from_text(text: &str) -> Result<Self, Wrong> {
                text.trim().parse().map_err(|_| {
                    Wrong::invalid(format!("expected a whole number, found {}", quoted(text)))
                })
            }

            fn from_node(node: &Node, range: Range) -> Result<Self, Vec<Wrong>> {
                let number = match &node.value {
                    Value::Int(number) => Some(*number),
                    // A number that does not fit is out of range rather than no number.
                    Value::Variable(text) => text.trim().parse().ok(),
                    _ => None,
                };
                let read = match number {
                    Some(number) => Self::try_from(number)
                        .map_err(|_| Wrong::out_of_range(&number.to_string(), range)),
                    None => Err(Wrong::invalid(format!(
                        "expected a whole number, found {}",
                        node.describe(false)
                    ))),
                };
                read.map_err(|wrong| vec![wrong])
            }

            fn to_json(&self) -> Json {
                (*self).into()
            }

            fn within(&self, least: &str, most: &str) -> bool {
                between(self, least, most)
            }
        }
    )* };
}

whole_number!(u32, u64, i64);

impl Field for f64 {
    fn kind() -> String {
        "number".to_owned()
    }

    fn from_text(text: &str) -> Result<Self, Wrong> {
        text.trim().parse().map_err(|_| Wrong::invalid(format!("expected a number, found {}", quoted(text))))
    }

    #[allow(clippy::cast_precision_loss, reason = "ranges of such keys end far below 2^53")]
    fn from_node(node: &Node, _: Range) -> Result<Self, Vec<Wrong>> {
        match &node.value {
            Value::Float(number) => Ok(*number),
            Value::Int(number) => Ok(*number as Self),
            Value::Variable(text) => Self::from_text(text).map_err(|wrong| vec![wrong]),
            _ => Err(vec![Wrong::invalid(format!("expected a number, found {}", node.describe(false)))]),
        }
    }

    fn to_json(&self) -> Json {
        (*self).into()
    }

    fn within(&self, least: &str, most: &str) -> bool {
        between(self, least, most)
    }
}

impl Field for bool {
    fn kind() -> String {
        "true or false".to_owned()
    }

    fn from_text(text: &str) -> Result<Self, Wrong> {
        match text.trim().to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => Ok(true),
            "false" | "no" | "off" | "0" => Ok(false),
            _ => Err(Wrong::invalid(format!("expected true or false, found {}", quoted(text)))),
        }
    }

    fn from_node(node: &Node, _: Range) -> Result<Self, Vec<Wrong>> {
        match &node.value {
            Value::Bool(value) => Ok(*value),
            Value::Variable(text) => Self::from_text(text).map_err(|wrong| vec![wrong]),
            _ => Err(vec![Wrong::invalid(format!("expected true or false, found {}", node.describe(false)))]),
        }
    }

    fn to_json(&self) -> Json {
        (*self).into()
    }
}

impl Field for String {
    fn kind() -> String {
        "text".to_owned()
    }

    fn from_text(text: &str) -> Result<Self, Wrong> {
        Ok(text.to_owned())
    }

    fn to_json(&self) -> Json {
        self.as_str().into()
    }
}

impl Field for NodeName {
    fn kind() -> String {
        "text".to_owned()
    }

    fn from_text(text: &str) -> Result<Self, Wrong> {
        Ok(Self::new(text)?)
    }

    fn to_json(&self) -> Json {
        self.as_str().into()
    }
}

impl Field for PathBuf {
    fn kind() -> String {
        "path".to_owned()
    }

    fn from_text(text: &str) -> Result<Self, Wrong> {
        if text.is_empty() {
            return Err(Wrong::invalid("expected a path, found no text"));
        }
        Ok(Self::from(text))
    }

    fn to_json(&self) -> Json {
        self.to_string_lossy().into()
    }
}

impl Field for SocketAddr {
    fn kind() -> String {
        "address".to_owned()
    }

    fn from_text(text: &str) -> Result<Self, Wrong> {
        let trimmed = text.trim();
        if let Ok(address) = trimmed.parse() {
            return Ok(address);
        }
        let port = |text: &str| text.parse::<u16>().ok();
        if let Some(port) = trimmed.strip_prefix("localhost:").and_then(port) {
            return Ok(Self::from((Ipv4Addr::LOCALHOST, port)));
        }
        let hint = match trimmed.strip_prefix(':').and_then(port) {
            Some(port) => format!("; for all interfaces write \"0.0.0.0:{port}\""),
            None => String::new(),
        };
        Err(Wrong::invalid(format!(
            "expected an IP address and port such as \"127.0.0.1:8080\", found {}{hint}",
            quoted(text)
        )))
    }

    fn to_json(&self) -> Json {
        self.to_string().into()
    }
}

impl Field for IpRange {
    fn kind() -> String {
        "IP address or range".to_owned()
    }

    fn from_text(text: &str) -> Result<Self, Wrong> {
        Ok(text.parse()?)
    }

    fn to_json(&self) -> Json {
        self.to_string().into()
    }
}

impl Field for Secret {
    const SECRET: bool = true;

    fn kind() -> String {
        "secret text".to_owned()
    }

    fn from_text(text: &str) -> Result<Self, Wrong> {
        Ok(Self::new(text))
    }

    fn to_json(&self) -> Json {
        self.expose_secret().into()
    }

    fn masked(&self) -> Json {
        Self::masked(self).into()
    }
}

/// Closed sets are read and shown as their words.
macro_rules! choices {
    ($($ty:ty),*) => { $(
        impl Field for $ty {
            fn kind() -> String {
                let words: Vec<&str> = Self::ALL.iter().map(|value| value.as_str()).collect();
                one_of(&words)
            }

            fn from_text(text: &str) -> Result<Self, Wrong> {
                Ok(text.trim().parse()?)
            }

            fn from_node(node: &Node, _: Range) -> Result<Self, Vec<Wrong>> {
                let read = match &node.value {
                    Value::Text(text) | Value::Variable(text) => Self::from_text(text),
                    // TOML and JSON have a word of their own for a switch.
                    Value::Bool(on) => Self::from_text(if *on { "on" } else { "off" })
                        .map_err(|_| expected_choice::<Self>(node)),
                    _ => Err(expected_choice::<Self>(node)),
                };
                read.map_err(|wrong| vec![wrong])
            }

            fn to_json(&self) -> Json {
                self.as_str().into()
            }
        }
    )* };
}

choices!(QueuePolicy, UserPolicy, StorageKind, Durability, DemoPage, BusType, RedisMode, LogLevel, LogFormat);

fn expected_choice<T: Field>(node: &Node) -> Wrong {
    Wrong::invalid(format!("expected {}, found {}", T::kind(), node.describe(false)))
}

/// Not set is nothing in a file, and an empty text everywhere.
impl<T: Field> Field for Option<T> {
    const SECRET: bool = T::SECRET;

    fn kind() -> String {
        T::kind()
    }

    fn from_text(text: &str) -> Result<Self, Wrong> {
        if text.is_empty() { Ok(None) } else { T::from_text(text).map(Some) }
    }

    fn from_node(node: &Node, range: Range) -> Result<Self, Vec<Wrong>> {
        match &node.value {
            Value::Null => Ok(None),
            Value::Text(text) | Value::Variable(text) if text.is_empty() => Ok(None),
            _ => T::from_node(node, range).map(Some),
        }
    }

    fn to_json(&self) -> Json {
        self.as_ref().map_or(Json::Null, T::to_json)
    }

    fn masked(&self) -> Json {
        self.as_ref().map_or(Json::Null, T::masked)
    }

    fn within(&self, least: &str, most: &str) -> bool {
        self.as_ref().is_none_or(|value| value.within(least, most))
    }
}

/// Lists are comma separated in an environment variable.
impl<T: Field> Field for Vec<T> {
    const SECRET: bool = T::SECRET;

    fn kind() -> String {
        format!("list of {}", T::kind())
    }

    fn from_text(text: &str) -> Result<Self, Wrong> {
        text.split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .enumerate()
            .map(|(at, item)| T::from_text(item).map_err(|wrong| wrong.below(&format!("[{at}]"))))
            .collect()
    }

    fn from_node(node: &Node, range: Range) -> Result<Self, Vec<Wrong>> {
        let items = match &node.value {
            Value::List(items) => items,
            Value::Variable(text) => return Self::from_text(text).map_err(|wrong| vec![wrong]),
            _ => {
                return Err(vec![Wrong::invalid(format!("expected a list, found {}", node.describe(T::SECRET)))]);
            }
        };
        collect(
            items
                .iter()
                .enumerate()
                .map(|(at, item)| T::from_node(item, range).map_err(|wrongs| (format!("[{at}]"), wrongs))),
        )
    }

    fn to_json(&self) -> Json {
        self.iter().map(T::to_json).collect()
    }

    fn masked(&self) -> Json {
        self.iter().map(T::masked).collect()
    }

    fn within(&self, least: &str, most: &str) -> bool {
        self.iter().all(|value| value.within(least, most))
    }
}

/// Maps are `name=value,name=value` in an environment variable.
impl<T: Field> Field for BTreeMap<String, T> {
    const SECRET: bool = T::SECRET;

    fn kind() -> String {
        format!("map of names to {}", T::kind())
    }

    fn from_text(text: &str) -> Result<Self, Wrong> {
        text.split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .enumerate()
            .map(|(at, item)| {
                let Some((name, value)) = item.split_once('=') else {
                    return Err(Wrong::invalid("expected name=value").below(&format!("[{at}]")));
                };
                let name = name.trim();
                let value = T::from_text(value.trim());
                value.map(|value| (name.to_owned(), value)).map_err(|wrong| wrong.below(&format!(".{name}")))
            })
            .collect()
    }

    fn from_node(node: &Node, range: Range) -> Result<Self, Vec<Wrong>> {
        let entries = match &node.value {
            Value::Map(entries) => entries,
            Value::Variable(text) => return Self::from_text(text).map_err(|wrong| vec![wrong]),
            _ => {
                return Err(vec![Wrong::invalid(format!("expected a map, found {}", node.describe(T::SECRET)))]);
            }
        };
        collect(entries.iter().map(|(name, item)| {
            T::from_node(item, range).map(|value| (name.clone(), value)).map_err(|wrongs| (format!(".{name}"), wrongs))
        }))
    }

    fn to_json(&self) -> Json {
        self.iter().map(|(name, value)| (name.clone(), value.to_json())).collect()
    }

    fn masked(&self) -> Json {
        self.iter().map(|(name, value)| (name.clone(), value.masked())).collect()
    }

    fn within(&self, least: &str, most: &str) -> bool {
        self.values().all(|value| value.within(least, most))
    }
}

/// Collects all items, or else everything that is wrong with any of them.
fn collect<I, C: FromIterator<I>>(
    items: impl Iterator<Item = Result<I, (String, Vec<Wrong>)>>,
) -> Result<C, Vec<Wrong>> {
    let mut wrongs = Vec::new();
    let good: Vec<I> = items
        .filter_map(|item| match item {
            Ok(item) => Some(item),
            Err((at, found)) => {
                wrongs.extend(found.into_iter().map(|wrong| wrong.below(&at)));
                None
            }
        })
        .collect();
    if wrongs.is_empty() { Ok(good.into_iter().collect()) } else { Err(wrongs) }
}
