//! What a person reads who made a mistake, word by word.

use wsc_config::{ConfigError, Format, ProblemKind, Settings, Strictness, check, load_str};

fn error(format: Format, text: &str) -> ConfigError {
    match load_str(format, text, None, Strictness::Strict, []) {
        Ok(_) => panic!("loaded: {text}"),
        Err(error) => error,
    }
}

/// The lines for a YAML file with this `wsc` section.
#[track_caller]
fn refused(section: &str, lines: &[&str]) {
    let indented: String = section.lines().map(|line| format!("  {line}\n")).collect();
    let error = error(Format::Yaml, &format!("wsc:\n{indented}"));
    assert_eq!(error.to_string().lines().collect::<Vec<_>>(), lines);
}

#[test]
fn unknown_keys_and_the_nearest_known_one() {
    refused("ack_timout: 1s", &["wsc.ack_timout: unknown key, did you mean \"ack_timeout\"?"]);
    refused("ackTimeout: 1s", &["wsc.ackTimeout: unknown key, did you mean \"ack_timeout\"?"]);
    refused("queue: {max_byte: 1}", &["wsc.queue.max_byte: unknown key, did you mean \"max_bytes\"?"]);
    refused("cluster: {nats: {url: []}}", &["wsc.cluster.nats.url: unknown key, did you mean \"urls\"?"]);
    refused("secret_key: x", &["wsc.secret_key: unknown key, did you mean \"auth.secret_key\"?"]);
    refused(
        "queue: {colour: 1}",
        &["wsc.queue.colour: unknown key, known in \"queue\" are max_bytes, policy, total_bytes"],
    );
    refused("colour: 1", &["wsc.colour: unknown key"]);
}

#[test]
fn wrong_types_say_what_was_found() {
    refused(
        "ack_timeout: 5",
        &["wsc.ack_timeout: expected a duration such as \"100ms\" or \"24h\", found the number 5: it has no unit, \
           write \"5s\" or \"5ms\""],
    );
    refused("max_connections: many", &["wsc.max_connections: expected a whole number, found \"many\""]);
    refused("max_connections: 1.5", &["wsc.max_connections: expected a whole number, found the number 1.5"]);
    refused("rooms: {auto_create: yes}", &["wsc.rooms.auto_create: expected true or false, found \"yes\""]);
    refused(
        "max_message_size: 64K",
        &["wsc.max_message_size: expected a size such as \"64KiB\", \"10MB\" or a number of bytes, found \"64K\""],
    );
    refused(
        "queue: {policy: drop}",
        &["wsc.queue.policy: expected one of disconnect, drop_oldest, drop_newest, spill, found \"drop\""],
    );
    refused("log: {level: true}", &["wsc.log.level: expected one of off, error, warn, info, debug, trace, found true"]);
    refused("node_id: 12", &["wsc.node_id: expected text, found the number 12; put it in quotes"]);
    refused("queue: 5", &["wsc.queue: expected a section (a map of keys), found a single value"]);
    refused("ack_timeout:", &["wsc.ack_timeout: expected a duration such as \"100ms\" or \"24h\", found nothing"]);
    refused("trusted_proxies: 10.0.0.1", &["wsc.trusted_proxies: expected a list, found \"10.0.0.1\""]);
    refused(
        "listen: :8080",
        &[
            "wsc.listen: expected an IP address and port such as \"127.0.0.1:8080\", found \":8080\"; for all interfaces \
         write \"0.0.0.0:8080\"",
        ],
    );
}

#[test]
fn out_of_range_says_the_range() {
    refused("max_connections: 0", &["wsc.max_connections: 0 is out of range, allowed is 1 to 10000000"]);
    refused("max_connections: -5", &["wsc.max_connections: -5 is out of range, allowed is 1 to 10000000"]);
    refused("ping_interval: 0s", &["wsc.ping_interval: 0s is out of range, allowed is 10ms to 24h"]);
    refused("pong_timeout: 2h", &["wsc.pong_timeout: 2h is out of range, allowed is 10ms to 1h"]);
    refused("max_message_size: 1GiB", &["wsc.max_message_size: 1GiB is out of range, allowed is 128B to 64MiB"]);
    refused("backoff_factor: 0.5", &["wsc.backoff_factor: 0.5 is out of range, allowed is 1.0 to 100.0"]);
    refused("jitter: 2", &["wsc.jitter: 2.0 is out of range, allowed is 0.0 to 1.0"]);
    refused("ack_max_retries: 5000000000", &["wsc.ack_max_retries: 5000000000 is out of range, allowed is 0 to 100"]);
}

