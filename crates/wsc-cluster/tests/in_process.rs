//! What nodes may rely on.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test, also in a helper")]

use std::sync::Arc;

use bytes::Bytes;
use wsc_cluster::{Bus, BusError, InProcessBus, InProcessNetwork, Reach, Subject, Subscription, inbox};
use wsc_protocol::Id;

fn user(id: &str) -> Subject {
    Subject::User(Id::generated(id))
}

fn room(id: &str) -> Subject {
    Subject::Room(Id::generated(id))
}

fn bytes(n: u32) -> Bytes {
    n.to_be_bytes().to_vec().into()
}

fn number(payload: &[u8]) -> u32 {
    u32::from_be_bytes(payload.try_into().unwrap())
}

async fn publish(bus: &dyn Bus, subject: &Subject, n: u32) -> Reach {
    bus.publish(subject, bytes(n)).await.unwrap()
}

fn waiting(subscription: &mut Subscription) -> Vec<u32> {
    std::iter::from_fn(|| subscription.try_recv()).map(|m| number(&m.payload)).collect()
}

#[tokio::test]
async fn the_publisher_learns_who_took_it_and_hears_nothing_itself() {
    let network = InProcessNetwork::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| network.join(name));
    let bob = user("bob");
    assert_eq!(publish(&a, &bob, 0).await, Reach::NONE);

    let mut own = a.subscribe(bob.clone(), 8).await.unwrap();
    assert!(!publish(&a, &bob, 1).await.is_taken());

    let mut at_b = b.subscribe(bob.clone(), 8).await.unwrap();
    let mut at_c = c.subscribe(bob.clone(), 8).await.unwrap();
    assert_eq!(publish(&a, &bob, 2).await, Reach { taken: 2, missed: 0 });
    assert_eq!(publish(&b, &bob, 3).await.taken, 2);

    assert_eq!((waiting(&mut own), waiting(&mut at_b), waiting(&mut at_c)), (vec![3], vec![2], vec![2, 3]));
}

#[tokio::test]
async fn subjects_are_apart() {
    let network = InProcessNetwork::new();
    let (a, b) = (network.join("a"), network.join("b"));
    let subjects =
        [user("x"), room("x"), Subject::Node(Id::generated("x")), user("x.y"), user("*"), user(">"), Subject::All];
    let mut subscriptions = Vec::new();
    for subject in &subjects {
        subscriptions.push(b.subscribe(subject.clone(), 8).await.unwrap());
    }
    for (n, subject) in (0..).zip(&subjects) {
        assert_eq!(publish(&a, subject, n).await.taken, 1, "{subject}");
    }
    for (n, subscription) in (0..).zip(&mut subscriptions) {
        assert_eq!(waiting(subscription), [n], "{}", subscription.subject());
    }
    assert!(!publish(&a, &user("y"), 9).await.is_taken());
}

#[tokio::test]
async fn a_message_says_where_it_comes_from() {
    let network = InProcessNetwork::new();
    let (a, b) = (network.join("node-a"), network.join("node-b"));
    let mut lobby = b.subscribe(room("lobby"), 8).await.unwrap();
    publish(&a, &room("lobby"), 7).await;
    let message = lobby.recv().await.unwrap();
    assert_eq!((&*message.from, message.subject, number(&message.payload)), ("node-a", room("lobby"), 7));
}

#[tokio::test]
async fn dropping_a_subscription_ends_it() {
    let network = InProcessNetwork::new();
    let (a, b) = (network.join("a"), network.join("b"));
    let first = b.subscribe(user("bob"), 8).await.unwrap();
    let mut second = b.subscribe(user("bob"), 8).await.unwrap();
    assert_eq!(publish(&a, &user("bob"), 1).await.taken, 2);
    drop(first);
    assert_eq!(publish(&a, &user("bob"), 2).await.taken, 1);
    assert_eq!(waiting(&mut second), [1, 2]);
    drop(second);
    assert_eq!(publish(&a, &user("bob"), 3).await, Reach::NONE);
}

#[tokio::test]
async fn a_full_subscriber_misses_and_is_told() {
    let network = InProcessNetwork::new();
    let (a, b, c) = (network.join("a"), network.join("b"), network.join("c"));
    let mut slow = b.subscribe(user("bob"), 2).await.unwrap();
    let mut fast = c.subscribe(user("bob"), 100).await.unwrap();
    let reaches: Vec<_> =
        [publish(&a, &user("bob"), 0).await, publish(&a, &user("bob"), 1).await, publish(&a, &user("bob"), 2).await]
            .into();
    assert_eq!(reaches[1..], [Reach { taken: 2, missed: 0 }, Reach { taken: 1, missed: 1 }]);
    assert_eq!((slow.missed(), fast.missed()), (1, 0));
    assert_eq!(waiting(&mut slow), [0, 1]);
    assert_eq!(waiting(&mut fast), [0, 1, 2]);
    publish(&a, &user("bob"), 3).await;
    assert_eq!(waiting(&mut slow), [3]);
}

