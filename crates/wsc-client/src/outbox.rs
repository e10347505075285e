//! What the application wants sent, until it can be written.

use std::{collections::VecDeque, convert::Infallible, fmt, future::pending, time::Duration};

use tokio::{sync::mpsc, time::sleep};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::pending::Pending;

/// Something to be sent.
pub(crate) enum Command {
    /// A request whose reply somebody waits for.
    Request {
        id: u64,
        frame: Utf8Bytes,
        /// The room that it leaves.
        leaves: Option<String>,
        /// Whether it may be sent again on another connection.
        repeatable: bool,
    },
    /// A frame without a reply.
    Send { frame: Utf8Bytes },
}

impl Command {
    /// Whether somebody still wants it sent.
    fn is_wanted(&self, pending: &Pending) -> bool {
        match self {
            Self::Request { id, .. } => pending.is_open(*id),
            Self::Send { .. } => true,
        }
    }
}

impl fmt::Debug for Command {
    /// Shows no frame: it may hold a token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request { id, frame, .. } => {
                f.debug_struct("Request").field("id", id).field("frame_len", &frame.len()).finish_non_exhaustive()
            }
            Self::Send { frame } => f.debug_struct("Send").field("frame_len", &frame.len()).finish(),
        }
    }
}

/// Commands in order. Those that cannot be written yet are kept, as far as somebody waits for them.
#[derive(Debug)]
pub(crate) struct Outbox {
    commands: mpsc::Receiver<Command>,
    kept: VecDeque<Command>,
}

impl Outbox {
    pub(crate) fn new(commands: mpsc::Receiver<Command>) -> Self {
        Self { commands, kept: VecDeque::new() }
    }

    /// Waits for the next command; for ever when there are no handles any more.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a command is taken with the result or not at all.
    pub(crate) async fn next(&mut self) -> Command {
        if let Some(command) = self.kept.pop_front() {
            return command;
        }
        match self.commands.recv().await {
            Some(command) => command,
            None => pending().await,
        }
    }

    /// Takes commands for later while there is nowhere to write them to. Those whose senders gave up make room for
    /// others. Never ends.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: what was taken is kept.
    pub(crate) async fn collect(&mut self, open: &Pending) -> Infallible {
        loop {
            if self.kept.len() >= MAX_KEPT {
                self.kept.retain(|command| command.is_wanted(open));
            }
            if self.kept.len() >= MAX_KEPT {
                sleep(LOOK_AGAIN).await;
                continue;
            }
            match self.commands.recv().await {
                Some(command) => self.kept.push_back(command),
                None => pending().await,
            }
        }
    }

    /// Puts requests back that are to be sent again, before everything else.
    pub(crate) fn put_back(&mut self, requests: Vec<(u64, Utf8Bytes)>) {
        for (id, frame) in requests.into_iter().rev() {
            self.kept.push_front(Command::Request { id, frame, leaves: None, repeatable: true });
        }
    }

    /// Takes nothing more.
    pub(crate) fn close(&mut self) {
        self.commands.close();
    }

    /// The next of those that are there already.
    pub(crate) fn take(&mut self) -> Option<Command> {
        self.kept.pop_front().or_else(|| self.commands.try_recv().ok())
    }
}

/// Commands kept while there is no connection; who has another one waits until its time is over.
const MAX_KEPT: usize = 256;

/// How often to look whether senders gave up, while so many commands are kept.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
