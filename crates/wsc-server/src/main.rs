//! The `wsc` command: the hub as a server.

mod cli;
mod log;
#[cfg(feature = "otlp")]
mod otlp;
mod serve;
mod token;

use std::process::ExitCode;

use clap::Parser;

/// The smallest resident memory for many idle connections: its size classes fit the runtime's aligned blocks. How
/// fast it gives memory back is set where it is built, in `.cargo/config.toml`.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match cli::run(cli::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("wsc: {failure}");
            failure.exit_code()
        }
    }
}
