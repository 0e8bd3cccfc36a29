//! What a server's handle and its threads have in common.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, ThreadId};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

use crate::error::UffdError;
use crate::prefetch::Recorder;
use crate::server::{End, Outcome};
use crate::stats::Counters;

pub(crate) struct Shared {
    pub(crate) path: PathBuf,
    /// Readable once the server is to stop.
    pub(crate) stop: OwnedFd,
    pub(crate) counters: Counters,
    pub(crate) recorder: Option<Recorder>,
    progress: Mutex<Progress>,
    progressed: Condvar,
    /// Taken by whoever joins the first thread, which joins the others.
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Who cannot wait for the threads to end, being one of them.
    thread_ids: Mutex<Vec<ThreadId>>,
}

/// How far the threads have come.
#[derive(Debug, Default)]
struct Progress {
    outcome: Option<Outcome>,
    /// They hold nothing any more and the first is about to return.
    gone: bool,
}

impl Shared {
    pub(crate) fn new(socket: &Path, record: bool) -> Result<Self, UffdError> {
        Ok(Self {
            path: socket.to_owned(),
            stop: signal().map_err(UffdError::system("make an eventfd"))?,
            counters: Counters::default(),
            recorder: record.then(Recorder::default),
            progress: Mutex::new(Progress::default()),
            progressed: Condvar::new(),
            thread: Mutex::new(None),
            thread_ids: Mutex::default(),
        })
    }

    pub(crate) fn started(&self, thread: JoinHandle<()>) {
        self.is_ours(thread.thread().id());
        *lock(&self.thread) = Some(thread);
    }

    /// Notes one of the server's threads.
    pub(crate) fn is_ours(&self, thread: ThreadId) {
        lock(&self.thread_ids).push(thread);
    }

    pub(crate) fn outcome(&self) -> Option<Outcome> {
        lock(&self.progress).outcome.clone()
    }

    /// Blocks until there is an outcome.
    pub(crate) fn wait(&self, limit: Duration) -> Option<Outcome> {
        self.wait_while(limit, |progress| progress.outcome.is_none()).outcome.clone()
    }

    /// Sets how the server ended. False where that was settled before.
    pub(crate) fn settle(&self, outcome: Outcome) -> bool {
        let mut progress = lock(&self.progress);
        let first = progress.outcome.is_none();
        progress.outcome.get_or_insert(outcome);
        drop(progress);
        self.progressed.notify_all();
        first
    }

    /// Notes that the threads hold nothing any more.
    pub(crate) fn leave(&self) {
        lock(&self.progress).gone = true;
        self.progressed.notify_all();
    }

    pub(crate) fn stop(&self) -> Outcome {
        raise(&self.stop);
        if !lock(&self.thread_ids).contains(&std::thread::current().id())
            // Others who stop it wait at this lock until it is joined.
            && let Some(thread) = lock(&self.thread).take()
        {
            // It catches its panics.
            let _ = thread.join();
        }
        // Without an outcome it never started.
        self.outcome().unwrap_or(Ok(End::Stopped))
    }

    pub(crate) fn stop_within(&self, limit: Duration) -> Result<(), &'static str> {
        raise(&self.stop);
        let started = !lock(&self.thread_ids).is_empty();
        if started && !self.wait_while(limit, |progress| !progress.gone).gone {
            return Err("its thread still waits for its page source");
        }
        let _ = self.stop();
        Ok(())
    }

    fn wait_while(&self, limit: Duration, condition: impl Fn(&Progress) -> bool) -> MutexGuard<'_, Progress> {
        let progress = lock(&self.progress);
        let waited = self.progressed.wait_timeout_while(progress, limit, |progress| condition(progress));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Something to wait for: an eventfd, readable once it was [raised](raise).
pub(crate) fn signal() -> rustix::io::Result<OwnedFd> {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
}

/// Makes an eventfd readable.
pub(crate) fn raise(signal: &OwnedFd) {
    // Full (EAGAIN) means that it is readable, which is all that counts.
    let _ = rustix::io::write(signal, &1u64.to_ne_bytes());
}

/// No code panics while it holds one of these locks, but for a page source: what that leaves is told by then.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
