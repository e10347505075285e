//! The floor of fan-out: each message is parsed, encoded and framed once, then written with one non-blocking `write(2)`
//! for each member in a plain loop. What one look at the sockets brings is read first, then goes to one member after
//! the other: a socket costs less while it is still in the processor's caches. One thread with epoll, no runtime, no
//! locks, and no queues: a member whose socket is full loses the message.

use std::{
    collections::HashMap,
    io::{self, Cursor, ErrorKind, Read as _, Write as _},
    mem,
    net::{Shutdown, TcpListener, TcpStream},
    os::fd::OwnedFd,
    rc::Rc,
};

use anyhow::{Context as _, bail, ensure};
use http::header::SEC_WEBSOCKET_PROTOCOL;
use rustix::{
    buffer::spare_capacity,
    event::epoll::{self, CreateFlags, EventData, EventFlags},
    io::retry_on_intr,
};
use tungstenite::{
    handshake::{
        machine::TryParse as _,
        server::{Request, create_response, write_response},
    },
    protocol::frame::{
        Frame, FrameHeader,
        coding::{Control, Data, OpCode},
    },
};
use uuid::Uuid;

use crate::wire::{self, Identity};

#[derive(Default)]
struct Hub {
    users: HashMap<String, Group>,
    rooms: HashMap<String, Group>,
    /// What this round is to write to each room.
    round: HashMap<String, Frames>,
}

/// The sockets of one user or one room.
type Group = Vec<Rc<TcpStream>>;

/// Frames in order, each with the socket that sent it and gets no copy.
type Frames = Vec<(Rc<TcpStream>, Vec<u8>)>;

struct Connection {
    stream: Rc<TcpStream>,
    /// The beginning of a frame, or of the request.
    unread: Vec<u8>,
    /// Known once the handshake is done.
    identity: Option<Identity>,
    rooms: Vec<String>,
}

pub(crate) fn serve(listener: &TcpListener) -> anyhow::Result<()> {
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    let mut hub = Hub::default();
    let mut connections = HashMap::new();
    let mut next_key = LISTENER + 1;
    let mut events = Vec::with_capacity(1024);
    let mut buffer = vec![0; 64 << 10];
    loop {
        retry_on_intr(|| epoll::wait(&epoll, spare_capacity(&mut events), None))?;
        for event in events.drain(..) {
            let key = event.data.u64();
            if key == LISTENER {
                while let Some(connection) = accept(listener, &epoll, next_key)? {
                    connections.insert(next_key, connection);
                    next_key += 1;
                }
            } else if let Some(connection) = connections.get_mut(&key)
                && connection.read(&mut buffer, &mut hub).is_err()
                && let Some(connection) = connections.remove(&key)
            {
                connection.leave(&mut hub);
            }
        }
        hub.write_round();
    }
}

impl Hub {
    /// Writes what came for the rooms: all of it to one member, then all of it to the next.
    fn write_round(&mut self) {
        for (room, frames) in self.round.drain() {
            for member in self.rooms.get(&room).into_iter().flatten() {
                for (_, frame) in frames.iter().filter(|(sender, _)| !Rc::ptr_eq(sender, member)) {
                    send(member, frame);
                }
            }
        }
    }
}

/// The listener's key; connections are counted from the next one on.
const LISTENER: u64 = 0;

/// Accepts one connection where one waits.
fn accept(listener: &TcpListener, epoll: &OwnedFd, key: u64) -> io::Result<Option<Connection>> {
    let stream = match listener.accept() {
        Ok((stream, _)) => stream,
        Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
        Err(e) => return Err(e),
    };
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    epoll::add(epoll, &stream, EventData::new_u64(key), EventFlags::IN)?;
    Ok(Some(Connection { stream: Rc::new(stream), unread: Vec::new(), identity: None, rooms: Vec::new() }))
}

impl Connection {
    /// Reads once, epoll tells where there is more. Any error is the connection's end.
    fn read(&mut self, buffer: &mut [u8], hub: &mut Hub) -> anyhow::Result<()> {
        let len = match (&*self.stream).read(buffer) {
            Ok(0) => bail!("gone"),
            Ok(len) => len,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let mut joined = mem::take(&mut self.unread);
        let mut bytes = &mut buffer[..len];
        if !joined.is_empty() {
            joined.extend_from_slice(bytes);
            bytes = &mut joined;
        }
        let mut done = 0;
        if self.identity.is_none() {
            done = self.handshake(bytes, hub)?;
        }
        if self.identity.is_some() {
            done += self.frames(&mut bytes[done..], hub)?;
        }
        self.unread.extend_from_slice(&bytes[done..]);
        ensure!(self.unread.len() <= MAX_MESSAGE, "too long");
        Ok(())
    }

    /// Answers the request where it is complete; returns its length.
    fn handshake(&mut self, bytes: &[u8], hub: &mut Hub) -> anyhow::Result<usize> {
        let Some((len, request)) = Request::try_parse(bytes)? else { return Ok(0) };
        let mut response = create_response(&request).context("no upgrade")?;
        if let Some(subprotocol) = wire::subprotocol(request.headers()) {
            response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, subprotocol);
        }
        let identity = Identity::from_uri(request.uri());
        let mut answer = Vec::new();
        write_response(&mut answer, &response)?;
        answer.extend(text_frame(wire::connected(&identity)));
        send(&self.stream, &answer);
        hub.users.entry(identity.user_id.clone()).or_default().push(Rc::clone(&self.stream));
        self.identity = Some(identity);
        Ok(len)
    }

