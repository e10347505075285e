//! A client that speaks bytes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::frame::{Frame, RawFrame};
use crate::http::{HttpResponse, parse, parse_head};
use crate::tls::TlsIdentity;
use crate::wait::within;

/// How the TCP connection is made.
#[derive(Debug, Clone, Copy, Default)]
pub struct RawOptions {
    /// The address to come from, any of 127.0.0.0/8.
    pub source: Option<Ipv4Addr>,
    /// `SO_RCVBUF` in bytes: small for a client that reads slowly.
    pub recv_buffer: Option<u32>,
}

/// The head of a WebSocket handshake, correct until something is changed.
#[derive(Debug, Clone)]
pub struct Handshake {
    method: String,
    target: String,
    version: String,
    headers: Vec<(String, String)>,
}

impl Handshake {
    /// A correct handshake for this target (path and query) at this address.
    pub fn new(addr: SocketAddr, target: &str) -> Self {
        let headers = [
            ("Host", addr.to_string()),
            ("Upgrade", "websocket".to_owned()),
            ("Connection", "Upgrade".to_owned()),
            ("Sec-WebSocket-Key", KEY.to_owned()),
            ("Sec-WebSocket-Version", "13".to_owned()),
        ];
        Self {
            method: "GET".to_owned(),
            target: target.to_owned(),
            version: "HTTP/1.1".to_owned(),
            headers: headers.map(|(key, value)| (key.to_owned(), value)).into(),
        }
    }

    /// Uses another method.
    #[must_use]
    pub fn method(mut self, method: &str) -> Self {
        method.clone_into(&mut self.method);
        self
    }

    /// Uses another HTTP version, for instance `HTTP/1.0`.
    #[must_use]
    pub fn version(mut self, version: &str) -> Self {
        version.clone_into(&mut self.version);
        self
    }

    /// Sets a header, in place of the one that is there.
    #[must_use]
    pub fn set(self, name: &str, value: &str) -> Self {
        self.without(name).add(name, value)
    }

    /// Adds a header beside what is there.
    #[must_use]
    pub fn add(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Leaves a header out.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
        self
    }

    /// The bytes of the request.
    pub fn encode(&self) -> Vec<u8> {
        let mut head = format!("{} {} {}\r\n", self.method, self.target, self.version);
        for (key, value) in &self.headers {
            head.push_str(key);
            head.push_str(": ");
            head.push_str(value);
            head.push_str("\r\n");
        }
        head.push_str("\r\n");
        head.into_bytes()
    }
}

/// The key of RFC 6455's own example, and what answers it.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// What bytes go over: TCP, or TLS over it.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A TCP connection to the server, without any manners.
///
/// Nothing is answered by itself, no ping and no close. Every wait panics after
/// [`crate::WAIT`].
pub struct RawClient {
    stream: Box<dyn Stream>,
    addr: SocketAddr,
    buffer: Vec<u8>,
    frames: Vec<RawFrame>,
}

impl RawClient {
    /// Connects and sends nothing.
    ///
    /// # Panics
    ///
    /// When the connection is refused.
    pub async fn tcp(addr: SocketAddr) -> Self {
        Self::tcp_with(addr, RawOptions::default()).await
    }

