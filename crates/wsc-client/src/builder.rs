//! How a client is described.

use std::{error::Error, fmt, future::Future, io, sync::Arc, time::Duration};

use http::{HeaderMap, Uri};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;
use wsc_protocol::UserType;

use crate::{
    Backoff, Cause, Client, Connected, Events, Resend,
    backoff::Schedule,
    client::Shared,
    connect::{Connector, Dial},
    driver::{Driver, Options, Status},
    outbox::Outbox,
    pending::Pending,
    queue::queue,
    rooms::Rooms,
    seen::Seen,
    settlements::Settlements,
    socket::Socket,
    token::TokenSource,
};

/// A client that is being described; made by [`Client::builder`].
#[derive(Clone)]
#[must_use = "a builder does nothing until `connect` or `start`"]
pub struct Builder {
    url: String,
    query: Vec<(&'static str, String)>,
    headers: HeaderMap,
    token: TokenSource,
    dial: Option<Dial>,
    #[cfg(feature = "tls")]
    roots_pem: Vec<u8>,
    backoff: Backoff,
    connect_timeout: Duration,
    request_timeout: Duration,
    resend: Resend,
    close_timeout: Duration,
    silence_margin: Duration,
    pong_timeout: Duration,
    max_message_size: usize,
    max_request_size: usize,
    event_buffer: u32,
    dedup_window: usize,
    dedup_time: Duration,
    rejoin: bool,
    auto_ack: bool,
}

/// What is wrong with the description of a client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The URL is none, or none that can be connected to.
    #[error("the URL {0}")]
    Url(&'static str),
    /// `wss://` needs the cargo feature `tls`, or [`Builder::dial`].
    #[error("`wss` needs the cargo feature `tls`")]
    NoTls,
    /// There are no certificates to trust.
    #[error("no root certificates")]
    Roots(#[source] io::Error),
}

/// Why [`Builder::connect`] failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The description is wrong.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The attempt failed.
    #[error("cannot connect to the hub")]
    Failed(#[source] Cause),
}

impl Builder {
    pub(crate) fn new(url: String) -> Self {
        Self {
            url,
            query: Vec::new(),
            headers: HeaderMap::new(),
            token: TokenSource::None,
            dial: None,
            #[cfg(feature = "tls")]
            roots_pem: Vec::new(),
            backoff: Backoff::default(),
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(10),
            resend: Resend::default(),
            close_timeout: Duration::from_secs(3),
            silence_margin: Duration::from_secs(5),
            pong_timeout: Duration::from_secs(10),
            max_message_size: 4 * 1024 * 1024,
            max_request_size: 64 * 1024,
            event_buffer: 4 * 1024 * 1024,
            dedup_window: 4096,
            dedup_time: Duration::from_secs(7 * 24 * 60 * 60),
            rejoin: true,
            auto_ack: false,
        }
    }

    /// Who this is. Honoured only by a hub without authentication; with it the token says who.
    pub fn user_id(self, user_id: impl Into<String>) -> Self {
        self.parameter("user_id", user_id.into())
    }

    /// The name of this connection within its user. Default: the hub makes one for each connection.
    ///
    /// A connection under the same name replaces the older one, which then stays away. With a name of its own a
    /// client that lost its connection takes its own place again, at once and without being counted twice.
    pub fn client_id(self, client_id: impl Into<String>) -> Self {
        self.parameter("client_id", client_id.into())
    }

    /// What kind of user this is. Honoured only by a hub without authentication. Default: visitor.
    pub fn user_type(self, user_type: UserType) -> Self {
        self.parameter("user_type", user_type.as_str().to_owned())
    }

    /// Free text that is shown in the hub's listings. Default: none.
    pub fn device_id(self, device_id: impl Into<String>) -> Self {
        self.parameter("device_id", device_id.into())
    }

    fn parameter(mut self, name: &'static str, value: String) -> Self {
        self.query.retain(|(other, _)| *other != name);
        self.query.push((name, value));
        self
    }

    /// A header for the handshake, such as `Origin` or what a proxy asks for. Tokens belong to
    /// [`token`](Self::token).
    pub fn header(mut self, name: http::HeaderName, value: http::HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// The token of every connection. When the hub says that it has expired (3005), the client stops: there is no
    /// other one.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = TokenSource::Fixed(token.into().into());
        self
    }

    /// Asks for a token before each attempt to connect. An error counts as a failed attempt.
    ///
    /// ```
    /// # async fn renew() -> Result<String, std::io::Error> { Ok(String::new()) }
    /// let builder = wsc_client::Client::builder("ws://127.0.0.1:8080/ws").token_provider(|| async { Ok(renew().await?) });
    /// ```
    pub fn token_provider<F, Fut>(mut self, provider: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<String, Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        self.token = TokenSource::provider(provider);
        self
    }

    /// Makes the byte stream of each connection instead of TCP (and TLS) to the URL's host: for Unix sockets,
    /// proxies, or TLS settings of one's own.
    pub fn dial<F, Fut, S>(mut self, dial: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = io::Result<S>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.dial = Some(Dial::new(dial));
        self
    }

    /// Trusts these certificates (PEM) too, besides those of the system.
    #[cfg(feature = "tls")]
    pub fn root_certificates(mut self, pem: &[u8]) -> Self {
        self.roots_pem.extend_from_slice(pem);
        self.roots_pem.push(b'\n');
        self
    }

    /// How attempts to connect are spread out.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// The longest that one attempt may take, from the token to the hub's first frame. Default 10 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// The longest wait for a reply, unless a request says otherwise. Default 10 s. A message that
    /// [asks for an acknowledgement](crate::Request::require_ack) is repeated when it was sent so long ago.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// How messages that [ask for an acknowledgement](crate::Request::require_ack) are repeated until the hub has
    /// accepted them.
    pub fn resend(mut self, resend: Resend) -> Self {
        self.resend = resend;
        self
    }

    /// The longest that the goodbye may take. Default 3 s.
    pub fn close_timeout(mut self, timeout: Duration) -> Self {
        self.close_timeout = timeout;
        self
    }

    /// How long the hub may be silent beyond its ping interval before it is pinged, and how long it has to answer
    /// then before the client connects again. Default 5 s and 10 s. Lower values notice a dead hub sooner and take a
    /// slow network for one.
    pub fn silence(mut self, margin: Duration, pong_timeout: Duration) -> Self {
        self.silence_margin = margin.min(LONGEST_SILENCE);
        self.pong_timeout = pong_timeout.min(LONGEST_SILENCE);
        self
    }

    /// The largest message that is taken, in bytes. Default 4 MiB. A larger one ends the connection.
    pub fn max_message_size(mut self, bytes: usize) -> Self {
        self.max_message_size = bytes;
        self
    }

    /// The largest request that is sent, in bytes. Default 64 KiB, the hub's default for `max_message_size`: a hub
    /// that gets a larger one closes for good (1009).
    pub fn max_request_size(mut self, bytes: usize) -> Self {
        self.max_request_size = bytes;
        self
    }

    /// How many bytes of events wait for the application before the client stops reading, see [`Events`]. Default
    /// 4 MiB.
    pub fn event_buffer(mut self, bytes: u32) -> Self {
        self.event_buffer = bytes;
        self
    }

    /// How many message ids are remembered to give each message to the application once: so many of messages that
    /// ask for an acknowledgement, and so many of plain ones. Default 4096, which is half a megabyte at most; 0 gives
    /// the application every copy.
    ///
    /// What is settled is forgotten first. Keep it well above the hub's `inbox.window_messages`: that many may be sent
    /// again after a cut.
    pub fn dedup_window(mut self, messages: usize) -> Self {
        self.dedup_window = messages;
        self
    }

    /// How long a message id is remembered at most, from the delivery on or, where it is settled, from that on.
    /// Default 7 days, the hub's default for `storage.message_ttl`: after that it sends nothing again.
    pub fn dedup_time(mut self, time: Duration) -> Self {
        self.dedup_time = time;
        self
    }

    /// Whether rooms that this client joined are joined again after a reconnection. Default true.
    pub fn rejoin(mut self, rejoin: bool) -> Self {
        self.rejoin = rejoin;
        self
    }

    /// Whether deliveries are acknowledged by themselves, each when the application asks for the event behind it.
    /// Default false. What was taken last is not acknowledged before the application asks again; what it settled by
    /// itself until then is left at that.
    pub fn auto_ack(mut self, auto_ack: bool) -> Self {
        self.auto_ack = auto_ack;
        self
    }

    /// Connects once, and from then on stays connected.
    ///
    /// # Errors
    ///
    /// Where the description is wrong, or this first attempt fails; then nothing is left behind.
    /// [`start`](Self::start) goes on trying instead.
    ///
    /// # Cancel safety
    ///
    /// When dropped, nothing is left behind.
    pub async fn connect(self) -> Result<(Client, Events), ConnectError> {
        let connector = self.connector()?;
        let first = connector.connect().await.map_err(ConnectError::Failed)?;
        Ok(self.spawn(connector, Some(first)))
    }

    /// Connects in the background, however long it takes, and stays connected.
    /// [`Client::connected`] waits for the connection.
    ///
    /// # Errors
    ///
    /// Where the description is wrong.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn start(self) -> Result<(Client, Events), BuildError> {
        let connector = self.connector()?;
        Ok(self.spawn(connector, None))
    }

    fn spawn(self, connector: Connector, first: Option<(Socket, Connected)>) -> (Client, Events) {
        let (commands, command_queue) = mpsc::channel(COMMANDS);
        let (event_sender, event_receiver) = queue(self.event_buffer.max(1));
        let (status_sender, status) = watch::channel(first.as_ref().map_or(Status::Connecting, |(_, connected)| {
            // Visible as soon as `connect` returns, not only when the task first runs.
            Status::Connected(Arc::new(connected.clone()))
        }));
        let pending = Arc::new(Pending::default());
        let settlements = Arc::new(Settlements::default());
        let stop = CancellationToken::new();
        let driver = Driver {
            connector,
            options: Options {
                close_timeout: self.close_timeout,
                silence_margin: self.silence_margin,
                pong_timeout: self.pong_timeout,
                rejoin: self.rejoin,
                max_request_size: self.max_request_size,
            },
            schedule: Schedule::new(self.backoff, fastrand::Rng::new()),
            outbox: Outbox::new(command_queue),
            events: event_sender,
            settlements: Arc::clone(&settlements),
            pending: Arc::clone(&pending),
            status: status_sender,
            stop: stop.clone(),
            rooms: Rooms::new(fastrand::Rng::new()),
            seen: Seen::new(self.dedup_window, self.dedup_time),
            cause: Cause::Aborted,
        };
        let shared = Arc::new(Shared {
            pending,
            settlements,
            status,
            stop: stop.clone(),
            request_timeout: self.request_timeout,
            resend: self.resend,
            max_request_size: self.max_request_size,
            auto_ack: self.auto_ack,
            _task: stop.drop_guard(),
        });
        // The handles own the task together: it ends when they say so, or are gone.
        tokio::spawn(driver.run(first));
        (Client::new(commands, Arc::clone(&shared)), Events::new(event_receiver, shared))
    }

    fn connector(&self) -> Result<Connector, BuildError> {
        let (uri, secure) = self.uri()?;
        let dial = match &self.dial {
            Some(dial) => dial.clone(),
            None => self.dial_url(&uri, secure)?,
        };
        Ok(Connector {
            uri,
            headers: self.headers.clone(),
            token: self.token.clone(),
            dial,
            timeout: self.connect_timeout,
            max_message_size: self.max_message_size,
            max_request_size: self.max_request_size,
        })
    }

    /// The URL with the parameters, and whether it asks for TLS.
    fn uri(&self) -> Result<(Uri, bool), BuildError> {
        let uri: Uri = self.url.parse().map_err(|_| BuildError::Url("cannot be read"))?;
        let secure = match uri.scheme_str() {
            Some("ws") => false,
            Some("wss") => true,
            _ => return Err(BuildError::Url("does not start with ws:// or wss://")),
        };
        let authority = uri.authority().ok_or(BuildError::Url("has no host"))?;
        if authority.host().is_empty() {
            return Err(BuildError::Url("has no host"));
        }
        if authority.as_str().contains('@') {
            return Err(BuildError::Url("holds a name or password; tokens belong to `token`"));
        }
        let query = uri.query().unwrap_or_default();
        if query.split('&').any(|pair| pair.starts_with("token=")) {
            return Err(BuildError::Url("holds a token, which would be logged on the way; use `token`"));
        }
        let mut target = format!("{}?{query}", uri.path());
        for (name, value) in &self.query {
            if !target.ends_with(['?', '&']) {
                target.push('&');
            }
            target.push_str(name);
            target.push('=');
            target.extend(utf8_percent_encode(value, NON_ALPHANUMERIC));
        }
        let target = target.trim_end_matches('?');
        let mut parts = uri.clone().into_parts();
        parts.path_and_query = Some(target.parse().map_err(|_| BuildError::Url("is too long"))?);
        let uri = Uri::from_parts(parts).map_err(|_| BuildError::Url("cannot be read"))?;
        Ok((uri, secure))
    }

    fn dial_url(&self, uri: &Uri, secure: bool) -> Result<Dial, BuildError> {
        let host = uri.host().unwrap_or_default();
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let address = format!("{host}:{port}").into();
        if !secure {
            return Ok(Dial::tcp(address));
        }
        #[cfg(feature = "tls")]
        return crate::tls::dial(address, host, &self.roots_pem);
        #[cfg(not(feature = "tls"))]
        Err(BuildError::NoTls)
    }
}

impl fmt::Debug for Builder {
    /// Shows no query and no header: either may hold a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self.url.split(['?', '#']).next().unwrap_or_default();
        f.debug_struct("Builder")
            .field("url", &if url.contains('@') { "…" } else { url })
            .field("token", &self.token)
            .field("backoff", &self.backoff)
            .field("rejoin", &self.rejoin)
            .field("auto_ack", &self.auto_ack)
            .finish_non_exhaustive()
    }
}

/// More is no watch at all, and could overflow the clock.
const LONGEST_SILENCE: Duration = Duration::from_secs(24 * 60 * 60);

/// Requests that wait to be written before their senders wait.
const COMMANDS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_added_to_the_url() {
        let uri = |builder: Builder| builder.uri().unwrap().0.to_string();
        assert_eq!(uri(Client::builder("ws://h:1/ws")), "ws://h:1/ws");
        let builder = Client::builder("ws://h:1/ws").user_id("al&ice ü").client_id("a").client_id("b");
        assert_eq!(uri(builder), "ws://h:1/ws?user_id=al%26ice%20%C3%BC&client_id=b");
        assert_eq!(uri(Client::builder("wss://h/ws?x=y").device_id("d")), "wss://h/ws?x=y&device_id=d");
    }

    #[test]
    fn other_urls_are_refused() {
        for url in
            ["", "h", "http://h/ws", "ws:///ws", "ws://user:pw@h/ws", "ws://h/ws?token=abc", "ws://h/ws?a=b&token="]
        {
            assert!(Client::builder(url).uri().is_err(), "{url}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let builder = Client::builder("ws://user:sesame@h/ws?token=sesame").token("sesame");
        assert!(!format!("{builder:?}").contains("sesame"));
    }
}
