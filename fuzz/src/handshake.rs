//! The first bytes of a connection, through a real listener on the loopback: what is no upgrade is handed on byte for
//! byte, what is one in every respect is accepted, and a refusal is an answer that programs can read.
//!
//! An input is what a client writes before it closes its half.

use std::{
    cell::RefCell,
    mem,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{Request, Response};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};
use tungstenite::handshake::{derive_accept_key, machine::TryParse};
use wsc_protocol::{CloseCode, CloseReason, DisconnectReason};
use wsc_transport::{
    Admission, Handler, Message, Next, Outbound, Peer, Service, Stream, Transport, TransportConfig,
    fuzzing::{Heard, Listener},
    upgrade_response, wants_upgrade,
};

/// Checks one input.
pub fn check(input: &[u8]) {
    if input.len() > MAX_INPUT_LEN {
        return;
    }
    check_decision(input);
    thread_local! {
        static LAB: RefCell<Option<Lab>> = const { RefCell::new(None) };
    }
    LAB.with_borrow_mut(|lab| check_on_the_wire(input, lab.get_or_insert_with(Lab::start)));
}

/// Below the longest head that the transport reads, so that nothing is left unread when it answers.
const MAX_INPUT_LEN: usize = 8 << 10;

/// What `upgrade_response` says about a request that somebody else parsed, as axum does at the side door.
fn check_decision(input: &[u8]) {
    let Ok(Some((_, request))) = Request::try_parse(input) else { return };
    let head = Head::parse(input).expect("what httparse takes has lines and colons");
    match upgrade_response(&request, Some("wsc.v1")) {
        Ok(response) => {
            assert!(wants_upgrade(&request));
            assert_eq!(head.objection(), None, "accepted");
            assert_eq!(response.status(), 101);
            assert_eq!(response.headers()["sec-websocket-protocol"], "wsc.v1");
            let accept = derive_accept_key(head.get("sec-websocket-key").expect("a key"));
            assert_eq!(response.headers()["sec-websocket-accept"], accept);
        }
        Err(response) => {
            assert!(!head.is_beyond_doubt(), "refused with {}", response.status());
            assert!(matches!(response.status().as_u16(), 400 | 426));
            check_error_body(response.body());
        }
    }
}

fn check_on_the_wire(input: &[u8], lab: &Lab) {
    let Outcome { answer, handed_on, heard } = lab.ask(input);
    let head = Head::parse(input);
    if let Some(bytes) = handed_on {
        assert!(bytes == input, "handed on with other bytes:\n{}", bytes.escape_ascii());
        let is_ours = head.is_some_and(|head| head.is_beyond_doubt() && is_on_our_path(input));
        assert!(!is_ours, "an upgrade of ours is handed on");
    } else if answer.is_empty() {
        // It may still have become a request when the client went.
        assert!(!input.windows(4).any(|w| w == b"\r\n\r\n"), "a whole head got no answer");
    } else {
        let len = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("an answer has a head") + 4;
        let (answer, rest) = (Head::parse(&answer[..len]).expect("an answer has lines"), &answer[len..]);
        let request = head.expect("what is answered is a request");
        match answer.start.split(' ').nth(1) {
            Some("101") => {
                assert_eq!(request.objection(), None, "accepted");
                let accept = derive_accept_key(request.get("sec-websocket-key").expect("a key"));
                assert_eq!(answer.get("sec-websocket-accept"), Some(accept.as_bytes()));
                check_frames(rest);
                // What follows the head at once is heard, unless the service said goodbye.
                if !is_refused(input) {
                    assert_eq!(heard, messages(&input[request.len..]));
                }
            }
            Some(status @ ("400" | "403" | "426")) => {
                // Nobody but the service says 403.
                assert!(status == "403" || !request.is_beyond_doubt(), "refused");
                let len = answer.get("content-length").and_then(|len| str::from_utf8(len).ok()?.parse().ok());
                assert_eq!(len, Some(rest.len()));
                check_error_body(rest);
            }
            status => panic!("answered with {status:?}"),
        }
    }
}

/// Whether the service closes this connection as soon as it is open.
fn is_refused(input: &[u8]) -> bool {
    input.starts_with(b"GET /ws?close")
}

/// The messages that a client's stream holds.
fn messages(stream: &[u8]) -> Vec<Heard> {
    let heard = Listener::new(TransportConfig::default().max_message_size, false).hear(stream);
    heard.into_iter().filter(|heard| matches!(heard, Heard::Text(_) | Heard::Binary(_))).collect()
}

