//! The server's handle and its thread.
//!
//! ```text
//! listen ── accept ── introduce ── serve ──┬── stop() or process gone ── ended
//!              │          │          │     │
//!              └──────────┴──────────┴── error ── on_failure ── holding ── ended
//! ```
//! *Holding* keeps the userfaultfd open until the process is gone or the caller stops the server. Without a
//! process there is nothing to hold.

use std::any::Any;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use wrenn_base::UndoList;

use crate::accept::{Peer, SocketPath, Wait};
use crate::error::UffdError;
use crate::options::FaultServerOptions;
use crate::serve::Session;
use crate::source::PageSource;
use crate::stats::{Counters, FaultStats};

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

/// Longer than anybody waits; what an unreasonable deadline is cut to.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A server of one process's page faults, with a thread of its own.
///
/// Stop it after the process is gone. Dropping it stops it.
pub struct FaultServer {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    /// Readable once the server is to stop.
    stop: OwnedFd,
    counters: Counters,
    progress: Mutex<Progress>,
    progressed: Condvar,
    /// Taken by whoever joins the thread, who holds the lock meanwhile.
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Set as soon as there is a thread.
    thread_id: OnceLock<ThreadId>,
}

/// How far the thread has come.
#[derive(Debug, Default)]
struct Progress {
    outcome: Option<Outcome>,
    /// It holds nothing any more and is about to return.
    gone: bool,
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
        source: Arc<dyn PageSource>,
        options: FaultServerOptions,
        undo: &mut UndoList,
    ) -> Result<Self, UffdError> {
        let shared = Arc::new(Shared::new(socket)?);
        let undone = shared.clone();
        undo.push(format!("the fault server at {}", socket.display()), move |deadline| {
            undone.stop_within(deadline.remaining()).map_err(Into::into)
        });
        Self::start(shared, source, options)
    }

    /// Starts a server at the Unix socket `socket` for the one process that will connect.
    ///
    /// The process can connect as soon as this returns. The socket (mode 0600) is removed once it has, or
    /// when the server ends. Whoever connects gets to read the source: keep the socket where only the monitor
    /// can reach it.
    ///
    /// # Errors
    /// [`UffdError::Listen`] where the socket cannot be made, for one because its path is taken;
    /// [`UffdError::System`] where there is no thread to be had. Nothing is left behind.
    pub fn listen(
        socket: &Path,
        source: Arc<dyn PageSource>,
        options: FaultServerOptions,
    ) -> Result<Self, UffdError> {
        Self::start(Arc::new(Shared::new(socket)?), source, options)
    }

    fn start(
        shared: Arc<Shared>,
        source: Arc<dyn PageSource>,
        options: FaultServerOptions,
    ) -> Result<Self, UffdError> {
        let (listener, path) = open_socket(&shared.path)
            .map_err(|source| UffdError::Listen { path: shared.path.clone(), source })?;
        let name = options.thread_name.clone();
        let worker = Worker { shared: shared.clone(), source, options };
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || worker.run(listener, path))
            .map_err(UffdError::system("start the fault server's thread"))?;
        let _ = shared.thread_id.set(thread.thread().id());
        *lock(&shared.thread) = Some(thread);
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

    /// How the server ended; `None` while it has not.
    pub fn outcome(&self) -> Option<Outcome> {
        lock(&self.shared.progress).outcome.clone()
    }

    /// Blocks until the server has ended, at most `limit`; `None` if it has not by then.
    pub fn wait(&self, limit: Duration) -> Option<Outcome> {
        self.shared.wait_while(limit, |progress| progress.outcome.is_none()).outcome.clone()
    }

    /// Ends the server, waits for its thread, and returns how it ended, be it earlier.
    ///
    /// A process that still lives is left with pages that nobody fills: kill it first. Blocks for the read of
    /// the source that may be under way and no longer. May be called more than once, and from the failure
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

