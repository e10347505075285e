//! A client of the JSON protocol.

use std::collections::VecDeque;
use std::fmt;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{ClientRequestBuilder, Message};

use crate::http::query;
use crate::wait::{WAIT, within};

/// How to connect, beyond the URL.
#[derive(Debug, Clone, Default)]
pub struct ConnectOptions<'a> {
    /// Query parameters, encoded and appended to the URL.
    pub query: &'a [(&'a str, &'a str)],
    /// Headers of the handshake.
    pub headers: &'a [(&'a str, &'a str)],
    /// Subprotocols to offer, in this order.
    pub subprotocols: &'a [&'a str],
}

/// What came from the server.
#[derive(Debug, Clone, PartialEq)]
pub enum Inbound {
    /// A text frame, byte for byte.
    Text(String),
    /// A binary frame.
    Binary(Vec<u8>),
    /// A WebSocket ping; it has been answered.
    Ping(Vec<u8>),
    /// A WebSocket pong.
    Pong(Vec<u8>),
    /// The end: the code and the reason of the close frame, 1005 without a
    /// code, 1006 when the socket was cut.
    Closed(u16, String),
}

/// A connected client that remembers every frame it saw.
///
/// All methods that read panic after [`WAIT`], or at something unexpected,
/// and show the frames so far. Absence is never shown by waiting: send
/// something that is ordered behind what must not come, and expect that
/// next ([`Client::expect`] is strict), or use [`Client::barrier`].
pub struct Client {
    socket: WebSocketStream<TcpStream>,
    /// Read while waiting for something else.
    pending: VecDeque<Inbound>,
    seen: Vec<Inbound>,
    connected: Value,
    subprotocol: Option<String>,
    next_id: u64,
}

impl Client {
    /// Connects and reads the `connected` frame.
    ///
    /// # Panics
    ///
    /// When the server refuses, or the first frame is another one.
    pub async fn connect(ws_url: &str) -> Self {
        Self::connect_with(ws_url, &ConnectOptions::default()).await
    }

    /// Connects with options and reads the `connected` frame.
    ///
    /// # Panics
    ///
    /// As [`Client::connect`].
    pub async fn connect_with(ws_url: &str, options: &ConnectOptions<'_>) -> Self {
        let mut client = Self::open(ws_url, options).await;
        client.connected = client.expect("connected").await;
        client
    }

    /// Connects and reads the `connected` frame; `None` when the server is gone, or goes meanwhile.
    ///
    /// # Panics
    ///
    /// When the server is there and does not answer, or the first frame is another one.
    pub async fn try_connect(ws_url: &str) -> Option<Self> {
        let mut client = Self::try_open(ws_url, &ConnectOptions::default()).await.ok()?;
        match client.recv("connected").await {
            Inbound::Text(text) => {
                let frame: Value = serde_json::from_str(&text).unwrap_or_default();
                assert!(frame["message_type"] == "connected", "{text} instead of connected");
                client.connected = frame;
                Some(client)
            }
            _ => None,
        }
    }

    /// Upgrades and reads nothing: for connections that are closed at once.
    ///
    /// # Panics
    ///
    /// When the server refuses the upgrade.
    pub async fn open(ws_url: &str, options: &ConnectOptions<'_>) -> Self {
        match Self::try_open(ws_url, options).await {
            Ok(client) => client,
            Err(error) => panic!("the upgrade at {ws_url} failed: {error}"),
        }
    }

    async fn try_open(ws_url: &str, options: &ConnectOptions<'_>) -> Result<Self, tungstenite::Error> {
        let mut url = ws_url.to_owned();
        let parameters = query(options.query);
        if url.contains('?') {
            url.push_str(&parameters.replacen('?', "&", 1));
        } else {
            url.push_str(&parameters);
        }
        let uri: tungstenite::http::Uri = url.parse().expect("a WebSocket URL");
        let authority = uri.authority().expect("an address in the URL").to_string();
        let mut request = ClientRequestBuilder::new(uri);
        for (name, value) in options.headers {
            request = request.with_header(*name, *value);
        }
        for name in options.subprotocols {
            request = request.with_sub_protocol(*name);
        }
        let connect = async {
            let stream = TcpStream::connect(&authority).await?;
            stream.set_nodelay(true)?;
            let config = WebSocketConfig::default().read_buffer_size(16 * 1024);
            tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await
        };
        let (socket, response) = within(&format!("upgrade at {url}"), connect).await?;
        let subprotocol =
            response.headers().get("sec-websocket-protocol").and_then(|value| value.to_str().ok()).map(str::to_owned);
        Ok(Self { socket, pending: VecDeque::new(), seen: Vec::new(), connected: Value::Null, subprotocol, next_id: 1 })
    }

