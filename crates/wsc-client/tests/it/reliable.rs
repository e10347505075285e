//! Messages that are acknowledged: each arrives once, whatever happens on the way.

use std::{collections::HashMap, time::Duration};

use futures_util::{FutureExt, future::join_all};
use serde_json::json;
use wsc_client::{Backoff, Builder, Client, Delivery, Event, Events, FailureReason, Outcome, RequestError, Resend};

use crate::{
    hub::{Hub, connected, expect_event, soon, timed},
    inbox::{Faults, InboxHub},
};

const SECOND: Duration = Duration::from_secs(1);

/// Passes over everything that is no message.
async fn delivery(events: &mut Events) -> Delivery {
    loop {
        if let Event::Delivery(delivery) = soon(events.next()).await.unwrap() {
            return delivery;
        }
    }
}

async fn client(builder: &Builder, user: &str) -> (Client, Events) {
    let (client, events) = builder.clone().user_id(user).start().unwrap();
    client.connected().await.unwrap();
    (client, events)
}

fn all_acked(messages: usize) -> impl FnMut(&crate::inbox::Store) -> bool {
    move |store| {
        store.messages.len() == messages && store.messages.iter().all(|message| message.outcome == Outcome::Acked)
    }
}

#[tokio::test(start_paused = true)]
async fn every_message_arrives_once_whatever_happens_on_the_way() {
    const MESSAGES: usize = 60;
    let (mut restarts, mut faults) = (0, 0);
    for seed in 0..60 {
        let faults_of_seed = Faults {
            seed,
            lost: Some(12),
            unanswered: Some(12),
            restart: Some(25),
            refused: Some(6),
            swallowed: Some(40),
            budget: 40,
        };
        let (hub, builder) = InboxHub::start(faults_of_seed);
        let resend = Resend::default().timeout(4 * 60 * SECOND);
        let builder = builder.backoff(Backoff::new(SECOND / 10, SECOND)).resend(resend);
        let (sender, _) = client(&builder, "alice").await;
        let (receiver, mut events) = client(&builder, "bob").await;
        let sending = join_all((0..MESSAGES).map(|n| sender.direct_message("bob", &n).require_ack().into_future()));
        let receiving = async {
            let mut counts: HashMap<usize, u32> = HashMap::new();
            let mut random = fastrand::Rng::with_seed(seed);
            while counts.len() < MESSAGES {
                let delivery = delivery(&mut events).await;
                *counts.entry(delivery.content().unwrap()).or_default() += 1;
                // Now and then it takes longer than the hub waits.
                if random.u32(0..20) == 0 {
                    tokio::time::sleep(7 * SECOND).await;
                }
                receiver.ack([delivery.id]).unwrap();
            }
            counts
        };
        let (accepted, counts) = tokio::join!(sending, soon(receiving));
        for accepted in accepted {
            accepted.unwrap();
        }
        soon(hub.until(all_acked(MESSAGES))).await;
        assert!(counts.values().all(|count| *count == 1), "seed {seed}: {counts:?}");
        // Nor does a copy come later.
        let more = async { delivery(&mut events).await };
        assert!(tokio::time::timeout(10 * 60 * SECOND, more).await.is_err(), "seed {seed}");
        restarts += hub.read(|store| store.restarts);
        faults += hub.read(|store| store.faults);
    }
    assert!(restarts > 100 && faults > 1000, "{restarts} restarts, {faults} faults: too quiet to prove anything");
}

