//! The proxies that docs/ops has settings for, as real programs in front of the real hub.
//!
//! What is tested is what is shipped: only addresses and the places of files are replaced.

use std::{fs, net::SocketAddr, process::Stdio, time::Duration};

use tempfile::TempDir;
use tokio::{
    net::TcpStream,
    process::{Child, Command},
};
use wsc_hub::{Settings, config::parse_duration};
use wsc_testkit::{Frame, Handshake, RawClient, ServerProcess, TlsIdentity, eventually};

use crate::support::{BIN, adapted, free_address, read};

/// A proxy in front of a hub; it ends when this is dropped.
struct Proxy {
    child: Child,
    addr: SocketAddr,
    identity: TlsIdentity,
    hub: ServerProcess,
    // What the proxy reads and writes.
    dir: TempDir,
}

/// The address that a proxy has towards the hub. Clients come from 127.0.0.1, so the hub can tell whose address it got.
const PROXY: &str = "127.0.0.2";

/// A hub that believes the proxy, and lets so many connections in from each address (0: any number).
async fn hub(ip_connections: u32) -> ServerProcess {
    let settings = format!(
        "wsc: {{listen: \"127.0.0.1:0\", trusted_proxies: [{PROXY}], limits: {{ip_connections: {ip_connections}}}}}\n"
    );
    ServerProcess::start(BIN, &settings).await
}

impl Proxy {
    /// nginx with `docs/ops/nginx/wsc.conf`.
    async fn nginx(hub: ServerProcess) -> Self {
        let (addr, dir, identity) = Self::parts().await;
        let path = dir.path().to_str().unwrap();
        let snippet = adapted(
            "ops/nginx/wsc.conf",
            &[
                ("listen 443 ssl;", &format!("listen {addr} ssl;")),
                ("server 127.0.0.1:8080;", &format!("server {};", hub.addr())),
                ("/etc/ssl/wsc/", &format!("{path}/")),
                ("/var/log/nginx/", &format!("{path}/")),
            ],
        );
        fs::write(dir.path().join("wsc.conf"), snippet).unwrap();
        let temp = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let temp: String = temp.iter().map(|what| format!("{what}_temp_path {path}/{what};\n")).collect();
        let main = format!(
            "daemon off;\npid {path}/nginx.pid;\nworker_processes 1;\nevents {{ worker_connections 256; }}\n\
             http {{\nproxy_bind {PROXY};\n{temp}include {path}/wsc.conf;\n}}\n"
        );
        fs::write(dir.path().join("nginx.conf"), main).unwrap();
        let mut command = Command::new("nginx");
        command.args(["-e", &format!("{path}/output"), "-p", path, "-c", &format!("{path}/nginx.conf")]);
        Self::start(command, hub, addr, dir, identity).await
    }

    /// HAProxy with `docs/ops/haproxy/haproxy.cfg`.
    async fn haproxy(hub: ServerProcess) -> Self {
        let (addr, dir, identity) = Self::parts().await;
        let path = dir.path().to_str().unwrap();
        let config = adapted(
            "ops/haproxy/haproxy.cfg",
            &[
                ("bind :443 ", &format!("bind {addr} ")),
                ("server hub1 127.0.0.1:8080 ", &format!("server hub1 {} source {PROXY} ", hub.addr())),
                ("/etc/ssl/wsc/", &format!("{path}/")),
                // As many as a test may have descriptors.
                ("maxconn 60000", "maxconn 500"),
            ],
        );
        fs::write(dir.path().join("haproxy.cfg"), config).unwrap();
        let mut command = Command::new("haproxy");
        command.args(["-db", "-f", &format!("{path}/haproxy.cfg")]);
        Self::start(command, hub, addr, dir, identity).await
    }

    async fn parts() -> (SocketAddr, TempDir, TlsIdentity) {
        let (addr, dir) = (free_address().await, tempfile::tempdir().unwrap());
        let identity = TlsIdentity::new();
        fs::write(dir.path().join("cert.pem"), identity.cert_pem()).unwrap();
        fs::write(dir.path().join("key.pem"), identity.key_pem()).unwrap();
        let both = format!("{}{}", identity.cert_pem(), identity.key_pem());
        fs::write(dir.path().join("cert-and-key.pem"), both).unwrap();
        (addr, dir, identity)
    }

