//! The host process in the background: the one that has a data directory open. See `link.rs` for how it is found and started.
//!
//! It serves `wrenn-host`'s protocol at the Unix socket in the data directory. It ends when no sandbox runs and nobody has been
//! connected for a while; what is paused needs no process. Told to end (SIGTERM), it leaves what runs running, and the next one
//! takes that over, as after a crash.

use std::error::Error;
use std::fs::File;
use std::io::stdin;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use wrenn_core::{Host, ShutdownPolicy};
use wrenn_host::{HostService, Listener};

use crate::link::Places;

/// The command's name, which is not shown.
pub(crate) const NAME: &str = "host-process";
/// How long it stays without sandboxes and clients, in seconds: opening a host again takes a moment.
const IDLE_VARIABLE: &str = "WRENN_IDLE_SECONDS";
const IDLE_LIMIT: Duration = Duration::from_secs(30);
/// How long ending may take.
const END_LIMIT: Duration = Duration::from_secs(30);

/// Serves at the socket that is this program's standard input, until nobody needs it.
///
/// # Errors
/// The data directory cannot be opened, or not be closed cleanly. They are read in the log, by whoever started it.
pub(crate) fn run(data: &Path) -> Result<(), Box<dyn Error + Send + Sync>> {
    // Away from the terminal and from Ctrl-C. It fails only for who leads a session already.
    let _ = rustix::process::setsid();
    let listener = StdListener::from(stdin().as_fd().try_clone_to_owned()?);
    listener.set_nonblocking(true)?;
    tokio::runtime::Runtime::new()?.block_on(serve(data, listener))
}

async fn serve(data: &Path, listener: StdListener) -> Result<(), Box<dyn Error + Send + Sync>> {
    let places = Places::of(data)?;
    let listener = Listener::inherited(UnixListener::from_std(listener)?);
    let host = Host::builder().data_dir(data).open().await?;
    let service = HostService::new(host.clone(), "local").await?;
    let mut told = signal(SignalKind::terminate())?;
    let (held_sender, held) = tokio::sync::oneshot::channel();
    let end = async {
        let lock = tokio::select! {
            lock = idle(&service, &places) => lock,
            _ = told.recv() => hold(&places).await,
        };
        // From here on commands find no socket, and wait with starting another process until this one is gone.
        let _ = std::fs::remove_file(&places.socket);
        let _ = held_sender.send(lock);
    };
    service.serve(listener, end).await;
    let _lock = held.await;
    for failure in service.shutdown(ShutdownPolicy::LeaveRunning, END_LIMIT).await {
        tracing::warn!(sandbox = %failure.sandbox, error = %failure.error, "is not left running");
    }
    Ok(host.close().await?)
}

/// Waits until nobody has needed the process for its time, and keeps anybody from starting another.
async fn idle(service: &HostService, places: &Places) -> Option<File> {
    let limit = std::env::var(IDLE_VARIABLE).ok().and_then(|text| text.parse().ok());
    let limit = limit.map_or(IDLE_LIMIT, Duration::from_secs);
    let mut since = Instant::now();
    loop {
        tokio::time::sleep(limit.min(Duration::from_secs(1))).await;
        if !service.is_idle() {
            since = Instant::now();
        } else if since.elapsed() >= limit {
            let lock = hold(places).await;
            if service.is_idle() {
                return lock;
            }
        }
    }
}

/// Without the lock, which cannot be had only where the data directory is no more, it is as well to end.
async fn hold(places: &Places) -> Option<File> {
    let places = places.clone();
    tokio::task::spawn_blocking(move || places.hold()).await.ok()?.ok()
}
