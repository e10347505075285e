//! Properties of loading: what is written out loads back, what is unknown is named, nothing panics.

use proptest::prelude::*;

use super::*;
use crate::dump::{nested, write_yaml};
use crate::settings::SECTIONS;
use crate::{default_config, load_str};

/// Text that passes the rules of one key or another; the rest of each key's texts is random.
const USUAL: [&str; 13] = [
    "queue_full, timeout",
    "client.*, room.created",
    "join:room:a-*, send:message",
    "https://app.example.com, http://localhost:3000",
    "hub.example.com",
    "10.0.0.0/8, ::1",
    "one.example:6379, two.example:6379",
    "nats://one.example:4222",
    "0123456789abcdef: #{}[]\"'\\, yes-it-is-long-enough",
    "X-Token=ü: \"#'\\ x, Authorization=Bearer 123",
    "127.0.0.1:0",
    "https://hook.example/x",
    "~",
];

#[derive(Clone, Debug)]
struct Draw {
    what: u8,
    number: u64,
    text: String,
}

fn draws() -> impl Strategy<Value = Vec<Draw>> {
    let draw = (any::<u8>(), any::<u64>(), ".{0,12}");
    let draw = draw.prop_map(|(what, number, text)| Draw { what, number, text });
    proptest::collection::vec(draw, keys().len())
}

fn candidate(key: &Key, draw: &Draw) -> String {
    let kind = key.kind();
    let count = draw.number % 5000;
    match (draw.what % 4, kind.as_str(), key.range) {
        (0, _, Some((least, most))) => if draw.number.is_multiple_of(2) { least } else { most }.to_owned(),
        (1, _, _) => USUAL[usize::try_from(draw.number).unwrap_or(0) % USUAL.len()].to_owned(),
        (_, "duration", _) => format!("{count}{}", ["us", "ms", "s", "m", "h"][usize::from(draw.what / 4 % 5)]),
        (_, "size", _) => format!("{count}{}", ["", "KiB", "KB", "MiB"][usize::from(draw.what / 4 % 4)]),
        (_, "whole number", _) => count.to_string(),
        (_, "number", _) => format!("{:?}", f64::from(u32::try_from(count).unwrap_or(0)) / 1000.0),
        (_, "true or false", _) => (draw.number.is_multiple_of(2)).to_string(),
        (_, kind, _) if kind.starts_with("one of ") => {
            let words: Vec<_> = kind["one of ".len()..].split(", ").collect();
            words[usize::try_from(draw.number).unwrap_or(0) % words.len()].to_owned()
        }
        _ => draw.text.clone(),
    }
}

/// Settings in which every key passes its own check, whatever the keys say together.
fn settings() -> impl Strategy<Value = Settings> {
    draws().prop_map(|draws| {
        let mut settings = Settings::default();
        for (key, draw) in keys().iter().zip(&draws) {
            let mut changed = settings.clone();
            let node = Node { value: Value::Variable(candidate(key, draw)), origin: Origin::Section };
            let fits = (key.read)(&mut changed, &node, key.range).is_ok();
            if fits && (key.check)(&changed, key.range).is_empty() {
                settings = changed;
            }
        }
        settings
    })
}

fn read_back(format: Format, text: &str) -> Settings {
    let mut top = parse(format, text).unwrap_or_else(|error| panic!("{error:?} in\n{text}"));
    let reading = read(&top.remove(SECTION).unwrap());
    assert!(reading.problems.is_empty(), "{:?} in\n{text}", reading.problems);
    reading.settings
}

#[test]
fn the_generator_changes_every_key() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let drawn: Vec<_> = (0..400).map(|_| settings().new_tree(&mut runner).unwrap().current()).collect();
    let defaults = Settings::default();
    for key in keys() {
        assert!(drawn.iter().any(|settings| !(key.same)(settings, &defaults)), "{} is never changed", key.path);
    }
}

proptest! {
    #[test]
    fn any_settings_load_back_from_yaml(settings in settings()) {
        let text = write_yaml(&settings, |_, value| value.is_null());
        prop_assert_eq!(read_back(Format::Yaml, &text), settings);
    }

    #[test]
    fn any_settings_load_back_from_json(settings in settings()) {
        let text = serde_json::json!({ SECTION: nested(&settings, |key| key.exposed) }).to_string();
        prop_assert_eq!(read_back(Format::Json, &text), settings.clone());
        let inner = nested(&settings, |key| key.exposed);
        prop_assert_eq!(serde_json::from_value::<Settings>(inner).unwrap(), settings);
    }

    #[test]
    fn unknown_keys_are_named_wherever_they_stand(
        section in 0..SECTIONS.len(),
        name in "[a-z][a-z_]{0,14}[a-z]",
        format in prop_oneof![Just(Format::Yaml), Just(Format::Json)],
        in_profile: bool,
    ) {
        let section = SECTIONS[section].path;
        prop_assume!(names_in(section).all(|known| known != name));
        let path = if section.is_empty() { name } else { format!("{section}.{name}") };
        let inner = path.rsplit('.').fold("1".to_owned(), |inner, part| format!("{{\"{part}\": {inner}}}"));
        let (text, place) = if in_profile {
            (format!("{{\"prod\": {{\"wsc\": {inner}}}}}"), "prod.wsc")
        } else {
            (format!("{{\"wsc\": {inner}}}"), "wsc")
        };
        let error = load_str(format, &text, in_profile.then_some("prod"), Strictness::Strict, []).unwrap_err();
        let problems: Vec<_> = error.problems().collect();
        prop_assert_eq!(problems.len(), 1);
        prop_assert_eq!(problems[0].path(), format!("{place}.{path}"));
        prop_assert_eq!(problems[0].kind(), ProblemKind::Unknown);
        prop_assert!(problems[0].message().starts_with("unknown key"));

        let variable = format!("WSC__{}", path.replace('.', "__").to_uppercase());
        if !path.contains("__") {
            let environment = [(variable.clone(), "1".to_owned())];
            let error = load_str(Format::Yaml, "", None, Strictness::Strict, environment).unwrap_err();
            let problem = error.problems().next().unwrap();
            prop_assert_eq!(problem.path(), format!("wsc.{path}"));
            prop_assert_eq!(problem.variable(), Some(variable.as_str()));
        }
    }

    #[test]
    fn no_text_and_no_environment_panics(
        text in "(wsc:)?[\\[\\]{}:, \n\t*&!|>\"'#%a-c0-9=.~-]{0,60}",
        name in "(WSC__)?[A-Z_\\.]{0,20}",
        value in ".{0,20}",
    ) {
        for format in [Format::Yaml, Format::Toml, Format::Json] {
            for strictness in [Strictness::Strict, Strictness::Lenient] {
                let _ = load_str(format, &text, Some("prod"), strictness, [(name.clone(), value.clone())]);
            }
        }
    }

    #[test]
    fn no_damage_to_a_good_file_panics(at: prop::sample::Index, cut in 0..40_usize, put in ".{0,6}") {
        let mut text: Vec<char> = default_config().chars().collect();
        let from = at.index(text.len());
        let to = (from + cut).min(text.len());
        text.splice(from..to, put.chars());
        let text: String = text.into_iter().collect();
        let _ = load_str(Format::Yaml, &text, None, Strictness::Strict, []);
    }
}
