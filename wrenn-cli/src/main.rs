//! The `wrenn` command: makes what sandboxes are made of.
//!
//! ```text
//! wrenn image build debian              a minimal Debian, from the machine's own package sources
//! wrenn image build NAME --from PATH    any directory, or tar archive (plain, gzip, zstd)
//! wrenn image import NAME SOURCE        what containers are run from: archives of `docker save`, OCI layouts, registries
//! wrenn image ls
//! wrenn guest build                     the kernel and the initramfs that all sandboxes boot
//! wrenn doctor                          what this machine has and lacks for sandboxes
//! wrenn bench restore                   how long resuming takes here, with tables and plots
//! ```
//!
//! Everything is built under a staging name and appears whole or not at all. An interrupted build (Ctrl-C, SIGTERM)
//! removes what it staged; what a killed one leaves is swept by the next command.
#![deny(unsafe_code)]

mod bench;
mod build;
mod doctor;
mod guest;
mod image;
mod interrupt;
mod progress;
#[allow(unsafe_code)]
mod sys;
mod tool;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// MicroVM sandboxes: images and guests.
#[derive(Debug, Parser)]
#[command(name = "wrenn", version)]
struct Cli {
    /// Where images and guest files are kept.
    #[arg(long, global = true, env = "WRENN_DATA", default_value = "/var/lib/wrenn", value_name = "DIR")]
    data: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Root file systems.
    #[command(subcommand)]
    Image(image::ImageCommand),
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
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&*error);
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<(), Box<dyn Error>> {
    match cli.command {
        Command::Bench(command) => bench::run(&cli.data, command)?,
        Command::Doctor => doctor::run(&cli.data)?,
        Command::Image(command) => interrupt::install().and_then(|()| image::run(&cli.data, command))?,
        Command::Guest(command) => interrupt::install().and_then(|()| guest::run(&cli.data, command))?,
    }
    Ok(())
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
