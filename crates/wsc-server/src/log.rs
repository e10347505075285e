//! Where the log goes: standard error, as text or JSON.

use std::io::{self, IsTerminal};

use parking_lot::Mutex;
use tracing_subscriber::{EnvFilter, Layer, Registry, layer::SubscriberExt, reload, util::SubscriberInitExt};
use wsc_hub::{
    Apply, Reloadable, Settings,
    config::{LogFormat, LogSettings},
};

type Output = Box<dyn Layer<Registry> + Send + Sync>;

/// The process' log; it follows `log.*`.
pub(crate) struct Log {
    output: reload::Handle<Output, Registry>,
    current: std::sync::Arc<Mutex<LogSettings>>,
}

/// Sets the log up for the whole process.
pub(crate) fn init(settings: &LogSettings) -> Log {
    let (layer, output) = reload::Layer::new(layer(settings));
    tracing_subscriber::registry().with(layer).init();
    Log { output, current: std::sync::Arc::new(Mutex::new(settings.clone())) }
}

fn layer(settings: &LogSettings) -> Output {
    let filter = EnvFilter::new(settings.level.as_str());
    let layer = tracing_subscriber::fmt::layer().with_ansi(io::stderr().is_terminal()).with_writer(io::stderr);
    match settings.format {
        LogFormat::Json => layer.json().with_filter(filter).boxed(),
        _ => layer.with_filter(filter).boxed(),
    }
}

#[wsc_hub::async_trait]
impl Reloadable for Log {
    async fn prepare(&self, new: &Settings) -> Result<Option<Apply>, String> {
        if *self.current.lock() == new.log {
            return Ok(None);
        }
        let (output, current, new) = (self.output.clone(), std::sync::Arc::clone(&self.current), new.log.clone());
        Ok(Some(Box::new(move || {
            // It fails only where the subscriber is gone, and with it everybody who logs.
            let _ = output.reload(layer(&new));
            *current.lock() = new;
        })))
    }
}
