//! Addresses that webhooks are not posted to, however they are written.

use serde_json::Value;
use wsc_testkit::{Answer, ServerProcess, WebhookReceiver, eventually};

use super::{connect, hub_with_webhooks, is_about, reconfigure, reload, rewrite};
use crate::support::hub;

fn to(url: &str) -> String {
    format!(
        "callbacks: {{enable_webhooks: true, webhook_url: \"{url}\", batch_interval: 10ms, webhook_timeout: 500ms}}"
    )
}

/// What was asked for and how it ended, or did not begin: all statuses of webhooks but the good ones.
async fn refusals(server: &ServerProcess) -> f64 {
    let metrics = server.metrics().await;
    let all = metrics.sum("wsc_webhook_requests_total", &[]);
    all - metrics.sum("wsc_webhook_requests_total", &[("status", "200")])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loopback_address_is_refused_in_every_notation() {
    let receiver = WebhookReceiver::start().await;
    let open = WebhookReceiver::start().await;
    let port = receiver.addr().port();
    let std::net::IpAddr::V4(ip) = receiver.addr().ip() else { unreachable!("receivers listen on 127.0.0.0/8") };
    let [a, b, c, d] = ip.octets();
    let hosts = [
        format!("{ip}"),
        // Decimal, octal, hexadecimal, short.
        format!("{}", u32::from(ip)),
        format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
        format!("0x{a:x}.0x{b:x}.0x{c:x}.0x{d:x}"),
        format!("0x{:x}", u32::from(ip)),
        format!("[::ffff:{ip}]"),
        format!("[::ffff:{:x}:{:x}]", u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])),
        format!("[::{ip}]"),
        format!("[64:ff9b::{ip}]"),
    ];
    let server = hub("").await;
    for host in hosts {
        let url = format!("http://{host}:{port}/hook");
        rewrite(&server, &to(&url));
        let answer = reload(&server).await;
        if answer.status == 400 {
            // Refused at once, in words.
            assert!(answer.text().contains("webhook_url") || answer.text().contains("address"), "{url}: {answer:?}");
            continue;
        }
        let before = refusals(&server).await;
        connect(&server, "alice").await.close().await;
        eventually(&format!("{url} is refused"), async || (refusals(&server).await > before).then_some(())).await;
    }
    assert_eq!(receiver.posts().len(), 0, "{receiver}");
    // An address that is allowed gets its events.
    reconfigure(&server, &super::callbacks(&open, "")).await;
    connect(&server, "alice").await.close().await;
    open.event("alice", |event| is_about(event, "client.connected", "alice")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_means_loopback_is_refused_when_it_is_looked_up() {
    let server = hub("").await;
    // Somebody listens there, and hears nothing.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    rewrite(&server, &to(&format!("http://localhost:{port}/hook")));
    let answer = reload(&server).await;
    if answer.status == 200 {
        connect(&server, "alice").await.close().await;
        eventually("it is refused", async || (refusals(&server).await > 0.0).then_some(())).await;
    }
    assert!(listener.accept().is_err(), "somebody connected to localhost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metadata_service_of_a_cloud_is_refused() {
    let server = hub("").await;
    for url in [
        "http://169.254.169.254/latest/meta-data/",
        "http://[fd00:ec2::254]/latest",
        "http://10.0.0.1/",
        "http://0.0.0.0:8080/",
    ] {
        rewrite(&server, &to(url));
        let answer = reload(&server).await;
        if answer.status == 400 {
            continue;
        }
        let before = refusals(&server).await;
        let start = std::time::Instant::now();
        connect(&server, "alice").await.close().await;
        eventually(&format!("{url} is refused"), async || (refusals(&server).await > before).then_some(())).await;
        // Nobody waited for a connection.
        let statuses: Vec<Value> = server
            .metrics()
            .await
            .samples
            .iter()
            .filter(|sample| sample.name == "wsc_webhook_requests_total")
            .map(|sample| Value::from(sample.labels["status"].clone()))
            .collect();
        assert!(!statuses.iter().any(|status| status == "timeout"), "{url} after {:?}: {statuses:?}", start.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_is_not_followed_wherever_it_leads() {
    let (receiver, inside) = (WebhookReceiver::start().await, WebhookReceiver::start().await);
    let server = hub_with_webhooks(&receiver, "event_filters: [client.connected, hub.started]", "").await;
    receiver.event("the hub", |event| event["type"] == "hub.started").await;
    receiver.answer_next([Answer::redirect(inside.url()), Answer::redirect("http://169.254.169.254/")]);
    connect(&server, "alice").await.close().await;
    eventually("it is a dead letter", async || {
        (server.get("/api/webhooks/dead").await.json()["total"] == 1).then_some(())
    })
    .await;
    connect(&server, "bob").await.close().await;
    eventually("so is the second", async || {
        (server.get("/api/webhooks/dead").await.json()["total"] == 2).then_some(())
    })
    .await;
    connect(&server, "carol").await.close().await;
    receiver.event("carol", |event| is_about(event, "client.connected", "carol")).await;
    assert_eq!(inside.posts().len(), 0, "{inside}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_schemes_and_passwords_in_urls_are_no_settings() {
    let server = hub("").await;
    for url in
        ["ftp://hooks.example/", "file:///etc/passwd", "http://user:hunter2@hooks.example/", "hooks.example", "http://"]
    {
        rewrite(&server, &to(url));
        let answer = reload(&server).await;
        assert_eq!((answer.status, answer.error_code()), (400, 1001), "{url}: {answer:?}");
        assert!(answer.text().contains("webhook_url"), "{url}: {answer:?}");
        assert!(!answer.text().contains("hunter2"), "{answer:?}");
    }
    assert!(!server.log().contains("hunter2"), "{}", server.log());
}

/// A proxy of the environment would reach every address for the hub.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_of_the_environment_is_not_used() {
    let (receiver, proxy) = (WebhookReceiver::start().await, WebhookReceiver::start().await);
    let proxy_url = format!("http://{}", proxy.addr());
    let file = crate::support::settings(&super::callbacks(&receiver, ""));
    let launch = wsc_testkit::Launch {
        args: &["serve", "--config", "settings.yaml"],
        files: &[("settings.yaml", &file)],
        env: &[("HTTP_PROXY", &proxy_url), ("http_proxy", &proxy_url), ("ALL_PROXY", &proxy_url)],
    };
    let _server = ServerProcess::launch(crate::support::BIN, &launch).await;
    receiver.event("the hub", |event| event["type"] == "hub.started").await;
    assert_eq!(proxy.posts().len(), 0, "{proxy}");
}
