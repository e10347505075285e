//! The memory that all queues may take together, and what goes when they take more.
//!
//! In this order: from 7/8 of the budget on newcomers should be refused; beyond all of it the largest queues are cut,
//! with their connections; beyond the [`backstop`], which is only reached faster than anybody can be cut, queues take
//! nothing more.

use std::{
    cmp::Reverse,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{conn::Conn, shared::Shared};

/// How all queues together stand to their budget.
#[derive(Default)]
pub(crate) struct Budget {
    is_pressed: AtomicBool,
    /// Told when there is too much; [`shed`] listens.
    exceeded: Notify,
}

impl Budget {
    /// Takes note of how many bytes wait now, of how many may. Called whenever that changes, so it costs next to nothing.
    pub(crate) fn note(&self, bytes: i64, total: usize) {
        let bytes = usize::try_from(bytes).unwrap_or(0);
        let was_pressed = self.is_pressed.load(Relaxed);
        // Far enough apart that it does not flicker.
        let bound = if was_pressed { total - total / 4 } else { seven_eighths(total) };
        let is_pressed = bytes > bound;
        if is_pressed != was_pressed && self.is_pressed.swap(is_pressed, Relaxed) != is_pressed {
            match is_pressed {
                true => tracing::warn!(bytes, total, "queues have nearly used up their memory"),
                false => tracing::info!(bytes, total, "queues have memory again"),
            }
        }
        if bytes > total {
            self.exceeded.notify_one();
        }
    }

    /// Whether newcomers should be refused.
    pub(crate) fn is_pressed(&self) -> bool {
        self.is_pressed.load(Relaxed)
    }
}

/// Where queues that are not empty take nothing more, whoever's they are.
pub(crate) fn backstop(total: usize) -> usize {
    total.saturating_add(total / 8)
}

fn seven_eighths(total: usize) -> usize {
    total - total / 8
}

/// Cuts the largest queues whenever all together are too large.
pub(crate) async fn shed(shared: Arc<Shared>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = shared.budget.exceeded.notified() => {}
            () = stop.cancelled() => return,
        }
        shed_once(&shared).await;
        // To look at all connections is not for free. Where it was of no use the backstop holds meanwhile.
        tokio::select! {
            () = tokio::time::sleep(SHED_INTERVAL) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Cuts the largest queues, largest first, until enough is free.
async fn shed_once(shared: &Shared) {
    let is_enough = || {
        let bytes = usize::try_from(shared.stats.queue_bytes()).unwrap_or(0);
        bytes <= seven_eighths(shared.limits.queue_total_bytes())
    };
    if usize::try_from(shared.stats.queue_bytes()).unwrap_or(0) <= shared.limits.queue_total_bytes() {
        // It was over in a moment.
        return;
    }
    let mut backlogs: Vec<(usize, Arc<Conn>)> = Vec::new();
    let mut slot = 0;
    while let Some(conns) = shared.conns.slice(slot, LOOK_SLICE) {
        slot += LOOK_SLICE;
        let sizes = conns.into_iter().map(|conn| (conn.queued_bytes(), conn));
        backlogs.extend(sizes.filter(|(bytes, _)| *bytes > 0));
        tokio::task::yield_now().await;
    }
    backlogs.sort_unstable_by_key(|(bytes, _)| Reverse(*bytes));
    let (mut cut, mut freed) = (0_usize, 0);
    for (bytes, conn) in backlogs {
        if is_enough() {
            break;
        }
        conn.shed();
        cut += 1;
        freed += bytes;
        if cut.is_multiple_of(CUT_SLICE) {
            tokio::task::yield_now().await;
        }
    }
    tracing::warn!(connections = cut, bytes = freed, "queues used more than their memory: the largest were cut");
}

/// Connections that are looked at, and queues that are cut, before others run. A queue may hold thousands of messages,
/// each with somebody to tell.
const LOOK_SLICE: usize = 2048;
const CUT_SLICE: usize = 4;

const SHED_INTERVAL: Duration = Duration::from_millis(10);