#[test]
fn reasons_come_from_the_closed_list() {
    refused(
        "retryable_errors: [queue_full, ack_timeout, temporary, tiemout]\nnon_retryable_errors: [ack_timeout, temporary]",
        &[
            "wsc.non_retryable_errors[0]: \"ack_timeout\" cannot be listed, ack_timeout, ack_max_retries and \
             ack_retry_interval alone decide about it",
            "wsc.non_retryable_errors[1]: \"temporary\" belongs in retryable_errors only",
            "wsc.retryable_errors[1]: \"ack_timeout\" cannot be listed, ack_timeout, ack_max_retries and \
             ack_retry_interval alone decide about it",
            "wsc.retryable_errors[3]: unknown failure reason \"tiemout\", did you mean \"timeout\"?",
        ],
    );
}

#[test]
fn lists_name_the_item() {
    refused(
        "trusted_proxies: [10.0.0.0/8, nowhere]",
        &["wsc.trusted_proxies[1]: expected an IP address or range such as \"10.0.0.7\" or \"10.0.0.0/8\", found \
         \"nowhere\""],
    );
    refused(
        "auth: {anonymous_permissions: [join:room, join:rom, 'admin:system:x', 'join:room:a*b']}",
        &[
            "wsc.auth.anonymous_permissions[1]: unknown permission \"join:rom\", did you mean \"join:room\"?",
            "wsc.auth.anonymous_permissions[2]: admin:system cannot be narrowed to a resource",
            "wsc.auth.anonymous_permissions[3]: \"*\" may stand only at the end, found \"a*b\"",
        ],
    );
    refused(
        "auth: {allowed_origins: ['https://a.example/', 'https://b.example']}",
        &["wsc.auth.allowed_origins[0]: expected an origin such as \"https://app.example.com\", without path or \
         wildcard, found \"https://a.example/\""],
    );
    refused(
        "callbacks: {event_filters: [client.*, message.snet]}",
        &["wsc.callbacks.event_filters[1]: unknown event \"message.snet\", did you mean \"message.sent\"?"],
    );
}

#[test]
fn keys_that_do_not_go_together() {
    refused("tls: {cert: a.pem}", &["wsc.tls.key: is missing, tls.cert is set: both or none"]);
    refused("tls: {key: a.pem}", &["wsc.tls.cert: is missing, tls.key is set: both or none"]);
    refused("base_delay: 10s", &["wsc.base_delay: is longer than max_delay"]);
    refused(
        "queue: {max_bytes: 1GiB, total_bytes: 1MiB}",
        &["wsc.queue.max_bytes: is larger than queue.total_bytes, which is for all connections together"],
    );
    refused(
        "drain: {delay: 30s}",
        &["wsc.drain.delay: is not shorter than drain.deadline, no connection would be drained"],
    );
    refused("http: {internal_listen: '127.0.0.1:8080'}", &["wsc.http.internal_listen: is the same address as listen"]);
    refused(
        "cluster: {redis: {mode: sentinel}, nats: {password: x}}",
        &[
            "wsc.cluster.nats.username: goes together with cluster.nats.password: both or none",
            "wsc.cluster.redis.master_name: is needed for cluster.redis.mode: sentinel",
        ],
    );
    refused(
        "auth: {secret_key: x, public_key: y, jwks_url: 'https://id.example/keys'}",
        &["wsc.auth.secret_key: auth.public_key, auth.jwks_url are set too, only one of them can be used"],
    );
}

#[test]
fn listening_beyond_loopback_needs_a_word() {
    refused(
        "listen: 0.0.0.0:8080",
        &["wsc.listen: 0.0.0.0:8080 can be reached from other machines while authentication is off; listen on \
         127.0.0.1:8080, or switch auth.enabled on, or write auth.allow_insecure: true"],
    );
    refused(
        "http: {internal_listen: '[::]:9090'}",
        &[
            "wsc.http.internal_listen: [::]:9090 can be reached from other machines while authentication is off; listen on \
         [::1]:9090, or switch auth.enabled on, or write auth.allow_insecure: true",
        ],
    );
    for good in [
        "listen: 0.0.0.0:8080\n  auth: {allow_insecure: true}",
        "listen: localhost:9000",
        "listen: '[::1]:0'",
        "listen: 127.8.8.8:1",
    ] {
        let text = format!("wsc:\n  {good}\n");
        load_str(Format::Yaml, &text, None, Strictness::Strict, []).unwrap();
    }
}

#[test]
fn what_is_not_built_is_refused_honestly() {
    refused(
        "cluster: {enabled: true, bus_type: redis}",
        &["wsc.cluster.enabled: cannot be switched on: clustering is not built yet in this version"],
    );
}

