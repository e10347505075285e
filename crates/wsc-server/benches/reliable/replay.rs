//! One user comes back to a full inbox.

use std::{path::Path, time::Instant};

use anyhow::ensure;
use wsc_hub::Settings;

use crate::{
    Sizes,
    clients::Clients,
    node::Node,
    process::{self, Figures, run_part},
    throughput,
};

/// Fills an inbox in one process and empties it in another, so that the second has everything from the file.
pub(crate) fn measure(sizes: &Sizes) -> anyhow::Result<Figures> {
    let directory = tempfile::tempdir_in(&sizes.directory)?;
    let path = directory.path().display().to_string();
    let filled = run_part(&["fill", &path], sizes)?;
    let mut replayed = run_part(&["replay-from", &path], sizes)?;
    replayed.0.extend(filled.0);
    Ok(replayed)
}

fn deep(settings: &mut Settings) {
    settings.storage.inbox_max_messages = 100_000_000;
    settings.storage.inbox_max_bytes = settings.storage.max_bytes;
}

/// Sends to somebody who is away.
#[tokio::main]
pub(crate) async fn fill(directory: &Path, sizes: &Sizes) -> anyhow::Result<Figures> {
    let sizes = Sizes { users: 1, ..sizes.clone() };
    let node = Node::start(directory, deep).await?;
    let started = Instant::now();
    throughput::send(&node, &sizes, sizes.stored, true).await?;
    let took = started.elapsed();
    ensure!(node.resting().await? == sizes.stored, "{} of {} rest", node.resting().await?, sizes.stored);
    node.hub.shutdown().await;
    Ok(Figures::default().with("stored_per_second", sizes.stored as f64 / took.as_secs_f64()))
}

/// The user connects, and acknowledges everything.
#[tokio::main]
pub(crate) async fn replay(directory: &Path, sizes: &Sizes) -> anyhow::Result<Figures> {
    let opening = Instant::now();
    let node = Node::start(directory, deep).await?;
    let opened = opening.elapsed();
    ensure!(node.resting().await? == sizes.stored, "{} of {} rest", node.resting().await?, sizes.stored);
    process::forget_peak()?;
    let before = process::resident()?;
    let cpu = process::cpu()?;
    let started = Instant::now();
    let mut clients = Clients::start(node.address, 1, true)?;
    node.settled().await?;
    let took = started.elapsed();
    let cpu = process::cpu()? - cpu;
    let (after, peak) = (process::resident()?, process::peak()?);
    let received = clients.received()?;
    ensure!(received.messages == sizes.stored, "{received:?} of {} were received", sizes.stored);
    let acked = node.metric("wsc_messages_total{outcome=\"acked\"}").await?;
    ensure!(acked == sizes.stored as f64, "{acked} of {} are acknowledged", sizes.stored);
    drop(clients);
    node.hub.shutdown().await;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    Ok(Figures::default()
        .with("start_ms", opened.as_secs_f64() * 1e3)
        .with("seconds", took.as_secs_f64())
        .with("per_second", sizes.stored as f64 / took.as_secs_f64())
        .with("hub_cpu_us", cpu.as_secs_f64() * 1e6 / sizes.stored as f64)
        .with("resident_before_mib", mib(before))
        .with("growth_mib", mib(after.saturating_sub(before)))
        .with("peak_growth_mib", mib(peak.saturating_sub(before)))
        .with("resent", received.again as f64))
}
