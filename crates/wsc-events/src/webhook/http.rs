//! The client that goes over the network.

use std::{
    error::Error,
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use reqwest::{
    Client, Response,
    dns::{Addrs, Name, Resolve, Resolving},
    header::RETRY_AFTER,
    redirect::Policy,
};

use super::{
    address::is_public,
    client::{WebhookAnswer, WebhookClient, WebhookError, WebhookRequest},
    config::literal_address,
};

/// Posts over HTTP and HTTPS, with the certificate authorities of the operating system.
///
/// Redirects are not followed, proxies of the environment are not used, and there are no cookies. Names are looked up
/// by the operating system for each connection, and connections are made only to those of the addresses that are
/// allowed: a name that changes its mind between a check and a connection gains nothing.
#[derive(Default)]
pub struct HttpWebhookClient {
    /// For public addresses only, and for all: a connection of the one must not serve the other. Made when first used.
    clients: Mutex<[Option<Client>; 2]>,
    lookup: Option<Arc<Lookup>>,
}

type Lookup = dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync;

impl HttpWebhookClient {
    /// A client that has not connected yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn client(&self, allow_private: bool) -> Result<Client, WebhookError> {
        let mut clients = self.clients.lock();
        let place = &mut clients[usize::from(allow_private)];
        if let Some(client) = place {
            return Ok(client.clone());
        }
        let lookup = self.lookup.clone().unwrap_or_else(|| Arc::new(|name| system_lookup(name).boxed()));
        let client = Client::builder()
            .dns_resolver(Resolver { lookup, allow_private })
            .no_proxy()
            .redirect(Policy::none())
            // When a request is made again is decided elsewhere.
            .retry(reqwest::retry::never())
            .referer(false)
            .pool_max_idle_per_host(1)
            .pool_idle_timeout(POOL_IDLE)
            .build()
            .map_err(|error| WebhookError::Broken(text_of(&error)))?;
        Ok(place.insert(client).clone())
    }
}

impl fmt::Debug for HttpWebhookClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpWebhookClient").finish_non_exhaustive()
    }
}

#[async_trait]
impl WebhookClient for HttpWebhookClient {
    async fn post(&self, request: WebhookRequest) -> Result<WebhookAnswer, WebhookError> {
        let WebhookRequest { url, headers, body, timeout, allow_private_addresses } = request;
        // Nobody looks up a literal address, so no resolver would see it.
        if let Some(address) = literal_address(&url)
            && !allow_private_addresses
            && !is_public(address)
        {
            return Err(WebhookError::RefusedAddress(NotPublic(vec![address]).to_string()));
        }
        let request = self.client(allow_private_addresses)?.post(url).headers(headers).body(body).timeout(timeout);
        let response = request.send().await.map_err(error_of)?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()).map(str::to_owned);
        Ok(WebhookAnswer { status, retry_after, body: beginning(response).await })
    }
}

