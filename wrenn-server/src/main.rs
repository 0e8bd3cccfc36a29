//! The `wrenn-server` program.

#![forbid(unsafe_code)]

use std::future::Future;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;
use wrenn_core::Host;
use wrenn_server::program::{AddUser, Serve, ServeHost};
use wrenn_server::{ServerError, Settings};

/// The control plane of Wrenn: a multi-tenant HTTP API over hosts of sandboxes.
///
/// Each setting is a flag, a variable of the environment or of `.env`, or a key of a settings file; the first of these
/// that has it wins. WRENN_LOG says what is logged, as `info` or `wrenn_server=debug`.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the API, with a host in the process or with others
    Serve(Box<Serve>),
    /// Be a host for control planes
    Host(Box<ServeHost>),
    /// Make a user with a team of their own, also where sign-up is closed
    User(Box<AddUser>),
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("WRENN_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    // Before there is another thread, as it changes the environment.
    if let Err(error) = Settings::load_dot_env() {
        return failed(&error);
    }
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    match runtime.block_on(run(arguments.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

async fn run(command: Command) -> Result<(), ServerError> {
    match command {
        Command::Serve(serve) => serve.run(Host::builder(), told_to_stop()?).await,
        Command::Host(host) => host.run(Host::builder(), told_to_stop()?).await,
        Command::User(user) => {
            println!("{}", user.run().await?);
            Ok(())
        }
    }
}

/// Ready when the process is told to stop.
fn told_to_stop() -> Result<impl Future<Output = ()>, ServerError> {
    let hear = |kind: SignalKind| -> Result<Signal, ServerError> {
        signal(kind).map_err(|source| ServerError::Listen { place: "signals".to_owned(), source })
    };
    let (mut terminate, mut interrupt) = (hear(SignalKind::terminate())?, hear(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    })
}

/// Says what went wrong and because of what, in one line.
fn failed(error: &dyn std::error::Error) -> ExitCode {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    eprintln!("wrenn-server: {text}");
    ExitCode::FAILURE
}