/// `{"error":{"code","message"}}`, protocol §1.
fn check_error_body(body: &[u8]) {
    let body: Value = serde_json::from_slice(body).expect("the body is JSON");
    assert_eq!(body["error"]["code"], 1001);
    assert!(body["error"]["message"].as_str().is_some_and(|message| !message.is_empty()));
}

/// What follows the answer are whole frames of ours; a close says why in JSON.
fn check_frames(mut bytes: &[u8]) {
    while let [first, len, rest @ ..] = bytes {
        let len = usize::from(*len);
        assert!(len < 126, "only short frames are expected here");
        let (payload, rest) = rest.split_at_checked(len).expect("whole frames");
        bytes = rest;
        assert!(matches!(first, 0x88..=0x8A), "{first:#x}");
        // The client's own close is answered with what it said.
        if let Some(json) = payload.get(2..).filter(|p| *first == 0x88 && p.starts_with(b"{\"reason\"")) {
            let reason: Value = serde_json::from_slice(json).expect("a reason is JSON");
            assert!(reason["reason"].is_string() && reason["reconnect"].is_boolean(), "{reason}");
        }
    }
    assert!(bytes.is_empty(), "whole frames");
}

/// Whether the request line asks for the hub's path.
fn is_on_our_path(input: &[u8]) -> bool {
    input.starts_with(b"GET /ws ") || input.starts_with(b"GET /ws?")
}

/// A head in lines, read as simply as can be.
struct Head {
    start: String,
    /// Names in lower case.
    fields: Vec<(String, Vec<u8>)>,
    /// Where it ends.
    len: usize,
    /// Every line ends with CR LF, and nothing stands before the first one.
    is_tidy: bool,
}

impl Head {
    fn parse(bytes: &[u8]) -> Option<Self> {
        // Empty lines before the request are passed over (RFC 9112 §2.2).
        let begin = bytes.iter().position(|b| !matches!(b, b'\r' | b'\n'))?;
        let mut is_tidy = begin == 0;
        let mut len = begin;
        let mut lines = bytes[begin..].split(|b| *b == b'\n').map(|line| {
            len += line.len() + 1;
            let bare = line.strip_suffix(b"\r");
            is_tidy &= bare.is_some();
            bare.unwrap_or(line)
        });
        let start = String::from_utf8_lossy(lines.next()?).into_owned();
        let mut fields = Vec::new();
        while let Some(line) = lines.next() {
            if line.is_empty() {
                drop(lines);
                return Some(Self { start, fields, len, is_tidy });
            }
            let colon = line.iter().position(|b| *b == b':')?;
            let name = String::from_utf8_lossy(&line[..colon]).to_ascii_lowercase();
            fields.push((name, trimmed(&line[colon + 1..]).to_vec()));
        }
        None
    }

    /// The first field by this name.
    fn get(&self, name: &str) -> Option<&[u8]> {
        self.fields.iter().find(|(n, _)| n == name).map(|(_, value)| &**value)
    }

    fn count(&self, name: &str) -> usize {
        self.fields.iter().filter(|(n, _)| n == name).count()
    }

    /// Whether one of the comma-separated members of the field is `token`.
    fn has(&self, name: &str, token: &str) -> bool {
        let values = self.fields.iter().filter(|(n, _)| n == name);
        let mut tokens = values.flat_map(|(_, value)| value.split(|&b| b == b','));
        tokens.any(|t| t.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    }

    /// What RFC 6455 §4.2.1 and §11.3 have against it.
    fn objection(&self) -> Option<&'static str> {
        if !(self.start.starts_with("GET ") && self.start.ends_with(" HTTP/1.1")) {
            return Some("the request line");
        }
        if self.count("host") != 1 {
            return Some("Host");
        }
        if !self.has("upgrade", "websocket") {
            return Some("Upgrade");
        }
        if !self.has("connection", "upgrade") {
            return Some("Connection");
        }
        if self.get("sec-websocket-version") != Some(b"13") {
            return Some("Sec-WebSocket-Version");
        }
        if !self.get("sec-websocket-key").is_some_and(is_nonce) {
            return Some("Sec-WebSocket-Key");
        }
        if self.count("sec-websocket-version") > 1 || self.count("sec-websocket-key") > 1 {
            return Some("a field stands there twice");
        }
        None
    }

