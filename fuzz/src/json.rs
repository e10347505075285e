//! JSON objects member by member, with doubles, each value as it was written.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// The members of an object in their order.
#[derive(Debug)]
pub(crate) struct Members<'j>(pub(crate) Vec<(String, &'j RawValue)>);

impl<'j> Members<'j> {
    /// Reads an object.
    pub(crate) fn parse(json: &'j str) -> serde_json::Result<Self> {
        serde_json::from_str(json)
    }

    /// The text of a member's value.
    pub(crate) fn get(&self, name: &str) -> Option<&'j str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.get())
    }

    /// The value of a member that is a text.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        self.get(name).and_then(|json| serde_json::from_str(json).ok())
    }

    /// Whether a member stands there twice.
    pub(crate) fn has_double(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.0.iter().filter(|(n, _)| n == name).count() > 1)
    }
}

impl<'de: 'j, 'j> Deserialize<'de> for Members<'j> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Collect)
    }
}

/// How deep a value nests; a single value has depth 0.
pub(crate) fn depth(value: &serde_json::Value) -> usize {
    match value {
        serde_json::Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        serde_json::Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}
