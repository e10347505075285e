//! What is going on, on the terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A line that says what is being done and how far it is; nothing where the standard error is no terminal.
#[derive(Clone, Debug)]
pub(crate) struct Progress(ProgressBar);

impl Progress {
    pub(crate) fn new(quiet: bool) -> Self {
        let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
        bar.enable_steady_tick(TICK);
        Self(bar)
    }

    /// Something else begins: so many of something, or nobody knows how many.
    pub(crate) fn stage(&self, what: &str, count: Option<u64>) {
        let template = if count.is_some() { COUNTED } else { OPEN };
        self.0.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner()));
        self.0.set_message(what.to_owned());
        self.0.set_length(count.unwrap_or(0));
        self.0.set_position(0);
    }

    pub(crate) fn at(&self, count: u64) {
        self.0.set_position(count);
    }

    /// What stands before all stages from now on.
    pub(crate) fn prefix(&self, text: String) {
        self.0.set_prefix(text);
    }

    /// Leaves nothing behind.
    pub(crate) fn finish(&self) {
        self.0.finish_and_clear();
    }
}

const COUNTED: &str = "{spinner} {prefix}{msg} {bar:24} {human_pos} of {human_len}";
const OPEN: &str = "{spinner} {prefix}{msg} {human_pos}";
const TICK: Duration = Duration::from_millis(200);