    async fn start(
        mut command: Command,
        hub: ServerProcess,
        addr: SocketAddr,
        dir: TempDir,
        identity: TlsIdentity,
    ) -> Self {
        let output = fs::File::create(dir.path().join("output")).unwrap();
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        eventually("the proxy listens", async || {
            if let Ok(Some(status)) = child.try_wait() {
                panic!("{status}: {}", fs::read_to_string(dir.path().join("output")).unwrap());
            }
            TcpStream::connect(addr).await.ok()
        })
        .await;
        Self { child, addr, identity, hub, dir }
    }

    /// A client that speaks TLS to the proxy.
    async fn connect(&self) -> RawClient {
        RawClient::tls(self.addr, &self.identity).await
    }

    /// Asks the proxy for this path, and gives the status.
    async fn status(&self, method: &str, path: &str) -> u16 {
        let mut client = self.connect().await;
        let addr = self.addr;
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: {addr}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        client.send_bytes(request.as_bytes()).await;
        client.read_http_response().await.status
    }

    /// Everything that the proxy wrote down.
    fn logs(&self) -> String {
        let files = ["output", "wsc.log", "wsc.error.log"];
        files.iter().map(|name| fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()).collect()
    }

    /// Ends it, as an operator would.
    async fn end(mut self) {
        use rustix::process::{Pid, Signal, kill_process};
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        wsc_testkit::within("the end of the proxy", self.child.wait()).await.unwrap();
    }
}

