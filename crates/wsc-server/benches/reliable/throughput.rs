//! Messages per second, from the sender to the end of each message.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::ensure;
use tokio::task::JoinSet;
use wsc_hub::SendOptions;

use crate::{
    Sizes,
    clients::Clients,
    node::{Node, content},
    process::{self, Figures},
    pushers::{Load, Pushers},
};

/// Sends through the hub's own API.
pub(crate) fn embedded(sizes: &Sizes, is_durable: bool) -> anyhow::Result<Figures> {
    run(sizes, is_durable, sizes.messages, async |node: &Node| {
        send(node, sizes, sizes.messages, is_durable).await?;
        Ok(None)
    })
}

/// Sends over HTTP, so many messages in a request.
pub(crate) fn over_http(sizes: &Sizes, is_durable: bool, batch: usize) -> anyhow::Result<Figures> {
    let messages = if batch == 1 { sizes.messages / 5 } else { sizes.messages };
    run(sizes, is_durable, messages, async |node: &Node| {
        let load = Load {
            connections: (sizes.in_flight / batch).max(1),
            batch,
            messages,
            users: sizes.users,
            content: sizes.content,
            require_ack: is_durable,
        };
        let mut pushers = Pushers::start(node.address, &load)?;
        let pushers = tokio::task::spawn_blocking(move || pushers.finish().map(|()| pushers)).await??;
        Ok(Some(pushers))
    })
}

/// Has `sizes.in_flight` sends under way at any time, until all are answered.
pub(crate) async fn send(node: &Node, sizes: &Sizes, messages: u64, is_durable: bool) -> anyhow::Result<()> {
    let users: Arc<[String]> = (0..sizes.users).map(|user| format!("u{user}")).collect();
    let content: Arc<_> = content(sizes.content)?.into();
    let next = Arc::new(AtomicU64::new(0));
    let mut senders = JoinSet::new();
    for _ in 0..sizes.in_flight {
        let (hub, users, content, next) = (node.hub.clone(), users.clone(), Arc::clone(&content), Arc::clone(&next));
        senders.spawn(async move {
            let options = if is_durable { SendOptions::default().require_ack() } else { SendOptions::default() };
            loop {
                let n = next.fetch_add(1, Relaxed);
                if n >= messages {
                    return Ok(());
                }
                hub.send_to_user_with(&users[n as usize % users.len()], &content, &options).await?;
            }
        });
    }
    while let Some(ended) = senders.join_next().await {
        ended?.map_err(|error: wsc_hub::ErrorReply| anyhow::anyhow!("a send was refused: {error:?}"))?;
    }
    Ok(())
}

/// What the callers over HTTP were, kept until the CPU time is read.
type Senders = Option<Pushers>;

#[tokio::main]
async fn run(
    sizes: &Sizes,
    is_durable: bool,
    messages: u64,
    send: impl AsyncFnOnce(&Node) -> anyhow::Result<Senders>,
) -> anyhow::Result<Figures> {
    let directory = tempfile::tempdir_in(&sizes.directory)?;
    let node = Node::start(directory.path(), |_| ()).await?;
    let mut clients = Clients::start(node.address, sizes.users, is_durable)?;

    let (cpu, clients_cpu) = (process::cpu()?, clients.cpu()?);
    let started = Instant::now();
    let senders = send(&node).await?;
    let accepted = started.elapsed();
    if is_durable {
        node.settled().await?;
    } else {
        while clients.received()?.messages < messages {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    let took = started.elapsed();
    let cpu = process::cpu()? - cpu;
    let clients_cpu = clients.cpu()? - clients_cpu;

    // The figures are worth something only if every message ended as it should.
    let outcome = if is_durable { ACKED } else { SENT };
    let (ended, received) = (node.metric(outcome).await?, clients.received()?);
    ensure!(ended == messages as f64, "{ended} of {messages} messages ended well");
    ensure!(received.messages == messages, "{received:?} of {messages} messages were received");

    let each = |time: Duration| time.as_secs_f64() * 1e6 / messages as f64;
    let mut figures = Figures::default()
        .with("per_second", messages as f64 / took.as_secs_f64())
        .with("accepted_per_second", messages as f64 / accepted.as_secs_f64())
        .with("hub_cpu_us", each(cpu))
        .with("clients_cpu_us", each(clients_cpu))
        .with("resent", received.again as f64);
    if let Some(pushers) = senders {
        figures = figures.with("senders_cpu_us", each(pushers.cpu()?));
    }
    drop(clients);
    node.hub.shutdown().await;
    Ok(figures)
}

const ACKED: &str = "wsc_messages_total{outcome=\"acked\"}";
const SENT: &str = "wsc_messages_total{outcome=\"sent\"}";
