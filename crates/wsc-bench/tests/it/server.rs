//! A small server that speaks the protocol, with faults on demand.

use std::{cell::RefCell, collections::HashMap, io, net::SocketAddr, rc::Rc};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
    task::spawn_local,
};
use tokio_tungstenite::{
    accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{Request, Response},
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

/// What the server does wrong.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Fault {
    #[default]
    None,
    /// The room message with this number never reaches its last receiver.
    Loses(u64),
    /// Whoever sends a direct message is refused.
    Refuses,
    /// Whoever joins a room is thrown out.
    Closes,
    /// Upgrades are answered with 503.
    Busy,
    /// Upgrades are answered with 503 once there were so many.
    BusyAfter(u64),
    /// Direct messages are taken and thrown away.
    Forgets,
    /// Whoever got a direct message is thrown out by the tenth room message after it, without a word.
    CutsOff,
}

/// What the server has seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) connections: u64,
    pub(crate) pongs: u64,
    pub(crate) room_messages: u64,
    /// Sender, target and length of the content of each direct message.
    pub(crate) directs: Vec<(String, String, usize)>,
    pub(crate) peers: Vec<SocketAddr>,
    pub(crate) queries: Vec<String>,
    pub(crate) subprotocols: Vec<Option<String>>,
    /// Connections that are open now.
    pub(crate) open: u64,
}

#[derive(Default)]
struct Hub {
    fault: Fault,
    next: usize,
    members: HashMap<usize, Member>,
    seen: Seen,
}

struct Member {
    user: String,
    room: Option<String>,
    out: mpsc::UnboundedSender<Message>,
    /// Told to end the connection at once, whatever else there is to do.
    end: Rc<Notify>,
    written_to: bool,
}

/// A server on a port of its own, on this thread; it ends with the test.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) url: String,
    hub: Rc<RefCell<Hub>>,
}

impl Server {
    pub(crate) async fn start(fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}/ws", listener.local_addr().unwrap());
        let hub = Rc::new(RefCell::new(Hub { fault, ..Hub::default() }));
        let shared = Rc::clone(&hub);
        spawn_local(async move {
            loop {
                let (stream, peer) = listener.accept().await.unwrap();
                let hub = Rc::clone(&shared);
                spawn_local(async move {
                    hub.borrow_mut().seen.peers.push(peer);
                    // A client that goes away is no fault of the server's.
                    let _ = serve(hub, stream).await;
                });
            }
        });
        Self { url, hub }
    }

    pub(crate) fn seen<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.hub.borrow().seen)
    }
}

