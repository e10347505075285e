//! A small service, and a client that sees every frame.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    task::Poll,
    time::{Duration, Instant},
};

use http::Request;
use parking_lot::Mutex;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream},
    net::{TcpSocket, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use wsc_protocol::{CloseCode, CloseReason, DisconnectReason, FailureReason};
use wsc_transport::{
    Admission, Adopted, Encoded, Extensions, Fanout, FanoutReport, Handler, Message, Next, Outbound, Peer, Service,
    Settle, Slot, Stream, TlsConfig, Transport, TransportConfig, text_frame,
};

/// How long anything may take before a test fails: far more than a loaded machine needs.
const WAIT: Duration = Duration::from_secs(20);

/// Waits for `future`, but not for ever.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(WAIT, future).await {
        Ok(output) => output,
        Err(_) => panic!("still waiting: {what}"),
    }
}

/// Lets everybody else run until `probe` says yes.
pub(crate) async fn eventually(what: &str, mut probe: impl FnMut() -> bool) {
    let start = Instant::now();
    while !probe() {
        assert!(start.elapsed() < WAIT, "not so in the end: {what}");
        tokio::task::yield_now().await;
    }
}

/// The service: repeats what it hears, but for a few commands.
#[derive(Clone)]
pub(crate) struct Lab(Arc<State>);

pub(crate) struct State {
    pub(crate) room: Fanout<Outbound>,
    /// Open connections in the order of their coming.
    pub(crate) open: Mutex<BTreeMap<u64, Outbound>>,
    opened: AtomicU64,
    /// Every end that a handler was told.
    pub(crate) ended: Mutex<Vec<(u64, DisconnectReason)>>,
    /// Whose handlers panic at their end.
    brittle: Mutex<Vec<u64>>,
    /// A message `wait` takes one of these.
    pub(crate) gate: Semaphore,
    /// Waits that are over, one way or the other.
    pub(crate) waits_over: AtomicUsize,
    /// What came as something else than an upgrade.
    pub(crate) http: Mutex<Vec<Vec<u8>>>,
    pub(crate) rounds: AtomicUsize,
}

impl Service for Lab {
    type Ticket = ();
    type Handler = Guest;

    async fn admit(&self, request: &Request<()>, _: Peer) -> Admission<()> {
        match request.uri().query() {
            Some("refuse") => Admission::Refuse(http::Response::new(b"no".to_vec())),
            Some("close") => {
                let close = CloseReason::new(CloseCode::INVALID_TOKEN, "no token");
                Admission::Close { close, subprotocol: Some("wsc.v1") }
            }
            Some("never") => std::future::pending().await,
            _ => Admission::Accept { ticket: (), subprotocol: None },
        }
    }

    fn open(&self, (): (), outbound: &Outbound) -> Guest {
        let id = self.0.opened.fetch_add(1, SeqCst);
        self.0.open.lock().insert(id, outbound.clone());
        Guest { id, lab: Arc::clone(&self.0), outbound: outbound.clone(), slot: Mutex::new(None) }
    }

    async fn http(&self, mut stream: Stream, _: Peer) {
        let mut bytes = vec![0; 64 << 10];
        let len = stream.read(&mut bytes).await.unwrap_or(0);
        bytes.truncate(len);
        let stays = bytes.starts_with(b"GET /stay");
        self.0.http.lock().push(bytes);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        if stays {
            std::future::pending::<()>().await;
        }
    }

    fn flushed(&self, _: FanoutReport) {
        self.0.rounds.fetch_add(1, SeqCst);
    }
}

/// One connection of the service.
pub(crate) struct Guest {
    id: u64,
    lab: Arc<State>,
    outbound: Outbound,
    slot: Mutex<Option<Slot>>,
}

/// Counts its end.
struct Waiting(Arc<State>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waits_over.fetch_add(1, SeqCst);
    }
}

