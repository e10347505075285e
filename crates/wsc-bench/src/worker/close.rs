//! Ending connections.

use std::{ops::Range, time::Instant};

use super::{
    Load,
    sockets::{Incident, Sockets},
};
use crate::message::{Done, Ending};

/// Ends connections, or waits until the server has ended them.
#[derive(Debug)]
pub(crate) struct Closing {
    slots: Range<usize>,
    /// `None`: the server ends them.
    how: Option<Ending>,
    open: u64,
    started: Instant,
    done: Done,
    given_up: bool,
}

impl Closing {
    pub(crate) fn new(slots: Range<usize>, how: Option<Ending>) -> Self {
        Self { slots, how, open: 0, started: Instant::now(), done: Done::default(), given_up: false }
    }
}

impl Load for Closing {
    fn start(&mut self, io: &mut Sockets) -> anyhow::Result<()> {
        for slot in self.slots.clone() {
            if !io.is_there(slot) {
                continue;
            }
            match self.how {
                Some(Ending::Reset) => {
                    io.reset(slot);
                    self.done.count += 1;
                }
                Some(Ending::Polite) => {
                    io.close(slot);
                    self.open += 1;
                }
                None => self.open += 1,
            }
        }
        Ok(())
    }

    fn incident(&mut self, _: &mut Sockets, slot: usize, incident: Incident<'_>) -> anyhow::Result<()> {
        if matches!(incident, Incident::Ended(_)) && self.slots.contains(&slot) {
            self.open -= 1;
            self.done.count += 1;
            self.done.elapsed = self.started.elapsed();
        }
        Ok(())
    }

    fn turn(&mut self, io: &mut Sockets) -> anyhow::Result<Option<Instant>> {
        if self.given_up {
            for slot in self.slots.clone() {
                if io.is_there(slot) {
                    io.reset(slot);
                    self.done.missing += 1;
                }
            }
            self.open = 0;
        }
        Ok(None)
    }

    fn progress(&self) -> u64 {
        self.done.count
    }

    fn stalled(&mut self) -> anyhow::Result<()> {
        self.given_up = true;
        Ok(())
    }

    fn finished(&mut self) -> Option<Done> {
        (self.open == 0).then(|| std::mem::take(&mut self.done))
    }
}
