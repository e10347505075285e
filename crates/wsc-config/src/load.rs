//! Loading: file, profile and environment over the defaults, and everything that is wrong at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::rc::Rc;

use serde::{Deserialize, Deserializer};

use crate::check::conflicts;
use crate::error::{ConfigError, Problem, ProblemKind, Problems, SECTION};
use crate::field::Wrong;
use crate::node::{Node, Origin, Value};
use crate::schema::{Key, is_section, key, keys, names_in};
use crate::settings::Settings;
use crate::source::{Format, Source, Strictness, VARIABLE_PREFIX, parse};
use crate::suggest::nearest;

/// Loads settings from a source, a profile of it and the environment, and checks them whole.
///
/// `environment` gives name and value of variables; those that do not begin with `WSC__` are
/// ignored. [`environment`](crate::environment) takes the process's own. The file is read with
/// blocking calls.
///
/// # Errors
///
/// A file that cannot be read or parsed, or else everything that is wrong with its settings and the
/// environment's. A profile that the file does not have is among the latter.
pub fn load(
    source: &Source,
    profile: Option<&str>,
    strictness: Strictness,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Settings, ConfigError> {
    let top = match source {
        Source::Defaults => BTreeMap::new(),
        Source::File(path) => {
            let (format, text) = read_file(path)?;
            parsed(format, &text, Some(path))?
        }
    };
    Ok(assemble(top, profile, strictness, environment)?)
}

/// Loads settings anew while the hub runs: as [`load`], but a file that holds nothing is an error.
///
/// At a start no settings mean the defaults. While the hub runs, an empty file is far more likely one that is being
/// written at this moment, and to fall back to the defaults would be the worst answer. Somebody who wants them writes
/// `wsc: {}`. Only the file's whole absence of sections is told apart like this: a file that was cut elsewhere may be
/// well formed, so what writes settings should write another file and rename it.
///
/// # Errors
///
/// As [`load`], and [`ConfigError::Empty`].
pub fn reload(
    source: &Source,
    profile: Option<&str>,
    strictness: Strictness,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Settings, ConfigError> {
    let top = match source {
        Source::Defaults => BTreeMap::new(),
        Source::File(path) => {
            let empty = || ConfigError::Empty { path: path.clone() };
            // Opening a pipe, say, would wait for somebody to write to it. (At a start somebody waits for that.)
            let irregular = || io::Error::other("is no regular file");
            let is_file =
                std::fs::metadata(path).and_then(|file| if file.is_file() { Ok(()) } else { Err(irregular()) });
            is_file.map_err(|source| ConfigError::Read { path: path.clone(), source })?;
            let (format, text) = read_file(path)?;
            if text.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}').is_empty() {
                return Err(empty());
            }
            let top = parsed(format, &text, Some(path))?;
            if top.is_empty() {
                return Err(empty());
            }
            top
        }
    };
    Ok(assemble(top, profile, strictness, environment)?)
}

