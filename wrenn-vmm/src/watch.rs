//! The thread that watches one monitor until it is gone, and the only one to collect its status.
//!
//! Invariants:
//! - The status is collected once, here, whoever still holds a handle: no zombie is left while this process lives.
//! - Signals go through the pidfd, so they can never reach another process that got the same number.
//! - The thread needs no async runtime, so neither does an undo step that waits for it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use tokio::sync::watch;
use wrenn_base::{Deadline, SandboxId};

use crate::cgroup::Cgroup;
use crate::console::Console;
use crate::error::VmmError;
use crate::exit::{ExitReport, ExitStatus};
use crate::launch::Spawned;

/// How often the console log's length is looked at.
const CONSOLE_CHECK: Duration = Duration::from_secs(2);
/// What an undo leaves a monitor for leaving by itself.
const UNDO_GRACE: Duration = Duration::from_secs(2);
/// How long a broken connection waits for news of the process's end, which follows within milliseconds.
const EXIT_NOTICE: Duration = Duration::from_millis(500);
/// Enough for a log line's formatting; only what is used becomes memory.
const STACK: usize = 256 << 10;

/// One process that is watched; shared by its handle, its undo step and its thread.
#[derive(Debug)]
pub(crate) struct Watched {
    id: SandboxId,
    process: Spawned,
    /// Whether it is the first process of a PID namespace.
    is_init: bool,
    /// What it runs in, with all that it may have started.
    cgroup: Option<Cgroup>,
    report: watch::Sender<Option<ExitReport>>,
    /// Wakes threads that wait for `report`; guards nothing but the waking itself.
    gone: (Mutex<()>, Condvar),
}

impl Watched {
    /// Watches a child from here on; if that is impossible it is killed and collected.
    pub(crate) fn start(
        id: SandboxId,
        process: Spawned,
        is_init: bool,
        cgroup: Option<Cgroup>,
        console: Console,
    ) -> Result<Arc<Self>, VmmError> {
        let report = watch::Sender::new(None);
        let gone = (Mutex::new(()), Condvar::new());
        let watched = Arc::new(Self { id, process, is_init, cgroup, report, gone });
        let thread = Arc::clone(&watched);
        let name = format!("wrenn-vmm-{}", watched.pid());
        let started =
            std::thread::Builder::new().name(name).stack_size(STACK).spawn(move || thread.watch(&console));
        match started {
            Ok(_) => Ok(watched),
            Err(source) => {
                watched.process.abandon();
                Err(VmmError::Watch { source })
            }
        }
    }

    /// What is readable once the process is gone.
    pub(crate) fn life(&self) -> io::Result<OwnedFd> {
        self.process.pidfd.try_clone()
    }

    /// The process, by number.
    pub(crate) fn process(&self) -> Pid {
        self.process.pid
    }

