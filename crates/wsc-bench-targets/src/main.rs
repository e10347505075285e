//! Servers that `wsc bench compare` measures beside the hub: two floors that leave out what makes a hub a hub, and two
//! servers as most people would write them.
//!
//! ```text
//! wsc-bench-targets NAME --listen 127.0.0.1:0
//! ```
//!
//! prints `listening on ADDR`, serves until SIGTERM or SIGINT, then prints how many messages it lost. They are a
//! yardstick: each is one short file, uses one thread, switches Nagle's algorithm off as the hub does, leaves
//! everything else at its default and slows nothing down. They deliberately share no code with the hub.

use std::{
    net::{SocketAddr, TcpListener},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
};

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use rustix::process::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};
use tokio::signal::unix::{SignalKind, signal};

mod accept_loop;
mod axum_broadcast;
mod tokio_tungstenite;
mod wire;
mod write_loop;

/// A server to compare the hub with.
#[derive(Debug, Parser)]
struct Arguments {
    /// Which server.
    name: Target,
    /// The address to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Target {
    /// The floor of fan-out: one thread, one send(2) per member, no queues.
    WriteLoop,
    /// The floor of handshakes: accept, answer 101, wait for the end.
    AcceptLoop,
    /// What most people write: split, a task each way, a bounded channel, a mutex around the rooms.
    TokioTungstenite,
    /// axum's chat example: a broadcast channel per room.
    AxumBroadcast,
}

fn main() -> anyhow::Result<()> {
    let Arguments { name, listen } = Arguments::parse();
    raise_descriptor_limit();
    let listener = bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    say(&format!("listening on {}", listener.local_addr()?));

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let serve = async {
            match name {
                Target::WriteLoop => on_a_thread(move || write_loop::serve(&listener)).await,
                Target::AcceptLoop => accept_loop::serve(listener).await,
                Target::TokioTungstenite => tokio_tungstenite::serve(listener).await,
                Target::AxumBroadcast => axum_broadcast::serve(listener).await,
            }
        };
        tokio::select! {
            result = serve => result,
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    })?;
    say(&format!("lost {} messages", LOST.load(Relaxed)));
    Ok(())
}

/// Messages that a member did not get because it was too slow.
static LOST: AtomicU64 = AtomicU64::new(0);

fn count_lost(messages: u64) {
    LOST.fetch_add(messages, Relaxed);
}

/// Runs a server that knows no runtime. The thread dies with the process: it has nothing to put in order.
async fn on_a_thread(serve: impl FnOnce() -> anyhow::Result<()> + Send + 'static) -> anyhow::Result<()> {
    let (done, result) = tokio::sync::oneshot::channel();
    thread::Builder::new().name("server".into()).spawn(move || done.send(serve()))?;
    result.await?
}

/// As the standard library binds, but with room for a wave of connections: 128 waiting ones would measure the kernel's
/// retransmission timer.
fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// What Linux takes at most by default (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

fn raise_descriptor_limit() {
    let mut limits = getrlimit(Resource::Nofile);
    limits.current = limits.maximum;
    // What it was is enough for a small run, and a large one fails visibly.
    let _ = setrlimit(Resource::Nofile, limits);
}

#[expect(clippy::print_stdout, reason = "how whoever started it learns the address")]
fn say(line: &str) {
    println!("{line}");
}
