//! The thread that watches one monitor until it is gone, and the only one to collect its status.
//!
//! Invariants:
//! - The status is collected once, here, whoever still holds a handle: no zombie is left while this process lives.
//! - Signals go through the pidfd, so they can never reach another process that got the same number.
//! - The thread needs no async runtime, so neither does an undo step that waits for it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Child;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::sync::watch;
use wrenn_base::{Deadline, SandboxId};

use crate::console::Console;
use crate::error::VmmError;
use crate::exit::{ExitReport, ExitStatus};

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
    pid: Pid,
    pidfd: OwnedFd,
    report: watch::Sender<Option<ExitReport>>,
    /// Wakes threads that wait for `report`; guards nothing but the waking itself.
    gone: (Mutex<()>, Condvar),
}

impl Watched {
    /// Watches a child from here on. If that is impossible the child is killed and collected.
    pub(crate) fn start(id: SandboxId, mut child: Child, console: Console) -> Result<Arc<Self>, VmmError> {
        Self::try_start(id, &child, console).map_err(|source| {
            let _ = child.kill();
            let _ = child.wait();
            VmmError::Watch { source }
        })
    }

    fn try_start(id: SandboxId, child: &Child, console: Console) -> io::Result<Arc<Self>> {
        let pid = Pid::from_child(child);
        // Nobody has waited for the child yet, so its number still means it.
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        let report = watch::Sender::new(None);
        let watched = Arc::new(Self { id, pid, pidfd, report, gone: (Mutex::new(()), Condvar::new()) });
        let thread = Arc::clone(&watched);
        let name = format!("wrenn-vmm-{}", pid.as_raw_nonzero());
        std::thread::Builder::new().name(name).stack_size(STACK).spawn(move || thread.watch(&console))?;
        Ok(watched)
    }

    /// What is readable once the process is gone.
    pub(crate) fn life(&self) -> io::Result<OwnedFd> {
        self.pidfd.try_clone()
    }

    /// The process, by number.
    pub(crate) fn process(&self) -> Pid {
        self.pid
    }

    fn watch(&self, console: &Console) {
        while !self.ended_within(CONSOLE_CHECK) {
            if let Err(error) = console.trim() {
                tracing::warn!(sandbox = %self.id, %error, "the console log cannot be trimmed");
            }
        }
        let report = ExitReport { status: self.collect(), console_tail: console.tail() };
        tracing::debug!(sandbox = %self.id, pid = %self.pid.as_raw_nonzero(), status = %report.status, "monitor ended");
        self.report.send_replace(Some(report));
        // A waiter that saw no report holds the lock until it waits: taking it here loses no wake-up.
        drop(self.gone.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.gone.1.notify_all();
    }

    /// Waits until the process has ended, at most `limit`.
    fn ended_within(&self, limit: Duration) -> bool {
        let limit = Timespec { tv_sec: limit.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: 0 };
        let mut fds = [PollFd::from_borrowed_fd(self.pidfd.as_fd(), PollFlags::IN)];
        match poll(&mut fds, Some(&limit)) {
            Ok(ready) => ready > 0,
            Err(Errno::INTR) => false,
            // Nothing is left to wait with but the wait of `collect`, which is as good an answer.
            Err(_) => true,
        }
    }

    fn collect(&self) -> ExitStatus {
        loop {
            match waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED) {
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
        self.pid.as_raw_nonzero().get()
    }

    pub(crate) fn exit_watch(&self) -> ExitWatch {
        ExitWatch { id: self.id.clone(), report: self.report.subscribe() }
    }

    /// Sends a signal; a process that is already gone is no error, any other failure shows when the
    /// wait that follows runs out.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Err(error) = pidfd_send_signal(&self.pidfd, signal)
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

    /// Ends the process: SIGTERM, then SIGKILL. Blocks until it is collected or the deadline has passed.
    pub(crate) fn stop_blocking(&self, deadline: Deadline) -> Result<(), VmmError> {
        self.signal(Signal::TERM);
        if self.gone_within(UNDO_GRACE.min(deadline.remaining() / 2)) {
            return Ok(());
        }
        self.signal(Signal::KILL);
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