/// A message goes there and another one comes back; pings pass.
async fn talks(proxy: &Proxy) {
    let join = r#"{"message_type":"join_room","message_id":1,"data":{"room_id":"r1"}}"#;
    let mut alice = proxy.connect().await;
    let answer = alice.handshake(&Handshake::new(proxy.addr, "/ws?user_id=alice&token=not-for-logs")).await;
    assert_eq!(answer.status, 101, "{answer:?}");
    alice.expect("connected").await;
    // A back end on the hub's own machine: the address of another kind of client.
    let mut bob = RawClient::connect(proxy.hub.addr(), "/ws?user_id=bob").await;
    bob.expect("connected").await;
    for client in [&mut alice, &mut bob] {
        client.send(&Frame::text(join)).await;
        client.expect("room_joined").await;
    }
    // Larger than what proxies keep in one buffer.
    let large = "x".repeat(50_000);
    let say = |text: &str| format!(r#"{{"message_type":"room_message","data":{{"room_id":"r1","content":"{text}"}}}}"#);
    alice.send(&Frame::text(say(&large))).await;
    assert_eq!(bob.expect("room_message").await["data"]["content"], large.as_str());
    bob.send(&Frame::text(say("and back"))).await;
    assert_eq!(alice.expect("room_message").await["data"]["content"], "and back");
    alice.send(&Frame::ping("there?")).await;
    assert_eq!(alice.read_frame().await.payload, b"there?");
    alice.send(&Frame::close(1000, "")).await;
    assert_eq!(alice.expect_close().await, 1000);
}

/// The hub counts connections by the client's address and not by the proxy's; what a client says about itself is not heard.
async fn shows_the_clients_address(proxy: &Proxy) {
    let mut client = proxy.connect().await;
    let answer = client.handshake(&Handshake::new(proxy.addr, "/ws?user_id=alice")).await;
    assert_eq!(answer.status, 101, "{answer:?}");
    client.expect("connected").await;
    // The next one from there is one too many, also past the proxy, and whatever it says.
    let direct = RawClient::tcp(proxy.hub.addr()).await.handshake(&Handshake::new(proxy.hub.addr(), "/ws")).await;
    assert_ne!(direct.status, 101, "{direct:?}");
    for (header, value) in
        [("X-Forwarded-For", "198.51.100.7"), ("Forwarded", "for=198.51.100.7"), ("X-Real-IP", "198.51.100.7")]
    {
        let mut liar = proxy.connect().await;
        let answer = liar.handshake(&Handshake::new(proxy.addr, "/ws").add(header, value)).await;
        assert_ne!(answer.status, 101, "{header}");
    }
    client.send(&Frame::close(1000, "")).await;
    assert_eq!(client.expect_close().await, 1000);
    eventually("there is room again", async || {
        let mut next = proxy.connect().await;
        let answer = next.handshake(&Handshake::new(proxy.addr, "/ws")).await;
        (answer.status == 101).then_some(())
    })
    .await;
}

/// Whether a hub answers at all can be asked; nothing else but `/ws` is passed on, however it is written.
async fn keeps_the_operators_pages_closed(proxy: &Proxy) {
    assert_eq!(proxy.status("GET", "/health/ready").await, 200);
    for path in [
        "/",
        "/metrics",
        "//metrics",
        "/./metrics",
        "/ws/../metrics",
        "/ws/..%2fmetrics",
        "/ws%2f..%2fmetrics",
        "/%6detrics",
        "/debug/hub/status",
        "/debug/failures",
        "/health",
        "/health/failure-stats",
        "/health/retry-config",
        "/api/stats",
        "/api/clients",
        "/api/webhooks/dead",
        "/health/ready/../../metrics",
        "/openapi.json",
        "/ws/",
        "/ws;/../metrics",
    ] {
        let status = proxy.status("GET", path).await;
        assert!(matches!(status, 400 | 403 | 404), "{path}: {status}");
    }
    for path in ["/api/broadcast", "/api/admin/config/reload", "/api/tokens/revoke", "/api/users/bob/messages"] {
        let status = proxy.status("POST", path).await;
        assert!(matches!(status, 400 | 403 | 404), "{path}: {status}");
    }
}

/// Tokens in the query do not get into logs, also where the hub is gone.
async fn logs_no_queries(proxy: &mut Proxy) {
    eventually("the proxy has logged a connection", async || {
        tokio::task::yield_now().await;
        proxy.logs().contains("/ws").then_some(())
    })
    .await;
    proxy.hub.kill().await;
    let mut late = proxy.connect().await;
    let answer = late.handshake(&Handshake::new(proxy.addr, "/ws?token=not-for-logs-either")).await;
    assert!(matches!(answer.status, 502..=504), "{answer:?}");
    eventually("the proxy has logged that, too", async || {
        tokio::task::yield_now().await;
        proxy.logs().lines().any(|line| line.contains("/ws") && line.contains(&answer.status.to_string())).then_some(())
    })
    .await;
    assert!(!proxy.logs().contains("not-for-logs"), "{}", proxy.logs());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nginx"]
async fn clients_talk_through_nginx() {
    let mut proxy = Proxy::nginx(hub(0).await).await;
    talks(&proxy).await;
    keeps_the_operators_pages_closed(&proxy).await;
    logs_no_queries(&mut proxy).await;
    proxy.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nginx"]
async fn nginx_says_whom_a_connection_is_from() {
    let proxy = Proxy::nginx(hub(1).await).await;
    shows_the_clients_address(&proxy).await;
    proxy.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs haproxy"]
async fn clients_talk_through_haproxy() {
    let mut proxy = Proxy::haproxy(hub(0).await).await;
    talks(&proxy).await;
    keeps_the_operators_pages_closed(&proxy).await;
    logs_no_queries(&mut proxy).await;
    proxy.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs haproxy"]
async fn haproxy_says_whom_a_connection_is_from() {
    let proxy = Proxy::haproxy(hub(1).await).await;
    shows_the_clients_address(&proxy).await;
    proxy.end().await;
}

/// Waiting for it would take minutes; so the figures are compared with the hub's.
#[test]
fn proxies_wait_longer_than_the_hub_does() {
    let settings = Settings::default();
    let silence = settings.ping_interval + settings.pong_timeout;
    for (file, word) in [
        ("ops/nginx/wsc.conf", "proxy_read_timeout"),
        ("ops/nginx/wsc.conf", "proxy_send_timeout"),
        ("ops/haproxy/haproxy.cfg", "timeout tunnel"),
    ] {
        assert!(timeout(file, word) > silence, "{word} in {file}");
    }
    assert!(timeout("ops/haproxy/haproxy.cfg", "timeout server") > settings.http.wait_timeout);
}

/// The first time span that is set under this name.
#[track_caller]
fn timeout(file: &str, name: &str) -> Duration {
    let text = read(file);
    let line = text.lines().map(str::trim).find_map(|line| line.strip_prefix(name)).expect("it is set");
    parse_duration(line.trim().trim_end_matches(';')).expect("a time span")
}
