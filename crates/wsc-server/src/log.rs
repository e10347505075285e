//! Where the log goes: standard error, as text or JSON.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use wsc_hub::config::{LogFormat, LogSettings};

/// Sets the log up for the whole process.
pub(crate) fn init(settings: &LogSettings) {
    let filter = EnvFilter::new(settings.level.as_str());
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(io::stderr().is_terminal()).with_writer(io::stderr);
    match settings.format {
        LogFormat::Json => builder.json().init(),
        _ => builder.init(),
    }
}
