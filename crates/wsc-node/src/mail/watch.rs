//! Waiting for the end of one send.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use uuid::Uuid;
use wsc_protocol::{FailureReason, Fate};

use wsc_delivery::{SendAttempt, SendResult};

/// Keeps account of one send, until it is final or rests.
#[derive(Debug)]
pub(crate) struct Watch(Mutex<State>);

#[derive(Debug)]
struct State {
    began: Instant,
    attempts: Vec<SendAttempt>,
    /// When the running attempt began.
    current: Option<Instant>,
    done: Option<oneshot::Sender<SendResult>>,
}

impl Watch {
    /// A watch, and what it ends with.
    pub(crate) fn new() -> (Self, oneshot::Receiver<SendResult>) {
        let (done, result) = oneshot::channel();
        let state = State { began: Instant::now(), attempts: Vec::new(), current: None, done: Some(done) };
        (Self(Mutex::new(state)), result)
    }

    /// A transmission begins; copies for several devices are one.
    pub(crate) fn attempt(&self) {
        self.0.lock().current.get_or_insert_with(Instant::now);
    }

    /// The transmission that runs has failed.
    pub(crate) fn attempt_failed(&self, reason: FailureReason) {
        self.0.lock().end_attempt(Some(reason));
    }

    /// Where the send ended.
    pub(crate) fn finish(&self, id: Uuid, fate: Fate) {
        let mut state = self.0.lock();
        state.end_attempt(fate.reason);
        let Some(done) = state.done.take() else { return };
        let attempts = std::mem::take(&mut state.attempts);
        let result = SendResult::new(id, fate, attempts, state.began.elapsed());
        drop(state);
        // Whoever waited may have gone.
        let _ = done.send(result);
    }
}

impl State {
    fn end_attempt(&mut self, error: Option<FailureReason>) {
        let Some(began) = self.current.take() else { return };
        let number = u32::try_from(self.attempts.len()).unwrap_or(u32::MAX).saturating_add(1);
        let start: Duration = began.duration_since(self.began);
        self.attempts.push(SendAttempt::new(number, start, began.elapsed(), error));
    }
}
