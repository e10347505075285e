//! Settings written out: running values with secrets masked, and the commented default file.

use std::fmt::Write as _;

use serde_json::{Map, Value as Json};
use yaml_rust2::Yaml;

use crate::schema::{Key, keys};
use crate::settings::{SECTIONS, Settings};

/// Writes the running values as nested JSON, every key, in the user's form (`"25s"`, `"64KiB"`).
///
/// In the place of secrets stand stars and a fingerprint, so that two nodes can be compared.
#[must_use]
pub fn current_config(settings: &Settings) -> Json {
    nested(settings, |key| key.masked)
}

/// Nests one value per key.
pub(crate) fn nested(settings: &Settings, show: fn(&Key) -> fn(&Settings) -> Json) -> Json {
    let mut root = Json::Object(Map::new());
    for key in keys() {
        // Indexing makes the maps on the way; no key stands where another has its section.
        let place = key.path.split('.').fold(&mut root, |map, name| &mut map[name]);
        *place = show(key)(settings);
    }
    root
}

/// Writes a complete settings file in YAML: every key with its meaning, type, range, default and
/// when a change takes effect.
///
/// It loads back to the defaults. Keys without a default stand in it as comments.
#[must_use]
pub fn default_config() -> String {
    write_yaml(&Settings::default(), |key, value| value.is_null() || key.path == "node_id")
}

/// Writes a commented file with the values of `settings`, secrets included. Keys for which `comment`
/// says so are written as comments.
pub(crate) fn write_yaml(settings: &Settings, comment: fn(&Key, &Json) -> bool) -> String {
    let defaults = Settings::default();
    let mut out = String::from(HEAD);
    for section in SECTIONS {
        let depth = 1 + section.path.split('.').filter(|part| !part.is_empty()).count();
        if section.path.is_empty() {
            out.push_str("wsc:\n");
        } else {
            let name = section.path.rsplit('.').next().unwrap_or_default();
            out.push('\n');
            write_comment(&mut out, depth - 1, section.doc);
            indent(&mut out, depth - 1);
            let _ = writeln!(out, "{name}:");
        }
        for (at, key) in (section.keys)().iter().enumerate() {
            if at > 0 {
                out.push('\n');
            }
            let value = (key.exposed)(settings);
            write_comment(&mut out, depth, key.doc);
            write_comment(&mut out, depth, &facts(key));
            indent(&mut out, depth);
            let name = key.path.rsplit('.').next().unwrap_or_default();
            let off = if comment(key, &value) { "# " } else { "" };
            let value = match &value {
                Json::Null => String::new(),
                // A default as the table writes it: 60s, not 1m.
                Json::String(_) if (key.same)(settings, &defaults) && !key.default.is_empty() => {
                    format!(" {}", scalar(key.default))
                }
                value => format!(" {}", flow(value)),
            };
            let _ = writeln!(out, "{off}{name}:{value}");
        }
    }
    out
}

const HEAD: &str = "\
# Settings of wsc, every key with its default. Keep what you change, the rest may go.
#
# Durations are text with a unit (100ms, 10s, 5m, 24h, 7d), sizes text (64KiB, 10MB) or bytes.
# Environment variables win over this file: WSC__ACK_TIMEOUT=10s, WSC__QUEUE__POLICY=drop_oldest.
# \"live\" changes apply when the file is reloaded, \"restart\" ones at the next start.
";

/// One line of facts about a key: type, range, default, reload.
fn facts(key: &Key) -> String {
    let mut facts = key.kind();
    if let Some((least, most)) = key.range {
        let _ = write!(facts, ", {least} to {most}");
    }
    match key.default_text() {
        "" => facts.push_str("; default: none"),
        default => {
            let _ = write!(facts, "; default: {default}");
        }
    }
    let _ = write!(facts, "; {}", key.reload);
    facts
}

fn indent(out: &mut String, depth: usize) {
    out.extend(std::iter::repeat_n("  ", depth));
}

/// Writes a text as comment lines of at most 100 columns.
fn write_comment(out: &mut String, depth: usize, text: &str) {
    let width = 98 - 2 * depth;
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && line.len() + 1 + word.len() > width {
            indent(out, depth);
            let _ = writeln!(out, "# {line}");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    indent(out, depth);
    let _ = writeln!(out, "# {line}");
}

/// Writes a value on one line.
fn flow(value: &Json) -> String {
    match value {
        Json::Null => "~".to_owned(),
        Json::Bool(_) | Json::Number(_) => value.to_string(),
        Json::String(text) => scalar(text),
        Json::Array(items) => {
            format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", "))
        }
        Json::Object(map) => {
            let entries: Vec<_> = map.iter().map(|(name, value)| format!("{}: {}", quote(name), flow(value))).collect();
            format!("{{{}}}", entries.join(", "))
        }
    }
}

/// Writes text plain where that reads back as the same text, else in quotes.
fn scalar(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '/'))
        && !text.ends_with(':')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._/:-".contains(c))
        && matches!(Yaml::from_str(text), Yaml::String(_));
    if plain { text.to_owned() } else { quote(text) }
}

/// Writes text as a double-quoted YAML scalar. Everything unusual is escaped, since YAML folds and
/// drops some characters even between quotes.
fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            ' '..='~' => out.push(c),
            _ if c.is_alphanumeric() => out.push(c),
            _ => {
                let code = u32::from(c);
                let _ = if code > 0xffff { write!(out, "\\U{code:08x}") } else { write!(out, "\\u{code:04x}") };
            }
        }
    }
    out.push('"');
    out
}
