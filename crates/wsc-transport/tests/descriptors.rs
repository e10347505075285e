//! A process that has no descriptors left. By itself, because the limit is the whole process's.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "helpers of tests too say what they expect by panicking")]

use std::{
    fs::File,
    sync::Arc,
    time::{Duration, Instant},
};

use http::Request;
use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    time::{ClockId, clock_gettime},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use wsc_protocol::DisconnectReason;
use wsc_transport::{
    Admission, Handler, Message, Next, Outbound, Peer, Service, Stream, Transport, TransportConfig, text_frame,
};

struct Echo;

impl Service for Echo {
    type Ticket = ();
    type Handler = EchoHandler;

    async fn admit(&self, _: &Request<()>, _: Peer) -> Admission<()> {
        Admission::Accept { ticket: (), subprotocol: None }
    }

    fn open(&self, (): (), outbound: &Outbound) -> EchoHandler {
        EchoHandler(outbound.clone())
    }

    async fn http(&self, _: Stream, _: Peer) {}
}

struct EchoHandler(Outbound);

impl Handler for EchoHandler {
    fn message(&self, message: Message<'_>) -> Next {
        self.0.send(text_frame(&mut Vec::new(), |out| out.extend_from_slice(message.as_bytes())));
        Next::Read
    }

    fn closed(self, _: DisconnectReason) {}
}

async fn upgrade(stream: &mut TcpStream) {
    const REQUEST: &[u8] = b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(REQUEST).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        assert!(stream.read_buf(&mut head).await.unwrap() > 0);
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "));
}

async fn echo(stream: &mut TcpStream) {
    // Masked with nothing.
    stream.write_all(b"\x81\x82\0\0\0\0hi").await.unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"\x81\x02hi");
}

/// How long this process has been computing.
fn computed() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[tokio::test]
async fn without_descriptors_newcomers_wait_and_the_established_go_on() {
    let test = async {
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(100), maximum }).unwrap();
        let transport = Transport::start("/ws", &TransportConfig::default(), |_| Arc::new(Echo));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        transport.listen(listener);
        let mut established = TcpStream::connect(addr).await.unwrap();
        upgrade(&mut established).await;
        let mut others = Vec::new();
        while let Ok(other) = File::open("/dev/null") {
            others.push(other);
        }
        // The last one goes to the client, so there is none to accept it.
        others.pop();
        let mut waits = TcpStream::connect(addr).await.unwrap();
        let failures = || {
            let failures = transport.stats().handshake_failures();
            failures.iter().find(|(reason, _)| *reason == "accept").unwrap().1
        };
        let (begin, computed_before, mut echoes) = (Instant::now(), computed(), 0);
        while failures() < 5 {
            echo(&mut established).await;
            echoes += 1;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // It is tried again at leisure, not in a loop.
        let (took, computed) = (begin.elapsed(), computed() - computed_before);
        assert!(took >= Duration::from_millis(4 * 50), "{took:?}");
        assert!(computed < took / 2, "{computed:?} of {took:?}");
        assert!(echoes > 20, "{echoes}");
        // As soon as there is room again it is let in.
        others.clear();
        upgrade(&mut waits).await;
        echo(&mut waits).await;
        assert_eq!(transport.connections(), 2);
    };
    tokio::time::timeout(Duration::from_secs(60), test).await.unwrap();
}
