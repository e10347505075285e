//! From an accepted socket to an open connection: TLS, the request head, the decision, the answer.

use std::{
    collections::BTreeMap,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::Poll,
};

use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use parking_lot::Mutex;
use rustls::server::Acceptor;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Notify, Semaphore},
};
use tokio_rustls::LazyConfigAcceptor;
use tungstenite::handshake::{derive_accept_key, machine::TryParse};
use wsc_protocol::{CloseReason, ErrorCode};

use crate::{
    conn::Conn,
    connection::{Connection, Stream},
    deflate,
    frame::close_frame,
    replay::Replay,
    service::{Admission, Peer, Service},
    shared::Limits,
    stats::count,
    tls::TlsConfig,
    transport::Inner,
};

/// Checks an upgrade request against RFC 6455 §4.2.1 and makes the `101` that accepts it.
///
/// # Errors
///
/// The answer to a request that is no proper upgrade: `426` for another protocol version, else `400`.
pub fn upgrade_response<B>(
    request: &Request<B>,
    subprotocol: Option<&'static str>,
) -> Result<Response<()>, Box<Response<Vec<u8>>>> {
    let key = accepted_key(request).map_err(|objection| {
        let mut response = refusal(StatusCode::BAD_REQUEST, objection);
        if objection == WRONG_VERSION {
            *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
            response.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
            response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        }
        Box::new(response)
    })?;
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::try_from(derive_accept_key(key.as_bytes())) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    select(&mut response, subprotocol);
    Ok(response)
}

/// The key of a proper upgrade request, or what is wrong with it.
fn accepted_key<B>(request: &Request<B>) -> Result<&HeaderValue, &'static str> {
    let headers = request.headers();
    let once = |name| {
        let mut values = headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none())
    };
    let lists = |name, token: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|member| member.trim().eq_ignore_ascii_case(token))
    };
    if request.method() != Method::GET {
        return Err("an upgrade is asked for with GET");
    }
    if request.version() < Version::HTTP_11 {
        return Err("an upgrade needs HTTP/1.1");
    }
    if once(header::HOST).is_none() {
        return Err("there must be one Host");
    }
    if !lists(header::UPGRADE, "websocket") {
        return Err("Upgrade must name websocket");
    }
    if !lists(header::CONNECTION, "upgrade") {
        return Err("Connection must name Upgrade");
    }
    if once(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(WRONG_VERSION);
    }
    once(header::SEC_WEBSOCKET_KEY)
        .filter(|key| is_nonce(key.as_bytes()))
        .ok_or("there must be one Sec-WebSocket-Key of 16 bytes")
}

const WRONG_VERSION: &str = "Sec-WebSocket-Version must be 13";

/// Whether these are 16 bytes in base64, of whose last digit only two bits count (RFC 4648 §3.5).
fn is_nonce(key: &[u8]) -> bool {
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    let digits = key.strip_suffix(b"==").filter(|digits| digits.len() == 22 && digits.iter().all(is_digit));
    digits.is_some_and(|digits| matches!(digits.last(), Some(b'A' | b'Q' | b'g' | b'w')))
}

fn select(response: &mut Response<()>, subprotocol: Option<&'static str>) {
    if let Some(subprotocol) = subprotocol {
        response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(subprotocol));
    }
}

/// What a client and the transport agreed on beyond RFC 6455; by default nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// permessage-deflate.
    pub(crate) deflate: bool,
}

impl Extensions {
    /// Agrees on what the request offers and the settings allow, and says so in the response.
    pub(crate) fn agree<B>(limits: &Limits, request: &Request<B>, response: &mut Response<()>) -> Self {
        if !limits.offers_compression() {
            return Self::default();
        }
        let Some(answer) = deflate::negotiate(request.headers()) else { return Self::default() };
        response.headers_mut().insert(header::SEC_WEBSOCKET_EXTENSIONS, answer);
        Self { deflate: true }
    }
}

/// Whether a request asks for a WebSocket, properly or not.
pub fn wants_upgrade<B>(request: &Request<B>) -> bool {
    let upgrade = request.headers().get_all(header::UPGRADE);
    upgrade.iter().any(|v| v.to_str().is_ok_and(|v| v.to_ascii_lowercase().contains("websocket")))
}

