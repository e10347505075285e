//! What the examples share: a bare client, and the self-test mode in which the checks run them.

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{self, Message, client::IntoClientRequest, http::HeaderValue},
};

/// What an example can fail with.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Whether the example should try itself and end, instead of running until Ctrl-C.
pub fn is_self_test() -> bool {
    std::env::args().any(|arg| arg == "--self-test")
}

/// A client that speaks JSON, and nothing else.
#[derive(Debug)]
pub struct Client(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Client {
    /// Connects as `user_id` and reads the `connected` frame.
    ///
    /// # Errors
    ///
    /// Whatever goes wrong on the way.
    pub async fn connect(address: std::net::SocketAddr, user_id: &str) -> Result<Self, Error> {
        let mut request = format!("ws://{address}/ws?user_id={user_id}").into_client_request()?;
        request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static("wsc.v1"));
        let (socket, _) = connect_async(request).await?;
        let mut client = Self(socket);
        client.expect("connected").await?;
        Ok(client)
    }

    /// Sends one request.
    ///
    /// # Errors
    ///
    /// Where the connection is gone.
    pub async fn send(&mut self, request: Value) -> Result<(), Error> {
        Ok(self.0.send(Message::text(request.to_string())).await?)
    }

    /// Reads until a frame of this type comes.
    ///
    /// # Errors
    ///
    /// Where the connection ends before.
    pub async fn expect(&mut self, message_type: &str) -> Result<Value, Error> {
        while let Some(frame) = self.0.next().await {
            if let Message::Text(text) = frame? {
                let value: Value = serde_json::from_str(&text)?;
                if value["message_type"] == message_type {
                    return Ok(value);
                }
            }
        }
        Err(tungstenite::Error::ConnectionClosed.into())
    }
}
