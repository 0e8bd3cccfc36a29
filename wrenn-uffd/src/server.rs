//! The server's handle.
//!
//! ```text
//! listen ── accept ── introduce ── serve ──┬── stop() or process gone ── ended
//!              │          │          │     │
//!              └──────────┴──────────┴── error ── on_failure ── holding ── ended
//! ```
//! *Holding* keeps the userfaultfd open until the process is gone or the caller stops the server. Without a
//! process there is nothing to hold.

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use wrenn_base::UndoList;

use crate::accept::SocketPath;
use crate::cache::Backing;
use crate::error::UffdError;
use crate::options::FaultServerOptions;
use crate::prefetch::{PageRun, Recorder};
use crate::shared::Shared;
use crate::stats::FaultStats;
use crate::worker::Worker;

/// How a server came to a regular end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// The caller stopped it.
    Stopped,
    /// The process that was served is gone.
    ProcessExited,
}

/// How a server ended.
pub type Outcome = Result<End, Arc<UffdError>>;

/// A server of one process's page faults, with threads of its own.
///
/// Stop it after the process is gone. Dropping it stops it.
pub struct FaultServer {
    shared: Arc<Shared>,
}

impl FaultServer {
    /// Starts a server at the Unix socket `socket` for the one process that will connect, and registers its
    /// undo.
    ///
    /// The same as [`listen`](Self::listen), for callers who build something larger: the undo stops the
    /// server and removes the socket, and is registered before either is there.
    ///
    /// # Errors
    /// As for `listen`.
    pub fn bind(
        socket: &Path,
        backing: impl Into<Backing>,
        options: FaultServerOptions,
        undo: &mut UndoList,
    ) -> Result<Self, UffdError> {
        let shared = Arc::new(Shared::new(socket, options.record)?);
        let undone = shared.clone();
        undo.push(format!("the fault server at {}", socket.display()), move |deadline| {
            undone.stop_within(deadline.remaining()).map_err(Into::into)
        });
        Self::start(shared, backing.into(), options)
    }

    /// Starts a server at the Unix socket `socket` for the one process that will connect.
    ///
    /// `backing` is an `Arc` of a [`PageSource`](crate::PageSource), or of a [`PageCache`](crate::PageCache).
    /// The process can connect as soon as this returns. The socket (mode 0600) is removed once it has, or
    /// when the server ends. Whoever connects gets to read the source: keep the socket where only the monitor
    /// can reach it.
    ///
    /// # Errors
    /// [`UffdError::Listen`] where the socket cannot be made, for one because its path is taken;
    /// [`UffdError::System`] where there is no thread to be had. Nothing is left behind.
    pub fn listen(
        socket: &Path,
        backing: impl Into<Backing>,
        options: FaultServerOptions,
    ) -> Result<Self, UffdError> {
        Self::start(Arc::new(Shared::new(socket, options.record)?), backing.into(), options)
    }

    fn start(shared: Arc<Shared>, backing: Backing, options: FaultServerOptions) -> Result<Self, UffdError> {
        let (listener, path) = open_socket(&shared.path)
            .map_err(|source| UffdError::Listen { path: shared.path.clone(), source })?;
        let name = options.thread_name.clone();
        let worker = Worker::new(shared.clone(), backing, options);
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || worker.run(listener, path))
            .map_err(UffdError::system("start the fault server's thread"))?;
        shared.started(thread);
        Ok(Self { shared })
    }

    /// The socket's path, whether it is still there or not.
    pub fn socket(&self) -> &Path {
        &self.shared.path
    }

    /// What the server did so far. Costs a few loads.
    pub fn stats(&self) -> FaultStats {
        self.shared.counters.snapshot()
    }

    /// The runs of pages that were filled because somebody touched one of them, in that order; empty unless
    /// [`FaultServerOptions::record`] asked for it.
    ///
    /// It is what a later server of the same image should [prefetch](FaultServerOptions::prefetch). Zero pages
    /// are left out. So are pages that were there before they were touched, prefetched or in the cache: it is
    /// the first process on a cache, without prefetch, whose record is whole.
    pub fn recording(&self) -> Vec<PageRun> {
        self.shared.recorder.as_ref().map(Recorder::runs).unwrap_or_default()
    }

    /// How the server ended; `None` while it has not.
    pub fn outcome(&self) -> Option<Outcome> {
        self.shared.outcome()
    }

    /// Blocks until the server has ended, at most `limit`; `None` if it has not by then.
    pub fn wait(&self, limit: Duration) -> Option<Outcome> {
        self.shared.wait(limit)
    }

    /// Ends the server, waits for its threads, and returns how it ended, be it earlier.
    ///
    /// A process that still lives is left with pages that nobody fills: kill it first. Blocks for the reads
    /// of the source that may be under way and no longer. May be called more than once, and from the failure
    /// callback.
    pub fn stop(&self) -> Outcome {
        self.shared.stop()
    }
}

impl Drop for FaultServer {
    fn drop(&mut self) {
        let _ = self.shared.stop();
    }
}

impl fmt::Debug for FaultServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultServer")
            .field("socket", &self.shared.path)
            .field("outcome", &self.outcome())
            .finish_non_exhaustive()
    }
}

fn open_socket(path: &Path) -> std::io::Result<(UnixListener, SocketPath)> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    bind(&socket, &address)?;
    let bound = SocketPath(path.to_owned());
    // Before it listens nobody can connect, so there is no moment in which others could.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listen(&socket, 1)?;
    Ok((UnixListener::from(socket), bound))
}
