//! Requests and their replies.

use std::time::Duration;

use serde_json::json;
use wsc_client::{ErrorCode, Event, Outcome, Priority, RequestError, RoomOptions};

use crate::hub::{Hub, connected, expect_event, timed};

#[tokio::test(start_paused = true)]
async fn replies_find_their_requests_whatever_their_order() {
    let (mut hub, builder) = Hub::new();
    let (mut peer, client, _events) = connected(&mut hub, builder).await;
    let answers = async {
        let room = peer.expect("room_message").await;
        assert_eq!(room["data"], json!({"room_id": "r", "content": {"text": "hi"}}));
        let direct = peer.expect("direct_message").await;
        assert_eq!(direct["data"], json!({"target_id": "bob", "target_client": "phone", "content": [1, 2]}));
        peer.reply(&direct, "accepted", json!({"id": "2", "outcome": "failed", "reason": "queue_full"})).await;
        peer.reply(&room, "accepted", json!({"id": "1", "recipients": 3})).await;
    };
    let content = json!({"text": "hi"});
    let (room, direct, ()) = tokio::join!(
        biased;
        client.room_message("r", &content).into_future(),
        client.direct_message_to("bob", "phone", &[1, 2]).into_future(),
        answers
    );
    let (room, direct) = (room.unwrap(), direct.unwrap());
    assert_eq!((room.id.as_str(), room.recipients, room.duplicate), ("1", 3, false));
    assert_eq!((direct.outcome, direct.reason.as_deref()), (Outcome::Failed, Some("queue_full")));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_carries_what_the_hub_said() {
    let (mut hub, builder) = Hub::new();
    let (mut peer, client, _events) = connected(&mut hub, builder).await;
    let answer = async {
        let request = peer.expect("create_room").await;
        assert_eq!(request["data"], json!({"room_id": "r", "name": "R", "max_clients": 2}));
        let data = json!({"code": 1005, "message": "slow down", "temporary": true, "details": {"retry_after_ms": 250}});
        peer.reply(&request, "error", data).await;
    };
    let options = RoomOptions::default().name("R").max_clients(2);
    let (refused, ()) = tokio::join!(client.create_room("r", options).into_future(), answer);
    let refused = refused.unwrap_err();
    assert!(refused.is_temporary() && !refused.may_have_been_processed());
    let error = refused.hub_error().unwrap();
    assert!(error.is(ErrorCode::RateLimited));
    assert_eq!(error.retry_after(), Some(Duration::from_millis(250)));
    assert_eq!(refused.to_string(), "slow down (1005)");
}

#[tokio::test(start_paused = true)]
async fn what_a_sender_asks_for_is_on_the_wire() {
    let (mut hub, builder) = Hub::new();
    let (mut peer, client, mut events) = connected(&mut hub, builder).await;
    let answer = async {
        let request = peer.request().await;
        for (field, value) in [("require_ack", json!(true)), ("receipt", json!(true)), ("priority", json!("low"))] {
            assert_eq!(request[field], value, "{request}");
        }
        assert_eq!(request["idempotency_key"], "order-7");
        peer.reply(&request, "accepted", json!({"id": "1", "outcome": "stored", "duplicate": true})).await;
        let recipients = json!([{"user_id": "bob", "outcome": "acked", "attempts": 2}]);
        let outcome = json!({"id": "1", "recipients": recipients});
        peer.send(json!({"message_type": "message_outcome", "data": outcome})).await;
    };
    let request = client.direct_message("bob", "hi").require_ack().receipt().idempotency_key("order-7");
    let (accepted, ()) = tokio::join!(request.priority(Priority::Low).into_future(), answer);
    let accepted = accepted.unwrap();
    assert!(accepted.outcome == Outcome::Stored && accepted.duplicate);
    let status = expect_event!(events, Event::Outcome(status) => status);
    assert_eq!((status.recipients[0].outcome, status.recipients[0].attempts), (Outcome::Acked, 2));
}

#[tokio::test(start_paused = true)]
async fn an_applications_own_request_has_any_reply() {
    let (mut hub, builder) = Hub::new();
    let (mut peer, client, _events) = connected(&mut hub, builder).await;
    let answer = async {
        let request = peer.expect("divide").await;
        peer.reply(&request, "divide", json!({"quotient": 1.5})).await;
        let request = peer.expect("divide").await;
        peer.reply(&request, "pong", json!({"server_ts": 1})).await;
    };
    let ask = async {
        let reply = client.request("divide", &json!({"dividend": 6})).await.unwrap();
        assert_eq!(reply.message_type, "divide");
        assert_eq!(reply.data::<serde_json::Value>().unwrap()["quotient"], 1.5);
        client.request("divide", &()).await.unwrap()
    };
    tokio::join!(answer, ask);
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_so_long_and_no_longer() {
    let (mut hub, builder) = Hub::new();
    let (mut peer, client, _events) = connected(&mut hub, builder).await;
    let (late, waited) = timed(client.join_room("a").timeout(Duration::from_secs(2)).into_future()).await;
    let late = late.unwrap_err();
    assert!(matches!(late, RequestError::Timeout { sent: true }) && late.may_have_been_processed());
    assert!(waited >= Duration::from_secs(2) && waited < Duration::from_secs(3), "{waited:?}");
    // The late reply disturbs nobody, and tells that the client is in the room: it comes back to it.
    assert_eq!(peer.admit().await, "a");
    let (pong, ()) = tokio::join!(client.ping(), async {
        let ping = peer.expect("ping").await;
        peer.reply(&ping, "pong", json!({"ts": 1, "server_ts": 2, "rtt": 1})).await;
    });
    assert_eq!(pong.unwrap().server_ts, 2);
    peer.cut();
    assert_eq!(hub.accept().await.admit().await, "a");
}

#[tokio::test(start_paused = true)]
async fn a_cut_tells_what_may_have_happened() {
    let (mut hub, builder) = Hub::new();
    let (mut peer, client, mut events) = connected(&mut hub, builder).await;
    let cut = async {
        peer.expect("room_message").await;
        peer.cut();
    };
    let (lost, ()) = tokio::join!(client.room_message("r", &1).into_future(), cut);
    let lost = lost.unwrap_err();
    assert!(matches!(lost, RequestError::Disconnected) && lost.may_have_been_processed() && lost.is_temporary());

    // What is asked for meanwhile waits for the next connection.
    expect_event!(events, Event::Disconnected { .. });
    let later = async {
        let mut peer = hub.accept().await;
        let request = peer.expect("room_message").await;
        assert_eq!(request["data"]["content"], 2);
        peer.reply(&request, "accepted", json!({"id": "1", "recipients": 0})).await;
        peer
    };
    let (sent, _peer) = tokio::join!(client.room_message("r", &2).into_future(), later);
    assert_eq!(sent.unwrap().id, "1");
}

#[tokio::test(start_paused = true)]
async fn without_a_hub_nothing_is_sent() {
    let (hub, builder) = Hub::new();
    let (client, _events) = builder.start().unwrap();
    drop(hub);
    let (late, waited) = timed(client.room_message("r", &1).into_future()).await;
    let late = late.unwrap_err();
    assert!(matches!(late, RequestError::Timeout { sent: false }) && !late.may_have_been_processed());
    assert!(waited < Duration::from_secs(11), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn who_gave_up_waiting_for_a_connection_sends_nothing() {
    let (mut hub, builder) = Hub::new();
    let (client, _events) = builder.start().unwrap();
    let stream = hub.dialled().await;
    client.join_room("a").timeout(Duration::from_millis(10)).await.unwrap_err();
    drop(stream);
    let mut peer = hub.accept().await;
    let (_, _) = tokio::join!(client.notify("after", &1), peer.expect("after"));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_would_end_the_connection_is_not_sent() {
    let (mut hub, builder) = Hub::new();
    let (mut peer, client, _events) = connected(&mut hub, builder).await;
    let huge = "x".repeat(64 * 1024);
    let refused = client.room_message("r", &huge).await.unwrap_err();
    assert!(matches!(refused, RequestError::TooLarge { size, limit: 65_536 } if size > 65_536));
    assert!(matches!(client.notify("x", &huge).await, Err(RequestError::TooLarge { .. })));
    let (_, _) = tokio::join!(client.notify("small", &1), peer.expect("small"));
}

#[tokio::test(start_paused = true)]
async fn a_refused_notification_is_an_event() {
    let (mut hub, builder) = Hub::new();
    let (mut peer, client, mut events) = connected(&mut hub, builder).await;
    client.notify("typing", &json!({"room_id": "r"})).await.unwrap();
    let request = peer.expect("typing").await;
    assert_eq!(request["message_id"], json!(null));
    peer.send(json!({"message_type": "error", "data": {"code": 1001, "message": "unknown", "temporary": false}})).await;
    expect_event!(events, Event::Error(error) if error.is(ErrorCode::InvalidFormat));
}

#[tokio::test(start_paused = true)]
async fn both_sides_may_write_more_than_the_streams_take() {
    const MESSAGES: usize = 200;
    let (mut hub, builder) = Hub::with_buffer(1024);
    let (mut peer, client, mut events) = connected(&mut hub, builder).await;
    let filler = "x".repeat(4000);
    let hub = async {
        // First everything is written, then everything is read: without a client that reads while it writes, nobody
        // would ever get further.
        for n in 0..MESSAGES {
            peer.deliver(&n.to_string(), json!(filler)).await;
        }
        for _ in 0..MESSAGES {
            peer.expect("note").await;
        }
    };
    let writer = async {
        for _ in 0..MESSAGES {
            client.notify("note", &filler).await.unwrap();
        }
    };
    let reader = async {
        for n in 0..MESSAGES {
            expect_event!(events, Event::Delivery(delivery) if delivery.id == n.to_string());
        }
    };
    tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(hub, writer, reader) }).await.unwrap();
}
