//! The table of all keys: the one source of checks, default file, reference page, diff and dump.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::OnceLock;

use serde_json::Value as Json;

use crate::field::{Range, Wrong};
use crate::node::Node;
use crate::settings::{SECTIONS, Settings};

/// When a changed value takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reload {
    /// At once.
    Live,
    /// At the next start.
    Restart,
    /// At once, but setting it for the first time or removing it waits for the next start.
    LiveOnceSet,
}

impl fmt::Display for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Live => "live",
            Self::Restart => "restart",
            Self::LiveOnceSet => "live; switching it on or off: restart",
        })
    }
}

/// One key of the settings, as the documentation describes it.
pub struct Key {
    pub(crate) path: &'static str,
    pub(crate) doc: &'static str,
    pub(crate) default: &'static str,
    pub(crate) range: Range,
    pub(crate) reload: Reload,
    pub(crate) secret: bool,
    pub(crate) kind: fn() -> String,
    pub(crate) read: fn(&mut Settings, &Node, Range) -> Result<(), Vec<Wrong>>,
    pub(crate) check: fn(&Settings, Range) -> Vec<Wrong>,
    pub(crate) same: fn(&Settings, &Settings) -> bool,
    pub(crate) copy: fn(&mut Settings, &Settings),
    pub(crate) exposed: fn(&Settings) -> Json,
    pub(crate) masked: fn(&Settings) -> Json,
}

impl Key {
    /// Returns the dotted path below `wsc`, such as `queue.policy`.
    #[must_use]
    pub fn path(&self) -> &'static str {
        self.path
    }

    /// Returns what the key means, in full sentences.
    #[must_use]
    pub fn doc(&self) -> &'static str {
        self.doc.trim()
    }

    /// Names the type: `duration`, `size`, `whole number`, `one of …`.
    #[must_use]
    pub fn kind(&self) -> String {
        (self.kind)()
    }

    /// Returns the default as text; empty where the key is not set by default.
    #[must_use]
    pub fn default_text(&self) -> &'static str {
        if self.path == "node_id" { "the host's name" } else { self.default }
    }

    /// Returns the least and the largest allowed value as text, where the key has a range.
    #[must_use]
    pub fn range(&self) -> Option<(&'static str, &'static str)> {
        self.range
    }

    /// Returns when a changed value takes effect.
    #[must_use]
    pub fn reload(&self) -> Reload {
        self.reload
    }

    /// Returns whether the value is a secret.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        self.secret
    }

    /// Returns the environment variable that sets the key, such as `WSC__QUEUE__POLICY`.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("WSC__{}", self.path.replace('.', "__").to_ascii_uppercase())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("path", &self.path)
            .field("kind", &self.kind())
            .field("default", &self.default_text())
            .field("range", &self.range)
            .field("reload", &self.reload)
            .finish_non_exhaustive()
    }
}

/// Returns every key, section by section in the order of the documentation.
#[must_use]
pub fn keys() -> &'static [Key] {
    static ALL: OnceLock<Vec<Key>> = OnceLock::new();
    ALL.get_or_init(|| SECTIONS.iter().flat_map(|section| (section.keys)()).collect())
}

/// Finds a key by its dotted path.
pub(crate) fn key(path: &str) -> Option<&'static Key> {
    static BY_PATH: OnceLock<BTreeMap<&'static str, &'static Key>> = OnceLock::new();
    BY_PATH.get_or_init(|| keys().iter().map(|key| (key.path, key)).collect()).get(path).copied()
}

/// One section: its path below `wsc` (empty for `wsc` itself), its heading and its keys.
pub(crate) struct Section {
    pub(crate) path: &'static str,
    pub(crate) doc: &'static str,
    pub(crate) keys: fn() -> Vec<Key>,
}

/// Returns whether a section of this path exists.
pub(crate) fn is_section(path: &str) -> bool {
    SECTIONS.iter().any(|section| section.path == path)
}

/// Returns the names that may stand directly in a section: keys and sections below it.
pub(crate) fn names_in(section: &str) -> impl Iterator<Item = &'static str> {
    let sections = SECTIONS.iter().map(|section| section.path).filter(|path| !path.is_empty());
    keys()
        .iter()
        .map(|key| key.path)
        .chain(sections)
        .filter(move |path| path.rsplit_once('.').map_or("", |(above, _)| above) == section)
        .map(|path| path.rsplit_once('.').map_or(path, |(_, name)| name))
}

