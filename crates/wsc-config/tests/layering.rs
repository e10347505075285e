//! Which layer wins: defaults, file, profile, environment; and what may stand beside them.

use std::path::Path;
use std::time::Duration;

use wsc_config::{
    ByteSize, ConfigError, DemoPage, Format, QueuePolicy, Settings, Source, Strictness, default_config, load, load_str,
    reload,
};

const FILE: &str = "
wsc:
  listen: 127.0.0.1:9000
  ack_timeout: 1s
  max_retries: 7
  queue: {policy: drop_oldest, max_bytes: 2MiB}
  trusted_proxies: [10.0.0.0/8, 192.168.0.1]
  callbacks: {headers: {X-One: one, X-Two: two}}
prod:
  wsc:
    ack_timeout: 2s
    queue: {max_bytes: 3MiB}
    trusted_proxies: [172.16.0.0/12]
    callbacks: {headers: {X-Two: other}}
dev:
  wsc:
";

fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn from_env(pairs: &[(&str, &str)]) -> Result<Settings, ConfigError> {
    load_str(Format::Yaml, "", None, Strictness::Strict, env(pairs))
}

fn profile(name: Option<&str>) -> Result<Settings, ConfigError> {
    load_str(Format::Yaml, FILE, name, Strictness::Strict, [])
}

#[test]
fn nothing_at_all_is_the_defaults() {
    for text in ["", "# nothing", "wsc:", "wsc: {}", "---\n...\n", "\u{feff}wsc:\n  tls:\n"] {
        let settings = load_str(Format::Yaml, text, None, Strictness::Strict, []).unwrap();
        assert_eq!(settings, Settings::default(), "{text:?}");
    }
    assert_eq!(load(&Source::Defaults, None, Strictness::Strict, []).unwrap(), Settings::default());
}

#[test]
fn the_default_file_is_the_defaults() {
    let text = default_config();
    let settings = load_str(Format::Yaml, &text, None, Strictness::Strict, []).unwrap();
    assert_eq!(settings, Settings::default());
    for key in wsc_config::keys() {
        let name = key.path().rsplit('.').next().unwrap();
        let written =
            text.lines().any(|line| line.trim_start().trim_start_matches("# ").starts_with(&format!("{name}:")));
        assert!(written, "{} is missing", key.path());
    }
}

#[test]
fn the_file_wins_over_the_defaults_and_the_profile_over_the_file() {
    let plain = profile(None).unwrap();
    assert_eq!(plain.ack_timeout, Duration::from_secs(1));
    assert_eq!(plain.listen.port(), 9000);
    assert_eq!(plain.ack_retry_interval, Settings::default().ack_retry_interval);

    let prod = profile(Some("prod")).unwrap();
    assert_eq!(prod.ack_timeout, Duration::from_secs(2));
    assert_eq!(prod.max_retries, 7, "keys that the profile leaves alone stay");
    assert_eq!(prod.queue.policy, QueuePolicy::DropOldest, "sections are merged");
    assert_eq!(prod.queue.max_bytes, ByteSize::new(3 << 20));
    assert_eq!(prod.trusted_proxies.len(), 1, "lists are replaced");
    assert_eq!(prod.callbacks.headers.len(), 2, "maps are merged");

    assert_eq!(profile(Some("dev")).unwrap(), plain, "an empty profile changes nothing");
}

#[test]
fn the_environment_wins_over_the_profile() {
    let environment = env(&[("WSC__ACK_TIMEOUT", "10s"), ("WSC__QUEUE__MAX_BYTES", "4MiB"), ("PATH", "/bin")]);
    let settings = load_str(Format::Yaml, FILE, Some("prod"), Strictness::Strict, environment).unwrap();
    assert_eq!(settings.ack_timeout, Duration::from_secs(10));
    assert_eq!(settings.queue.max_bytes, ByteSize::new(4 << 20));
    assert_eq!(settings.queue.policy, QueuePolicy::DropOldest);
}

#[test]
fn an_unknown_profile_names_those_there_are() {
    assert_eq!(profile(Some("prd")).unwrap_err().to_string(), "prd: unknown profile, known are dev, prod");
    let error = load(&Source::Defaults, Some("prod"), Strictness::Lenient, []).unwrap_err();
    assert_eq!(error.to_string(), "prod: unknown profile, there are none");
}

