//! Sources: the file's text in one of three formats, and the environment.

mod json;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use config::Source as _;
use yaml_rust2::Yaml;
use yaml_rust2::parser::{Event, Parser};
use yaml_rust2::scanner::{ScanError, TScalarStyle};

use crate::node::{Node, Origin, Value};

/// The format of a settings file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// YAML 1.2, `.yaml` or `.yml`.
    Yaml,
    /// TOML, `.toml`.
    Toml,
    /// JSON, `.json`.
    Json,
}

impl Format {
    /// Tells the format by the end of the file's name.
    #[must_use]
    pub fn from_path(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?;
        match extension.to_ascii_lowercase().as_str() {
            "yaml" | "yml" => Some(Self::Yaml),
            "toml" => Some(Self::Toml),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

/// What may stand at the top level of a file beside `wsc` and the profiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Strictness {
    /// Nothing: the file is the hub's own, so a foreign section is a mistake. Profiles that are
    /// not chosen are checked too.
    Strict,
    /// Anything: the file is an embedding program's, other sections are its own business.
    Lenient,
}

/// Where settings are read from, before the environment is laid over them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// No file at all: every key has its default.
    Defaults,
}

impl Source {
    /// Takes the file that somebody named; else `wsc.yaml` in the working directory where there is
    /// one; else the defaults.
    ///
    /// A named file is taken unseen: whether it can be read shows when it is loaded.
    #[must_use]
    pub fn locate(named: Option<PathBuf>) -> Self {
        Self::locate_in(Path::new("."), named)
    }

    /// Does what [`locate`](Self::locate) does, with another directory for `wsc.yaml`.
    #[must_use]
    pub fn locate_in(directory: &Path, named: Option<PathBuf>) -> Self {
        if let Some(path) = named {
            return Self::File(path);
        }
        let usual = directory.join("wsc.yaml");
        if usual.is_file() { Self::File(usual) } else { Self::Defaults }
    }
}

impl fmt::Display for Source {
    /// Names the source for a log line: the file, or `built-in defaults`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Defaults => f.write_str("built-in defaults"),
        }
    }
}

/// Collects this process's `WSC__…` variables, for [`load`](crate::load()).
///
/// A value that is no Unicode text is passed on in a form that loading refuses by name.
#[must_use]
pub fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(name, _)| name.starts_with(VARIABLE_PREFIX))
        .map(|(name, value)| (name, value.to_string_lossy().into_owned()))
        .collect()
}

/// What the names of the hub's environment variables begin with. The doubled underscore keeps away
/// from variables that a container platform sets by itself, such as `WSC_PORT`.
pub(crate) const VARIABLE_PREFIX: &str = "WSC__";

/// A text that is not well formed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SyntaxError {
    pub(crate) position: Option<(usize, usize)>,
    pub(crate) message: String,
}

/// Reads a file's text to its top-level entries.
pub(crate) fn parse(format: Format, text: &str) -> Result<BTreeMap<String, Node>, SyntaxError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let format = match format {
        Format::Yaml => {
            if guard_yaml(text)? == Contents::Empty {
                return Ok(BTreeMap::new());
            }
            config::FileFormat::Yaml
        }
        Format::Toml => config::FileFormat::Toml,
        Format::Json => {
            serde_json::from_str::<json::Unambiguous>(text).map_err(|error| json_error(&error))?;
            config::FileFormat::Json
        }
    };
    // Only the parsing is the config crate's: its layering works on dotted, lower-cased paths, which
    // would change keys before an error could name them as they were written.
    let table = config::File::from_str(text, format).collect().map_err(syntax_error)?;
    Ok(table.into_iter().map(|(key, value)| (key, Node::from(value))).collect())
}

impl From<config::Value> for Node {
    fn from(value: config::Value) -> Self {
        use config::ValueKind;
        let value = match value.kind {
            ValueKind::Nil => Value::Null,
            ValueKind::Boolean(value) => Value::Bool(value),
            ValueKind::I64(value) => Value::Int(value.into()),
            ValueKind::U64(value) => Value::Int(value.into()),
            ValueKind::I128(value) => Value::Int(value),
            ValueKind::U128(value) => Value::Int(i128::try_from(value).unwrap_or(i128::MAX)),
            ValueKind::Float(value) => Value::Float(value),
            ValueKind::String(value) => Value::Text(value),
            ValueKind::Array(items) => Value::List(items.into_iter().map(Self::from).collect()),
            ValueKind::Table(table) => Value::Map(table.into_iter().map(|(key, value)| (key, value.into())).collect()),
        };
        Self { value, origin: Origin::Section }
    }
}

