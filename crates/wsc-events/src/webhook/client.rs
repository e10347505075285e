//! Who carries a request to the receiver.

use std::time::Duration;

use async_trait::async_trait;
use http::HeaderMap;
use url::Url;

/// One request.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WebhookRequest {
    /// Where to.
    pub url: Url,
    /// All headers, but for those that say how the body is framed.
    pub headers: HeaderMap,
    /// The body: JSON.
    pub body: Vec<u8>,
    /// How long it may take in all.
    pub timeout: Duration,
    /// Whether it may go to this machine or its networks.
    pub allow_private_addresses: bool,
}

/// What the receiver said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WebhookAnswer {
    /// The status.
    pub status: u16,
    /// The header `Retry-After`, where there is one.
    pub retry_after: Option<String>,
    /// The beginning of the body, for people who look for a fault.
    pub body: String,
}

impl WebhookAnswer {
    /// An answer of this status, and nothing more.
    pub fn new(status: u16) -> Self {
        Self { status, ..Self::default() }
    }
}

/// Why there was no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WebhookError {
    /// It did not come in time.
    #[error("no answer in time")]
    Timeout,
    /// There is no connection: the name is not known, nobody listens, or TLS failed.
    #[error("can't connect: {0}")]
    Connect(String),
    /// The name leads to this machine or its networks only.
    #[error("refused to connect: {0}")]
    RefusedAddress(String),
    /// The connection broke, or what came was no HTTP.
    #[error("the request failed: {0}")]
    Broken(String),
}

impl WebhookError {
    /// The name in metrics: `timeout`, `connect`, `refused_address` or `broken`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Connect(_) => "connect",
            Self::RefusedAddress(_) => "refused_address",
            Self::Broken(_) => "broken",
        }
    }
}

/// Posts requests. [`HttpWebhookClient`](super::HttpWebhookClient) does; a test may answer by itself.
#[async_trait]
pub trait WebhookClient: Send + Sync + 'static {
    /// Posts one request and gives back the receiver's answer, whatever its status. Redirects are answers.
    ///
    /// # Errors
    ///
    /// There was no answer.
    ///
    /// # Cancel safety
    ///
    /// The future is dropped where the hub shuts down; the receiver may have got the request.
    async fn post(&self, request: WebhookRequest) -> Result<WebhookAnswer, WebhookError>;
}