#[test]
fn mistakes_in_a_profile_carry_its_name() {
    let text = "prod: {wsc: {ack_timout: 1s, jitter: 3}}\n";
    let lines = "prod.wsc.ack_timout: unknown key, did you mean \"ack_timeout\"?\n\
                 prod.wsc.jitter: 3.0 is out of range, allowed is 0.0 to 1.0";
    for chosen in [Some("prod"), None] {
        let error = load_str(Format::Yaml, text, chosen, Strictness::Strict, []).unwrap_err();
        assert_eq!(error.to_string(), lines);
    }
    load_str(Format::Yaml, text, None, Strictness::Lenient, []).unwrap();
    let error = load_str(Format::Yaml, text, Some("prod"), Strictness::Lenient, []).unwrap_err();
    assert_eq!(error.to_string(), lines);
}

#[test]
fn the_top_level_is_the_hubs_own_only_when_strict() {
    let text = "
database: {url: x}
wcs: {jitter: 0.5}
listen: 127.0.0.1:1
prod: {wsc: {}, more: 1}
wsc: {jitter: 0.2}
";
    assert_eq!(load_str(Format::Yaml, text, None, Strictness::Lenient, []).unwrap().jitter.to_string(), "0.2");
    let error = load_str(Format::Yaml, text, None, Strictness::Strict, []).unwrap_err();
    let only = "unknown section, only \"wsc\" and profiles (maps whose only key is \"wsc\") may stand at the top level";
    assert_eq!(
        error.to_string().lines().collect::<Vec<_>>(),
        [
            &format!("database: {only}"),
            "listen: unknown section, \"listen\" belongs into the section \"wsc\"",
            &format!("prod: {only}"),
            "wcs: unknown section, did you mean \"wsc\"?",
        ]
    );
}

#[test]
fn text_in_the_environment_stays_text() {
    for value in ["123", "yes", "true", "1.0", "0123", "1e5", "null", "a,b", "[x]"] {
        let settings = from_env(&[("WSC__NODE_ID", value), ("WSC__AUTH__ISSUER", value)]).unwrap();
        assert_eq!(settings.node_id.as_str(), value);
        assert_eq!(settings.auth.issuer, value);
    }
    let number = "12345678901234567890123456789012";
    let settings = from_env(&[("WSC__AUTH__SECRET_KEY", number)]).unwrap();
    assert_eq!(settings.auth.secret_key, Some(wsc_config::Secret::new(number)));
}

#[test]
fn typed_values_in_the_environment() {
    let settings = from_env(&[
        ("WSC__MAX_CONNECTIONS", "5"),
        ("WSC__JITTER", "1"),
        ("WSC__ROOMS__AUTO_CREATE", "no"),
        ("WSC__ENABLE_OFFLINE_ACK", "False"),
        ("WSC__HTTP__DEMO_PAGE", "off"),
        ("WSC__MAX_MESSAGE_SIZE", "1024"),
        ("WSC__CLUSTER__NATS__MAX_RECONNECTS", "7"),
        ("WSC__CALLBACKS__HEADERS", "X-One=1, X-Two=a=b"),
    ])
    .unwrap();
    assert_eq!(settings.max_connections, 5);
    assert!((settings.jitter - 1.0).abs() < f64::EPSILON);
    assert!(!settings.rooms.auto_create && !settings.enable_offline_ack);
    assert_eq!(settings.http.demo_page, DemoPage::Off);
    assert_eq!(settings.max_message_size, ByteSize::new(1024));
    assert_eq!(settings.cluster.nats.max_reconnects, 7);
    assert_eq!(settings.callbacks.headers["X-Two"], wsc_config::Secret::new("a=b"));
}

#[test]
fn lists_in_the_environment_are_comma_separated() {
    let one = from_env(&[("WSC__HTTP__ALLOWED_HOSTS", "hub.example.com")]).unwrap();
    assert_eq!(one.http.allowed_hosts, ["hub.example.com"]);
    let two = from_env(&[("WSC__RETRYABLE_ERRORS", "timeout, temporary")]).unwrap();
    assert_eq!(two.retryable_errors, ["timeout", "temporary"]);
    let none = from_env(&[("WSC__RETRYABLE_ERRORS", "")]).unwrap();
    assert!(none.retryable_errors.is_empty());
    let keys = from_env(&[("WSC__HTTP__API_KEYS", "1234567890123456,abcdefghijklmnop")]).unwrap();
    assert_eq!(keys.http.api_keys.len(), 2);
}

