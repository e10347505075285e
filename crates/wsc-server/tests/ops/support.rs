//! What several modules share.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use serde_json::{Map, Value};
use tokio::{net::TcpListener, process::Command};
use wsc_hub::{
    Settings,
    config::{Format, Strictness, load_str},
};
use wsc_testkit::within;
use yaml_rust2::{Yaml, YamlLoader};

/// The binary under test.
pub(crate) const BIN: &str = env!("CARGO_BIN_EXE_wsc");

/// The directory docs, and what is in it.
pub(crate) fn docs(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(path)
}

/// The text of a file in docs.
#[track_caller]
pub(crate) fn read(path: &str) -> String {
    std::fs::read_to_string(docs(path)).unwrap_or_else(|error| panic!("docs/{path}: {error}"))
}

/// The documents of a YAML file in docs.
#[track_caller]
pub(crate) fn yaml(path: &str) -> Vec<Value> {
    let documents = YamlLoader::load_from_str(&read(path)).unwrap_or_else(|error| panic!("docs/{path}: {error}"));
    documents.iter().map(json).collect()
}

/// YAML as JSON, which is easier to look into.
fn json(yaml: &Yaml) -> Value {
    match yaml {
        Yaml::Real(number) => number.parse::<f64>().unwrap().into(),
        Yaml::Integer(number) => (*number).into(),
        Yaml::String(text) => text.as_str().into(),
        Yaml::Boolean(is_true) => (*is_true).into(),
        Yaml::Array(items) => items.iter().map(json).collect(),
        Yaml::Hash(map) => {
            let entries = map.iter().map(|(key, value)| (key.as_str().expect("text as key").to_owned(), json(value)));
            Value::Object(entries.collect::<Map<_, _>>())
        }
        Yaml::Null => Value::Null,
        Yaml::Alias(_) | Yaml::BadValue => panic!("no plain YAML: {yaml:?}"),
    }
}

/// A text with these parts replaced, each of which is there.
#[track_caller]
pub(crate) fn adapted(path: &str, replacements: &[(&str, &str)]) -> String {
    let mut text = read(path);
    for (from, to) in replacements {
        assert!(text.contains(from), "docs/{path} has no {from}");
        text = text.replace(from, to);
    }
    text
}

/// A loopback address that is free at the moment.
pub(crate) async fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    listener.local_addr().expect("an address")
}

/// Settings as the server would read them, with these variables.
#[track_caller]
pub(crate) fn load(what: &str, text: &str, env: &[(&str, &str)]) -> Settings {
    let env = env.iter().map(|&(key, value)| (key.to_owned(), value.to_owned()));
    load_str(Format::Yaml, text, None, Strictness::Strict, env).unwrap_or_else(|error| panic!("{what}: {error}"))
}

/// Runs a program that is there to the end.
pub(crate) async fn run(program: &str, args: &[&str], stdin: &str) -> Ran {
    use tokio::io::AsyncWriteExt;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    let mut input = child.stdin.take().expect("a pipe");
    let write = async {
        // A program that does not read its input may go before it is written.
        let _ = input.write_all(stdin.as_bytes()).await;
        drop(input);
    };
    let (output, ()) = within(program, async { tokio::join!(child.wait_with_output(), write) }).await;
    Ran(output.expect("the program can be waited for"))
}

/// What a program said, and how it ended.
pub(crate) struct Ran(pub(crate) Output);

impl Ran {
    /// Expects that it was content.
    #[track_caller]
    pub(crate) fn succeeded(self) -> Self {
        assert!(self.0.status.success(), "{self}");
        self
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Output { status, stdout, stderr } = &self.0;
        write!(f, "{status}\n{}{}", String::from_utf8_lossy(stdout), String::from_utf8_lossy(stderr))
    }
}
