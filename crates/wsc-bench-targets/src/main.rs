//! Servers that `wsc bench compare` measures beside the hub: two floors that leave out what makes a hub a hub, and two
//! servers as most people would write them.
//!
//! ```text
//! wsc-bench-targets NAME --listen 127.0.0.1:0
//! ```
//!
//! prints `listening on ADDR` and serves until it is killed. They are a yardstick: each is one short file, uses one
//! thread, switches Nagle's algorithm off as the hub does and slows nothing down. They deliberately share no code with
//! the hub.
//!
//! A difference to the hub has to come from the server's own doing. So the whole process has the hub's allocator, and
//! the floor that runs on tokio has the hub's runtime setting; the other two run on tokio's defaults, as people do.
//!
//! # Features
//!
//! - `jemalloc` (default): the allocator of the `wsc` command. Without it all four run on the system's.

use std::net::{SocketAddr, TcpListener};

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use rustix::process::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};
use tokio::runtime;

mod accept_loop;
mod axum_broadcast;
mod tokio_tungstenite;
mod wire;
mod write_loop;

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

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
    /// The floor of fan-out: one thread, one write(2) per message and member, no queues.
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

    let mut runtime = runtime::Builder::new_current_thread();
    runtime.enable_all();
    match name {
        Target::WriteLoop => write_loop::serve(&listener),
        Target::AcceptLoop => runtime.event_interval(EVENT_INTERVAL).build()?.block_on(accept_loop::serve(listener)),
        Target::TokioTungstenite => runtime.build()?.block_on(tokio_tungstenite::serve(listener)),
        Target::AxumBroadcast => runtime.build()?.block_on(axum_broadcast::serve(listener)),
    }
}

/// How many tasks the thread runs before it looks at the sockets again, as `wsc` has it: a floor must not pay for looks
/// that the hub saves. tokio's default is 61.
const EVENT_INTERVAL: u32 = 1024;

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
