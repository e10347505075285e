//! Each target as the load tool sees it: a child process that messages travel through.

#![expect(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

use std::{collections::HashMap, process::Stdio, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::TcpStream,
    process::{Child, Command},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{ClientRequestBuilder, Message},
};

#[tokio::test]
async fn messages_travel_through_write_loop() {
    in_time(messages_travel("write-loop")).await;
}

#[tokio::test]
async fn messages_travel_through_tokio_tungstenite() {
    in_time(messages_travel("tokio-tungstenite")).await;
}

#[tokio::test]
async fn messages_travel_through_axum_broadcast() {
    in_time(messages_travel("axum-broadcast")).await;
}

async fn messages_travel(name: &str) {
    let target = Target::start(name).await;
    let mut alice = target.client("alice").await;
    let mut bob = target.client("bob").await;
    let mut carol = target.client("carol").await;

    alice.send(r#"{"message_type":"ping","message_id":7,"data":{"ts":1000}}"#).await;
    let pong = alice.receive().await;
    assert_eq!(
        (&pong["message_type"], &pong["request_id"], &pong["data"]["ts"]),
        (&json!("pong"), &json!(7), &json!(1000))
    );
    assert_eq!(pong["data"]["rtt"], json!(pong["data"]["server_ts"].as_i64().unwrap() - 1000));

    for client in [&mut alice, &mut bob, &mut carol] {
        client.send(r#"{"message_type":"join_room","message_id":"j","data":{"room_id":"r1"}}"#).await;
        let joined = client.receive().await;
        assert_eq!((&joined["message_type"], &joined["request_id"]), (&json!("room_joined"), &json!("j")));
        assert_eq!(joined["data"]["room_id"], "r1");
    }

    alice.send(r#"{"message_type":"room_message","data":{"room_id":"r1","content":{"b":1.0e0,"a":"\u0041"}}}"#).await;
    for client in [&mut bob, &mut carol] {
        let text = client.receive_text().await;
        assert!(text.contains(r#""content":{"b":1.0e0,"a":"\u0041"}"#), "as it was sent: {text}");
        let message: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&message["message_type"], &message["data"]["sender_id"]),
            (&json!("room_message"), &json!("alice"))
        );
        assert_eq!(message["data"]["room_id"], "r1");
        assert_eq!(message["id"].as_str().unwrap().len(), 36);
        assert_eq!(message["timestamp"], message["data"]["timestamp"]);
    }

    // Nothing came to Alice herself, and nothing was accepted without a message id: the next frame is about this one.
    alice.send(r#"{"message_type":"room_message","message_id":8,"data":{"room_id":"r1","content":"hi"}}"#).await;
    let accepted = alice.receive().await;
    assert_eq!((&accepted["message_type"], &accepted["request_id"]), (&json!("accepted"), &json!(8)));
    assert_eq!(accepted["data"]["recipients"], 2);
    assert_eq!(bob.receive().await["data"]["content"], "hi");
    assert_eq!(carol.receive().await["id"], accepted["data"]["id"]);

    bob.send(r#"{"message_type":"direct_message","message_id":9,"data":{"target_id":"alice","content":[1]}}"#).await;
    let accepted = bob.receive().await;
    assert_eq!((&accepted["message_type"], &accepted["request_id"]), (&json!("accepted"), &json!(9)));
    let direct = alice.receive().await;
    assert_eq!((&direct["message_type"], &direct["data"]["sender_id"]), (&json!("direct_message"), &json!("bob")));
    assert_eq!((&direct["id"], &direct["data"]["content"]), (&accepted["data"]["id"], &json!([1])));

    // Who left gets nothing more and is not counted.
    carol.socket.close(None).await.unwrap();
    while carol.socket.next().await.is_some() {}
    bob.send(r#"{"message_type":"direct_message","message_id":10,"data":{"target_id":"carol","content":1}}"#).await;
    let mut answer = bob.receive().await;
    while answer["message_type"] == "accepted" {
        // The server may see the end of the one connection after the request on the other.
        bob.send(r#"{"message_type":"direct_message","message_id":10,"data":{"target_id":"carol","content":1}}"#).await;
        answer = bob.receive().await;
    }
    assert_eq!((&answer["message_type"], &answer["data"]["code"]), (&json!("error"), &json!(4001)));

    alice.send("no JSON").await;
    assert_eq!(alice.receive().await["data"]["code"], 1001);
}

/// Several messages in one read of the server's: everybody but their sender gets all of them, in order.
#[tokio::test]
async fn write_loop_writes_what_came_together() {
    in_time(async {
        let target = Target::start("write-loop").await;
        let mut alice = target.client("alice").await;
        let mut bob = target.client("bob").await;
        let mut carol = target.client("carol").await;
        for client in [&mut alice, &mut bob, &mut carol] {
            client.send(r#"{"message_type":"join_room","data":{"room_id":"r1"}}"#).await;
            client.receive().await;
        }
        for sender in [&mut alice, &mut bob] {
            for n in 0..16 {
                let message = format!(r#"{{"message_type":"room_message","data":{{"room_id":"r1","content":{n}}}}}"#);
                sender.socket.feed(Message::text(message)).await.unwrap();
            }
            sender.socket.flush().await.unwrap();
        }
        let both = ["alice", "bob"].as_slice();
        for (client, senders) in [(&mut alice, &both[1..]), (&mut bob, &both[..1]), (&mut carol, both)] {
            let mut received = HashMap::<_, Vec<_>>::new();
            for _ in 0..16 * senders.len() {
                let mut message = client.receive().await;
                let sender = message["data"]["sender_id"].as_str().unwrap().to_owned();
                received.entry(sender).or_default().push(message["data"]["content"].take());
            }
            for &sender in senders {
                assert_eq!(received.remove(sender), Some((0..16).map(Value::from).collect()));
            }
        }
    })
    .await;
}

/// It has no queues: a member that does not read holds nobody up.
#[tokio::test]
async fn write_loop_loses_what_a_full_socket_does_not_take() {
    in_time(async {
        let target = Target::start("write-loop").await;
        let mut publisher = target.client("publisher").await;
        let mut idle = target.client("idle").await;
        let mut reader = target.client("reader").await;
        for client in [&mut publisher, &mut idle, &mut reader] {
            client.send(r#"{"message_type":"join_room","data":{"room_id":"r1"}}"#).await;
            client.receive().await;
        }
        // More than a socket's two buffers hold; the reader keeps up and so gets all of it.
        let content = "x".repeat(64 << 10);
        for _ in 0..400 {
            publisher
                .send(&format!(r#"{{"message_type":"room_message","data":{{"room_id":"r1","content":"{content}"}}}}"#))
                .await;
            assert_eq!(reader.receive().await["data"]["content"], content);
        }
        // The end may be there already: a message of which half fits is the last.
        let _ = idle.socket.close(None).await;
        let mut received = 0;
        while let Some(Ok(Message::Text(text))) = idle.socket.next().await {
            assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["data"]["content"], content);
            received += 1;
        }
        assert!((1..400).contains(&received), "{received} of 400");
    })
    .await;
}

#[tokio::test]
async fn accept_loop_upgrades_and_closes() {
    in_time(async {
        let target = Target::start("accept-loop").await;
        let mut socket = target.connect("alice").await;
        socket.send(Message::text("anything")).await.unwrap();
        socket.close(None).await.unwrap();
        assert!(matches!(socket.next().await, Some(Ok(Message::Close(_)))));
        assert!(socket.next().await.is_none());
        // The end of one is not the end of all.
        target.connect("bob").await;
    })
    .await;
}

/// A target in a process of its own.
struct Target {
    /// Killed where it is dropped.
    _process: Child,
    address: String,
}

impl Target {
    async fn start(name: &str) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_wsc-bench-targets"))
            .args([name, "--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap()).lines();
        let line = output.next_line().await.unwrap().unwrap();
        let address = line.strip_prefix("listening on ").unwrap().to_owned();
        Self { _process: process, address }
    }

    async fn connect(&self, user: &str) -> WebSocketStream<MaybeTlsStream<TcpStream>> {
        let uri = format!("ws://{}/ws?user_id={user}&client_id=c&device_id=d", self.address);
        let request = ClientRequestBuilder::new(uri.parse().unwrap()).with_sub_protocol("wsc.v1");
        let (socket, response) = connect_async(request).await.unwrap();
        assert_eq!(response.headers()["Sec-WebSocket-Protocol"], "wsc.v1");
        socket
    }

    /// A client that was welcomed under its name.
    async fn client(&self, user: &str) -> Client {
        let mut client = Client { socket: self.connect(user).await };
        let connected = client.receive().await;
        assert_eq!((&connected["message_type"], &connected["data"]["user_id"]), (&json!("connected"), &json!(user)));
        assert_eq!(connected["data"]["client_id"], "c");
        client
    }
}

struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Client {
    async fn send(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    async fn receive_text(&mut self) -> String {
        self.socket.next().await.unwrap().unwrap().into_text().unwrap().as_str().to_owned()
    }

    async fn receive(&mut self) -> Value {
        serde_json::from_str(&self.receive_text().await).unwrap()
    }
}

async fn in_time(test: impl Future<Output = ()>) {
    tokio::time::timeout(Duration::from_secs(60), test).await.expect("nothing happens any more");
}
