//! What a client says comes back, however its bytes arrive and over whatever stream.

use futures_util::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};
use wsc_protocol::DisconnectReason;
use wsc_transport::TransportConfig;

use crate::support::{Client, Hub, client_frame, secure, text, within};

/// Everything that an echo can be asked, over an open connection.
async fn converse<S: AsyncRead + AsyncWrite + Unpin>(client: &mut Client<S>) {
    client.say("hi").await;
    assert_eq!(client.text().await, "hi");
    client.say("").await;
    assert_eq!(client.text().await, "");
    client.write(&client_frame(0x82, &[0, 255, 7])).await;
    assert_eq!(client.frame().await, Some((0x82, vec![0, 255, 7])));
    let large = "ä".repeat(32 << 10);
    client.say(&large).await;
    assert_eq!(client.text().await, large);
    // Fragments, with a ping between them, a code point cut in two and an empty one.
    let fragments = [
        client_frame(0x01, b"one \xC3"),
        client_frame(0x89, b"still there?"),
        client_frame(0x00, b"\xA4 two"),
        client_frame(0x00, b""),
        client_frame(0x80, b" three"),
    ];
    client.write(&fragments.concat()).await;
    assert_eq!(client.frame().await, Some((0x8A, b"still there?".to_vec())));
    assert_eq!(client.text().await, "one ä two three");
    // More than one turn takes, in one write; a pong in between is nothing.
    let mut many: Vec<u8> = (0..1_000).flat_map(|n| text(&format!("number {n}"))).collect();
    many.extend(client_frame(0x8A, b""));
    client.write(&many).await;
    for n in 0..1_000 {
        assert_eq!(client.text().await, format!("number {n}"));
    }
}

/// Closes in order from the client's side.
async fn part<S: AsyncRead + AsyncWrite + Unpin>(client: &mut Client<S>) {
    client.write(&client_frame(0x88, &[0x0B, 0xB8, b'o', b'k'])).await;
    assert_eq!(client.close().await, 3000);
    assert_eq!(client.frame().await, None);
}

#[tokio::test]
async fn over_tcp() {
    let hub = Hub::start(&TransportConfig::default());
    let mut client = hub.client().await;
    converse(&mut client).await;
    part(&mut client).await;
    assert_eq!(hub.ended(1).await, [DisconnectReason::ClientRequest]);
    hub.finish().await;
}

#[tokio::test]
async fn over_a_stream_that_somebody_else_accepted() {
    let hub = Hub::start(&TransportConfig::default());
    for size in [1 << 20, 128 << 10] {
        let mut client = hub.adopted(size);
        converse(&mut client).await;
        part(&mut client).await;
    }
    hub.finish().await;
}

#[tokio::test]
async fn over_a_pipe_as_narrow_as_a_byte() {
    let hub = Hub::start(&TransportConfig::default());
    let mut client = hub.adopted(1);
    for n in 0..50 {
        let words = format!("narrow {n}");
        client.say(&words).await;
        assert_eq!(client.text().await, words);
    }
    part(&mut client).await;
    hub.finish().await;
}

#[tokio::test]
async fn byte_by_byte() {
    let hub = Hub::start(&TransportConfig::default());
    let mut client = hub.client().await;
    client.stream.set_nodelay(true).unwrap();
    let bytes = [text("slow"), client_frame(0x01, b"a"), client_frame(0x80, b"b"), text(&"x".repeat(300))].concat();
    for byte in bytes {
        client.write(&[byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(client.text().await, "slow");
    assert_eq!(client.text().await, "ab");
    assert_eq!(client.text().await, "x".repeat(300));
    hub.finish().await;
}

#[tokio::test]
async fn a_frame_may_follow_the_request_at_once() {
    let hub = Hub::start(&TransportConfig::default());
    let mut client = Client::new(hub.tcp().await);
    let more = [client_frame(0x89, b"early"), text("early"), client_frame(0x88, &[0x03, 0xE8])].concat();
    client.upgrade_and("/ws", &more).await;
    assert_eq!(client.frame().await, Some((0x8A, b"early".to_vec())));
    assert_eq!(client.text().await, "early");
    assert_eq!(client.close().await, 1000);
    assert_eq!(client.frame().await, None);
    hub.finish().await;
}

#[tokio::test]
async fn with_a_client_of_tungstenite() {
    let hub = Hub::start(&TransportConfig::default());
    let tcp = TcpStream::connect(hub.addr).await.unwrap();
    let (mut client, _) = tokio_tungstenite::client_async("ws://localhost/ws", tcp).await.unwrap();
    converse_with_tungstenite(&mut client).await;
    hub.finish().await;
}

async fn converse_with_tungstenite<S: AsyncRead + AsyncWrite + Unpin>(client: &mut WebSocketStream<S>) {
    for message in [Message::text("hi"), Message::binary(vec![1, 2, 3]), Message::text("x".repeat(60_000))] {
        client.send(message.clone()).await.unwrap();
        assert_eq!(within("the echo", client.next()).await.unwrap().unwrap(), message);
    }
    client.close(None).await.unwrap();
    // An error would be an end without a farewell, on any layer.
    while let Some(message) = within("the end", client.next()).await {
        message.unwrap();
    }
}

#[tokio::test]
async fn over_tls() {
    let hub = Hub::start(&TransportConfig::default());
    let mut client = Client::new(secure(&hub).await);
    client.upgrade("/ws").await;
    converse(&mut client).await;
    part(&mut client).await;
    hub.finish().await;
}

#[tokio::test]
async fn the_end_is_in_order_over_tls_too() {
    let hub = Hub::start(&TransportConfig::default());
    let tls = secure(&hub).await;
    let (mut client, _) = tokio_tungstenite::client_async("ws://localhost/ws", tls).await.unwrap();
    converse_with_tungstenite(&mut client).await;
    hub.finish().await;
}

#[tokio::test]
async fn what_tls_holds_back_arrives_when_the_peer_reads() {
    let hub = Hub::start(&TransportConfig::default());
    let mut client = Client::new(secure(&hub).await);
    client.upgrade("/ws").await;
    let outbound = hub.newest();
    // Nobody reads, until the socket takes no more and TLS holds the rest while our queue is empty.
    let message = "x".repeat(8 << 10);
    let mut sent = 0;
    let mut idle = 0;
    while outbound.queued().0 == 0 || idle < 100 {
        if outbound.queued().0 == 0 {
            outbound.send(&crate::support::server_frame(0x81, message.as_bytes()));
            sent += 1;
            idle = 0;
        } else {
            idle += 1;
        }
        tokio::task::yield_now().await;
    }
    // It says nothing meanwhile that would wake the connection.
    for _ in 0..sent {
        assert_eq!(client.text().await, message);
    }
    client.stream.flush().await.unwrap();
    hub.finish().await;
}