#[test]
fn empty_means_not_set() {
    let text = "wsc: {auth: {audience: me}, tls: {cert: a, key: b}, http: {internal_listen: ''}}";
    let environment = env(&[("WSC__AUTH__AUDIENCE", ""), ("WSC__TLS__CERT", ""), ("WSC__TLS__KEY", "")]);
    let settings = load_str(Format::Yaml, text, None, Strictness::Strict, environment).unwrap();
    assert_eq!(settings, Settings::default());
}

#[test]
fn mistakes_in_the_environment_name_the_variable() {
    let error = from_env(&[
        ("WSC__ACK_TIMOUT", "1s"),
        ("WSC__ACK_TIMEOUT", "10"),
        ("WSC__QUEUE__POLICY__X", "1"),
        ("WSC__AUTH", "x"),
        ("WSC__MAX_RETRIES", "-1"),
        ("WSC__NODE_ID", "bad\u{fffd}"),
        ("WSC__", "x"),
        ("WSC__LISTEN", "0.0.0.0:1"),
    ])
    .unwrap_err();
    assert_eq!(
        error.to_string().lines().collect::<Vec<_>>(),
        [
            "wsc: unknown key (environment variable WSC__)",
            "wsc.ack_timeout: expected a duration such as \"100ms\" or \"24h\", found the number 10: it has no unit, \
             write \"10s\" or \"10ms\" (environment variable WSC__ACK_TIMEOUT)",
            "wsc.ack_timout: unknown key, did you mean \"ack_timeout\"? (environment variable WSC__ACK_TIMOUT)",
            "wsc.auth: is a section, set its keys one by one (environment variable WSC__AUTH)",
            "wsc.listen: 0.0.0.0:1 can be reached from other machines while authentication is off; listen on \
             127.0.0.1:1, or switch auth.enabled on, or write auth.allow_insecure: true (environment variable \
             WSC__LISTEN)",
            "wsc.max_retries: -1 is out of range, allowed is 0 to 100 (environment variable WSC__MAX_RETRIES)",
            "wsc.node_id: the value is no Unicode text (environment variable WSC__NODE_ID)",
            "wsc.queue.policy.x: unknown key, \"queue.policy\" is a single value (environment variable \
             WSC__QUEUE__POLICY__X)",
        ]
    );
}

#[test]
fn the_three_formats_say_the_same() {
    let yaml = "wsc:\n  queue:\n    policy: drop_newest\n  http: {demo_page: on}\n  backoff_factor: 3\n";
    let toml = "[wsc]\nbackoff_factor = 3\n[wsc.queue]\npolicy = \"drop_newest\"\n[wsc.http]\ndemo_page = true\n";
    let json = r#"{"wsc": {"queue": {"policy": "drop_newest"}, "http": {"demo_page": true}, "backoff_factor": 3.0}}"#;
    let load = |format, text| load_str(format, text, None, Strictness::Strict, []).unwrap();
    let settings = load(Format::Yaml, yaml);
    assert_eq!(settings.queue.policy, QueuePolicy::DropNewest);
    assert_eq!(settings.http.demo_page, DemoPage::On);
    assert_eq!(load(Format::Toml, toml), settings);
    assert_eq!(load(Format::Json, json), settings);
}

