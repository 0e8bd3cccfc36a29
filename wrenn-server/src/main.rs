//! The `wrenn-server` program.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use wrenn_server::{SecretString, Server, ServerError, Settings};

/// The control plane of Wrenn: a multi-tenant HTTP API over hosts of sandboxes.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Subcommand)]
enum Command {
    /// Serve; what is done without a command too
    Serve,
    /// Make a user with a team of their own, also where sign-up is closed
    User {
        /// The user's address
        email: String,
        /// The user's name
        #[arg(long, default_value = "")]
        name: String,
        /// The user sees and drains hosts
        #[arg(long)]
        operator: bool,
        /// The password
        #[arg(long, env = "WRENN_PASSWORD", hide_env_values = true)]
        password: SecretString,
    },
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
    match runtime.block_on(run(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

async fn run(arguments: Arguments) -> Result<(), ServerError> {
    let config = arguments.settings.resolve()?;
    let listen = config.listen;
    match arguments.command.unwrap_or(Command::Serve) {
        Command::Serve => {
            let server = Server::open(config).await?;
            let failed = |source| ServerError::Listen { place: listen.to_string(), source };
            let listener = TcpListener::bind(listen).await.map_err(failed)?;
            let mut end = signal(SignalKind::terminate()).map_err(failed)?;
            let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
            let stop = async move {
                tokio::select! { _ = end.recv() => {}, _ = interrupt.recv() => {} }
            };
            server.serve(listener, stop).await
        }
        Command::User { email, name, operator, password } => {
            let server = Server::open(config).await?;
            println!("{}", server.create_user(&email, &name, &password, operator).await?);
            Ok(())
        }
    }
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
