//! Requests to the HTTP API, through the hub's own router: nothing ends in a panic, what is accepted is JSON that serde_json
//! takes too, a message's content is kept byte for byte, refusals say what is wrong, and the counters add up.
//!
//! An input is a method, a path with a query, the end of the line, and a body.

use std::{cell::RefCell, net::SocketAddr, sync::Arc};

use axum::{Router, extract::ConnectInfo};
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use tokio::runtime::Runtime;
use tower::ServiceExt;
use wsc_node::{Hub, RoomOptions};
use wsc_protocol::Id;
use wsc_store::{InboxStore, MemoryInbox, ReadLimit};

use crate::json::{Members, depth};

/// Checks one input.
pub fn check(input: &[u8]) {
    let Some(asked) = Asked::parse(input) else { return };
    thread_local! {
        static LAB: RefCell<Option<Lab>> = const { RefCell::new(None) };
    }
    LAB.with_borrow_mut(|lab| {
        let used = lab.get_or_insert_with(Lab::start);
        used.check(&asked);
        used.uses += 1;
        if used.uses % SUM_EVERY == 0 {
            used.check_sum();
        }
        if used.uses >= USES
            && let Some(lab) = lab.take()
        {
            lab.end();
        }
    });
}

/// How many inputs a hub answers. What one leaves behind is there for the next; too much of it would slow them down.
const USES: usize = 200;

/// After how many inputs it is looked whether the counters add up.
const SUM_EVERY: usize = 20;

/// A request.
struct Asked<'i> {
    method: Method,
    uri: Uri,
    body: &'i [u8],
}

impl<'i> Asked<'i> {
    fn parse(input: &'i [u8]) -> Option<Self> {
        let end = input.iter().position(|&byte| byte == b'\n')?;
        let (method, uri) = str::from_utf8(&input[..end]).ok()?.split_once(' ')?;
        let uri: Uri = uri.parse().ok()?;
        // Others are upgrades' and proxies'; servers refuse them.
        let is_path = uri.scheme().is_none() && uri.authority().is_none() && uri.path().starts_with('/');
        is_path.then_some(())?;
        Some(Self { method: method.parse().ok()?, uri, body: &input[end + 1..] })
    }

    fn is_post(&self, path: &str) -> bool {
        self.method == Method::POST && self.uri.path() == path
    }
}

/// A hub that nobody is connected to. Its clock jumps to the next timer where nothing else is left to do.
struct Lab {
    runtime: Runtime,
    hub: Hub,
    /// Made once: describing all routes costs more than answering.
    router: Router,
    inbox: Arc<MemoryInbox>,
    uses: usize,
}

impl Lab {
    fn start() -> Self {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().start_paused(true).build().expect("a runtime");
        let inbox = Arc::new(MemoryInbox::default());
        let hub = runtime.block_on(Hub::builder().inbox(Arc::clone(&inbox) as _).start()).expect("a hub starts");
        hub.create_room(ROOM, RoomOptions::default()).expect("a room");
        let router = hub.router();
        Self { runtime, hub, router, inbox, uses: 0 }
    }

    fn end(self) {
        self.runtime.block_on(self.hub.shutdown());
    }

    /// Asks, and returns status and body.
    fn ask(&self, method: &Method, uri: &Uri, body: &[u8]) -> (StatusCode, bool, Vec<u8>) {
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .extension(ConnectInfo(SocketAddr::from(([127, 0, 0, 1], 4444))))
            .body(Full::from(body.to_vec()))
            .expect("a request");
        self.runtime.block_on(async {
            let answer = self.router.clone().oneshot(request).await.expect("routers do not fail");
            let kind = answer.headers().get(header::CONTENT_TYPE);
            let (status, is_json) = (answer.status(), kind.is_some_and(|kind| kind == "application/json"));
            let body = answer.into_body().collect().await.expect("a whole answer").to_bytes().into();
            (status, is_json, body)
        })
    }

    fn check(&self, asked: &Asked<'_>) {
        let before = asked.is_post(TO_BOB).then(|| self.stored());
        let (status, is_json, answer) = self.ask(&asked.method, &asked.uri, asked.body);
        // A handler's panic is this.
        assert_ne!(status, StatusCode::INTERNAL_SERVER_ERROR, "{}", answer.escape_ascii());
        if is_json && asked.method != Method::HEAD {
            let answer: Value = serde_json::from_slice(&answer).expect("the answer is JSON");
            if status.is_success() {
                self.check_accepted(asked, &answer);
            } else {
                check_refusal(status, &answer);
            }
        }
        if let Some(before) = before {
            self.check_content(asked, status, before);
        }
    }

