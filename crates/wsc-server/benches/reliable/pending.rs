//! What a message costs in memory while it waits for its acknowledgement.
//!
//! It is the slope from a fifth of the messages to all of them: what the hub needs once (pages of the inbox, remembered
//! outcomes, connections) is there by then. The whole growth is given beside it.

use std::time::Duration;

use anyhow::ensure;

use crate::{
    Sizes,
    clients::Clients,
    node::Node,
    process::{self, Figures},
    throughput,
};

/// Messages that each user has not acknowledged: within a connection's window.
const EACH: u64 = 100;

#[tokio::main]
pub(crate) async fn measure(sizes: &Sizes) -> anyhow::Result<Figures> {
    let sizes = Sizes { users: (sizes.pending / EACH).max(1) as usize, ..sizes.clone() };
    let messages = sizes.users as u64 * EACH;
    let directory = tempfile::tempdir_in(&sizes.directory)?;
    let node = Node::start(directory.path(), |settings| {
        settings.ack_timeout = Duration::from_secs(3600);
    })
    .await?;
    // They answer pings, and nothing else.
    let mut clients = Clients::start(node.address, sizes.users, false)?;
    let fifth = messages / 5;
    let before = at_rest().await?;
    pend(&node, &mut clients, &sizes, fifth).await?;
    let between = at_rest().await?;
    pend(&node, &mut clients, &sizes, messages - fifth).await?;
    let after = at_rest().await?;

    let cpu = process::cpu()?;
    tokio::time::sleep(WATCH).await;
    let idle = (process::cpu()? - cpu).as_secs_f64() / WATCH.as_secs_f64();

    let pending = node.metric("wsc_messages_in_flight").await?;
    ensure!(pending == messages as f64, "{pending} of {messages} messages are pending");
    ensure!(node.resting().await? == messages, "the inbox has {} of {messages}", node.resting().await?);

    let each = |from: u64, messages: u64| after.saturating_sub(from) as f64 / messages as f64 - sizes.content as f64;
    let figures = Figures::default()
        .with("bytes_beside_payload", each(between, messages - fifth))
        .with("bytes_beside_payload_and_all", each(before, messages))
        .with("resident_before_mib", before as f64 / MIB)
        .with("resident_after_mib", after as f64 / MIB)
        .with("idle_cpu_percent", idle * 100.0);
    drop(clients);
    node.hub.shutdown().await;
    Ok(figures)
}

/// Sends so many messages more, and waits until clients have them.
async fn pend(node: &Node, clients: &mut Clients, sizes: &Sizes, messages: u64) -> anyhow::Result<()> {
    let wanted = clients.received()?.messages + messages;
    throughput::send(node, sizes, messages, true).await?;
    while clients.received()?.messages < wanted {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Resident memory, once it has stopped to change: the inbox moves what rests to its tables, the allocator gives back
/// what is free.
async fn at_rest() -> anyhow::Result<u64> {
    let mut last = process::resident()?;
    let mut calm = 0;
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = process::resident()?;
        calm = if now.abs_diff(last) * 200 < last { calm + 1 } else { 0 };
        last = now;
        if calm == 5 {
            break;
        }
    }
    Ok(last)
}

const MIB: f64 = (1 << 20) as f64;

/// How long the CPU time is watched while nothing happens but deadlines that wait and connections that are kept alive.
const WATCH: Duration = Duration::from_secs(10);
