//! Measures how long the established wait for an answer while others do their worst.
//!
//! ```text
//! cargo run --release -p wsc-transport --example neighbours -- [calm|flood|storm|tls-storm] [--threads 1] [--count N]
//! ```
//!
//! A hundred connections ask every 20 ms and are answered. Meanwhile nobody else is there (`calm`), `count` connections
//! send 40 KB frames back to back (`flood`, 8), or `count` clients connect at once (`storm`, 5000; `tls-storm` with TLS
//! handshakes, 1000). Prints how long the hundred had to wait (in a storm: until all were in), and how much the others got
//! done. Two descriptors are needed for each client.

use std::{
    env,
    error::Error,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use http::Request;
use rustls::{ClientConfig, RootCertStore, client::Resumption};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
};
use tokio_rustls::TlsConnector;
use wsc_protocol::DisconnectReason;
use wsc_transport::{
    Admission, Handler, Message, Next, Outbound, Peer, Service, Stream, TlsConfig, Transport, TransportConfig,
    text_frame,
};

struct Echo;

impl Service for Echo {
    type Ticket = ();
    type Handler = EchoHandler;

    async fn admit(&self, _: &Request<()>, _: Peer) -> Admission<()> {
        Admission::Accept { ticket: (), subprotocol: None }
    }

    fn open(&self, (): (), outbound: &Outbound) -> EchoHandler {
        EchoHandler(outbound.clone())
    }

    async fn http(&self, _: Stream, _: Peer) {}
}

struct EchoHandler(Outbound);

impl Handler for EchoHandler {
    fn message(&self, message: Message<'_>) -> Next {
        self.0.send(text_frame(&mut Vec::new(), |out| out.extend_from_slice(message.as_bytes())));
        Next::Read
    }

    fn closed(self, _: DisconnectReason) {}
}

const REQUEST: &[u8] = b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// A masked text frame of `x`s; the mask is zero, so that it can be made once.
fn frame(len: u16) -> Vec<u8> {
    let mut frame = vec![0x81];
    match len {
        0..=125 => frame.push(0x80 | len as u8),
        _ => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&len.to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.resize(frame.len() + usize::from(len), b'x');
    frame
}

async fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    upgrade(&mut stream).await?;
    Ok(stream)
}

async fn upgrade(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin)) -> std::io::Result<()> {
    stream.write_all(REQUEST).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut head).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

/// Asks and notes how long the answer takes, for ever.
async fn ask(mut stream: TcpStream, waits: Arc<Mutex<Vec<Duration>>>) -> std::io::Result<()> {
    let question = frame(60);
    let mut answer = [0; 62];
    let mut interval = tokio::time::interval(Duration::from_millis(20));
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let asked = Instant::now();
        stream.write_all(&question).await?;
        stream.read_exact(&mut answer).await?;
        if let Ok(mut waits) = waits.lock() {
            waits.push(asked.elapsed());
        }
    }
}

/// Sends as fast as it can, and reads what comes back.
async fn flood(stream: TcpStream) -> std::io::Result<()> {
    let (mut reader, mut writer) = stream.into_split();
    tokio::spawn(async move {
        let mut buffer = vec![0; 1 << 20];
        while reader.read(&mut buffer).await.is_ok_and(|len| len > 0) {}
    });
    let frames = frame(40_000).repeat(25);
    loop {
        writer.write_all(&frames).await?;
    }
}

fn runtime(threads: usize) -> std::io::Result<Runtime> {
    match threads {
        1 => Builder::new_current_thread().enable_all().build(),
        threads => Builder::new_multi_thread().worker_threads(threads).enable_all().build(),
    }
}

/// A server on threads of its own.
fn serve(threads: usize) -> Result<(SocketAddr, Transport<Echo>), Box<dyn Error>> {
    let runtime = runtime(threads)?;
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    socket.listen(4096)?;
    let listener = std::net::TcpListener::from(socket);
    let address = listener.local_addr()?;
    let mut config = TransportConfig::default();
    config.queue_max_bytes = 64 << 20;
    let transport = runtime.block_on(async {
        let transport = Transport::start("/ws", &config, |_| Arc::new(Echo));
        transport.listen(TcpListener::from_std(listener)?);
        Ok::<_, std::io::Error>(transport)
    })?;
    std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    Ok((address, transport))
}

