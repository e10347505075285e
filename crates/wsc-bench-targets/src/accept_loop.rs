//! The floor of handshakes: what accepting a socket, checking the request and answering `101` costs at least.

use anyhow::Context as _;
use http::header::SEC_WEBSOCKET_PROTOCOL;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tungstenite::handshake::{
    machine::TryParse as _,
    server::{Request, create_response, write_response},
};

use crate::wire;

pub(crate) async fn serve(listener: std::net::TcpListener) -> anyhow::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        // A client that breaks the rules or goes away is its own affair.
        tokio::spawn(async move { handle(stream).await.ok() });
    }
}

async fn handle(mut stream: TcpStream) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    upgrade(&mut stream).await?;
    wait_for_end(&mut stream).await?;
    Ok(())
}

async fn upgrade(stream: &mut TcpStream) -> anyhow::Result<()> {
    let mut head = Vec::with_capacity(1024);
    let request = loop {
        anyhow::ensure!(stream.read_buf(&mut head).await? > 0 && head.len() < MAX_HEAD, "no request");
        if let Some((_, request)) = Request::try_parse(&head)? {
            break request;
        }
    };
    let mut response = create_response(&request).context("no upgrade")?;
    if let Some(subprotocol) = wire::subprotocol(request.headers()) {
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, subprotocol);
    }
    head.clear();
    write_response(&mut head, &response)?;
    stream.write_all(&head).await?;
    Ok(())
}

/// A close frame is answered with one; anything else is read and forgotten.
async fn wait_for_end(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut buffer = [0; 256];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            _ if buffer[0] == CLOSE => return stream.write_all(&[CLOSE, 0]).await,
            _ => {}
        }
    }
}

/// The first byte of a close frame.
const CLOSE: u8 = 0x88;

/// Longest request head, in bytes.
const MAX_HEAD: usize = 16 << 10;
