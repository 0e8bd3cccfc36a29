//! `wrenn serve`: the HTTP API, with this data directory's host in the same process.

use std::error::Error;
use std::path::Path;

use clap::Args;
use wrenn_core::Host;
use wrenn_server::Settings;
use wrenn_server::program::{AtEnd, HostPlace, Serve};

use crate::attach::told_to_end;
use crate::link::Places;

/// The host's name in the database.
const HOST: &str = "local";

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// What becomes of the sandboxes that run when the server ends.
    #[arg(long, value_enum, default_value_t = AtEnd::Leave)]
    at_end: AtEnd,
    #[command(flatten)]
    settings: Settings,
}

/// Serves until it is told to end (Ctrl-C, SIGTERM). The other commands work beside it, at the data directory's socket.
///
/// # Errors
/// The settings are wrong, the data directory is another process's, the database cannot be used, or the address not be had. Nothing
/// is left then.
pub(crate) fn run(data: &Path, args: ServeArgs) -> Result<(), Box<dyn Error + Send + Sync>> {
    let serve = Serve {
        settings: args.settings,
        local_host: Some(HOST.to_owned()),
        local_host_socket: Some(Places::of(data)?.socket),
        place: HostPlace { data: Some(data.to_owned()), at_end: args.at_end },
    };
    let told = async { drop(told_to_end().await) };
    Ok(tokio::runtime::Runtime::new()?.block_on(serve.run(Host::builder(), told))?)
}
