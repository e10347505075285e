//! A program that webhooks are posted to.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, LOCATION, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use standardwebhooks::Webhook;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::wait::WAIT;

/// What a [`WebhookReceiver`] answers to a request.
#[derive(Debug, Clone)]
pub struct Answer {
    what: What,
    headers: Vec<(&'static str, String)>,
    after: Duration,
}

#[derive(Debug, Clone, Copy)]
enum What {
    Status(u16),
    Hang,
    Cut,
}

impl Answer {
    /// This status and an empty body, at once.
    pub const fn status(status: u16) -> Self {
        Self::of(What::Status(status))
    }

    /// A status with `Retry-After`: seconds, or a date.
    pub fn retry_after(status: u16, value: &str) -> Self {
        let mut answer = Self::status(status);
        answer.headers.push((RETRY_AFTER.as_str(), value.to_owned()));
        answer
    }

    /// 307, which would have the same request sent to this place.
    pub fn redirect(location: impl Into<String>) -> Self {
        let mut answer = Self::status(307);
        answer.headers.push((LOCATION.as_str(), location.into()));
        answer
    }

    /// No answer as long as the receiver runs and the client waits.
    pub const fn hang() -> Self {
        Self::of(What::Hang)
    }

    /// The connection is closed after the request was read, without an answer.
    pub const fn cut() -> Self {
        Self::of(What::Cut)
    }

    /// The same, so much later.
    #[must_use]
    pub const fn after(mut self, time: Duration) -> Self {
        self.after = time;
        self
    }

    const fn of(what: What) -> Self {
        Self { what, headers: Vec::new(), after: Duration::ZERO }
    }
}

/// One request that came.
#[derive(Debug, Clone)]
pub struct Post {
    /// The method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, byte for byte.
    pub body: Vec<u8>,
    /// When it had been read whole.
    pub at: Instant,
    /// The status that it is answered with; `None` where it has no answer, or none yet.
    pub status: Option<u16>,
}

impl Post {
    /// The first header of that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The body as JSON.
    ///
    /// # Panics
    ///
    /// When it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("no JSON body ({error}) in {self:?}"))
    }

    /// The `id` of the body.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn id(&self) -> String {
        self.json()["id"].as_str().unwrap_or_else(|| panic!("no id in {self:?}")).to_owned()
    }

    /// The events of the body.
    ///
    /// # Panics
    ///
    /// When the body has no list of events.
    pub fn events(&self) -> Vec<Value> {
        self.json()["events"].as_array().unwrap_or_else(|| panic!("no events in {self:?}")).clone()
    }

    /// Whether it was answered with 2xx.
    pub fn is_taken(&self) -> bool {
        self.status.is_some_and(|status| (200..300).contains(&status))
    }

    /// Verifies the signature as the library of Standard Webhooks does, the age of the timestamp included.
    ///
    /// A `secret` that starts with `whsec_` is base64, any other one is taken byte for byte.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn verify(&self, secret: &str) -> Result<(), String> {
        let webhook = match secret.strip_prefix("whsec_") {
            Some(_) => Webhook::new(secret),
            None => Webhook::from_bytes(secret.as_bytes().to_vec()),
        };
        webhook.and_then(|webhook| webhook.verify(&self.body, &self.headers)).map_err(|error| error.to_string())
    }
}

/// A loopback HTTP server that remembers what is posted to it, and answers as a test tells it.
///
/// It answers 200 until it is told otherwise. It has an address of its own in 127.0.0.0/8, so that nobody takes its port
/// while it is stopped.
pub struct WebhookReceiver {
    addr: SocketAddr,
    state: Arc<State>,
    // Dropping it stops it.
    server: Option<Server>,
}

struct Server {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

struct State {
    script: Mutex<Script>,
    posts: watch::Sender<Vec<Post>>,
}

struct Script {
    /// For the next requests, one each.
    next: VecDeque<Answer>,
    /// For all others.
    answer: Box<dyn Fn(&Post) -> Answer + Send>,
}

impl WebhookReceiver {
    /// Starts one.
    ///
    /// # Panics
    ///
    /// When there is no free address.
    pub async fn start() -> Self {
        let script = Script { next: VecDeque::new(), answer: Box::new(|_| Answer::status(200)) };
        let state = Arc::new(State { script: Mutex::new(script), posts: watch::Sender::default() });
        let mut receiver = Self { addr: (own_address(), 0).into(), state, server: None };
        receiver.restart().await;
        receiver
    }

    /// Where it listens.
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The URL to post to, the same after a restart.
    pub fn url(&self) -> String {
        format!("http://{}/hook", self.addr)
    }