#[tokio::test]
async fn many_subjects_share_one_inbox() {
    let network = InProcessNetwork::new();
    let (a, b) = (network.join("a"), network.join("b"));
    let (shared, mut messages) = inbox(8);
    let bob = b.attach(user("bob"), &shared).await.unwrap();
    let lobby = b.attach(room("lobby"), &shared).await.unwrap();
    drop(shared);
    publish(&a, &user("bob"), 1).await;
    publish(&a, &room("lobby"), 2).await;
    drop(bob);
    assert!(!publish(&a, &user("bob"), 3).await.is_taken());
    drop(lobby);
    // What had come is still read; then it is over.
    for expected in [(user("bob"), 1), (room("lobby"), 2)] {
        let message = messages.recv().await.unwrap();
        assert_eq!((message.subject, number(&message.payload)), expected);
    }
    assert!(messages.recv().await.is_none());
    assert_eq!(messages.missed(), 0);
}

#[tokio::test]
async fn a_closed_node_is_gone_for_the_others() {
    let network = InProcessNetwork::new();
    let (a, b) = (network.join("a"), network.join("b"));
    let mut subscription = b.subscribe(user("bob"), 8).await.unwrap();
    publish(&a, &user("bob"), 1).await;
    b.close().await;
    b.close().await;
    assert_eq!(publish(&a, &user("bob"), 2).await, Reach::NONE);
    assert_eq!(number(&subscription.recv().await.unwrap().payload), 1);
    assert!(subscription.recv().await.is_none());
    assert!(matches!(b.subscribe(user("bob"), 8).await, Err(BusError::Closed)));
    assert!(matches!(b.publish(&user("bob"), Bytes::new()).await, Err(BusError::Closed)));
    // Ending the interest of a closed node is nothing special.
    drop(subscription);
    assert_eq!(publish(&a, &user("bob"), 3).await, Reach::NONE);
}

#[tokio::test]
async fn a_dropped_node_is_gone_too() {
    let network = InProcessNetwork::new();
    let (a, b) = (network.join("a"), network.join("b"));
    let mut subscription = b.subscribe(Subject::All, 8).await.unwrap();
    drop(b);
    assert!(!publish(&a, &Subject::All, 1).await.is_taken());
    assert!(subscription.recv().await.is_none());
}

#[tokio::test]
async fn a_hub_of_one_reaches_nobody() {
    let alone: Arc<dyn Bus> = Arc::new(InProcessBus::alone());
    let _own = alone.subscribe(Subject::All, 1).await.unwrap();
    assert_eq!(publish(&*alone, &Subject::All, 1).await, Reach::NONE);
}

/// Several publishers at a time: each one's messages to a subject arrive in its order, whatever the others do.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn order_is_kept_per_publisher_and_subject() {
    const EACH: u32 = 500;
    let network = InProcessNetwork::new();
    let receiver = network.join("receiver");
    let mut subscriptions = Vec::new();
    for subject in [user("bob"), room("lobby")] {
        subscriptions.push(receiver.subscribe(subject, 4 * EACH as usize).await.unwrap());
    }
    let publishers: Vec<_> = ["p0", "p1", "p2"]
        .map(|name| {
            let bus = network.join(name);
            tokio::spawn(async move {
                for n in 0..EACH {
                    assert!(publish(&bus, &user("bob"), n).await.is_taken());
                    assert!(publish(&bus, &room("lobby"), n).await.is_taken());
                    if n % 16 == 0 {
                        tokio::task::yield_now().await;
                    }
                }
            })
        })
        .into();
    for publisher in publishers {
        publisher.await.unwrap();
    }
    for subscription in &mut subscriptions {
        let messages: Vec<_> = std::iter::from_fn(|| subscription.try_recv()).collect();
        assert_eq!(messages.len(), 3 * EACH as usize);
        for name in ["p0", "p1", "p2"] {
            let own = messages.iter().filter(|m| &*m.from == name).map(|m| number(&m.payload));
            assert!(own.eq(0..EACH), "{name} on {}", subscription.subject());
        }
    }
}