/// The beginning of the body. The rest is read too, within limits, because a connection whose answer was read to the
/// end is used again; the status has been said, so it does not matter if the body fails.
async fn beginning(mut response: Response) -> String {
    let (mut kept, mut read) = (Vec::new(), 0);
    while read < MOST_READ
        && let Ok(Some(chunk)) = response.chunk().await
    {
        read += chunk.len();
        kept.extend(chunk.iter().take(MOST_KEPT - kept.len()));
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// Looks names up, and holds back what may not be connected to.
struct Resolver {
    lookup: Arc<Lookup>,
    allow_private: bool,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let found = (self.lookup)(name.as_str().to_owned());
        let allow_private = self.allow_private;
        Box::pin(async move {
            let (allowed, refused): (Vec<_>, Vec<_>) =
                found.await?.into_iter().partition(|address| allow_private || is_public(address.ip()));
            if allowed.is_empty() && !refused.is_empty() {
                return Err(NotPublic(refused.iter().map(SocketAddr::ip).collect()).into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

async fn system_lookup(name: String) -> io::Result<Vec<SocketAddr>> {
    // Port 0 stands for the URL's.
    Ok(tokio::net::lookup_host((name, 0)).await?.collect())
}

/// Where a name leads to that may not be connected to.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not public")]
struct NotPublic(Vec<IpAddr>);

fn error_of(error: reqwest::Error) -> WebhookError {
    // The URL may hold secrets.
    let error = error.without_url();
    let refused = causes(&error).find_map(|cause| cause.downcast_ref::<NotPublic>());
    if let Some(refused) = refused {
        WebhookError::RefusedAddress(refused.to_string())
    } else if error.is_timeout() {
        WebhookError::Timeout
    } else if error.is_connect() {
        WebhookError::Connect(text_of(&error))
    } else {
        WebhookError::Broken(text_of(&error))
    }
}

/// What is furthest down says most: the others say that something below them failed.
fn text_of(error: &reqwest::Error) -> String {
    causes(error).last().map_or_else(|| error.to_string(), ToString::to_string)
}

fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(error.source(), |&error| error.source())
}

/// Bytes of an answer that are read before the connection is given up.
const MOST_READ: usize = 64 << 10;
/// Bytes of an answer that are kept.
const MOST_KEPT: usize = 256;
/// Shorter than what common servers keep a quiet connection for, so that it is seldom they who close it first.
const POOL_IDLE: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;

    fn resolver(answers: Vec<Vec<&'static str>>, allow_private: bool) -> Resolver {
        let answers = Mutex::new(answers.into_iter());
        let lookup = move |_| {
            let addresses = answers.lock().next().unwrap();
            async move { Ok(addresses.iter().map(|a| SocketAddr::new(a.parse().unwrap(), 0)).collect()) }.boxed()
        };
        Resolver { lookup: Arc::new(lookup), allow_private }
    }

    async fn resolve(resolver: &Resolver) -> Result<Vec<String>, String> {
        let found = resolver.resolve("example.com".parse().unwrap()).await;
        found.map(|all| all.map(|a| a.ip().to_string()).collect()).map_err(|error| {
            assert!(error.is::<NotPublic>());
            error.to_string()
        })
    }

    #[tokio::test]
    async fn a_name_that_changes_its_mind_is_checked_at_each_connection() {
        let rebinding = resolver(vec![vec!["8.8.8.8"], vec!["127.0.0.1"], vec!["10.0.0.1", "::1"]], false);
        assert_eq!(resolve(&rebinding).await, Ok(vec!["8.8.8.8".to_owned()]));
        assert_eq!(resolve(&rebinding).await, Err("[127.0.0.1] is not public".to_owned()));
        assert_eq!(resolve(&rebinding).await, Err("[10.0.0.1, ::1] is not public".to_owned()));
    }

    #[tokio::test]
    async fn of_mixed_addresses_the_public_ones_are_left() {
        let answer = vec!["192.168.0.1", "1.1.1.1", "fd00::1", "2600::1"];
        let strict = resolver(vec![answer.clone()], false);
        assert_eq!(resolve(&strict).await, Ok(vec!["1.1.1.1".to_owned(), "2600::1".to_owned()]));
        let lax = resolver(vec![answer], true);
        assert_eq!(resolve(&lax).await.unwrap().len(), 4);
    }

    #[tokio::test]
    async fn the_resolver_is_the_one_that_is_asked() {
        let lookup: Arc<Lookup> = Arc::new(|name| {
            assert_eq!(name, "hooks.example.com");
            async { Ok(vec!["169.254.169.254:0".parse().unwrap()]) }.boxed()
        });
        let client = HttpWebhookClient { lookup: Some(lookup), ..HttpWebhookClient::default() };
        let request = WebhookRequest {
            url: "http://hooks.example.com:9/".parse().unwrap(),
            headers: http::HeaderMap::new(),
            body: Vec::new(),
            timeout: Duration::from_secs(20),
            allow_private_addresses: false,
        };
        let error = client.post(request).await.unwrap_err();
        assert_eq!(error, WebhookError::RefusedAddress("[169.254.169.254] is not public".to_owned()));
    }
}
