//! The end of a client.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use serde_json::json;
use wsc_client::{Cause, Event, RequestError};

use crate::hub::{Hub, connected, expect_event, soon, timed};

#[tokio::test(start_paused = true)]
async fn a_close_is_orderly_and_takes_along_what_is_queued() {
    let (mut hub, builder) = Hub::new();
    let (mut peer, client, mut events) = connected(&mut hub, builder).await;
    client.ack(["1"]).unwrap();
    client.notify("last", &"words").await.unwrap();
    let ((), (requests, code)) = tokio::join!(client.close(), peer.read_to_end());
    assert_eq!(code, Some(1000));
    let mut types: Vec<_> = requests.iter().map(|request| request["message_type"].as_str().unwrap()).collect();
    // Between acknowledgements and requests there is no order.
    types.sort_unstable();
    assert_eq!(types, ["ack", "last"]);
    expect_event!(events, Event::Closed { cause: Cause::Requested });
    assert!(events.next().await.is_none());
    assert!(matches!(client.notify("x", &1).await, Err(RequestError::Closed { sent: false })));
    assert!(matches!(client.ack(["2"]), Err(RequestError::Closed { sent: false })));
    // Once more is no harm.
    client.close().await;
    assert!(hub.is_left_alone().await);
}

#[tokio::test(start_paused = true)]
async fn replies_that_are_on_their_way_still_arrive() {
    let (mut hub, builder) = Hub::new();
    let (mut peer, client, _events) = connected(&mut hub, builder).await;
    let ending = async {
        let request = peer.expect("room_message").await;
        let close = client.close();
        let answer = async {
            peer.reply(&request, "accepted", json!({"id": "1", "recipients": 1})).await;
            peer.read_to_end().await
        };
        tokio::join!(close, answer)
    };
    let (sent, _) = tokio::join!(client.room_message("r", &1).into_future(), ending);
    assert_eq!(sent.unwrap().recipients, 1);
}

#[tokio::test(start_paused = true)]
async fn a_hub_that_does_not_say_goodbye_is_left_in_time() {
    let (mut hub, builder) = Hub::with_buffer(1024);
    let (peer, client, _events) = connected(&mut hub, builder).await;
    // More than the stream takes, and nobody reads it.
    for _ in 0..10 {
        client.notify("note", &"x".repeat(1000)).await.unwrap();
    }
    let ((), waited) = timed(client.close()).await;
    assert!(waited <= Duration::from_secs(4), "{waited:?}");
    drop(peer);
}

#[tokio::test(start_paused = true)]
async fn the_last_handle_ends_the_connection() {
    let (mut hub, builder) = Hub::new();
    let (mut peer, client, events) = connected(&mut hub, builder).await;
    let clone = client.clone();
    drop(client);
    drop(events);
    // One handle is left, and works.
    let (joined, _) = tokio::join!(clone.join_room("a").into_future(), peer.admit());
    joined.unwrap();
    drop(clone);
    assert_eq!(peer.read_to_end().await.1, Some(1000));
    assert!(hub.is_left_alone().await);
}

#[tokio::test(start_paused = true)]
async fn a_listener_needs_no_client() {
    let (mut hub, builder) = Hub::new();
    let (mut peer, client, mut events) = connected(&mut hub, builder).await;
    drop(client);
    peer.deliver("1", json!(1)).await;
    expect_event!(events, Event::Delivery(_));
    peer.cut();
    expect_event!(events, Event::Disconnected { .. });
    let mut peer = hub.accept().await;
    expect_event!(events, Event::Connected(_));
    drop(events);
    assert_eq!(peer.read_to_end().await.1, Some(1000));
}

#[tokio::test(start_paused = true)]
async fn a_client_can_be_closed_while_it_waits() {
    let (hub, builder) = Hub::new();
    drop(hub);
    let (client, mut events) = builder.start().unwrap();
    expect_event!(events, Event::Disconnected { .. });
    let waiting = client.room_message("r", &1).timeout(Duration::from_secs(600)).into_future();
    let (sent, ((), waited)) = tokio::join!(waiting, timed(client.close()));
    assert!(matches!(sent, Err(RequestError::Closed { sent: false })));
    assert!(waited < Duration::from_millis(10), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_meets_the_end_says_so() {
    let (mut hub, builder) = Hub::new();
    let (mut peer, client, _events) = connected(&mut hub, builder).await;
    let end = async {
        peer.expect("room_message").await;
        peer.close(3502, r#"{"reason":"replaced","reconnect":false}"#).await;
    };
    let (sent, ()) = tokio::join!(client.room_message("r", &1).into_future(), end);
    let sent = sent.unwrap_err();
    assert!(matches!(sent, RequestError::Closed { sent: true }) && !sent.is_temporary(), "{sent:?}");
}

#[tokio::test(start_paused = true)]
async fn a_token_provider_that_panics_ends_the_client_in_order() {
    let (mut hub, builder) = Hub::new();
    let asked = AtomicU32::new(0);
    let builder = builder.token_provider(move || {
        let first = asked.fetch_add(1, Ordering::Relaxed) == 0;
        async move {
            assert!(first, "no token today");
            Ok("token".to_owned())
        }
    });
    let (peer, client, mut events) = connected(&mut hub, builder).await;
    peer.cut();
    let waiting = client.room_message("r", &1).timeout(Duration::from_secs(24 * 60 * 60)).into_future();
    let (sent, waited) = timed(waiting).await;
    assert!(matches!(sent, Err(RequestError::Disconnected | RequestError::Closed { .. })), "{sent:?}");
    assert!(waited < Duration::from_secs(1), "{waited:?}");
    expect_event!(events, Event::Disconnected { .. });
    expect_event!(events, Event::Closed { cause: Cause::Aborted });
    assert!(events.next().await.is_none() && client.connected().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_notification_that_finds_no_place_fails_in_time() {
    let (hub, builder) = Hub::new();
    drop(hub);
    let (client, _events) = builder.start().unwrap();
    // Who gave up makes room for others.
    for _ in 0..1000 {
        let sent = client.room_message("r", &1).timeout(Duration::from_millis(1)).await;
        assert!(matches!(sent, Err(RequestError::Timeout { sent: false })));
    }
    client.notify("note", &1).await.unwrap();
    let (failed, waited) = timed(async {
        loop {
            if let Err(error) = soon(client.notify("note", &1)).await {
                return error;
            }
        }
    })
    .await;
    assert!(matches!(failed, RequestError::Timeout { sent: false }), "{failed:?}");
    assert!(waited < Duration::from_secs(20), "{waited:?}");
}