    /// The cgroup of its own that it runs in.
    pub(crate) fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }

    fn watch(&self, console: &Console) {
        while !self.ended_within(CONSOLE_CHECK) {
            if let Err(error) = console.trim() {
                tracing::warn!(sandbox = %self.id, %error, "the console log cannot be trimmed");
            }
        }
        let report = ExitReport { status: self.collect(), console_tail: console.tail() };
        tracing::debug!(sandbox = %self.id, pid = self.pid(), status = %report.status, "monitor ended");
        self.report.send_replace(Some(report));
        // A waiter that saw no report holds the lock until it waits: taking it here loses no wake-up.
        drop(self.gone.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.gone.1.notify_all();
    }

    /// Waits until the process has ended, at most `limit`.
    fn ended_within(&self, limit: Duration) -> bool {
        let limit = Timespec { tv_sec: limit.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: 0 };
        let mut fds = [PollFd::from_borrowed_fd(self.process.pidfd.as_fd(), PollFlags::IN)];
        match poll(&mut fds, Some(&limit)) {
            Ok(ready) => ready > 0,
            Err(Errno::INTR) => false,
            // Nothing is left to wait with but the wait of `collect`, which is as good an answer.
            Err(_) => true,
        }
    }

    fn collect(&self) -> ExitStatus {
        loop {
            match waitid(WaitId::PidFd(self.process.pidfd.as_fd()), WaitIdOptions::EXITED) {
                Err(Errno::INTR) => {}
                Err(_) | Ok(None) => return ExitStatus::Unknown,
                Ok(Some(status)) => {
                    let exited = status.exit_status().map(ExitStatus::Exited);
                    let signaled = || status.terminating_signal().map(ExitStatus::Signaled);
                    return exited.or_else(signaled).unwrap_or(ExitStatus::Unknown);
                }
            }
        }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.process.pid.as_raw_nonzero().get()
    }

    pub(crate) fn exit_watch(&self) -> ExitWatch {
        ExitWatch { id: self.id.clone(), report: self.report.subscribe() }
    }

    /// Sends SIGKILL to it and to all that it may have started. One that is already gone is no error.
    pub(crate) fn kill(&self) {
        if let Some(cgroup) = &self.cgroup {
            cgroup.kill();
        }
        self.signal(Signal::KILL);
    }

    /// Sends SIGTERM, where the process would hear that: the first process of a PID namespace does not hear what it has
    /// no handler for, and no monitor has one. Such a process is killed, which is what SIGTERM does to any other.
    pub(crate) fn terminate(&self) {
        if self.is_init { self.kill() } else { self.signal(Signal::TERM) }
    }

    /// Sends a signal; a process that is already gone is no error, any other failure shows when the
    /// wait that follows runs out.
    fn signal(&self, signal: Signal) {
        if let Err(error) = pidfd_send_signal(&self.process.pidfd, signal)
            && error != Errno::SRCH
        {
            tracing::warn!(sandbox = %self.id, ?signal, %error, "the monitor cannot be signalled");
        }
    }

    /// Blocks until the process is collected, at most `limit`; true if it is.
    fn gone_within(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut guard = self.gone.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if self.report.borrow().is_some() {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            guard = self.gone.1.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends the process: SIGTERM, then SIGKILL; see [`Self::terminate`]. Blocks until it is collected or the deadline has passed.
    pub(crate) fn stop_blocking(&self, deadline: Deadline) -> Result<(), VmmError> {
        self.terminate();
        if self.gone_within(UNDO_GRACE.min(deadline.remaining() / 2)) {
            return Ok(());
        }
        self.kill();
        let limit = deadline.remaining();
        if self.gone_within(limit) {
            return Ok(());
        }
        Err(self.unkillable(limit))
    }

    pub(crate) fn unkillable(&self, limit: Duration) -> VmmError {
        VmmError::Unkillable { id: self.id.clone(), pid: self.pid(), limit }
    }
}

/// Tells when one monitor has ended. Any number may exist; none keeps the process alive or unreaped.
#[derive(Debug, Clone)]
pub(crate) struct ExitWatch {
    id: SandboxId,
    report: watch::Receiver<Option<ExitReport>>,
}

impl ExitWatch {
    pub(crate) fn id(&self) -> &SandboxId {
        &self.id
    }

    /// Waits for the end. Cancel safe.
    pub(crate) async fn exited(&self) -> ExitReport {
        let mut report = self.report.clone();
        let ended = report.wait_for(Option::is_some).await.ok().and_then(|report| report.clone());
        // The sender lives in the watching thread until it has reported.
        ended.unwrap_or(ExitReport { status: ExitStatus::Unknown, console_tail: String::new() })
    }

    /// The end of the process in place of `error`, where a connection that broke in the middle of `during` was only its
    /// consequence.
    pub(crate) async fn explain(&self, error: VmmError, during: &str) -> VmmError {
        if !matches!(error, VmmError::NotListening { .. } | VmmError::Protocol { .. }) {
            return error;
        }
        match tokio::time::timeout(EXIT_NOTICE, self.exited()).await {
            Ok(report) => self.ended(report, during),
            Err(_) => error,
        }
    }

    pub(crate) fn ended(&self, report: ExitReport, during: &str) -> VmmError {
        VmmError::Exited { id: self.id.clone(), during: during.to_owned(), report: Box::new(report) }
    }

    pub(crate) fn now(&self) -> Option<ExitReport> {
        self.report.borrow().clone()
    }
}
