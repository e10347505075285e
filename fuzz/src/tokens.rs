//! Tokens: what strangers write as one, and what an issuer signs, against a second reading with serde_json.

use std::{
    pin::pin,
    sync::LazyLock,
    task::{Context, Poll, Waker},
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, crypto};
use serde_json::Value;
use wsc_auth::{Identity, JwtAuthenticator, JwtConfig, JwtKey, Permission, TokenProblem};
use wsc_protocol::Id;

/// The key that the inputs do not know, unless somebody signs a token for the corpus with it.
const SECRET: &str = "the fuzz target's own shared key, 32 bytes or more";

/// A public key whose private one nobody kept.
const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEijQB7LSfkIHA/3YbBWwL+4uxvAuB
m16weNFnVeVpud1o1u9PgZ0x4JfgOChM/uOiVrfO2eQgbJ6d9UJlUUMKWQ==
-----END PUBLIC KEY-----
";

static SHARED: LazyLock<JwtAuthenticator> = LazyLock::new(|| hub(JwtKey::Secret(SECRET.into())));
static ONE_WAY: LazyLock<JwtAuthenticator> = LazyLock::new(|| hub(JwtKey::PublicPem(PUBLIC.to_owned())));

/// Checks a token as it comes, and what becomes of the same bytes as header and claims (a line each) when they are
/// signed.
pub fn check(data: &[u8]) {
    if let Ok(text) = str::from_utf8(data) {
        assert!(ask(&ONE_WAY, text).is_err(), "signed with a key that nobody has");
        if let Ok(identity) = ask(&SHARED, text) {
            check_accepted(text, &identity);
        }
    }
    let at = data.iter().position(|&byte| byte == b'\n').unwrap_or(data.len());
    let (header, claims) = (&data[..at], data.get(at + 1..).unwrap_or_default());
    for header in [header, br#"{"alg":"HS256"}"#] {
        let token = signed(header, claims);
        assert!(ask(&ONE_WAY, &token).is_err(), "signed with another key");
        if let Ok(identity) = ask(&SHARED, &token) {
            check_accepted(&token, &identity);
            check_changed(&token);
        }
    }
}

/// A token that gave an identity was signed, and says all that the identity holds.
fn check_accepted(token: &str, identity: &Identity) {
    let (message, signature) = token.rsplit_once('.').expect("a token has three parts");
    let (header, claims) = message.split_once('.').expect("a token has three parts");
    let [header, claims] = [header, claims].map(|part| BASE64.decode(part).expect("base64"));
    // The second reading looks at everything, and gives up where what nobody asks for is nested too deep or holds a
    // number that no f64 does.
    let read = |json: &[u8]| serde_json::from_slice::<Value>(json).ok();
    let (Some(header), Some(claims)) = (read(&header), read(&claims)) else { return };
    let algorithm = match header["alg"].as_str() {
        Some("HS256") => Algorithm::HS256,
        Some("HS384") => Algorithm::HS384,
        Some("HS512") => Algorithm::HS512,
        other => panic!("accepted with algorithm {other:?}"),
    };
    let key = DecodingKey::from_secret(SECRET.as_bytes());
    assert!(crypto::verify(signature, message.as_bytes(), &key, algorithm).expect("a key that verifies"));
    assert!(header["crit"].is_null(), "extensions overlooked");

    let user = [&claims["user_id"], &claims["sub"]].into_iter().find(|user| !user.is_null()).expect("a user");
    let user = user.as_str().map_or_else(|| user.to_string(), ToOwned::to_owned);
    assert_eq!(identity.user_id.as_str(), user);
    assert!(Id::check(&user).is_ok(), "{user:?}");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs_f64();
    // Between the check and here a second may end.
    assert!(claims["exp"].as_f64().expect("an end") > now - 1.0, "run out");
    assert!(claims["nbf"].as_f64().is_none_or(|begin| begin <= now), "not valid yet");
    assert!(identity.expires_at.is_some());
    assert_eq!(identity.issued_at.is_some(), !claims["iat"].is_null());
    assert_eq!(identity.username.as_deref(), claims["username"].as_str());
    assert_eq!(identity.user_type.as_str(), claims["user_type"].as_str().unwrap_or("visitor"));
    assert_eq!(identity.token_id.as_deref(), claims["jti"].as_str().filter(|id| !id.is_empty()));

    let texts = claims["permissions"].as_array().map_or(&[][..], |texts| texts);
    let says = |name: &str| texts.iter().any(|text| text.as_str().expect("a text") == name);
    for permission in Permission::ALL {
        let granted = identity.permissions.allows(permission, None);
        let everything = says(permission.as_str()) || says(&format!("{permission}:*")) || says("admin:system");
        assert!(!granted || everything, "{permission} out of nowhere");
    }
    for text in identity.permissions.to_strings() {
        assert!(says(&text) || says(&format!("{text}:*")), "{text} out of nowhere");
    }
}

/// A good token with one bit changed is none.
fn check_changed(token: &str) {
    let at = token.len() / 2;
    let mut changed = token.as_bytes().to_vec();
    changed[at] ^= 1;
    if let Ok(changed) = String::from_utf8(changed) {
        assert!(ask(&SHARED, &changed).is_err(), "changed and accepted");
    }
}

fn signed(header: &[u8], claims: &[u8]) -> String {
    let message = format!("{}.{}", BASE64.encode(header), BASE64.encode(claims));
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let signature = crypto::sign(message.as_bytes(), &key, Algorithm::HS256).expect("a key that signs");
    format!("{message}.{signature}")
}

fn hub(key: JwtKey) -> JwtAuthenticator {
    JwtAuthenticator::new(JwtConfig::new(key)).expect("a good key")
}

/// Asks a hub that has its key: it answers without waiting.
fn ask(hub: &JwtAuthenticator, token: &str) -> Result<Identity, TokenProblem> {
    match pin!(hub.check(token)).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("waits for a key that is there"),
    }
}