/// A refusal with the hub's error body (protocol §1, *Refusals*).
fn refusal(status: StatusCode, message: &str) -> Response<Vec<u8>> {
    let body = error_body(ErrorCode::InvalidFormat, message);
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn error_body(code: ErrorCode, message: &str) -> Vec<u8> {
    let mut body = Vec::new();
    let mut json = wsc_protocol::encode::JsonWriter::new(&mut body);
    json.raw("{\"error\":{\"code\":").number(code.code().into()).raw(",\"message\":").string(message).raw("}}");
    body
}

/// Handshakes in progress, oldest first, so that a flood of half-open connections cuts itself.
#[derive(Default)]
pub(crate) struct PendingHandshakes {
    waiting: Mutex<BTreeMap<u64, Arc<Notify>>>,
    next: AtomicU64,
}

impl PendingHandshakes {
    /// Enters one more; where there are more than `max` the oldest is cut. Returns whether one was.
    fn enter(&self, max: usize) -> (u64, Arc<Notify>, bool) {
        let key = self.next.fetch_add(1, Relaxed);
        let cut = Arc::new(Notify::new());
        let mut waiting = self.waiting.lock();
        waiting.insert(key, Arc::clone(&cut));
        let oldest = if waiting.len() > max.max(1) { waiting.pop_first() } else { None };
        drop(waiting);
        let was_cut = oldest.is_some();
        if let Some((_, oldest)) = oldest {
            oldest.notify_one();
        }
        (key, cut, was_cut)
    }

    fn exit(&self, key: u64) {
        self.waiting.lock().remove(&key);
    }
}

/// Leaves the list however the handshake ends.
struct PendingGuard<S: Service>(Arc<Inner<S>>, u64);

impl<S: Service> Drop for PendingGuard<S> {
    fn drop(&mut self) {
        self.0.pending.exit(self.1);
    }
}

/// Whose turn it is among handshakes.
///
/// What costs time (the certificate's signature, the decision) is done a few at a time, in the order in which it became
/// possible. The others are not even ready to run meanwhile: however many clients come at once, only so many stand
/// between two messages of those who are there.
pub(crate) struct Turns(Semaphore);

impl Default for Turns {
    fn default() -> Self {
        Self(Semaphore::new(TURNS))
    }
}

impl Turns {
    /// Returns when everybody has had a turn who waits for one now.
    pub(crate) async fn pass(&self) {
        // It is never closed.
        let _ = self.0.acquire().await;
    }

    /// Begins `work` when it is its turn. The turn is over when it waits for something: that costs nobody anything.
    async fn take<F: Future>(&self, work: F) -> F::Output {
        let turn = self.0.acquire().await;
        let mut work = std::pin::pin!(work);
        let begun = std::future::poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await;
        drop(turn);
        match begun {
            Poll::Ready(output) => output,
            Poll::Pending => work.await,
        }
    }
}

/// What a socket turned out to be.
enum Outcome<S: Service> {
    Open(Box<Connection<S::Handler>>),
    Http(Stream),
    Over,
}

/// An accepted socket on its way to an open connection.
pub(crate) type Handshake<H> = Pin<Box<dyn Future<Output = Option<Box<Connection<H>>>> + Send>>;

/// Takes an accepted socket as far as an open connection. Anything else is dealt with here.
///
/// It counts as pending from the call on, not from the first poll: tasks do not begin in the order in which their
/// sockets were accepted, and the newest must not be cut for the oldest.
pub(crate) fn handshake<S: Service>(
    transport: Arc<Inner<S>>,
    socket: TcpStream,
    tls: Option<TlsConfig>,
    peer: Peer,
) -> impl Future<Output = Option<Box<Connection<S::Handler>>>> + Send {
    let (key, cut, was_cut) = transport.pending.enter(transport.shared.limits.pending_handshakes());
    if was_cut {
        count(&transport.shared.stats.handshakes_cut);
    }
    let guard = PendingGuard(Arc::clone(&transport), key);
    drive(transport, guard, cut, socket, tls, peer)
}

async fn drive<S: Service>(
    transport: Arc<Inner<S>>,
    guard: PendingGuard<S>,
    cut: Arc<Notify>,
    socket: TcpStream,
    tls: Option<TlsConfig>,
    peer: Peer,
) -> Option<Box<Connection<S::Handler>>> {
    let stats = &transport.shared.stats;
    let timeout = transport.shared.limits.handshake_timeout();
    let outcome = tokio::select! {
        outcome = tokio::time::timeout(timeout, begin(&transport, socket, tls, peer)) => outcome,
        () = cut.notified() => return None,
        () = transport.stop.cancelled() => return None,
    };
    drop(guard);
    match outcome {
        Ok(Ok(Outcome::Open(connection))) => Some(connection),
        Ok(Ok(Outcome::Http(stream))) => {
            tokio::select! {
                () = transport.service.http(stream, peer) => {}
                () = transport.abort.cancelled() => {}
            }
            None
        }
        Ok(Ok(Outcome::Over)) => None,
        Ok(Err(_)) => {
            count(&stats.handshakes_aborted);
            None
        }
        Err(_) => {
            count(&stats.handshakes_timed_out);
            None
        }
    }
}

async fn begin<S: Service>(
    transport: &Arc<Inner<S>>,
    socket: TcpStream,
    tls: Option<TlsConfig>,
    peer: Peer,
) -> io::Result<Outcome<S>> {
    socket.set_nodelay(true)?;
    match tls {
        None => {
            let mut socket = socket;
            let head = read_head(&mut socket).await?;
            transport.turns.take(decide(transport, Transfer::Tcp(socket), head, peer)).await
        }
        Some(tls) => {
            let accepted = async {
                // Only who has said all of its hello is worth a signature.
                let hello = LazyConfigAcceptor::new(Acceptor::default(), socket).await?;
                transport.turns.take(async { hello.into_stream(tls.0).await }).await
            };
            let mut stream = match accepted.await {
                Ok(stream) => stream,
                Err(e) => {
                    count(&transport.shared.stats.handshakes_tls);
                    tracing::debug!(peer = %peer.remote, error = %e, "TLS handshake failed");
                    return Ok(Outcome::Over);
                }
            };
            let head = read_head(&mut stream).await?;
            transport.turns.take(decide(transport, Transfer::Stream(Box::new(stream)), head, peer)).await
        }
    }
}

/// A stream on its way to whoever serves it.
pub(crate) enum Transfer {
    Tcp(TcpStream),
    Stream(Stream),
}

impl Transfer {
    pub(crate) fn into_stream(self) -> Stream {
        match self {
            Self::Tcp(tcp) => Box::new(tcp),
            Self::Stream(stream) => stream,
        }
    }
}

/// The bytes that were read until a request head was complete.
struct Head {
    bytes: Vec<u8>,
    /// Where the head ends; `None` where it is none that we would read to the end.
    end: Option<usize>,
}

/// Reads a whole request head, whosever it is: so one timeout and one bound cover every kind of slow opening.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Head> {
    let mut bytes = Vec::with_capacity(1024);
    loop {
        let searched = bytes.len().saturating_sub(3);
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(at) = bytes[searched..].windows(4).position(|w| w == b"\r\n\r\n") {
            let end = Some(searched + at + 4);
            return Ok(Head { bytes, end });
        }
        // No method starts like this, or no head is this long: HTTP says what it thinks of it.
        if !bytes[0].is_ascii_uppercase() || bytes.len() > MAX_HEAD_LEN {
            return Ok(Head { bytes, end: None });
        }
    }
}

