//! The hub is killed, as by `kill -9`, again and again while messages are on their way. It runs as a process of its
//! own: this test program, told so by its environment.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use tokio::sync::watch;
use wsc_client::{Backoff, Client, Events, Outcome};
use wsc_examples::{Error, next_delivery};
use wsc_hub::{EmbeddedInbox, Hub, store::EmbeddedConfig};

const DIRECTORY: &str = "WSC_TEST_HUB_DIRECTORY";
const ADDRESS: &str = "WSC_TEST_HUB_ADDRESS";
const SENDERS: usize = 8;
const EACH: usize = 60;
const KILLS: usize = 6;

/// No test: the process that is killed.
#[test]
fn hub_process() -> Result<(), Error> {
    let (Some(directory), Ok(address)) = (std::env::var_os(DIRECTORY), std::env::var(ADDRESS)) else {
        return Ok(());
    };
    tokio::runtime::Runtime::new()?.block_on(async {
        let (inbox, _) = EmbeddedInbox::open(Path::new(&directory), EmbeddedConfig::default())?;
        let hub = Hub::builder().inbox(Arc::new(inbox)).start().await?;
        // While nobody listens, a connection of somebody else may have that port on its own side for a moment.
        let mut pause = tokio::time::interval(Duration::from_millis(20));
        while let Err(error) = hub.listen(address.parse()?) {
            println!("{error}");
            pause.tick().await;
        }
        std::future::pending().await
    })
}

/// Killed when dropped.
struct HubProcess(Child);

impl HubProcess {
    fn start(directory: &Path, address: SocketAddr) -> Result<Self, Error> {
        let child = Command::new(std::env::current_exe()?)
            .args(["--exact", "hub_process"])
            .env(DIRECTORY, directory)
            .env(ADDRESS, address.to_string())
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Self(child))
    }
}

impl Drop for HubProcess {
    fn drop(&mut self) {
        // An error means that it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_that_is_killed_loses_nothing_and_repeats_nothing() -> Result<(), Error> {
    tokio::time::timeout(Duration::from_secs(120), all_of_it()).await?
}

async fn all_of_it() -> Result<(), Error> {
    let directory = tempfile::tempdir()?;
    // A port that was free a moment ago: the hub has to come back to the same one.
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let client = |user: &str| {
        let backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(200));
        Client::builder(format!("ws://{address}/ws")).user_id(user).backoff(backoff).start()
    };
    let mut hub = HubProcess::start(directory.path(), address)?;

    let (bob, events) = client("bob")?;
    let (seen, mut progress) = watch::channel(vec![0_u32; SENDERS * EACH]);
    let receiving = tokio::spawn(receive(bob, events, seen));
    let (alice, _) = client("alice")?;
    let mut sending = Vec::new();
    for sender in 0..SENDERS {
        let alice = alice.clone();
        sending.push(tokio::spawn(async move {
            for n in 0..EACH {
                alice.direct_message("bob", &(sender * EACH + n)).require_ack().await?;
            }
            Ok::<_, Error>(())
        }));
    }
    for kill in 1..=KILLS {
        let enough = kill * SENDERS * EACH / (KILLS + 1);
        progress.wait_for(|seen| seen.iter().filter(|times| **times > 0).count() >= enough).await?;
        drop(hub);
        hub = HubProcess::start(directory.path(), address)?;
    }
    for sender in sending {
        sender.await??;
    }
    progress.wait_for(|seen| !seen.contains(&0)).await?;

    // What is left in the inbox, if anything, is what Bob has seen: he acknowledges it again, and is shown no more.
    let last = alice.direct_message("bob", &usize::MAX).require_ack().await?;
    loop {
        let status = alice.message_status(&last.id).await?;
        if status.of("bob").is_some_and(|bob| bob.outcome == Outcome::Acked) {
            break;
        }
    }
    alice.close().await;
    receiving.await??;
    let seen = progress.borrow();
    assert!(seen.iter().all(|times| *times == 1), "each message once: {seen:?}");
    Ok(())
}

/// Counts and acknowledges, to the last message.
async fn receive(bob: Client, mut events: Events, seen: watch::Sender<Vec<u32>>) -> Result<(), Error> {
    loop {
        let delivery = next_delivery(&mut events).await?;
        let n: usize = delivery.content()?;
        bob.ack([delivery.id])?;
        if n == usize::MAX {
            break;
        }
        seen.send_modify(|seen| seen[n] += 1);
    }
    bob.close().await;
    Ok(())
}
