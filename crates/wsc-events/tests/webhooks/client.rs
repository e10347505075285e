//! The client that goes over the network, against receivers on this machine.

use std::{
    net::SocketAddr,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use rustls::pki_types::PrivateKeyDer;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_rustls::TlsAcceptor;
use wsc_events::{
    EventBus, HttpWebhookClient, MemoryOutbox, WebhookConfig, WebhookError, WebhookHooks, WebhookOutcome, Webhooks,
};
use wsc_protocol::Event;

/// A receiver that answers every request with the same bytes.
struct Receiver {
    address: SocketAddr,
    /// What came, heads and bodies.
    requests: mpsc::UnboundedReceiver<String>,
    connections: Arc<AtomicUsize>,
}

async fn receiver(answer: impl Into<Vec<u8>>) -> Receiver {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (told, requests) = mpsc::unbounded_channel();
    let connections = Arc::new(AtomicUsize::new(0));
    let (count, answer) = (Arc::clone(&connections), answer.into());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, SeqCst);
            tokio::spawn(serve(stream, answer.clone(), told.clone()));
        }
    });
    Receiver { address, requests, connections }
}

async fn serve(mut stream: TcpStream, answer: Vec<u8>, told: mpsc::UnboundedSender<String>) {
    let mut read = Vec::new();
    loop {
        while !is_whole(&read) {
            if !matches!(stream.read_buf(&mut read).await, Ok(1..)) {
                return;
            }
        }
        told.send(String::from_utf8(std::mem::take(&mut read)).unwrap()).ok();
        if answer.is_empty() {
            // It never answers, and never hangs up.
            std::future::pending::<()>().await;
        }
        if stream.write_all(&answer).await.is_err() {
            return;
        }
    }
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    text.split_once("\r\n\r\n").is_some_and(|(head, body)| {
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        body.len() == length.parse::<usize>().unwrap()
    })
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn config(url: String) -> WebhookConfig {
    let mut config = WebhookConfig::new(url);
    config.allow_private_addresses = true;
    config.batch_max = 1;
    config.retries = 0;
    config
}

/// A webhook, and what became of its requests.
struct Site {
    bus: EventBus,
    webhooks: Webhooks,
    outcomes: mpsc::UnboundedReceiver<WebhookOutcome>,
}

async fn site(config: WebhookConfig) -> Site {
    let bus = EventBus::default();
    let (told, outcomes) = mpsc::unbounded_channel();
    let hooks = WebhookHooks { on_request: Box::new(move |o| drop(told.send(o))), ..WebhookHooks::default() };
    let (store, client) = (Arc::new(MemoryOutbox::default()), Arc::new(HttpWebhookClient::new()));
    let webhooks = Webhooks::start("hub-1", Some(config), store, client, &bus, hooks).await.unwrap();
    Site { bus, webhooks, outcomes }
}

impl Site {
    fn publish(&self) {
        self.bus.publish(Event::HubStarted { node_id: "hub-1".to_owned() });
    }

    async fn outcome(&mut self) -> WebhookOutcome {
        tokio::time::timeout(Duration::from_secs(30), self.outcomes.recv()).await.unwrap().unwrap()
    }

    /// The status of one request.
    async fn post(&mut self) -> String {
        self.publish();
        self.outcome().await.status.into_owned()
    }
}

#[tokio::test]
async fn a_request_arrives_and_the_connection_is_kept() {
    let mut receiver = receiver(OK).await;
    let mut config = config(format!("http://{}/hook?key=1", receiver.address));
    config.signing_secrets = vec!["a secret of sixteen".into()];
    config.headers = vec![("Authorization".to_owned(), "Bearer sesame".into())];
    let mut site = site(config).await;
    for _ in 0..5 {
        assert_eq!(site.post().await, "200");
        let request = receiver.requests.recv().await.unwrap();
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /hook?key=1 HTTP/1.1\r\n"), "{head}");
        for expected in [
            "content-type: application/json",
            "authorization: Bearer sesame",
            "webhook-id: msg_",
            "webhook-timestamp: ",
            "webhook-signature: v1,",
            "user-agent: wsc-hub/",
        ] {
            assert!(head.contains(&format!("\r\n{expected}")), "{expected}: {head}");
        }
        for unexpected in ["cookie", "referer", "accept-encoding"] {
            assert!(!head.to_lowercase().contains(&format!("\r\n{unexpected}")), "{head}");
        }
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["events"][0]["type"], "hub.started");
    }
    assert_eq!(receiver.connections.load(SeqCst), 1);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    for status in [301, 302, 303, 307, 308] {
        let mut inside = receiver(OK).await;
        let answer =
            format!("HTTP/1.1 {status} Moved\r\nlocation: http://{}/\r\ncontent-length: 0\r\n\r\n", inside.address);
        let outside = receiver(answer).await;
        let mut site = site(config(format!("http://{}/", outside.address))).await;
        assert_eq!(site.post().await, status.to_string());
        site.bus.shutdown().await;
        site.webhooks.shutdown(Duration::from_secs(5)).await;
        assert_eq!(site.webhooks.stats().dead, 1);
        assert_eq!(inside.connections.load(SeqCst), 0);
        assert!(inside.requests.try_recv().is_err());
    }
}

#[tokio::test]
async fn a_receiver_that_does_not_answer_costs_no_more_than_the_time_limit() {
    // It takes the request and says nothing.
    let silent = receiver("").await;
    let mut config = config(format!("http://{}/", silent.address));
    config.timeout = Duration::from_millis(300);
    let mut site = site(config).await;
    site.publish();
    let outcome = site.outcome().await;
    assert_eq!(outcome.status, "timeout");
    assert!(outcome.latency >= Duration::from_millis(300) && outcome.latency < Duration::from_secs(1), "{outcome:?}");
}

