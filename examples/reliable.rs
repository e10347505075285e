//! Messages that must not be lost: Alice orders, Bob's cable is pulled, the hub is restarted twice, and Bob sees every
//! order exactly once.
//!
//! ```sh
//! cargo run -p wsc-examples --example reliable
//! ```

#![expect(clippy::print_stdout, reason = "an example talks to its reader")]

use std::{
    collections::BTreeMap,
    io,
    net::{Shutdown, SocketAddr},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{net::TcpStream, sync::watch};
use wsc_client::{Backoff, Client, Event, Events, Outcome};
use wsc_examples::{Error, next_delivery};
use wsc_hub::{EmbeddedInbox, Hub, SendOptions, store::EmbeddedConfig};

/// Orders in all.
const ORDERS: usize = 400;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let directory = tempfile::tempdir()?;
    let mut hub = start_hub(directory.path()).await?;
    let address = hub.listen("127.0.0.1:0".parse()?)?;
    let url = format!("ws://{address}/ws");

    let (alice, alice_events) = Client::builder(&url).user_id("alice").connect().await?;
    let (fates, fates_seen) = watch::channel(BTreeMap::new());
    tokio::spawn(watch_fates(alice_events, fates));

    let cable = Cable::new(address);
    let dial = {
        let cable = cable.clone();
        move || cable.clone().dial()
    };
    let quick = Backoff::new(Duration::from_millis(50), Duration::from_millis(500));
    let (bob, bob_events) = Client::builder(&url).user_id("bob").dial(dial).backoff(quick).connect().await?;
    let (shelf, shelf_seen) = watch::channel(BTreeMap::new());
    tokio::spawn(work(bob.clone(), bob_events, shelf));

    let (progress, mut orders) = watch::channel(0);
    let sending = tokio::spawn(order(alice.clone(), progress));

    orders.wait_for(|sent| *sent >= ORDERS / 4).await?;
    println!("bob's cable is pulled");
    cable.pull();

    orders.wait_for(|sent| *sent >= ORDERS / 2).await?;
    hub = restart(hub, directory.path(), address).await?;

    orders.wait_for(|sent| *sent >= ORDERS * 3 / 4).await?;
    println!("bob's cable is back");
    cable.plug_in();

    // In the middle of what he missed.
    shelf_seen.clone().wait_for(|seen| seen.len() >= ORDERS / 3).await?;
    hub = restart(hub, directory.path(), address).await?;

    let ids = sending.await??;
    let seen = shelf_seen.clone().wait_for(|seen| seen.len() == ORDERS).await?.clone();
    let times = seen.values().max().copied().unwrap_or_default();
    println!("bob has {} different orders, and saw each of them at most {times} time(s)", seen.len());
    assert!((0..ORDERS).all(|order| seen.get(&order) == Some(&1)), "each order exactly once: {seen:?}");

    // What a receipt says comes to whoever is connected; what the hub said while Alice was not, she asks for.
    let mut outcomes: BTreeMap<&str, usize> = BTreeMap::new();
    for id in &ids {
        let receipt = fates_seen.borrow().get(id).copied();
        let outcome = match receipt {
            Some(outcome) => Some(outcome),
            None => alice.message_status(id).await.ok().and_then(|status| Some(status.of("bob")?.outcome)),
        };
        *outcomes.entry(outcome.map_or("settled before the restart", Outcome::as_str)).or_default() += 1;
    }
    println!("what alice knows of their fates: {outcomes:?}");

    // Nothing is left over: somebody who remembers nothing gets only what is new.
    bob.close().await;
    let (bob, mut events) = Client::builder(&url).user_id("bob").connect().await?;
    let options = SendOptions::default().require_ack().idempotency_key("closing-time");
    let receiving = async {
        let delivery = next_delivery(&mut events).await?;
        bob.ack([&delivery.id])?;
        Ok::<_, Error>(delivery)
    };
    let (delivery, result) = tokio::join!(receiving, hub.send_to_user_with_retry("bob", &"we close", &options));
    assert_eq!(delivery?.content::<String>()?, "we close");
    println!("the hub's own message: {result:?}");

    alice.close().await;
    bob.close().await;
    hub.shutdown().await;
    println!("ok: {ORDERS} orders, two restarts, nothing lost and nothing twice");
    Ok(())
}

