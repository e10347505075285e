//! Sections about the border: limits, authentication, TLS, the HTTP API, webhooks, compression.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::rules;
use crate::schema::section;
use crate::values::{ByteSize, DemoPage, Secret, UserPolicy};

section! {
    /// Limits per user, address and connection.
    pub struct LimitSettings [limits] {
        /// Connections of one user. A lower value applies to newcomers. 0 = no limit.
        user_connections: u64 = "0" in "0"..="1000000" => Live;
        /// What happens to one connection too many of a user: `kick_oldest` closes the user's oldest one,
        /// `refuse` the new one, both with 3505.
        user_policy: UserPolicy = "kick_oldest" => Live;
        /// Connections from one IP address; one more is refused with 3504. Behind a proxy of `trusted_proxies`
        /// the client's own address counts. A lower value applies to newcomers; who came while there was no
        /// limit is not counted. 0 = no limit.
        ip_connections: u64 = "0" in "0"..="10000000" => Live;
        /// Messages per second that one connection may send. More are refused with 1005; more than 10 ×
        /// the burst refused within 10 s close the connection with 3013. 0 = no limit.
        messages_per_second: u64 = "0" in "0"..="10000000" => Live;
        /// Bytes per second that one connection may send, twice as many at once; beyond it as with
        /// `messages_per_second`. 0 = no limit.
        bytes_per_second: u64 = "0" in "0"..="100000000000" => Live;
        /// Messages that one connection may send at once before the rate applies. Not set = twice
        /// `messages_per_second`.
        burst: Option<u64> = "" in "1"..="20000000" => Live;
        /// Upgrade requests per second that this node takes; one over the rate gets 503 with
        /// `Retry-After`. 0 = no limit.
        handshakes_per_second: u64 = "0" in "0"..="1000000" => Live;
        /// Upgrade requests that may be under way; the oldest is cut for a new one.
        /// As many HTTP connections have a place beside them; one more is cut off at once.
        pending_handshakes: u64 = "4096" in "1"..="1000000" => Live;
        /// Rooms that one connection may be in.
        rooms_per_connection: u64 = "100" in "0"..="1000000" => Live;
        /// Messages of one sender that may wait in inboxes.
        stored_per_sender: u64 = "1000" in "0"..="100000000" => Live;
        /// Whether clients may ask for `require_ack`.
        client_require_ack: bool = "true" => Live;
    }
}

impl LimitSettings {
    /// Returns how many messages a connection may send at once: `burst`, or twice the rate where it
    /// is not set; 0 = no limit, as with the rate.
    #[must_use]
    pub fn message_burst(&self) -> u64 {
        match (self.messages_per_second, self.burst) {
            (0, _) => 0,
            (_, Some(burst)) => burst,
            (rate, None) => rate.saturating_mul(2),
        }
    }

    /// Returns how many bytes a connection may send at once: twice the rate; 0 = no limit.
    #[must_use]
    pub fn byte_burst(&self) -> u64 {
        self.bytes_per_second.saturating_mul(2)
    }
}

section! {
    /// Webhooks: events that are posted to a URL, signed as Standard Webhooks has it.
    pub struct CallbackSettings [callbacks] {
        /// Whether events are posted.
        enable_webhooks: bool = "false" => Live;
        /// Where events are posted to: an http or https URL without user name and password. Needed while
        /// webhooks are enabled.
        webhook_url: String = "" where rules::web_url => Live;
        /// Time that one request may take.
        webhook_timeout: Duration = "5s" in "10ms"..="5m" => Live;
        /// Retries of a failed request.
        webhook_retries: u32 = "3" in "0"..="100" => Live;
        /// Events that are posted: names, or groups such as `client.*`. Empty = all but `message.*`.
        event_filters: Vec<String> = "" where rules::event_filters => Live;
        /// Headers that each request carries.
        headers: BTreeMap<String, Secret> = "" where rules::headers => Live;
        /// Secrets that sign requests: `whsec_` and base64, or other text; at least 16 bytes. Several while
        /// one is being replaced: each signs each request.
        signing_secrets: Vec<Secret> = "" where rules::signing_secrets => Live;
        /// Whether the URL may lead to a private or loopback address.
        allow_private_addresses: bool = "false" => Live;
        /// Events in one request, at most.
        batch_max: u32 = "100" in "1"..="10000" => Live;
        /// Time for which events are collected into one request.
        batch_interval: Duration = "50ms" in "0s"..="1m" => Live;
    }
}

