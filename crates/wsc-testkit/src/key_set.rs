//! An identity provider, as far as its keys go.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A loopback HTTP server that answers every request with a key set (JWKS).
///
/// It ends with this value.
pub struct KeySetServer {
    addr: SocketAddr,
    state: Arc<State>,
    serving: JoinHandle<()>,
}

struct State {
    requests: AtomicU64,
    /// What it answers: `None` is a 503.
    body: Mutex<Option<String>>,
}

impl KeySetServer {
    /// Starts one that publishes these keys, as of [`crate::TokenKey::jwk`].
    ///
    /// # Panics
    ///
    /// When no loopback port is free.
    pub async fn start(keys: &[Value]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("the port that was bound");
        let state = Arc::new(State { requests: AtomicU64::new(0), body: Mutex::new(Some(key_set(keys))) });
        let served = Arc::clone(&state);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // One after the other is enough for the one hub that asks, and is cut off with this task.
                let _ = answer(stream, &served).await;
            }
        });
        Self { addr, state, serving }
    }

    /// Where the key set is.
    pub fn url(&self) -> String {
        format!("http://{}/keys", self.addr)
    }

    /// Publishes other keys from now on.
    ///
    /// # Panics
    ///
    /// When another thread panicked while it answered.
    pub fn publish(&self, keys: &[Value]) {
        *self.state.body.lock().expect("no panic while answering") = Some(key_set(keys));
    }

    /// Answers 503 from now on.
    ///
    /// # Panics
    ///
    /// As [`KeySetServer::publish`].
    pub fn fail(&self) {
        *self.state.body.lock().expect("no panic while answering") = None;
    }

    /// How often it was asked.
    pub fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::SeqCst)
    }
}

impl Drop for KeySetServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl fmt::Debug for KeySetServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySetServer").field("addr", &self.addr).field("requests", &self.requests()).finish()
    }
}

fn key_set(keys: &[Value]) -> String {
    json!({"keys": keys}).to_string()
}

async fn answer(mut stream: TcpStream, state: &State) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    state.requests.fetch_add(1, Ordering::SeqCst);
    let body = state.body.lock().expect("no panic while answering").clone();
    let (status, body) = body.map_or(("503 Service Unavailable", String::new()), |body| ("200 OK", body));
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}
