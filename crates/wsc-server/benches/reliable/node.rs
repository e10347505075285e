//! The hub, embedded.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use serde_json::value::RawValue;
use wsc_hub::{Hub, InboxStore, Settings, open_storage};

/// A hub with its inbox in a file.
pub(crate) struct Node {
    pub(crate) hub: Hub,
    pub(crate) address: SocketAddr,
    inbox: Arc<dyn InboxStore>,
}

impl Node {
    /// Starts it with its data in this directory; `tune` changes what is not to be as by default.
    pub(crate) async fn start(directory: &Path, tune: impl FnOnce(&mut Settings)) -> anyhow::Result<Self> {
        let mut settings = Settings::default();
        settings.storage.path = directory.join("data");
        tune(&mut settings);
        let inbox = open_storage(&settings)?.inbox.context("an inbox")?;
        let hub = Hub::builder().settings(settings).inbox(Arc::clone(&inbox)).start().await?;
        let address = hub.listen("127.0.0.1:0".parse()?)?;
        Ok(Self { hub, address, inbox })
    }

    /// How many messages the inbox has.
    pub(crate) async fn resting(&self) -> anyhow::Result<u64> {
        Ok(self.inbox.total().await?.messages)
    }

    /// Waits until the inbox has none: each was acknowledged, or has failed.
    pub(crate) async fn settled(&self) -> anyhow::Result<()> {
        let started = Instant::now();
        while self.resting().await? > 0 {
            ensure!(started.elapsed() < PATIENCE, "{} messages are not settled", self.resting().await?);
            tokio::time::sleep(TICK).await;
        }
        Ok(())
    }

    /// One of the figures at `/metrics`, added up over labels that are not named.
    pub(crate) async fn metric(&self, name: &'static str) -> anyhow::Result<f64> {
        let address = self.address;
        let text = tokio::task::spawn_blocking(move || scrape(address)).await??;
        let value = |line: &str| line.strip_prefix(name)?.rsplit_once(' ')?.1.parse::<f64>().ok();
        Ok(text.lines().filter_map(value).sum())
    }
}

fn scrape(address: SocketAddr) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// JSON text of so many bytes.
pub(crate) fn content(bytes: usize) -> anyhow::Result<Box<RawValue>> {
    Ok(RawValue::from_string(format!("\"{}\"", "x".repeat(bytes.saturating_sub(2))))?)
}

/// How finely the end of a run is seen.
const TICK: Duration = Duration::from_millis(2);

/// How long the last message of a run may take.
const PATIENCE: Duration = Duration::from_secs(120);