    /// Handles the whole frames in `bytes`; returns how many bytes they are.
    fn frames(&mut self, bytes: &mut [u8], hub: &mut Hub) -> anyhow::Result<usize> {
        let mut done = 0;
        loop {
            let mut cursor = Cursor::new(&bytes[done..]);
            let Some((header, len)) = FrameHeader::parse(&mut cursor)? else { return Ok(done) };
            ensure!(len <= MAX_MESSAGE as u64, "too long");
            let start = done + cursor.position() as usize;
            let end = start + len as usize;
            let Some(payload) = bytes.get_mut(start..end) else { return Ok(done) };
            for (byte, mask) in payload.iter_mut().zip(header.mask.context("not masked")?.into_iter().cycle()) {
                *byte ^= mask;
            }
            match header.opcode {
                OpCode::Data(Data::Text) if header.is_final => self.message(std::str::from_utf8(payload)?, hub),
                OpCode::Control(Control::Ping) => send(&self.stream, &encode(Frame::pong(payload.to_vec()))),
                OpCode::Control(Control::Pong) => {}
                OpCode::Control(Control::Close) => {
                    send(&self.stream, &encode(Frame::close(None)));
                    bail!("closed");
                }
                _ => bail!("neither fragments nor binary frames are understood"),
            }
            done = end;
        }
    }

    fn message(&mut self, text: &str, hub: &mut Hub) {
        let sender_id = self.identity.as_ref().map_or("", |identity| identity.user_id.as_str());
        let (request, request_id) = match wire::parse(text) {
            Ok(request) => request,
            Err(error) => return self.reply(error),
        };
        match request {
            wire::Request::Ping { ts } => self.reply(wire::pong(request_id, ts)),
            wire::Request::JoinRoom { room_id } => {
                hub.rooms.entry(room_id.to_owned()).or_default().push(Rc::clone(&self.stream));
                self.rooms.push(room_id.to_owned());
                self.reply(wire::room_joined(request_id, room_id));
            }
            wire::Request::RoomMessage { room_id, content } => {
                let Some(room) = hub.rooms.get(room_id) else {
                    return self.reply(wire::error(request_id, wire::ROOM_NOT_FOUND, "no such room"));
                };
                let id = Uuid::now_v7();
                let frame = text_frame(wire::room_message(id, room_id, content, sender_id));
                hub.round.entry(room_id.to_owned()).or_default().push((Rc::clone(&self.stream), frame));
                if request_id.is_some() {
                    let recipients = self.others(room).count();
                    self.reply(wire::room_accepted(request_id, id, recipients));
                }
            }
            wire::Request::DirectMessage { target_id, content } => {
                let Some(user) = hub.users.get(target_id) else {
                    return self.reply(wire::error(request_id, wire::USER_OFFLINE, "nobody there"));
                };
                let id = Uuid::now_v7();
                let frame = text_frame(wire::direct_message(id, content, sender_id));
                self.others(user).for_each(|connection| send(connection, &frame));
                if request_id.is_some() {
                    self.reply(wire::direct_accepted(request_id, id));
                }
            }
        }
    }

    /// A group without this connection: who sends a message gets no copy.
    fn others<'g>(&self, group: &'g Group) -> impl Iterator<Item = &'g Rc<TcpStream>> {
        group.iter().filter(|member| !Rc::ptr_eq(member, &self.stream))
    }

    fn reply(&self, text: String) {
        send(&self.stream, &text_frame(text));
    }

    fn leave(self, hub: &mut Hub) {
        let user = self.identity.map(|identity| identity.user_id);
        remove(&mut hub.users, user.iter(), &self.stream);
        remove(&mut hub.rooms, self.rooms.iter(), &self.stream);
    }
}

fn remove<'n>(groups: &mut HashMap<String, Group>, names: impl Iterator<Item = &'n String>, stream: &Rc<TcpStream>) {
    for name in names {
        if let Some(group) = groups.get_mut(name) {
            group.retain(|member| !Rc::ptr_eq(member, stream));
            if group.is_empty() {
                groups.remove(name);
            }
        }
    }
}

fn send(mut stream: &TcpStream, frame: &[u8]) {
    if stream.write(frame).is_ok_and(|len| len < frame.len()) {
        // There is nowhere to keep the rest, and nothing can follow half a frame.
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn text_frame(text: String) -> Vec<u8> {
    encode(Frame::message(text, OpCode::Data(Data::Text), true))
}

#[expect(clippy::expect_used, reason = "a vector takes everything")]
fn encode(frame: Frame) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(frame.len());
    frame.format(&mut bytes).expect("frames of ours are well-formed");
    bytes
}

/// Longest message, and longest request head, in bytes.
const MAX_MESSAGE: usize = 1 << 20;