    /// The `connected` frame, whole.
    pub const fn connected(&self) -> &Value {
        &self.connected
    }

    /// The `data.user_id` of the `connected` frame.
    pub fn user_id(&self) -> &str {
        self.connected_field("user_id")
    }

    /// The `data.client_id` of the `connected` frame.
    pub fn client_id(&self) -> &str {
        self.connected_field("client_id")
    }

    /// The `data.session` of the `connected` frame.
    pub fn session(&self) -> &str {
        self.connected_field("session")
    }

    fn connected_field(&self, name: &str) -> &str {
        self.connected["data"][name].as_str().unwrap_or_else(|| panic!("no {name} in {}", self.connected))
    }

    /// The subprotocol that the server selected.
    pub fn subprotocol(&self) -> Option<&str> {
        self.subprotocol.as_deref()
    }

    /// Every frame so far, control frames included.
    pub fn seen(&self) -> &[Inbound] {
        &self.seen
    }

    /// Sends a JSON value as a text frame.
    pub async fn send(&mut self, message: &Value) {
        self.send_text(message.to_string()).await;
    }

    /// Sends this text, byte for byte.
    pub async fn send_text(&mut self, text: impl Into<String>) {
        self.send_message(Message::text(text.into())).await;
    }

    /// Sends a binary frame.
    pub async fn send_binary(&mut self, bytes: impl Into<Vec<u8>>) {
        self.send_message(Message::binary(bytes.into())).await;
    }

    /// Sends a WebSocket ping.
    pub async fn send_ping(&mut self, payload: impl Into<Vec<u8>>) {
        self.send_message(Message::Ping(payload.into().into())).await;
    }

    /// Starts the closing handshake with this code.
    pub async fn send_close(&mut self, code: u16, reason: &str) {
        let frame = tungstenite::protocol::CloseFrame { code: code.into(), reason: reason.to_owned().into() };
        self.send_message(Message::Close(Some(frame))).await;
    }

    async fn send_message(&mut self, message: Message) {
        let sent = within("the server to read", self.socket.send(message)).await;
        if let Err(error) = sent {
            panic!("cannot send ({error}); {self}");
        }
    }

    /// Sends without caring whether the connection still stands.
    pub async fn try_send(&mut self, message: &Value) -> bool {
        let message = Message::text(message.to_string());
        let sent = within("the server to read", self.socket.send(message)).await;
        sent.is_ok()
    }

    /// Sends a request and waits for the reply with the same `request_id`.
    ///
    /// A `message_id` is added unless the request has one. What comes before
    /// the reply is kept for later calls.
    pub async fn request(&mut self, mut request: Value) -> Value {
        if request.get("message_id").is_none() {
            request["message_id"] = json!(self.next_id);
            self.next_id += 1;
        }
        let id = request["message_id"].clone();
        self.send(&request).await;
        self.reply_to(&id, &request.to_string()).await
    }

    /// Sends this text, which must carry `message_id` as given, and waits for
    /// the reply to it.
    pub async fn request_text(&mut self, text: &str, message_id: &Value) -> Value {
        self.send_text(text).await;
        self.reply_to(message_id, text).await
    }

    async fn reply_to(&mut self, id: &Value, request: &str) -> Value {
        let mut passed = std::mem::take(&mut self.pending);
        let reply = loop {
            let inbound = self.read(&format!("a reply to {request}")).await;
            if let Inbound::Text(text) = &inbound
                && let Ok(value) = serde_json::from_str::<Value>(text)
                && value.get("request_id") == Some(id)
            {
                break value;
            }
            assert!(!matches!(inbound, Inbound::Closed(..)), "closed instead of a reply to {request}; {self}");
            passed.push_back(inbound);
        };
        self.pending = passed;
        reply
    }

