//! Coming back, and staying away.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use tokio::io::DuplexStream;
use tokio_tungstenite::tungstenite::Message;
use wsc_client::{Backoff, Builder, Cause, Client, CloseCode, ConnectError, Event, Events, RequestError, RoomNotice};

use crate::hub::{Hub, connected, expect_event, timed};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_cut_connection_comes_back_with_its_rooms() {
    let (mut hub, builder) = Hub::new();
    let (mut peer, client, mut events) = connected(&mut hub, builder).await;
    for room in ["b", "a", "left"] {
        let (joined, _) = tokio::join!(client.join_room(room).into_future(), peer.admit());
        joined.unwrap();
    }
    let leave = async {
        let request = peer.expect("leave_room").await;
        peer.reply(&request, "room_left", json!({"room_id": "left", "status": "left"})).await;
    };
    let (left, ()) = tokio::join!(client.leave_room("left").into_future(), leave);
    left.unwrap();

    peer.cut();
    expect_event!(events, Event::Disconnected { cause: Cause::Lost(_), retry_in, failures: 1 } if retry_in <= SECOND / 2);
    assert!(client.session().is_none());
    let mut peer = hub.accept().await;
    assert_eq!(peer.admit().await, "a");
    assert_eq!(peer.admit().await, "b");
    expect_event!(events, Event::Connected(connected) if connected.reconnected);
    expect_event!(events, Event::Room(RoomNotice::Rejoined { room_id }) if room_id == "a");
    expect_event!(events, Event::Room(RoomNotice::Rejoined { room_id }) if room_id == "b");
    assert_eq!(client.session().unwrap().session, "s1");
}

#[tokio::test(start_paused = true)]
async fn a_room_that_refuses_is_reported_and_the_others_are_not_kept_waiting() {
    let (mut hub, builder) = Hub::new();
    let (mut peer, client, mut events) = connected(&mut hub, builder).await;
    for room in ["busy", "full", "open"] {
        let (joined, _) = tokio::join!(client.join_room(room).into_future(), peer.admit());
        joined.unwrap();
    }
    peer.cut();
    let mut peer = hub.accept().await;
    let busy = peer.expect("join_room").await;
    let full = peer.expect("join_room").await;
    peer.refuse(&busy, 1005, true).await;
    peer.refuse(&full, 3002, false).await;
    assert_eq!(peer.admit().await, "open");
    // What may pass is asked for again.
    assert_eq!(peer.admit().await, "busy");
    expect_event!(events, Event::Disconnected { .. });
    expect_event!(events, Event::Connected(_));
    expect_event!(events, Event::Room(RoomNotice::RejoinFailed { room_id, error }) if room_id == "full" && error.code == 3002);
    expect_event!(events, Event::Room(RoomNotice::Rejoined { room_id }) if room_id == "open");
    expect_event!(events, Event::Room(RoomNotice::Rejoined { room_id }) if room_id == "busy");
}

#[tokio::test(start_paused = true)]
async fn who_wants_it_joins_by_hand() {
    let (mut hub, builder) = Hub::new();
    let (mut peer, client, _events) = connected(&mut hub, builder.rejoin(false)).await;
    let (joined, _) = tokio::join!(client.join_room("a").into_future(), peer.admit());
    joined.unwrap();
    peer.cut();
    let mut peer = hub.accept().await;
    client.notify("hello", &1).await.unwrap();
    peer.expect("hello").await;
}

