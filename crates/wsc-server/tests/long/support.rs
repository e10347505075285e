//! What several modules share.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use wsc_testkit::ServerProcess;

/// The server under test: the one that was built with this, or another one, to compare.
pub(crate) fn server_binary() -> PathBuf {
    std::env::var_os("WSC_LONG_SERVER").map_or_else(|| env!("CARGO_BIN_EXE_wsc").into(), PathBuf::from)
}

/// Where a crowd goes: to the server itself. With `WSC_LONG_CONTROL` it goes to another one on the same machine, so that
/// one sees which part of the figures is the machine's. Keep what comes with the address.
pub(crate) async fn goal(server: &ServerProcess, settings: &str) -> (SocketAddr, Option<ServerProcess>) {
    if std::env::var_os("WSC_LONG_CONTROL").is_none() {
        return (server.addr(), None);
    }
    println!("a control: the crowd goes to another server");
    let other = ServerProcess::start(server_binary(), settings).await;
    (other.addr(), Some(other))
}

/// So many, or the part of them that the environment asks for.
pub(crate) fn scaled(many: usize) -> usize {
    let percent = std::env::var("WSC_LONG_PERCENT").ok().and_then(|percent| percent.parse().ok()).unwrap_or(100);
    (many * percent / 100).max(20)
}

/// An address of this machine that nobody listens on. It is asked for before the first server, and kept for the second:
/// nobody else should take it meanwhile, and whoever does makes the test fail, not pass.
pub(crate) fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap()
}

/// The address that connection `number` comes from. One address has some 28,000 ports for connections to one server.
pub(crate) fn source(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, 2 + (number % 250) as u8)
}

/// Microseconds since 1970: the clock that processes share.
pub(crate) fn unix_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64
}

/// The value below which so many of a thousand lie.
pub(crate) fn per_mille<T: Copy + Ord>(values: &mut [T], of_thousand: usize) -> T {
    values.sort_unstable();
    values[(values.len() * of_thousand / 1000).min(values.len() - 1)]
}