async fn decide<S: Service>(
    transport: &Arc<Inner<S>>,
    stream: Transfer,
    head: Head,
    peer: Peer,
) -> io::Result<Outcome<S>> {
    let Head { mut bytes, end } = head;
    let request = end
        .filter(|_| is_for(&bytes, &transport.path))
        .and_then(|end| Request::try_parse(&bytes[..end]).ok().flatten())
        .filter(|(_, request)| wants_upgrade(request));
    // Where the head ends is for the parser to say: to it an empty line may end in LF alone.
    let Some((end, request)) = request else {
        return Ok(Outcome::Http(Box::new(Replay::new(bytes, stream.into_stream()))));
    };
    let mut response = match upgrade_response(&request, None) {
        Ok(response) => response,
        Err(response) => {
            count(&transport.shared.stats.handshakes_malformed);
            refuse(stream, *response).await?;
            return Ok(Outcome::Over);
        }
    };
    let (subprotocol, close, ticket) = match transport.service.admit(&request, peer).await {
        Admission::Accept { ticket, subprotocol } => (subprotocol, None, Some(ticket)),
        Admission::Close { close, subprotocol } => (subprotocol, Some(close), None),
        Admission::Refuse(response) => {
            refuse(stream, response).await?;
            return Ok(Outcome::Over);
        }
    };
    select(&mut response, subprotocol);
    let extensions = match &ticket {
        Some(_) => Extensions::agree(&transport.shared.limits, &request, &mut response),
        None => Extensions::default(),
    };
    let mut answer = Vec::with_capacity(192);
    tungstenite::handshake::server::write_response(&mut answer, &response).map_err(io::Error::other)?;
    match (ticket, close) {
        (Some(ticket), _) => {
            bytes.drain(..end);
            let connection = open(transport, stream, answer, bytes, extensions, ticket);
            Ok(Outcome::Open(Box::new(connection)))
        }
        (None, close) => {
            farewell(stream.into_stream(), answer, close).await?;
            Ok(Outcome::Over)
        }
    }
}