fn read_file(path: &Path) -> Result<(Format, String), ConfigError> {
    let format = Format::from_path(path).ok_or_else(|| ConfigError::UnknownFormat { path: path.to_owned() })?;
    let read = || {
        let mut text = String::new();
        let len = File::open(path)?.take(MAX_FILE_LEN + 1).read_to_string(&mut text)?;
        if len as u64 > MAX_FILE_LEN {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        Ok(text)
    };
    let text = read().map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    Ok((format, text))
}

/// Longer files are no settings, in bytes.
const MAX_FILE_LEN: u64 = 16 << 20;

/// Loads settings from a text, a profile of it and the environment, and checks them whole.
///
/// It never panics, whatever the text and the environment hold.
///
/// # Errors
///
/// As [`load`], but for what concerns reading the file.
pub fn load_str(
    format: Format,
    text: &str,
    profile: Option<&str>,
    strictness: Strictness,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Settings, ConfigError> {
    Ok(assemble(parsed(format, text, None)?, profile, strictness, environment)?)
}

fn parsed(format: Format, text: &str, file: Option<&Path>) -> Result<BTreeMap<String, Node>, ConfigError> {
    parse(format, text).map_err(|error| ConfigError::Syntax {
        file: file.map(Path::to_owned),
        position: error.position,
        message: error.message,
    })
}

/// Lays the layers over each other, reads the typed values and collects all problems.
fn assemble(
    mut top: BTreeMap<String, Node>,
    profile: Option<&str>,
    strictness: Strictness,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Settings, Problems> {
    let mut problems = Vec::new();
    let mut tree = Node::empty();
    if let Some(section) = top.remove(SECTION) {
        lay_section(&mut tree, section, SECTION, &mut problems);
    }

    let (mut profiles, foreign) = split_profiles(top);
    if strictness == Strictness::Strict {
        problems.extend(foreign.iter().map(|name| unknown_section(name)));
    }
    if let Some(name) = profile {
        match profiles.remove(name) {
            Some(section) => {
                lay_section(&mut tree, section, &format!("{name}.{SECTION}"), &mut problems);
            }
            None => problems.push(unknown_profile(name, profiles.keys())),
        }
    }
    if strictness == Strictness::Strict {
        // A mistake in another profile should show now, not when that profile is first needed.
        for (name, section) in profiles {
            let mut alone = Node::empty();
            lay_section(&mut alone, section, &format!("{name}.{SECTION}"), &mut problems);
            problems.extend(read(&alone).problems);
        }
    }

    let mut environment: Vec<_> = environment.into_iter().collect();
    environment.sort();
    for (name, value) in environment {
        if let Err(problem) = lay_variable(&mut tree, &name, value) {
            problems.push(problem);
        }
    }

    let reading = read(&tree);
    problems.extend(reading.problems);
    let conflicts = conflicts(&reading.settings, &reading.failed);
    problems.extend(conflicts.into_iter().map(|problem| placed(problem, &tree)));
    Problems::none_of(problems)?;
    Ok(reading.settings)
}

fn lay_section(tree: &mut Node, section: Node, path: &str, problems: &mut Vec<Problem>) {
    match section.value {
        Value::Map(_) | Value::Null => tree.lay_over(section),
        _ => problems
            .push(Problem { place: path.to_owned(), ..Problem::new("", ProblemKind::Invalid, no_section(&section)) }),
    }
}

/// Parts the profiles (maps whose only key is `wsc`) from everything else at the top level.
fn split_profiles(top: BTreeMap<String, Node>) -> (BTreeMap<String, Node>, Vec<String>) {
    let mut profiles = BTreeMap::new();
    let mut foreign = Vec::new();
    for (name, node) in top {
        match node.value {
            Value::Map(mut map) if map.len() == 1 && map.contains_key(SECTION) => {
                if let Some(mut section) = map.remove(SECTION) {
                    mark(&mut section, &Origin::Profile(Rc::from(name.as_str())));
                    profiles.insert(name, section);
                }
            }
            _ => foreign.push(name),
        }
    }
    (profiles, foreign)
}

fn mark(node: &mut Node, origin: &Origin) {
    node.origin = origin.clone();
    match &mut node.value {
        Value::Map(map) => map.values_mut().for_each(|node| mark(node, origin)),
        Value::List(items) => items.iter_mut().for_each(|node| mark(node, origin)),
        _ => {}
    }
}

fn unknown_section(name: &str) -> Problem {
    let hint = match nearest(name, [SECTION]) {
        Some(meant) => format!(", did you mean \"{meant}\"?"),
        None if key(name).is_some() || is_section(name) => {
            format!(", \"{name}\" belongs into the section \"{SECTION}\"")
        }
        None => format!(
            ", only \"{SECTION}\" and profiles (maps whose only key is \"{SECTION}\") may stand at \
             the top level"
        ),
    };
    top_level(&printable(name), format!("unknown section{hint}"))
}

fn unknown_profile<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> Problem {
    let known: Vec<_> = known.map(|name| printable(name)).collect();
    let message = if known.is_empty() {
        "unknown profile, there are none".to_owned()
    } else {
        format!("unknown profile, known are {}", known.join(", "))
    };
    top_level(&printable(name), message)
}

fn top_level(path: &str, message: String) -> Problem {
    Problem { place: String::new(), ..Problem::new(path, ProblemKind::Unknown, message) }
}

/// Lays one environment variable over the tree. Only known keys get there, so a variable can
/// neither hide a section nor make a new one.
fn lay_variable(tree: &mut Node, name: &str, value: String) -> Result<(), Problem> {
    let Some(rest) = name.strip_prefix(VARIABLE_PREFIX) else { return Ok(()) };
    let path = rest.to_ascii_lowercase().replace("__", ".");
    let problem = |kind, message: String| Problem {
        variable: Some(printable(name)),
        ..Problem::new(printable(&path), kind, message)
    };
    let Some(key) = key(&path) else {
        let message = if !path.is_empty() && is_section(&path) {
            "is a section, set its keys one by one".to_owned()
        } else {
            unknown_key(&path)
        };
        return Err(problem(ProblemKind::Unknown, message));
    };
    if value.contains(char::REPLACEMENT_CHARACTER) {
        return Err(problem(ProblemKind::Invalid, "the value is no Unicode text".to_owned()));
    }
    let origin = Origin::Variable(Rc::from(name));
    let mut node = Node { value: Value::Variable(value), origin };
    for part in key.path.rsplit('.') {
        let origin = Origin::Section;
        node = Node { value: Value::Map([(part.to_owned(), node)].into()), origin };
    }
    tree.lay_over(node);
    Ok(())
}

/// The typed settings of a tree, as far as they could be read.
struct Reading {
    settings: Settings,
    problems: Vec<Problem>,
    /// Keys whose value is wrong: they have their default in `settings`.
    failed: BTreeSet<&'static str>,
}

fn read(tree: &Node) -> Reading {
    let mut reading = Reading { settings: Settings::default(), problems: Vec::new(), failed: BTreeSet::new() };
    reading.section("", tree, tree);
    reading
}

impl Reading {
    fn section(&mut self, path: &str, node: &Node, tree: &Node) {
        let map = match &node.value {
            Value::Null => return,
            Value::Map(map) => map,
            _ => {
                let problem = Problem::new(path, ProblemKind::Invalid, no_section(node));
                self.problems.push(placed(problem, tree));
                return;
            }
        };
        for (name, node) in map {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            if let Some(key) = key(&path) {
                self.key(key, node, tree);
            } else if !name.is_empty() && !name.contains('.') && is_section(&path) {
                self.section(&path, node, tree);
            } else {
                let mut problem = Problem::new(printable(&path), ProblemKind::Unknown, unknown_key(&path));
                locate(&mut problem, &node.origin);
                self.problems.push(problem);
            }
        }
    }

    fn key(&mut self, key: &'static Key, node: &Node, tree: &Node) {
        let wrongs = match (key.read)(&mut self.settings, node, key.range) {
            Ok(()) => (key.check)(&self.settings, key.range),
            Err(wrongs) => wrongs,
        };
        if !wrongs.is_empty() {
            self.failed.insert(key.path);
        }
        let problems = wrongs.into_iter().map(|wrong| placed(wrong_key(key, wrong), tree));
        self.problems.extend(problems);
    }
}

/// Turns what is wrong with a value into a problem of its key.
pub(crate) fn wrong_key(key: &Key, wrong: Wrong) -> Problem {
    Problem::new(format!("{}{}", key.path, printable(&wrong.at)), wrong.kind, wrong.message)
}

/// Says in a problem which profile or variable the value came from.
fn placed(mut problem: Problem, tree: &Node) -> Problem {
    let path = problem.key.split('[').next().unwrap_or_default();
    let origin = tree.origin_of(path).clone();
    locate(&mut problem, &origin);
    problem
}

fn locate(problem: &mut Problem, origin: &Origin) {
    match origin {
        Origin::Section => {}
        Origin::Profile(name) => problem.place = format!("{}.{SECTION}", printable(name)),
        Origin::Variable(name) => problem.variable = Some(printable(name)),
    }
}

fn no_section(node: &Node) -> String {
    // The value is not shown: it may be a secret that was put one level too high.
    format!(
        "expected a section (a map of keys), found {}",
        match node.value {
            Value::List(_) => "a list",
            _ => "a single value",
        }
    )
}

/// Says that a key is not known, and which one may be meant.
fn unknown_key(path: &str) -> String {
    // Down to the first part that is not known, which is the one that was mistyped.
    let mut section = "";
    let mut name = path;
    for (at, _) in path.match_indices('.') {
        if !is_section(&path[..at]) {
            name = path[section.len()..at].trim_start_matches('.');
            break;
        }
        section = &path[..at];
        name = &path[at + 1..];
    }
    let above = if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") };
    if key(&above).is_some() {
        return format!("unknown key, \"{above}\" is a single value");
    }
    if let Some(meant) = nearest(name, names_in(section)) {
        return format!("unknown key, did you mean \"{meant}\"?");
    }
    let elsewhere: Vec<_> = keys()
        .iter()
        .map(|key| key.path)
        .filter(|path| path.rsplit_once('.').map_or(*path, |(_, last)| last) == name)
        .map(|path| format!("\"{path}\""))
        .collect();
    if !elsewhere.is_empty() {
        return format!("unknown key, did you mean {}?", elsewhere.join(" or "));
    }
    if section.is_empty() {
        return "unknown key".to_owned();
    }
    let known: Vec<_> = names_in(section).collect();
    format!("unknown key, known in \"{section}\" are {}", known.join(", "))
}

/// Makes a name from a file or variable fit for one line of text.
fn printable(name: &str) -> String {
    name.chars()
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let plain = if c.is_control() { None } else { Some(c) };
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

/// Reads settings as a part of a bigger structure, for a program with a configuration of its own.
///
/// Unknown keys, wrong types and ranges are errors, all of them in one message; what depends on
/// several keys is for [`check`](crate::check()).
impl<'de> Deserialize<'de> for Settings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let tree = Node::from(serde_json::Value::deserialize(deserializer)?);
        let reading = read(&tree);
        Problems::none_of(reading.problems).map_err(serde::de::Error::custom)?;
        Ok(reading.settings)
    }
}

#[cfg(test)]
mod tests;