impl Handler for Guest {
    fn message(&self, message: Message<'_>) -> Next {
        let text = match message {
            Message::Text(text) => text,
            Message::Binary(bytes) => {
                self.outbound.send(&server_frame(0x82, bytes));
                return Next::Read;
            }
        };
        let (command, rest) = text.split_once(' ').unwrap_or((text, ""));
        match command {
            "join" => {
                self.outbound.send_with(|| {
                    let slot = self.lab.room.join(self.outbound.clone(), None).ok()?;
                    *self.slot.lock() = Some(slot);
                    Some(server_frame(0x81, b"joined"))
                });
            }
            "leave" => {
                self.outbound.send_with(|| {
                    self.lab.room.leave(self.slot.lock().take()?);
                    Some(server_frame(0x81, b"left"))
                });
            }
            "publish" => {
                let slot = *self.slot.lock();
                let _ = self.lab.room.publish(&Encoded::new(&server_frame(0x81, rest.as_bytes())), slot);
            }
            "close" => {
                self.outbound.close(&CloseReason::new(CloseCode::KICKED, "bye"), DisconnectReason::KickOut);
            }
            "panic" => {
                self.lab.brittle.lock().extend((rest == "twice").then_some(self.id));
                panic!("as the client wished")
            }
            "wait" => {
                let lab = Arc::clone(&self.lab);
                let outbound = self.outbound.clone();
                return Next::Wait(Box::pin(async move {
                    let waiting = Waiting(lab);
                    waiting.0.gate.acquire().await.expect("an open gate").forget();
                    outbound.send(&server_frame(0x81, b"waited"));
                }));
            }
            "soon" => return Next::Wait(Box::pin(std::future::ready(()))),
            "panic-later" => return Next::Wait(Box::pin(async { panic!("as the client wished") })),
            _ => {
                let mut buffer = Vec::new();
                self.outbound.send(text_frame(&mut buffer, |out| out.extend_from_slice(text.as_bytes())));
            }
        }
        Next::Read
    }

    fn closed(self, cause: DisconnectReason) {
        if let Some(slot) = self.slot.lock().take() {
            self.lab.room.leave(slot);
        }
        self.lab.open.lock().remove(&self.id);
        self.lab.ended.lock().push((self.id, cause));
        assert!(!self.lab.brittle.lock().contains(&self.id), "as the client wished");
    }
}

/// A transport with the service, listening on the loopback.
pub(crate) struct Hub {
    pub(crate) transport: Transport<Lab>,
    pub(crate) lab: Arc<State>,
    pub(crate) addr: SocketAddr,
}

impl Hub {
    pub(crate) fn start(config: &TransportConfig) -> Self {
        let mut lab = None;
        let transport = Transport::start("/ws", config, |fanouts| {
            let state = Arc::new(State {
                room: fanouts.fanout(),
                open: Mutex::default(),
                opened: AtomicU64::new(0),
                ended: Mutex::default(),
                brittle: Mutex::default(),
                gate: Semaphore::new(0),
                waits_over: AtomicUsize::new(0),
                http: Mutex::default(),
                rounds: AtomicUsize::new(0),
            });
            lab = Some(Arc::clone(&state));
            Arc::new(Lab(state))
        });
        // What the kernel holds back is small, so that a peer that does not read is noticed soon.
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_send_buffer_size(16 << 10).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1024).unwrap();
        let addr = listener.local_addr().unwrap();
        transport.listen(listener);
        Self { transport, lab: lab.unwrap(), addr }
    }

    pub(crate) fn with(change: impl FnOnce(&mut TransportConfig)) -> Self {
        let mut config = TransportConfig::default();
        change(&mut config);
        Self::start(&config)
    }

    /// A client on a socket whose receive buffer is small.
    pub(crate) async fn tcp(&self) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4 << 10).unwrap();
        within("a connection", socket.connect(self.addr)).await.unwrap()
    }

    pub(crate) async fn client(&self) -> Client<TcpStream> {
        let mut client = Client::new(self.tcp().await);
        client.upgrade("/ws").await;
        client
    }

    /// A client over a pipe of `size` bytes that the transport has adopted.
    pub(crate) fn adopted(&self, size: usize) -> Client<DuplexStream> {
        let (ours, theirs) = tokio::io::duplex(size);
        self.transport.adopt(Adopted::Stream(Box::new(theirs)), Vec::new(), Extensions::default(), ());
        Client::new(ours)
    }

    /// The sending half of the connection that opened last.
    pub(crate) fn newest(&self) -> Outbound {
        self.lab.open.lock().values().next_back().expect("a connection").clone()
    }

    /// Waits until `count` handlers were told their end; each may be told one only.
    pub(crate) async fn ended(&self, count: usize) -> Vec<DisconnectReason> {
        eventually("every handler is told the end", || self.lab.ended.lock().len() >= count).await;
        let mut ended = self.lab.ended.lock().clone();
        ended.sort_unstable_by_key(|&(id, _)| id);
        assert!(ended.windows(2).all(|w| w[0].0 != w[1].0), "told twice: {ended:?}");
        ended.into_iter().map(|(_, cause)| cause).collect()
    }

    /// Waits until nothing is on its way any more, and checks that everything has ended in one way.
    pub(crate) async fn settled(&self) {
        let stats = self.transport.stats();
        eventually("nothing is on its way", || {
            // At this moment and at every other one.
            let tally = stats.ledger().snapshot();
            assert_eq!(tally.taken(), tally.accounted(), "{tally:?}");
            tally.in_flight == 0 && stats.queue_bytes() == 0
        })
        .await;
    }

    /// Ends it, and checks that nothing is left over.
    pub(crate) async fn finish(self) {
        let close = CloseReason::new(CloseCode::SHUTTING_DOWN, "shutting down");
        within("the shutdown", self.transport.shutdown(&close, Duration::from_millis(200))).await;
        assert_eq!(self.transport.connections(), 0);
        assert_eq!(self.lab.ended.lock().len() as u64, self.lab.opened.load(SeqCst));
        self.settled().await;
    }
}