/// A certificate for the server, and a client that trusts it.
fn certificate() -> Result<(TlsConfig, TlsConnector), Box<dyn Error>> {
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let folder = env::temp_dir().join(format!("neighbours-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    std::fs::write(&cert, issued.cert.pem())?;
    std::fs::write(&key, issued.signing_key.serialize_pem())?;
    let server = TlsConfig::from_files(&cert, &key);
    std::fs::remove_dir_all(&folder)?;
    let mut roots = RootCertStore::empty();
    roots.add(issued.cert.der().clone())?;
    let mut client = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // Each handshake is a whole one.
    client.resumption = Resumption::disabled();
    Ok((server?, TlsConnector::from(Arc::new(client))))
}

/// Connects `count` times at once and stays. Counts those who came in; returns when each has been let in or turned away.
async fn storm(to: SocketAddr, count: usize, tls: Option<TlsConnector>, done: Arc<AtomicU64>) {
    let clients: Vec<_> = (0..count)
        .map(|_| {
            let (tls, done) = (tls.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                let mut stream: Stream = Box::new(TcpStream::connect(to).await?);
                if let Some(tls) = tls {
                    let name = ServerName::try_from("localhost").map_err(std::io::Error::other)?;
                    stream = Box::new(tls.connect(name, stream).await?);
                }
                upgrade(&mut stream).await?;
                done.fetch_add(1, Relaxed);
                Ok::<_, std::io::Error>(stream)
            })
        })
        .collect();
    let mut inside = Vec::new();
    for client in clients {
        inside.extend(client.await);
    }
    // To leave all at once would be another storm.
    std::mem::forget(inside);
}

#[expect(clippy::print_stdout, reason = "the result")]
fn main() -> Result<(), Box<dyn Error>> {
    let (mut mode, mut threads, mut count, mut seconds) = ("calm".to_owned(), 1, None, 5);
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|n| n.parse().ok()).ok_or("a number is missing");
        match argument.as_str() {
            "--threads" => threads = number()?,
            "--count" => count = Some(number()?),
            "--seconds" => seconds = number()?,
            "calm" | "flood" | "storm" | "tls-storm" => mode = argument,
            other => return Err(format!("unknown argument: {other}").into()),
        }
    }
    let (address, transport) = serve(threads)?;
    let waits = Arc::new(Mutex::new(Vec::new()));
    let neighbours = Arc::clone(&waits);
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        runtime(1)?.block_on(async {
            let mut streams = Vec::new();
            for _ in 0..100 {
                streams.push(connect(address).await?);
            }
            let asking: Vec<_> = streams.into_iter().map(|s| tokio::spawn(ask(s, Arc::clone(&neighbours)))).collect();
            let _ = ready.send(());
            for asks in asking {
                let _ = asks.await;
            }
            Ok::<_, std::io::Error>(())
        })
    });
    is_ready.recv()?;
    let tls = match mode.as_str() {
        "tls-storm" => {
            let (server, client) = certificate()?;
            transport.set_tls(&server);
            Some(client)
        }
        _ => None,
    };
    let done = Arc::new(AtomicU64::new(0));
    let (finish, is_over) = std::sync::mpsc::channel();
    // The hundred get into their stride.
    std::thread::sleep(Duration::from_secs(1));
    waits.lock().map_err(|_| "poisoned")?.clear();
    let begin = Instant::now();
    let others = runtime(1)?;
    let (others_mode, others_done) = (mode.clone(), Arc::clone(&done));
    std::thread::spawn(move || {
        others.block_on(async {
            let seconds = Duration::from_secs(seconds as u64);
            match others_mode.as_str() {
                "flood" => {
                    for _ in 0..count.unwrap_or(8) {
                        tokio::spawn(flood(connect(address).await?));
                    }
                    tokio::time::sleep(seconds).await;
                }
                "storm" => storm(address, count.unwrap_or(5000), None, others_done).await,
                "tls-storm" => storm(address, count.unwrap_or(1000), tls, others_done).await,
                _ => tokio::time::sleep(seconds).await,
            }
            let _ = finish.send(());
            std::future::pending::<std::io::Result<()>>().await
        })
    });
    is_over.recv()?;
    let took = begin.elapsed().as_secs_f64();
    let mut waits = std::mem::take(&mut *waits.lock().map_err(|_| "poisoned")?);
    waits.sort_unstable();
    let at = |share: f64| waits.get((waits.len() as f64 * share) as usize).map_or(0.0, |w| w.as_secs_f64() * 1000.0);
    println!(
        "{mode}, {threads} thread(s), {took:.1} s: {} answers, p50 {:.2} ms, p99 {:.2} ms, worst {:.1} ms; others: {:.0} \
         clients/s, {:.0} MB/s",
        waits.len(),
        at(0.5),
        at(0.99),
        waits.last().map_or(0.0, |w| w.as_secs_f64() * 1000.0),
        done.load(Relaxed) as f64 / took,
        transport.stats().bytes_in() as f64 / took / 1e6,
    );
    Ok(())
}
