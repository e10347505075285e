//! Settings that the pages show are settings that the server takes.

use wsc_hub::Settings;

use crate::support::{docs, load, read};

/// What a page leaves to the environment or to files that it does not show.
const KEYS: [(&str, &str); 1] = [("WSC__HTTP__API_KEYS", "0123456789abcdef0123456789abcdef")];

#[test]
fn the_settings_that_are_shipped_are_taken() {
    for file in ["ops/wsc.yaml", "ops/docker/hub/wsc.yaml"] {
        let settings = load(file, &read(file), &KEYS);
        assert_faces_the_internet(file, &settings);
    }
}

/// What docs/security.md asks of a hub that faces the internet.
#[track_caller]
pub(crate) fn assert_faces_the_internet(what: &str, settings: &Settings) {
    assert!(settings.auth.enabled && !settings.auth.allow_insecure, "{what}");
    assert!(!settings.auth.allow_anonymous, "{what}");
    assert!(settings.http.internal_listen.is_some(), "{what}");
    assert!(!settings.trusted_proxies.is_empty(), "{what}");
    let limits = &settings.limits;
    assert!(limits.user_connections > 0 && limits.handshakes_per_second > 0, "{what}");
    assert!(!settings.callbacks.allow_private_addresses, "{what}");
}

#[test]
fn the_settings_in_the_pages_are_taken() {
    let mut snippets = 0;
    for page in ["ops/README.md", "security.md"] {
        for (line, snippet) in yaml_blocks(&read(page)) {
            if snippet.starts_with("wsc:") {
                load(&format!("{page}:{line}"), &snippet, &[]);
                snippets += 1;
            }
        }
    }
    assert!(snippets >= 5, "{snippets} snippets");
}

#[test]
fn links_between_the_pages_lead_somewhere() {
    for page in ["ops/README.md", "security.md"] {
        let text = read(page);
        let directory = docs(page).parent().unwrap().to_owned();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            if file.starts_with("http") {
                continue;
            }
            let path = if file.is_empty() { docs(page) } else { directory.join(file) };
            assert!(path.exists(), "{page}: {target}");
            if !anchor.is_empty() {
                let there = std::fs::read_to_string(&path).unwrap();
                let anchors: Vec<_> = there.lines().filter(|line| line.starts_with('#')).map(anchor_of).collect();
                assert!(anchors.iter().any(|have| have == anchor), "{page}: {target} not in {anchors:?}");
            }
        }
    }
}

/// The anchor that renderers of Markdown give a heading.
fn anchor_of(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// The blocks of YAML in a page, with the line that each begins in.
fn yaml_blocks(page: &str) -> Vec<(usize, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (number, line) in page.lines().enumerate() {
        match &mut open {
            None if line == "```yaml" => open = Some((number + 2, String::new())),
            None => {}
            Some(_) if line == "```" => blocks.extend(open.take()),
            Some((_, block)) => {
                block.push_str(line);
                block.push('\n');
            }
        }
    }
    blocks
}
