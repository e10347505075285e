//! What the application is told: in order, once, and not faster than it listens.

use std::time::Duration;

use futures_util::FutureExt;
use serde_json::{Value, json};
use wsc_client::{DeliveryKind, Event, RequestError, RoomNotice};

use crate::hub::{Hub, connected, delivery, expect_event};

#[tokio::test(start_paused = true)]
async fn events_come_in_the_order_in_which_they_happened() {
    let (mut hub, builder) = Hub::new();
    let (mut peer, _client, mut events) = connected(&mut hub, builder).await;
    peer.deliver("1", json!({"text": "hi"})).await;
    peer.send(json!({"message_type": "room_joined", "data": {"room_id": "r", "status": "added"}})).await;
    peer.send(json!({"message_type": "gap", "data": {"dropped": 2, "bytes": 3, "since": 4}})).await;
    peer.send(json!({"message_type": "token_expiring", "data": {"expires_at": 5}})).await;
    peer.send(json!({"message_type": "tomorrow", "data": {"x": 1}})).await;
    peer.send(json!({"message_type": "kick_out", "data": {"reason": "enough", "kicked_at": 6}})).await;
    peer.close(3503, r#"{"reason":"enough","reconnect":false}"#).await;

    let delivery = expect_event!(events, Event::Delivery(delivery) => delivery);
    assert_eq!((delivery.kind.clone(), delivery.sender_id.as_str()), (DeliveryKind::Direct, "bob"));
    assert_eq!(delivery.content::<Value>().unwrap()["text"], "hi");
    expect_event!(events, Event::Room(RoomNotice::Added { room_id }) if room_id == "r");
    expect_event!(events, Event::Gap(gap) if gap.dropped == 2);
    expect_event!(events, Event::TokenExpiring { expires_at: 5 });
    expect_event!(events, Event::Other(other) if other.message_type == "tomorrow" && other.data.get() == r#"{"x":1}"#);
    expect_event!(events, Event::KickOut { reason } if reason == "enough");
    expect_event!(events, Event::Closed { .. });
    assert!(events.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_message_comes_once_however_often_it_is_sent() {
    let (mut hub, builder) = Hub::new();
    let (mut peer, client, mut events) = connected(&mut hub, builder).await;
    let mut reliable = delivery("1", &json!("hi"));
    reliable["require_ack"] = json!(true);
    peer.send(reliable.clone()).await;
    let first = expect_event!(events, Event::Delivery(delivery) => delivery);
    assert_eq!((first.attempt, first.require_ack, first.offline), (1, true, false));
    client.ack([&first.id]).unwrap();
    assert_eq!(peer.expect("ack").await["data"]["ids"], json!(["1"]));

    // The hub missed it and sends again, over the next connection: it hears the same answer.
    peer.cut();
    let mut peer = hub.accept().await;
    reliable["attempt"] = json!(2);
    reliable["source"] = json!("offline");
    peer.send(reliable).await;
    assert_eq!(peer.expect("ack").await["data"]["ids"], json!(["1"]));

    // Refused is refused.
    let mut other = delivery("2", &json!("hi"));
    other["require_ack"] = json!(true);
    peer.send(other.clone()).await;
    expect_event!(events, Event::Disconnected { .. });
    expect_event!(events, Event::Connected(_));
    expect_event!(events, Event::Delivery(delivery) if delivery.id == "2");
    client.nack(["2"], "no thanks").unwrap();
    assert_eq!(peer.expect("nack").await["data"], json!({"ids": ["2"], "reason": "no thanks"}));
    peer.send(other).await;
    assert_eq!(peer.expect("nack").await["data"]["reason"], "no thanks");
    peer.deliver("3", json!("next")).await;
    expect_event!(events, Event::Delivery(delivery) if delivery.id == "3");
}

#[tokio::test(start_paused = true)]
async fn who_wants_every_copy_gets_it() {
    let (mut hub, builder) = Hub::new();
    let (mut peer, _client, mut events) = connected(&mut hub, builder.dedup_window(0)).await;
    let mut again = delivery("1", &json!("hi"));
    again["attempt"] = json!(2);
    peer.deliver("1", json!("hi")).await;
    peer.send(again).await;
    expect_event!(events, Event::Delivery(delivery) if delivery.attempt == 1);
    expect_event!(events, Event::Delivery(delivery) if delivery.attempt == 2);
}

#[tokio::test(start_paused = true)]
async fn what_was_taken_is_acknowledged_when_the_next_is_asked_for() {
    let (mut hub, builder) = Hub::new();
    let (mut peer, _client, mut events) = connected(&mut hub, builder.auto_ack(true)).await;
    let mut reliable = delivery("1", &json!("hi"));
    reliable["require_ack"] = json!(true);
    peer.send(reliable).await;
    peer.deliver("plain", json!("hi")).await;
    expect_event!(events, Event::Delivery(delivery) if delivery.id == "1");
    // The application works on it.
    assert!(tokio::time::timeout(Duration::from_secs(5), peer.request()).await.is_err());
    expect_event!(events, Event::Delivery(delivery) if delivery.id == "plain");
    // Asked for, and given up again: what came before is acknowledged all the same, and nothing is lost.
    assert!(events.next().now_or_never().is_none());
    assert_eq!(peer.expect("ack").await["data"]["ids"], json!(["1"]));
    peer.deliver("2", json!("hi")).await;
    expect_event!(events, Event::Delivery(delivery) if delivery.id == "2");
}

#[tokio::test(start_paused = true)]
async fn an_application_that_does_not_listen_stops_the_hub_and_loses_nothing() {
    const MESSAGES: usize = 100;
    let (mut hub, builder) = Hub::with_buffer(4096);
    let (mut peer, client, mut events) = connected(&mut hub, builder.event_buffer(16 * 1024)).await;
    let filler = "x".repeat(1000);
    let mut written = 0;
    // The hub writes until nobody takes any more.
    while tokio::time::timeout(Duration::from_secs(1), peer.deliver(&written.to_string(), json!(filler))).await.is_ok()
    {
        written += 1;
        assert!(written < MESSAGES, "there is no limit");
    }
    // Some twelve events, what the stream takes, and the buffers on both sides.
    assert!((12..=30).contains(&written), "{written}");
    // Requests are still sent.
    client.notify("note", &1).await.unwrap();
    peer.expect("note").await;
    // However long the application takes, it is not the hub's silence.
    assert!(tokio::time::timeout(Duration::from_secs(600), peer.request()).await.is_err());

    let rest = async {
        for n in written + 1..MESSAGES {
            peer.deliver(&n.to_string(), json!(filler)).await;
        }
    };
    let read = async {
        for n in 0..MESSAGES {
            expect_event!(events, Event::Delivery(delivery) if delivery.id == n.to_string());
        }
    };
    tokio::join!(rest, read);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_listened_to_is_not_taken_for_silence() {
    let (mut hub, builder) = Hub::new();
    // Each event takes all the room there is.
    let (mut peer, _client, mut events) = connected(&mut hub, builder.event_buffer(1)).await;
    peer.deliver("1", json!(1)).await;
    peer.deliver("2", json!(2)).await;
    assert!(tokio::time::timeout(Duration::from_secs(600), peer.frame()).await.is_err());
    expect_event!(events, Event::Delivery(delivery) if delivery.id == "1");
    expect_event!(events, Event::Delivery(delivery) if delivery.id == "2");
    // The hub is given its time anew before it is pinged.
    assert!(tokio::time::timeout(Duration::from_secs(20), peer.frame()).await.is_err());
    assert!(tokio::time::timeout(Duration::from_secs(20), peer.frame()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn who_wants_no_events_is_not_held_up_by_them() {
    let (mut hub, builder) = Hub::with_buffer(4096);
    let (mut peer, client, events) = connected(&mut hub, builder.event_buffer(1024)).await;
    drop(events);
    for n in 0..100 {
        peer.deliver(&n.to_string(), json!("x".repeat(1000))).await;
    }
    let (joined, _) = tokio::join!(client.join_room("a").into_future(), peer.admit());
    joined.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_told_and_passed_over() {
    let (mut hub, builder) = Hub::new();
    let (mut peer, _client, mut events) = connected(&mut hub, builder).await;
    let undecodable = json!({"id": "0", "message_type": "direct_message", "data": {"sender_id": 7}});
    for nonsense in [json!([]), json!("x"), json!({"message_type": 1}), json!({"message_type": "gap"}), undecodable] {
        let bytes = nonsense.to_string().len();
        peer.send(nonsense).await;
        expect_event!(events, Event::Unreadable { len } if len == bytes);
    }
    peer.deliver("1", json!(null)).await;
    expect_event!(events, Event::Delivery(delivery) if delivery.id == "1");
}

#[tokio::test(start_paused = true)]
async fn an_application_that_acknowledges_what_it_takes_gets_over_a_cut() {
    const MESSAGES: usize = 156;
    let (mut hub, builder) = Hub::with_buffer(256 * 1024);
    let (mut peer, client, mut events) = connected(&mut hub, builder.event_buffer(64 * 1024)).await;
    // More than the queue of events takes; the last one needs nearly all of it.
    for n in 1..MESSAGES {
        peer.send(reliable(&n.to_string(), &json!("hi"))).await;
    }
    peer.send(reliable("large", &json!("x".repeat(60_000)))).await;
    peer.cut();
    let application = async {
        for _ in 0..MESSAGES {
            let delivery = expect_event!(events, Event::Delivery(delivery) => delivery);
            client.ack([delivery.id]).unwrap();
        }
        expect_event!(events, Event::Disconnected { .. });
        expect_event!(events, Event::Connected(_));
    };
    let (_peer, ()) = tokio::join!(hub.accept(), application);
}

#[tokio::test(start_paused = true)]
async fn settling_waits_for_no_connection() {
    let (mut hub, builder) = Hub::new();
    let (peer, client, mut events) = connected(&mut hub, builder).await;
    peer.cut();
    expect_event!(events, Event::Disconnected { .. });
    for n in 0..2500 {
        client.ack([n.to_string()]).unwrap();
    }
    let mut peer = hub.accept().await;
    for ids in [1000, 1000, 500] {
        assert_eq!(peer.expect("ack").await["data"]["ids"].as_array().unwrap().len(), ids);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_comes_back_while_its_application_sleeps() {
    let (mut hub, builder) = Hub::new();
    // Each event takes all the room there is.
    let (mut peer, client, mut events) = connected(&mut hub, builder.event_buffer(1)).await;
    peer.deliver("1", json!(1)).await;
    for n in 0..20 {
        // Nothing is read, so it is the writing that fails.
        peer.cut();
        client.notify("note", &n).await.unwrap();
        peer = hub.accept().await;
        client.notify("back", &n).await.unwrap();
        while peer.request().await["message_type"] != "back" {}
    }
    // Of all that only the last is told.
    expect_event!(events, Event::Delivery(_));
    expect_event!(events, Event::Disconnected { .. });
    expect_event!(events, Event::Connected(_));
    peer.deliver("2", json!(2)).await;
    expect_event!(events, Event::Delivery(delivery) if delivery.id == "2");
}

#[tokio::test(start_paused = true)]
async fn what_the_application_refuses_is_not_acknowledged_for_it() {
    let (mut hub, builder) = Hub::new();
    let (mut peer, client, mut events) = connected(&mut hub, builder.auto_ack(true)).await;
    peer.send(reliable("1", &json!("hi"))).await;
    expect_event!(events, Event::Delivery(_));
    client.nack(["1"], "no").unwrap();
    assert!(events.next().now_or_never().is_none());
    assert_eq!(peer.expect("nack").await["data"]["ids"], json!(["1"]));
    client.notify("end", &1).await.unwrap();
    peer.expect("end").await;
}

#[tokio::test(start_paused = true)]
async fn acknowledgements_keep_to_the_largest_request() {
    const MESSAGES: usize = 1000;
    const LIMIT: usize = 16 * 1024;
    for by_itself in [true, false] {
        let (mut hub, builder) = Hub::with_buffer(1 << 20);
        let builder = builder.auto_ack(by_itself).max_request_size(LIMIT);
        let (mut peer, client, mut events) = connected(&mut hub, builder).await;
        for n in 0..MESSAGES {
            peer.send(reliable(&format!("0192aaaa-bbbb-7ccc-8ddd-{n:012}"), &json!("hi"))).await;
        }
        peer.cut();
        // What is written to the old connection does not count.
        while client.session().is_some() {
            tokio::task::yield_now().await;
        }
        let mut ids = Vec::new();
        for _ in 0..MESSAGES {
            ids.push(expect_event!(events, Event::Delivery(delivery) => delivery.id));
        }
        if by_itself {
            expect_event!(events, Event::Disconnected { .. });
        } else {
            client.ack(ids).unwrap();
        }
        let mut peer = hub.accept().await;
        let mut acknowledged = 0;
        while acknowledged < MESSAGES {
            let frame = peer.expect("ack").await;
            assert!(frame.to_string().len() <= LIMIT, "{} bytes", frame.to_string().len());
            acknowledged += frame["data"]["ids"].as_array().unwrap().len();
        }
        let refused = client.nack(["1"], &"x".repeat(LIMIT));
        assert!(matches!(refused, Err(RequestError::TooLarge { .. })));
    }
}

fn reliable(id: &str, content: &Value) -> Value {
    let mut delivery = delivery(id, content);
    delivery["require_ack"] = json!(true);
    delivery
}