impl From<serde_json::Value> for Node {
    fn from(value: serde_json::Value) -> Self {
        use serde_json::Value as Json;
        let value = match value {
            Json::Null => Value::Null,
            Json::Bool(value) => Value::Bool(value),
            Json::Number(number) => match number.as_i128() {
                Some(number) => Value::Int(number),
                None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(value) => Value::Text(value),
            Json::Array(items) => Value::List(items.into_iter().map(Self::from).collect()),
            Json::Object(map) => Value::Map(map.into_iter().map(|(key, value)| (key, value.into())).collect()),
        };
        Self { value, origin: Origin::Section }
    }
}

/// Whether a YAML text holds anything but comments.
#[derive(PartialEq)]
enum Contents {
    Empty,
    Something,
}

/// Goes through a YAML text without building anything, for what the loader behind would not survive:
/// it recurses as deep as the text nests, and copies what an alias names.
fn guard_yaml(text: &str) -> Result<Contents, SyntaxError> {
    const DEEPEST: usize = 64;
    const MOST_NODES: usize = 100_000;

    let mut parser = Parser::new_from_str(text);
    let mut open: Vec<(usize, usize)> = Vec::new();
    let mut sizes: BTreeMap<usize, usize> = BTreeMap::new();
    let mut nodes = 0_usize;
    let mut contents = Contents::Empty;
    loop {
        let (event, mark) = parser.next_token().map_err(|error| scan_error(&error))?;
        let refuse = |message: &str| {
            Err(SyntaxError { position: Some((mark.line(), mark.col() + 1)), message: message.to_owned() })
        };
        match event {
            Event::StreamEnd => return Ok(contents),
            Event::Scalar(text, style, anchor, _) => {
                nodes += 1;
                let plain = (style == TScalarStyle::Plain).then(|| Yaml::from_str(&text));
                if matches!(plain, Some(Yaml::Real(number)) if number.parse::<f64>().is_err()) {
                    return refuse("expected a finite number");
                }
                if !(open.is_empty() && matches!(text.as_str(), "" | "~" | "null")) {
                    contents = Contents::Something;
                }
                sizes.insert(anchor, 1);
            }
            Event::Alias(anchor) => {
                // An anchor that is still open would be an alias to what it is part of.
                let Some(size) = sizes.get(&anchor) else {
                    return refuse("an alias stands inside of what it names");
                };
                nodes = nodes.saturating_add(*size);
                contents = Contents::Something;
            }
            Event::SequenceStart(anchor, _) | Event::MappingStart(anchor, _) => {
                nodes += 1;
                contents = Contents::Something;
                open.push((anchor, nodes));
                sizes.remove(&anchor);
                if open.len() > DEEPEST {
                    return refuse("nested too deep");
                }
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some((anchor, before)) = open.pop() {
                    sizes.insert(anchor, nodes.saturating_sub(before) + 1);
                }
            }
            _ => {}
        }
        if nodes > MOST_NODES {
            return refuse("too many values");
        }
    }
}

fn scan_error(error: &ScanError) -> SyntaxError {
    let mark = error.marker();
    // The loader writes a duplicate key as `String("name"): duplicated key in mapping`.
    let info = error.info();
    let duplicate = info.strip_prefix("String(").and_then(|rest| rest.strip_suffix("): duplicated key in mapping"));
    let message = duplicate.map_or_else(|| info.to_owned(), |name| format!("duplicate key {name}"));
    SyntaxError { position: Some((mark.line(), mark.col() + 1)), message }
}

/// Takes position and message out of a parser's error. Parsers that quote the line are cut short,
/// since a secret may stand in it.
fn syntax_error(error: config::ConfigError) -> SyntaxError {
    let config::ConfigError::FileParse { cause, .. } = error else {
        return SyntaxError { position: None, message: error.to_string() };
    };
    // The crate boxes its complaint about the root twice; the plain form is what one would expect.
    if cause.is::<Box<config::ConfigError>>() || cause.is::<config::ConfigError>() {
        let message = "expected a map with the section \"wsc\" at the top level".to_owned();
        return SyntaxError { position: None, message };
    }
    if let Some(error) = cause.downcast_ref::<ScanError>() {
        return scan_error(error);
    }
    if let Some(error) = cause.downcast_ref::<serde_json::Error>() {
        return json_error(error);
    }
    // TOML: "TOML parse error at line 1, column 5", the line with a marker, then the message.
    let text = cause.to_string();
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let first = lines.next().unwrap_or("not well formed");
    let position = number_after(first, "line ").zip(number_after(first, "column "));
    let message = match position {
        Some(_) => lines.next_back().unwrap_or(first),
        None => first,
    };
    SyntaxError { position, message: message.to_owned() }
}

fn number_after(text: &str, word: &str) -> Option<usize> {
    let (_, rest) = text.split_once(word)?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

fn json_error(error: &serde_json::Error) -> SyntaxError {
    let text = error.to_string();
    let message = text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message);
    SyntaxError { position: Some((error.line(), error.column())), message: message.to_owned() }
}