#[test]
fn authentication_needs_one_good_key() {
    refused(
        "auth: {enabled: true}",
        &["wsc.auth.enabled: needs a key to check tokens with: set one of auth.secret_key, auth.secret_key_file, \
         auth.public_key, auth.public_key_file, auth.jwks_url"],
    );
    refused(
        "auth: {enabled: true, secret_key: too-short}",
        &["wsc.auth.secret_key: has 9 bytes, at least 32 are needed"],
    );
    refused(
        "auth: {enabled: true, secret_key_file: a, jwks_url: 'https://id.example/keys'}",
        &["wsc.auth.secret_key_file: auth.jwks_url is set too, only one of them can be used"],
    );
    for good in [
        "{enabled: true, secret_key: 0123456789abcdef0123456789abcdef}",
        "{enabled: true, public_key_file: key.pem, allow_anonymous: true, anonymous_permissions: ['join:room:a-*']}",
        // Without `enabled` there is nobody who is anonymous: no effect, and no mistake either.
        "{allow_anonymous: true, anonymous_permissions: ['send:message']}",
        "{secret_key: short-but-not-used}",
    ] {
        let text = format!("wsc:\n  auth: {good}\n");
        load_str(Format::Yaml, &text, None, Strictness::Strict, []).unwrap();
    }
}

#[test]
fn webhooks_need_a_url_that_can_be_called() {
    let on = |rest: &str| format!("callbacks: {{enable_webhooks: true{rest}}}");
    refused(&on(""), &["wsc.callbacks.webhook_url: is needed while callbacks.enable_webhooks is true"]);
    for (url, message) in [
        ("hook.example/x", "expected a URL that starts with http:// or https://"),
        ("ftp://hook.example", "expected a URL that starts with http:// or https://"),
        (
            "https://me:word@hook.example/x",
            "a URL with user name or password is not accepted, they have keys of their own",
        ),
        ("https:///x", "the URL has no host, or spaces in it"),
        ("https://hook.example/a b", "the URL has no host, or spaces in it"),
        ("https://:443/x", "the URL is not well formed: empty host"),
        ("https://hook.example:99999/", "the URL is not well formed: invalid port number"),
        ("https://[::1/", "the URL is not well formed: invalid IPv6 address"),
    ] {
        refused(&on(&format!(", webhook_url: '{url}'")), &[&format!("wsc.callbacks.webhook_url: {message}")]);
    }
    for good in ["https://hook.example", "http://127.0.0.1:9/x?y=z", "https://[::1]:8443/", "https://hööks.example/"]
    {
        let text = format!("wsc:\n  {}\n", on(&format!(", webhook_url: '{good}'")));
        load_str(Format::Yaml, &text, None, Strictness::Strict, []).unwrap();
    }
}

#[test]
fn signing_secrets_are_what_they_look_like() {
    refused(
        "callbacks: {signing_secrets: [whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD, whsec_hunter2hunter2!!, whsec_QUJDREVGR0g=]}",
        &[
            "wsc.callbacks.signing_secrets[1]: is no base64 after \"whsec_\"",
            "wsc.callbacks.signing_secrets[2]: has 8 bytes, at least 16 are needed",
        ],
    );
    refused(
        "callbacks: {signing_secrets: [any text of 16 bytes, short]}",
        &["wsc.callbacks.signing_secrets[1]: has 5 bytes, at least 16 are needed"],
    );
}

#[test]
fn spilling_needs_an_inbox() {
    refused(
        "queue: {policy: spill}\nstorage: {kind: none}",
        &["wsc.queue.policy: \"spill\" needs the inbox: storage.kind is \"none\""],
    );
}

#[test]
fn secrets_never_show() {
    let text = "wsc:
  auth: {secret_key: [hunter2], public_key: ok}
  http: {api_keys: [hunter2, 1234567]}
  callbacks:
    webhook_url: https://user:hunter2@example.com/
    headers: {'A B': hunter2}
  cluster:
    nats: {urls: ['nats://user:hunter2@host'], token: 1234567}
  tls: hunter2
";
    let error = error(Format::Yaml, text);
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    assert!(!format!("{error} {error:?}").contains("1234567"), "{error}");
    assert_eq!(
        error.to_string().lines().collect::<Vec<_>>(),
        [
            "wsc.auth.secret_key: expected text, found a list",
            "wsc.callbacks.headers.A B: is no HTTP header name",
            "wsc.callbacks.webhook_url: a URL with user name or password is not accepted, they have keys of their own",
            "wsc.cluster.nats.token: expected text, found a number; put it in quotes",
            "wsc.cluster.nats.urls[0]: a URL with user name or password is not accepted, they have keys of their own",
            "wsc.http.api_keys[1]: expected text, found a number; put it in quotes",
            "wsc.tls: expected a section (a map of keys), found a single value",
        ]
    );
    let error = self::error(Format::Toml, "[wsc.auth]\nsecret_key = hunter2");
    assert_eq!(error.to_string(), "line 2, column 14: string values must be quoted, expected literal string");
}