/// Makes the connection of an admitted peer. `answer` is written first, `unread` has been read already.
pub(crate) fn open<S: Service>(
    transport: &Arc<Inner<S>>,
    stream: Transfer,
    answer: Vec<u8>,
    unread: Vec<u8>,
    extensions: Extensions,
    ticket: S::Ticket,
) -> Connection<S::Handler> {
    let (tcp, stream) = match stream {
        Transfer::Tcp(tcp) => (Some(tcp), None),
        Transfer::Stream(stream) => (None, Some(stream)),
    };
    let conn = Conn::held(Arc::clone(&transport.shared), tcp, answer, extensions);
    Connection::open(conn, stream, unread, |outbound| transport.service.open(ticket, outbound))
}

/// Writes a response and ends the connection so that the peer can read it.
async fn refuse(stream: Transfer, response: Response<Vec<u8>>) -> io::Result<()> {
    let (mut parts, body) = response.into_parts();
    parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    parts.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    let mut bytes = Vec::with_capacity(256 + body.len());
    let response = Response::from_parts(parts, ());
    tungstenite::handshake::server::write_response(&mut bytes, &response).map_err(io::Error::other)?;
    bytes.extend_from_slice(&body);
    let mut stream = stream.into_stream();
    stream.write_all(&bytes).await?;
    hang_up(stream).await
}

/// Switches protocols only to say why not.
pub(crate) async fn farewell(mut stream: Stream, mut answer: Vec<u8>, close: Option<CloseReason>) -> io::Result<()> {
    if let Some(close) = close {
        answer.extend_from_slice(&close_frame(&close));
    }
    stream.write_all(&answer).await?;
    hang_up(stream).await
}

/// Ends the stream in order. Closing with bytes unread would reset it, and the peer might lose our last ones.
async fn hang_up(mut stream: Stream) -> io::Result<()> {
    stream.shutdown().await?;
    let mut rest = [0; 1024];
    let mut left = MAX_HEAD_LEN;
    while left > 0 {
        match stream.read(&mut rest).await? {
            0 => break,
            len => left = left.saturating_sub(len),
        }
    }
    Ok(())
}

/// Whether the request line asks for `path`. Everything else need not be parsed here.
fn is_for(head: &[u8], path: &str) -> bool {
    head.strip_prefix(b"GET ")
        .and_then(|rest| rest.strip_prefix(path.as_bytes()))
        .is_some_and(|rest| matches!(rest.first(), Some(b' ' | b'?')))
}

/// Handshakes that are worked on at a time. A signature takes up to a millisecond, all the rest some microseconds.
const TURNS: usize = 8;

/// Longest request head that is read; what HTTP servers commonly take.
const MAX_HEAD_LEN: usize = 16 << 10;