impl Shared {
    fn new(socket: &Path) -> Result<Self, UffdError> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(UffdError::system("make an eventfd"))?;
        Ok(Self {
            path: socket.to_owned(),
            stop,
            counters: Counters::default(),
            progress: Mutex::new(Progress::default()),
            progressed: Condvar::new(),
            thread: Mutex::new(None),
            thread_id: OnceLock::new(),
        })
    }

    fn stop(&self) -> Outcome {
        self.signal_stop();
        if self.thread_id.get() != Some(&std::thread::current().id())
            && let Some(thread) = lock(&self.thread).take()
        {
            // It catches its panics.
            let _ = thread.join();
        }
        // Without an outcome it never started.
        lock(&self.progress).outcome.clone().unwrap_or(Ok(End::Stopped))
    }

    fn stop_within(&self, limit: Duration) -> Result<(), &'static str> {
        self.signal_stop();
        let started = self.thread_id.get().is_some();
        if started && !self.wait_while(limit, |progress| !progress.gone).gone {
            return Err("its thread still waits for its page source");
        }
        let _ = self.stop();
        Ok(())
    }

    fn signal_stop(&self) {
        // Full (EAGAIN) means that it is readable, which is all that counts.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
    }

    fn wait_while(&self, limit: Duration, condition: impl Fn(&Progress) -> bool) -> MutexGuard<'_, Progress> {
        let progress = lock(&self.progress);
        let waited = self.progressed.wait_timeout_while(progress, limit, |progress| condition(progress));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn advance(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut lock(&self.progress));
        self.progressed.notify_all();
    }
}

/// What the thread owns.
struct Worker {
    shared: Arc<Shared>,
    source: Arc<dyn PageSource>,
    options: FaultServerOptions,
}

impl Worker {
    fn run(mut self, listener: UnixListener, path: SocketPath) {
        let on_failure = self.options.on_failure.take();
        let mut served = None;
        let ended = catch_unwind(AssertUnwindSafe(|| self.serve(listener, path, &mut served)))
            .unwrap_or_else(|panic| Err(UffdError::Panicked { message: panic_message(&*panic) }));
        match ended {
            Ok(end) => {
                tracing::debug!(?end, socket = %self.shared.path.display(), "fault server ended");
                self.shared.advance(|progress| progress.outcome = Some(Ok(end)));
            }
            Err(error) => {
                let error = Arc::new(error);
                let cause = std::error::Error::source(&*error).map(tracing::field::display);
                tracing::error!(%error, cause, socket = %self.shared.path.display(), "fault server failed");
                self.shared.advance(|progress| progress.outcome = Some(Err(error.clone())));
                if let Some(on_failure) = on_failure {
                    // Even if the callback panics the process must not run on with zeros.
                    let _ = catch_unwind(AssertUnwindSafe(|| on_failure(error)));
                }
                if let Some(served) = &served {
                    self.hold(&served.peer);
                }
            }
        }
        drop(served);
        self.shared.advance(|progress| progress.gone = true);
    }

    fn serve<'a>(
        &'a self,
        listener: UnixListener,
        path: SocketPath,
        served: &mut Option<Served<'a>>,
    ) -> Result<End, UffdError> {
        let now = Instant::now();
        let deadline = self.options.accept_deadline;
        let until = now.checked_add(deadline).unwrap_or(now + FOREVER);
        let wait = Wait { stop: self.shared.stop.as_fd(), deadline, until };
        let Some(peer) = wait.accept(listener, &path)? else { return Ok(End::Stopped) };
        let served = served.insert(Served { peer, session: None });
        let Some((regions, uffd)) = wait.introduce(&mut served.peer, &path, self.source.len())? else {
            return Ok(End::Stopped);
        };
        // One process only: nobody else has business with the socket from here on.
        drop(path);
        let (source, counters) = (&*self.source, &self.shared.counters);
        let session = Session::new(uffd, regions, self.options.run_bytes(), source, counters);
        served.session.insert(session).run(self.shared.stop.as_fd(), served.peer.process.as_fd())
    }

    /// Waits for the process's end, or for being stopped.
    fn hold(&self, peer: &Peer) {
        loop {
            let mut fds =
                [PollFd::new(&self.shared.stop, PollFlags::IN), PollFd::new(&peer.process, PollFlags::IN)];
            match poll(&mut fds, None) {
                Err(Errno::INTR) => {}
                _ => return,
            }
        }
    }
}

/// Everything that has to stay open as long as the process lives.
struct Served<'a> {
    session: Option<Session<'a>>,
    peer: Peer,
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

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("without a message").to_owned()
}

/// No code panics while it holds one of these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
