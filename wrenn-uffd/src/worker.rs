//! A server's threads: the first one waits for the process, starts the others, and is the last to go.

use std::any::Any;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

use crate::accept::{Peer, SocketPath, Wait};
use crate::cache::Backing;
use crate::error::UffdError;
use crate::options::{FailureCallback, FaultServerOptions, MAX_THREADS};
use crate::prefetch::Cursor;
use crate::serve::Session;
use crate::server::End;
use crate::service::Service;
use crate::shared::{Shared, lock};
use crate::source::PAGE_SIZE;

/// Longer than anybody waits; what an unreasonable deadline is cut to.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// What the first thread owns.
pub(crate) struct Worker {
    reporter: Arc<Reporter>,
    backing: Backing,
    options: FaultServerOptions,
}

/// Everything that has to stay open as long as the process lives.
#[derive(Default)]
struct Served {
    helpers: Vec<JoinHandle<()>>,
    peer: Option<Peer>,
    service: Option<Arc<Service>>,
}

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>, backing: Backing, mut options: FaultServerOptions) -> Self {
        let on_failure = Mutex::new(options.on_failure.take());
        Self { reporter: Arc::new(Reporter { shared, on_failure }), backing, options }
    }

    pub(crate) fn run(mut self, listener: UnixListener, path: SocketPath) {
        let mut served = Served::default();
        let reporter = self.reporter.clone();
        reporter.report_end_of(|| self.serve(listener, path, &mut served));
        if let Some(service) = &served.service {
            service.halt();
        }
        let shared = reporter.shared.clone();
        if shared.outcome().is_some_and(|outcome| outcome.is_err()) {
            if self.options.kill_on_failure {
                served.kill();
            }
            served.hold(&shared);
        }
        for helper in served.helpers.drain(..) {
            // It catches its panics.
            let _ = helper.join();
        }
        drop(served);
        // The callback too: it may own this server's handle.
        drop((self, reporter));
        shared.leave();
    }

    fn serve(
        &mut self,
        listener: UnixListener,
        path: SocketPath,
        served: &mut Served,
    ) -> Result<End, UffdError> {
        let now = Instant::now();
        let deadline = self.options.accept_deadline;
        let until = now.checked_add(deadline).unwrap_or(now + FOREVER);
        let shared = self.reporter.shared.clone();
        let wait = Wait { stop: shared.stop.as_fd(), deadline, until };
        let Some(peer) = wait.accept(listener, &path)? else { return Ok(End::Stopped) };
        let peer = served.peer.insert(peer);
        let Some((regions, uffd)) = wait.introduce(peer, &path, &self.backing)? else {
            return Ok(End::Stopped);
        };
        // One process only: nobody else has business with the socket from here on.
        drop(path);
        let pages = self.backing.source().len() / PAGE_SIZE;
        let prefetch = std::mem::take(&mut self.options.prefetch);
        let cursor = Cursor::new(prefetch, pages, self.options.prefetch_limit);
        let process = peer.process.try_clone().map_err(UffdError::system("watch the monitor"))?;
        let (backing, run_bytes) = (self.backing.clone(), self.options.run_bytes());
        let service = Service::new(uffd, process, regions, backing, shared, run_bytes, cursor)
            .map_err(UffdError::system("make an eventfd"))?;
        let service = served.service.insert(Arc::new(service));
        let threads = self.options.threads.clamp(1, MAX_THREADS);
        for _ in 1..threads {
            served.helpers.push(self.help(service.clone())?);
        }
        Session::new(service, threads > 1).run()
    }

    /// Starts one more thread.
    fn help(&self, service: Arc<Service>) -> Result<JoinHandle<()>, UffdError> {
        let reporter = self.reporter.clone();
        std::thread::Builder::new()
            .name(self.options.thread_name.clone())
            .spawn(move || {
                reporter.shared.is_ours(std::thread::current().id());
                reporter.report_end_of(|| Session::new(&service, true).run());
                service.halt();
            })
            .map_err(UffdError::system("start the fault server's threads"))
    }
}

impl Served {
    /// Ends the process, if one has connected.
    fn kill(&self) {
        let Some(peer) = &self.peer else { return };
        match pidfd_send_signal(&peer.process, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => tracing::error!(%error, "a process whose memory cannot be served cannot be ended"),
        }
    }

    /// Waits for the process's end, or for being stopped.
    fn hold(&self, shared: &Shared) {
        let Some(peer) = &self.peer else { return };
        loop {
            let mut fds =
                [PollFd::new(&shared.stop, PollFlags::IN), PollFd::new(&peer.process, PollFlags::IN)];
            match poll(&mut fds, None) {
                Err(Errno::INTR) => {}
                _ => return,
            }
        }
    }
}

/// Tells how the server ended, once, whichever thread finds out.
struct Reporter {
    shared: Arc<Shared>,
    on_failure: Mutex<Option<FailureCallback>>,
}

impl Reporter {
    fn report_end_of(&self, serve: impl FnOnce() -> Result<End, UffdError>) {
        let ended = catch_unwind(AssertUnwindSafe(serve))
            .unwrap_or_else(|panic| Err(UffdError::Panicked { message: panic_message(&*panic) }));
        let socket = self.shared.path.display();
        match ended {
            Ok(end) => {
                if self.shared.settle(Ok(end)) {
                    tracing::debug!(?end, %socket, "fault server ended");
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                let cause = std::error::Error::source(&*error).map(tracing::field::display);
                tracing::error!(%error, cause, %socket, "fault server failed");
                let first = self.shared.settle(Err(error.clone()));
                if let Some(on_failure) = lock(&self.on_failure).take().filter(|_| first) {
                    // Even if the callback panics the process must not run on with zeros.
                    let _ = catch_unwind(AssertUnwindSafe(|| on_failure(error)));
                }
            }
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("without a message").to_owned()
}
