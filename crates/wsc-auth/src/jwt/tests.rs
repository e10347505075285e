//! Somebody who wants in without a key, or with less than one.

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use proptest::prelude::*;
use rcgen::{
    KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, PublicKeyData, RsaKeySize,
    SignatureAlgorithm,
};
use serde_json::{Value, json};
use wsc_protocol::{Id, UserType};

use super::{authenticator::Verifier, *};
use crate::{AuthError, Authenticator, Identity, MAX_TOKEN_ID_LEN, Permission, Permissions};

const SECRET: &str = "a shared key of 32 bytes at least";

/// The moment at which tokens are checked here, in Unix seconds.
const NOW: u64 = 1_763_600_000;

static RSA: LazyLock<KeyPair> =
    LazyLock::new(|| KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap());
static EC: LazyLock<KeyPair> = LazyLock::new(|| new_key(&PKCS_ECDSA_P256_SHA256));
static ED: LazyLock<KeyPair> = LazyLock::new(|| new_key(&PKCS_ED25519));

fn new_key(algorithm: &'static SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(algorithm).unwrap()
}

fn secret() -> JwtConfig {
    JwtConfig::new(JwtKey::Secret(SECRET.into()))
}

fn public(key: &KeyPair) -> JwtConfig {
    JwtConfig::new(JwtKey::PublicPem(key.public_key_pem()))
}

/// What becomes of a token at [`NOW`].
fn check(config: JwtConfig, token: &str) -> Result<Identity, TokenProblem> {
    let verifier = Verifier::new(config, None).unwrap();
    // A key that is there is not waited for.
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(verifier.identity(token, || NOW * 1000))
}

/// Signs these bytes as header and claims, whatever they say.
fn sign(header: &str, claims: &str, key: &EncodingKey, algorithm: Algorithm) -> String {
    let message = format!("{}.{}", BASE64.encode(header), BASE64.encode(claims));
    let signature = crypto::sign(message.as_bytes(), key, algorithm).unwrap();
    format!("{message}.{signature}")
}

