//! What an operator says about a webhook, and what is made of it.

use std::{fmt, net::IpAddr, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, header};
use secrecy::{ExposeSecret, SecretString};
use url::{Host, Url};

use super::{address, sign::Signer};
use crate::{EventFilter, UnknownEvent};

/// Where events are posted, which, and how.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WebhookConfig {
    /// Where to: `https` or `http`, without user and password.
    pub url: String,
    /// Which events. Default all but `message.*`, which are many.
    pub filter: EventFilter,
    /// How long a request may take in all, from the look-up of the name to the end of the answer. Default 5 seconds,
    /// at least a millisecond. Longer forgives a slow receiver, and holds up what waits behind a dead one.
    pub timeout: Duration,
    /// How often a batch is tried again that the receiver fails on (status 500 and the like). Default 3. Failures that
    /// say that the receiver is away do not count; see [`Webhooks`](super::Webhooks).
    pub retries: u32,
    /// Headers of every request. Those that the hub sets itself can't be named.
    pub headers: Vec<(String, SecretString)>,
    /// Secrets to sign with: `whsec_` and base64, or any other text, whose bytes are the key. Requests have a signature
    /// for each. Default none: requests are not signed.
    pub signing_secrets: Vec<SecretString>,
    /// Whether the URL may lead to this machine or its networks. Default false.
    pub allow_private_addresses: bool,
    /// How many events are in one request at most. Default 100, at least 1.
    pub batch_max: usize,
    /// How long events are collected for one request, from the first on. Default 50 ms.
    pub batch_interval: Duration,
    /// Bytes of events that may wait in memory to be committed to the outbox. Default 16 MiB. What does not fit is
    /// dropped and counted.
    pub pending_bytes: usize,
    /// Batches that may wait in the outbox. Default 100,000, at least 1. Beyond it the oldest becomes a dead letter.
    pub outbox_batches: usize,
    /// Bytes that may wait in the outbox. Default 256 MiB. Beyond it the oldest batch becomes a dead letter.
    pub outbox_bytes: u64,
    /// How long a batch waits for a receiver that is away before it becomes a dead letter. Default 3 days.
    pub max_age: Duration,
    /// Dead letters that are kept. Default 10,000, at least 1; together they also hold no more than
    /// [`outbox_bytes`](Self::outbox_bytes). Beyond it the oldest is forgotten and counted.
    pub dead_letters: usize,
}

impl WebhookConfig {
    /// A webhook at this URL, with the defaults.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            filter: default_filter(),
            timeout: Duration::from_secs(5),
            retries: 3,
            headers: Vec::new(),
            signing_secrets: Vec::new(),
            allow_private_addresses: false,
            batch_max: 100,
            batch_interval: Duration::from_millis(50),
            pending_bytes: 16 << 20,
            outbox_batches: 100_000,
            outbox_bytes: 256 << 20,
            max_age: Duration::from_secs(3 * 24 * 3600),
            dead_letters: 10_000,
        }
    }

    /// Reads a list of names, groups (`room.*`) and `*`. An empty list means all events but `message.*`.
    ///
    /// # Errors
    ///
    /// The first text that names no event.
    pub fn filter_of(filters: &[String]) -> Result<EventFilter, UnknownEvent> {
        if filters.is_empty() { Ok(default_filter()) } else { EventFilter::parse(filters) }
    }

    /// Whether nothing is different, secrets included.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        // Taken apart, so that a new field can't be forgotten here.
        let Self {
            url,
            filter,
            timeout,
            retries,
            headers,
            signing_secrets,
            allow_private_addresses,
            batch_max,
            batch_interval,
            pending_bytes,
            outbox_batches,
            outbox_bytes,
            max_age,
            dead_letters,
        } = self;
        *url == other.url
            && *filter == other.filter
            && *timeout == other.timeout
            && *retries == other.retries
            && headers.len() == other.headers.len()
            && headers.iter().zip(&other.headers).all(|(a, b)| a.0 == b.0 && is_same_secret(&a.1, &b.1))
            && signing_secrets.len() == other.signing_secrets.len()
            && signing_secrets.iter().zip(&other.signing_secrets).all(|(a, b)| is_same_secret(a, b))
            && *allow_private_addresses == other.allow_private_addresses
            && *batch_max == other.batch_max
            && *batch_interval == other.batch_interval
            && *pending_bytes == other.pending_bytes
            && *outbox_batches == other.outbox_batches
            && *outbox_bytes == other.outbox_bytes
            && *max_age == other.max_age
            && *dead_letters == other.dead_letters
    }
}