#[tokio::test(start_paused = true)]
async fn a_replaced_client_stays_away() {
    let (mut hub, builder) = Hub::new();
    let (peer, client, mut events) = connected(&mut hub, builder).await;
    peer.close(3502, r#"{"reason":"replaced","reconnect":false}"#).await;
    let closing = expect_event!(events, Event::Closed { cause: Cause::Closed(closing) } => closing);
    assert_eq!((closing.code, closing.reason.as_str()), (CloseCode::REPLACED, "replaced"));
    assert!(events.next().await.is_none());
    assert!(matches!(client.join_room("a").await, Err(RequestError::Closed { sent: false })));
    assert!(client.connected().await.is_err());
    // The same by the number alone, without any reason.
    let (mut other, builder) = Hub::new();
    let (peer, _client, mut events) = connected(&mut other, builder).await;
    peer.close(4500, "").await;
    expect_event!(events, Event::Closed { .. });
    assert!(hub.is_left_alone().await && other.is_left_alone().await);
}

#[tokio::test(start_paused = true)]
async fn a_draining_hub_says_how_long_to_stay_away() {
    let (mut hub, builder) = Hub::new();
    let (peer, _client, mut events) = connected(&mut hub, builder).await;
    peer.close(3001, r#"{"reason":"bye","reconnect":true,"retry_after_ms":60000}"#).await;
    let retry_in = expect_event!(events, Event::Disconnected { retry_in, .. } => retry_in);
    assert!(retry_in >= 60 * SECOND && retry_in <= 60 * SECOND + SECOND / 2, "{retry_in:?}");
    let (_, waited) = timed(hub.accept()).await;
    // The clock of the runtime has a grain of a millisecond.
    assert!(waited + Duration::from_millis(2) >= 60 * SECOND, "{waited:?}");
    expect_event!(events, Event::Connected(_));
}

#[tokio::test(start_paused = true)]
async fn a_busy_hub_is_asked_again_when_it_says() {
    let (mut hub, builder) = Hub::new();
    let (_client, mut events) = builder.start().unwrap();
    hub.refuse("HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\nContent-Length: 2\r\n\r\n{}").await;
    let (_, waited) = timed(hub.accept()).await;
    assert!(waited + Duration::from_millis(2) >= 7 * SECOND && waited <= 8 * SECOND, "{waited:?}");
    expect_event!(events, Event::Disconnected { cause: Cause::Refused { status: 503, .. }, .. });
    expect_event!(events, Event::Connected(connected) if !connected.reconnected);
}

#[tokio::test(start_paused = true)]
async fn a_hub_that_refuses_is_left_alone() {
    const BODY: &str = r#"{"error":{"code":1001,"message":"no"}}"#;
    for status in ["400 Bad Request", "401 Unauthorized", "403 Forbidden", "404 Not Found"] {
        let (mut hub, builder) = Hub::new();
        let (_client, mut events) = builder.start().unwrap();
        hub.refuse(&format!("HTTP/1.1 {status}\r\n\r\n{BODY}")).await;
        let status: u16 = status[..3].parse().unwrap();
        expect_event!(events, Event::Closed { cause: Cause::Refused { status: s, error, .. } } if s == status && error.as_ref().unwrap().message == "no");
        assert!(hub.is_left_alone().await, "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hub_that_never_answers_is_given_up_and_tried_again() {
    let (mut hub, builder) = Hub::new();
    let (client, mut events) = builder.connect_timeout(5 * SECOND).start().unwrap();
    // It accepts and says nothing.
    let silent: DuplexStream = hub.dialled().await;
    let ((), waited) = timed(async { expect_event!(events, Event::Disconnected { cause: Cause::Timeout, .. }) }).await;
    assert!(waited >= 5 * SECOND && waited < 6 * SECOND, "{waited:?}");
    drop(silent);
    // It upgrades and says nothing.
    let silent = hub.upgrade().await;
    expect_event!(events, Event::Disconnected { cause: Cause::Timeout, failures: 2, .. });
    drop(silent);
    let peer = hub.accept().await;
    client.connected().await.unwrap();
    drop(peer);
}

#[tokio::test(start_paused = true)]
async fn a_hub_that_went_silent_is_pinged_and_then_given_up() {
    let (mut hub, builder) = Hub::new();
    let (mut peer, _client, mut events) = connected(&mut hub, builder).await;
    // 25 s by the hub's own word, 5 s of margin.
    let (ping, waited) = timed(peer.frame()).await;
    assert!(matches!(ping, Message::Ping(_)), "{ping:?}");
    assert!(waited >= 29 * SECOND && waited <= 31 * SECOND, "{waited:?}");
    // The pong went out while reading the next frame, and the client is content for another round.
    let (ping, waited) = timed(peer.frame()).await;
    assert!(matches!(ping, Message::Ping(_)) && waited >= 29 * SECOND, "{ping:?} after {waited:?}");
    // From now on nobody reads, so nobody answers.
    let ((), waited) = timed(async { expect_event!(events, Event::Disconnected { cause: Cause::Silent, .. }) }).await;
    assert!(waited >= 9 * SECOND && waited <= 11 * SECOND, "{waited:?}");
    hub.accept().await;
    drop(peer);
}

#[tokio::test(start_paused = true)]
async fn each_connection_has_a_token_of_its_own() {
    let (mut hub, builder) = Hub::new();
    let count = Arc::new(AtomicU32::new(0));
    let builder = builder.token_provider(move || {
        let n = count.fetch_add(1, Ordering::Relaxed) + 1;
        async move { if n == 2 { Err("the shop is closed".into()) } else { Ok(format!("token-{n}")) } }
    });
    let (peer, _client, mut events) = connected(&mut hub, builder).await;
    assert_eq!(peer.authorization.as_deref(), Some("Bearer token-1"));
    assert_eq!(peer.target, "/ws?user_id=alice");
    peer.close(3005, r#"{"reason":"token expired","reconnect":true}"#).await;
    expect_event!(events, Event::Disconnected { cause: Cause::Closed(_), .. });
    expect_event!(events, Event::Disconnected { cause: Cause::Token(_), .. });
    assert_eq!(hub.accept().await.authorization.as_deref(), Some("Bearer token-3"));
}

#[tokio::test(start_paused = true)]
async fn an_expired_token_without_another_is_the_end() {
    let (mut hub, builder) = Hub::new();
    let (peer, _client, mut events) = connected(&mut hub, builder.token("only-one")).await;
    peer.close(3005, r#"{"reason":"token expired","reconnect":true}"#).await;
    expect_event!(events, Event::Closed { cause: Cause::Closed(closing) } if closing.code == CloseCode::TOKEN_EXPIRED);
    assert!(hub.is_left_alone().await);
}

#[tokio::test(start_paused = true)]
async fn a_bad_token_is_refused_behind_the_upgrade() {
    let (mut hub, builder) = Hub::new();
    let refusal = async { hub.upgrade().await.close(3500, r#"{"reason":"bad token","reconnect":false}"#).await };
    let ((), connection) = tokio::join!(refusal, builder.token("wrong").connect());
    match connection {
        Err(ConnectError::Failed(Cause::Closed(closing))) => assert_eq!(closing.code, CloseCode::INVALID_TOKEN),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn waits_grow_to_their_cap_and_start_over_after_a_stable_connection() {
    let refusing = Arc::new(AtomicU32::new(8));
    let (ends, mut accepted) = tokio::sync::mpsc::unbounded_channel();
    let builder = Client::builder("ws://hub.test/ws").backoff(Backoff::new(SECOND, 20 * SECOND)).dial(move || {
        let refuse = refusing.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok();
        let ends = ends.clone();
        async move {
            let (near, far) = tokio::io::duplex(1024);
            if refuse {
                return Err(io::Error::from(io::ErrorKind::ConnectionRefused));
            }
            ends.send(far).map_err(io::Error::other)?;
            Ok(near)
        }
    });
    let (_client, mut events) = builder.start().unwrap();
    for n in 0..8_u32 {
        let cap = (SECOND * 2_u32.pow(n)).min(20 * SECOND);
        expect_event!(events, Event::Disconnected { cause: Cause::Connect(_), retry_in, failures } if retry_in <= cap && failures == n + 1);
    }
    // It never comes further than the stream: that is no stable connection.
    drop(accepted.recv().await);
    expect_event!(events, Event::Disconnected { failures: 9, .. });
}

#[tokio::test(start_paused = true)]
async fn only_a_connection_that_stood_for_a_while_starts_over() {
    let (mut hub, builder) = Hub::new();
    let (peer, _client, mut events) = connected(&mut hub, builder).await;
    peer.cut();
    expect_event!(events, Event::Disconnected { failures: 1, .. });
    hub.accept().await.cut();
    expect_event!(events, Event::Connected(_));
    expect_event!(events, Event::Disconnected { failures: 2, .. });
    let peer = hub.accept().await;
    expect_event!(events, Event::Connected(_));
    tokio::time::advance(11 * SECOND).await;
    peer.cut();
    expect_event!(events, Event::Disconnected { failures: 1, .. });
}

#[tokio::test(start_paused = true)]
async fn the_first_attempt_is_the_callers() {
    let builder = Client::builder("ws://hub.test/ws")
        .dial(|| async { Err::<DuplexStream, _>(io::ErrorKind::ConnectionRefused.into()) });
    assert!(matches!(builder.connect().await, Err(ConnectError::Failed(Cause::Connect(_)))));
}

/// A client that was in these rooms and has lost its connection.
async fn cut_from(rooms: &[&str], hub: &mut Hub, builder: Builder) -> (Client, Events) {
    let (mut peer, client, mut events) = connected(hub, builder).await;
    for room in rooms {
        let (joined, _) = tokio::join!(client.join_room(room).into_future(), peer.admit());
        joined.unwrap();
    }
    peer.cut();
    expect_event!(events, Event::Disconnected { .. });
    (client, events)
}

#[tokio::test(start_paused = true)]
async fn a_room_that_was_left_is_not_joined_again() {
    for code in [3000, 3003] {
        let (mut hub, builder) = Hub::new();
        let (client, _events) = cut_from(&["a"], &mut hub, builder).await;
        let mut peer = hub.accept().await;
        let rejoin = peer.expect("join_room").await;
        peer.refuse(&rejoin, 1003, true).await;
        let leave = async {
            let request = peer.expect("leave_room").await;
            peer.refuse(&request, code, false).await;
        };
        let (left, ()) = tokio::join!(client.leave_room("a").into_future(), leave);
        assert_eq!(left.unwrap_err().hub_error().unwrap().code, code);
        assert!(tokio::time::timeout(60 * SECOND, peer.request()).await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn a_room_is_not_asked_for_before_the_hub_says() {
    let (mut hub, builder) = Hub::new();
    let (_client, mut events) = cut_from(&["a"], &mut hub, builder).await;
    let mut peer = hub.accept().await;
    let rejoin = peer.expect("join_room").await;
    let details = json!({"retry_after_ms": 60_000});
    peer.reply(&rejoin, "error", json!({"code": 1005, "message": "slow", "temporary": true, "details": details})).await;
    let (room, waited) = timed(peer.admit()).await;
    assert!(room == "a" && waited >= 60 * SECOND && waited <= 91 * SECOND, "{waited:?}");
    expect_event!(events, Event::Connected(_));
    expect_event!(events, Event::Room(RoomNotice::Rejoined { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_does_not_say_of_what_loses_no_room() {
    let (mut hub, builder) = Hub::new();
    let (client, mut events) = cut_from(&["a", "b", "c"], &mut hub, builder).await;
    let mut peer = hub.accept().await;
    assert_eq!(peer.admit().await, "a");
    peer.expect("join_room").await;
    peer.expect("join_room").await;
    let details = json!({"retry_after_ms": 100});
    let slow = json!({"code": 1005, "message": "slow", "temporary": true, "details": details});
    peer.send(json!({"message_type": "error", "data": slow})).await;
    // The application need not wait for that.
    client.notify("note", &1).await.unwrap();
    peer.expect("note").await;
    let mut rooms = [peer.admit().await, peer.admit().await];
    rooms.sort();
    assert_eq!(rooms, ["b", "c"]);
    expect_event!(events, Event::Connected(_));
    expect_event!(events, Event::Room(RoomNotice::Rejoined { room_id }) if room_id == "a");
    expect_event!(events, Event::Error(error) if error.code == 1005);
    expect_event!(events, Event::Room(RoomNotice::Rejoined { .. }));
    expect_event!(events, Event::Room(RoomNotice::Rejoined { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_request_for_a_room_that_has_no_answer_is_made_again() {
    let (mut hub, builder) = Hub::new();
    let (_client, _events) = cut_from(&["a"], &mut hub, builder).await;
    let mut peer = hub.accept().await;
    peer.expect("join_room").await;
    let (room, waited) = timed(peer.admit()).await;
    assert!(room == "a" && waited <= 10 * SECOND, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn all_rooms_are_joined_again_before_the_application_goes_on() {
    let rooms: Vec<String> = (0..50).map(|n| format!("r{n:02}")).collect();
    let rooms: Vec<&str> = rooms.iter().map(String::as_str).collect();
    let (mut hub, builder) = Hub::new();
    let (client, _events) = cut_from(&rooms, &mut hub, builder).await;
    client.notify("note", &1).await.unwrap();
    let mut peer = hub.accept().await;
    for room in rooms {
        assert_eq!(peer.admit().await, room);
    }
    peer.expect("note").await;
}
