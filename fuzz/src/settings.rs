//! The settings' loader: any text in any format, with any environment, is loaded or refused in words; and from any
//! settings to any others a reload names what changes.
//!
//! An input is a text; behind a line `--- environment` stand variables, `NAME=value`, one a line. In front of it, ended
//! by a line `--- reload`, may stand the text that was loaded before.

use serde_json::{Value, json};
use wsc_config::{
    ConfigError, Format, Key, Settings, Strictness, apply, check as check_settings, current_config, diff, keys,
    load_str, watched_files,
};

/// Checks one input.
pub fn check(input: &[u8]) {
    let Ok(input) = str::from_utf8(input) else { return };
    let (before, input) = input.split_once("--- reload\n").unwrap_or(("", input));
    let (text, environment) = input.split_once("--- environment\n").unwrap_or((input, ""));
    let environment: Vec<_> =
        environment.lines().filter_map(|line| line.split_once('=')).map(|(n, v)| (n.into(), v.into())).collect();
    let mut loaded: Vec<(Format, Settings)> = Vec::new();
    let mut running = vec![Settings::default()];
    for format in [Format::Yaml, Format::Toml, Format::Json] {
        running.extend(load_str(format, before, None, Strictness::Strict, []).ok());
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
    for old in &running {
        for (_, new) in &loaded {
            check_reload(old, new);
            check_reload(new, old);
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

/// A reload applies whole or is refused in words; what runs afterwards is the new in the live keys, else the old.
fn check_reload(old: &Settings, new: &Settings) {
    let change = diff(old, new);
    assert_eq!(change.is_empty(), old == new, "{change:?}");
    assert!(watched_files(new).len() <= 4);
    let reloaded = match apply(old, new) {
        Ok(reloaded) => reloaded,
        Err(problems) => {
            assert!(!change.restart.is_empty(), "two good settings fail without a key that waits: {problems}");
            return problems.iter().for_each(|problem| assert!(!problem.to_string().chars().any(char::is_control)));
        }
    };
    assert_eq!(reloaded.change, change);
    assert!(check_settings(&reloaded.settings).is_ok(), "what runs passes the check");
    let left = diff(&reloaded.settings, new);
    assert!(left.live.is_empty() && left.restart == change.restart, "{left:?} is left of {change:?}");

    // A dump differs in the changed keys, and in no other; secrets may look alike.
    let (before, after) = (current_config(old), current_config(new));
    let shown = |dump: &Value, key: &Key| key.path().split('.').fold(dump, |map, name| &map[name]).clone();
    for key in keys() {
        let changed = change.live.iter().chain(&change.restart).any(|path| path.as_str() == key.path());
        let differs = shown(&before, key) != shown(&after, key);
        assert!(changed == differs || changed && key.is_secret(), "{}", key.path());
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