/// A frame as the server writes it.
pub(crate) fn server_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..=125 => frame.push(len as u8),
        len @ 126..=0xFFFF => {
            frame.push(126);
            frame.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            frame.push(127);
            frame.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(payload);
    frame
}

/// A frame as a client writes it.
pub(crate) fn client_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = server_frame(first, &[]);
    frame.truncate(1);
    let plain = server_frame(first, payload);
    let header = plain.len() - payload.len();
    frame.push(plain[1] | 0x80);
    frame.extend_from_slice(&plain[2..header]);
    let mask = [0xA1, 2, 0xB3, 4];
    frame.extend_from_slice(&mask);
    frame.extend(payload.iter().enumerate().map(|(i, b)| b ^ mask[i % 4]));
    frame
}

pub(crate) fn text(payload: &str) -> Vec<u8> {
    client_frame(0x81, payload.as_bytes())
}

pub(crate) const REQUEST: &str = "HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// Sees every frame as it is.
pub(crate) struct Client<S> {
    pub(crate) stream: S,
    unread: Vec<u8>,
    at: usize,
}

/// What a frame starts with, and its payload.
pub(crate) type Frame = (u8, Vec<u8>);

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, unread: Vec::new(), at: 0 }
    }

    /// Asks for an upgrade, with `more` in the same write.
    pub(crate) async fn upgrade_and(&mut self, path: &str, more: &[u8]) {
        let mut bytes = format!("GET {path} {REQUEST}").into_bytes();
        bytes.extend_from_slice(more);
        self.write(&bytes).await;
        let head = self.head().await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    }

    pub(crate) async fn upgrade(&mut self, path: &str) {
        self.upgrade_and(path, &[]).await;
    }

    /// An answer's head.
    pub(crate) async fn head(&mut self) -> String {
        loop {
            if let Some(len) = self.unread.windows(4).position(|w| w == b"\r\n\r\n") {
                let head = self.unread.drain(..len + 4).collect();
                return String::from_utf8(head).unwrap();
            }
            assert!(self.fill().await, "ended within the head: {:?}", String::from_utf8_lossy(&self.unread));
        }
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        within("room to write", self.stream.write_all(bytes)).await.unwrap();
    }

    pub(crate) async fn say(&mut self, words: &str) {
        self.write(&text(words)).await;
    }

    /// Reads more; false at the end, however it came.
    async fn fill(&mut self) -> bool {
        within("bytes", self.fill_at_leisure()).await
    }

    async fn fill_at_leisure(&mut self) -> bool {
        if self.at > 0 {
            self.unread.drain(..self.at);
            self.at = 0;
        }
        self.unread.reserve(64 << 10);
        self.stream.read_buf(&mut self.unread).await.unwrap_or(0) > 0
    }

    /// The next frame; `None` at the end.
    pub(crate) async fn frame(&mut self) -> Option<Frame> {
        within("a frame", self.frame_at_leisure()).await
    }

    /// The same where the clock is paused, so that waiting for it is no sign of a failure.
    pub(crate) async fn frame_at_leisure(&mut self) -> Option<Frame> {
        loop {
            let bytes = &self.unread[self.at..];
            if bytes.len() >= 2 {
                let (header, len) = match bytes[1] {
                    126 if bytes.len() >= 4 => (4, usize::from(u16::from_be_bytes([bytes[2], bytes[3]]))),
                    127 if bytes.len() >= 10 => (10, u64::from_be_bytes(bytes[2..10].try_into().unwrap()) as usize),
                    len @ 0..=125 => (2, usize::from(len)),
                    _ => (usize::MAX, 0),
                };
                if header <= bytes.len() && bytes.len() - header >= len {
                    let frame = (bytes[0], bytes[header..header + len].to_vec());
                    self.at += header + len;
                    return Some(frame);
                }
            }
            if !self.fill_at_leisure().await {
                assert_eq!(self.unread.len(), self.at, "ended within a frame");
                return None;
            }
        }
    }

    /// Reads whatever comes until the end of the stream.
    pub(crate) async fn read_to_end(&mut self) {
        while self.fill().await {
            self.at = self.unread.len();
        }
    }

    /// The next frame, which must be a text.
    pub(crate) async fn text(&mut self) -> String {
        match self.frame().await {
            Some((0x81, payload)) => String::from_utf8(payload).unwrap(),
            other => panic!("expected a text, got {other:?}"),
        }
    }

    /// The next frame, which must be a close; its code.
    pub(crate) async fn close(&mut self) -> u16 {
        match self.frame().await {
            Some((0x88, payload)) => u16::from_be_bytes(payload[..2].try_into().unwrap()),
            other => panic!("expected a close, got {other:?}"),
        }
    }

    /// Everything until the end of the stream.
    pub(crate) async fn rest(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.frame().await {
            frames.push(frame);
        }
        frames
    }
}

