//! The one place that waits for children: its own commands and, as PID 1, every orphan of the machine.
//!
//! A process that adopts orphans must reap all its children, but whoever waits for *any* child takes the exit
//! statuses of those that somebody else waits for. So nobody else waits. Whoever wants a child forks through
//! [`Reaper::spawn`]; the status comes through a [`Child`]; statuses of strangers are thrown away.
//!
//! Invariants:
//! - **No status is lost.** Between a fork and the child's entry in the table the child may already be dead.
//!   While any fork is under way, only children in the table are reaped, by their pid. What stays a zombie
//!   meanwhile is reaped when the fork is over.
//! - **No pid is mistaken.** An entry lives exactly until its pid is reaped, under one lock. Signals are sent
//!   under the same lock, to entries only: the pid cannot have gone to another process.
//! - A fork that hangs (a program on a dead network disk) delays the reaping of orphans, nothing else.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process_group, wait, waitpid};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(i32),
    Signal(i32),
}

/// Reaps this process's children. Clones share one table.
#[derive(Clone)]
pub(crate) struct Reaper(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    children: HashMap<Pid, watch::Sender<Option<Exit>>>,
    forks: u32,
}

/// A child that was spawned here. Dropping it neither kills nor forgets the process.
#[derive(Clone)]
pub(crate) struct Child {
    pid: Pid,
    exit: watch::Receiver<Option<Exit>>,
    reaper: Reaper,
}

/// The process that was to be signalled has ended.
#[derive(Debug)]
pub(crate) struct Gone;

impl Reaper {
    /// Starts reaping, on the current tokio runtime. At most one per process.
    pub(crate) fn start() -> io::Result<Self> {
        let reaper = Self(Arc::default());
        let mut deaths = signal(SignalKind::child())?;
        let table = reaper.clone();
        tokio::spawn(async move {
            loop {
                // First, too: children may have died before the handler was there.
                table.lock().reap();
                if deaths.recv().await.is_none() {
                    return;
                }
            }
        });
        Ok(reaper)
    }

    /// Runs `fork`, which makes exactly one child, on a thread where it may block, and watches over the child.
    ///
    /// Not cancel safe: the child comes to life even if the future is dropped, and is reaped then.
    pub(crate) async fn spawn<T: Send + 'static>(
        &self,
        fork: impl FnOnce() -> io::Result<(Pid, T)> + Send + 'static,
    ) -> io::Result<(Child, T)> {
        let under_way = Fork::begin(self);
        let made = tokio::task::spawn_blocking(move || {
            let (pid, extra) = fork()?;
            Ok((under_way.into_child(pid), extra))
        });
        made.await.unwrap_or_else(|panic| Err(io::Error::other(panic)))
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Child {
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// How it ended, if it did.
    pub(crate) fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits for its end. Cancel safe.
    pub(crate) async fn wait(&mut self) -> Exit {
        match self.exit.wait_for(Option::is_some).await.map(|exit| *exit) {
            Ok(Some(exit)) => exit,
            // The table drops an entry only after setting its status, so this is the runtime going down.
            _ => std::future::pending().await,
        }
    }

    /// Signals its process group, which it leads.
    pub(crate) fn signal_group(&self, signal: Signal) -> Result<(), Gone> {
        let table = self.reaper.lock();
        if !table.children.contains_key(&self.pid) {
            return Err(Gone);
        }
        kill_process_group(self.pid, signal).map_err(|_| Gone)
    }
}

/// A fork under way; its end, by whatever path, lets strangers be reaped again.
struct Fork(Reaper);

impl Fork {
    fn begin(reaper: &Reaper) -> Self {
        reaper.lock().forks += 1;
        Self(reaper.clone())
    }

    fn into_child(self, pid: Pid) -> Child {
        let (status, exit) = watch::channel(None);
        self.0.lock().children.insert(pid, status);
        Child { pid, exit, reaper: self.0.clone() }
    }
}

impl Drop for Fork {
    fn drop(&mut self) {
        let mut table = self.0.lock();
        table.forks -= 1;
        table.reap();
    }
}

impl Table {
    /// Takes every status that may be taken now.
    fn reap(&mut self) {
        if self.forks == 0 {
            while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
                self.route(pid, status);
            }
        } else {
            let ours: Vec<Pid> = self.children.keys().copied().collect();
            for pid in ours {
                if let Ok(Some((pid, status))) = waitpid(Some(pid), WaitOptions::NOHANG) {
                    self.route(pid, status);
                }
            }
        }
    }

    fn route(&mut self, pid: Pid, status: WaitStatus) {
        let exit = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Exit::Code(code),
            (_, Some(signal)) => Exit::Signal(signal),
            // Stops and continues were not asked for.
            _ => return,
        };
        if let Some(child) = self.children.remove(&pid) {
            child.send_replace(Some(exit));
        }
    }
}
