//! axum's chat example with more than one room: a broadcast channel for each, a task that reads and one that writes
//! for each connection. As in the example, a connection is in one room.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    Router,
    extract::{
        OriginalUri, State, WebSocketUpgrade,
        ws::{Message, Utf8Bytes, WebSocket},
    },
    response::Response,
    routing::any,
    serve::ListenerExt as _,
};
use futures_util::{
    SinkExt as _, StreamExt as _,
    stream::{SplitSink, SplitStream},
};
use tokio::{
    net::TcpListener,
    sync::{
        broadcast::{self, error::RecvError},
        mpsc,
    },
};
use uuid::Uuid;

use crate::wire::{self, Identity};

#[derive(Default)]
struct Chat {
    users: Mutex<HashMap<String, Connections>>,
    rooms: Mutex<HashMap<String, Room>>,
}

/// A user's connections, by session.
type Connections = HashMap<Uuid, mpsc::Sender<Outgoing>>;

/// A room's messages, each with the session that sent it, which gets no copy.
type Room = broadcast::Sender<(Uuid, Utf8Bytes)>;

/// What the task that writes is told.
enum Outgoing {
    Text(Utf8Bytes),
    Joined(broadcast::Receiver<(Uuid, Utf8Bytes)>),
}

pub(crate) async fn serve(listener: std::net::TcpListener) -> anyhow::Result<()> {
    let app = Router::new().route("/ws", any(upgrade)).with_state(Arc::new(Chat::default()));
    let listener = TcpListener::from_std(listener)?.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, app).await?;
    Ok(())
}

async fn upgrade(State(chat): State<Arc<Chat>>, OriginalUri(uri): OriginalUri, socket: WebSocketUpgrade) -> Response {
    let identity = Identity::from_uri(&uri);
    socket.protocols([wire::SUBPROTOCOL]).on_upgrade(|socket| handle(socket, chat, identity))
}

async fn handle(socket: WebSocket, chat: Arc<Chat>, identity: Identity) {
    let session = Uuid::now_v7();
    let (sink, stream) = socket.split();
    let (outgoing, waiting) = mpsc::channel(256);
    lock(&chat.users).entry(identity.user_id.clone()).or_default().insert(session, outgoing.clone());
    let greeting = outgoing.send(Outgoing::Text(wire::connected(&identity).into())).await;

    let mut write = tokio::spawn(write(sink, waiting, session));
    let mut read = {
        let (chat, user_id) = (Arc::clone(&chat), identity.user_id.clone());
        tokio::spawn(async move { read(stream, &chat, &user_id, session, &outgoing).await })
    };
    if greeting.is_ok() {
        tokio::select! {
            _ = &mut write => read.abort(),
            _ = &mut read => write.abort(),
        }
    }

    let mut users = lock(&chat.users);
    if let Some(connections) = users.get_mut(&identity.user_id) {
        connections.remove(&session);
        if connections.is_empty() {
            users.remove(&identity.user_id);
        }
    }
}

/// Writes what the room says and what is meant for this connection alone.
async fn write(mut sink: SplitSink<WebSocket, Message>, mut waiting: mpsc::Receiver<Outgoing>, session: Uuid) {
    let mut room = None;
    loop {
        let text = tokio::select! {
            outgoing = waiting.recv() => match outgoing {
                Some(Outgoing::Text(text)) => text,
                Some(Outgoing::Joined(receiver)) => {
                    room = Some(receiver);
                    continue;
                }
                None => return,
            },
            message = next(&mut room) => match message {
                Ok((sender, text)) if sender != session => text,
                // Its own, or too slow for some: those are lost.
                Ok(_) | Err(RecvError::Lagged(_)) => continue,
                Err(RecvError::Closed) => return,
            },
        };
        if sink.send(Message::Text(text)).await.is_err() {
            return;
        }
    }
}

/// The room's next message; none ever comes to who is in no room.
async fn next<T: Clone>(room: &mut Option<broadcast::Receiver<T>>) -> Result<T, RecvError> {
    match room {
        Some(room) => room.recv().await,
        None => std::future::pending().await,
    }
}

/// Reads until the client goes.
async fn read(
    mut stream: SplitStream<WebSocket>,
    chat: &Chat,
    user_id: &str,
    session: Uuid,
    outgoing: &mpsc::Sender<Outgoing>,
) {
    while let Some(Ok(message)) = stream.next().await {
        let Message::Text(text) = message else { continue };
        let reply = match wire::parse(&text) {
            Ok((wire::Request::Ping { ts }, request_id)) => Some(wire::pong(request_id, ts)),
            Ok((wire::Request::JoinRoom { room_id }, request_id)) => {
                let room = lock(&chat.rooms).entry(room_id.to_owned()).or_insert_with(new_room).subscribe();
                if outgoing.send(Outgoing::Joined(room)).await.is_err() {
                    return;
                }
                Some(wire::room_joined(request_id, room_id))
            }
            Ok((wire::Request::RoomMessage { room_id, content }, request_id)) => {
                let id = Uuid::now_v7();
                let message = wire::room_message(id, room_id, content, user_id).into();
                match lock(&chat.rooms).get(room_id).map(|room| room.send((session, message))) {
                    Some(Ok(members)) => request_id.map(|_| wire::room_accepted(request_id, id, members - 1)),
                    _ => Some(wire::error(request_id, wire::ROOM_NOT_FOUND, "no such room")),
                }
            }
            Ok((wire::Request::DirectMessage { target_id, content }, request_id)) => {
                let id = Uuid::now_v7();
                let message = wire::direct_message(id, content, user_id).into();
                match lock(&chat.users).get(target_id).map(|connections| send_direct(connections, &message)) {
                    Some(()) => request_id.map(|_| wire::direct_accepted(request_id, id)),
                    None => Some(wire::error(request_id, wire::USER_OFFLINE, "nobody there")),
                }
            }
            Err(error) => Some(error),
        };
        if let Some(reply) = reply
            && outgoing.send(Outgoing::Text(reply.into())).await.is_err()
        {
            return;
        }
    }
}

/// Whose channel is full loses the message.
fn send_direct(connections: &Connections, message: &Utf8Bytes) {
    for connection in connections.values() {
        let _ = connection.try_send(Outgoing::Text(message.clone()));
    }
}

fn new_room() -> Room {
    broadcast::channel(100).0
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