async fn serve(hub: Rc<RefCell<Hub>>, stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut start = [0; 4];
    while stream.peek(&mut start).await? < 4 {}
    if &start == b"POST" {
        return api(hub, stream).await;
    }
    let busy = match hub.borrow().fault {
        Fault::Busy => true,
        Fault::BusyAfter(upgrades) => hub.borrow().seen.connections >= upgrades,
        _ => false,
    };
    if busy {
        let mut stream = stream;
        return stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy").await;
    }
    let mut query = String::new();
    #[expect(clippy::result_large_err, reason = "tungstenite's signature")]
    let accept = |request: &Request, mut response: Response| {
        query = request.uri().query().unwrap_or_default().to_owned();
        let offered = request.headers().get("sec-websocket-protocol").cloned();
        hub.borrow_mut().seen.subprotocols.push(offered.as_ref().map(|v| v.to_str().unwrap().to_owned()));
        if let Some(offered) = offered {
            response.headers_mut().insert("sec-websocket-protocol", offered);
        }
        Ok(response)
    };
    let Ok(mut socket) = accept_hdr_async(stream, accept).await else { return Ok(()) };
    let user = query.split('&').find_map(|pair| pair.strip_prefix("user_id=")).unwrap_or_default();
    let user = user.replace("%2D", "-");
    let (out, mut queue) = mpsc::unbounded_channel();
    let end = Rc::new(Notify::new());
    let id = {
        let mut hub = hub.borrow_mut();
        hub.next += 1;
        hub.seen.connections += 1;
        hub.seen.open += 1;
        hub.seen.queries.push(query);
        let id = hub.next;
        hub.members.insert(
            id,
            Member { user: user.clone(), room: None, out: out.clone(), end: Rc::clone(&end), written_to: false },
        );
        id
    };
    let _ = out.send(text(&json!({"message_type": "connected", "data": {"user_id": user}})));
    let _ = out.send(Message::Ping(vec![1, 2, 3].into()));
    loop {
        tokio::select! {
            message = queue.recv() => {
                let Some(message) = message else { break };
                let last = message.is_close();
                let sent = tokio::select! {
                    sent = socket.send(message) => sent.is_ok(),
                    () = end.notified() => false,
                };
                if !sent || last {
                    break;
                }
            }
            inbound = socket.next() => match inbound {
                Some(Ok(Message::Text(frame))) => {
                    let frame: Value = serde_json::from_str(&frame).unwrap();
                    hub.borrow_mut().handle(id, &frame);
                }
                Some(Ok(Message::Pong(payload))) => {
                    assert_eq!(&payload[..], [1, 2, 3]);
                    hub.borrow_mut().seen.pongs += 1;
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => break,
            }
        }
    }
    let mut hub = hub.borrow_mut();
    hub.members.remove(&id);
    hub.seen.open -= 1;
    Ok(())
}

impl Hub {
    fn handle(&mut self, from: usize, frame: &Value) {
        let data = &frame["data"];
        let reply = |member: &Member, value: &Value| {
            let _ = member.out.send(text(value));
        };
        match frame["message_type"].as_str().unwrap() {
            "ping" => reply(&self.members[&from], &json!({"message_type": "pong", "data": {"ts": data["ts"]}})),
            "join_room" if self.fault == Fault::Closes => {
                let frame = CloseFrame { code: CloseCode::from(3503), reason: "go away".into() };
                let _ = self.members[&from].out.send(Message::Close(Some(frame)));
            }
            "join_room" => {
                let member = self.members.get_mut(&from).unwrap();
                member.room = data["room_id"].as_str().map(str::to_owned);
                reply(member, &json!({"message_type": "room_joined", "data": {"room_id": data["room_id"]}}));
            }
            "room_message" => {
                self.seen.room_messages += 1;
                let room = data["room_id"].as_str().unwrap();
                let others = self.members.iter().filter(|(id, m)| **id != from && m.room.as_deref() == Some(room));
                let mut others: Vec<_> = others.collect();
                others.sort_by_key(|(id, _)| **id);
                if self.fault == Fault::Loses(self.seen.room_messages) {
                    others.pop();
                }
                let delivery = json!({"id": "1", "message_type": "room_message", "data": data});
                for (_, member) in others {
                    reply(member, &delivery);
                    if self.fault == Fault::CutsOff && member.written_to && self.seen.room_messages.is_multiple_of(10) {
                        member.end.notify_one();
                    }
                }
            }
            "direct_message" if self.fault == Fault::Refuses => {
                reply(&self.members[&from], &json!({"message_type": "error", "data": {"code": 1005}}));
            }
            "direct_message" => {
                let target = data["target_id"].as_str().unwrap();
                let length = data["content"].as_str().unwrap().len();
                self.seen.directs.push((self.members[&from].user.clone(), target.to_owned(), length));
                if self.fault == Fault::Forgets {
                    return;
                }
                let delivery =
                    json!({"id": "1", "message_type": "direct_message", "data": {"content": data["content"]}});
                for member in self.members.values_mut().filter(|member| member.user == target) {
                    member.written_to = true;
                    reply(member, &delivery);
                }
            }
            other => panic!("the load tool sent {other}"),
        }
    }
}

/// `POST /api/broadcast`, on a connection that is kept.
async fn api(hub: Rc<RefCell<Hub>>, mut stream: TcpStream) -> io::Result<()> {
    let mut held = Vec::new();
    loop {
        if stream.read_buf(&mut held).await? == 0 {
            return Ok(());
        }
        let request = String::from_utf8(held.clone()).unwrap();
        let Some((head, body)) = request.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
        if body.len() < length.parse().unwrap() {
            continue;
        }
        held.clear();
        assert!(head.starts_with("POST /api/broadcast HTTP/1.1"), "{head}");
        let content: Value = serde_json::from_str(body).unwrap();
        let delivery = json!({"id": "1", "message_type": "broadcast", "data": content});
        for member in hub.borrow().members.values() {
            let _ = member.out.send(text(&delivery));
        }
        stream.write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\n{}").await?;
    }
}

fn text(value: &Value) -> Message {
    Message::text(value.to_string())
}
