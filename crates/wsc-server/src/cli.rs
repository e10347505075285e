//! The command line.

use std::{
    fmt,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

#[cfg(feature = "bench")]
use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use wsc_hub::config::{self, ConfigError, Source, Strictness};

use crate::{
    serve,
    token::{CheckTokenArgs, GenTokenArgs},
};

/// A WebSocket hub where every message has a known fate.
#[derive(Debug, Parser)]
#[command(name = "wsc", version, args_conflicts_with_subcommands = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the hub (what `wsc` does without a command)
    Serve(ServeArgs),
    /// Check a settings file and say all that is wrong with it
    CheckConfig {
        /// The file: YAML, TOML or JSON
        file: PathBuf,
        /// Check with this profile of the file
        #[arg(long, value_name = "NAME")]
        profile: Option<String>,
    },
    /// Print a settings file with every key, its meaning and its default
    DefaultConfig,
    /// Make a token, signed with the key in the settings
    GenToken(Box<GenTokenArgs>),
    /// Say whom a token speaks for, or what is wrong with it
    CheckToken(CheckTokenArgs),
    /// Measure a hub, or another server that speaks its protocol
    ///
    /// Without --url a scenario starts a hub of its own, measures it and ends it: `wsc bench fanout` alone is enough.
    #[cfg(feature = "bench")]
    Bench(Box<wsc_bench::BenchArgs>),
    /// Print the version
    Version,
}

/// How the hub is run.
#[derive(Args, Debug)]
pub(crate) struct ServeArgs {
    /// The settings file; default ./wsc.yaml where there is one
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Lay this profile of the file over its plain settings
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Option<String>,
}

/// Why the command ends in failure.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The settings are wrong: exit code 2.
    Settings(ConfigError),
    /// What was asked for cannot be done with these settings and arguments: exit code 2.
    Usage(anyhow::Error),
    /// Anything else: exit code 1.
    Other(anyhow::Error),
}

impl Failure {
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Settings(_) | Self::Usage(_) => ExitCode::from(2),
            Self::Other(_) => ExitCode::FAILURE,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Settings(error) => fmt::Display::fmt(error, f),
            Self::Usage(error) | Self::Other(error) => write!(f, "{error:#}"),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Settings(error)
    }
}

/// Does what the command line asks for.
pub(crate) fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command.unwrap_or(Command::Serve(cli.serve)) {
        Command::Serve(args) => {
            let source = Source::locate(args.config);
            let settings = config::load(&source, args.profile.as_deref(), Strictness::Strict, config::environment())?;
            wsc_hub::check_settings(&settings).map_err(|error| Failure::Usage(error.into()))?;
            serve::run(&settings, &source, args.profile)?;
            Ok(())
        }
        Command::CheckConfig { file, profile } => {
            let source = Source::File(file);
            let mut settings = config::load(&source, profile.as_deref(), Strictness::Strict, config::environment())?;
            // A file may be checked where keys and certificates are not.
            let missing: Vec<_> = config::watched_files(&settings).into_iter().filter(|file| !file.exists()).collect();
            if !missing.is_empty() {
                (settings.auth, settings.tls) = Default::default();
            }
            wsc_hub::check_settings(&settings).map_err(|error| Failure::Usage(error.into()))?;
            for file in missing {
                eprintln!("wsc: {} is not there, so it was not looked into", file.display());
            }
            say(&format!("{source}: ok\n"))
        }
        Command::DefaultConfig => say(&config::default_config()),
        Command::GenToken(args) => args.run(),
        Command::CheckToken(args) => args.run(),
        #[cfg(feature = "bench")]
        Command::Bench(args) => {
            let program = wsc_bench::Program {
                executable: std::env::current_exe().context("cannot find this program, to start it again")?,
                worker: vec!["bench".into(), "worker".into()],
                serve: Some(vec!["serve".into()]),
            };
            Ok(wsc_bench::run(&args, &program)?)
        }
        Command::Version => say(&format!("wsc {}\n", env!("CARGO_PKG_VERSION"))),
    }
}

/// Prints what was asked for; a reader that went away early is no failure.
pub(crate) fn say(text: &str) -> Result<(), Failure> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(anyhow::Error::new(e).into()),
        _ => Ok(()),
    }
}