/// The same on several threads and by the real clock: what the application says meets what comes at the same moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn every_message_arrives_once_on_many_threads() {
    const MESSAGES: usize = 200;
    for seed in 0..5 {
        let (lost, unanswered, restart) = (Some(20), Some(20), Some(60));
        let (hub, builder) =
            InboxHub::start(Faults { seed, lost, unanswered, restart, budget: 40, ..Faults::default() });
        let builder = builder.backoff(Backoff::new(SECOND / 1000, SECOND / 100));
        let (sender, _) = client(&builder, "alice").await;
        let (receiver, mut events) = client(&builder, "bob").await;
        let sending = (0..MESSAGES).map(|n| tokio::spawn(sender.direct_message("bob", &n).require_ack().into_future()));
        let sending = join_all(sending);
        let receiving = tokio::spawn(async move {
            let mut counts = vec![0; MESSAGES];
            while counts.contains(&0) {
                let delivery = delivery(&mut events).await;
                counts[delivery.content::<usize>().unwrap()] += 1;
                // Acknowledged by somebody else, at whatever time.
                let receiver = receiver.clone();
                tokio::spawn(async move { receiver.ack([delivery.id]).unwrap() });
            }
            (counts, receiver, events)
        });
        let all = async {
            for accepted in sending.await {
                accepted.unwrap().unwrap();
            }
            let received = receiving.await.unwrap();
            hub.until(all_acked(MESSAGES)).await;
            received
        };
        let (counts, _receiver, mut events) = tokio::time::timeout(60 * SECOND, all).await.unwrap();
        assert!(counts.iter().all(|count| *count == 1), "seed {seed}: {counts:?}");
        while let Some(event) = events.next().now_or_never() {
            assert!(!matches!(event, Some(Event::Delivery(_))), "seed {seed}: {event:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_of_what_the_application_still_holds_is_neither_shown_nor_acknowledged() {
    let (hub, builder) = InboxHub::start(Faults::default());
    let (sender, _) = client(&builder, "alice").await;
    let (receiver, mut events) = client(&builder, "bob").await;
    sender.direct_message("bob", "hi").require_ack().await.unwrap();
    let held = delivery(&mut events).await;
    // The hub sends it again and again, lets it rest, starts anew and replays it.
    soon(hub.until(|store| store.transmissions >= 6)).await;
    hub.restart();
    soon(hub.until(|store| store.restarts == 1 && store.transmissions >= 8)).await;
    assert_eq!(hub.read(|store| store.ack_frames), 0);
    receiver.ack([held.id]).unwrap();
    soon(hub.until(all_acked(1))).await;
    // Among all that there was no second one.
    sender.direct_message("bob", "next").require_ack().await.unwrap();
    assert_eq!(delivery(&mut events).await.content::<String>().unwrap(), "next");
}

#[tokio::test(start_paused = true)]
async fn what_was_acknowledged_before_a_cut_is_acknowledged_again_and_not_shown() {
    let (hub, builder) = InboxHub::start(Faults { lost: Some(1), ..Faults::default() });
    let (sender, _) = client(&builder, "alice").await;
    let (receiver, mut events) = client(&builder, "bob").await;
    sender.direct_message("bob", "hi").require_ack().await.unwrap();
    let first = delivery(&mut events).await;
    hub.lose_next();
    receiver.ack([first.id]).unwrap();
    // The first acknowledgement is lost; the replay brings the second.
    soon(hub.until(all_acked(1))).await;
    assert_eq!(hub.read(|store| (store.faults, store.transmissions, store.ack_frames)), (1, 2, 1));
    assert!(tokio::time::timeout(60 * SECOND, delivery(&mut events)).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn acknowledgements_wait_a_moment_for_others_while_more_may_come() {
    let (mut hub, builder) = Hub::new();
    let (mut peer, client, mut events) = connected(&mut hub, builder).await;
    for id in ["1", "2", "3"] {
        let mut reliable = crate::hub::delivery(id, &json!("hi"));
        reliable["require_ack"] = json!(true);
        peer.send(reliable).await;
        expect_event!(events, Event::Delivery(_));
    }
    let application = async {
        client.ack(["1"]).unwrap();
        tokio::time::sleep(SECOND / 500).await;
        client.ack(["2"]).unwrap();
    };
    let ((ack, waited), ()) = tokio::join!(timed(peer.expect("ack")), application);
    assert_eq!(ack["data"]["ids"], json!(["1", "2"]));
    assert!(waited >= SECOND / 250 && waited <= SECOND / 50, "{waited:?}");
    // There is nothing left to wait for.
    client.ack(["3"]).unwrap();
    let (ack, waited) = timed(peer.expect("ack")).await;
    assert_eq!((ack["data"]["ids"].clone(), waited), (json!(["3"]), Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn messages_that_waited_for_somebody_come_first_and_in_order() {
    const MESSAGES: usize = 100;
    let (hub, builder) = InboxHub::start(Faults::default());
    let (sender, _) = client(&builder, "alice").await;
    for n in 0..MESSAGES {
        let accepted = sender.direct_message("bob", &n).require_ack().await.unwrap();
        assert_eq!((accepted.outcome, accepted.duplicate), (Outcome::Stored, false));
    }
    hub.restart();
    let (_receiver, mut events) = builder.clone().user_id("bob").auto_ack(true).start().unwrap();
    for n in 0..MESSAGES {
        let delivery = delivery(&mut events).await;
        assert_eq!((delivery.content::<usize>().unwrap(), delivery.require_ack), (n, true));
    }
    tokio::select! {
        _ = events.next() => panic!("that was all"),
        () = hub.until(all_acked(MESSAGES)) => {}
    }
    // Many share a frame: the window is 16.
    let frames = hub.read(|store| store.ack_frames);
    assert!(frames <= 2 * MESSAGES as u32 / 16, "{frames} frames");
}

#[tokio::test(start_paused = true)]
async fn a_sender_learns_what_became_of_its_messages() {
    let (_hub, builder) = InboxHub::start(Faults::default());
    let (sender, mut notices) = client(&builder, "alice").await;
    let accepted = sender.direct_message("bob", "hi").require_ack().receipt().await.unwrap();
    let status = sender.message_status(&accepted.id).await.unwrap();
    assert!(status.of("bob").unwrap().outcome == Outcome::Stored && !status.is_final());
    let (receiver, mut events) = client(&builder, "bob").await;
    receiver.nack([delivery(&mut events).await.id], "no, thanks").unwrap();
    expect_event!(notices, Event::Connected(_));
    let status = expect_event!(notices, Event::Outcome(status) => status);
    let bob = status.of("bob").unwrap();
    assert_eq!((&status.id, bob.outcome, bob.reason.as_deref()), (&accepted.id, Outcome::Rejected, Some("no, thanks")));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_had_no_answer_is_sent_again_under_its_key_and_before_later_ones() {
    let (mut hub, builder) = Hub::new();
    let (mut peer, client, _events) = connected(&mut hub, builder).await;
    let messages = (0..5).map(|n| client.direct_message("bob", &n).require_ack().into_future());
    let later = async {
        // The connection is gone, as far as the client knows.
        while client.session().is_some() {
            tokio::task::yield_now().await;
        }
        client.direct_message("bob", "later").await
    };
    let hub = async {
        let mut keys = Vec::new();
        for n in 0..5 {
            let request = peer.expect("direct_message").await;
            assert_eq!(request["data"]["content"], n);
            keys.push(request["idempotency_key"].as_str().unwrap().to_owned());
        }
        peer.cut();
        let mut peer = hub.accept().await;
        for (n, key) in keys.iter().enumerate() {
            let request = peer.expect("direct_message").await;
            assert_eq!((&request["data"]["content"], &request["idempotency_key"]), (&json!(n), &json!(key)));
            let accepted = json!({"id": n.to_string(), "outcome": "stored", "duplicate": n < 3});
            peer.reply(&request, "accepted", accepted).await;
        }
        let request = peer.expect("direct_message").await;
        assert_eq!((&request["data"]["content"], request.get("idempotency_key")), (&json!("later"), None));
        peer.reply(&request, "accepted", json!({"id": "5", "outcome": "sent"})).await;
        keys
    };
    let (accepted, later, mut keys) = tokio::join!(join_all(messages), later, hub);
    for (n, accepted) in accepted.into_iter().enumerate() {
        let accepted = accepted.unwrap();
        assert_eq!((accepted.id, accepted.duplicate), (n.to_string(), n < 3));
    }
    later.unwrap();
    keys.dedup();
    assert_eq!(keys.len(), 5, "each has a key of its own");
}

#[tokio::test(start_paused = true)]
async fn a_message_that_need_not_be_acknowledged_is_not_sent_twice() {
    let (mut hub, builder) = Hub::new();
    let (mut peer, client, _events) = connected(&mut hub, builder).await;
    let cut = async {
        peer.expect("direct_message").await;
        peer.cut();
        let mut peer = hub.accept().await;
        peer.expect("end").await;
    };
    // Its key does not survive a restart of the hub.
    let sent = async {
        let lost = client.direct_message("bob", "hi").idempotency_key("k").await;
        assert!(matches!(lost, Err(RequestError::Disconnected)));
        client.notify("end", &1).await.unwrap();
    };
    tokio::join!(sent, cut);
}

#[tokio::test(start_paused = true)]
async fn a_hub_that_does_not_answer_is_asked_again() {
    let (mut hub, builder) = Hub::new();
    let (mut peer, client, _events) = connected(&mut hub, builder.request_timeout(3 * SECOND)).await;
    let answer = async {
        let first = peer.expect("room_message").await;
        let (second, waited) = timed(peer.expect("room_message")).await;
        assert!(waited >= 2 * SECOND && waited <= 4 * SECOND, "{waited:?}");
        assert_eq!(first["idempotency_key"], second["idempotency_key"]);
        peer.reply(&second, "accepted", json!({"id": "1", "recipients": 2})).await;
        // However late the other answer comes, it disturbs nobody.
        peer.reply(&first, "accepted", json!({"id": "1", "recipients": 2})).await;
    };
    let (sent, ()) = tokio::join!(client.room_message("r", "hi").require_ack().into_future(), answer);
    assert_eq!(sent.unwrap().recipients, 2);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_may_pass_is_waited_out_and_others_are_returned() {
    let (mut hub, builder) = Hub::new();
    let (mut peer, client, _events) = connected(&mut hub, builder.resend(Resend::default().max_refusals(3))).await;
    let message = || client.direct_message("bob", "hi").require_ack();
    let refusing = async {
        for code in [4003, 1003, 1005] {
            let request = peer.expect("direct_message").await;
            peer.refuse(&request, code, true).await;
        }
        let request = peer.expect("direct_message").await;
        peer.reply(&request, "accepted", json!({"id": "1", "outcome": "stored"})).await;
    };
    let ((sent, waited), ()) = tokio::join!(timed(message().into_future()), refusing);
    assert!(sent.unwrap().outcome == Outcome::Stored && waited <= SECOND, "{waited:?}");

    // Once more than it may be.
    let refusing = async {
        for _ in 0..4 {
            let request = peer.expect("direct_message").await;
            peer.refuse(&request, 4003, true).await;
        }
    };
    let (refused, ()) = tokio::join!(message().into_future(), refusing);
    let refused = refused.unwrap_err();
    assert!(matches!(&refused, RequestError::Refused(error) if error.code == 4003) && refused.is_temporary());

    for code in [1001, 2001, 4001, 4004] {
        let refusing = async {
            let request = peer.expect("direct_message").await;
            peer.refuse(&request, code, false).await;
        };
        let (refused, ()) = tokio::join!(message().into_future(), refusing);
        assert!(matches!(refused, Err(RequestError::Refused(error)) if error.code == code));
    }

    // It was accepted, and failed: that is its fate.
    let failing = async {
        let request = peer.expect("direct_message").await;
        let error = json!({"code": 4003, "message": "full", "temporary": true, "details": {"id": "m1"}});
        peer.reply(&request, "error", error).await;
    };
    let (failed, ()) = tokio::join!(message().into_future(), failing);
    assert_eq!(failed.unwrap_err().hub_error().unwrap().message_id(), Some("m1"));
}

#[tokio::test(start_paused = true)]
async fn the_pause_is_at_least_as_long_as_the_hub_says() {
    let (mut hub, builder) = Hub::new();
    let (mut peer, client, _events) = connected(&mut hub, builder).await;
    let refusing = async {
        let request = peer.expect("direct_message").await;
        let details = json!({"retry_after_ms": 20_000});
        let error = json!({"code": 1005, "message": "slow", "temporary": true, "details": details});
        peer.reply(&request, "error", error).await;
        let (request, waited) = timed(peer.expect("direct_message")).await;
        assert!(waited >= 20 * SECOND && waited <= 21 * SECOND, "{waited:?}");
        peer.reply(&request, "accepted", json!({"id": "1", "outcome": "stored"})).await;
    };
    let (sent, ()) = tokio::join!(client.direct_message("bob", "hi").require_ack().into_future(), refusing);
    sent.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_message_whose_repetition_is_refused_may_have_been_taken() {
    let (mut hub, builder) = Hub::new();
    let (mut peer, client, _events) = connected(&mut hub, builder).await;
    let refusing = async {
        peer.expect("room_message").await;
        peer.cut();
        let mut peer = hub.accept().await;
        let request = peer.expect("room_message").await;
        peer.refuse(&request, 3003, false).await;
    };
    let (refused, ()) = tokio::join!(client.room_message("r", "hi").require_ack().into_future(), refusing);
    let refused = refused.unwrap_err();
    assert!(matches!(&refused, RequestError::RepetitionRefused(error) if error.code == 3003), "{refused:?}");
    assert!(refused.may_have_been_processed() && !refused.is_temporary());
}

#[tokio::test(start_paused = true)]
async fn insisting_has_an_end_and_the_key_is_there_to_go_on() {
    let (mut hub, builder) = Hub::new();
    let (mut peer, client, _events) = connected(&mut hub, builder).await;
    let request = client.direct_message("bob", "hi").require_ack();
    let key = request.key().unwrap().to_owned();
    let gone = async {
        peer.expect("direct_message").await;
        peer.cut();
        // It stays away.
        drop(hub);
    };
    let ((lost, waited), ()) = tokio::join!(timed(request.into_future()), gone);
    assert!(matches!(lost, Err(RequestError::Timeout { sent: true })), "{lost:?}");
    assert!(waited >= 60 * SECOND && waited <= 61 * SECOND, "{waited:?}");
    let later = client.direct_message("bob", "hi").idempotency_key(&key).require_ack().timeout(SECOND);
    assert_eq!(later.key(), Some(&*key));
    assert!(matches!(later.await, Err(RequestError::Timeout { sent: false })));
}

#[tokio::test(start_paused = true)]
async fn a_reason_is_the_hubs_or_the_receivers() {
    let (mut hub, builder) = Hub::new();
    let (mut peer, client, _events) = connected(&mut hub, builder).await;
    let answer = async {
        let request = peer.expect("message_status").await;
        let recipients = json!([
            {"user_id": "bob", "outcome": "failed", "reason": "ack_timeout", "attempts": 4},
            {"user_id": "carol", "outcome": "rejected", "reason": "spam", "attempts": 1},
        ]);
        peer.reply(&request, "message_status", json!({"id": "1", "recipients": recipients})).await;
    };
    let (status, ()) = tokio::join!(client.message_status("1").into_future(), answer);
    let status = status.unwrap();
    assert!(status.is_final() && status.of("dave").is_none());
    assert_eq!(status.of("bob").unwrap().failure(), Some(FailureReason::AckTimeout));
    assert_eq!(status.of("carol").unwrap().failure(), None);
}
