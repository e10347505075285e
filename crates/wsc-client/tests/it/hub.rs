//! A hub without a mind of its own.

use std::{io, time::Duration};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::mpsc,
    time::Instant,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message,
        handshake::server::{Request, Response},
        protocol::CloseFrame,
    },
};
use wsc_client::{Builder, Client, Event, Events};

/// Where the client's streams end.
pub(crate) struct Hub {
    dialled: mpsc::UnboundedReceiver<DuplexStream>,
}

/// The hub's end of one connection.
pub(crate) struct Peer {
    ws: WebSocketStream<DuplexStream>,
    pub(crate) authorization: Option<String>,
    pub(crate) target: String,
}

impl Hub {
    /// A hub, and a client that would connect to it.
    pub(crate) fn new() -> (Self, Builder) {
        Self::with_buffer(64 * 1024)
    }

    /// One whose streams take so many bytes before they have to be read.
    pub(crate) fn with_buffer(bytes: usize) -> (Self, Builder) {
        let (sender, dialled) = mpsc::unbounded_channel();
        let builder = Client::builder("ws://hub.test/ws").user_id("alice").dial(move || {
            let sender = sender.clone();
            async move {
                let (near, far) = tokio::io::duplex(bytes);
                sender.send(far).map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
                Ok(near)
            }
        });
        (Self { dialled }, builder)
    }

    /// The next attempt, which has said nothing yet.
    pub(crate) async fn dialled(&mut self) -> DuplexStream {
        soon(self.dialled.recv()).await.unwrap()
    }

    /// Whether nobody tries to connect any more, for however long one waits.
    pub(crate) async fn is_left_alone(&mut self) -> bool {
        let day = Duration::from_secs(24 * 60 * 60);
        // Nobody is left who could, or nobody did.
        !matches!(tokio::time::timeout(day, self.dialled.recv()).await, Ok(Some(_)))
    }

    /// Upgrades the next attempt and says no more.
    pub(crate) async fn upgrade(&mut self) -> Peer {
        let stream = self.dialled().await;
        let (mut authorization, mut target) = (None, String::new());
        #[expect(clippy::result_large_err, reason = "tungstenite's signature")]
        let look = |request: &Request, mut response: Response| {
            let header = |name| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
            authorization = header("authorization");
            target = request.uri().to_string();
            assert_eq!(header("sec-websocket-protocol").as_deref(), Some("wsc.v1"));
            response.headers_mut().insert("sec-websocket-protocol", "wsc.v1".parse().unwrap());
            Ok(response)
        };
        let ws = tokio_tungstenite::accept_hdr_async(stream, look).await.unwrap();
        Peer { ws, authorization, target }
    }

    /// Takes the next attempt.
    pub(crate) async fn accept(&mut self) -> Peer {
        let mut peer = self.upgrade().await;
        peer.send(json!({"message_type": "connected", "data": {
            "client_id": "c1", "user_id": "alice", "session": "s1", "node_id": "n1", "ping_interval_ms": 25_000,
        }, "timestamp": 1}))
            .await;
        peer
    }

    /// Answers the next attempt with this response.
    pub(crate) async fn refuse(&mut self, response: &str) {
        let mut stream = self.dialled().await;
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(response.as_bytes()).await.unwrap();
    }
}

impl Peer {
    pub(crate) async fn send(&mut self, frame: Value) {
        self.ws.send(Message::text(frame.to_string())).await.unwrap();
    }

    /// Sends a direct message with this content.
    pub(crate) async fn deliver(&mut self, id: &str, content: Value) {
        self.send(delivery(id, &content)).await;
    }

    /// The next request.
    pub(crate) async fn request(&mut self) -> Value {
        let text = async {
            loop {
                match self.ws.next().await.unwrap().unwrap() {
                    Message::Text(text) => return text,
                    // Pings for ever are no request.
                    Message::Ping(_) | Message::Pong(_) => {}
                    other => panic!("{other:?}"),
                }
            }
        };
        serde_json::from_str(&soon(text).await).unwrap()
    }

