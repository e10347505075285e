//! Where a key set comes from.

use std::{error::Error, fmt, time::Duration};

use async_trait::async_trait;
use reqwest::{Client, Response, StatusCode, Url, header, redirect};

use super::JwtError;

/// Longest key set in bytes. The largest providers publish less than a tenth of it.
const MAX_BODY: usize = 256 * 1024;

/// Redirects that are followed.
const MAX_REDIRECTS: usize = 3;

/// Fetches a key set. The caller limits the time.
#[async_trait]
pub(super) trait KeySetSource: Send + Sync + 'static {
    async fn fetch(&self) -> Result<FetchedKeySet, FetchError>;
}

/// A key set as it was answered.
#[derive(Clone, Debug, Default)]
pub(super) struct FetchedKeySet {
    /// The JSON text.
    pub(super) body: Vec<u8>,
    /// How long the provider lets it be kept.
    pub(super) max_age: Option<Duration>,
}

/// Why there is no key set.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("no answer in time")]
    Timeout,
    #[error("answered with status {0}")]
    Status(StatusCode),
    #[error("answered with more than {MAX_BODY} bytes")]
    TooLarge,
    #[error("answered with something that is no key set")]
    NoKeySet(#[source] serde_json::Error),
    #[error("has no key that tokens can be checked with")]
    NoKeys,
    #[error("cannot be asked")]
    Http(#[source] reqwest::Error),
}

/// A provider on the web.
pub(super) struct HttpSource {
    url: Url,
    client: Client,
}

impl HttpSource {
    pub(super) fn new(url: &str) -> Result<Self, JwtError> {
        let url = parse_url(url)?;
        let client = Client::builder()
            .user_agent(concat!("wsc-hub/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::custom(follow))
            // Once in minutes: a connection kept in between would be dead when it is needed.
            .pool_max_idle_per_host(0)
            .build()
            .map_err(|error| JwtError::HttpClient(error.into()))?;
        Ok(Self { url, client })
    }
}

#[async_trait]
impl KeySetSource for HttpSource {
    async fn fetch(&self) -> Result<FetchedKeySet, FetchError> {
        // The address may have a password in it.
        let failed = |error: reqwest::Error| FetchError::Http(error.without_url());
        let accepted = "application/jwk-set+json, application/json";
        let request = self.client.get(self.url.clone()).header(header::ACCEPT, accepted);
        let mut response = request.send().await.map_err(failed)?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status(response.status()));
        }
        let max_age = max_age(&response);
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > MAX_BODY {
                return Err(FetchError::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(FetchedKeySet { body, max_age })
    }
}

/// Says where it is, without password and query.
impl fmt::Debug for HttpSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(&self.url))
    }
}

/// The text of an error and of what caused it.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

/// Reads the address of a key set.
pub(super) fn parse_url(url: &str) -> Result<Url, JwtError> {
    let url = Url::parse(url).map_err(|_| JwtError::KeySetUrl)?;
    let is_web = matches!(url.scheme(), "http" | "https") && url.has_host();
    is_web.then_some(url).ok_or(JwtError::KeySetUrl)
}

/// An address as logs may show it.
pub(super) fn shown(url: &Url) -> String {
    format!("{}{}", url.origin().ascii_serialization(), url.path())
}

/// A few redirects, none of them to a scheme that is less safe, or to a port that was not meant.
fn follow(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let from = attempt.previous().last().map(Url::scheme);
    if attempt.previous().len() > MAX_REDIRECTS {
        attempt.error("too many redirects")
    } else if from != Some(attempt.url().scheme()) {
        attempt.error("redirected to another scheme")
    } else {
        attempt.follow()
    }
}

fn max_age(response: &Response) -> Option<Duration> {
    let directives = response.headers().get_all(header::CACHE_CONTROL).iter();
    directives
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|directive| directive.trim().split_once('='))
        .filter(|(name, _)| name.eq_ignore_ascii_case("max-age"))
        .find_map(|(_, seconds)| seconds.trim_matches('"').parse().ok())
        .map(Duration::from_secs)
}

#[cfg(test)]
mod tests;