    /// Closes its port and cuts all connections. What it remembers stays.
    pub async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            let _ = server.stop.send(());
            let _ = server.task.await;
        }
    }

    /// Listens again, at the same address.
    ///
    /// # Panics
    ///
    /// When it runs, or its address was taken meanwhile.
    pub async fn restart(&mut self) {
        assert!(self.server.is_none(), "the receiver runs");
        let listener = TcpListener::bind(self.addr).await;
        let listener = listener.unwrap_or_else(|error| panic!("cannot listen on {}: {error}", self.addr));
        self.addr = listener.local_addr().expect("the address of a listener");
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(serve(listener, Arc::clone(&self.state), stopped));
        self.server = Some(Server { stop, task });
    }

    /// Answers like this from now on.
    pub fn answer(&self, answer: Answer) {
        self.answer_with(move |_| answer.clone());
    }

    /// Answers each request from now on as `answer` says.
    pub fn answer_with(&self, answer: impl Fn(&Post) -> Answer + Send + 'static) {
        self.state.script().answer = Box::new(answer);
    }

    /// Answers the next requests with these, and goes on as before afterwards.
    pub fn answer_next(&self, answers: impl IntoIterator<Item = Answer>) {
        self.state.script().next.extend(answers);
    }

    /// Everything that came so far.
    pub fn posts(&self) -> Vec<Post> {
        self.state.posts.borrow().clone()
    }

    /// All events of requests that were answered with 2xx so far, in the order they came.
    pub fn events(&self) -> Vec<Value> {
        taken(&self.state.posts.borrow())
    }

    /// Waits until what came gives a value.
    ///
    /// # Panics
    ///
    /// When there is none after [`WAIT`], with `what` as the text.
    pub async fn wait<T>(&self, what: &str, probe: impl FnMut(&[Post]) -> Option<T>) -> T {
        self.wait_for_long(WAIT, what, probe).await
    }

    /// As [`WebhookReceiver::wait`], for what may take longer.
    ///
    /// # Panics
    ///
    /// When there is no value after that time, with `what` as the text.
    pub async fn wait_for_long<T>(&self, time: Duration, what: &str, mut probe: impl FnMut(&[Post]) -> Option<T>) -> T {
        let mut posts = self.state.posts.subscribe();
        let mut found = None;
        let search = posts.wait_for(|posts| {
            found = probe(posts);
            found.is_some()
        });
        let ended = tokio::time::timeout(time, search).await.is_ok();
        if !ended {
            panic!("still waiting after {time:?}: {what}; {self}");
        }
        found.expect("the search ends with a value")
    }

    /// Waits for an event for which `is_it` holds, in a request that was answered with 2xx; gives the first.
    ///
    /// # Panics
    ///
    /// As [`WebhookReceiver::wait`].
    pub async fn event(&self, what: &str, mut is_it: impl FnMut(&Value) -> bool) -> Value {
        self.wait(what, |posts| taken(posts).into_iter().find(|event| is_it(event))).await
    }

    /// Waits for so many requests, whatever they were answered; gives all that came.
    ///
    /// # Panics
    ///
    /// As [`WebhookReceiver::wait`].
    pub async fn requests(&self, count: usize) -> Vec<Post> {
        self.wait(&format!("{count} requests"), |posts| (posts.len() >= count).then(|| posts.to_vec())).await
    }
}

impl State {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().expect("no panic while answering")
    }
}

fn taken(posts: &[Post]) -> Vec<Value> {
    posts.iter().filter(|post| post.is_taken()).flat_map(Post::events).collect()
}

/// An address of the loopback network that no other receiver has and no outgoing connection comes from.
fn own_address() -> IpAddr {
    use std::sync::atomic::{AtomicU8, Ordering};
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(127, high | 0x80, low, NEXT.fetch_add(1, Ordering::Relaxed)))
}

async fn serve(listener: TcpListener, state: Arc<State>, mut stopped: oneshot::Receiver<()>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    connections.spawn(connection(stream, Arc::clone(&state)));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    connections.shutdown().await;
}

