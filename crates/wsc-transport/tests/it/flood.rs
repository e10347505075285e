//! Floods of numbered messages for peers that read slowly, or not at all.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use wsc_protocol::FailureReason;
use wsc_transport::{Encoded, Outbound, QueuePolicy, Sent, Settle, Terms};

use crate::support::{Client, Frame, Hub, Tracked, eventually, server_frame};

pub(crate) const MESSAGE: usize = 1_000;
pub(crate) const QUEUE: usize = 20_000;

pub(crate) fn hub(policy: QueuePolicy) -> Hub {
    Hub::with(|c| {
        c.queue_policy = policy;
        c.queue_max_bytes = QUEUE;
    })
}

/// A numbered message.
pub(crate) fn numbered(n: u32) -> Vec<u8> {
    server_frame(0x81, format!("n{n:0width$}", width = MESSAGE).as_bytes())
}

/// The numbers among these frames.
pub(crate) fn numbers(frames: &[Frame]) -> Vec<u32> {
    let texts = frames.iter().filter(|f| f.0 == 0x81).filter_map(|f| std::str::from_utf8(&f.1).ok());
    texts.filter_map(|t| t.strip_prefix('n')?.parse().ok()).collect()
}

/// How many messages the gap notices among these frames stand for.
pub(crate) fn gaps(frames: &[Frame]) -> usize {
    let texts = frames.iter().filter(|f| f.0 == 0x81).filter_map(|f| std::str::from_utf8(&f.1).ok());
    let counts = texts.filter_map(|t| t.split_once("\"dropped\":")?.1.split([',', '}']).next()?.parse::<usize>().ok());
    counts.sum()
}

/// Numbered messages, and who tracks those that had to wait.
#[derive(Default)]
pub(crate) struct Flood {
    pub(crate) terms: Terms,
    pub(crate) sent: Vec<Sent>,
    pub(crate) tracked: Vec<(u32, Arc<Tracked>)>,
}

impl Flood {
    pub(crate) fn on(terms: Terms) -> Self {
        Self { terms, ..Self::default() }
    }

    pub(crate) fn deliver(&mut self, to: &Outbound) -> Sent {
        let n = self.sent.len() as u32;
        let mut tracked = None;
        let sent = to.deliver_on(self.terms, &Encoded::new(&numbered(n)), &mut || {
            let settle = Arc::<Tracked>::default();
            tracked = Some(Arc::clone(&settle));
            Some(settle as Arc<dyn Settle>)
        });
        assert_eq!(tracked.is_some(), sent == Sent::Queued, "tracked exactly where it waits");
        self.tracked.extend(tracked.map(|t| (n, t)));
        self.sent.push(sent);
        sent
    }

    /// Delivers until `count` did not go straight to the kernel.
    pub(crate) async fn deliver_until(&mut self, to: &Outbound, count: usize) {
        let mut waiting = 0;
        while waiting < count {
            waiting += usize::from(self.deliver(to) != Sent::Written);
            tokio::task::yield_now().await;
        }
    }

    /// Delivers until one is dropped.
    pub(crate) async fn deliver_until_dropped(&mut self, to: &Outbound) {
        while self.deliver(to) != Sent::Dropped {
            assert!(self.sent.len() < 100_000, "everything is taken");
            tokio::task::yield_now().await;
        }
    }

    /// Tracked ones that nobody was told of yet.
    pub(crate) fn waiting(&self) -> usize {
        self.tracked.iter().filter(|(_, t)| t.0.lock().is_empty()).count()
    }

    /// What became of each tracked one; told exactly once.
    pub(crate) async fn fates(&self) -> Vec<(u32, Result<(), FailureReason>)> {
        eventually("everybody is told", || self.tracked.iter().all(|(_, t)| !t.0.lock().is_empty())).await;
        self.tracked
            .iter()
            .map(|(n, t)| {
                let told = t.0.lock();
                assert_eq!(told.len(), 1, "message {n} was told {told:?}");
                (*n, told[0])
            })
            .collect()
    }
}

/// Both kinds of connection: any thread may write, and the task writes.
pub(crate) async fn on_both(policy: QueuePolicy, mut check: impl AsyncFnMut(&Hub, &mut dyn Peer)) {
    let hub = hub(policy);
    let mut tcp = hub.client().await;
    check(&hub, &mut tcp).await;
    drop(tcp);
    let mut piped = hub.adopted(4 << 10);
    check(&hub, &mut piped).await;
    drop(piped);
    hub.ended(2).await;
    hub.finish().await;
}

/// A client on whatever stream.
pub(crate) trait Peer {
    fn read(&mut self) -> std::pin::Pin<Box<dyn Future<Output = Option<Frame>> + '_>>;
    fn send<'p>(&'p mut self, bytes: &'p [u8]) -> std::pin::Pin<Box<dyn Future<Output = ()> + 'p>>;
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer for Client<S> {
    fn read(&mut self) -> std::pin::Pin<Box<dyn Future<Output = Option<Frame>> + '_>> {
        Box::pin(self.frame())
    }

    fn send<'p>(&'p mut self, bytes: &'p [u8]) -> std::pin::Pin<Box<dyn Future<Output = ()> + 'p>> {
        Box::pin(self.write(bytes))
    }
}