/// A hub whose inbox is in this directory.
async fn start_hub(directory: &Path) -> Result<Hub, Error> {
    // Reads the file, which is small here; a program with a large one opens it on a thread that may block.
    let (inbox, found) = EmbeddedInbox::open(directory, EmbeddedConfig::default())?;
    println!("a hub starts, with {} message(s) in its inbox", found.messages);
    Ok(Hub::builder().inbox(Arc::new(inbox)).start().await?)
}

/// Ends the hub, and starts another one on what the first left on disk.
async fn restart(hub: Hub, directory: &Path, address: SocketAddr) -> Result<Hub, Error> {
    hub.shutdown().await;
    drop(hub);
    println!("the hub is gone");
    let hub = start_hub(directory).await?;
    hub.listen(address)?;
    println!("the hub is back");
    Ok(hub)
}

/// Alice: each order is accepted before the next is made, so they stay in order.
async fn order(alice: Client, progress: watch::Sender<usize>) -> Result<Vec<String>, Error> {
    let (mut ids, mut stored, mut repeated) = (Vec::new(), 0, 0);
    for order in 0..ORDERS {
        // While the hub is away this waits, and asks again under the same key.
        let accepted = alice.direct_message("bob", &order).require_ack().receipt().await?;
        stored += usize::from(accepted.outcome == Outcome::Stored);
        repeated += usize::from(accepted.duplicate);
        ids.push(accepted.id);
        progress.send_replace(order + 1);
    }
    println!("all {ORDERS} orders were accepted, {stored} while bob was away, {repeated} had to be asked twice");
    Ok(ids)
}

/// Bob: does the work, then acknowledges. Says how often each order was shown to him.
async fn work(bob: Client, mut events: Events, shelf: watch::Sender<BTreeMap<usize, u32>>) {
    while let Some(event) = events.next().await {
        match event {
            Event::Delivery(delivery) => {
                if let Ok(order) = delivery.content() {
                    shelf.send_modify(|shelf| *shelf.entry(order).or_default() += 1);
                }
                // An error means that the client is closed: the hub keeps it for the next time.
                let _ = bob.ack([delivery.id]);
            }
            Event::Connected(connected) if connected.reconnected => println!("bob is connected again"),
            _ => {}
        }
    }
}

/// Alice's receipts.
async fn watch_fates(mut events: Events, fates: watch::Sender<BTreeMap<String, Outcome>>) {
    while let Some(event) = events.next().await {
        if let Event::Outcome(status) = event
            && let Some(bob) = status.of("bob")
        {
            let outcome = bob.outcome;
            fates.send_modify(|fates| {
                fates.insert(status.id, outcome);
            });
        }
    }
}

/// A network cable that can be pulled.
#[derive(Clone)]
struct Cable {
    address: SocketAddr,
    state: Arc<Mutex<CableState>>,
}

#[derive(Default)]
struct CableState {
    pulled: bool,
    stream: Option<std::net::TcpStream>,
}

impl Cable {
    fn new(address: SocketAddr) -> Self {
        Self { address, state: Arc::default() }
    }

    async fn dial(self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(self.address).await?.into_std()?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.pulled {
            return Err(io::ErrorKind::NetworkUnreachable.into());
        }
        state.stream = Some(stream.try_clone()?);
        TcpStream::from_std(stream)
    }

    fn pull(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.pulled = true;
        if let Some(stream) = state.stream.take() {
            // An error means that it was cut already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn plug_in(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).pulled = false;
    }
}