section! {
    /// Authentication by token (JWT). One of `secret_key`, `secret_key_file`, `public_key`, `public_key_file` and
    /// `jwks_url` says which tokens are good.
    pub struct AuthSettings [auth] {
        /// Whether a connection needs a token.
        enabled: bool = "false" => Restart;
        /// Whether the hub may listen beyond loopback without authentication.
        allow_insecure: bool = "false" => Restart;
        /// Shared key of HS256, HS384 and HS512 tokens, at least 32 bytes.
        secret_key: Option<Secret> = "" => Live;
        /// File that holds the shared key. It is read again when it changes.
        secret_key_file: Option<PathBuf> = "" => Live;
        /// Public key of RS256, ES256 or EdDSA tokens, as PEM text.
        public_key: Option<String> = "" => Live;
        /// File that holds the public key as PEM. It is read again when it changes.
        public_key_file: Option<PathBuf> = "" => Live;
        /// URL of the key set (JWKS) of an identity provider. Who answers it can mint tokens: beyond a network
        /// of your own it should be https.
        jwks_url: Option<String> = "" where rules::optional_web_url => Live;
        /// Issuer that a token must name. Empty = not checked.
        issuer: String = "wsc" => Live;
        /// Audience that a token must name. Not set = not checked.
        audience: Option<String> = "" => Live;
        /// Difference between clocks that is tolerated.
        leeway: Duration = "0s" in "0s"..="5m" => Live;
        /// Time that a connection outlives its token, in which it may renew it.
        expiry_grace: Duration = "25s" in "0s"..="1h" => Live;
        /// Whether a connection without a token is let in as an anonymous visitor. A bad token is refused
        /// all the same.
        allow_anonymous: bool = "false" => Live;
        /// Permissions of anonymous visitors.
        anonymous_permissions: Vec<String> = "" where rules::permissions => Live;
        /// Origins of web pages that may connect. Empty = the hub's own origin only.
        allowed_origins: Vec<String> = "" where rules::origins => Live;
    }
}

section! {
    /// TLS on the hub's own port. The files are read again when they change.
    pub struct TlsSettings [tls] {
        /// PEM file with the certificate chain.
        cert: Option<PathBuf> = "" => LiveOnceSet;
        /// PEM file with the private key.
        key: Option<PathBuf> = "" => LiveOnceSet;
    }
}

section! {
    /// The HTTP API.
    pub struct HttpSettings [http] {
        /// Largest request body; a larger one gets 413.
        max_body_size: ByteSize = "1MiB" in "1KiB"..="1GiB" => Live;
        /// Time that a client has to send its whole request.
        read_timeout: Duration = "10s" in "10ms"..="10m" => Live;
        /// Time that a request with `"wait": "ack"` waits at most.
        wait_timeout: Duration = "30s" in "10ms"..="10m" => Live;
        /// Requests that may wait for an ACK at the same time.
        max_waiting: u64 = "10000" in "0"..="1000000" => Live;
        /// Host names, besides loopback, that requests may be addressed to while authentication is
        /// off.
        allowed_hosts: Vec<String> = "" where rules::hosts => Live;
        /// Credentials of back ends, at least 16 bytes each.
        api_keys: Vec<Secret> = "" where rules::api_keys => Live;
        /// When the demo page at `/` is served; `auto` = on loopback only.
        demo_page: DemoPage = "auto" => Live;
        /// Address of a second port that alone serves metrics, debug and admin pages. Empty = none.
        internal_listen: Option<SocketAddr> = "" => Restart;
    }
}

section! {
    /// Compression on the wire: permessage-deflate (RFC 7692), each message by itself. Saves bandwidth, costs CPU;
    /// with TLS, do not compress secrets beside text that a stranger chose.
    pub struct CompressionSettings [compression] {
        /// Whether new connections may agree on compression.
        enabled: bool = "false" => Live;
        /// Smallest message that is compressed on its way out.
        threshold: ByteSize = "1KiB" in "0B"..="64MiB" => Live;
    }
}
