//! The untyped tree between a source and the typed settings: every value knows where it came from.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::values::quoted;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Origin {
    /// In the `wsc` section.
    Section,
    /// In the profile of this name.
    Profile(Rc<str>),
    /// In the environment variable of this name.
    Variable(Rc<str>),
}

/// One value of a source, with its origin.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) origin: Origin,
}

/// What the source holds there.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    /// Text of an environment variable: it has no type of its own and is read as the key's type.
    Variable(String),
    List(Vec<Node>),
    Map(BTreeMap<String, Node>),
}

impl Node {
    /// An empty section.
    pub(crate) fn empty() -> Self {
        Self { value: Value::Map(BTreeMap::new()), origin: Origin::Section }
    }

    /// Lays another tree over this one: maps key by key, everything else as a whole.
    ///
    /// An empty value (a section whose keys are all commented out) does not hide a section below it.
    pub(crate) fn lay_over(&mut self, upper: Self) {
        match (&mut self.value, upper.value) {
            (Value::Map(_), Value::Null) => {}
            (Value::Map(below), Value::Map(above)) => {
                for (key, node) in above {
                    match below.get_mut(&key) {
                        Some(present) => present.lay_over(node),
                        None => {
                            below.insert(key, node);
                        }
                    }
                }
            }
            (_, value) => {
                self.value = value;
                self.origin = upper.origin;
            }
        }
    }

    /// Finds the origin of the value at a dotted path, or of the nearest value above it.
    pub(crate) fn origin_of(&self, path: &str) -> &Origin {
        let mut node = self;
        for part in path.split('.') {
            let Value::Map(map) = &node.value else { break };
            let Some(next) = map.get(part) else { break };
            node = next;
        }
        &node.origin
    }

    /// Says what was found, for an error; a secret key's value is only named by its type.
    pub(crate) fn describe(&self, secret: bool) -> String {
        match (&self.value, secret) {
            (Value::Null, _) => "nothing".to_owned(),
            (Value::Bool(_), true) => "a boolean".to_owned(),
            (Value::Int(_) | Value::Float(_), true) => "a number".to_owned(),
            (Value::Bool(value), false) => value.to_string(),
            (Value::Int(value), false) => format!("the number {value}"),
            (Value::Float(value), false) => format!("the number {value:?}"),
            (Value::Text(_) | Value::Variable(_), true) => "text".to_owned(),
            (Value::Text(text) | Value::Variable(text), false) => quoted(text),
            (Value::List(_), _) => "a list".to_owned(),
            (Value::Map(_), _) => "a map".to_owned(),
        }
    }
}