#[test]
fn everything_is_reported_at_once_and_a_wrong_value_only_once() {
    refused(
        "max_delay: 1\nbase_delay: 10s\nlisten: nowhere\ncolour: red\ntls: {cert: a}\njitter: 7",
        &[
            "wsc.colour: unknown key",
            "wsc.jitter: 7.0 is out of range, allowed is 0.0 to 1.0",
            "wsc.listen: expected an IP address and port such as \"127.0.0.1:8080\", found \"nowhere\"",
            "wsc.max_delay: expected a duration such as \"100ms\" or \"24h\", found the number 1: it has no unit, write \
         \"1s\" or \"1ms\"",
            "wsc.tls.key: is missing, tls.cert is set: both or none",
        ],
    );
}

#[test]
fn syntax_errors_name_the_position() {
    for (format, text, message) in [
        (
            Format::Yaml,
            "wsc:\n\tlisten: x",
            "line 2, column 2: tabs disallowed within this context (block indentation)",
        ),
        (Format::Yaml, "wsc:\n  listen: a\n  listen: b", "line 3, column 11: duplicate key \"listen\""),
        (Format::Yaml, "wsc: *x", "line 1, column 6: while parsing node, found unknown anchor"),
        (Format::Yaml, "wsc:\n  jitter: .inf", "line 2, column 11: expected a finite number"),
        (Format::Yaml, "- 1", "expected a map with the section \"wsc\" at the top level"),
        (Format::Json, "{\n \"wsc\": }", "line 2, column 9: expected value"),
        (Format::Json, "{\"wsc\": {\"jitter\": 0,\n \"jitter\": 1}}", "line 2, column 9: duplicate key \"jitter\""),
        (Format::Json, "7", "expected a map with the section \"wsc\" at the top level"),
        (Format::Toml, "[wsc]\nlisten = = 2", "line 2, column 10: extra `=`, expected nothing"),
        (Format::Toml, "[wsc]\na = 1\na = 2", "line 3, column 1: duplicate key"),
    ] {
        assert_eq!(error(format, text).to_string(), message, "{text}");
    }
}

#[test]
fn hostile_nesting_and_aliases_are_refused() {
    let deep = format!("wsc: {}", "[".repeat(200_000));
    assert_eq!(error(Format::Yaml, &deep).to_string(), "line 1, column 261: recursion limit exceeded");
    let steps = format!("wsc:\n{}", "- ".repeat(200_000));
    assert!(error(Format::Yaml, &steps).to_string().ends_with("nested too deep"));
    for format in [Format::Json, Format::Toml] {
        assert!(matches!(error(format, &format!("a = {}", "[".repeat(200_000))), ConfigError::Syntax { .. }));
    }
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..12 {
        let of = format!("*a{}, ", n - 1).repeat(10);
        laughs.push_str(&format!("a{n}: &a{n} [{of}]\n"));
    }
    assert!(error(Format::Yaml, &laughs).to_string().ends_with("too many values"));
    let own = error(Format::Yaml, "wsc: &a [*a]").to_string();
    assert_eq!(own, "line 1, column 10: an alias stands inside of what it names");
}

#[test]
fn aliases_of_good_size_work() {
    let text = "wsc:\n  queue: &q {max_bytes: 2MiB}\nprod:\n  wsc:\n    queue: *q\n";
    let settings = load_str(Format::Yaml, text, Some("prod"), Strictness::Strict, []).unwrap();
    assert_eq!(settings.queue.max_bytes.to_string(), "2MiB");
}

#[test]
fn check_is_as_strict_with_a_programs_own_settings() {
    let mut settings = Settings::default();
    check(&settings).unwrap();
    settings.listen = ([0, 0, 0, 0], 80).into();
    settings.jitter = f64::NAN;
    settings.max_connections = 0;
    settings.retryable_errors = vec!["nonsense".to_owned()];
    let problems = check(&settings).unwrap_err();
    let kinds: Vec<_> = problems.iter().map(|problem| (problem.path(), problem.kind())).collect();
    assert_eq!(
        kinds,
        [
            ("wsc.jitter".to_owned(), ProblemKind::OutOfRange),
            ("wsc.listen".to_owned(), ProblemKind::Conflict),
            ("wsc.max_connections".to_owned(), ProblemKind::OutOfRange),
            ("wsc.retryable_errors[0]".to_owned(), ProblemKind::Invalid),
        ]
    );
}