    /// Sends a request and expects this type as the reply.
    pub async fn request_ok(&mut self, request: Value, reply_type: &str) -> Value {
        let text = request.to_string();
        let reply = self.request(request).await;
        assert_eq!(reply["message_type"], reply_type, "{text} was answered with {reply}");
        reply
    }

    /// Sends a request and expects an error with this code as the reply.
    pub async fn request_error(&mut self, request: Value, code: i64) -> Value {
        let text = request.to_string();
        let reply = self.request(request).await;
        assert_error(&reply, code, &text);
        reply
    }

    /// Joins a room and expects that it works.
    pub async fn join(&mut self, room_id: &str) -> Value {
        let request = json!({"message_type": "join_room", "data": {"room_id": room_id}});
        self.request_ok(request, "room_joined").await
    }

    /// Leaves a room and expects that it works.
    pub async fn leave(&mut self, room_id: &str) -> Value {
        let request = json!({"message_type": "leave_room", "data": {"room_id": room_id}});
        self.request_ok(request, "room_left").await
    }

    /// Sends a room message and expects `accepted`.
    pub async fn say(&mut self, room_id: &str, content: Value) -> Value {
        let data = json!({"room_id": room_id, "content": content});
        let request = json!({"message_type": "room_message", "data": data});
        self.request_ok(request, "accepted").await
    }

    /// Sends a direct message and expects `accepted`.
    pub async fn tell(&mut self, target_id: &str, content: Value) -> Value {
        let data = json!({"target_id": target_id, "content": content});
        let request = json!({"message_type": "direct_message", "data": data});
        self.request_ok(request, "accepted").await
    }

    /// Acknowledges messages, in the form that takes many ids.
    pub async fn ack(&mut self, ids: &[&str]) {
        self.send(&json!({"message_type": "ack", "data": {"ids": ids}})).await;
    }

    /// Takes the next message, which must be of this type and ask for an
    /// acknowledgement; skips what [`Client::expect`] skips.
    ///
    /// # Panics
    ///
    /// When something else comes.
    pub async fn expect_reliable(&mut self, message_type: &str) -> Value {
        let delivery = self.expect(message_type).await;
        assert!(delivery["require_ack"] == true && delivery["id"].is_string(), "{delivery}; {self}");
        delivery
    }

    /// Takes the next frame, whatever it is.
    pub async fn recv(&mut self, what: &str) -> Inbound {
        match self.pending.pop_front() {
            Some(inbound) => inbound,
            None => self.read(what).await,
        }
    }

    /// Takes the next text frame, byte for byte; skips only WebSocket pings
    /// and pongs.
    ///
    /// # Panics
    ///
    /// When something else comes.
    pub async fn expect_text(&mut self, what: &str) -> String {
        loop {
            match self.recv(what).await {
                Inbound::Text(text) => return text,
                Inbound::Ping(_) | Inbound::Pong(_) => {}
                other => panic!("{other:?} instead of {what}; {self}"),
            }
        }
    }

    /// Takes the next message, which must be of this type. Skips only pings
    /// and pongs, those of the socket and the replies of type `pong`, so it
    /// also proves that nothing else came before.
    ///
    /// # Panics
    ///
    /// When something else comes.
    pub async fn expect(&mut self, message_type: &str) -> Value {
        loop {
            let text = self.expect_text(message_type).await;
            let Ok(value) = serde_json::from_str::<Value>(&text) else {
                panic!("{text:?} instead of a {message_type}; {self}");
            };
            if value["message_type"] == message_type {
                return value;
            }
            assert!(value["message_type"] == "pong", "{text} instead of a {message_type}; {self}");
        }
    }

    /// Takes the next message, which must be an error with this code.
    pub async fn expect_error(&mut self, code: i64) -> Value {
        let error = self.expect("error").await;
        assert_error(&error, code, "a frame");
        error
    }

    /// Takes the next frame, which must be a WebSocket ping; gives its payload.
    pub async fn expect_ping(&mut self) -> Vec<u8> {
        match self.recv("a WebSocket ping").await {
            Inbound::Ping(payload) => payload,
            other => panic!("{other:?} instead of a WebSocket ping; {self}"),
        }
    }

