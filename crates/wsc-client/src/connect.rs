//! One attempt to connect: dial, upgrade, `connected`.

use std::{error::Error, fmt, future::Future, io, pin::Pin, sync::Arc, time::Duration};

use futures_util::StreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::tungstenite::{
    self, Message, client::IntoClientRequest, error::ProtocolError, protocol::WebSocketConfig,
};
use wsc_protocol::CloseCode;

use crate::{
    Cause, Connected, HubError,
    cause::Closing,
    socket::Socket,
    token::TokenSource,
    wire::{self, Inbound},
};

/// A byte stream to the hub: TCP, TLS, or whatever [`Builder::dial`](crate::Builder::dial) makes.
pub(crate) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for S {}

pub(crate) type BoxStream = Box<dyn ByteStream>;
type DialFuture = Pin<Box<dyn Future<Output = io::Result<BoxStream>> + Send>>;

/// Makes byte streams.
#[derive(Clone)]
pub(crate) struct Dial(Arc<dyn Fn() -> DialFuture + Send + Sync>);

impl Dial {
    pub(crate) fn new<F, Fut, S>(dial: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = io::Result<S>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        Self(Arc::new(move || {
            let stream = dial();
            Box::pin(async move { Ok(Box::new(stream.await?) as BoxStream) })
        }))
    }

    /// Plain TCP to this host and port.
    pub(crate) fn tcp(address: Arc<str>) -> Self {
        Self::new(move || tcp(Arc::clone(&address)))
    }
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dial")
    }
}

/// Connects with small messages in mind: what is written leaves at once.
pub(crate) async fn tcp(address: Arc<str>) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(&*address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Everything that an attempt needs.
pub(crate) struct Connector {
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) token: TokenSource,
    pub(crate) dial: Dial,
    pub(crate) timeout: Duration,
    pub(crate) max_message_size: usize,
    pub(crate) max_request_size: usize,
}

impl Connector {
    /// Connects and reads the `connected` frame.
    pub(crate) async fn connect(&self) -> Result<(Socket, Connected), Cause> {
        timeout(self.timeout, self.attempt()).await.unwrap_or(Err(Cause::Timeout))
    }

    async fn attempt(&self) -> Result<(Socket, Connected), Cause> {
        let mut request = self.uri.clone().into_client_request().map_err(refusal)?;
        request.headers_mut().extend(self.headers.clone());
        let name = const { HeaderName::from_static("sec-websocket-protocol") };
        request.headers_mut().insert(name, const { HeaderValue::from_static("wsc.v1") });
        if let Some(token) = self.token.token().await.map_err(|error| Cause::Token(error.into()))? {
            request.headers_mut().insert(header::AUTHORIZATION, bearer(&token)?);
        }

        let stream = (self.dial.0)().await.map_err(|error| Cause::Connect(error.into()))?;
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(WRITE_BUFFER)
            .max_write_buffer_size(self.max_request_size.saturating_add(WRITE_HEADROOM))
            .max_message_size(Some(self.max_message_size))
            .max_frame_size(Some(self.max_message_size));
        let (mut socket, _) =
            tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await.map_err(refusal)?;

        loop {
            return match socket.next().await {
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                Some(Ok(Message::Text(text))) => match wire::decode(&text) {
                    Ok(Inbound::Connected(connected)) => Ok((Socket::new(socket), connected)),
                    _ => Err(Cause::Protocol("the first frame is not `connected`".to_owned())),
                },
                Some(Ok(Message::Close(frame))) => {
                    Socket::new(socket).finish().await;
                    Err(Cause::Closed(closing(frame.as_ref())))
                }
                Some(Ok(_)) => Err(Cause::Protocol("the first frame is not `connected`".to_owned())),
                Some(Err(error)) => Err(lost(error)),
                None => Err(lost(tungstenite::Error::ConnectionClosed)),
            };
        }
    }
}

impl fmt::Debug for Connector {
    /// Shows no query and no header: either may hold a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector")
            .field("host", &self.uri.host())
            .field("path", &self.uri.path())
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}

/// Deliveries are small and many clients idle: a large buffer for each would be wasted.
const READ_BUFFER: usize = 4 * 1024;

/// Each frame is handed to the kernel as soon as it takes it; the socket accepts the next only behind that.
const WRITE_BUFFER: usize = 0;

/// Beside one request: its header, a pong, a close frame, and a list of acknowledgements.
const WRITE_HEADROOM: usize = 256 * 1024;

fn bearer(token: &str) -> Result<HeaderValue, Cause> {
    // The error of the conversion is not kept: it need not, and must not, show the token.
    let mut value = HeaderValue::try_from(format!("Bearer {token}"))
        .map_err(|_| Cause::Token(Arc::from(Box::<dyn Error + Send + Sync>::from("the token is no header value"))))?;
    value.set_sensitive(true);
    Ok(value)
}

/// What a close frame says; one without a code is 1005.
pub(crate) fn closing(frame: Option<&tungstenite::protocol::CloseFrame>) -> Closing {
    frame.map_or_else(
        || Closing::parse(NO_STATUS.0, ""),
        |frame| Closing::parse(frame.code.into(), frame.reason.as_str()),
    )
}

const NO_STATUS: CloseCode = CloseCode(1005);

/// Why an upgrade failed.
fn refusal(error: tungstenite::Error) -> Cause {
    let tungstenite::Error::Http(response) = error else {
        return lost(error);
    };
    let retry_after = response.headers().get(header::RETRY_AFTER);
    let retry_after = retry_after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let error = response.body().as_deref().and_then(|body| serde_json::from_slice::<Refusal>(body).ok());
    Cause::Refused {
        status: response.status().as_u16(),
        error: error.map(|refusal| refusal.error),
        retry_after: retry_after.map(Duration::from_secs),
    }
}

/// The body of a refusal.
#[derive(Deserialize)]
struct Refusal {
    error: HubError,
}

/// Why a connection, or the upgrade to one, broke.
pub(crate) fn lost(error: tungstenite::Error) -> Cause {
    match error {
        tungstenite::Error::Io(error) => Cause::Lost(error.into()),
        tungstenite::Error::ConnectionClosed
        | tungstenite::Error::AlreadyClosed
        | tungstenite::Error::Protocol(
            ProtocolError::ResetWithoutClosingHandshake | ProtocolError::HandshakeIncomplete,
        ) => Cause::Lost(Arc::new(io::ErrorKind::ConnectionReset.into())),
        other => Cause::Protocol(other.to_string()),
    }
}