    fn check_accepted(&self, asked: &Asked<'_>, answer: &Value) {
        let reads_body = [TO_BOB, BATCH, "/api/broadcast", "/api/broadcast/room", "/api/rooms"]
            .into_iter()
            .any(|path| asked.is_post(path));
        if !reads_body {
            return;
        }
        let text = str::from_utf8(asked.body).expect("what is accepted is text");
        let members = Members::parse(text).expect("what is accepted is an object");
        let names: Vec<_> = members.0.iter().map(|(name, _)| name.as_str()).collect();
        assert!(!members.has_double(&names), "a member twice, accepted");
        if let Ok(value) = serde_json::from_str::<Value>(text) {
            assert!(depth(&value) <= MAX_NESTING, "nests too deep, and is accepted");
            if asked.is_post(BATCH) {
                let (messages, results) = (value["messages"].as_array(), answer["results"].as_array());
                let results = results.expect("results");
                assert_eq!(Some(results.len()), messages.map(Vec::len), "a result for each");
                let is_either = |result: &Value| result.get("id").is_some() != result.get("error").is_some();
                assert!(results.iter().all(is_either), "an id or an error: {answer}");
            }
        }
    }

    /// What was accepted for a user who is away is in its inbox as it came; a plain, good body is accepted.
    fn check_content(&self, asked: &Asked<'_>, status: StatusCode, before: u64) {
        let content = str::from_utf8(asked.body).ok().and_then(|text| {
            let members = Members::parse(text).ok()?;
            let value = serde_json::from_str::<Value>(text).ok()?;
            let is_plain = members.0.len() == 1 && depth(&value) <= MAX_NESTING;
            Some((is_plain, members.get("content")?.to_owned()))
        });
        let Some((is_plain, content)) = content else { return };
        if status == StatusCode::ACCEPTED && self.stored() > before {
            let newest = self.newest();
            let is_kept = newest.windows(content.len()).any(|bytes| bytes == content.as_bytes());
            assert!(is_kept, "the content is not in what is kept:\n{}", newest.escape_ascii());
        } else if is_plain {
            // A full inbox, or one message that is larger than any may be.
            assert!(matches!(status.as_u16(), 413 | 503), "a good message is refused with {status}");
        }
    }

    fn stored(&self) -> u64 {
        let bob = Id::new("bob").expect("an id");
        self.runtime.block_on(self.inbox.depth(&bob)).expect("the inbox works").messages
    }

    /// The newest message for Bob.
    fn newest(&self) -> Vec<u8> {
        let bob = Id::new("bob").expect("an id");
        let all = ReadLimit { messages: usize::MAX, bytes: u64::MAX };
        let page = self.runtime.block_on(self.inbox.read(&bob, None, all)).expect("the inbox works");
        page.entries.last().expect("an entry").body.to_vec()
    }

    /// The sum of protocol §4.
    fn check_sum(&self) {
        let (status, _, page) = self.ask(&Method::GET, &Uri::from_static("/metrics"), b"");
        assert_eq!(status, StatusCode::OK);
        let page = str::from_utf8(&page).expect("metrics are text");
        let sum = |name: &str| {
            let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
            let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
            page.lines().filter(of_name).map(|line| value(line).expect("a number")).sum::<f64>()
        };
        let came = sum("wsc_messages_accepted_total") + sum("wsc_messages_recovered_total");
        let went = sum("wsc_messages_total") + sum("wsc_messages_released_total");
        let here = sum("wsc_messages_stored") + sum("wsc_messages_in_flight");
        assert_eq!(came, went + here, "the sum");
    }
}

/// `{"error":{"code","message"}}`, protocol §5.
fn check_refusal(status: StatusCode, answer: &Value) {
    // A sick hub says so without an error.
    if status == StatusCode::SERVICE_UNAVAILABLE && answer.get("status").is_some() {
        return;
    }
    let error = &answer["error"];
    assert!(error["code"].as_u64().is_some_and(|code| (1000..5000).contains(&code)), "{status}: {answer}");
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{status}: {answer}");
}

const TO_BOB: &str = "/api/users/bob/messages";
const BATCH: &str = "/api/messages/batch";

/// A room that is there from the start.
const ROOM: &str = "lobby";

/// How deep frames and bodies may nest.
const MAX_NESTING: usize = 64;