#[test]
fn files_are_found_told_apart_and_named() {
    let directory = tempfile::tempdir().unwrap();
    let usual = directory.path().join("wsc.yaml");
    let locate = |named: Option<&Path>| Source::locate_in(directory.path(), named.map(Path::to_owned));
    assert_eq!(locate(None), Source::Defaults);
    assert_eq!(locate(None).to_string(), "built-in defaults");

    std::fs::write(&usual, "wsc: {ack_timeout: 3s}").unwrap();
    assert_eq!(locate(None), Source::File(usual.clone()));
    let settings = load(&locate(None), None, Strictness::Strict, []).unwrap();
    assert_eq!(settings.ack_timeout, Duration::from_secs(3));

    let named = directory.path().join("other.TOML");
    assert_eq!(locate(Some(&named)), Source::File(named.clone()));
    let error = load(&locate(Some(&named)), None, Strictness::Strict, []).unwrap_err();
    assert!(error.to_string().starts_with(&format!("{}: cannot be read: ", named.display())));
    std::fs::write(&named, "[wsc]\nx = ").unwrap();
    let error = load(&locate(Some(&named)), None, Strictness::Strict, []).unwrap_err();
    assert!(error.to_string().starts_with(&format!("{}:2:5: ", named.display())), "{error}");

    let odd = directory.path().join("wsc.conf");
    let error = load(&locate(Some(&odd)), None, Strictness::Strict, []).unwrap_err();
    let expected = format!("{}: unknown format, the name must end in .yaml, .yml, .toml or .json", odd.display());
    assert_eq!(error.to_string(), expected);
}

#[test]
fn settings_can_be_a_part_of_a_programs_own() {
    #[derive(serde::Deserialize)]
    struct Own {
        hub: Settings,
    }
    let own: Own = serde_json::from_str(r#"{"hub": {"ack_timeout": "9s"}}"#).unwrap();
    assert_eq!(own.hub.ack_timeout, Duration::from_secs(9));
    let error = serde_json::from_str::<Settings>(r#"{"ack_timout": "9s", "jitter": 4}"#).unwrap_err();
    assert_eq!(
        error.to_string(),
        "wsc.ack_timout: unknown key, did you mean \"ack_timeout\"?\n\
         wsc.jitter: 4.0 is out of range, allowed is 0.0 to 1.0"
    );
}

#[test]
fn an_empty_file_is_no_settings_while_the_hub_runs() {
    let directory = tempfile::tempdir().unwrap();
    for (name, empty, defaults) in [
        ("wsc.yaml", vec!["", "  \n", "# all of it\n# comments\n", "\u{feff}", "---\n", "{}"], "wsc: {}"),
        ("wsc.toml", vec!["", "\n", "# wsc\n"], "[wsc]"),
        ("wsc.json", vec!["", " \n", "{}"], "{\"wsc\": {}}"),
    ] {
        let source = Source::File(directory.path().join(name));
        let write = |text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        let again = |strictness| reload(&source, None, strictness, []);
        for text in empty {
            write(text);
            for strictness in [Strictness::Strict, Strictness::Lenient] {
                let error = again(strictness).unwrap_err();
                assert!(matches!(error, ConfigError::Empty { .. }), "{name} {text:?}: {error}");
                assert_eq!(
                    error.to_string(),
                    format!("{source}: is empty; a section \"wsc\" without keys stands for the defaults")
                );
            }
        }
        write(defaults);
        assert_eq!(again(Strictness::Strict).unwrap(), Settings::default(), "{name}");
    }
    let source = Source::File(directory.path().join("wsc.yaml"));
    std::fs::write(directory.path().join("wsc.yaml"), "database: {url: x}").unwrap();
    assert_eq!(reload(&source, None, Strictness::Lenient, []).unwrap(), Settings::default(), "a program's own file");
    assert_eq!(reload(&Source::Defaults, None, Strictness::Strict, []).unwrap(), Settings::default());
}

#[test]
fn a_file_that_cannot_be_read_now_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("wsc.yaml");
    let source = Source::File(path.clone());
    let again = || reload(&source, None, Strictness::Strict, env(&[("WSC__ACK_TIMEOUT", "9s")]));
    let begins = |text: &str| {
        let error = again().unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}:{text}", path.display())), "{error}");
    };
    begins(" cannot be read: No such file");
    std::fs::write(&path, "wsc: {ack_timeout: 3s, que").unwrap();
    begins("2:1: while parsing a flow mapping");
    std::fs::write(&path, b"wsc: {node_id: \xff\xfe}").unwrap();
    begins(" cannot be read: stream did not contain valid UTF-8");
    std::fs::write(&path, "wsc: {max_retries: 1}").unwrap();
    let settings = again().unwrap();
    assert_eq!((settings.max_retries, settings.ack_timeout), (1, Duration::from_secs(9)), "the environment still wins");
}