#[tokio::test]
async fn a_status_counts_although_the_body_never_ends() {
    let slow = receiver("HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nbegun").await;
    let mut config = config(format!("http://{}/", slow.address));
    config.timeout = Duration::from_millis(300);
    let mut site = site(config).await;
    assert_eq!(site.post().await, "200");
}

#[tokio::test]
async fn of_a_huge_answer_only_the_beginning_is_read() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (told, mut written) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !is_whole(&request) {
            stream.read_buf(&mut request).await.unwrap();
        }
        stream.write_all(b"HTTP/1.1 400 Bad\r\ncontent-length: 1000000000\r\n\r\n").await.unwrap();
        let (mut bytes, chunk) = (0, [b'x'; 65536]);
        while stream.write_all(&chunk).await.is_ok() {
            bytes += chunk.len();
        }
        told.send(bytes).ok();
    });
    let mut site = site(config(format!("http://{address}/"))).await;
    assert_eq!(site.post().await, "400");
    let bytes = tokio::time::timeout(Duration::from_secs(20), written.recv()).await.unwrap().unwrap();
    // What both kernels hold comes on top of what was read.
    assert!(bytes < 100_000_000, "{bytes}");
    site.bus.shutdown().await;
    site.webhooks.shutdown(Duration::from_secs(5)).await;
    let letter = site.webhooks.dead(None, 1).await.unwrap().letters.remove(0);
    assert_eq!(letter.last_error.len(), "status 400: ".len() + 256);
}

#[tokio::test]
async fn what_a_receiver_says_is_kept_for_people_but_breaks_no_line() {
    let text = "no\r\nsuch\u{1b}[31mkey \u{1f600}";
    let receiver = receiver(format!("HTTP/1.1 401 No\r\ncontent-length: {}\r\n\r\n{text}", text.len())).await;
    let mut site = site(config(format!("http://{}/", receiver.address))).await;
    assert_eq!(site.post().await, "401");
    site.bus.shutdown().await;
    site.webhooks.shutdown(Duration::from_secs(5)).await;
    let letter = site.webhooks.dead(None, 1).await.unwrap().letters.remove(0);
    assert_eq!(letter.last_error, "status 401: no  such [31mkey \u{1f600}");
}

#[tokio::test]
async fn a_name_that_leads_inside_is_not_connected_to() {
    let receiver = receiver(OK).await;
    for host in ["localhost", "LOCALHOST"] {
        let mut config = config(format!("http://{host}:{}/", receiver.address.port()));
        config.allow_private_addresses = false;
        let mut strict = site(config.clone()).await;
        assert_eq!(strict.post().await, "refused_address", "{host}");
        assert_eq!(strict.webhooks.stats().waiting, 1, "an operator may mend it");
        // And indeed.
        config.allow_private_addresses = true;
        strict.webhooks.reconfigure(Some(config.clone()));
        assert_eq!(strict.outcome().await.status, "200", "{host}");
        // A connection that is open already is no way in.
        config.allow_private_addresses = false;
        strict.webhooks.reconfigure(Some(config));
        assert_eq!(strict.post().await, "refused_address", "{host}");
    }
    assert_eq!(receiver.connections.load(SeqCst), 2);
}

#[tokio::test]
async fn who_does_not_listen_or_speaks_something_else_is_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = listener.local_addr().unwrap();
    drop(listener);
    assert_eq!(site(config(format!("http://{closed}/"))).await.post().await, "connect");
    assert_eq!(site(config("http://does-not-exist.invalid/".to_owned())).await.post().await, "connect");
    let babble = receiver("I speak no HTTP\r\n\r\n").await;
    assert_eq!(site(config(format!("http://{}/", babble.address))).await.post().await, "broken");
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_not_trusted() {
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(own.signing_key.serialize_der().into());
    let tls = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let served = tokio::spawn(async move { acceptor.accept(listener.accept().await.unwrap().0).await.is_ok() });
    assert_eq!(site(config(format!("https://localhost:{port}/"))).await.post().await, "connect");
    assert!(!served.await.unwrap());
}

/// The environment is that of a process, so another one is started: the test below.
#[tokio::test]
async fn a_proxy_of_the_environment_is_not_used() {
    let proxy = receiver(OK).await;
    let mut receiver = receiver(OK).await;
    let (program, target) = (std::env::current_exe().unwrap(), receiver.address.to_string());
    let via = format!("http://{}", proxy.address);
    let child = tokio::task::spawn_blocking(move || {
        let mut child = Command::new(program);
        for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
            child.env(name, &via);
        }
        child.env("WSC_TEST_TARGET", target).env_remove("NO_PROXY").env_remove("no_proxy");
        child.args(["--exact", "client::posts_to_where_its_environment_says", "--ignored"]).output().unwrap()
    });
    let output = child.await.unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(proxy.connections.load(SeqCst), 0);
    assert!(receiver.requests.try_recv().unwrap().starts_with("POST / HTTP/1.1"));
}

#[tokio::test]
#[ignore = "is started by the test above; alone it posts to itself"]
async fn posts_to_where_its_environment_says() {
    let own = receiver(OK).await;
    let target = std::env::var("WSC_TEST_TARGET").unwrap_or_else(|_| own.address.to_string());
    assert_eq!(site(config(format!("http://{target}/"))).await.post().await, "200");
}

#[test]
fn an_error_is_a_label_and_a_sentence() {
    let error = WebhookError::RefusedAddress("[10.0.0.1] is not public".to_owned());
    assert_eq!(
        (error.as_str(), error.to_string().as_str()),
        ("refused_address", "refused to connect: [10.0.0.1] is not public")
    );
}