    /// Connects with options and sends nothing.
    ///
    /// # Panics
    ///
    /// When the connection is refused.
    pub async fn tcp_with(addr: SocketAddr, options: RawOptions) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        if let Some(size) = options.recv_buffer {
            socket.set_recv_buffer_size(size).expect("the receive buffer can be set");
        }
        if let Some(source) = options.source {
            socket.bind(SocketAddr::new(IpAddr::V4(source), 0)).expect("any loopback address can be bound");
        }
        let stream = within("a TCP connection", socket.connect(addr)).await;
        let stream = stream.unwrap_or_else(|error| panic!("cannot connect to {addr}: {error}"));
        stream.set_nodelay(true).expect("no delay can be set");
        Self::over(Box::new(stream), addr)
    }

    /// Connects over TLS, trusting this certificate alone, and sends nothing.
    ///
    /// # Panics
    ///
    /// When the connection or the certificate is refused.
    pub async fn tls(addr: SocketAddr, identity: &TlsIdentity) -> Self {
        let stream = TcpStream::connect(addr).await;
        let stream = stream.unwrap_or_else(|error| panic!("cannot connect to {addr}: {error}"));
        let stream = within("a TLS handshake", identity.connect(stream)).await;
        let stream = stream.unwrap_or_else(|error| panic!("no TLS with {addr}: {error}"));
        Self::over(Box::new(stream), addr)
    }

    fn over(stream: Box<dyn Stream>, addr: SocketAddr) -> Self {
        Self { stream, addr, buffer: Vec::new(), frames: Vec::new() }
    }

    /// Connects and upgrades with a correct handshake; the `connected` frame
    /// is still to be read.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn connect(addr: SocketAddr, target: &str) -> Self {
        Self::connect_with(addr, target, RawOptions::default()).await
    }

    /// As [`RawClient::connect`], with options.
    ///
    /// # Panics
    ///
    /// When the server refuses.
    pub async fn connect_with(addr: SocketAddr, target: &str, options: RawOptions) -> Self {
        let mut client = Self::tcp_with(addr, options).await;
        let response = client.handshake(&Handshake::new(addr, target)).await;
        assert_eq!(response.status, 101, "{response:?}");
        assert_eq!(response.header("sec-websocket-accept"), Some(ACCEPT));
        client
    }

    /// Sends this handshake and reads the answer, with its body when it is a
    /// refusal.
    pub async fn handshake(&mut self, handshake: &Handshake) -> HttpResponse {
        self.send_bytes(&handshake.encode()).await;
        self.read_http_response().await
    }

    /// Sends bytes.
    ///
    /// # Panics
    ///
    /// When the connection is gone.
    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        let sent = within("the server to read", self.write(bytes)).await;
        if let Err(error) = sent {
            panic!("cannot send ({error}); {self}");
        }
    }

    /// Sends bytes; says whether the connection took them.
    pub async fn try_send_bytes(&mut self, bytes: &[u8]) -> bool {
        within("the server to read", self.write(bytes)).await.is_ok()
    }

    /// TLS holds bytes back until it is told not to.
    async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Sends a frame.
    ///
    /// # Panics
    ///
    /// When the connection is gone.
    pub async fn send(&mut self, frame: &Frame) {
        self.send_bytes(&frame.encode()).await;
    }

    /// Reads an HTTP answer, with its body unless it is a 101.
    ///
    /// # Panics
    ///
    /// When the stream ends without one.
    pub async fn read_http_response(&mut self) -> HttpResponse {
        loop {
            if let Some((response, head)) = parse_head(&self.buffer)
                && response.status == 101
            {
                self.buffer.drain(..head);
                return response;
            }
            let complete = parse(&self.buffer, "GET", false);
            let response = match complete {
                None if self.fill("an HTTP answer").await => continue,
                None => parse(&self.buffer, "GET", true),
                complete => complete,
            };
            match response {
                Some(response) => {
                    self.buffer.clear();
                    return response;
                }
                None => panic!("the end instead of an HTTP answer; {self}"),
            }
        }
    }

    /// Sends `bytes` one at a time, each as soon as the server has been silent
    /// for `pause`, until the server closes; says how many were sent. When they
    /// are used up it waits for the end.
    ///
    /// # Panics
    ///
    /// When the server does not close.
    pub async fn trickle(&mut self, bytes: &[u8], pause: Duration) -> usize {
        for (sent, byte) in bytes.iter().enumerate() {
            let closed = async { while self.fill("the end").await {} };
            if tokio::time::timeout(pause, closed).await.is_ok() {
                return sent;
            }
            if !self.try_send_bytes(std::slice::from_ref(byte)).await {
                return sent;
            }
        }
        while self.fill("the end").await {}
        bytes.len()
    }

    /// Reads the next frame, whatever it is; `None` at the end of the stream.
    pub async fn next_frame(&mut self) -> Option<RawFrame> {
        loop {
            if let Some(frame) = RawFrame::take(&mut self.buffer) {
                assert!(!frame.masked, "a masked frame from the server; {self}");
                self.frames.push(frame.clone());
                return Some(frame);
            }
            if !self.fill("a frame").await {
                return None;
            }
        }
    }

    /// Reads the next frame.
    ///
    /// # Panics
    ///
    /// At the end of the stream.
    pub async fn read_frame(&mut self) -> RawFrame {
        match self.next_frame().await {
            Some(frame) => frame,
            None => panic!("the end instead of a frame; {self}"),
        }
    }

    /// Reads the next frame, which must be text with JSON in it.
    ///
    /// # Panics
    ///
    /// When something else comes.
    pub async fn read_json(&mut self) -> Value {
        let frame = self.read_frame().await;
        assert_eq!(frame.opcode, 0x1, "{frame:?} instead of text; {self}");
        serde_json::from_str(frame.text()).unwrap_or_else(|error| panic!("no JSON ({error}): {}; {self}", frame.text()))
    }

    /// Reads the next message, which must be of this type. Skips pings.
    ///
    /// # Panics
    ///
    /// When something else comes.
    pub async fn expect(&mut self, message_type: &str) -> Value {
        loop {
            let frame = self.read_frame().await;
            if frame.opcode == 0x9 {
                continue;
            }
            let value: Value = serde_json::from_slice(&frame.payload).unwrap_or_default();
            assert!(
                frame.opcode == 0x1 && value["message_type"] == message_type,
                "{frame:?} instead of a {message_type}; {self}"
            );
            return value;
        }
    }

    /// Expects a close frame next, then the end of the stream; gives the code.
    /// Skips pings.
    ///
    /// # Panics
    ///
    /// When something else comes.
    pub async fn expect_close(&mut self) -> u16 {
        let code = loop {
            let frame = self.read_frame().await;
            match frame.close() {
                Some((code, _)) => break code,
                None => assert_eq!(frame.opcode, 0x9, "{frame:?} instead of a close; {self}"),
            }
        };
        self.expect_end().await;
        code
    }

    /// Expects the end of the stream and no further frame.
    ///
    /// # Panics
    ///
    /// When a frame comes, or the stream stays open.
    pub async fn expect_end(&mut self) {
        if let Some(frame) = self.next_frame().await {
            panic!("{frame:?} instead of the end; {self}");
        }
        assert!(self.buffer.is_empty(), "half a frame at the end; {self}");
    }

    /// Reads to the end of the stream; gives all frames that were still to
    /// come.
    pub async fn read_to_end(&mut self) -> Vec<RawFrame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next_frame().await {
            frames.push(frame);
        }
        frames
    }

    /// Shuts the writing half down; the server sees the end of the stream.
    pub async fn shut_down(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// The address of the server.
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Reads more; false at the end of the stream.
    async fn fill(&mut self, what: &str) -> bool {
        let mut chunk = [0; 16 * 1024];
        let read = tokio::time::timeout(crate::WAIT, self.stream.read(&mut chunk)).await;
        match read {
            // A reset is an end, too: unread input makes the kernel send one.
            Ok(Ok(0) | Err(_)) => false,
            Ok(Ok(n)) => {
                self.buffer.extend_from_slice(&chunk[..n]);
                true
            }
            Err(_) => panic!("still waiting after {:?} for {what}; {self}", crate::WAIT),
        }
    }
}

/// The last frames that were seen, for the message of a failure.
impl fmt::Display for RawClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = self.frames.len().saturating_sub(SHOWN);
        write!(f, "{} frames so far", self.frames.len())?;
        for frame in &self.frames[from..] {
            let text = String::from_utf8_lossy(&frame.payload);
            let text: String = text.chars().take(400).collect();
            write!(f, "\n  opcode {} {text:?}", frame.opcode)?;
        }
        let rest = self.buffer.len().min(200);
        write!(f, "\n  unread: {:?}", String::from_utf8_lossy(&self.buffer[..rest]))
    }
}

impl fmt::Debug for RawClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawClient")
            .field("addr", &self.addr)
            .field("frames", &self.frames.len())
            .finish_non_exhaustive()
    }
}

/// How many frames a failure shows.
const SHOWN: usize = 30;
