//! Providers on the loopback, good and bad ones.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};

use super::*;
use crate::{AuthError, Authenticator, JwtAuthenticator, JwtConfig, JwtKey};

/// An HTTP server that answers each request with what a function makes of its path, until it is dropped.
struct Server {
    url: String,
    requests: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Server {
    async fn start(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&requests);
        let task = tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                let head = read_head(&mut socket).await;
                counted.fetch_add(1, SeqCst);
                let path = head.split(' ').nth(1).unwrap_or_default();
                // A client that has heard enough hangs up.
                let _ = socket.write_all(&answer(path)).await;
                let _ = socket.shutdown().await;
            }
        });
        Self { url, requests, task: task.abort_handle() }
    }

    async fn fetch(&self) -> Result<FetchedKeySet, FetchError> {
        HttpSource::new(&self.url).unwrap().fetch().await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn read_head(socket: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match socket.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

fn ok(headers: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
        .into_bytes()
}

fn redirect(to: &str) -> Vec<u8> {
    format!("HTTP/1.1 302 Found\r\nConnection: close\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n").into_bytes()
}

#[tokio::test]
async fn a_set_comes_with_the_time_it_may_be_kept() {
    for (headers, seconds) in [
        ("", None),
        ("Cache-Control: max-age=60\r\n", Some(60)),
        ("cache-control: public, MAX-AGE=\"7\", must-revalidate\r\n", Some(7)),
        ("Cache-Control: no-store\r\nCache-Control: max-age=5\r\n", Some(5)),
        ("Cache-Control: max-age=soon\r\n", None),
        ("Cache-Control: s-maxage=60\r\n", None),
        ("Cache-Control: max-age=99999999999999999999\r\n", None),
    ] {
        let server = Server::start(move |_| ok(headers, r#"{"keys":[]}"#)).await;
        let fetched = server.fetch().await.unwrap();
        assert_eq!(fetched.body, br#"{"keys":[]}"#);
        assert_eq!(fetched.max_age, seconds.map(Duration::from_secs), "{headers}");
    }
}

#[tokio::test]
async fn only_200_is_a_set() {
    for status in ["204 No Content", "206 Partial Content", "404 Not Found", "500 Oh", "304 Not Modified"] {
        let server = Server::start(move |_| {
            format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").into()
        })
        .await;
        assert!(matches!(server.fetch().await, Err(FetchError::Status(_))), "{status}");
    }
}

#[tokio::test]
async fn a_set_that_does_not_end_is_cut_off() {
    let longest = Server::start(|_| ok("", &"x".repeat(MAX_BODY))).await;
    assert_eq!(longest.fetch().await.unwrap().body.len(), MAX_BODY);
    let longer = Server::start(|_| ok("", &"x".repeat(MAX_BODY + 1))).await;
    assert!(matches!(longer.fetch().await, Err(FetchError::TooLarge)));
    let endless = Server::start(|_| {
        let mut answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for _ in 0..100 {
            answer.extend_from_slice(format!("10000\r\n{}\r\n", "x".repeat(0x10000)).as_bytes());
        }
        answer
    })
    .await;
    assert!(matches!(endless.fetch().await, Err(FetchError::TooLarge)));
}

#[tokio::test]
async fn redirects_are_followed_a_little_way() {
    let hops = |last: usize| {
        Server::start(move |path| match path.trim_start_matches("/keys").parse().unwrap_or(0) {
            hop if hop == last => ok("", "{}"),
            hop => redirect(&format!("/keys{}", hop + 1)),
        })
    };
    let server = hops(MAX_REDIRECTS).await;
    assert!(server.fetch().await.is_ok());
    assert_eq!(server.requests.load(SeqCst), 1 + MAX_REDIRECTS);
    let server = hops(MAX_REDIRECTS + 1).await;
    let error = chain(&server.fetch().await.unwrap_err());
    assert!(error.contains("too many redirects"), "{error}");
}

#[tokio::test]
async fn a_redirect_to_another_scheme_is_not_followed() {
    let server = Server::start(|_| redirect("https://127.0.0.1:9/keys")).await;
    let error = chain(&server.fetch().await.unwrap_err());
    assert!(error.contains("another scheme"), "{error}");
    let server = Server::start(|_| redirect("file:///etc/passwd")).await;
    assert!(server.fetch().await.is_err());
}

#[tokio::test]
async fn what_is_said_of_an_error_has_no_password_in_it() {
    let source = HttpSource::new("http://me:hunter2@127.0.0.1:1/keys?token=hunter2").unwrap();
    let error = source.fetch().await.unwrap_err();
    for text in [format!("{source:?}"), chain(&error), format!("{error:?}")] {
        assert!(!text.contains("hunter2"), "{text}");
    }
    assert_eq!(format!("{source:?}"), "http://127.0.0.1:1/keys");
}

#[test]
fn only_the_web_has_key_sets() {
    for url in ["", "keys", "file:///etc/passwd", "ftp://idp/keys", "//idp/keys", "http://"] {
        assert!(matches!(parse_url(url), Err(JwtError::KeySetUrl)), "{url}");
    }
    assert!(parse_url("https://idp.example/keys").is_ok());
}

#[tokio::test]
async fn tokens_are_checked_with_the_keys_of_a_provider() {
    use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData};

    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let x = base64::Engine::encode(&base64::prelude::BASE64_URL_SAFE_NO_PAD, key.der_bytes());
    let body = format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"k1","x":"{x}"}}]}}"#);
    let server = Server::start(move |_| ok("", &body)).await;
    let issuer = crate::TokenIssuer::from_private_pem(&key.serialize_pem()).unwrap().with_key_id("k1");
    let claims = crate::TokenClaims::new(wsc_protocol::Id::new("alice").unwrap(), 0, 1 << 36);
    let token = issuer.issue(&claims).unwrap();

    let config = || JwtConfig::new(JwtKey::KeySet { url: server.url.clone() });
    let hub = JwtAuthenticator::new(config()).unwrap();
    assert_eq!(hub.authenticate(&token).await.unwrap().user_id.as_str(), "alice");
    // Other rules with the same set: the keys stay, and nothing is fetched for it.
    let mut stricter = config();
    stricter.issuer = Some("wsc".into());
    hub.apply(hub.prepare(stricter).unwrap());
    assert_eq!(hub.authenticate(&token).await, Err(AuthError::Invalid));
    hub.apply(hub.prepare(config()).unwrap());
    assert!(hub.authenticate(&token).await.is_ok());
    assert_eq!(server.requests.load(SeqCst), 1);
    // Settings that are only checked make nobody ask.
    let other = JwtConfig::new(JwtKey::KeySet { url: format!("{}?2", server.url) });
    let prepared = hub.prepare(other).unwrap();
    assert_eq!(server.requests.load(SeqCst), 1);
    hub.apply(prepared);
    assert!(hub.authenticate(&token).await.is_ok());
    assert_eq!(server.requests.load(SeqCst), 2);
}

#[test]
fn a_key_set_needs_a_runtime_and_says_so() {
    let config = JwtConfig::new(JwtKey::KeySet { url: "http://127.0.0.1:1/keys".into() });
    assert!(matches!(JwtAuthenticator::new(config), Err(JwtError::NoRuntime)));
}