/// Why a webhook can't be used as it is configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidWebhook {
    /// The URL is none, or none that may be posted to.
    #[error("the URL {0}")]
    Url(String),
    /// The URL names an address of this machine or its networks.
    #[error("the URL leads to {0}, which is not public (`allow_private_addresses` allows it)")]
    PrivateAddress(IpAddr),
    /// A header can't be sent, or is not to be set.
    #[error("the header {name:?} {reason}")]
    Header {
        /// Its name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A signing secret is none.
    #[error("signing secret {index} {reason}")]
    Secret {
        /// Its place in the list, from 0.
        index: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A figure that has to be more than zero.
    #[error("{0} must not be 0")]
    Zero(&'static str),
}

/// A webhook that was checked, ready to be posted to.
pub(super) struct Target {
    pub(super) config: WebhookConfig,
    pub(super) url: Url,
    /// All that are the same for each request.
    pub(super) headers: HeaderMap,
    pub(super) signer: Signer,
}

impl Target {
    pub(super) fn new(config: WebhookConfig) -> Result<Self, InvalidWebhook> {
        let figures = [
            ("timeout", config.timeout.is_zero()),
            ("batch_max", config.batch_max == 0),
            ("outbox_batches", config.outbox_batches == 0),
            ("outbox_bytes", config.outbox_bytes == 0),
            ("dead_letters", config.dead_letters == 0),
        ];
        if let Some((name, _)) = figures.into_iter().find(|&(_, is_zero)| is_zero) {
            return Err(InvalidWebhook::Zero(name));
        }
        let url = url(&config)?;
        let headers = headers(&config)?;
        let signer =
            Signer::new(&config.signing_secrets).map_err(|(index, reason)| InvalidWebhook::Secret { index, reason })?;
        Ok(Self { config, url, headers, signer })
    }

    /// For logs: path and query may hold secrets.
    pub(super) fn host(&self) -> &str {
        self.url.host_str().unwrap_or_default()
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("host", &self.host()).finish_non_exhaustive()
    }
}

/// The address, where the URL names one and no name. The parser has read every way to write one (`0x7f.1`).
pub(super) fn literal_address(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        Host::Ipv4(address) => Some(address.into()),
        Host::Ipv6(address) => Some(address.into()),
        Host::Domain(_) => None,
    }
}

fn url(config: &WebhookConfig) -> Result<Url, InvalidWebhook> {
    let url = Url::parse(&config.url).map_err(|error| InvalidWebhook::Url(format!("can't be read: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(InvalidWebhook::Url("begins with neither `https://` nor `http://`".to_owned()));
    }
    // Also an empty one: it would be sent as a header, and shown to whoever reads the settings.
    if !url.username().is_empty() || url.password().is_some() {
        return Err(InvalidWebhook::Url("holds a user or a password; use a header".to_owned()));
    }
    match literal_address(&url) {
        Some(address) if !config.allow_private_addresses && !address::is_public(address) => {
            Err(InvalidWebhook::PrivateAddress(address))
        }
        _ => Ok(url),
    }
}

fn headers(config: &WebhookConfig) -> Result<HeaderMap, InvalidWebhook> {
    let mut headers = HeaderMap::new();
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    for (name, value) in &config.headers {
        let wrong = |reason| InvalidWebhook::Header { name: name.clone(), reason };
        let name = HeaderName::try_from(name).map_err(|_| wrong("is no name of a header"))?;
        if RESERVED.contains(&name.as_str()) {
            return Err(wrong("is set by the hub"));
        }
        let mut value =
            HeaderValue::from_str(value.expose_secret()).map_err(|_| wrong("has a value that can't be sent"))?;
        // Kept out of logs.
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(headers)
}

fn default_filter() -> EventFilter {
    let is_message = |t: &wsc_protocol::EventType| t.as_str().starts_with("message.");
    EventFilter::ALL.except(EventFilter::ALL.types().filter(is_message).collect())
}

fn is_same_secret(a: &SecretString, b: &SecretString) -> bool {
    a.expose_secret() == b.expose_secret()
}

const USER_AGENT: &str = concat!("wsc-hub/", env!("CARGO_PKG_VERSION"));

/// What a request is made of: to set one of these would break it, or forge what receivers rely on.
const RESERVED: [&str; 14] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "webhook-id",
    "webhook-signature",
    "webhook-timestamp",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str) -> Result<(), InvalidWebhook> {
        Target::new(WebhookConfig::new(url)).map(drop)
    }

    #[test]
    fn only_the_internet_is_posted_to() {
        for url in
            ["https://example.com/hook", "http://example.com:8080/a?b=c", "https://8.8.8.8/", "https://[2600::1]/"]
        {
            assert_eq!(check(url), Ok(()), "{url}");
        }
        for url in [
            "http://127.0.0.1/",
            "http://127.1/",
            "http://2130706433/",
            "http://0x7f.0.0.1/",
            "http://017700000001/",
            "http://127.0.0.1./",
            "http://[::1]/",
            "http://[::ffff:7f00:1]/",
            "http://[::]/",
            "http://0/",
            "http://169.254.169.254/latest/meta-data",
            "http://[fd00:ec2::254]/",
            "http://[64:ff9b::a00:1]/",
            "http://192.168.1.1:8080/x",
            "http://１２７.0.0.1/",
            "http://0x7f000001/",
            "http:\\\\127.0.0.1\\",
        ] {
            assert!(matches!(check(url), Err(InvalidWebhook::PrivateAddress(_))), "{url}: {:?}", check(url));
            let mut config = WebhookConfig::new(url);
            config.allow_private_addresses = true;
            assert!(Target::new(config).is_ok(), "{url}");
        }
        for url in [
            "",
            "example.com",
            "/hook",
            "ftp://example.com/",
            "file:///etc/passwd",
            "gopher://example.com/",
            "unix:/run/x.sock",
            "data:,x",
            "https://user@example.com/",
            "https://user:secret@example.com/",
            "https://:secret@example.com/",
            "http://",
            "http://exa mple.com/",
            "http://[fe80::1%25eth0]/",
        ] {
            assert!(matches!(check(url), Err(InvalidWebhook::Url(_))), "{url}: {:?}", check(url));
        }
    }

    #[test]
    fn headers_are_checked_and_kept_out_of_logs() {
        let with = |name: &str, value: &str| {
            let mut config = WebhookConfig::new("https://example.com/");
            config.headers.push((name.to_owned(), SecretString::from(value)));
            Target::new(config)
        };
        let target = with("Authorization", "Bearer sesame").unwrap();
        assert_eq!(target.headers["authorization"], "Bearer sesame");
        assert!(!format!("{:?} {target:?}", target.headers).contains("sesame"));
        for (name, value) in
            [("Host", "x"), ("webhook-id", "x"), ("Content-Length", "1"), ("X Y", "x"), ("", "x"), ("x", "a\r\nb: c")]
        {
            assert!(matches!(with(name, value), Err(InvalidWebhook::Header { .. })), "{name}");
        }
    }

    #[test]
    fn filters_are_names() {
        let quiet = WebhookConfig::filter_of(&[]).unwrap();
        assert!(quiet.types().count() > 10 && quiet.types().all(|t| !t.as_str().starts_with("message.")));
        assert_eq!(WebhookConfig::filter_of(&["hub.*".to_owned()]).unwrap().types().count(), 2);
        assert!(WebhookConfig::filter_of(&["hubs".to_owned()]).is_err());
    }

    #[test]
    fn a_changed_secret_is_a_change() {
        let mut config = WebhookConfig::new("https://example.com/");
        config.signing_secrets = vec![SecretString::from("0123456789abcdef")];
        assert!(config.is_same(&config.clone()));
        let mut other = config.clone();
        other.signing_secrets = vec![SecretString::from("0123456789abcdeF")];
        assert!(!config.is_same(&other));
        other.signing_secrets.clear();
        assert!(!config.is_same(&other));
    }
}
