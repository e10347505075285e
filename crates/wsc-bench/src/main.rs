//! The load tool alone, for a machine without the hub. `wsc bench` is the same.

use std::process::ExitCode;

use clap::Parser;
use wsc_bench::{BenchArgs, Program};

#[derive(Debug, Parser)]
#[command(name = "wsc-bench", version)]
struct Cli {
    #[command(flatten)]
    bench: BenchArgs,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = std::env::current_exe().map_err(anyhow::Error::from).and_then(|executable| {
        wsc_bench::run(&cli.bench, &Program { executable, worker: vec!["worker".into()], serve: None })
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wsc-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