    /// The next request, which is of this type.
    pub(crate) async fn expect(&mut self, message_type: &str) -> Value {
        let request = self.request().await;
        assert_eq!(request["message_type"], message_type, "{request}");
        request
    }

    pub(crate) async fn reply(&mut self, request: &Value, message_type: &str, data: Value) {
        self.send(json!({
            "message_type": message_type, "request_id": request["message_id"], "data": data, "timestamp": 1,
        }))
        .await;
    }

    pub(crate) async fn refuse(&mut self, request: &Value, code: u16, temporary: bool) {
        let data = json!({"code": code, "message": "no", "temporary": temporary, "request_id": request["message_id"]});
        self.reply(request, "error", data).await;
    }

    /// Lets the client join the room that it asks for next.
    pub(crate) async fn admit(&mut self) -> String {
        let request = self.expect("join_room").await;
        let room_id = request["data"]["room_id"].as_str().unwrap().to_owned();
        self.reply(&request, "room_joined", json!({"room_id": room_id, "status": "joined"})).await;
        room_id
    }

    /// Closes, and waits until the client has taken note.
    pub(crate) async fn close(mut self, code: u16, reason: &str) {
        let frame = CloseFrame { code: code.into(), reason: reason.to_owned().into() };
        self.ws.send(Message::Close(Some(frame))).await.unwrap();
        assert!(matches!(self.ws.next().await, Some(Ok(Message::Close(_)))), "the close is answered");
    }

    /// Cuts the connection.
    pub(crate) fn cut(self) {
        drop(self.ws);
    }

    /// Reads to the end; gives the requests before it, and the code of the close frame if there was one.
    pub(crate) async fn read_to_end(&mut self) -> (Vec<Value>, Option<u16>) {
        let mut requests = Vec::new();
        loop {
            match soon(self.ws.next()).await {
                Some(Ok(Message::Text(text))) => requests.push(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(frame))) => {
                    let _ = self.ws.flush().await;
                    return (requests, frame.map(|frame| frame.code.into()));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return (requests, None),
            }
        }
    }

    /// The next frame, or the end.
    pub(crate) async fn next(&mut self) -> Option<tungstenite::Result<Message>> {
        self.ws.next().await
    }

    /// Sends, if the connection stands.
    pub(crate) async fn try_send(&mut self, frame: Value) -> bool {
        self.ws.send(Message::text(frame.to_string())).await.is_ok()
    }

    /// The next frame, whatever it is.
    pub(crate) async fn frame(&mut self) -> Message {
        self.ws.next().await.unwrap().unwrap()
    }
}

pub(crate) fn delivery(id: &str, content: &Value) -> Value {
    let data = json!({"content": content, "sender_id": "bob", "timestamp": 1});
    json!({"id": id, "message_type": "direct_message", "data": data, "timestamp": 1})
}

/// Takes the next event, which must be of this shape.
macro_rules! expect_event {
    ($events:expr, $pattern:pat $(if $guard:expr)? $(=> $result:expr)?) => {
        match crate::hub::soon($events.next()).await {
            Some($pattern) $(if $guard)? => { $($result)? }
            other => panic!("{other:?} instead of {}", stringify!($pattern)),
        }
    };
}
pub(crate) use expect_event;

/// Connects, and takes the event of it.
pub(crate) async fn connected(hub: &mut Hub, builder: Builder) -> (Peer, Client, Events) {
    let (peer, connection) = tokio::join!(hub.accept(), builder.connect());
    let (client, mut events) = connection.unwrap();
    expect_event!(events, Event::Connected(connected) if !connected.reconnected);
    (peer, client, events)
}

/// Waits for what comes or never will: by the paused clock an hour is over as soon as nobody has anything to do.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(60 * 60), future).await.expect("what is waited for comes")
}

/// How long a future takes, by the paused clock.
pub(crate) async fn timed<F: Future>(future: F) -> (F::Output, Duration) {
    let start = Instant::now();
    (future.await, start.elapsed())
}