/// Signs claims with the shared key.
fn signed(claims: &str) -> String {
    sign(r#"{"alg":"HS256","typ":"JWT"}"#, claims, &EncodingKey::from_secret(SECRET.as_bytes()), Algorithm::HS256)
}

/// A good token's claims, with these instead: `null` takes one out.
fn claims(changes: Value) -> String {
    let mut claims = json!({ "user_id": "alice", "exp": NOW + 60 });
    if let (Value::Object(claims), Value::Object(changes)) = (&mut claims, changes) {
        claims.extend(changes);
        claims.retain(|_, value| !value.is_null());
    }
    claims.to_string()
}

fn with(changes: Value) -> Result<Identity, TokenProblem> {
    check(secret(), &signed(&claims(changes)))
}

#[test]
fn a_good_token_says_who_it_is() {
    let identity = with(json!({
        "username": "Alice", "user_type": "agent", "permissions": ["join:room", "send:message:@bob"],
        "jti": "t-1", "iat": NOW - 5, "iss": "somebody", "aud": ["a", "b"], "other": {"claims": ["are", "ignored"]},
    }))
    .unwrap();
    let expected =
        Identity::new(Id::new("alice").unwrap(), Permissions::parse(["join:room", "send:message:@bob"]).unwrap())
            .with_username("Alice")
            .with_user_type(UserType::Agent)
            .with_token_id("t-1")
            .with_issued_at(NOW - 5)
            .with_expires_at(NOW + 60);
    assert_eq!(identity, expected);
    assert_eq!(with(json!({})).unwrap().permissions, Permissions::none());
}

#[test]
fn each_algorithm_works_with_its_key() {
    for (algorithm, name) in [(Algorithm::HS256, "HS256"), (Algorithm::HS384, "HS384"), (Algorithm::HS512, "HS512")] {
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        let token = sign(&json!({ "alg": name }).to_string(), &claims(json!({})), &key, algorithm);
        assert!(check(secret(), &token).is_ok(), "{name}");
    }
    for key in [&*RSA, &*EC, &*ED] {
        let issuer = TokenIssuer::from_private_pem(&key.serialize_pem()).unwrap();
        let token = issuer.issue(&TokenClaims::new(Id::new("alice").unwrap(), NOW, NOW + 1)).unwrap();
        assert_eq!(check(public(key), &token).unwrap().user_id.as_str(), "alice", "{issuer:?}");
    }
}

#[test]
fn no_signature_is_no_token() {
    let payload = BASE64.encode(claims(json!({})));
    for alg in ["none", "None", "NONE", "nOnE", "", "HS256"] {
        let header = BASE64.encode(json!({ "alg": alg, "typ": "JWT" }).to_string());
        for token in [format!("{header}.{payload}."), format!("{header}.{payload}")] {
            for config in [secret(), public(&RSA)] {
                assert!(check(config, &token).is_err(), "{alg} {token}");
            }
        }
    }
    let no_alg = BASE64.encode(r#"{"typ":"JWT"}"#);
    assert_eq!(check(secret(), &format!("{no_alg}.{payload}.")), Err(TokenProblem::Malformed));
}

#[test]
fn a_public_key_is_no_secret() {
    // What a library that believes the header would accept: an HMAC with the public key's text, or its bytes.
    for key in [&*RSA, &*EC, &*ED] {
        let pem = key.public_key_pem();
        let trimmed = pem.trim().to_owned();
        let der = key.subject_public_key_info();
        for secret in [pem.as_bytes(), trimmed.as_bytes(), der.as_slice(), key.public_key_raw()] {
            let secret = EncodingKey::from_secret(secret);
            for (alg, name) in [(Algorithm::HS256, "HS256"), (Algorithm::HS512, "HS512")] {
                let token = sign(&json!({ "alg": name }).to_string(), &claims(json!({})), &secret, alg);
                assert_eq!(check(public(key), &token), Err(TokenProblem::Algorithm));
            }
            // The same signature under the name of an algorithm that fits.
            for name in ["RS256", "ES256", "EdDSA"] {
                let token = sign(&json!({ "alg": name }).to_string(), &claims(json!({})), &secret, Algorithm::HS256);
                assert!(check(public(key), &token).is_err(), "{name}");
            }
        }
    }
    let config = JwtConfig::new(JwtKey::Secret(RSA.public_key_pem().into()));
    assert!(matches!(JwtAuthenticator::new(config), Err(JwtError::SecretIsPem)));
}

#[test]
fn another_key_is_another_key() {
    let other = EncodingKey::from_secret(b"another shared key of 32 bytes or so");
    let token = sign(r#"{"alg":"HS256"}"#, &claims(json!({})), &other, Algorithm::HS256);
    assert_eq!(check(secret(), &token), Err(TokenProblem::Signature));
    for (algorithm, mine) in [(&PKCS_ECDSA_P256_SHA256, &*EC), (&PKCS_ED25519, &*ED)] {
        let issuer = TokenIssuer::from_private_pem(&new_key(algorithm).serialize_pem()).unwrap();
        let token = issuer.issue(&TokenClaims::new(Id::new("alice").unwrap(), NOW, NOW + 1)).unwrap();
        assert_eq!(check(public(mine), &token), Err(TokenProblem::Signature));
    }
    let other = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    let issuer = TokenIssuer::from_private_pem(&other.serialize_pem()).unwrap();
    let token = issuer.issue(&TokenClaims::new(Id::new("alice").unwrap(), NOW, NOW + 1)).unwrap();
    assert_eq!(check(public(&RSA), &token), Err(TokenProblem::Signature));
}

#[test]
fn an_algorithm_of_the_same_family_that_is_not_offered_is_refused() {
    let key = EncodingKey::from_rsa_pem(RSA.serialize_pem().as_bytes()).unwrap();
    for (alg, name) in [(Algorithm::RS384, "RS384"), (Algorithm::RS512, "RS512"), (Algorithm::PS256, "PS256")] {
        let token = sign(&json!({ "alg": name }).to_string(), &claims(json!({})), &key, alg);
        assert_eq!(check(public(&RSA), &token), Err(TokenProblem::Algorithm), "{name}");
    }
}

#[test]
fn a_key_in_the_header_is_nobodys() {
    // The attacker's own key, offered in the ways that a header has.
    let mine = new_key(&PKCS_ECDSA_P256_SHA256);
    let raw = mine.public_key_raw();
    let jwk = json!({
        "kty": "EC", "crv": "P-256", "kid": "k",
        "x": BASE64.encode(&raw[1..33]), "y": BASE64.encode(&raw[33..]),
    });
    let key = EncodingKey::from_ec_pem(mine.serialize_pem().as_bytes()).unwrap();
    for header in [
        json!({ "alg": "ES256", "jwk": jwk }),
        json!({ "alg": "ES256", "jku": "http://127.0.0.1:9/keys", "kid": "k" }),
        json!({ "alg": "ES256", "x5u": "http://127.0.0.1:9/cert", "kid": "../../dev/null" }),
        json!({ "alg": "ES256", "x5c": [BASE64.encode(mine.subject_public_key_info())] }),
    ] {
        let token = sign(&header.to_string(), &claims(json!({})), &key, Algorithm::ES256);
        assert_eq!(check(public(&EC), &token), Err(TokenProblem::Signature), "{header}");
    }
}

#[test]
fn extensions_that_nobody_understands_are_not_overlooked() {
    for header in [
        json!({ "alg": "HS256", "crit": ["exp"], "exp": 1 }),
        json!({ "alg": "HS256", "crit": [] }),
        json!({ "alg": "HS256", "crit": ["b64"], "b64": false }),
    ] {
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        let token = sign(&header.to_string(), &claims(json!({})), &key, Algorithm::HS256);
        assert_eq!(check(secret(), &token), Err(TokenProblem::CriticalHeader), "{header}");
    }
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let token = sign(r#"{"alg":"HS256","crit":"exp"}"#, &claims(json!({})), &key, Algorithm::HS256);
    assert_eq!(check(secret(), &token), Err(TokenProblem::Malformed));
}

#[test]
fn a_token_runs_out_to_the_millisecond() {
    for (exp, leeway, valid) in [
        (json!(NOW + 1), 0, true),
        (json!(NOW as f64 + 0.001), 0, true),
        (json!(NOW), 0, false),
        (json!(NOW - 1), 0, false),
        (json!(NOW - 1), 1, false),
        (json!(NOW - 1), 2, true),
        (json!(0), 300, false),
        (json!(-5), 300, false),
        (json!(1e300), 0, true),
    ] {
        let mut config = secret();
        config.leeway = Duration::from_secs(leeway);
        let answer = check(config, &signed(&claims(json!({ "exp": exp }))));
        assert_eq!(answer.is_ok(), valid, "{exp} {leeway}");
        if !valid {
            assert_eq!(answer, Err(TokenProblem::Expired), "{exp} {leeway}");
        }
    }
    // No moment from a token makes a sum overflow.
    assert!(with(json!({ "exp": 1e300 })).unwrap().expires_at.unwrap() < 1 << 40);
}

#[test]
fn a_token_without_an_end_is_refused() {
    assert_eq!(with(json!({ "exp": null })), Err(TokenProblem::NoExpiry));
    assert_eq!(check(secret(), &signed(r#"{"user_id":"alice","exp":null}"#)), Err(TokenProblem::NoExpiry));
    for exp in [json!("1999999999"), json!([NOW + 60]), json!(true), json!({})] {
        assert_eq!(with(json!({ "exp": exp })), Err(TokenProblem::Claims), "{exp}");
    }
}

#[test]
fn who_learns_that_a_token_has_run_out_holds_one_that_was_good() {
    let expired = claims(json!({ "exp": NOW - 1 }));
    let other = EncodingKey::from_secret(b"another shared key of 32 bytes or so");
    let forged = sign(r#"{"alg":"HS256"}"#, &expired, &other, Algorithm::HS256);
    assert_eq!(check(secret(), &forged).map_err(AuthError::from), Err(AuthError::Invalid));
    assert_eq!(check(secret(), &signed(&expired)).map_err(AuthError::from), Err(AuthError::Expired));
    // Nor does one that would not be good after a renewal either.
    let mut config = secret();
    config.issuer = Some("wsc".into());
    assert_eq!(check(config, &signed(&expired)), Err(TokenProblem::Issuer));
    assert_eq!(with(json!({ "exp": NOW - 1, "user_id": "" })), Err(TokenProblem::UserId));
}

#[test]
fn a_token_for_later_is_not_for_now() {
    for (nbf, leeway, valid) in [
        (json!(NOW), 0, true),
        (json!(NOW + 1), 0, false),
        (json!(NOW + 1), 1, true),
        (json!(NOW as f64 + 0.5), 0, false),
        (json!(1e300), 300, false),
    ] {
        let mut config = secret();
        config.leeway = Duration::from_secs(leeway);
        let answer = check(config, &signed(&claims(json!({ "nbf": nbf }))));
        assert_eq!(answer.err(), (!valid).then_some(TokenProblem::NotYet), "{nbf} {leeway}");
    }
    assert_eq!(with(json!({ "nbf": "soon" })), Err(TokenProblem::Claims));
}

#[test]
fn issuer_and_audience_must_be_the_ones_that_are_set() {
    let ask = |issuer: Option<&str>, audience: Option<&str>, changes| {
        let mut config = secret();
        config.issuer = issuer.map(Into::into);
        config.audience = audience.map(Into::into);
        check(config, &signed(&claims(changes))).err()
    };
    for (iss, expected) in [
        (json!("wsc"), None),
        (json!("WSC"), Some(TokenProblem::Issuer)),
        (json!("wsc "), Some(TokenProblem::Issuer)),
        (json!(""), Some(TokenProblem::Issuer)),
        (json!(7), Some(TokenProblem::Issuer)),
        (json!(null), Some(TokenProblem::Issuer)),
    ] {
        assert_eq!(ask(Some("wsc"), None, json!({ "iss": iss })), expected, "{iss}");
        assert_eq!(ask(None, None, json!({ "iss": iss })), None, "{iss}");
    }
    for (aud, expected) in [
        (json!("hub"), None),
        (json!(["other", "hub"]), None),
        (json!(["other"]), Some(TokenProblem::Audience)),
        (json!([]), Some(TokenProblem::Audience)),
        (json!("hu"), Some(TokenProblem::Audience)),
        (json!({ "hub": true }), Some(TokenProblem::Audience)),
        (json!(null), Some(TokenProblem::Audience)),
    ] {
        assert_eq!(ask(None, Some("hub"), json!({ "aud": aud })), expected, "{aud}");
        assert_eq!(ask(None, None, json!({ "aud": aud })), None, "{aud}");
    }
}

#[test]
fn the_user_is_named_plainly_or_not_at_all() {
    for (changes, expected) in [
        (json!({ "user_id": "bob", "sub": "carol" }), Some("bob")),
        (json!({ "user_id": null, "sub": "carol" }), Some("carol")),
        (json!({ "user_id": 7 }), Some("7")),
        (json!({ "user_id": -7 }), Some("-7")),
        (json!({ "user_id": u64::MAX }), Some("18446744073709551615")),
        (json!({ "user_id": 7.0 }), None),
        (json!({ "user_id": 7.5 }), None),
        (json!({ "user_id": true }), None),
        (json!({ "user_id": ["alice"] }), None),
        (json!({ "user_id": "" }), None),
        // A bad one is not made good by another claim.
        (json!({ "user_id": "", "sub": "carol" }), None),
        (json!({ "user_id": "__system" }), None),
        (json!({ "user_id": "wsc.system" }), None),
        (json!({ "user_id": "anon:1" }), None),
        (json!({ "user_id": "a\nb" }), None),
        (json!({ "user_id": "x".repeat(129) }), None),
        (json!({ "user_id": null }), None),
    ] {
        let answer = with(changes.clone());
        match expected {
            Some(id) => assert_eq!(answer.unwrap().user_id.as_str(), id, "{changes}"),
            None => assert_eq!(answer, Err(TokenProblem::UserId), "{changes}"),
        }
    }
    // More digits than an integer holds.
    let long = r#"{"user_id":123456789012345678901,"exp":1999999999}"#;
    assert_eq!(check(secret(), &signed(long)), Err(TokenProblem::UserId));
}

#[test]
fn a_claim_of_the_wrong_kind_is_no_claim() {
    for changes in [
        json!({ "permissions": "admin:system" }),
        json!({ "permissions": { "admin:system": true } }),
        json!({ "permissions": ["join:room", 7] }),
        json!({ "permissions": [["admin:system"]] }),
        json!({ "username": 7 }),
        json!({ "user_type": ["admin"] }),
        json!({ "jti": 7 }),
        json!({ "iat": "now" }),
    ] {
        assert_eq!(with(changes.clone()), Err(TokenProblem::Claims), "{changes}");
    }
    for kind in ["root", "Admin", "", "admin "] {
        assert_eq!(with(json!({ "user_type": kind })), Err(TokenProblem::UserType), "{kind:?}");
    }
    // Which of the two counts is not for two readers to answer differently.
    for twice in [r#""user_id":"alice","user_id":"root""#, r#""user_id":"a","exp":1,"exp":1999999999"#] {
        let claims = format!(r#"{{{twice},"exp":1999999999}}"#);
        assert_eq!(check(secret(), &signed(&claims)), Err(TokenProblem::Claims), "{claims}");
    }
    for claims in ["[]", "null", "\"alice\"", "", "{", "{}x", "\u{feff}{}"] {
        assert!(check(secret(), &signed(claims)).is_err(), "{claims:?}");
    }
}

#[test]
fn permissions_that_the_hub_does_not_know_grant_nothing() {
    let identity =
        with(json!({ "permissions": ["openid", "*", "admin:*", "ADMIN:SYSTEM", "join:room:a*", ""] })).unwrap();
    assert_eq!(identity.permissions, Permissions::parse(["join:room:a*"]).unwrap());
}

#[test]
fn moments_may_have_fractions() {
    let identity = with(json!({ "iat": NOW as f64 - 0.25, "exp": NOW as f64 + 1.75 })).unwrap();
    assert_eq!(identity.issued_at_ms, Some(NOW * 1000 - 250));
    assert_eq!((identity.issued_at, identity.expires_at), (Some(NOW - 1), Some(NOW + 1)));
}

#[test]
fn a_tokens_own_id_is_bounded() {
    assert_eq!(with(json!({ "jti": "" })).unwrap().token_id, None);
    assert!(with(json!({ "jti": "x".repeat(MAX_TOKEN_ID_LEN) })).is_ok());
    assert_eq!(with(json!({ "jti": "x".repeat(MAX_TOKEN_ID_LEN + 1) })), Err(TokenProblem::TokenId));
}

#[test]
fn what_is_too_long_is_not_read() {
    let sized = |filling: usize| signed(&claims(json!({ "other": "x".repeat(filling) })));
    // Base64 writes four bytes for three, so that not every length can be had.
    let filling = (5500..6200).take_while(|&n| sized(n).len() <= MAX_TOKEN_LEN).last().unwrap();
    assert!(sized(filling).len() > MAX_TOKEN_LEN - 3);
    assert!(check(secret(), &sized(filling)).is_ok());
    assert_eq!(check(secret(), &sized(filling + 1)), Err(TokenProblem::TooLong));
    assert_eq!(check(secret(), &".".repeat(1 << 20)), Err(TokenProblem::TooLong));
    assert_eq!(check(secret(), ""), Err(TokenProblem::Missing));
}

#[test]
fn deep_json_ends_in_a_refusal() {
    let nested = format!("{}{}", "[".repeat(2000), "]".repeat(2000));
    let as_user = format!(r#"{{"user_id":{nested},"exp":1999999999}}"#);
    assert_eq!(check(secret(), &signed(&as_user)), Err(TokenProblem::Claims));
    // Where nobody looks it does no harm.
    let ignored = format!(r#"{{"user_id":"alice","exp":1999999999,"x":{nested}}}"#);
    assert!(check(secret(), &signed(&ignored)).is_ok());
    let header = format!(r#"{{"alg":"HS256","x":{}{}}}"#, "[".repeat(1500), "]".repeat(1500));
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let token = sign(&header, &claims(json!({})), &key, Algorithm::HS256);
    assert_eq!(check(secret(), &token), Err(TokenProblem::Malformed));
}

#[test]
fn keys_that_could_be_guessed_or_broken_are_refused_and_not_shown() {
    let problem = |key: JwtKey| {
        let debug = format!("{key:?}");
        assert!(debug.ends_with("(***)"), "{debug}");
        JwtAuthenticator::new(JwtConfig::new(key)).unwrap_err().to_string()
    };
    let pem = |text: &str| problem(JwtKey::PublicPem(text.to_owned()));
    let p384 = new_key(&PKCS_ECDSA_P384_SHA384);
    let two = format!("{}{}", EC.public_key_pem(), RSA.public_key_pem());
    let cut = RSA
        .public_key_pem()
        .lines()
        .enumerate()
        .filter(|(n, _)| *n != 3)
        .map(|(_, l)| format!("{l}\n"))
        .collect::<String>();
    for (text, part) in [
        (problem(JwtKey::Secret("hunter2".into())), "7 bytes"),
        (problem(JwtKey::Secret("x".repeat(31).into())), "31 bytes"),
        (problem(JwtKey::Secret("".into())), "0 bytes"),
        (pem("hunter2"), "no PEM"),
        (pem(""), "no PEM"),
        (pem("-----BEGIN PUBLIC KEY-----\nhunter2\n-----END PUBLIC KEY-----\n"), "no PEM"),
        (pem(&cut), ""),
        (pem(&two), "2 PEM sections"),
        (pem(&EC.serialize_pem()), "private"),
        (pem(CERTIFICATE), "certificate"),
        (pem(RSA_1024), "1024 bits"),
        (pem(SECP256K1), "P-256"),
        (pem(&p384.public_key_pem()), "P-256"),
    ] {
        assert!(text.contains(part), "{text}: no {part}");
        assert!(!text.contains("hunter2"), "{text}");
    }
    let long = "hunter2-hunter2-hunter2-hunter2-hunter2";
    let authenticator = JwtAuthenticator::new(JwtConfig::new(JwtKey::Secret(long.into()))).unwrap();
    let prepared = authenticator.prepare(JwtConfig::new(JwtKey::Secret(long.into()))).unwrap();
    let issuer = TokenIssuer::from_secret(&long.into(), HmacAlgorithm::Hs256).unwrap();
    let config = JwtConfig::new(JwtKey::Secret(long.into()));
    for debug in [
        format!("{authenticator:?}"),
        format!("{prepared:?}"),
        format!("{issuer:?}"),
        format!("{config:?}"),
        format!("{:?}", JwtKey::KeySet { url: "https://me:hunter2@idp".into() }),
    ] {
        assert!(!debug.contains("hunter2"), "{debug}");
    }
}

#[test]
fn a_key_that_cannot_sign_is_refused() {
    let refused = |pem: &str| TokenIssuer::from_private_pem(pem).unwrap_err().to_string();
    for (text, part) in [
        (refused("hunter2"), "no PEM"),
        (refused(&EC.public_key_pem()), "public"),
        (refused(&new_key(&PKCS_ECDSA_P384_SHA384).serialize_pem()), "P-256"),
        (refused("-----BEGIN EC PRIVATE KEY-----\nhunter2\n-----END EC PRIVATE KEY-----\n"), "PKCS#8"),
        (refused("-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n"), "no PEM"),
    ] {
        assert!(text.contains(part), "{text}: no {part}");
        assert!(!text.contains("hunter2"), "{text}");
    }
    assert!(TokenIssuer::from_secret(&"short".into(), HmacAlgorithm::Hs512).is_err());
}

#[test]
fn what_is_issued_is_accepted_as_it_was_meant() {
    let issuer = TokenIssuer::from_secret(&SECRET.into(), HmacAlgorithm::Hs512).unwrap().with_key_id("k");
    let mut claims = TokenClaims::new(Id::new("alice").unwrap(), NOW, NOW + 9);
    claims.username = Some("Alice".into());
    claims.user_type = UserType::Bot;
    claims.permissions = vec!["send:message:@*".into()];
    claims.issuer = Some("wsc".into());
    claims.audience = Some("hub".into());
    claims.token_id = Some("t".into());
    let mut config = secret();
    config.issuer = claims.issuer.clone();
    config.audience = claims.audience.clone();
    let identity = check(config, &issuer.issue(&claims).unwrap()).unwrap();
    assert_eq!(identity.username.as_deref(), Some("Alice"));
    assert_eq!((identity.user_type, identity.token_id.as_deref()), (UserType::Bot, Some("t")));
    assert_eq!((identity.issued_at, identity.expires_at), (Some(NOW), Some(NOW + 9)));
    assert!(
        identity.permissions.allows_direct("bob") && !identity.permissions.allows_room(Permission::SendMessage, "r")
    );

    claims.permissions = vec!["join:room".into(); 1000];
    assert!(matches!(issuer.issue(&claims), Err(JwtError::TokenTooLong { .. })));
    claims.token_id = Some("x".repeat(MAX_TOKEN_ID_LEN + 1));
    assert!(matches!(issuer.issue(&claims), Err(JwtError::TokenIdTooLong { .. })));
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[tokio::test]
async fn new_keys_count_from_the_moment_they_are_applied() {
    let now = unix_seconds();
    let claims = TokenClaims::new(Id::new("alice").unwrap(), now, now + 60);
    let old = TokenIssuer::from_secret(&SECRET.into(), HmacAlgorithm::Hs256).unwrap().issue(&claims).unwrap();
    let new = TokenIssuer::from_private_pem(&EC.serialize_pem()).unwrap().issue(&claims).unwrap();

    let hub = JwtAuthenticator::new(secret()).unwrap();
    let prepared = hub.prepare(public(&EC)).unwrap();
    assert!(hub.authenticate(&old).await.is_ok() && hub.authenticate(&new).await.is_err());
    hub.apply(prepared);
    assert_eq!(hub.authenticate(&old).await, Err(AuthError::Invalid));
    assert!(hub.authenticate(&new).await.is_ok());
    // Settings that are no good change nothing.
    assert!(hub.prepare(JwtConfig::new(JwtKey::Secret("short".into()))).is_err());
    assert!(hub.authenticate(&new).await.is_ok());
}

#[tokio::test]
async fn the_clock_is_the_machines() {
    let now = unix_seconds();
    let hub = JwtAuthenticator::new(secret()).unwrap();
    let ends = |exp| signed(&json!({ "user_id": "alice", "exp": exp }).to_string());
    assert!(hub.authenticate(&ends(now + 60)).await.is_ok());
    // No leeway that nobody asked for.
    assert_eq!(hub.authenticate(&ends(now - 1)).await, Err(AuthError::Expired));
    assert_eq!(hub.authenticate("").await, Err(AuthError::Missing));
}

/// A token with every claim, so that there is something to change.
fn full_token() -> String {
    signed(&claims(json!({
        "username": "Alice", "user_type": "visitor", "permissions": ["join:room:a"], "jti": "t-1", "iat": NOW - 5,
    })))
}

proptest! {
    #[test]
    fn a_changed_token_is_no_token(at in any::<prop::sample::Index>(), byte in 0x20..0x7F_u8) {
        let token = full_token();
        let mut changed = token.clone().into_bytes();
        let at = at.index(changed.len());
        changed[at] = byte;
        let changed = String::from_utf8(changed).unwrap();
        prop_assert_eq!(check(secret(), &changed).is_ok(), changed == token);
    }

    #[test]
    fn a_token_cut_or_grown_is_no_token(from in any::<prop::sample::Index>(), to in any::<prop::sample::Index>(), more in ".{0,3}") {
        let token = full_token();
        let (from, to) = (from.index(token.len() + 1), to.index(token.len() + 1));
        let changed = format!("{}{more}{}", &token[..from], &token[to..]);
        prop_assert_eq!(check(secret(), &changed).is_ok(), changed == token);
    }

    #[test]
    fn parts_of_two_tokens_make_no_third(header in 0..2_usize, payload in 0..2_usize, signature in 0..2_usize) {
        let tokens = [signed(&claims(json!({}))), signed(&claims(json!({ "permissions": ["admin:system"] })))];
        let parts: Vec<Vec<_>> = tokens.iter().map(|t| t.split('.').collect()).collect();
        let mixed = [parts[header][0], parts[payload][1], parts[signature][2]].join(".");
        prop_assert_eq!(check(secret(), &mixed).is_ok(), payload == signature);
    }

    #[test]
    fn no_claim_grants_more_than_it_says(texts in prop::collection::vec("(join:room|send:message|admin:system|admin:room|x)?(:[a@*]{0,3})?", 0..5)) {
        let answer = with(json!({ "permissions": texts })).unwrap();
        for permission in Permission::ALL {
            let says_so = texts.iter().any(|t| *t == permission.as_str() || *t == format!("{permission}:*"));
            let is_admin = texts.iter().any(|t| t == "admin:system");
            prop_assert_eq!(answer.permissions.allows(permission, None), is_admin || says_so && permission != Permission::AdminSystem);
        }
    }

    #[test]
    fn no_text_is_a_token(text in any::<String>()) {
        prop_assert!(check(secret(), &text).is_err());
        prop_assert!(check(public(&ED), &text).is_err());
    }

    #[test]
    fn signed_nonsense_gives_no_user_but_a_valid_one(header in "(\\{.*\\})?", payload in "\\{.{0,40}\\}") {
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        let _ = check(secret(), &sign(&header, &payload, &key, Algorithm::HS256));
        if let Ok(identity) = check(secret(), &signed(&payload)) {
            prop_assert!(Id::check(identity.user_id.as_str()).is_ok());
        }
    }
}

/// An RSA key that can be broken.
const RSA_1024: &str = "\
-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDeEqX5Y4/+lbJDmdiKkUaPNSF3
Vm98d5VCYpJoLBsm9e7aYhazzs02+JyCD4NEJ6254bFxDCDIwKZwUhQPbcX4UsPC
KfsTjLSSmO8Wbbd5uJH6k0k00pY5mcpCIHaI9f+mQcw4gRG2UBYpET6NZFZpwMaM
eTeVe+tlMkXGnDEWfwIDAQAB
-----END PUBLIC KEY-----
";

/// A key of a curve whose points are as long as those of P-256.
const SECP256K1: &str = "\
-----BEGIN PUBLIC KEY-----
MFYwEAYHKoZIzj0CAQYFK4EEAAoDQgAE1Br1eA7izJLbAKOemVTmqONxedAFTn/I
f3hPSEiXD2uTWOoS2tzxB3DIJ2BOcU/cZ2p/lxve5kVa0xMLCYFgbg==
-----END PUBLIC KEY-----
";

/// A certificate with a P-256 key.
const CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIBcTCCARegAwIBAgIUc/K8ysPOPv/qcvcuqWs5fq+k14QwCgYIKoZIzj0EAwIw
DjEMMAoGA1UEAwwDaHViMB4XDTI2MTEyMTE5MTc0OVoXDTI2MTEyMjE5MTc0OVow
DjEMMAoGA1UEAwwDaHViMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE2T2orIGQ
LVHGz2sUTRsIX1zfze489kycoj3eDnzmqPvYezsTbgqJdTcM45gDzlFiCx7C2+wp
K5YCyBX0APS4BqNTMFEwHQYDVR0OBBYEFOtIko0PqE9UJODR3XEiqXmJzJibMB8G
A1UdIwQYMBaAFOtIko0PqE9UJODR3XEiqXmJzJibMA8GA1UdEwEB/wQFMAMBAf8w
CgYIKoZIzj0EAwIDSAAwRQIhAIZ0m8nHeqT8O996vcKIbTBFaKUOf+51cVLQwRkv
6c3eAiA3R1sWVjn/JlC/PS9Lw4+KxvCi146QIZJ19lwclAq4Xg==
-----END CERTIFICATE-----
";