/// The code of a close frame.
pub(crate) fn close_code(frame: &Frame) -> Option<u16> {
    (frame.0 == 0x88).then(|| u16::from_be_bytes(frame.1[..2].try_into().unwrap()))
}

/// Remembers what it was told.
#[derive(Debug, Default)]
pub(crate) struct Tracked(pub(crate) Mutex<Vec<Result<(), FailureReason>>>);

impl Settle for Tracked {
    fn settle(&self, result: Result<(), FailureReason>) {
        self.0.lock().push(result);
    }
}

/// What the transport counts up to `total`, and by how much at most between two turns of a task of the same thread that is
/// always ready: so long others have to wait.
pub(crate) async fn most_between_turns(
    hub: &Hub,
    total: u64,
    count: impl Fn(&Transport<Lab>) -> u64 + Send + 'static,
) -> u64 {
    let transport = hub.transport.clone();
    let (mut last, mut most) = (count(&transport), 0);
    let watch = std::future::poll_fn(move |cx| {
        let now = count(&transport);
        most = most.max(now - last);
        last = now;
        if now == total {
            return Poll::Ready(most);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    });
    within("all of it", tokio::spawn(watch)).await.unwrap()
}

/// A certificate for `localhost`, and who trusts it alone.
pub(crate) fn certificate() -> (TlsConfig, TlsConnector) {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let number = COUNT.fetch_add(1, SeqCst);
    let folder = std::env::temp_dir().join(format!("wsc-transport-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    std::fs::write(&cert, issued.cert.pem()).unwrap();
    std::fs::write(&key, issued.signing_key.serialize_pem()).unwrap();
    let server = TlsConfig::from_files(&cert, &key).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(issued.cert.der().clone()).unwrap();
    let client = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (server, TlsConnector::from(Arc::new(client)))
}

pub(crate) fn localhost() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

/// A client of a hub that from now on has a certificate.
pub(crate) async fn secure(hub: &Hub) -> TlsStream<TcpStream> {
    let (server, client) = certificate();
    hub.transport.set_tls(&server);
    let tcp = hub.tcp().await;
    within("TLS", client.connect(localhost(), tcp)).await.unwrap()
}
