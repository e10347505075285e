//! The `wsc` command: the hub as a server.

mod cli;
mod log;
mod serve;

use std::process::ExitCode;

use clap::Parser;

/// The smallest resident memory for many idle connections: its size classes fit the runtime's aligned blocks.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    #[cfg(feature = "jemalloc")]
    if let Err(e) = tikv_jemalloc_ctl::background_thread::write(true) {
        // Without it freed memory goes back to the system only while the process allocates.
        eprintln!("wsc: the allocator has no background thread: {e}");
    }
    match cli::run(cli::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("wsc: {failure}");
            failure.exit_code()
        }
    }
}
