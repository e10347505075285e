//! Sends every message back as it came: what conformance suites talk to, and the smallest server on this crate.
//!
//! ```text
//! cargo run --release -p wsc-transport --example echo -- [--listen 127.0.0.1:9001] [--compression]
//! ```
//!
//! Prints `listening on ADDR`, then serves `/ws` until it is killed. `--compression` agrees to permessage-deflate
//! with those who offer it, for messages of any size.

use std::{env, error::Error, sync::Arc};

use http::Request;
use tokio::net::TcpListener;
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
        let mut frame = text_frame(&mut Vec::new(), |out| out.extend_from_slice(message.as_bytes())).to_vec();
        if let Message::Binary(_) = message {
            // The hub itself never sends binary frames, so there is no function that makes them.
            frame[0] = FINAL_BINARY;
        }
        self.0.send(&frame);
        Next::Read
    }

    fn closed(self, _: DisconnectReason) {}
}

/// The first byte of a whole binary message's only frame (RFC 6455 §5.2).
const FINAL_BINARY: u8 = 0x82;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut address = "127.0.0.1:9001".to_owned();
    let mut config = TransportConfig::default();
    // Suites send up to 16 MiB at once.
    config.max_message_size = 32 << 20;
    config.queue_max_bytes = 32 << 20;
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--listen" => address = arguments.next().ok_or("--listen needs an address")?,
            "--compression" => config.compression_threshold = Some(0),
            other => return Err(format!("unknown argument: {other}").into()),
        }
    }

    let listener = TcpListener::bind(&address).await?;
    #[expect(clippy::print_stdout, reason = "how whoever started it learns the address")]
    {
        println!("listening on {}", listener.local_addr()?);
    }
    let transport = Transport::start("/ws", &config, |_| Arc::new(Echo));
    transport.listen(listener);
    std::future::pending().await
}