    /// Expects the end next; gives the code and the reason (`null` when it is
    /// not JSON or the socket was cut). Skips only WebSocket pings and pongs.
    ///
    /// # Panics
    ///
    /// When a message comes.
    pub async fn expect_close(&mut self) -> (u16, Value) {
        loop {
            match self.recv("the close frame").await {
                Inbound::Closed(code, reason) => {
                    assert!(reason.len() <= 123, "a reason of {} bytes", reason.len());
                    return (code, serde_json::from_str(&reason).unwrap_or_default());
                }
                Inbound::Ping(_) | Inbound::Pong(_) => {}
                other => panic!("{other:?} instead of the end; {self}"),
            }
        }
    }

    /// Reads to the end; gives the text frames that came before it, and the
    /// close code.
    pub async fn read_to_end(&mut self) -> (Vec<String>, u16) {
        let mut texts = Vec::new();
        loop {
            match self.recv("the end").await {
                Inbound::Text(text) => texts.push(text),
                Inbound::Closed(code, _) => return (texts, code),
                _ => {}
            }
        }
    }

    /// Sends a `ping` request and gives everything that came before its reply.
    ///
    /// What the server had queued for this client when it read the ping is in
    /// the result.
    pub async fn barrier(&mut self) -> Vec<Value> {
        let reply = self.request(json!({"message_type": "ping"})).await;
        assert_eq!(reply["message_type"], "pong", "{reply}");
        let passed = std::mem::take(&mut self.pending);
        let texts = passed.into_iter().filter_map(|inbound| match inbound {
            Inbound::Text(text) => Some(serde_json::from_str(&text).unwrap_or_else(|_| json!(text))),
            _ => None,
        });
        texts.collect()
    }

    /// Asserts that a `ping` is answered and nothing came before the answer.
    pub async fn expect_quiet(&mut self) {
        let passed = self.barrier().await;
        assert!(passed.is_empty(), "{passed:?} should not have come; {self}");
    }

    /// Cuts the connection without a close frame.
    pub fn cut(self) {
        drop(self.socket);
    }

    /// Says goodbye (1000) and waits until the server has closed.
    pub async fn close(mut self) {
        self.send_close(1000, "").await;
        self.read_to_end().await;
    }

    async fn read(&mut self, what: &str) -> Inbound {
        let Ok(item) = tokio::time::timeout(WAIT, self.socket.next()).await else {
            panic!("still waiting after {WAIT:?} for {what}; {self}");
        };
        let inbound = match item {
            None | Some(Err(_)) => Inbound::Closed(1006, String::new()),
            Some(Ok(Message::Text(text))) => Inbound::Text(text.as_str().to_owned()),
            Some(Ok(Message::Binary(bytes))) => Inbound::Binary(bytes.to_vec()),
            Some(Ok(Message::Ping(payload))) => {
                // The answer was made while reading; this hands it over.
                let _ = self.socket.flush().await;
                Inbound::Ping(payload.to_vec())
            }
            Some(Ok(Message::Pong(payload))) => Inbound::Pong(payload.to_vec()),
            Some(Ok(Message::Close(frame))) => match frame {
                Some(frame) => Inbound::Closed(frame.code.into(), frame.reason.to_string()),
                None => Inbound::Closed(1005, String::new()),
            },
            Some(Ok(Message::Frame(_))) => unreachable!("never given by a read"),
        };
        if matches!(inbound, Inbound::Closed(..)) {
            let _ = self.socket.flush().await;
        }
        self.seen.push(inbound.clone());
        inbound
    }
}

/// The last frames that were seen, for the message of a failure.
impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = self.seen.len().saturating_sub(SHOWN);
        write!(f, "{} frames so far", self.seen.len())?;
        for frame in &self.seen[from..] {
            let text: String = format!("{frame:?}").chars().take(400).collect();
            write!(f, "\n  {text}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("connected", &self.connected)
            .field("seen", &self.seen.len())
            .finish_non_exhaustive()
    }
}

/// How many frames a failure shows.
const SHOWN: usize = 30;

fn assert_error(reply: &Value, code: i64, request: &str) {
    assert_eq!(reply["message_type"], "error", "to {request}: {reply}");
    assert_eq!(reply["data"]["code"], code, "to {request}: {reply}");
    assert!(reply["data"]["message"].as_str().is_some_and(|text| !text.is_empty()), "an error without a text: {reply}");
    assert!(reply["data"]["temporary"].is_boolean(), "an error without `temporary`: {reply}");
    assert!(reply["timestamp"].is_u64(), "an error without a timestamp: {reply}");
}
