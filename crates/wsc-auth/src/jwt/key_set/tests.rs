//! A provider that exchanges its keys, fails and dawdles, on a paused clock.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use async_trait::async_trait;
use proptest::prelude::*;
use rcgen::{
    KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, PublicKeyData, RsaKeySize,
};
use serde_json::json;
use tokio::{task::JoinSet, time::advance};
use wsc_protocol::Id;

use super::*;
use crate::{HmacAlgorithm, Identity, TokenClaims, TokenIssuer, jwt::authenticator::Verifier};

const NOW: u64 = 1_763_600_000;

/// A provider that answers what it is told to.
#[derive(Clone, Default)]
struct Provider(Arc<State>);

#[derive(Default)]
struct State {
    keys: Mutex<Vec<Value>>,
    max_age: Mutex<Option<Duration>>,
    takes: Mutex<Duration>,
    fails: Mutex<bool>,
    fetches: AtomicUsize,
}

impl Provider {
    fn publish(&self, keys: impl Into<Vec<Value>>) {
        *self.0.keys.lock().unwrap() = keys.into();
    }

    fn takes(&self, time: Duration) {
        *self.0.takes.lock().unwrap() = time;
    }

    fn fails(&self, fails: bool) {
        *self.0.fails.lock().unwrap() = fails;
    }

    fn fetches(&self) -> usize {
        self.0.fetches.load(SeqCst)
    }

    /// A hub that checks tokens with this provider's keys.
    fn hub(&self) -> Arc<Verifier> {
        let set = KeySet::new("http://idp".into(), self.clone()).unwrap();
        set.start();
        Arc::new(Verifier::with_key_set(Arc::new(set)))
    }
}

#[async_trait]
impl KeySetSource for Provider {
    async fn fetch(&self) -> Result<FetchedKeySet, FetchError> {
        self.0.fetches.fetch_add(1, SeqCst);
        let takes = *self.0.takes.lock().unwrap();
        sleep(takes).await;
        if *self.0.fails.lock().unwrap() {
            return Err(FetchError::TooLarge);
        }
        let keys = self.0.keys.lock().unwrap().clone();
        let max_age = *self.0.max_age.lock().unwrap();
        Ok(FetchedKeySet { body: json!({ "keys": keys }).to_string().into_bytes(), max_age })
    }
}

/// A key pair of the provider's, with its id.
struct Signer {
    id: Option<&'static str>,
    key: KeyPair,
}

impl Signer {
    fn new(id: impl Into<Option<&'static str>>) -> Self {
        Self { id: id.into(), key: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap() }
    }

