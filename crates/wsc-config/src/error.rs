//! What can be wrong with settings, in words that name the key.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::diff::KeyPath;

/// Which sort of mistake a [`Problem`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProblemKind {
    /// No such key, section or profile.
    Unknown,
    /// The value has the wrong type or form.
    Invalid,
    /// The value is outside of its range.
    OutOfRange,
    /// The value does not go together with another key's.
    Conflict,
    /// The setting is known, but what it switches on is not part of this version.
    NotBuilt,
}

/// One mistake in the settings: where it stands and what is wrong with it.
///
/// [`Display`](fmt::Display) gives one line, `wsc.queue.policy: expected one of …`. Secrets never
/// appear in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub(crate) place: String,
    pub(crate) key: String,
    pub(crate) variable: Option<String>,
    pub(crate) kind: ProblemKind,
    pub(crate) message: String,
}

impl Problem {
    /// A problem of a key of the plain `wsc` section.
    pub(crate) fn new(key: impl Into<String>, kind: ProblemKind, message: impl Into<String>) -> Self {
        Self { place: SECTION.to_owned(), key: key.into(), variable: None, kind, message: message.into() }
    }

    /// Returns the full path of the key, such as `wsc.queue.policy` or `prod.wsc.listen`.
    #[must_use]
    pub fn path(&self) -> String {
        match (self.place.is_empty(), self.key.is_empty()) {
            (true, _) => self.key.clone(),
            (false, true) => self.place.clone(),
            (false, false) => format!("{}.{}", self.place, self.key),
        }
    }

    /// Returns which sort of mistake it is.
    #[must_use]
    pub fn kind(&self) -> ProblemKind {
        self.kind
    }

    /// Returns what is wrong, without the path.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns the environment variable that set the value, where one did.
    #[must_use]
    pub fn variable(&self) -> Option<&str> {
        self.variable.as_deref()
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path(), self.message)?;
        match &self.variable {
            Some(name) => write!(f, " (environment variable {name})"),
            None => Ok(()),
        }
    }
}

/// All mistakes found at once, sorted by path; at least one.
///
/// [`Display`](fmt::Display) writes one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Turns a list of problems into a result.
    pub(crate) fn none_of(mut problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() {
            return Ok(());
        }
        problems.sort_by_key(Problem::path);
        problems.dedup();
        Err(Self(problems))
    }

    /// Says that the problems are there only because these keys wait for a restart.
    pub(crate) fn until_restart(mut self, waiting: &[KeyPath]) -> Self {
        if !waiting.is_empty() {
            let waiting = waiting.iter().map(|key| key.as_str()).collect::<Vec<_>>().join(", ");
            for problem in &mut self.0 {
                let message = &problem.message;
                problem.message = format!("{message} (as it runs: a change of {waiting} waits for a restart)");
            }
        }
        self
    }

    /// Goes through the problems.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Why settings could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file holds nothing, or comments only, while the hub runs. Only [`reload`](crate::reload) says so.
    #[error("{}: is empty; a section \"wsc\" without keys stands for the defaults", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The file's name does not say which format it has.
    #[error("{}: unknown format, the name must end in .yaml, .yml, .toml or .json", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// The file is no well-formed YAML, TOML or JSON.
    #[error("{}{message}", position_prefix(file.as_ref(), *position))]
    Syntax {
        /// The file, where the text came from one.
        file: Option<PathBuf>,
        /// Line and column, both counted from 1, where the parser knows them.
        position: Option<(usize, usize)>,
        /// What the parser said.
        message: String,
    },
    /// The file is well formed, and one or more settings are wrong.
    #[error(transparent)]
    Invalid(#[from] Problems),
}

impl ConfigError {
    /// Returns the single mistakes, empty where the file could not be read or parsed at all.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        match self {
            Self::Invalid(problems) => problems.0.as_slice(),
            _ => &[],
        }
        .iter()
    }
}

fn position_prefix(file: Option<&PathBuf>, position: Option<(usize, usize)>) -> String {
    match (file, position) {
        (Some(file), Some((line, column))) => format!("{}:{line}:{column}: ", file.display()),
        (Some(file), None) => format!("{}: ", file.display()),
        (None, Some((line, column))) => format!("line {line}, column {column}: "),
        (None, None) => String::new(),
    }
}

/// The section of a file that holds the hub's settings.
pub(crate) const SECTION: &str = "wsc";
