//! Running the hub until a signal ends it.

use std::{
    io::{self, Write},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use anyhow::Context;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use wsc_hub::{
    Apply, Hub, Reloadable, Settings,
    config::{self, DemoPage, Source, Strictness},
    store::Opened,
};

use crate::log;

/// Serves with these settings, and follows their source; returns after a shutdown in order.
pub(crate) fn run(settings: Settings, source: Source, profile: Option<String>) -> anyhow::Result<()> {
    let log = log::init(&settings.log);
    quiet_guarded_panics();
    let descriptors = raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .event_interval(EVENT_INTERVAL)
        .build()
        .context("cannot start the runtime")?;
    let served = runtime.block_on(async {
        // Asked for first: a signal that comes while the hub starts must not end it half-way.
        let mut ending = Ending::new()?;
        let hangup = signal(SignalKind::hangup())?;
        let assembled = wsc_hub::assemble(settings.clone())?;
        report(&settings, &assembled.found);
        let again = source.clone();
        let load = move || config::reload(&again, profile.as_deref(), Strictness::Strict, config::environment());
        let promise = Promise { descriptors, max_connections: Arc::new(AtomicU64::new(settings.max_connections)) };
        let builder = assembled.builder.settings_source(load);
        let builder = builder.reloadable(Arc::new(log)).reloadable(Arc::new(promise));
        #[cfg(feature = "otlp")]
        let spans = crate::otlp::OtlpSpans::from_env(settings.node_id.as_str())?;
        #[cfg(feature = "otlp")]
        let builder = match &spans {
            Some(spans) => builder.span_sink(Arc::clone(spans) as Arc<dyn wsc_hub::events::SpanSink>),
            None => builder,
        };
        let hub = builder.start().await?;
        let address = hub.listen(settings.listen)?;
        let internal = settings.http.internal_listen.map(|address| hub.listen_internal(address)).transpose()?;
        greet(&settings, &source, address, internal);
        warn_of_descriptors(descriptors, settings.max_connections);
        tokio::select! {
            () = ending.wanted() => {}
            () = follow(&hub, &source, hangup) => {}
        }
        tracing::info!("shutting down; a second signal ends at once");
        tokio::select! {
            () = hub.shutdown() => {
                #[cfg(feature = "otlp")]
                if let Some(spans) = &spans {
                    spans.shutdown().await;
                }
                tracing::info!("bye");
                Ok(())
            }
            () = ending.wanted() => Err(anyhow::anyhow!("ended by a second signal")),
        }
    });
    // Not by dropping it, which would wait for whoever still asks a dead name server or a dead disk.
    runtime.shutdown_background();
    served
}

/// The signals that end a server.
struct Ending {
    terminate: Signal,
    interrupt: Signal,
}

impl Ending {
    fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Somebody wants the server to end.
    async fn wanted(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Reads the settings anew when they change, and when a signal asks for it. Ends only when the hub does.
async fn follow(hub: &Hub, source: &Source, mut hangup: Signal) {
    let watching = async {
        if let Err(error) = wsc_hub::follow_settings(hub, source).await {
            tracing::warn!(%error, "changes of the settings are not noticed; SIGHUP and the API still work");
            std::future::pending::<()>().await;
        }
    };
    let asked = async {
        while hangup.recv().await.is_some() {
            // What came of it, the hub has said.
            let _ = hub.reload().await;
        }
    };
    tokio::join!(watching, asked);
}

/// A damaged inbox file can make the database panic. That is caught and becomes an error, which says more to an operator
/// than the panic does.
fn quiet_guarded_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if wsc_hub::store::is_guarded() {
            tracing::debug!(%panic, "the database panicked");
        } else {
            report(panic);
        }
    }));
}

/// Says what was found in the inbox, as far as there is something to say.
fn report(settings: &Settings, opened: &Opened) {
    let path = settings.storage.path.display();
    if opened.was_repaired || opened.dropped > 0 {
        let (messages, dropped) = (opened.messages, opened.dropped);
        tracing::warn!(%path, messages, dropped, "the inbox was damaged and has been repaired");
    } else if !opened.was_closed {
        tracing::info!(%path, messages = opened.messages, "the inbox was not closed in order the last time");
    }
}

/// Says where the hub is and how to try it.
fn greet(settings: &Settings, source: &Source, address: SocketAddr, internal: Option<SocketAddr>) {
    let (http, ws) = if settings.tls.cert.is_some() { ("https", "wss") } else { ("http", "ws") };
    let mut text = format!("wsc: listening on {http}://{address}\n");
    if let Some(internal) = internal {
        text += &format!("wsc: metrics and debug pages on http://{internal}\n");
    }
    text += &format!("wsc: settings: {source}\n");
    let has_tokens = settings.auth.enabled;
    let has_page = match settings.http.demo_page {
        DemoPage::Off => false,
        DemoPage::Auto => settings.listen.ip().is_loopback(),
        _ => true,
    };
    // The page's people come without tokens.
    if has_page && !has_tokens {
        text += &format!("wsc: demo page       {http}://{address}/\n");
    }
    let (who, key) = if has_tokens {
        ("token=$(wsc gen-token -q -u alice)", "-H \"X-API-Key: $KEY\" ")
    } else {
        ("user_id=alice", "")
    };
    text += &format!("wsc: clients         {ws}://{address}/ws?{who}\n");
    text += &format!("wsc: API description {http}://{address}/openapi.json\n");
    text += "wsc: push to a user:\n";
    text += &format!(
        "       curl {key}-H 'Content-Type: application/json' -d '{{\"content\":\"hello\"}}' \
         {http}://{address}/api/users/alice/messages\n"
    );
    // Nobody has to read it.
    let _ = io::stdout().write_all(text.as_bytes());
}

/// Says so where more connections are promised than the system lets a process have.
fn warn_of_descriptors(limit: Option<u64>, max_connections: u64) {
    if let Some(limit) = limit.filter(|&limit| limit < max_connections) {
        tracing::warn!(
            max_connections,
            descriptor_limit = limit,
            "max_connections is above the limit of file descriptors: connections will be refused before"
        );
    }
}

/// How many connections the settings promise; looked at again when they change.
struct Promise {
    descriptors: Option<u64>,
    max_connections: Arc<AtomicU64>,
}

#[wsc_hub::async_trait]
impl Reloadable for Promise {
    async fn prepare(&self, new: &Settings) -> Result<Option<Apply>, String> {
        let (promised, descriptors) = (new.max_connections, self.descriptors);
        if self.max_connections.load(Relaxed) == promised {
            return Ok(None);
        }
        let current = Arc::clone(&self.max_connections);
        Ok(Some(Box::new(move || {
            current.store(promised, Relaxed);
            warn_of_descriptors(descriptors, promised);
        })))
    }
}

/// Raises the limit of file descriptors as far as it goes; returns it where there is one.
fn raise_descriptor_limit() -> Option<u64> {
    let limits = getrlimit(Resource::Nofile);
    let mut raised = limits;
    raised.current = limits.maximum;
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised.current,
        Err(_) => limits.current,
    }
}

/// How many tasks a thread runs before it looks at the sockets again: as many as one look can wake. With tokio's 61
/// a thousand busy connections come in faster than they are served, the thread's own queue runs over into the shared
/// one, and who lands there waits twenty times as long as the others.
const EVENT_INTERVAL: u32 = 1024;
