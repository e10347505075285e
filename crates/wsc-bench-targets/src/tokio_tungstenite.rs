//! What most people write on tokio-tungstenite: the handshake with default settings, `split`, a task that reads and
//! one that writes, a bounded channel between them, and one mutex around the users and the rooms.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use ::tokio_tungstenite::{
    WebSocketStream, accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{Request, Response},
    },
};
use futures_util::{SinkExt as _, StreamExt as _, stream::SplitStream};
use http::header::SEC_WEBSOCKET_PROTOCOL;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc::{Receiver, Sender, channel},
};
use uuid::Uuid;

use crate::wire::{self, Identity};

/// Connections of one user or one room, by session.
type Group = HashMap<Uuid, Sender<Message>>;

#[derive(Default)]
struct Hub {
    users: HashMap<String, Group>,
    rooms: HashMap<String, Group>,
}

type SharedHub = Arc<Mutex<Hub>>;

pub(crate) async fn serve(listener: std::net::TcpListener) -> anyhow::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let hub = SharedHub::default();
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(handle(stream, Arc::clone(&hub)));
    }
}

async fn handle(stream: TcpStream, hub: SharedHub) {
    let _ = stream.set_nodelay(true);
    let mut identity = Identity::default();
    #[expect(clippy::result_large_err, reason = "the callback's type is tungstenite's")]
    let read_request = |request: &Request, mut response: Response| {
        identity = Identity::from_uri(request.uri());
        if let Some(subprotocol) = wire::subprotocol(request.headers()) {
            response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, subprotocol);
        }
        Ok(response)
    };
    let Ok(socket) = accept_hdr_async(stream, read_request).await else { return };
    let (mut sink, stream) = socket.split();
    let (outgoing, mut waiting): (_, Receiver<Message>) = channel(256);
    let writer = tokio::spawn(async move {
        while let Some(message) = waiting.recv().await {
            if sink.send(message).await.is_err() {
                return;
            }
        }
    });

    let session = Uuid::now_v7();
    lock(&hub).users.entry(identity.user_id.clone()).or_default().insert(session, outgoing.clone());
    let mut rooms = Vec::new();
    if outgoing.send(wire::connected(&identity).into()).await.is_ok() {
        read(stream, &hub, &identity, session, &outgoing, &mut rooms).await;
    }
    leave(&hub, &identity, session, &rooms);
    drop(outgoing);
    let _ = writer.await;
}

/// Reads until the client goes.
async fn read(
    mut stream: SplitStream<WebSocketStream<TcpStream>>,
    hub: &SharedHub,
    identity: &Identity,
    session: Uuid,
    outgoing: &Sender<Message>,
    rooms: &mut Vec<String>,
) {
    while let Some(Ok(message)) = stream.next().await {
        let Message::Text(text) = message else { continue };
        let reply = match wire::parse(&text) {
            Ok((wire::Request::Ping { ts }, request_id)) => Some(wire::pong(request_id, ts)),
            Ok((wire::Request::JoinRoom { room_id }, request_id)) => {
                lock(hub).rooms.entry(room_id.to_owned()).or_default().insert(session, outgoing.clone());
                rooms.push(room_id.to_owned());
                Some(wire::room_joined(request_id, room_id))
            }
            Ok((wire::Request::RoomMessage { room_id, content }, request_id)) => {
                let id = Uuid::now_v7();
                let message = wire::room_message(id, room_id, content, &identity.user_id);
                match lock(hub).rooms.get(room_id).map(|room| send_all(room, session, message)) {
                    Some(recipients) => request_id.map(|_| wire::room_accepted(request_id, id, recipients)),
                    None => Some(wire::error(request_id, wire::ROOM_NOT_FOUND, "no such room")),
                }
            }
            Ok((wire::Request::DirectMessage { target_id, content }, request_id)) => {
                let id = Uuid::now_v7();
                let message = wire::direct_message(id, content, &identity.user_id);
                match lock(hub).users.get(target_id).map(|user| send_all(user, session, message)) {
                    Some(_) => request_id.map(|_| wire::direct_accepted(request_id, id)),
                    None => Some(wire::error(request_id, wire::USER_OFFLINE, "nobody there")),
                }
            }
            Err(error) => Some(error),
        };
        if let Some(reply) = reply
            && outgoing.send(reply.into()).await.is_err()
        {
            return;
        }
    }
}

/// Gives a message to everybody but its sender; whose channel is full loses it.
fn send_all(group: &Group, sender: Uuid, message: String) -> usize {
    let message = Message::from(message);
    let others = group.iter().filter(|(session, _)| **session != sender);
    others.filter(|(_, member)| member.try_send(message.clone()).is_ok()).count()
}

fn leave(hub: &SharedHub, identity: &Identity, session: Uuid, rooms: &[String]) {
    let mut hub = lock(hub);
    let Hub { users, rooms: all_rooms } = &mut *hub;
    remove(users, &identity.user_id, session);
    for room in rooms {
        remove(all_rooms, room, session);
    }
}

fn remove(groups: &mut HashMap<String, Group>, name: &str, session: Uuid) {
    if let Some(group) = groups.get_mut(name) {
        group.remove(&session);
        if group.is_empty() {
            groups.remove(name);
        }
    }
}

fn lock(hub: &SharedHub) -> std::sync::MutexGuard<'_, Hub> {
    hub.lock().unwrap_or_else(PoisonError::into_inner)
}
