//! `wrenn serve`: the HTTP API, with this data directory's host in the same process.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::net::TcpListener;
use wrenn_core::{Host, ShutdownPolicy};
use wrenn_host::{HostService, Listener};
use wrenn_server::{Server, Settings};

use crate::attach::told_to_end;
use crate::link::Places;

/// The host's name in the database.
const HOST: &str = "local";
/// How long what is to become of the sandboxes may take.
const END_LIMIT: Duration = Duration::from_secs(300);

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// What becomes of the sandboxes that run when the server ends.
    #[arg(long, value_enum, default_value_t = AtEnd::Leave)]
    at_end: AtEnd,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AtEnd {
    /// They run on, and the next server, or command, has them.
    Leave,
    /// They are paused to disk.
    Pause,
    /// They are destroyed.
    Destroy,
}

/// Serves until it is told to end (Ctrl-C, SIGTERM).
///
/// # Errors
/// The settings are wrong, the data directory is another process's, the database cannot be used, or the address not be had. Nothing
/// is left then.
pub(crate) fn run(data: &Path, args: ServeArgs) -> Result<(), Box<dyn Error + Send + Sync>> {
    let config = args.settings.resolve()?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let places = Places::of(data)?;
        let listen = config.listen;
        let listener =
            TcpListener::bind(listen).await.map_err(|error| format!("cannot listen at {listen}: {error}"))?;
        let host = Host::builder().data_dir(data).open().await?;
        let service = HostService::new(host.clone(), HOST).await?;
        // The other commands work beside it.
        let commands = Listener::unix(&places.socket)?;
        let server = Server::open_with(config, [(HOST.to_owned(), service.client())]).await?;
        let (served, ()) = tokio::join!(
            server.serve(listener, async { drop(told_to_end().await) }),
            service.serve(commands, async { drop(told_to_end().await) }),
        );
        let policy = match args.at_end {
            AtEnd::Leave => ShutdownPolicy::LeaveRunning,
            AtEnd::Pause => ShutdownPolicy::PauseAll,
            AtEnd::Destroy => ShutdownPolicy::DestroyAll,
        };
        for failure in service.shutdown(policy, END_LIMIT).await {
            eprintln!("wrenn: sandbox {} runs on: {}", failure.sandbox, failure.error);
        }
        host.close().await?;
        Ok(served?)
    })
}
