//! The `wrenn` command.
//!
//! ```text
//! wrenn run -it debian                  a shell in a new sandbox, which is gone with it
//! wrenn ps, exec, cp, pause, resume …   the sandboxes of a data directory
//! wrenn images build debian             a minimal Debian, from the machine's own package sources
//! wrenn doctor                          what this machine has and lacks for sandboxes
//! wrenn bench restore                   how long resuming takes here, with tables and plots
//! ```
//!
//! - `commands/` are those about sandboxes: clients of the data directory's host process (`link.rs`, `daemon.rs`).
//! - `image.rs` and `build/` make images. Everything is built under a staging name and appears whole or not at all. An
//!   interrupted build (Ctrl-C, SIGTERM) removes what it staged; what a killed one leaves is swept by the next command.
#![deny(unsafe_code)]

mod args;
mod attach;
mod bench;
mod build;
mod commands;
mod daemon;
mod doctor;
mod guest;
mod image;
mod interrupt;
mod link;
mod manual;
mod output;
mod progress;
mod serve;
#[allow(unsafe_code)]
mod sys;
mod terminal;
mod tool;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::output::Format;

/// MicroVM sandboxes.
///
/// Exit status: 0, or 1 where something failed, and 2 for what cannot be understood. `run` and `exec` have the command's own.
#[derive(Debug, Parser)]
#[command(name = "wrenn", version, arg_required_else_help = true)]
struct Cli {
    /// Where images, sandboxes and snapshots are kept.
    #[arg(long, global = true, env = "WRENN_DATA", default_value = "/var/lib/wrenn", value_name = "DIR")]
    data: PathBuf,
    /// Print results as JSON, one document in a line.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Sandbox(commands::SandboxCommand),
    /// Root file systems.
    #[command(subcommand, visible_alias = "image")]
    Images(image::ImageCommand),
    /// The kernel and the initramfs that all sandboxes boot.
    #[command(subcommand)]
    Guest(guest::GuestCommand),
    /// Look at what this machine has and lacks for sandboxes.
    ///
    /// Exit status 0 when sandboxes can run, 1 when something is missing.
    Doctor,
    /// Measurements on this machine.
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Serve the HTTP API, with this data directory's sandboxes, until told to end.
    Serve(Box<serve::ServeArgs>),
    /// Print what makes a shell complete this command's arguments.
    Completions { shell: clap_complete::Shell },
    /// Write manual pages into a directory.
    Man { dir: PathBuf },
    /// The process in the background that has the data directory open; commands start it.
    #[command(name = daemon::NAME, hide = true)]
    HostProcess,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    let mut cli = Cli::parse();
    if let Command::Serve(_) = cli.command {
        // Once more, with what the file `.env` says. No other thread is there yet.
        if let Err(error) = wrenn_server::Settings::load_dot_env() {
            report(&error);
            return ExitCode::FAILURE;
        }
        cli = Cli::parse();
    }
    let failed = match cli.command {
        Command::Sandbox(commands::SandboxCommand::Run(_) | commands::SandboxCommand::Exec(_)) => {
            attach::status::FAILED
        }
        _ => 1,
    };
    run(cli).unwrap_or_else(|error| {
        report(&*error);
        failed.into()
    })
}

fn run(cli: Cli) -> Result<ExitCode, Box<dyn Error + Send + Sync>> {
    let format = if cli.json { Format::Json } else { Format::Text };
    match cli.command {
        Command::Sandbox(command) => {
            let runtime = tokio::runtime::Runtime::new()?;
            let done = runtime.block_on(commands::run(&cli.data, format, command));
            // A thread may wait for a key that nobody will press.
            runtime.shutdown_background();
            return done;
        }
        Command::Bench(command) => bench::run(&cli.data, command).map_err(|error| error.to_string())?,
        Command::Doctor => return doctor::run(&cli.data, format),
        Command::Images(command) => {
            if let image::ImageCommand::Rm(args) = &command
                && !args.force
            {
                tokio::runtime::Runtime::new()?.block_on(commands::check_unused(
                    &cli.data,
                    format,
                    &args.names,
                ))?;
            }
            interrupt::install().and_then(|()| image::run(&cli.data, format, command))?;
        }
        Command::Guest(command) => interrupt::install().and_then(|()| guest::run(&cli.data, command))?,
        Command::Serve(args) => serve::run(&cli.data, *args)?,
        Command::Completions { shell } => manual::completions(shell),
        Command::Man { dir } => manual::write_pages(&dir)?,
        Command::HostProcess => daemon::run(&cli.data)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// An error and what caused it, one line each.
fn report(error: &dyn Error) {
    eprintln!("wrenn: {}", printable(&error.to_string()));
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  because: {}", printable(&error.to_string()));
        cause = error.source();
    }
}

/// A text without what a terminal would act upon: errors and records quote what strangers wrote.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}