    /// Whether no reader could have anything against it: it is written as browsers write it.
    fn is_beyond_doubt(&self) -> bool {
        let is_plain = |value: &[u8]| value.iter().all(|b| matches!(b, b' '..=b'~'));
        let is_token =
            |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        let target = self.start.split(' ').nth(1).unwrap_or_default();
        self.is_tidy
            && self.objection().is_none()
            && self.start.split(' ').count() == 3
            && target.starts_with('/')
            && target.bytes().all(|b| b.is_ascii_alphanumeric() || b"/?&=%-._~+".contains(&b))
            && self.fields.len() <= 100
            && self.fields.iter().all(|(name, value)| is_token(name) && is_plain(value))
    }
}

/// Without the blanks around it (RFC 9110 §5.6.3).
fn trimmed(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Sixteen bytes in base64.
fn is_nonce(key: &[u8]) -> bool {
    let Some((digits, b"==")) = key.split_at_checked(22) else { return false };
    let is_digit = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/');
    // The last digit holds two bits only.
    digits.iter().all(is_digit) && matches!(digits[21], b'A' | b'Q' | b'g' | b'w')
}

/// A transport that listens, and the runtime that drives it in this thread.
struct Lab {
    runtime: Runtime,
    address: SocketAddr,
    notes: Arc<Notes>,
    _transport: Transport<Gate>,
}

/// What the service was given.
#[derive(Default)]
struct Notes {
    handed_on: Mutex<Option<Vec<u8>>>,
    heard: Mutex<Vec<Heard>>,
}

/// What became of one client.
struct Outcome {
    answer: Vec<u8>,
    /// What was handed on as plain HTTP.
    handed_on: Option<Vec<u8>>,
    /// The messages that the service was given.
    heard: Vec<Heard>,
}

impl Lab {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let notes: Arc<Notes> = Arc::default();
        let (transport, address) = runtime.block_on(async {
            let mut config = TransportConfig::default();
            config.handshake_timeout = Duration::from_secs(5);
            let gate = Arc::new(Gate(Arc::clone(&notes)));
            let transport = Transport::start("/ws", &config, |_| gate);
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port on the loopback");
            let address = listener.local_addr().expect("an address");
            transport.listen(listener);
            (transport, address)
        });
        Self { runtime, address, notes, _transport: transport }
    }

    /// Writes everything, closes its half and waits for the end.
    fn ask(&self, input: &[u8]) -> Outcome {
        let answer = self.runtime.block_on(async {
            let mut client = TcpStream::connect(self.address).await.expect("the listener listens");
            // No port waits for latecomers: there would soon be none left.
            client.set_zero_linger().expect("a socket option");
            // It may be refused before it has said everything.
            let _ = client.write_all(input).await;
            let _ = client.shutdown().await;
            let mut answer = Vec::new();
            let read = tokio::time::timeout(Duration::from_secs(4), client.read_to_end(&mut answer)).await;
            read.expect("an end in time").expect("an end in order");
            answer
        });
        let handed_on = self.notes.handed_on.lock().unwrap_or_else(PoisonError::into_inner).take();
        let heard = mem::take(&mut *self.notes.heard.lock().unwrap_or_else(PoisonError::into_inner));
        Outcome { answer, handed_on, heard }
    }
}

/// Lets everybody in, but for who asks to be told why not.
struct Gate(Arc<Notes>);

impl Service for Gate {
    type Ticket = ();
    type Handler = Quiet;

    async fn admit(&self, request: &Request<()>, _: Peer) -> Admission<()> {
        match request.uri().query() {
            Some(query) if query.starts_with("close") => {
                let close = CloseReason::new(CloseCode::INVALID_TOKEN, query);
                Admission::Close { close, subprotocol: Some("wsc.v1") }
            }
            Some("refuse") => {
                let body = br#"{"error":{"code":1001,"message":"refused"}}"#.to_vec();
                Admission::Refuse(Response::builder().status(403).body(body).expect("a response"))
            }
            _ => Admission::Accept { ticket: (), subprotocol: None },
        }
    }

    fn open(&self, (): (), _: &Outbound) -> Quiet {
        Quiet(Arc::clone(&self.0))
    }

    async fn http(&self, mut stream: Stream, _: Peer) {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes).await;
        *self.0.handed_on.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes);
    }
}

/// Listens and says nothing.
struct Quiet(Arc<Notes>);

impl Handler for Quiet {
    fn message(&self, message: Message<'_>) -> Next {
        self.0.heard.lock().unwrap_or_else(PoisonError::into_inner).push(match message {
            Message::Text(text) => Heard::Text(text.to_owned()),
            Message::Binary(bytes) => Heard::Binary(bytes.to_vec()),
        });
        Next::Read
    }

    fn closed(self, _: DisconnectReason) {}
}