    fn jwk(&self) -> Value {
        let point = self.key.der_bytes();
        let (x, y) = (BASE64_URL_SAFE_NO_PAD.encode(&point[1..33]), BASE64_URL_SAFE_NO_PAD.encode(&point[33..]));
        let mut jwk = json!({ "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "x": x, "y": y });
        if let Some(id) = self.id {
            jwk["kid"] = id.into();
        }
        jwk
    }

    fn token(&self) -> String {
        self.token_with(self.id)
    }

    fn token_with(&self, id: Option<&str>) -> String {
        let mut issuer = TokenIssuer::from_private_pem(&self.key.serialize_pem()).unwrap();
        if let Some(id) = id {
            issuer = issuer.with_key_id(id);
        }
        issuer.issue(&TokenClaims::new(Id::new("alice").unwrap(), NOW, NOW + 60)).unwrap()
    }
}

async fn check(hub: &Verifier, token: &str) -> Result<Identity, TokenProblem> {
    hub.identity(token, || NOW * 1000).await
}

/// Checks a token that must be answered without waiting.
async fn at_once(hub: &Verifier, token: &str) -> Result<Identity, TokenProblem> {
    let asked = Instant::now();
    let answer = check(hub, token).await;
    assert_eq!(asked.elapsed(), Duration::ZERO);
    answer
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_known_key_costs_no_fetch_and_no_wait() {
    let (provider, signer) = (Provider::default(), Signer::new("k1"));
    provider.publish([signer.jwk()]);
    let hub = provider.hub();
    assert_eq!(check(&hub, &signer.token()).await.unwrap().user_id.as_str(), "alice");
    for _ in 0..100 {
        assert!(at_once(&hub, &signer.token()).await.is_ok());
    }
    assert_eq!(provider.fetches(), 1);
}

#[tokio::test(start_paused = true)]
async fn all_who_come_before_the_first_fetch_ended_share_it() {
    let (provider, signer) = (Provider::default(), Signer::new("k1"));
    provider.publish([signer.jwk()]);
    provider.takes(3 * SECOND);
    let hub = provider.hub();
    let begin = Instant::now();
    let mut logins = JoinSet::new();
    for _ in 0..100 {
        let (hub, token) = (Arc::clone(&hub), signer.token());
        logins.spawn(async move { check(&hub, &token).await.is_ok() });
    }
    assert!(logins.join_all().await.into_iter().all(|is_in| is_in));
    assert_eq!((provider.fetches(), begin.elapsed()), (1, 3 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_set_that_was_never_there_is_not_the_tokens_fault() {
    let (provider, signer) = (Provider::default(), Signer::new("k1"));
    provider.publish([signer.jwk()]);
    provider.fails(true);
    let hub = provider.hub();
    assert_eq!(check(&hub, &signer.token()).await, Err(TokenProblem::Unavailable));
    assert_eq!(check(&hub, &signer.token_with(None)).await, Err(TokenProblem::Unavailable));
    // It is tried again by itself.
    provider.fails(false);
    sleep(RETRY_INTERVAL + SECOND).await;
    assert!(at_once(&hub, &signer.token()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_never_answers_keeps_nobody_waiting_for_long() {
    let (provider, signer) = (Provider::default(), Signer::new("k1"));
    provider.takes(Duration::from_secs(3600));
    let hub = provider.hub();
    let begin = Instant::now();
    assert_eq!(check(&hub, &signer.token()).await, Err(TokenProblem::Unavailable));
    assert_eq!(begin.elapsed(), FETCH_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_new_key_is_fetched_by_the_first_token_that_names_it() {
    let (provider, old, new) = (Provider::default(), Signer::new("k1"), Signer::new("k2"));
    provider.publish([old.jwk()]);
    let hub = provider.hub();
    assert!(check(&hub, &old.token()).await.is_ok());
    provider.publish([old.jwk(), new.jwk()]);
    assert!(check(&hub, &new.token()).await.is_ok());
    assert!(at_once(&hub, &old.token()).await.is_ok());
    assert_eq!(provider.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn invented_key_ids_neither_stall_logins_nor_hammer_the_provider() {
    let (provider, signer, attacker) = (Provider::default(), Signer::new("k1"), Signer::new(None));
    provider.publish([signer.jwk()]);
    let hub = provider.hub();
    assert!(check(&hub, &signer.token()).await.is_ok());
    provider.takes(2 * SECOND);
    let forged: Vec<_> = (0..10).map(|n| attacker.token_with(Some(&n.to_string()))).collect();
    let begin = Instant::now();
    let mut waiting = JoinSet::new();
    for second in 0..60 {
        for token in &forged {
            let (hub, token) = (Arc::clone(&hub), token.clone());
            waiting.spawn(async move {
                let asked = Instant::now();
                assert_eq!(check(&hub, &token).await, Err(TokenProblem::UnknownKey));
                asked.elapsed()
            });
        }
        // Among them somebody who is known, also while a fetch runs.
        assert!(at_once(&hub, &signer.token()).await.is_ok(), "{second}");
        sleep(SECOND).await;
    }
    assert_eq!(begin.elapsed(), 60 * SECOND);
    // The first, and one in ten seconds.
    assert_eq!(provider.fetches(), 1 + 6);
    let waited = waiting.join_all().await;
    assert!(waited.iter().all(|waited| *waited <= 2 * SECOND));
    assert!(waited.iter().filter(|waited| waited.is_zero()).count() >= 400);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_key_while_the_provider_is_away_may_be_a_new_one() {
    let (provider, old, new) = (Provider::default(), Signer::new("k1"), Signer::new("k2"));
    provider.publish([old.jwk()]);
    let hub = provider.hub();
    assert!(check(&hub, &old.token()).await.is_ok());
    provider.fails(true);
    assert_eq!(check(&hub, &new.token()).await, Err(TokenProblem::Unavailable));
    assert_eq!(at_once(&hub, &new.token()).await, Err(TokenProblem::Unavailable));
    // The known ones stay, however long it takes.
    sleep(Duration::from_secs(24 * 3600)).await;
    assert!(at_once(&hub, &old.token()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_key_that_was_taken_out_is_accepted_for_ten_minutes_more() {
    let (provider, old, new) = (Provider::default(), Signer::new("k1"), Signer::new("k2"));
    provider.publish([old.jwk()]);
    let hub = provider.hub();
    assert!(check(&hub, &old.token()).await.is_ok());
    provider.publish([new.jwk()]);
    assert!(check(&hub, &new.token()).await.is_ok());
    advance(GRACE - SECOND).await;
    assert!(at_once(&hub, &old.token()).await.is_ok());
    advance(SECOND).await;
    assert_eq!(check(&hub, &old.token()).await, Err(TokenProblem::UnknownKey));
    assert!(at_once(&hub, &new.token()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_key_that_comes_back_in_time_stays() {
    let (provider, one, two) = (Provider::default(), Signer::new("k1"), Signer::new("k2"));
    provider.publish([one.jwk()]);
    let hub = provider.hub();
    assert!(check(&hub, &one.token()).await.is_ok());
    provider.publish([two.jwk()]);
    sleep(REFRESH_INTERVAL + SECOND).await;
    provider.publish([one.jwk(), two.jwk()]);
    sleep(REFRESH_INTERVAL + GRACE).await;
    assert!(at_once(&hub, &one.token()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_key_replaced_under_its_name_is_one_that_was_taken_out() {
    let (provider, old, new) = (Provider::default(), Signer::new("k1"), Signer::new("k1"));
    provider.publish([old.jwk()]);
    let hub = provider.hub();
    assert!(check(&hub, &old.token()).await.is_ok());
    assert_eq!(at_once(&hub, &new.token()).await, Err(TokenProblem::Signature));
    provider.publish([new.jwk()]);
    sleep(REFRESH_INTERVAL + SECOND).await;
    assert!(at_once(&hub, &new.token()).await.is_ok() && at_once(&hub, &old.token()).await.is_ok());
    sleep(GRACE).await;
    assert!(at_once(&hub, &new.token()).await.is_ok());
    assert_eq!(at_once(&hub, &old.token()).await, Err(TokenProblem::Signature));
}

#[tokio::test(start_paused = true)]
async fn a_set_emptied_ends_its_keys() {
    let (provider, signer) = (Provider::default(), Signer::new("k1"));
    provider.publish([signer.jwk()]);
    let hub = provider.hub();
    assert!(check(&hub, &signer.token()).await.is_ok());
    provider.publish([]);
    sleep(REFRESH_INTERVAL + GRACE + SECOND).await;
    assert_eq!(check(&hub, &signer.token()).await, Err(TokenProblem::UnknownKey));
}

#[tokio::test(start_paused = true)]
async fn the_set_is_fetched_as_often_as_the_provider_wants_and_no_oftener() {
    for (max_age, fetches) in [
        (None, 12..=14),
        (Some(60), 60..=67),
        // What wants to be asked all the time is asked twice a minute, what is good for a day every five minutes.
        (Some(0), 120..=121),
        (Some(86_400), 12..=14),
    ] {
        let (provider, signer) = (Provider::default(), Signer::new("k1"));
        provider.publish([signer.jwk()]);
        *provider.0.max_age.lock().unwrap() = max_age.map(Duration::from_secs);
        let hub = provider.hub();
        sleep(Duration::from_secs(3600)).await;
        assert!(fetches.contains(&provider.fetches()), "{max_age:?}: {}", provider.fetches());
        drop(hub);
    }
}

#[test]
fn nodes_that_started_together_do_not_ask_together() {
    let intervals: Vec<_> = (0..=10).map(|n| refresh_interval(None, f64::from(n) / 10.0)).collect();
    assert_eq!((intervals[0], intervals[10]), (REFRESH_INTERVAL, REFRESH_INTERVAL.mul_f64(0.9)));
    assert!(intervals.is_sorted_by(|a, b| a > b));
}

#[tokio::test(start_paused = true)]
async fn a_token_without_key_id_needs_a_set_with_one_fitting_key() {
    let (provider, one, two) = (Provider::default(), Signer::new("k1"), Signer::new(None));
    let ed = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let ed = json!({ "kty": "OKP", "crv": "Ed25519", "x": BASE64_URL_SAFE_NO_PAD.encode(ed.der_bytes()) });
    provider.publish([one.jwk(), ed.clone()]);
    let hub = provider.hub();
    assert!(check(&hub, &one.token_with(None)).await.is_ok());
    provider.publish([one.jwk(), two.jwk(), ed]);
    sleep(REFRESH_INTERVAL + SECOND).await;
    let fetches = provider.fetches();
    assert_eq!(at_once(&hub, &one.token_with(None)).await, Err(TokenProblem::UnknownKey));
    assert_eq!(at_once(&hub, &two.token()).await, Err(TokenProblem::UnknownKey));
    assert!(at_once(&hub, &one.token()).await.is_ok());
    // Asking again would not help, so nobody is asked.
    assert_eq!(provider.fetches(), fetches);
    // The successor is alone again, and the predecessor's tokens have their time.
    provider.publish([two.jwk()]);
    sleep(REFRESH_INTERVAL + SECOND).await;
    assert!(at_once(&hub, &two.token()).await.is_ok() && at_once(&hub, &one.token_with(None)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_shared_key_has_no_place_in_a_public_set() {
    let (provider, signer) = (Provider::default(), Signer::new("k1"));
    let secret = "published for everybody to see, and 32 bytes long";
    let oct = json!({ "kty": "oct", "kid": "k0", "alg": "HS256", "k": BASE64_URL_SAFE_NO_PAD.encode(secret) });
    provider.publish([oct, signer.jwk()]);
    let hub = provider.hub();
    let issuer = TokenIssuer::from_secret(&secret.into(), HmacAlgorithm::Hs256).unwrap();
    for id in ["k0", "k1"] {
        let issuer = TokenIssuer::from_secret(&secret.into(), HmacAlgorithm::Hs256).unwrap().with_key_id(id);
        let token = issuer.issue(&TokenClaims::new(Id::new("alice").unwrap(), NOW, NOW + 60)).unwrap();
        assert_eq!(check(&hub, &token).await, Err(TokenProblem::Algorithm));
    }
    let token = issuer.issue(&TokenClaims::new(Id::new("alice").unwrap(), NOW, NOW + 60)).unwrap();
    assert_eq!(check(&hub, &token).await, Err(TokenProblem::Algorithm));
    assert!(check(&hub, &signer.token()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_known_id_with_another_algorithm_or_key_is_refused_without_asking() {
    let (provider, signer, attacker) = (Provider::default(), Signer::new("k1"), Signer::new("k1"));
    provider.publish([signer.jwk()]);
    let hub = provider.hub();
    assert!(check(&hub, &signer.token()).await.is_ok());
    assert_eq!(at_once(&hub, &attacker.token()).await, Err(TokenProblem::Signature));
    let ed = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let ed = TokenIssuer::from_private_pem(&ed.serialize_pem()).unwrap().with_key_id("k1");
    let token = ed.issue(&TokenClaims::new(Id::new("alice").unwrap(), NOW, NOW + 60)).unwrap();
    assert_eq!(at_once(&hub, &token).await, Err(TokenProblem::UnknownKey));
    assert_eq!(provider.fetches(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_task_ends_with_the_last_user_of_the_set() {
    let provider = Provider::default();
    let hub = provider.hub();
    sleep(SECOND).await;
    assert_eq!(Arc::strong_count(&provider.0), 2);
    drop(hub);
    // The runtime drops what was aborted when it comes by.
    tokio::task::yield_now().await;
    assert_eq!(Arc::strong_count(&provider.0), 1);
    let fetches = provider.fetches();
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(provider.fetches(), fetches);
}

#[tokio::test(start_paused = true)]
async fn who_stops_waiting_ends_nobody_elses_fetch() {
    let (provider, signer) = (Provider::default(), Signer::new("k1"));
    provider.publish([signer.jwk()]);
    provider.takes(3 * SECOND);
    let hub = provider.hub();
    assert!(timeout(SECOND, check(&hub, &signer.token())).await.is_err());
    assert!(check(&hub, &signer.token()).await.is_ok());
    assert_eq!(provider.fetches(), 1);
}

/// Ids of the keys that can be used.
fn usable(keys: &[Value]) -> Vec<String> {
    let body = json!({ "keys": keys }).to_string();
    read(body.as_bytes()).unwrap().into_iter().map(|key| key.id.unwrap_or_default()).collect()
}

#[test]
fn keys_that_are_for_something_else_are_left_out() {
    let good = Signer::new("good").jwk();
    let with = |name: &str, value: Value| {
        let mut key = good.clone();
        key["kid"] = "bad".into();
        key[name] = value;
        key
    };
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let p384 = BASE64_URL_SAFE_NO_PAD.encode(&p384.der_bytes()[1..49]);
    let short = BASE64_URL_SAFE_NO_PAD.encode([0xC5; 128]);
    let number = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let modulus = BASE64_URL_SAFE_NO_PAD.encode([0xC5; 256]);
    let bad = [
        with("use", json!("enc")),
        with("use", json!("other")),
        with("key_ops", json!(["sign"])),
        with("key_ops", json!([])),
        with("alg", json!("ES384")),
        with("alg", json!("ECDH-ES")),
        with("alg", json!("HS256")),
        with("crv", json!("P-384")),
        with("crv", json!("secp256k1")),
        with("kty", json!("RSA")),
        with("kty", json!("oct")),
        with("kty", json!("XYZ")),
        with("x", json!("AAAA")),
        with("x", good["y"].clone()),
        with("x", json!("not base64!")),
        with("x", json!(7)),
        with("kid", json!(7)),
        json!({ "kty": "oct", "kid": "bad", "k": modulus }),
        json!({ "kty": "EC", "kid": "bad", "crv": "P-384", "x": p384, "y": p384 }),
        json!({ "kty": "OKP", "kid": "bad", "crv": "X25519", "x": BASE64_URL_SAFE_NO_PAD.encode([9; 32]) }),
        json!({ "kty": "OKP", "kid": "bad", "crv": "Ed25519", "x": BASE64_URL_SAFE_NO_PAD.encode([9; 31]) }),
        json!({ "kty": "RSA", "kid": "bad", "n": short, "e": "AQAB" }),
        // Exponents with which a signature is no secret, or none at all.
        json!({ "kty": "RSA", "kid": "bad", "n": modulus, "e": number(&[1]) }),
        json!({ "kty": "RSA", "kid": "bad", "n": modulus, "e": number(&[0, 0, 1]) }),
        json!({ "kty": "RSA", "kid": "bad", "n": modulus, "e": number(&[2]) }),
        json!({ "kty": "RSA", "kid": "bad", "n": modulus, "e": number(&[0]) }),
        json!({ "kty": "RSA", "kid": "bad", "n": modulus, "e": "" }),
        json!({ "kty": "RSA", "kid": "bad", "n": modulus, "e": number(&[0xFF; 256]) }),
        json!({ "kty": "RSA", "kid": "bad", "n": number(&[0xC4; 256]), "e": "AQAB" }),
        json!({ "kty": "RSA", "kid": "bad", "n": "", "e": "AQAB" }),
        json!({ "kty": "RSA", "kid": "bad" }),
        json!({}),
        json!(7),
        json!(null),
    ];
    for key in bad {
        assert_eq!(usable(&[key.clone(), good.clone()]), ["good"], "{key}");
    }
    assert_eq!(
        usable(&[with("use", Value::Null), with("alg", Value::Null), with("key_ops", json!(["verify"]))]).len(),
        3
    );
}

#[test]
fn a_modulus_may_be_written_with_a_zero_before_it() {
    let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    let parse = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.key_utils.rsa_pub_components_from_public_key;
    let (n, e) = parse(key.der_bytes()).unwrap();
    let n = BASE64_URL_SAFE_NO_PAD.encode([&[0], &n[..]].concat());
    let keys = [json!({ "kty": "RSA", "kid": "good", "n": n, "e": BASE64_URL_SAFE_NO_PAD.encode(e) })];
    assert_eq!(usable(&keys), ["good"]);
}

#[test]
fn a_set_has_a_limit() {
    let keys = (0..MAX_KEYS + 5).map(|n| {
        let mut key = Signer::new(None).jwk();
        key["kid"] = n.to_string().into();
        key
    });
    let read = usable(&keys.collect::<Vec<_>>());
    assert_eq!((read.len(), read[0].as_str()), (MAX_KEYS, "0"));
}

#[test]
fn what_is_no_set_is_none() {
    for text in ["", "{}", "[]", "null", r#"{"keys":7}"#, r#"{"keys":{}}"#, "<html>", r#"{"keys":[]"#] {
        assert!(matches!(read(text.as_bytes()), Err(FetchError::NoKeySet(_))), "{text}");
    }
}

proptest! {
    #[test]
    fn no_set_panics(text in any::<String>(), keys in prop::collection::vec("\\{(\"(kty|crv|x|y|n|e|use|alg|kid)\":(\"(EC|RSA|OKP|P-256|Ed25519|AQAB|sig|ES256|.{0,4})\"|7|null),?){0,6}\\}", 0..3)) {
        let _ = read(text.as_bytes());
        let _ = read(format!(r#"{{"keys":[{}]}}"#, keys.join(",")).as_bytes());
    }
}