async fn connection(stream: TcpStream, state: Arc<State>) {
    let service = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move { respond(request, &state).await }
    });
    // A client that goes away, or is sent away, is no failure.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn respond(request: Request<Incoming>, state: &State) -> Result<Response<Full<Bytes>>, io::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let mut post = Post {
        method: head.method.to_string(),
        target: head.uri.to_string(),
        headers: head.headers,
        body: body.to_vec(),
        at: Instant::now(),
        status: None,
    };
    let answer = {
        let mut script = state.script();
        let next = script.next.pop_front();
        next.unwrap_or_else(|| (script.answer)(&post))
    };
    let status = match answer.what {
        What::Status(status) => Some(status),
        What::Hang | What::Cut => None,
    };
    if !answer.after.is_zero() {
        let mut place = 0;
        state.posts.send_modify(|posts| {
            place = posts.len();
            posts.push(post.clone());
        });
        // Whoever does not wait for the answer ends this task: nothing is taken then.
        tokio::time::sleep(answer.after).await;
        state.posts.send_modify(|posts| posts[place].status = status);
    } else {
        post.status = status;
        state.posts.send_modify(|posts| posts.push(post));
    }
    let mut response = Response::builder();
    match answer.what {
        What::Status(status) => response = response.status(status),
        What::Hang => return std::future::pending::<Result<_, Infallible>>().await.map_err(io::Error::other),
        What::Cut => return Err(io::Error::other("cut")),
    }
    for (name, value) in answer.headers {
        response = response.header(name, value);
    }
    response.header(CONTENT_TYPE, "text/plain").body(Full::default()).map_err(io::Error::other)
}

/// What came, for the message of a failure.
impl fmt::Display for WebhookReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let posts = self.state.posts.borrow();
        let from = posts.len().saturating_sub(SHOWN);
        write!(f, "{} requests so far", posts.len())?;
        for post in &posts[from..] {
            let body: String = String::from_utf8_lossy(&post.body).chars().take(600).collect();
            write!(f, "\n  {} {} -> {:?}: {body}", post.method, post.target, post.status)?;
        }
        Ok(())
    }
}

impl fmt::Debug for WebhookReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookReceiver")
            .field("addr", &self.addr)
            .field("posts", &self.state.posts.borrow().len())
            .field("runs", &self.server.is_some())
            .finish_non_exhaustive()
    }
}

/// How many requests a failure shows.
const SHOWN: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{http, try_http};

    const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

    async fn signed(receiver: &WebhookReceiver, body: &str, secret: &str) -> u16 {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
        let signature = Webhook::new(secret).unwrap().sign("msg_1", now, body.as_bytes()).unwrap();
        let (now, url) = (now.to_string(), receiver.url());
        let headers = [("webhook-id", "msg_1"), ("webhook-timestamp", &now), ("webhook-signature", &signature)];
        http("POST", &url, &headers, Some(body.as_bytes())).await.status
    }

    #[tokio::test]
    async fn answers_as_it_is_told_and_remembers() {
        let receiver = WebhookReceiver::start().await;
        receiver.answer_next([Answer::retry_after(503, "7"), Answer::redirect("http://elsewhere/")]);
        let url = receiver.url();
        let answer = http("POST", &url, &[], Some(b"{}")).await;
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("7")));
        let answer = http("POST", &url, &[], Some(b"{}")).await;
        assert_eq!((answer.status, answer.header("location")), (307, Some("http://elsewhere/")));
        assert_eq!(signed(&receiver, r#"{"id":"msg_1","events":[{"type":"a"}]}"#, SECRET).await, 200);
        receiver.answer(Answer::cut());
        assert!(try_http("POST", &url, &[], Some(b"{}")).await.is_err());
        let posts = receiver.requests(4).await;
        let statuses: Vec<_> = posts.iter().map(|post| post.status).collect();
        assert_eq!(statuses, [Some(503), Some(307), Some(200), None]);
        assert_eq!(receiver.event("the one that was taken", |event| event["type"] == "a").await["type"], "a");
        assert_eq!(receiver.events().len(), 1);
    }

    #[tokio::test]
    async fn a_signature_is_of_this_secret_and_this_body() {
        let receiver = WebhookReceiver::start().await;
        signed(&receiver, "{}", SECRET).await;
        let mut post = receiver.requests(1).await.remove(0);
        assert_eq!(post.verify(SECRET), Ok(()));
        assert!(post.verify("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").is_err());
        post.body = b"{ }".to_vec();
        assert!(post.verify(SECRET).is_err());
    }

    #[tokio::test]
    async fn it_is_gone_while_it_is_stopped_and_comes_back_where_it_was() {
        let mut receiver = WebhookReceiver::start().await;
        let url = receiver.url();
        http("POST", &url, &[], Some(b"{}")).await;
        receiver.stop().await;
        assert!(try_http("POST", &url, &[], Some(b"{}")).await.is_err());
        receiver.restart().await;
        assert_eq!(receiver.url(), url);
        http("POST", &url, &[], Some(b"{}")).await;
        assert_eq!(receiver.posts().len(), 2);
    }
}
