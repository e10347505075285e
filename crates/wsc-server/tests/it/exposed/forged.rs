//! Tokens that nobody gave out.

use serde_json::{Value, json};
use wsc_testkit::{ServerProcess, TokenKey, claims, unix_now};

use super::{
    BAD_TOKEN, OLD_TOKEN, SECRET, authenticate, connect, enter, expect_refusal, expect_unauthorized, guarded, secret,
};
use crate::support::{hub, upgrade};

/// Asserts that the token opens nothing: no upgrade, no request, no renewal.
async fn expect_forged(server: &ServerProcess, what: &str, token: &str) {
    println!("{what}");
    expect_refusal(server, Some(token), BAD_TOKEN).await;
    let response = upgrade(server, "/ws", |h| h.add("Authorization", &format!("Bearer {token}"))).await;
    assert_eq!(response.status, 401, "{what}: {response:?}");
    expect_unauthorized(server, token, 2003).await;
}

fn root() -> Value {
    claims("alice", json!({"permissions": ["admin:system"]}))
}

/// The parts of a token: header, payload, signature.
fn parts(token: &str) -> [&str; 3] {
    let parts: Vec<&str> = token.split('.').collect();
    parts.try_into().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_algorithm_of_none_is_refused_however_it_is_spelt() {
    let server = guarded("", "").await;
    for alg in ["none", "None", "NONE", "nOnE", "none ", " none", "", "HS256 ", "hs256", "HS-256", "null"] {
        let signed = secret().token_with(&json!({"alg": alg, "typ": "JWT"}), &root());
        let [header, payload, _] = parts(&signed);
        for (what, token) in [
            ("signed", signed.clone()),
            ("without signature", format!("{header}.{payload}.")),
            ("without the last dot", format!("{header}.{payload}")),
            ("with rubbish for a signature", format!("{header}.{payload}.AAAA")),
        ] {
            expect_forged(&server, &format!("alg {alg:?} {what}"), &token).await;
        }
    }
    for header in
        [json!({"typ": "JWT"}), json!({"alg": null}), json!({"alg": 0}), json!({"alg": ["none"]}), json!("none")]
    {
        expect_forged(&server, &format!("header {header}"), &secret().token_with(&header, &root())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_public_key_is_no_shared_secret() {
    for key in [TokenKey::rsa(), TokenKey::ec(), TokenKey::ed25519()] {
        let pem = key.public_pem();
        let quoted = json!(pem).to_string();
        let server = hub(&format!("auth: {{enabled: true, public_key: {quoted}}}")).await;
        connect(&server, &key.token(&claims("alice", json!({})))).await.expect_quiet().await;
        for algorithm in ["HS256", "HS384", "HS512"] {
            for secret in [pem.as_str(), pem.trim_end(), ""] {
                let forger = TokenKey::secret(algorithm, secret);
                for alg in [algorithm, key.algorithm(), "none"] {
                    let token = forger.token_with(&json!({"alg": alg, "typ": "JWT"}), &root());
                    expect_forged(&server, &format!("{algorithm} as {alg} with the public key"), &token).await;
                }
            }
        }
        // Another key of the same kind; and keys of the other kinds under this one's name.
        for other in [TokenKey::rsa(), TokenKey::ec(), TokenKey::ed25519()] {
            let token = other.token_with(&json!({"alg": key.algorithm(), "typ": "JWT"}), &root());
            expect_forged(&server, &format!("{other:?} as {}", key.algorithm()), &token).await;
            expect_forged(&server, &format!("{other:?} as itself"), &other.token(&root())).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_signs_only_what_belongs_to_secrets() {
    let server = guarded("", "").await;
    for algorithm in ["HS256", "HS384", "HS512"] {
        let good = TokenKey::secret(algorithm, SECRET).token(&claims("alice", json!({})));
        assert_eq!(connect(&server, &good).await.user_id(), "alice");
        for alg in ["RS256", "ES256", "EdDSA", "PS256", "ES384", "HS1", "dir", "A128KW"] {
            let token = TokenKey::secret(algorithm, SECRET).token_with(&json!({"alg": alg}), &root());
            expect_forged(&server, &format!("{algorithm} as {alg}"), &token).await;
        }
    }
    let wrong = [
        String::new(),
        SECRET[..SECRET.len() - 1].to_owned(),
        format!("{SECRET}\n"),
        SECRET.to_uppercase(),
        "secret".to_owned(),
    ];
    for secret in wrong {
        let token = TokenKey::secret("HS256", &secret).token(&root());
        expect_forged(&server, &format!("another secret: {secret:?}"), &token).await;
    }
    for key in [TokenKey::rsa(), TokenKey::ec(), TokenKey::ed25519()] {
        expect_forged(&server, &format!("{key:?}"), &key.token(&root())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_changes_a_token_breaks_it() {
    let server = guarded("", "").await;
    let good = secret().token(&claims("alice", json!({})));
    connect(&server, &good).await;
    let [header, payload, signature] = parts(&good);
    let rich = secret().token(&root());
    let [_, rich_payload, rich_signature] = parts(&rich);
    let longer = TokenKey::secret("HS384", SECRET).token(&claims("alice", json!({})));
    for (what, token) in [
        ("payload of another", format!("{header}.{rich_payload}.{signature}")),
        ("signature of another", format!("{header}.{payload}.{rich_signature}")),
        ("no signature", format!("{header}.{payload}.")),
        ("half a signature", format!("{header}.{payload}.{}", &signature[..signature.len() / 2])),
        ("signature twice", format!("{header}.{payload}.{signature}{signature}")),
        ("four parts", format!("{header}.{payload}.{signature}.{signature}")),
        ("five parts", format!("{header}.{payload}.{signature}..")),
        ("a dot in front", format!(".{good}")),
        ("padding", format!("{header}.{payload}.{signature}=")),
        ("another alphabet", format!("{header}.{payload}.+/{}", &signature[2..])),
        ("header of another algorithm", format!("{}.{payload}.{signature}", parts(&longer)[0])),
        ("the parts swapped", format!("{payload}.{header}.{signature}")),
    ] {
        expect_forged(&server, what, &token).await;
    }
    // Every character counts, save those of which only some bits do.
    for at in (0..good.len()).step_by(7) {
        let mut bytes = good.clone().into_bytes();
        bytes[at] = match bytes[at] {
            b'.' => continue,
            b'A' => b'Q',
            _ => b'A',
        };
        let token = String::from_utf8(bytes).unwrap();
        if token != good && at + 1 != good.len() {
            expect_unauthorized(&server, &token, 2003).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_that_bound_a_token_must_be_there_and_right() {
    let server = guarded("audience: hub-1", "").await;
    let aud = |changes: Value| {
        let mut all = claims("alice", changes);
        if all.get("aud").is_none() {
            all["aud"] = json!("hub-1");
        }
        secret().token(&all)
    };
    connect(&server, &aud(json!({}))).await.expect_quiet().await;
    connect(&server, &aud(json!({"aud": ["other", "hub-1"]}))).await.expect_quiet().await;
    let now = unix_now();
    for (what, token) in [
        ("no exp", aud(json!({"exp": null}))),
        ("exp as text", aud(json!({"exp": (now + 60).to_string()}))),
        ("exp as object", aud(json!({"exp": {}}))),
        ("exp true", aud(json!({"exp": true}))),
        ("no iss", aud(json!({"iss": null}))),
        ("another iss", aud(json!({"iss": "evil"}))),
        ("iss in another case", aud(json!({"iss": "WSC"}))),
        ("iss as object", aud(json!({"iss": {"wsc": 1}}))),
        ("another aud", aud(json!({"aud": "hub-2"}))),
        ("aud as a beginning", aud(json!({"aud": "hub-"}))),
        ("aud empty", aud(json!({"aud": []}))),
        ("aud as object", aud(json!({"aud": {"hub-1": true}}))),
        ("no aud", secret().token(&claims("alice", json!({})))),
        ("nbf in the future", aud(json!({"nbf": now + 60}))),
    ] {
        expect_forged(&server, what, &token).await;
    }
    for exp in [now - 1, 1, 0] {
        expect_refusal(&server, Some(&aud(json!({"exp": exp}))), OLD_TOKEN).await;
    }
    // A forged token does not get to hear that it would have been too old anyway.
    let token = TokenKey::secret("HS256", "x".repeat(40)).token(&claims("alice", json!({"aud": "hub-1", "exp": 1})));
    expect_forged(&server, "forged and old", &token).await;
    connect(&server, &aud(json!({"nbf": now - 1}))).await.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_at_the_edge_of_time_break_nothing() {
    let server = guarded("", "").await;
    let payload = |exp: &str| {
        secret().token_of(r#"{"alg":"HS256"}"#, &format!(r#"{{"user_id":"alice","iss":"wsc","exp":{exp}}}"#))
    };
    for exp in ["-1", "0", "1e3", "-1e400", "1.5"] {
        let response = upgrade(&server, &format!("/ws?token={}", payload(exp)), |h| h).await;
        assert_eq!(response.status, 401, "{exp}: {response:?}");
    }
    for exp in ["1e400", "18446744073709551615", "18446744073709551616", "9e99", "9223372036854775807", "1e18"] {
        let response = upgrade(&server, &format!("/ws?token={}", payload(exp)), |h| h).await;
        assert!(matches!(response.status, 101 | 401), "{exp}: {response:?}");
    }
    enter(&server, "alice").await.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_json_and_odd_headers_open_nothing() {
    let server = guarded("", "").await;
    let good = r#"{"alg":"HS256","typ":"JWT"}"#;
    let body = |rest: &str| format!(r#"{{"user_id":"alice","iss":"wsc","exp":{},{rest}}}"#, unix_now() + 60);
    for (what, header, payload) in [
        ("payload is an array", good, r#"["alice"]"#.to_owned()),
        ("payload is text", good, r#""alice""#.to_owned()),
        ("payload is empty", good, String::new()),
        ("payload is no JSON", good, "{user_id: alice}".to_owned()),
        ("payload is followed by something", good, format!("{}{{}}", root())),
        ("payload is not UTF-8 text", good, "{\"user_id\":\"\\ud800\"}".to_owned()),
        ("payload is nested", good, format!(r#"{{"x":{}1{}}}"#, "[".repeat(4000), "]".repeat(4000))),
        ("header is an array", r#"["HS256"]"#, root().to_string()),
        ("header is empty", "", root().to_string()),
        ("header is no JSON", "alg: HS256", root().to_string()),
        ("a critical extension", r#"{"alg":"HS256","crit":["b64"],"b64":false}"#, root().to_string()),
        ("an unknown critical extension", r#"{"alg":"HS256","crit":["x"],"x":1}"#, root().to_string()),
        ("algorithm twice, none first", r#"{"alg":"none","alg":"HS256"}"#, root().to_string()),
        ("algorithm twice, none last", r#"{"alg":"HS256","alg":"none"}"#, root().to_string()),
        ("user twice", good, body(r#""user_id":"bob""#)),
        ("expiry twice", good, body(r#""exp":99999999999"#)),
        ("permissions twice", good, body(r#""permissions":[],"permissions":["admin:system"]"#)),
    ] {
        expect_forged(&server, what, &secret().token_of(header, &payload)).await;
    }
    // A key of their own, brought along, is not ours.
    let forger = TokenKey::rsa();
    for header in [
        json!({"alg": "RS256", "jwk": forger.jwk("k")}),
        json!({"alg": "RS256", "jku": "http://127.0.0.1:1/keys", "kid": "k"}),
        json!({"alg": "RS256", "x5u": "http://127.0.0.1:1/cert"}),
        json!({"alg": "RS256", "x5c": [forger.public_pem()]}),
    ] {
        expect_forged(&server, &format!("{header}"), &forger.token_with(&header, &root())).await;
    }
    // Where there is one key, its name says nothing, whatever it is.
    for kid in ["../../../dev/null", "/dev/null", "' OR 1=1 --", "\0", "http://127.0.0.1:1/", "x\r\nX-Evil: 1"] {
        let header = json!({"alg": "HS256", "kid": kid});
        expect_forged(&server, kid, &TokenKey::secret("HS256", "").token_with(&header, &root())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_huge_token_is_refused_unread() {
    let server = guarded("", "").await;
    // Signed with the right key, so that its size alone speaks against it.
    let huge = secret().token(&claims("alice", json!({"filler": "x".repeat(100_000)})));
    let answer = super::call(&server, "GET", "/api/stats", &huge, None).await;
    assert!(matches!(answer.status, 401 | 431), "{answer:?}");
    let response = upgrade(&server, "/ws", |h| h.add("Authorization", &format!("Bearer {huge}"))).await;
    assert!(matches!(response.status, 400 | 401 | 414 | 431), "{response:?}");
    let mut alice = enter(&server, "alice").await;
    let reply =
        alice.request(authenticate(&secret().token(&claims("alice", json!({"filler": "x".repeat(40_000)}))))).await;
    assert_eq!(reply["data"]["code"], 2003, "{reply}");
    alice.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_band_a_forged_token_is_refused_as_well() {
    let server = guarded("", "").await;
    let mut alice = enter(&server, "alice").await;
    let forger = TokenKey::secret("HS256", "x".repeat(40));
    let signed = secret().token_with(&json!({"alg": "none"}), &root());
    let [header, payload, _] = parts(&signed);
    for token in [forger.token(&root()), signed.clone(), format!("{header}.{payload}.")] {
        alice.request_error(authenticate(&token), 2003).await;
    }
    alice.request_error(json!({"message_type": "create_room", "data": {"room_id": "__r"}}), 1001).await;
    alice.expect_quiet().await;
}
