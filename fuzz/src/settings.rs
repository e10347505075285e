//! The settings' loader: any text in any format, with any environment, is loaded or refused in words.
//!
//! An input is a text; behind a line `--- environment` stand variables, `NAME=value`, one a line.

use serde_json::{Value, json};
use wsc_config::{ConfigError, Format, Settings, Strictness, check as check_settings, current_config, diff, load_str};

/// Checks one input.
pub fn check(input: &[u8]) {
    let Ok(input) = str::from_utf8(input) else { return };
    let (text, environment) = input.split_once("--- environment\n").unwrap_or((input, ""));
    let environment: Vec<_> =
        environment.lines().filter_map(|line| line.split_once('=')).map(|(n, v)| (n.into(), v.into())).collect();
    let mut loaded: Vec<(Format, Settings)> = Vec::new();
    for format in [Format::Yaml, Format::Toml, Format::Json] {
        let load = |profile, strictness| load_str(format, text, profile, strictness, environment.clone());
        let strict = load(None, Strictness::Strict);
        let lenient = load(None, Strictness::Lenient);
        let with_profile = load(Some("prod"), Strictness::Strict);
        for result in [&strict, &lenient, &with_profile] {
            match result {
                Ok(settings) => check_loaded(settings),
                Err(error) => check_error(error),
            }
        }
        match (strict, lenient) {
            (Ok(strict), Ok(lenient)) => {
                assert!(diff(&strict, &lenient).is_empty(), "being lenient changes values");
                loaded.push((format, strict));
            }
            (Ok(_), Err(error)) => panic!("strict takes it, lenient does not: {error}"),
            _ => {}
        }
    }
    // A text that is two formats at once says the same in both, as JSON does that is also YAML.
    for pair in loaded.windows(2) {
        let change = diff(&pair[0].1, &pair[1].1);
        assert!(change.is_empty(), "{:?} and {:?} differ: {change:?}", pair[0].0, pair[1].0);
    }
}

/// An error names what is wrong, each problem on one line.
fn check_error(error: &ConfigError) {
    assert!(!error.to_string().trim().is_empty());
    assert!(error.problems().next().is_some() || matches!(error, ConfigError::Syntax { .. }), "{error:?}");
    for problem in error.problems() {
        assert!(!problem.message().is_empty(), "{problem:?}");
        let line = problem.to_string();
        assert!(!line.chars().any(char::is_control), "{line:?}");
    }
    if let ConfigError::Syntax { message, position, .. } = error {
        assert!(!message.is_empty());
        assert!(position.is_none_or(|(line, _)| line > 0), "{error:?}");
    }
}

fn check_loaded(settings: &Settings) {
    assert!(diff(settings, settings).is_empty());
    assert!(check_settings(settings).is_ok(), "what loads passes the check");
    let shown = current_config(settings);
    // What is shown can be loaded again, but for secrets, which are not shown, and what they are needed for.
    if let Some(shown) = without_absent(shown).filter(|shown| !shown.to_string().contains("***")) {
        let text = json!({ "wsc": shown }).to_string();
        match load_str(Format::Json, &text, None, Strictness::Strict, []) {
            Ok(again) => assert!(diff(settings, &again).is_empty(), "{:?}\n{text}", diff(settings, &again)),
            Err(error) => panic!("{error}\n{text}"),
        }
    }
}

/// Leaves out the keys without a value.
fn without_absent(value: Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::Object(map) => {
            let present = map.into_iter().filter_map(|(name, value)| Some((name, without_absent(value)?)));
            Some(Value::Object(present.collect()))
        }
        value => Some(value),
    }
}