/// Declares one section of the settings: the public struct, its defaults and its keys.
///
/// A line reads `name: Type = "default" in "least"..="most" where rule => Reload;`. Default and bounds
/// are written as in a settings file; `rule` is a function `fn(&Type) -> Vec<Wrong>`.
macro_rules! section {
    (
        $(#[doc = $sdoc:literal])+
        pub struct $name:ident $place:tt {
            $(
                $(#[doc = $doc:literal])+
                $field:ident : $ty:ty = $default:literal
                    $(in $least:literal ..= $most:literal)?
                    $(where $rule:path)?
                    => $reload:ident;
            )*
        }
        $(with { $( $(#[doc = $subdoc:literal])+ $sub:ident : $subty:ty, )* })?
    ) => {
        $(#[doc = $sdoc])+
        #[derive(Clone, Debug, PartialEq)]
        #[non_exhaustive]
        pub struct $name {
            $(
                $(#[doc = $doc])+
                #[doc = concat!("\n\nDefault: `", $default, "`.")]
                $( #[doc = concat!("Range: `", $least, "` to `", $most, "`.")] )?
                pub $field: $ty,
            )*
            $( $( $(#[doc = $subdoc])+ pub $sub: $subty, )* )?
        }

        impl Default for $name {
            /// The documented defaults.
            fn default() -> Self {
                Self {
                    $( $field: crate::schema::default_value(stringify!($field), $default), )*
                    $( $( $sub: <$subty>::default(), )* )?
                }
            }
        }

        impl $name {
            /// The section's place in the table.
            pub(crate) const SECTION: crate::schema::Section = crate::schema::Section {
                path: crate::schema::section!(@path $place),
                doc: concat!($($sdoc),+),
                keys: || vec![ $( crate::schema::section!(
                    @key $place $field [$ty] $default
                    concat!($($doc),+),
                    [$($least, $most)?] [$($rule)?] $reload
                ), )* ],
            };
        }
    };
    // One key. The place of its section comes as one bracketed tree, since a list of names cannot
    // be repeated inside of a list of fields.
    (
        @key [$($seg:ident).*] $field:ident [$ty:ty] $default:literal
        $doc:expr, [$($bound:literal),*] [$($rule:path)?] $reload:ident
    ) => {
        crate::schema::Key {
            path: concat!($( stringify!($seg), "." , )* stringify!($field)),
            doc: $doc,
            default: $default,
            range: crate::schema::section!(@range $($bound),*),
            reload: crate::schema::Reload::$reload,
            secret: <$ty as crate::field::Field>::SECRET,
            kind: <$ty as crate::field::Field>::kind,
            read: |settings, node, range| {
                let value = <$ty as crate::field::Field>::from_node(node, range)?;
                settings $(.$seg)* .$field = value;
                Ok(())
            },
            check: |settings, range| {
                let value: &$ty = &settings $(.$seg)* .$field;
                let wrongs = crate::schema::in_range(value, range);
                $( let wrongs = if wrongs.is_empty() { $rule(value) } else { wrongs }; )?
                wrongs
            },
            same: |one, other| one $(.$seg)* .$field == other $(.$seg)* .$field,
            copy: |to, from| Clone::clone_from(&mut to $(.$seg)* .$field, &from $(.$seg)* .$field),
            exposed: |settings| crate::field::Field::to_json(&settings $(.$seg)* .$field),
            masked: |settings| crate::field::Field::masked(&settings $(.$seg)* .$field),
        }
    };
    (@path []) => { "" };
    (@path [$one:ident]) => { stringify!($one) };
    (@path [$one:ident . $two:ident]) => { concat!(stringify!($one), ".", stringify!($two)) };
    (@range) => { None };
    (@range $least:literal, $most:literal) => { Some(($least, $most)) };
}

pub(crate) use section;

/// Reads a default out of the table.
///
/// # Panics
///
/// When the table itself is wrong, which a test of this crate finds for every key.
pub(crate) fn default_value<T: crate::field::Field>(name: &str, text: &str) -> T {
    match T::from_text(text) {
        Ok(value) => value,
        Err(wrong) => panic!("default of {name}: {}", wrong.message),
    }
}

/// Compares a value with its range.
pub(crate) fn in_range<T: crate::field::Field>(value: &T, range: Range) -> Vec<Wrong> {
    match range {
        Some((least, most)) if !value.within(least, most) => {
            let shown = match value.to_json() {
                Json::String(text) => text,
                other => other.to_string(),
            };
            vec![Wrong::out_of_range(&shown, range)]
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{Origin, Value};

    #[test]
    fn every_default_reads_and_passes_its_own_check() {
        let settings = Settings::default();
        for key in keys() {
            assert!(!key.doc().is_empty(), "{} has no doc", key.path);
            let wrongs = (key.check)(&settings, key.range);
            assert!(wrongs.is_empty(), "{}: {wrongs:?}", key.path);
        }
    }

    #[test]
    fn every_bound_reads_and_lies_in_its_range() {
        for key in keys() {
            for bound in key.range.iter().flat_map(|(least, most)| [least, most]) {
                let mut settings = Settings::default();
                let node = Node { value: Value::Variable((*bound).to_owned()), origin: Origin::Section };
                (key.read)(&mut settings, &node, key.range).unwrap();
                let wrongs = range_only(key, &settings);
                assert!(wrongs, "{} does not allow its bound {bound}", key.path);
            }
        }
    }

    fn range_only(key: &Key, settings: &Settings) -> bool {
        (key.check)(settings, key.range).iter().all(|wrong| wrong.kind != crate::ProblemKind::OutOfRange)
    }

    #[test]
    fn paths_are_unique_and_sections_known() {
        let mut paths: Vec<_> = keys().iter().map(Key::path).collect();
        paths.sort_unstable();
        let count = paths.len();
        paths.dedup();
        assert_eq!(paths.len(), count);
        for path in paths {
            let above = path.rsplit_once('.').map_or("", |(above, _)| above);
            assert!(is_section(above), "{path}");
        }
    }

    #[test]
    fn names_its_variable() {
        assert_eq!(key("auth.secret_key").unwrap().variable(), "WSC__AUTH__SECRET_KEY");
    }
}
