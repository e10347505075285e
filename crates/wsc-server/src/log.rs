//! Where the log goes: standard error, as text or JSON.

use std::{
    fmt,
    io::{self, IsTerminal},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;
use tracing::{Event, Subscriber};
use tracing_subscriber::{
    EnvFilter, Registry,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{self, Format, Full, Json, Writer},
    },
    layer::SubscriberExt,
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt,
};
use wsc_hub::{
    Apply, Reloadable, Settings,
    config::{LogFormat, LogSettings},
};

/// The process' log; it follows `log.*`.
pub(crate) struct Log {
    filter: reload::Handle<EnvFilter, Registry>,
    is_json: Arc<AtomicBool>,
    current: Arc<Mutex<LogSettings>>,
}

/// Sets the log up for the whole process.
pub(crate) fn init(settings: &LogSettings) -> Log {
    let (level, filter) = reload::Layer::new(EnvFilter::new(settings.level.as_str()));
    let is_json = Arc::new(AtomicBool::new(settings.format == LogFormat::Json));
    let format = EitherFormat { is_json: Arc::clone(&is_json), text: format::format(), json: format::format().json() };
    let output = tracing_subscriber::fmt::layer()
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        .event_format(format);
    tracing_subscriber::registry().with(level).with(output).init();
    Log { filter, is_json, current: Arc::new(Mutex::new(settings.clone())) }
}

/// Text or JSON, whichever is wanted at the moment.
struct EitherFormat {
    is_json: Arc<AtomicBool>,
    text: Format<Full>,
    json: Format<Json>,
}

impl<S, N> FormatEvent<S, N> for EitherFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        if self.is_json.load(Relaxed) {
            self.json.format_event(context, out, event)
        } else {
            self.text.format_event(context, out, event)
        }
    }
}

#[wsc_hub::async_trait]
impl Reloadable for Log {
    async fn prepare(&self, new: &Settings) -> Result<Option<Apply>, String> {
        if *self.current.lock() == new.log {
            return Ok(None);
        }
        let (filter, is_json, current) = (self.filter.clone(), Arc::clone(&self.is_json), Arc::clone(&self.current));
        let new = new.log.clone();
        Ok(Some(Box::new(move || {
            // It fails only where the subscriber is gone, and with it everybody who logs.
            let _ = filter.reload(EnvFilter::new(new.level.as_str()));
            is_json.store(new.format == LogFormat::Json, Relaxed);
            *current.lock() = new;
        })))
    }
}
